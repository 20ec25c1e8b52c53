"""Rungs are measured with the prompts that their models keep, and shown as they were measured."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from rich.console import Console

from turncoder import load_encoder
from turncoder.data.pairs import Rows
from turncoder.evaluate.projection import map_pairs
from turncoder.evaluate.retrieval import encode_pairs, nearest, rank_vectors
from turncoder.evaluate.sentences import Sts, score_sts
from turncoder.turn.rungs import (
    COLUMNS,
    Rung,
    Trial,
    build_table,
    choose_columns,
    choose_sentences,
    explain,
    open_trial,
    score_rung,
    score_words,
)

PROMPTS = {"query": "Find:\n", "document": "Text:\n"}


@pytest.fixture(scope="module")
def trial(stories_text: Path) -> Trial:
    lines = stories_text.read_text(encoding="utf8").splitlines()
    texts = [line for line in lines if len(line.split()) > 20][:60]
    sts = Sts([text[:40] for text in texts], [text[20:60] for text in texts], np.arange(len(texts), dtype=float))
    pairs = Rows("pairs", Dataset.from_dict({"anchor": sts.first, "positive": sts.second}))
    return open_trial(texts, sts, [pairs], 30)


@pytest.mark.parametrize("kept", ["sides", "default"])
def test_what_is_shown_is_what_was_measured(
    stories: Path, trial: Trial, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    encoder = load_encoder(str(stories), device="cpu")
    encoder.prompts = PROMPTS if kept == "sides" else {"text": "Say:\n"}
    encoder.default_prompt_name = None if kept == "sides" else "text"
    query, document = PROMPTS.values() if kept == "sides" else ("Say:\n", "Say:\n")
    monkeypatch.setattr("turncoder.encode.encoder.load_encoder", lambda *_, **__: encoder)
    row = score_rung(Rung("x", "m"), trial)
    rank_Q = rank_vectors(*encode_pairs(encoder, trial.documents, query_prompt=query, document_prompt=document))
    bare_Q = rank_vectors(*encode_pairs(encoder, trial.documents, query_prompt="", document_prompt=""))
    assert row["ranks"] == rank_Q.tolist() != bare_Q.tolist()
    queries, chosen = trial.documents.queries, choose_sentences(trial.documents.queries, 4)
    found, bare = (nearest(encoder, queries, chosen, prompt) for prompt in (query, ""))
    assert row["neighbours"] == [list(one) for one in found] != [list(one) for one in bare]
    vectors = encode_pairs(encoder, trial.documents, query_prompt=query, document_prompt=document)
    assert row["map"] == map_pairs(*vectors)
    assert trial.sts is not None
    assert row["sts"] == score_sts(encoder, trial.sts, prompt=query) != score_sts(encoder, trial.sts, prompt="")
    assert all(query.strip() in text.partition("[")[0] for text in row["rendered"].values())
    own = dataclasses.replace(trial.pairs[0], prompts={"anchor": "Own:\n"})
    again = score_rung(Rung("x", "m"), dataclasses.replace(trial, pairs=[own]))
    assert "Own:" in again["rendered"]["pairs"].partition("[")[0]


def test_a_table_of_all_scores_is_whole_at_80_columns_and_each_is_explained() -> None:
    told = {"labels": list("ABCDEFGHI"), "metric": "span_f1", "seeds": 3, "std": 0.01, "words": 1234}
    scores = {**dict.fromkeys([*COLUMNS, "words/ner_tags"], 0.5), "loss": 12.345, "probes": {"ner_tags": told}}
    rows = [{"name": "causal, more steps", **scores}, {"name": "+ pairs", **scores}]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(build_table(rows, "What each step gave"))
    text = console.export_text()
    assert "causal, more steps" in text and "12.345" in text and text.count("0.500") == 14
    told = " ".join(explain(rows, None)).lower()
    for heading in (*COLUMNS.values(), "ner"):
        assert heading in text and heading.lower() in told
    assert "ner (a, b, c, d, e, f, g, ...): f1 over chunks (conlleval's) of 1,234 test words" in told


def test_shares_of_right_labels_have_f1_beside_them_where_80_columns_are_enough(trial: Trial) -> None:
    told = {"labels": ["A", "B"], "metric": "token_accuracy", "seeds": 3, "std": 0.01, "words": 1234}
    keys = [f"words/{column}{more}" for column in ("case", "pos_tags") for more in ("", " F1")]
    quick = [name for name in COLUMNS if name not in ("sts", "triplets", "pairs_mrr@10")]  # what quickstart measures
    for scores, names in (
        (quick, ["case", "case F1", "pos", "pos F1"]),
        ([*quick, "sts", "triplets"], ["case", "pos"]),
    ):
        row = {"name": "causal, more steps", **dict.fromkeys([*scores, *keys], 0.5), "loss": 12.345}
        row["probes"] = {"case": told, "pos_tags": told}
        console = Console(width=80, record=True, file=io.StringIO())
        console.print(build_table([row], "What each step gave"))
        text = console.export_text()
        heading = next(line for line in text.splitlines() if "loss" in line).replace("┃", "│").split("│")
        assert [cell.strip() for cell in heading][len(scores) + 1 :] == names
        assert "12.345" in text and text.count("0.500") == len(scores) - 1 + len(names)
        assert list(choose_columns([row]).values())[-4:] == ["case", "case F1", "pos", "pos F1"]
        told_of = "case F1, pos F1 (macro): the mean of the labels' F1, in which rare ones count as much."
        assert told_of in explain([row], None)


def test_few_documents_are_said_and_words_are_scored_on_pairs_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    anchors = ["a red cat sleeps", "the dog runs far", "rain falls on roofs"]
    table = {"anchor": anchors, "positive": [text.upper() for text in anchors], "negative_1": ["x", "y", "z"]}
    rest = " It went on and on and on until the very end of the long day."
    trial = open_trial(["The first one stands here." + rest], None, [Rows("p", Dataset.from_dict(table))], 30)
    assert "1 of 1 held-out documents" in caplog.text and "--validation_text" in caplog.text
    assert score_words(trial) == [
        {"name": name, "pairs_mrr@10": 1.0, "triplets": 1.0} for name in ("BM25 (words)", "TF-IDF (words)")
    ]
