"""Values of the types that keys ask for, from text or as they are."""

import json
import types
import typing
from pathlib import Path
from typing import Any, Literal

from turncoder.errors import UserError

__all__ = ["NO", "NOTHING", "YES", "coerce", "list_kinds", "read_literal", "set_types"]

YES, NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
NOTHING = ("none", "null")


def list_kinds(hint: Any) -> tuple[Any, ...]:
    """List the types of a union; of anything else the one."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def read_literal(value: Any) -> Any:
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
    kinds = list_kinds(hint)
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

    An ``output_dir`` that begins with ``~/`` is in the home folder: shells leave ``--output=~/run`` as it is.

    Raises
    ------
    UserError
        A value of the wrong type, or not one of the choices.
    """
    for name, hint in typing.get_type_hints(type(config)).items():
        if typing.get_origin(hint) is not typing.ClassVar:
            value = coerce(getattr(config, name), hint, name)
            if name == "output_dir" and str(value).startswith("~/"):
                value = str(Path(value).expanduser())
            object.__setattr__(config, name, value)
