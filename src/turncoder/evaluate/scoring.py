"""Scores of a tagger on tagged words, and the files that hold them."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from turncoder.config.words import WordsConfig
from turncoder.data.files import refuse_file
from turncoder.data.labels import LabelSet
from turncoder.data.words import WordSet, find_column, open_words
from turncoder.disk import write_atomically
from turncoder.errors import UserError
from turncoder.evaluate.prediction import Head, predict
from turncoder.evaluate.results import read_results, show_score
from turncoder.evaluate.tagger import Tagger, load_tagger
from turncoder.evaluate.wordfiles import write_confusion, write_predictions
from turncoder.evaluate.words import summarise, tally
from turncoder.hub import find_run
from turncoder.model.source import read_json
from turncoder.train.running import MARKER, complete_checkpoints
from turncoder.train.wordtasks import Task

__all__ = [
    "copy_tables",
    "evaluate_run",
    "gather_seeds",
    "score_tagger",
    "show",
]

logger = logging.getLogger("turncoder")

TABLES = ("predictions.tsv", "confusion.csv", "confusion.png")
SHOWN = ("token_accuracy", "macro_f1", "weighted_f1", "span_precision", "span_recall", "span_f1")


def score_tagger(
    tagger: Tagger, words: WordSet, folder: Path, *, compared: dict[str, list[Head]] | None = None
) -> dict[str, Any]:
    """Score the heads of every task and seed on tagged words, and write the predictions of the best seed.

    Parameters
    ----------
    tagger
        Whose heads are scored.
    words
        With the columns of its tasks.
    folder
        ``predictions.tsv``, ``confusion.csv`` and ``confusion.png`` go into it; of several tasks into ``TASK/``.
    compared
        Other heads, by names such as ``layers/3``, whose scores are put beside those.

    Returns
    -------
    dict
        What ``results.json`` holds.

    Raises
    ------
    UserError
        No such column, or no word that has a label, or one that was trained on.
    """
    compared = compared or {}
    tasks = {name: _find_task(tagger, name, words) for name in tagger.schemes}
    unseen = {name: task.labels.unseen(words, task.column) for name, task in tasks.items()}
    everything = [*tagger.heads, *(head for heads in compared.values() for head in heads)]
    guesses = predict(tagger.encoder, tagger.reader, words.data, everything, where=words.where)
    rivals = iter(guesses[len(tagger.heads) :])
    forms = [words.words(row) for row in range(len(words))]
    results: dict[str, Any] = {"test_file": words.where, "fingerprint": words.fingerprint, "tasks": {}}
    golds = {name: list(words.labels(task.column)) for name, task in tasks.items()}
    for name, task in tasks.items():
        gold = golds[name]
        own = {head.seed: guess for head, guess in zip(tagger.heads, guesses, strict=False) if head.task == name}
        scores = {seed: task.score(gold, guess) for seed, guess in own.items()}
        best = tagger.best[name]
        place = _choose_place(folder, name, len(tagger.schemes))
        write_predictions(place / "predictions.tsv", forms, gold, own[best])
        counted = tally(gold, own[best], spans=task.labels.scheme is not None, known=task.labels.names)
        told: dict[str, Any] = {
            "metric": task.metric,
            "seeds": {str(seed): _take_totals(one) for seed, one in scores.items()},
            **summarise([_take_totals(one) for one in scores.values()]),
            "best_seed": best,
            **{key: scores[best][key] for key in ("per_class", "per_type") if key in scores[best]},
            "words_scored": scores[best]["words_scored"],
            "words_in_file": words.num_words,
            "unseen_labels": dict(unseen[name]),
            "confusions": write_confusion(counted, place),
        }
        results["tasks"][name] = told
    for kind, heads in compared.items():
        group, _, member = kind.partition("/")
        for head in heads:
            totals = _take_totals(tasks[head.task].score(golds[head.task], next(rivals)))
            results["tasks"][head.task].setdefault(group, {}).setdefault(member, []).append(totals)
    for told in results["tasks"].values():
        for group in {kind.partition("/")[0] for kind in compared}:
            told[group] = {member: summarise(rows) for member, rows in told[group].items()}
    return results


def _find_task(tagger: Tagger, name: str, words: WordSet) -> Task:
    labels = next(head.labels for head in tagger.heads if head.task == name)
    return Task(name, find_column(words, tagger.columns[name]), LabelSet(labels, tagger.schemes[name]))


def _take_totals(scores: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in scores.items() if name not in ("per_class", "per_type")}


def evaluate_run(config: WordsConfig) -> dict[str, Any]:
    """Score a trained run on other words: every seed of every task.

    Parameters
    ----------
    config
        ``evaluate`` names the run, a checkpoint in it, or RUN/STEP; ``test_file`` or ``dataset_name`` the words.
        Scores and predictions are written where ``output_dir`` says, if it does and this is no dry run.

    Returns
    -------
    dict
        As ``results.json``.

    Raises
    ------
    UserError
        No such run, no such words, or an output that is there already.
    """
    out = Path(config.output_dir) if config.output_dir else None
    if out is not None:
        refuse_file(out)
    if out is not None and out.exists() and any(out.iterdir()) and not config.overwrite:
        raise UserError(f"--output {out} holds something already; name another folder, or use --overwrite")
    out = None if config.dry_run else out
    words = open_test(config)
    run = Path(str(config.evaluate))
    _tell_model(config, run)
    seeds = read_results(run).get("runs", {}) if (run / "results.json").exists() else {}
    with ExitStack() as stack:
        folder = out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if not seeds:
            results = score_tagger(open_trained(str(run)), words, folder)
        else:
            found = {
                int(seed): score_tagger(load_tagger(run / name), words, folder / name) for seed, name in seeds.items()
            }
            best = {name: told["best_seed"] for name, told in read_results(run)["tasks"].items()}
            results = next(iter(found.values()))
            results["tasks"] = {name: gather_seeds(name, found, best[name]) for name in best}
            copy_tables({int(seed): folder / name for seed, name in seeds.items()}, best, folder)
        results["run"] = config.evaluate
        if out is not None:
            write_atomically(out / "results.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    return results


def _tell_model(config: WordsConfig, run: Path) -> None:
    """Say so where another model or task is named than the run has: the run's own is read."""
    home = find_run(str(run))
    trained = read_json(home / "run.json")["config"] if home is not None else {}
    default = {field.name: field.default for field in fields(config)}
    for name in ("model_name_or_path", "adapters", "task"):
        given = getattr(config, name)
        told = list(given) if isinstance(given, tuple) else given
        if home is not None and given != default[name] and told != trained.get(name):
            logger.warning(
                "%s = %r is not read: the run was trained on %r, and is scored with that",
                name,
                told,
                trained.get(name),
            )


