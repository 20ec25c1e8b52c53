"""Scores of runs side by side: what was measured on the same data stands in one board, what was not never does.

The best of a measure is marked only where it is ahead of every other by more than the error of the difference.
"""

import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from turncoder.report.comparison import Difference
from turncoder.report.page import Cell, Table
from turncoder.report.runrows import HEADINGS, OVER_SEEDS, RunFiles, list_rows, tell_score

__all__ = ["Board", "Named", "Value", "build_models", "group_runs"]

SURE = 0.05
TWO_SIGMA = 1.96
LOWER = {"loss", "perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"}
UNRANKED = {"step", "seeds", "tokens", "seconds", "alignment", "uniformity", "other"}
"""Measures of which neither more nor less is better by itself: vectors that are all one are perfectly aligned."""
MEASURED_ON = (
    "text", "validation_text", "train_file", "validation_file", "dataset_name", "dataset_config_name", "text_column",
    "sts", "sts_file", "pairs", "words", "words_task", "validation_split_percentage", "max_eval_samples",
    "eval_documents", "max_seq_length", "mlm_probability", "mask_token_type", "data_collator_type",
)  # fmt: skip
"""Keys that, beside the fingerprint of the data, say what a training was measured on."""


@dataclass(frozen=True)
class Named:
    """A run and the name it has on a page."""

    name: str
    files: RunFiles

    @property
    def title(self) -> str:
        """The name, with the status of a run that is not done."""
        return self.name if self.files.status == "done" else f"{self.name} ({self.files.status})"


@dataclass(frozen=True)
class Value:
    """A score.

    Attributes
    ----------
    mean
        Of ``count`` seeds.
    spread
        The standard deviation over seeds, or, of one, the standard error; None where there is neither.
    count
        Seeds; of one, ``spread`` is a standard error.
    """

    mean: float
    spread: float | None = None
    count: int = 1

    def beyond(self, other: "Value") -> bool | None:
        """Tell whether the two differ by more than their error; None where that is not known."""
        if self.spread is None or other.spread is None:
            return None
        if self.count > 1 and other.count > 1:
            if not self.spread and not other.spread:  # no seed moves them: what is measured may still be few items
                return None
            from turncoder.evaluate.significance import compare_seeds

            first, second = ((one.mean, float(one.spread or 0), one.count) for one in (self, other))
            return compare_seeds(first, second) < SURE
        error = math.hypot(*(float(one.spread or 0) / math.sqrt(one.count) for one in (self, other)))
        return abs(self.mean - other.mean) > TWO_SIGMA * error


@dataclass
class Board:
    """Models by measures.

    Attributes
    ----------
    title
        What is measured, on what.
    values
        By model and measure.
    headings
        Of measures.
    turned
        Whether measures are rows, models columns.
    sure
        By measure and two models: whether a paired bootstrap tells them apart.
    task
        What its measures are of, where that is one task.
    forms
        How the numbers of a measure are written, and ranked, where that is not by its own name.
    runs
        Those of its models that are no baselines, where that is told.
    """

    title: str
    values: dict[tuple[str, str], Value] = field(default_factory=dict)
    headings: dict[str, str] = field(default_factory=dict)
    turned: bool = False
    sure: dict[tuple[str, str, str], bool] = field(default_factory=dict)
    forms: dict[str, str] = field(default_factory=dict)
    task: str = ""
    runs: list[str] = field(default_factory=list)

    @property
    def models(self) -> list[str]:
        """The models, in order."""
        return list(dict.fromkeys(model for model, _ in self.values))

    def judge(self, measure: str, one: Difference) -> None:
        """Note whether two models can be told apart: by the score that the board shows, in the direction it shows."""
        first, second = (self.values.get((model, measure)) for model in (one.first, one.second))
        if one.found is None or not one.judges or first is None or second is None:
            return
        sure = one.found["p"] < SURE and one.found["difference"] * (second.mean - first.mean) > 0
        self.sure[measure, one.first, one.second] = self.sure[measure, one.second, one.first] = sure

    def find_best(self, measure: str) -> str | None:
        """Find the model that is ahead of every other by more than the error; None where there is none."""
        form = self.forms.get(measure, measure)
        found = {
            model: value
            for (model, name), value in self.values.items()
            if name == measure and math.isfinite(value.mean)
        }
        if form in UNRANKED or len(found) < 2:
            return None
        sign = -1 if form in LOWER else 1
        best = max(found, key=lambda model: sign * found[model].mean)
        apart = (self._tell_apart(measure, best, model, found) for model in found if model != best)
        return best if all(apart) else None

    def _tell_apart(self, measure: str, first: str, second: str, found: Mapping[str, Value]) -> bool:
        """Whatever is known has to tell them apart: seeds, items, or both."""
        known = [found[first].beyond(found[second]), self.sure.get((measure, first, second))]
        said = [one for one in known if one is not None]
        if known[1] is not None and found[first].count == 1:  # paired is sharper than two standard errors
            return known[1]
        return bool(said) and all(said)

    def lay_out(self) -> Table:
        """Lay the board out as a table."""
        best = {measure: self.find_best(measure) for measure in self.headings}
        rows: list[list[Cell | str]] = []
        if self.turned:
            for measure, heading in self.headings.items():
                rows.append([heading, *(self._write(model, measure, best) for model in self.models)])
            return Table(self.title, ["task", *self.models], rows)
        for model in self.models:
            rows.append([model, *(self._write(model, measure, best) for measure in self.headings)])
        return Table(self.title, ["model", *self.headings.values()], rows)

    def _write(self, model: str, measure: str, best: Mapping[str, str | None]) -> Cell:
        value = self.values.get((model, measure))
        if value is None:
            return Cell("-")
        form = self.forms.get(measure, measure)
        mean = round(value.mean) if form in ("step", "tokens", "seeds") else value.mean
        return Cell(tell_score(form, mean, value.spread), best[measure] == model)

    @property
    def marks(self) -> bool:
        """Whether some best one is marked."""
        return any(self.find_best(measure) for measure in self.headings)


