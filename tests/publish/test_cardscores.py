import json
from pathlib import Path

import pytest

from run_folders import make_sentences_run
from turncoder.errors import UserError
from turncoder.publish.bundle import Bundle
from turncoder.publish.cardscores import _check_scored, _index
from turncoder.report.summary import read_run, write_report


def test_the_header_has_the_scores_of_the_model_and_of_nothing_else(tmp_path: Path) -> None:
    run = make_sentences_run(tmp_path / "run", better=0.5)
    entries = [(one.task_type, one.dataset_name, one.metric_type, one.metric_value) for one in _index(read_run(run))]
    scores = {
        task: told["main_score"] for task, told in json.loads((run / "results.json").read_text())["tasks"].items()
    }
    assert entries == [
        ("STS", "sts", "cosine_spearman", pytest.approx(scores["sts"], abs=1e-6)),
        ("Retrieval", "find", "ndcg_at_10", pytest.approx(scores["find"], abs=1e-6)),
    ]


def test_a_score_that_is_no_number_is_left_out_and_shown_as_nothing(tmp_path: Path) -> None:
    run = make_sentences_run(tmp_path / "run")
    results = json.loads((run / "results.json").read_text())
    results["tasks"]["sts"]["main_score"] = None  # the rank correlation of cosines that are all the same
    (run / "results.json").write_text(json.dumps(results))
    assert [one.dataset_name for one in _index(read_run(run))] == ["find"]
    write_report([run], tmp_path / "report.md")
    assert "find (ndcg" in (tmp_path / "report.md").read_text()


def test_results_of_an_evaluation_that_failed_say_what_it_said(tmp_path: Path) -> None:
    run = make_sentences_run(tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    record["config"]["model_name_or_path"] = "me/model"
    for error, said in (
        ("leave SciFact out", r"is failed \(leave SciFact out\)"),
        (None, "the same command as before"),
    ):
        (run / "run.json").write_text(json.dumps({**record, "status": "failed", "error": error}))
        with pytest.raises(UserError, match=said):
            _check_scored(Bundle("encoder", tmp_path), run, "me/model")
