"""How well cosines of sentence vectors agree with people, and how the vectors lie on the sphere.

Shapes: N sentences or pairs, B a block of them, D width.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from turncoder.data.records import read_records
from turncoder.errors import UserError
from turncoder.evaluate.retrieval import rank_answers, rank_vectors, scan_bm25, score_ranks, weigh_words

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = [
    "Sts",
    "correlate_ranks",
    "encode_columns",
    "measure_alignment",
    "measure_uniformity",
    "read_sts",
    "score_columns",
    "score_columns_words",
    "score_pairs_words",
    "score_sts",
    "score_sts_words",
]

FEWEST = 10
BLOCK = 256  # rows whose distances are held at a time


@dataclass(frozen=True)
class Sts:
    """Semantic textual similarity: ``first[i]`` and ``second[i]`` mean the same to the degree ``score_N[i]``."""

    first: list[str]
    second: list[str]
    score_N: np.ndarray


def read_sts(path: str | Path) -> Sts:
    """Read scored pairs of sentences.

    Parameters
    ----------
    path
        CSV, TSV, JSONL or Parquet, each also ``.gz``, with the columns ``sentence1``, ``sentence2`` and ``score``, as
        GLUE's and mteb's STS-B have them.

    Returns
    -------
    Sts
        Float64 scores, in whatever unit they are: only their order counts.

    Raises
    ------
    UserError
        What `read_records` refuses; a sentence that is empty or no text; a score that is no number; fewer than ten
        pairs; one score for all of them.
    """
    first, second, scores = [], [], []
    for where, record in read_records(Path(path).expanduser()):
        if absent := [name for name in ("sentence1", "sentence2", "score") if name not in record]:
            raise UserError(f"{where}: no column {absent[0]!r}; there are {', '.join(record)}")
        one, other, score = record["sentence1"], record["sentence2"], record["score"]
        for name, text in (("sentence1", one), ("sentence2", other)):
            if not isinstance(text, str) or not text.strip():
                raise UserError(f"{where}: {name} = {text!r} is no sentence; give it a text, or drop the row")
        first.append(one)
        second.append(other)
        scores.append(_read_score(score, where))
    if len(scores) < FEWEST:
        raise UserError(f"{path}: {len(scores)} pairs are too few for a rank correlation; give {FEWEST} or more")
    if len(set(scores)) == 1:
        raise UserError(f"{path}: score = {scores[0]:g} in all rows; a rank correlation needs different ones")
    return Sts(first, second, np.array(scores))


def _read_score(value: Any, where: str) -> float:
    try:
        score = float(value)
    except (TypeError, ValueError):
        score = math.nan
    if isinstance(value, bool) or not math.isfinite(score):
        raise UserError(f"{where}: score = {value!r} is no number; write it like 3.8, or drop the row")
    return score


def correlate_ranks(values_N: np.ndarray, score_N: np.ndarray) -> float:
    """Give Spearman's rank correlation; 0 where all values are the same, which order nothing."""
    from scipy.stats import spearmanr

    if np.ptp(values_N) == 0:
        return 0.0
    return float(spearmanr(values_N, score_N).statistic)


def score_sts(encoder: "SentenceTransformer", sts: Sts, **options: Any) -> float:
    """Correlate the cosines of an encoder's vectors with the scores that people gave.

    Spearman's correlation over all pairs at once, as Gao et al. 2021 (arXiv 2104.08821), appendix B, advise.

    Parameters
    ----------
    encoder
        From `turncoder.load_encoder`, or any other `SentenceTransformer`.
    sts
        From `read_sts`.
    **options
        ``prompt``, ``prompt_name``, ``batch_tokens``, for both sides, as for `turncoder.encode.texts.BatchEncoder`.

    Returns
    -------
    float
        Between -1 and 1; 0 where all cosines are the same.
    """
    from turncoder.encode.texts import encode_texts

    first_ND, second_ND = np.split(encode_texts(encoder, sts.first + sts.second, normalize=True, **options), 2)
    return correlate_ranks(np.sum(first_ND * second_ND, axis=1), sts.score_N)


def score_sts_words(sts: Sts) -> dict[str, float]:
    """Correlate what words alone say with the scores that people gave: what an encoder has to beat.

    Returns
    -------
    dict
        Spearman's correlation of what `score_pairs_words` gives, by its names.
    """
    pairs = score_pairs_words(sts.first, sts.second)
    return {name: correlate_ranks(value_N, sts.score_N) for name, value_N in pairs.items()}


def score_pairs_words(first: Sequence[str], second: Sequence[str]) -> dict[str, np.ndarray]:
    """Score the likeness of pairs of sentences by words alone.

    Returns
    -------
    dict
        ``tfidf`` (N,), the cosine of TF-IDF vectors, and ``bm25`` (N,), the mean of a pair's BM25 scores with either
        side as the query; word frequencies are those of all sentences given.
    """
    first_NW, second_NW = weigh_words(first, second)
    rows = {text: row for row, text in enumerate(dict.fromkeys([*first, *second]))}
    bm25_2N = [
        [scores_N[rows[text]] for text, scores_N in zip(texts, scan_bm25(queries, list(rows)), strict=True)]
        for queries, texts in ((first, second), (second, first))
    ]
    cosine_N = np.asarray(first_NW.multiply(second_NW).sum(axis=1)).ravel()
    return {"tfidf": cosine_N, "bm25": np.mean(bm25_2N, axis=0)}


