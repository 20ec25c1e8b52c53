import json
from pathlib import Path

import pytest

from run_folders import make_sentences_run
from turncoder.publish.cardscores import _index
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
