"""Masked next token prediction: the step that teaches a decoder to use what lies ahead.

BehnamGhader et al. 2024, LLM2Vec, arXiv 2404.05961, section 2.2. Tokens of a text are masked; the one at position t is
predicted from the state at t-1, through the model's own language-model head, which stays frozen and sees the masked
rows only. What flows: blocks -> corrupted inputs and labels -> bidirectional backbone with LoRA -> rows at t-1 ->
cross-entropy -> run folder.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import PeftModel
from transformers import EarlyStoppingCallback, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from turncoder.artifact import save_encoder
from turncoder.config import MntpConfig
from turncoder.data.corpus import open_corpus
from turncoder.data.masking import MaskedBlocks, Masking, collate
from turncoder.data.packing import Blocks, default_cache, prepare_blocks
from turncoder.data.tokenizer import check_vocabulary, load_tokenizer, mask_token_id, tokenizer_files
from turncoder.errors import ConversionError, UserError
from turncoder.model.adapters import attach_lora, count_parameters, merge_adapter
from turncoder.model.attention import AttentionReport, make_bidirectional
from turncoder.model.backbone import load_causal_lm, resolve_model
from turncoder.model.heads import Head, take_backbone, take_head
from turncoder.model.isolation import can_isolate
from turncoder.train.running import Run, RunCallback, open_run, training_arguments
from turncoder.train.trainer import GatheredTrainer, StopAfter

__all__ = ["Text", "open_text", "train"]

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
        raise
    except Exception as error:
        run.update(status="failed", error=str(error).splitlines()[0] if str(error) else type(error).__name__)
        raise
    return run.folder


def _train(config: MntpConfig, run: Run) -> None:
    set_seed(config.seed)
    name, where = resolve_model(config.model_name_or_path), _where(config)
    tokenizer = load_tokenizer(config.tokenizer_name or name, **where)
    causal_lm = load_causal_lm(name, dtype=config.dtype, attn_implementation=config.attn_implementation, **where)
    check_vocabulary(tokenizer, causal_lm.get_input_embeddings().weight.shape[0])
    backbone, head = take_backbone(causal_lm), take_head(causal_lm)
    del causal_lm
    text = open_text(config, backbone, tokenizer)
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
        run.update(attention=_convert(backbone, config).to_dict())
        if score_first and "bidirectional" not in scored:
            _score_untrained(build(backbone), run, "bidirectional")
    model = _choose_trainables(config, backbone, head)
    trainable, total = count_parameters(model, *head.parameters())
    run.update(parameters={"trainable": trainable, "total": total})
    logger.info("trainable parameters: %s of %s (%.3f %%)", f"{trainable:,}", f"{total:,}", 100 * trainable / total)
    trainer = build(model)
    if config.do_train:
        trainer.train(resume_from_checkpoint=str(run.resume_from) if run.resume_from else None)
    if config.do_eval:
        scores = trainer.evaluate()
        run.update(results={key: scores[f"eval_{key}"] for key in METRICS})
    trainer.record.count()
    _save(config, run, trainer, text, tokenizer)
    run.update(status="done")


def _where(config: MntpConfig) -> dict[str, Any]:
    return {
        "revision": config.model_revision,
        "cache_dir": config.cache_dir,
        "trust_remote_code": config.trust_remote_code,
    }


@dataclasses.dataclass(frozen=True)
class Text:
    """The corpus as the trainer takes it.

    Attributes
    ----------
    train, validation
        Rows of token ids.
    masking, eval_masking
        How rows are corrupted in training and in evaluation.
    isolate
        Whether a row holds several documents that must not see each other.
    block_size
        Tokens in a row, at most.
    pad_token_id, pad_to
        For rows of unequal length.
    """

    train: Blocks
    validation: Blocks
    masking: Masking
    eval_masking: Masking
    isolate: bool
    block_size: int
    pad_token_id: int
    pad_to: int | None

    def collate(self, features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Make a batch; the first token of an isolated document is no label: the state before it is not its own."""
        batch = collate(features, self.pad_token_id, pad_to=self.pad_to)
        if self.isolate:
            documents_BL = batch["document_ids"]
            batch["labels"][:, 1:][documents_BL[:, 1:] != documents_BL[:, :-1]] = -100
        return batch


