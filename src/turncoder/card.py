"""The model card: ``README.md`` of a model, from what is known and nothing else.

A folder on this machine has one that leaves open what only its owner can say; `turncoder.publish` says that as well.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from turncoder.model.views import AttentionFacts, AttentionReport
from turncoder.usage import EXAMPLES, show_encoder, show_language_model, show_servers, show_tagger

__all__ = [
    "OPENS",
    "Published",
    "Step",
    "digest_card",
    "is_hub_id",
    "write_card",
    "write_heads_card",
    "write_language_card",
]

OPENS = {
    "bidirectional": "bidirectional",
    "causal": "causal",
    "disagrees": "causal in some batches and bidirectional in others",
    "fails": "with an error",
}
"""How plain `AutoModel` opens a folder, in words."""
CONTRASTIVE = frozenset({"simcse", "supervised"})


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


def write_card(
    report: AttentionReport | AttentionFacts,
    *,
    name: str,
    opens: str,
    dimensions: int | None,
    max_seq_length: int,
    pooling: str,
    pad_token: str,
    prompts: dict[str, str],
    default_prompt_name: str | None,
    record: dict[str, Any],
    published: Published | None = None,
) -> str:
    """Return the card of an encoder; it names no licence that nobody gave.

    Parameters
    ----------
    report
        What the attention of the model is.
    name
        What the examples open.
    opens
        How plain `AutoModel` opens it, a key of `OPENS`; ``adapter`` is one that needs its base model.
    dimensions, max_seq_length, pooling, pad_token, prompts, default_prompt_name
        What the folder says as well; ``dimensions`` None where it does not.
    record
        ``stage``, ``parents`` (the nearest first), ``matryoshka_dims``, ``training`` and ``results`` (names and
        values, which may be nested), as far as they are known.
    published
        What is said on the hub besides.
    """
    parents, stage = record.get("parents", []), record.get("stage")
    compares = bool({stage, *(parent.get("stage") for parent in parents)} & CONTRASTIVE)
    adapter = opens == "adapter"
    header = _header(
        record,
        published,
        name,
        library_name="peft" if adapter else "sentence-transformers",
        pipeline_tag="sentence-similarity" if compares else "feature-extraction",
        tags=["sentence-transformers", "feature-extraction", "sentence-similarity", "turncoder", report.model_type]
        + ["lora"] * adapter,
    )
    shape = f"{f'{dimensions}, ' if dimensions else ''}pooling `{pooling}`, similarity cosine"
    if dims := record.get("matryoshka_dims"):
        shape += f"; trained to be cut to {', '.join(map(str, dims))} (`truncate_dim`)"
    what = "A text encoder, as an adapter (LoRA) on its base model" if adapter else "A text encoder"
    tasks = list(published.tasks) if published else []
    parts = [
        header,
        f"{what}: {report.architecture} whose {_describe_attention(report)}. "
        f"Made with turncoder; it opens {'with it' if adapter else 'without'}.\n",
        f"- **Made from:** {' → '.join(_chain(stage, parents))}" if parents else "",
        f"- **Dimensions:** {shape}",
        f"- **Maximum length:** {max_seq_length:,} tokens{_trained_length(record, max_seq_length)}",
        "\n## Use",
        show_encoder(name, opens, pooling, pad_token, dims),
        show_tagger(name, tasks) if tasks else "",
        _describe_prompts(prompts, default_prompt_name),
        show_servers(name, report, pooling, onnx=published.onnx) if published and opens == "bidirectional" else "",
        *_describe_making(record, published),
        "## Limits\n",
        *(f"- {caveat}" for caveat in _caveats(report, opens, pooling, compares, published)),
    ]
    return "\n".join(part for part in parts if part) + "\n"


def write_language_card(
    *, name: str, architecture: str, model_type: str, record: dict[str, Any], published: Published
) -> str:
    """Return the card of a language model, with its head or headless; see `write_card`."""
    kind = record.get("kind") or "clm"
    caveats = ["It was not trained to compare texts, nor to follow instructions."]
    if record.get("prior"):
        caveats.append(
            "It is headless: it was trained by contrastive weight tying, so its logits lack how frequent tokens are "
            "(`unigram.safetensors`) and are not those of a language model before `turncoder head add` puts that into "
            "its weights."
        )
    return _write_plain(
        f"A language model: {architecture}. Made with turncoder; it opens without.\n",
        show_language_model(name, kind),
        caveats,
        name=name,
        record=record,
        published=published,
        library_name="transformers",
        pipeline_tag="fill-mask" if kind == "mlm" else "text-generation",
        tags=["turncoder", model_type],
    )


def write_heads_card(*, name: str, base: str, record: dict[str, Any], published: Published) -> str:
    """Return the card of heads that read the states of a model of the hub; see `write_card`."""
    return _write_plain(
        f"Linear heads for labels of words, which read the states of [{base}](https://huggingface.co/{base}).\n",
        show_tagger(name, list(published.tasks)),
        [f"They are nothing without {base}, at the revision that they were trained on."],
        name=name,
        record=record,
        published=published,
        library_name="turncoder",
        pipeline_tag="token-classification",
        tags=["turncoder", "token-classification"],
    )


def _write_plain(
    what: str, use: str, caveats: list[str], *, name: str, record: dict[str, Any], published: Published, **header: Any
) -> str:
    parents = record.get("parents", [])
    parts = [
        _header(record, published, name, **header),
        what,
        f"- **Made from:** {' → '.join(_chain(record.get('stage'), parents))}" if parents else "",
        "\n## Use",
        use,
        *_describe_making(record, published),
        "## Limits\n",
        *(f"- {caveat}" for caveat in caveats),
    ]
    return "\n".join(part for part in parts if part) + "\n"


def digest_card(card: str) -> str:
    """Return what tells a card that was written here from one that was edited since."""
    return hashlib.sha256(card.encode()).hexdigest()


def is_hub_id(name: str) -> bool:
    """Say whether a name is that of a repository, and of no folder here."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name)) and not Path(name).exists()


