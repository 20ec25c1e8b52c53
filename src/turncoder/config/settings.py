"""Files and flags to checked values: a key in a file and a flag take the same path and get the same errors."""

import ast
import difflib
import importlib.util
import logging
import typing
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from turncoder.config import legacy, legacy_headless
from turncoder.config.files import read_file
from turncoder.config.values import coerce, read_literal
from turncoder.errors import UserError

__all__ = ["load", "nearest", "training_argument_names"]

logger = logging.getLogger(__name__)

Config = TypeVar("Config")

SHORT = {"lr": "learning_rate"}
"""What people type from habit, and no rule finds."""


@dataclass(frozen=True)
class Entry:
    """A key as it was given: its value, and how to name it in a message."""

    value: Any
    said: str


def load(cls: type[Config], path: Path | None, flags: dict[str, Any]) -> Config:
    """Build ``cls`` from a file and the keys that `read_flags` gives; see `turncoder.config.stages.load_config`."""
    table = read_file(path) if path is not None else {}
    if (stage := getattr(cls, "OF_HEADLESS", None)) and legacy_headless.is_headless({**table, **flags}):
        table, flags, notices = legacy_headless.translate(stage, table, flags, f"{path}: " if path else "")
        for notice in notices:
            logger.warning("%s", notice)
    from_file = _gather(cls, table, f"{path}: ")
    from_flags = _gather(cls, flags, "--")
    entries = {**_displace(from_file, from_flags), **from_flags}
    for name, entry in from_flags.items():
        if isinstance(entry.value, dict) and name in from_file and isinstance(from_file[name].value, dict):
            entries[name] = Entry({**from_file[name].value, **entry.value}, entry.said)
    hints = typing.get_type_hints(cls)
    theirs = "as_llm2vec" in {one.name for one in fields(cls)} and stage != "pretrain"  # type: ignore[arg-type]
    if path is not None and path.suffix == ".json" and theirs and legacy.is_llm2vec(table):
        _mean_as_llm2vec(cls, path, entries)
    values: dict[str, Any] = {}
    training: dict[str, Any] = {}
    for name, entry in entries.items():
        if name in hints:
            values[name] = coerce(entry.value, hints[name], entry.said)
        else:
            training[name] = read_literal(entry.value)
    if training:
        values["training"] = training
    for f in fields(cls):  # type: ignore[arg-type]
        if f.default is MISSING and f.default_factory is MISSING and f.name not in values:
            raise UserError(f"{f.name} is missing: give --{f.name}, or the key in a config file")
    return cls(**values)


def _mean_as_llm2vec(cls: type, path: Path, entries: dict[str, Entry]) -> None:
    """Fill in what a file of LLM2Vec means where it says nothing, and tell what is done otherwise."""
    stage = getattr(cls, "STAGE", "mntp")
    if silence := legacy.tell_silence(stage, entries):
        logger.warning("%s: %s", path, silence)
    for name, value in getattr(cls, "LLM2VEC_DEFAULTS", {}).items():
        if name != "loss_scale" or "temperature" not in entries:
            entries.setdefault(name, Entry(value, name))
    if "as_llm2vec" not in entries:
        logger.warning("%s", legacy.tell_differences(stage))


def _displace(from_file: dict[str, Entry], from_flags: dict[str, Entry]) -> dict[str, Entry]:
    """Drop the file's corpus when a flag names another one: flags win."""
    sources = {"train_file": ("dataset_name", "dataset_config_name"), "dataset_name": ("train_file",)}
    kept = dict(from_file)
    for flag, others in sources.items():
        if flag in from_flags:
            names = [name for name in (*others, "validation_file", "dataset_config_name") if name not in from_flags]
            gone = [name for name in dict.fromkeys(names) if kept.pop(name, None)]
            if gone:
                logger.warning("--%s takes the place of the file's %s", flag, ", ".join(gone))
    return kept


def _gather(cls: type, raw: dict[str, Any], origin: str) -> dict[str, Entry]:
    """Flatten ``training``, translate old names, and refuse what nobody knows."""
    raw = dict(raw)
    nested = raw.pop("training", None)
    if nested is not None and not isinstance(nested, dict):
        raise UserError(f"{origin}training = {nested!r} must be a table of TrainingArguments fields")
    for name, value in (nested or {}).items():
        if name in raw:
            raise UserError(f"{origin}{name} is given twice, by itself and under training")
        raw[name] = value
    ours = [f.name for f in fields(cls)]
    passed_over: frozenset[str] = getattr(cls, "PASSED_OVER", frozenset()) if origin != "--" else frozenset()
    translated, notices = legacy.translate(raw, origin, getattr(cls, "IGNORED", None), {*ours, *passed_over})
    gathered = {}
    for name, value in translated.items():
        if name in passed_over or (passed_over and name not in ours and name in training_argument_names()):
            continue
        if name not in ours and not ("training" in ours and name in training_argument_names()):
            typed = next((old for old in raw if legacy.RENAMED.get(old) == name), name)
            raise UserError(_unknown(typed, origin, ours, getattr(cls, "OF_HEADLESS", None)))
        gathered[name] = Entry(value, f"{origin}{name}")
    for notice in notices:
        logger.warning("%s", notice)
    return gathered


def _unknown(name: str, origin: str, ours: list[str], stage: str | None) -> str:
    """Say which key nobody knows, and the nearest one that exists: of ours before those of others."""
    own = [one for one in ours if one != "training"]
    known = [*own, *(legacy_headless.list_names(stage) if stage else ())]
    if "training" in ours:
        known += [*legacy.OLD_NAMES, *training_argument_names()]
    flag = "--" if origin == "--" else ""
    near = (
        nearest(SHORT.get(name, name), own, flag, cutoff=0.75)
        or nearest(_find_longer(name, own), own, flag)
        or nearest(name, known, flag)
    )
    return f"{origin}{name} is not a known {'flag' if flag else 'key'}{near or '; see --help for the names'}"


def _find_longer(name: str, known: list[str]) -> str:
    """Find a name whose words begin with those of a shorter one, such as ``batch_size``; or give nothing."""
    longer = [
        one
        for one in known
        if len(name) > 2 and all(any(word.startswith(begin) for word in one.split("_")) for begin in name.split("_"))
    ]
    return min(longer, key=lambda one: not one.startswith(name), default="")


def nearest(name: str, known: list[str], mark: str = "", most: int = 1, cutoff: float = 0.6) -> str:
    """Give ``"; did you mean NAME?"``, with up to ``most`` names, or nothing when no known name is near."""
    near = difflib.get_close_matches(name, known, n=most, cutoff=cutoff)
    return f"; did you mean {', '.join(mark + one for one in near)}?" if near else ""


@cache
def training_argument_names() -> tuple[str, ...]:
    """Names of the fields of transformers' TrainingArguments, read from its source: importing it would import torch."""
    spec = importlib.util.find_spec("transformers")
    assert spec is not None and spec.origin is not None
    source = (Path(spec.origin).parent / "training_args.py").read_text(encoding="utf-8")
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments":
            names = (n.target.id for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name))
            return tuple(name for name in names if not name.startswith("_"))
    raise AssertionError("transformers has no TrainingArguments")
