"""The rows of a task: from a folder in GLUE's own layout, a data set that `datasets` saved, or the hub."""

from __future__ import annotations

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from turncoder.config.glue import GlueConfig
from turncoder.data.batching import permute
from turncoder.data.masking import EVALUATION_SEED
from turncoder.data.records import RECORD_ENDINGS, name_set, read_records, split_tabs
from turncoder.data.saved import is_saved, iterate_rows, open_dataset
from turncoder.data.sentences import clean
from turncoder.errors import UserError
from turncoder.evaluate.gluetasks import POSITIVE, TASKS, GlueTask, Job, Part, list_jobs, simplify_name

__all__ = ["Examples", "Splits", "find_jobs", "open_splits"]

logger = logging.getLogger("turncoder")

Record = tuple[str, dict[str, Any]]

UNLABELLED = ("", "-1", "hidden")
SPELT = {"contradictory": "contradiction"}
"""How the machine-translated training files of XNLI write a label."""
TOLD = 5


@dataclass(frozen=True)
class Examples:
    """Rows of a task.

    Attributes
    ----------
    where
        The file, or the data set with its split.
    texts
        One or two of each row.
    gold
        The labels: names of classes, or numbers.
    """

    where: str
    texts: list[tuple[str, ...]]
    gold: list[str] | list[float]

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.texts)

    def draw(self, count: int | None, seed: int) -> Examples:
        """Draw ``count`` rows by ``seed``; all where there are no more."""
        if count is None or count >= len(self):
            return self
        rows = np.sort(permute(np.arange(count), len(self), seed, 0))
        return replace(self, texts=[self.texts[row] for row in rows], gold=[self.gold[row] for row in rows])


@dataclass(frozen=True)
class Splits:
    """What is trained on, what epochs are chosen on, and what is scored, by name."""

    train: Examples
    dev: dict[str, Examples]
    scored: dict[str, Examples]

    def fingerprint(self) -> str:
        """Identify what is trained and chosen on."""
        digest = hashlib.sha256()
        for examples in (self.train, *self.dev.values()):
            digest.update(f"{len(examples)}\n".encode())
            for texts, label in zip(examples.texts, examples.gold, strict=True):
                digest.update(f"{texts}\t{label}\n".encode())
        return digest.hexdigest()


def find_jobs(config: GlueConfig) -> list[Job]:
    """List what models are trained for; raises UserError where the data has no such task or language."""
    jobs = []
    for name in config.tasks:
        languages = config.languages or TASKS[name].languages
        if TASKS[name].languages and config.data and not config.languages:
            folder = _find_folder(config.data, name)
            there = {name_set(file).removeprefix("test-") for file in folder.glob("test-*")}
            languages = tuple(sorted(there))
            if not there:
                raise UserError(f"data: {folder} has no test set of {name}: name it test-LANGUAGE.tsv")
        jobs += list_jobs(name, languages, translate_train=config.translate_train)
    return jobs


def open_splits(config: GlueConfig, job: Job) -> Splits:
    """Read what a model is trained on, chosen by and scored on.

    Parameters
    ----------
    config
        ``data`` names the folder; else the hub has it.
    job
        For its parts.

    Raises
    ------
    UserError
        Missing or empty files, columns that are not there, rows without a label, labels that training does not have.
    """
    opened = {part: _open_part(config, job.task, part) for part in job.parts}
    train = opened[job.train].draw(config.max_train_samples, config.seed)
    if not isinstance(train.gold[0], float):
        _check_classes(train, [opened[part] for part in job.parts[1:]], TASKS[job.task])
    dev = {part.name: opened[part].draw(config.max_eval_samples, EVALUATION_SEED) for part in job.dev}
    scored = {part.name: dev[part.name] if part in job.dev else opened[part] for part in job.scored}
    return Splits(train, dev, scored)


def _check_classes(train: Examples, others: Sequence[Examples], task: GlueTask) -> None:
    known = set(map(str, train.gold))
    if len(known) == 1:
        raise UserError(f"{train.where}: all {len(train):,} rows have the label {train.gold[0]!r}; give rows of others")
    if "f1" in task.metrics and not known & POSITIVE:
        raise UserError(
            f"{train.where}: F1 is of the class 1 (or equivalent, or duplicate), and the labels are "
            f"{', '.join(sorted(known)[:TOLD])}; rename them"
        )
    for examples in others:
        unseen = Counter(str(label) for label in examples.gold if label not in known)
        if unseen:
            told = ", ".join(
                f"{label!r} ({count} of {len(examples):,} rows)" for label, count in unseen.most_common(TOLD)
            )
            raise UserError(
                f"{examples.where}: labels that {train.where} does not have: {told}; it has "
                f"{', '.join(map(repr, sorted(known)[: 2 * TOLD]))}"
            )


