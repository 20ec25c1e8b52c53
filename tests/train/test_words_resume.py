"""Runs of ``words`` that are cut off go on as if nothing had been; checkpoints can be scored; processes agree."""

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import (
    BOTH,
    GRADIENT,
    PROCESS,
    check_same_steps,
    kill_after_checkpoint,
    launch,
    launch_process,
    losses,
    metrics,
    write_words,
)
from safetensors.torch import load_file
from tagging_models import command

ONCE = {**{name: value for name, value in GRADIENT.items() if name != "do_eval"}, "num_train_epochs": None}
ONCE |= {"classifier_dropout": 0.0, "eval_strategy": "no", "learning_rate": 0.1, "early_stopping_patience": None}
LONG = {"num_train_epochs": 6, "save_strategy": "steps", "save_steps": 5, "early_stopping_patience": "none"}
LONG |= {"eval_strategy": "steps", "eval_steps": 15, "learning_rate": 1e-2}


@pytest.fixture(autouse=True)
def _environment(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNCODER_CACHE", str(tmp_path_factory.getbasetemp() / "words cache"))


@pytest.fixture
def write(treebank: Path, tiny: Callable[[str], Path]) -> Callable[..., list[str]]:
    """Write the command of a run."""

    def give(folder: Path, model: str = "llama", **changes: Any) -> list[str]:
        files = {"validation_file": treebank / "dev.conllu", "test_file": treebank / "test.conllu"}
        flags = {**files, "task": ["upos", "xpos"], "train_mode": "full", **changes}
        return command(tiny(model), treebank / "train.conllu", folder, **flags)

    return give


def read_results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text(encoding="utf8"))


def heads(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "tagger" / "heads.safetensors")


def check_same_run(first: Path, second: Path) -> None:
    """Weights, predictions and scores are those of the other run, byte by byte."""
    names = ["tagger/heads.safetensors", "model/model.safetensors", "adapter/adapter_model.safetensors"]
    names = [name for name in names if (first / name).exists()]
    names += [str(path.relative_to(first)) for path in first.rglob("predictions.tsv")]
    assert len(names) >= 3
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    assert read_results(first)["tasks"] == read_results(second)["tasks"]
    rows = [
        [{key: value for key, value in row.items() if not key.endswith("per_second")} for row in metrics(folder)]
        for folder in (first, second)
    ]
    assert rows[0] == rows[1]


def check_same_gradients(first: Path, second: Path, start: Path) -> None:
    check_same_steps(first, second, start / "model.safetensors")
    one, two = heads(first), heads(second)
    assert one.keys() == two.keys()
    for name, weight in one.items():
        torch.testing.assert_close(weight, two[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_one_batch_of_eight_is_eight_of_one(
    mode: str, write: Callable[..., list[str]], tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    """Sentences differ in words: every label counts the same, whatever batch it is in."""
    for name, size in (("one", 8), ("eight", 1)):
        ways = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
        launch(write(tmp_path / name, train_mode=mode, **ONCE, **ways))
    check_same_gradients(tmp_path / "one", tmp_path / "eight", tiny("llama"))
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "eight"), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "model", "ways"),
    [
        ("full", "llama", {}),
        ("lora", "llama", {"gradient_accumulation_steps": 2}),
        ("full", "llama", {"layer": "1"}),
        ("full", "bert", {"gradient_checkpointing": True}),
        ("lora", "modernbert", {"alignment": "previous_token"}),
    ],
    ids=str,
)
def test_two_processes_equal_one(
    mode: str, model: str, ways: dict[str, Any], write: Callable[..., list[str]], tiny: Callable[[str], Path],
    tmp_path: Path,
) -> None:  # fmt: skip
    common = {"train_mode": mode, "model": model, **ONCE, **ways}
    launch(write(tmp_path / "one", per_device_train_batch_size=8, **common))
    launch_process([*BOTH, *write(tmp_path / "two", per_device_train_batch_size=4, **common)])
    check_same_gradients(tmp_path / "one", tmp_path / "two", tiny(model))
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "two"), rel=1e-5)
    records = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("one", "two")]
    assert records[0]["tokens"] == records[1]["tokens"] > 0
    assert records[1]["status"] == "done"


