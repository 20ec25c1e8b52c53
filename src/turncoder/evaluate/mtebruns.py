"""Sentence vectors on tasks of mteb, and on files as such tasks."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from rich.console import Console
from rich.table import Table

from turncoder.config.sentences import SentencesConfig
from turncoder.config.stages import to_toml
from turncoder.encode.encoder import open_encoder
from turncoder.encode.workers import digest_encoder
from turncoder.errors import UserError, first_line
from turncoder.evaluate.sentencefiles import SentenceFile, open_sentence_file
from turncoder.evaluate.taskruns import list_names, open_scores, score_tasks
from turncoder.model.source import read_json
from turncoder.plan import Plan, tell_time
from turncoder.progress import open_bar
from turncoder.prompts import read_prompt_file
from turncoder.report.taskrows import BASELINES
from turncoder.samples import show_text
from turncoder.train.running import Run, write_atomically
from turncoder.train.stage import perform

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

    from turncoder.evaluate.mtebmodel import EncoderModel

__all__ = ["evaluate_sentences", "plan_sentences", "show"]

logger = logging.getLogger("turncoder")

WARM_UP_TEXTS = 64


@dataclass(frozen=True)
class Asked:
    """What is to be scored: tasks of mteb, those of files among them, and the files by the names of their tasks."""

    tasks: dict[str, AbsTask]
    files: dict[str, SentenceFile]


def evaluate_sentences(config: SentencesConfig) -> Path:
    """Score an encoder; what the folder has already is not scored again.

    Parameters
    ----------
    config
        See `turncoder.config.sentences.SentencesConfig`.

    Returns
    -------
    Path
        The run folder: ``results.json`` with every metric of every task, its baselines, prompts and an example;
        ``items/TASK.json``, the scores of single queries, pairs and texts; and ``mteb/``, a cache of mteb's, which
        ``mteb.ResultCache`` reads.

    Raises
    ------
    UserError
        No such task, file or model; other settings than those of the scores that the folder holds; or, after the other
        tasks have been scored, tasks whose data could not be had.
    """
    if PartialState().num_processes > 1:
        raise UserError("evaluate sentences runs in one process; start it without torchrun or accelerate launch")
    asked = _read_asked(config)
    return perform(config, "sentences", lambda config, run: _evaluate(config, run, asked))


def _evaluate(config: SentencesConfig, run: Run, asked: Asked) -> None:
    started = time.perf_counter()
    model = _open_model(config)
    results = _open_results(config, run, model)
    missing = [name for name in asked.tasks if _is_missing(name, asked, results["tasks"], model)]
    if not missing:
        logger.warning("%s has all these scores already; --overwrite starts anew", run.folder)
        return
    absent = _leave_out_absent({name: asked.tasks[name] for name in missing}, asked)
    missing = [name for name in missing if name not in absent]
    _estimate(model, [(asked.tasks[name], asked.files.get(name)) for name in missing])

    def score(name: str) -> dict[str, Any]:
        task, file = asked.tasks[name], asked.files.get(name)
        _load(task)
        try:
            told = _score(config, run.folder, model, task)
        finally:
            task.dataset, task.data_loaded = None, False  # which may be large
        return told if file is None else told | {"file": file.place, "fingerprint": file.fingerprint}

    try:
        score_tasks(run, results, missing, score, summarise=itemgetter("main_score"), failed=absent, started=started)
    finally:
        _say_cut([told for name, told in results["tasks"].items() if name in missing])


def _say_cut(tasks: list[dict[str, Any]]) -> None:
    cut, texts = (sum(told[name] for told in tasks) for name in ("truncated", "texts"))
    if cut:
        limit = f"max_seq_length = {tasks[0]['max_seq_length']}"
        logger.warning(f"{cut:,} of {texts:,} texts were longer than the limit and cut off ({limit})")


def _load(task: AbsTask) -> None:
    """Load the data of a task; raises UserError."""
    from turncoder.evaluate.mtebtasks import hushed

    try:
        with hushed():
            task.load_data()
    except Exception as error:  # whatever the code of many authors, and the hub, may raise
        raise UserError(_say_why(error, task)) from error


def _read_asked(config: SentencesConfig) -> Asked:
    """Read the files, and look the names up; raises UserError."""
    files = [open_sentence_file(spec) for spec in config.task_file]
    if config.prompt_file:
        read_prompt_file(config.prompt_file)
    try:
        from turncoder.evaluate.mtebtasks import find_tasks, hushed, make_task
    except ImportError as error:
        missing = str(error.name).partition(".")[0]
        raise UserError(f"evaluate sentences needs {missing}: pip install 'turncoder[sentences]'") from error
    with hushed():
        named = find_tasks(config.tasks, config.languages) if config.tasks or config.languages else []
        for task in named:
            task.seed = config.seed
        made = [make_task(file, config.seed) for file in files]
    tasks: dict[str, AbsTask] = {}
    for task in (*made, *named):
        name = task.metadata.name
        if name in tasks:
            raise UserError(f"{name} is asked for twice: name it once, or give one of the files another name")
        tasks[name] = task
    return Asked(tasks, {file.name: file for file in files})


def _open_model(config: SentencesConfig) -> EncoderModel:
    from turncoder.evaluate.mtebmodel import EncoderModel

    encoder = open_encoder(config)
    model = EncoderModel(
        encoder,
        prompts=read_prompt_file(config.prompt_file) if config.prompt_file else None,
        falls_back=config.prompt_file == "llm2vec",
        batch_tokens=config.batch_tokens,
    )
    if model.table and not model.falls_back:
        logger.info("prompts of tasks that %s does not name are the model's own", config.prompt_file)
    return model


def _open_results(config: SentencesConfig, run: Run, model: EncoderModel) -> dict[str, Any]:
    """Open what the folder has of this model, and tell mteb what it is called."""
    from turncoder.evaluate.mtebmodel import describe

    name, fingerprint = str(config.model_name_or_path), digest_encoder(model.plain)
    short = Path(name).resolve().name if Path(name).exists() else name
    model.mteb_model_meta = describe(short, fingerprint[:12], model.model.similarity_fn_name)
    parameters = sum(one.numel() for one in model.model.parameters())
    return open_scores(run, name, fingerprint=fingerprint, parameters=parameters, library="mteb")


def _is_missing(name: str, asked: Asked, done: dict[str, Any], model: EncoderModel) -> bool:
    """Tell whether a task is to be scored: it was not, or its file, or the prompts, have changed."""
    if name not in done:
        return True
    if name in asked.files and done[name].get("fingerprint") != asked.files[name].fingerprint:
        return True
    prompts = {side: "".join(model.find_prompt(asked.tasks[name], side)) or None for side in done[name]["prompts"]}
    return prompts != done[name]["prompts"]


def _leave_out_absent(tasks: dict[str, AbsTask], asked: Asked) -> dict[str, str]:
    """Say which tasks can run where there is no network, and leave the others out."""
    from huggingface_hub import constants

    from turncoder.evaluate.mtebtasks import is_here

    if not (constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE")):
        return {}
    absent = [name for name, task in tasks.items() if name not in asked.files and not is_here(task)]
    here = [name for name in tasks if name not in absent]
    if not absent:
        return {}
    where = "; their data come from the hub, once where there is a network"
    if not here:
        raise UserError(f"tasks: there is no network, and none of {list_names(absent)} is on this machine{where}")
    logger.warning("no network: %s can run, %s cannot%s", list_names(here), list_names(absent), where)
    return dict.fromkeys(absent, "there is no network")


def _say_why(error: Exception, task: AbsTask) -> str:
    """Say why data could not be loaded, and what helps where that is known."""
    said, path = first_line(error), task.metadata.dataset["path"]
    if "gated" in said.lower() or type(error).__name__ == "GatedRepoError":
        return f"{path} is gated: ask for access at https://huggingface.co/datasets/{path}, then `hf auth login`"
    if "doesn't exist" in said or type(error).__name__ in ("RepositoryNotFoundError", "DatasetNotFoundError"):
        return f"there is no data set {path} on the hub, or it is private: `hf auth login`"
    return said


def _estimate(model: EncoderModel, tasks: list[tuple[AbsTask, SentenceFile | None]]) -> tuple[int, float]:
    """Encode a few texts, and say how long all of them would take; gives texts and seconds."""
    from turncoder.evaluate.mtebtasks import weigh_task

    share = max(1, WARM_UP_TEXTS // len(tasks))
    loads, sample = [], []
    for task, file in tasks:
        count, characters, texts = weigh_task(task, file)
        spread = texts[:: max(1, len(texts) // share)][:share]
        sample += spread
        loads.append((count, characters / max(1, count)))
    sample = [text for text in sample if text]
    total = sum(count for count, _ in loads)
    if len(set(sample)) < 2:
        logger.info("%d tasks; mteb does not say how many texts they have", len(tasks))
        return total, 0.0
    model.warm_up(sample[:1])  # what comes first takes longer
    counts = model.warm_up(sample[1:])
    seconds = max(counts.seconds, 1e-9)
    per_character = counts.tokens / max(1, sum(map(len, set(sample[1:]) - {sample[0]})))
    tokens = sum(count * min(mean * per_character, model.plain.limit) for count, mean in loads)
    estimated = seconds * tokens / max(1, counts.tokens)
    rate = f"{counts.tokens / seconds:,.0f} tokens/s measured on {len(sample)} texts"
    what = f"{total:,} texts of {len(tasks)} task{'s' if len(tasks) > 1 else ''}"
    logger.info("%s for %s, at %s; scoring comes to it", tell_time(estimated), what, rate)
    return total, estimated


def _score(config: SentencesConfig, folder: Path, model: EncoderModel, task: AbsTask) -> dict[str, Any]:
    """Score a loaded task, and its baselines."""
    import mteb

    from turncoder.evaluate.baselines import score_baselines, score_task
    from turncoder.evaluate.items import read_items
    from turncoder.evaluate.mtebtasks import hushed

    name = task.metadata.name
    begin = time.perf_counter()
    model.begin(task)
    bar = open_bar()
    bar.console.file = sys.stderr  # as it is now, and not hushed
    with tempfile.TemporaryDirectory() as kept, bar:
        shown = bar.add_task(name, total=None, speed="")
        model.advance = lambda rows: bar.update(shown, advance=rows, speed=f"{bar.tasks[shown].completed:,.0f} texts")
        with hushed():
            cache = mteb.ResultCache(folder / "mteb")
            result = score_task(model, task, cache=cache, prediction_folder=Path(kept))
        seconds = time.perf_counter() - begin
        items = read_items(task, Path(kept))
        with hushed():
            baselines = score_baselines(task, model) if config.baselines else {}
    place = None
    if items is not None:
        place = _place_items(name)
        (folder / "items").mkdir(exist_ok=True)
        write_atomically(folder / place, json.dumps({"task": name, **items}) + "\n")
    return {
        "type": task.metadata.type,
        "data": {"revision": task.metadata.revision, "splits": task.eval_splits, "subsets": task.hf_subsets},
        "main_metric": task.metadata.main_score,
        **_take(result),
        "baselines": baselines,
        "texts": len(model.texts),
        "max_seq_length": model.model.max_seq_length,
        "truncated": len(model.cut),
        "seconds": round(seconds, 3),
        "example": model.examples,
        "prompts": model.used,
        "items": place,
    }


def _place_items(name: str) -> str:
    return f"items/{name.replace('/', '_')}.json"


def _take(result: Any) -> dict[str, Any]:
    """Take the metrics out of mteb's result: the mean over splits and subsets, and the main score of each of them."""
    rows = [(f"{split}/{row['hf_subset']}", row) for split, rows in result.scores.items() for row in rows]
    names = [name for name, value in rows[0][1].items() if isinstance(value, int | float) and name != "main_score"]
    metrics = {name: _mean([row.get(name) for _, row in rows]) for name in names}
    told = {"main_score": _mean([row["main_score"] for _, row in rows]), "metrics": metrics}
    return told if len(rows) == 1 else {**told, "parts": {name: _mean([row["main_score"]]) for name, row in rows}}


