"""A configuration as the arguments of transformers' Trainer."""

from __future__ import annotations

import logging
import sys
from typing import Any, TypeVar

import torch
from transformers import TrainingArguments
from transformers.integrations.integration_utils import get_available_reporting_integrations

from turncoder.config.keys import HUB_KEYS, FitKeys
from turncoder.errors import UserError, first_line
from turncoder.train.running import Run

__all__ = ["training_arguments"]

logger = logging.getLogger("turncoder")
FALLING = ("loss", "perplexity", "bits_per_byte", "alignment", "uniformity")
"""Ends of the metrics that are better the lower they are."""
Arguments = TypeVar("Arguments", bound=TrainingArguments)


def training_arguments(
    config: FitKeys,
    run: Run,
    *,
    steps: int,
    steps_per_epoch: int,
    kind: type[Arguments] = TrainingArguments,  # type: ignore[assignment]
    **others: Any,
) -> Arguments:
    """Turn a configuration into the Trainer's arguments.

    Parameters
    ----------
    config
        The resolved configuration; its ``training`` holds any further field.
    run
        Checkpoints go into its folder.
    steps
        Optimizer steps that the learning-rate schedule is laid out for.
    steps_per_epoch
        What the strategy ``epoch`` means in steps: batches come from one unrolled sequence of epochs.
    kind
        The trainer's class of arguments.
    **others
        Further fields that the stage sets; the configuration's ``training`` wins over them.

    Raises
    ------
    UserError
        A field that TrainingArguments refuses.
    """
    every_epoch = {name: steps_per_epoch for name in ("eval", "save") if getattr(config, f"{name}_strategy") == "epoch"}
    early = config.early_stopping_patience is not None
    metric = config.training.get(
        "metric_for_best_model", "eval_loss" if early or config.save_strategy == "best" else None
    )
    if config.fp16 and not torch.accelerator.is_available():
        logger.warning("fp16: float16 is for GPUs, and there is none here: float32 is computed")
    values: dict[str, Any] = {
        "output_dir": str(run.checkpoints),
        "max_steps": steps,
        "eval_strategy": "steps" if "eval" in every_epoch else config.eval_strategy,
        "eval_steps": every_epoch.get("eval", config.eval_steps),
        "save_strategy": "steps" if "save" in every_epoch else config.save_strategy,
        "save_steps": every_epoch.get("save", config.save_steps),
        "load_best_model_at_end": early,
        "metric_for_best_model": metric,
        "greater_is_better": None if metric is None else not str(metric).endswith(FALLING),
        "bf16": config.bf16 or (config.dtype == "bfloat16" and not config.fp16),
        "remove_unused_columns": False,
        "use_cpu": not torch.accelerator.is_available(),  # else the Trainer refuses bf16 without a GPU
        "disable_tqdm": not sys.stderr.isatty(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "logging_nan_inf_filter": False,
        "report_to": config.report_to.split(","),
        "log_level": "error",
        "log_level_replica": "error",  # else what transformers reports comes from every process but the first
    }
    if early and (config.eval_strategy == "steps" or config.save_strategy != "best"):
        values |= {"save_strategy": "steps", "save_steps": values["eval_steps"] or config.logging_steps}
    same = (
        "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps learning_rate "
        "lr_scheduler_type warmup_steps weight_decay max_grad_norm fp16 seed dataloader_num_workers logging_steps"
    )
    values |= {name: getattr(config, name) for name in same.split()}
    given = {name: value for name, value in config.training.items() if name not in HUB_KEYS}
    try:
        arguments = kind(**{**values, **others, **given})
    except (TypeError, ValueError) as error:
        said = first_line(error)
        named = [
            key for key, value in {**values, **config.training}.items() if isinstance(value, str) and value in said
        ]
        raise UserError(f"{named[-1] if named else 'training'}: {said}") from error
    if arguments.label_smoothing_factor:
        raise UserError(
            f"label_smoothing_factor = {arguments.label_smoothing_factor:g}: no loss here smooths labels; drop the key"
        )
    if arguments.n_gpu > 1:  # the Trainer would have a batch for each, by DataParallel
        logger.warning(
            "%d GPUs are there, and one is used; torchrun --nproc-per-node %d -m turncoder.cli ... uses all",
            arguments.n_gpu,
            arguments.n_gpu,
        )
        arguments._n_gpu = 1
    there = get_available_reporting_integrations()
    for name in arguments.report_to or ():
        if name not in there:
            raise UserError(f"report_to: {name} is not installed, or no tracker; give {', '.join([*there, 'none'])}")
    return arguments
