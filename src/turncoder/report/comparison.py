"""How sure the differences between runs are: paired where two of them scored the same items, by seeds elsewhere."""

import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from turncoder.errors import UserError
from turncoder.report.runrows import SCORES, RunFiles

__all__ = ["Difference", "compare_rungs", "compare_runs", "find_predictions"]

FOLLOWED = {"spearman": "cosine_spearman", "average_precision": "cosine_ap"}
"""Measures of pairs, as mteb calls them."""
NEAR = 0.001  # items are rounded, and folds need not be of one size


@dataclass(frozen=True)
class Difference:
    """Second minus first on a task.

    Attributes
    ----------
    task, metric
        What was scored, and the key of the score.
    told
        The metric as a table names it.
    first, second
        Names of what is compared.
    found
        As `turncoder.evaluate.significance.bootstrap` gives it; None where they cannot be compared.
    scale
        What the numbers are shown times: 100 for percent.
    why
        Why not.
    judges
        Whether what is compared is the score of the table.
    """

    task: str
    metric: str
    told: str
    first: str
    second: str
    found: dict[str, float] | None = None
    scale: int = 1
    why: str = ""
    judges: bool = True

    def tell(self) -> str:
        """Say it in one line."""
        if self.found is None:
            return f"{self.task}: not compared, {self.why}"
        difference, low, high = (self.write(name) for name in ("difference", "low", "high"))
        told = f"{self.task}, {self.told}: " if self.task else f"{self.told}: "
        return f"{told}{difference} (95 %: {low} to {high}), p = {self.found['p']:.3f}"

    def write(self, name: str) -> str:
        """Write the difference, or an end of its interval, as scores are written."""
        assert self.found is not None
        return f"{self.scale * self.found[name]:+.{2 if self.scale == 100 else 3}f}"


def compare_runs(
    first: RunFiles, second: RunFiles, names: tuple[str, str] = ("", ""), task: str | None = None
) -> Iterator[Difference]:
    """Compare two runs on each task whose items both scored, by a paired bootstrap.

    Parameters
    ----------
    first, second
        On words (the predictions of the best seed of each), on tasks of MTEB, or turns, whose rungs of one name are
        compared.
    names
        Of the two.
    task
        The only one that is compared; None is all of them.

    Raises
    ------
    UserError
        A file of predictions or items is broken.
    """
    if first.stage != second.stage:
        return
    if first.stage == "words":
        yield from _compare_words(first, second, names, task)
    elif first.stage == "sentences":
        yield from _compare_items(first, second, names, task)
    elif first.stage == "turn":
        for rung, (one, other) in _match_rungs(first, second).items():
            yield _compare_ranks([one["ranks"]], [other["ranks"]], names[0], names[1], rung)


def _compare_words(first: RunFiles, second: RunFiles, names: tuple[str, str], only: str | None) -> Iterator[Difference]:
    from turncoder.evaluate.significance import Metric, bootstrap
    from turncoder.evaluate.wordfiles import read_predictions

    for task, told in first.results.get("tasks", {}).items():
        paths = [find_predictions(run, task) for run in (first, second)]
        if only not in (None, task) or paths[0] is None or paths[1] is None:
            continue
        metric: Metric = "token_accuracy" if told["mean"].get("span_f1") is None else "span_f1"
        (*file, one), (*other_file, other) = (read_predictions(path) for path in paths if path is not None)
        if file != other_file:
            why = "the words or gold labels of the test files differ"
            yield Difference(task, metric, SCORES[metric], *names, why=why)
            continue
        found = bootstrap(file[1], one, other, metric=metric)
        yield Difference(task, metric, SCORES[metric], *names, found=found, scale=100)


def find_predictions(run: RunFiles, task: str) -> Path | None:
    """Find the predictions that a run on words left for a task; None where there are none."""
    tasks = run.results.get("tasks", {})
    if task not in tasks:
        return None
    path = (run.folder if len(tasks) == 1 else run.folder / task.replace("/", "_")) / "predictions.tsv"
    return path if path.exists() else None


