"""What stages share: a run that fails is undone only where nothing is lost, and prompts have their names."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset

from turncoder.config.sentences import SentencesConfig
from turncoder.config.stages import SimcseConfig
from turncoder.data.pairs import Rows
from turncoder.errors import UserError
from turncoder.train import stage
from turncoder.train.contrast import _name_prompts
from turncoder.train.recording import _tell
from turncoder.train.running import Run
from turncoder.train.stage import perform


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError])
def test_runs_within_a_run_survive_its_failure(tmp_path: Path, error: type[BaseException]) -> None:
    config = SimcseConfig(model_name_or_path="m", train_file="t", output_dir=str(tmp_path / "run"))

    def work(config: SimcseConfig, run: Run) -> None:
        (run.folder / "mntp").mkdir(exist_ok=True)
        raise error("stopped")

    for _ in range(2):  # and the same again is not refused
        with pytest.raises(error):
            perform(config, "turn", work)
        assert (tmp_path / "run/run.json").exists() and (tmp_path / "run/mntp").exists()


def test_a_run_of_wrong_input_leaves_nothing(tmp_path: Path) -> None:
    config = SimcseConfig(model_name_or_path="m", train_file="t", output_dir=str(tmp_path / "run"))

    def work(config: SimcseConfig, run: Run) -> None:
        raise UserError("wrong")

    with pytest.raises(UserError):
        perform(config, "simcse", work)
    assert not (tmp_path / "run").exists()


def test_what_is_replaced_goes_when_the_new_run_is_done(tmp_path: Path) -> None:
    config = SimcseConfig(model_name_or_path="m", train_file="t", output_dir=str(tmp_path / "run"))
    perform(config, "turn", lambda config, run: None)
    again = SimcseConfig(model_name_or_path="m", train_file="t", output_dir=str(tmp_path / "run"), overwrite=True)
    perform(again, "turn", lambda config, run: None)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_commands_that_add_to_a_run_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for files in ("sts=a", "sts=b", "sts=a"):
        monkeypatch.setattr("sys.argv", ["turncoder", files])
        config = SentencesConfig(model_name_or_path="m", task_file=(files,), output_dir=str(tmp_path / "run"))
        perform(config, "sentences", lambda config, run: None)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["command"] == ["turncoder", "sts=a"]
    assert [one["command"] for one in record["added"]] == [["turncoder", "sts=b"]]


HOLD = """
import pathlib, sys, time
from turncoder.disk import lock_output
with lock_output(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_that_another_process_writes_is_left_alone(
    overwrite: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = SimcseConfig(model_name_or_path="m", train_file="t", output_dir=str(tmp_path / "run"))
    with pytest.raises(KeyboardInterrupt):
        perform(config, "turn", interrupt)
    again = SimcseConfig(model_name_or_path="m", train_file="t", output_dir=str(tmp_path / "run"), overwrite=overwrite)
    before = (tmp_path / "run/run.json").read_text()
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        monkeypatch.setattr(stage, "ENDING_S", 0.3)
        with pytest.raises(UserError, match=r"--output .*run: another job is writing there; wait, or choose"):
            perform(again, "turn", lambda config, run: None)
        assert "waiting up to 0.3 s" in caplog.text
        assert (tmp_path / "run/run.json").read_text() == before
        assert {path.name for path in tmp_path.iterdir()} == {"run", ".run.lock"}
        other.kill()
    perform(again, "turn", lambda config, run: None)  # a killed process lets go
    assert json.loads((tmp_path / "run/run.json").read_text())["status"] == "done"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_new_run_is_held_and_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "ENDING_S", 0)
    config = SimcseConfig(model_name_or_path="m", train_file="t", output_dir=str(tmp_path / "run"))

    def work(config: SimcseConfig, run: Run) -> None:
        with pytest.raises(UserError, match="another job"):
            perform(config, "turn", interrupt)
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            perform(config, "turn", work)


def interrupt(config: SimcseConfig, run: Run) -> None:
    run.log({"step": 1})
    raise KeyboardInterrupt


def make_rows(name: str, **prompts: str) -> Rows:
    return Rows(name, Dataset.from_dict({"anchor": ["a"], "positive": ["b"], "negative_1": ["c"]}), prompts)


@pytest.mark.parametrize(
    ("sets", "named"),
    [
        ([make_rows("a", anchor="q", positive="d", negative_1="d")], {"query": "q", "document": "d"}),
        ([make_rows("a", anchor="q"), make_rows("b", anchor="q")], {"query": "q"}),
        ([make_rows("a", anchor="q"), make_rows("b", anchor="r", positive="r")], {"a": "q", "b": "r"}),
        ([make_rows("a", anchor="q", positive="d"), make_rows("b")], {"a": "q", "a_document": "d"}),
        ([make_rows("a")], {}),
        ([Rows("texts", Dataset.from_dict({"text": ["a"]}), {"text": "t"})], {"text": "t"}),
    ],
)
def test_every_prompt_that_was_trained_with_is_kept(sets: list[Rows], named: dict[str, str]) -> None:
    assert _name_prompts(sets) == named


def test_counts_are_whole_and_small_numbers_have_four_digits() -> None:
    told = {
        15494: "15,494",
        11862.4: "11,862",
        9999.7: "10,000",
        9999: "9999",
        0.0123456: "0.01235",
        8.2012e-7: "8.201e-07",
    }
    assert {value: _tell(value) for value in told} == told
