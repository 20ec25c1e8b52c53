"""Config files: TOML and JSON to a table of keys, and a table to TOML."""

import json
import re
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

from turncoder.errors import UserError

__all__ = ["plain_json", "read_file", "write_toml"]


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
        raise UserError(
            f"{path} holds a {type(table).__name__}, and a config file is a table of keys; a file of texts is named by "
            "--train_file (turn: --text)"
        )
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
