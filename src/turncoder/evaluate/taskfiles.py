"""Files of texts, questions and sentence pairs as tasks of lm-eval: four kinds, each a few keys of its task config."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turncoder.data.files import read_file
from turncoder.data.records import name_set, read_records, take_value
from turncoder.errors import UserError

__all__ = ["KINDS", "TaskFile", "open_task_file"]

PAIR_COLUMNS = (("good", "bad"), ("sentence_good", "sentence_bad"))
"""Ours, and those of BLiMP."""
KINDS: dict[str, dict[str, Any]] = {
    "last_word": {
        "output_type": "loglikelihood",
        "doc_to_text": "context",
        "doc_to_target": "word",
        "target_delimiter": "",
    },
    "perplexity": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "text",
        "num_fewshot": 0,
    },
    "multiple_choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "question",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
    },
    "minimal_pairs": {
        "output_type": "multiple_choice",
        "doc_to_text": "",
        "doc_to_choice": "sentences",
        "doc_to_target": 0,
        "target_delimiter": "",
        "num_fewshot": 0,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    },
}
"""What each kind is to lm-eval; where no metrics are named, it measures those of the output type."""


@dataclass(frozen=True)
class TaskFile:
    """A file as a task.

    Attributes
    ----------
    name
        Kind and name of the file: ``last_word_stories``.
    kind
        One of `KINDS`.
    path
        The file.
    rows
        What lm-eval reads of it: the columns that the kind's config names.
    """

    name: str
    kind: str
    path: Path
    rows: list[dict[str, Any]]

    @property
    def fingerprint(self) -> str:
        """A hash of kind and rows."""
        return hashlib.sha256(json.dumps([self.kind, self.rows]).encode()).hexdigest()

    def configure(self) -> dict[str, Any]:
        """Give the task config that ``TaskManager.load`` takes."""
        from datasets import Dataset

        splits = {"test": Dataset.from_list(self.rows)}
        return {
            "task": self.name,
            "custom_dataset": lambda **_: splits,
            "test_split": "test",
            "fewshot_split": "test",  # lm-eval leaves the text itself out
            "metadata": {"version": 1, "file": str(self.path)},
            **KINDS[self.kind],
        }


def open_task_file(spec: str) -> TaskFile:
    """Read a file as a task.

    Parameters
    ----------
    spec
        ``KIND=FILE``, or ``FILE`` where its columns say the kind. ``last_word`` and ``perplexity`` take texts, in any
        shape that training takes: a text is a line of ``.txt`` or a row. ``multiple_choice`` takes records with
        ``question``, ``choices`` and ``answer``, the number of the right choice from 0 or the choice itself;
        ``minimal_pairs`` records with ``good`` and ``bad``.

    Raises
    ------
    UserError
        No such file or kind, a file that cannot be read, a row that the kind cannot use.
    """
    kind, equals, place = spec.partition("=")
    if not equals or kind not in KINDS:
        if equals and not Path(spec).expanduser().exists():
            raise UserError(f"task_file = {spec!r}: {kind!r} is no kind of task; choose {', '.join(KINDS)}")
        kind, place = "", spec
    path = Path(place).expanduser()
    if not path.is_file():
        raise UserError(f"task_file = {spec!r}: there is no file {path}")
    kind = kind or _guess_kind(path)
    readers = {
        "last_word": lambda: [_split_last(text, where) for where, text in _read_texts(path)],
        "perplexity": lambda: [{"text": text} for _, text in _read_texts(path)],
        "multiple_choice": lambda: [_take_question(record, where) for where, record in read_records(path)],
        "minimal_pairs": lambda: [_take_pair(record, where) for where, record in read_records(path)],
    }
    rows = readers[kind]()
    if not rows:
        raise UserError(f"task_file = {spec!r}: the file has no row with something in it")
    return TaskFile(f"{kind}_{name_set(path)}", kind, path, rows)


def _guess_kind(path: Path) -> str:
    """Tell the kind from the columns of the first record; a text alone may be either of two."""
    columns: set[str] = set()
    if not path.name.lower().removesuffix(".gz").endswith(".txt"):
        columns = {name for _, record in [next(read_records(path), ("", {}))] for name in record}
    if {"question", "choices", "answer"} <= columns:
        return "multiple_choice"
    if any(set(names) <= columns for names in PAIR_COLUMNS):
        return "minimal_pairs"
    raise UserError(
        f"task_file = {str(path)!r}: what is to be done with it? Say {', '.join(f'{kind}={path}' for kind in KINDS)}"
    )


def _read_texts(path: Path) -> list[tuple[str, str]]:
    rows = [(f"{path}, text {number}", str(text)) for number, text in enumerate(read_file(path), 1)]
    return [(where, text) for where, text in rows if text.strip()]


def _split_last(text: str, where: str) -> dict[str, Any]:
    """Cut off the last word, as LAMBADA does (Paperno et al. 2016, arXiv 1606.06031)."""
    context, *word = text.rsplit(maxsplit=1)
    if not word:
        raise UserError(f"{where}: {text!r} is one word; the last one is to be predicted from those before it")
    return {"context": context, "word": f" {word[0]}"}


def _take_question(record: dict[str, Any], where: str) -> dict[str, Any]:
    question, choices, answer = (take_value(record, name, where) for name in ("question", "choices", "answer"))
    _check_text(question, "question", where)
    if not isinstance(choices, list) or len(choices) < 2:
        raise UserError(f"{where}: choices = {choices!r} must be a list of two texts or more")
    for choice in choices:
        _check_text(choice, "choices", where)
    if isinstance(answer, str) and choices.count(answer) == 1:
        answer = choices.index(answer)
    if type(answer) is not int or not 0 <= answer < len(choices):
        said = f"{where}: answer = {answer!r} must be a number from 0 to {len(choices) - 1}"
        raise UserError(f"{said}, or one of the choices, word for word")
    return {"question": question, "choices": choices, "answer": answer}


def _take_pair(record: dict[str, Any], where: str) -> dict[str, Any]:
    names = PAIR_COLUMNS[0] if "good" in record else PAIR_COLUMNS[1]
    if not set(names) & set(record):
        names = PAIR_COLUMNS[0]
    sentences = [take_value(record, name, where) for name in names]
    for name, sentence in zip(names, sentences, strict=True):
        _check_text(sentence, name, where)
    if sentences[0] == sentences[1]:
        raise UserError(f"{where}: {names[0]} and {names[1]} are the same sentence, {sentences[0]!r}")
    return {"sentences": sentences}


def _check_text(value: Any, name: str, where: str) -> None:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: {name} = {value!r} is no text")
