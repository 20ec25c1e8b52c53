"""Submitting: a wrong command is told now and not by the queue; the script is whole; what sbatch says is passed on."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from slurm import REFUSES, Slurm, wait_for
from turncoder.cli import main

Said = tuple[int, str, str]
MNTP = "mntp --model_name_or_path org/model --train_file text.txt --output runs/first --training.adam_beta2 0.95"
CONFIG = 'model_name_or_path = "org/model"\ntrain_file = "text.txt"\noutput_dir = "runs/first"\n'


@pytest.fixture
def submit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Submit from a folder with a text: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    (tmp_path / "text.txt").write_text("A text.\n")

    def run(*words: str) -> Said:
        code = main(["submit", *words])
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


@pytest.fixture
def slurm(submit: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """SLURM's programs on the path."""
    cluster = Slurm(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{cluster.home / 'bin'}:/usr/bin:/bin")
    return cluster


def options(script: str) -> set[str]:
    return {line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")}


def test_the_script_is_whole_and_nothing_is_written(submit: Callable[..., Said], tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text('partition = "old"\naccount = "nlp"\nsetup = ["module load cuda", "cd ."]\n')
    asked = (
        "--print --cluster site.toml --slurm.partition gpu --slurm.time 1-12:00:00 --slurm.gpus a100:8 --slurm.nodes 2"
    )
    more = "--slurm.cpus_per_task 16 --slurm.mem 64G --slurm.qos high --slurm.constraint ib --slurm.mail-type END"
    before = sorted(tmp_path.rglob("*"))
    code, script, said = submit(*MNTP.split(), *asked.split(), *more.split(), "--slurm.exclusive")
    assert (code, sorted(tmp_path.rglob("*"))) == (0, before)
    logs = tmp_path / "jobs" / "mntp-first"
    assert options(script) == {
        "partition=gpu", "account=nlp", "time=2160", "gpus-per-node=a100:4", "nodes=2", "ntasks-per-node=1",
        "cpus-per-task=16", "mem=64G", "qos=high", "constraint=ib", "mail-type=END", "exclusive", "requeue",
        "open-mode=append", "signal=USR2@120", "job-name=mntp-first", f"output={logs}/%j_0_log.out",
    }  # fmt: skip
    *_, setup, also, blank, head, export, command = script.splitlines()
    assert (setup, also, blank, head) == ("module load cuda", "cd .", "", "# command")
    assert export == "export SUBMITIT_EXECUTOR=slurm"
    assert command.startswith("srun ") and " --cpus-per-task=16 " in command
    assert command.endswith(f" --nproc_per_node=4 -- {MNTP}")
    assert f"mkdir -p {logs}" in said


def test_lines_to_copy_are_quoted(submit: Callable[..., Said], slurm: Slurm) -> None:
    said = submit(*MNTP.split(), "--jobs", "my jobs", "--print", "--slurm.partition", "gpu")[2]
    assert f"mkdir -p '{Path('my jobs/mntp-first').absolute()}', then" in said
    out = submit(*MNTP.split(), "--jobs", "my jobs", "--slurm.partition", "gpu")[1]
    assert re.search(r"tail -F 'my jobs/mntp-first/\d+_0_log\.out'", out)


def test_files_that_are_not_there_yet_are_named(submit: Callable[..., Said], tmp_path: Path) -> None:
    (tmp_path / "text.txt").rename(tmp_path / "old.txt")
    code, _, said = submit(*MNTP.split(), "--print", "--slurm.partition", "gpu")
    assert code == 0 and "train_file: text.txt is not there now" in said
    task = "evaluate sentences --model_name_or_path org/model --task_file sts=pairs.tsv --output run --print"
    assert "task_file: pairs.tsv is not there now" in submit(*task.split(), "--slurm.partition", "gpu")[2]
    task = task.replace("sts=pairs.tsv", "bitext=old.txt,new.txt")
    said = submit(*task.split(), "--slurm.partition", "gpu")[2]
    assert "task_file: new.txt is not there now" in said and "old.txt" not in said
    words = "encode org/model new.txt --words --output out.parquet --print --slurm.partition gpu"
    assert "input_file: new.txt is not there now" in submit(*words.split())[2]
    (tmp_path / "old.txt").rename(tmp_path / "text.txt")
    assert "not there" not in submit(*MNTP.split(), "--print", "--slurm.partition", "gpu")[2]


def test_a_config_file_and_flags_anywhere(submit: Callable[..., Said]) -> None:
    Path("mine.toml").write_text(CONFIG)
    _, one, _ = submit("mntp", "mine.toml", "--print", "--slurm.qos", "high", "--seed", "1")
    _, two, _ = submit("--slurm.qos=high", "--print", "--", "mntp", "mine.toml", "--seed", "1")
    assert one == two and one.endswith("-- mntp mine.toml --seed 1\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "submit needs a command: turncoder submit mntp CONFIG"),
        ("submit info", "submit needs a command"),
        ("mntpp", "mntpp is not a command; did you mean mntp?"),
        (f"{MNTP} --learning_rat 1", "--learning_rat is not a known flag; did you mean --learning_rate?"),
        (f"{MNTP} --lora_r x", "--lora_r = 'x' is not a whole number"),
        (f"{MNTP} --partition gpu", "--partition is no flag of mntp; what SLURM is asked for is --slurm.partition"),
        (f"{MNTP} --slurm.partition", "--slurm.partition needs a value"),
        ("mntp --model_name_or_path m --train_file t", "--output is missing"),
        ("mntp gone.toml", "gone.toml cannot be read"),
        (f"{MNTP} --cluster gone.toml", "gone.toml cannot be read"),
        (f"{MNTP} --slurm.gpus 3 --slurm.nodes 2", "give a multiple"),
        (f"{MNTP} --print=maybe", "--print = 'maybe' is not true or false"),
        (f"{MNTP} --local --jobs text.txt", "--jobs text.txt: text.txt is a file; name a folder"),
        (f"{MNTP} --print --local", "--print and --local are both set"),
        (f"{MNTP} --local --slurm.nodes 2", "this machine is one node"),
        ("encode m t --output o --slurm.nodes 2", "encode is started once, on one node"),
        ("words --grid gone.toml --output o", "gone.toml cannot be read"),
        ("words --cell 1 --model_name_or_path m --train_file t --output o", "cell = 1 is a run of a grid"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_submitted(
    submit: Callable[..., Said], slurm: Slurm, words: str, said: str
) -> None:
    code, out, err = submit(*words.split())
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ") and said in err
    assert not slurm.scripts() and not Path("jobs").exists()


def test_a_job_is_submitted_by_the_script_that_is_shown(submit: Callable[..., Said], slurm: Slurm) -> None:
    _, script, _ = submit(*MNTP.split(), "--print")
    code, out, _ = submit(*MNTP.split())
    assert code == 0
    assert slurm.scripts() == {"1000": script.rstrip("\n") + "\n"}
    assert out.splitlines() == [
        "mntp-first: job 1000",
        "log: jobs/mntp-first/1000_0_log.out",
        "follow: squeue --job 1000; tail -F jobs/mntp-first/1000_0_log.out",
        "cancel: scancel 1000",
    ]
    assert [path.name for path in Path("jobs/mntp-first").iterdir()] == ["1000_submission.sh"]


def test_a_job_that_fails_keeps_its_exit_code_and_its_line(submit: Callable[..., Said], slurm: Slurm) -> None:
    submit("report", "./gone")
    assert slurm.start("1000").wait() == 2
    assert "error: gone is not a folder" in Path("jobs/report/1000_0_log.out").read_text()
    assert not list(Path("jobs/report").glob("*_result.pkl")) and not slurm.requeued()


def test_what_sbatch_refuses_is_said_in_its_words(submit: Callable[..., Said], slurm: Slurm) -> None:
    slurm.write("sbatch", REFUSES)
    code, out, err = submit(*MNTP.split(), "--slurm.partition", "nowhere")
    assert (code, out) == (2, "")
    assert err == (
        "error: sbatch does not take the job: sbatch: error: invalid partition specified: nowhere sbatch: error: Batch "
        "job submission failed: Invalid partition name specified\n"
    )
    assert not Path("jobs").exists()
    slurm.write("sbatch", "#!/bin/sh\necho no number\n")
    code, _, err = submit(*MNTP.split())
    assert code == 2 and "no number" in err and not Path("jobs").exists()
    slurm.write("sbatch", "#!/bin/sh\nexit 7\n")
    code, _, err = submit(*MNTP.split())
    assert (code, err) == (2, "error: sbatch does not take the job: exit code 7\n")


def test_without_slurm_or_submitit_the_way_out_is_named(
    submit: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = submit(*MNTP.split())
    assert code == 2 and "sbatch is not on this machine" in err and "--print" in err and "--local" in err
    assert not Path("jobs").exists()
    for name in [name for name in sys.modules if name.partition(".")[0] == "submitit"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "submitit", None)
    code, _, err = submit(*MNTP.split(), "--print")
    assert (code, err) == (2, "error: submit needs submitit: pip install 'turncoder[slurm]'\n")


def test_headless_lms_nodes_are_slurms(submit: Callable[..., Said], shared: Path) -> None:
    words = "pretrain --train_file text.txt --hf_path gpt2 --hf_tokenizer gpt2 --output run --max_seq_length 64 --print"
    rows = "--gpu_bs 4 --num_nodes 2"
    code, script, _ = submit(*words.split(), *rows.split(), "--global_bs", "32", "--slurm.gpus", "4")
    assert code == 0 and {"nodes=2", "gpus-per-node=2"} <= options(script)
    code, _, err = submit(*words.split(), *rows.split(), "--global_bs", "24", "--slurm.gpus", "4")
    assert code == 2 and "--global_bs 24 is not a multiple of --gpu_bs 4 x 4 processes" in err
    code, _, err = submit(*words.split(), *rows.split(), "--slurm.nodes", "3")
    assert code == 2 and "--num_nodes 2 and --slurm.nodes 3 are not the same" in err


def test_a_job_on_this_machine_sees_the_gpus_that_we_see(
    submit: Callable[..., Said], slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    for shown in ("1", None):
        if shown is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
        line = 'echo "${CUDA_VISIBLE_DEVICES-all}" > shown.part; mv shown.part shown'
        submit("report", "./gone", "--local", "--slurm.setup", line)
        wait_for(Path("shown").exists, 20)
        assert Path("shown").read_text() == f"{shown or 'all'}\n"
        Path("shown").unlink()


GRID = """
train_file = "train"
[tasks.tags]
task = "tags"
[regimes.probe]
train_mode = "probe"
[models]
"""


def test_a_grid_is_an_array_of_the_runs_that_are_missing(submit: Callable[..., Said], slurm: Slurm) -> None:
    models = [f'[models.m{number}]\nmodel_name_or_path = "m"\n' for number in range(6)]
    Path("grid.toml").write_text(GRID.replace("[models]\n", "".join(models)))
    words = ["words", "--grid", "grid.toml", "--output", "out", "--slurm.array_parallelism", "2"]
    code, out, _ = submit(*words)
    assert code == 0 and out.startswith("words-out: job 1000, 6 tasks, 2 at once\nlog: jobs/words-out/1000_*_0_log.out")
    for number in (1, 2):
        run = Path(f"out/tags/probe/m{number}")
        run.mkdir(parents=True)
        (run / "results.json").write_text("{}")
        (run / "run.json").write_text(json.dumps({"status": "done"}))
    submit(*words)
    first, second = slurm.scripts().values()
    assert "array=0-5%2" in options(first) and "array=0,3-5%2" in options(second)
    assert 'words --grid grid.toml --output out --cell "$SLURM_ARRAY_TASK_ID"\n' in first
    assert "/jobs/words-out/%A_%a_0_log.out" in next(one for one in options(first) if one.startswith("output="))
    submit(*words, "--cell", "1")
    assert not any(one.startswith("array=") for one in options(slurm.scripts()["1002"]))
    for number in (0, 3, 4, 5):
        run = Path(f"out/tags/probe/m{number}")
        run.mkdir(parents=True)
        (run / "results.json").write_text("{}")
        (run / "run.json").write_text(json.dumps({"status": "done"}))
    code, out, err = submit(*words)
    assert (code, out) == (0, "") and "turncoder words --grid grid.toml --output out makes the table" in err
    assert len(slurm.scripts()) == 3
