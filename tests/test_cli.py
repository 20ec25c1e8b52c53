import errno
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

import turncoder
from turncoder import notices
from turncoder.cli import main
from turncoder.commands import COMMANDS
from turncoder.config.flags import read_flags
from turncoder.config.stages import MntpConfig


@pytest.fixture
def command(capsys):
    """Run a command in this process: exit code, stdout, stderr."""

    def run(*words):
        code = main([str(word) for word in words])
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)


@pytest.mark.parametrize("words", [[], ["--help"], ["mntp", "--help"], ["check", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(words):
    done = python(
        "import sys, time\n"
        "from turncoder.cli import main\n"
        f"try: main({words!r})\nexcept SystemExit as left: assert not left.code\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'numpy'} & sys.modules.keys()), file=sys.stderr)\n"
        "print(time.process_time(), file=sys.stderr)"  # the processor's, so that a busy machine does not count
    )
    heavy, seconds = done.stderr.splitlines()[-2:]
    assert heavy == "[]"
    assert float(seconds) < 0.5
    assert done.stdout


def test_importing_turncoder_imports_nothing_heavy():
    names = "turncoder, turncoder.config.stages, turncoder.config.legacy, turncoder.errors, turncoder.config.settings"
    code = f"import sys, {names}; turncoder.MntpConfig; print(sorted({{'torch', 'transformers'}} & sys.modules.keys()))"
    assert python(code).stdout.strip() == "[]"


def test_what_turncoder_offers():
    assert set(turncoder.__all__) <= set(dir(turncoder))
    assert turncoder.MntpConfig is MntpConfig
    assert turncoder.__version__
    with pytest.raises(AttributeError, match="nothing"):
        _ = turncoder.nothing
    with pytest.raises(TypeError, match="MntpConfig"):
        turncoder.train({"model_name_or_path": "m"})


def test_help_lists_every_command_and_every_key(command, capsys):
    _, out, _ = command("--help")
    assert all(f"  {name}" in out for name in COMMANDS)
    with pytest.raises(SystemExit) as left:
        main(["mntp", "--help"])
    assert not left.value.code
    out = capsys.readouterr().out
    assert all(
        f"--{name}" in out for name in ("model_name_or_path", "no_do_eval", "lora_r", "training.NAME", "dry_run")
    )


@pytest.mark.parametrize("words", [["submit"], ["words"], ["report"], ["head", "add"]])
def test_help_leaves_out_defaults_that_are_nothing(words, capsys):
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "(default: False)" in out
    assert "(default: None)" not in out
    assert "(default: )" not in out
    assert "(default: 256)" in out or words != ["submit"]  # of a group of flags


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["mntpp"], ["mntpp", "did you mean mntp?"]),
        (["simsce"], ["simsce is not a command", "did you mean simcse?"]),
        (["mntp", "--learning_rat", "1"], ["--learning_rat", "did you mean --learning_rate?"]),
        (["mntp", "--learning_rate", "abc"], ["--learning_rate = 'abc'"]),
        (["mntp"], ["model_name_or_path is missing"]),
        (["mntp", "gone.json"], ["gone.json"]),
        (["mntp", "someone/a-model", "--train_file", "a.txt"], ["someone/a-model", "--model_name_or_path"]),
        (["mntp", "list.json"], ["list.json holds a list", "--train_file"]),
        (["mntp", "a.json", "b.json"], ["'b.json'"]),
        (["check"], ["MODEL"]),
        (["check", "a", "b"], ["MODEL"]),
        (["check", "./gone"], ["./gone"]),
        (["report"], ["RUN"]),
        (["report", "./gone"], ["gone is not a folder"]),
        (["info", "word"], ["'word'"]),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(command, words, parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("list.json").write_text('[{"text": "a"}]')
    code, out, err = command(*words)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert all(part in err for part in parts), err


def test_no_traceback_from_the_installed_command():
    done = subprocess.run(
        [sys.executable, "-m", "turncoder.cli", "mntp", "--lora_r", "x"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --lora_r = 'x' is not a whole number\n"


@pytest.mark.parametrize(
    ("raised", "code", "parts"),
    [
        (KeyboardInterrupt(), 130, ["interrupted", "resumes"]),
        (MemoryError(), 2, ["per_device_train_batch_size", "vocabulary_budget_mb", "gradient_checkpointing"]),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 2, ["out of memory"]),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), 2, ["disk is full", "/x/y"]),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 2, ["disk is full"]),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), 2, ["/x/y", "Permission denied"]),
        (OSError(errno.EROFS, "Read-only file system", "/x/y"), 2, ["/x/y", "Read-only file system"]),
        (
            OSError(errno.ENAMETOOLONG, "File name too long", "A text. " * 99),
            2,
            ["A text. A text.", "too long for a path"],
        ),
    ],
)
def test_what_the_machine_does_to_a_run(command, monkeypatch, raised, code, parts):
    def fail(config):
        raise raised

    monkeypatch.setattr(type(turncoder.train), "__call__", lambda self, config: fail(config))
    got, _, err = command("mntp", "--model_name_or_path", ".", "--train_file", "t.txt", "--output", "o")
    assert got == code
    assert err.count("\n") == 1
    assert all(part in err for part in parts), err


