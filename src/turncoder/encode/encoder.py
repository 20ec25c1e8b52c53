"""Open any encoder with one call: runs and model folders of ours, plain models, stacks of adapters, LLM2Vec's folders.

What comes back is a `SentenceTransformer`, so that everything of that ecosystem works on it. Its attention is proven
bidirectional, or it is said to be causal.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Pooling, Transformer
from transformers import PreTrainedModel

from turncoder.config.keys import OpenKeys
from turncoder.data.tokenizer import load_tokenizer, pad_token_id
from turncoder.encode.llm2vec import LLM2VecTransformer
from turncoder.encode.pooling import MODES, POOLING, fit_tokenizer, pools_first, set_pooling
from turncoder.errors import UserError
from turncoder.model.adapters import load_adapter
from turncoder.model.attention import inspect_attention, make_bidirectional, settle_implementation
from turncoder.model.backbone import find_file, load_backbone, split_revision, try_implementations
from turncoder.model.conversion import is_converted
from turncoder.model.influence import run_model, test_tokens
from turncoder.model.source import Source, find_source, read_json

__all__ = [
    "MAX_SEQ_LENGTH",
    "apply_flags",
    "check_finite",
    "check_flags",
    "find_template",
    "limit_length",
    "load_encoder",
    "open_encoder",
    "read_modules",
    "take_pair",
    "wrap_model",
]

logger = logging.getLogger("turncoder")

MAX_SEQ_LENGTH = 512
REMEDIES = {"float16": "use --dtype bfloat16 or float32", "bfloat16": "use --dtype float32"}
DAMAGED = "its weights may be damaged: load them anew"
TEXT_ONLY = {
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}


def load_encoder(
    name: str,
    *,
    adapters: Sequence[str] = (),
    merge: bool = True,
    pooling: str | None = None,
    bidirectional: bool | None = None,
    allow_partial: bool = False,
    max_seq_length: int | None = None,
    chat_template: bool = False,
    llm2vec: bool | None = None,
    dtype: str | None = None,
    attn_implementation: str | None = "sdpa",
    device: str | None = None,
    revision: str = "main",
    cache_dir: str | None = None,
    trust_remote_code: bool = False,
) -> SentenceTransformer:
    """Open an encoder.

    Parameters
    ----------
    name
        A run or model folder of ours, any sentence-transformers folder, a decoder or an encoder, an adapter that names
        its base model, an LLM2Vec folder; or a hub id of one of those.
    adapters
        LoRA folders, runs or hub ids (or ``id@revision``) to put on it, in this order.
    merge
        Add the adapters to the weights; else they stay live.
    pooling
        mean, weighted_mean, eos_token (an end-of-text token is added where the tokenizer adds none), last_token,
        bos_token or cls; None is what the folder says, else mean.
    bidirectional
        True converts a decoder and proves it; False leaves it causal; None is what the folder or the run says, and
        True for a plain decoder.
    allow_partial
        Accept a model of which only some layers can look ahead.
    max_seq_length
        In tokens; None is what the folder says, else 512.
    chat_template
        Put every text through the tokenizer's chat template, as the words of a user.
    llm2vec
        LLM2Vec's semantics (`turncoder.encode.llm2vec`); None is True where there is an ``llm2vec_config.json``.
    dtype
        ``float32`` (also for None), ``bfloat16``, ``float16``, or ``auto``.
    attn_implementation
        The first of this, sdpa and eager that loads and passes the proof.
    device
        Such as ``cpu`` or ``cuda:1``; None is sentence-transformers' choice.
    revision
        Branch, tag or commit of the hub id that is ``name``.
    cache_dir
        Where downloads from the hub are kept.
    trust_remote_code
        Run Python code that comes with the model.

    Returns
    -------
    SentenceTransformer
        In evaluation mode.

    Raises
    ------
    UserError
        No such model or adapter, an adapter for another model or one that changes nothing, an unknown pooling.
    ConversionError
        Layers stay causal; the message names them.
    """
    check_flags(pooling, dtype, device, max_seq_length)
    adapters = [adapters] if isinstance(adapters, str) else adapters
    source = find_source(name, adapters, revision=revision, cache_dir=cache_dir)
    where: dict[str, Any] = {
        "revision": source.revision,
        "cache_dir": cache_dir,
        "trust_remote_code": trust_remote_code,
    }
    loading: dict[str, Any] = {"dtype": dtype, "attn_implementation": attn_implementation}
    settings = (source.llm2vec or {}) if llm2vec or (llm2vec is None and source.llm2vec is not None) else None
    folder = None
    if source.is_encoder:
        _check_folder(source, where, chat_template=chat_template, llm2vec=settings is not None)
        folder = _open_folder(source, where, loading, device)
    backbone = load_backbone(source.base, **where, **loading) if folder is None else folder.transformers_model
    if isinstance(backbone, PreTrainedModel):
        for adapter in source.adapters:
            load_adapter(backbone, adapter, merge=merge, cache_dir=cache_dir)
        _turn(backbone, source, bidirectional=bidirectional, allow_partial=allow_partial)
    if folder is not None and settings is None:
        apply_flags(folder, pooling, max_seq_length)
        return folder.eval()
    if folder is not None and settings is not None:
        settings = _carry_over(folder, settings, named=pooling)
    assert backbone is not None
    encoder = wrap_model(
        backbone,
        source,
        where,
        settings=settings,
        pooling=pooling,
        max_seq_length=max_seq_length,
        chat_template=chat_template,
        device=device,
    )
    if folder is not None:
        encoder.prompts, encoder.default_prompt_name = folder.prompts, folder.default_prompt_name
    return encoder.eval()


def open_encoder(config: Any, **others: Any) -> SentenceTransformer:
    """Open an encoder as those of `OpenKeys` that a configuration has say; ``others`` win over them."""
    told = {field.name: getattr(config, field.name) for field in fields(OpenKeys) if hasattr(config, field.name)}
    told["name"], told["revision"] = told.pop("model_name_or_path"), told.pop("model_revision")
    return load_encoder(**{**told, **others})


def take_pair(encoder: SentenceTransformer, name: str) -> tuple[Transformer, Pooling]:
    """Give the transformer and the pooling of an encoder; raises UserError where it is more than those."""
    match list(encoder):
        case [Transformer() as module, Pooling() as pool] if isinstance(encoder.transformers_model, PreTrainedModel):
            return module, pool
    raise UserError(f"model_name_or_path: {name} has other modules than a model and its pooling; name their model")


def find_template(encoder: SentenceTransformer) -> dict[str, Any] | None:
    """Give the keys of ``sentence_bert_config.json`` by which a chat template is used; None: plain text is read."""
    module: Any = encoder[0]
    if "message" not in getattr(module, "modality_config", {}):
        return None
    return {name: getattr(module, name) for name in TEXT_ONLY}


def _check_folder(source: Source, where: dict[str, Any], *, chat_template: bool, llm2vec: bool) -> None:
    """Refuse what a sentence-transformers folder decides for itself, or what would throw parts of it away."""
    if chat_template:
        raise UserError(
            f"--chat_template: {source.base} is a sentence-transformers folder, which says itself what goes through a "
            "template; name its base model"
        )
    if llm2vec and len(read_modules(source, where)) > 2:
        raise UserError(
            f"--llm2vec: {source.base} has modules besides a model and its pooling, which LLM2Vec does not know; "
            "leave the flag out"
        )


def apply_flags(encoder: SentenceTransformer, pooling: str | None, max_seq_length: int | None) -> None:
    """Set in a sentence-transformers folder what flags say otherwise."""
    if max_seq_length is not None and isinstance(encoder.transformers_model, PreTrainedModel):
        encoder.max_seq_length = limit_length(encoder.transformers_model, max_seq_length)
    if pooling is not None:
        if isinstance(encoder[0], Transformer):
            fit_tokenizer(encoder.tokenizer, pooling)
        set_pooling(encoder, pooling)


def _carry_over(folder: SentenceTransformer, settings: dict[str, Any], named: str | None) -> dict[str, Any]:
    """Add to LLM2Vec's settings what a folder says of pooling and length, where they are silent."""
    kept: dict[str, Any] = {"max_length": folder.max_seq_length}
    if not isinstance(folder.transformers_model, PreTrainedModel):
        raise UserError("--llm2vec: the folder has no transformer, and LLM2Vec nothing to read it with; leave it out")
    mode = next((module.pooling_mode for module in folder if isinstance(module, Pooling)), "mean")
    if isinstance(mode, str) and mode in MODES:
        kept["pooling_mode"] = MODES[mode]
    elif named is None and "pooling_mode" not in settings:
        raise UserError(
            f"--llm2vec: the folder pools by {mode}, which LLM2Vec does not know; choose a --pooling, or leave the "
            "flag away"
        )
    return {**kept, **settings}


