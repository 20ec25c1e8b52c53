"""Open any encoder with one call: runs and model folders of ours, plain models, stacks of adapters, LLM2Vec's folders.

What comes back is a `SentenceTransformer`, so that everything of that ecosystem works on it. Its attention is proven
bidirectional, or it is said to be causal.
"""

import logging
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Pooling, Transformer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from turncoder.config import OpenKeys
from turncoder.data.tokenizer import load_tokenizer, pad_token_id
from turncoder.errors import UserError
from turncoder.llm2vec import LLM2VecTransformer
from turncoder.model.adapters import load_adapter
from turncoder.model.attention import inspect_attention, make_bidirectional, settle_implementation
from turncoder.model.backbone import find_file, load_backbone, load_model_config, try_implementations
from turncoder.model.conversion import is_converted
from turncoder.model.source import Source, find_source, read_json
from turncoder.prompts import append_eos

__all__ = ["MAX_SEQ_LENGTH", "POOLING", "TEXT_ONLY", "check_flags", "load_encoder", "open_encoder"]

logger = logging.getLogger("turncoder")

POOLING = {
    "mean": "mean",
    "weighted_mean": "weightedmean",
    "eos_token": "lasttoken",
    "last_token": "lasttoken",
    "bos_token": "cls",
    "cls": "cls",
}
"""Our (and LLM2Vec's) names of poolings, and sentence-transformers'."""
MAX_SEQ_LENGTH = 512
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
        LoRA folders, runs or hub ids to put on it, in this order.
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
        LLM2Vec's semantics (`turncoder.llm2vec`); None is True where there is an ``llm2vec_config.json``.
    dtype
        ``float32`` (also for None), ``bfloat16``, ``float16``, or ``auto``.
    attn_implementation
        The first of this, sdpa and eager that loads and passes the proof.
    device
        Such as ``cpu`` or ``cuda:1``; None is sentence-transformers' choice.
    revision, cache_dir, trust_remote_code
        As in ``from_pretrained``.

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
    where: dict[str, Any] = {"revision": revision, "cache_dir": cache_dir}
    source = find_source(name, adapters, **where)
    if source.base != name:
        where["revision"] = "main"  # which was that of the adapter's repository
    where["trust_remote_code"] = trust_remote_code
    if not source.is_encoder:
        load_model_config(source.base, **where)  # for its messages
    loading: dict[str, Any] = {"dtype": dtype, "attn_implementation": attn_implementation}
    turning: dict[str, Any] = {"bidirectional": bidirectional, "allow_partial": allow_partial}
    settings = (source.llm2vec or {}) if llm2vec or (llm2vec is None and source.llm2vec is not None) else None
    if source.is_encoder:
        _check_folder(source, where, chat_template=chat_template, llm2vec=settings is not None)
    if source.is_encoder and settings is None:
        encoder = _open_folder(source, where, loading, device)
        backbone = encoder.transformers_model
        if isinstance(backbone, PreTrainedModel):
            _adapt(backbone, source, merge, cache_dir)
            _turn(backbone, source, **turning, plain=False)
            if max_seq_length is not None:
                encoder.max_seq_length = limit_length(backbone, max_seq_length)
        if pooling is not None:
            if isinstance(encoder[0], Transformer):
                fit_tokenizer(encoder.tokenizer, pooling)
            _set_pooling(encoder, pooling)
        return encoder.eval()
    backbone = load_backbone(source.base, **where, **loading)
    _adapt(backbone, source, merge, cache_dir)
    _turn(backbone, source, **turning, plain=not source.is_encoder)
    module = _wrap(
        backbone,
        source,
        where,
        settings=settings,
        pooling=pooling,
        chat_template=chat_template,
        max_seq_length=max_seq_length,
    )
    named = _name_pooling(pooling, settings)
    width = module.get_embedding_dimension()
    encoder = SentenceTransformer(modules=[module, Pooling(width, "mean", include_prompt=False)], device=device)
    encoder.similarity_fn_name = "cosine"
    kept = _read_beside(source, "config_sentence_transformers.json", where) if source.is_encoder else None
    if kept:
        encoder.prompts, encoder.default_prompt_name = kept.get("prompts") or {}, kept.get("default_prompt_name")
    _set_pooling(encoder, named)
    return encoder.eval()


def open_encoder(name: str, keys: OpenKeys, **others: Any) -> SentenceTransformer:
    """Open an encoder as the keys of a command say; ``others`` win over them."""
    told = {field.name: getattr(keys, field.name) for field in fields(OpenKeys)}
    told["revision"] = told.pop("model_revision")
    return load_encoder(name, **{**told, **others})


def _check_folder(source: Source, where: dict[str, Any], *, chat_template: bool, llm2vec: bool) -> None:
    """Refuse what a sentence-transformers folder decides for itself, or what would throw parts of it away."""
    if chat_template:
        raise UserError(
            f"--chat_template: {source.base} is a sentence-transformers folder, which says itself what goes through a "
            "template; name its base model"
        )
    if llm2vec and len(_read_beside(source, "modules.json", where) or []) > 2:
        raise UserError(
            f"--llm2vec: {source.base} has modules besides a model and its pooling, which LLM2Vec does not know; "
            "leave the flag away"
        )


