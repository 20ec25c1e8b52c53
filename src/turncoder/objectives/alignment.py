"""Masked next token prediction: the token at t is predicted from the hidden state at t - 1.

Legend: B batch, L length, D width, K selected rows.
"""

from torch import Tensor

__all__ = ["IGNORED", "select_batch", "select_rows"]

IGNORED = -100
"""The label of a position that carries no loss, as everywhere in transformers."""


def select_rows(hidden_BLD: Tensor, labels_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Gather the states that predict a labelled token, and those tokens.

    The label at t goes with the state at t - 1 (LLM2Vec, arXiv 2404.05961, section 2.2). Position 0 has no state
    before it, so its label is never used. Padding carries no label and is therefore never selected.

    Parameters
    ----------
    hidden_BLD
        Last hidden states.
    labels_BL
        Token ids where there is something to predict, ``IGNORED`` elsewhere.

    Returns
    -------
    rows_KD, targets_K
        In the order of the positions, row by row; K may be 0.
    """
    length, width = hidden_BLD.shape[1:]
    batch_K, before_K = _positions(labels_BL)
    rows_KD = hidden_BLD.reshape(-1, width).index_select(0, batch_K * length + before_K)
    return rows_KD, labels_BL[batch_K, before_K + 1]


def select_batch(labels_BL: Tensor) -> Tensor:
    """Say for each row that ``select_rows`` gathers which sequence of the batch it came from, as batch_K."""
    return _positions(labels_BL)[0]


def _positions(labels_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Sequence and position of the state before every label."""
    batch_K, before_K = (labels_BL[:, 1:] != IGNORED).nonzero(as_tuple=True)
    return batch_K, before_K
