"""Scores of single queries, pairs and texts out of what mteb keeps of a model's answers, so that runs can be compared.

In the names of tensors: N texts, E experiments.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytrec_eval
from mteb.abstasks import (
    AbsTask,
    AbsTaskBitextMining,
    AbsTaskClassification,
    AbsTaskMultilabelClassification,
    AbsTaskPairClassification,
    AbsTaskRegression,
    AbsTaskRetrieval,
    AbsTaskSTS,
)

from turncoder.evaluate.mtebtasks import split_parts

__all__ = ["has_items", "place_items", "read_items"]

MEASURES = {"ndcg": "ndcg_cut", "map": "map_cut", "recall": "recall", "precision": "P", "hit_rate": "success"}
"""mteb's names of measures, and pytrec_eval's."""


def has_items(task: AbsTask) -> bool:
    """Tell whether single items of a task are scored: not of clusters, nor of languages side by side."""
    if isinstance(task, AbsTaskBitextMining):
        return not task.parallel_subsets
    if isinstance(task, AbsTaskMultilabelClassification | AbsTaskRegression):
        return False
    return isinstance(task, AbsTaskClassification | AbsTaskPairClassification | AbsTaskRetrieval | AbsTaskSTS)


def place_items(name: str) -> str:
    """Give the file, within a run folder, of the items of a task."""
    return f"items/{name.replace('/', '_')}.json"


def read_items(task: AbsTask, folder: Path) -> dict[str, Any] | None:
    """Read the scores of the items of a task, from the predictions that mteb wrote into a folder.

    Returns
    -------
    dict or None
        ``metric`` and ``parts``, by ``SPLIT/SUBSET``: lists of the same length. Of searches ``id`` and ``score``, by
        the task's main metric where it is one of single queries, else nDCG@10. Of classes ``score``, the share of
        experiments in which the text was told right; of translations 1 where the line was found. Of scored and of
        labelled pairs ``cosine`` and ``gold``. None where there are no single items, as in clusters.
    """
    path = folder / task.prediction_file_name
    if not has_items(task) or not path.exists():
        return None
    predictions = json.loads(path.read_text(encoding="utf8"))
    metric = _find_measure(task.metadata.main_score) if isinstance(task, AbsTaskRetrieval) else "cosine"
    if isinstance(task, AbsTaskClassification | AbsTaskBitextMining):
        metric = "accuracy"
    parts = {}
    for split, subset, data in split_parts(task):
        found = predictions.get(subset, {}).get(split)
        if found is not None:
            parts[f"{split}/{subset}"] = _read_part(task, data, found, metric)
    return {"metric": metric, "parts": parts} if parts else None


def _read_part(task: Any, data: Any, found: Any, metric: str) -> dict[str, list[Any]]:
    if isinstance(task, AbsTaskRetrieval):
        return _score_queries(task, data, found, metric)
    if isinstance(task, AbsTaskSTS):
        return {"cosine": _round(found["cosine_scores"]), "gold": list(data["score"])}
    if isinstance(task, AbsTaskPairClassification):
        rows = data[0] if len(data) == 1 else data
        return {"cosine": _round(found["cosine_scores"]), "gold": list(rows[task.label_column_name])}
    if isinstance(task, AbsTaskBitextMining):
        (lines,) = found.values()
        gold = data["gold"] if isinstance(data, dict) and "gold" in data else [(row, row) for row in range(len(lines))]
        return {"score": [int(one["corpus_id"] == right[1]) for one, right in zip(lines, gold, strict=True)]}
    return _score_texts(task, data, found)


def _score_texts(task: AbsTaskClassification, data: Any, found: list[list[Any]]) -> dict[str, list[Any]]:
    gold_N = np.asarray(data[task.label_column_name])
    if not task.is_cross_validation:
        return {"score": _round(np.mean(np.array(found) == gold_N, axis=0))}
    from sklearn.model_selection import KFold

    folds = KFold(n_splits=task.n_splits, shuffle=True, random_state=task.seed).split(range(len(gold_N)))
    score_N = np.empty(len(gold_N))
    for (_, rows), guesses in zip(folds, found, strict=True):
        score_N[rows] = np.array(guesses) == gold_N[rows]
    return {"score": _round(score_N)}


def _find_measure(main_score: str) -> str:
    """Give the main metric if it is one of single queries."""
    name, _, cut = main_score.rpartition("_at_")
    if main_score == "accuracy":  # as mteb calls recall at 1 where something is to be chosen
        return main_score
    return main_score if name in MEASURES and cut.isdecimal() else "ndcg_at_10"


def _score_queries(
    task: AbsTaskRetrieval, data: Any, found: dict[str, dict[str, float]], metric: str
) -> dict[str, list[Any]]:
    name, _, cut = ("recall_at_1" if metric == "accuracy" else metric).rpartition("_at_")
    if task.ignore_identical_ids:
        found = {
            query: {one: score for one, score in ranked.items() if one != query} for query, ranked in found.items()
        }
    if task.skip_first_result:
        found = {
            query: dict(sorted(ranked.items(), key=lambda one: one[1], reverse=True)[1:])
            for query, ranked in found.items()
        }
    measure = pytrec_eval.RelevanceEvaluator(data["relevant_docs"], {f"{MEASURES[name]}.{cut}"})
    scores = measure.evaluate(found)
    key = f"{MEASURES[name]}_{cut}"
    return {"id": list(scores), "score": _round([scores[query][key] for query in scores])}


def _round(values: Any) -> list[float | None]:
    return [None if math.isnan(value) else round(float(value), 6) for value in values]
