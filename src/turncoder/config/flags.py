"""Words of a command line to keys."""

import re
import typing
from pathlib import Path
from typing import Any

from turncoder.config.legacy import ALIASES
from turncoder.config.values import NO, NOTHING, YES, list_kinds, read_literal
from turncoder.errors import UserError

__all__ = ["read_flags"]


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
        A flag without its value, or one of several values that is given twice.
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
            flags.setdefault(table, {})[name] = read_literal(given)
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
    name = ALIASES.get(name, name)
    hint = hints.get(name)
    if _many(hint) and name in flags:
        raise UserError(f"{flag} is given twice; give all of its values after one, with spaces between")
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
    return hint is not None and any(typing.get_origin(kind) is tuple for kind in list_kinds(hint))


def _is_switch(hint: Any) -> bool:
    return hint is not None and bool in list_kinds(hint)