def _open_part(config: GlueConfig, name: str, part: Part) -> Examples:
    task = TASKS[name]
    folder = _find_folder(config.data, name) if config.data else None
    if folder is not None and not is_saved(folder):
        path = _find_file(folder, part.stem)
        return _take_examples(str(path), _read_file(path, task), name)
    where: dict[str, Any] = {
        "config": part.name if part.is_language else name,
        "split": part.hub_split,
        "cache_dir": config.cache_dir,
    }
    data = open_dataset(str(folder or task.hub), **where, key="data")
    label = next((column for column in task.label if column in data.column_names), None)
    names = getattr(data.features[label], "names", None) if label is not None else None
    rows = iterate_rows(f"{folder or task.hub}, {name} {part.stem}", data)
    return _take_examples(f"{folder or task.hub}, {name} {part.stem}", _name_classes(rows, label, names), name)


def _name_classes(rows: Iterator[Record], label: str | None, names: list[str] | None) -> Iterator[Record]:
    """Give classes that are numbers their names."""
    for where, row in rows:
        if names is not None and label is not None and isinstance(row[label], int) and row[label] >= 0:
            row = {**row, label: names[row[label]]}
        yield where, row


def _find_folder(data: str, name: str) -> Path:
    """Find the folder of a task, however its name is written (``SST-2``)."""
    home = Path(data).expanduser()
    if not home.is_dir():
        raise UserError(
            f"data: {home}: {'a file' if home.exists() else 'no such folder'}; give the folder of all tasks"
        )
    folders = sorted(path for path in home.iterdir() if path.is_dir())
    for folder in folders:
        if simplify_name(folder.name) == name:
            return folder
    there = ", ".join(folder.name for folder in folders) or "none"
    raise UserError(f"data: {home} has no folder {name} (a folder for each task); its folders: {there}")


def _find_file(folder: Path, stem: str) -> Path:
    files = [folder / f"{stem}{ending}{gz}" for ending in RECORD_ENDINGS for gz in ("", ".gz")]
    found = [file for file in files if file.exists()]
    if not found:
        there = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise UserError(f"data: {folder} has no {stem}.tsv ({', '.join(RECORD_ENDINGS)}, or .gz); it has {there}")
    if len(found) > 1:
        raise UserError(f"data: {found[0]} and {found[1].name} are both {stem}; move one away")
    return found[0]


def _read_file(path: Path, task: GlueTask) -> Iterator[Record]:
    """Yield the records of a file; a .tsv as GLUE has it: without quoting, without a header in some tasks."""
    if not path.name.lower().removesuffix(".gz").endswith(".tsv"):
        yield from read_records(path)
        return
    broken: list[int] = []
    header: list[str] = []
    for line, row in split_tabs(path):
        if not header:
            named = any(name in row for names in (*task.texts, task.label) for name in names)
            header = row if named or not task.header else list(task.header)
            if header is row:
                continue
        if len(row) == len(header):
            yield f"{path}, line {line}", dict(zip(header, row, strict=True))
        else:
            broken.append(line)
    if broken:
        lines = ", ".join(map(str, broken[:TOLD])) + ", ..." * (len(broken) > TOLD)
        logger.warning(
            "%s: %d rows have not %d fields, as the others do, and are left out (lines %s)",
            path, len(broken), len(header), lines,
        )  # fmt: skip


def _take_examples(where: str, records: Iterator[Record], name: str) -> Examples:
    """Take texts and labels out of records."""
    task = TASKS[name]
    is_number = "spearman" in task.metrics
    texts: list[tuple[str, ...]] = []
    gold: list[Any] = []
    for place, record in records:
        columns = [_choose_column(record, names, place) for names in (*task.texts, task.label)]
        texts.append(_take_texts(record, columns[:-1], place))
        label = record[columns[-1]]
        gold.append(_take_number(label, columns[-1], place) if is_number else _take_class(label, columns[-1], place))
    if not texts:
        raise UserError(f"{where}: no rows; give a file with some")
    return Examples(where, texts, gold)


def _choose_column(record: dict[str, Any], names: Sequence[str], place: str) -> str:
    for name in names:
        if name in record:
            return name
    raise UserError(f"{place}: no column {' or '.join(map(repr, names))}; there are {', '.join(record) or 'none'}")


def _take_texts(record: dict[str, Any], columns: Sequence[str], place: str) -> tuple[str, ...]:
    texts = []
    for column in columns:
        text = "" if record[column] is None else record[column]
        if not isinstance(text, str):
            raise UserError(f"{place}: {column} = {text!r} is no text; give strings")
        texts.append(clean(text).strip())
    if not any(texts):
        raise UserError(f"{place}: no text in {' or '.join(columns)}; drop the row")
    return tuple(texts)


def _take_class(value: Any, column: str, place: str) -> str:
    """Give the name of a class: that of a number is its digits."""
    name = str(int(value)) if isinstance(value, bool) else str("" if value is None else value).strip()
    if name in UNLABELLED:
        raise UserError(f"{place}: {column} = {value!r} is no label; GLUE's test sets have none, score dev")
    return SPELT.get(name, name)


def _take_number(value: Any, column: str, place: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{place}: {column} = {value!r} is no number; write it like 3.8, or drop the row")
    return number