def test_a_cuda_device_that_is_out_of_memory_names_the_keys_to_lower():
    import torch

    assert "max_seq_length" in str(notices.say_limit(torch.OutOfMemoryError("CUDA out of memory")))


def test_a_defect_of_ours_is_not_hidden(monkeypatch):
    monkeypatch.setattr(type(turncoder.train), "__call__", lambda self, config: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["mntp", "--model_name_or_path", ".", "--train_file", "t.txt"])


def test_a_note_is_given_once_and_progress_every_time(capsys):
    notices.listen(Console(stderr=True))
    logger = logging.getLogger("turncoder")
    for _ in range(2):
        logger.warning("no column %r", "text")
        logger.info("texts: 2 rows")
    assert capsys.readouterr().err.splitlines() == ["note: no column 'text'", "texts: 2 rows", "texts: 2 rows"]


def test_info(command):
    code, out, _ = command("info")
    assert code == 0
    assert all(part in out for part in ("torch", "transformers", "peft", "cpu", "sdpa", "python"))
    code, out, _ = command("info", "--json")
    assert json.loads(out)["versions"]["turncoder"] == turncoder.__version__


def test_flags_of_the_small_commands_have_help():
    for name, command in COMMANDS.items():
        assert command.flags.__doc__, name
        assert read_flags(command.flags, ["--json"] if "json" in command.flags.__annotations__ else [])


def test_check(command, stories):
    code, out, _ = command("check", stories)
    assert code == 0
    assert "5 of 5 layers look both ways" in out
    code, out, _ = command("check", stories, "--json")
    assert code == 0
    assert len(json.loads(out)["layers"]) == 5


def test_prepare_finds_what_it_made(command, stories, stories_text, tmp_path, monkeypatch):
    monkeypatch.setenv("TURNCODER_CACHE", str(tmp_path))
    words = ("prepare", "--model_name_or_path", stories, "--train_file", stories_text, "--max_seq_length", "128")
    code, out, _ = command(*words)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("train: ")
    assert lines[1].startswith("validation: ")
    assert lines[2].startswith(str(tmp_path))
    assert command(*words)[1] == out


def test_check_of_all_architectures(command, monkeypatch):
    monkeypatch.setattr("turncoder.model.architectures.causal_architectures", lambda: ["llama", "mamba"])
    code, out, _ = command("check", "--all-architectures", "--json")
    assert code == 0
    assert {row["name"]: row["verdict"] == "bidirectional" for row in json.loads(out)} == {
        "llama": True,
        "mamba": False,
    }
    code, out, _ = command("check", "--all-architectures")
    assert (code, "llama" in out) == (0, True)


def test_a_second_word_that_is_misspelt_has_a_nearest_one(capsys):
    assert main(["evaluate", "sentence", "model"]) == 2
    assert "evaluate sentence is not a command; did you mean sentences?" in capsys.readouterr().err
