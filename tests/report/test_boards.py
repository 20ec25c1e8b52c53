import json
import math
import statistics
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_ind_from_stats

from run_folders import make_run, make_sentences_run, make_turn, make_words_run
from turncoder.report.boards import Board, Named, Value, build_models, group_runs
from turncoder.report.comparison import Difference, compare_rungs
from turncoder.report.runrows import open_files
from turncoder.report.seeds import gather_seeds
from turncoder.report.taskboards import build_tasks, build_words

scores = st.lists(st.tuples(st.floats(0, 1), st.floats(0.001, 0.2), st.integers(2, 6)), min_size=2, max_size=5)


def name(*folders):
    return [Named(folder.name, open_files(folder)) for folder in folders]


def change(folder, **parts):
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, **parts}))
    return folder


def compared(first, second, difference, p=0.001):
    return Difference("", "", "", first, second, {"difference": difference, "p": p})


@given(scores, st.sampled_from(["loss", "accuracy"]))
@settings(deadline=None)
def test_the_best_is_the_one_that_welchs_test_tells_from_every_other(found, measure):
    board = Board("", {(str(at), measure): Value(*one) for at, one in enumerate(found)}, {measure: measure})
    best = board.find_best(measure)
    ahead = []
    for at, one in enumerate(found):
        better = [one[0] < other[0] if measure == "loss" else one[0] > other[0] for other in found]
        p = [ttest_ind_from_stats(*one, *other, equal_var=False).pvalue for other in found]
        if all(better[other] and p[other] < 0.05 for other in range(len(found)) if other != at):
            ahead.append(str(at))
    assert [best] == (ahead or [None])


def test_without_an_error_nothing_is_marked_and_what_has_no_direction_never_is():
    values = {("a", "loss"): Value(1.0), ("b", "loss"): Value(9.0, 0.01, 3), ("a", "seconds"): Value(1.0, 0.0, 3)}
    board = Board("", {**values, ("b", "seconds"): Value(2.0, 0.0, 3)}, {"loss": "loss", "seconds": "time"})
    assert board.find_best("loss") is None and board.find_best("seconds") is None
    board.values["a", "loss"] = Value(1.0, 0.01, 3)
    assert board.find_best("loss") == "a"
    board.values["c", "loss"] = Value(math.nan)
    assert board.find_best("loss") == "a"
    board.values["c", "loss"] = Value(8.0)
    assert board.find_best("loss") is None


def test_seeds_and_items_both_have_to_tell_runs_apart():
    values = {("a", "accuracy"): Value(0.9, 0.01, 3), ("b", "accuracy"): Value(0.5, 0.01, 3)}
    board = Board("", values, {"accuracy": "top-1"})
    assert board.find_best("accuracy") == "a"
    board.judge("accuracy", compared("b", "a", 0.4, p=0.2))
    assert board.find_best("accuracy") is None
    single = Board("", {("a", "mrr@10"): Value(0.5, 0.05), ("b", "mrr@10"): Value(0.45, 0.05)}, {"mrr@10": "MRR@10"})
    assert single.find_best("mrr@10") is None
    single.judge("mrr@10", compared("a", "b", -0.05))  # paired is sharper than two standard errors
    assert single.find_best("mrr@10") == "a"


def test_a_test_of_another_score_or_in_the_other_direction_marks_nothing():
    for found, best in (
        (compared("a", "b", 0.2), "b"),
        (compared("b", "a", -0.2), "b"),
        (compared("a", "b", -0.3), None),
        (compared("b", "a", 0.3), None),
        (replace(compared("a", "b", 0.2), judges=False), None),
        (replace(compared("a", "b", 0.2), found=None), None),
    ):
        board = Board("", {("a", "f1"): Value(0.5), ("b", "f1"): Value(0.7)}, {"f1": "F1"})
        board.judge("f1", found)
        assert board.find_best("f1") == best, found


def test_runs_that_differ_in_their_seed_alone_are_one_with_a_deviation(tmp_path):
    runs = name(*(make_turn(tmp_path / f"turn-{seed}", seed=seed) for seed in (1, 2, 3)))
    assert [len(group) for group in group_runs(runs)] == [3]
    named = gather_seeds(runs)
    assert list(named) == ["turn-1 and 2 other seeds"]
    board = build_models("", named, "turn")
    rows = [json.loads((tmp_path / f"turn-{seed}" / "results.json").read_text())["rows"] for seed in (1, 2, 3)]
    values = [one[-1]["mrr@10"] for one in rows]
    value = board.values["+ SimCSE", "mrr@10"]
    assert value.count == 3 and value.mean == pytest.approx(sum(values) / 3)
    assert value.spread == pytest.approx(math.sqrt(sum((one - value.mean) ** 2 for one in values) / 2))


