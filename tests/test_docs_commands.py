"""No page speaks of a command or a flag that is not there, and every command line in them is read as it stands."""

import dataclasses
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from turncoder import commands
from turncoder.cli import main
from turncoder.commands import COMMANDS
from turncoder.config import legacy, legacy_headless, settings

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
RECIPES = sorted((ROOT / "recipes").rglob("*.toml"))
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.M | re.S)
OURS = re.compile(r"^(?:\$ )?(?:torchrun .*-m turncoder\.cli|turncoder) (.*)$", re.M)
FOREIGN = {"ubatch_size", "default_prompt_name"}
"""Flags of servers."""
OPEN = ("config_overrides", "slurm")
"""Tables that pass on what they do not know."""


def read_lines(page: Path) -> Iterator[str]:
    """Find the command lines, after ``turncoder``, of blocks that are no transcripts, and of the heads of recipes.

    Transcripts are run as they stand by test_docs.py, mistakes that are shown included.
    """
    text = page.read_text(encoding="utf8")
    if page.suffix == ".toml":
        yield from re.findall(r"^# command +turncoder (.*)$", text, re.M)
    for kind, body in FENCE.findall(text):
        if kind not in ("console", "python"):
            yield from OURS.findall(body)


def read_mentions(page: Path) -> list[str]:
    """Find the pieces of code in the text of a page, between backticks."""
    text = FENCE.sub("", page.read_text(encoding="utf8"))
    pieces = [" ".join(piece.split()) for piece in re.findall(r"`([^`]+)`", text)]
    return [piece for piece in pieces if not piece.startswith(("python ", "sbatch "))]  # programs of others


def list_flags(cls: type) -> set[str]:
    """List the flags of a command, their old names, and those of its tables as ``table.name``."""
    fields = [field.name for field in dataclasses.fields(cls)]
    names = {"help", "output", *fields, *(f"no_{name}" for name in fields), *legacy.ALIASES, *legacy.OLD_NAMES}
    if stage := getattr(cls, "OF_HEADLESS", None):
        names.update(legacy_headless.list_names(stage))
    if "training" in fields:
        names.update(settings.training_argument_names())
        names.update(f"training.{name}" for name in settings.training_argument_names())
    for table, other in getattr(cls, "TABLES", {}).items():
        names.update(f"{table}.{name}" for name in list_flags(other))
    return names


FLAGS = {name: list_flags(command.flags) for name, command in COMMANDS.items()}


def find_unknown(piece: str) -> list[str]:
    """Name what a piece of code says that is not there: a command, or a flag of it (or of any, where none is named)."""
    known: set[str] = FOREIGN.union(*FLAGS.values())
    if re.match("turncoder submit [a-z]", piece):
        piece = piece.replace("submit ", "", 1)
        return [flag for flag in find_unknown(piece) if flag.removeprefix("--") not in FLAGS["submit"]]
    command = re.match(r"turncoder ([a-z]+(?: [a-z]+)?)\b", piece)
    if command:
        names = [name for name in COMMANDS if f"{command[1]} ".startswith(f"{name} ")]
        if not names:
            group = any(name.startswith(f"{command[1]} ") for name in COMMANDS)
            return [] if group else [f"turncoder {command[1]}"]
        known = FLAGS[names[0]]
    flags = re.findall(r"(?<![\w-])--([A-Za-z][\w.-]*)", piece)
    own = [flag.rstrip(".").replace("-", "_") for flag in flags if not re.search("[A-Z]", flag)]
    return [f"--{flag}" for flag in own if flag not in known and flag.partition(".")[0] not in OPEN]


@pytest.mark.parametrize("page", [*PAGES, *RECIPES], ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_speaks_of_is_there(page: Path) -> None:
    pieces = [*read_mentions(page), *(f"turncoder {line}" for line in read_lines(page))]
    assert [(piece, found) for piece in pieces if (found := find_unknown(piece))] == []


def test_what_is_not_there_is_found() -> None:
    assert find_unknown("turncoder mntpp --lora_r 8") == ["turncoder mntpp"]
    assert find_unknown("turncoder mntp --lora_rank 8") == ["--lora_rank"]
    assert find_unknown("turncoder evaluate glue MODEL --lora-r 8 --text t") == ["--text"]
    assert find_unknown("--words_taks") == ["--words_taks"]
    assert find_unknown("turncoder turn MODEL --mntp.learning_rat 1") == ["--mntp.learning_rat"]


@pytest.fixture
def place(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files of others that command lines name, and the recipes."""
    links = {
        "recipes": ROOT / "recipes",
        "train_configs": shared / "configs" / "llm2vec" / "train_configs",
        "bggpt-7b.json": shared / "configs" / "bg2vec" / "model_configurations" / "bggpt-7b.json",
        "bggpt-7b-simcse.json": shared / "configs" / "bg2vec" / "model_configurations" / "bggpt-7b-simcse.json",
    }
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    (tmp_path / "decoder.toml").symlink_to(ROOT / "recipes" / "headless" / "decoder.toml")
    (tmp_path / "config.toml").write_text('model_name_or_path = "model"\ntrain_file = "text.txt"\noutput_dir = "run"\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


LINES = [(page, line) for page in [*PAGES, *RECIPES] for line in read_lines(page)]


@pytest.mark.parametrize(("page", "line"), LINES, ids=lambda value: value.name if isinstance(value, Path) else None)
def test_command_lines_are_read(page: Path, line: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Down to the checked configuration; what the command would do with it is not done."""
    read: list[Any] = []
    submitted = line.startswith("submit ")
    for name, command in COMMANDS.items():
        if name == "submit":  # it reads the other command itself
            continue
        caught = dataclasses.replace(command, run=lambda config, *_: read.append(config) or 0)
        monkeypatch.setitem(commands.COMMANDS, name, caught)
    words = shlex.split(line, comments=True)
    assert main([*words, "--print"] if submitted else words) == 0
    if submitted:
        return
    assert len(read) == 1 and dataclasses.is_dataclass(read[0])


def test_there_are_lines_to_read() -> None:
    pages = {page.name for page, _ in LINES}
    assert {"README.md", "migrate.md", "language.md", "custom-corpus.toml", "grid.toml"} <= pages
