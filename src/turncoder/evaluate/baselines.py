"""What words alone, and a model's input embeddings alone, score on a task of mteb: every gain is against something.

In the names of tensors: N pairs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import mteb
import numpy as np
from mteb.abstasks import (
    AbsTask,
    AbsTaskBitextMining,
    AbsTaskClassification,
    AbsTaskClustering,
    AbsTaskPairClassification,
    AbsTaskRetrieval,
    AbsTaskSTS,
)
from sklearn.metrics import average_precision_score
from threadpoolctl import threadpool_limits

from turncoder.evaluate.mtebmodel import BagModel, EncoderModel, WordModel, WordSearch, can_bag
from turncoder.evaluate.mtebtasks import split_parts
from turncoder.evaluate.sentences import correlate_ranks, score_pairs_words

__all__ = ["score_baselines", "score_task"]

logger = logging.getLogger("turncoder")

MOST_TEXTS = 10**6
"""Beyond which words are not counted: they are held in memory."""


def score_task(model: Any, task: AbsTask, **options: Any) -> Any:
    """Let mteb score a model on a loaded task; from the same state of chance whatever was scored before.

    The matrices of classifiers are so small that threads of NumPy's products would mostly wait for each other; the
    encoder's threads are torch's, and stay. And labels are read from disk once: mteb gives scikit-learn a column that
    `datasets` reads a row at a time, for each of its metrics several times.
    """
    if isinstance(task, AbsTaskClassification):
        _read_labels_once(task)
    task.rng_state.seed(task.seed)
    task.np_rng = np.random.default_rng(task.seed)
    encoding = {"show_progress_bar": False, "batch_size": 1024}
    told = {"encode_kwargs": encoding, "show_progress_bar": False, "co2_tracker": False, "cache": None, **options}
    with threadpool_limits(1, user_api="blas"):
        return mteb.evaluate(model, task, overwrite_strategy="always", **told).task_results[0]


def _read_labels_once(task: AbsTaskClassification) -> None:
    calculate = type(task)._calculate_scores

    def calculate_of_list(y_test: Any, y_pred: Any) -> Any:
        return calculate(task, list(y_test), y_pred)

    task._calculate_scores = calculate_of_list  # type: ignore[method-assign]


def score_baselines(task: AbsTask, model: EncoderModel) -> dict[str, float]:
    """Give the main score of each baseline that applies to a task which the model has been scored on.

    ``static`` is the mean of the model's input embeddings, through mteb's evaluators; so are ``bm25`` and ``tfidf``
    where documents are searched, and ``tfidf`` of classes, clusters and translations. Of pairs the two are the rank
    correlation, or the average precision, of their similarity.
    """
    scores: dict[str, float] = {}
    if len(model.texts) > MOST_TEXTS:
        logger.warning("%s: of %s texts no words are counted", task.metadata.name, f"{len(model.texts):,}")
    elif isinstance(task, AbsTaskRetrieval):
        scores = {kind: score_task(WordSearch(kind), task).get_score() for kind in ("bm25", "tfidf")}
    elif isinstance(task, AbsTaskSTS):
        scores = _score_pairs(task, "score", lambda gold, value_N: correlate_ranks(value_N, gold))
    elif isinstance(task, AbsTaskPairClassification):
        scores = _score_pairs(task, task.label_column_name, average_precision_score)
    elif isinstance(task, AbsTaskClassification | AbsTaskClustering | AbsTaskBitextMining):
        scores = {"tfidf": score_task(WordModel(model.texts), task).get_score()}
    if can_bag(model.model):
        scores["static"] = score_task(BagModel(model.model), task).get_score()
    return {name: float(score) for name, score in scores.items() if not math.isnan(score)}


def _score_pairs(task: Any, gold: str, score: Callable[[Any, np.ndarray], float]) -> dict[str, float]:
    columns = getattr(task, "column_names", None) or (task.input1_column_name, task.input2_column_name)
    found: dict[str, list[float]] = {}
    for _, _, data in split_parts(task):
        rows = data[0] if len(data) == 1 else data  # as older tasks keep pairs
        first, second = (list(rows[name]) for name in columns)
        labels: Sequence[Any] = np.asarray(rows[gold])  # type: ignore[assignment]
        for name, value_N in score_pairs_words(first, second).items():
            found.setdefault(name, []).append(float(score(labels, value_N)))
    return {name: float(np.mean(values)) for name, values in found.items()}
