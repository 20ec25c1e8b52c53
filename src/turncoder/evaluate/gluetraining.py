"""One model trained on one task by one seed, and its scores."""

from __future__ import annotations

import csv
import io
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Pooling
from transformers import PreTrainedModel, set_seed

from turncoder.budget import keep_freed_memory
from turncoder.config.glue import GlueConfig, count_epochs
from turncoder.disk import write_atomically
from turncoder.encode.encoder import find_template, open_encoder
from turncoder.encode.llm2vec import LLM2VecTransformer
from turncoder.encode.pooling import pools_first
from turncoder.errors import UserError
from turncoder.evaluate.gluedata import Splits, open_splits
from turncoder.evaluate.gluescores import Target, balance, score
from turncoder.evaluate.gluetasks import TASKS, Job
from turncoder.evaluate.results import write_results
from turncoder.evaluate.words import summarise
from turncoder.model.adapters import choose_targets, count_parameters
from turncoder.model.attention import inspect_attention
from turncoder.prompts import check_prompt, mark_border
from turncoder.train.arguments import training_arguments
from turncoder.train.classifying import LabelledTexts, TextCollator, TextModel, choose_loss, predict
from turncoder.train.course import lay_course
from turncoder.train.headtrainer import HeadTrainer
from turncoder.train.running import Run
from turncoder.train.stage import check_data, choose_trainables, fit, tell_parameters, tell_parents

__all__ = ["choose_prompt", "open_model", "refuse_early", "tell_apart", "train_one"]

logger = logging.getLogger("turncoder")


@dataclass(frozen=True)
class Pupil:
    """A model that learns a task.

    Attributes
    ----------
    config
        With all that a recipe says.
    job, splits, target
        The task, its rows, and what is predicted of them.
    model, collate
        What predicts, and what makes its batches.
    """

    config: GlueConfig
    job: Job
    splits: Splits
    target: Target
    model: TextModel
    collate: TextCollator

    def predict(self, texts: list[tuple[str, ...]]) -> list[Any]:
        """Predict labels as they stand in the files."""
        return list(
            self.target.decode(predict(self.model, self.collate, texts, self.config.per_device_eval_batch_size))
        )

    def judge(self) -> dict[str, float]:
        """Score the development set; ``score`` is the first metric, over all its parts."""
        metrics = TASKS[self.job.task].metrics
        parts = self.splits.dev.values()
        guesses = self.predict([row for part in parts for row in part.texts])
        told = score(metrics, [label for part in parts for label in part.gold], guesses)
        return {**told, "score": told[metrics[0]]}


def refuse_early(config: GlueConfig, run: Run, rows: Sequence[tuple[str, ...]]) -> None:
    """Find wrong input before anything is trained: arguments, the model, targets, the prompt; raises UserError."""
    training_arguments(config, run, steps=1, steps_per_epoch=1, **_settings(config))
    encoder = open_model(config)
    assert encoder.transformers_model is not None
    if config.train_mode == "lora":
        choose_targets(encoder.transformers_model, config.lora_target_modules)
    choose_prompt(config, encoder, rows)
    first = any(isinstance(module, Pooling) and pools_first(str(module.pooling_mode)) for module in encoder)
    if first and inspect_attention(encoder.transformers_model).verdict == "causal":
        raise UserError(
            f"pooling = {config.pooling or 'cls'!r}: attention is causal, and the first token sees nothing of the "
            "text; choose mean or last_token"
        )


def train_one(config: GlueConfig, run: Run, job: Job) -> None:
    """Train on one task by one seed, and score it.

    Parameters
    ----------
    config
        With all that a recipe says, one task and one seed.
    run
        Gets ``results.json`` and ``predictions.tsv``, one for each part that is scored.
    job
        The task.
    """
    set_seed(config.seed)
    if not torch.accelerator.is_available():
        keep_freed_memory()
    splits = open_splits(config, job)
    encoder = open_model(config)
    backbone = encoder.transformers_model
    assert isinstance(backbone, PreTrainedModel)
    fingerprint = splits.fingerprint()
    check_data(run, fingerprint)
    run.update(
        data={"train": {"rows": len(splits.train)}, "fingerprint": fingerprint},
        parents=tell_parents(str(config.model_name_or_path)),
        attention=inspect_attention(backbone).to_dict(),
    )
    target = Target.collect(splits.train)
    set_seed(config.seed)  # again: the head must not depend on what was drawn, or cached, before
    choose_trainables(config, backbone)
    model = TextModel(encoder, target.width, dropout=float(config.classifier_dropout or 0))
    tell_parameters(run, *count_parameters(model))
    collate = TextCollator(encoder, choose_prompt(config, encoder, []))
    pupil = Pupil(config, job, splits, target, model, collate)
    trainer = _build_trainer(pupil, run)
    fit(trainer, run)
    with trainer.accelerator.autocast():
        guesses = {name: pupil.predict(part.texts) for name, part in splits.scored.items()}
    state = trainer.state
    chosen = state.best_global_step if config.choose == "best_epoch" else None
    if PartialState().is_main_process:
        _finish(pupil, run, guesses, {"steps": state.global_step, "chosen_step": chosen or state.global_step})


