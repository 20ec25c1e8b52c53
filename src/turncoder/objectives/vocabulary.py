"""Cross-entropy over a vocabulary that never builds all logits.

Rows and vocabulary are both cut into tiles (`turncoder.objectives.walk`); what is no linear head runs as the model has
it, some rows at a time.

Legend: K selected rows, D width, V vocabulary.
"""

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from turncoder.objectives.walk import choose_precision, walk_classes

__all__ = ["VocabularyHead", "cross_entropy", "score_rows"]


class VocabularyHead(Protocol):
    """What the loss needs of a head; ``turncoder.model.heads.Head`` is one."""

    is_linear: bool
    """Whether logits are ``cap(scale * (features(rows) @ weight.T + bias))``."""
    scale: float
    softcap: float | None

    @property
    def weight_VD(self) -> Tensor:
        """The output embedding."""

    @property
    def bias_V(self) -> Tensor | None:
        """Its bias, if it has one."""

    def features(self, rows_KD: Tensor) -> Tensor:
        """Return what enters the weight: for most models the rows themselves."""

    def parameters(self) -> Iterable[Tensor]:
        """Parameters that belong to the head alone."""

    def __call__(self, rows_KD: Tensor) -> Tensor:
        """Logits of the rows, as the model computes them."""


def cross_entropy(rows_KD: Tensor, targets_K: Tensor, head: VocabularyHead, *, budget_bytes: int) -> Tensor:
    """Sum of the negative log-likelihoods of the targets, with exact gradients.

    The gradients are formed in the forward pass, and only those that are needed: of the rows, and of the head's weight
    and bias where they require one. The log-sum-exp is in fp32 (fp64 for fp64 rows) whatever the rows and weights are.

    Parameters
    ----------
    rows_KD
        Hidden states, any float type. Under autocast they meet the weight in autocast's type.
    targets_K
        Token ids in [0, V).
    head
        From ``turncoder.model.heads.take_head``.
    budget_bytes
        Largest size in bytes of what is held of the (rows x vocabulary) matrix at any moment. Training the head or
        a head that is not linear needs at least one row of it.

    Returns
    -------
    Tensor
        A scalar; divide it by the count of rows, over accumulation and ranks, for the mean. Zero when K is 0.
    """
    if rows_KD.shape[0] == 0:
        return rows_KD.sum(dtype=choose_precision(rows_KD.dtype))
    if not head.is_linear:
        parameters = [weight for weight in head.parameters() if weight.requires_grad]
        return _OwnHead.apply(rows_KD, targets_K, head, budget_bytes, torch.is_grad_enabled(), *parameters)
    features_KD, weight_VD, bias_V = head.features(rows_KD), head.weight_VD, head.bias_V
    if features_KD.is_cuda and not torch.is_autocast_enabled("cuda"):
        loss = _liger(features_KD, targets_K, head, weight_VD, bias_V, budget_bytes)
        if loss is not None:
            return loss
    return walk_classes(
        features_KD, weight_VD, bias_V, targets_K, scale=head.scale, softcap=head.softcap, budget_bytes=budget_bytes
    )