@pytest.mark.slow
def test_two_processes_probe_and_train_several_seeds(write: Callable[..., list[str]], tmp_path: Path) -> None:
    for way in ({"train_mode": "probe"}, {"train_mode": "lora", "max_steps": 2}):
        mode = {**way, "seeds": [1, 2], "learning_rate": 1e-2}
        for name, rows in (("one", 8), ("two", 4)):
            folder = tmp_path / f"{name}-{way['train_mode']}"
            size = {"per_device_train_batch_size": rows} if way["train_mode"] == "lora" else {}
            words = write(folder, **mode, **size)
            launch(words) if name == "one" else launch_process([*BOTH, *words])
    one, two = (read_results(tmp_path / f"{name}-probe")["tasks"] for name in ("one", "two"))
    assert one == two
    one, two = (read_results(tmp_path / f"{name}-lora")["tasks"]["upos"]["mean"] for name in ("one", "two"))
    assert one["token_accuracy"] == pytest.approx(two["token_accuracy"], abs=0.02)


WATCHED = """
import os, sys, time
from pathlib import Path
from turncoder.cli import main
from turncoder.train import features

write = features._write

def write_slowly(paths, work):
    Path("writers").open("a").write(f"{os.getpid()}\\n")
    time.sleep(2)  # in which the other comes to it too
    write(paths, work)

features._write = write_slowly
sys.exit(main())
"""


