"""Word-level training with the backbone: an adapter, or every weight, and a head for each task.

In the names of tensors: M words, T tasks, B windows of a batch, L length, D width, W words of a batch, P tokens of
those words, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from turncoder.data.alignment import Alignment
from turncoder.data.batching import EpochOrder
from turncoder.data.labels import IGNORED, UNSEEN

__all__ = ["TaggedWindows", "WordModel", "add_losses", "collate_windows"]


class TaggedWindows(Dataset[dict[str, np.ndarray]]):
    """Windows of tokens with the words that are read in them, unrolled over epochs, each with its like in length.

    Parameters
    ----------
    alignment
        Of the training sentences.
    labels_MT
        int64: classes of each word in each task.
    shift
        0 reads a word at its tokens, 1 at the tokens before each.
    merge
        Read all tokens of a word; else its first.
    epochs
        How often the windows are gone through.
    seed
        Of the order.
    batch_size
        Windows of an optimizer step.
    """

    def __init__(
        self,
        alignment: Alignment,
        labels_MT: np.ndarray,
        *,
        shift: int,
        merge: bool,
        epochs: int,
        seed: int,
        batch_size: int,
    ) -> None:
        self.alignment = alignment
        self.labels_MT = np.where(labels_MT == UNSEEN, IGNORED, labels_MT)
        self.first_M = np.maximum(alignment.word_first - shift, 0)  # before the first token of a window is nothing
        self.last_M = np.maximum(alignment.word_last - shift, 1) if merge else self.first_M + 1
        self.starts = np.concatenate([[0], alignment.window_ends[:-1]])
        windows = np.arange(len(self.starts))
        self.word_starts = np.searchsorted(alignment.word_window, windows, side="left")
        self.word_ends = np.searchsorted(alignment.word_window, windows, side="right")
        self.windows = windows[self.word_ends > self.word_starts]
        self.epochs = epochs
        lengths = (alignment.window_ends - self.starts)[self.windows]
        self.order = EpochOrder(len(self.windows), seed, lengths, batch_size)

    def __len__(self) -> int:
        """Count the windows over all epochs."""
        return len(self.windows) * self.epochs

    def __getitem__(self, item: int) -> dict[str, np.ndarray]:
        """Give ``input_ids`` [L], and ``first``, ``last`` [W] and ``labels`` [W, T] of the words."""
        if not 0 <= item < len(self):
            raise IndexError(item)
        window = self.windows[self.order(*divmod(item, len(self.windows)))]
        words = slice(self.word_starts[window], self.word_ends[window])
        return {
            "input_ids": self.alignment.tokens[self.starts[window] : self.alignment.window_ends[window]],
            "first": self.first_M[words],
            "last": self.last_M[words],
            "labels": self.labels_MT[words],
        }


def collate_windows(features: Sequence[dict[str, np.ndarray]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Put windows into one batch, padded on the right.

    Returns
    -------
    dict of torch.Tensor
        ``input_ids``, ``attention_mask`` [B, L]; ``token_place`` [P], where in the flattened batch the tokens of words
        are, and ``token_word`` [P], whose they are; ``labels`` [W, T]. All int64.
    """
    length = max(len(feature["input_ids"]) for feature in features)
    input_ids = np.full((len(features), length), pad_token_id, dtype=np.int64)
    attention_mask = np.zeros((len(features), length), dtype=np.int64)
    places, owners, word = [], [], 0
    for row, feature in enumerate(features):
        size = len(feature["input_ids"])
        input_ids[row, :size], attention_mask[row, :size] = feature["input_ids"], 1
        for first, last in zip(feature["first"], feature["last"], strict=True):
            places.append(np.arange(row * length + first, row * length + last))
            owners.append(np.full(last - first, word))
            word += 1
    batch = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "token_place": np.concatenate(places).astype(np.int64),
        "token_word": np.concatenate(owners).astype(np.int64),
        "labels": np.concatenate([feature["labels"] for feature in features]).astype(np.int64),
    }
    return {name: torch.from_numpy(values) for name, values in batch.items()}


class WordModel(nn.Module):
    """A backbone and a linear head for each task on the states of words.

    Parameters
    ----------
    backbone
        With its adapter, if it has one.
    classes
        How many each task has.
    width
        Of the backbone's states.
    layer
        Whose states are read, from 0; None the last.
    dropout
        Before the heads.
    """

    def __init__(
        self,
        backbone: PreTrainedModel | PeftModel,
        classes: dict[str, int],
        width: int,
        *,
        layer: int | None,
        dropout: float,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.layer = layer
        self.dropout = nn.Dropout(dropout)
        # A task may have any name, a module may not
        self.heads: Any = nn.ModuleList(nn.Linear(width, count) for count in classes.values())

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_place: torch.Tensor,
        token_word: torch.Tensor,
        labels: torch.Tensor,
    ) -> list[torch.Tensor]:
        """Give the logits [W, C] of each task."""
        output = self.backbone(
            input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=self.layer is not None
        )
        hidden_BLD = output.last_hidden_state if self.layer is None else output.hidden_states[self.layer]
        states_PD = hidden_BLD.flatten(0, 1)[token_place].float()
        words = len(labels)
        sums_WD = states_PD.new_zeros(words, states_PD.shape[1]).index_add(0, token_word, states_PD)
        states_WD = sums_WD / torch.bincount(token_word, minlength=words)[:, None]
        return [head(self.dropout(states_WD)) for head in self.heads]


def add_losses(logits: Sequence[torch.Tensor], labels_WT: torch.Tensor) -> torch.Tensor:
    """Sum the cross-entropy of all labels of all tasks."""
    losses = [
        functional.cross_entropy(logits_WC.float(), labels_W, ignore_index=IGNORED, reduction="sum")
        for logits_WC, labels_W in zip(logits, labels_WT.unbind(1), strict=True)
    ]
    return torch.stack(losses).sum()
