"""The contrastive loss against the formula of the paper, written out with all its columns."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from turncoder.objectives.cwt import Pool, contrast, draw_pool, pool_targets

BUDGET = 1 << 20


def published(
    rows_KD: torch.Tensor, targets_K: torch.Tensor, weight_VD: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """The sum of the paper's loss, a column for every row."""
    logits_KK = rows_KD @ weight_VD[targets_K].T / temperature
    return (logits_KK.logsumexp(1) - logits_KK.diagonal()).sum()


def example(
    seed: int, rows: int, width: int, vocabulary: int, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    rows_KD = torch.randn(rows, width, generator=draw, dtype=dtype).requires_grad_()
    weight_VD = torch.randn(vocabulary, width, generator=draw, dtype=dtype).requires_grad_()
    targets_K = (torch.rand(rows, generator=draw) ** 3 * vocabulary).long()
    return rows_KD, targets_K, weight_VD


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 1000),
    rows=st.integers(1, 60),
    width=st.integers(1, 9),
    vocabulary=st.integers(1, 40),
    temperature=st.sampled_from([1.0, 0.3, 2.0]),
    sparse=st.booleans(),
    budget=st.sampled_from([1, 4096, BUDGET]),
)
def test_unique_ids_give_the_published_loss_and_gradients(
    seed: int, rows: int, width: int, vocabulary: int, temperature: float, sparse: bool, budget: int
) -> None:
    rows_KD, targets_K, weight_VD = example(seed, rows, width, vocabulary)
    expected = published(rows_KD, targets_K, weight_VD, temperature)
    expected_grads = torch.autograd.grad(expected, [rows_KD, weight_VD])
    loss = contrast(
        rows_KD,
        targets_K,
        weight_VD,
        pool_targets(targets_K),
        scale=1 / temperature,
        budget_bytes=budget,
        sparse=sparse,
    )
    grads = torch.autograd.grad(loss, [rows_KD, weight_VD])
    assert grads[1].is_sparse == sparse
    # The log of the counts is taken in fp32
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(grads[0], expected_grads[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grads[1].to_dense(), expected_grads[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finite_at_logits_of_ten_thousand(dtype: torch.dtype) -> None:
    rows_KD, targets_K, weight_VD = example(0, 30, 8, 12)
    rows_KD = (rows_KD.detach() * 3e3).to(dtype).requires_grad_()
    weight_VD = weight_VD.detach().to(dtype).requires_grad_()
    assert (rows_KD @ weight_VD.T).abs().max() > 1e4
    loss = contrast(rows_KD, targets_K, weight_VD, pool_targets(targets_K), budget_bytes=BUDGET)
    loss.backward()
    exact = published(rows_KD.detach().double(), targets_K, weight_VD.detach().double())
    assert torch.isfinite(loss)
    assert rows_KD.grad is not None and torch.isfinite(rows_KD.grad).all()
    assert weight_VD.grad is not None and torch.isfinite(weight_VD.grad).all()
    assert loss.item() == pytest.approx(exact.item(), rel=2e-2 if dtype == torch.bfloat16 else 1e-4)


def test_small_logits_keep_their_precision() -> None:
    rows_KD, targets_K, weight_VD = example(1, 20, 6, 8, torch.float32)
    shift_KD = torch.cat([rows_KD.detach(), torch.full((20, 1), -31.0)], 1)
    weight = torch.cat([weight_VD.detach(), torch.ones(8, 1)], 1)  # every logit loses 31
    loss = contrast(shift_KD, targets_K, weight, pool_targets(targets_K), budget_bytes=BUDGET)
    assert loss.item() == pytest.approx(published(rows_KD, targets_K, weight_VD).item(), rel=1e-4)


def test_one_unique_id_teaches_nothing() -> None:
    rows_KD, _, weight_VD = example(2, 9, 4, 5)
    targets_K = torch.full((9,), 3)
    loss = contrast(rows_KD, targets_K, weight_VD, pool_targets(targets_K), budget_bytes=BUDGET)
    loss.backward()
    assert loss.item() == pytest.approx(9 * math.log(9), rel=1e-6)
    assert rows_KD.grad is not None and rows_KD.grad.abs().max() < 1e-12
    assert weight_VD.grad is not None and weight_VD.grad.abs().max() < 1e-12


def test_no_rows() -> None:
    rows_KD, _, weight_VD = example(3, 1, 4, 5)
    none = torch.zeros(0, dtype=torch.long)
    loss = contrast(rows_KD[:0], none, weight_VD, pool_targets(none), budget_bytes=BUDGET)
    assert loss.item() == 0
    loss.backward()


@pytest.mark.parametrize("tau", [0.0, 0.4, 1.0])
def test_a_drawn_pool_adds_each_rows_own_target(tau: float) -> None:
    rows_KD, targets_K, weight_VD = example(4, 25, 6, 30)
    log_prior_V = torch.log_softmax(torch.randn(30, generator=torch.Generator().manual_seed(1)), 0)
    pool = draw_pool(targets_K, log_prior_V, 50, seed=7, step=3)
    assert pool.counts_U.sum() == 50
    drawn = torch.repeat_interleave(pool.ids_U, pool.counts_U.long())
    logits_KV = rows_KD @ weight_VD.T - tau * log_prior_V
    own_K = logits_KV.gather(1, targets_K[:, None])
    expected = (torch.cat([logits_KV[:, drawn], own_K], 1).logsumexp(1) - own_K[:, 0]).sum()
    expected_grads = torch.autograd.grad(expected, [rows_KD, weight_VD])
    loss = contrast(
        rows_KD, targets_K, weight_VD, pool, log_prior_V=log_prior_V, tau=tau, budget_bytes=BUDGET, sparse=True
    )
    grads = torch.autograd.grad(loss, [rows_KD, weight_VD])
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(grads[0], expected_grads[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grads[1].to_dense(), expected_grads[1], rtol=1e-5, atol=1e-6)


def test_a_drawn_pool_is_the_same_for_all_and_new_each_step() -> None:
    log_prior_V = torch.log_softmax(torch.arange(20.0) / 5, 0)
    targets_K = torch.tensor([1, 5])

    def draw(targets_K: torch.Tensor, step: int) -> list[int]:
        pool = draw_pool(targets_K, log_prior_V, 4000, seed=1, step=step)
        counts_V = torch.zeros(20).index_add_(0, pool.ids_U, pool.counts_U)
        return counts_V.tolist()

    assert draw(targets_K, 3) == draw(torch.tensor([19, 2, 2]), 3)
    assert draw(targets_K, 3) != draw(targets_K, 4)
    shares_V = torch.tensor(draw(targets_K, 3)) / 4000
    assert (shares_V - log_prior_V.exp()).abs().max() < 0.03


def test_tau_one_over_all_ids_is_the_softmax() -> None:
    """Importance weights of a pool that holds every id as often as p says give back the exact cross-entropy."""
    counts_V = torch.tensor([1.0, 2, 3, 4, 10])
    rows_KD, targets_K, weight_VD = example(5, 12, 6, 5)
    log_prior_V = (counts_V / counts_V.sum()).log()
    pool = Pool(torch.arange(5), counts_V)
    bias_V = torch.randn(5, generator=torch.Generator().manual_seed(0))
    loss = contrast(
        rows_KD, targets_K, weight_VD, pool, bias_V=bias_V, log_prior_V=log_prior_V, tau=1.0, budget_bytes=BUDGET
    )
    logits_KV = rows_KD @ weight_VD.T + bias_V
    expected = torch.nn.functional.cross_entropy(logits_KV, targets_K, reduction="sum")
    # Numerator: the logit without its count; a column: c_u / p_u = 20 each
    shift = (log_prior_V[targets_K] + math.log(counts_V.sum())).sum()
    assert (loss - counts_V[targets_K].log().sum()).item() == pytest.approx(expected.item(), rel=1e-5)
    assert shift.item() == pytest.approx(counts_V[targets_K].log().sum().item(), rel=1e-5)


def test_the_optimum_is_log_p_of_token_given_context_over_p() -> None:
    """Free logits trained on a joint distribution become its pointwise mutual information, up to a constant a row."""
    draw = torch.Generator().manual_seed(0)
    joint_CV = torch.rand(4, 6, generator=draw, dtype=torch.float64)
    joint_CV /= joint_CV.sum()
    counts = (joint_CV * 20_000).round().long()
    contexts = torch.arange(4)[:, None].expand(4, 6).reshape(-1).repeat_interleave(counts.reshape(-1))
    targets = torch.arange(6).expand(4, 6).reshape(-1).repeat_interleave(counts.reshape(-1))
    table_CV = torch.zeros(4, 6, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([table_CV], max_iter=200, line_search_fn="strong_wolfe")
    identity = torch.eye(6, dtype=torch.float64)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = contrast(table_CV[contexts], targets, identity, pool_targets(targets), budget_bytes=1 << 24) / len(
            targets
        )
        loss.backward()
        return loss

    optimizer.step(closure)
    observed = counts.double() / counts.sum()
    information_CV = (observed / observed.sum(0)).log()
    difference_CV = table_CV.detach() - information_CV
    assert (difference_CV - difference_CV.mean(1, keepdim=True)).abs().max() < 1e-3
