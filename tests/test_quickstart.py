"""Quickstart: prose gathered and held apart, and the whole path at toy sizes."""

import asyncio
import email
import json
import logging
import re
import unittest
from pathlib import Path

import pytest

from turncoder.errors import UserError
from turncoder.quickstart import Sizes, run
from turncoder.quickstart.prose import gather_prose, read_paragraphs
from turncoder.report.summary import write_report

DOCSTRING = """Return the largest of the values in the list.

    The list is read once from the left, and ``None`` counts as
    :class:`~collections.abc.Missing` in all of the comparisons.

    Parameters
    ----------
    values : list of float
        The values to be compared with each other.
    key : callable
    Keywords go here x=1, y={"a": 2}

    >>> largest([1, 2])
    2

    Example::

        for value in values:
            print(value)

    See http://example.org for all the details of this.
    """


def test_paragraphs_are_prose_and_nothing_else():
    assert read_paragraphs(DOCSTRING) == [
        "Return the largest of the values in the list.",
        "The list is read once from the left, and None counts as Missing in all of the comparisons.",
        "The values to be compared with each other.",
    ]


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """Forty modules, each with sentences of its own and one that all share; tests, broken files and binary ones too."""
    root = tmp_path / "packages"
    for number in range(40):
        folder = root / f"package{number % 5}"
        folder.mkdir(parents=True, exist_ok=True)
        word = "".join("abcdefghij"[int(digit)] * 3 for digit in str(number))
        (folder / f"module{number}.py").write_text(
            f'"""All of the modules say that this is the same sentence."""\n'
            f"class A:\n    def f(self):\n"
            f'        """Return the {word} of the object that was given to it.\n\n'
            f'        It is {word} when the object has one, and it is not changed by {word}.\n        """\n'
        )
    (root / "tests").mkdir()
    (root / "tests" / "module.py").write_text('"""This is a test file and it is not to be read at all."""')
    (root / "broken.py").write_text('"""This is the text of a file that does not parse."""\ndef f(:\n')
    (root / "binary.py").write_bytes(b'"""\xff\xfe\x00')
    (root / "dangling.py").symlink_to("gone.py")
    return root


def test_gather_drops_repeats_and_holds_whole_files_out(packages: Path):
    prose = gather_prose([packages], words=10**6)
    texts = prose.train + prose.held_out
    assert sum("same sentence" in text for text in texts) == 1
    assert not any("test file" in text or "does not parse" in text for text in texts)
    assert len(set(texts)) == len(texts) >= 40
    assert prose.train and prose.held_out
    assert prose.train_words == sum(len(text.split()) for text in prose.train)


def test_gather_is_the_same_wherever_it_lies_and_stops_when_it_has_enough(packages: Path, tmp_path: Path):
    first = gather_prose([packages], words=10**6)
    packages.rename(tmp_path / "elsewhere")
    assert gather_prose([tmp_path / "elsewhere"], words=10**6) == first
    part = gather_prose([tmp_path / "elsewhere"], words=100)
    assert part.train == first.train[: len(part.train)]
    assert 100 <= part.train_words < 140


def test_no_paragraph_is_both_trained_on_and_held_out(packages: Path):
    prose = gather_prose([packages], words=10**6)
    trained = {sentence for text in prose.train for sentence in text.split(". ")}
    assert not trained & {sentence for text in prose.held_out for sentence in text.split(". ")}


def test_other_settings_and_other_folders_are_refused(tmp_path: Path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="--output"):
        run(output=tmp_path / "full")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "quickstart.json").write_text(json.dumps({"model": "other"}))
    with pytest.raises(UserError, match="other settings"):
        run(output=tmp_path / "old")
    (tmp_path / "old" / "quickstart.json").write_text('{"model": ')
    with pytest.raises(UserError, match=r"old: quickstart.json cannot be read .*: name another folder"):
        run(output=tmp_path / "old")
    (tmp_path / "one.txt").write_text("mine")
    with pytest.raises(UserError, match=r"one.txt is a file; name a folder"):
        run(output=tmp_path / "one.txt")
    with pytest.raises(UserError, match="no such file"):
        run(text=tmp_path / "absent.txt", output=tmp_path / "new")
    with pytest.raises(UserError, match="model"):
        run(model=str(tmp_path / "absent"), output=tmp_path / "new")
    assert not (tmp_path / "new").exists()


TINY = Sizes(
    words=8000,
    vocab_size=600,
    width=128,
    layers=1,
    decoder_steps=6,
    block_size=64,
    batch_size=4,
    steps=4,
    simcse_steps=2,
    simcse_batch_size=8,
    eval_blocks=8,
    pairs=40,
    passages=40,
)


@pytest.fixture(scope="module")
def library_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Docstrings of a few packages of the standard library, a text a line."""
    path = tmp_path_factory.mktemp("text") / "library.txt"
    folders = [Path(package.__file__).parent for package in (asyncio, email, logging, unittest)]
    prose = gather_prose(folders, words=10**6)
    path.write_text("".join(f"{text}\n" for text in prose.train + prose.held_out))
    return path


def test_the_whole_path_reuses_what_is_done_and_repeats_its_numbers(library_text: Path, tmp_path: Path, capsys):
    folder = run(text=library_text, output=tmp_path / "a", sizes=TINY)
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1] == f"SentenceTransformer({str(folder)!r})"
    results = json.loads((tmp_path / "a/turn/results.json").read_text())
    rows = {row["name"]: row for row in results["rows"]}
    assert len(rows) == 8 and all(0 <= row["mrr@10"] <= 1 for row in rows.values() if "words" not in row["name"])
    assert all(0.3 < row[f"words/{column}"] <= 1 for row in list(rows.values())[2:] for column in ("case", "punct"))
    assert rows["causal"]["loss"] > 0 and rows["+ MNTP"]["loss"] < rows["bidirectional"]["loss"]
    write_report([tmp_path / "a/turn"], tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "| + SimCSE |" in page and re.search(r"\| case % \|.* punct % \|", page) and "usual tag (words)" in page
    told = re.search(r"head: (\S+) bits per byte of held-out text,\s+(\S+) by how frequent", shown)
    assert told and 0 < float(told[1]) < float(told[2])
    assert any("R@1" in line and "case" in line and "punct" in line for line in shown.splitlines())
    assert "case (lower, Capitalised" in page and "punct (none, " in page
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*.safetensors")}
    assert run(text=library_text, output=tmp_path / "a", sizes=TINY) == folder
    assert "+ SimCSE" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*.safetensors")}
    run(model=str(tmp_path / "a" / "decoder"), text=library_text, output=tmp_path / "b", sizes=TINY)
    again = json.loads((tmp_path / "b/turn/results.json").read_text())
    for row, other in zip(results["rows"], again["rows"], strict=True):
        assert {**row, "model": None} == {**other, "model": None}


def test_too_little_text_is_said(tmp_path: Path):
    (tmp_path / "one.txt").write_text("Only one short text is in this file.\n")
    with pytest.raises(UserError, match="too few texts"):
        run(text=tmp_path / "one.txt", output=tmp_path / "out", sizes=TINY)


def test_sentences_without_a_rest_are_said_before_anything_is_trained(tmp_path: Path):
    (tmp_path / "lines.txt").write_text("".join(f"Sentence number {n} stands here alone.\n" for n in range(2000)))
    with pytest.raises(UserError, match=r"held-out documents have a first sentence.*give more or longer texts$"):
        run(text=tmp_path / "lines.txt", output=tmp_path / "out", sizes=TINY)
    assert not (tmp_path / "out").exists()
