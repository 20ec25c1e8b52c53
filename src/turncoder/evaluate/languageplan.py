"""What an evaluation of a language model would do: its tasks with a text of each, and the model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from turncoder.config.language import LanguageConfig
from turncoder.config.stages import to_toml
from turncoder.evaluate.language import open_results, prepare
from turncoder.plan import Plan, add_weights

__all__ = ["plan_language"]


def plan_language(config: LanguageConfig) -> Plan:
    """Plan an evaluation: the tasks with a text of each, and the model.

    Raises
    ------
    UserError
        Whatever `evaluate_language` would refuse.
    """
    from turncoder.evaluate.harness import open_model

    asked, done, whole = prepare(config)
    plan = Plan(to_toml(whole), legend="the first text of each task: what is given [->what is scored]")
    opened = open_model(config)
    folder = Path(config.output_dir or "RUN")
    open_results(config, folder if done else None, opened)  # refuses scores of other weights
    missing = asked.list_missing(done)
    loaded, failed = asked.load(missing)
    scored = len(asked.files) + len(asked.names) - len(missing)
    plan.steps = {"tasks scored already": scored} if scored else {}
    plan.unseen = [f"{name}: {why}" for name, why in failed.items()]
    for name, task in [(name, task) for tasks in loaded.values() for name, task in tasks["tasks"].items()]:
        texts = len(task.eval_docs)
        if config.limit is not None:
            texts = math.ceil(texts * config.limit) if config.limit < 1 else min(texts, int(config.limit))
        plan.samples.append(f"{name}, {texts:,} texts: {_show_request(task)}")
        plan.steps["texts"] = plan.steps.get("texts", 0) + texts
    add_weights(plan, opened.model)
    plan.files = [str(folder / name) for name in ("run.json", "config.toml", "results.json", "report.html")]
    plan.files += [str(folder / "lm_eval" / f"{name}.json") for name in loaded]
    return plan


def _show_request(task: Any) -> str:
    """Show what is scored, or written, of the first text of a task."""
    document = task.eval_docs[0]
    made = task.construct_requests(document, task.doc_to_text(document))
    *given, scored = (made[0] if isinstance(made, list) else made).args
    return f"{''.join(given)}[->{'...' if isinstance(scored, dict) else scored}]"
