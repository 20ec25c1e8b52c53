"""A causal language model on tasks of EleutherAI's LM Evaluation Harness (lm-eval), and on files as such tasks."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import sys
import time
from dataclasses import dataclass, replace
from functools import cache
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from rich.console import Console
from rich.table import Table
from transformers import set_seed

from turncoder.config import settings
from turncoder.config.language import LanguageConfig
from turncoder.disk import write_atomically
from turncoder.errors import UserError, first_line
from turncoder.evaluate.taskfiles import TaskFile, open_task_file
from turncoder.evaluate.taskruns import hushed, keep_files, open_scores, read_done, score_tasks
from turncoder.model.backbone import describe_model, digest_module
from turncoder.model.source import read_json
from turncoder.progress import open_bar
from turncoder.train.running import Run, read_earlier
from turncoder.train.stage import perform

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

    from turncoder.evaluate.harness import CausalModel

__all__ = ["HEADLESS", "digest_language", "evaluate_language", "open_results", "prepare", "show"]

logger = logging.getLogger("turncoder")

HEADLESS = ("lambada_openai", "boolq", "crows_pairs_english", "race", "sciq", "pubmedqa", "qasper_bool")
"""The zero-shot tasks of Godey et al. 2024 (arXiv 2309.08351) by lm-eval's names; it does not say which part of QASPER,
but its F1 of 66 is out of reach of free answers."""
BOOTSTRAPS = 1000
"""Draws for the standard error of a metric that has no formula: it is then right to about 2 %."""


@dataclass(frozen=True)
class Asked:
    """What is to be scored: lm-eval's tasks and groups by ``names``, and files by the names of their tasks."""

    names: list[str]
    files: dict[str, TaskFile]
    manager: TaskManager

    def list_missing(self, done: dict[str, Any]) -> list[str]:
        """List the tasks that have no score, or one of a file that has changed."""
        now = {name: file.fingerprint for name, file in self.files.items()}
        same = [name for name, told in done.items() if name not in now or told.get("fingerprint") == now[name]]
        return [name for name in (*self.files, *self.names) if name not in same]

    def load(self, wanted: list[str]) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
        """Load tasks and their data: what lm-eval scores, and why others could not be loaded."""
        loaded: dict[str, dict[str, Any]] = {}
        failed: dict[str, str] = {}
        for name in wanted:
            try:
                with hushed():
                    spec = self.files[name].configure() if name in self.files else name
                    loaded[name] = dict(self.manager.load(spec))
                if any(getattr(task, "UNSAFE_CODE", False) for task in loaded[name]["tasks"].values()):
                    del loaded[name]
                    failed[name] = "it runs code that the model writes"
            except Exception as error:  # whatever the code of many authors, and the hub, may raise
                failed[name] = first_line(error)
        return loaded, failed


def evaluate_language(config: LanguageConfig) -> Path:
    """Score a language model; what the folder has already is not scored again.

    Parameters
    ----------
    config
        See `turncoder.config.language.LanguageConfig`.

    Returns
    -------
    Path
        The run folder: ``results.json`` with every metric and its standard error, as lm-eval gives them, and
        ``lm_eval/TASK.json``, lm-eval's own account.

    Raises
    ------
    UserError
        No such task, file or model; a model that is no causal language model; other settings than those of the scores
        that the folder holds; or, after the other tasks have been scored, tasks whose data could not be had.
    """
    if PartialState().num_processes > 1:
        raise UserError("evaluate language runs in one process; start it without torchrun or accelerate launch")
    asked, done, whole = prepare(config)
    return perform(whole, "language", lambda config, run: _evaluate(config, run, asked, done))


def prepare(config: LanguageConfig) -> tuple[Asked, dict[str, Any], LanguageConfig]:
    """Look at tasks and folder, write nothing; also give what the folder has, and a config that asks for that, too."""
    asked = _read_asked(config)
    earlier = read_earlier(config, "language") if config.output_dir or not config.dry_run else None
    if earlier is None:
        return asked, {}, config
    before, done = earlier["config"], read_done(Path(str(config.output_dir)))
    manager = _open_manager(bool(before["tasks"]))
    files = keep_files(before["task_file"], done, asked.files)
    tasks = [name for name in before["tasks"] if set(_unfold(manager, name)) & set(done)]
    named, given = (tuple(dict.fromkeys(one)) for one in ((*config.tasks, *tasks), (*config.task_file, *files)))
    return asked, done, replace(config, tasks=named, task_file=given)


def _evaluate(config: LanguageConfig, run: Run, asked: Asked, done: dict[str, Any]) -> None:
    started = time.perf_counter()
    from turncoder.evaluate.harness import open_model

    missing = asked.list_missing(done)
    if not missing:
        logger.warning("%s has all these scores already; --overwrite starts anew", run.folder)
        return
    loaded, failed = asked.load(missing)
    if not loaded:
        reasons = "; ".join(f"{name} ({why})" for name, why in failed.items())
        raise UserError(f"tasks: none of them can be loaded: {reasons}")
    for name, why in failed.items():
        logger.warning("%s cannot be loaded, and is left out: %s", name, why)
    model = open_model(config)
    results = open_results(config, run.folder, model)

    def score(name: str) -> dict[str, Any]:
        found, file = _score(config, model, name, loaded[name]), asked.files.get(name)
        (run.folder / "lm_eval").mkdir(exist_ok=True)
        text = json.dumps(found, indent=1, ensure_ascii=False, default=str)
        write_atomically(run.folder / "lm_eval" / f"{name.replace('/', '_')}.json", text + "\n")
        told = {**_take(found, name), "lm_eval": importlib.metadata.version("lm_eval")}
        return told if file is None else told | {"file": str(file.path), "fingerprint": file.fingerprint}

    score_tasks(run, results, loaded, score, summarise=itemgetter("metrics"), failed=failed, started=started)