@torch.no_grad()
def score_rows(
    rows_KD: Tensor, targets_K: Tensor, head: VocabularyHead, *, budget_bytes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Score each target: its negative log-likelihood, and whether it is the first, or among the first five, in rank.

    The rank of a target is the count of tokens with a strictly larger logit.

    Returns
    -------
    nll_K, correct1_K, correct5_K
        fp32 and two of bool.
    """
    precision = choose_precision(rows_KD.dtype)
    nll_K = torch.empty(rows_KD.shape[0], dtype=precision, device=rows_KD.device)
    rank_K = torch.empty(rows_KD.shape[0], dtype=torch.long, device=rows_KD.device)
    lo, step = 0, 1
    while lo < rows_KD.shape[0]:
        hi = min(lo + step, rows_KD.shape[0])
        logits_KV = head(rows_KD[lo:hi]).to(precision)
        target_K1 = logits_KV.gather(1, targets_K[lo:hi, None])
        rank_K[lo:hi] = (logits_KV > target_K1).sum(1)
        highest_K1 = logits_KV.amax(1, keepdim=True)
        logits_KV = logits_KV.sub_(highest_K1).exp_()
        nll_K[lo:hi] = (logits_KV.sum(1).log_()[:, None] + highest_K1 - target_K1)[:, 0]
        # The first row tells the size of the vocabulary: own heads do not say it. Logits, their fp32 copy, a mask.
        lo, step = hi, max(1, min(256, budget_bytes // (logits_KV.shape[1] * 9)))
    return nll_K, rank_K < 1, rank_K < 5


class _OwnHead(torch.autograd.Function):
    """A head of any shape: its own forward and backward, some rows at a time."""

    @staticmethod
    def forward(
        ctx: Any,
        rows_KD: Tensor,
        targets_K: Tensor,
        head: VocabularyHead,
        budget_bytes: int,
        wants_gradients: bool,
        *parameters: Tensor,
    ) -> Tensor:
        train_rows = wants_gradients and ctx.needs_input_grad[0]
        parameters = parameters if wants_gradients else ()
        row_grads: list[Tensor] = []
        weight_grads = [torch.zeros_like(weight) for weight in parameters]
        total: Tensor | None = None
        lo, step = 0, 1
        while lo < rows_KD.shape[0]:
            part_KD = rows_KD[lo : lo + step].detach().requires_grad_(train_rows)
            inputs = [*([part_KD] if train_rows else []), *parameters]
            with torch.set_grad_enabled(bool(inputs)):
                logits_KV = head(part_KD)
            with torch.no_grad():
                slope_KV = logits_KV.detach().to(choose_precision(rows_KD.dtype), copy=True)
                targets_K1 = targets_K[lo : lo + step, None]
                nll = (slope_KV.logsumexp(1, keepdim=True) - slope_KV.gather(1, targets_K1)).sum()
                total = nll if total is None else total + nll
            # Logits, what their own graph holds, the softmax and its temporaries.
            lo, step = lo + part_KD.shape[0], max(1, budget_bytes // (logits_KV.shape[1] * 4 * 6))
            if not inputs:
                continue
            slope_KV = torch.softmax(slope_KV, 1)
            slope_KV.scatter_add_(1, targets_K1, slope_KV.new_full(targets_K1.shape, -1))
            grads = list(torch.autograd.grad(logits_KV, inputs, slope_KV.to(logits_KV.dtype), allow_unused=True))
            if train_rows:
                row_grads.append(grads.pop(0))
            for sum_, grad in zip(weight_grads, grads, strict=True):
                if grad is not None:
                    sum_ += grad
        ctx.save_for_backward(torch.cat(row_grads) if row_grads else None, *weight_grads)
        assert total is not None
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        grads = [None if grad is None else (grad * upstream).to(grad.dtype) for grad in ctx.saved_tensors]
        return (grads[0], None, None, None, None, *grads[1:])


def _liger(
    rows_KD: Tensor,
    targets_K: Tensor,
    head: VocabularyHead,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    budget_bytes: int,
) -> Tensor | None:
    """Liger's fused kernel where it is installed, applies and keeps to the budget; else None."""
    count, width = rows_KD.shape
    # It cuts the rows so that a chunk of logits is about as large as the rows are.
    fits = 2 * max(count * width, weight_VD.shape[0]) * 4 <= budget_bytes
    if not fits or head.scale != 1 or rows_KD.dtype != weight_VD.dtype:
        return None
    try:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy
    except ImportError:
        return None
    return liger_fused_linear_cross_entropy(
        rows_KD, weight_VD, targets_K, bias=bias_V, reduction="sum", softcap=head.softcap, accum_dtype=torch.float32
    )
