"""What a name stands for: a base model, the adapters on it, and what is known about them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from turncoder.data.tokenizer import VOCABULARY_FILES
from turncoder.errors import UserError
from turncoder.hub import locate_parent
from turncoder.model.backbone import find_file, split_revision

__all__ = ["Source", "find_source", "read_json"]

SCORES = ("sentences", "glue", "language")
"""Stages of ``evaluate``, which keep no model."""


@dataclass(frozen=True)
class Source:
    """What a name stands for.

    Attributes
    ----------
    base
        What transformers, or sentence-transformers, opens.
    revision
        Of the base.
    adapters
        LoRA folders or hub ids on top of it, in order; a hub id may end in ``@revision``.
    is_encoder
        It is a sentence-transformers folder.
    tokenizer
        Where the tokenizer is; without ``@revision``, at the base's revision.
    bidirectional
        Whether the run that it comes from was; None where that is not known.
    llm2vec
        The content of ``llm2vec_config.json``, if there is one.
    template_name
        The name by which LLM2Vec finds its chat templates.
    kept
        The content of ``encoder.json`` beside an adapter of ours: what the encoder is, besides its weights.
    """

    base: str
    revision: str = "main"
    adapters: tuple[str, ...] = ()
    is_encoder: bool = False
    tokenizer: str = ""
    bidirectional: bool | None = None
    llm2vec: dict[str, Any] | None = None
    template_name: str = ""
    kept: dict[str, Any] = field(default_factory=dict)


def read_json(path: Path) -> dict[str, Any]:
    """Read a model's own JSON file; raises UserError where it is broken."""
    try:
        table = json.loads(path.read_text(encoding="utf8"))
    except ValueError as error:
        raise UserError(f"{path} is broken JSON ({error}); download or write it again") from error
    if not isinstance(table, dict | list):
        raise UserError(f"{path} holds no table; download or write it again")
    return table  # type: ignore[return-value]


def find_source(
    name: str, adapters: Sequence[str] = (), *, revision: str = "main", cache_dir: str | None = None
) -> Source:
    """Follow a name to its base model: through a run that kept only its adapter, and through adapters' own folders.

    Raises
    ------
    UserError
        A run that has nothing to open yet, an adapter that does not say what it belongs to, or a model with ``@``.
    """
    bare, own = split_revision(name)
    if bare != name:
        raise UserError(f"model_name_or_path = {name!r}: only adapters have @; give {bare} and --model_revision {own}")
    record = Path(name) / "run.json"
    here = name if Path(name).exists() else f"{name}@{revision}"
    if record.exists():
        source = _find_run(Path(name), read_json(record), cache_dir)
    elif find_file(name, "modules.json", revision=revision, cache_dir=cache_dir):
        source = Source(name, revision, is_encoder=True, tokenizer=name)
    elif path := find_file(name, "adapter_config.json", revision=revision, cache_dir=cache_dir):
        source = _find_below(name, here, read_json(path), cache_dir)
    else:
        source = Source(name, revision, tokenizer=name)
    stack = (*source.adapters, *adapters)
    found = (_find_beside(place, "llm2vec_config.json", cache_dir) for place in (*stack[-1:], here))
    config = next((path for path in found if path), None)
    kept = find_file(name, "config.json") if Path(name).is_dir() else None
    settings = read_json(config) if config else None
    template = (settings or {}).pop("template_name", None) or (read_json(kept).get("_name_or_path") if kept else None)
    return replace(source, adapters=stack, llm2vec=settings, template_name=template or source.base)


def _find_beside(place: str, file: str, cache_dir: str | None) -> Path | None:
    name, revision = split_revision(place)
    return find_file(name, file, revision=revision, cache_dir=cache_dir)


def _find_below(name: str, here: str, config: dict[str, Any], cache_dir: str | None) -> Source:
    """Follow an adapter to its base model, at the revision that peft wrote down for it."""
    base = config.get("base_model_name_or_path")
    if not base or base == name:
        raise UserError(
            f"model_name_or_path: {name} is an adapter that does not name its base model; name that, and this as "
            "--adapters"
        )
    below = find_source(base, revision=config.get("revision") or "main", cache_dir=cache_dir)
    has_tokenizer = any(_find_beside(here, file, cache_dir) for file in VOCABULARY_FILES)
    kept = _read_kept(here, cache_dir)
    return Source(
        below.base,
        below.revision,
        (*below.adapters, here),
        tokenizer=here if has_tokenizer else below.tokenizer,
        bidirectional=kept.get("bidirectional"),
        kept=kept,
    )


def _read_kept(adapter: str, cache_dir: str | None) -> dict[str, Any]:
    path = _find_beside(adapter, "encoder.json", cache_dir)
    return read_json(path) if path else {}


def _find_run(folder: Path, record: dict[str, Any], cache_dir: str | None) -> Source:
    if (folder / "model").is_dir():
        model = folder / "model"  # a pretrained one is a language model
        return Source(str(model), is_encoder=(model / "modules.json").exists(), tokenizer=str(model))
    if not (folder / "adapter").is_dir() and record.get("stage") == "words" and record.get("status") == "done":
        inner = [place.name for place in sorted(folder.glob("seed-*"))]
        remedy = f"name one of {', '.join(inner)} in it" if inner else f"name {record['config']['model_name_or_path']}"
        raise UserError(f"model_name_or_path: the run {folder} holds no model of its own, only heads; {remedy}")
    if record.get("stage") in SCORES:
        scored = locate_parent(record["config"]["model_name_or_path"], record)
        what = f"a run of evaluate {record['stage']} and has no model"
        raise UserError(f"model_name_or_path: {folder} is {what}; name the one that it scored: {scored}")
    if not (folder / "adapter").is_dir():
        raise UserError(f"model_name_or_path: the run {folder} has neither model/ nor adapter/ yet; let it finish")
    config = record["config"]
    base, tokenizer = (
        name and locate_parent(name, record) for name in (config["model_name_or_path"], config.get("tokenizer_name"))
    )
    below = find_source(base, revision=config["model_revision"], cache_dir=cache_dir)
    kept = _read_kept(str(folder / "adapter"), cache_dir)
    told = (kept.get("bidirectional"), config.get("bidirectional"), below.bidirectional)
    return Source(
        below.base,
        below.revision,
        (*below.adapters, *(locate_parent(one, record) for one in config["adapters"]), str(folder / "adapter")),
        tokenizer=tokenizer or below.tokenizer,
        bidirectional=next((one for one in told if one is not None), None),
        kept=kept,
    )
