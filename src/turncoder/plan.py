"""What a run would cost, before anything is spent: parameters, memory, steps, time, disk, files, and three samples.

Parameters are counted on the model itself, built without storage (torch's meta device) and wrapped with the adapter.
Activations are what autograd keeps during a forward pass of that model. Nothing is written.
"""

import logging
import math
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from turncoder.config import MntpConfig, to_toml
from turncoder.data.tokenizer import load_tokenizer
from turncoder.errors import UserError
from turncoder.model.adapters import attach_lora, count_parameters
from turncoder.model.backbone import load_model_config, resolve_model
from turncoder.preview import Preview, preview_corpus
from turncoder.train.stage import count_steps, will_merge
from turncoder.train.text import choose_block_size

__all__ = ["Plan", "count_activations", "plan_training", "show"]

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


def plan_training(config: MntpConfig) -> Plan:
    """Plan an MNTP run.

    Raises
    ------
    UserError
        A path that is wrong. A hub id that cannot be reached is no error: it is named in ``unseen``.
    """
    plan = Plan(to_toml(config))
    name = resolve_model(config.model_name_or_path)
    where: dict[str, Any] = {
        "revision": config.model_revision,
        "cache_dir": config.cache_dir,
        "trust_remote_code": config.trust_remote_code,
    }
    model_config, tokenizer, preview = None, None, None
    block_size = config.max_seq_length or 1024
    try:
        model_config = load_model_config(name, **where)
    except UserError as error:
        _note_unseen(plan, error, name, "parameters, memory, time and disk are not planned")
    try:
        tokenizer = load_tokenizer(config.tokenizer_name or name, **where)
    except UserError as error:
        _note_unseen(plan, error, config.tokenizer_name or name, "samples and epochs are not shown")
    if tokenizer is not None:
        block_size = choose_block_size(config, model_config, tokenizer)
        try:
            preview = preview_corpus(config, tokenizer, block_size)
        except UserError as error:
            _note_unseen(plan, error, config.dataset_name, "samples and epochs are not shown")
    _plan_steps(plan, config, preview, block_size)
    if preview:
        plan.samples = preview.samples
    if model_config is not None:
        _plan_model(plan, config, build_unstored(model_config, config), block_size)
    plan.files = list_files(config)
    return plan


def _note_unseen(plan: Plan, error: UserError, name: str | None, lost: str) -> None:
    """Keep what the hub did not give as a line of the plan; a local path that is wrong stays an error."""
    if name is None or Path(name).exists() or name.startswith((".", "/", "~")):
        raise error
    plan.unseen.append(f"{error} -- {lost}")


def _plan_steps(plan: Plan, config: MntpConfig, preview: Preview | None, block_size: int) -> None:
    rows = preview.rows if preview else None
    if rows is not None and config.max_train_samples:
        rows = min(rows, config.max_train_samples)
    if rows is None and config.max_train_samples:
        rows = config.max_train_samples
        plan.assumptions.append(f"the corpus has at least max_train_samples = {rows} rows")
    steps, scheduled = count_steps(config, rows)
    per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps
    row_tokens = preview.tokens / max(preview.rows or 1, 1) if preview and preview.tokens else float(block_size)
    plan.steps = {"steps": steps, "scheduled": scheduled, "rows_per_step": per_step}
    plan.steps["tokens_per_step"] = round(per_step * row_tokens)
    plan.steps["tokens"] = round(steps * per_step * row_tokens)
    plan.steps["predicted"] = round(plan.steps["tokens"] * predicted_share(config))
    if rows:
        plan.steps["rows"] = rows
        plan.steps["epochs"] = round(steps * per_step / rows, 3)
    if preview and preview.assumption:
        plan.assumptions.append(preview.assumption)
    elif rows is None:
        plan.assumptions.append("the corpus is large enough for all steps")


def predicted_share(config: MntpConfig) -> float:
    """Share of tokens that carry loss."""
    return 1.0 if config.data_collator_type == "unmasked" else config.mlm_probability


def build_unstored(model_config: PretrainedConfig, config: MntpConfig) -> PreTrainedModel:
    """Build the model on the meta device, with its adapter, trainable as the run would have it.

    Raises
    ------
    UserError
        The architecture has no causal language model, or no module that ``lora_target_modules`` names.
    """
    dtype = model_config.dtype if config.dtype == "auto" else getattr(torch, config.dtype or "float32")
    if config.train_mode == "full":
        dtype = torch.float32
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = AutoModelForCausalLM.from_config(
                model_config,
                dtype=dtype or torch.float32,
                attn_implementation="sdpa",
                trust_remote_code=config.trust_remote_code,
            )
        except ValueError as error:
            if "scaled_dot_product" not in str(error):
                raise UserError(f"model_name_or_path: {str(error).splitlines()[0]}") from None
            model = AutoModelForCausalLM.from_config(model_config, dtype=dtype, attn_implementation="eager")
        if config.train_mode == "lora":
            attach_lora(
                model.base_model,
                r=config.lora_r,
                alpha=config.lora_alpha,
                dropout=config.lora_dropout,
                targets=config.lora_target_modules,
            )
    head = model.get_output_embeddings()
    inside = {id(parameter) for parameter in model.base_model.parameters()}
    for parameter in head.parameters() if isinstance(head, nn.Module) else ():
        if id(parameter) not in inside:
            parameter.requires_grad_(config.train_head)
    return model.train()


