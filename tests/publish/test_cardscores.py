import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCardData

from run_folders import make_run, make_sentences_run, make_turn, make_words_run
from turncoder.errors import UserError
from turncoder.publish.bundle import Bundle
from turncoder.publish.cardscores import _find_scored, _index, find_scores
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


def test_tasks_on_one_file_have_their_own_entries_in_the_header(tmp_path: Path) -> None:
    entries = _index(read_run(make_words_run(tmp_path / "run", ("upos", "xpos"))))
    (model,) = yaml.safe_load(ModelCardData(model_name="me/mine", eval_results=entries).to_yaml())["model-index"]
    assert [one["task"]["name"] for one in model["results"]] == ["probe upos", "probe xpos"]
    scores = {one.task_name: one.metric_value for one in entries if one.metric_type == "macro_f1"}
    for one in model["results"]:
        (found,) = (metric["value"] for metric in one["metrics"] if metric["type"] == "macro_f1")
        assert found == scores[one["task"]["name"]]


def test_a_score_that_is_no_number_is_left_out_and_shown_as_nothing(tmp_path: Path) -> None:
    run = make_sentences_run(tmp_path / "run")
    results = json.loads((run / "results.json").read_text())
    results["tasks"]["sts"]["main_score"] = None  # the rank correlation of cosines that are all the same
    (run / "results.json").write_text(json.dumps(results))
    assert [one.dataset_name for one in _index(read_run(run))] == ["find"]
    write_report([run], tmp_path / "report.md")
    assert "find (ndcg" in (tmp_path / "report.md").read_text()


def test_a_table_says_what_was_measured_on_how_much_and_with_which_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("turncoder.publish.cardscores.check_scores", lambda scored: None)
    (tmp_path / "mine").mkdir()
    bundle, model = Bundle("encoder", tmp_path / "mine"), {"model_name_or_path": str(tmp_path / "mine")}
    scored = make_sentences_run(tmp_path / "scored", dtype="bfloat16", **model)
    results = json.loads((scored / "results.json").read_text())
    results["tasks"]["sts"]["prompts"] = {"text": "A|B:\n", "document": None}
    (scored / "results.json").write_text(json.dumps(results))
    words = [make_words_run(tmp_path / name, **model) for name in ("probe", "other")]
    tables, index = find_scores(bundle, (str(scored), str(words[0])), "me/mine")
    assert [title for title, _ in tables] == ["`scored`: tasks of mteb 2.26.0, in bfloat16", "`probe`: labels of words"]
    head, _, first, second = tables[0][1].splitlines()
    assert head.endswith("| texts | prompts |")
    assert first.endswith('| 80 | text: `"A\\|B:\\n"` |') and second.endswith("| 80 | none |")
    assert tables[1][1].splitlines()[0].endswith("| words |") and tables[1][1].endswith("| 1,600 |")
    assert [(one.dataset_split, one.dataset_revision) for one in index[:2]] == [("test", "r1")] * 2
    with pytest.raises(UserError, match=r"probe and .*other both have .* of probe upos on test.conllu; leave one"):
        find_scores(bundle, tuple(map(str, words)), "me/mine")
    again = make_sentences_run(tmp_path / "again", tasks=("sts",), **model)
    with pytest.raises(UserError, match=r"scored and .*again both have cosine_spearman of sts on sts; leave one"):
        find_scores(bundle, (str(scored), str(again)), "me/mine")
    with pytest.raises(UserError, match=r"trained is a run of mntp; name what evaluate or words wrote"):
        find_scores(bundle, (str(make_run(tmp_path / "trained", **model)),), "me/mine")


def test_the_table_of_a_turn_is_explained(tmp_path: Path) -> None:
    turn = make_turn(tmp_path / "turned")
    ((title, table),) = find_scores(Bundle("encoder", turn / "mntp/model", turn / "mntp"), (), "me/mine")[0]
    assert title == "What each step of the turn gave" and table.endswith("\n\nWhat each step gave\n\nOne line.")


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
            _find_scored(Bundle("encoder", tmp_path), run, "me/model")
