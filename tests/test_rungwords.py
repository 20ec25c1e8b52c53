"""Tagged words of a turn: which files are meant, which column, and how one file is parted."""

from itertools import chain
from pathlib import Path

import pytest

from turncoder.config import TurnConfig
from turncoder.data.words import open_words
from turncoder.errors import UserError
from turncoder.rungwords import _find_files, open_tagged
from turncoder.train.wordtasks import open_splits
from turncoder.wordconfig import WordsConfig


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNCODER_CACHE", str(tmp_path / "cache"))


def write(path: Path, names: str = "FORM POS TONE", sentences: range = range(200)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [f"Word{n}\tNN\tX\nends\tVB\tY{n % 2}\n.\t.\tZ\n" for n in sentences]
    path.write_text(f"# global.columns = {names}\n" + "\n".join(rows))
    return path


def opened(words: Path, *task: str) -> tuple[dict, list[str]]:
    return open_tagged(TurnConfig(model_name_or_path="m", text="t", words=str(words), words_task=task, seed=7))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a-train.conllu", "a-dev.conllu", "a-test.conllu", "a-train.txt", "README.md", "train.stats"],
         {"train": "a-train.conllu", "validation": "a-dev.conllu", "test": "a-test.conllu"}),
        (["train.txt", "valid.txt", "test.txt"], {"train": "train.txt", "validation": "valid.txt", "test": "test.txt"}),
        (["en-train.pre.iob2.gz", "en-test.iob2"], {"train": "en-train.pre.iob2.gz", "test": "en-test.iob2"}),
        (["x.jsonl", "train.jsonl", "latest.jsonl"], {"train": "train.jsonl"}),
    ],
)  # fmt: skip
def test_files_of_a_folder_are_known_by_their_names(tmp_path: Path, names: list[str], expected: dict[str, str]) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert _find_files(tmp_path) == {f"{key}_file": str(tmp_path / name) for key, name in expected.items()}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.conllu", "test.conllu"], "no file to train on"),
        (["train.md"], "no file to train on"),
        (["a-train.conll", "b-train.conll"], "both a-train.conll and b-train.conll could be the train_file"),
    ],
)
def test_folders_that_leave_a_doubt_are_refused(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=message):
        _find_files(tmp_path)


def test_one_file_is_parted_by_a_hash_of_its_sentences(tmp_path: Path) -> None:
    file = write(tmp_path / "words.conll")
    config = WordsConfig(model_name_or_path="m", train_file=str(file), task=("pos",), test_split_percentage=20)
    splits = open_splits(config)
    assert splits.test is not None
    parts = [words.data["text"] for words in (splits.train, splits.held_out, splits.test)]
    assert sorted(chain(*parts)) == sorted(open_words(file=str(file)).data["text"])
    assert 20 < len(parts[2]) < 60 and 5 < len(parts[1]) < 40
    assert splits.test.num_words == 3 * len(parts[2]) and "20 %" in splits.test.where
    held_out = write(tmp_path / "dev.conll", sentences=range(200, 210))
    splits = open_splits(WordsConfig(**{**vars(config), "validation_file": str(held_out)}))
    assert splits.test is not None
    assert list(splits.test.data["text"]) == list(parts[2]) and len(splits.train) == 200 - len(parts[2])
    with pytest.raises(UserError, match=r"test_split_percentage = 20 and 'dev\.conll': keep one"):
        WordsConfig(**{**vars(config), "test_file": "dev.conll"})
    with pytest.raises(UserError, match="test_split_percentage = 95"):
        WordsConfig(**{**vars(config), "test_split_percentage": 95})


def test_keys_of_the_probes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys, told = opened(write(tmp_path / "words.conll"))
    assert keys["task"] == ["pos"] and "pos is measured, of pos, tone" in caplog.text
    assert keys["seeds"] == [7, 8, 9] and (keys["test_split_percentage"], keys["validation_split_percentage"]) == (
        10,
        10,
    )
    assert "pos (3 labels)" in told[0] and "of 200 in words.conll" in told[0]
    keys, told = opened(write(tmp_path / "set/train.conll", sentences=range(4500)).parent, "tone", "pos")
    assert keys["task"] == ["tone", "pos"] and "3,000 sentences to train probes on (of 4,500" in told[0]
    write(tmp_path / "set/test.conll", sentences=range(40))
    assert "test_split_percentage" not in opened(tmp_path / "set")[0]


def test_columns_that_leave_a_doubt_or_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"columns voice, tone.*--words_task"):
        opened(write(tmp_path / "words.conll", "FORM VOICE TONE"))
    with pytest.raises(UserError, match="words_task = 'upos'"):
        opened(write(tmp_path / "more.conll"), "upos")
    folder = write(tmp_path / "set/train.conll").parent
    write(folder / "test.conll", "FORM VOICE TONE")
    with pytest.raises(UserError, match=r"test\.conll has no labels pos"):
        opened(folder)
    (folder / "test.conll").write_text("a b c\n\nd e\n")
    with pytest.raises(UserError, match=r"test\.conll, line 3"):
        opened(folder)