def _adapt(backbone: PreTrainedModel, source: Source, merge: bool, cache_dir: str | None) -> None:
    for adapter in source.adapters:
        load_adapter(backbone, adapter, merge=merge, cache_dir=cache_dir)


def _open_folder(
    source: Source, where: dict[str, Any], loading: dict[str, Any], device: str | None
) -> SentenceTransformer:
    """Let sentence-transformers open its own folder."""
    dtype = loading["dtype"] or "float32"
    trusted = where["trust_remote_code"] or _is_ours(source.base, where)

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


def _is_ours(name: str, where: dict[str, Any]) -> bool:
    """Return whether all the code that a folder refers to is sentence-transformers' or our own."""
    place = {"revision": where["revision"], "cache_dir": where["cache_dir"]}
    modules, config = (find_file(name, file, **place) for file in ("modules.json", "config.json"))
    if modules is None or (config is not None and "auto_map" in read_json(config)):
        return False
    listed: Any = read_json(modules)
    types = [module["type"] for module in listed]
    return all(one.startswith(("sentence_transformers.", "turncoder.")) for one in types)


def _turn(
    backbone: PreTrainedModel, source: Source, *, bidirectional: bool | None, allow_partial: bool, plain: bool
) -> None:
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
    if wanted or converted or (wanted is None and plain):
        settle_implementation(backbone, allow_partial=allow_partial)
        make_bidirectional(backbone, allow_partial=allow_partial)
    else:
        logger.warning("%s: attention is causal: a token sees what stands before it, and nothing after", source.base)


def _wrap(
    backbone: PreTrainedModel,
    source: Source,
    where: dict[str, Any],
    *,
    settings: dict[str, Any] | None,
    pooling: str | None,
    chat_template: bool,
    max_seq_length: int | None,
) -> Transformer:
    """Put a loaded model into sentence-transformers' module, with a tokenizer that pads on the right."""
    kind: Any = Transformer if settings is None else LLM2VecTransformer
    tokenizer = load_tokenizer(source.tokenizer, **where)  # its messages are better, and the padding is asked of it
    if chat_template and not tokenizer.chat_template:
        raise UserError(f"--chat_template: the tokenizer of {source.tokenizer} has none; leave the flag away")
    named = _name_pooling(pooling, settings)
    fit_tokenizer(tokenizer, named, ends=settings is None)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_token_id(tokenizer))
    options: dict[str, Any] = {}
    if settings is not None:
        options = {
            "pooling": named,
            "doc_max_length": settings.get("doc_max_length", 400),
            "skip_instruction": settings.get("skip_instruction", True),
            "template_name": source.template_name,
        }
        max_seq_length = max_seq_length or settings.get("max_length")
    if not chat_template:  # which sentence-transformers applies by itself wherever there is one
        options |= TEXT_ONLY

    class Given(kind):
        """The same module, around a model that is there already."""

        def _load_config(self, *_: Any, **__: Any) -> Any:
            return backbone.config, False

        def _load_model(self, *_: Any, **__: Any) -> PreTrainedModel:
            return backbone

    module = Given(source.tokenizer, processor_kwargs=where, **options)
    module.__class__ = kind
    module.processor = tokenizer
    module.max_seq_length = limit_length(backbone, max_seq_length)
    return module


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


def fit_tokenizer(tokenizer: PreTrainedTokenizerBase, pooling: str, ends: bool = True) -> None:
    """See that the token which a pooling takes is there.

    Raises
    ------
    UserError
        There is no such token.
    """
    if pooling == "eos_token" and ends:
        append_eos(tokenizer)
    if pooling == "bos_token" and tokenizer("a")["input_ids"][0] != tokenizer.bos_token_id:
        raise UserError("pooling = 'bos_token': the tokenizer puts no BOS before a text; choose mean or last_token")


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
        kind = torch.device(device).type
    except RuntimeError as error:
        raise UserError(f"device = {device!r} is none; choose cpu, cuda, cuda:1, mps, ...") from error
    there: dict[str, Any] = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if kind in there and not there[kind]():
        raise UserError(f"device = {device!r} is not to be had on this machine; choose cpu, or leave the flag away")


def _name_pooling(pooling: str | None, settings: dict[str, Any] | None) -> str:
    named = pooling or (settings or {}).get("pooling_mode", "mean")
    if named not in POOLING:
        raise UserError(f"llm2vec_config.json: pooling_mode = {named!r} is none of {', '.join(POOLING)}; use --pooling")
    return named


def _read_beside(source: Source, file: str, where: dict[str, Any]) -> Any:
    path = find_file(source.base, file, revision=where["revision"], cache_dir=where["cache_dir"])
    return read_json(path) if path else None


def _set_pooling(encoder: SentenceTransformer, pooling: str) -> None:
    modules = [module for module in encoder if isinstance(module, Pooling)]
    if not modules:
        raise UserError(f"pooling = {pooling!r}: this encoder has no pooling to choose; leave the flag away")
    modules[0].pooling_mode = POOLING[pooling]
    modules[0].pooling_output_dimension = modules[0].embedding_dimension
