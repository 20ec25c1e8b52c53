"""Word-level tasks: probes on a frozen backbone, an adapter, or every weight; chosen on dev, scored once on test.

BehnamGhader et al. 2024, LLM2Vec, arXiv 2404.05961, section 4.1. What flows: tagged sentences -> tokens of each word ->
states -> heads -> labels -> ``results.json``, ``predictions.tsv``, ``tagger/``.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedModel, set_seed

from turncoder.budget import keep_freed_memory
from turncoder.config.words import WordsConfig
from turncoder.data.alignment import choose_bos
from turncoder.encode.encoder import limit_length
from turncoder.evaluate.classifier import export_classifier
from turncoder.evaluate.prediction import Reader
from turncoder.evaluate.results import read_results, write_results
from turncoder.evaluate.scoring import copy_tables, gather_seeds, score_tagger
from turncoder.evaluate.tagger import Tagger, load_tagger, save_tagger
from turncoder.evaluate.words import summarise
from turncoder.model.attention import inspect_attention
from turncoder.train.finetuning import fine_tune, refuse_early
from turncoder.train.probing import probe
from turncoder.train.running import Run
from turncoder.train.stage import check_data, perform, tell_parents
from turncoder.train.wordtasks import (
    Found,
    Splits,
    Task,
    choose_layers,
    open_backbone,
    open_splits,
    open_tasks,
    tell_idle,
    tell_model,
)

__all__ = ["train"]

logger = logging.getLogger("turncoder")


def train(config: WordsConfig) -> Path:
    """Train on tagged words and score them; the same call again resumes.

    Several seeds or learning rates of ``lora`` and ``full`` are runs of their own within the run folder.

    Parameters
    ----------
    config
        See `turncoder.config.words.WordsConfig`.

    Returns
    -------
    Path
        The run folder: ``results.json``, ``predictions.tsv``, ``confusion.csv``, ``confusion.png``, ``tagger/``; with
        several tasks those of each in a folder of its name.

    Raises
    ------
    UserError
        The input is wrong; the message names the key, the value and the remedy.
    """
    tell_idle(config)
    if config.train_mode != "probe" and len(config.seeds) * len(config.learning_rate) > 1:
        return perform(config, config.STAGE, _train_each)
    return perform(config, config.STAGE, _train)


def _train(config: WordsConfig, run: Run) -> None:
    started = time.perf_counter()
    set_seed(config.seeds[0])
    if not torch.accelerator.is_available():
        keep_freed_memory()
    with PartialState().main_process_first():
        splits = open_splits(config)
        tasks = open_tasks(config, splits)
    encoder = open_backbone(config)
    backbone = encoder.transformers_model
    assert isinstance(backbone, PreTrainedModel)
    if config.train_mode != "probe":
        refuse_early(config, run, backbone)
    reader = Reader(
        limit_length(backbone, config.max_seq_length),
        choose_bos(encoder.tokenizer) if config.alignment != "same_token" else None,
        config.merge_subwords,
    )
    layers = choose_layers(config, backbone)
    check_data(run, splits.fingerprint())
    run.update(
        data={
            "train": splits.train.counts,
            "validation": splits.held_out.counts,
            "test": splits.test.counts if splits.test else None,
            "fingerprint": splits.fingerprint(),
        },
        parents=tell_parents(str(config.model_name_or_path)),
        attention=inspect_attention(backbone).to_dict(),
    )
    if config.train_mode == "probe":
        found = probe(config, run, encoder, reader, layers, tasks, splits)
        run.update(wall_time_s=round(time.perf_counter() - started, 2))
    else:
        found = fine_tune(config, run, encoder, reader, layers[0], tasks, splits)
    if PartialState().is_main_process:
        _finish(config, run, found, tasks, splits, encoder if config.train_mode == "probe" else None)
    PartialState().wait_for_everyone()


def _finish(
    config: WordsConfig,
    run: Run,
    found: Found,
    tasks: list[Task],
    splits: Splits,
    encoder: SentenceTransformer | None,
) -> None:
    """Write the tagger, open it again, and score the test words with it."""
    best = {task.name: max(config.seeds, key=lambda seed: found.dev[task.name, seed][task.metric]) for task in tasks}
    model: dict[str, Any] = {"name": "."}
    if config.train_mode == "probe":
        model = tell_model(config)
        model |= {"name": _locate(model["name"]), "adapters": [_locate(adapter) for adapter in model["adapters"]]}
    opened = Tagger(
        encoder,  # type: ignore[arg-type]  # written, not used
        found.reader,
        found.heads,
        {task.name: task.labels.scheme for task in tasks},
        best,
        {task.name: task.column for task in tasks},
    )
    save_tagger(run.folder, opened, model)
    test = splits.test if splits.test is not None else splits.held_out
    if splits.test is None:
        logger.warning(
            "no test_file: the validation words are scored, where all was chosen, so the scores are too high"
        )
    tagger = load_tagger(run.folder, encoder=encoder)
    results = score_tagger(tagger, test, run.folder, compared=found.compared)
    if config.train_mode != "probe" and (run.folder / "model").exists():
        export_classifier(tagger, run.folder / "classifier")
    for task in tasks:
        told = results["tasks"][task.name]
        told["chosen"] = found.chosen[task.name]
        for seed in config.seeds:
            dev = {name: value for name, value in found.dev[task.name, seed].items() if name != "per_class"}
            told["seeds"][str(seed)] |= {
                "alignment": found.chosen[task.name]["alignment"],
                "layer": found.chosen[task.name]["layer"],
                "learning_rate": found.chosen[task.name]["learning_rate"],
                "dev": dev,
            }
        told["dev"] = summarise([told["seeds"][str(seed)]["dev"] for seed in config.seeds])
    results |= {
        "train_mode": config.train_mode,
        "test_is_validation": splits.test is None,
        "train_sentences": len(splits.train),
    }
    write_results(run, results)


def _locate(name: str) -> str:
    """Give a folder's whole path, so that the tagger opens from anywhere; a hub id stays."""
    return str(Path(name).expanduser().absolute()) if Path(name).expanduser().exists() else name


