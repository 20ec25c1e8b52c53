"""Runs on named tasks: scores that are there keep the version of what scored them; what failed is said."""

import json
from pathlib import Path
from typing import Any

import pytest

from turncoder.config.sentences import SentencesConfig
from turncoder.errors import UnfinishedError, UserError
from turncoder.evaluate.taskruns import NO_NETWORK, keep_files, open_scores, score_tasks
from turncoder.train.running import Run
from turncoder.train.stage import perform

MODEL = {"fingerprint": "f", "parameters": 1}


def test_each_score_keeps_the_version_that_gave_it(tmp_path: Path) -> None:
    tasks = {"old": {"main_score": 0.1}, "new": {"main_score": 0.2, "mteb": "2.0"}}
    whole = {"model": MODEL, "mteb": "1.0", "tasks": tasks}
    (tmp_path / "results.json").write_text(json.dumps(whole), encoding="utf8")
    found = open_scores(tmp_path, "m", library="mteb", **MODEL)
    assert {name: told["mteb"] for name, told in found["tasks"].items()} == {"old": "1.0", "new": "2.0"}
    assert "mteb" not in found
    with pytest.raises(UserError, match="its weights have changed"):
        open_scores(tmp_path, "m", library="mteb", fingerprint="g", parameters=1)
    assert open_scores(None, "m", library="mteb", fingerprint="g", parameters=1)["tasks"] == {}


def test_files_are_kept_while_a_score_stands_that_only_they_asked_for() -> None:
    done = {
        "sts_pairs": {"file": "pairs.tsv"},
        "bitext_a": {"file": "a.txt,b.txt"},
        "last_word_story": {"file": str(Path("~/story.txt").expanduser())},
        "STS12": {},
    }
    specs = ["sts=pairs.tsv", "pair_classification=pairs.tsv", "bitext=a.txt,b.txt", "~/story.txt", "sts=gone.tsv"]
    assert keep_files(specs, done, ()) == ["sts=pairs.tsv", "bitext=a.txt,b.txt", "~/story.txt"]
    assert keep_files(specs, done, {"sts_pairs", "last_word_story"}) == ["bitext=a.txt,b.txt"]


def evaluate(folder: Path, *names: str, wrong: tuple[str, ...] = (), absent: tuple[str, ...] = ()) -> None:
    """Score tasks by name in a run, of which some go wrong."""

    def score(name: str) -> dict[str, Any]:
        if name in wrong:
            raise UserError("gated")
        return {"main_score": 0.5, "main_metric": "accuracy", "texts": 1, "baselines": {}}

    def work(config: Any, run: Run) -> None:
        results = open_scores(run.folder, "m", library="mteb", **MODEL)
        failed = dict.fromkeys(absent, NO_NETWORK)
        score_tasks(run, results, names, score, summarise=lambda told: told["main_score"], failed=failed, started=0)

    config = SentencesConfig(model_name_or_path="m", tasks=(*names, *absent) or ("a",), output_dir=str(folder))
    perform(config, "sentences", work)


def test_what_scores_nothing_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(UserError, match="none of them can be scored: a"):
        evaluate(folder, "a", wrong=("a",))
    assert not folder.exists()
    evaluate(folder, "a")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match=r"b could not be scored .* leave b out of --tasks or --task_file to finish"):
        evaluate(folder, "b", wrong=("b",))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_what_scores_a_part_leaves_a_report_and_can_be_finished_without_the_rest(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(UnfinishedError, match="give the same command again where there is a network"):
        evaluate(folder, "a", absent=("b",))
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "failed" and "b could not be scored" in record["error"]
    assert (folder / "report.html").exists()
    with pytest.raises(UnfinishedError, match=r"give the same command again$"):
        evaluate(folder, "c", "b", wrong=("b",))
    evaluate(folder)
    record = json.loads((folder / "run.json").read_text())
    assert (record["status"], "error" in record, [*record["results"]]) == ("done", False, ["a", "c"])
