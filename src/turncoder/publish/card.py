"""The model card: ``README.md`` of a model, from what is known and nothing else.

A folder on this machine has one that leaves open what only its owner can say; `turncoder.publish.upload` says that as
well.
"""

import hashlib
from collections.abc import Iterator
from typing import Any

from turncoder.model.views import AttentionFacts, AttentionReport
from turncoder.publish.cardparts import Published, name_chain, show_header, show_making, show_prompts
from turncoder.publish.usage import show_encoder, show_language_model, show_servers, show_tagger

__all__ = [
    "OPENS",
    "digest_card",
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
        values, which may be nested), ``held_out`` (rows that these were measured on), as far as they are known.
    published
        What is said on the hub besides.
    """
    parents, stage = record.get("parents", []), record.get("stage")
    compares = bool({stage, *(parent.get("stage") for parent in parents)} & CONTRASTIVE)
    adapter = opens == "adapter"
    header = show_header(
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
        f"- **Made from:** {' → '.join(name_chain(stage, parents))}" if parents else "",
        f"- **Dimensions:** {shape}",
        f"- **Maximum length:** {max_seq_length:,} tokens{_trained_length(record, max_seq_length)}",
        "\n## Use",
        show_encoder(name, opens, pooling, pad_token, dims),
        show_tagger(name, tasks) if tasks else "",
        show_prompts(prompts, default_prompt_name),
        show_servers(name, report, pooling, onnx=published.onnx) if published and opens == "bidirectional" else "",
        *show_making(record, published),
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
    parents, stage = record.get("parents", []), "head add" if "head" in record else record.get("stage")
    parts = [
        show_header(record, published, name, **header),
        what,
        f"- **Made from:** {' → '.join(name_chain(stage, parents))}" if parents else "",
        "\n## Use",
        use,
        *show_making(record, published),
        "## Limits\n",
        *(f"- {caveat}" for caveat in caveats),
    ]
    return "\n".join(part for part in parts if part) + "\n"


def digest_card(card: str) -> str:
    """Return what tells a card that was written here from one that was edited since."""
    return hashlib.sha256(card.encode()).hexdigest()


def _trained_length(record: dict[str, Any], folder: int) -> str:
    length = (record.get("training") or {}).get("max_seq_length", folder)
    return f"; trained on texts of {length:,} at most" if length != folder else ""


def _describe_attention(report: AttentionReport | AttentionFacts) -> str:
    if report.verdict == "causal":
        return "attention is causal: a token sees what stands before it"
    if report.verdict == "partial":
        return f"attention is bidirectional in part: {report.summary.replace('look both ways', 'look ahead')}"
    return f"attention is bidirectional: {report.summary}"


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
