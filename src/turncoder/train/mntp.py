"""Masked next token prediction: the step that teaches a decoder to use what lies ahead.

BehnamGhader et al. 2024, LLM2Vec, arXiv 2404.05961, section 2.2. Tokens of a text are masked; the one at position t is
predicted from the state at t-1, through the model's own language-model head, which stays frozen and sees the masked
rows only. What flows: blocks -> corrupted inputs and labels -> bidirectional backbone with LoRA -> rows at t-1 ->
cross-entropy -> run folder.
"""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from turncoder.config.keys import locate_model
from turncoder.config.pretraining import split_negatives
from turncoder.config.stages import MntpConfig
from turncoder.data.tokenizer import check_vocabulary, load_tokenizer, tokenizer_files
from turncoder.errors import UserError
from turncoder.model.adapters import choose_targets, count_parameters, load_adapter
from turncoder.model.attention import make_bidirectional, settle_implementation
from turncoder.model.backbone import count_embeddings, load_language_model, resolve_model
from turncoder.model.heads import Head, take_backbone, take_head
from turncoder.model.prior import Prior, read_prior
from turncoder.train.arguments import training_arguments
from turncoder.train.course import lay_course
from turncoder.train.cwt_trainer import Contrast, build_gathered
from turncoder.train.running import Run
from turncoder.train.stage import (
    check_data,
    choose_trainables,
    fit,
    perform,
    register_head,
    save_result,
    score_end,
    score_untrained,
    tell_parameters,
    tell_parents,
    unregister_head,
)
from turncoder.train.text import Text, count_targets, open_text
from turncoder.train.trainer import GatheredTrainer

__all__ = ["train"]

logger = logging.getLogger("turncoder")


def train(config: MntpConfig) -> Path:
    """Run MNTP from a configuration; the same call again resumes.

    Parameters
    ----------
    config
        See `turncoder.config.stages.MntpConfig`.

    Returns
    -------
    Path
        The run folder: ``run.json``, ``config.toml``, ``metrics.jsonl``, ``checkpoints/``, ``adapter/``, ``model/``.

    Raises
    ------
    UserError
        The input is wrong; the message names the key, the value and the remedy.
    ConversionError
        The architecture does not become fully bidirectional.
    """
    return perform(config, "mntp", _train)


def _train(config: MntpConfig, run: Run) -> None:
    set_seed(config.seed)
    name, where = resolve_model(config.model_name_or_path), locate_model(config)
    tokenizer = load_tokenizer(config.tokenizer_name or name, **where)
    causal_lm = load_language_model(name, dtype=config.dtype, attn_implementation=config.attn_implementation, **where)
    check_vocabulary(tokenizer, count_embeddings(causal_lm))
    backbone, head = take_backbone(causal_lm), take_head(causal_lm)
    if prior := read_prior(name, **where):  # of a headless model
        prior.complete(head)
    del causal_lm
    for adapter in config.adapters:
        load_adapter(backbone, adapter, cache_dir=config.cache_dir)
    _refuse_early(config, backbone, head, run)
    text = open_text(config, backbone, tokenizer)
    check_data(run, text.train.fingerprint)
    run.update(
        data={"train": text.train.counts, "validation": text.validation.counts, "fingerprint": text.train.fingerprint},
        parents=tell_parents(config.model_name_or_path),
        mask_token_id=text.masking.mask_token_id,
    )
    build = functools.partial(_build_trainer, config, run, text, head, backbone)
    scored = {row["model"] for row in run.logged() if "model" in row}
    score_first = config.evaluate_step_zero and config.do_eval
    if score_first and "causal" not in scored:
        score_untrained(build(backbone), run, "causal")
    if config.bidirectional:
        run.update(attention=make_bidirectional(backbone, allow_partial=config.allow_partial).to_dict())
        if score_first and "bidirectional" not in scored:
            score_untrained(build(backbone), run, "bidirectional")
    set_seed(config.seed)  # again: the adapter must not depend on what was drawn, or cached, before
    model = _prepare(config, backbone, head)
    tell_parameters(run, *count_parameters(model, *head.parameters()))
    trainer = build(model)
    if config.do_train:
        fit(trainer, run)
    if config.do_eval:
        run.update(results=score_end(trainer))
    _save(config, run, trainer, text, tokenizer)


def _refuse_early(config: MntpConfig, backbone: PreTrainedModel, head: Head, run: Run) -> None:
    """Find wrong input before hours are spent on the corpus: arguments, targets, an architecture that stays causal."""
    training_arguments(config, run, steps=1, steps_per_epoch=1)
    choose_targets(backbone, config.lora_target_modules)
    if config.objective == "cwt" and not (head.is_linear and head.softcap is None):
        raise UserError(
            "objective = 'cwt': what this architecture does after its output embedding cannot be sampled; use "
            "objective = 'cross_entropy'"
        )
    if config.bidirectional:
        settle_implementation(backbone, allow_partial=config.allow_partial)


def _prepare(config: MntpConfig, backbone: PreTrainedModel, head: Head) -> PreTrainedModel | PeftModel:
    """Choose what trains; a head that does is registered with the model."""
    model = choose_trainables(config, backbone)
    if config.train_head or (config.train_mode == "full" and head.is_tied):
        head.train()
        register_head(model, head)
    return model


def _build_trainer(
    config: MntpConfig, run: Run, text: Text, head: Head, backbone: PreTrainedModel, model: Any
) -> GatheredTrainer:
    """Lay out the steps and build the trainer for ``model``."""
    course = lay_course(config, run, len(text.train))
    contrast = None
    if config.objective == "cwt":
        source, size = split_negatives(config.negatives)
        # The pool is a sample of the vocabulary by its frequency: divided by that, it stands for all of it (logQ)
        prior_V = Prior(count_targets(text, count_embeddings(backbone))).log_p_V
        contrast = Contrast(source=source, size=size, log_prior_V=prior_V, tau=1.0, keeps_bias=True, seed=config.seed)
    # The gradients of a head that trains come from outside of the wrapped forward
    arguments = {"ddp_find_unused_parameters": False if head.trainable else None}
    return build_gathered(config, run, text, course, contrast, arguments, head=head, model=model)


def _save(
    config: MntpConfig, run: Run, trainer: GatheredTrainer, text: Text, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Write ``adapter/`` and ``model/``."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    unregister_head(model)
    save_result(
        config,
        run,
        model,
        save_adapter=trainer.save_adapter,
        probe=torch.from_numpy(text.validation[0][0][:64].astype("int64"))[None],
        tokenizer=tokenizer,
        tokenizer_files=tokenizer_files(
            config.tokenizer_name or resolve_model(config.model_name_or_path),
            revision=config.model_revision,
            cache_dir=config.cache_dir,
        ),
        max_seq_length=text.block_size,
        record={
            "stage": "mntp",
            "alignment": "previous_token",
            "mask_token_id": text.masking.mask_token_id,
            "bidirectional": config.bidirectional,
            "parents": run.record["parents"],
        },
    )
