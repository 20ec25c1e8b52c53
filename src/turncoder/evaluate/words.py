"""Scores of word labels: token accuracy, F1 over classes, chunks as conlleval counts them.

A sentence is a sequence of label names. All scores follow from integer sums (`Tally`).
"""

import statistics
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from turncoder.data.labels import IGNORED
from turncoder.errors import UserError

__all__ = [
    "Tally",
    "find_spans",
    "score",
    "score_chunks",
    "summarise",
    "tally",
]

INSIDE = frozenset("BIES")
SIDES = ("correct", "predicted", "gold")


def find_spans(tags: Sequence[str]) -> list[tuple[int, int, str]]:
    """Find the chunks of a sentence, as conlleval of the CoNLL-2003 shared task does.

    An ``I-`` after ``O``, or after another type, begins a chunk, so that IOB1 and IOB2 are both read. ``E-`` and
    ``S-`` end theirs. What has none of these prefixes lies outside.

    Parameters
    ----------
    tags
        Of one sentence, as ``B-PER``.

    Returns
    -------
    list of tuple
        First word, word after the last, type.
    """
    spans: list[tuple[int, int, str]] = []
    opened: tuple[int, str] | None = None
    before = "O"
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, kind = tag.partition("-")
        inside = prefix in INSIDE
        begins = inside and (opened is None or prefix in "BS" or before in "ES" or kind != opened[1])
        if opened is not None and (begins or not inside):
            spans.append((opened[0], place, opened[1]))
            opened = None
        if begins:
            opened = place, kind
        before = prefix
    return spans


@dataclass(frozen=True)
class Tally:
    """Counts from which every score follows.

    Attributes
    ----------
    confusion
        Words by gold and predicted label.
    spans
        Chunks by type and ``gold``, ``predicted`` or ``correct``; None where labels are no chunks.
    unseen
        Words by gold label, of labels that training did not have.
    """

    confusion: Counter[tuple[str, str]] = field(default_factory=Counter)
    spans: Counter[tuple[str, str]] | None = None
    unseen: Counter[str] = field(default_factory=Counter)

    @property
    def words_scored(self) -> int:
        """Count the words that have a gold label."""
        return self.confusion.total()


def tally(
    gold: Iterable[Sequence[str]],
    predicted: Iterable[Sequence[str]],
    spans: bool,
    *,
    known: Collection[str] | None = None,
) -> Tally:
    """Count what was predicted for each gold label.

    Parameters
    ----------
    gold
        Labels of each sentence; a word whose label is "" is not scored, and lies outside every chunk.
    predicted
        As many.
    spans
        Whether labels are chunks (``B-PER``), which are then counted too.
    known
        Labels that training had; the gold labels beyond are counted in `Tally.unseen`.
    """
    confusion: Counter[tuple[str, str]] = Counter()
    chunks: Counter[tuple[str, str]] = Counter()
    for gold_tags, predicted_tags in zip(gold, predicted, strict=True):
        pairs = [(right, said) for right, said in zip(gold_tags, predicted_tags, strict=True) if right]
        confusion.update(pairs)
        if spans:
            # an unlabelled word is outside for both, so that it costs neither side a chunk
            said_tags = [said if right else "" for right, said in zip(gold_tags, predicted_tags, strict=True)]
            right_spans, said_spans = set(find_spans(gold_tags)), set(find_spans(said_tags))
            sides = {"gold": right_spans, "predicted": said_spans, "correct": right_spans & said_spans}
            chunks.update((kind, side) for side, found in sides.items() for _, _, kind in found)
    unseen: Counter[str] = Counter()
    if known is not None:
        for (right, _), count in confusion.items():
            if right not in known:
                unseen[right] += count
    return Tally(confusion, chunks if spans else None, unseen)


