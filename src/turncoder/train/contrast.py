"""SimCSE and supervised contrastive training: the step that makes vectors of sentences.

Gao et al. 2021, SimCSE, arXiv 2104.08821, sections 3 and 4; BehnamGhader et al. 2024, LLM2Vec, arXiv 2404.05961,
sections 2.3 and 4. What flows: texts or pairs -> batches of one set -> encoder -> cosines -> cross-entropy -> run
folder.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from sentence_transformers.models import Pooling
from sentence_transformers.util import batch_to_device
from torch import nn
from transformers import PreTrainedModel, set_seed

from turncoder.budget import keep_freed_memory, pass_tokens
from turncoder.config.stages import SimcseConfig, SupervisedConfig
from turncoder.data.batching import SetBatches
from turncoder.data.pairs import Rows, hash_rows
from turncoder.data.tokenizer import load_tokenizer, tokenizer_files
from turncoder.encode.encoder import MAX_SEQ_LENGTH, find_template, limit_length, open_encoder, take_pair
from turncoder.errors import UserError
from turncoder.evaluate.sentences import Sts, read_sts
from turncoder.model.adapters import choose_targets, count_parameters
from turncoder.model.attention import inspect_attention
from turncoder.model.backbone import split_revision
from turncoder.model.dropout import set_attention_dropout
from turncoder.model.source import find_source
from turncoder.objectives.contrast import ByLengthRankingLoss, build_loss
from turncoder.prompts import check_prompt, ends_in_eos
from turncoder.train.arguments import training_arguments
from turncoder.train.cache import choose_cache
from turncoder.train.contrast_trainer import Collator, ContrastTrainer, HeldOut, SetRows
from turncoder.train.course import lay_course
from turncoder.train.rows import open_rows
from turncoder.train.running import Run
from turncoder.train.stage import (
    check_data,
    choose_trainables,
    fit,
    perform,
    save_result,
    score_end,
    tell_parameters,
    tell_parents,
)
from turncoder.train.teacher import Lessons, ask_teacher, open_teacher

__all__ = ["train"]

logger = logging.getLogger("turncoder")

Config = SimcseConfig | SupervisedConfig

LOSS_SCALE = 20.0


def train(config: Config) -> Path:
    """Run SimCSE or supervised contrastive training from a configuration; the same call again resumes.

    Parameters
    ----------
    config
        See `turncoder.config.stages.SimcseConfig` and `turncoder.config.stages.SupervisedConfig`.

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
    return perform(config, config.STAGE, _train)


def _train(config: Config, run: Run) -> None:
    set_seed(config.seed)
    if not torch.accelerator.is_available():
        keep_freed_memory()
    sts = read_sts(config.sts_file) if config.sts_file else None
    encoder = _open(config)
    backbone = encoder.transformers_model
    assert isinstance(backbone, PreTrainedModel)
    length = encoder.max_seq_length or MAX_SEQ_LENGTH  # of texts later on: what is trained on may be shorter
    if config.max_seq_length is not None:
        encoder.max_seq_length = limit_length(backbone, config.max_seq_length)
    _forget_default(config, encoder)
    _refuse_early(config, encoder, run)
    teacher = open_teacher(config)
    with PartialState().main_process_first():
        template = find_template(encoder) is not None
        pairs = open_rows(config, encoder.tokenizer, encoder.max_seq_length, template=template)
    sets, held_out = [rows for rows, _ in pairs], [rows for _, rows in pairs]
    fingerprint = " ".join(rows.fingerprint for rows in sets)
    check_data(run, fingerprint)
    run.update(
        data={
            "train": {rows.name: rows.counts for rows in sets},
            "validation": {rows.name: rows.counts for rows in held_out},
            "fingerprint": fingerprint,
        },
        prompts={rows.name: rows.prompts for rows in sets if rows.prompts},
        parents=tell_parents(config.model_name_or_path),
        attention=inspect_attention(backbone).to_dict(),
    )
    lessons = ask_teacher(teacher, sets, run) if teacher is not None else None
    del teacher  # its memory is free for training
    set_seed(config.seed)  # again: the adapter must not depend on what was drawn, or cached, before
    trained = choose_trainables(config, backbone)
    _see_views(config, encoder)
    tell_parameters(run, *count_parameters(encoder))
    trainer = _build_trainer(config, run, encoder, trained, sets, held_out, sts, lessons)
    score_first = config.evaluate_step_zero and config.do_eval and trainer.evaluator is not None
    if score_first and not any(row["step"] == 0 for row in run.logged()):
        trainer.evaluate()
    if config.do_train:
        fit(trainer, run)
    if config.do_eval and trainer.evaluator is not None:
        run.update(results=score_end(trainer))
    _save(config, run, encoder, trainer, sets, length)


