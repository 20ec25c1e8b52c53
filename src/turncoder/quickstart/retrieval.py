"""Does an encoder find the rest of a text from its first sentence? Labels that every text carries, at no cost.

Shapes: Q queries, N documents (here Q = N, document i belongs to query i), D width.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = [
    "Pairs",
    "compare_ranks",
    "forget_weights",
    "nearest",
    "rank_answers",
    "rank_encoded",
    "score_bm25",
    "score_ranks",
    "split_pairs",
]

SENTENCE_END = re.compile(r"(?<!\b[A-Za-z])(?<!e\.g)(?<!i\.e)(?<!etc)(?<!vs)[.!?][\"')\]]*\s+(?=[A-Z\"'(])")
BM25_K1, BM25_B = 1.2, 0.75  # the defaults of Lucene; Robertson & Zaragoza 2009, equation 3.15


@dataclass(frozen=True)
class Pairs:
    """First sentences and what follows them, ``queries[i]`` belonging to ``documents[i]``."""

    queries: list[str]
    documents: list[str]


def split_pairs(texts: Sequence[str], *, limit: int) -> Pairs:
    """Split texts into first sentence and rest; each sentence and each rest occurs once.

    A first sentence has 4 to 40 words and a rest 12 or more, so that both say something.
    """
    pairs: dict[str, str] = {}
    for text in texts:
        end = SENTENCE_END.search(text)
        if end is None:
            continue
        query, document = text[: end.end()].strip(), text[end.end() :].strip()
        if 4 <= len(query.split()) <= 40 and len(document.split()) >= 12:
            pairs.setdefault(query, document)
    unique = {document: query for query, document in pairs.items()}
    kept = list(unique.items())[:limit]
    return Pairs([query for _, query in kept], [document for document, _ in kept])


def rank_answers(similarity_QN: np.ndarray) -> np.ndarray:
    """Return the rank (Q,) of document i for query i, from 1; documents that tie with it are counted before it."""
    own_Q1 = np.diagonal(similarity_QN)[:, None]
    return (similarity_QN >= own_Q1).sum(axis=1)  # the right document ties with itself


def score_ranks(rank_Q: np.ndarray) -> dict[str, float]:
    """Give ``mrr@10``, ``recall@1`` and ``ndcg@10``, between 0 and 1, where one document answers each query."""
    found_Q = rank_Q <= 10
    return {
        "mrr@10": float(np.mean(found_Q / rank_Q)),
        "recall@1": float(np.mean(rank_Q == 1)),
        "ndcg@10": float(np.mean(found_Q / np.log2(rank_Q + 1))),
    }


def compare_ranks(rank_Q: np.ndarray, other_Q: np.ndarray) -> tuple[float, float]:
    """Give the difference in MRR@10 between two rankings of the same queries, and its standard error (paired)."""
    difference_Q = (rank_Q <= 10) / rank_Q - (other_Q <= 10) / other_Q
    return float(difference_Q.mean()), float(difference_Q.std(ddof=1) / math.sqrt(len(difference_Q)))


def score_bm25(queries: Sequence[str], documents: Sequence[str]) -> np.ndarray:
    """Return BM25 scores (Q, N) of lower-cased words; idf is ``log(1 + (N - n + 0.5) / (n + 0.5))``, never negative."""
    counts = [Counter(re.findall(r"\w+", document.lower())) for document in documents]
    lengths_N = np.array([sum(count.values()) for count in counts], dtype=np.float64)
    norm_N = BM25_K1 * (1 - BM25_B + BM25_B * lengths_N / lengths_N.mean())
    postings: dict[str, tuple[list[int], list[int]]] = {}
    for row, count in enumerate(counts):
        for word, frequency in count.items():
            rows, frequencies = postings.setdefault(word, ([], []))
            rows.append(row)
            frequencies.append(frequency)
    scores_QN = np.zeros((len(queries), len(documents)))
    for query, scores_N in zip(queries, scores_QN, strict=True):
        for word in re.findall(r"\w+", query.lower()):
            if word in postings:
                rows, frequencies = postings[word]
                tf = np.array(frequencies, dtype=np.float64)
                idf = math.log(1 + (len(documents) - len(rows) + 0.5) / (len(rows) + 0.5))
                scores_N[rows] += idf * tf * (BM25_K1 + 1) / (tf + norm_N[rows])
    return scores_QN


def forget_weights(encoder: "SentenceTransformer") -> "SentenceTransformer":
    """Take the architecture of an encoder and leave its weights at their random initialisation."""
    import torch

    model = encoder.transformers_model
    assert model is not None
    torch.manual_seed(0)
    model.load_state_dict(type(model)(model.config).state_dict())
    return encoder


def rank_encoded(encoder: "SentenceTransformer", pairs: Pairs) -> np.ndarray:
    """Rank documents by the cosine of an encoder's vectors; see `rank_answers`."""
    from turncoder.encode import encode_texts

    queries_QD, documents_ND = (encode_texts(encoder, one, normalize=True) for one in (pairs.queries, pairs.documents))
    return rank_answers(queries_QD @ documents_ND.T)


def nearest(encoder: "SentenceTransformer", sentences: Sequence[str], chosen: Sequence[int]) -> list[tuple[str, float]]:
    """Return the nearest other sentence, and its cosine, of each chosen one."""
    from turncoder.encode import encode_texts

    vectors_ND = encode_texts(encoder, list(sentences), normalize=True)
    cosine_QN = vectors_ND[list(chosen)] @ vectors_ND.T
    cosine_QN[np.arange(len(chosen)), list(chosen)] = -np.inf
    best_Q = cosine_QN.argmax(axis=1)
    return [(sentences[best], float(cosine_N[best])) for best, cosine_N in zip(best_Q, cosine_QN, strict=True)]
