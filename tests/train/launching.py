"""Runs from the command line, as the tests of all stages start, kill and read them."""

import contextlib
import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from turncoder.cli import main

PROCESS = [sys.executable, "-m", "turncoder.cli"]
BOTH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "turncoder.cli"]
"""Two processes, meeting at a port that is free."""
GRADIENT = {
    "max_steps": 1, "lora_dropout": 0.0, "training.optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 1e9,
    "do_eval": False, "lr_scheduler_type": "constant", "save_strategy": "no",
}  # fmt: skip
"""One step of plain gradient descent: what is left of the weights is the gradient."""


def write_words(stage: str, flags: dict[str, object]) -> list[str]:
    """Write a command's flags."""
    words = [f"--{key}={value}" for key, value in flags.items() if not isinstance(value, bool | list)]
    words += [str(word) for key, value in flags.items() if isinstance(value, list) for word in (f"--{key}", *value)]
    words += [f"--{key}" if value else f"--no-{key}" for key, value in flags.items() if isinstance(value, bool)]
    return [stage, *words]


def launch(words: list[str], code: int = 0) -> str:
    """Run a command line, in this process: importing the libraries takes longer than these runs."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        found = main(words)
    assert found == code, said.getvalue()[-3000:]
    return said.getvalue()


def launch_process(words: list[str]) -> str:
    """Run a command line in a process of its own."""
    result = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout + result.stderr


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in metrics(folder) if "loss" in row]


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def check_same_steps(first: Path, second: Path, start: Path) -> None:
    """Two runs of `GRADIENT` moved every weight alike, to 5e-5 of the largest movement in its tensor, and of 5e-8.

    Half batches are multiplied by other kernels than whole ones: 1e-6 to 1.3e-5 apart, by the processor. A row that
    counts twice, or a wrong divisor, is 1e-2 and more.

    Of an adapter the second factors are compared, which begin at nought: theirs are the first gradients.
    """
    if full := not (first / "adapter").exists():
        one, two = (load_file(folder / "model" / "model.safetensors") for folder in (first, second))
        before = {name.removeprefix("model."): weight for name, weight in load_file(start).items()}
    else:
        one, two = ({k: v for k, v in adapter(folder).items() if "lora_B" in k} for folder in (first, second))
    assert one.keys() == two.keys() and one
    moved = 0.0
    for name, weight in one.items():
        size = float((weight - before[name] if full else weight).abs().max())
        moved = max(moved, size)
        rounding = 1e-7 * float(weight.abs().max())  # of the weight that the gradient was added to
        assert float((two[name] - weight).abs().max()) < 5e-5 * max(size, 1e-3) + rounding, name
    assert moved > 1e-3


def kill_after_checkpoint(words: list[str], folder: Path, step: int) -> None:
    """Start a run and kill -9 it as soon as a checkpoint of at least ``step`` is complete."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        marked = [int(path.parent.name.split("-")[1]) for path in folder.glob("checkpoints/checkpoint-*/complete")]
        if max(marked, default=0) >= step:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "model").exists(), "the run ended before it could be killed"