def _open(config: Config) -> SentenceTransformer:
    """Open the model that training starts from, as an encoder of one model and its pooling."""
    encoder = open_encoder(config, llm2vec=False, max_seq_length=None)  # the folder's own length is to be known too
    module, _ = take_pair(encoder, config.model_name_or_path)
    module.unpad_inputs = False  # rows go through by length, and the loss takes batches apart
    width = encoder.get_embedding_dimension() or 0
    if wide := [number for number in config.matryoshka_dims if number > width]:
        raise UserError(f"matryoshka_dims: {wide[0]} is more than the {width} dimensions of a vector")
    return encoder


def _forget_default(config: Config, encoder: SentenceTransformer) -> None:
    """Train, evaluate and use without the model's default prompt; say so where the configuration gives none."""
    keys = ("prompt",) if isinstance(config, SimcseConfig) else ("query_prompt", "document_prompt", "prompts_file")
    if encoder.default_prompt_name is not None and not any(getattr(config, key) for key in keys):
        logger.warning(
            "the model's default prompt %r is not trained with, and is its default no more; %s",
            encoder.default_prompt_name,
            "--prompt gives one" if len(keys) == 1 else "--query_prompt and --document_prompt give some",
        )
    encoder.default_prompt_name = None


def _name_prompts(sets: list[Rows]) -> dict[str, str]:
    """Name the prompts that an encoder keeps: text, query and document, or those of each set where they differ."""
    if "text" in sets[0].data.column_names:
        return dict(sets[0].prompts)
    sides = {rows.name: (rows.prompts.get("anchor"), rows.prompts.get("positive")) for rows in sets}
    if len(set(sides.values())) == 1:
        query, document = next(iter(sides.values()))
        named = {"query": query, "document": document}
    else:
        named = {name: query for name, (query, _) in sides.items()}
        named |= {f"{name}_document": document for name, (query, document) in sides.items() if document != query}
    return {name: prompt for name, prompt in named.items() if prompt}


def _refuse_early(config: Config, encoder: SentenceTransformer, run: Run) -> None:
    """Find wrong input before hours are spent on the data: arguments, targets."""
    _arguments(config, run, steps=1, steps_per_epoch=1)
    backbone = encoder.transformers_model
    assert backbone is not None
    choose_targets(backbone, config.lora_target_modules)
    if (
        isinstance(config, SimcseConfig)
        and config.simcse_dropout
        and not set_attention_dropout(backbone, config.simcse_dropout)
    ):
        logger.warning(
            "simcse_dropout: %s has no dropout of attention weights; LoRA's (%g) makes the two views",
            type(backbone).__name__,
            config.lora_dropout,
        )


def _arguments(config: Config, run: Run, **others: Any) -> SentenceTransformerTrainingArguments:
    return training_arguments(
        config,
        run,
        kind=SentenceTransformerTrainingArguments,
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,  # processes run the model a different number of times
        **others,
    )


def _see_views(config: Config, encoder: SentenceTransformer) -> None:
    """Refuse SimCSE whose two views of a text are the same."""
    if not isinstance(config, SimcseConfig) or (config.train_mode == "lora" and config.lora_dropout):
        return  # a new adapter adds nothing yet, so its dropout is not to be seen
    encoder.train()
    features = batch_to_device(encoder.preprocess(["Is there any dropout?"]), encoder.device)
    with torch.no_grad(), torch.random.fork_rng():
        first, second = (encoder(dict(features))["sentence_embedding"] for _ in range(2))
    if torch.equal(first, second):
        raise UserError(
            f"simcse_dropout = {config.simcse_dropout:g}: the two views of a text are the same, there is no dropout at "
            "all; raise it, or train an adapter (train_mode = 'lora') with lora_dropout above 0"
        )


def _build_trainer(
    config: Config,
    run: Run,
    encoder: SentenceTransformer,
    trained: nn.Module,
    sets: list[Rows],
    held_out: list[Rows],
    sts: Sts | None,
    lessons: Lessons | None,
) -> ContrastTrainer:
    """Lay out the steps and build the trainer."""
    processes = PartialState().num_processes
    course = lay_course(config, run, sum(map(len, sets)))
    batches = SetBatches(
        [len(rows) for rows in sets],
        batch_size=config.per_device_train_batch_size,
        batches=config.gradient_accumulation_steps * processes,
        steps=course.scheduled,
        seed=config.seed,
        in_turn=getattr(config, "multi_dataset_batch_sampler", None) == "round_robin",
        texts=None if isinstance(config, SimcseConfig) or config.as_llm2vec else [hash_rows(rows) for rows in sets],
    )
    _tell_small_sets(sets, batches, course.per_step)
    mini_batch_num_tokens = config.mini_batch_num_tokens or choose_cache(encoder, run, sets, batches)
    collate = Collator(encoder, sets, lessons)
    scale = config.loss_scale or (1 / config.temperature if config.temperature else LOSS_SCALE)
    loss: dict[str, Any] = {"scale": scale, "symmetric": config.symmetric}
    loss["batch_tokens"] = pass_tokens(encoder.device)
    judge = build_loss(encoder, **loss)
    assert isinstance(judge, ByLengthRankingLoss)
    evaluator = _build_evaluator(config, encoder, sets, held_out, sts, judge)
    silent = {} if evaluator is not None else {"eval_strategy": "no"}
    return ContrastTrainer(
        course=course,
        trained=trained,
        batches=batches,
        model=encoder,
        args=_arguments(config, run, steps=course.scheduled, steps_per_epoch=course.per_epoch, **silent),
        train_dataset=SetRows(sets),
        data_collator=collate,
        loss=build_loss(
            encoder,
            **loss,
            gather=processes > 1,
            mini_batch_num_tokens=mini_batch_num_tokens,
            matryoshka_dims=config.matryoshka_dims,
            distillation_weight=getattr(config, "distillation_weight", None) if lessons is not None else None,
        ),
        evaluator=evaluator,
    )


