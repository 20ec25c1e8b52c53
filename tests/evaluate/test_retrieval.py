"""Retrieval: pairs from texts of several languages, ranks and word scores as by hand, all in little memory."""

import math
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from turncoder.errors import UserError
from turncoder.evaluate.retrieval import (
    Pairs,
    compare_ranks,
    encode_pairs,
    rank_answers,
    rank_vectors,
    scan_bm25,
    score_aligned,
    score_bm25,
    score_ranks,
    score_tfidf,
    split_pairs,
)


def test_pairs_are_unique_and_whole():
    rest = "It has more than twelve words so that there is something that can be found here."
    texts = [f"Open the file at the given path. {rest} One.", f"Open the file at the given path. {rest} Two."]
    texts += [
        f"Close the file at the given path. {rest} One.",
        "Too short. " + rest,
        "It is only one sentence, e.g. This.",
    ]
    pairs = split_pairs(texts, limit=10)
    assert len(set(pairs.queries)) == len(set(pairs.documents)) == len(pairs.queries)
    assert all(f"{query} {document}" in texts for query, document in zip(pairs.queries, pairs.documents, strict=True))


def test_bm25_by_hand():
    documents = ["the cat sat", "the dog", "a bird in the sky above"]
    scores_QN = score_bm25(["Cat the"], documents)
    average = (3 + 2 + 6) / 3

    def term(n: int, length: int) -> float:
        idf = math.log(1 + (3 - n + 0.5) / (n + 0.5))
        return idf * 1 * 2.2 / (1 + 1.2 * (1 - 0.75 + 0.75 * length / average))

    expected = [term(1, 3) + term(3, 3), term(3, 2), term(3, 6)]
    np.testing.assert_allclose(scores_QN, [expected], rtol=1e-6)


def test_ranks_by_hand():
    similarity_QN = np.full((12, 12), 0.5)
    np.fill_diagonal(similarity_QN, 1.0)
    similarity_QN[0, 1] = 2.0  # rank 2
    similarity_QN[1, 0] = 1.0  # a tie: rank 2
    similarity_QN[2, 2] = 0.0  # rank 12
    rank_Q = rank_answers(similarity_QN)
    assert rank_Q.tolist() == [2, 2, 12] + [1] * 9
    scores = score_ranks(rank_Q)
    assert scores["mrr@10"] == pytest.approx((9 + 0.5 + 0.5) / 12)
    assert scores["recall@1"] == pytest.approx(9 / 12)
    assert scores["ndcg@10"] == pytest.approx((9 + 2 / math.log2(3)) / 12)


def test_gain_and_its_error_are_paired():
    gain, error = compare_ranks(np.array([1, 2, 1, 20]), np.array([2, 2, 4, 20]))
    assert gain == pytest.approx((0.5 + 0.75) / 4)
    assert error == pytest.approx(np.std([0.5, 0, 0.75, 0], ddof=1) / 2)


@given(st.integers(2, 30))
def test_constant_scores_earn_nothing_for_the_first_place(count: int):
    assert score_ranks(rank_answers(np.zeros((count, count))))["recall@1"] == 0.0


@pytest.mark.parametrize("name", ["wiki_paragraphs_en/wiki_en.txt", "wiki_paragraphs_ko/wiki_ko.txt"])
def test_real_paragraphs_give_pairs(shared: Path, name: str):
    texts = (shared / "data" / name).read_text(encoding="utf8").splitlines()
    pairs = split_pairs(texts, limit=10_000)
    assert len(pairs.queries) > 0.7 * len(texts)
    whole = {"".join(text.split()) for text in texts}
    together = zip(pairs.queries, pairs.documents, strict=True)
    assert all("".join((query + document).split()) in whole for query, document in together)


def test_pairs_of_texts_without_spaces():
    text = "これはとても短い本です。次の文はもう少し長くて、いろいろなことを言います。"
    assert split_pairs([text], limit=1) == Pairs([text[:12]], [text[12:]])


@given(st.integers(1, 600), st.integers(0, 5))
def test_ranks_in_blocks_are_those_of_the_whole(count: int, seed: int):
    queries_QD, documents_ND = np.random.default_rng(seed).integers(-2, 3, (2, count, 3)).astype(np.float32)
    np.testing.assert_array_equal(rank_vectors(queries_QD, documents_ND), rank_answers(queries_QD @ documents_ND.T))


