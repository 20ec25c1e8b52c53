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
    from sklearn.decomposition import PCA

    # of the small square matrix: the axes of a hundred thousand vectors cost what those of a hundred do
    pca = PCA(2, svd_solver="covariance_eigh")
    vectors_ND = np.asarray(vectors_ND, dtype=np.float64)
    with np.errstate(invalid="ignore"):  # no variance to have a share of
        points_N2 = pca.fit_transform(vectors_ND - vectors_ND.mean(axis=0))
    return points_N2, np.nan_to_num(pca.explained_variance_ratio_).tolist()
