"""Files and flags to checked values: a key in a file and a flag take the same path and get the same errors."""

import ast
import difflib
import importlib.util
import json
import logging
import re
import tomllib
import types
import typing
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from turncoder.config import legacy, legacy_headless
from turncoder.errors import UserError

__all__ = ["coerce", "load", "nearest", "read_file", "read_flags", "set_types", "training_argument_names", "write_toml"]

logger = logging.getLogger(__name__)

Config = TypeVar("Config")

YES, NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
NOTHING = ("none", "null")


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
    theirs = "as_llm2vec" in hints and stage != "pretrain"
    if path is not None and path.suffix == ".json" and theirs and legacy.is_llm2vec(table):
        _mean_as_llm2vec(cls, path, entries)
    values: dict[str, Any] = {}
    training: dict[str, Any] = {}
    for name, entry in entries.items():
        if name in hints:
            values[name] = coerce(entry.value, hints[name], entry.said)
        else:
            training[name] = _literal(entry.value)
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
    for notice in notices:
        logger.warning("%s", notice)
    gathered = {}
    for name, value in translated.items():
        if name in passed_over or (passed_over and name not in ours and name in training_argument_names()):
            continue
        if name not in ours and not ("training" in ours and name in training_argument_names()):
            raise UserError(_unknown(name, origin, ours, getattr(cls, "OF_HEADLESS", None)))
        gathered[name] = Entry(value, f"{origin}{name}")
    return gathered


def _unknown(name: str, origin: str, ours: list[str], stage: str | None) -> str:
    """Say which key nobody knows, and the nearest one that exists."""
    known = [
        *(n for n in ours if n != "training"),
        *legacy.OLD_NAMES,
        *(legacy_headless.list_names(stage) if stage else ()),
    ]
    if "training" in ours:
        known += training_argument_names()
    flag = "--" if origin == "--" else ""
    return (
        f"{origin}{name} is not a known {'flag' if flag else 'key'}"
        f"{nearest(name, known, flag) or '; see --help for the names'}"
    )


def nearest(name: str, known: list[str], mark: str = "", most: int = 1) -> str:
    """Give ``"; did you mean NAME?"``, with up to ``most`` names, or nothing when no known name is near."""
    near = difflib.get_close_matches(name, known, n=most, cutoff=0.6)
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


def read_file(path: Path) -> dict[str, Any]:
    """Read a TOML or JSON table.

    Raises
    ------
    UserError
        The file is missing, not UTF-8, broken (line named), or not a table.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); save the config as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); give a TOML or JSON config file") from None
    suffix = path.suffix.lower()
    if suffix not in (".toml", ".json"):
        raise UserError(f"{path} is not a config file; its name must end in .toml or .json")
    try:
        table = tomllib.loads(text) if suffix == ".toml" else json.loads(plain_json(text), object_pairs_hook=_once)
    except ValueError as error:
        if isinstance(error, UserError):
            raise UserError(f"{path}: {error}") from None
        raise UserError(f"{path} is not valid {suffix[1:].upper()}: {error}") from None
    if not isinstance(table, dict):
        raise UserError(f"{path} holds a {type(table).__name__}; a config file is a table of keys")
    return table


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        raise UserError(f"{next(n for n in names if names.count(n) > 1)} is given twice; keep one")
    return table


# A string, or a comment, or a comma with nothing but space and comments between it and a closing bracket. Strings come
# first, so that neither comments nor commas are seen inside them; a comment, once begun, ends where it ends (?>).
_STRING = r'"(?:[^"\\\n]|\\.)*"'
_COMMENT = r"(?>//[^\n]*|/\*.*?\*/)"
_JSON_PIECE = re.compile(rf"({_STRING})|({_COMMENT})|(,)(?=(?>\s|{_COMMENT})*+[\]}}])", re.DOTALL)


def plain_json(text: str) -> str:
    """Blank out ``//`` and ``/* */`` comments and trailing commas, keeping every line where it is."""
    return _JSON_PIECE.sub(lambda m: m.group(1) or re.sub(r"[^\n]", " ", m.group(0)), text)


def read_flags(cls: type, words: list[str], config_last: bool = False) -> tuple[dict[str, Any], list[str]]:
    """Read ``--name value``, ``--name=value``, ``--name``, ``--no-name`` and ``--table.name``; dashes are underscores.

    Parameters
    ----------
    cls
        The dataclass whose fields are the flags; its ``TABLES`` says whose fields those of a table are.
    words
        As typed.
    config_last
        A config file that is there, as the last word, is no value of a flag that takes several.

    Returns
    -------
    tuple of dict and list of str
        The flags as keys with the text that was given, and the words that belong to no flag.

    Raises
    ------
    UserError
        A flag without its value.
    """
    tables: dict[str, type] = getattr(cls, "TABLES", {})
    free = {name for name, hint in typing.get_type_hints(cls).items() if typing.get_origin(hint) is dict} - {"training"}
    flags: dict[str, Any] = {}
    others: list[str] = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if not _is_flag(word):
            others.append(word)
            continue
        flag, equals, value = word.partition("=")
        table, dot, name = flag[2:].replace("-", "_").partition(".")
        if dot and table in tables:  # --mntp.learning_rate 1e-4
            _read_flag(
                tables[table], flags.setdefault(table, {}), flag, name, value if equals else None, queue, config_last
            )
        elif dot and table in free:  # --config_overrides.hidden_size 256
            given = value if equals else queue.pop(0) if queue and not _is_flag(queue[0]) else True
            flags.setdefault(table, {})[name] = _literal(given)
        else:
            name = f"{table}{dot}{name}"
            _read_flag(cls, flags, flag, name, value if equals else None, queue, config_last)
    return flags, others


