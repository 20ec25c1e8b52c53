"""What a run would cost, before anything is spent: parameters, memory, steps, time, disk, files, and three samples."""

import logging
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

from turncoder.config.keys import FitKeys, TrainKeys
from turncoder.errors import UserError
from turncoder.hub import is_local
from turncoder.model.activations import count_passes
from turncoder.model.adapters import count_parameters
from turncoder.train.course import count_steps, tell_limit
from turncoder.train.stage import will_merge

__all__ = [
    "Plan",
    "add_disk",
    "add_memory",
    "add_steps",
    "add_time",
    "add_weights",
    "count_operations",
    "list_files",
    "measure_rate",
    "note_unseen",
    "show",
]

logger = logging.getLogger("turncoder")

GIB = 2**30
HALF = 0.5
"""Share of a matrix product's speed that a training step is taken to reach."""


@dataclass
class Plan:
    """What is known of a run before it starts; what could not be seen is in ``unseen`` and absent elsewhere.

    Attributes
    ----------
    config
        The resolved config, as TOML.
    parameters
        ``total`` and ``trainable``, over the whole model with its head.
    memory, disk
        Bytes by part; disk in the run folder.
    steps
        ``steps`` that are run, ``scheduled`` ones of the learning rate's shape, tokens, epochs.
    seconds
        Estimated time on one device like this machine's.
    files
        What would be written.
    samples
        Rows as the model would see them.
    unseen
        One line for each thing that could not be looked at, and why.
    assumptions
        What the numbers rest on.
    legend
        What stands above the samples.
    """

    config: str
    parameters: dict[str, int] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    disk: dict[str, int] = field(default_factory=dict)
    steps: dict[str, float] = field(default_factory=dict)
    seconds: float | None = None
    files: list[str] = field(default_factory=list)
    samples: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    assumptions: list[str] = field(default_factory=list)
    legend: str = "samples as the model would see them: [put in->to be predicted]"


def note_unseen(plan: Plan, error: UserError, name: str | None, lost: str) -> None:
    """Keep what the hub did not give as a line of the plan; a local path that is wrong stays an error."""
    if name is None or is_local(name):
        raise error
    plan.unseen.append(f"{error} -- {lost}")


def add_weights(plan: Plan, model: torch.nn.Module) -> None:
    """Put parameters and memory of a model that is only used into a plan."""
    parameters = list(model.parameters())
    plan.parameters = {"total": sum(one.numel() for one in parameters)}
    plan.memory = {"model": sum(one.numel() * one.element_size() for one in parameters)}


def add_steps(plan: Plan, config: Any, rows: int | None, row_tokens: float) -> None:
    """Put steps, tokens and epochs into a plan, given the training rows (None: not known) and the tokens of one."""
    if rows is None and config.max_train_samples:
        rows = config.max_train_samples
        plan.assumptions.append(f"the corpus has at least max_train_samples = {rows} rows")
    elif rows is None:
        plan.assumptions.append("the corpus is large enough for all steps")
    steps, scheduled = count_steps(config, rows)
    if limit := tell_limit(config, rows):
        logger.warning("%s", limit)
    per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps
    plan.steps = {"steps": steps, "scheduled": scheduled, "rows_per_step": per_step}
    plan.steps["tokens_per_step"] = round(per_step * row_tokens)
    plan.steps["tokens"] = round(steps * per_step * row_tokens)
    if rows:
        plan.steps["rows"] = rows
        plan.steps["epochs"] = round(steps * per_step / rows, 3)


def add_memory(
    plan: Plan,
    config: FitKeys,
    model: PreTrainedModel,
    passes: list[tuple[int, int]],
    loss: dict[str, int],
    *,
    squares: bool = False,
) -> None:
    """Put parameters and memory into a plan.

    Parameters
    ----------
    plan, config
        Of the run.
    model
        On the meta device, trainable as the run would have it.
    passes
        Rows and length of those whose activations exist at once; none where they are not known.
    loss
        What the loss takes besides, by its name.
    squares
        Attention keeps its weights, even if it is not the eager one.
    """
    trainable, total = count_parameters(model)
    plan.parameters = {"trainable": trainable, "total": total}
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    plan.memory = {"weights": weights, "gradients": 4 * trainable, "optimizer": 8 * trainable, **loss}
    squares = squares or config.attn_implementation == "eager"
    if passes:
        try:
            plan.memory["activations"] = count_passes(
                model, passes, squares=squares, recompute=config.gradient_checkpointing
            )
        except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
            plan.unseen.append(f"activations: the forward pass cannot be traced without storage ({str(error)[:80]})")
    plan.assumptions.append("memory: AdamW in float32, one device, without what the device's driver takes (about 1 GB)")


