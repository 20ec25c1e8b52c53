"""Scores of a tagger on tagged words, and the files that hold them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from turncoder.data.labels import LabelSet
from turncoder.data.words import WordSet, find_column
from turncoder.evaluate.prediction import Head, predict
from turncoder.evaluate.tagger import Tagger
from turncoder.evaluate.words import summarise, tally, write_confusion, write_predictions
from turncoder.train.running import Run, write_atomically
from turncoder.train.wordtasks import Task

__all__ = ["score_tagger", "write_results"]


def write_results(run: Run, results: dict[str, Any]) -> None:
    """Write ``results.json``, and the means into the record."""
    write_atomically(run.folder / "results.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    means = {task: told["mean"] for task, told in results["tasks"].items()}
    run.update(results=next(iter(means.values())) if len(means) == 1 else means)


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
        No such column, or no word that has a label.
    """
    compared = compared or {}
    everything = [*tagger.heads, *(head for heads in compared.values() for head in heads)]
    guesses = predict(tagger.encoder, tagger.reader, words.data, everything)
    rivals = iter(guesses[len(tagger.heads) :])
    forms = [words.words(row) for row in range(len(words))]
    results: dict[str, Any] = {"test_file": words.where, "fingerprint": words.fingerprint, "tasks": {}}
    for name, scheme in tagger.schemes.items():
        column = find_column(words, tagger.columns[name])
        gold = list(words.labels(column))
        own = {head.seed: guess for head, guess in zip(tagger.heads, guesses, strict=False) if head.task == name}
        labels = LabelSet(next(head.labels for head in tagger.heads if head.task == name), scheme)
        task = Task(name, column, labels)
        scores = {seed: task.score(gold, guess) for seed, guess in own.items()}
        best = tagger.best[name]
        place = folder if len(tagger.schemes) == 1 else folder / name.replace("/", "_")
        place.mkdir(parents=True, exist_ok=True)
        write_predictions(place / "predictions.tsv", forms, gold, own[best])
        counted = tally(gold, own[best], spans=scheme is not None, known=labels.names)
        results["tasks"][name] = {
            "metric": task.metric,
            "seeds": {
                str(seed): {key: value for key, value in one.items() if key not in ("per_class", "per_type")}
                for seed, one in scores.items()
            },
            **summarise([{k: v for k, v in one.items() if k != "per_class"} for one in scores.values()]),
            "best_seed": best,
            **{key: scores[best][key] for key in ("per_class", "per_type") if key in scores[best]},
            "words_scored": scores[best]["words_scored"],
            "words_in_file": words.num_words,
            "unseen_labels": dict(labels.unseen(words, column)),
            "confusions": write_confusion(counted, place),
        }
    for kind, heads in compared.items():
        group, _, member = kind.partition("/")
        for head in heads:
            guess = next(rivals)
            told = results["tasks"][head.task]
            column = find_column(words, tagger.columns[head.task])
            task = Task(head.task, column, LabelSet(head.labels, tagger.schemes[head.task]))
            one = task.score(list(words.labels(column)), guess)
            told.setdefault(group, {}).setdefault(member, []).append(
                {key: value for key, value in one.items() if key not in ("per_class", "per_type")}
            )
    for told in results["tasks"].values():
        for group in {kind.partition("/")[0] for kind in compared}:
            told[group] = {member: summarise(rows) for member, rows in told[group].items()}
    return results


