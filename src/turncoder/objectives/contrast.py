"""The contrastive loss, sentence-transformers' own, with its rows put through the model by length.

van den Oord et al. 2018, arXiv 1807.03748, equation 4 (InfoNCE): cosines times a scale, cross-entropy, all positives
and negatives of the batch (of all devices) as candidates. The rows of a column go through the model a number of tokens
at a time, rows of like length together: the loss is the same, and there is hardly any padding.

In the names of tensors: B rows, L positions, D width.
"""

from collections.abc import Iterable
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.losses import (
    CachedMultipleNegativesRankingLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)
from torch import Tensor, nn

from turncoder.data.batching import budget_batches
from turncoder.model.activations import count_saved

__all__ = ["ByLengthRankingLoss", "CachedRankingLoss", "build_loss", "embed_by_length", "measure_activations"]


def build_loss(
    encoder: SentenceTransformer,
    *,
    scale: float,
    symmetric: bool = False,
    gather: bool = False,
    batch_tokens: int,
    mini_batch_num_tokens: int | None = None,
    matryoshka_dims: tuple[int, ...] = (),
    distillation_weight: float | None = None,
) -> nn.Module:
    """Build the loss of an encoder.

    Parameters
    ----------
    encoder
        What is trained.
    scale
        What cosines are multiplied with: the inverse temperature.
    symmetric
        Average with the loss of finding the anchor of each positive.
    gather
        Take candidates from all devices.
    batch_tokens
        Tokens that go through the model together, padding included.
    mini_batch_num_tokens
        Cache gradients (Gao et al. 2021, arXiv 2101.06983) over so many tokens: activations of no more exist at once.
    matryoshka_dims
        Average with the losses of the first so many dimensions (Kusupati et al. 2022, arXiv 2205.13147).
    distillation_weight
        Of the divergence from a teacher, whose vectors are the labels (`turncoder.objectives.distillation`).
    """
    from turncoder.objectives.distillation import CachedDistilledRankingLoss, DistilledRankingLoss

    options: dict[str, Any] = {"scale": scale, "gather_across_devices": gather}
    if symmetric:
        options |= {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
    plain: type[Any] = ByLengthRankingLoss
    cached: type[Any] = CachedRankingLoss
    if distillation_weight is not None:
        plain, cached = DistilledRankingLoss, CachedDistilledRankingLoss
        options["weight"] = distillation_weight
    loss: nn.Module
    if mini_batch_num_tokens is not None:
        loss = cached(encoder, mini_batch_num_tokens=mini_batch_num_tokens, **options)
    else:
        loss = plain(encoder, batch_tokens=batch_tokens, **options)
    if matryoshka_dims:
        width = encoder.get_embedding_dimension()
        assert width is not None
        dims = sorted({width, *matryoshka_dims}, reverse=True)
        loss = MatryoshkaLoss(encoder, loss, matryoshka_dims=dims, matryoshka_weights=[1 / len(dims)] * len(dims))
    return loss


class ByLengthRankingLoss(MultipleNegativesRankingLoss):
    """sentence-transformers' loss, whose rows go through the model by length.

    Parameters
    ----------
    model
        What is trained.
    batch_tokens
        Tokens that go through the model together, padding included.
    **options
        Of `MultipleNegativesRankingLoss`.
    """

    def __init__(self, model: SentenceTransformer, *, batch_tokens: int, **options: Any) -> None:
        super().__init__(model, **options)
        self.batch_tokens = batch_tokens

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> Tensor:
        """Embed every column and compare."""
        columns = [embed_by_length(self.model, features, self.batch_tokens) for features in sentence_features]
        return self.compute_loss_from_embeddings(columns, labels)

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
        """Compare in float32, whatever the model computes in: cosines times 20 have no digits to spare."""
        with torch.autocast(embeddings[0].device.type, enabled=False):
            return super().compute_loss_from_embeddings([one.float() for one in embeddings], labels)


class CachedRankingLoss(CachedMultipleNegativesRankingLoss):
    """sentence-transformers' loss with cached gradients, its comparisons in float32."""

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """Compare in float32, whatever the model computes in."""
        with torch.autocast(reps[0][0].device.type, enabled=False):
            whole = [[part.float() for part in column] for column in reps]
            return super().calculate_loss(whole, labels, with_backward=with_backward)


def embed_by_length(model: nn.Module, features: dict[str, Any], batch_tokens: int) -> Tensor:
    """Embed tokenised texts, those of like length together.

    Parameters
    ----------
    model
        An encoder, or what wraps it.
    features
        ``input_ids``, ``attention_mask`` [B, L] padded on the right, and whatever else its `preprocess` gives; a batch
        of another form (flattened for kernels without padding) goes through the model as it is.
    batch_tokens
        Tokens of a pass, padding included.

    Returns
    -------
    torch.Tensor
        [B, D], in the order of the rows.
    """
    mask_BL = features.get("attention_mask")
    if mask_BL is None or mask_BL.ndim != 2 or not bool(mask_BL[:, 0].all()):
        return model(features)["sentence_embedding"]
    passes = budget_batches(mask_BL.sum(1).cpu().numpy(), batch_tokens)
    if len(passes) == 1:
        return model(features)["sentence_embedding"]
    rows_B = torch.cat([torch.from_numpy(rows) for rows in passes]).to(mask_BL.device)
    parts = [model(_take(features, torch.from_numpy(rows).to(mask_BL.device)))["sentence_embedding"] for rows in passes]
    return torch.cat(parts)[rows_B.argsort()]


def _take(features: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    """Take rows, and of their positions those that some of them fill."""
    mask_BL = features["attention_mask"]
    length = int(mask_BL[rows].sum(1).max())
    taken = {}
    for name, value in features.items():
        if isinstance(value, Tensor) and value.ndim and len(value) == len(mask_BL):
            value = value[rows]
            taken[name] = value[:, :length] if value.ndim > 1 and value.shape[1] == mask_BL.shape[1] else value
        else:
            taken[name] = value
    return taken


def measure_activations(encoder: SentenceTransformer, features: dict[str, Any], batch_tokens: int) -> float:
    """Measure the bytes that autograd keeps for a token, on the longest rows of a batch.

    Parameters
    ----------
    encoder
        As it is trained.
    features
        Of a column; they are left as they are.
    batch_tokens
        How many tokens are tried.
    """
    length_B = features["attention_mask"].sum(1)
    rows = budget_batches(length_B.cpu().numpy(), batch_tokens)[0]
    taken = _take(features, torch.from_numpy(rows).to(length_B.device))
    with torch.random.fork_rng():
        kept = count_saved(encoder, lambda: encoder(dict(taken)))
    return kept / max(1, taken["input_ids"].numel())
