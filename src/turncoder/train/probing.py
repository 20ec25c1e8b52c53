"""Probes: the states of a frozen backbone, computed once, and heads on them; reading, layer and rate chosen on dev.

In the names of tensors: M words, S seeds, R learning rates.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from accelerate import PartialState
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedModel

from turncoder.config.words import WordsConfig
from turncoder.data.labels import IGNORED
from turncoder.data.tokenizer import pad_token_id
from turncoder.data.words import WordSet
from turncoder.disk import default_cache
from turncoder.evaluate.prediction import Head, Reader
from turncoder.evaluate.words import score_chunks
from turncoder.progress import open_bar
from turncoder.train.course import count_steps
from turncoder.train.features import Features, Reading, compute_features
from turncoder.train.linear import Heads, Recipe, Words, fit_heads
from turncoder.train.running import Run
from turncoder.train.wordtasks import READINGS, Found, Splits, Task, tell_layers

__all__ = ["probe"]

logger = logging.getLogger("turncoder")

PASS_STEPS = 200  # steps of a pass over the words, where there are enough of them
FEWEST_WORDS, MOST_WORDS = 32, 1024  # of a step


def probe(
    config: WordsConfig,
    run: Run,
    encoder: SentenceTransformer,
    reader: Reader,
    layers: list[int],
    tasks: list[Task],
    splits: Splits,
) -> Found:
    """Compute the states once, train the heads of every seed and learning rate on each reading and layer, and choose.

    What is chosen by is the mean over seeds of the score on the validation words.
    """
    readings = READINGS if config.alignment == "auto" else (cast(Reading, config.alignment),)
    with PartialState().main_process_first():  # the others find them on disk
        train, held_out = (
            _compute(encoder, reader, words, layers, readings) for words in (splits.train, splits.held_out)
        )
    run.settle()
    run.rewind(0)  # heads that a kill cut off are trained anew
    groups = [tuple(layers)] if config.layer == "mix" else [(layer,) for layer in layers]
    found = Found(reader)
    for task in tasks:
        exam = Exam.open(task, splits)
        trials = [
            trial
            for reading in readings
            for group in groups
            for trial in _try(config, run, exam, train, held_out, reading, group, encoder.device)
        ]
        best = max(trials, key=Trial.value)
        found.heads += best.take_heads(task, config)
        found.dev |= {(task.name, seed): score for seed, score in zip(config.seeds, best.scores, strict=True)}
        found.chosen[task.name] = best.tell()
        rivals = {f"readings/{reading}": [one for one in trials if one.reading == reading] for reading in readings}
        if config.layer == "all":
            rivals |= {
                f"layers/{tell_layers(group)}": [one for one in trials if one.layers == group] for group in groups
            }
        for name, those in rivals.items() if len(rivals) > 1 else ():
            found.compared.setdefault(name, []).extend(max(those, key=Trial.value).take_heads(task, config))
    for features in (train, held_out):
        features.close()
    return found


def _compute(
    encoder: SentenceTransformer,
    reader: Reader,
    words: WordSet,
    layers: Sequence[int],
    readings: Sequence[Reading],
) -> Features:
    backbone = encoder.transformers_model
    assert isinstance(backbone, PreTrainedModel)
    return compute_features(
        backbone,
        reader.align(encoder.tokenizer, words.data, words.where),
        layers=layers,
        readings=readings,
        merge=reader.merge,
        folder=default_cache() / "features",
        pad_token_id=pad_token_id(encoder.tokenizer),
    )


@dataclass(frozen=True)
class Exam:
    """The labels of a task, and how heads are scored on the validation words.

    Attributes
    ----------
    train_M, held_out_M
        int64: classes of the words.
    gold
        Labels of each sentence that is held out.
    first_M
        Whether a held-out word is the first of its sentence.
    """

    task: Task
    train_M: torch.Tensor
    held_out_M: torch.Tensor
    gold: list[list[str]]
    first_M: np.ndarray

    @classmethod
    def open(cls, task: Task, splits: Splits) -> Exam:
        """Read the labels."""
        gold = list(splits.held_out.labels(task.column))
        first_M = np.concatenate([np.arange(len(tags)) == 0 for tags in gold])
        train_M, held_out_M = (torch.from_numpy(task.number(words)) for words in (splits.train, splits.held_out))
        return cls(task, train_M, held_out_M, gold, first_M)

    def judge(self, guess_NM: np.ndarray) -> np.ndarray:
        """Score many predictions of the held-out words at once: F1 of chunks, else token accuracy."""
        gold_M = self.held_out_M.numpy()
        if self.task.labels.scheme is not None:
            return score_chunks(guess_NM, gold_M, self.task.labels.names, self.first_M)
        return (guess_NM == gold_M)[:, gold_M != IGNORED].mean(axis=1)

    def score(self, guess_M: np.ndarray) -> dict[str, Any]:
        """Give all scores of one prediction."""
        ends = np.cumsum([len(tags) for tags in self.gold])[:-1]
        names = np.array(self.task.labels.names, dtype=object)
        return self.task.score(self.gold, [list(tags) for tags in np.split(names[guess_M], ends)])


@dataclass(frozen=True)
class Trial:
    """Heads of one reading, layer and learning rate, with their scores on the validation words, seed by seed."""

    reading: Reading
    layers: tuple[int, ...]
    learning_rate: float
    rate: int
    metric: str
    scores: list[dict[str, Any]]
    fitted: Heads

    def value(self) -> float:
        """Give what is chosen by."""
        return float(np.mean([score[self.metric] for score in self.scores]))

    def tell(self) -> dict[str, Any]:
        """Describe the choice."""
        told: dict[str, Any] = {"alignment": self.reading, "layer": tell_layers(self.layers)}
        told |= {"learning_rate": self.learning_rate, "metric": self.metric}
        told["epochs"] = [int(epoch) for epoch in self.fitted.epoch_SR[:, self.rate]]
        if len(self.layers) > 1:
            told["mix"] = self.fitted.mix_SRK[:, self.rate].mean(0).tolist()
        return told

    def take_heads(self, task: Task, config: WordsConfig) -> list[Head]:
        """Give the heads, one a seed."""
        return [
            Head(task.name, seed, task.labels.names, self.reading, self.layers, weight_CE, bias_C)
            for seed, weight_CE, bias_C in zip(
                config.seeds,
                self.fitted.weight_SRCE[:, self.rate],
                self.fitted.bias_SRC[:, self.rate],
                strict=True,
            )
        ]


def _try(
    config: WordsConfig,
    run: Run,
    exam: Exam,
    train: Features,
    held_out: Features,
    reading: Reading,
    layers: tuple[int, ...],
    device: torch.device,
) -> list[Trial]:
    """Train the heads of one reading and layer; a trial for each learning rate."""
    task = exam.task
    name = f"{task.name} {reading} {tell_layers(layers)}"
    rows = int((exam.train_M >= 0).sum())
    batch_words = config.probe_batch_words or min(max(rows // PASS_STEPS, FEWEST_WORDS), MOST_WORDS)
    recipe = Recipe(
        seeds=config.seeds,
        learning_rates=config.learning_rate,
        steps=count_steps(config, rows, per_step=batch_words)[0],
        batch_words=batch_words,
        dropout=config.classifier_dropout,
        weight_decay=config.weight_decay,
        schedule=config.lr_scheduler_type,
        warmup=config.warmup_steps,
        patience=config.early_stopping_patience,
    )
    words = Words([held_out.states[reading, layer] for layer in layers], exam.held_out_M)
    with open_bar() as bar:
        line = bar.add_task(name, total=None, speed="")

        def report(epoch: int, epochs: int, score: float) -> None:
            bar.update(line, completed=epoch, total=epochs, speed=f"best {score:.4f}")
            run.log({"step": epoch, "probe": name, "epoch": epoch, f"eval_best_{task.metric}": round(score, 6)})

        fitted = fit_heads(
            Words([train.states[reading, layer] for layer in layers], exam.train_M),
            words,
            len(task.labels),
            recipe,
            device=device,
            judge=exam.judge,
            report=report,
        )
    best = float(fitted.score_SR.max())
    logger.info("%s: %s of the best of %d heads on the validation words is %.4f", name, task.metric.replace("_", " "),
                fitted.score_SR.numel(), best)  # fmt: skip
    guess_SRM = np.concatenate([guess.cpu().numpy() for guess in fitted.guess(words, device)], axis=2)
    return [
        Trial(
            reading, layers, learning_rate, rate, task.metric, [exam.score(one) for one in guess_SRM[:, rate]], fitted
        )
        for rate, learning_rate in enumerate(config.learning_rate)
    ]
