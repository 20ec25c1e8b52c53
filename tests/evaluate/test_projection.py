import numpy as np
import pytest

from turncoder.evaluate.projection import map_pairs, project


@pytest.mark.parametrize(("count", "width"), [(60, 5), (7, 30), (2, 2)])
def test_axes_are_those_of_the_singular_vectors_and_point_where_they_are_largest(count, width):
    vectors_ND = np.random.default_rng(count).normal(size=(count, width)).astype(np.float32)
    points_N2, shares = project(vectors_ND)
    centred_ND = vectors_ND - vectors_ND.mean(axis=0, dtype=np.float64)
    _, singular, axes = np.linalg.svd(centred_ND, full_matrices=False)
    axis_2D = np.stack([axis if axis.max() > -axis.min() else -axis for axis in axes[:2]])
    assert np.allclose(points_N2, centred_ND @ axis_2D.T, atol=1e-5)
    assert np.allclose(shares, singular[:2] ** 2 / (singular**2).sum(), atol=1e-6)
    assert np.array_equal(points_N2, project(vectors_ND)[0])


@pytest.mark.parametrize("number", [1.0, 0.1])
def test_vectors_that_are_all_one_have_no_variance(number):
    points_N2, shares = project(np.full((5, 3), number))
    assert not points_N2.any() and shares == [0.0, 0.0]


def test_a_map_shows_the_first_pairs_in_the_plane_of_all_of_them():
    one_QD, other_QD = np.random.default_rng(0).normal(size=(2, 200, 8))
    found = map_pairs(one_QD, other_QD)
    points_N2, shares = project(np.concatenate([one_QD, other_QD]))
    assert np.allclose(found["queries"], points_N2[:150], atol=1e-4)
    assert np.allclose(found["documents"], points_N2[200:350], atol=1e-4)
    assert found["shares"] == shares
