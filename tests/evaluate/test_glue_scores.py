"""Scores of GLUE against their formulas; classes and numbers there and back; weights of classes."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from turncoder.errors import UserError
from turncoder.evaluate.gluedata import Examples
from turncoder.evaluate.gluescores import Target, balance, score
from turncoder.evaluate.gluetasks import TASKS

PAIRS = st.lists(st.tuples(st.sampled_from("01"), st.sampled_from("01")), min_size=1, max_size=40)
NUMBERS = st.lists(st.tuples(st.integers(0, 6), st.integers(-9, 9)), min_size=2, max_size=30)


def count(gold: Sequence[str], said: Sequence[str]) -> tuple[int, int, int, int]:
    """True positives, false positives, false negatives, true negatives."""
    pairs = list(zip(gold, said, strict=True))
    return pairs.count(("1", "1")), pairs.count(("0", "1")), pairs.count(("1", "0")), pairs.count(("0", "0"))


def rank(values: Sequence[float]) -> list[float]:
    """Mean rank of each value."""
    return [sum(other < one for other in values) + (sum(other == one for other in values) - 1) / 2 for one in values]


def correlate(first: Sequence[float], second: Sequence[float]) -> float:
    first, second = ([value - sum(values) / len(values) for value in values] for values in (first, second))
    size = math.sqrt(sum(a * a for a in first) * sum(b * b for b in second))
    return sum(a * b for a, b in zip(first, second, strict=True)) / size if size else 0.0


@given(PAIRS)
def test_classes_are_scored_by_the_formulas(pairs: list[tuple[str, str]]) -> None:
    gold, said = map(list, zip(*pairs, strict=True))
    tp, fp, fn, tn = count(gold, said)
    root = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    told = score(("accuracy", "f1", "matthews"), gold, said)
    assert told["accuracy"] == pytest.approx((tp + tn) / len(pairs))
    assert told["f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn) if tp else 0.0)
    assert told["matthews"] == pytest.approx((tp * tn - fp * fn) / root if root else 0.0)


@given(NUMBERS)
def test_numbers_are_scored_by_the_formulas(pairs: list[tuple[float, float]]) -> None:
    gold, said = map(list, zip(*pairs, strict=True))
    told = score(("spearman", "pearson"), gold, said)
    assert told["pearson"] == pytest.approx(correlate(gold, said), abs=1e-12)
    assert told["spearman"] == pytest.approx(correlate(rank(gold), rank(said)), abs=1e-12)


@pytest.mark.parametrize("name", ["1", "equivalent", "duplicate"])
def test_f1_is_of_the_class_that_says_yes(name: str) -> None:
    gold, said = [name, name, "0", "0", "0"], [name, "0", "0", "0", name]
    assert score(("f1",), gold, said)["f1"] == 0.5
    swapped = [["no" if label == name else name for label in labels] for labels in (gold, said)]
    assert score(("f1",), *swapped)["f1"] == pytest.approx(2 / 3)


@given(st.lists(st.integers(0, 3), min_size=4, max_size=60).filter(lambda labels: set(labels) == {0, 1, 2, 3}))
def test_classes_are_balanced_as_scikit_learn_does(labels: list[int]) -> None:
    labels_N = np.array(labels)
    weight_C = balance(labels_N, 4)
    wanted = compute_class_weight("balanced", classes=np.arange(4), y=labels_N)
    np.testing.assert_allclose(weight_C, wanted, rtol=1e-6)
    assert weight_C[labels_N].mean() == pytest.approx(1, rel=1e-5)  # so that the loss keeps its scale
    sums = [weight_C[labels_N][labels_N == number].sum() for number in range(4)]
    assert sums == pytest.approx([len(labels) / 4] * 4, rel=1e-5)  # and every class has the same share in it


def test_classes_there_and_back() -> None:
    target = Target.collect(Examples("here", [("a",)] * 4, ["yes", "no", "perhaps", "no"]))
    assert (target.names, target.width) == (("no", "perhaps", "yes"), 3)
    assert target.encode(["yes", "no"]).tolist() == [2, 0]
    assert target.decode(np.eye(3)[[2, 0, 1]]) == ["yes", "no", "perhaps"]


def test_numbers_there_and_back() -> None:
    gold = [1.0, 2.0, 3.0, 5.0]
    target = Target.collect(Examples("here", [("a",)] * 4, gold))
    learnt_N = target.encode(gold)
    assert learnt_N.dtype == np.float32 and target.width == 1
    assert (learnt_N.mean(), learnt_N.std()) == pytest.approx((0, 1), abs=1e-6)
    assert target.decode(learnt_N[:, None]) == pytest.approx(gold)
    with pytest.raises(UserError, match=r"here: all 2 rows have the number 3"):
        Target.collect(Examples("here", [("a",)] * 2, [3.0, 3.0]))


def test_every_task_is_scored_as_glue_does() -> None:
    assert {name: task.metrics for name, task in TASKS.items()} == {
        "cola": ("matthews",),
        "sst2": ("accuracy",),
        "mrpc": ("accuracy", "f1"),
        "qqp": ("accuracy", "f1"),
        "stsb": ("spearman", "pearson"),
        **dict.fromkeys(("mnli", "qnli", "rte", "wnli", "xnli", "pawsx"), ("accuracy",)),
    }