def _header(record: dict[str, Any], published: Published | None, name: str, **told: Any) -> str:
    base = next((parent["name"] for parent in record.get("parents", []) if "stage" not in parent), None)
    told["base_model"] = base if base and is_hub_id(base) else None
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
    return f"---\n{ModelCardData(**told).to_yaml()}\n---\n\n# {name.removesuffix('/model')}\n"


def _trained_length(record: dict[str, Any], folder: int) -> str:
    length = (record.get("training") or {}).get("max_seq_length", folder)
    return f"; trained on texts of {length:,} at most" if length != folder else ""


def _describe_attention(report: AttentionReport | AttentionFacts) -> str:
    if report.verdict == "causal":
        return "attention is causal: a token sees what stands before it"
    if report.verdict == "partial":
        return f"attention is bidirectional in part: {report.summary.replace('look both ways', 'look ahead')}"
    return f"attention is bidirectional: {report.summary}"


def _chain(stage: str | None, parents: list[dict[str, Any]]) -> Iterator[str]:
    """Yield what a model was made from, the oldest first; a merge names its base first already."""
    for parent in parents if stage == "merge" else reversed(parents):
        named = parent["name"] if is_hub_id(parent["name"]) else Path(parent["name"]).name
        yield parent.get("stage") or f"`{named}`"
    if stage:
        yield stage


def _describe_prompts(prompts: dict[str, str], default: str | None) -> str:
    if not any(prompts.values()):
        return ""
    lines = ["## Prompts\n", "A prompt goes before the text as it is, and is left out of the pooling.\n"]
    for key, prompt in prompts.items():
        said = json.dumps(prompt + EXAMPLES[0], ensure_ascii=False)
        lines.append(f"- `{key}`{' (the default)' if key == default else ''}: the model reads `{said}`")
    return "\n".join(lines) + "\n"


def _describe_making(record: dict[str, Any], published: Published | None) -> Iterator[str]:
    """Yield the sections on training, results and licence."""
    if published and (published.datasets or published.data):
        names = [f"[{name}](https://huggingface.co/datasets/{name})" for name in published.datasets]
        names += [f"`{name}`" for name in published.data]
        licence = published.data_license or "not stated by whoever published this model"
        yield f"## Training data\n\n{', '.join(names)}. Its licence: {licence}.\n"
    yield _table("Training", record.get("training"))
    if published and published.recipe:
        yield "## Recipe\n"
        for step in published.recipe:
            yield (
                f"{step.stage}:\n\n```bash\n{step.command}\n```\n\n<details><summary>{step.stage}: resolved config"
                f"</summary>\n\n```toml\n{step.config.strip()}\n```\n\n</details>\n"
            )
    yield _table("Results", record.get("results"))
    if published:
        if published.scores and not record.get("results"):
            yield "## Results\n"
        for title, table in published.scores:
            yield f"{title}:\n\n{table}\n"
        named = f" ({published.license_name})" if published.license_name else ""
        link = f", {published.license_link}" if published.license_link else ""
        yield f"## Licence\n\n{published.license}{named}{link}: {published.source}.\n"


def _table(title: str, values: dict[str, Any] | None) -> str:
    rows = [f"| {key} | {value:,} |" for key, value in _flatten(values or {})]
    return "\n".join([f"## {title}\n", "| | |", "|---|---|", *rows]) + "\n" if rows else ""


def _flatten(values: dict[str, Any], before: str = "") -> Iterator[tuple[str, int | float]]:
    """Yield every number, nested or not, with its full name."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{before}{key} ")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{before}{key}", float(f"{value:.4g}") if isinstance(value, float) else value


def _caveats(
    report: AttentionReport | AttentionFacts, opens: str, pooling: str, compares: bool, published: Published | None
) -> Iterator[str]:
    if opens == "adapter":
        yield "By peft or sentence-transformers alone it opens causal: `turncoder.load_encoder` turns its base model."
    elif opens != "bidirectional" and report.verdict != "causal":
        yield (
            f"Plain `AutoModel` opens this architecture {OPENS[opens]}: use `turncoder.load_encoder`, or "
            "`turncoder.make_bidirectional(model)` after loading."
        )
    if report.verdict == "partial":
        yield f"Not every layer looks ahead: {report.reason}."
    if report.how and opens != "adapter":
        yield "transformers before 5.2 does not know `is_causal` and opens this folder causal without a word."
    if not compares:
        yield "It was not trained to compare texts: a contrastive stage makes its vectors comparable."
    if pooling not in ("mean", "cls", "lasttoken"):
        yield f"Serving engines do not know the pooling `{pooling}`, and some take the last token without a word."
    if published is None:
        yield "No licence is named here: that of the model it was made from applies, and that of the texts may."
