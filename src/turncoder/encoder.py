"""Open any encoder with one call: runs and model folders of ours, plain models, stacks of adapters, LLM2Vec's folders.

What comes back is a `SentenceTransformer`, so that everything of that ecosystem works on it. Its attention is proven
bidirectional, or it is said to be causal.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Pooling, Transformer
from tokenizers import Tokenizer, processors
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from turncoder.artifact import save_encoder
from turncoder.config import MergeConfig
from turncoder.data.tokenizer import VOCABULARY_FILES, load_tokenizer, pad_token_id
from turncoder.errors import UserError
from turncoder.llm2vec import LLM2VecTransformer
from turncoder.model.adapters import load_adapter
from turncoder.model.attention import inspect_attention, make_bidirectional, settle_implementation
from turncoder.model.backbone import find_file, load_backbone, load_model_config, try_implementations
from turncoder.model.conversion import is_converted

__all__ = ["POOLING", "Source", "find_source", "load_encoder", "merge_to_folder"]

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


@dataclass(frozen=True)
class Source:
    """What a name stands for.

    Attributes
    ----------
    base
        What transformers, or sentence-transformers, opens.
    adapters
        LoRA folders or hub ids on top of it, in order.
    is_encoder
        It is a sentence-transformers folder.
    tokenizer
        Where the tokenizer is.
    bidirectional
        Whether the run that it comes from was; None where that is not known.
    llm2vec
        The content of ``llm2vec_config.json``, if there is one.
    template_name
        The name by which LLM2Vec finds its chat templates.
    """

    base: str
    adapters: tuple[str, ...] = ()
    is_encoder: bool = False
    tokenizer: str = ""
    bidirectional: bool | None = None
    llm2vec: dict[str, Any] | None = None
    template_name: str = ""


def find_source(
    name: str, adapters: Sequence[str] = (), *, revision: str = "main", cache_dir: str | None = None
) -> Source:
    """Follow a name to its base model: through a run that kept only its adapter, and through adapters' own folders.

    Raises
    ------
    UserError
        A run that has nothing to open yet, or an adapter that does not say what it belongs to.
    """
    record = Path(name) / "run.json"
    if record.exists():
        source = _find_run(Path(name), json.loads(record.read_text(encoding="utf8")))
    elif find_file(name, "modules.json", revision=revision, cache_dir=cache_dir):
        source = Source(name, is_encoder=True, tokenizer=name)
    elif path := find_file(name, "adapter_config.json", revision=revision, cache_dir=cache_dir):
        base = json.loads(path.read_text(encoding="utf8")).get("base_model_name_or_path")
        if not base or base == name:
            raise UserError(
                f"model_name_or_path: {name} is an adapter that does not name its base model; name that, and this as "
                "--adapters"
            )
        below = find_source(base)
        has_tokenizer = any(find_file(name, file, revision=revision, cache_dir=cache_dir) for file in VOCABULARY_FILES)
        source = Source(
            below.base, (*below.adapters, name), tokenizer=name if has_tokenizer else below.tokenizer or below.base
        )
    else:
        source = Source(name, tokenizer=name)
    last = [*source.adapters, *adapters][-1] if source.adapters or adapters else name
    config = next(
        (path for place in (last, name) if (path := find_file(place, "llm2vec_config.json", cache_dir=cache_dir))), None
    )
    kept = find_file(name, "config.json", cache_dir=cache_dir) if Path(name).is_dir() else None
    template = json.loads(kept.read_text(encoding="utf8")).get("_name_or_path") if kept else None
    return Source(
        source.base,
        (*source.adapters, *adapters),
        source.is_encoder,
        source.tokenizer,
        source.bidirectional,
        json.loads(config.read_text(encoding="utf8")) if config else None,
        template or source.base,
    )


def _find_run(folder: Path, record: dict[str, Any]) -> Source:
    if (folder / "model").is_dir():
        return Source(str(folder / "model"), is_encoder=True, tokenizer=str(folder / "model"))
    if not (folder / "adapter").is_dir():
        raise UserError(f"model_name_or_path: the run {folder} has neither model/ nor adapter/ yet; let it finish")
    config = record["config"]
    below = find_source(config["model_name_or_path"])
    return Source(
        below.base,
        (*below.adapters, *config["adapters"], str(folder / "adapter")),
        tokenizer=config["tokenizer_name"] or below.tokenizer,
        bidirectional=config["bidirectional"],
    )


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
    if pooling is not None and pooling not in POOLING:
        raise UserError(f"pooling = {pooling!r} is none of {', '.join(POOLING)}")
    where: dict[str, Any] = {"revision": revision, "cache_dir": cache_dir}
    source = find_source(name, adapters, **where)
    if source.base != name:
        where["revision"] = "main"  # which was that of the adapter's repository
    where["trust_remote_code"] = trust_remote_code
    if not source.is_encoder:
        load_model_config(source.base, **where)  # for its messages
    loading = {"dtype": dtype, "attn_implementation": attn_implementation}
    turning = {"bidirectional": bidirectional, "allow_partial": allow_partial}
    settings = (source.llm2vec or {}) if llm2vec or (llm2vec is None and source.llm2vec is not None) else None
    if source.is_encoder and settings is None:
        encoder = _open_folder(source, where, loading, device)
        backbone = encoder.transformers_model
        if isinstance(backbone, PreTrainedModel):
            for adapter in source.adapters:
                load_adapter(backbone, adapter, merge=merge)
            _turn(backbone, source, **turning, plain=False)
        if max_seq_length is not None:
            encoder.max_seq_length = max_seq_length
        if pooling is not None:
            _set_pooling(encoder, pooling)
        return encoder.eval()
    backbone = load_backbone(source.base, **where, **loading)
    for adapter in source.adapters:
        load_adapter(backbone, adapter, merge=merge, cache_dir=cache_dir)
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
    named = pooling or (settings or {}).get("pooling_mode", "mean")
    width = module.get_embedding_dimension()
    encoder = SentenceTransformer(modules=[module, Pooling(width, "mean", include_prompt=False)], device=device)
    encoder.similarity_fn_name = "cosine"
    _set_pooling(encoder, named)
    return encoder.eval()


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
    if modules is None or (config is not None and "auto_map" in json.loads(config.read_text(encoding="utf8"))):
        return False
    types = [module["type"] for module in json.loads(modules.read_text(encoding="utf8"))]
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
    named = pooling or (settings or {}).get("pooling_mode", "mean")
    if settings is None and named == "eos_token":
        append_eos(tokenizer)
    if named == "bos_token" and tokenizer("a")["input_ids"][0] != tokenizer.bos_token_id:
        raise UserError("pooling = 'bos_token': the tokenizer puts no BOS before a text; choose mean or last_token")
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

    class Given(kind):  # type: ignore[misc]
        """The same module, around a model that is there already."""

        def _load_config(self, *_: Any, **__: Any) -> Any:
            return backbone.config, False

        def _load_model(self, *_: Any, **__: Any) -> PreTrainedModel:
            return backbone

    module = Given(source.tokenizer, processor_kwargs=where, **options)
    module.__class__ = kind
    module.processor = tokenizer
    limit = getattr(backbone.config.get_text_config(), "max_position_embeddings", None) or MAX_SEQ_LENGTH
    module.max_seq_length = min(max_seq_length or MAX_SEQ_LENGTH, limit if limit > 0 else MAX_SEQ_LENGTH)
    return module


def append_eos(tokenizer: PreTrainedTokenizerBase) -> None:
    """Have a tokenizer end every text in its end-of-text token, if it does not do so already.

    Raises
    ------
    UserError
        It has no such token, or is no fast tokenizer.
    """
    eos = tokenizer.eos_token
    if eos is not None and tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id:
        return
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if eos is None or backend is None:
        raise UserError("pooling = 'eos_token': the tokenizer has no end-of-text token; choose mean or last_token")
    number = tokenizer.eos_token_id
    state = json.loads(backend.to_str())
    steps = state["post_processor"]["processors"] if _kind(state) == "Sequence" else [state["post_processor"]]
    template = next((step for step in steps if step and step["type"] == "TemplateProcessing"), None)
    if template is None:
        ends = processors.TemplateProcessing(
            single=f"$A {eos}", pair=f"$A {eos} $B:1 {eos}:1", special_tokens=[(eos, number)]
        )
        before = backend.post_processor
        backend.post_processor = ends if before is None else processors.Sequence([before, ends])
        return
    template["special_tokens"][eos] = {"id": eos, "ids": [number], "tokens": [eos]}
    template["single"].append({"SpecialToken": {"id": eos, "type_id": 0}})
    template["pair"].append({"SpecialToken": {"id": eos, "type_id": 1}})
    backend.post_processor = Tokenizer.from_str(json.dumps(state)).post_processor


def _kind(state: dict[str, Any]) -> str | None:
    return (state["post_processor"] or {}).get("type")


def merge_to_folder(name: str, config: MergeConfig) -> Path:
    """Write a base model with its adapters merged in as a folder that sentence-transformers opens without us.

    LLM2Vec's settings go along as ``llm2vec_config.json``, which `load_encoder` reads.

    Parameters
    ----------
    name
        As for `load_encoder`.
    config
        All the rest; the folder is written under another name first.

    Raises
    ------
    UserError
        As `load_encoder`; the folder exists.
    """
    assert config.output_dir is not None
    out = Path(config.output_dir)
    if out.exists() and not config.overwrite:
        raise UserError(f"--output {out} exists; choose another name, or use --overwrite to replace it")
    if out.exists() and not (out / "modules.json").exists():
        raise UserError(f"--output {out} is no model folder, and is not replaced; choose another name")
    where: dict[str, Any] = {"revision": config.model_revision, "cache_dir": config.cache_dir}
    source = find_source(name, config.adapters, **where)
    encoder = load_encoder(
        name,
        adapters=config.adapters,
        pooling=config.pooling,
        bidirectional=config.bidirectional,
        allow_partial=config.allow_partial,
        max_seq_length=config.max_seq_length,
        chat_template=config.chat_template,
        llm2vec=config.llm2vec,
        dtype=config.dtype,
        attn_implementation=config.attn_implementation,
        trust_remote_code=config.trust_remote_code,
        device="cpu",
        **where,
    )
    backbone, pools = encoder.transformers_model, [module for module in encoder if isinstance(module, Pooling)]
    if len(list(encoder)) != 2 or not pools or not isinstance(backbone, PreTrainedModel):
        raise UserError(f"model_name_or_path: {name} has other modules than a model and its pooling; name their model")
    extra = {}
    if isinstance(encoder[0], LLM2VecTransformer):
        extra["llm2vec_config.json"] = {
            "pooling_mode": encoder[0].pooling,
            "max_length": encoder.max_seq_length,
            "doc_max_length": encoder[0].doc_max_length,
            "skip_instruction": encoder[0].skip_instruction,
        }
    out.parent.mkdir(parents=True, exist_ok=True)
    save_encoder(
        backbone,
        out,
        tokenizer=encoder.tokenizer,
        tokenizer_files=None,
        max_seq_length=encoder.max_seq_length or MAX_SEQ_LENGTH,
        pooling=str(pools[0].pooling_mode),
        inputs={name: getattr(encoder[0], name) for name in TEXT_ONLY} if config.chat_template else None,
        record={"stage": "merge", "parents": [{"name": source.base}, *({"name": one} for one in source.adapters)]},
        extra=extra,
    )
    return out


def _set_pooling(encoder: SentenceTransformer, pooling: str) -> None:
    modules = [module for module in encoder if isinstance(module, Pooling)]
    if not modules:
        raise UserError(f"pooling = {pooling!r}: this encoder has no pooling to choose; leave the flag away")
    modules[0].pooling_mode = POOLING[pooling]
    modules[0].pooling_output_dimension = modules[0].embedding_dimension