def group_runs(runs: Iterable[Named], key: Callable[[RunFiles], str | None] | None = None) -> list[list[Named]]:
    """Group runs that were measured on the same data; one that does not say on what stands alone."""
    groups: dict[str, list[Named]] = {}
    for number, run in enumerate(runs):
        found = (key or tell_data)(run.files)
        groups.setdefault(f"unknown {number}" if found is None else found, []).append(run)
    return list(groups.values())


def tell_data(files: RunFiles) -> str | None:
    """Say what a training, or a turn, was measured on; None where its record does not."""
    trained = files.inner.get("mntp", files)
    fingerprint = (trained.record.get("data") or {}).get("fingerprint")
    if fingerprint is None:
        return None
    keys: dict[str, Any] = {
        key: one.config.get(key) for one in (files, trained) for key in MEASURED_ON if key in one.config
    }
    if trained.stage == "mntp" and keys.get("data_collator_type") == "unmasked":
        keys["data_collator_type"] = "default"  # causal training is scored at the masks of bidirectional training
    counts = (trained.record.get("data") or {}).get("validation")
    return json.dumps([fingerprint, keys, counts], sort_keys=True, default=str)


def build_models(title: str, named: Mapping[str, Sequence[Named]], stage: str) -> Board:
    """Build the board of trainings, or of turns, that were measured on the same data.

    Parameters
    ----------
    title
        Of the board.
    named
        Runs that are the same but for their seeds, by the name of all of them.
    stage
        Of all of them.
    """
    board = Board(title)
    for name, runs in named.items():
        tables = [_list_turned(run.files) if stage == "turn" else list_rows(run.files) for run in runs]
        for model in dict.fromkeys(str(row["model"]) for rows in tables for row in rows):
            rows = [row for one in tables for row in one if row["model"] == model]
            told = model if len(named) == 1 else f"{name}: {model}"
            for key in rows[0]:
                values = [row[key] for row in rows if _is_number(row.get(key))]
                if len(values) == len(rows):
                    board.values[told, key] = _gather(values, rows[0], key)
        if not any(tables):
            board.values[f"{name}: no evaluation yet" if len(named) > 1 else "no evaluation yet", ""] = Value(math.nan)
    _name_measures(board)
    for model, others in list(_find_same(board).items()):  # the untrained model is that of all runs
        for other in others:
            board.values = {key: value for key, value in board.values.items() if key[0] != other}
        board.values = {
            (model.rpartition(": ")[2] if key[0] == model else key[0], key[1]): value
            for key, value in board.values.items()
        }
    return board


def _gather(values: list[float], row: Mapping[str, Any], key: str) -> Value:
    """Give the mean over runs; of one run what it says itself of its error."""
    if len(values) > 1:
        return Value(statistics.fmean(values), statistics.stdev(values), len(values))
    spread = row.get("std", {}).get(key)
    return Value(float(values[0]), spread, int(row.get("counts", {}).get(key, 1)))


def _find_same(board: Board) -> dict[str, list[str]]:
    """Find rows of untrained models that are the same in several runs."""
    rows = {model: {key: value for (one, key), value in board.values.items() if one == model} for model in board.models}
    found: dict[str, list[str]] = {}
    for first, second in combinations(rows, 2):
        same = rows[first] == rows[second] and first.rpartition(": ")[2] == second.rpartition(": ")[2]
        if same and rows[first] and not any(second in others for others in found.values()):
            found.setdefault(first, []).append(second)
    return found


def _name_measures(board: Board) -> None:
    names = {measure for _, measure in board.values if measure}
    for name in [name for name in HEADINGS if name in names] + sorted(names - set(HEADINGS)):
        board.headings[name] = HEADINGS.get(
            name, f"{name.removeprefix('words/')} %" if name.startswith("words/") else name
        )
        if name.startswith("words/"):
            board.forms[name] = OVER_SEEDS[0]


def _list_turned(files: RunFiles) -> list[dict[str, Any]]:
    """List the rungs of a turn with the labels of words that were read from them, and the errors that are known."""
    rows = []
    whole = {row["name"]: row for row in files.results.get("rows", [])}
    for row in list_rows(files):
        more = whole.get(row["model"], {})
        told = {key: value for key, value in more.items() if key.startswith("words/") or key == "pairs_mrr@10"}
        std: dict[str, float] = {}
        counts: dict[str, int] = {}
        for column, one in more.get("probes", {}).items():
            std[f"words/{column}"], counts[f"words/{column}"] = one["std"], one["seeds"]
        if len(ranks := more.get("ranks") or []) > 1:
            found = [1 / rank if rank <= 10 else 0.0 for rank in ranks]
            std["mrr@10"] = statistics.stdev(found) / math.sqrt(len(found))
        rows.append({**row, **told, "std": std, "counts": counts})
    return rows


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