def count_activations(model: PreTrainedModel, rows: int, length: int, *, squares: bool) -> int:
    """Count the bytes that autograd keeps between the forward and the backward pass of the backbone.

    Parameters
    ----------
    model
        On the meta device, trainable as the run would have it.
    rows, length
        Of a batch.
    squares
        Whether attention keeps its (length x length) weights: eager attention does, fused kernels do not.
    """
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, tuple[torch.Tensor, int]] = {}

    def keep(saved: torch.Tensor) -> torch.Tensor:
        storage = saved.untyped_storage()
        square = saved.ndim > 2 and saved.shape[-1] == saved.shape[-2] == length
        if storage._cdata not in weights and (squares or not square):
            kept[storage._cdata] = (saved, storage.nbytes())
        return saved

    with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        out = model.base_model(
            input_ids=torch.zeros(rows, length, dtype=torch.long),
            attention_mask=torch.zeros(rows, 1, length, length, dtype=model.dtype),
            position_ids=torch.zeros(rows, length, dtype=torch.long),
            use_cache=False,
        )
    del out
    return sum(size for _, size in kept.values())


def _plan_model(plan: Plan, config: MntpConfig, model: PreTrainedModel, length: int) -> None:
    trainable, total = count_parameters(model)
    plan.parameters = {"trainable": trainable, "total": total}
    text_config = model.config.get_text_config()
    width, vocabulary, layers = text_config.hidden_size, text_config.vocab_size, text_config.num_hidden_layers
    rows = config.per_device_train_batch_size
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    selected = math.ceil(rows * length * predicted_share(config))
    plan.memory = {
        "weights": weights,
        "gradients": 4 * trainable,
        "optimizer": 8 * trainable,
        "vocabulary loss": min(selected * vocabulary * 4, config.vocabulary_budget_mb * 10**6) + 8 * selected * width,
    }
    try:
        kept = count_activations(model, rows, length, squares=config.attn_implementation == "eager")
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        plan.unseen.append(f"activations: the forward pass cannot be traced without storage ({str(error)[:80]})")
    else:
        if config.gradient_checkpointing:
            kept = kept // layers + layers * rows * length * width * (2 if model.dtype != torch.float32 else 4)
        plan.memory["activations"] = kept
    plan.assumptions.append("memory: AdamW in float32, one device, without what the device's driver takes (about 1 GB)")
    _plan_time(plan, config, model, length)
    _plan_disk(plan, config, model, trainable)


def _plan_time(plan: Plan, config: MntpConfig, model: PreTrainedModel, length: int) -> None:
    """Estimate the time from the arithmetic: 2 operations per weight and token forward, as many for each gradient."""
    trainable, total = plan.parameters["trainable"], plan.parameters["total"]
    text_config = model.config.get_text_config()
    vocabulary_weights = text_config.vocab_size * text_config.hidden_size
    inner = total - vocabulary_weights * (1 if text_config.tie_word_embeddings else 2)
    passes = 6 if config.gradient_checkpointing else 4
    attention = 2 * passes * text_config.num_hidden_layers * length * text_config.hidden_size
    per_token = passes * inner + 2 * trainable + attention + 4 * vocabulary_weights * predicted_share(config)
    rate, device = measure_rate(torch.bfloat16 if config.bf16 or config.dtype == "bfloat16" else torch.float32)
    if plan.steps["tokens"]:
        plan.seconds = per_token * plan.steps["tokens"] / (HALF * rate)
    plan.assumptions.append(
        f"time: training alone, at half of the {rate / 1e12:.3g} TFLOP/s that a matrix product reaches now on {device}"
    )


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


def _plan_disk(plan: Plan, config: MntpConfig, model: PreTrainedModel, trainable: int) -> None:
    checkpoint = 12 * trainable
    every = config.save_steps * plan.steps["steps"] if config.save_steps < 1 else config.save_steps
    count = math.ceil(plan.steps["steps"] / every) if config.save_strategy == "steps" else 1
    count = min(count, config.save_total_limit or count) if config.save_strategy != "no" else 0
    plan.disk = {f"checkpoints ({count} x {checkpoint / 1e6:.4g} MB)": count * checkpoint}
    inner = {id(p): p for p in model.base_model.parameters()}.values()
    merged = sum(p.numel() * p.element_size() for p in inner)
    if config.train_mode == "lora":
        plan.disk["adapter/"] = 4 * trainable
        merged -= 4 * sum(p.numel() for p in inner if p.requires_grad)
    if will_merge(config, merged):
        plan.disk["model/"] = merged


def list_files(config: MntpConfig) -> list[str]:
    """List what the run folder would hold."""
    folder = Path(config.output_dir) if config.output_dir else Path("RUN")
    names = ["run.json", "config.toml", "metrics.jsonl"]
    if config.save_strategy != "no" and config.do_train:
        names.append("checkpoints/")
    if config.train_mode == "lora":
        names.append("adapter/")
    if config.save_merged != "never" or config.train_mode == "full":
        names.append("model/")
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
    for title, lines in (("would write", plan.files), ("rests on", plan.assumptions), ("not seen", plan.unseen)):
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
