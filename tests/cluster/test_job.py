"""Jobs that run: to their end, stopped and started again, by several processes, on several nodes, as a grid's tasks."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from slurm import Slurm, wait_for
from turncoder.cli import main

STEPS = "--max_seq_length 64 --max_steps 60 --logging_steps 20 --learning_rate 1e-3 --no-do_eval --report_to none"


@pytest.fixture(scope="module")
def place(stories: Path, stories_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with text, and a run of its training that nothing has stopped."""
    folder = tmp_path_factory.mktemp("jobs")
    lines = [line for line in stories_text.read_text(encoding="utf8").splitlines() if line.strip()][:1000]
    (folder / "text.txt").write_text("\n".join(lines) + "\n", encoding="utf8")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main([*train(stories, "whole")]) == 0
    finally:
        os.chdir(before)
    return folder


def train(stories: Path, name: str, *more: str) -> list[str]:
    words = ["mntp", "--model_name_or_path", str(stories), "--train_file", "text.txt", *STEPS.split()]
    return [*words, "--output", name, *more]


@pytest.fixture
def slurm(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """SLURM's programs on the path, in the folder of the text."""
    cluster = Slurm(tmp_path / "slurm")
    monkeypatch.chdir(place)
    monkeypatch.setenv("PATH", f"{cluster.home / 'bin'}:/usr/bin:/bin")
    return cluster


@pytest.fixture
def submit(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Submit, and give the number of the job."""
    monkeypatch.chdir(place)

    def run(*words: str) -> str:
        capsys.readouterr()
        assert main(["submit", *words]) == 0
        found = re.search(r": job (\d+)", capsys.readouterr().out)
        assert found
        return found[1]

    return run


def read_log(name: str, number: str) -> str:
    path = Path("jobs") / name / f"{number}_0_log.out"
    return path.read_text(encoding="utf8") if path.exists() else ""


def is_over(name: str, number: str) -> Callable[[], object]:
    """Say whether a job on this machine is over, whichever way."""
    return lambda: not psutil.pid_exists(int(number)) or psutil.Process(int(number)).status() == "zombie"


def equal_weights(one: str, two: str) -> bool:
    names = ("adapter/adapter_model.safetensors", "model/model.safetensors")
    return all(Path(one, name).read_bytes() == Path(two, name).read_bytes() for name in names)


def status(run: str) -> str:
    return json.loads(Path(run, "run.json").read_text())["status"]


@pytest.mark.slow
def test_a_job_that_is_preempted_saves_first_and_goes_on_bit_for_bit(
    slurm: Slurm, submit: Callable[..., str], stories: Path
) -> None:
    assert main(train(stories, "paused", "--seed", "7")) == 0  # what --overwrite replaces, once
    number = submit(*train(stories, "paused", "--overwrite"))
    job = slurm.start(number)
    wait_for(lambda: "step 20/60" in read_log("mntp-paused", number))
    slurm.signal()
    assert job.wait() != 0
    assert slurm.requeued() == [number] and status("paused") == "interrupted"
    paused = int(re.findall(r"paused after step (\d+)", read_log("mntp-paused", number))[0])
    assert 20 < paused < 60
    assert slurm.start(number).wait() == 0
    log = read_log("mntp-paused", number)
    assert f"resumes after step {paused}" in log and status("paused") == "done"
    assert equal_weights("paused", "whole")
    record = json.loads(Path("paused/run.json").read_text())
    assert record["command"][:2] == ["turncoder", "mntp"] and slurm.requeued() == [number]


@pytest.mark.slow
def test_a_job_that_is_killed_goes_on_from_its_last_checkpoint(
    slurm: Slurm, submit: Callable[..., str], stories: Path
) -> None:
    number = submit(*train(stories, "killed", "--save_steps", "10", "--overwrite"))
    job = slurm.start(number)
    wait_for(lambda: "step 40/60" in read_log("mntp-killed", number))
    slurm.signal(signal.SIGKILL)
    assert job.wait() != 0 and not slurm.requeued()
    assert slurm.start(number).wait() == 0  # as SLURM does by itself where a node fails
    assert re.search(r"resumes after step [34]0", read_log("mntp-killed", number))
    assert equal_weights("killed", "whole")


@pytest.mark.slow
def test_two_nodes_train_as_one_process_does(slurm: Slurm, submit: Callable[..., str], stories: Path) -> None:
    more = ["--per_device_train_batch_size", "4"]
    number = submit(*train(stories, "nodes", *more), "--slurm.nodes", "2")
    job = slurm.start(number, nodes=2)
    wait_for(lambda: "step 20/60" in read_log("mntp-nodes", number))
    slurm.signal()
    job.wait()
    assert slurm.requeued() == [number]
    assert slurm.start(number, nodes=2).wait() == 0
    log = read_log("mntp-nodes", number)
    assert re.findall(r"paused after step (\d+)", log) == re.findall(r"resumes after step (\d+)", log) != []
    assert json.loads(Path("nodes/run.json").read_text())["processes"] == 2
    ends = [json.loads(Path(run, "metrics.jsonl").read_text().splitlines()[-1]) for run in ("nodes", "whole")]
    assert ends[0]["step"] == ends[1]["step"] == 60
    assert ends[0]["loss"] == pytest.approx(ends[1]["loss"], rel=1e-2)


@pytest.mark.slow
def test_a_limit_that_is_reached_too_often_ends_the_job(
    slurm: Slurm, submit: Callable[..., str], stories: Path
) -> None:
    number = submit(*train(stories, "limit"), "--slurm.max_num_timeout", "0", "--slurm.time", "5")
    job = slurm.start(number)
    wait_for(lambda: "step 20/60" in read_log("mntp-limit", number))
    slurm.signal()
    assert job.wait() != 0
    assert not slurm.requeued() and "timed-out too many times" in read_log("mntp-limit", number)
    assert "paused after step" in read_log("mntp-limit", number)  # what was trained is kept for the same command


@pytest.mark.slow
def test_tasks_of_a_grid_make_one_table(slurm: Slurm, submit: Callable[..., str], stories: Path) -> None:
    Path("tagged").write_text("the DET\ncat NOUN\n\n" * 6)
    tables = "".join(f"[models.m{n}]\nmodel_name_or_path = '{stories}'\nseed = {n}\n" for n in range(2))
    keys = 'train_file = "tagged"\nvalidation_file = "tagged"\nnum_train_epochs = 1\nlearning_rate = 1e-2\n'
    regime = '[tasks.tags]\ntask = "tags"\n[regimes.probe]\nalignment = "same_token"\n'
    Path("grid.toml").write_text(keys + regime + tables)
    number = submit("words", "--grid", "grid.toml", "--output", "grid")
    tasks = [slurm.start(number, cell) for cell in range(2)]
    assert [task.wait() for task in tasks] == [0, 0]
    assert {row["model"] for row in json.loads(Path("grid/grid.json").read_text())} == {"m0", "m1"}
    assert Path(f"jobs/words-grid/{number}_1_0_log.out").exists()
    before = Path("grid/grid.md").read_text()
    assert main(["words", "--grid", "grid.toml", "--output", "grid"]) == 0
    assert Path("grid/grid.md").read_text() == before
    assert main(["words", "--grid", "grid.toml", "--output", "grid", "--cell", "2"]) == 2


@pytest.mark.slow
def test_a_job_on_this_machine_runs_to_its_end(submit: Callable[..., str], stories: Path) -> None:
    setup = ["--slurm.setup", "export GREETING='good day'", 'echo "$GREETING" > greeted']
    number = submit("--local", "encode", str(stories), "text.txt", "--output", "vectors.npy", *setup)
    wait_for(is_over("encode-vectors.npy", number))
    assert Path("vectors.npy").exists() and Path("greeted").read_text() == "good day\n"
    assert "Job completed successfully" in read_log("encode-vectors.npy", number)
    number = submit("info", "--local")
    wait_for(is_over("info", number))
    assert "torch" in read_log("info", number)


@pytest.mark.slow
def test_a_job_on_this_machine_goes_on_after_the_signal(submit: Callable[..., str], stories: Path) -> None:
    number = submit(*train(stories, "here"), "--local")
    wait_for(lambda: "step 20/60" in read_log("mntp-here", number))
    (task,) = psutil.Process(int(number)).children()
    task.send_signal(signal.SIGUSR2)
    wait_for(is_over("mntp-here", number))
    log = read_log("mntp-here", number)
    assert "paused after step" in log and "resumes after step" in log
    assert equal_weights("here", "whole")


@pytest.mark.slow
def test_a_job_on_this_machine_is_cancelled(submit: Callable[..., str], stories: Path) -> None:
    number = submit(*train(stories, "cancelled"), "--local", "--slurm.nproc_per_node", "2")
    wait_for(lambda: "step 20/60" in read_log("mntp-cancelled", number))
    family = psutil.Process(int(number)).children(recursive=True)
    assert len(family) >= 3  # a launcher and two that train
    os.kill(int(number), signal.SIGINT)
    wait_for(is_over("mntp-cancelled", number))
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive and status("cancelled") != "done"


@pytest.mark.slow
def test_nobody_waits_for_a_job_on_this_machine(place: Path, stories: Path) -> None:
    words = ["-m", "turncoder.cli", "submit", "--local", *train(stories, "alone")]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=30, cwd=place, check=True)
    assert not (place / "alone" / "model").exists()  # the pipe was closed while the job runs
    number = re.findall(r"job (\d+)", done.stdout)[0]
    os.kill(int(number), signal.SIGINT)
