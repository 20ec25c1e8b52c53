"""STS, triplets, alignment and uniformity: against other libraries, by hand, and what bad files are told."""

import json
import math
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from turncoder.errors import UserError
from turncoder.evaluate.sentences import (
    Sts,
    encode_columns,
    measure_alignment,
    measure_uniformity,
    read_sts,
    score_columns,
    score_columns_words,
    score_sts,
    score_sts_words,
)


@pytest.fixture(scope="module")
def encoder(stories: Path):
    from turncoder import load_encoder

    return load_encoder(str(stories), device="cpu", max_seq_length=64)


@pytest.fixture(scope="module")
def stsb(shared: Path) -> Sts:
    return read_sts(shared / "data" / "stsb" / "stsb-dev.tsv")


@pytest.mark.parametrize(("split", "count"), [("dev", 1500), ("train", 5749)])
def test_stsb_is_read_as_pandas_reads_it(split: str, count: int, shared: Path):
    path = shared / "data" / "stsb" / f"stsb-{split}.tsv"
    table = pd.read_csv(path, sep="\t", quoting=3, keep_default_na=False)
    sts = read_sts(path)
    assert len(sts.first) == len(table) == count
    assert (sts.first, sts.second) == (table.sentence1.tolist(), table.sentence2.tolist())
    np.testing.assert_array_equal(sts.score_N, table.score)


@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".jsonl", ".parquet"])
def test_other_files_hold_the_same(ending: str, stsb: Sts, tmp_path: Path):
    table = pd.DataFrame({"score": stsb.score_N, "sentence2": stsb.second, "sentence1": stsb.first})
    path = tmp_path / f"sts{ending}"
    if ending == ".parquet":
        table.to_parquet(path)
    elif ending == ".jsonl":
        table.to_json(path, orient="records", lines=True, double_precision=15)
    else:
        table.to_csv(path, index=False)
    sts = read_sts(path)
    assert (sts.first, sts.second) == (stsb.first, stsb.second)
    np.testing.assert_array_equal(sts.score_N, stsb.score_N)


