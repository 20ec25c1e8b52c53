"""Masked next token prediction: the step that teaches a decoder to use what lies ahead.

BehnamGhader et al. 2024, LLM2Vec, arXiv 2404.05961, section 2.2. Tokens of a text are masked; the one at position t is
predicted from the state at t-1, through the model's own language-model head, which stays frozen and sees the masked
rows only. What flows: blocks -> corrupted inputs and labels -> bidirectional backbone with LoRA -> rows at t-1 ->
cross-entropy -> run folder.
"""

from __future__ import annotations

import functools
import json
import logging
import math
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import PeftModel
from transformers import EarlyStoppingCallback, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from turncoder.artifact import put_in_place, save_encoder
from turncoder.config import MntpConfig
from turncoder.data.masking import MaskedBlocks
from turncoder.data.tokenizer import check_vocabulary, load_tokenizer, tokenizer_files
from turncoder.errors import UserError
from turncoder.model.adapters import attach_lora, choose_targets, count_parameters, load_adapter, merge_adapter
from turncoder.model.attention import make_bidirectional, settle_implementation
from turncoder.model.backbone import count_embeddings, load_causal_lm, resolve_model
from turncoder.model.heads import Head, take_backbone, take_head
from turncoder.train.recording import RunCallback
from turncoder.train.running import Run, checkpoint_step, open_run, training_arguments
from turncoder.train.text import Text, open_text
from turncoder.train.trainer import GatheredTrainer, StopAfter

__all__ = ["count_steps", "train", "will_merge"]

logger = logging.getLogger("turncoder")

MERGED_BYTES = 10 * 2**30  # save_merged=auto keeps merged models up to this size
HEAD_PREFIX = "vocabulary_head_"
METRICS = ("loss", "perplexity", "accuracy", "top5_accuracy", "masked_tokens")


