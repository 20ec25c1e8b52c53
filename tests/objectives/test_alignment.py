"""Which state predicts which token."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from turncoder.objectives.alignment import IGNORED, select_batch, select_rows


@given(st.integers(1, 5), st.integers(1, 9), st.integers(0, 2**31 - 1), st.floats(0, 1))
def test_select_rows_is_the_shift_of_the_causal_loss(batch, length, seed, rate):
    generator = torch.Generator().manual_seed(seed)
    hidden_BLD = torch.randn(batch, length, 3, generator=generator)
    labels_BL = torch.randint(7, (batch, length), generator=generator)
    labels_BL[torch.rand(batch, length, generator=generator) >= rate] = IGNORED
    rows_KD, targets_K = select_rows(hidden_BLD, labels_BL)
    expected = [
        (row, position, int(labels_BL[row, position]))
        for row in range(batch)
        for position in range(1, length)
        if labels_BL[row, position] != IGNORED
    ]
    assert targets_K.tolist() == [token for _, _, token in expected]
    assert select_batch(labels_BL).tolist() == [row for row, _, _ in expected]
    assert rows_KD.shape == (len(expected), 3)
    for got_D, (row, position, _) in zip(rows_KD, expected, strict=True):
        assert torch.equal(got_D, hidden_BLD[row, position - 1])


def test_padding_is_never_selected_and_gets_no_gradient():
    hidden_BLD = torch.randn(2, 4, 3, requires_grad=True)
    labels_BL = torch.tensor([[5, 6, IGNORED, IGNORED], [1, IGNORED, 2, 3]])
    rows_KD, targets_K = select_rows(hidden_BLD, labels_BL)
    assert targets_K.tolist() == [6, 2, 3]
    rows_KD.sum().backward()
    touched = hidden_BLD.grad.abs().sum(-1) > 0
    assert touched.tolist() == [[True, False, False, False], [False, True, True, False]]


def test_rows_of_a_view_that_is_not_contiguous():
    hidden_BLD = torch.randn(4, 2, 3).transpose(0, 1)
    rows_KD, _ = select_rows(hidden_BLD, torch.full((2, 4), 1))
    assert torch.equal(rows_KD, hidden_BLD[:, :-1].reshape(-1, 3))