def _train_each(config: WordsConfig, run: Run) -> None:
    """Train every seed and learning rate in a run of its own."""
    found: dict[float, dict[int, dict[str, Any]]] = {}
    folders: dict[tuple[float, int], Path] = {}
    for rate in config.learning_rate:
        for seed in config.seeds:
            folder = run.folder / f"seed-{seed}-rate-{rate:g}"
            one = replace(config, seeds=(seed,), learning_rate=(rate,), output_dir=str(folder), overwrite=False)
            perform(one, one.STAGE, _train)
            folders[rate, seed] = folder
            found.setdefault(rate, {})[seed] = read_results(folder)
    if PartialState().is_main_process:
        _put_together(config, run, found, folders)
    PartialState().wait_for_everyone()


def _put_together(
    config: WordsConfig,
    run: Run,
    found: dict[float, dict[int, dict[str, Any]]],
    folders: dict[tuple[float, int], Path],
) -> None:
    """Choose the learning rate, and write what the seeds found with it."""

    def value(rate: float) -> float:
        dev = [
            told["seeds"][str(seed)]["dev"][told["metric"]]
            for seed, results in found[rate].items()
            for told in results["tasks"].values()
        ]
        return float(np.mean(dev))

    rate = max(config.learning_rate, key=value)
    logger.info("learning_rate %g is best on the validation words (%.4f)", rate, value(rate))
    results = dict(found[rate][config.seeds[0]])
    results["rates"] = {f"{one:g}": value(one) for one in config.learning_rate}
    best_seed = {}
    for name, told in results["tasks"].items():
        best_seed[name] = max(
            config.seeds, key=lambda seed: found[rate][seed]["tasks"][name]["seeds"][str(seed)]["dev"][told["metric"]]
        )
    results["tasks"] = {name: gather_seeds(name, found[rate], best_seed[name]) for name in results["tasks"]}
    results["runs"] = {str(seed): folders[rate, seed].name for seed in config.seeds}
    copy_tables({seed: folders[rate, seed] for seed in config.seeds}, best_seed, run.folder)
    write_results(run, results)
