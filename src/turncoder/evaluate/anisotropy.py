"""How much the states of different tokens point one way, layer by layer.

Ethayarajh 2019, arXiv 1909.00512: the mean cosine of the states of two tokens drawn at random, here over all pairs.

Legend: B batch, L length, D width, N tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

__all__ = ["mean_cosine", "measure_anisotropy"]


def mean_cosine(states_ND: Tensor) -> float:
    """Mean cosine over all pairs of different rows: ``(|sum u|^2 - N) / (N (N - 1))`` for unit vectors u."""
    count = len(states_ND)
    units_ND = torch.nn.functional.normalize(states_ND.double(), dim=1)
    return float((units_ND.sum(0).square().sum() - units_ND.square().sum()) / (count * (count - 1)))


@torch.no_grad()
def measure_anisotropy(backbone: PreTrainedModel, token_ids_BL: Tensor, attention_mask_BL: Tensor) -> list[float]:
    """Measure the mean cosine between tokens of some texts at every layer, the embeddings first.

    The model is put into evaluation mode for it.
    """
    was_training = backbone.training
    backbone.eval()
    output = backbone(
        input_ids=token_ids_BL, attention_mask=attention_mask_BL, output_hidden_states=True, use_cache=False
    )
    backbone.train(was_training)
    return [round(mean_cosine(states_BLD[attention_mask_BL.bool()]), 5) for states_BLD in output.hidden_states]
