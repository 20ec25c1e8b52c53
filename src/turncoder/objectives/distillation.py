"""The contrastive loss, and beside it how far the encoder's similarities in a batch are from a teacher's.

Lin et al. 2020, arXiv 2010.11386, section 3: each anchor has a distribution over all candidates of the batch, the
softmax of its scaled cosines, and the divergence KL(teacher || student) of the two is added (Hinton et al. 2015,
arXiv 1503.02531, where the scale is an inverse temperature). sentence-transformers' `DistillKLDivLoss` has the same
divergence over the candidates of a row alone.

In the names of tensors: B rows, C columns (anchor, positive, negatives), D width.
"""

from typing import Any

import torch
from sentence_transformers.util import all_gather, all_gather_with_grad, cos_sim
from torch import Tensor

from turncoder.objectives.contrast import ByLengthRankingLoss, CachedRankingLoss

__all__ = ["CachedDistilledRankingLoss", "DistilledRankingLoss", "measure_divergence"]


def measure_divergence(columns: list[Tensor], taught: Tensor, *, scale: float, gather: bool = False) -> Tensor:
    """Measure KL(teacher || student) of the distributions over candidates, the mean over the anchors.

    Parameters
    ----------
    columns
        The student's vectors [B, D] of anchors, positives and negatives.
    taught
        The teacher's [B, C, D', 1], of any width; the last axis is there so that `MatryoshkaLoss` does not take them
        for vectors to be cut.
    scale
        What cosines are multiplied with, on both sides.
    gather
        Take the candidates of all devices, gradients included; a device has the mean over its own anchors, so that
        the mean over devices is the divergence of the joined batch.
    """
    anchors_BD, *candidates = columns
    taught_BD, *taught_candidates = (one.contiguous() for one in taught.squeeze(-1).unbind(1))
    if gather:
        candidates = [all_gather_with_grad(one) for one in candidates]
        taught_candidates = [all_gather(one) for one in taught_candidates]
    with torch.autocast(anchors_BD.device.type, enabled=False):
        student = cos_sim(anchors_BD.float(), torch.cat(candidates).float())
        teacher = cos_sim(taught_BD.float(), torch.cat(taught_candidates).float())
        return torch.nn.functional.kl_div(
            (scale * student).log_softmax(1), (scale * teacher).log_softmax(1), reduction="batchmean", log_target=True
        )


class DistilledRankingLoss(ByLengthRankingLoss):
    """`ByLengthRankingLoss` and ``weight`` times the divergence from the teacher whose vectors are the labels."""

    def __init__(self, model: Any, *, weight: float, **options: Any) -> None:
        super().__init__(model, **options)
        self.weight = weight

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
        """Add the two."""
        assert labels is not None
        divergence = measure_divergence(embeddings, labels, scale=self.scale, gather=self.gather_across_devices)
        return super().compute_loss_from_embeddings(embeddings, labels) + self.weight * divergence


class CachedDistilledRankingLoss(CachedRankingLoss):
    """The same with gradients cached; the [B, B (C - 1)] similarities of both sides are held at once."""

    def __init__(self, model: Any, *, weight: float, **options: Any) -> None:
        super().__init__(model, **options)
        self.weight = weight

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """Add the two."""
        loss = super().calculate_loss(reps, labels, with_backward=with_backward)
        assert labels is not None
        columns = [torch.cat(parts) for parts in reps]
        divergence = self.weight * measure_divergence(
            columns, labels, scale=self.scale, gather=self.gather_across_devices
        )
        if with_backward:
            divergence.backward()
            divergence = divergence.detach()
        return loss + divergence
