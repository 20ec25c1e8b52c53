"""Before the first score on tasks of mteb: which are asked for, which the folder has, and what the others take."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turncoder.config.sentences import SentencesConfig
from turncoder.config.stages import to_toml
from turncoder.encode.encoder import open_encoder
from turncoder.encode.workers import digest_encoder
from turncoder.errors import UserError
from turncoder.evaluate.sentencefiles import SentenceFile, open_sentence_file
from turncoder.evaluate.taskruns import NO_NETWORK, hushed, keep_files, list_names, open_scores, tell_remedy
from turncoder.plan import Plan, add_weights, tell_time
from turncoder.prompts import read_prompt_file
from turncoder.samples import show_text
from turncoder.train.running import read_earlier

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

    from turncoder.evaluate.mtebmodel import EncoderModel

__all__ = ["Work", "describe_data", "estimate", "plan_sentences", "prepare"]

logger = logging.getLogger("turncoder")

WARM_UP_TEXTS = 64


@dataclass(frozen=True)
class Asked:
    """What is to be scored: tasks of mteb, those of files among them; the files by the names of tasks; and prompts."""

    tasks: dict[str, AbsTask]
    files: dict[str, SentenceFile]
    prompts: dict[str, Any] | None


@dataclass(frozen=True)
class Work:
    """An evaluation before its first score.

    Attributes
    ----------
    config
        Asks also for what the folder has already.
    asked, model
        What is to be scored.
    results
        What the folder has.
    missing
        Tasks that are still to be scored.
    absent
        Those that cannot be, and why.
    """

    config: SentencesConfig
    asked: Asked
    model: EncoderModel
    results: dict[str, Any]
    missing: list[str]
    absent: dict[str, str]


def prepare(config: SentencesConfig) -> Work:
    """Look at tasks, folder and model, write nothing, and raise UserError for all that can be refused by then."""
    asked = _read_asked(config)
    named = config.output_dir or not config.dry_run
    earlier = read_earlier(config, "sentences") if named else None
    model = _open_model(config, asked)
    results = _open_results(config, model, anew=earlier is None)
    done = results["tasks"]
    _check_prompts(config, model, asked, done)
    missing = []
    for name, task in asked.tasks.items():
        changed = _find_change(done[name], task, asked.files.get(name), model) if name in done else ""
        if changed:
            logger.warning("%s is scored again: %s", name, changed)
        if changed is not None:
            missing.append(name)
    absent = _leave_out_absent(missing, asked, done)
    if earlier is not None:
        config = _join(config, earlier["config"], asked, done)
    return Work(config, asked, model, results, [name for name in missing if name not in absent], absent)


def _read_asked(config: SentencesConfig) -> Asked:
    """Read the files, and look the names up; raises UserError."""
    files = [open_sentence_file(spec) for spec in config.task_file]
    prompts = read_prompt_file(config.prompt_file) if config.prompt_file else None
    try:
        from turncoder.evaluate.mtebtasks import find_tasks
        from turncoder.evaluate.sentencetasks import make_task
    except ImportError as error:
        missing = str(error.name).partition(".")[0]
        raise UserError(f"evaluate sentences needs {missing}: pip install 'turncoder[sentences]'") from error
    with hushed():
        named = find_tasks(config.tasks, config.languages) if config.tasks or config.languages else []
        for task in named:
            task.seed = config.seed
        made = [make_task(file, config.seed) for file in files]
    if config.languages and files and not config.tasks:
        told = ", ".join(config.languages), len(named), list_names([task.metadata.name for task in named])
        logger.warning("languages = %s without tasks stands for %d tasks of mteb, beside the files: %s", *told)
    tasks: dict[str, AbsTask] = {}
    for task in (*made, *named):
        name = task.metadata.name
        if name in tasks:
            raise UserError(f"{name} is asked for twice: name it once, or give one of the files another name")
        tasks[name] = task
    return Asked(tasks, {file.name: file for file in files}, prompts)


def _open_model(config: SentencesConfig, asked: Asked) -> EncoderModel:
    from turncoder.evaluate.mtebmodel import EncoderModel

    falls_back = config.prompt_file == "llm2vec"
    encoder = open_encoder(config, device=config.device)
    return EncoderModel(encoder, prompts=asked.prompts, falls_back=falls_back, batch_tokens=config.batch_tokens)


def _open_results(config: SentencesConfig, model: EncoderModel, *, anew: bool) -> dict[str, Any]:
    """Open what the folder has of this model, and tell mteb what it is called."""
    from turncoder.evaluate.mtebmodel import describe

    name, fingerprint = str(config.model_name_or_path), digest_encoder(model.plain)
    short = Path(name).resolve().name if Path(name).exists() else name
    model.mteb_model_meta = describe(short, fingerprint[:12], model.model.similarity_fn_name)
    parameters = sum(one.numel() for one in model.model.parameters())
    folder = None if anew else Path(str(config.output_dir))
    return open_scores(folder, name, fingerprint=fingerprint, parameters=parameters, library="mteb")


def _check_prompts(config: SentencesConfig, model: EncoderModel, asked: Asked, done: Iterable[str]) -> None:
    """Refuse prompts for what is not known, and name the tasks that a file of prompts says nothing of."""
    from turncoder.evaluate.mtebtasks import check_prompts

    if not asked.prompts or model.falls_back:
        return
    check_prompts(str(config.prompt_file), asked.prompts, [*asked.files, *done])
    told = {name: {name, task.metadata.type} for name, task in asked.tasks.items()}
    if other := [name for name, keys in told.items() if not keys & set(asked.prompts)]:
        logger.warning("%s says nothing of %s: prompts are the model's own", config.prompt_file, list_names(other))


def describe_data(task: AbsTask) -> dict[str, Any]:
    """Describe what a task is scored on."""
    return {"revision": task.metadata.revision, "splits": list(task.eval_splits), "subsets": list(task.hf_subsets)}


def _find_change(told: dict[str, Any], task: AbsTask, file: SentenceFile | None, model: EncoderModel) -> str | None:
    """Say what has changed since a task was scored, so that its score is not what is asked for; None for nothing."""
    if file is not None and told.get("fingerprint") != file.fingerprint:
        return f"{file.place} has changed"
    for key, new in describe_data(task).items():
        old, new = (", ".join(sorted(one)) if isinstance(one, list) else one for one in (told["data"][key], new))
        if old != new:
            return f"it has a score of {key} {old}, and {new} is asked for"
    prompts = {side: "".join(model.find_prompt(task, side)) or None for side in told["prompts"]}
    return None if prompts == told["prompts"] else "its prompts have changed"


def _leave_out_absent(names: list[str], asked: Asked, done: Iterable[str]) -> dict[str, str]:
    """Say which of the tasks that are missing can run where there is no network, and leave the others out."""
    from huggingface_hub import constants

    from turncoder.evaluate.mtebtasks import is_here

    if not (constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE")):
        return {}
    absent = [name for name in names if name not in asked.files and not is_here(asked.tasks[name])]
    here = [name for name in names if name not in absent]
    if not absent:
        return {}
    where = "their data come from the hub, once where there is a network"
    failed = dict.fromkeys(absent, NO_NETWORK)
    if not here:
        remedy = tell_remedy(failed) if set(asked.tasks) & set(done) else where
        raise UserError(f"tasks: {NO_NETWORK}, and none of {list_names(absent)} is on this machine; {remedy}")
    logger.warning("no network: %s can run, %s cannot; %s", list_names(here), list_names(absent), where)
    return failed


def _join(config: SentencesConfig, before: dict[str, Any], asked: Asked, done: dict[str, Any]) -> SentencesConfig:
    """Also ask for what the folder has by its earlier configuration, and what is asked for now does not replace."""
    from turncoder.evaluate.mtebtasks import find_tasks, name_tasks

    files, kept, tasks = keep_files(before["task_file"], done, asked.tasks), done.keys() - asked.tasks.keys(), []
    with hushed():
        if kept and (before["tasks"] or config.tasks):
            own = config.tasks or name_tasks(config.languages)
            for name in before["tasks"] or name_tasks(config.languages):
                found = {task.metadata.name for task in find_tasks((name,), config.languages)}
                tasks += [name] if name not in own and found & kept else []
            tasks = [*own, *tasks] if tasks else []
    return dataclasses.replace(
        config, tasks=tuple(tasks) or config.tasks, task_file=tuple(dict.fromkeys((*config.task_file, *files)))
    )


def estimate(model: EncoderModel, tasks: list[tuple[AbsTask, SentenceFile | None]]) -> tuple[int, float]:
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
    logger.info("%s for %s, at %s, without scoring", tell_time(estimated), what, rate)
    return total, estimated


def plan_sentences(config: SentencesConfig) -> Plan:
    """Plan an evaluation: the tasks with a text of each, the model, and the time from texts encoded now.

    Raises
    ------
    UserError
        Whatever `evaluate_sentences` would refuse.
    """
    from turncoder.evaluate.items import has_items, place_items
    from turncoder.evaluate.mtebtasks import weigh_task

    work = prepare(config)
    plan = Plan(to_toml(work.config), legend="the first text of each task, as the model would see it: [what is pooled]")
    plan.unseen = [f"{name}: {why}" for name, why in work.absent.items()]
    model, asked = work.model, work.asked
    tasks = [(asked.tasks[name], asked.files.get(name)) for name in work.missing]
    for task, file in tasks:
        count, _, texts = weigh_task(task, file)
        prompt, apart = model.find_prompt(task, "query")
        if file is not None:
            shown = show_text(model.model, apart + texts[0], prompt or None)
            plan.samples.append(f"{task.metadata.name}, {count:,} texts: {shown}")
        else:
            plan.samples.append(f"{task.metadata.name}, {count:,} texts, before them: {prompt + apart!r}")
    total, plan.seconds = estimate(model, tasks) if tasks else (0, 0.0)
    scored = len(asked.tasks) - len(work.missing) - len(work.absent)
    plan.steps = {"tasks scored already": scored} if scored else {}
    plan.steps["texts"] = total
    add_weights(plan, model.model)
    folder = Path(config.output_dir or "RUN")
    own = ["run.json", "config.toml", *(["results.json"] if tasks else []), "report.html"]
    plan.files = [str(folder / name) for name in own]
    plan.files += [str(folder / place_items(task.metadata.name)) for task, _ in tasks if has_items(task)]
    plan.files += [f"{folder / 'mteb'}/"] if tasks else []
    return plan
