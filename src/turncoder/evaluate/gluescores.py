"""What is predicted of a text, one of some classes or a number, and how well: the metrics of GLUE.

In the names of arrays: N rows, C classes (1: a number).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from turncoder.errors import UserError
from turncoder.evaluate.gluedata import Examples
from turncoder.evaluate.gluetasks import POSITIVE
from turncoder.evaluate.sentences import correlate_ranks

__all__ = ["Target", "balance", "score"]


@dataclass(frozen=True)
class Target:
    """What is predicted.

    Attributes
    ----------
    names
        Of the classes, sorted; none: a number.
    mean, std
        Of the numbers in training: what is learnt is their distance from the mean, in standard deviations, which leaves
        correlations as they are.
    """

    names: tuple[str, ...] = ()
    mean: float = 0.0
    std: float = 1.0

    @classmethod
    def collect(cls, examples: Examples) -> Target:
        """Find the classes, or the spread of the numbers, in training rows; raises UserError."""
        if not isinstance(examples.gold[0], float):
            return cls(tuple(sorted(map(str, set(examples.gold)))))
        numbers_N = np.array(examples.gold)
        if np.ptp(numbers_N) == 0:
            raise UserError(f"{examples.where}: all {len(examples):,} rows have the number {numbers_N[0]:g}")
        return cls(mean=float(numbers_N.mean()), std=float(numbers_N.std()))

    @property
    def width(self) -> int:
        """How many outputs a head has."""
        return len(self.names) or 1

    def encode(self, gold: Sequence[str] | Sequence[float]) -> np.ndarray:
        """Give labels as they are learnt: int64 [N] of classes, float32 [N] of numbers."""
        if not self.names:
            return ((np.array(gold, dtype=np.float64) - self.mean) / self.std).astype(np.float32)
        numbers = {name: number for number, name in enumerate(self.names)}
        return np.array([numbers[str(label)] for label in gold], dtype=np.int64)

    def decode(self, logits_NC: np.ndarray) -> list[str] | list[float]:
        """Give what a head's outputs say."""
        if not self.names:
            return (logits_NC[:, 0].astype(np.float64) * self.std + self.mean).tolist()
        return [self.names[number] for number in logits_NC.argmax(axis=1)]


def balance(labels_N: np.ndarray, classes: int) -> np.ndarray:
    """Give a weight to each class, rows / (classes x its rows), float32 [C]: over all rows their mean is 1."""
    counts_C = np.bincount(labels_N, minlength=classes)
    return (len(labels_N) / (classes * counts_C)).astype(np.float32)


def score(metrics: Sequence[str], gold: Sequence[Any], predicted: Sequence[Any]) -> dict[str, float]:
    """Score predictions.

    Parameters
    ----------
    metrics
        ``accuracy``; ``f1`` of the class 1 (equivalent, duplicate); ``matthews``; ``pearson``; ``spearman``.
    gold, predicted
        As many names of classes, or numbers.

    Returns
    -------
    dict
        Each from -1 or 0 to 1; a correlation with what is the same for all rows is 0.
    """
    return {name: METRICS[name](gold, predicted) for name in metrics}


def _measure_accuracy(gold: Sequence[Any], predicted: Sequence[Any]) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(gold, predicted))


def _measure_f1(gold: Sequence[Any], predicted: Sequence[Any]) -> float:
    from sklearn.metrics import f1_score

    sides = ([label in POSITIVE for label in labels] for labels in (gold, predicted))
    return float(f1_score(*sides, zero_division=0))


def _measure_matthews(gold: Sequence[Any], predicted: Sequence[Any]) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(gold, predicted)) if len({*gold, *predicted}) > 1 else 0.0


def _measure_pearson(gold: Sequence[Any], predicted: Sequence[Any]) -> float:
    from scipy.stats import pearsonr

    return 0.0 if np.ptp(predicted) == 0 or np.ptp(gold) == 0 else float(pearsonr(predicted, gold).statistic)


def _measure_spearman(gold: Sequence[Any], predicted: Sequence[Any]) -> float:
    gold_N = np.array(gold)
    return 0.0 if np.ptp(gold_N) == 0 else correlate_ranks(np.array(predicted), gold_N)


METRICS: dict[str, Callable[[Sequence[Any], Sequence[Any]], float]] = {
    "accuracy": _measure_accuracy,
    "f1": _measure_f1,
    "matthews": _measure_matthews,
    "pearson": _measure_pearson,
    "spearman": _measure_spearman,
}
