"""What is sent to the Hub: the files of a bundle, its record, and the card that is written of them."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import yaml
from huggingface_hub import ModelCard
from rich.console import Console

from turncoder.config.publishing import PublishConfig
from turncoder.errors import UserError
from turncoder.hub import may_be_hub_id
from turncoder.model.attention import inspect_attention
from turncoder.model.backbone import load_backbone
from turncoder.model.views import AttentionFacts
from turncoder.plan import tell_bytes
from turncoder.publish.bundle import Bundle, open_bundle
from turncoder.publish.card import digest_card, write_card, write_heads_card, write_language_card
from turncoder.publish.cardparts import Published, count_held_out
from turncoder.publish.cardscores import find_scores
from turncoder.publish.provenance import find_data, find_licence, hide_parents, list_steps, tell_steps

__all__ = ["Publication", "prepare", "show"]

logger = logging.getLogger("turncoder")


@dataclass(frozen=True)
class Publication:
    """What `publish` sends.

    Attributes
    ----------
    config
        As asked.
    bundle
        What it was taken from.
    files
        By their names in the repository, card included.
    card
        ``README.md``.
    """

    config: PublishConfig
    bundle: Bundle
    files: dict[str, Path | bytes]
    card: str

    def size(self, name: str) -> int:
        """Bytes of a file."""
        content = self.files[name]
        return len(content) if isinstance(content, bytes) else content.stat().st_size


def prepare(config: PublishConfig) -> Publication:
    """Gather what would be sent, and write its card; a dry run asks nothing of the network.

    Raises
    ------
    UserError
        See `turncoder.publish.bundle.open_bundle`; no licence that is known; ``results`` of another model.
    """
    online = not (config.dry_run or huggingface_hub.is_offline_mode())
    bundle = open_bundle(config)
    card = _read_edited(config, bundle)
    if card is None:
        card = _write(config, bundle, online=online)
    parents = hide_parents(bundle.record.get("parents", []), config.base_model)
    record = {**bundle.record, "parents": parents, "card": digest_card(card)}
    files = {
        **bundle.files,
        "turncoder.json": (json.dumps(record, indent=2) + "\n").encode(),
        "README.md": card.encode(),
    }
    return Publication(config, bundle, dict(sorted(files.items())), card)


def _read_edited(config: PublishConfig, bundle: Bundle) -> str | None:
    """Read the card of the folder where it was edited by hand, which goes up as it is; None where it was not."""
    path = bundle.folder / "README.md"
    if bundle.kind in ("adapter", "heads") or not path.exists():  # peft puts an empty form beside an adapter
        return None
    text = path.read_text(encoding="utf8")
    if digest_card(text) == bundle.record.get("card"):
        return None
    try:
        header = ModelCard(text, ignore_metadata_errors=True).data.to_dict()
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(
            f"{path} was edited, and its header is no YAML ({' '.join(str(error).split())}): mend it, or remove the "
            "file to have one written"
        ) from None
    if not header.get("license"):
        raise UserError(
            f"{path} is not as it was written, so it goes up as it is, and its header names no license: write "
            "`license: ...` into it, or remove the file to have one written"
        )
    given = [name for name in ("license", "data_license", "language", "results") if getattr(config, name)]
    if given:
        raise UserError(f"{given[0]}: {path} was edited, and goes up as it is; write it there, or remove the file")
    logger.warning("%s was edited, and goes up as it is; without the file a card is written", path)
    return text


def _write(config: PublishConfig, bundle: Bundle, *, online: bool) -> str:
    """Write the card."""
    name, steps = str(config.to), list_steps(bundle)
    licence = find_licence(config, bundle, online=online)
    data = find_data(config, steps, online=online)
    scores, index = find_scores(bundle, config.results, name)
    base = config.base_model or (bundle.base if bundle.base and may_be_hub_id(bundle.base) else None)
    published = Published(
        license=licence.license,
        source=licence.source,
        license_name=licence.license_name,
        license_link=licence.license_link,
        language=data.language,
        base_model=base,
        relation="adapter" if bundle.kind == "adapter" else "finetune",
        datasets=data.datasets,
        data=data.files,
        data_license=data.license,
        recipe=tell_steps(steps),
        scores=scores,
        index=index,
        tasks=tuple(bundle.tasks),
        onnx="onnx/model.onnx" in bundle.files,
    )
    results = bundle.record.get("results") or bundle.run.get("results", {})
    parents = hide_parents(bundle.record.get("parents", []), config.base_model)
    record = {**bundle.record, "results": results, "parents": parents}
    if bundle.run.get("stage") == record.get("stage"):
        record.setdefault("held_out", count_held_out(bundle.run))
    if bundle.kind == "language":
        model = bundle.read("config.json")
        architecture = (model.get("architectures") or [model.get("model_type")])[0]
        return write_language_card(
            name=name, architecture=architecture, model_type=model["model_type"], record=record, published=published
        )
    if bundle.kind == "heads":
        return write_heads_card(name=name, base=str(bundle.base), record=record, published=published)
    return write_card(_find_attention(bundle), **_describe(bundle), name=name, record=record, published=published)


def _find_attention(bundle: Bundle) -> AttentionFacts:
    """Read what was found about the attention; a folder that does not tell is looked at."""
    told = bundle.record.get("attention") or bundle.run.get("attention")
    if told is None:
        return inspect_attention(load_backbone(str(bundle.folder))).facts
    names = AttentionFacts.__dataclass_fields__
    return AttentionFacts(**{**{name: told[name] for name in names}, "how": tuple(told["how"])})


def _describe(bundle: Bundle) -> dict[str, Any]:
    """Read what an encoder is from its own files."""
    if bundle.kind == "adapter":
        kept = bundle.read("encoder.json")
        names = ("max_seq_length", "pooling", "prompts", "default_prompt_name")
        told = {name: kept[name] for name in names if name in kept}
        return {
            "prompts": {},
            "default_prompt_name": None,
            **told,
            "opens": "adapter",
            "dimensions": None,
            "pad_token": "",
        }
    inputs, pooling = bundle.read("sentence_bert_config.json"), bundle.read("1_Pooling/config.json")
    encoder = bundle.read("config_sentence_transformers.json")
    return {
        "opens": bundle.record["reopens"],
        "dimensions": pooling.get("word_embedding_dimension"),
        "max_seq_length": inputs["max_seq_length"],
        "pooling": pooling["pooling_mode"],
        "pad_token": (inputs.get("tokenizer_args") or {}).get("pad_token", ""),
        "prompts": encoder.get("prompts") or {},
        "default_prompt_name": encoder.get("default_prompt_name"),
    }


def show(publication: Publication, console: Console) -> None:
    """Print repository, visibility, files with their sizes, and the card."""
    config, names = publication.config, list(publication.files)
    total = sum(publication.size(name) for name in names)
    seen = "public" if config.public else "private"
    lines = [f"{config.to}, {seen}, branch {config.revision}: {len(names)} files, {tell_bytes(total)}"]
    lines += [f"{publication.size(name):>14,}  {name}" for name in names]
    lines += [f"stays here: {publication.bundle.folder / name}" for name in publication.bundle.left_out]
    for line in (*lines, "", publication.card):
        console.print(line, highlight=False, markup=False)