def open_text(config: MntpConfig, backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Text:
    """Prepare the corpus for a model: blocks with isolated documents, or one document a row where that is not proven.

    Raises
    ------
    UserError
        The corpus cannot be read, is empty, or leaves nothing to train or to evaluate on.
    """
    source = {"text_column": config.text_column, "cache_dir": config.cache_dir, "tokenizer": tokenizer}
    hub = {"dataset_name": config.dataset_name, "dataset_config_name": config.dataset_config_name}
    corpus = open_corpus(**hub, file=config.train_file, split="train", **source)
    validation = open_corpus(file=config.validation_file, **source) if config.validation_file else None
    block_size = _block_size(config, backbone, tokenizer)
    with PartialState().main_process_first():
        train, held_out = prepare_blocks(
            corpus=corpus,
            validation=validation,
            tokenizer=tokenizer,
            block_size=block_size,
            folder=default_cache(),
            validation_percentage=config.validation_split_percentage,
            line_by_line=config.line_by_line,
            workers=config.preprocessing_num_workers,
            as_llm2vec=config.as_llm2vec,
        )
    isolate = config.isolate_documents and not config.line_by_line
    if isolate and (reason := can_isolate(backbone)) is not True:
        logger.warning("documents cannot be isolated within a row (%s): one document per row, by length", reason)
        train, held_out, isolate = train.by_document(block_size), held_out.by_document(block_size), False
    seed = None if config.as_llm2vec else config.seed  # LLM2Vec takes the first ones
    if config.max_train_samples:
        train = train.select(config.max_train_samples, seed=seed)
    if config.max_eval_samples:
        held_out = held_out.select(config.max_eval_samples, seed=seed)
    masking = Masking(
        mlm_probability=config.mlm_probability,
        mask_token_id=mask_token_id(tokenizer, config.mask_token_type),
        vocab_size=len(tokenizer),
        special_ids=tuple(tokenizer.all_special_ids),
        style=config.data_collator_type,
        seed=config.seed,
    )
    scored_as = "default" if config.data_collator_type == "unmasked" else config.data_collator_type
    return Text(
        train=train,
        validation=held_out,
        masking=masking,
        eval_masking=dataclasses.replace(masking, style=scored_as),
        isolate=isolate,
        block_size=block_size,
        pad_token_id=tokenizer.pad_token_id,
        pad_to=block_size if config.pad_to_max_length else None,
    )


def _block_size(config: MntpConfig, backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    text_config = backbone.config.get_text_config()
    limit = getattr(text_config, "max_position_embeddings", None) or getattr(text_config, "n_positions", None)
    if config.max_seq_length is None:
        return min(tokenizer.model_max_length, 1024, limit or 1024)
    if limit and config.max_seq_length > limit:
        raise UserError(
            f"max_seq_length = {config.max_seq_length} is more than the model's {limit} positions: lower it"
        )
    return config.max_seq_length


def _convert(backbone: PreTrainedModel, config: MntpConfig) -> AttentionReport:
    """Make the backbone bidirectional, in eager attention where the kernel that was asked for does not pass."""
    try:
        return make_bidirectional(backbone, allow_partial=config.allow_partial)
    except ConversionError:
        asked = backbone.config._attn_implementation
        if asked == "eager":
            raise
        backbone.set_attn_implementation("eager")
        try:
            report = make_bidirectional(backbone, allow_partial=config.allow_partial)
        except ConversionError:
            backbone.set_attn_implementation(asked)
            raise
        finally:
            pass
        logger.warning("attn_implementation: %s does not pass the proof with this model; eager is used", asked)
        return report


def _choose_trainables(config: MntpConfig, backbone: PreTrainedModel, head: Head) -> PreTrainedModel | PeftModel:
    if config.gradient_checkpointing:
        backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        backbone.enable_input_require_grads()
    if config.train_mode == "full":
        backbone.float().requires_grad_(True)  # trainable weights are fp32; bf16 is autocast's business
        model = backbone
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


def _build_trainer(config: MntpConfig, run: Run, text: Text, head: Head, model: Any) -> GatheredTrainer:
    """Lay out the steps and build the trainer for ``model``."""
    per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps * PartialState().num_processes
    rows = len(text.train)
    planned = config.max_steps if config.max_steps > 0 else math.ceil(rows * config.num_train_epochs / per_step)
    steps = min(planned, config.stop_after_n_steps or planned)
    scheduled = planned if config.as_llm2vec else steps
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
    trainer.record = record
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
        shutil.rmtree(run.folder / "adapter", ignore_errors=True)
        partial.replace(run.folder / "adapter")
        size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        if config.save_merged == "never" or (config.save_merged == "auto" and size > MERGED_BYTES):
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
            config.tokenizer_name or resolve_model(config.model_name_or_path), **_where(config)
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


Build = Callable[[Any], GatheredTrainer]
