import numpy as np
import pytest
from sklearn.decomposition import PCA

from turncoder.evaluate.projection import map_pairs, project


@pytest.mark.parametrize(("count", "width"), [(60, 5), (7, 30), (2, 2)])
def test_it_is_scikit_learns_pca_but_for_the_sign(count, width):
    vectors_ND = np.random.default_rng(count).normal(size=(count, width)).astype(np.float32)
    points_N2, shares = project(vectors_ND)
    pca = PCA(2).fit(vectors_ND.astype(np.float64))
    whole = np.var(vectors_ND.astype(np.float64), axis=0).sum() * count / (count - 1)
    assert np.allclose(np.abs(points_N2), np.abs(pca.transform(vectors_ND)), atol=1e-5)
    assert np.allclose(shares, pca.explained_variance_ / whole, atol=1e-6)
    assert np.array_equal(points_N2, project(vectors_ND)[0])


def test_vectors_that_are_all_one_have_no_variance():
    points_N2, shares = project(np.ones((5, 3)))
    assert not points_N2.any() and shares == [0.0, 0.0]


def test_a_map_shows_the_first_pairs_in_the_plane_of_all_of_them():
    one_QD, other_QD = np.random.default_rng(0).normal(size=(2, 200, 8))
    found = map_pairs(one_QD, other_QD)
    points_N2, shares = project(np.concatenate([one_QD, other_QD]))
    assert np.allclose(found["queries"], points_N2[:150], atol=1e-4)
    assert np.allclose(found["documents"], points_N2[200:350], atol=1e-4)
    assert found["shares"] == shares