def open_model(config: GlueConfig) -> SentenceTransformer:
    """Open the model, and see that its tokenizer tells two texts apart."""
    encoder = open_encoder(config, llm2vec=False)
    module: Any = encoder[0]
    if not isinstance(encoder.transformers_model, PreTrainedModel) or isinstance(module, LLM2VecTransformer):
        raise UserError(
            f"model_name_or_path: {config.model_name_or_path} is no transformer that reads pairs of texts; name the "
            "model that it was made from"
        )
    module.unpad_inputs = False  # tokens are counted by the mask
    tell_apart(config, encoder)
    return encoder


def tell_apart(config: GlueConfig, encoder: SentenceTransformer) -> None:
    """See that there is something between the texts of a pair; raises UserError where no pair can be read."""
    pairs = [name for name in config.tasks if len(TASKS[name].texts) > 1]
    if pairs and find_template(encoder):
        raise UserError(
            f"tasks: {pairs[0]} has pairs of texts, and {config.model_name_or_path} puts a text through a chat "
            "template; name its base model"
        )
    if pairs and not mark_border(encoder.tokenizer):
        logger.warning("the tokenizer has no end-of-text token to put between two texts: they stand side by side")


def choose_prompt(config: GlueConfig, encoder: SentenceTransformer, rows: Sequence[tuple[str, ...]]) -> str | None:
    """Give what stands before each row; raises UserError where it does not stay apart from these."""
    prompt = config.prompt or encoder.prompts.get(encoder.default_prompt_name or "") or None
    leaves_out = any(isinstance(module, Pooling) and not module.include_prompt for module in encoder)
    if prompt and leaves_out:
        check_prompt(encoder.tokenizer, prompt, [row[0] for row in rows], encoder.max_seq_length or 1 << 30)
    return prompt


def _settings(config: GlueConfig) -> dict[str, Any]:
    """Return what is set among the Trainer's arguments besides what `training_arguments` sets."""
    return {
        "load_best_model_at_end": config.choose == "best_epoch",
        "metric_for_best_model": "eval_score",
        "greater_is_better": True,
        "ddp_find_unused_parameters": True,  # a pooler has no gradient
    }


def _build_trainer(pupil: Pupil, run: Run) -> HeadTrainer:
    """Lay out the steps, whole epochs of them, and build the trainer."""
    train = pupil.splits.train
    config = count_epochs(pupil.config, len(train), PartialState().num_processes)
    labels_N = pupil.target.encode(train.gold)
    course = lay_course(config, run, len(train))
    weight_C = balance(labels_N, pupil.target.width) if config.class_balanced and pupil.target.names else None
    return HeadTrainer(
        course=course,
        judge=pupil.judge,
        add_losses=choose_loss(not pupil.target.names, weight_C),
        model=pupil.model,
        args=training_arguments(
            config,
            run,
            steps=course.scheduled,
            steps_per_epoch=min(course.per_epoch, course.scheduled),
            **_settings(config),
        ),
        data_collator=pupil.collate,
        train_dataset=LabelledTexts(
            train.texts,
            labels_N,
            pupil.collate.count_tokens(train.texts),
            epochs=math.ceil(course.scheduled * course.per_step / len(train)),
            seed=config.seed,
            batch_size=course.per_step,
        ),
        eval_dataset=pupil.splits.train.texts,  # said to be there: the judge has its own
    )


def _finish(pupil: Pupil, run: Run, guesses: dict[str, list[Any]], steps: dict[str, int]) -> None:
    """Write predictions and scores of each part."""
    job, metrics = pupil.job, TASKS[pupil.job.task].metrics
    tasks = {}
    for name, part in pupil.splits.scored.items():
        scores = score(metrics, part.gold, guesses[name])
        file = f"predictions{'-' * bool(name)}{name}.tsv"
        table = io.StringIO()
        csv.writer(table, delimiter="\t", lineterminator="\n").writerows(
            [("gold", "predicted"), *zip(part.gold, guesses[name], strict=True)]
        )
        write_atomically(run.folder / file, table.getvalue())
        tasks[f"{job.task} {name}".strip()] = {
            "task": job.task,
            "metrics": list(metrics),
            "rows": len(part),
            "test_file": part.where,
            "seeds": {str(pupil.config.seed): {**scores, **steps}},
            **summarise([scores]),
        }
    told = {name: getattr(pupil.config, name) for name in ("recipe", "train_mode", "choose", "class_balanced")}
    rows = len(pupil.splits.train)
    write_results(run, {"tasks": tasks, **told, "train_rows": rows, "classes": list(pupil.target.names)})
