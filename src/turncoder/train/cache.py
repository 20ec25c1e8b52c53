"""Which batches need their gradients cached: those whose activations do not fit into memory."""

from __future__ import annotations

import logging
from typing import Any

from accelerate.utils import broadcast_object_list
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import batch_to_device

from turncoder.budget import free_memory, pass_tokens
from turncoder.data.batching import SetBatches
from turncoder.data.pairs import Rows
from turncoder.model.adapters import count_parameters
from turncoder.objectives.contrast import measure_activations
from turncoder.train.contrast_trainer import Collator, SetRows
from turncoder.train.running import Run

__all__ = ["choose_cache"]

logger = logging.getLogger("turncoder")

MOST_MEMORY = 0.6  # of what is free, for activations
LONGEST_BATCH = 1.25  # times the tokens of one that is looked at


def choose_cache(encoder: SentenceTransformer, run: Run, sets: list[Rows], batches: SetBatches) -> int | None:
    """Choose over how many tokens gradients are cached: None where the activations of a whole batch fit in memory."""
    if "mini_batch_num_tokens" in run.record:  # as before: dropout is drawn otherwise with the cache
        return run.record["mini_batch_num_tokens"]
    device = encoder.device
    free = free_memory(device) - 12 * count_parameters(encoder)[0]  # gradients, and AdamW's two averages
    next(iter(batches))  # says so where no step can be filled
    rows, collate = SetRows(sets), Collator(encoder, sets)
    tokens = 0
    columns: list[dict[str, Any]] = []
    for number in range(len(sets)):
        drawn = next(batches.draw_set(number, 0), None)
        if drawn is None:
            continue
        batch = collate([rows[row] for row in drawn[: len(drawn) // batches.batches]])
        parts = _split_columns(batch_to_device(batch, device))
        count = sum(int(features["attention_mask"].sum()) for features in parts)
        tokens, columns = max((tokens, columns), (count, parts), key=lambda one: one[0])
    encoder.train()
    per_token = measure_activations(encoder, columns[0], pass_tokens(device))
    needed = LONGEST_BATCH * tokens * per_token
    chosen = None
    if needed > MOST_MEMORY * free:
        chosen = max(256, int(tokens * MOST_MEMORY / 4 * max(free, 0) / needed))
        logger.warning(
            "a batch of %s tokens would keep %.1f GB and %.1f are free: gradients are cached over %s tokens at a time "
            "(mini_batch_num_tokens), which takes about two thirds more time",
            f"{tokens:,}",
            needed / 1e9,
            free / 1e9,
            f"{chosen:,}",
        )
    chosen = broadcast_object_list([chosen])[0]  # processes that measure otherwise do not do otherwise
    run.update(mini_batch_num_tokens=chosen)
    return chosen


def _split_columns(batch: dict[str, Any]) -> list[dict[str, Any]]:
    """Take a batch of `Collator` apart again: the features of each column."""
    names = [name.removesuffix("_input_ids") for name in batch if name.endswith("_input_ids")]
    return [
        {name.removeprefix(f"{column}_"): batch[name] for name in batch if name.startswith(f"{column}_")}
        for column in names
    ]
