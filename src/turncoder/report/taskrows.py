"""What stages on tasks leave in their results, as rows of a table: word labels, GLUE, lm-eval, MTEB."""

from typing import Any

__all__ = ["BASELINES", "GLUE_SCORES", "TAKES", "WORD_SCORES"]

WORD_SCORES = ("token_accuracy", "macro_f1", "weighted_f1", "span_precision", "span_recall", "span_f1")
GLUE_SCORES = {
    "accuracy": "class_accuracy", "f1": "f1", "matthews": "matthews", "spearman": "spearman", "pearson": "pearson",
}  # fmt: skip
"""Metrics of ``evaluate glue``, and what they are called here: ``accuracy`` is that of masked tokens."""

BASELINES = {"bm25": "BM25", "tfidf": "TF-IDF", "static": "static"}
"""What stands beside the scores of ``evaluate sentences``: two that count words, and the bag of input embeddings."""


def _take_words(results: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "model": f"{results.get('train_mode', '')} {task}".strip(),
            "task": task,
            "seeds": len(found["seeds"]),
            **{name: found["mean"].get(name) for name in WORD_SCORES},
            "std": {name: found["std"].get(name) for name in WORD_SCORES},
            "test_file": results.get("test_file"),
            **{name: found.get(name) for name in ("words_scored", "words_in_file")},
        }
        for task, found in results["tasks"].items()
    ]


def _take_glue(results: dict[str, Any]) -> list[dict[str, Any]]:
    rows = [
        {
            "model": f"{results.get('train_mode', '')} {task}".strip(),
            "seeds": len(found["seeds"]),
            **{name: found["mean"].get(metric) for metric, name in GLUE_SCORES.items()},
            "std": {name: found["std"].get(metric) for metric, name in GLUE_SCORES.items()},
            "test_file": found["test_file"],
            "rows": found.get("rows"),
        }
        for task, found in results["tasks"].items()
    ]
    average = results.get("average")  # a run of one seed on one task has none
    if len(rows) > 1 and average:
        told = {"average": average["mean"], "std": {"average": average["std"]}}
        rows.append({"model": f"{results['train_mode']} average", "seeds": rows[0]["seeds"], **told})
    return rows


def _take_language(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Take the scores of each task; a group without scores has those of its parts."""
    found: dict[str, Any] = {}
    for task, told in results["tasks"].items():
        found |= {task: told} if told["metrics"] else told["parts"]
    # A metric that has the name of one of ours need not be in the same unit.
    ours = {*WORD_SCORES, *GLUE_SCORES, *GLUE_SCORES.values(), "average"}
    names = {name: f"lm-eval's {name}" if name in ours else name for told in found.values() for name in told["metrics"]}
    return [
        {
            "model": task,
            **{names[name]: value for name, value in told["metrics"].items()},
            "std": {names[name]: told["stderr"].get(name) for name in told["metrics"]},
            "texts": told.get("texts"),
        }
        for task, told in found.items()
    ]


def _take_sentences(results: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "model": f"{task} ({told['main_metric']})",
            "scored": {
                "task": task,
                "type": told.get("type"),
                "metric": told["main_metric"],
                **(told.get("data") or {}),
            },
            "main_score": told["main_score"],
            **{name: told.get(name) for name in ("texts", "prompts")},
            **{name: (told.get("baselines") or {}).get(name) for name in BASELINES},
        }
        for task, told in results["tasks"].items()
    ]


TAKES = {"words": _take_words, "glue": _take_glue, "language": _take_language, "sentences": _take_sentences}
"""How the results of a stage on tasks become rows."""
