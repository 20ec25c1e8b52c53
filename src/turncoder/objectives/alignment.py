"""Which state predicts which token: that before it, in causal models and in masked next token prediction, or its own.

Legend: B batch, L length, D width, K selected rows.
"""

from torch import Tensor

__all__ = ["IGNORED", "select_batch", "select_rows", "select_targets"]

IGNORED = -100
"""The label of a position that carries no loss, as everywhere in transformers."""


def select_rows(hidden_BLD: Tensor, labels_BL: Tensor, shift: int = 1) -> tuple[Tensor, Tensor]:
    """Gather the states that predict a labelled token, and those tokens.

    The label at t goes with the state at ``t - shift``: 1 in causal models and in masked next token prediction
    (LLM2Vec, arXiv 2404.05961, section 2.2), where position 0 has no state before it, so its label is never
    used; 0 in masked language models. Padding carries no label and is therefore never selected.

    Parameters
    ----------
    hidden_BLD
        Last hidden states.
    labels_BL
        Token ids where there is something to predict, ``IGNORED`` elsewhere.
    shift
        0 or 1.

    Returns
    -------
    rows_KD, targets_K
        In the order of the positions, row by row; K may be 0.
    """
    length, width = hidden_BLD.shape[1:]
    batch_K, place_K = _positions(labels_BL, shift)
    rows_KD = hidden_BLD.reshape(-1, width).index_select(0, batch_K * length + place_K)
    return rows_KD, labels_BL[batch_K, place_K + shift]


def select_batch(labels_BL: Tensor, shift: int = 1) -> Tensor:
    """Say for each row that ``select_rows`` gathers which sequence of the batch it came from, as batch_K."""
    return _positions(labels_BL, shift)[0]


def select_targets(labels_BL: Tensor, shift: int = 1) -> Tensor:
    """Give the targets that ``select_rows`` gathers, as targets_K."""
    targets_BL = labels_BL[:, shift:]
    return targets_BL[targets_BL != IGNORED]


def _positions(labels_BL: Tensor, shift: int) -> tuple[Tensor, Tensor]:
    """Sequence and position of the state that predicts every label."""
    batch_K, place_K = (labels_BL[:, shift:] != IGNORED).nonzero(as_tuple=True)
    return batch_K, place_K