@pytest.mark.slow
def test_of_two_processes_one_computes_features(
    write: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TURNCODER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("watched.py").write_text(WATCHED)
    launch_process([*BOTH[: BOTH.index("-m", 2)], "watched.py", *write(tmp_path / "run", train_mode="probe")])
    writers = Path("writers").read_text().splitlines()
    assert len(writers) == 2 and len(set(writers)) == 1  # training and validation words


APART = """
import sys
from accelerate import PartialState
from turncoder.cli import main
from turncoder.train.finetuning import _Exam

judge, scores = _Exam.judge, iter(range(9))
_Exam.judge = lambda exam: {**judge(exam), "score": next(scores) * (1 - 2 * PartialState().process_index)}
sys.exit(main())
"""
"""Scores rise in one process and fall in the other."""


@pytest.mark.slow
def test_processes_whose_scores_differ_stop_together(
    write: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("apart.py").write_text(APART)
    flags = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 1, "early_stopping_patience": 1}
    launch_process([*BOTH[: BOTH.index("-m", 2)], "apart.py", *write(tmp_path / "run", **flags)])
    assert [row["eval_score"] for row in metrics(tmp_path / "run") if "eval_score" in row] == [0, 1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["lora", "full"])
def test_a_run_that_is_killed_resumes_exactly(mode: str, write: Callable[..., list[str]], tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    launch(write(whole, train_mode=mode, **LONG))
    kill_after_checkpoint([*PROCESS, *write(cut, train_mode=mode, **LONG)], cut, 10)
    launch(write(cut, train_mode=mode, **LONG))
    check_same_run(whole, cut)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["lora", "full"])
def test_the_best_step_is_kept_also_after_a_kill(mode: str, write: Callable[..., list[str]], tmp_path: Path) -> None:
    """Chosen on words that are all nouns, the best step is one of the first: those before it finds other kinds."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    rows = "".join(f"{word}\tNOUN\n" for word in ("a", "house", "of", "cards", "that", "dogs", "bury", "in", "gardens"))
    (tmp_path / "dev").write_text(f"# global.columns = FORM UPOS\n{rows}\n")
    flags = {**LONG, "early_stopping_patience": 99, "eval_steps": 5, "task": "upos", "num_train_epochs": 8}
    flags |= {"validation_file": tmp_path / "dev", "learning_rate": 1e-2 if mode == "full" else 1e-1}
    launch(write(whole, train_mode=mode, **flags))
    scores = {row["step"]: row["eval_score"] for row in metrics(whole) if "eval_score" in row}
    best = max(scores, key=lambda step: scores[step])
    assert 0 < scores[max(scores)] <= scores[best]
    assert best < max(scores)
    kept = read_results(whole)["tasks"]["upos"]["seeds"]["42"]["dev"]["token_accuracy"]
    assert kept == scores[best]
    kill_after_checkpoint([*PROCESS, *write(cut, train_mode=mode, **flags)], cut, best + 5)
    launch(write(cut, train_mode=mode, **flags))
    check_same_run(whole, cut)


@pytest.mark.slow
def test_a_probe_that_is_killed_starts_over_from_what_it_has_computed(
    write: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TURNCODER_CACHE", str(tmp_path / "cache"))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    flags = {"train_mode": "probe", "num_train_epochs": 80, "early_stopping_patience": "none", "max_grad_norm": 1}
    process = subprocess.Popen(
        [*PROCESS, *write(cut, **flags)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (cut / "metrics.jsonl").exists() and len(metrics(cut)) > 20:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (cut / "results.json").exists() and len(metrics(cut)) > 20
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "features").rglob("*.safetensors")}
    assert len(kept) == 4  # training and validation words, at their tokens and before
    launch(write(cut, **flags))
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "features").rglob("*.safetensors")}
    launch(write(whole, **flags))
    assert (whole / "tagger/heads.safetensors").read_bytes() == (cut / "tagger/heads.safetensors").read_bytes()
    assert read_results(whole)["tasks"] == read_results(cut)["tasks"]
    assert metrics(whole) == metrics(cut)


@pytest.mark.slow
def test_the_same_command_does_nothing_and_a_changed_one_is_refused(
    write: Callable[..., list[str]], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for mode, others in (("probe", {}), ("lora", {}), ("lora", {"seeds": [1, 2], "max_steps": 2})):
        flags = {"train_mode": mode, "overwrite": run.exists(), "learning_rate": 1e-2, **others}
        launch(write(run, **flags))
        before = {path: path.read_bytes() for path in run.rglob("*.safetensors")}
        said = launch(write(run, **{**flags, "overwrite": False}))
        assert "done already" in said and "token accuracy" in said
        for wrong in ({"learning_rate": 2e-2}, {"task": "upos"}, {"merge_subwords": False}):
            said = launch(write(run, **{**flags, "overwrite": False, **wrong}), code=2)
            line = said.strip().splitlines()[-1]
            assert line.startswith("error: ") and next(iter(wrong)) in line and "--overwrite" in line
        assert before == {path: path.read_bytes() for path in run.rglob("*.safetensors")}
    launch(write(run, **{**flags, "overwrite": True, "learning_rate": 2e-2}))
    assert not {path: data for path, data in before.items() if path.exists() and path.read_bytes() == data}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_overwrite_with_wrong_input_loses_nothing(write: Callable[..., list[str]], tmp_path: Path) -> None:
    run = tmp_path / "run"
    launch(write(run, train_mode="probe", learning_rate=1e-2))
    before = (run / "tagger/heads.safetensors").read_bytes()
    several = {"train_mode": "full", "seeds": [1, 2]}
    for wrong in ({"task": "gone"}, {"train_file": tmp_path / "typo"}, {"layer": 9}, {**several, "layer": 9}):
        launch(write(run, **{"train_mode": "probe", "overwrite": True, **wrong}), code=2)
        assert (run / "tagger/heads.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_checkpoints_are_scored_as_they_were_in_training(
    write: Callable[..., list[str]], treebank: Path, tmp_path: Path
) -> None:
    for mode in ("lora", "full"):
        run = tmp_path / mode
        flags = {"eval_steps": 5, "num_train_epochs": 2, "learning_rate": 1e-2 if mode == "full" else 3e-2}
        launch(write(run, train_mode=mode, **{**LONG, **flags}, save_total_limit=9, layer="1"))
        scores = {row["step"]: row["eval_upos_token_accuracy"] for row in metrics(run) if "eval_score" in row}
        assert len({scores[5], scores[10], scores[15]}) == 3
        for step, name in ((5, run / "5"), (10, run / "checkpoints" / "checkpoint-10"), (15, run / "checkpoint-15")):
            out = tmp_path / f"{mode}-{step}"
            launch(write_words("words", {"evaluate": name, "test_file": treebank / "dev.conllu", "output_dir": out}))
            told = read_results(out)["tasks"]["upos"]["mean"]["token_accuracy"]
            assert told == (scores[step] if mode == "full" else pytest.approx(scores[step], abs=0.01))
        last = {"evaluate": run / "15", "test_file": treebank / "test.conllu", "output_dir": tmp_path / f"{mode}-last"}
        launch(write_words("words", last))
        mine, again = (read_results(folder)["tasks"]["upos"]["mean"] for folder in (run, last["output_dir"]))
        assert again.items() <= mine.items()
        said = launch(write_words("words", {"evaluate": run / "7", "test_file": treebank / "test.conllu"}), code=2)
        assert "7" in said and "checkpoint-5, checkpoint-10, checkpoint-15" in said
