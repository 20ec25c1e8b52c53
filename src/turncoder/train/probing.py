"""Probes: the states of a frozen backbone, computed once, and heads on them; reading, layer and rate chosen on dev.

In the names of tensors: M words, S seeds, R learning rates.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from turncoder.data.packing import default_cache
from turncoder.data.tokenizer import pad_token_id
from turncoder.data.words import WordSet
from turncoder.evaluate.prediction import Head, Reader
from turncoder.progress import open_bar
from turncoder.train.features import LAST, Features, Reading, compute_features
from turncoder.train.linear import Heads, Recipe, Words, fit_heads
from turncoder.train.running import Run
from turncoder.train.wordtasks import READINGS, Found, Splits, Task, align_split
from turncoder.wordconfig import WordsConfig

__all__ = ["probe"]

logger = logging.getLogger("turncoder")


def probe(
    config: WordsConfig,
    run: Run,
    encoder: SentenceTransformer,
    reader: Reader,
    layers: list[int],
    tasks: list[Task],
    splits: Splits,
) -> Found:
    """Compute the states once, and train the heads of every seed, learning rate, reading and layer on them."""
    readings = READINGS if config.alignment == "auto" else (cast(Reading, config.alignment),)
    states = {
        split: _compute(encoder, reader, words, layers, readings)
        for split, words in (("train", splits.train), ("validation", splits.held_out))
    }
    run.settle()
    groups = [tuple(layers)] if config.layer == "mix" else [(layer,) for layer in layers]
    device = encoder.device
    heads: list[Head] = []
    compared: dict[str, list[Head]] = {}
    chosen: dict[str, dict[str, Any]] = {}
    dev: dict[tuple[str, int], dict[str, Any]] = {}
    for task in tasks:
        labels = {
            split: torch.from_numpy(task.number(words))
            for split, words in (("train", splits.train), ("validation", splits.held_out))
        }
        gold = list(splits.held_out.labels(task.column))
        trials: list[Trial] = []
        for reading in readings:
            for group in groups:
                parts = {
                    split: Words([kept.states[reading, layer] for layer in group], labels[split])
                    for split, kept in states.items()
                }
                fitted = _fit(config, run, parts, len(task.labels), f"{task.name} {reading} {_tell(group)}", device)
                trials += _judge(config, task, fitted, parts["validation"], gold, reading, group, device)
        best = max(trials, key=Trial.value)
        kept_heads = _take(best, task, config)
        heads += kept_heads
        dev |= {(task.name, seed): score for seed, score in zip(config.seeds, best.scores, strict=True)}
        chosen[task.name] = best.tell()
        if len(readings) > 1:
            for reading in readings:
                rival = max((trial for trial in trials if trial.reading == reading), key=Trial.value)
                compared.setdefault(f"readings/{reading}", []).extend(_take(rival, task, config))
        if config.layer == "all":
            for group in groups:
                rival = max((trial for trial in trials if trial.layers == group), key=Trial.value)
                compared.setdefault(f"layers/{_tell(group)}", []).extend(_take(rival, task, config))
    for kept in states.values():
        kept.close()
    return Found(reader, heads, compared, chosen, dev)


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
        """Give what is chosen by: the mean over seeds."""
        return float(np.mean([score[self.metric] for score in self.scores]))

    def tell(self) -> dict[str, Any]:
        """Describe the choice."""
        told: dict[str, Any] = {"alignment": self.reading, "layer": _tell(self.layers)}
        told |= {"learning_rate": self.learning_rate, "metric": self.metric}
        told["epochs"] = self.fitted.epoch_SR[:, self.rate].tolist()
        if len(self.layers) > 1:
            told["mix"] = self.fitted.mix_SRK[:, self.rate].mean(0).tolist()
        return told


def _tell(layers: tuple[int, ...]) -> str:
    return "mix" if len(layers) > 1 else "last" if layers[0] == LAST else str(layers[0])


def _take(trial: Trial, task: Task, config: WordsConfig) -> list[Head]:
    """Take the heads of a trial, one a seed."""
    fitted = trial.fitted
    return [
        Head(
            task.name, seed, task.labels.names, trial.reading, trial.layers,
            fitted.weight_SRCE[number, trial.rate], fitted.bias_SRC[number, trial.rate],
        )
        for number, seed in enumerate(config.seeds)
    ]  # fmt: skip


def _compute(
    encoder: SentenceTransformer, reader: Reader, words: WordSet, layers: list[int], readings: tuple[Reading, ...]
) -> Features:
    alignment = align_split(reader, encoder, words)
    return compute_features(
        encoder.transformers_model,
        alignment,
        layers=layers,
        readings=readings,
        merge=reader.merge,
        folder=default_cache() / "features",
        fingerprint="",
        pad_token_id=pad_token_id(encoder.tokenizer),
    )


def _fit(
    config: WordsConfig, run: Run, parts: dict[str, Words], classes: int, name: str, device: torch.device
) -> Heads:
    """Train the heads of one reading and layer."""
    rows = int((parts["train"].labels_M >= 0).sum())
    planned = math.ceil(rows / config.probe_batch_words * config.num_train_epochs)
    planned = config.max_steps if config.max_steps > 0 else planned
    recipe = Recipe(
        seeds=config.seeds,
        learning_rates=config.learning_rate,
        steps=min(planned, config.stop_after_n_steps or planned),
        batch_words=config.probe_batch_words,
        dropout=config.classifier_dropout,
        weight_decay=config.weight_decay,
        schedule=config.lr_scheduler_type,
        warmup=config.warmup_steps,
        patience=config.early_stopping_patience,
    )
    with open_bar() as bar:
        line = bar.add_task(name, total=None, speed="")

        def report(epoch: int, epochs: int, accuracy: float) -> None:
            bar.update(line, completed=epoch, total=epochs, speed=f"best {accuracy:.4f}")
            run.log({"step": epoch, "probe": name, "epoch": epoch, "eval_best_accuracy": round(accuracy, 6)})

        fitted = fit_heads(parts["train"], parts["validation"], classes, recipe, device=device, report=report)
    logger.info("%s: best of %d heads %.4f on the validation words", name, fitted.accuracy_SR.numel(),
                float(fitted.accuracy_SR.max()))  # fmt: skip
    return fitted


def _judge(
    config: WordsConfig,
    task: Task,
    fitted: Heads,
    words: Words,
    gold: list[list[str]],
    reading: Reading,
    layers: tuple[int, ...],
    device: torch.device,
) -> list[Trial]:
    """Score the heads on the validation words, learning rate by learning rate."""
    seeds, rates = fitted.accuracy_SR.shape
    guess_SRM = np.concatenate([guess.cpu().numpy() for guess in fitted.guess(words, device)], axis=2)
    ends = np.cumsum([len(tags) for tags in gold])[:-1]
    names = np.array(task.labels.names, dtype=object)
    trials = []
    for rate in range(rates):
        scores = []
        for seed in range(seeds):
            predicted = [list(tags) for tags in np.split(names[guess_SRM[seed, rate]], ends)]
            scores.append(task.score(gold, predicted))
        trials.append(Trial(reading, layers, config.learning_rate[rate], rate, task.metric, scores, fitted))
    return trials


