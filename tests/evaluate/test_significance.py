import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import f1_score as span_f1
from sklearn.metrics import accuracy_score, f1_score

from turncoder.errors import UserError
from turncoder.evaluate.significance import bootstrap

IOB = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def pool(sentences):
    return [tag for tags in sentences for tag in tags]


ORACLES = {
    "token_accuracy": lambda gold, said: accuracy_score(pool(gold), pool(said)),
    "macro_f1": lambda gold, said: f1_score(pool(gold), pool(said), average="macro", zero_division=0),
    "span_f1": lambda gold, said: span_f1(gold, said, zero_division=0),
}


def draw_runs(seed, sentences=25, errors=(0.3, 0.15)):
    rng = random.Random(seed)
    gold = [rng.choices(IOB, k=rng.randint(1, 12)) for _ in range(sentences)]
    runs = [[[tag if rng.random() > error else rng.choice(IOB) for tag in tags] for tags in gold] for error in errors]
    return gold, *runs


@pytest.mark.parametrize("metric", ORACLES)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 25))
def test_it_is_what_a_loop_over_drawn_sentences_gives(metric, seed, count):
    gold, *runs = draw_runs(seed, count)
    found = bootstrap(gold, *runs, metric=metric, samples=130, seed=seed)
    observed = [ORACLES[metric](gold, run) for run in runs]
    rng = np.random.default_rng(seed)
    differences = []
    for _ in range(130):
        rows = np.repeat(np.arange(count), rng.multinomial(count, [1 / count] * count))
        one, other = (ORACLES[metric]([gold[i] for i in rows], [run[i] for i in rows]) for run in runs)
        differences.append(other - one)
    assert (found["first"], found["second"]) == pytest.approx(observed)
    difference = observed[1] - observed[0]
    assert found["difference"] == pytest.approx(difference)
    assert (found["low"], found["high"]) == pytest.approx(tuple(np.quantile(differences, (0.025, 0.975))))
    strayed = sum(abs(one - difference) >= abs(difference) - 1e-9 for one in differences)
    assert found["p"] == pytest.approx((strayed + 1) / 131)


@pytest.mark.parametrize("metric", ORACLES)
def test_a_run_does_not_differ_from_itself_and_a_worse_one_does(metric):
    gold, first, second = draw_runs(0, sentences=300, errors=(0.4, 0.1))
    same = bootstrap(gold, first, first, metric=metric)
    assert (same["difference"], same["low"], same["high"], same["p"]) == (0, 0, 0, 1)
    better = bootstrap(gold, first, second, metric=metric)
    assert 0 < better["low"] < better["difference"] < better["high"] and better["p"] < 0.01
    turned = bootstrap(gold, second, first, metric=metric)
    assert (turned["difference"], turned["low"]) == pytest.approx((-better["difference"], -better["high"]))


def test_p_is_small_as_often_as_it_says_when_nothing_differs():
    ps = [bootstrap(*draw_runs(seed, 60, (0.3, 0.3)), samples=200)["p"] for seed in range(200)]
    assert np.mean(np.array(ps) <= 0.1) == pytest.approx(0.1, abs=0.06)


def test_words_without_a_label_are_not_compared():
    gold, first, second = draw_runs(1)
    blank = [["", *tags] for tags in gold]
    runs = [[["B-PER", *tags] for tags in run] for run in (first, second)]
    assert bootstrap(blank, *runs, samples=50) == bootstrap(gold, first, second, samples=50)
    outside = [["O", "O"]] * 3
    assert bootstrap(outside, outside, outside, metric="span_f1", samples=5)["first"] == 0
    with pytest.raises(UserError, match="no word of the test file has a label"):
        bootstrap([[""]], [["A"]], [["A"]])
