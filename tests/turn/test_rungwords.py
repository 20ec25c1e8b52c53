"""Tagged words of a turn: which files are meant, which column, and how one file is parted."""

from itertools import chain
from pathlib import Path

import datasets
import pytest
from datasets import Dataset, DatasetDict

from turncoder.config.settings import load
from turncoder.config.stages import TurnConfig
from turncoder.config.words import WordsConfig
from turncoder.data.words import open_words
from turncoder.errors import UserError
from turncoder.train.wordtasks import open_splits
from turncoder.turn.rungwords import _find_files, open_tagged


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
        (["eng.train", "eng.testa", "eng.testb", "eng.raw", "README"],
         {"train": "eng.train", "validation": "eng.testa", "test": "eng.testb"}),
        (["train.txt", "testa.txt", "testb.txt"],
         {"train": "train.txt", "validation": "testa.txt", "test": "testb.txt"}),
        (["train.txt", "latesta.txt", "testament.txt"], {"train": "train.txt", "test": "testament.txt"}),
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
        (["train.md"], r"no file to train on.*NAME-train\.conllu.*or NAME\.train, NAME\.testa, NAME\.testb"),
        (["eng.train", "deu.train"], r"both deu\.train and eng\.train could be the train_file"),
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
    drawn = {"max_train_samples": 50, "max_eval_samples": 4}
    one, two = (open_splits(WordsConfig(**{**vars(config), **drawn, "seed": seed})) for seed in (1, 2))
    assert one.held_out.data["text"][:] == two.held_out.data["text"][:] and len(one.held_out) == 4
    assert one.train.data["text"][:] != two.train.data["text"][:]  # a seed is that of training
    held_out = write(tmp_path / "dev.conll", sentences=range(200, 210))
    splits = open_splits(WordsConfig(**{**vars(config), "validation_file": str(held_out)}))
    assert splits.test is not None
    assert list(splits.test.data["text"]) == list(parts[2]) and len(splits.train) == 200 - len(parts[2])
    with pytest.raises(UserError, match=r"test_split_percentage = 20 and 'dev\.conll': keep one"):
        WordsConfig(**{**vars(config), "test_file": "dev.conll"})
    with pytest.raises(UserError, match="test_split_percentage = 95"):
        WordsConfig(**{**vars(config), "test_split_percentage": 95})


@pytest.mark.parametrize("splits", [("train",), ("train", "validation"), ("train", "validation", "test")])
def test_data_sets_have_splits_of_their_own(tmp_path: Path, splits: tuple[str, ...]) -> None:
    """A saved folder stands for one of the hub."""
    sentences = {split: [[f"{split}{n}", "."] for n in range(60)] for split in splits}
    rows = {
        split: Dataset.from_dict({"tokens": words, "upos": [["X", "PUNCT"]] * 60}) for split, words in sentences.items()
    }
    DatasetDict(rows).save_to_disk(tmp_path / "saved")
    keys, told = opened(tmp_path / "saved")
    assert keys["dataset_name"] == str(tmp_path / "saved") and keys["task"] == ["upos"]
    parts = open_splits(load(WordsConfig, None, {"model_name_or_path": "m", **keys}))
    assert parts.test is not None
    for split, part in zip(("train", "validation", "test"), (parts.train, parts.held_out, parts.test), strict=True):
        assert {words[0] for words in part.forms()} <= {words[0] for words in sentences.get(split, sentences["train"])}
        assert len(part) == 60 or len(splits) < 3
    assert f"{len(parts.test)} scored" in told[0]


def test_a_hub_id_is_asked_for_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = []

    def load_dataset(name: str, config: str | None, **options: str | None) -> None:
        asked.append((name, config, options["split"], options["cache_dir"]))
        raise OSError("no network")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    hub = {"model_name_or_path": "m", "text": "t", "cache_dir": "here"}
    with pytest.raises(UserError, match=r"^--words: 'conll2003' .* cannot be loaded: no network"):
        open_tagged(TurnConfig(**hub, words="conll2003"))
    with pytest.raises(UserError, match=r"^--words: 'universal_dependencies' \(en_ewt, split 'train'\)"):
        open_tagged(TurnConfig(**hub, words="universal_dependencies", words_config_name="en_ewt"))
    homes = ("lhoestq/conll2003", None), ("commul/universal_dependencies", "en_ewt")
    assert asked == [(*home, "train", "here") for home in homes]
    for name in ("typo.conllu", "eng.train", "./conll2003"):
        with pytest.raises(UserError, match=rf"^--words: {Path(name)}: no such file"):
            open_tagged(TurnConfig(**hub, words=name))
    with pytest.raises(UserError, match="words_config_name = 'en_ewt' needs tagged words"):
        TurnConfig(**hub, words_config_name="en_ewt")


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