def add_time(
    plan: Plan, config: FitKeys, model: PreTrainedModel, length: float, *, head: float = 0, again: bool = False
) -> None:
    """Estimate the time from the arithmetic: 2 operations per weight and token forward, as many for each gradient.

    Parameters
    ----------
    plan, config
        Of the run; the plan with its steps and parameters.
    model
        On the meta device.
    length
        Tokens that see one another.
    head
        Operations of each token after the last layer.
    again
        The loss computes the forward pass twice.
    """
    passes = 4 + 2 * config.gradient_checkpointing + 2 * again
    embeddings: Any = model.get_input_embeddings().weight  # whose gradient is a sum of rows
    trained = plan.parameters["trainable"] - embeddings.requires_grad * embeddings.numel()
    per_token = count_operations(model, length, passes) + 2 * trained + head
    rate, device = measure_rate(torch.bfloat16 if config.bf16 or config.dtype == "bfloat16" else torch.float32)
    if plan.steps["tokens"]:
        plan.seconds = per_token * plan.steps["tokens"] / (HALF * rate)
    plan.assumptions.append(
        f"time: training alone, at half of the {rate / 1e12:.3g} TFLOP/s that a matrix product reaches now on {device}"
    )


def count_operations(model: PreTrainedModel, length: float, passes: int = 2) -> float:
    """Count the operations of a token among ``length``, its embedding aside; ``passes`` for each weight."""
    text_config = model.config.get_text_config()
    inside = sum(p.numel() for p in {id(p): p for p in model.base_model.parameters()}.values())
    embeddings = text_config.vocab_size * text_config.hidden_size
    attention = 2 * passes * text_config.num_hidden_layers * length * text_config.hidden_size
    return passes * (inside - embeddings) + attention


def measure_rate(dtype: torch.dtype) -> tuple[float, str]:
    """Measure the operations per second of a matrix product here, in about a tenth of a second."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = 8192 if device.type == "cuda" else 768
    a = torch.ones(size, size, dtype=dtype, device=device)

    def seconds() -> float:
        start = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the device
        return time.perf_counter() - start

    seconds()
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"this CPU ({torch.get_num_threads()} threads)"
    return 2 * size**3 / min(seconds() for _ in range(3)), name


def add_disk(plan: Plan, config: FitKeys, model: PreTrainedModel) -> None:
    """Put what the run folder would take into a plan that has its steps and parameters."""
    trainable = plan.parameters["trainable"]
    checkpoint = 8 * trainable + 4 * (trainable if isinstance(config, TrainKeys) else plan.parameters["total"])
    steps = plan.steps["steps"]
    every = config.save_steps * steps if config.save_steps < 1 else config.save_steps
    counts = {"no": 0, "best": 1, "epoch": math.ceil(plan.steps.get("epochs", 1))}
    counts["steps"] = math.ceil(steps / every) if steps else 0
    count = counts[config.save_strategy]
    count = min(count, config.save_total_limit or count)
    plan.disk = {f"checkpoints ({count} x {checkpoint / 1e6:.4g} MB)": count * checkpoint}
    kept = model.base_model if isinstance(config, TrainKeys) else model
    inner = {id(p): p for p in kept.parameters()}.values()
    merged = sum(p.numel() * p.element_size() for p in inner)
    if not isinstance(config, TrainKeys):
        plan.disk["model/"] = merged
        return
    if config.train_mode == "lora":
        plan.disk["adapter/"] = 4 * trainable
        merged -= 4 * sum(p.numel() for p in inner if p.requires_grad)
    if will_merge(config, merged):
        plan.disk["model/"] = merged


def list_files(config: FitKeys) -> list[str]:
    """List what the run folder would hold."""
    folder = Path(config.output_dir) if config.output_dir else Path("RUN")
    names = ["run.json", "config.toml", "metrics.jsonl"]
    if config.save_strategy != "no" and config.do_train:
        names.append("checkpoints/")
    if isinstance(config, TrainKeys) and config.train_mode == "lora":
        names.append("adapter/")
    if not isinstance(config, TrainKeys) or config.save_merged != "never" or config.train_mode == "full":
        names.append("model/")
    names.append("report.html")
    return [str(folder / name) + ("/" if name.endswith("/") else "") for name in names]


def show(plan: Plan, console: Console) -> None:
    """Print a plan."""
    console.print("resolved config", style="bold")
    console.print(plan.config, highlight=False, markup=False)
    if plan.samples:
        console.print(plan.legend, style="bold", markup=False)
        for sample in plan.samples:
            console.print(f"- {sample}", highlight=False, markup=False)
    rows: list[tuple[str, str]] = []
    for name, count in plan.parameters.items():
        rows.append((f"{name} parameters", f"{count:,}"))
    for title, parts in (("memory", plan.memory), ("disk", plan.disk)):
        rows += [(f"{title}: {name}", tell_bytes(size)) for name, size in parts.items()]
        if parts:
            rows.append((f"{title} in all", tell_bytes(sum(parts.values()))))
    rows += [(name.replace("_", " "), f"{number:,}") for name, number in plan.steps.items()]
    rows.append(("time", tell_time(plan.seconds) if plan.seconds is not None else "not known"))
    table = Table(show_header=False)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for title, lines in (("would write", plan.files), ("estimated", plan.assumptions), ("not seen", plan.unseen)):
        for line in lines:
            console.print(f"{title}: {line}", highlight=False, markup=False)


def tell_bytes(size: float) -> str:
    """Say a size for people: ``"13.6 GiB"``."""
    return f"{size / GIB:,.1f} GiB" if size >= GIB else f"{size / 2**20:,.1f} MiB"


def tell_time(seconds: float) -> str:
    """Say a time for people: ``"about 3 h 20 min"``."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"about {max(round(seconds), 1)} s"
    return f"about {minutes} min" if minutes < 90 else f"about {minutes // 60:,} h {minutes % 60} min"
