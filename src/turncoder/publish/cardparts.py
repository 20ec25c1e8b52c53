"""Pieces of model cards: the header, what a model was made from, prompts, training, scores, licence."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from turncoder.hub import may_be_hub_id
from turncoder.publish.usage import EXAMPLES

__all__ = [
    "Published",
    "Step",
    "count_held_out",
    "name_chain",
    "show_header",
    "show_making",
    "show_prompts",
    "tell_name",
]


@dataclass(frozen=True)
class Step:
    """A training that led to a model: its stage, the command, and the resolved config as TOML."""

    stage: str
    command: str
    config: str


@dataclass(frozen=True)
class Published:
    """What the card of a published model says beside what its folder knows.

    Attributes
    ----------
    license, license_name, license_link
        As the hub has them; name and link where the license is ``other``.
    source
        Where the license is from, in words.
    language
        Codes.
    base_model, relation
        Hub id of what it was made from, and how: ``finetune`` or ``adapter``.
    datasets, data
        Hub ids of the training data, and names of files.
    data_license
        Of that data; None where nobody said.
    recipe
        Its trainings, the oldest first.
    scores
        Titles and tables in Markdown.
    index
        The same for the header.
    tasks
        Of words, whose labels it tells.
    onnx
        Whether a graph is with it.
    """

    license: str
    source: str
    license_name: str | None = None
    license_link: str | None = None
    language: tuple[str, ...] = ()
    base_model: str | None = None
    relation: str = "finetune"
    datasets: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    data_license: str | None = None
    recipe: tuple[Step, ...] = ()
    scores: tuple[tuple[str, str], ...] = ()
    index: tuple[EvalResult, ...] = ()
    tasks: tuple[str, ...] = ()
    onnx: bool = False


def show_header(record: dict[str, Any], published: Published | None, name: str, **told: Any) -> str:
    """Show the header for the hub, and the title; ``told`` are fields of `ModelCardData`."""
    base = next((parent["name"] for parent in record.get("parents", []) if "stage" not in parent), None)
    told["base_model"] = base if base and may_be_hub_id(base) else None
    if published is not None:
        told |= {
            "base_model": published.base_model,
            "base_model_relation": published.relation if published.base_model else None,
            "license": published.license,
            "license_name": published.license_name,
            "license_link": published.license_link,
            "language": list(published.language) or None,
            "datasets": list(published.datasets) or None,
            "model_name": name if published.index else None,
            "eval_results": list(published.index) or None,
        }
        told = {key: value for key, value in told.items() if value is not None}
    title = name if published else name.removesuffix("/model")  # the folder of a run
    return f"---\n{ModelCardData(**told).to_yaml()}\n---\n\n# {title}\n"


def tell_name(name: str) -> str:
    """Say the name of a model without the folders of this machine."""
    return name if may_be_hub_id(name) else Path(name.removesuffix("/model")).name


def name_chain(stage: str | None, parents: list[dict[str, Any]]) -> Iterator[str]:
    """Yield what a model was made from, the oldest first; a merge names its base first already."""
    for parent in parents if stage == "merge" else reversed(parents):
        yield parent.get("stage") or f"`{tell_name(parent['name'])}`"
    if stage:
        yield stage


def show_prompts(prompts: dict[str, str], default: str | None) -> str:
    """Show prompts as the model reads them."""
    if not any(prompts.values()):
        return ""
    lines = ["## Prompts\n", "A prompt goes before the text as it is, and is left out of the pooling.\n"]
    for key, prompt in prompts.items():
        said = json.dumps(prompt + EXAMPLES[0], ensure_ascii=False)
        lines.append(f"- `{key}`{' (the default)' if key == default else ''}: the model reads `{said}`")
    return "\n".join(lines) + "\n"


def show_making(record: dict[str, Any], published: Published | None) -> Iterator[str]:
    """Yield the sections on training, results and licence."""
    if published and (published.datasets or published.data):
        names = [f"[{name}](https://huggingface.co/datasets/{name})" for name in published.datasets]
        names += [f"`{name}`" for name in published.data]
        licence = published.data_license or "not stated by whoever published this model"
        yield f"## Training data\n\n{', '.join(names)}. Its licence: {licence}.\n"
    yield _table("Training", record.get("training"))
    if published and published.recipe:
        yield "## Recipe\n"
        for command, several in groupby(published.recipe, key=attrgetter("command")):  # a turn has several stages
            steps = list(several)
            yield f"{', '.join(step.stage for step in steps)}:\n\n```bash\n{command}\n```\n"
            for step in steps:
                yield (
                    f"<details><summary>{step.stage}: resolved config</summary>\n\n```toml\n{step.config.strip()}\n```"
                    "\n\n</details>\n"
                )
    yield _table("Results", record.get("results"), _say_measured(record))
    if published:
        if published.scores and not record.get("results"):
            yield "## Results\n"
        for title, table in published.scores:
            yield f"{title}:\n\n{table}\n"
        named = f" ({published.license_name})" if published.license_name else ""
        link = f", {published.license_link}" if published.license_link else ""
        yield f"## Licence\n\n{published.license}{named}{link}: {published.source}.\n"


def count_held_out(run: dict[str, Any]) -> int | None:
    """Count the held-out rows of a training, of all its sets of pairs together; None where its record does not say."""
    counts: dict[str, Any] = run.get("data", {}).get("validation", {})
    sets: list[dict[str, int]] = [one for one in counts.values() if isinstance(one, dict)] or [counts]
    return sum(one.get("rows", one.get("blocks", 0)) for one in sets) or None


def _say_measured(record: dict[str, Any]) -> str:
    """Say what the results of a training measure, and on how much; nothing of a stage that is not known."""
    results, rows = record.get("results") or {}, record.get("held_out")
    many, among = (f"{rows:,} ", f" in {rows:,} rows") if rows else ("", "")
    kind = "Next" if record.get("kind") == "clm" else "Masked"
    tokens = (
        f"{kind} token prediction on held-out text: {results.get('predicted_tokens', 0):,} tokens{among}; loss in nats"
    )
    told = {
        "mntp": tokens,
        "pretrain": tokens,
        "simcse": f"SimCSE's contrastive loss on {many}held-out texts, each seen twice under dropout; alignment and "
        "uniformity of their vectors",
        "supervised": f"Contrastive loss on {many}held-out pairs, and how their anchors find the positives",
        "words": "Labels of words, means over seeds",
    }.get(record.get("stage") or "")
    if told and "sts_spearman" in results:
        told += "; `sts_spearman`: pairs with people's scores"
    return f"{told}:\n" if told else ""


def _table(title: str, values: dict[str, Any] | None, measured: str = "") -> str:
    rows = [f"| {key} | {value:,} |" for key, value in _flatten(values or {})]
    heads = [f"## {title}\n", *([measured] if measured else []), "| | |", "|---|---|"]
    return "\n".join([*heads, *rows]) + "\n" if rows else ""


def _flatten(values: dict[str, Any], before: str = "") -> Iterator[tuple[str, int | float]]:
    """Yield every number, nested or not, with its full name."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{before}{key} ")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{before}{key}", float(f"{value:.4g}") if isinstance(value, float) else value
