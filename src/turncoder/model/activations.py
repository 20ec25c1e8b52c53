"""Activations: what autograd keeps during a forward pass, on a model with storage or without (torch's meta device)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

__all__ = ["count_activations", "count_passes", "count_saved"]


def count_saved(
    model: nn.Module, run: Callable[[], Any], skip: Callable[[torch.Tensor], bool] = lambda saved: False
) -> int:
    """Count the bytes that autograd keeps of a forward pass, weights aside.

    Parameters
    ----------
    model
        Whose weights are not counted.
    run
        Makes the pass; what it returns is held until all is counted.
    skip
        Says which tensors are not counted either.
    """
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, tuple[torch.Tensor, int]] = {}

    def keep(saved: torch.Tensor) -> torch.Tensor:
        storage = saved.untyped_storage()
        if storage._cdata not in weights and not skip(saved):
            kept[storage._cdata] = (saved, storage.nbytes())  # held, so that no other takes its place
        return saved

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        out = run()
    del out
    return sum(size for _, size in kept.values())


def count_activations(model: PreTrainedModel, rows: int, length: int, *, squares: bool) -> int:
    """Count the bytes that autograd keeps between the forward and the backward pass of the backbone.

    Parameters
    ----------
    model
        On the meta device, trainable as the run would have it.
    rows, length
        Of a batch.
    squares
        Whether attention keeps its (length x length) weights: eager attention does, fused kernels do not.
    """
    with torch.device("meta"):
        inputs = {
            "input_ids": torch.zeros(rows, length, dtype=torch.long),
            "attention_mask": torch.zeros(rows, 1, length, length, dtype=model.dtype),
            "position_ids": torch.zeros(rows, length, dtype=torch.long),
        }
        return count_saved(
            model,
            lambda: model.base_model(**inputs, use_cache=False),
            lambda saved: not squares and saved.ndim > 2 and saved.shape[-1] == saved.shape[-2] == length,
        )


def count_passes(model: PreTrainedModel, passes: list[tuple[int, int]], *, squares: bool, recompute: bool) -> int:
    """Count the bytes that autograd keeps of several passes: they grow with the length and its square.

    Parameters
    ----------
    model
        On the meta device, trainable as the run would have it.
    passes
        Rows and length of each.
    squares
        As for `count_activations`.
    recompute
        Only what goes into each layer is kept, and one layer at a time is computed again.
    """
    rows, longest = max(rows for rows, _ in passes), max(length for _, length in passes)
    at_longest = count_activations(model, rows, longest, squares=squares) / (rows * longest)
    slope, shorter = 0.0, longest // 2
    if shorter and any(length != longest for _, length in passes):
        at_shorter = count_activations(model, rows, shorter, squares=squares) / (rows * shorter)
        slope = (at_longest - at_shorter) / (longest - shorter)
    kept = [rows * length * (at_longest + slope * (length - longest)) for rows, length in passes]
    if not recompute:
        return round(sum(kept))
    text_config = model.config.get_text_config()
    tokens = sum(rows * length for rows, length in passes)
    width, layers = text_config.hidden_size, text_config.num_hidden_layers
    return round(max(kept) / layers) + layers * tokens * width * (2 if model.dtype != torch.float32 else 4)