def test_what_no_seed_moves_is_not_told_apart_by_seeds():
    """Two rankings of ten documents, neither of them trained: three seeds know no more of them than one."""
    values = {(name, "mrr@10"): Value(mean, 0.0, 3) for name, mean in (("causal", 0.612), ("bidirectional", 0.606))}
    board = Board("", values, {"mrr@10": "MRR@10"})
    assert Value(0.612, 0.0, 3).beyond(Value(0.606, 0.0, 3)) is None and board.find_best("mrr@10") is None
    board.judge("mrr@10", compared("bidirectional", "causal", 0.006, p=0.3))
    assert board.find_best("mrr@10") is None
    board.judge("mrr@10", compared("bidirectional", "causal", 0.006, p=0.01))
    assert board.find_best("mrr@10") == "causal"


def test_documents_count_with_their_mean_over_seeds(tmp_path):
    turns = [open_files(make_turn(tmp_path / f"turn-{seed}", seed=seed)) for seed in (1, 2, 3)]
    found = compare_rungs(turns, "causal", "+ SimCSE")
    ranks = [{row["name"]: row["ranks"] for row in turn.results["rows"]} for turn in turns]
    gains = {
        name: statistics.fmean(1 / rank if rank <= 10 else 0 for one in ranks for rank in one[name])
        for name in ("causal", "+ SimCSE")
    }
    expected = gains["+ SimCSE"] - gains["causal"]
    assert found.found["difference"] == pytest.approx(expected) and "mean of 3 seeds" in found.told
    fewer = open_files(make_turn(tmp_path / "fewer", documents=10))
    assert compare_rungs([*turns, fewer], "causal", "+ SimCSE") is None
    assert compare_rungs(turns, "BM25 (words)", "gone") is None


def test_encoders_that_differ_in_a_seed_of_their_training_are_one_on_tasks(tmp_path):
    """Runs of one recipe, each on a run of its own: evaluations of their models have one column."""
    folders = []
    for seed in (1, 2, 3):
        parent, child = make_run(tmp_path / f"mntp-{seed}", seed=seed), make_run(tmp_path / f"simcse-{seed}", seed=seed)
        change(child, stage="simcse", config={"seed": seed, "model_name_or_path": str(parent)})
        folders.append(make_sentences_run(tmp_path / f"scored-{seed}", better=seed / 10))
        change(folders[-1], config={"model_name_or_path": str(child / "model"), "output_dir": "x"})
    alone = make_sentences_run(tmp_path / "alone", better=0.9)
    board, _ = build_tasks("sentences", name(*folders, alone))
    assert board.runs == ["scored-1 and 2 other seeds", "alone"] and "deviation" in board.title
    (sts,) = [measure for measure, told in board.headings.items() if told.startswith("sts")]
    scores = [json.loads((folder / "results.json").read_text())["tasks"]["sts"]["main_score"] for folder in folders]
    value = board.values[board.runs[0], sts]
    assert (value.mean, value.spread, value.count) == pytest.approx(
        (statistics.fmean(scores), statistics.stdev(scores), 3)
    )
    assert board.values["scored-1 and 2 other seeds: static", sts].count == 3
    assert board.models[:2] == board.runs and not any(model.startswith("scored-2") for model in board.models)

    results = json.loads((folders[1] / "results.json").read_text())
    for task in results["tasks"].values():
        task["baselines"] = {}  # --no-baselines
    (folders[1] / "results.json").write_text(json.dumps(results))
    child = json.loads((folders[1] / "run.json").read_text())["config"]
    change(folders[1], config={**child, "task_file": ["sts=a.tsv"]})  # the other task by another command
    board, _ = build_tasks("sentences", name(*folders))
    assert board.runs == ["scored-1 and 2 other seeds"]
    assert {"scored-1: static", "scored-3: static"} < {*board.models}

    change(tmp_path / "mntp-3", config={"seed": 3, "mlm_probability": 0.5})  # another recipe, two runs back
    board, _ = build_tasks("sentences", name(*folders))
    assert board.runs == ["scored-1 and 1 other seed", "scored-3"]


