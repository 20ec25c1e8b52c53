"""The model card: ``README.md`` of a model folder, from what is known and nothing else."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from turncoder.model.views import AttentionReport

__all__ = ["OPENS", "write_card"]

OPENS = {
    "bidirectional": "bidirectional",
    "causal": "causal",
    "disagrees": "causal in some batches and bidirectional in others",
    "fails": "with an error",
}
"""How plain `AutoModel` opens a folder, in words."""
CONTRASTIVE = frozenset({"simcse", "supervised"})
EXAMPLES = ["A decoder that looks both ways.", "An encoder, then."]
MEAN = """
With transformers alone, prompts not included:

```python
import torch
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}", padding_side="right", pad_token={pad_token})
model = AutoModel.from_pretrained("{name}")
batch = tokenizer({examples}, padding=True, return_tensors="pt")
with torch.no_grad():
    states = model(**batch).last_hidden_state
mask = batch["attention_mask"].unsqueeze(-1)
vectors = (states * mask).sum(1) / mask.sum(1)
```
"""


def write_card(
    report: AttentionReport,
    *,
    name: str,
    opens: str,
    dimensions: int,
    max_seq_length: int,
    pooling: str,
    pad_token: str,
    prompts: dict[str, str],
    default_prompt_name: str | None,
    record: dict[str, Any],
) -> str:
    """Return the card of a model folder; it names no licence, which only its owner can.

    Parameters
    ----------
    report
        What the attention of the model is.
    name
        What the examples open.
    opens
        How plain `AutoModel` opens it, a key of `OPENS`.
    dimensions, max_seq_length, pooling, pad_token, prompts, default_prompt_name
        What the folder says as well.
    record
        ``stage``, ``parents`` (the nearest first), ``matryoshka_dims``, ``training`` and ``results`` (names and
        values, which may be nested), as far as they are known.
    """
    parents, stage = record.get("parents", []), record.get("stage")
    stages = {stage, *(parent.get("stage") for parent in parents)}
    compares = bool(stages & CONTRASTIVE)
    base = next((parent["name"] for parent in parents if "stage" not in parent), None)
    header = ModelCardData(
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity" if compares else "feature-extraction",
        tags=["sentence-transformers", "feature-extraction", "sentence-similarity", "turncoder", report.model_type],
        base_model=base if base and _is_hub_id(base) else None,
    )
    shape = f"{dimensions}, pooling `{pooling}`, similarity cosine"
    if dims := record.get("matryoshka_dims"):
        shape += f"; trained to be cut to {', '.join(map(str, dims))} (`truncate_dim`)"
    parts = [
        f"---\n{header.to_yaml()}\n---\n",
        f"# {name.removesuffix('/model')}\n",
        f"A text encoder: {report.architecture} whose {_describe_attention(report)}. "
        "Made with turncoder; it opens without.\n",
        f"- **Made from:** {' → '.join(_chain(stage, parents))}" if parents else "",
        f"- **Dimensions:** {shape}",
        f"- **Maximum length:** {max_seq_length:,} tokens{_trained_length(record, max_seq_length)}",
        "\n## Use",
        _usage(name, opens, pooling, pad_token, dims),
        _describe_prompts(prompts, default_prompt_name),
        _table("Training", record.get("training")),
        _table("Results", record.get("results")),
        "## Limits\n",
        *(f"- {caveat}" for caveat in _caveats(report, opens, pooling, compares)),
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _trained_length(record: dict[str, Any], folder: int) -> str:
    length = (record.get("training") or {}).get("max_seq_length", folder)
    return f"; trained on texts of {length:,} at most" if length != folder else ""


def _describe_attention(report: AttentionReport) -> str:
    if report.verdict == "causal":
        return "attention is causal: a token sees what stands before it"
    if report.verdict == "partial":
        return f"attention is bidirectional in part: {report.summary.replace('look both ways', 'look ahead')}"
    return f"attention is bidirectional: {report.summary}"


def _chain(stage: str | None, parents: list[dict[str, Any]]) -> Iterator[str]:
    """Yield what a model was made from, the oldest first; a merge names its base first already."""
    for parent in parents if stage == "merge" else reversed(parents):
        named = parent["name"] if _is_hub_id(parent["name"]) else Path(parent["name"]).name
        yield parent.get("stage") or f"`{named}`"
    if stage:
        yield stage


def _is_hub_id(name: str) -> bool:
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name)) and not Path(name).exists()


def _usage(name: str, opens: str, pooling: str, pad_token: str, dims: list[int] | None) -> str:
    examples = json.dumps(EXAMPLES)
    if opens == "bidirectional":
        package, call = "sentence_transformers import SentenceTransformer", f'SentenceTransformer("{name}")'
    else:
        package, call = "turncoder import load_encoder", f'load_encoder("{name}")'
    lines = ["\n```python", f"from {package}\n", f"encoder = {call}", f"vectors = encoder.encode({examples})"]
    if dims:
        lines.append(f"short = encoder.encode({examples}, truncate_dim={min(dims)})")
    lines += ["print(encoder.similarity(vectors, vectors))", "```"]
    text = "\n".join(lines) + "\n"
    if opens == "bidirectional" and pooling == "mean":
        text += MEAN.format(name=name, examples=examples, pad_token=json.dumps(pad_token, ensure_ascii=False))
    return text


def _describe_prompts(prompts: dict[str, str], default: str | None) -> str:
    if not any(prompts.values()):
        return ""
    lines = ["## Prompts\n", "A prompt goes before the text as it is, and is left out of the pooling.\n"]
    for key, prompt in prompts.items():
        said = json.dumps(prompt + EXAMPLES[0], ensure_ascii=False)
        lines.append(f"- `{key}`{' (the default)' if key == default else ''}: the model reads `{said}`")
    return "\n".join(lines) + "\n"


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


def _caveats(report: AttentionReport, opens: str, pooling: str, compares: bool) -> Iterator[str]:
    if opens != "bidirectional" and report.verdict != "causal":
        yield (
            f"Plain `AutoModel` opens this architecture {OPENS[opens]}: use `turncoder.load_encoder`, or "
            "`turncoder.make_bidirectional(model)` after loading."
        )
    if report.verdict == "partial":
        yield f"Not every layer looks ahead: {report.reason}."
    if report.how:
        yield "transformers before 5.2 does not know `is_causal` and opens this folder causal without a word."
    if not compares:
        yield "It was not trained to compare texts: a contrastive stage makes its vectors comparable."
    if pooling not in ("mean", "cls", "lasttoken"):
        yield f"Serving engines do not know the pooling `{pooling}`, and some take the last token without a word."
    yield "No licence is named here: that of the model it was made from applies, and that of the texts may."
