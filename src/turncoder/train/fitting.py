"""A head of its own for a headless model under RMSNorm, fitted to what its logits should be on states of text.

Legend: K rows, D width, V vocabulary.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from turncoder.config.heads import HeadConfig
from turncoder.config.keys import locate_model
from turncoder.config.pretraining import PretrainConfig
from turncoder.data.masking import MaskedBlocks
from turncoder.data.tokenizer import end_documents, load_tokenizer
from turncoder.errors import UserError
from turncoder.hub import locate_parent
from turncoder.model.backbone import find_kind, resolve_model
from turncoder.model.completion import diverge, fit_head, put_prior
from turncoder.model.heads import Head, take_backbone, take_head
from turncoder.model.isolation import choose_masks
from turncoder.objectives.alignment import select_rows
from turncoder.train.text import Text, open_text

__all__ = ["fit_prior"]

logger = logging.getLogger("turncoder")

FITTED, MEASURED = 200_000, 20_000  # states
STATE_BYTES = 1 << 30
AT_ONCE = 32  # rows of text
SOURCES = ("train_file", "dataset_name", "dataset_config_name", "text_column")
CUTTING = (
    "max_seq_length", "line_by_line", "append_eos", "validation_split_percentage", "mlm_probability", "mask_token_type",
    "isolate_documents",
)  # fmt: skip


def fit_prior(
    config: HeadConfig, model: PreTrainedModel, target: Head, bias_V: Tensor, temperature: float
) -> dict[str, Any]:
    """Give a model a head of its own whose logits come near those of another head, on the text of a configuration.

    Parameters
    ----------
    config
        Names the text; else it is that of the run.
    model
        Changed in place.
    target
        What the logits should be.
    bias_V, temperature
        As for `turncoder.model.completion.put_prior`.

    Returns
    -------
    dict
        ``steps``, ``divergence`` (KL in nats per token of held-out text) and ``divergence_before``, ``cross_entropy``
        of the result and ``cross_entropy_wanted`` of the target.

    Raises
    ------
    UserError
        There is no text, or it cannot be read.
    """
    pretraining = _name_text(config)
    tokenizer = load_tokenizer(resolve_model(str(config.model_name_or_path)), **locate_model(config))
    backbone = take_backbone(model)
    text = open_text(pretraining, backbone, end_documents(tokenizer, pretraining.append_eos))
    shift = 1 if pretraining.kind == "clm" else 0
    width = model.get_output_embeddings().weight.shape[1]
    rows_KD, _ = _gather(backbone, text, shift, min(FITTED, STATE_BYTES // (4 * width)))
    held_out = _gather(backbone, text, shift, MEASURED, held_out=True)
    put_prior(model, bias_V, temperature, rows_KD)
    head = take_head(model)
    before, wanted, found = diverge(head, target, *held_out)
    after, steps, start = before, 0, [one.detach().clone() for one in head.parameters()]
    fit_head(head, target, rows_KD, steps=config.fit_steps, seed=config.seed)
    fitted, _, other = diverge(head, target, *held_out)
    if fitted < before:
        after, steps, found = fitted, config.fit_steps, other
    else:
        with torch.no_grad():
            for one, kept in zip(head.parameters(), start, strict=True):
                one.copy_(kept)
        if config.fit_steps:
            logger.warning(
                "the fit of %d steps ends at %.4f nats, no better than its start, which is kept; raise --fit_steps",
                config.fit_steps, fitted,
            )  # fmt: skip
    logger.info(
        "on held-out text: KL from the exact logits, h E^T + log p, %.4f nats a token (%.4f before the fit of %d "
        "steps); cross-entropy %.4f, of the exact logits %.4f",
        after, before, config.fit_steps, found, wanted,
    )  # fmt: skip
    return {
        "steps": steps,
        "divergence": after,
        "divergence_before": before,
        "cross_entropy": found,
        "cross_entropy_wanted": wanted,
    }


def _name_text(config: HeadConfig) -> PretrainConfig:
    """Say which text it is and how it is cut: as given, else as the run did."""
    name, where = str(config.model_name_or_path), locate_model(config)
    path = next((one / "run.json" for one in (Path(name), Path(name).parent) if (one / "run.json").exists()), None)
    run = json.loads(path.read_text(encoding="utf8")) if path else {}
    kept = run.get("config", {})
    given = {key: getattr(config, key) for key in SOURCES}
    if not (config.train_file or config.dataset_name):
        given = {key: kept.get(key) for key in (*SOURCES, "validation_file")}
        for key in ("train_file", "validation_file", "dataset_name"):
            given[key] = given[key] and locate_parent(given[key], run)
    if not (given["train_file"] or given["dataset_name"]):
        raise UserError(
            f"the head of {name} has to be fitted to text, for log p goes into no weight of this architecture: give "
            "--train_file (or --no-prior, and do without log p)"
        )
    return PretrainConfig(
        **{key: kept[key] for key in CUTTING if key in kept},
        **given,
        model_name_or_path=name,
        model_revision=config.model_revision,
        cache_dir=config.cache_dir,
        trust_remote_code=config.trust_remote_code,
        objective="cross_entropy",
        kind=find_kind(name, **where),
        seed=config.seed,
    )


@torch.no_grad()
def _gather(
    backbone: PreTrainedModel, text: Text, shift: int, most: int, *, held_out: bool = False
) -> tuple[Tensor, Tensor]:
    """Gather states that predict, and what they predict: rows_KD, targets_K."""
    if held_out:
        blocks = MaskedBlocks(text.validation, text.eval_masking, evaluation=True)
    else:
        blocks = MaskedBlocks(text.train, text.masking)
    parts: list[tuple[Tensor, Tensor]] = []
    for start in range(0, len(blocks), AT_ONCE):
        batch = text.collate([blocks[row] for row in range(start, min(start + AT_ONCE, len(blocks)))])
        masks = choose_masks(backbone, batch, isolate=text.isolate)
        states_BLD = backbone(input_ids=batch["input_ids"], use_cache=False, **masks).last_hidden_state
        parts.append(select_rows(states_BLD, batch["labels"], shift))
        if sum(len(rows_KD) for rows_KD, _ in parts) >= most:
            break
    rows_KD, targets_K = (torch.cat(part)[:most] for part in zip(*parts, strict=True))
    return rows_KD, targets_K
