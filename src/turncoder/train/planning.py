"""Plan a training run of any stage from its config: look at model and data, spend nothing, write nothing."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedModel

from turncoder.budget import pass_tokens
from turncoder.config.keys import locate_model
from turncoder.config.pretraining import PretrainConfig
from turncoder.config.stages import MntpConfig, SimcseConfig, SupervisedConfig, to_toml
from turncoder.data.batching import SetBatches, budget_batches
from turncoder.data.tokenizer import load_tokenizer
from turncoder.errors import UserError
from turncoder.evaluate.sentences import read_sts
from turncoder.model.backbone import load_model_config, resolve_model
from turncoder.model.source import find_source
from turncoder.plan import (
    HALF,
    Plan,
    add_disk,
    add_memory,
    add_steps,
    add_time,
    count_operations,
    list_files,
    measure_rate,
    note_unseen,
    tell_bytes,
    tell_time,
)
from turncoder.preview import Preview, preview_corpus
from turncoder.skeleton import build_unstored, open_unstored
from turncoder.train.glance import Glance, glance_at_rows
from turncoder.train.text import choose_block_size

__all__ = ["add_blocks", "plan_contrast", "plan_mntp", "plan_training"]


def plan_training(config: MntpConfig | SimcseConfig | SupervisedConfig) -> Plan:
    """Plan a run of any stage.

    Raises
    ------
    UserError
        A path that is wrong. A hub id that cannot be reached is no error: it is named in ``unseen``.
    """
    return plan_mntp(config) if isinstance(config, MntpConfig) else plan_contrast(config)


def plan_mntp(config: MntpConfig) -> Plan:
    """Plan an MNTP run; see `plan_training`."""
    plan = Plan(to_toml(config), files=list_files(config))
    name = resolve_model(config.model_name_or_path)
    model_config, tokenizer, preview = None, None, None
    block_size = config.max_seq_length or 1024
    try:
        model_config = load_model_config(name, **locate_model(config))
    except UserError as error:
        note_unseen(plan, error, name, "parameters, memory, time and disk are not planned")
    try:
        tokenizer = load_tokenizer(config.tokenizer_name or name, **locate_model(config))
    except UserError as error:
        note_unseen(plan, error, config.tokenizer_name or name, "samples and epochs are not shown")
    if tokenizer is not None:
        block_size = choose_block_size(config, model_config, tokenizer)
        try:
            preview = preview_corpus(config, tokenizer, block_size)
        except UserError as error:
            note_unseen(plan, error, config.dataset_name, "samples and epochs are not shown")
    add_blocks(plan, config, preview, block_size, _predicted_share(config))
    if model_config is not None:
        _add_causal_lm(plan, config, build_unstored(model_config, config), block_size)
    return plan


def plan_contrast(config: SimcseConfig | SupervisedConfig) -> Plan:
    """Plan a SimCSE or supervised run; see `plan_training`."""
    plan = Plan(to_toml(config), files=list_files(config))
    plan.legend = "samples as the model would see them: [what is pooled]"
    encoder, glance = None, None
    if config.sts_file:
        read_sts(config.sts_file)
    if config.train_file and not Path(config.train_file).expanduser().exists():
        raise UserError(f"train_file: {config.train_file}: no such file or folder")
    try:
        encoder = open_unstored(config)
    except UserError as error:
        lost = "parameters, memory, time, disk, samples and epochs are not planned"
        note_unseen(plan, error, config.model_name_or_path, lost)
    if encoder is not None:
        try:
            glance = glance_at_rows(config, encoder)
        except UserError as error:
            note_unseen(plan, error, config.dataset_name, "samples and epochs are not shown")
    _add_rows(plan, config, glance)
    if encoder is not None:
        _add_encoder(plan, config, encoder, glance)
    if isinstance(config, SupervisedConfig) and config.teacher_name_or_path and config.do_train:
        _add_teacher(plan, config, config.teacher_name_or_path, glance)
    return plan


def _add_teacher(plan: Plan, config: SupervisedConfig, name: str, glance: Glance | None) -> None:
    """Add the parameters of the teacher, and the time in which it reads everything, once and before training."""
    where: dict[str, Any] = {"cache_dir": config.cache_dir}
    try:
        source = find_source(name, **where)
        where |= {"revision": source.revision, "trust_remote_code": config.trust_remote_code}
        model_config = load_model_config(source.base, **where)
        teacher = build_unstored(model_config, dataclasses.replace(config, train_mode="full", lora_target_modules=None))
    except UserError as error:
        note_unseen(plan, UserError(f"teacher_name_or_path = {name!r}: {error}"), name, "the teacher is not planned")
        return
    plan.parameters["teacher's"] = count = sum(p.numel() for p in teacher.parameters())
    told = f"teacher: reads every text once before training, and leaves memory then ({tell_bytes(4 * count)} of weights"
    if glance is None or glance.sizes is None or plan.seconds is None:
        plan.assumptions.append(f"{told}); its time is not known")
        return
    tokens = sum(size * length_NC.sum(1).mean() for size, length_NC in zip(glance.sizes, glance.lengths, strict=True))
    length = float(np.concatenate([length_NC.ravel() for length_NC in glance.lengths]).mean())
    rate, _ = measure_rate(torch.float32)
    seconds = count_operations(teacher, length) * tokens / (HALF * rate)
    plan.seconds += seconds
    plan.assumptions.append(f"{told}), in {tell_time(seconds)} of the time, as if no text came twice")


def add_blocks(
    plan: Plan, config: MntpConfig | PretrainConfig, preview: Preview | None, block_size: int, share: float
) -> None:
    """Add samples and steps; ``share`` of the tokens carry loss."""
    rows = preview.rows if preview else None
    if rows is not None and config.max_train_samples:
        rows = min(rows, config.max_train_samples)
    row_tokens = preview.tokens / max(preview.rows or 1, 1) if preview and preview.tokens else float(block_size)
    add_steps(plan, config, rows, row_tokens)
    plan.steps["predicted"] = round(plan.steps["tokens"] * share)
    if preview:
        plan.samples = preview.samples
        if preview.assumption and rows is not None:
            plan.assumptions.append(preview.assumption)


def _predicted_share(config: MntpConfig) -> float:
    """Share of tokens that carry loss."""
    return 1.0 if config.data_collator_type == "unmasked" else config.mlm_probability


def _add_causal_lm(plan: Plan, config: MntpConfig, model: PreTrainedModel, length: int) -> None:
    rows = config.per_device_train_batch_size
    text_config = model.config.get_text_config()
    width, vocabulary = text_config.hidden_size, text_config.vocab_size
    selected = math.ceil(rows * length * _predicted_share(config))
    loss = min(selected * vocabulary * 4, config.vocabulary_budget_mb * 10**6) + 8 * selected * width
    add_memory(plan, config, model, [(rows, length)], {"vocabulary loss": loss})
    add_time(plan, config, model, length, head=4 * vocabulary * width * _predicted_share(config))
    add_disk(plan, config, model)


def _add_rows(plan: Plan, config: SimcseConfig | SupervisedConfig, glance: Glance | None) -> None:
    """Add samples and steps."""
    if glance is None:
        add_steps(plan, config, None, 0.0)
        del plan.steps["tokens"], plan.steps["tokens_per_step"]
        return
    plan.samples = glance.samples
    row_tokens = np.average([length_NC.sum(1).mean() for length_NC in glance.lengths], weights=glance.sizes)
    add_steps(plan, config, sum(glance.sizes) if glance.sizes else None, float(row_tokens))
    if glance.assumption:
        plan.assumptions.append(glance.assumption)
    plan.assumptions.append("tokens: from some of the first rows, with those of anchors, positives and negatives alike")
    if isinstance(config, SimcseConfig):
        plan.assumptions[-1] = "tokens: from some of the first rows, each read twice"
    if glance.sizes:
        SetBatches(  # refuses data that fills no step
            glance.sizes,
            batch_size=config.per_device_train_batch_size,
            batches=config.gradient_accumulation_steps,
            steps=1,
            seed=config.seed,
        )


def _add_encoder(
    plan: Plan, config: SimcseConfig | SupervisedConfig, encoder: SentenceTransformer, glance: Glance | None
) -> None:
    """Add parameters, memory, time and disk."""
    model: Any = encoder.transformers_model
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    assert device is not None
    rows, width = config.per_device_train_batch_size, encoder.get_embedding_dimension() or 0
    cached = config.mini_batch_num_tokens is not None
    passes: list[tuple[int, int]] = []
    columns = 2
    if glance is not None:
        budget = config.mini_batch_num_tokens or pass_tokens(device)
        batches = [lay_out_passes(length_NC, rows, budget, cached=cached) for length_NC in glance.lengths]
        passes = max(batches, key=_count_tokens)
        columns = max(length_NC.shape[1] for length_NC in glance.lengths)
        if cached:
            passes = [max((one for batch in batches for one in batch), key=math.prod)]
            plan.assumptions.append("memory: gradients are cached, and one mini-batch's activations exist at a time")
    # float32 vectors and their gradients; cosines with all candidates, their softmax and its gradient
    loss = {"contrastive loss": 4 * (2 * rows * columns * width + 3 * rows * rows * (columns - 1))}
    drops = isinstance(config, SimcseConfig) and config.simcse_dropout > 0 and device.type == "cpu"
    add_memory(plan, config, model, passes, loss, squares=drops)
    if glance is not None:
        length = _count_tokens(passes) / sum(rows for rows, _ in passes)
        add_time(plan, config, model, length, again=cached)
    add_disk(plan, config, model)


def _count_tokens(passes: list[tuple[int, int]]) -> int:
    return sum(rows * length for rows, length in passes)


def lay_out_passes(length_NC: np.ndarray, batch_size: int, budget: int, *, cached: bool) -> list[tuple[int, int]]:
    """Give rows and length of each pass through the model of a typical batch.

    Parameters
    ----------
    length_NC
        Tokens of some rows [N, C].
    batch_size
        Rows of a batch.
    budget
        Tokens of a pass: padding included, or left out where gradients are cached.
    cached
        The passes take the rows of a batch in their order, which is that of all their columns' tokens.
    """
    by_length = np.argsort(-length_NC.sum(1), kind="stable")
    typical = by_length[((np.arange(batch_size) + 0.5) * len(by_length) / batch_size).astype(int)]
    return [
        (len(rows), int(length_B[rows].max()))
        for length_B in length_NC[typical].T
        for rows in (_cut_in_order(length_B, budget) if cached else budget_batches(length_B, budget))
    ]


def _cut_in_order(length_B: np.ndarray, budget: int) -> list[np.ndarray]:
    """Give the rows of each pass: as many of the next as have no more than ``budget`` tokens, but one at least."""
    ends, passes, start = length_B.cumsum(), [], 0
    while start < len(ends):
        before = ends[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(ends, before + budget, side="right")))
        passes.append(np.arange(start, end))
        start = end
    return passes
