"""Tasks of mteb: by name, by set, by language; needs the extra ``sentences``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import mteb
from datasets.naming import camelcase_to_snakecase
from huggingface_hub import constants
from mteb.abstasks import AbsTask
from mteb.abstasks.aggregated_task import AbsTaskAggregate
from mteb.get_tasks import TASK_LIST

from turncoder.config import settings
from turncoder.errors import UserError
from turncoder.evaluate.sentencefiles import SentenceFile
from turncoder.prompts import read_instructions

__all__ = ["SETS", "check_prompts", "find_tasks", "is_here", "name_tasks", "split_parts", "weigh_task"]

SETS: dict[str, tuple[str, ...]] = {
    "smoke": ("STSBenchmark", "NFCorpus", "Banking77Classification"),
    "lite": (
        "ArguAna", "NFCorpus", "SciFact", "StackOverflowDupQuestions", "SciDocsRR", "BiorxivClusteringS2S",
        "MedrxivClusteringS2S", "TwentyNewsgroupsClustering", "SprintDuplicateQuestions", "Banking77Classification",
        "EmotionClassification", "MassiveIntentClassification", "STS17", "SICK-R", "STSBenchmark",
    ),
    "bg2vec": (
        "BulgarianStoreReviewSentimentClassfication", "LanguageClassification", "MultilingualSentimentClassification",
        "SIB200Classification", "SIB200ClusteringS2S", "BelebeleRetrieval", "WikipediaRetrievalMultilingual", "XNLI",
        "WikipediaRerankingMultilingual",
    ),
}  # fmt: skip
"""``lite`` are the 15 tasks on which LLM2Vec (arXiv 2404.05961) compares its variants; ``full`` and ``llm2vec`` are
read where they are kept. Tasks of `ENGLISH` are scored on its subsets and splits, the others in Bulgarian on test."""
ENGLISH = "MTEB(eng, v1)"
LANGUAGE_SETS = {"bul": "bg2vec"}
BY_LANGUAGE: tuple[Any, ...] = (
    "Retrieval",
    "Classification",
    "Clustering",
    "Reranking",
    "PairClassification",
    "STS",
    "BitextMining",
)
"""Types of task that a language alone stands for."""
PROSE_TEXTS = 4  # that stand for those of a task
COUNTED = ("text", "sentences", "sentence1", "sentence2", "anchor", "positive")


def find_tasks(names: tuple[str, ...], languages: tuple[str, ...]) -> list[AbsTask]:
    """Look tasks up.

    Parameters
    ----------
    names
        Names of mteb, and of sets.
    languages
        ISO 639-3 codes, or with a script (``bul-Cyrl``): of a task in many languages, those that are scored, also of
        one in a set, which has its own; without names all tasks in these languages, or the set that belongs to a
        language.

    Raises
    ------
    UserError
        No such task, set or language; or a task in none of these languages.
    """
    from mteb.languages.check_language_code import check_language_code

    for language in languages:
        try:
            check_language_code(language)
        except ValueError:
            raise UserError(f"languages = {language!r} is no ISO 639-3 code, such as bul or bul-Cyrl") from None
    tasks: dict[str, AbsTask] = {}
    for name in names or name_tasks(languages):
        for task in _unfold(name):
            tasks.setdefault(task.metadata.name, task)
    for name, task in tasks.items():
        if languages:
            try:
                task.filter_languages(list(languages))
            except ValueError:
                known = ", ".join(task.metadata.languages)
                raise UserError(f"languages = {list(languages)}: {name} has none of them, but {known}") from None
    return list(tasks.values())


def name_tasks(languages: tuple[str, ...]) -> tuple[str, ...]:
    """Name what languages alone stand for: the sets that belong to them, or all tasks in one of them."""
    sets = tuple(LANGUAGE_SETS[one] for one in languages if one in LANGUAGE_SETS)
    if len(sets) == len(languages):
        return sets
    found = mteb.get_tasks(languages=list(languages), task_types=list(BY_LANGUAGE), modalities=["text"])
    whole = [task for task in found if not isinstance(task, AbsTaskAggregate) and task.metadata.modalities == ["text"]]
    return tuple(task.metadata.name for task in whole)


def check_prompts(name: str, prompts: dict[str, Any], others: Iterable[str]) -> None:
    """Refuse prompts for what is no task or type of task of mteb, nor one of the other tasks; raises UserError."""
    types = {task.metadata.type for task in TASK_LIST}
    known = [*_list_names(), *sorted(types), *others]
    for key in prompts:
        if key not in known:
            near = settings.nearest(key, known, most=3) or f"; types are {', '.join(BY_LANGUAGE)} and others"
            raise UserError(
                f"prompt_file = {name!r}: {key!r} is no task of mteb, no type of task and no file asked for{near}"
            )


def _unfold(name: str) -> list[AbsTask]:
    """Give the tasks that a name stands for; a task made of others is these."""
    if name in (*SETS, "full", "llm2vec"):
        english = {task.metadata.name: task for whole in mteb.get_benchmark(ENGLISH).tasks for task in _split(whole)}
        chosen = english if name == "full" else SETS.get(name) or read_instructions()
        tasks = [_copy(english[one]) if one in english else _take_bulgarian(one) for one in chosen]
    elif name in _list_names():
        tasks = [mteb.get_task(name)]
    else:
        sets = [*SETS, "full", "llm2vec"]
        near = settings.nearest(name, [*_list_names(), *sets]) or f"; the sets are {', '.join(sets)}"
        raise UserError(f"tasks = {name!r} is no task of mteb{near}")
    if seen := next((task for task in tasks if task.metadata.modalities != ["text"]), None):
        raise UserError(f"tasks = {name!r} is not of texts alone but of {', '.join(seen.metadata.modalities)}")
    return [part for task in tasks for part in _split(task)]


def _split(task: AbsTask) -> list[AbsTask]:
    return task.metadata.tasks if isinstance(task, AbsTaskAggregate) else [task]


def _copy(task: AbsTask) -> AbsTask:
    """Make the task of a set anew: mteb keeps that one, which other languages and seeds would change."""
    return mteb.get_task(task.metadata.name, eval_splits=task.eval_splits, hf_subsets=task.hf_subsets)


def _take_bulgarian(name: str) -> AbsTask:
    return mteb.get_task(name, languages=["bul"], eval_splits=["test"])


@cache
def _list_names() -> tuple[str, ...]:
    return tuple(task.metadata.name for task in TASK_LIST)


def is_here(task: AbsTask) -> bool:
    """Tell whether a task's data lie on this machine: a folder, or in the caches of ``datasets`` and the hub."""
    path = task.metadata.dataset["path"]
    *owner, name = path.split("/")
    kept = Path(datasets.config.HF_DATASETS_CACHE) / "___".join([*owner, camelcase_to_snakecase(name)])
    fetched = Path(constants.HF_HUB_CACHE) / f"datasets--{path.replace('/', '--')}" / "snapshots"
    return Path(path).exists() or kept.exists() or fetched.exists()


