"""How sure a difference between two runs on the same sentences is.

Shapes: S sentences, K classes (1 where all are pooled), B resampled test files.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from turncoder.errors import UserError
from turncoder.evaluate.words import tally

__all__ = ["bootstrap"]

BLOCK = 100  # resampled test files at a time
Metric = Literal["token_accuracy", "span_f1", "macro_f1"]


def bootstrap(
    gold: Sequence[Sequence[str]],
    first: Sequence[Sequence[str]],
    second: Sequence[Sequence[str]],
    *,
    metric: Metric = "token_accuracy",
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """Compare two predictions for the same sentences by a paired bootstrap over sentences.

    Sentences are drawn with replacement, the same ones for both. The p-value is two-sided: how often the difference in
    a sample strays from the one observed by as much as that strays from 0 (Berg-Kirkpatrick et al. 2012, section 2),
    the observed one counted as a sample. It says nothing about other seeds of training.

    Parameters
    ----------
    gold, first, second
        Labels of each sentence; see `tally`.
    metric
        See `score`.
    samples
        Test files to draw.
    seed
        Of the draws.

    Returns
    -------
    dict
        ``first``, ``second``, ``difference`` (second minus first), ``low`` and ``high`` (95 % interval, percentiles),
        ``p``.

    Raises
    ------
    UserError
        No word has a gold label.
    """
    if not any(any(tags) for tags in gold):
        raise UserError("no word of the test file has a label of this task; give another file or task")
    counted = [_count(gold, predicted, metric) for predicted in (first, second)]
    once_1S = np.ones((1, len(gold)))
    observed = [float(_pool(once_1S @ hits_SK, once_1S @ sizes_SK)[0]) for hits_SK, sizes_SK in counted]
    rng = np.random.default_rng(seed)
    drawn = []
    for start in range(0, samples, BLOCK):
        often_BS = rng.multinomial(len(gold), np.full(len(gold), 1 / len(gold)), size=min(BLOCK, samples - start))
        scores = [_pool(often_BS @ hits_SK, often_BS @ sizes_SK) for hits_SK, sizes_SK in counted]
        drawn.append(scores[1] - scores[0])
    difference_B = np.concatenate(drawn)
    difference = observed[1] - observed[0]
    low, high = np.percentile(difference_B, (2.5, 97.5))
    strayed = int(np.sum(np.abs(difference_B - difference) >= abs(difference) - 1e-12))
    return {
        "first": observed[0],
        "second": observed[1],
        "difference": difference,
        "low": float(low),
        "high": float(high),
        "p": (strayed + 1) / (samples + 1),
    }


def _count(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], metric: Metric) -> tuple[Any, Any]:
    """Count hits (S, K) and what they are a share of (S, K), sparse; for an F1, half of gold and predicted together."""
    from scipy.sparse import csr_array

    places: dict[str, int] = {}
    hits: list[tuple[float, int, int]] = []
    sizes: list[tuple[float, int, int]] = []
    for row, (right, said) in enumerate(zip(gold, predicted, strict=True)):
        one = tally([right], [said], metric == "span_f1")
        if metric == "span_f1":
            assert one.spans is not None
            for (_, side), count in one.spans.items():
                (hits if side == "correct" else sizes).append((count if side == "correct" else count / 2, row, 0))
            continue
        for pair, count in one.confusion.items():
            columns = [places.setdefault(name if metric == "macro_f1" else "", len(places)) for name in pair]
            sizes += [(count / 2, row, column) for column in columns]
            if pair[0] == pair[1]:
                hits.append((count, row, columns[0]))
    shape = len(gold), max(1, len(places))

    def fill(entries: list[tuple[float, int, int]]) -> Any:
        values, rows, columns = (np.array(one) for one in zip(*entries, strict=True)) if entries else ([], [], [])
        return csr_array((values, (rows, columns)), shape=shape, dtype=np.float64)

    return fill(hits), fill(sizes)


def _pool(hits_BK: np.ndarray, sizes_BK: np.ndarray) -> np.ndarray:
    """Give the mean (B,) over the classes that occur of the share of hits; 0 where none occurs."""
    share_BK = np.divide(hits_BK, sizes_BK, out=np.zeros(sizes_BK.shape), where=sizes_BK > 0)
    return share_BK.sum(axis=1) / np.maximum(1, (sizes_BK > 0).sum(axis=1))
