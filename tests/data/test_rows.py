"""Rows to encode: the configuration and the split of a data set are those that were asked for."""

from pathlib import Path
from typing import Any

import datasets
import pytest

from turncoder.data.rows import scan_rows
from turncoder.errors import UserError

SPLITS = {"train": ["a dog"], "test": ["a cat", "a bird"]}


@pytest.fixture
def saved() -> datasets.DatasetDict:
    return datasets.DatasetDict(
        {name: datasets.Dataset.from_list([{"text": text} for text in texts]) for name, texts in SPLITS.items()}
    )


def test_a_saved_data_set_has_splits(saved: datasets.DatasetDict, tmp_path: Path) -> None:
    saved.save_to_disk(str(tmp_path / "set"))
    assert list(scan_rows(str(tmp_path / "set")).texts) == SPLITS["train"]
    assert list(scan_rows(str(tmp_path / "set"), split="test").texts) == SPLITS["test"]
    with pytest.raises(UserError, match="no split 'dev'; it has train, test"):
        scan_rows(str(tmp_path / "set"), split="dev")
    saved["train"].save_to_disk(str(tmp_path / "one"))
    with pytest.raises(UserError, match=r"split = 'test': .* has no splits"):
        scan_rows(str(tmp_path / "one"), split="test")


def test_a_hub_data_set_is_asked_for_its_configuration_and_split(
    saved: datasets.DatasetDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def load(name: str, config: str | None, split: str, cache_dir: str | None) -> datasets.Dataset:
        asked.append((name, config, split, cache_dir))
        return saved[split]

    monkeypatch.setattr(datasets, "load_dataset", load)
    rows = scan_rows("someone/texts", dataset_config_name="en", split="test", id_column="text", cache_dir="there")
    assert rows.count == 2 and list(rows.texts) == SPLITS["test"]
    assert set(asked) == {("someone/texts", "en", "test", "there")}
    scan_rows("someone/texts")
    assert asked[-1] == ("someone/texts", None, "train", None)


def test_long_texts_keep_their_ids_in_every_shard(tmp_path: Path) -> None:
    path, texts = tmp_path / "texts.csv", [letter * 140_000 for letter in "abc"]
    path.write_text("id,text\n" + "".join(f"{number},{text}\n" for number, text in enumerate(texts)))
    rows = scan_rows(str(path), text_column="text", id_column="id")
    assert list(rows.shards(2)) == [(texts[:2], ["0", "1"]), (texts[2:], ["2"])]
