"""Files of pairs, labelled texts, translations and triplets as tasks for sentence vectors: seven kinds."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turncoder.data.columns import find_shape
from turncoder.data.files import split_places
from turncoder.data.records import RECORD_ENDINGS, decode, name_set, read_records, split_lines, split_tabs, take_value
from turncoder.errors import UserError
from turncoder.evaluate.sentences import read_sts

__all__ = ["KINDS", "SentenceFile", "open_sentence_file"]

logger = logging.getLogger("turncoder")

FEWEST = 10  # rows of a file that is cut into five parts

KINDS = {
    "sts": "sts=FILE",
    "retrieval": "retrieval=FOLDER",
    "classification": "classification=FILE",
    "clustering": "clustering=FILE",
    "pair_classification": "pair_classification=FILE",
    "bitext": "bitext=FILE,FILE",
    "triplets": "triplets=FILE",
}
"""How each kind is asked for."""
LABEL_COLUMNS = ("label", "labels", "category", "intent")
PAIR_COLUMNS = (
    ("sentence1", "sentence2"),
    ("question", "sentence"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
)
"""Ours and mteb's, and those of GLUE's files."""
TRUTH = {"1": 1, "0": 0, "true": 1, "false": 0, "entailment": 1, "not_entailment": 0}
QRELS = ("test", "dev", "validation", "train")
"""Splits of a BEIR folder, the first that is there is scored."""

Columns = dict[str, list[Any]]


@dataclass(frozen=True)
class SentenceFile:
    """A file, two, or a folder, as a task.

    Attributes
    ----------
    name
        Kind and name of the file: ``sts_stsb-dev``.
    kind
        One of `KINDS`.
    place
        As it was asked for.
    splits
        Columns by split. ``retrieval`` has ``corpus``, ``queries`` and ``qrels`` (columns ``query``, ``document``,
        ``score``) instead of splits.
    """

    name: str
    kind: str
    place: str
    splits: dict[str, Columns]

    @property
    def fingerprint(self) -> str:
        """A hash of kind and content."""
        return hashlib.sha256(json.dumps([self.kind, self.splits]).encode()).hexdigest()


def open_sentence_file(spec: str) -> SentenceFile:
    """Read a file as a task.

    Parameters
    ----------
    spec
        ``KIND=FILE``; files of records are JSONL, JSON, CSV, TSV or Parquet, each also ``.gz``.

        ``sts``: ``sentence1``, ``sentence2``, ``score``. ``retrieval``: a BEIR folder (``corpus.jsonl``,
        ``queries.jsonl``, ``qrels/test.tsv``). ``classification``: ``text`` and ``label``; a file to train on and one
        to test on (``TRAIN,TEST``, or a folder with ``train.*`` and ``test.*``), or one file for both.
        ``clustering``: ``text`` and ``label``. ``pair_classification``: ``sentence1``, ``sentence2`` and ``label``, 0
        or 1. ``bitext``: two files whose lines are translations. ``triplets``: ``anchor``, ``positive``, ``negative``.

    Raises
    ------
    UserError
        No such file or kind, a file that cannot be read, a row that the kind cannot use.
    """
    kind, equals, place = spec.partition("=")
    if not equals or kind not in KINDS:
        said = f"{kind!r} is no kind of task" if equals else "what is to be done with it is not said"
        raise UserError(f"task_file = {spec!r}: {said}; choose {', '.join(KINDS.values())}")
    paths = split_places(place)
    if kind == "classification" and len(paths) == 1 and paths[0].is_dir():
        paths = [_find_part(paths[0], split, spec) for split in ("train", "test")]
    most = {"classification": 2, "bitext": 2}.get(kind, 1)
    if len(paths) > most or (kind == "bitext" and len(paths) != 2):
        raise UserError(f"task_file = {spec!r} names {len(paths)} files; write {KINDS[kind]}")
    for path in paths:
        if kind == "retrieval" and not path.is_dir():
            raise UserError(f"task_file = {spec!r}: {path} is no folder with corpus.jsonl, queries.jsonl and qrels/")
        if kind != "retrieval" and not path.is_file():
            raise UserError(f"task_file = {spec!r}: there is no file {path}")
    readers: dict[str, Callable[..., dict[str, Columns]]] = {
        "sts": _read_sts,
        "retrieval": _read_beir,
        "classification": _read_classes,
        "clustering": _read_clusters,
        "pair_classification": _read_pairs,
        "bitext": _read_bitext,
        "triplets": _read_triplets,
    }
    return SentenceFile(f"{kind}_{_name_paths(paths)}", kind, place, readers[kind](*paths))


def _name_paths(paths: list[Path]) -> str:
    """Name a task: by the set, by the folder of train and test, or by both sides of a bitext."""
    if len(paths) == 1:
        return name_set(paths[0]) or paths[0].resolve().name
    names = [path.name.removesuffix(".gz").removesuffix(path.suffix) for path in paths]
    if [name_set(path) for path in paths] == ["train", "test"]:
        return paths[0].resolve().parent.name
    first, second = (name.split(".") for name in names)
    return f"{names[0]}-{second[-1] if first[0] == second[0] else names[1]}"


def _find_part(folder: Path, split: str, spec: str) -> Path:
    found = sorted(
        path
        for path in folder.glob(f"{split}.*")
        if path.name.lower().removesuffix(".gz").removeprefix(split) in RECORD_ENDINGS
    )
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise UserError(f"task_file = {spec!r}: the folder must hold one {split}.csv, .tsv or .jsonl; it has {names}")
    return found[0]


def _read_sts(path: Path) -> dict[str, Columns]:
    sts = read_sts(path)
    return {"test": {"sentence1": sts.first, "sentence2": sts.second, "score": sts.score_N.tolist()}}


def _read_labelled(path: Path, fewest: int = 2) -> Columns:
    texts, labels = [], []
    for where, record in read_records(path):
        name = next((one for one in LABEL_COLUMNS if one in record), LABEL_COLUMNS[0])
        texts.append(_take_text(record, "text", where))
        label = take_value(record, name, where)
        if not isinstance(label, str | int) or not str(label).strip():
            raise UserError(f"{where}: {name} = {label!r} is no label; give a word or a whole number")
        labels.append(str(label))
    if len(set(labels)) < fewest:
        raise UserError(f"{path}: too few different labels ({len(set(labels))}); {fewest} or more are needed")
    return {"text": texts, "label": labels}


def _read_classes(train: Path, test: Path | None = None) -> dict[str, Columns]:
    splits = {"train": _read_labelled(train)}
    if test is None and len(splits["train"]["label"]) < FEWEST:
        raise UserError(
            f"{train}: {len(splits['train']['label'])} rows are too few to be trained and scored on in turn; give "
            f"{FEWEST} or more, or a folder with train and test"
        )
    if test is not None:
        splits["test"] = _read_labelled(test, 1)
        if unknown := sorted(set(splits["test"]["label"]) - set(splits["train"]["label"])):
            raise UserError(f"{test}: label {unknown[0]!r} is not in {train}; no classifier could give it")
    return splits


def _read_clusters(path: Path) -> dict[str, Columns]:
    columns = _read_labelled(path)
    return {"test": {"sentences": columns["text"], "labels": columns["label"]}}


def _read_pairs(path: Path) -> dict[str, Columns]:
    columns: Columns = {"sentence1": [], "sentence2": [], "labels": []}
    for where, record in _read_pair_records(path):
        names = next((two for two in PAIR_COLUMNS if set(two) <= set(record)), PAIR_COLUMNS[0])
        for column, name in zip(columns, names, strict=False):
            columns[column].append(_take_text(record, name, where))
        label = record["labels"] if "labels" in record else take_value(record, "label", where)
        truth = TRUTH.get(str(label).strip().lower())
        if truth is None:
            raise UserError(f"{where}: label = {label!r} must be 1 (the two belong together) or 0")
        columns["labels"].append(truth)
    if len(set(columns["labels"])) < 2:
        raise UserError(f"{path}: the labels are all the same; pairs of both kinds are needed")
    return {"test": columns}


def _read_pair_records(path: Path) -> Any:
    """Yield records, also of PAWS-X's files, which have no header: two sentences and a label a line."""
    if path.name.lower().removesuffix(".gz").endswith(".tsv"):
        first = next(split_tabs(path), (1, []))[1]
        if len(first) == 3 and first[2].strip() in ("0", "1"):
            for number, row in split_tabs(path):
                if len(row) != 3:
                    raise UserError(f"{path}, line {number}: {len(row)} fields; two sentences and a label are 3")
                yield f"{path}, line {number}", dict(zip(("sentence1", "sentence2", "label"), row, strict=True))
            return
    yield from read_records(path)


