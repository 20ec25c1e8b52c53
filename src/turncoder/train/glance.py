"""A glance at the data of contrastive training: its first rows, read, divided and prompted as training would.

The first megabyte of each file goes to a temporary folder, which is the run's data for as long as it is looked at.
In the names of arrays: N rows, C columns.
"""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from turncoder.config.stages import SimcseConfig, SupervisedConfig
from turncoder.data.pairs import Rows, open_texts
from turncoder.data.records import list_records, name_set, open_parquet, read_records
from turncoder.data.saved import is_saved, iterate_rows, open_dataset
from turncoder.encode.encoder import find_template
from turncoder.errors import UserError
from turncoder.preview import SAMPLES, cache_in, open_streams, quiet, stream_rows, take_first, weigh
from turncoder.samples import show_text
from turncoder.train.rows import open_rows

__all__ = ["Glance", "glance_at_rows"]

FEWEST = 8  # texts, however long
MEASURED = 256  # rows of each set that are tokenised

Config = SimcseConfig | SupervisedConfig
Record = tuple[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Glance:
    """What a glance at the data showed.

    Attributes
    ----------
    samples
        The first rows as the model would see them.
    sizes
        Training rows of each set; None where they cannot be told without reading all of it.
    lengths
        Tokens of some rows of each set [N, C]: of two views for SimCSE, else of anchor, positive and negatives.
    assumption
        How ``sizes`` was told, when it was not counted.
    """

    samples: list[str]
    sizes: list[int] | None
    lengths: list[np.ndarray]
    assumption: str | None


@dataclasses.dataclass
class _Copy:
    """First rows in a temporary folder.

    Attributes
    ----------
    config
        Trains on them.
    places
        Where each row of a file comes from.
    growth
        How many times as many rows a set has: 1 if these are all; None where that is not known.
    """

    config: Any
    places: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    growth: dict[str, float | None] = dataclasses.field(default_factory=dict)


def glance_at_rows(config: Config, encoder: SentenceTransformer) -> Glance:
    """Look at the first megabyte of every file; nothing is kept.

    Parameters
    ----------
    config
        The resolved config.
    encoder
        Its tokenizer is used.

    Raises
    ------
    UserError
        The data cannot be read, or what of it was seen is wrong.
    """
    with tempfile.TemporaryDirectory() as folder, cache_in(Path(folder) / "cache"), quiet():
        copy = _copy_texts(config, folder) if isinstance(config, SimcseConfig) else _copy_pairs(config, folder)
        try:
            template = find_template(encoder) is not None
            pairs = open_rows(copy.config, encoder.tokenizer, encoder.max_seq_length, template=template)
            sets = [rows for rows, _ in pairs]
        except UserError as error:
            raise UserError(_name_places(str(error), copy)) from None
        samples = _show_rows(sets, encoder)
        lengths = [_measure(rows, encoder) for rows in sets]
        grown = [copy.growth.get(rows.name, copy.growth.get(rows.name.rpartition("_")[0])) for rows in sets]
    if any(times is None for times in grown):
        return Glance(samples, None, lengths, None)
    sizes = [round(len(rows) * (times or 1)) for rows, times in zip(sets, grown, strict=True)]
    told = "rows: from the first megabyte and the size of the files" if any(times != 1 for times in grown) else None
    return Glance(samples, [min(size, config.max_train_samples or size) for size in sizes], lengths, told)


def _point_to(config: Config, train: Path, validation: Path | None, **keys: Any) -> Any:
    """Give the config with other files, of which all rows are taken."""
    return dataclasses.replace(
        config,
        dataset_name=None,
        dataset_config_name=None,
        train_file=str(train),
        validation_file=str(validation) if validation else None,
        max_train_samples=None,
        **keys,
    )


def _copy_texts(config: SimcseConfig, folder: str) -> _Copy:
    corpus, validation = open_streams(config)
    if corpus.tokenised:
        open_texts(corpus)  # which says what is wrong
    paths = []
    for name, texts in (("texts", corpus), ("validation", validation)):
        first, seen, whole = take_first(texts or (), weigh, FEWEST)
        paths.append(Path(folder) / f"{name}.jsonl")
        _write(paths[-1], ({"text": text} for text in first))
        if name == "texts":
            growth = 1 if whole else corpus.size / seen if corpus.size else None
    copied = _point_to(config, paths[0], paths[1] if validation else None, text_column="text")
    return _Copy(copied, {str(paths[0]): [corpus.name]}, {"texts": growth})


def _copy_pairs(config: SupervisedConfig, folder: str) -> _Copy:
    train, validation = Path(folder) / "train", Path(folder) / "validation"
    copy = _Copy(_point_to(config, train, validation if config.validation_file else None))
    if config.validation_file:
        _copy_files(config.validation_file, validation, copy)
    name = str(config.train_file or config.dataset_name)
    if config.train_file or is_saved(Path(name)):
        _copy_files(name, train, copy)
    else:
        _, rows = stream_rows(config)
        _copy_first(iterate_rows(name, rows), train / f"{Path(name).name}.jsonl", copy, None)
    return copy


def _copy_files(source: str, folder: Path, copy: _Copy) -> None:
    path = Path(source).expanduser()
    if is_saved(path):
        data: Any = open_dataset(source)
        copied = folder / f"{path.name}.jsonl"
        taken = _copy_first(iterate_rows(source, data), copied, copy, None)
        copy.growth[name_set(copied)] = len(data) / max(taken, 1)
        return
    for file in list_records(path):
        name = file.name.lower()
        size = file.stat().st_size if not name.endswith((".parquet", ".gz")) else None
        copied = folder / f"{file.name}.jsonl"
        taken = _copy_first(read_records(file), copied, copy, size, plain=name.endswith((".csv", ".tsv")))
        if name.endswith(".parquet"):
            with open_parquet(file) as table:
                copy.growth[name_set(copied)] = table.metadata.num_rows / max(taken, 1)


def _copy_first(records: Iterable[Record], path: Path, copy: _Copy, size: int | None, plain: bool = False) -> int:
    """Copy the first records, and count them."""

    def measure(record: Record) -> int:
        if plain:
            return sum(weigh(str(value)) for value in record[1].values())
        return weigh(json.dumps(record[1], ensure_ascii=False, default=str))

    first, seen, whole = take_first(records, measure, FEWEST)
    _write(path, (record for _, record in first))
    copy.places[str(path)] = [place for place, _ in first]
    copy.growth[name_set(path)] = 1 if whole else size / seen if size else None
    return len(first)


def _write(path: Path, records: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{json.dumps(record, default=str)}\n" for record in records))


def _name_places(message: str, copy: _Copy) -> str:
    """Name in a message the user's file and line in place of the copy's."""
    for path, places in copy.places.items():
        message = re.sub(rf"{re.escape(path)}, line (\d+)", lambda found: places[int(found[1]) - 1], message)  # noqa: B023
        message = message.replace(path, re.sub(r", (line|row) \d+.*$", "", places[0]) if places else "the data")
    return message


def _show_rows(sets: list[Rows], encoder: SentenceTransformer) -> list[str]:
    """Write the first rows, of several sets where there are some."""
    samples = []
    for number in range(SAMPLES):
        rows, row = sets[number % len(sets)], number // len(sets)
        if row >= len(rows):
            continue
        texts = {
            "both views" if name == "text" else name: show_text(encoder, text, rows.prompts.get(name))
            for name, text in rows.data[row].items()
        }
        lines = "\n  ".join(f"{name}: {text}" for name, text in texts.items())
        samples.append(lines if len(sets) == 1 else f"{rows.name}\n  {lines}")
    return samples


def _measure(rows: Rows, encoder: SentenceTransformer) -> np.ndarray:
    """Count the tokens of some rows [N, C]; a text of SimCSE is read twice."""
    chosen = rows.data[np.unique(np.linspace(0, len(rows) - 1, MEASURED).astype(int))]
    columns = [
        encoder.preprocess(texts, prompt=rows.prompts.get(name))["attention_mask"].sum(1).numpy()
        for name, texts in chosen.items()
    ]
    return np.stack(columns * 2 if len(columns) == 1 else columns, axis=1)