def _compare_items(first: RunFiles, second: RunFiles, names: tuple[str, str], only: str | None) -> Iterator[Difference]:
    from turncoder.evaluate.significance import Follows, bootstrap_items

    for task, told in first.results.get("tasks", {}).items():
        one, other = _read_items(first, task), _read_items(second, task)
        if only not in (None, task) or one is None or other is None:
            continue
        main = str(told["main_metric"])
        common: dict[str, Any] = {"task": task, "metric": main, "first": names[0], "second": names[1]}
        if (one.names, one.parts, one.gold) != (other.names, other.parts, other.gold):
            yield Difference(**common, told=main, why="the items differ")
            continue
        if any(map(math.isnan, one.scores + other.scores)):
            yield Difference(**common, told=main, why="an item has no score")
            continue
        kind: Follows = "average_precision" if told.get("type") == "PairClassification" else "spearman"
        name = one.metric if one.gold is None else FOLLOWED[kind]
        found = bootstrap_items(one.scores, other.scores, gold=one.gold, follows=kind, parts=one.parts)
        shown = {side: run.results["tasks"][task]["main_score"] for side, run in (("first", first), ("second", second))}
        near = all(score is not None and abs(score - found[side]) < NEAR for side, score in shown.items())
        # max_ap is that of the best of several similarities, which often is not the cosine
        judges = near and main in (name, name.replace("cosine_ap", "max_ap"))
        note = main if judges else f"{name} of the items, not the {main} of the table"
        yield Difference(**common, told=note, found=found, judges=judges)


@dataclass(frozen=True)
class _Items:
    """Scores of single queries, pairs or texts, in the order of their parts and names; ``gold`` is people's, of pairs.

    ``metric`` is whose mean over the parts is compared, where there is no ``gold``.
    """

    metric: str
    parts: list[str]
    names: list[str]
    scores: list[float]
    gold: list[float] | None


def _read_items(run: RunFiles, task: str) -> _Items | None:
    """Read the scores of a task's items in all its parts; None where there are none."""
    path = run.folder / "items" / f"{task.replace('/', '_')}.json"
    if task not in run.results.get("tasks", {}) or not path.exists():
        return None
    try:
        kept = json.loads(path.read_text(encoding="utf8"))
        rows = sorted(row for name, part in kept["parts"].items() for row in _list_items(name, part))
        metric = str(kept["metric"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is broken ({type(error).__name__}: {error}); evaluate again") from None
    if not rows:
        return None
    parts, names, scores, gold = (list(column) for column in zip(*rows, strict=True))
    return _Items(metric, parts, names, scores, None if math.isnan(gold[0]) else gold)


def _list_items(name: str, part: dict[str, list[Any]]) -> Iterator[tuple[str, str, float, float]]:
    """List the items of a part: part, name, score, and what people say, or not a number."""
    scores = part["cosine"] if "gold" in part else part["score"]
    gold = part.get("gold", [math.nan] * len(scores))
    ids = part.get("id", [f"{number:09d}" for number in range(len(scores))])
    for one, score, right in zip(ids, scores, gold, strict=True):
        yield name, str(one), math.nan if score is None else float(score), float(right)


def compare_rungs(runs: Sequence[RunFiles], first: str, second: str) -> Difference | None:
    """Compare what two rungs of a turn found of the documents; None where one of them was not measured on them.

    Of several turns, which differ in their seeds alone, each document counts with its mean over seeds.
    """
    rows = [{row["name"]: row for row in run.results.get("rows", [])} for run in runs]
    ranks = [[one.get(name, {}).get("ranks") or [] for one in rows] for name in (first, second)]
    if len({len(one) for side in ranks for one in side}) > 1 or not ranks[0][0]:
        return None
    found = _compare_ranks(ranks[0], ranks[1], first, second)
    return replace(found, told=f"{found.told} (mean of {len(runs)} seeds)") if len(runs) > 1 else found


def _match_rungs(first: RunFiles, second: RunFiles) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Match the rungs of two turns that were measured on the same documents, which word counts rank alike."""
    rows = [{row["name"]: row for row in run.results.get("rows", []) if row.get("ranks")} for run in (first, second)]
    counts = [[row["ranks"] for row in one.values() if "model" not in row] for one in rows]
    if counts[0] != counts[1] or not counts[0]:
        return {}
    return {name: (row, rows[1][name]) for name, row in rows[0].items() if "model" in row and name in rows[1]}


def _compare_ranks(
    one: Sequence[Sequence[int]], other: Sequence[Sequence[int]], first: str, second: str, task: str = ""
) -> Difference:
    """Compare two rungs by the ranks of their documents, one list for each seed."""
    from turncoder.evaluate.significance import bootstrap_items

    gains = [
        [statistics.fmean(1 / rank if rank <= 10 else 0.0 for rank in ranks) for ranks in zip(*side, strict=True)]
        for side in (one, other)
    ]
    return Difference(task, "mrr@10", SCORES["mrr@10"], first, second, found=bootstrap_items(*gains))
