import csv
import random
import statistics
import warnings
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.metrics.sequence_labeling import get_entities
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from turncoder.data.labels import IGNORED, UNSEEN, LabelSet, to_iob2
from turncoder.errors import UserError
from turncoder.evaluate.wordfiles import find_confusions, read_predictions, write_confusion, write_predictions
from turncoder.evaluate.words import find_spans, score, score_chunks, summarise, tally

IOB = ["O", *(f"{prefix}-{kind}" for prefix in "BI" for kind in ("PER", "LOC", "A-B"))]
BIOES = [*IOB, *(f"{prefix}-{kind}" for prefix in "ES" for kind in ("PER", "LOC"))]


def sentences(labels):
    """Gold and predicted labels of a few sentences."""
    pair = st.tuples(st.sampled_from(labels), st.sampled_from(labels))
    return st.lists(st.lists(pair, min_size=1, max_size=9), min_size=1, max_size=6)


def unzip(rows):
    return [[right for right, _ in row] for row in rows], [[said for _, said in row] for row in rows]


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("", []),
        ("O O", []),
        ("B-PER I-PER O", [(0, 2, "PER")]),
        ("B-PER B-PER", [(0, 1, "PER"), (1, 2, "PER")]),
        ("I-PER I-PER O I-PER", [(0, 2, "PER"), (3, 4, "PER")]),  # IOB1, or an I- that begins
        ("I-PER B-PER", [(0, 1, "PER"), (1, 2, "PER")]),
        ("B-PER I-LOC I-LOC", [(0, 1, "PER"), (1, 3, "LOC")]),  # another type begins
        ("O I-LOC B-LOC I-LOC I-PER", [(1, 2, "LOC"), (2, 4, "LOC"), (4, 5, "PER")]),
        ("B-A-B I-A-B", [(0, 2, "A-B")]),
        ("B-PER E-PER S-LOC S-LOC E-LOC", [(0, 2, "PER"), (2, 3, "LOC"), (3, 4, "LOC"), (4, 5, "LOC")]),
        ("B I O", [(0, 2, "")]),
        ("NOUN B-PER Sing -DOCSTART-", [(1, 2, "PER")]),
    ],
)
def test_spans_of_hand_made_sentences(tags, spans):
    assert find_spans(tags.split()) == spans


@given(st.lists(st.sampled_from(BIOES), max_size=12))
def test_spans_are_those_of_seqeval(tags):
    assert find_spans(tags) == [(first, last + 1, kind) for kind, first, last in get_entities(tags)]