def _mean(values: list[Any]) -> float | None:
    """Give the mean; None where one of them is no number, such as a correlation with what is always the same."""
    if any(value is None or math.isnan(value) for value in values):
        return None
    return float(sum(values) / len(values))


def plan_sentences(config: SentencesConfig) -> Plan:
    """Plan an evaluation: the tasks with a text of each, the model, and the time from texts encoded now.

    Raises
    ------
    UserError
        Whatever `evaluate_sentences` would refuse.
    """
    from turncoder.evaluate.items import has_items
    from turncoder.evaluate.mtebtasks import weigh_task

    plan = Plan(to_toml(config), legend="the first text of each task, as the model would see it: [what is pooled]")
    asked = _read_asked(config)
    model = _open_model(config)
    failed = _leave_out_absent(asked.tasks, asked)
    plan.unseen = [f"{name}: {why}" for name, why in failed.items()]
    tasks = [(task, asked.files.get(name)) for name, task in asked.tasks.items() if name not in failed]
    for task, file in tasks:
        count, _, texts = weigh_task(task, file)
        prompt, apart = model.find_prompt(task, "query")
        if file is not None:
            shown = show_text(model.model, apart + texts[0], prompt or None)
            plan.samples.append(f"{task.metadata.name}, {count:,} texts: {shown}")
        else:
            plan.samples.append(f"{task.metadata.name}, {count:,} texts, before them: {prompt + apart!r}")
    total, plan.seconds = _estimate(model, tasks)
    plan.steps = {"texts": total}
    parameters = list(model.model.parameters())
    plan.parameters = {"total": sum(one.numel() for one in parameters)}
    plan.memory = {"model": sum(one.numel() * one.element_size() for one in parameters)}
    folder = Path(config.output_dir or "RUN")
    plan.files = [str(folder / name) for name in ("run.json", "config.toml", "results.json", "report.html")]
    plan.files += [str(folder / _place_items(task.metadata.name)) for task, _ in tasks if has_items(task)]
    plan.files.append(f"{folder / 'mteb'}/")
    return plan


def show(folder: Path, console: Console) -> None:
    """Print the main scores of a run folder beside those of the baselines."""
    table = Table(pad_edge=False, collapse_padding=True)
    results = read_json(folder / "results.json")["tasks"]
    columns = [name for name in BASELINES if any(name in told["baselines"] for told in results.values())]
    for title in ("task", "score", *columns, "texts"):
        named = title == "task"
        table.add_column(title, justify="left" if named else "right", overflow="fold", no_wrap=not named)
    for task, told in results.items():
        scores = [told["main_score"], *(told["baselines"].get(name) for name in columns)]
        cells = ["" if score is None else f"{score:.4f}" for score in scores]
        table.add_row(f"{task} ({told['main_metric']})", *cells, f"{told['texts']:,}")
    console.print(table)
