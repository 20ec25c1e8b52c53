"""Plan an evaluation on GLUE: look at model and rows, train nothing, write nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedModel

from turncoder.config.glue import GlueConfig, count_epochs, settle
from turncoder.config.stages import to_toml
from turncoder.errors import UserError
from turncoder.evaluate.gluedata import Splits, find_jobs, open_splits
from turncoder.evaluate.gluetasks import Job
from turncoder.evaluate.gluetraining import choose_prompt, tell_apart
from turncoder.plan import Plan, add_memory, add_time, note_unseen
from turncoder.preview import SAMPLES, read_tokens
from turncoder.skeleton import open_unstored
from turncoder.train.classifying import TextCollator
from turncoder.train.course import count_steps

__all__ = ["plan_glue"]

MEASURED = 256
"""Rows of each task whose tokens are counted."""


def plan_glue(config: GlueConfig) -> Plan:
    """Plan the trainings of all tasks and seeds.

    Raises
    ------
    UserError
        Whatever is wrong with the keys, the files or the model. A hub id that cannot be reached is no error: it is
        named in ``unseen``.
    """
    plan = Plan(to_toml(config), legend="rows as the model would see them, and their labels")
    folder = Path(config.output_dir) if config.output_dir else Path("RUN")
    plan.files = [str(folder / name) for name in ("run.json", "config.toml", "results.json", "report.html")]
    jobs = find_jobs(config)
    for job in jobs:
        plan.files += [f"{folder / job.name / f'seed-{seed}'}/" for seed in config.seeds]
    encoder = _open_model(plan, config)
    opened: dict[Job, Splits] = {}
    for job in jobs:
        try:
            opened[job] = open_splits(config, job)
        except UserError as error:
            if config.data:
                raise
            plan.unseen.append(f"{error} -- {job.name} is not planned")
    if encoder is not None and opened:
        _add_work(plan, config, encoder, opened)
    return plan


def _open_model(plan: Plan, config: GlueConfig) -> SentenceTransformer | None:
    """Open the encoder without its weights; None where the hub does not give it."""
    name = str(config.model_name_or_path)
    try:
        encoder = open_unstored(settle(config, config.tasks[0], rows=1))
    except UserError as error:
        note_unseen(plan, error, name, "parameters, memory, time and disk are not planned")
        return None
    tell_apart(config, encoder)
    return encoder


def _add_work(plan: Plan, config: GlueConfig, encoder: SentenceTransformer, opened: dict[Job, Splits]) -> None:
    """Add samples, steps, memory, time and disk."""
    model = encoder.transformers_model
    assert isinstance(model, PreTrainedModel)
    rows, steps, tokens, longest = 0, 0, 0.0, (1, 1)
    for job, splits in opened.items():
        one = count_epochs(settle(config, job.task, len(splits.train)), len(splits.train))
        collate = TextCollator(encoder, choose_prompt(one, encoder, splits.train.texts[:MEASURED]))
        spread = np.linspace(0, len(splits.train) - 1, min(MEASURED, len(splits.train)), dtype=int)
        lengths_N = collate.count_tokens([splits.train.texts[row] for row in spread])
        if not plan.samples:
            features = collate.tokenise(splits.train.texts[:SAMPLES])
            plan.samples = [
                f"{read_tokens(ids[mask > 0].tolist(), encoder.tokenizer)} => {label}"
                for ids, mask, label in zip(
                    features["input_ids"], features["attention_mask"], splits.train.gold, strict=False
                )
            ]
        per_step = int(one.per_device_train_batch_size or 1) * config.gradient_accumulation_steps
        count, _ = count_steps(one, len(splits.train))
        rows += len(splits.train)
        steps += count * len(config.seeds)
        tokens += count * len(config.seeds) * per_step * float(lengths_N.mean())
        longest = max(longest, (int(lengths_N.max()), int(one.per_device_train_batch_size or 1)))
    plan.steps = {"tasks": len(opened), "trainings": len(opened) * len(config.seeds), "rows": rows, "steps": steps}
    plan.steps["tokens"] = round(tokens)
    add_memory(plan, config, model, [(longest[1], longest[0])], {})
    add_time(plan, config, model, tokens / max(steps, 1))
    plan.disk = {"checkpoints, until a task and seed are done": 2 * 12 * plan.parameters["trainable"]}
    plan.assumptions.append(f"steps: tokens of a row from {MEASURED} rows of each task")