def test_runs_of_another_configuration_or_status_or_the_same_seed_stand_apart(tmp_path):
    folders = [make_turn(tmp_path / f"turn-{seed}", seed=seed) for seed in (1, 2, 3)]
    folders.append(make_turn(tmp_path / "wide", seed=4, steps_mntp=9))
    folders.append(make_turn(tmp_path / "cut", seed=5, status="interrupted"))
    assert [len(same) for same in gather_seeds(name(*folders)).values()] == [3, 1, 1]
    again = make_turn(tmp_path / "again", seed=1)
    assert [len(same) for same in gather_seeds(name(folders[0], again)).values()] == [1, 1]


def test_runs_of_other_data_are_never_in_one_group(tmp_path):
    runs = name(
        make_turn(tmp_path / "a"),
        make_turn(tmp_path / "b", fingerprint="other"),
        make_turn(tmp_path / "c", sts="other.tsv"),
        make_turn(tmp_path / "d", steps_mntp=7),
    )
    assert [[run.name for run in group] for group in group_runs(runs)] == [["a", "d"], ["b"], ["c"]]
    unknown = name(make_run(tmp_path / "e"), make_run(tmp_path / "f"))
    assert [len(group) for group in group_runs(unknown)] == [1, 1]


def test_a_causal_control_is_measured_at_the_masks_of_mntp(tmp_path):
    data = {"data": {"fingerprint": "same"}}
    mntp = change(make_run(tmp_path / "mntp", data_collator_type="default"), **data)
    control = change(make_run(tmp_path / "control", data_collator_type="unmasked", bidirectional=False), **data)
    hidden = change(make_run(tmp_path / "hidden", data_collator_type="all_mask"), **data)
    assert [len(group) for group in group_runs(name(mntp, control, hidden))] == [2, 1]
    named = gather_seeds(name(mntp, control))
    board = build_models("", named, "mntp")
    assert board.models == ["causal", "bidirectional", "mntp: +MNTP", "control: +causal training"]


def test_words_scored_on_other_words_have_boards_of_their_own(tmp_path):
    one, other = make_words_run(tmp_path / "a"), make_words_run(tmp_path / "b", sentences=100)
    boards, warnings = build_words(name(one, other))
    assert [board.models for board in boards] == [["a"], ["b"]]
    assert len(warnings) == 1 and "upos: a and b were measured on different words" in warnings[0]
    boards, warnings = build_words(name(one, make_words_run(tmp_path / "c")))
    assert [board.models for board in boards] == [["a", "c"]] and not warnings


def test_tasks_have_a_mean_where_all_runs_were_scored_on_the_same(tmp_path):
    one, other = make_sentences_run(tmp_path / "a"), make_sentences_run(tmp_path / "b", better=0.5)
    board, warnings = build_tasks("sentences", name(one, other))
    assert not warnings
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    scores = [told["main_score"] for told in results["tasks"].values()]
    assert board.values["a", "mean"].mean == pytest.approx(sum(scores) / 2)
    assert board.models == ["a", "b", "BM25", "TF-IDF", "a: static", "b: static"]
    board, warnings = build_tasks("sentences", name(one, make_sentences_run(tmp_path / "c", revision="r2")))
    assert "mean" not in board.headings and len(board.headings) == 4
    assert len(warnings) == 2 and "neither averaged nor ranked together" in warnings[0]
    fewer = make_sentences_run(tmp_path / "d", tasks=("sts",))
    board, warnings = build_tasks("sentences", name(one, fewer))
    assert ("d", "mean") not in board.values and ("a", "mean") in board.values and not warnings


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"fingerprint": "f", "baselines": {}, "texts": 7}, {"fingerprint": "f", "baselines": {"bm25": 0.5}}, True),
        ({"fingerprint": "f"}, {"fingerprint": "g"}, False),
        ({"baselines": {}, "items": None}, {}, True),
        ({"mteb": "2.26.0"}, {}, True),
        ({"mteb": "2.25.0"}, {}, False),
        ({"data": {"revision": "r1", "splits": ["test"], "subsets": ["de"]}}, {}, False),
        ({"data": {"revision": "r1", "splits": ["dev"], "subsets": ["default"]}}, {}, False),
    ],
)
def test_data_are_told_by_their_fingerprint_or_revision_and_parts_alone(tmp_path, one, other, same):
    folders = [make_sentences_run(tmp_path / folder, tasks=("sts",)) for folder in "ab"]
    for folder, change in zip(folders, (one, other), strict=True):
        results = json.loads((folder / "results.json").read_text())
        results["tasks"]["sts"] |= change
        (folder / "results.json").write_text(json.dumps(results))
    board, warnings = build_tasks("sentences", name(*folders))
    assert (len(board.headings), bool(warnings)) == ((1, False) if same else (2, True))
