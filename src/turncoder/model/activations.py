"""Activations: what autograd keeps during a forward pass, counted on a model without storage (torch's meta device)."""

import torch
from transformers import PreTrainedModel

__all__ = ["count_activations", "count_passes"]


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
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, tuple[torch.Tensor, int]] = {}

    def keep(saved: torch.Tensor) -> torch.Tensor:
        storage = saved.untyped_storage()
        square = saved.ndim > 2 and saved.shape[-1] == saved.shape[-2] == length
        if storage._cdata not in weights and (squares or not square):
            kept[storage._cdata] = (saved, storage.nbytes())
        return saved

    with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        out = model.base_model(
            input_ids=torch.zeros(rows, length, dtype=torch.long),
            attention_mask=torch.zeros(rows, 1, length, length, dtype=model.dtype),
            position_ids=torch.zeros(rows, length, dtype=torch.long),
            use_cache=False,
        )
    del out
    return sum(size for _, size in kept.values())


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
