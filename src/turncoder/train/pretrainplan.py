"""Plan a pretraining from its config: look at architecture, tokenizer and text, train nothing, write nothing."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from turncoder.config.keys import locate_model
from turncoder.config.pretraining import PretrainConfig, split_negatives
from turncoder.config.stages import to_toml
from turncoder.data.tokenizer import end_documents
from turncoder.data.vocabulary import check_text, train_tokenizer
from turncoder.encode.encoder import limit_length
from turncoder.errors import UserError
from turncoder.model.backbone import load_model_config, resolve_model
from turncoder.model.scratch import build_config
from turncoder.plan import Plan, add_disk, add_memory, add_time, list_files, note_unseen
from turncoder.preview import open_streams, preview_corpus, take_first, weigh
from turncoder.train.planning import add_blocks
from turncoder.train.pretrain import check_early, settle_kind, sketch_model
from turncoder.train.text import VOCABULARY, choose_block_size, open_tokenizer

__all__ = ["plan_pretrain"]

logger = logging.getLogger("turncoder")


def plan_pretrain(config: PretrainConfig) -> Plan:
    """Plan a pretraining.

    Raises
    ------
    UserError
        What training would refuse, as far as it can be told without weights. A hub id that cannot be reached is no
        error: it is named in ``unseen``.
    """
    check_early(config)
    plan = Plan(to_toml(config), files=list_files(config))
    try:
        config = settle_kind(config)
    except UserError as error:
        note_unseen(plan, error, config.model_name_or_path, "it is taken for a decoder")
        config = replace(config, kind="clm")
    if config.kind == "clm":
        plan.legend = "samples as the model would see them: every token is predicted from those before it"
    model, preview, block_size = None, None, config.max_seq_length or 1024
    opened = _open_tokenizer(plan, config)
    if opened is not None:
        tokenizer, size = opened
        model = _open_model(plan, config, tokenizer, size)
        tokenizer = end_documents(tokenizer, config.append_eos)
        block_size = choose_block_size(config, model.config if model is not None else None, tokenizer)
        block_size = block_size if model is None else limit_length(model, block_size)
        try:
            preview = preview_corpus(config, tokenizer, block_size)
        except UserError as error:
            note_unseen(plan, error, config.dataset_name, "samples and epochs are not shown")
    add_blocks(plan, config, preview, block_size, _predicted_share(config))
    if model is not None:
        _add_model(plan, config, model, block_size)
    return plan


def _open_tokenizer(plan: Plan, config: PretrainConfig) -> tuple[PreTrainedTokenizerBase, int] | None:
    """Load the tokenizer, or train one on the first texts; with it, how many tokens that of the run will have."""
    if config.train_tokenizer is None:
        try:
            tokenizer = open_tokenizer(config)
        except UserError as error:
            name = config.tokenizer_name or config.model_name_or_path or config.config_name
            note_unseen(plan, error, name, "parameters, memory, samples and epochs are not planned")
            return None
        return tokenizer, max(tokenizer.get_vocab().values()) + 1
    size = config.vocab_size or VOCABULARY
    try:
        corpus, _ = open_streams(config)
    except UserError as error:
        note_unseen(plan, error, config.dataset_name, "parameters, memory, samples and epochs are not planned")
        return None
    check_text(corpus)
    texts, _, whole = take_first(corpus, weigh)
    tokenizer = train_tokenizer(texts, size, algorithm=config.train_tokenizer, closes=config.kind == "mlm")
    if whole:
        return tokenizer, len(tokenizer)
    plan.assumptions.append(
        f"tokens: from a tokenizer that was trained on the first {len(texts):,} texts and is not kept "
        f"({len(tokenizer):,} tokens); that of the run learns from all of them and is taken to have {size:,}"
    )
    return tokenizer, size


def _open_model(
    plan: Plan, config: PretrainConfig, tokenizer: PreTrainedTokenizerBase, size: int
) -> PreTrainedModel | None:
    """Build the language model on the meta device, trainable as the run would have it."""
    if config.config_name:
        model_config = build_config(config, tokenizer)
        model_config.vocab_size = max(size, model_config.vocab_size)
    else:
        name = resolve_model(str(config.model_name_or_path))
        try:
            model_config = load_model_config(name, **locate_model(config))
        except UserError as error:
            note_unseen(plan, error, name, "parameters, memory, time and disk are not planned")
            return None
        text_config = model_config.get_text_config()
        if size > text_config.vocab_size:
            logger.warning(
                "the tokenizer has %s tokens and the model %s embeddings: it gets as many",
                f"{size:,}", f"{text_config.vocab_size:,}",
            )  # fmt: skip
        text_config.vocab_size = size if config.swap_vocabulary else max(size, text_config.vocab_size)
    return sketch_model(config, model_config).train()


def _predicted_share(config: PretrainConfig) -> float:
    return 1.0 if config.kind == "clm" else config.mlm_probability


def _add_model(plan: Plan, config: PretrainConfig, model: PreTrainedModel, length: int) -> None:
    """Add parameters, memory, time and disk."""
    rows, share, budget = (
        config.per_device_train_batch_size,
        _predicted_share(config),
        config.vocabulary_budget_mb * 10**6,
    )
    embeddings: Any = model.get_input_embeddings().weight
    vocabulary, width = embeddings.shape
    selected = math.ceil(rows * length * share)
    loss, head = {}, 0.0
    if config.objective != "cwt":
        loss["vocabulary loss"] = min(4 * selected * vocabulary, budget) + 8 * selected * width
        head += 6 * vocabulary * width * share
    if config.objective != "cross_entropy":
        pool = min(vocabulary, _count_pool(config, selected))
        loss["contrastive loss"] = min(4 * selected * pool, budget) + 8 * (selected + pool) * width
        head += 6 * pool * width * share
        plan.assumptions.append(f"contrast: with {pool:,} different tokens, as if none came twice before all are there")
    add_memory(plan, config, model, [(rows, length)], loss)
    if embeddings.requires_grad:
        plan.memory["optimizer"] -= 8 * vocabulary * width
        plan.memory["optimizer, of the embeddings"] = 8 * vocabulary * width
    if config.sparse_embeddings:
        used = min(vocabulary, config.gradient_accumulation_steps * rows * length)
        plan.memory["gradients"] -= 4 * (vocabulary - used) * width
    add_time(plan, config, model, length, head=head)
    add_disk(plan, config, model)


def _count_pool(config: PretrainConfig, selected: int) -> int:
    """Count the targets that the rows of a forward pass are contrasted with, in one process."""
    source, draws = split_negatives(config.negatives)
    return selected * (1 if source == "micro" else config.gradient_accumulation_steps) + draws
