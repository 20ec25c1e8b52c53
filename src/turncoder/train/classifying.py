"""Texts, or pairs of them, with a label each: an encoder and a head on its vectors, trained together.

In the names of tensors: N rows, B rows of a batch, C outputs of the head: classes, or 1 for a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import batch_to_device
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset

from turncoder.data.batching import EpochOrder

__all__ = ["LabelledTexts", "TextCollator", "TextModel", "choose_loss", "predict"]

Texts = tuple[str, ...]

COUNTED_TOGETHER = 4096


class LabelledTexts(Dataset[tuple[Texts, Any]]):
    """Rows with their labels, unrolled over epochs, each with its like in length.

    Parameters
    ----------
    texts
        One or two of each row.
    labels_N
        int64 classes, or float32 numbers.
    lengths_N
        Tokens of each row.
    epochs
        How often the rows are gone through.
    seed
        Of the order.
    batch_size
        Rows of an optimizer step.
    """

    def __init__(
        self,
        texts: Sequence[Texts],
        labels_N: np.ndarray,
        lengths_N: np.ndarray,
        *,
        epochs: int,
        seed: int,
        batch_size: int,
    ) -> None:
        self.texts = texts
        self.labels_N = labels_N
        self.epochs = epochs
        self.order = EpochOrder(len(texts), seed, lengths_N, batch_size)

    def __len__(self) -> int:
        """Count the rows over all epochs."""
        return len(self.texts) * self.epochs

    def __getitem__(self, item: int) -> tuple[Texts, Any]:
        """Give the texts of a row, and its label."""
        if not 0 <= item < len(self):
            raise IndexError(item)
        row = self.order(*divmod(item, len(self.texts)))
        return self.texts[row], self.labels_N[row]


class TextCollator:
    """Tokenises the rows of a batch, padded to the longest of them; what is beyond the model's limit is cut.

    Parameters
    ----------
    encoder
        Its tokenizer is used.
    prompt
        Stands before each row, or None.
    """

    def __init__(self, encoder: SentenceTransformer, prompt: str | None) -> None:
        self.encoder = encoder
        self.prompt = prompt

    def tokenise(self, texts: Sequence[Texts]) -> dict[str, Any]:
        """Give ``input_ids``, ``attention_mask`` [B, L] and what else the encoder takes."""
        return self.encoder.preprocess(_unwrap(texts), prompt=self.prompt)

    def count_tokens(self, texts: Sequence[Texts]) -> np.ndarray:
        """Count the tokens of each row, int64 [N], at most those that the model reads; without the prompt's."""
        lengths: list[int] = []
        for start in range(0, len(texts), COUNTED_TOGETHER):
            ids = self.encoder.tokenizer(_unwrap(texts[start : start + COUNTED_TOGETHER]), verbose=False)["input_ids"]
            lengths += map(len, ids)
        return np.minimum(lengths, self.encoder.max_seq_length or np.inf).astype(np.int64)

    def __call__(self, rows: Sequence[tuple[Texts, Any]]) -> dict[str, Any]:
        """Make the batch, with ``labels`` [B]."""
        labels_B = torch.from_numpy(np.array([label for _, label in rows]))
        return {**self.tokenise([texts for texts, _ in rows]), "labels": labels_B}


def _unwrap(texts: Sequence[Texts]) -> list[str] | list[Texts]:
    """Give rows as a tokenizer takes them: strings, or pairs."""
    return list(texts) if len(texts[0]) > 1 else [row[0] for row in texts]


class TextModel(nn.Module):
    """An encoder, with its pooling, and a linear head on its vectors.

    Parameters
    ----------
    encoder
        Its transformer is trained, or the adapter in it.
    outputs
        Classes, or 1 for a number.
    dropout
        Before the head.
    """

    def __init__(self, encoder: SentenceTransformer, outputs: int, *, dropout: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(int(encoder.get_embedding_dimension() or 0), outputs)

    def forward(self, labels: torch.Tensor | None = None, **features: Any) -> torch.Tensor:
        """Give the outputs [B, C] of the head; no softmax: that is the loss's."""
        vectors_BD = self.encoder(features)["sentence_embedding"].float()
        return self.head(self.dropout(vectors_BD))


def choose_loss(is_number: bool, weight_C: np.ndarray | None = None) -> Any:
    """Give the loss of a batch, summed over its rows: the square of what a number is off by, or cross-entropy.

    Parameters
    ----------
    is_number
        What is predicted is one.
    weight_C
        What the cross-entropy of a row of each class is multiplied with.
    """
    if is_number:
        return _add_squares
    return partial(_add_entropies, weight_C=None if weight_C is None else torch.from_numpy(weight_C))


def _add_squares(outputs_B1: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
    return functional.mse_loss(outputs_B1[:, 0].float(), labels_B, reduction="sum")


def _add_entropies(logits_BC: torch.Tensor, labels_B: torch.Tensor, *, weight_C: torch.Tensor | None) -> torch.Tensor:
    weight_C = None if weight_C is None else weight_C.to(logits_BC.device)
    return functional.cross_entropy(logits_BC.float(), labels_B, weight=weight_C, reduction="sum")


@torch.no_grad()
def predict(model: TextModel, collate: TextCollator, texts: Sequence[Texts], batch_size: int) -> np.ndarray:
    """Give the outputs of the head for texts, float32 [N, C], batches of like length at a time."""
    training = model.training
    model.eval()
    order_N = np.argsort([-sum(map(len, row)) for row in texts], kind="stable")  # by characters: near enough here
    parts = []
    for start in range(0, len(texts), batch_size):
        rows = order_N[start : start + batch_size]
        features = batch_to_device(collate.tokenise([texts[row] for row in rows]), model.head.weight.device)
        parts.append(model(**features).float().cpu().numpy())
    model.train(training)
    outputs_NC = np.concatenate(parts)
    outputs_NC[order_N] = outputs_NC.copy()
    return outputs_NC