def test_tfidf_by_hand():
    queries, documents = ["Cat the zebra"], ["the cat sat", "the dog dog", "a bird in the sky above"]
    texts = [text.lower().split() for text in queries + documents]

    def weigh(words: list[str]) -> dict[str, float]:
        idf = {word: math.log(5 / (1 + sum(word in text for text in texts))) + 1 for word in words}
        weights = {word: words.count(word) * idf[word] for word in words}
        length = math.sqrt(sum(weight**2 for weight in weights.values()))
        return {word: weight / length for word, weight in weights.items()}

    query, *others = map(weigh, texts)
    expected = [sum(weight * other.get(word, 0) for word, weight in query.items()) for other in others]
    np.testing.assert_allclose(score_tfidf(queries, documents), [expected], rtol=1e-6)
    assert score_tfidf(["..."], ["?", "!"]).tolist() == [[0, 0]]
    assert score_bm25(["..."], ["?", "!"]).tolist() == [[0, 0]]


def test_a_query_at_a_time_is_the_same_as_all(shared: Path):
    texts = (shared / "data" / "ntrex" / "newstest2019.eng.txt").read_text(encoding="utf8").splitlines()[:300]
    np.testing.assert_allclose(list(scan_bm25(texts, texts)), score_bm25(texts, texts), rtol=1e-6)
    assert np.mean(rank_answers(score_bm25(texts, texts)) == 1) > 0.99
    assert np.mean(rank_answers(score_tfidf(texts, texts)) == 1) > 0.99


@pytest.mark.parametrize("score", [score_bm25, score_tfidf])
def test_five_thousand_texts_take_little_memory(score: Callable[..., np.ndarray], shared: Path):
    texts = (shared / "data" / "wiki_paragraphs_en" / "wiki_en.txt").read_text(encoding="utf8").splitlines()[:5000]
    texts = [text[:100] for text in texts]
    tracemalloc.start()
    scores_QN = score(texts, texts)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert scores_QN.shape == (5000, 5000) and scores_QN.dtype == np.float32
    assert peak < 200e6


@pytest.fixture(scope="module")
def encoder(stories: Path):
    from turncoder import load_encoder

    return load_encoder(str(stories), device="cpu", max_seq_length=64)


def test_an_encoder_ranks_by_its_cosines(encoder, stories_text: Path):
    sentences = [line for line in stories_text.read_text(encoding="utf8").split("\n") if len(line.split()) > 20][:80]
    pairs = split_pairs(sentences, limit=40)
    assert len(pairs.queries) >= 20
    queries, documents = (encoder.encode(one, normalize_embeddings=True) for one in (pairs.queries, pairs.documents))
    cosine = [[sum(a * b for a, b in zip(x, y, strict=True)) for y in documents.tolist()] for x in queries.tolist()]
    expected = [1 + sum(other > row[i] for j, other in enumerate(row) if j != i) for i, row in enumerate(cosine)]
    rank_Q = rank_vectors(*encode_pairs(encoder, pairs, batch_tokens=512))
    assert np.mean(rank_Q == expected) > 0.95 and np.abs(rank_Q - expected).max() <= 1
    aligned = score_aligned(encoder, pairs.queries, pairs.documents)
    assert aligned["recall@1_first_to_second"] == pytest.approx(np.mean(rank_Q == 1))
    turned = score_aligned(encoder, pairs.documents, pairs.queries)
    assert aligned["recall@1_second_to_first"] == pytest.approx(turned["recall@1_first_to_second"])
    itself = score_aligned(encoder, pairs.queries, pairs.queries)
    assert set(itself.values()) == {1.0}


def test_prompts_stand_on_their_side(encoder):
    pairs = Pairs(["a cat sat down", "the sun is up"], ["one day a dog ran", "it was a big sun"])
    prompted = Pairs([f"Tell: {query}" for query in pairs.queries], pairs.documents)
    include = encoder[1].include_prompt
    encoder[1].include_prompt = True
    try:
        one = rank_vectors(*encode_pairs(encoder, pairs, query_prompt="Tell: "))
        other = rank_vectors(*encode_pairs(encoder, prompted))
    finally:
        encoder[1].include_prompt = include
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("first", "second"), [(["a"], []), ([], [])])
def test_lines_that_are_not_parallel_are_refused(encoder, first: list[str], second: list[str]):
    with pytest.raises(UserError, match="not parallel"):
        score_aligned(encoder, first, second)