ROW = {"sentence1": "a", "sentence2": "b", "score": 1}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ROW] * 9, "9 pairs are too few"),
        ([ROW] * 10, "score = 1 in all rows"),
        ([ROW] * 10 + [{**ROW, "score": "high"}], "line 11: score = 'high' is no number"),
        ([ROW] * 10 + [{**ROW, "score": math.nan}], "line 11: score = nan is no number"),
        ([ROW] * 10 + [{**ROW, "score": None}], "line 11: score = None is no number"),
        ([{**ROW, "score": True}], "score = True is no number"),
        ([{**ROW, "sentence2": " "}], "line 1: sentence2 = ' ' is no sentence"),
        ([{**ROW, "sentence1": None}], "line 1: sentence1 = None is no sentence"),
        ([{"sentence1": "a", "sentence2": "b"}], "no column 'score'"),
    ],
)
def test_bad_rows_are_named(rows: list[dict], message: str, tmp_path: Path):
    (tmp_path / "sts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=message):
        read_sts(tmp_path / "sts.jsonl")


def test_sts_is_that_of_sentence_transformers(encoder, stsb: Sts):
    from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

    part = Sts(stsb.first[:200], stsb.second[:200], stsb.score_N[:200])
    evaluator = EmbeddingSimilarityEvaluator(part.first, part.second, part.score_N.tolist(), main_similarity="cosine")
    assert score_sts(encoder, part, batch_tokens=512) == pytest.approx(evaluator(encoder)["spearman_cosine"], abs=1e-4)


def test_word_baselines_do_what_words_can(stsb: Sts):
    """TF-IDF and BM25 say much on STS-B's dev set; a shuffle of the scores leaves nothing."""
    scores = score_sts_words(stsb)
    assert 0.6 < scores["tfidf"] < 0.8 and 0.4 < scores["bm25"] < 0.8
    turned = score_sts_words(Sts(stsb.second, stsb.first, stsb.score_N))
    assert turned == pytest.approx(scores)
    shuffled = Sts(stsb.first, stsb.second, np.random.default_rng(0).permutation(stsb.score_N))
    assert all(abs(score) < 0.1 for score in score_sts_words(shuffled).values())
    assert score_sts_words(Sts(["?"] * 3, ["!"] * 3, np.arange(3.0))) == {"tfidf": 0.0, "bm25": 0.0}


def test_triplets_are_those_of_sentence_transformers(encoder, shared: Path):
    from sentence_transformers.sentence_transformer.evaluation import TripletEvaluator

    lines = (shared / "data" / "nli_triplets" / "dev-en.jsonl").read_text(encoding="utf8").splitlines()[:150]
    columns = [[json.loads(line)[name] for line in lines] for name in ("query", "positive", "negative")]
    expected = TripletEvaluator(*columns, main_similarity_function="cosine")(encoder)["cosine_accuracy"]
    texts = dict(zip(("anchor", "positive", "negative_1"), columns, strict=True))
    vectors = encode_columns(encoder, texts, {}, batch_tokens=512)
    assert score_columns(vectors)["triplet_accuracy"] == pytest.approx(expected, abs=1 / 150)
    assert score_columns({**vectors, "negative_1": vectors["positive"]})["triplet_accuracy"] == 0
    assert score_columns({**vectors, "positive": vectors["anchor"]})["triplet_accuracy"] == 1
    numbers = {text: row for name in texts for text, row in zip(texts[name], vectors[name], strict=True)}
    assert score_columns_words(texts, lambda *two: np.inner(*([numbers[text] for text in one] for one in two))) == (
        pytest.approx(score_columns(vectors), abs=1 / 150)
    )
    prompted = encode_columns(encoder, texts, {"positive": "It is said:\n"}, batch_tokens=512)
    same = {name: bool(np.allclose(vectors[name], prompted[name])) for name in vectors}
    assert same == {"anchor": True, "positive": False, "negative_1": True}


def spheres(rows: int) -> st.SearchStrategy[np.ndarray]:
    return arrays(np.float64, (rows, 3), elements=st.floats(-1, 1)).filter(
        lambda vectors_ND: np.linalg.norm(vectors_ND, axis=1).min() > 1e-3
    )


@given(spheres(6), spheres(6))
def test_measures_are_those_of_the_paper(vectors_ND: np.ndarray, others_ND: np.ndarray):
    """Pairs of rows in plain loops, and ``torch.pdist``, as the definitions say."""
    x, y = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in (vectors_ND, others_ND))
    alignment = sum(math.dist(a, b) ** 2 for a, b in zip(x, y, strict=True)) / 6
    assert measure_alignment(vectors_ND, others_ND) == pytest.approx(alignment, abs=1e-12)
    uniformity = torch.pdist(torch.from_numpy(x)).pow(2).mul(-2).exp().mean().log().item()
    assert measure_uniformity(vectors_ND) == pytest.approx(uniformity, abs=1e-9)


def test_uniformity_in_blocks():
    """More rows than a block holds; on the circle the mean is a Bessel function: log(exp(-2 t) I0(2 t))."""
    angle_N = np.linspace(0, 2 * np.pi, 10_000, endpoint=False)
    circle_ND = np.stack([np.cos(angle_N), np.sin(angle_N)], axis=1).astype(np.float32)
    tracemalloc.start()
    measured = measure_uniformity(circle_ND, t=1.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert measured == pytest.approx(math.log(math.exp(-2) * np.i0(2)), abs=1e-3)
    assert peak < 100e6


def test_measures_without_pairs_are_refused():
    with pytest.raises(UserError, match="two or more"):
        measure_uniformity(np.ones((1, 3)))
    with pytest.raises(UserError, match="pairs"):
        measure_alignment(np.ones((2, 3)), np.ones((3, 3)))
    assert measure_uniformity(np.ones((4, 3))) == pytest.approx(0)
