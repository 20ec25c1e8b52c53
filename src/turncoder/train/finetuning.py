"""Word-level training that moves the backbone: transformers' Trainer on `WordModel`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import PartialState
from peft import PeftModel
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedModel, set_seed

from turncoder.config.words import WordsConfig
from turncoder.data.alignment import Alignment
from turncoder.data.tokenizer import pad_token_id
from turncoder.data.words import WordSet
from turncoder.evaluate.prediction import Head, Reader, predict
from turncoder.model.adapters import choose_targets, count_parameters, merge_adapter
from turncoder.train.arguments import training_arguments
from turncoder.train.course import lay_course
from turncoder.train.features import LAST, Reading
from turncoder.train.headtrainer import HeadTrainer, load_trained
from turncoder.train.running import Run
from turncoder.train.stage import choose_trainables, fit, save_result, tell_parameters
from turncoder.train.tagging import TaggedWindows, WordModel, add_losses, collate_windows
from turncoder.train.wordtasks import READINGS, Found, Splits, Task, open_backbone, tell_layers

__all__ = ["fine_tune", "open_checkpoint", "refuse_early"]


def refuse_early(config: WordsConfig, run: Run, backbone: PreTrainedModel) -> None:
    """Find wrong input before anything is computed: arguments, targets; raises UserError."""
    training_arguments(config, run, steps=1, steps_per_epoch=1, **_settings(config))
    choose_targets(backbone, config.lora_target_modules)


@dataclass(frozen=True)
class _Exam:
    """The held-out words, and the model that is scored on them while it trains."""

    config: WordsConfig
    encoder: SentenceTransformer
    reader: Reader
    layer: int
    tasks: list[Task]
    held_out: WordSet
    model: WordModel

    def take_heads(self) -> list[Head]:
        """Give the heads as they are now, on the CPU, where states of words are."""
        return [
            Head(
                task.name,
                self.config.seeds[0],
                task.labels.names,
                cast(Reading, self.config.alignment),
                (self.layer,),
                linear.weight.detach().to("cpu", torch.float32, copy=True),
                linear.bias.detach().to("cpu", torch.float32, copy=True),
            )
            for task, linear in zip(self.tasks, self.model.heads, strict=True)
        ]

    def score(self) -> dict[str, dict[str, Any]]:
        """Give all scores of each task."""
        guesses = predict(
            self.encoder, self.reader, self.held_out.data, self.take_heads(), backbone=self.model.backbone
        )
        return {
            task.name: task.score(self.held_out.labels(task.column), guess)
            for task, guess in zip(self.tasks, guesses, strict=True)
        }

    def judge(self) -> dict[str, float]:
        """Give what is logged; ``score``, which is chosen by, is the mean over tasks."""
        scores = self.score()
        told = {
            f"{task.name}_{name}": scores[task.name][name]
            for task in self.tasks
            for name in dict.fromkeys([task.metric, "token_accuracy"])
        }
        return {**told, "score": float(np.mean([scores[task.name][task.metric] for task in self.tasks]))}


def fine_tune(
    config: WordsConfig,
    run: Run,
    encoder: SentenceTransformer,
    reader: Reader,
    layer: int,
    tasks: list[Task],
    splits: Splits,
) -> Found:
    """Train the backbone, or an adapter on it, with a head for each task."""
    backbone = encoder.transformers_model
    assert isinstance(backbone, PreTrainedModel)
    backbone.config.use_cache = False
    alignment = reader.align(encoder.tokenizer, splits.train.data, splits.train.where)
    set_seed(config.seeds[0])  # again: the adapter must not depend on what was drawn, or cached, before
    trained = choose_trainables(config, backbone)
    model = WordModel(
        trained,
        {task.name: len(task.labels) for task in tasks},
        backbone.config.get_text_config().hidden_size,
        layer=None if layer == LAST else layer,
        dropout=config.classifier_dropout,
    )
    tell_parameters(run, *count_parameters(model))

    exam = _Exam(config, encoder, reader, layer, tasks, splits.held_out, model)

    def judge() -> dict[str, float]:
        with trainer.accelerator.autocast():
            return exam.judge()

    trainer = _build_trainer(config, run, model, encoder, alignment, tasks, splits, judge)
    fit(trainer, run)
    model.eval()
    with trainer.accelerator.autocast():
        dev = {(name, config.seeds[0]): scores for name, scores in exam.score().items()}
    chosen = {
        task.name: {
            "alignment": config.alignment,
            "layer": tell_layers((layer,)),
            "learning_rate": config.learning_rate[0],
            "metric": task.metric,
            "steps": trainer.state.global_step,
        }
        for task in tasks
    }
    found = Found(reader, exam.take_heads(), chosen=chosen, dev=dev)
    text = splits.train.data[0]["text"]
    save_result(
        config,
        run,
        trained,
        save_adapter=lambda folder: _save_adapter(trained, folder),
        probe=encoder.tokenizer(text, return_tensors="pt", truncation=True, max_length=64)["input_ids"],
        tokenizer=encoder.tokenizer,
        tokenizer_files=None,
        max_seq_length=reader.limit,
        record={
            "stage": config.STAGE,
            "bidirectional": run.record["attention"]["verdict"] == "bidirectional",
            "parents": run.record["parents"],
        },
    )
    return found


def _save_adapter(trained: PreTrainedModel | PeftModel, folder: Path) -> None:
    assert isinstance(trained, PeftModel)
    trained.save_pretrained(str(folder), save_embedding_layers=False)


def _settings(config: WordsConfig) -> dict[str, Any]:
    """Return what a run of one seed and learning rate sets among the Trainer's arguments."""
    settings: dict[str, Any] = {"learning_rate": config.learning_rate[0], "seed": config.seeds[0]}
    if config.early_stopping_patience is not None or config.save_strategy == "best":
        settings |= {"metric_for_best_model": "eval_score", "greater_is_better": True}
    # Layers above the one that is read, a pooler, and experts that no token went to have no gradient
    return {**settings, "ddp_find_unused_parameters": True}


