"""Texts and pairs as a contrastive trainer takes them: sets of rows, each with its prompts."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from turncoder.config.stages import SimcseConfig, SupervisedConfig
from turncoder.data.corpus import open_corpora
from turncoder.data.masking import EVALUATION_SEED
from turncoder.data.pairs import Rows, open_pairs, open_texts
from turncoder.errors import UserError
from turncoder.prompts import check_prompt

__all__ = ["open_rows"]

logger = logging.getLogger("turncoder")

CHECKED_TEXTS = 64  # that a prompt is tried on
MOST_HELD_OUT = 2000  # rows that are evaluated on: what more would tell is not worth its time


def open_rows(
    config: SimcseConfig | SupervisedConfig,
    tokenizer: PreTrainedTokenizerBase,
    limit: int | None,
    key: str | None = None,
    *,
    template: bool,
) -> list[tuple[Rows, Rows]]:
    """Open the sets with their prompts: rows to train on and held-out ones.

    Parameters
    ----------
    config
        Of the stage.
    tokenizer, limit
        Of the encoder, which prompts are tried on.
    key
        As for `open_pairs`.
    template
        Whether the encoder puts texts through a chat template.

    Raises
    ------
    UserError
        Whatever is wrong with the data; a prompt that does not stay apart from the texts.
    """
    share = 0.0 if config.validation_file or config.as_llm2vec else config.validation_split_percentage
    if isinstance(config, SimcseConfig):
        corpus, validation = open_corpora(config)
        options: dict[str, Any] = {"split": config.split_sentences, "distinct": not config.as_llm2vec}
        pairs = [open_texts(corpus, **options, share=0.0 if validation else share)]
        if validation is not None:
            pairs = [(pairs[0][0], open_texts(validation, **options)[0])]
        prompts = {"text": config.prompt} if config.prompt else {}
        pairs = [tuple(dataclasses.replace(rows, prompts=prompts) for rows in two) for two in pairs]  # type: ignore[misc]
    else:
        pairs = open_pairs(
            dataset_name=config.dataset_name,
            dataset_config_name=config.dataset_config_name,
            file=config.train_file,
            columns=config.columns,
            cache_dir=config.cache_dir,
            share=share,
            key=key,
        )
        if config.validation_file:
            given = open_pairs(file=config.validation_file, columns=config.columns, key="validation_file")
            others = {rows.name: rows for rows, _ in given}
            alone = next(iter(others.values())) if len(others) == len(pairs) == 1 else None
            names = [rows.name for rows, _ in pairs]
            if alone is None and (absent := [name for name in others if name not in names]):
                raise UserError(
                    f"validation_file: {config.validation_file} has pairs for {absent[0]!r}, and the sets are "
                    f"{', '.join(names)}; name each file as that of its set"
                )
            pairs = [(rows, others.get(rows.name, alone or none)) for rows, none in pairs]
        pairs = _prompt_sets(config, pairs)
    seed = None if config.as_llm2vec else config.seed
    most = config.max_eval_samples or max(2, MOST_HELD_OUT // len(pairs))
    measured = None if config.as_llm2vec else EVALUATION_SEED
    chosen = [
        (rows.select(config.max_train_samples, seed), held_out.select(most, measured)) for rows, held_out in pairs
    ]
    if template and any(rows.prompts for rows, _ in chosen):
        raise UserError(
            "chat_template: a template cannot leave a prompt out of the pooling; keep one of the two, or write the "
            "prompt into the texts"
        )
    for rows, _ in chosen:
        for column, prompt in rows.prompts.items():
            spread = rows.data.select(range(0, len(rows), -(-len(rows) // CHECKED_TEXTS)))
            check_prompt(tokenizer, prompt, spread[column][:], limit or 1 << 30)
    return chosen


def _prompt_sets(config: SupervisedConfig, pairs: list[tuple[Rows, Rows]]) -> list[tuple[Rows, Rows]]:
    """Give each set its prompts; a set of the E5 mixture that has two is divided between them."""
    table = _read_prompts(config.prompts_file) if config.prompts_file else {}
    named = {rows.name for rows, _ in pairs}
    if absent := [name for name in table if name not in named]:
        raise UserError(
            f"prompts_file: {config.prompts_file} has prompts for {absent[0]!r}; the sets are {', '.join(named)}"
        )
    known = {} if config.query_prompt or config.document_prompt or table or len(pairs) == 1 else _read_e5()
    bare = sorted(named - known.keys())
    if 0 < len(bare) < len(named) and known:
        logger.warning(
            "%s: no set of the E5 mixture, and without a prompt; the others have its instructions (a prompts_file says "
            "the prompts of all)",
            ", ".join(bare),
        )
    given = {"query": config.query_prompt, "document": config.document_prompt}
    result = []
    for two in pairs:
        choices = known.get(two[0].name, [table.get(two[0].name, given)])
        for number, choice in enumerate(choices):
            name = two[0].name if len(choices) == 1 else f"{two[0].name}_{number + 1}"
            parts = [_take_part(rows, number, len(choices)) for rows in two]
            result.append(tuple(dataclasses.replace(rows, name=name, prompts=_place(choice, rows)) for rows in parts))
    return result  # type: ignore[return-value]


def _take_part(rows: Rows, number: int, count: int) -> Rows:
    """Take every ``count``-th row from ``number`` on."""
    return rows if count == 1 else rows.take(range(number, len(rows), count))


def _place(prompts: dict[str, str | None], rows: Rows) -> dict[str, str]:
    """Say which columns have which prompt."""
    sides = {name: "query" if name == "anchor" else "document" for name in rows.data.column_names}
    return {name: prompt for name, side in sides.items() if (prompt := prompts.get(side))}


def _read_e5() -> dict[str, list[dict[str, str | None]]]:
    """Read the instructions of the E5 mixture; on both sides where either side could be the query."""
    path = files("turncoder") / "resources" / "e5.json"
    sets = json.loads(path.read_text(encoding="utf8"))["sets"]
    return {
        name: [
            {"query": f"{one['query']}\n", "document": f"{one['query']}\n" if one.get("symmetric") else None}
            for one in choices
        ]
        for name, choices in sets.items()
    }


def _read_prompts(path: str) -> dict[str, dict[str, str | None]]:
    try:
        table = json.loads(Path(path).read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        raise UserError(f"prompts_file: {path} cannot be read ({error})") from error
    for name, sides in table.items() if isinstance(table, dict) else [("", None)]:
        if not isinstance(sides, dict) or not set(sides) <= {"query", "document"} or not _are_texts(sides.values()):
            raise UserError(f'prompts_file: {path}: {name!r} must be {{"query": "...", "document": "..."}}')
    return table


def _are_texts(values: Iterable[Any]) -> bool:
    return all(value is None or isinstance(value, str) for value in values)
