"""Columns and rows on a CPU: each length has its own width, and a batch enough tokens."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from turncoder.budget import LEAST_TOKENS, count_fillers, pad_lengths


@given(st.lists(st.integers(0, 70_000), max_size=50), st.integers(1, 70_000))
def test_a_length_has_one_width_that_is_little_more(lengths: list[int], limit: int) -> None:
    length_N = np.minimum(np.array(lengths, dtype=np.int64), limit)
    width_N = pad_lengths(length_N, limit)
    assert ((width_N >= length_N) & (width_N <= limit)).all()
    assert (width_N - length_N <= np.maximum(1, np.minimum(15, length_N // 4))).all()
    assert [int(pad_lengths(length_N[row : row + 1], limit)[0]) for row in range(len(length_N))] == width_N.tolist()
    assert (width_N[length_N == 0] == 0).all()


@given(st.integers(1, 4000), st.integers(1, 5000))
def test_fillers_make_enough_tokens_and_multiples_of_four(rows: int, width: int) -> None:
    fillers = count_fillers(rows, width)
    filled = [(rows + count) * width for count in range(fillers + 1)]
    fine = [tokens >= LEAST_TOKENS and tokens % 4 == 0 for tokens in filled]
    assert fine == [False] * fillers + [True]