def _find_tokenizer(config: Config, encoder: SentenceTransformer) -> list[Path] | None:
    """Find the files of the model's tokenizer, to be copied unchanged; None where the encoder's adds an EOS to it."""
    where: dict[str, Any] = {"revision": config.model_revision, "cache_dir": config.cache_dir}
    source = find_source(config.model_name_or_path, config.adapters, **where)
    name, where["revision"] = split_revision(source.tokenizer, source.revision)
    original = load_tokenizer(name, **where, trust_remote_code=config.trust_remote_code)
    if ends_in_eos(encoder.tokenizer) and not ends_in_eos(original):
        return None
    return tokenizer_files(name, **where)


def _build_evaluator(
    config: Config,
    encoder: SentenceTransformer,
    sets: list[Rows],
    held_out: list[Rows],
    sts: Sts | None,
    judge: ByLengthRankingLoss,
) -> HeldOut | None:
    """Say what is measured during training, scored pairs as texts or queries; None where there is nothing."""
    rows = any(len(one) > 1 for one in held_out)
    early = config.early_stopping_patience is not None
    if (early or config.save_strategy == "best") and not (rows and config.do_eval):
        key = "early_stopping_patience" if early else "save_strategy"
        raise UserError(
            f"{key} = {getattr(config, key)!r} needs held-out rows: give validation_file, or a "
            "validation_split_percentage that leaves some"
        )
    if not config.do_eval or not (rows or sts is not None):
        if config.eval_strategy != "no":
            logger.warning("eval_strategy = %r: there is nothing to evaluate on", config.eval_strategy)
        return None
    prompts = _name_prompts(sets)
    prompt = prompts.get("text") or prompts.get("query")
    if prompt and sts is not None:
        check_prompt(encoder.tokenizer, prompt, [*sts.first, *sts.second], encoder.max_seq_length or 1 << 30)
    return HeldOut(held_out, sts, judge, max(2, config.per_device_eval_batch_size), prompt)


def _tell_small_sets(sets: list[Rows], batches: SetBatches, per_step: int) -> None:
    for rows, size in zip(sets, batches.step_rows, strict=True):
        if size < per_step:
            treated = f"its steps take {size}" if batches.count(sets.index(rows)) else "it is left out"
            logger.warning(
                "%s: %s rows, and a step takes %s: %s", rows.name, f"{len(rows):,}", f"{per_step:,}", treated
            )


def _save(
    config: Config, run: Run, encoder: SentenceTransformer, trainer: ContrastTrainer, sets: list[Rows], length: int
) -> None:
    """Write ``adapter/`` and ``model/``."""
    encoder.eval()
    pool = encoder[1]
    assert isinstance(pool, Pooling)
    prompts = {name: prompt for name, prompt in encoder.prompts.items() if prompt} | _name_prompts(sets)
    text = sets[0].data[sets[0].data.column_names[0]][0]
    save_result(
        config,
        run,
        trainer.trained,  # type: ignore[arg-type]
        save_adapter=trainer.save_adapter,
        probe=encoder.tokenizer(text, return_tensors="pt", truncation=True, max_length=64)["input_ids"],
        tokenizer=encoder.tokenizer,
        tokenizer_files=_find_tokenizer(config, encoder),
        max_seq_length=max(length, encoder.max_seq_length or 0),
        pooling=str(pool.pooling_mode),
        inputs=find_template(encoder),
        prompts=prompts,
        default_prompt_name="text" if sets[0].prompts.get("text") else None,
        record={
            "stage": config.STAGE,
            "bidirectional": run.record["attention"]["verdict"] == "bidirectional",
            "parents": run.record["parents"],
            **({"matryoshka_dims": list(config.matryoshka_dims)} if config.matryoshka_dims else {}),
        },
    )