def _build_trainer(
    config: WordsConfig,
    run: Run,
    model: WordModel,
    encoder: SentenceTransformer,
    alignment: Alignment,
    tasks: list[Task],
    splits: Splits,
    judge: Callable[[], dict[str, float]],
) -> HeadTrainer:
    """Lay out the steps and build the trainer."""
    processes = PartialState().num_processes
    per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps * processes
    data: dict[str, Any] = {
        "alignment": alignment,
        "labels_MT": np.stack([task.number(splits.train) for task in tasks], axis=1),
        "shift": READINGS.index(str(config.alignment)),
        "merge": config.merge_subwords,
        "seed": config.seeds[0],
        "batch_size": per_step,
    }
    rows = len(TaggedWindows(**data, epochs=1))
    course = lay_course(config, run, rows)
    return HeadTrainer(
        course=course,
        judge=judge,
        add_losses=add_losses,
        model=model,
        args=training_arguments(
            config, run, steps=course.scheduled, steps_per_epoch=course.per_epoch, **_settings(config)
        ),
        data_collator=partial(collate_windows, pad_token_id=pad_token_id(encoder.tokenizer)),
        train_dataset=TaggedWindows(**data, epochs=math.ceil(course.scheduled * per_step / rows)),
        eval_dataset=splits.held_out.data,  # said to be there: the judge has it
    )


def open_checkpoint(
    config: WordsConfig, checkpoint: Path, labels: dict[str, int]
) -> tuple[SentenceTransformer, WordModel]:
    """Open the model, and the heads, of a checkpoint.

    Parameters
    ----------
    config
        Of the run.
    checkpoint
        In its ``checkpoints/``.
    labels
        How many each task has.

    Returns
    -------
    tuple
        The model with its adapter merged, and the module whose ``heads`` are those of the tasks.
    """
    encoder = open_backbone(config)
    backbone = encoder.transformers_model
    assert isinstance(backbone, PreTrainedModel)
    trained = choose_trainables(config, backbone)
    model = WordModel(trained, labels, backbone.config.get_text_config().hidden_size, layer=None, dropout=0.0)
    load_trained(model, checkpoint)
    if isinstance(trained, PeftModel):
        merge_adapter(trained, encoder.tokenizer("a", return_tensors="pt"))
    return encoder, model