def _open_folder(
    source: Source, where: dict[str, Any], loading: dict[str, Any], device: str | None
) -> SentenceTransformer:
    """Let sentence-transformers open its own folder."""
    dtype = loading["dtype"] or "float32"
    trusted = where["trust_remote_code"] or _is_ours(source, where)

    def load(implementation: str) -> SentenceTransformer:
        return SentenceTransformer(
            source.base,
            device=device,
            model_kwargs={
                "dtype": dtype if dtype == "auto" else getattr(torch, dtype),
                "attn_implementation": implementation,
            },
            revision=where["revision"],
            cache_folder=where["cache_dir"],
            trust_remote_code=trusted,
        )

    return try_implementations(source.base, loading["attn_implementation"], load)


def _is_ours(source: Source, where: dict[str, Any]) -> bool:
    """Return whether all the code that a folder refers to is sentence-transformers' or our own."""
    place = {"revision": where["revision"], "cache_dir": where["cache_dir"]}
    config = find_file(source.base, "config.json", **place)
    if config is not None and "auto_map" in read_json(config):
        return False
    types = [module["type"] for module in read_modules(source, where)]
    return all(one.startswith(("sentence_transformers.", "turncoder.")) for one in types)


def _turn(backbone: PreTrainedModel, source: Source, *, bidirectional: bool | None, allow_partial: bool) -> None:
    """Prove the attention to be bidirectional, making it so where that is wanted; or say that it is causal."""
    wanted = bidirectional if bidirectional is not None else source.bidirectional
    converted = is_converted(backbone.config)
    if wanted is False and converted:
        raise UserError(
            f"--no-bidirectional: {source.base} was trained bidirectional, and is nothing without it; name the model "
            "that it was made from"
        )
    report = inspect_attention(backbone)
    if report.verdict == "bidirectional":
        return
    check_finite(run_model(backbone, test_tokens(backbone, 8)), backbone.dtype)  # else the proof says nothing
    if wanted or converted or (wanted is None and not source.is_encoder):
        settle_implementation(backbone, allow_partial=allow_partial)
        make_bidirectional(backbone, allow_partial=allow_partial)
    else:
        logger.warning("%s: attention is causal: a token sees what stands before it, and nothing after", source.base)


