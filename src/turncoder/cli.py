"""From words to a command: which one, its flags and its file; and what is said where the input is wrong."""

import os
import sys
from dataclasses import field, fields, is_dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from rich.console import Console

from turncoder.commands import COMMANDS, Command
from turncoder.config import settings
from turncoder.config.flags import read_flags
from turncoder.errors import UserError
from turncoder.notices import listen, say_limit

__all__ = ["main", "read_command"]


def main(argv: list[str] | None = None) -> int:
    """Run a command and give its exit code: 0 done, 2 the input is wrong, 130 interrupted; a defect of ours raises.

    Parameters
    ----------
    argv
        Words after ``turncoder``; default: those of this process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    speaks = os.environ.get("RANK", "0") == "0"  # of several processes, the first
    plain: dict[str, Any] = {"soft_wrap": True, "markup": False, "quiet": not speaks}  # a name in brackets is a name
    console, notices = Console(**plain), Console(stderr=True, **plain)
    listen(notices)
    try:
        return _dispatch(words, console)
    except UserError as error:
        return _refuse(notices, str(error))
    except KeyboardInterrupt:
        notices.print("interrupted; the same command again resumes", highlight=False)
        return 130
    except BrokenPipeError:  # the reader of our output, head say, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        said = say_limit(error)
        if said is None:
            raise
        return _refuse(notices, said)


def _dispatch(words: list[str], console: Console) -> int:
    if not words or words[0] in ("--help", "-h", "help"):
        console.print(_overview(), highlight=False, markup=False)
        return 0
    if words[0] == "--version":
        from turncoder import __version__

        console.print(__version__, highlight=False)
        return 0
    name, rest = _name_command(words)
    command = COMMANDS[name]
    if "--help" in rest or "-h" in rest:
        _help(name, command)
    if name == "submit":  # most of its words belong to another command
        return command.run(None, rest, console)
    _, config, others = read_command(words)
    return command.run(config, others, console)


def read_command(words: list[str]) -> tuple[str, Any, list[str]]:
    """Read the words of a command as far as is possible without running it.

    Returns
    -------
    tuple
        The command, its checked configuration, and the words that stand by themselves.

    Raises
    ------
    UserError
        There is no such command, or its configuration is wrong.
    """
    name, rest = _name_command(words)
    command = COMMANDS[name]
    flags, others = read_flags(command.flags, rest, "[CONFIG]" in command.takes)
    if "[CONFIG]" in command.takes and "config" in flags and not others:
        others.append(str(flags.pop("config")))
    path = _take_config(name, command, others)
    if len(others) > len(command.keys) and (not command.takes or "[CONFIG]" in command.takes):
        raise UserError(
            f"{name} does not know what to do with {others[len(command.keys)]!r}; flags look like --name value"
        )
    for key, word in zip(command.keys, others, strict=False):
        if key in flags:
            raise UserError(f"{word!r} and --{key} {flags[key]!r} are both given; keep one")
        flags[key] = word
    return name, settings.load(command.flags, path, flags), others


def _name_command(words: list[str]) -> tuple[str, list[str]]:
    """Split off the command, which has one word or two."""
    for count in (2, 1):
        name = " ".join(words[:count])
        if name in COMMANDS:
            return name, words[count:]
    second = [name.removeprefix(f"{words[0]} ") for name in COMMANDS if name.startswith(f"{words[0]} ")]
    if second:
        if len(words) > 1 and (near := settings.nearest(words[1], second)):
            raise UserError(f"{words[0]} {words[1]} is not a command{near}")
        raise UserError(f"{words[0]} needs one more word: {', '.join(second)}")
    near = settings.nearest(words[0], list(COMMANDS))
    raise UserError(f"{words[0]} is not a command{near or '; see turncoder --help'}")


def _take_config(name: str, command: Command, words: list[str]) -> Path | None:
    """Take the config file from the words.

    Beside words that stand for keys it is a last one in ``.toml``, or in ``.json`` unless that stands in the place of
    INPUT or PAIRS.
    """
    if "[CONFIG]" not in command.takes or not words:
        return None
    if not command.keys:
        path = Path(words.pop(0))
        if path.suffix.lower() not in (".toml", ".json"):
            raise UserError(
                f"{path} is not a config file, whose name ends in .toml or .json; to {name} a model is named by "
                "--model_name_or_path"
            )
        return path
    suffix, place = Path(words[-1]).suffix, dict(enumerate(command.keys, 1)).get(len(words))
    if suffix == ".toml" or (suffix == ".json" and place not in ("input_file", "pairs_file")):
        return Path(words.pop())
    return None


def _overview() -> str:
    first = {name: (command.flags.__doc__ or "").split("\n")[0] for name, command in COMMANDS.items()}
    shown = {f"{name} {COMMANDS[name].takes}": line for name, line in first.items()}
    width = max(map(len, shown))
    rows = "\n".join(f"  {name:{width}} {line}" for name, line in shown.items())
    return (
        "turncoder turns language models into text encoders, and proves what was done.\n\n"
        f"usage: turncoder COMMAND [CONFIG] [--flag value ...]\n\n{rows}\n\n"
        "turncoder COMMAND --help lists its flags. CONFIG is a TOML or JSON file; flags win over it."
    )


def _help(name: str, command: Command) -> None:
    """Print the flags of a command with their help and defaults, and leave."""
    import tyro

    prog = f"turncoder {name} {command.takes}".strip()
    tyro.cli(_hide_unset(command.flags), prog=prog, args=["--help"], use_underscores=True)


def _hide_unset(flags: type) -> type:
    """Give the flags without "(default: None)": what follows where one is not given is said by its help."""
    from tyro.conf import arg

    hints = get_type_hints(flags)
    shown: list[tuple[str, Any, Any]] = []
    for one in fields(flags):
        if one.default in (None, ()):
            shown.append((one.name, Annotated[hints[one.name], arg(help_behavior_hint="")], field(default=one.default)))
        elif is_dataclass(hints[one.name]):
            kind = _hide_unset(hints[one.name])
            shown.append((one.name, kind, field(default_factory=kind)))
    hidden = make_dataclass(flags.__name__, shown, bases=(flags,), frozen=True)
    hidden.__doc__ = flags.__doc__
    return hidden


def _refuse(console: Console, message: str) -> int:
    console.print(f"error: {' '.join(message.split())}", highlight=False, markup=False)
    return 2


if __name__ == "__main__":
    sys.exit(main())
