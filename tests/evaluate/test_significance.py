import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from scipy.stats import t as student_t
from seqeval.metrics import f1_score as span_f1
from sklearn.metrics import accuracy_score, average_precision_score, f1_score

from turncoder.errors import UserError
from turncoder.evaluate.significance import bootstrap, bootstrap_items, compare_seeds

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


@pytest.mark.parametrize("kind", ["means", "spearman", "average_precision"])
def test_items_are_compared_as_a_loop_over_drawn_items_does(kind):
    rng = np.random.default_rng(3)
    gold_N = rng.integers(0, 2 if kind == "average_precision" else 4, 30).astype(float)  # with ties
    first_N, second_N = (np.round(gold_N + rng.normal(size=30) * noise, 1) for noise in (2, 1))
    told = {} if kind == "means" else {"gold": gold_N, "follows": kind}
    found = bootstrap_items(first_N, second_N, **told, samples=150, seed=5)

    def follow(score_N, place_N):
        if kind == "average_precision":
            return average_precision_score(gold_N[place_N], score_N[place_N])
        return score_N[place_N].mean() if kind == "means" else spearmanr(score_N[place_N], gold_N[place_N]).statistic

    draws = np.random.default_rng(5)
    places = np.concatenate([draws.integers(30, size=(100, 30)), draws.integers(30, size=(50, 30))])
    differences = [follow(second_N, place_N) - follow(first_N, place_N) for place_N in places]
    observed = follow(second_N, np.arange(30)) - follow(first_N, np.arange(30))
    assert found["difference"] == pytest.approx(observed)
    assert [found["low"], found["high"]] == pytest.approx(list(np.percentile(differences, (2.5, 97.5))))
    strayed = sum(abs(one - observed) >= abs(observed) - 1e-12 for one in differences)
    assert found["p"] == pytest.approx((strayed + 1) / 151)


def test_items_are_drawn_within_their_parts():
    scores, others = np.arange(12.0), np.arange(12.0)
    others[:3] = 9.0
    found = bootstrap_items(scores, others, parts=["few"] * 3 + ["many"] * 9, samples=200)
    assert found["first"] == pytest.approx((scores[:3].mean() + scores[3:].mean()) / 2)
    assert found["difference"] == pytest.approx(4)  # of the pooled items it is 2
    one, same = (bootstrap_items(scores, others[::-1], parts=parts) for parts in (None, ["all"] * 12))
    assert one == same
    apart = bootstrap_items(scores, scores[::-1], parts=[str(place) for place in range(12)])
    assert apart["low"] == apart["high"] == 0  # each is drawn once, always


def test_scores_of_different_items_are_refused():
    for first, second, gold in (([1.0], [1.0, 2.0], None), ([], [], None), ([1.0, 2.0], [1.0, 2.0], [1.0])):
        with pytest.raises(UserError, match="not of the same items"):
            bootstrap_items(first, second, gold=gold)


seeds = st.tuples(st.floats(-10, 10), st.floats(0.01, 5), st.integers(2, 9))


@given(seeds, seeds)
def test_seeds_are_compared_by_welchs_test(first, second):
    parts = [deviation**2 / count for _, deviation, count in (first, second)]
    freedom = sum(parts) ** 2 / sum(part**2 / (one[2] - 1) for part, one in zip(parts, (first, second), strict=True))
    expected = 2 * student_t.sf(abs(first[0] - second[0]) / sum(parts) ** 0.5, freedom)
    assert compare_seeds(first, second) == pytest.approx(expected, abs=1e-9)


def test_seeds_that_never_vary_differ_or_do_not():
    assert compare_seeds((0.5, 0.0, 3), (0.5, 0.0, 3)) == 1
    assert compare_seeds((0.5, 0.0, 3), (0.6, 0.0, 3)) == 0
