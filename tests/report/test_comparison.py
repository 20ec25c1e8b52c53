"""What is tested between two runs is what the table shows, computed here from the items themselves."""

import json

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score

from run_folders import make_sentences_run
from turncoder.report.boards import Named
from turncoder.report.comparison import compare_runs
from turncoder.report.runrows import open_files
from turncoder.report.scoresections import build_scores

SIZES = {"test/en": 60, "test/de": 25, "test/fr": 40}


def measure(kind, part):
    """The main score of a part."""
    if kind == "spearman":
        return spearmanr(part["cosine"], part["gold"]).statistic
    if kind == "precision":
        return average_precision_score(part["gold"], part["cosine"])
    return np.mean(part["score"])


def write(folder, kind, parts, main_metric, *, main_score=None, **told):
    """A run on one task; its score is the mean over its parts, or what is given."""
    make_sentences_run(folder, tasks=())
    items = "accuracy" if kind == "mean" else "cosine"
    (folder / "items" / "task.json").write_text(json.dumps({"metric": items, "parts": parts}))
    mean = float(np.mean([measure(kind, part) for part in parts.values()]))
    scored = {"main_metric": main_metric, "main_score": mean if main_score is None else main_score, **told}
    scored |= {"type": "PairClassification" if kind == "precision" else "STS", "data": {"revision": "r"}}
    (folder / "results.json").write_text(json.dumps({"tasks": {"task": scored}}))
    return open_files(folder)


def draw(kind, seed, noise):
    """Parts whose scores have their own offset, so that pairs of all parts together rank otherwise."""
    rng, shared = np.random.default_rng(seed), np.random.default_rng(0)
    parts = {}
    for place, (name, size) in enumerate(SIZES.items()):
        gold = shared.integers(0, 2 if kind == "precision" else 5, size)
        cosine = np.round((gold + noise * rng.normal(size=size)) / 10 + place * seed, 3)
        parts[name] = {"cosine": cosine.tolist(), "gold": gold.tolist()}
        if kind == "mean":
            parts[name] = {"score": (rng.random(size) > noise / 3).astype(float).tolist()}
    return parts


@pytest.mark.parametrize(
    ("kind", "metric"), [("spearman", "cosine_spearman"), ("precision", "max_ap"), ("mean", "accuracy")]
)
def test_items_are_drawn_within_each_part_and_the_mean_over_parts_is_compared(tmp_path, kind, metric):
    first, second = draw(kind, 0, 1.5), draw(kind, 7, 0.7)
    runs = [write(tmp_path / name, kind, parts, metric) for name, parts in (("a", first), ("b", second))]
    (found,) = compare_runs(*runs, ("a", "b"))
    assert found.found is not None and found.judges and found.told == metric
    board = [run.results["tasks"]["task"]["main_score"] for run in runs]
    assert [found.found["first"], found.found["second"]] == pytest.approx(board)
    assert found.found["difference"] == pytest.approx(board[1] - board[0])
    rng, drawn = np.random.default_rng(99), []
    for _ in range(500):
        places = {name: rng.choice(size, size) for name, size in SIZES.items()}
        both = [
            np.mean([measure(kind, {key: np.array(one)[places[name]] for key, one in part.items()})
                     for name, part in parts.items()])
            for parts in (first, second)
        ]  # fmt: skip
        drawn.append(both[1] - both[0])
    width = np.percentile(drawn, 97.5) - np.percentile(drawn, 2.5)
    assert [found.found["low"], found.found["high"]] == pytest.approx(
        list(np.percentile(drawn, (2.5, 97.5))), abs=0.2 * width
    )
    assert found.found["p"] < 0.01


@pytest.mark.parametrize(
    ("kind", "metric", "change"),
    [
        ("mean", "f1", {}),  # as of translations
        ("spearman", "alpha_auc", {}),
        ("precision", "max_accuracy", {}),
        ("precision", "max_ap", {"main_score": 0.97}),  # of another similarity, which is better
        ("spearman", "cosine_spearman", {"main_score": 0.3}),
    ],
)
def test_what_is_not_the_score_of_the_table_says_so_and_marks_nothing(tmp_path, kind, metric, change):
    runs = [
        write(tmp_path / "a", kind, draw(kind, 0, 1.5), metric),
        write(tmp_path / "b", kind, draw(kind, 7, 0.5), metric, **change),
    ]
    (found,) = compare_runs(*runs, ("a", "b"))
    assert found.found is not None and found.found["p"] < 0.01 and not found.judges
    assert f"of the items, not the {metric} of the table" in found.told
    cells = [cell for cell in page_table(runs) if cell.best]
    assert not cells


def page_table(runs):
    (section,) = build_scores([Named(run.folder.name, run) for run in runs])
    return section.parts[0].rows[0][1:]


def test_the_best_is_marked_where_the_score_of_the_table_is_ahead(tmp_path):
    runs = [
        write(tmp_path / name, "spearman", draw("spearman", seed, noise), "cosine_spearman")
        for name, seed, noise in (("a", 0, 1.5), ("b", 7, 0.5))
    ]
    pooled = [
        spearmanr(*(np.concatenate([part[key] for part in parts.values()]) for key in ("cosine", "gold"))).statistic
        for parts in (draw("spearman", 0, 1.5), draw("spearman", 7, 0.5))
    ]
    assert pooled[1] < pooled[0]  # of all pairs together the other one would be ahead
    assert [cell.best for cell in page_table(runs)] == [False, True]


def test_an_item_without_a_score_is_not_compared(tmp_path):
    parts = draw("spearman", 0, 1.0)
    parts["test/en"]["cosine"][3] = None
    first = write(tmp_path / "a", "spearman", draw("spearman", 0, 1.0), "cosine_spearman")
    second = write(tmp_path / "b", "mean", draw("mean", 0, 1.0), "cosine_spearman")
    (second.folder / "items" / "task.json").write_text(json.dumps({"metric": "cosine", "parts": parts}))
    (found,) = compare_runs(first, second, ("a", "b"))
    assert found.tell() == "task: not compared, an item has no score"