def encode_columns(
    encoder: "SentenceTransformer",
    columns: Mapping[str, Sequence[str]],
    prompts: Mapping[str, str | None],
    **options: Any,
) -> dict[str, np.ndarray]:
    """Encode ``anchor``, ``positive`` and any ``negative_1``, ...

    Parameters
    ----------
    encoder
        From `turncoder.load_encoder`, or any other `SentenceTransformer`.
    columns
        As many texts in each.
    prompts
        What stands before the texts of a column.
    **options
        As for `turncoder.encode.texts.encode_texts`.

    Returns
    -------
    dict
        Vectors [N, D] of length 1, by the names of their columns.
    """
    from turncoder.encode.texts import encode_texts

    return {
        name: encode_texts(encoder, texts, prompt=prompts.get(name), normalize=True, **options)
        for name, texts in columns.items()
    }


def score_columns(vectors: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Score how anchors find their positives among the positives and negatives of all rows, by cosine.

    Parameters
    ----------
    vectors
        From `encode_columns`.

    Returns
    -------
    dict
        ``mrr@10``, ``recall@1``; with negatives also ``triplet_accuracy``, the share of anchors whose positive is
        nearer than their first negative (a tie is not).
    """
    anchors_ND = vectors["anchor"]
    candidates_MD = np.concatenate([vectors_ND for name, vectors_ND in vectors.items() if name != "anchor"])
    found = score_ranks(rank_vectors(anchors_ND, candidates_MD))
    scores = {name: found[name] for name in ("mrr@10", "recall@1")}
    if "negative_1" in vectors:
        nearer_N = np.sum(anchors_ND * vectors["positive"], 1) > np.sum(anchors_ND * vectors["negative_1"], 1)
        scores["triplet_accuracy"] = float(nearer_N.mean())
    return scores


def score_columns_words(
    columns: Mapping[str, Sequence[str]], score: Callable[[Sequence[str], Sequence[str]], np.ndarray]
) -> dict[str, float]:
    """Score words alone as `score_columns` scores vectors: with `score_bm25` or `score_tfidf` of retrieval."""
    others = [name for name in columns if name != "anchor"]
    score_NM = score(columns["anchor"], [text for name in others for text in columns[name]])
    found = score_ranks(rank_answers(score_NM))
    scores = {name: found[name] for name in ("mrr@10", "recall@1")}
    if "negative_1" in others:
        rows_N = np.arange(len(score_NM))
        negative_N = score_NM[rows_N, len(rows_N) * others.index("negative_1") + rows_N]
        scores["triplet_accuracy"] = float(np.mean(score_NM[rows_N, rows_N] > negative_N))
    return scores


def measure_alignment(vectors_ND: np.ndarray, others_ND: np.ndarray, alpha: float = 2.0) -> float:
    """Measure how close the two vectors of each positive pair are: the mean of ``|x - y| ** alpha``, lower is closer.

    Wang & Isola 2020 (arXiv 2005.10242), section 4.1.1.

    Parameters
    ----------
    vectors_ND, others_ND
        Row i of both is a pair; scaled to length 1 here.
    alpha
        The paper's.

    Returns
    -------
    float
        From 0 to 4 (``alpha`` 2).

    Raises
    ------
    UserError
        No vectors, or different shapes.
    """
    if np.shape(vectors_ND) != np.shape(others_ND) or not len(vectors_ND):
        raise UserError(f"vectors {np.shape(vectors_ND)} and others {np.shape(others_ND)}: rows have to be pairs")
    distance_N = np.linalg.norm(_normalize(vectors_ND) - _normalize(others_ND), axis=1)
    return float(np.mean(distance_N**alpha, dtype=np.float64))


def measure_uniformity(vectors_ND: np.ndarray, t: float = 2.0) -> float:
    """Measure how evenly vectors fill the sphere: the log of the mean of ``exp(-t |x - y| ** 2)``, lower is more even.

    Wang & Isola 2020 (arXiv 2005.10242), section 4.1.2; the mean is over all pairs of different rows.

    Parameters
    ----------
    vectors_ND
        Scaled to length 1 here; a block of distances is held at a time, not all of them.
    t
        The paper's.

    Returns
    -------
    float
        From about ``-2 t`` (even, in many dimensions) to 0 (all the same).

    Raises
    ------
    UserError
        Fewer than two vectors.
    """
    count = len(vectors_ND)
    if count < 2:
        raise UserError(f"{count} vectors make no pair; uniformity needs two or more")
    unit_ND = _normalize(vectors_ND)
    squared_N = np.sum(unit_ND * unit_ND, axis=1)
    total = 0.0
    for start in range(0, count, BLOCK):
        rows = slice(start, start + BLOCK)
        distance_BN = squared_N[rows, None] + squared_N[start:] - 2 * (unit_ND[rows] @ unit_ND[start:].T)
        potential_BN = np.exp(-t * np.maximum(distance_BN, 0))
        total += float(np.triu(potential_BN, 1).sum(dtype=np.float64))  # each pair once
    return math.log(total / (count * (count - 1) / 2))


def _normalize(vectors_ND: np.ndarray) -> np.ndarray:
    vectors_ND = np.asarray(vectors_ND)
    vectors_ND = vectors_ND.astype(np.result_type(vectors_ND.dtype, np.float32), copy=False)
    length_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return vectors_ND / np.where(length_N1 > 0, length_N1, 1)
