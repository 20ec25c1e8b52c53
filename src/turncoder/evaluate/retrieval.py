"""How well an encoder finds what belongs to a text: its rest from its first sentence, an answer, a translation.

Shapes: Q queries, N documents, D width. Document i belongs to query i; Q = N but where a block of queries is meant.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from turncoder.data.sentences import count_words, split_sentences, split_words
from turncoder.errors import UserError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = [
    "Pairs",
    "compare_ranks",
    "encode_pairs",
    "nearest",
    "rank_answers",
    "rank_vectors",
    "scan_bm25",
    "score_aligned",
    "score_bm25",
    "score_ranks",
    "score_tfidf",
    "split_pairs",
    "weigh_words",
]

BLOCK = 256  # queries whose similarities are held at a time
BM25_K1, BM25_B = 1.2, 0.75  # the defaults of Lucene; Robertson & Zaragoza 2009, equation 3.15


@dataclass(frozen=True)
class Pairs:
    """First sentences and what follows them, ``queries[i]`` belonging to ``documents[i]``."""

    queries: list[str]
    documents: list[str]


def split_pairs(texts: Sequence[str], *, limit: int) -> Pairs:
    """Split texts into first sentence and rest; each sentence and each rest occurs once.

    A first sentence has 4 to 40 words and a rest 12 or more, so that both say something; a Chinese or Japanese
    character counts as a word.

    Parameters
    ----------
    texts
        In any language that `split_sentences` knows.
    limit
        Pairs that are kept, the first ones.
    """
    pairs: dict[str, str] = {}
    for text in texts:
        query = next(iter(split_sentences(text)), "")
        document = text.strip()[len(query) :].strip()
        if 4 <= count_words(query) <= 40 and count_words(document) >= 12:
            pairs.setdefault(query, document)
    unique = {document: query for query, document in pairs.items()}
    kept = list(unique.items())[:limit]
    return Pairs([query for _, query in kept], [document for document, _ in kept])


def rank_answers(similarity_QN: np.ndarray, *, first: int = 0) -> np.ndarray:
    """Return the rank (Q,) of the document that belongs to each query, from 1; ties with it are counted before it.

    Parameters
    ----------
    similarity_QN
        Of a block of queries, or all of them, to all documents.
    first
        Number of the block's first query: document ``first + i`` belongs to row i.
    """
    rows_Q = np.arange(len(similarity_QN))
    own_Q1 = similarity_QN[rows_Q, first + rows_Q][:, None]
    return (similarity_QN >= own_Q1).sum(axis=1)  # the right document ties with itself


def rank_vectors(queries_QD: np.ndarray, documents_ND: np.ndarray) -> np.ndarray:
    """Return the ranks (Q,) by inner product, a block of queries at a time; see `rank_answers`."""
    starts = range(0, len(queries_QD), BLOCK)
    blocks = [rank_answers(queries_QD[i : i + BLOCK] @ documents_ND.T, first=i) for i in starts]
    return np.concatenate(blocks) if blocks else np.empty(0, dtype=np.int64)


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


def scan_bm25(queries: Sequence[str], documents: Sequence[str]) -> Iterator[np.ndarray]:
    """Yield the BM25 scores (N,) of the documents for each query, in float64; see `score_bm25`."""
    counts = [Counter(split_words(document)) for document in documents]
    lengths_N = np.array([sum(count.values()) for count in counts], dtype=np.float64)
    norm_N = BM25_K1 * (1 - BM25_B + BM25_B * lengths_N / max(1.0, lengths_N.sum()) * len(documents))
    postings: dict[str, tuple[list[int], list[int]]] = {}
    for row, count in enumerate(counts):
        for word, frequency in count.items():
            rows, frequencies = postings.setdefault(word, ([], []))
            rows.append(row)
            frequencies.append(frequency)
    weights: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for query in queries:
        scores_N = np.zeros(len(documents))
        for word in split_words(query):
            if word in postings and word not in weights:
                rows_n, tf_n = (np.array(one) for one in postings[word])
                idf = math.log(1 + (len(documents) - len(rows_n) + 0.5) / (len(rows_n) + 0.5))
                weights[word] = rows_n, idf * tf_n * (BM25_K1 + 1) / (tf_n + norm_N[rows_n])
            if word in weights:
                rows_n, weight_n = weights[word]
                scores_N[rows_n] += weight_n
        yield scores_N


def score_bm25(queries: Sequence[str], documents: Sequence[str]) -> np.ndarray:
    """Return the BM25 scores (Q, N) of lower-cased words, in float32.

    Robertson & Zaragoza 2009, equation 3.15, with Lucene's idf, ``log(1 + (N - n + 0.5) / (n + 0.5))``, which is never
    negative. The scores of 5,000 queries and documents take 100 MB; `scan_bm25` gives them a query at a time.
    """
    scores_QN = np.empty((len(queries), len(documents)), dtype=np.float32)
    for row, scores_N in enumerate(scan_bm25(queries, documents)):
        scores_QN[row] = scores_N
    return scores_QN


def weigh_words(texts: Sequence[str], *others: Sequence[str]) -> list[Any]:
    """Return a sparse TF-IDF matrix (N, words), rows of length 1, for each list of texts; the idf is that of all."""
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import TfidfVectorizer

    lists = (texts, *others)
    vectorizer = TfidfVectorizer(analyzer=split_words, dtype=np.float32)
    try:
        vectorizer.fit([text for one in lists for text in one])
    except ValueError:  # no text holds a word
        return [csr_matrix((len(one), 1), dtype=np.float32) for one in lists]
    return [vectorizer.transform(one) for one in lists]


def score_tfidf(queries: Sequence[str], documents: Sequence[str]) -> np.ndarray:
    """Return the cosines (Q, N) of TF-IDF vectors of lower-cased words (scikit-learn's defaults), in float32."""
    queries_QW, documents_NW = weigh_words(queries, documents)
    cosine_QN = np.empty((len(queries), len(documents)), dtype=np.float32)
    for i in range(0, len(queries), BLOCK):
        (queries_QW[i : i + BLOCK] @ documents_NW.T).toarray(out=cosine_QN[i : i + BLOCK])
    return cosine_QN


def encode_pairs(
    encoder: "SentenceTransformer",
    pairs: Pairs,
    *,
    query_prompt: str | None = None,
    document_prompt: str | None = None,
    **options: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """Encode queries, and what belongs to them, for `rank_vectors`.

    Parameters
    ----------
    encoder
        From `turncoder.load_encoder`, or any other `SentenceTransformer`.
    pairs
        Queries and what belongs to them.
    query_prompt, document_prompt
        Stand before each text of their side.
    **options
        ``prompt_name`` for both sides, ``batch_tokens``, as for `turncoder.encode.texts.BatchEncoder`.

    Returns
    -------
    tuple of numpy.ndarray
        Vectors of length 1 (Q, D), of queries and of documents.
    """
    from turncoder.encode.texts import encode_texts

    queries_QD, documents_QD = (
        encode_texts(encoder, texts, prompt=prompt, normalize=True, **options)
        for texts, prompt in ((pairs.queries, query_prompt), (pairs.documents, document_prompt))
    )
    return queries_QD, documents_QD


def score_aligned(
    encoder: "SentenceTransformer", first: Sequence[str], second: Sequence[str], **options: Any
) -> dict[str, float]:
    """Score how well line i of one text finds line i of the other, by cosine, as in Tatoeba.

    Artetxe & Schwenk 2019 (arXiv 1812.10464), section 4.3, give the error rate; this is the share that is right.

    Parameters
    ----------
    encoder
        From `turncoder.load_encoder`, or any other `SentenceTransformer`.
    first, second
        Parallel lines.
    **options
        As for `turncoder.encode.texts.encode_texts`.

    Returns
    -------
    dict
        ``recall@1_first_to_second`` and ``recall@1_second_to_first``, between 0 and 1. A line that occurs twice ties
        with itself and is not found.

    Raises
    ------
    UserError
        No lines, or not as many on both sides.
    """
    from turncoder.encode.texts import encode_texts

    if len(first) != len(second) or not len(first):
        raise UserError(f"{len(first)} and {len(second)} lines are not parallel; give the same number, line by line")
    first_ND, second_ND = (encode_texts(encoder, one, normalize=True, **options) for one in (first, second))
    return {
        "recall@1_first_to_second": float(np.mean(rank_vectors(first_ND, second_ND) == 1)),
        "recall@1_second_to_first": float(np.mean(rank_vectors(second_ND, first_ND) == 1)),
    }


def nearest(
    encoder: "SentenceTransformer", sentences: Sequence[str], chosen: Sequence[int], prompt: str | None = None
) -> list[tuple[str, float]]:
    """Return the nearest other sentence, and its cosine, of each chosen one; ``prompt`` stands before all of them."""
    from turncoder.encode.texts import encode_texts

    vectors_ND = encode_texts(encoder, list(sentences), prompt=prompt, normalize=True)
    cosine_QN = vectors_ND[list(chosen)] @ vectors_ND.T
    cosine_QN[np.arange(len(chosen)), list(chosen)] = -np.inf
    best_Q = cosine_QN.argmax(axis=1)
    return [(sentences[best], float(cosine_N[best])) for best, cosine_N in zip(best_Q, cosine_QN, strict=True)]
