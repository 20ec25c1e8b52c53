"""What a job asks for: every form of a time limit, whose flag is whose, and what is refused before SLURM sees it."""

from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turncoder.commands import COMMANDS
from turncoder.config.cluster import SlurmConfig, SubmitConfig, load_slurm, read_minutes, split_words
from turncoder.config.settings import training_argument_names
from turncoder.errors import UserError

WORD = st.text("abz./=-_ ", min_size=1, max_size=6)


@given(st.integers(0, 9), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_a_time_is_read_as_sbatch_reads_it(days: int, hours: int, minutes: int, seconds: int) -> None:
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    forms = {
        f"{days}-{hours:02}:{minutes:02}:{seconds:02}": total,
        f"{days}-{hours}:{minutes}": total - seconds,
        f"{days}-{hours}": total - seconds - 60 * minutes,
        f"{24 * days + hours}:{minutes:02}:{seconds:02}": total,
        f"{minutes}:{seconds:02}": 60 * minutes + seconds,
        f"{minutes}": 60 * minutes,
    }
    for form, expected in forms.items():
        if expected:
            assert read_minutes(form) == -(-expected // 60)
        else:
            with pytest.raises(UserError, match="leaves the job no time"):
                read_minutes(form)


@given(st.lists(st.tuples(st.booleans(), WORD), max_size=8))
def test_the_words_of_a_command_pass_unchanged(pieces: list[tuple[bool, str]]) -> None:
    own = [["--slurm.partition", "gpu"], ["--print"], ["--slurm.mail-type=END"], ["--cluster", "site.toml"]]
    words, command = [], []
    for number, (ours, word) in enumerate(pieces):
        words += own[number % 4] if ours else [f"x{word}"]
        command += [] if ours else [f"x{word}"]
    given_, rest = split_words(words)
    assert rest == command
    told = {one: two for number, (ours, _) in enumerate(pieces) if ours for one, two in [TOLD[number % 4]]}
    assert {**given_["slurm"], **{name: value for name, value in given_.items() if name != "slurm"}} == told


TOLD = [("partition", "gpu"), ("print", True), ("mail_type", "END"), ("cluster", "site.toml")]


def test_no_command_has_a_flag_of_submit() -> None:
    own = {one.name for one in fields(SubmitConfig)}
    for name, command in COMMANDS.items():
        assert name == "submit" or own.isdisjoint(one.name for one in fields(command.flags)), name
    assert own.isdisjoint(training_argument_names())


def test_several_lines_of_setup_end_at_the_next_flag() -> None:
    given_, rest = split_words(["--slurm.setup", "module load cuda", "source it", "--lr", "1", "a.toml"])
    assert given_["slurm"] == {"setup": ["module load cuda", "source it"]}
    assert rest == ["--lr", "1", "a.toml"]


def test_flags_win_over_the_file_of_a_site(tmp_path: Path) -> None:
    site = tmp_path / "site.toml"
    site.write_text(
        'partition = "gpu"\ntime = 12:30:00\nmem = 64000\nsetup = "module load a"\nmail_type = ["END", "FAIL"]\n'
    )
    slurm = load_slurm(site, {"partition": "debug", "cpus_per_task": "8", "exclusive": True})
    assert slurm == SlurmConfig(
        partition="debug", time="12:30:00", mem="64000", setup=("module load a",), cpus_per_task=8,
        others={"mail_type": "END,FAIL", "exclusive": True},
    )  # fmt: skip
    assert slurm.minutes == 750


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"time": "soon"}, "slurm.time = 'soon' is no time"),
        ({"time": "1"}, "no longer than slurm.signal_delay_s = 120"),
        ({"gpus": "many"}, "slurm.gpus = 'many'"),
        ({"gpus": "0"}, "slurm.gpus = '0'"),
        ({"mem": "lots"}, "slurm.mem = 'lots'"),
        ({"nodes": "x"}, "--slurm.nodes = 'x' is not a whole number"),
        ({"nodes": "0"}, "nodes = 0 must be at least 1"),
        ({"array": "0-3"}, "slurm.array = '0-3' cannot be set: the tasks are the runs"),
        ({"chdir": "/"}, "slurm.chdir = '/' cannot be set: paths of the command start"),
        ({"no_requeue": True}, "slurm.max_num_timeout = 0 ends it there"),
        ({"gres": "gpu:4"}, "slurm.gres = 'gpu:4' does not say how many processes train"),
        ({"job_name": "a/b"}, "slurm.job_name = 'a/b'"),
    ],
)
def test_values_that_no_job_can_have_are_refused(flags: dict[str, str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_slurm(None, flags)
    assert said in str(caught.value)


def test_gpus_are_shared_by_the_nodes() -> None:
    assert SlurmConfig(gpus="a100:8").share_gpus(2) == "a100:4"
    assert SlurmConfig(gpus="3").share_gpus(3) == "1"
    assert SlurmConfig().share_gpus(4) is None
    with pytest.raises(UserError, match="give a multiple"):
        SlurmConfig(gpus="3").share_gpus(2)


def test_the_file_of_a_site_is_flat(tmp_path: Path) -> None:
    site = tmp_path / "site.toml"
    site.write_text('[slurm]\npartition = "gpu"\n')
    with pytest.raises(UserError, match=r"site.toml: slurm is a table"):
        load_slurm(site, {})


def test_a_key_that_sbatch_may_know_is_passed_on_and_a_near_one_named(caplog: pytest.LogCaptureFixture) -> None:
    assert load_slurm(None, {"partitio": "gpu", "mail_type": "END", "exclusive": True}).others["partitio"] == "gpu"
    assert "--slurm.partitio goes to sbatch as it is; did you mean partition?" in caplog.text
    assert "mail_type" not in caplog.text and "exclusive" not in caplog.text
