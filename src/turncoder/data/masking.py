"""Masked language modelling: which tokens are hidden, and what stands in their place.

Every draw is a pure function of (seed, epoch, row), taken from Philox, a counter-based generator: item k is the same
whoever asks for it, whenever, in whichever process. So resuming is exact, and two processes draw what one would.

Shape legend: B batch, L length.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from turncoder.data.batching import EpochOrder

if TYPE_CHECKING:
    from turncoder.data.blocks import Blocks

__all__ = ["EVALUATION_EPOCH", "EVALUATION_SEED", "IGNORED", "MaskedBlocks", "Masking", "MaskingStyle", "collate"]

MaskingStyle = Literal["default", "all_mask", "unmasked"]
IGNORED = -100
EVALUATION_EPOCH = 2**63  # no training epoch comes here, so evaluation has masks of its own, the same every time
EVALUATION_SEED = 42
"""Of the rows and masks that are measured on, whatever the run's seed: its seed is that of training alone."""


@dataclass(frozen=True)
class Masking:
    """How rows are corrupted, with the semantics of LLM2Vec (those of transformers' masking collator).

    Each token that is not special is selected with probability ``mlm_probability``, independently. Of the selected,
    ``"default"`` turns 80 % into the mask token, 10 % into a token drawn from the whole vocabulary and leaves 10 %;
    ``"all_mask"`` masks all; ``"unmasked"`` corrupts nothing and makes every token a label (causal training).

    Attributes
    ----------
    mlm_probability
        Chance of a token to be selected, in [0, 1].
    mask_token_id
        What stands in the place of a masked token.
    vocab_size
        Random tokens are drawn from [0, vocab_size).
    special_ids
        Tokens that are never selected.
    style
        ``"default"``, ``"all_mask"`` or ``"unmasked"``.
    seed
        The run's seed.
    mask_share, random_share
        Shares of the selected under ``"default"``; the rest stays as it is.
    first_counts
        Whether the first token of a row can be predicted: from its own state it can, from the one before it cannot.
    """

    mlm_probability: float
    mask_token_id: int
    vocab_size: int
    special_ids: tuple[int, ...] = ()
    style: MaskingStyle = "default"
    seed: int = 42
    mask_share: float = 0.8
    random_share: float = 0.1
    first_counts: bool = False

    def corrupt(self, token_ids: np.ndarray, epoch: int, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Corrupt one row.

        Parameters
        ----------
        token_ids
            Integer array of shape [L].
        epoch, row
            What the draw depends on, beside the seed.

        Returns
        -------
        tuple of numpy.ndarray
            ``input_ids`` [L] and ``labels`` [L], int64: the original token where one is to be predicted, -100
            elsewhere. Unless ``first_counts``, position 0 is never a label (its input may be corrupted, as in
            LLM2Vec).
        """
        inputs_L = token_ids.astype(np.int64)
        if self.style == "unmasked":
            labels_L = inputs_L.copy()
            self._leave_first(labels_L)
            return inputs_L, labels_L
        draw = np.random.Generator(np.random.Philox(counter=[0, 0, row, 0], key=[self.seed % 2**64, epoch]))
        chance_2L = draw.random((2, len(inputs_L)))
        selected_L = chance_2L[0] < self.mlm_probability
        for special in self.special_ids:
            selected_L &= inputs_L != special
        labels_L = np.where(selected_L, inputs_L, IGNORED)
        self._leave_first(labels_L)
        if self.style == "all_mask":
            inputs_L[selected_L] = self.mask_token_id
            return inputs_L, labels_L
        random_L = selected_L & (chance_2L[1] >= self.mask_share) & (chance_2L[1] < self.mask_share + self.random_share)
        inputs_L[selected_L & (chance_2L[1] < self.mask_share)] = self.mask_token_id
        inputs_L[random_L] = draw.integers(0, self.vocab_size, int(random_L.sum()))
        return inputs_L, labels_L

    def _leave_first(self, labels_L: np.ndarray) -> None:
        if not self.first_counts:
            labels_L[:1] = IGNORED


class MaskedBlocks(Dataset[dict[str, np.ndarray]]):
    """Blocks, corrupted, unrolled over epochs: item k is row ``order(k // N)[k % N]``, masked for epoch ``k // N``.

    A sequential sampler over it is the whole training order, so any way of dividing or resuming it is exact.

    Parameters
    ----------
    blocks
        The rows.
    masking
        How they are corrupted; its seed also orders them.
    epochs
        How often the rows are gone through.
    evaluation
        Rows in their own order, once, always under the same masks.
    batch_size
        Rows of unequal length are put with their like, this many at a time (rows per optimizer step).
    """

    def __init__(
        self, blocks: "Blocks", masking: Masking, *, epochs: int = 1, evaluation: bool = False, batch_size: int = 8
    ) -> None:
        self.blocks = blocks
        self.masking = masking
        self.epochs = 1 if evaluation else epochs
        self.evaluation = evaluation
        lengths = None if evaluation or blocks.is_packed else blocks.lengths()
        self.order = None if evaluation else EpochOrder(len(blocks), masking.seed, lengths, batch_size)

    def __len__(self) -> int:
        """Count the rows over all epochs."""
        return len(self.blocks) * self.epochs

    def __getitem__(self, item: int) -> dict[str, np.ndarray]:
        """Give ``input_ids``, ``labels`` and ``document_ids`` [L] of one item, int64."""
        if not 0 <= item < len(self):
            raise IndexError(item)
        epoch, row = divmod(item, len(self.blocks))
        if self.order is None:
            epoch = EVALUATION_EPOCH
        else:
            row = self.order(epoch, row)
        token_ids, document_ids = self.blocks[row]
        input_ids, labels = self.masking.corrupt(token_ids, epoch, row)
        return {"input_ids": input_ids, "labels": labels, "document_ids": document_ids}


def collate(
    features: Sequence[Mapping[str, Any]], pad_token_id: int, pad_to: int | None = None
) -> dict[str, torch.Tensor]:
    """Put rows of any lengths into one batch, padded on the right.

    Parameters
    ----------
    features
        Items of :class:`MaskedBlocks`.
    pad_token_id
        What fills ``input_ids``; nothing attends to it.
    pad_to
        Length of the batch; None means that of its longest row.

    Returns
    -------
    dict of torch.Tensor
        ``input_ids``, ``attention_mask``, ``labels``, ``document_ids``, int64 of shape [B, L]. On padding:
        attention 0, label -100, document -1.
    """
    length = max(len(feature["input_ids"]) for feature in features)
    shape = (len(features), max(length, pad_to or 0))
    fills = {"input_ids": pad_token_id, "attention_mask": 0, "labels": IGNORED, "document_ids": -1}
    batch = {name: np.full(shape, fill, dtype=np.int64) for name, fill in fills.items()}
    for place, feature in enumerate(features):
        size = len(feature["input_ids"])
        batch["attention_mask"][place, :size] = 1
        for name in ("input_ids", "labels", "document_ids"):
            batch[name][place, :size] = feature[name]
    return {name: torch.from_numpy(values) for name, values in batch.items()}