@cache
def _open_manager(everything: bool) -> TaskManager:
    """Open lm-eval, with its tasks or with none; reading their 14,000 names takes seconds."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        missing = str(error.name).partition(".")[0]
        raise UserError(f"evaluate language needs {missing}: pip install 'turncoder[language]'") from error
    with hushed():
        return TaskManager(include_defaults=everything)


def _read_asked(config: LanguageConfig) -> Asked:
    """Read the files, and look the names up, tags and sets unfolded; raises UserError."""
    manager = _open_manager(bool(config.tasks))
    files = [open_task_file(spec) for spec in config.task_file]
    names: list[str] = []
    known = [*manager.all_tasks, "headless"]
    for name in config.tasks:
        if name not in known:
            near = settings.nearest(name, known) or "; `lm_eval ls tasks` lists them"
            raise UserError(f"tasks = {name!r} is no task of lm-eval{near}")
        names += _unfold(manager, name)
    names = [*dict.fromkeys(names)]  # a tag or a set may hold what another has, or what is named too
    everything = [*(file.name for file in files), *names]
    for name in everything:
        if everything.count(name) > 1:
            raise UserError(f"{name} is asked for twice: name it once, or give one of the files another name")
    return Asked(names, {file.name: file for file in files}, manager)


def _unfold(manager: TaskManager, name: str) -> list[str]:
    """List the tasks that a name stands for."""
    if name == "headless":
        return list(HEADLESS)
    return sorted(manager.task_index[name].tags) if name in manager.all_tags else [name]


def open_results(config: LanguageConfig, folder: Path | None, opened: CausalModel) -> dict[str, Any]:
    """Open what the folder has of this model."""
    name, parameters = str(config.model_name_or_path), opened.model.num_parameters()
    return open_scores(folder, name, fingerprint=digest_language(opened), parameters=parameters, library="lm_eval")


def digest_language(opened: CausalModel) -> str:
    """Hash all that a language model computes depends on: settings, weights, and what completes a headless one."""
    prior = opened.prior
    return digest_module(opened.model, [*describe_model(opened.model), prior and prior.describe()])


def _score(config: LanguageConfig, model: CausalModel, name: str, tasks: dict[str, Any]) -> dict[str, Any]:
    """Score one task, or group, as lm-eval does; what it gives does not depend on the tasks before."""
    import lm_eval

    for task in tasks["tasks"].values():
        own = task.get_config("num_fewshot")
        if own != 0:  # which a task may insist on
            task.set_config("num_fewshot", own or 0 if config.num_fewshot is None else config.num_fewshot)
        task.set_fewshot_seed(config.seed)
    set_seed(config.seed)
    model.cut = 0
    bar = open_bar()
    bar.console.file = sys.stderr  # as it is now, and not hushed
    with bar:
        shown = bar.add_task(name, total=None, speed="")
        model.advance = lambda rows: bar.update(shown, advance=rows, speed=f"{bar.tasks[shown].completed:,.0f} texts")
        with hushed():
            found = lm_eval.evaluate(
                model, tasks, limit=config.limit, bootstrap_iters=BOOTSTRAPS, log_samples=False, verbosity=None
            )
    if model.cut:
        logger.warning(
            "%s: %d times the beginning of a context was cut off; the model reads %d tokens",
            name,
            model.cut,
            model.max_length,
        )
    return found


def _take(found: dict[str, Any], name: str) -> dict[str, Any]:
    """Take metrics and standard errors out of lm-eval's account: of the task itself, and of the parts of a group."""
    told = {task: _take_one(found, task) for task in found["results"]}
    own = told.pop(name, {"metrics": {}, "stderr": {}})
    return {**own, "parts": told} if told else own


def _take_one(found: dict[str, Any], task: str) -> dict[str, Any]:
    metrics: dict[str, float] = {}
    errors: dict[str, float | None] = {}
    for key, value in found["results"][task].items():
        metric, comma, how = key.partition(",")
        if not comma:
            continue
        into: dict[str, Any] = errors if metric.endswith("_stderr") else metrics
        into[metric.removesuffix("_stderr") + ("" if how == "none" else f",{how}")] = (
            None if value == "N/A" else float(value)
        )
    told = {"metrics": metrics, "stderr": errors, "num_fewshot": found["n-shot"].get(task)}
    samples = found["n-samples"].get(task, {})
    return {**told, "texts": samples.get("effective"), "version": found["versions"].get(task)}


def show(folder: Path, console: Console) -> None:
    """Print the scores of a run folder, a row for each metric."""
    table = Table()
    for title in ("task", "metric", "score", "±", "texts"):
        table.add_column(title, justify="left" if title in ("task", "metric") else "right", overflow="fold")
    for task, told in read_json(folder / "results.json")["tasks"].items():
        for name, one in ({task: told} if told["metrics"] else told["parts"]).items():
            for number, (metric, value) in enumerate(one["metrics"].items()):
                error = one["stderr"].get(metric)
                texts = "" if one["texts"] is None or number else f"{one['texts']:,}"
                shown = "" if error is None else f"{error:.3g}"
                table.add_row("" if number else name, metric, f"{value:.5g}", shown, texts)
    console.print(table)
