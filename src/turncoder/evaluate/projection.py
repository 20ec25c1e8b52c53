"""Vectors in the plane of their two largest principal components.

Shapes: N vectors, Q queries, each with a document, D width.
"""

from typing import Any

import numpy as np

__all__ = ["map_pairs", "project"]

MAPPED = 150
"""Pairs of a map; more would hide each other."""


def map_pairs(queries_QD: np.ndarray, documents_QD: np.ndarray) -> dict[str, Any]:
    """Give the places of the first ``queries`` and their ``documents`` in the plane of all, and its ``shares``."""
    points_N2, shares = project(np.concatenate([queries_QD, documents_QD]))
    queries, documents = (side[:MAPPED].tolist() for side in np.split(points_N2.round(4), 2))
    return {"queries": queries, "documents": documents, "shares": shares}


def project(vectors_ND: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """Project vectors onto the plane in which they differ most.

    Parameters
    ----------
    vectors_ND
        Two or more vectors, of two or more numbers.

    Returns
    -------
    tuple
        Points, float64 [N, 2]; and the shares of the variance along the two axes, which are 0 where all are the same.
        An axis points where its largest component is positive, so that the same vectors give the same picture.
    """
    centred_ND = np.asarray(vectors_ND, dtype=np.float64)
    centred_ND = centred_ND - centred_ND.mean(axis=0)
    # of the small square matrix: the axes of a hundred thousand vectors cost what those of a hundred do
    variance_D, axis_DD = np.linalg.eigh(centred_ND.T @ centred_ND)
    axis_D2 = axis_DD[:, :-3:-1]
    axis_D2 = axis_D2 * np.sign(axis_D2[np.abs(axis_D2).argmax(axis=0), np.arange(2)])
    whole = max(float(variance_D.clip(0).sum()), np.finfo(np.float64).tiny)
    return centred_ND @ axis_D2, [float(max(0, one) / whole) for one in variance_D[:-3:-1]]