def _read_bitext(first: Path, second: Path) -> dict[str, Columns]:
    sides = [list(split_lines(decode(path))) for path in (first, second)]
    if len(sides[0]) != len(sides[1]) or not sides[0]:
        raise UserError(
            f"{first} has {len(sides[0]):,} lines and {second} {len(sides[1]):,}; line by line they must be "
            "translations of each other"
        )
    for path, lines in zip((first, second), sides, strict=True):
        empty = next((number for number, line in enumerate(lines, 1) if not line.strip()), None)
        if empty is not None:
            raise UserError(f"{path}, line {empty}: it is empty; drop the line from both files")
    return {"test": {"sentence1": sides[0], "sentence2": sides[1]}}


def _read_triplets(path: Path) -> dict[str, Columns]:
    shape = find_shape(str(path), read_records(path), ())
    if len(shape.names) < 3:
        raise UserError(f"{path}: the rows have no negative; triplets need anchor, positive and negative")
    columns: Columns = {"anchor": [], "positive": [], "negatives": []}
    for where, record in read_records(path):
        texts = [text.strip() for text in shape.take(record, where)]
        if not all(texts):
            raise UserError(f"{where}: a text is empty; give it one, or drop the row")
        for name, value in zip(columns, (texts[0], texts[1], texts[2:]), strict=True):
            columns[name].append(value)
    return {"test": columns}


