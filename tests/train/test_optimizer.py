"""One optimizer for dense weights and sparse rows: against torch's own, and its state."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from turncoder.train.optimizer import RowSparseAdamW, clip_norm


def build(sparse: bool) -> tuple[nn.Embedding, nn.Linear]:
    torch.manual_seed(0)
    return nn.Embedding(50, 4, sparse=sparse), nn.Linear(4, 3)


def loss_of(embedding: nn.Embedding, linear: nn.Linear, ids: torch.Tensor) -> torch.Tensor:
    return linear(embedding(ids)).square().sum()


def test_rows_in_use_move_as_under_adam_and_others_stand_still() -> None:
    """Where every step uses the same rows, lazy Adam is Adam on those rows."""
    ids = torch.tensor([3, 3, 7, 20])
    embedding, linear = build(sparse=True)
    optimizer = RowSparseAdamW([{"params": linear.parameters(), "weight_decay": 0.1}], embedding.weight, lr=0.01)
    twin, twin_linear = build(sparse=False)
    begin_VD = embedding.weight.detach().clone()
    rows = {"params": [twin.weight], "weight_decay": 0.0, "betas": (0.0, 0.999)}
    twin_optimizer = torch.optim.AdamW([rows, {"params": twin_linear.parameters(), "weight_decay": 0.1}], lr=0.01)
    for _ in range(5):
        for one, other, step in ((embedding, linear, optimizer), (twin, twin_linear, twin_optimizer)):
            step.zero_grad()
            loss_of(one, other, ids).backward()
            step.step()
    torch.testing.assert_close(embedding.weight, twin.weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(linear.weight, twin_linear.weight, rtol=1e-5, atol=1e-6)
    unused_V = torch.ones(50, dtype=torch.bool)
    unused_V[ids] = False
    assert torch.equal(embedding.weight[unused_V], begin_VD[unused_V])
    assert not torch.equal(embedding.weight[ids], begin_VD[ids])


def test_a_state_that_was_saved_goes_on_the_same() -> None:
    ids = torch.tensor([[1, 2, 3], [2, 9, 9], [30, 31, 1], [4, 4, 4]])
    embedding, linear = build(sparse=True)

    def make() -> RowSparseAdamW:
        return RowSparseAdamW([{"params": linear.parameters(), "weight_decay": 0.1}], embedding.weight, lr=0.05)

    optimizer = make()
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 4)
    results = []
    saved: dict = {}
    for turn in range(2):
        for step in range(2 * turn, 4):
            optimizer.zero_grad()
            loss_of(embedding, linear, ids[step]).backward()
            optimizer.step()
            schedule.step()
            if step == 1:
                saved = {
                    "optimizer": copy.deepcopy(optimizer.state_dict()),
                    "schedule": schedule.state_dict(),
                    "embedding": embedding.weight.detach().clone(),
                    "linear": {name: tensor.clone() for name, tensor in linear.state_dict().items()},
                }
        results.append((embedding.weight.detach().clone(), linear.weight.detach().clone()))
        with torch.no_grad():
            embedding.weight.copy_(saved["embedding"])
        linear.load_state_dict(saved["linear"])
        optimizer = make()
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 4)
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


def test_schedules_reach_both_parts() -> None:
    embedding, linear = build(sparse=True)
    optimizer = RowSparseAdamW([{"params": linear.parameters()}], embedding.weight, lr=1.0)
    optimizer.load_state_dict(optimizer.state_dict())
    for group in optimizer.param_groups:
        group["lr"] = 0.25
    assert {group["lr"] for part in optimizer.parts.values() for group in part.param_groups} == {0.25}


@pytest.mark.parametrize("max_norm", [0.1, 1e9, float("inf")])
def test_the_norm_counts_sparse_rows_once(max_norm: float) -> None:
    grads = []
    for sparse in (True, False):
        embedding, linear = build(sparse)
        loss_of(embedding, linear, torch.tensor([5, 5, 5, 8])).backward()
        parameters = [*embedding.parameters(), *linear.parameters()]
        if sparse:
            norm = clip_norm(parameters, max_norm)
        else:
            expected = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        assert all(parameter.grad is not None for parameter in parameters)
        grads.append([parameter.grad.to_dense() for parameter in parameters if parameter.grad is not None])
    assert norm.item() == pytest.approx(expected.item(), rel=1e-5)
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_no_gradients() -> None:
    assert clip_norm([nn.Parameter(torch.zeros(3))], 1.0) == 0