def score(counted: Tally) -> dict[str, Any]:
    """Give the scores of a tally, between 0 and 1.

    Returns
    -------
    dict
        ``token_accuracy`` (what LLM2Vec calls precision); ``macro_f1`` and ``weighted_f1`` over the classes that occur
        in gold or prediction, as scikit-learn defines them; ``per_class``: ``precision``, ``recall``, ``f1`` and
        ``support`` of each; ``words_scored``. Of chunks also ``span_precision``, ``span_recall``, ``span_f1`` over all
        of them, as conlleval defines them, and ``per_type``. A ratio without a denominator is 0.

    Raises
    ------
    UserError
        No word has a gold label.
    """
    if not counted.words_scored:
        raise UserError("no word of the test file has a label of this task; give another file or task")
    gold: Counter[str] = Counter()
    predicted: Counter[str] = Counter()
    for (right, said), count in counted.confusion.items():
        gold[right] += count
        predicted[said] += count
    correct = {name: counted.confusion[name, name] for name in gold | predicted}
    per_class = {name: _rate(correct[name], predicted[name], gold[name]) for name in sorted(correct)}
    rates = per_class.values()
    scores: dict[str, Any] = {
        "token_accuracy": sum(correct.values()) / counted.words_scored,
        "macro_f1": statistics.fmean(rate["f1"] for rate in rates),
        "weighted_f1": sum(rate["f1"] * rate["support"] for rate in rates) / counted.words_scored,
    }
    if counted.spans is not None:
        kinds = sorted({kind for kind, _ in counted.spans})
        per_type = {kind: _rate(*(counted.spans[kind, side] for side in SIDES)) for kind in kinds}
        pooled = _rate(*(sum(counted.spans[kind, side] for kind in kinds) for side in SIDES))
        scores |= {f"span_{name}": pooled[name] for name in ("precision", "recall", "f1")}
        scores["per_type"] = per_type
    return {**scores, "per_class": per_class, "words_scored": counted.words_scored}


def _rate(correct: int, predicted: int, gold: int) -> dict[str, Any]:
    return {
        "precision": correct / predicted if predicted else 0.0,
        "recall": correct / gold if gold else 0.0,
        "f1": 2 * correct / (predicted + gold) if predicted + gold else 0.0,
        "support": gold,
    }


def score_chunks(guess_NM: np.ndarray, gold_M: np.ndarray, names: Sequence[str], first_M: np.ndarray) -> np.ndarray:
    """Give the F1 of chunks, as `score` does, of many predictions at once.

    Parameters
    ----------
    guess_NM
        Predictions N of all words, as numbers of labels.
    gold_M
        The gold labels; negative: UNSEEN or IGNORED (`turncoder.data.labels`).
    names
        Labels in IOB2.
    first_M
        Whether a word is the first of its sentence.

    Returns
    -------
    numpy.ndarray
        float64 [N].

    Notes
    -----
    A gold label without a number is taken for a word outside every chunk. Chunks of a type that training did not have
    are missed by everybody, so that numbers are a little higher than those of `score`, and their order is the same.
    """
    kinds = {name[2:]: number for number, name in enumerate(names) if name != "O"}
    kind_C = np.array([*(-1 if name == "O" else kinds[name[2:]] for name in names), -1])
    begins_C = np.array([*(name[0] == "B" for name in names), False])
    guess_NM = np.where(gold_M == IGNORED, -1, guess_NM)
    begin_M, end_M, kind_M = _find_chunks(np.where(gold_M < 0, -1, gold_M)[None], kind_C, begins_C, first_M)
    begin_NM, end_NM, kind_NM = _find_chunks(guess_NM, kind_C, begins_C, first_M)
    right_N = (begin_NM & begin_M & (end_NM == end_M) & (kind_NM == kind_M)).sum(axis=1)
    return 2 * right_N / np.maximum(begin_NM.sum(axis=1) + begin_M.sum(), 1)


def _find_chunks(
    labels_NM: np.ndarray, kind_C: np.ndarray, begins_C: np.ndarray, first_M: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Say where chunks begin, where the one that a word is in ends, and its type; label -1 lies outside."""
    kind_NM, begins_NM = kind_C[labels_NM], begins_C[labels_NM]
    before_NM = np.pad(kind_NM, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    goes_on_NM = (kind_NM >= 0) & ~begins_NM & (kind_NM == before_NM) & ~first_M
    words = labels_NM.shape[1]
    stop_NM = np.where(goes_on_NM, words, np.arange(words))
    after_NM = np.pad(stop_NM, ((0, 0), (0, 1)), constant_values=words)[:, 1:]
    return (kind_NM >= 0) & ~goes_on_NM, np.minimum.accumulate(after_NM[:, ::-1], axis=1)[:, ::-1], kind_NM


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Give mean and standard deviation over seeds of every number that all of them have.

    Parameters
    ----------
    rows
        The scores of each seed; dicts in them are gone through too.

    Returns
    -------
    dict
        ``mean`` and ``std``, each shaped like a row; the standard deviation (ddof = 1) of a single seed is None.
    """
    mean: dict[str, Any] = {}
    std: dict[str, Any] = {}
    for name in rows[0] if rows else ():
        values: list[Any] = [row.get(name) for row in rows]
        if all(isinstance(value, dict) for value in values):
            inner = summarise(values)
            mean[name], std[name] = inner["mean"], inner["std"]
        elif all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            mean[name] = statistics.fmean(values)
            std[name] = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": mean, "std": std}
