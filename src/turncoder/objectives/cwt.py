"""Contrastive weight tying: a state is to find the embedding of its target among those of a pool of other targets.

Godey, de la Clergerie, Sagot 2024, Headless Language Models, arXiv 2309.08351, section 3. With rows h_i, targets y_i
and the model's input embeddings E, the published loss over the K rows of a batch is

    L = 1/K sum_i [ log sum_j exp(h_i E[y_j] / T) - h_i E[y_i] / T ]

The K columns hold every target as often as it occurs. Grouped by id u with counts c_u they are the U unique ids with
``log c_u`` added to their logits: the same loss and the same gradients from a U-th of the columns. A negative is an id,
so the pool may be any set of ids, whichever rows a device holds.

Its optimum is ``h E_y / T = log p(y | context) - log p(y) + const`` (that of InfoNCE with negatives drawn from p): a
model read through E alone lacks the unigram prior, which ``turncoder.model.prior`` gives back. With the correction
``tau`` each column loses ``tau log p``; at 1 that is the sampled softmax with the logQ correction (Bengio and Senecal
2008), and only ``(1 - tau) log p`` is lacking.

Legend: K rows, D width, V vocabulary, U unique ids of the pool, N ids that were drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from turncoder.objectives.walk import walk_classes

__all__ = ["Pool", "contrast", "draw_pool", "pool_targets"]


@dataclass(frozen=True)
class Pool:
    """The ids that a row is contrasted with.

    Attributes
    ----------
    ids_U
        Distinct token ids in ascending order; every target of every row is among them.
    counts_U
        How often each stands in the pool, as floats.
    holds_targets
        Whether the targets stand in the pool by themselves; else the target of a row is added for that row alone, and
        an id that is nothing but a target has count 0.
    """

    ids_U: Tensor
    counts_U: Tensor
    holds_targets: bool = True


def pool_targets(targets_K: Tensor) -> Pool:
    """Make the pool of the published loss: the targets themselves, of a batch, a window or all processes."""
    ids_U, counts_U = torch.unique(targets_K, return_counts=True)
    return Pool(ids_U, counts_U.float())


def draw_pool(targets_K: Tensor, log_prior_V: Tensor, size: int, *, seed: int, step: int) -> Pool:
    """Draw negatives from the unigram distribution, with replacement: the same for every process that asks.

    Parameters
    ----------
    targets_K
        Of the rows that will meet the pool.
    log_prior_V
        log p.
    size
        How many are drawn, N.
    seed, step
        What the draw depends on, besides log p.
    """
    draw = np.random.Generator(np.random.Philox(key=[seed % 2**64, step]))
    edges_V = log_prior_V.double().exp().cumsum(0).cpu().numpy()
    drawn_N = np.searchsorted(edges_V, draw.random(size) * edges_V[-1], side="right").clip(max=len(edges_V) - 1)
    drawn = torch.from_numpy(drawn_N).to(targets_K)
    ids_U, place = torch.unique(torch.cat([drawn, targets_K]), return_inverse=True)
    return Pool(ids_U, torch.bincount(place[:size], minlength=len(ids_U)).float(), holds_targets=False)


def contrast(
    rows_KD: Tensor,
    targets_K: Tensor,
    weight_VD: Tensor,
    pool: Pool,
    *,
    bias_V: Tensor | None = None,
    log_prior_V: Tensor | None = None,
    tau: float = 0.0,
    scale: float = 1.0,
    budget_bytes: int,
    sparse: bool = False,
) -> Tensor:
    """Sum of the contrastive losses of the rows, with exact gradients.

    Parameters
    ----------
    rows_KD
        What enters the output embedding, of any float type.
    targets_K
        Token ids; all of them in the pool.
    weight_VD
        The embeddings that are contrasted: those of the input, or a head's.
    pool
        From `pool_targets` or `draw_pool`.
    bias_V
        Of a head, on its logits.
    log_prior_V, tau
        Each logit loses ``tau * log p``.
    scale
        1 / T.
    budget_bytes
        Largest size in bytes of what is held of the (K x U) matrix at any moment, at least a row.
    sparse
        The gradient of ``weight_VD`` holds only the rows of the pool.

    Returns
    -------
    Tensor
        A scalar; divided by the count of rows, it is the published loss. It is 0 for a pool of one id but for the
        constant ``log c``, and teaches nothing. Its floor depends on the size of the pool: compare models by their
        cross-entropy.
    """
    if rows_KD.shape[0] == 0:
        return rows_KD.sum(dtype=torch.float32)
    weight_UD = F.embedding(pool.ids_U, weight_VD, sparse=sparse and weight_VD.requires_grad)
    classes_K = torch.searchsorted(pool.ids_U, targets_K)
    log_counts_U = pool.counts_U.log()
    shifts_U = torch.zeros_like(log_counts_U)
    if bias_V is not None:
        shifts_U += bias_V.detach()[pool.ids_U]
    if tau:
        assert log_prior_V is not None
        shifts_U -= tau * log_prior_V[pool.ids_U]
    # The walk multiplies bias and product alike
    bias_U, apart_K = (shifts_U + log_counts_U) / scale, None
    if not pool.holds_targets:
        apart_K = shifts_U[classes_K] / scale
    total = walk_classes(rows_KD, weight_UD, bias_U, classes_K, scale=scale, apart_K=apart_K, budget_bytes=budget_bytes)
    return total + log_counts_U[classes_K].sum() if pool.holds_targets else total
