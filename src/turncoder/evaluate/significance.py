"""How sure a difference between two runs on the same sentences is.

Shapes: S sentences, K classes (1 where all are pooled), N items, V scores that differ, B resampled test files.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from turncoder.errors import UserError
from turncoder.evaluate.words import tally

__all__ = ["Follows", "bootstrap", "bootstrap_items", "compare_seeds"]

BLOCK = 100  # resampled test files at a time
Metric = Literal["token_accuracy", "span_f1", "macro_f1"]
Follows = Literal["spearman", "average_precision"]


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
    return _judge(observed, np.concatenate(drawn))


def _judge(observed: Sequence[float], difference_B: np.ndarray) -> dict[str, float]:
    """Judge the difference of two scores by those of resampled test files."""
    difference = observed[1] - observed[0]
    low, high = np.percentile(difference_B, (2.5, 97.5))
    strayed = int(np.sum(np.abs(difference_B - difference) >= abs(difference) - 1e-12))
    return {
        "first": observed[0],
        "second": observed[1],
        "difference": difference,
        "low": float(low),
        "high": float(high),
        "p": (strayed + 1) / (len(difference_B) + 1),
    }


def bootstrap_items(
    first: Sequence[float],
    second: Sequence[float],
    *,
    gold: Sequence[float] | None = None,
    follows: Follows = "spearman",
    parts: Sequence[str] | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """Compare the scores that two models have on the same items, as `bootstrap` does.

    Parameters
    ----------
    first, second
        A score for each item, whose means are compared.
    gold
        What the scores ought to follow; how well they do is compared then.
    follows
        By which measure: Spearman's correlation, or the average precision, of which ``gold`` is 1 or 0.
    parts
        The part of the data that each item is of: items are drawn within each, and the mean over parts is compared.
    samples, seed
        As for `bootstrap`.

    Returns
    -------
    dict
        As of `bootstrap`.

    Raises
    ------
    UserError
        Not as many scores on both sides, or none.
    """
    score_2N = [np.asarray(one, dtype=np.float64) for one in (first, second)]
    count = len(score_2N[0])
    others = [one for one in (gold, parts) if one is not None]
    if not count or {len(one) for one in (*score_2N, *others)} != {count}:
        raise UserError(f"{count} and {len(score_2N[1])} scores are not of the same items; evaluate both again")
    rng = np.random.default_rng(seed)
    gold_N = None if gold is None else np.asarray(gold, dtype=np.float64)
    follow = _average_precision if follows == "average_precision" else _correlate
    part_N = np.unique(np.zeros(count) if parts is None else np.asarray(parts), return_inverse=True)[1]
    places = [np.flatnonzero(part_N == part) for part in range(part_N.max() + 1)]

    def score(item_BN: np.ndarray) -> list[np.ndarray]:
        return [one[item_BN].mean(axis=1) if gold_N is None else follow(one, gold_N, item_BN) for one in score_2N]

    observed = np.mean([score(place_N[None]) for place_N in places], axis=0)[:, 0]
    drawn = []
    for start in range(0, samples, BLOCK):
        rows = min(BLOCK, samples - start)
        found = [score(place_N[rng.integers(len(place_N), size=(rows, len(place_N)))]) for place_N in places]
        drawn.append(np.subtract(*np.mean(found, axis=0)[::-1]))
    return _judge([float(one) for one in observed], np.concatenate(drawn))


def _correlate(score_N: np.ndarray, gold_N: np.ndarray, item_BN: np.ndarray) -> np.ndarray:
    """Give Spearman's correlations (B,); 0 where one side is constant."""
    from scipy.stats import rankdata

    rank_BN, other_BN = (rankdata(one[item_BN], axis=-1) - (item_BN.shape[-1] + 1) / 2 for one in (score_N, gold_N))
    norm_B = np.sqrt((rank_BN**2).sum(axis=-1) * (other_BN**2).sum(axis=-1))
    return np.divide((rank_BN * other_BN).sum(axis=-1), norm_B, out=np.zeros(norm_B.shape), where=norm_B > 0)


def _average_precision(score_N: np.ndarray, gold_N: np.ndarray, item_BN: np.ndarray) -> np.ndarray:
    """Give the average precisions (B,); 0 where nothing is to be found. Items are counted by score (V), not sorted."""
    levels_V, level_N = np.unique(-score_N, return_inverse=True)
    shape = len(item_BN), len(levels_V)
    place_BN = level_N[item_BN] + shape[1] * np.arange(shape[0])[:, None]
    right_BV, count_BV = (
        np.bincount(place_BN.ravel(), weights, shape[0] * shape[1]).reshape(shape)
        for weights in (gold_N[item_BN].ravel(), None)
    )
    precision_BV = right_BV.cumsum(axis=1) / np.maximum(1, count_BV.cumsum(axis=1))
    return (precision_BV * right_BV).sum(axis=1) / np.maximum(1, right_BV.sum(axis=1))


def compare_seeds(first: tuple[float, float, int], second: tuple[float, float, int]) -> float:
    """Give the two-sided p-value of Welch's t-test between two means over seeds.

    Parameters
    ----------
    first, second
        Mean, standard deviation (ddof = 1) and number of seeds, two or more.
    """
    from scipy.stats import ttest_ind_from_stats

    if not first[1] and not second[1]:
        return float(first[0] == second[0])
    return float(ttest_ind_from_stats(*first, *second, equal_var=False).pvalue)


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