def wrap_model(
    backbone: PreTrainedModel,
    source: Source,
    where: dict[str, Any],
    *,
    settings: dict[str, Any] | None = None,
    pooling: str | None = None,
    max_seq_length: int | None = None,
    chat_template: bool = False,
    device: str | None = None,
) -> SentenceTransformer:
    """Put a model into sentence-transformers' modules, with a tokenizer that pads on the right.

    Parameters
    ----------
    backbone
        With storage or without.
    source
        What it comes from; what that keeps beside the weights counts where the arguments say nothing.
    where
        As for `turncoder.model.backbone.load_backbone`.
    settings
        LLM2Vec's; None without its semantics.
    pooling, max_seq_length, chat_template, device
        As for `load_encoder`.
    """
    kept, told = source.kept, settings or {}
    pooling = pooling or told.get("pooling_mode") or MODES.get(kept.get("pooling", ""), kept.get("pooling")) or "mean"
    max_seq_length = max_seq_length or told.get("max_length") or kept.get("max_seq_length")
    chat_template = chat_template or kept.get("chat_template", False)
    if settings is not None and pooling not in POOLING:
        raise UserError(
            f"llm2vec_config.json: pooling_mode = {pooling!r} is none of {', '.join(POOLING)}; use --pooling"
        )
    kind: Any = Transformer if settings is None else LLM2VecTransformer
    place, revision = split_revision(source.tokenizer, source.revision)
    where = {**where, "revision": revision}
    tokenizer = load_tokenizer(place, **where)  # its messages are better, and the padding is asked of it
    if chat_template and not tokenizer.chat_template:
        raise UserError(f"--chat_template: the tokenizer of {source.tokenizer} has none; leave the flag out")
    fit_tokenizer(tokenizer, pooling, ends=settings is None)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_token_id(tokenizer))
    options: dict[str, Any] = {}
    if settings is not None:
        options = {
            "pooling": pooling,
            "doc_max_length": settings.get("doc_max_length", 400),
            "skip_instruction": settings.get("skip_instruction", True),
            "template_name": source.template_name,
        }
    if not chat_template:  # which sentence-transformers applies by itself wherever there is one
        options |= TEXT_ONLY

    class Given(kind):
        """The same module, around a model that is there already."""

        def _load_config(self, *_: Any, **__: Any) -> Any:
            return backbone.config, False

        def _load_model(self, *_: Any, **__: Any) -> PreTrainedModel:
            return backbone

    module = Given(place, processor_kwargs=where, **options)
    module.__class__ = kind
    module.processor = tokenizer
    module.max_seq_length = limit_length(backbone, max_seq_length)
    mode = POOLING.get(pooling, pooling)
    pool = Pooling(module.get_embedding_dimension(), mode, include_prompt=pools_first(mode))
    encoder = SentenceTransformer(modules=[module, pool], device=device)
    encoder.similarity_fn_name = "cosine"
    encoder.prompts = {**encoder.prompts, **kept.get("prompts", {})}
    encoder.default_prompt_name = kept.get("default_prompt_name")
    return encoder