@given(sentences(IOB))
def test_scores_are_those_of_seqeval_and_scikit_learn(rows):
    gold, predicted = unzip(rows)
    scores = score(tally(gold, predicted, spans=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, oracle in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
            assert scores[f"span_{name}"] == pytest.approx(float(oracle(gold, predicted, zero_division=0)))
    flat = [list(chain.from_iterable(side)) for side in (gold, predicted)]
    names = sorted(set(flat[0]) | set(flat[1]))
    assert list(scores["per_class"]) == names
    parts = precision_recall_fscore_support(*flat, labels=names, zero_division=0)
    for row, name in zip(zip(*parts, strict=True), names, strict=True):
        assert list(scores["per_class"][name].values()) == pytest.approx(list(row))
    for average in ("macro", "weighted"):
        expected = precision_recall_fscore_support(*flat, average=average, zero_division=0)[2]
        assert scores[f"{average}_f1"] == pytest.approx(expected)
    assert scores["token_accuracy"] == pytest.approx(accuracy_score(*flat))
    assert scores["words_scored"] == len(flat[0])


@given(st.lists(sentences(["", *IOB]), min_size=1, max_size=3), st.booleans())
def test_chunks_of_many_predictions_at_once(runs, whole):
    """Of one gold file, some predictions; those may break IOB2, as heads do, and some words have no label."""
    gold = [to_iob2(tags, "iob2") for tags in unzip(runs[0])[0]]
    labels = LabelSet(tuple(IOB) if whole else tuple(sorted({tag for tags in gold for tag in tags} | {"O"} - {""})))
    labels = LabelSet(tuple(name for name in labels.names if name), "iob2")
    rng = random.Random(str(gold))
    guesses = [[[rng.choice(labels.names) for _ in tags] for tags in gold] for _ in range(4)]
    guesses.append([[tag or "O" for tag in tags] for tags in gold])
    gold_M = np.concatenate([labels.number(tags) for tags in gold])
    guess_NM = np.stack([np.concatenate([labels.number(tags) for tags in guess]) for guess in guesses])
    first_M = np.concatenate([np.arange(len(tags)) == 0 for tags in gold])
    found = score_chunks(guess_NM, gold_M, labels.names, first_M)
    for value, guess in zip(found, guesses, strict=True):
        if any(tag for tags in gold for tag in tags):
            assert value == pytest.approx(score(tally(gold, guess, spans=True))["span_f1"])
        else:
            assert value == 0


def test_chunks_whose_label_training_did_not_have_are_missed_by_all():
    names, first_M = ("O", "B-LOC", "I-LOC"), np.array([True, False, False, True])
    gold_M, guess_NM = np.array([1, 2, UNSEEN, IGNORED]), np.array([[1, 2, 0, 1], [1, 0, 2, 0], [1, 2, 1, 0]])
    # the last word is not scored; the third is outside every chunk that could be right
    assert score_chunks(guess_NM, gold_M, names, first_M).tolist() == [1.0, 0.0, 2 / 3]


def test_a_case_counted_by_hand():
    gold = [["B-PER", "I-PER", "O", "B-LOC", "O"], ["I-LOC", "I-LOC", "O", "B-ORG"]]
    predicted = [["B-PER", "I-PER", "O", "B-PER", "O"], ["B-LOC", "I-LOC", "O", "O"]]
    scores = score(tally(gold, predicted, spans=True))  # 4 chunks, 3 predicted, 2 right: I-LOC I-LOC is B-LOC I-LOC
    assert (scores["span_precision"], scores["span_recall"], scores["span_f1"]) == (2 / 3, 2 / 4, 4 / 7)
    assert scores["token_accuracy"] == 6 / 9
    assert scores["per_type"]["LOC"] == {"precision": 1.0, "recall": 0.5, "f1": 2 / 3, "support": 2}
    assert scores["per_type"]["ORG"]["f1"] == 0.0


@given(sentences(IOB), st.booleans())
def test_labels_that_training_did_not_have_are_counted(rows, spans):
    gold, predicted = unzip(rows)
    whole = tally(gold, predicted, spans, known={"O"})
    assert sum(whole.unseen.values()) == sum(tag != "O" for tags in gold for tag in tags)


def test_words_without_a_label_are_not_scored():
    gold, predicted = [["B-PER", "", "I-PER", "O"]], [["B-PER", "I-PER", "I-PER", "O"]]
    counted = tally(gold, predicted, spans=True)
    assert counted.words_scored == 3
    assert score(counted)["token_accuracy"] == score(counted)["span_f1"] == 1.0
    with pytest.raises(UserError, match="no word of the test file has a label"):
        score(tally([["", ""]], [["A", "A"]], spans=False))


def test_labels_that_training_did_not_have_are_wrong():
    counted = tally([["A", "new", "new"]], [["A", "A", "A"]], spans=False, known=["A", "B"])
    assert counted.unseen == {"new": 2}
    scores = score(counted)
    assert scores["token_accuracy"] == pytest.approx(1 / 3)
    assert scores["per_class"]["new"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 2}
    assert "B" not in scores["per_class"] and "span_f1" not in scores


def test_sentences_must_fit():
    for gold, predicted in (([["A"]], []), ([["A"]], [["A", "A"]])):
        with pytest.raises(ValueError, match="zip"):
            tally(gold, predicted, spans=False)


def test_the_mean_and_deviation_of_seeds():
    rows = [{"f1": value, "dev": {"f1": value / 2}, "alignment": "same_token", "ok": True} for value in (0.5, 0.7, 0.9)]
    rows[0]["only here"] = 3
    found = summarise(rows)
    assert found["mean"] == pytest.approx({"f1": 0.7, "dev": pytest.approx({"f1": 0.35})})
    assert found["std"]["f1"] == pytest.approx(statistics.stdev([0.5, 0.7, 0.9]))
    assert found["std"]["dev"]["f1"] == pytest.approx(np.std([0.25, 0.35, 0.45], ddof=1))
    assert summarise(rows[:1]) == {
        "mean": {"f1": 0.5, "dev": {"f1": 0.25}, "only here": 3},
        "std": {"f1": None, "dev": {"f1": None}, "only here": None},
    }
    assert summarise([]) == {"mean": {}, "std": {}}


LABEL = st.text("AB-", max_size=3)
WORD = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\\\t\n\r tn\x85\u2028"), max_size=4)


@settings(deadline=None)  # the first opens libraries
@given(sentences=st.lists(st.lists(st.tuples(WORD, LABEL, LABEL), max_size=4), max_size=4))
def test_predictions_come_back(sentences, tmp_path_factory):
    path = tmp_path_factory.mktemp("predictions") / "predictions.tsv"
    columns = [[[cells[number] for cells in rows] for rows in sentences] for number in range(3)]
    write_predictions(path, *columns)
    assert list(read_predictions(path)) == columns
    assert path.read_bytes().count(b"\n") == sum(len(rows) + 1 for rows in sentences)


def test_predictions_that_are_broken(tmp_path):
    path = tmp_path / "predictions.tsv"
    path.write_text("a\tB\tB\nb\tB\n\n")
    with pytest.raises(UserError, match=r"predictions\.tsv line 2 has 2 columns"):
        read_predictions(path)
    path.write_text("a\tB\tB\n")
    with pytest.raises(UserError, match="cut off"):
        read_predictions(path)


def random_tally(names, seed=0):
    rng = random.Random(seed)
    gold = [rng.choices(names, range(len(names), 0, -1), k=12) for _ in range(300)]
    predicted = [[tag if rng.random() < 0.9 else rng.choice(names) for tag in tags] for tags in gold]
    return tally(gold, predicted, spans=False)


@pytest.mark.parametrize("number", [2, 17, 60])
def test_the_confusion_matrix(number, tmp_path):
    names = [f"$LABEL, {i}$" for i in range(number)]
    counted = random_tally(names)
    mistakes = write_confusion(counted, tmp_path)
    with (tmp_path / "confusion.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    again = {(row[0], said): int(count) for row in rows for said, count in zip(head[1:], row[1:], strict=True)}
    assert {pair: count for pair, count in again.items() if count} == counted.confusion
    assert len(rows) == number
    assert mistakes == find_confusions(counted)
    assert all(right != said and counted.confusion[right, said] == count for right, said, count in mistakes)
    assert [count for _, _, count in mistakes] == sorted((n for (a, b), n in again.items() if a != b), reverse=True)[
        : len(mistakes)
    ]
    assert imread(tmp_path / "confusion.png").shape[0] > 400
    assert sorted(path.name for path in tmp_path.iterdir()) == ["confusion.csv", "confusion.png"]