def train(config: MntpConfig) -> Path:
    """Run MNTP from a configuration; the same call again resumes.

    Parameters
    ----------
    config
        See `turncoder.config.MntpConfig`.

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
    run = open_run(config, "mntp")
    if run.finished:
        logger.warning("%s is done already; --overwrite starts anew", run.folder)
        return run.folder
    try:
        _train(config, run)
    except KeyboardInterrupt:
        run.update(status="interrupted")
        run.discard()
        raise
    except Exception as error:
        run.update(status="failed", error=str(error).splitlines()[0] if str(error) else type(error).__name__)
        if isinstance(error, UserError):
            run.discard()
        raise
    return run.folder


def _train(config: MntpConfig, run: Run) -> None:
    set_seed(config.seed)
    name, where = resolve_model(config.model_name_or_path), _where(config)
    tokenizer = load_tokenizer(config.tokenizer_name or name, **where)
    causal_lm = load_causal_lm(name, dtype=config.dtype, attn_implementation=config.attn_implementation, **where)
    check_vocabulary(tokenizer, count_embeddings(causal_lm))
    backbone, head = take_backbone(causal_lm), take_head(causal_lm)
    del causal_lm
    for adapter in config.adapters:
        load_adapter(backbone, adapter, cache_dir=config.cache_dir)
    _refuse_early(config, backbone, run)
    text = open_text(config, backbone, tokenizer)
    _check_data(run, text)
    run.update(
        data={"train": text.train.counts, "validation": text.validation.counts, "fingerprint": text.train.fingerprint},
        parents=_parents(config.model_name_or_path),
        mask_token_id=text.masking.mask_token_id,
    )
    build = functools.partial(_build_trainer, config, run, text, head)
    scored = {row["model"] for row in run.logged() if "model" in row}
    score_first = config.evaluate_step_zero and config.do_eval
    if score_first and "causal" not in scored:
        _score_untrained(build(backbone), run, "causal")
    if config.bidirectional:
        run.update(attention=make_bidirectional(backbone, allow_partial=config.allow_partial).to_dict())
        if score_first and "bidirectional" not in scored:
            _score_untrained(build(backbone), run, "bidirectional")
    set_seed(config.seed)  # again: the adapter must not depend on what was drawn, or cached, before
    model = _choose_trainables(config, backbone, head)
    trainable, total = count_parameters(model, *head.parameters())
    run.update(parameters={"trainable": trainable, "total": total})
    logger.info("trainable parameters: %s of %s (%.3f %%)", f"{trainable:,}", f"{total:,}", 100 * trainable / total)
    trainer = build(model)
    if config.do_train:
        _fit(trainer, run)
    if config.do_eval:
        run.update(results=_final_scores(trainer))
    _save(config, run, trainer, text, tokenizer)
    run.record.pop("error", None)
    run.update(status="done")


def _refuse_early(config: MntpConfig, backbone: PreTrainedModel, run: Run) -> None:
    """Find wrong input before hours are spent on the corpus: arguments, targets, an architecture that stays causal."""
    training_arguments(config, run, steps=1, steps_per_epoch=1)
    choose_targets(backbone, config.lora_target_modules)
    if config.bidirectional:
        settle_implementation(backbone, allow_partial=config.allow_partial)


def _check_data(run: Run, text: Text) -> None:
    """Refuse to resume on another corpus than the one that the checkpoint saw."""
    before = run.record.get("data", {}).get("fingerprint", text.train.fingerprint)
    if run.resume_from and before != text.train.fingerprint:
        raise UserError(
            f"--output {run.folder} was trained on another text (the corpus, the tokenizer or its version changed): "
            "restore it to resume, or use --overwrite to start anew"
        )


def _fit(trainer: GatheredTrainer, run: Run) -> None:
    """Train, or resume; a run that was cut off after its last step only gets its weights back."""
    if run.resume_from:
        done, step = run.record.get("trained", {}), checkpoint_step(run.resume_from)
        if step >= trainer.steps or done == {"planned": trainer.steps, "steps": step}:
            trainer.restore(run.resume_from)
            return
    trainer.train(resume_from_checkpoint=str(run.resume_from) if run.resume_from else None)
    trainer.record.count()
    run.update(trained={"planned": trainer.steps, "steps": trainer.state.global_step})


def _final_scores(trainer: GatheredTrainer) -> dict[str, float]:
    """Evaluate, unless the last step has been evaluated with these very weights."""
    step = trainer.state.global_step
    rows = [row for row in trainer.state.log_history if row["step"] == step and "eval_loss" in row]
    scores = rows[-1] if rows and not trainer.args.load_best_model_at_end else trainer.evaluate()
    return {key: scores[f"eval_{key}"] for key in METRICS}


def _where(config: MntpConfig) -> dict[str, Any]:
    return {
        "revision": config.model_revision,
        "cache_dir": config.cache_dir,
        "trust_remote_code": config.trust_remote_code,
    }


def _choose_trainables(config: MntpConfig, backbone: PreTrainedModel, head: Head) -> PreTrainedModel | PeftModel:
    if config.gradient_checkpointing:
        backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        backbone.enable_input_require_grads()
    if config.train_mode == "full":
        backbone.float().requires_grad_(True)  # trainable weights are fp32; bf16 is autocast's business
        model: PreTrainedModel | PeftModel = backbone
    else:
        model = attach_lora(
            backbone,
            r=config.lora_r,
            alpha=config.lora_alpha,
            dropout=config.lora_dropout,
            targets=config.lora_target_modules,
        )
    if config.train_head or (config.train_mode == "full" and head.is_tied):
        head.train()
        # The Trainer optimizes, clips, synchronises and zeroes what stands in the module tree
        for name, weight in head.named_parameters().items():
            model.register_parameter(HEAD_PREFIX + name.replace(".", "_"), weight)
    return model


def count_steps(config: MntpConfig, rows: int | None, processes: int = 1) -> tuple[int, int]:
    """Count the optimizer steps that are run, and those that the learning-rate schedule is laid out for.

    Parameters
    ----------
    config
        The resolved configuration.
    rows
        Training rows of an epoch; None where they are not known (``max_steps`` or ``stop_after_n_steps`` decides).
    processes
        Devices that share a batch.

    Returns
    -------
    tuple of int
        ``(steps, scheduled)``: equal, unless ``as_llm2vec`` keeps LLM2Vec's schedule. 0 when nothing is known.
    """
    per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps * processes
    if config.max_steps > 0:
        planned = config.max_steps
    elif rows is not None:
        planned = math.ceil(rows * config.num_train_epochs / per_step)
    else:
        planned = config.stop_after_n_steps or 0
    steps = min(planned, config.stop_after_n_steps or planned)
    return steps, planned if config.as_llm2vec else steps


def will_merge(config: MntpConfig, size: int) -> bool:
    """Tell whether ``model/`` is written, given the bytes of the merged model."""
    small = config.save_merged == "auto" and size <= MERGED_BYTES
    return config.train_mode == "full" or config.save_merged == "always" or small


def _build_trainer(config: MntpConfig, run: Run, text: Text, head: Head, model: Any) -> GatheredTrainer:
    """Lay out the steps and build the trainer for ``model``."""
    per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps * PartialState().num_processes
    rows = len(text.train)
    steps, scheduled = count_steps(config, rows, PartialState().num_processes)
    record = RunCallback(
        run, samples_per_epoch=rows, samples_per_step=per_step, save_total_limit=config.save_total_limit
    )
    callbacks: list[Any] = [record]
    if scheduled > steps:
        callbacks.append(StopAfter(steps))
    if config.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(config.early_stopping_patience))
    trainer = GatheredTrainer(
        head=head,
        isolate=text.isolate,
        budget_bytes=config.vocabulary_budget_mb * 10**6,
        model=model,
        args=training_arguments(config, run, steps=scheduled, steps_per_epoch=math.ceil(rows / per_step)),
        data_collator=text.collate,
        train_dataset=MaskedBlocks(
            text.train, text.masking, epochs=math.ceil(scheduled * per_step / rows), batch_size=per_step
        ),
        eval_dataset=MaskedBlocks(text.validation, text.eval_masking, evaluation=True),
        callbacks=callbacks,
    )
    trainer.record, trainer.steps = record, steps
    record.tokens_seen = trainer.tokens_seen
    return trainer


def _score_untrained(trainer: GatheredTrainer, run: Run, model: str) -> None:
    trainer.remove_callback(type(trainer.record))
    scores = trainer.evaluate()
    row = {f"eval_{key}": scores[f"eval_{key}"] for key in METRICS}
    logger.info("step 0, %s: loss %.4g, accuracy %.4g", model, row["eval_loss"], row["eval_accuracy"])
    run.log({"step": 0, "model": model, **row})


def _save(
    config: MntpConfig, run: Run, trainer: GatheredTrainer, text: Text, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Write ``adapter/`` and ``model/``: the latter is the merged encoder that loads without turncoder."""
    state = PartialState()
    state.wait_for_everyone()
    if not state.is_main_process:
        return
    model = trainer.accelerator.unwrap_model(trainer.model).cpu()
    for name in [name for name in model._parameters if name.startswith(HEAD_PREFIX)]:
        del model._parameters[name]
    if isinstance(model, PeftModel):
        partial = run.folder / ".adapter.partial"
        trainer.save_adapter(partial)
        put_in_place(partial, run.folder / "adapter")
        size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        if not will_merge(config, size):
            logger.warning("model/ is not written (save_merged = %s, %.1f GB)", config.save_merged, size / 1e9)
            return
        token_ids = torch.from_numpy(text.validation[0][0][:64].astype("int64"))[None]
        model, cosine = merge_adapter(model, {"input_ids": token_ids})
        run.update(merged_cosine=cosine)
    record = {
        "stage": "mntp",
        "alignment": "previous_token",
        "mask_token_id": text.masking.mask_token_id,
        "bidirectional": config.bidirectional,
        "parents": run.record["parents"],
    }
    save_encoder(
        model,
        run.folder / "model",
        tokenizer=tokenizer,
        tokenizer_files=tokenizer_files(
            config.tokenizer_name or resolve_model(config.model_name_or_path),
            revision=config.model_revision,
            cache_dir=config.cache_dir,
        ),
        max_seq_length=text.block_size,
        record=record,
    )


def _parents(name: str) -> list[dict[str, Any]]:
    """Return the chain of artifacts that a model comes from, the nearest first."""
    path = Path(name) / "run.json"
    if not path.exists():
        return [{"name": name}]
    record = json.loads(path.read_text(encoding="utf8"))
    return [{"name": name, "stage": record["stage"], "started": record["started"]}, *record.get("parents", [])]
