"""The sizes of a turn: the keys of every stage, derived from model and text, around those that the user gives."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from turncoder.config import settings
from turncoder.config.stages import MntpConfig, SimcseConfig, SupervisedConfig, TurnConfig
from turncoder.data.files import names_file
from turncoder.errors import UserError
from turncoder.train.course import count_steps

__all__ = ["Sizes", "configure_stages", "derive_sizes", "has_bf16"]

HELD_OUT = 5.0  # percent of the documents
MOST_STEPS = 1000  # LLM2Vec's, of every stage
EPOCHS = 3
MOST_SIMCSE_RATE = 3e-4  # at ten times that a small decoder loses on STS; see docs/decisions.md
MOST_PAIRS_RATE = 1e-3


@dataclass
class Sizes:
    """What is derived: the keys of each stage, and of the probes of words; and the reasons, one line each."""

    mntp: dict[str, Any] = field(default_factory=dict)
    simcse: dict[str, Any] = field(default_factory=dict)
    supervised: dict[str, Any] = field(default_factory=dict)
    words: dict[str, Any] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)


def has_bf16() -> bool:
    """Say whether the device computes in bfloat16."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()


def derive_sizes(
    config: TurnConfig, sizes: Sizes, parameters: int, tokens: int, length: int, sentences: int, pairs: int = 0
) -> Sizes:
    """Derive the keys of each stage, around those that the user gives.

    Learning rates go with the inverse root of the parameters, through what is known to work: LLM2Vec's 5e-5 (MNTP),
    3e-5 (SimCSE) and 2e-4 (pairs, from there a factor of 4) at 7 B, and the quickstart's 5e-3 at 1 M.
    """
    fast = torch.accelerator.is_available()
    processes = PartialState(cpu=not fast).num_processes
    rows = max(4, (16384 if fast else 1024) // length)
    rate = float(f"{min(5e-3, 5e-4 * math.sqrt(1e8 / parameters)):.1e}")
    common = {"lora_r": 16, "save_total_limit": 1, "num_train_epochs": EPOCHS} | ({"bf16": True} if has_bf16() else {})
    sizes.mntp = {
        "max_seq_length": length, "per_device_train_batch_size": rows, "per_device_eval_batch_size": rows,
        "learning_rate": rate, "mlm_probability": 0.2, "max_eval_samples": 128, **common,
    }  # fmt: skip
    batch = max(8, min(128 if fast else 64, sentences // 8))
    sizes.simcse = {
        "max_seq_length": min(128, length), "per_device_train_batch_size": batch, "per_device_eval_batch_size": batch,
        "learning_rate": float(f"{min(MOST_SIMCSE_RATE, 0.6 * rate):.1e}"), "max_eval_samples": 512,
        "split_sentences": True, **common,
    }  # fmt: skip
    batch = max(8, min(128 if fast else 64, (pairs or sentences) // 8))
    sizes.supervised = {
        "max_seq_length": min(256, length), "per_device_train_batch_size": batch, "per_device_eval_batch_size": batch,
        "learning_rate": float(f"{min(MOST_PAIRS_RATE, 4 * rate):.1e}"), "logging_steps": 20, "warmup_steps": 0.1,
        "save_steps": 200, **common,
    }  # fmt: skip
    for name in ("mntp", "simcse", "supervised"):
        if asked := getattr(config, f"steps_{name}"):
            getattr(sizes, name).update(max_steps=asked, stop_after_n_steps=asked)
        elif not {"num_train_epochs", "max_steps"} & set(getattr(config, name)):
            getattr(sizes, name)["stop_after_n_steps"] = MOST_STEPS
    stages = configure_stages(config, sizes)
    for name, stage in stages.items():
        if name != "control" and has_bf16() and stage.train_mode == "lora":
            getattr(sizes, name)["dtype"] = "bfloat16"  # of what is frozen
    mntp, simcse = stages["mntp"], stages["simcse"]
    blocks = math.ceil(tokens / length)
    blocks = min(blocks, mntp.max_train_samples or blocks)
    steps = {
        name: count_steps(stages[name], rows, processes)[0] for name, rows in (("mntp", blocks), ("simcse", sentences))
    }
    for name, count in steps.items():
        getattr(sizes, name).update(_schedule(count))
    units = "different sentences" if simcse.split_sentences else "texts"
    reasons = [
        f"text: {tokens:,} tokens to train on, {sentences:,} {units}",
        f"MNTP: blocks of {length} tokens, {_tell_steps(mntp, steps['mntp'], blocks, processes)}, learning rate "
        f"{mntp.learning_rate:g}",
        f"SimCSE: {_tell_steps(simcse, steps['simcse'], sentences, processes)}, learning rate {simcse.learning_rate:g}",
    ]
    if "supervised" in stages and pairs:
        stage = stages["supervised"]
        count = count_steps(stage, pairs, processes)[0]
        reasons.append(
            f"pairs: {pairs:,}; {_tell_steps(stage, count, pairs, processes)}, learning rate {stage.learning_rate:g}"
        )
    sizes.reasons += reasons
    return sizes


def _count_rows(stage: Any, processes: int) -> int:
    return stage.per_device_train_batch_size * stage.gradient_accumulation_steps * processes


def _tell_steps(stage: Any, steps: int, rows: float, processes: int) -> str:
    per_step = _count_rows(stage, processes)
    return f"{per_step:,} a step: {steps:,} steps ({steps * per_step / max(rows, 1):.2g} epochs)"


def _schedule(steps: int) -> dict[str, Any]:
    return {
        "max_steps": steps,
        "warmup_steps": max(1, steps // 15),
        "logging_steps": max(1, steps // 5),
        "save_steps": max(1, min(200, steps // 3)),
    }


def _shared(config: TurnConfig) -> dict[str, Any]:
    """Give the keys that every stage on the text has."""
    known = names_file(config.text)
    if known and config.dataset_config_name:
        raise UserError(
            f"dataset_config_name = {config.dataset_config_name!r} is for a hub id, and --text {config.text} is a file"
        )
    return {
        "model_name_or_path": config.model_name_or_path,
        "model_revision": config.model_revision,
        "cache_dir": config.cache_dir,
        "trust_remote_code": config.trust_remote_code,
        "train_file" if known else "dataset_name": config.text,
        "dataset_config_name": config.dataset_config_name,
        "validation_file": config.validation_text,
        "validation_split_percentage": HELD_OUT,
        "text_column": config.text_column,
        "seed": config.seed,
    }


def configure_stages(config: TurnConfig, sizes: Sizes) -> dict[str, Any]:
    """Build the configuration of every stage: what is derived, and what the user says otherwise."""
    folder = Path(config.output_dir or "")
    shared = _shared(config)
    mntp = {**shared, **sizes.mntp}
    causal = {"bidirectional": False, "data_collator_type": "unmasked", "evaluate_step_zero": False}
    above = {**shared, "model_name_or_path": str(folder / "mntp"), "model_revision": "main"}
    stages: dict[str, Any] = {
        "control": _configure_one(
            MntpConfig, {**mntp, "output_dir": str(folder / "control")}, {**config.mntp, **causal}, "mntp"
        ),
        "mntp": _configure_one(MntpConfig, {**mntp, "output_dir": str(folder / "mntp")}, config.mntp, "mntp"),
        "simcse": _configure_one(
            SimcseConfig,
            {**above, **sizes.simcse, "sts_file": config.sts, "output_dir": str(folder / "simcse")},
            config.simcse,
            "simcse",
        ),
    }
    if config.pairs:
        told = {
            name: value
            for name, value in above.items()
            if name not in ("text_column", "train_file", "dataset_name", "dataset_config_name", "validation_file")
        }
        told |= {"model_name_or_path": str(folder / "simcse"), "output_dir": str(folder / "supervised")}
        told["train_file" if names_file(config.pairs) else "dataset_name"] = config.pairs
        stages["supervised"] = _configure_one(
            SupervisedConfig, {**told, **sizes.supervised, "sts_file": config.sts}, config.supervised, "supervised"
        )
    return stages


def _configure_one(kind: type[Any], derived: dict[str, Any], given: dict[str, Any], table: str) -> Any:
    """Build one configuration; what is wrong with a key that the user gave is said of ``--TABLE.KEY``."""
    try:
        return settings.load(kind, None, {**derived, **given})
    except UserError as error:
        said = str(error).removeprefix("--")
        if re.split(r"\W", said)[0] not in given:
            raise
        raise UserError(f"--{table}.{said}".replace("did you mean --", f"did you mean --{table}.")) from None