def _read_flag(
    cls: type,
    flags: dict[str, Any],
    flag: str,
    name: str,
    value: str | None,
    queue: list[str],
    config_last: bool = False,
) -> None:
    """Read one flag, with the words of the queue that belong to it."""
    hints = typing.get_type_hints(cls)
    name = name.removeprefix("training.")
    name = legacy.ALIASES.get(name, name)
    hint = hints.get(name)
    if name not in hints and name.startswith("no_") and _is_switch(hints.get(name[3:])) and value is None:
        flags[name[3:]] = False
    elif value is not None:
        flags[name] = [value] if _many(hint) else value
    elif _many(hint):
        flags[name] = []
        while queue and not _is_flag(queue[0]) and not (config_last and flags[name] and _is_config(queue)):
            flags[name].append(queue.pop(0))
    elif queue and not _is_flag(queue[0]) and (not _is_switch(hint) or queue[0].lower() in (*YES, *NO, *NOTHING)):
        flags[name] = queue.pop(0)
    elif _is_switch(hint) or name not in hints:
        flags[name] = True
    else:
        raise UserError(f"{flag} needs a value")


def _is_config(queue: list[str]) -> bool:
    """Say whether nothing but a config file that is there is left of the words."""
    return len(queue) == 1 and queue[0].endswith((".toml", ".json")) and Path(queue[0]).is_file()


def _is_flag(word: str) -> bool:
    return re.match(r"--[A-Za-z]", word) is not None


def _many(hint: Any) -> bool:
    return hint is not None and any(typing.get_origin(kind) is tuple for kind in _kinds(hint))


def _is_switch(hint: Any) -> bool:
    return hint is not None and bool in _kinds(hint)


def _kinds(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _literal(value: Any) -> Any:
    """Read a flag's text as the JSON value it looks like: ``--training.adam_beta2 0.95``."""
    if not isinstance(value, str):
        return value
    if value.lower() in ("true", "false", "none", "null"):
        return {"true": True, "false": False}.get(value.lower())
    try:
        return json.loads(value)
    except ValueError:
        return value


def coerce(value: Any, hint: Any, said: str) -> Any:
    """Give ``value`` the type that ``hint`` asks for; text is read, numbers are never cut.

    Raises
    ------
    UserError
        ``FILE: learning_rate = 'abc' is not a number``.
    """
    kinds = _kinds(hint)
    optional = types.NoneType in kinds
    if optional and (value is None or (isinstance(value, str) and value.lower() in NOTHING)):
        return None
    kind = next(k for k in kinds if k is not types.NoneType)
    done, result = _as_kind(value, kind)
    if done:
        return result
    apart = ", with spaces between" if said.startswith("--") and typing.get_origin(kind) is tuple else ""
    raise UserError(f"{said} = {value!r} is not {_wanted(kind)}{apart}{', or none' if optional else ''}")


def _as_kind(value: Any, kind: Any) -> tuple[bool, Any]:
    if typing.get_origin(kind) is Literal:
        return value in typing.get_args(kind), value
    if typing.get_origin(kind) is tuple:
        pairs = [
            _as_kind(item, typing.get_args(kind)[0]) for item in (value if isinstance(value, list | tuple) else [value])
        ]
        return all(done for done, _ in pairs), tuple(item for _, item in pairs)
    if kind is bool:
        text = str(value).lower()
        return not isinstance(value, float) and text in YES + NO, text in YES
    if kind in (int, float):
        return _as_number(value, kind)
    return isinstance(value, typing.get_origin(kind) or kind), value


def _as_number(value: Any, kind: type) -> tuple[bool, Any]:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return False, value
    try:
        number = float(value) if kind is float else int(str(value), 10)
    except ValueError:
        try:
            number = float(value)
        except ValueError:
            return False, value
        return number.is_integer(), int(number) if number.is_integer() else number
    return number == number and abs(number) != float("inf"), number


def _wanted(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return f"one of {', '.join(typing.get_args(kind))}"
    if typing.get_origin(kind) is tuple:
        return {str: "a list of names", int: "a list of whole numbers"}.get(
            typing.get_args(kind)[0], "a list of numbers"
        )
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(kind, "a table")


def set_types(config: Any) -> None:
    """Give the values of a config built in Python the types and checks that those of a file get, in place.

    Raises
    ------
    UserError
        A value of the wrong type, or not one of the choices.
    """
    for name, hint in typing.get_type_hints(type(config)).items():
        if typing.get_origin(hint) is not typing.ClassVar:
            object.__setattr__(config, name, coerce(getattr(config, name), hint, name))


def write_toml(cls: type, values: dict[str, Any]) -> str:
    """Write flat values as TOML; a None that is not the default is written ``"none"``, as TOML has no null."""
    defaults = {f.name: f.default for f in fields(cls)}
    lines, tables = [], []
    for name, value in values.items():
        if isinstance(value, dict):
            tables += [f"\n[{name}]", *(f"{key} = {_toml(item)}" for key, item in value.items())] if value else []
        elif value is not None or defaults.get(name) is not None:
            lines.append(f"{name} = {_toml('none' if value is None else value)}")
    return "\n".join(lines + tables) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(item) for item in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    text = json.dumps("none" if value is None else value, ensure_ascii=False)
    return text.replace("\x7f", "\\u007f")  # the one control character that JSON lets stand and TOML does not
