"""Plan a word-level run: look at model and words, train nothing, write nothing."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from turncoder.config.stages import to_toml
from turncoder.config.words import WordsConfig
from turncoder.data.alignment import Alignment, align_words, choose_bos
from turncoder.data.tokenizer import load_tokenizer
from turncoder.encode.encoder import limit_length
from turncoder.errors import UserError
from turncoder.model.backbone import load_model_config, split_revision
from turncoder.model.source import find_source
from turncoder.plan import HALF, Plan, add_disk, add_memory, add_steps, add_time, list_files, measure_rate, note_unseen
from turncoder.preview import SAMPLES, cache_in, read_tokens
from turncoder.skeleton import build_unstored
from turncoder.train.wordtasks import READINGS, Splits, Task, choose_layers, open_splits, open_tasks, tell_idle

__all__ = ["plan_words"]

RESULTS = ("results.json", "predictions.tsv", "confusion.csv", "confusion.png", "tagger/")


def plan_words(config: WordsConfig) -> Plan:
    """Plan a word-level run.

    Raises
    ------
    UserError
        Whatever is wrong with the keys, the files or the model. A hub id that cannot be reached is no error: it is
        named in ``unseen``.
    """
    tell_idle(config)
    plan = Plan(to_toml(config), legend="sentences as the model would see them: [tokens of a word] label")
    folder = Path(config.output_dir) if config.output_dir else Path("RUN")
    probed = ("run.json", "config.toml", "metrics.jsonl", "report.html")
    plan.files = [str(folder / name) for name in probed] if config.train_mode == "probe" else list_files(config)
    plan.files += [str(folder / name) + ("/" if name.endswith("/") else "") for name in RESULTS]
    opened = _open_model(plan, config)
    splits = None
    with tempfile.TemporaryDirectory() as cache, cache_in(Path(cache)):
        try:
            splits = open_splits(config)
        except UserError as error:
            note_unseen(plan, error, config.dataset_name, "words, steps and time are not planned")
        if splits is not None:
            tasks = open_tasks(config, splits)
            if opened is not None:
                _add_work(plan, config, *opened, splits, tasks)
    return plan


def _open_model(plan: Plan, config: WordsConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase] | None:
    """Build the model without storage, with the adapter that would be trained; None where the hub does not give it."""
    name = str(config.model_name_or_path)
    try:
        source = find_source(name, config.adapters, revision=config.model_revision, cache_dir=config.cache_dir)
        where: dict[str, Any] = {"cache_dir": config.cache_dir, "trust_remote_code": config.trust_remote_code}
        model_config = load_model_config(source.base, revision=source.revision, **where)
        place, revision = split_revision(source.tokenizer, source.revision)
        return build_unstored(model_config, config), load_tokenizer(place, revision=revision, **where)  # type: ignore[arg-type]
    except UserError as error:
        note_unseen(plan, error, name, "parameters, memory, time and disk are not planned")
        return None


def _add_work(
    plan: Plan,
    config: WordsConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    splits: Splits,
    tasks: list[Task],
) -> None:
    """Add samples, steps, memory, time and disk."""
    layers = choose_layers(config, model)
    limit = limit_length(model, config.max_seq_length)
    bos = choose_bos(tokenizer) if config.alignment != "same_token" else None
    train, held_out = (
        align_words(tokenizer, words.data, limit=limit, bos=bos) for words in (splits.train, splits.held_out)
    )
    plan.samples = [_show(tokenizer, splits, tasks, train, row) for row in range(min(SAMPLES, len(splits.train)))]
    width = model.config.get_text_config().hidden_size
    heads = sum(len(task.labels) for task in tasks) * (width * len(layers) + 1)
    tokens = len(train.tokens) + len(held_out.tokens)
    if config.train_mode == "probe":
        readings = len(READINGS) if config.alignment == "auto" else 1
        count = len(config.seeds) * len(config.learning_rate)
        total = sum(parameter.numel() for parameter in model.parameters())
        size = next(model.parameters()).element_size()
        plan.parameters = {"total": total, "trainable in each of so many heads": heads}
        plan.memory = {"model": total * size, "heads": 16 * heads * count}
        words = splits.train.num_words + splits.held_out.num_words
        plan.disk = {"states of words, in the cache": words * width * size * readings * len(layers)}
        plan.steps = {"sentences": len(splits.train), "words": splits.train.num_words, "tokens": tokens}
        plan.steps["heads"] = count * readings * (1 if config.layer == "mix" else len(layers)) * len(tasks)
        rate, device = measure_rate(torch.float32)
        learning = 6 * heads * count * readings * splits.train.num_words * config.num_train_epochs
        plan.seconds = (2 * total * tokens + learning) / (HALF * rate)
        plan.assumptions.append(
            f"time: at half of the {rate / 1e12:.3g} TFLOP/s that a matrix product reaches now on {device}; states "
            "that are in the cache already take none"
        )
        return
    rows = len(train.lengths)
    add_steps(plan, config, rows, float(train.lengths.mean()))
    runs = len(config.seeds) * len(config.learning_rate)
    longest = sorted(train.lengths)[-config.per_device_train_batch_size :]
    add_memory(plan, config, model, [(len(longest), int(max(longest)))], {"heads": 16 * heads})
    add_time(plan, config, model, float(train.lengths.mean()))
    add_disk(plan, config, model)
    if runs > 1:
        plan.seconds = None if plan.seconds is None else plan.seconds * runs
        plan.disk = {f"{name}, {runs} runs": runs * size for name, size in plan.disk.items()}
        plan.assumptions.append(f"steps: of each of {runs} runs, one a seed and learning rate")
    if config.early_stopping_patience is not None:
        plan.assumptions.append(
            f"steps: all {math.ceil(plan.steps['epochs'])} epochs; training stops earlier after "
            f"{config.early_stopping_patience} evaluations without a better score"
        )


def _show(tokenizer: PreTrainedTokenizerBase, splits: Splits, tasks: list[Task], alignment: Alignment, row: int) -> str:
    """Write a sentence: the tokens of each word in brackets, and its labels behind it."""
    lengths = [len(starts) for starts in splits.train.data[: row + 1]["starts"]]
    first, count = sum(lengths[:-1]), lengths[-1]
    columns = [splits.train.data[row][task.column] for task in tasks]
    parts = []
    for number in range(count):
        word = first + number
        window = int(alignment.word_window[word])
        begin = int(alignment.window_ends[window] - alignment.lengths[window])
        ids = alignment.tokens[begin + alignment.word_first[word] : begin + alignment.word_last[word]]
        parts.append(f"[{read_tokens(ids.tolist(), tokenizer)}] {'/'.join(column[number] for column in columns)}")
    return " ".join(parts)