def split_parts(task: AbsTask) -> Iterator[tuple[str, str, Any]]:
    """Give split, subset and data of each part of a loaded task that is scored."""
    assert task.dataset is not None
    for split in task.eval_splits:
        for subset in task.hf_subsets:
            whole = task.dataset.get(subset, task.dataset if subset == "default" else None)
            if whole is not None and split in whole:
                yield split, subset, whole[split]


def weigh_task(task: AbsTask, file: SentenceFile | None) -> tuple[int, int, list[str]]:
    """Count texts and characters that a task has to be encoded, and give some texts; before its data are loaded.

    Of a task of mteb's what it publishes about its texts is counted, of some nothing; for them stands prose as long.
    """
    if file is not None:
        columns = [(name, values) for split in file.splits.values() for name, values in split.items()]
        texts = [one for name, values in columns if name in COUNTED for one in values]
        texts += [one for name, values in columns if name == "negatives" for row in values for one in row]
        return len(texts), sum(map(len, texts)), texts
    told = task.metadata.descriptive_stats or {}
    count = characters = 0
    for split in task.eval_splits:
        parts = told.get(split, {}).get("hf_subset_descriptive_stats", {"default": told.get(split, {})})
        for subset, facts in parts.items():
            if subset in task.hf_subsets or subset == "default":
                for one in facts.values():
                    if isinstance(one, dict) and one.get("total_text_length"):
                        characters += one["total_text_length"]
                        count += round(one["total_text_length"] / max(1, one["average_text_length"]))
    share = getattr(task, "max_fraction_of_documents_to_embed", None) or 1
    length = math.ceil(characters / max(1, count))
    prose = task.metadata.description
    texts = [(prose[turn:] + prose[:turn]) * math.ceil(length / max(1, len(prose))) for turn in range(PROSE_TEXTS)]
    return round(count * share), round(characters * share), [text[:length] for text in texts if text[:length]]
