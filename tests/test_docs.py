"""The how-to pages are true: every command is run, and says what the page says; every piece of Python runs."""

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest

from turncoder.cli import main

DOCS = Path(__file__).resolve().parents[1] / "docs"
TUTORIALS = [DOCS / "tutorials" / name for name in ("word-level.md", "headless.md")]
FOLDERS = ("how-to", "explanation", "reference")
PAGES = [*(page for folder in FOLDERS for page in sorted((DOCS / folder).glob("*.md"))), *TUTORIALS]
GRID = """train_file = "train.conllu"
validation_file = "dev.conllu"
test_file = "test.conllu"

[tasks.upos]
task = "upos"

[tasks.number]
task = "Number"

[regimes.probe]
train_mode = "probe"
seeds = [1, 2]

[models.causal]
model_name_or_path = "stories260k"
bidirectional = false

[models.mntp]
model_name_or_path = "mine"
"""
GLUE: list[tuple[str, str, bool, list[tuple[str, int, int]]]] = [
    ("QNLI", "qnli/dev.tsv", True, [("train", 1, 161), ("dev", 161, 241)]),
    ("STS-B", "stsb/stsb-train.tsv", True, [("train", 1, 161), ("dev", 161, 241)]),
    ("pawsx", "pawsx/dev-en.tsv", False, [("train-en", 0, 160), ("dev-en", 160, 200), ("test-en", 200, 240)]),
    ("pawsx", "pawsx/dev-ko.tsv", False, [("test-ko", 200, 240)]),
]
"""Folder, source, whether it has a header, and the rows of each file."""
BLOCK = re.compile(r"```(console|python)\n(.*?)```", re.DOTALL)


@pytest.fixture
def place(stories: Path, stories_text: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the pages speak of."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(stories, "stories260k")
    lines = [line for line in stories_text.read_text(encoding="utf8").splitlines() if line.strip()][:2000]
    Path("stories.txt").write_text("\n".join(lines) + "\n", encoding="utf8")
    rows = [json.dumps({"key": number, "story": line}) for number, line in enumerate(lines)]
    Path("stories.jsonl").write_text("\n".join(rows) + "\n", encoding="utf8")
    for name, source, count in (
        ("pairs.jsonl", "nli_triplets/train-en.jsonl", 400),
        ("sts.tsv", "stsb/stsb-dev.tsv", 201),
    ):
        rows = (shared / "data" / source).read_text(encoding="utf8").split("\n")[:count]
        Path(name).write_text("\n".join(rows) + "\n", encoding="utf8")
    for ending, folder, files in (
        ("conllu", "ud_english_ewt", ("train", "dev", "test")),
        ("iob2", "uner_english_ewt", ("train.prerelease", "dev", "test")),
    ):
        for split, count in zip(files, (1000, 300, 300), strict=True):
            whole = (shared / "data" / folder / f"en_ewt-ud-{split}.{ending}").read_text(encoding="utf8")
            some = "\n\n".join(whole.split("\n\n")[:count])
            Path(f"{split.partition('.')[0]}.{ending}").write_text(some + "\n\n", encoding="utf8")
    Path("grid.toml").write_text(GRID, encoding="utf8")
    for language, folder in (("english", "en"), ("korean", "ko")):
        text = (shared / f"data/wiki_paragraphs_{folder}/wiki_{folder}.txt").read_text(encoding="utf8")
        Path(f"{language}.txt").write_text("\n".join(text.splitlines()[:500]) + "\n", encoding="utf8")
    for name in ("decoder.toml", "encoder.toml"):
        shutil.copyfile(DOCS.parent / "recipes" / "headless" / name, name)
    shutil.copytree(shared / "configs" / "llm2vec" / "train_configs", "train_configs")
    for name, source, headed, parts in GLUE:
        lines = (shared / "data" / source).read_text(encoding="utf8").split("\n")
        for part, start, stop in parts:
            path = Path("glue") / name / f"{part}.tsv"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join([lines[0]] * headed + lines[start:stop]) + "\n", encoding="utf8")
    words = "mntp --model_name_or_path stories260k --train_file stories.txt --max_seq_length 64 --max_steps 20"
    assert main([*words.split(), "--learning_rate", "1e-3", "--output", "mine", "--max_eval_samples", "8"]) == 0
    return tmp_path


def say(command: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Run a line of a transcript: turncoder, or rm."""
    words = shlex.split(command)
    capsys.readouterr()
    if words[0] == "rm":
        Path(words[1]).unlink()
        return []
    assert words[0] == "turncoder"
    main(words[1:])
    said = capsys.readouterr()
    text = (
        (said.err + said.out).replace(os.environ["TURNCODER_CACHE"], "~/.cache/turncoder").replace(f"{Path.cwd()}/", "")
    )
    slow = re.compile(r"[\d,]+ of [\d,]+ texts, .* left$")  # said where a shard takes long
    return [line for line in text.splitlines() if line.strip() and not slow.match(line)]


def loose(line: str) -> str:
    """Numbers with a point, times, and the width of a table differ between processors; everything else is exact."""
    line = re.sub(r"about \d+ (s|min)\b|\d:\d\d:\d\d left|\d+ threads|done in \d+ s|_second \S+", "#", line)
    line = re.sub(r"\d+ (s|min)\b", "# s", re.sub(r"\d+\.\d+(e-\d+)?", "#", line))
    return re.sub(r" *([│┃┼╇┳┏┓]) *", r"\1", re.sub(r"[─━]+|  +", " ", line))


def run_page(text: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Run all blocks of a page, in order; give the page with what they say now."""

    def run(block: re.Match[str]) -> str:
        kind, body = block.groups()
        if kind == "python":
            exec(compile(body, "page", "exec"), {})
            return block.group(0)
        lines = []
        for command in re.findall(r"^\$ (.*)$", body, re.MULTILINE):
            lines += [f"$ {command}", *say(command, capsys)]
        return "```console\n" + "\n".join(lines) + "\n```"

    return BLOCK.sub(run, text)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_are_true(page: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = page.read_text(encoding="utf8")
    now = run_page(text, capsys)
    (place / page.name).write_text(now, encoding="utf8")  # to copy from, when the page is to be changed
    assert [loose(line) for line in text.splitlines()] == [loose(line) for line in now.splitlines()]