def limit_length(backbone: PreTrainedModel, asked: int | None) -> int:
    """Return how many tokens a model can read: what is asked for (None: 512), or fewer where it has fewer positions.

    Models of RoBERTa's kind count positions from behind their padding token's.
    """
    positions = getattr(backbone.config.get_text_config(), "max_position_embeddings", None) or 0
    for name, module in backbone.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            positions = module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    length = asked or MAX_SEQ_LENGTH
    if positions > 0 and length > positions:
        if asked:
            logger.warning("max_seq_length: the model has %d positions; %d are read", positions, positions)
        return positions
    return length


def check_flags(pooling: str | None, dtype: str | None, device: str | None, length: int | None) -> None:
    """Refuse, with a UserError, what no model could be opened with."""
    if pooling is not None and pooling not in POOLING:
        raise UserError(f"pooling = {pooling!r} is none of {', '.join(POOLING)}")
    if dtype not in (None, "auto", "float32", "bfloat16", "float16"):
        raise UserError(f"dtype = {dtype!r} is none of auto, float32, bfloat16, float16")
    if length is not None and length < 1:
        raise UserError(f"max_seq_length = {length} must be at least 1")
    if device is None:
        return
    try:
        named = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"device = {device!r} is none; choose cpu, cuda, cuda:1, mps, ...") from error
    there = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (named.index or 0) >= there.get(named.type, math.inf):
        raise UserError(f"device = {device!r} is not available on this machine; choose cpu, or drop the flag")


def check_finite(states: torch.Tensor, dtype: torch.dtype | None) -> None:
    """Refuse, with a UserError, what went beyond the range of a model's numbers."""
    if bool(torch.isfinite(states).all()):
        return
    name = str(dtype).removeprefix("torch.")
    raise UserError(
        f"dtype = {name}: what the model gives is not finite (NaN or infinite); {REMEDIES.get(name, DAMAGED)}"
    )


def read_modules(source: Source, where: dict[str, Any]) -> list[dict[str, str]]:
    """Read which modules a sentence-transformers folder lists."""
    path = find_file(source.base, "modules.json", revision=where["revision"], cache_dir=where["cache_dir"])
    return read_json(path) if path else []  # type: ignore[return-value]
