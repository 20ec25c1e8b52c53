"""Orders: permutations that need no memory, and batches of rows of like length."""

import pickle

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from turncoder.data.batching import EpochOrder, permute


@given(st.integers(1, 3000), st.integers(-5, 2**40), st.integers(0, 2**40))
def test_it_is_a_permutation(size, seed, epoch):
    assert sorted(permute(np.arange(size), size, seed, epoch)) == list(range(size))


@given(st.integers(1, 2**45), st.data())
def test_any_position_of_any_size_at_once(size, data):
    positions = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20, unique=True))
    rows = permute(np.array(positions), size, 1, 2)
    assert len(set(rows.tolist())) == len(positions)
    assert ((rows >= 0) & (rows < size)).all()
    assert rows[0] == permute(np.array(positions[:1]), size, 1, 2)[0]


def test_every_row_comes_to_every_place_equally_often():
    size, epochs = 12, 6000
    counts = np.zeros((size, size))
    for epoch in range(epochs):
        counts[np.arange(size), permute(np.arange(size), size, 3, epoch)] += 1
    expected = epochs / size
    chi_square = ((counts - expected) ** 2 / expected).sum()
    freedom = (size - 1) ** 2
    assert abs(chi_square - freedom) < 6 * np.sqrt(2 * freedom)


def test_neighbours_are_torn_apart():
    rows = permute(np.arange(100000), 100000, 0, 0)
    assert abs(np.corrcoef(rows[:-1], rows[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(rows, np.arange(100000))[0, 1]) < 0.02
    assert (permute(np.arange(1000), 1000, 0, 0) != permute(np.arange(1000), 1000, 1, 0)).mean() > 0.9


@given(st.integers(1, 2000), st.integers(1, 9), st.integers(0, 3))
def test_order_by_length_is_a_permutation_and_the_same_from_any_side(size, batch_size, epoch):
    lengths = np.random.default_rng(0).integers(1, 100, size)
    order = EpochOrder(size, 5, lengths, batch_size)
    rows = order.rows(epoch)
    assert sorted(rows) == list(range(size))
    copy = pickle.loads(pickle.dumps(order))
    for place in {0, size // 2, size - 1}:
        assert copy(epoch, place) == rows[place]


def test_batches_hold_rows_of_like_length_in_no_order():
    lengths = np.random.default_rng(0).integers(1, 512, 4096)
    order = EpochOrder(4096, 0, lengths, 8)
    batches = lengths[order.rows(0)].reshape(-1, 8)
    padding = 1 - batches.sum() / (batches.max(axis=1) * 8).sum()
    assert padding < 0.03, "random batches would have 43 % padding"
    means = batches.mean(axis=1)
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.2, "short and long batches are mixed"
    assert (order.rows(0) != order.rows(1)).mean() > 0.9


def test_batches_hold_rows_of_like_length_in_every_epoch():
    size, batch_size = 4099, 8  # which leave a batch that is not full at the end of each
    lengths = np.random.default_rng(0).integers(1, 512, size)
    order = EpochOrder(size, 0, lengths, batch_size)
    seen = lengths[np.concatenate([order.rows(epoch) for epoch in range(8)])].reshape(-1, batch_size)
    for batches in np.array_split(seen, 8):
        assert 1 - batches.sum() / (batches.max(axis=1) * batch_size).sum() < 0.05
