"""Vectors of words: the states of the tokens that each word's characters have, one word at a time; words by UAX 29."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel, AutoTokenizer

from turncoder import make_bidirectional
from turncoder.cli import main
from turncoder.encode.wordvectors import split_words

TEXTS = [
    "Hello, world! Don't ask.",
    "",
    "naïve 😀 日本",
    " \t ",
    "Once upon a time there were 3.14 dogs and a cat\u0301.",
]
WORDS = [
    (0, "Hello", 0, 5), (0, ",", 5, 6), (0, "world", 7, 12), (0, "!", 12, 13), (0, "Don't", 14, 19), (0, "ask", 20, 23),
    (0, ".", 23, 24), (2, "naïve", 0, 5), (2, "😀", 6, 7), (2, "日", 8, 9), (2, "本", 9, 10), (4, "Once", 0, 4),
    (4, "upon", 5, 9), (4, "a", 10, 11), (4, "time", 12, 16), (4, "there", 17, 22), (4, "were", 23, 27),
    (4, "3.14", 28, 32), (4, "dogs", 33, 37), (4, "and", 38, 41), (4, "a", 42, 43), (4, "cat\u0301", 44, 48),
    (4, ".", 48, 49),
]  # fmt: skip


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], stories: Path) -> Callable[..., tuple[int, str]]:
    def run(source: object, *words: object) -> tuple[int, str]:
        capsys.readouterr()
        code = main(["encode", str(stories), str(source), "--words", *map(str, words)])
        return code, capsys.readouterr().err

    return run


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n", encoding="utf8")
    return path


def read(path: Path) -> tuple[list[tuple], np.ndarray]:
    table = pq.read_table(path)
    assert table.column_names == ["row", "word", "start", "end", "vector"]
    columns = [table[name].to_pylist() for name in table.column_names[:-1]]
    return list(zip(*columns, strict=True)), np.stack(table["vector"].to_numpy())


@torch.no_grad()
def expect(stories: Path, turned: bool, layer: int, previous: bool, merge: bool) -> np.ndarray:
    """The vectors of WORDS from one forward of each text."""
    model, tokenizer = AutoModel.from_pretrained(stories).eval(), AutoTokenizer.from_pretrained(stories)
    if turned:
        make_bidirectional(model)
    vectors = []
    for row, _, start, end in WORDS:
        encoding = tokenizer(TEXTS[row], return_offsets_mapping=True)
        states = model(torch.tensor([encoding["input_ids"]]), output_hidden_states=True).hidden_states[layer][0]
        own = [at for at, (low, high) in enumerate(encoding["offset_mapping"]) if low < end and high > start]
        own = [at - previous for at in own]
        vectors.append(states[own].mean(0) if merge else states[own[0]])
    return torch.stack(vectors).numpy()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], (True, -1, False, True)),
        (["--no-bidirectional", "--layer", 2], (False, 2, False, True)),
        (["--alignment", "previous_token"], (True, -1, True, True)),
        (["--layer", 0, "--no-merge-subwords", "--shard-texts", 1], (True, 0, False, False)),
        (["--alignment", "previous_token", "--no-merge-subwords", "--batch-tokens", 1], (True, -1, True, False)),
    ],
)
def test_a_word_has_the_states_of_its_tokens(words, expected, source, stories, tmp_path, command) -> None:
    code, said = command(source, "--output", tmp_path / "out.parquet", *words)
    assert code == 0 and "vectors of 23 words in 5 texts" in said
    rows, vectors = read(tmp_path / "out.parquet")
    assert rows == WORDS
    wanted = expect(stories, *expected)
    np.testing.assert_allclose(vectors, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_normalized_and_written_anew(source, tmp_path, command) -> None:
    out = tmp_path / "new" / "out.parquet"
    assert command(source, "--output", out)[0] == 0
    _, plain = read(out)
    assert "exists" in command(source, "--output", out)[1]
    assert command(source, "--output", out, "--overwrite", "--normalize")[0] == 0
    _, vectors = read(out)
    np.testing.assert_allclose(vectors, plain / np.linalg.norm(plain, axis=1, keepdims=True), atol=1e-6)
    assert [path.name for path in out.parent.iterdir()] == ["out.parquet"]


def test_a_file_of_words_brings_its_own(shared, tmp_path, command) -> None:
    lines = (shared / "data/ud_english_ewt/en_ewt-ud-dev.conllu").read_text(encoding="utf8").split("\n")
    cut = max(number for number, line in enumerate(lines[:3000]) if not line)
    (tmp_path / "in.conllu").write_text("\n".join(lines[:cut]) + "\n\n", encoding="utf8")
    forms = [line.split("\t")[1] for line in lines[:cut] if line.split("\t")[0].isdigit()]
    texts = [line.removeprefix("# text = ") for line in lines[:cut] if line.startswith("# text = ")]
    code, said = command(tmp_path / "in.conllu", "--output", tmp_path / "out.parquet", "--max_seq_length", 30)
    assert code == 0 and "were longer than the limit and read in parts" in said
    rows, vectors = read(tmp_path / "out.parquet")
    assert [word for _, word, _, _ in rows] == forms and len(vectors) == len(forms)
    inside = [texts[row][start:end] == word for row, word, start, end in rows]
    assert sum(inside) >= len(inside) - 10  # but for multiword tokens that are not written as their words are
    assert rows[-1][0] == len(texts) - 1 and np.isfinite(vectors).all()


@settings(deadline=None)
@given(st.lists(st.text(st.one_of(st.characters(), st.sampled_from(" ab.'\u0301\u200d😀🏽")), max_size=30), max_size=4))
def test_words_are_all_of_a_text_but_white_space(texts: list[str]) -> None:
    data = split_words(texts)
    assert len(data) == len(texts)
    for row in data:
        at = 0
        for start, end, word in zip(row["starts"], row["ends"], row["words"], strict=True):
            assert not row["text"][at:start].strip() and row["text"][start:end] == word and word.strip()
            at = end
        assert not row["text"][at:].strip()


def test_words_of_many_scripts() -> None:
    words = {
        "can't stop—won't, e.g. U.S. 1,000.50%": [
            "can't", "stop", "—", "won't", ",", "e.g", ".", "U.S", ".", "1,000.50", "%",
        ],
        "👩🏽\u200d🚀🇧🇬🇩🇪 e\u0301te\u0301": ["👩🏽\u200d🚀", "🇧🇬", "🇩🇪", "e\u0301te\u0301"],
        "नमस्ते दुनिया। שלום, عالم": ["नमस्ते", "दुनिया", "।", "שלום", ",", "عالم"],
        "눈이 온다 x_y": ["눈이", "온다", "x_y"],
        "half \ud83d pair": ["half", "\ufffd", "pair"],
    }  # fmt: skip
    assert split_words(list(words))["words"][:] == list(words.values())


REFUSED = {
    "pooling": (["--pooling", "mean", "--output", "OUT.parquet"], "pooling = 'mean': it says how a text becomes"),
    "prompt": (["--prompt", "a", "--output", "OUT.parquet"], "prompt = 'a'"),
    "processes": (["--processes", 2, "--output", "OUT.parquet"], "processes = 2"),
    "npy": (["--output", "OUT.npy"], "give OUT.parquet"),
    "layer": (["--layer", 9, "--output", "OUT.parquet"], "layer = 9: the model has layers 0 to 5"),
    "limit": (["--max_seq_length", 1, "--output", "OUT.parquet"], "max_seq_length = 1 leaves no token"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_said_and_nothing_written(case, source, tmp_path, command) -> None:
    words, message = REFUSED[case]
    before = set(tmp_path.rglob("*"))
    code, said = command(source, *(str(word).replace("OUT", str(tmp_path / "out")) for word in words))
    assert code == 2 and message in said
    assert set(tmp_path.rglob("*")) == before


def test_no_words_and_flags_of_words(source, stories, tmp_path, command, capsys) -> None:
    (tmp_path / "blank.txt").write_text(" \n\t\n")
    code, said = command(tmp_path / "blank.txt", "--output", tmp_path / "out.parquet")
    assert code == 2 and "no word in it" in said
    code, said = command(tmp_path / "no.conllu", "--output", tmp_path / "out.parquet")
    assert code == 2 and "no such file" in said
    code = main(["encode", str(stories), str(source), "--layer", "1", "--output", str(tmp_path / "out.npy")])
    assert code == 2 and "layer = 1: it goes with --words only" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"texts.txt", "blank.txt"}


def test_a_dry_run_shows_words_and_writes_nothing(source, stories, tmp_path, capsys) -> None:
    before = set(tmp_path.rglob("*"))
    out = str(tmp_path / "out.parquet")
    assert main(["encode", str(stories), str(source), "--words", "--output", out, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "- Hello [" in said and "Don't [" in said and f"would write: {out}" in said
    assert any("words" in line and "23" in line for line in said.split("\n"))
    assert set(tmp_path.rglob("*")) == before
