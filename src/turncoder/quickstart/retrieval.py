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
    "build_encoder",
    "compare_ranks",
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


def build_encoder(folder: str, *, bidirectional: bool, max_length: int, random: bool = False) -> "SentenceTransformer":
    """Mean pooling over a model as it lies in ``folder``, opened by sentence-transformers.

    Parameters
    ----------
    folder
        A decoder's folder or hub id.
    bidirectional
        Whether attention is turned, and proven, with no training.
    random
        Take the architecture and leave the weights at their random initialisation.
    max_length
        Tokens after which a text is cut.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    from turncoder.model.attention import make_bidirectional

    transformer = Transformer(folder, max_seq_length=max_length, model_kwargs={"dtype": "float32"})
    if random:
        network = transformer.auto_model
        torch.manual_seed(0)
        network.load_state_dict(type(network)(network.config).state_dict())
    if bidirectional:
        make_bidirectional(transformer.auto_model)
    tokenizer = transformer.tokenizer
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    tokenizer.padding_side = "right"
    return SentenceTransformer(modules=[transformer, Pooling(transformer.get_embedding_dimension())], device="cpu")


def rank_encoded(encoder: "SentenceTransformer", pairs: Pairs) -> np.ndarray:
    """Rank documents by the cosine of an encoder's vectors; see `rank_answers`."""
    queries_QD = encoder.encode(pairs.queries, normalize_embeddings=True, show_progress_bar=False)
    documents_ND = encoder.encode(pairs.documents, normalize_embeddings=True, show_progress_bar=False)
    return rank_answers(np.asarray(queries_QD) @ np.asarray(documents_ND).T)


def nearest(encoder: "SentenceTransformer", sentences: Sequence[str], chosen: Sequence[int]) -> list[tuple[str, float]]:
    """Return the nearest other sentence, and its cosine, of each chosen one."""
    vectors_ND = np.asarray(encoder.encode(list(sentences), normalize_embeddings=True, show_progress_bar=False))
    cosine_QN = vectors_ND[list(chosen)] @ vectors_ND.T
    cosine_QN[np.arange(len(chosen)), list(chosen)] = -np.inf
    best_Q = cosine_QN.argmax(axis=1)
    return [(sentences[best], float(cosine_N[best])) for best, cosine_N in zip(best_Q, cosine_QN, strict=True)]
