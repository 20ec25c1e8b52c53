"""Files as tasks of mteb; needs the extra ``sentences``."""

from __future__ import annotations

from collections import Counter
from typing import Any

from datasets import Dataset, DatasetDict
from mteb.abstasks import (
    AbsTask,
    AbsTaskBitextMining,
    AbsTaskClassification,
    AbsTaskClustering,
    AbsTaskPairClassification,
    AbsTaskRetrieval,
    AbsTaskSTS,
)
from mteb.abstasks.task_metadata import TaskMetadata
from sklearn.model_selection import KFold

from turncoder.errors import UserError
from turncoder.evaluate.sentencefiles import SentenceFile

__all__ = ["make_task"]

MOST_CLUSTERED = 16384  # mteb's own


def make_task(file: SentenceFile, seed: int) -> AbsTask:
    """Make a task of mteb of a file, which mteb scores as its own of that type; raises UserError where it could not."""
    kinds: dict[str, tuple[type[AbsTask], Any, str]] = {
        "sts": (AbsTaskSTS, "STS", "cosine_spearman"),
        "retrieval": (AbsTaskRetrieval, "Retrieval", "ndcg_at_10"),
        "classification": (AbsTaskClassification, "Classification", "accuracy"),
        "clustering": (AbsTaskClustering, "Clustering", "v_measure"),
        "pair_classification": (AbsTaskPairClassification, "PairClassification", "max_ap"),
        "bitext": (AbsTaskBitextMining, "BitextMining", "f1"),
        "triplets": (AbsTaskRetrieval, "Reranking", "accuracy"),
    }
    base, kind, score = kinds[file.kind]
    split = "train" if set(file.splits) == {"train"} else "test"
    described = TaskMetadata(
        dataset={"path": file.place, "revision": file.fingerprint[:12]},
        name=file.name,
        description=f"{file.kind} of {file.place}",
        type=kind,
        category="t2t",
        eval_splits=[split],
        eval_langs=["und-Zyyy"],
        main_score=score,
    )

    class Given(base):  # type: ignore[misc, valid-type]
        """A task whose data are there already."""

        metadata = described
        data_loaded: bool = False
        dataset: Any = None

        def load_data(self, *_: Any, **__: Any) -> None:
            self.dataset = self.dataset if self.data_loaded else _hold(file)
            self.data_loaded = True

    task: Any = Given(seed=seed)
    if file.kind == "classification" and split == "train":
        task.is_cross_validation = True
        _check_folds(file, task)
    if file.kind == "clustering":
        task.max_fraction_of_documents_to_embed = None
        task.max_documents_per_cluster = min(MOST_CLUSTERED, len(file.splits["test"]["labels"]))
    return task


def _check_folds(file: SentenceFile, task: Any) -> None:
    """Refuse a file of which some fold would leave a single label to train on."""
    labels = file.splits["train"]["label"]
    folds = KFold(task.n_splits, shuffle=True, random_state=task.seed).split(labels)
    trained = [rows for rows, _ in folds]
    if any(len({labels[row] for row in rows[: len(trained[0])]}) < 2 for rows in trained):  # as many as mteb takes
        label, count = Counter(labels).most_common()[1]
        raise UserError(
            f"task_file = 'classification={file.place}': label {label!r} has {count} row{'s' * (count > 1)}, and of "
            f"{task.n_splits} parts that are scored in turn one would leave none to train on; add rows of it, or give "
            "TRAIN,TEST"
        )


def _hold(file: SentenceFile) -> Any:
    if file.kind == "retrieval":
        corpus, queries, qrels = (file.splits[name] for name in ("corpus", "queries", "qrels"))
        return _hold_search(corpus, queries, qrels)
    if file.kind == "triplets":
        return _hold_triplets(file.splits["test"])
    columns = {name: dict(split) for name, split in file.splits.items()}
    if file.kind == "classification":  # mteb wants numbers
        names = sorted({label for split in columns.values() for label in split["label"]})
        place = {name: number for number, name in enumerate(names)}
        for split in columns.values():
            split["label"] = [place[label] for label in split["label"]]
    return DatasetDict({name: Dataset.from_dict(split) for name, split in columns.items()})


def _hold_search(corpus: Any, queries: Any, qrels: Any, top_ranked: dict[str, list[str]] | None = None) -> Any:
    relevant: dict[str, dict[str, int]] = {}
    for query, document, score in zip(*qrels.values(), strict=True):
        relevant.setdefault(query, {})[document] = score
    held = {"corpus": Dataset.from_dict(corpus), "queries": Dataset.from_dict(queries)}
    return {"default": {"test": {**held, "relevant_docs": relevant, "top_ranked": top_ranked}}}


def _hold_triplets(columns: dict[str, list[Any]]) -> Any:
    """Let mteb rank the positive among the negatives of its anchor: recall at 1 is the share of right triplets.

    Ties go to a negative, as the evaluation ranks them by their names, the last first.
    """
    corpus: dict[str, list[str]] = {"id": [], "title": [], "text": []}
    anchors = [f"{row}" for row in range(len(columns["anchor"]))]
    ranked: dict[str, list[str]] = {}
    for anchor, positive, negatives in zip(anchors, columns["positive"], columns["negatives"], strict=True):
        ranked[anchor] = [f"a{anchor}", *(f"b{anchor}.{number}" for number in range(len(negatives)))]
        for name, text in zip(ranked[anchor], (positive, *negatives), strict=True):
            for column, value in zip(corpus, (name, "", text), strict=True):
                corpus[column].append(value)
    qrels = {"query": anchors, "document": [f"a{anchor}" for anchor in anchors], "score": [1] * len(anchors)}
    return _hold_search(corpus, {"id": anchors, "text": columns["anchor"]}, qrels, ranked)
