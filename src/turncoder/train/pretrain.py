"""Pretraining, masked or causal: headless by contrastive weight tying, or by cross-entropy over the selected rows.

What flows: blocks -> corrupted inputs and labels -> backbone -> rows that predict -> their contrast with the embeddings
of a pool of targets, or their cross-entropy -> run folder with an ordinary language model. Validation is in
cross-entropy and bits per byte whatever the loss: a headless model gets its unigram prior back for it.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch.nn.utils.rnn import pad_sequence
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from turncoder.artifact import save_language_model
from turncoder.config.heads import FinetuneConfig
from turncoder.config.keys import locate_model
from turncoder.config.pretraining import PretrainConfig, split_negatives
from turncoder.data.tokenizer import end_documents, tokenizer_files
from turncoder.errors import UserError
from turncoder.evaluate.anisotropy import measure_anisotropy
from turncoder.model.adapters import count_parameters
from turncoder.model.backbone import count_embeddings, find_kind, load_model_config, read_record, resolve_model
from turncoder.model.heads import Head, take_backbone, take_head
from turncoder.model.prior import Prior, read_prior
from turncoder.model.scratch import build_config, check_direction, choose_class, start_model, tie_embeddings
from turncoder.train.arguments import training_arguments
from turncoder.train.course import lay_course
from turncoder.train.cwt_trainer import Contrast, build_gathered
from turncoder.train.recording import AnisotropyLog
from turncoder.train.running import Run
from turncoder.train.stage import (
    check_data,
    fit,
    perform,
    register_head,
    score_end,
    score_untrained,
    tell_parameters,
    tell_parents,
    unregister_head,
)
from turncoder.train.text import Text, count_targets, measure_bytes, open_text, open_tokenizer
from turncoder.train.trainer import GatheredTrainer

__all__ = ["check_early", "settle_kind", "sketch_model", "train"]

logger = logging.getLogger("turncoder")

DECAY_SHARE = 0.2  # of a warmup-stable-decay schedule
LOOKED_AT = 16  # rows of held-out text that anisotropy is measured on


def train(config: PretrainConfig) -> Path:
    """Pretrain from a configuration; the same call again resumes.

    Parameters
    ----------
    config
        See `turncoder.config.pretraining.PretrainConfig`.

    Returns
    -------
    Path
        The run folder: ``run.json``, ``config.toml``, ``metrics.jsonl``, ``checkpoints/``, ``model/``.

    Raises
    ------
    UserError
        The input is wrong; the message names the key, the value and the remedy.
    """
    return perform(settle_kind(config), "pretrain", _train)


def settle_kind(config: PretrainConfig) -> PretrainConfig:
    """Fill in what a model that is fine-tuned predicts, where the configuration leaves it open; raises UserError."""
    if not isinstance(config, FinetuneConfig) or config.kind is not None:
        return config
    return replace(config, kind=find_kind(str(config.model_name_or_path), **locate_model(config)))


def _train(config: PretrainConfig, run: Run) -> None:
    _refuse_early(config, run)
    tokenizer = open_tokenizer(config)
    set_seed(config.seed)
    model = start_model(config, tokenizer)
    backbone, head = take_backbone(model), take_head(model, trainable=True)
    check_direction(config, model)
    if config.objective != "cross_entropy" and not (head.is_linear and head.softcap is None):
        raise UserError(
            f"objective: what {type(model).__name__} does after its output embedding (a soft cap, for one) is no part "
            "of a contrast; use objective = 'cross_entropy', or a config without it (--config_overrides.KEY none)"
        )
    text = open_text(config, backbone, end_documents(tokenizer, config.append_eos))
    check_data(run, text.train.fingerprint)
    prior, needs_prior = _find_prior(config, text, count_embeddings(model))
    if needs_prior:
        prior.complete(head)
    run.update(
        data={"train": text.train.counts, "validation": text.validation.counts, "fingerprint": text.train.fingerprint},
        parents=tell_parents(config.model_name_or_path) if config.model_name_or_path else [],
        vocabulary={"size": len(prior.counts_V), "seen": int((prior.counts_V > 0).sum())},
    )
    _choose_weights(config, backbone, head)
    tell_parameters(run, *count_parameters(backbone))
    size = measure_bytes(text.validation, tokenizer, text.never_targets)
    build = functools.partial(_build_trainer, config, run, text, backbone, head, prior, size)
    if config.evaluate_step_zero and config.do_eval and not run.logged():
        score_untrained(build(), run, "untrained")
    trainer = build()
    if config.do_train:
        fit(trainer, run)
    if config.do_eval:
        results = score_end(trainer)
        looks = [row["anisotropy"] for row in run.logged() if "anisotropy" in row]
        run.update(results=results, anisotropy=looks[-1] if looks else None)
    unregister_head(backbone)
    if PartialState().is_main_process:
        save_language_model(
            model,
            run.folder / "model",
            tokenizer=tokenizer,
            tokenizer_files=_files_of(config, tokenizer),
            prior=prior if needs_prior else None,
            record={
                "stage": "pretrain",
                "kind": config.kind,
                "objective": config.objective,
                "max_seq_length": text.block_size,
                "parents": run.record["parents"],
            },
        )


def _refuse_early(config: PretrainConfig, run: Run) -> None:
    """Find wrong input before anything is read."""
    training_arguments(config, run, steps=1, steps_per_epoch=1, **_schedule(config, 1))
    check_early(config)
    if config.trust_remote_code:  # whose classes are known when they are loaded
        return
    if config.config_name:
        model_config = build_config(config, None)
    else:
        model_config = load_model_config(str(config.model_name_or_path), **locate_model(config))
        if config.objective != "cross_entropy":  # tied already, or its own head would be said to be dropped twice
            model_config.get_text_config(decoder=True).tie_word_embeddings = model_config.tie_word_embeddings = True
    sketch_model(config, model_config)


def check_early(config: PretrainConfig) -> None:
    """Refuse what this machine cannot do, and a prior that the weights have already; raises UserError."""
    if config.sparse_embeddings and torch.accelerator.is_available():
        raise UserError("sparse_embeddings: sparse gradients are summed and clipped on CPUs here; drop it on a GPU")
    if config.head_prior and config.model_name_or_path and not config.swap_vocabulary:
        record = read_record(config.model_name_or_path, **locate_model(config))
        if not record.get("prior") and record.get("head", {}).get("prior", True):
            raise UserError(
                f"head_prior: the logits of {config.model_name_or_path} hold log p already, and it would count twice; "
                "drop the key, or give new embeddings with --swap_vocabulary"
            )


def sketch_model(config: PretrainConfig, model_config: PretrainedConfig) -> PreTrainedModel:
    """Build a language model without weights, trainable as the run would have it; raises UserError."""
    with torch.device("meta"):
        model: PreTrainedModel = choose_class(config, model_config).from_config(model_config, dtype=torch.float32)
        if config.objective != "cross_entropy":
            tie_embeddings(model)
    backbone = take_backbone(model)
    _choose_weights(config, backbone, Head(model, backbone, object, 0).train())  # nothing of it is run
    unregister_head(backbone)
    return model


def _schedule(config: PretrainConfig, steps: int) -> dict[str, Any]:
    """Give a warmup-stable-decay schedule its decay, the last fifth, where the configuration says nothing."""
    if config.lr_scheduler_type != "warmup_stable_decay" or "lr_scheduler_kwargs" in config.training:
        return {}
    return {"lr_scheduler_kwargs": {"num_decay_steps": max(1, round(DECAY_SHARE * steps))}}


def _find_prior(config: PretrainConfig, text: Text, size: int) -> tuple[Prior, bool]:
    """Find log p of the training text, over all embeddings of the model, and whether the logits need it.

    Cross-entropy goes on from a headless model with that model's own: its logits are no others without its prior.
    """
    parent = read_prior(config.model_name_or_path, **locate_model(config)) if config.model_name_or_path else None
    own = Prior(count_targets(text, size), config.temperature, _choose_tau(config, parent))
    if config.objective != "cross_entropy":
        if parent is not None and parent.describe() != own.describe():
            logger.warning(
                "temperature = %g and tau = %g; the weights that this starts from were trained with %g and %g",
                own.temperature, own.tau, parent.temperature, parent.tau,
            )  # fmt: skip
        return own, True
    if parent is not None and not config.swap_vocabulary:
        logger.info("the model is headless: its temperature and prior stay in the logits")
        counts_V = torch.zeros(size, dtype=torch.long)
        counts_V[: len(parent.counts_V)] = parent.counts_V
        return replace(parent, counts_V=counts_V), True
    if parent is not None:
        return replace(parent, counts_V=own.counts_V), True
    return own, config.head_prior


def _choose_tau(config: PretrainConfig, parent: Prior | None) -> float:
    """Choose the share of log p that logits lose, where the configuration leaves it open."""
    if config.tau is not None:
        return config.tau
    if parent is not None:
        return parent.tau
    if config.objective == "cross_entropy" or not config.model_name_or_path or config.swap_vocabulary:
        return 0.0
    before = load_model_config(config.model_name_or_path, **locate_model(config)).get_text_config(decoder=True)
    if not before.tie_word_embeddings:  # its head, where log p is, is dropped
        return 0.0
    logger.warning("tau = 1: the logits of the weights that this starts from hold log p already")
    return 1.0


def _choose_weights(config: PretrainConfig, backbone: PreTrainedModel, head: Head) -> None:
    """Let those weights train that the configuration says."""
    embedding = backbone.get_input_embeddings()
    backbone.requires_grad_(config.trains == "all")
    if config.trains == "head" and head.is_tied:
        asked = "--probe" if isinstance(config, FinetuneConfig) and config.probe else "trains = 'head'"
        raise UserError(
            f"{asked}: the head is the input embeddings, which the body needs as they are; untie it first with "
            "turncoder head add --untied"
        )
    if config.trains != "head":
        embedding.weight.requires_grad_(True)
    head.train(config.trains != "embeddings")
    head.trainable = True  # the gradient reaches a tied weight through the head too
    if config.trains == "embeddings":
        head.weight_VD.requires_grad_(True)
        if head.output_bias is not None:
            head.output_bias.requires_grad_(True)
    if config.objective == "cwt" and head.output_bias is not None:
        head.output_bias.requires_grad_(False)  # no contrast moves it
    if config.sparse_embeddings:
        if type(embedding) is not torch.nn.Embedding and type(embedding).forward is not torch.nn.Embedding.forward:
            raise UserError(f"sparse_embeddings: {type(embedding).__name__} is no plain embedding; drop the key")
        embedding.sparse = True  # type: ignore[assignment]
    if config.gradient_checkpointing:
        backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    register_head(backbone, head)


def _build_trainer(
    config: PretrainConfig,
    run: Run,
    text: Text,
    backbone: PreTrainedModel,
    head: Head,
    prior: Prior,
    bytes_per_token: float,
) -> GatheredTrainer:
    """Lay out the steps and build the trainer."""
    course = lay_course(config, run, len(text.train))
    course.callbacks.append(AnisotropyLog(run, functools.partial(_look, text, backbone)))
    contrast = None
    if config.objective != "cross_entropy":
        source, size = split_negatives(config.negatives)
        contrast = Contrast(
            source=source,
            size=size,
            log_prior_V=prior.log_p_V,
            tau=prior.tau,
            weight=config.cwt_weight if config.objective == "both" else 1.0,
            cross_entropy_weight=config.cross_entropy_weight if config.objective == "both" else 0.0,
            sparse=config.sparse_embeddings,
            seed=config.seed,
        )
    # The head's gradients come from outside of the wrapped forward
    arguments = {"ddp_find_unused_parameters": False, **_schedule(config, course.scheduled)}
    return build_gathered(
        config,
        run,
        text,
        course,
        contrast,
        arguments,
        head=head,
        model=backbone,
        shift=1 if config.kind == "clm" else 0,
        bytes_per_token=bytes_per_token,
    )


def _look(text: Text, backbone: PreTrainedModel) -> list[float] | None:
    """Measure the anisotropy of every layer on held-out text, uncorrupted."""
    rows = [torch.from_numpy(text.validation[row][0]) for row in range(min(LOOKED_AT, len(text.validation)))]
    if sum(map(len, rows)) < 2:
        return None
    token_ids_BL = pad_sequence(rows, batch_first=True, padding_value=text.pad_token_id)
    mask_BL = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return measure_anisotropy(backbone, token_ids_BL.to(backbone.device), mask_BL.to(backbone.device))


def _files_of(config: PretrainConfig, tokenizer: PreTrainedTokenizerBase) -> list[Path] | None:
    """Find the tokenizer's own files, to be copied; None for one that was trained here."""
    if config.train_tokenizer:
        return None
    name = config.tokenizer_name or resolve_model(config.model_name_or_path or str(config.config_name))
    return tokenizer_files(name, revision=config.model_revision, cache_dir=config.cache_dir)
