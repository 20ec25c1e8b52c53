"""Labels of words from the states of a backbone: any number of linear heads in one pass.

In the names of tensors: M words, K layers that are read together, D width, C classes, E = K x D.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedTokenizerBase

from turncoder.data.alignment import Alignment, align_words
from turncoder.data.tokenizer import pad_token_id
from turncoder.train.features import Reading, read_states
from turncoder.train.linear import apply_head

__all__ = ["Head", "Reader", "predict"]

logger = logging.getLogger("turncoder")

ODD = {
    "cut_sentences": "sentences are longer than max_seq_length and go through in windows",
    "cut_words": "words are longer than that and have only their first tokens",
    "words_without_token": "words have no token of their own and take the one before them",
}


@dataclass(frozen=True)
class Reader:
    """How the states of words are read from an encoder.

    Attributes
    ----------
    limit
        Tokens that are read at once.
    bos
        The token put in front where the tokenizer puts none; None where nothing is.
    merge
        A word is the mean of its tokens; else its first.
    """

    limit: int
    bos: int | None
    merge: bool

    def align(self, tokenizer: PreTrainedTokenizerBase, data: Dataset, where: str | None = None) -> Alignment:
        """Find the tokens of every word of some sentences; ``where`` they are from: say what is odd about them."""
        alignment = align_words(tokenizer, data, limit=self.limit, bos=self.bos)
        told = [f"{alignment.counts[name]:,} {said}" for name, said in ODD.items() if alignment.counts[name]]
        if where is not None and told:
            logger.warning("%s: %s", where, "; ".join(told))
        return alignment


@dataclass(frozen=True)
class Head:
    """A linear head.

    Attributes
    ----------
    task, seed
        What it was trained for, and by which seed.
    labels
        What its classes are called.
    reading
        same_token or previous_token.
    layers
        Whose states it reads, side by side: 0 is the embeddings, -1 the last.
    weight_CE, bias_C
        float32.
    """

    task: str
    seed: int
    labels: tuple[str, ...]
    reading: Reading
    layers: tuple[int, ...]
    weight_CE: torch.Tensor
    bias_C: torch.Tensor


def predict(
    encoder: SentenceTransformer,
    reader: Reader,
    data: Dataset,
    heads: Sequence[Head],
    *,
    backbone: Any = None,
    where: str | None = None,
) -> list[list[list[str]]]:
    """Tag the words of sentences by every head, in one pass through the backbone.

    Parameters
    ----------
    encoder
        Its tokenizer cuts the text, and its backbone is read.
    reader
        How.
    data
        Rows with ``text``, and ``starts`` and ``ends`` of their words.
    heads
        Any number.
    backbone
        Read instead of the encoder's own: the same, with an adapter around it.
    where
        What the sentences are called in notices; None: there are none.

    Returns
    -------
    list of list of list of str
        For each head, for each sentence, the label of each word.
    """
    backbone = encoder.transformers_model if backbone is None else backbone
    assert backbone is not None
    read = read_states(
        backbone,
        reader.align(encoder.tokenizer, data, where),
        layers=sorted({layer for head in heads for layer in head.layers}),
        readings=sorted({head.reading for head in heads}),
        merge=reader.merge,
        pad_token_id=pad_token_id(encoder.tokenizer),
    )
    guesses: list[list[np.ndarray]] = [[] for _ in heads]
    for states in read:
        for guess, head in zip(guesses, heads, strict=True):
            states_MKD = torch.stack([states[head.reading, layer] for layer in head.layers], dim=1)
            guess.append(apply_head(states_MKD, head.weight_CE, head.bias_C).argmax(dim=1).numpy())
    guess_HM = [np.concatenate(guess) for guess in guesses]
    ends = np.cumsum([len(starts) for starts in data["starts"]])[:-1]
    return [
        [list(sentence) for sentence in np.split(np.array(head.labels, dtype=object)[guess_M], ends)]
        for head, guess_M in zip(heads, guess_HM, strict=True)
    ]