def gather_seeds(name: str, found: dict[int, dict[str, Any]], best: int) -> dict[str, Any]:
    """Put what runs of different seeds found for a task together; what only one can tell is that of the best seed."""
    rows = {seed: results["tasks"][name]["seeds"][str(seed)] for seed, results in found.items()}
    told = {
        **found[best]["tasks"][name],
        "seeds": {str(seed): row for seed, row in rows.items()},
        **summarise([{key: value for key, value in row.items() if key in SHOWN} for row in rows.values()]),
        "best_seed": best,
    }
    if all("dev" in row for row in rows.values()):
        told["dev"] = summarise([row["dev"] for row in rows.values()])
    return told


def copy_tables(folders: dict[int, Path], best: dict[str, int], target: Path) -> None:
    """Copy predictions and confusions of each task from the folder of its best seed."""
    for name, seed in best.items():
        source, place = (_choose_place(folder, name, len(best)) for folder in (folders[seed], target))
        for table in TABLES:
            shutil.copyfile(source / table, place / table)


def _choose_place(folder: Path, task: str, tasks: int) -> Path:
    """Choose, and make, the folder for the predictions of a task: of one the folder itself."""
    place = folder if tasks == 1 else folder / task.replace("/", "_")
    place.mkdir(parents=True, exist_ok=True)
    return place


def open_test(config: WordsConfig) -> WordSet:
    """Open the words that are scored; raises UserError."""
    if config.dataset_name:
        return open_words(
            dataset_name=config.dataset_name,
            dataset_config_name=config.dataset_config_name,
            split="test",
            cache_dir=config.cache_dir,
            key="dataset_name",
        )
    return open_words(file=config.test_file, key="test_file")


def open_trained(name: str) -> Tagger:
    """Open a run of ``words``, or a checkpoint of one (``RUN/checkpoint-500``, ``RUN/500``); raises UserError."""
    path = Path(name)
    step = path.name.removeprefix("checkpoint-")
    if (path / "tagger").exists() or (path / "classifier.pt").exists() or not step.isdigit():
        return load_tagger(path)
    run = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    if not (run / "run.json").exists():
        return load_tagger(path)
    checkpoint = run / "checkpoints" / f"checkpoint-{step}"
    if read_json(run / "run.json")["config"].get("train_mode") == "probe":
        logger.warning("%s: a probe keeps the heads of its best epochs alone; those of the run are scored", name)
        return load_tagger(run)
    if not (checkpoint / MARKER).exists():
        there = ", ".join(folder.name for folder in complete_checkpoints(run / "checkpoints"))
        inner = sorted(one.parent.name for one in run.glob("*/run.json"))
        said = f"{there or 'none'}{', but runs: ' if inner else ''}{', '.join(inner)}"
        raise UserError(f"evaluate = {name!r}: no such checkpoint; {run} has {said}")
    return load_tagger(run, checkpoint=checkpoint)


def show(results: dict[str, Any], console: Console) -> None:
    """Print the scores of each task, a column each: mean and standard deviation over seeds."""
    tasks = results["tasks"]
    seeds = len(next(iter(tasks.values()))["seeds"])
    spread = f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else "one seed"
    table = Table(title=f"{Path(results['test_file']).name}: {spread}, in percent")
    table.add_column("")
    for task in tasks:
        table.add_column(task, justify="right")
    for name in SHOWN:
        cells = [show_score(told["mean"].get(name), told["std"].get(name)) for told in tasks.values()]
        if any(cell != "-" for cell in cells):
            table.add_row(name.replace("_", " ").replace("f1", "F1"), *cells)
    table.add_row("words scored", *(f"{told['words_scored']:,}" for told in tasks.values()))
    console.print(table)
    for task, told in tasks.items():
        if told["words_scored"] < told["words_in_file"]:
            missing = told["words_in_file"] - told["words_scored"]
            console.print(f"{task}: {missing:,} words have no label and are not scored", highlight=False)
        if told["unseen_labels"]:
            labels = ", ".join(f"{name} ({count})" for name, count in told["unseen_labels"].items())
            console.print(f"{task}: labels that training did not have count as wrong: {labels}", highlight=False)
