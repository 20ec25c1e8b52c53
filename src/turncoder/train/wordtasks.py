"""What a word-level run works on: splits, columns of labels, the backbone, and what training gives.

In the names of tensors: M words.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedModel

from turncoder.config.words import WordsConfig
from turncoder.data.batching import permute
from turncoder.data.corpus import is_held_out
from turncoder.data.labels import LabelSet
from turncoder.data.masking import EVALUATION_SEED
from turncoder.data.saved import has_split
from turncoder.data.words import WordSet, find_column, open_words
from turncoder.encode.encoder import load_encoder
from turncoder.errors import UserError
from turncoder.evaluate.prediction import Head, Reader
from turncoder.evaluate.words import score, tally
from turncoder.machamp import export_machamp
from turncoder.train.features import LAST, Reading

__all__ = [
    "READINGS",
    "Found",
    "Splits",
    "Task",
    "choose_layers",
    "export_splits",
    "open_backbone",
    "open_splits",
    "open_tasks",
    "tell_idle",
    "tell_layers",
    "tell_model",
]

logger = logging.getLogger("turncoder")

READINGS: tuple[Reading, ...] = ("same_token", "previous_token")


@dataclass(frozen=True)
class Task:
    """A column of labels, and what is learnt of it."""

    name: str
    column: str
    labels: LabelSet

    @property
    def metric(self) -> str:
        """What is chosen by."""
        return "span_f1" if self.labels.scheme is not None else "token_accuracy"

    def score(self, gold: Iterable[list[str]], predicted: Iterable[list[str]]) -> dict[str, Any]:
        """Score sentences of labels."""
        return score(tally(gold, predicted, spans=self.labels.scheme is not None, known=self.labels.names))

    def number(self, words: WordSet) -> np.ndarray:
        """Give a number to the labels of all words, int64 [M]."""
        return np.concatenate([self.labels.number(tags) for tags in words.labels(self.column)])


@dataclass(frozen=True)
class Splits:
    """What is trained on, chosen on, and scored (None: what was chosen on)."""

    train: WordSet
    held_out: WordSet
    test: WordSet | None

    def fingerprint(self) -> str:
        """Identify what is trained and chosen on."""
        return f"{self.train.fingerprint} {self.held_out.fingerprint} {len(self.train)} {len(self.held_out)}"


@dataclass
class Found:
    """What training gave.

    Attributes
    ----------
    reader
        How words are read.
    heads
        To keep: one for each task and seed.
    compared
        Others, by what they differ in: ``readings/previous_token``, ``layers/3``.
    chosen
        What was chosen for each task.
    dev
        The scores of each task and seed on the validation words.
    """

    reader: Reader
    heads: list[Head] = field(default_factory=list)
    compared: dict[str, list[Head]] = field(default_factory=dict)
    chosen: dict[str, dict[str, Any]] = field(default_factory=dict)
    dev: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)


def open_splits(config: WordsConfig) -> Splits:
    """Open what is trained on, chosen on and scored; raises UserError."""
    if config.dataset_name:
        open_split = partial(
            open_words,
            dataset_name=config.dataset_name,
            dataset_config_name=config.dataset_config_name,
            cache_dir=config.cache_dir,
            key="dataset_name",
        )
        where = {"config": config.dataset_config_name, "cache_dir": config.cache_dir}
        there = [name for name in ("validation", "test") if has_split(config.dataset_name, name, **where)]
        train, held_out, test = _hold_out(open_split(split="train"), config, *there)
        if "validation" in there:
            held_out = open_split(split="validation")
        if "test" in there:
            test = open_split(split="test")
    else:
        given = [name for name in ("validation", "test") if getattr(config, f"{name}_file")]
        train, held_out, test = _hold_out(open_words(file=config.train_file, key="train_file"), config, *given)
        if config.validation_file:
            held_out = open_words(file=config.validation_file, key="validation_file")
        if config.test_file:
            test = open_words(file=config.test_file, key="test_file")
    if not (train.num_words and held_out.num_words and (test is None or test.num_words)):
        raise UserError(
            f"train_file: {train.where} leaves no words to train on, none to choose on, or none to score; give more"
        )
    train = _draw(train, config.max_train_samples, config.seed)
    return Splits(train, _draw(held_out, config.max_eval_samples, EVALUATION_SEED), test)


def export_splits(config: WordsConfig) -> str:
    """Write the words of a run as MaChAmp reads them; give the commands that train and score it."""
    splits = open_splits(config)
    tasks = {task.name: task.column for task in open_tasks(config, splits)}
    if config.dry_run:
        return f"would write: {config.export_machamp}"
    named = {"train": splits.train, "dev": splits.held_out, **({"test": splits.test} if splits.test else {})}
    model: dict[str, Any] = {"model": config.model_name_or_path} if config.model_name_or_path else {}
    frozen = config.train_mode == "probe"
    return export_machamp(tasks, named, Path(str(config.export_machamp)), **model, seeds=config.seeds, frozen=frozen)


def _hold_out(words: WordSet, config: WordsConfig, *there: str) -> tuple[WordSet, WordSet, WordSet | None]:
    """Part the sentences of a file by a hash of their text: to train on, to choose on, to score (None: no share).

    ``there`` names the parts (validation, test) that have words of their own.
    """
    scored = 0 if "test" in there else config.test_split_percentage
    chosen = 0 if "validation" in there else config.validation_split_percentage
    part_N = np.array([is_held_out(text, scored + chosen) + is_held_out(text, scored) for text in words.data["text"]])
    for share, what in ((chosen, "chosen on"), (scored, "scored")):
        if share:
            logger.info("%s: %g %% of the sentences are %s, by a hash of their text", words.name, share, what)
    train, held_out, test = (_select(words, np.flatnonzero(part_N == part)) for part in range(3))
    where = f"{words.where}, {scored:g} % of its sentences"
    return train, held_out, replace(test, where=where, fingerprint=f"{words.fingerprint} {where}") if scored else None


def _draw(words: WordSet, count: int | None, seed: int) -> WordSet:
    if count is None or count >= len(words):
        return words
    return _select(words, np.sort(permute(np.arange(count), len(words), seed, 0)))


def _select(words: WordSet, rows: np.ndarray) -> WordSet:
    data = words.data.select(rows)
    counts = {**words.counts, "sentences": len(rows), "words": sum(map(len, data["starts"]))}
    return replace(words, data=data, counts=counts)


def open_tasks(config: WordsConfig, splits: Splits) -> list[Task]:
    """Find the columns of the tasks and the labels that training has; raises UserError."""
    tasks = []
    for name in config.task:
        column = find_column(splits.train, name)
        labels = LabelSet.collect(splits.train, column)
        if not len(labels):
            raise UserError(f"task = {name!r}: no word of {splits.train.where} has a label in {column}")
        for words in [splits.held_out, *([splits.test] if splits.test is not None else [])]:
            _check_column(words, column, labels)
        tasks.append(Task(name, column, labels))
    return tasks


def _check_column(words: WordSet, column: str, labels: LabelSet) -> None:
    if column not in words.columns:
        raise UserError(f"{words.where} has no labels {column}; it has {', '.join(words.columns)}")
    if unseen := labels.unseen(words, column):
        told = ", ".join(f"{name} ({count})" for name, count in unseen.most_common(5))
        logger.warning("%s: labels of %s that training does not have count as wrong: %s", words.name, column, told)


def tell_idle(config: WordsConfig) -> None:
    """Say which keys are of no use, if any are."""
    if idle := config.list_idle():
        logger.warning("%s: of no use with train_mode = %r", ", ".join(idle), config.train_mode)


def open_backbone(config: WordsConfig) -> SentenceTransformer:
    """Open the model whose words are read; raises UserError."""
    return load_encoder(**tell_model(config))


def tell_model(config: WordsConfig) -> dict[str, Any]:
    """Return the arguments of `turncoder.load_encoder` that a configuration gives."""
    return {
        "name": str(config.model_name_or_path),
        "adapters": list(config.adapters),
        "bidirectional": config.bidirectional,
        "allow_partial": config.allow_partial,
        "llm2vec": False,
        "dtype": config.dtype,
        "attn_implementation": config.attn_implementation,
        "revision": config.model_revision,
        "cache_dir": config.cache_dir,
        "trust_remote_code": config.trust_remote_code,
    }


def choose_layers(config: WordsConfig, backbone: PreTrainedModel) -> list[int]:
    """List the layers that are read, from 0, the embeddings, to -1, the last; raises UserError."""
    last = backbone.config.get_text_config().num_hidden_layers
    if config.layer in ("all", "mix"):
        return [*range(last), LAST]
    layer = int(config.layer)
    if not LAST <= layer <= last:
        raise UserError(f"layer = {layer}: the model has layers 0 (its embeddings) to {last}, which is -1 too")
    return [LAST if layer == last else layer]


def tell_layers(layers: Sequence[int]) -> str:
    """Name the layers that are read together."""
    return "mix" if len(layers) > 1 else "last" if layers[0] == LAST else str(layers[0])