def _read_beir(folder: Path) -> dict[str, Columns]:
    corpus: Columns = {"id": [], "title": [], "text": []}
    for where, record in read_records(_find_beir(folder, "corpus")):
        corpus["id"].append(str(take_value(record, "_id", where)))
        corpus["title"].append(str(record.get("title") or ""))
        corpus["text"].append(str(take_value(record, "text", where)))
    queries: Columns = {"id": [], "text": []}
    for where, record in read_records(_find_beir(folder, "queries")):
        queries["id"].append(str(take_value(record, "_id", where)))
        queries["text"].append(_take_text(record, "text", where))
    for name, columns in (("corpus", corpus), ("queries", queries)):
        (most, count), *_ = Counter(columns["id"]).most_common(1) or [("", 0)]
        if count > 1:
            raise UserError(f"{folder}/{name}.jsonl: the _id {most!r} is there {count} times; give each its own")
    return {"corpus": corpus, "queries": queries, "qrels": _read_qrels(folder, queries["id"], corpus["id"])}


def _find_beir(folder: Path, name: str) -> Path:
    found = next((path for path in (folder / f"{name}.jsonl", folder / f"{name}.jsonl.gz") if path.exists()), None)
    if found is None:
        raise UserError(f"{folder}: there is no {name}.jsonl; a BEIR folder has corpus.jsonl, queries.jsonl and qrels/")
    return found


def _read_qrels(folder: Path, queries: list[str], documents: list[str]) -> Columns:
    """Read which documents answer a query; what is not in the corpus counts as never found, and is told."""
    path = next((one for split in QRELS if (one := folder / "qrels" / f"{split}.tsv").exists()), None)
    if path is None:
        raise UserError(f"{folder}/qrels: there is none of {', '.join(f'{split}.tsv' for split in QRELS)}")
    known = set(queries), set(documents)
    qrels: Columns = {"query": [], "document": [], "score": []}
    absent = 0
    for where, record in read_records(path):
        query, document = (str(take_value(record, name, where)) for name in ("query-id", "corpus-id"))
        score = take_value(record, "score", where)
        if query not in known[0]:
            raise UserError(f"{where}: the query {query!r} is not in queries.jsonl")
        try:
            relevance = int(score)
        except ValueError:
            raise UserError(f"{where}: score = {score!r} must be a whole number") from None
        absent += document not in known[1]
        for name, value in zip(qrels, (query, document, relevance), strict=True):
            qrels[name].append(value)
    if not qrels["query"] or absent == len(qrels["query"]):
        raise UserError(f"{path}: no row names a document of {folder}/corpus.jsonl")
    if absent:
        logger.warning("%s: %d of %d documents are not in the corpus", path, absent, len(qrels["query"]))
    return qrels


def _take_text(record: dict[str, Any], name: str, where: str) -> str:
    value = take_value(record, name, where)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: {name} = {value!r} is no text; give it one, or drop the row")
    return value
