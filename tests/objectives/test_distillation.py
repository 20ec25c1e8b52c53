"""Distillation: value and gradients of an independent computation, in every form of the loss and on two devices."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from test_contrastive_loss import SCALE, TEXTS, assert_same, encoder, features_of, gradients, rows  # noqa: F401
from torch import Tensor

from turncoder.objectives.contrast import build_loss
from turncoder.objectives.distillation import DistilledRankingLoss

WEIGHT = 0.7


def by_hand(columns: list[Tensor], taught_BCD: Tensor, weight: float = WEIGHT) -> Tensor:
    """InfoNCE and the weighted divergence, a row and a candidate at a time."""

    def score(vectors: list[Tensor]) -> Tensor:
        candidates = [vector for column in vectors[1:] for vector in column]
        cosine = torch.nn.functional.cosine_similarity
        return torch.stack([torch.stack([SCALE * cosine(a, c, dim=0) for c in candidates]) for a in vectors[0]])

    student, teacher = score(columns).softmax(1), score(list(taught_BCD.unbind(1))).softmax(1)
    total = torch.zeros(())
    for row in range(len(student)):
        total = total - student[row, row].log()
        total = total + weight * sum(
            t * (math.log(t) - s.log()) for s, t in zip(student[row], teacher[row].tolist(), strict=True)
        )
    return total / len(student)


@pytest.mark.parametrize("dims", [(), (8,)])
@pytest.mark.parametrize("ways", [{"batch_tokens": 10**6}, {"batch_tokens": 40}, {"cached": 24}])
@pytest.mark.parametrize("width", [5, 24])
def test_loss_and_gradients_are_those_of_the_formula(
    encoder: SentenceTransformer,  # noqa: F811
    ways: dict[str, int],
    dims: tuple[int, ...],
    width: int,
) -> None:
    columns = features_of(encoder)
    columns.append({name: value.flip(0) if isinstance(value, Tensor) else value for name, value in columns[1].items()})
    taught = torch.randn(len(TEXTS), 3, width, generator=torch.Generator().manual_seed(0))
    vectors = [torch.cat([encoder(dict(one))["sentence_embedding"] for one in rows(column)]) for column in columns]
    losses = [by_hand([one[:, :size] for one in vectors], taught) for size in (24, *dims)]
    expected = sum(losses) / len(losses)
    wanted = gradients(encoder, expected)  # type: ignore[arg-type]
    loss = build_loss(
        encoder,
        scale=SCALE,
        batch_tokens=ways.get("batch_tokens", 64),
        mini_batch_num_tokens=ways.get("cached"),
        matryoshka_dims=dims,
        distillation_weight=WEIGHT,
    )
    value = loss([dict(column) for column in columns], taught.unsqueeze(-1))
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    assert_same(gradients(encoder, value), wanted)


def test_the_students_similarities_become_the_teachers() -> None:
    draw = torch.Generator().manual_seed(0)
    taught = torch.randn(6, 3, 5, generator=draw)
    taught[:, 1] = taught[:, 0] + 0.5 * taught[:, 1]
    columns = [torch.randn(6, 8, generator=draw).requires_grad_() for _ in range(3)]
    loss = DistilledRankingLoss(torch.nn.Identity(), batch_tokens=1, scale=5.0, weight=1e4)  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(columns, lr=0.02)

    def distance() -> float:
        normal = torch.nn.functional.normalize
        student, teacher = (
            (5 * normal(anchors, dim=-1) @ normal(torch.cat(others), dim=-1).T).softmax(1)
            for anchors, *others in (columns, list(taught.unbind(1)))
        )
        return float((student - teacher).abs().max())

    before = distance()
    for _ in range(400):
        optimizer.zero_grad()
        loss.compute_loss_from_embeddings(columns, taught.unsqueeze(-1)).backward()
        optimizer.step()
    assert distance() < 0.02 < 0.2 < before


def share(rank: int, place: str) -> None:
    """One of two devices: its half of the rows, and the mean of the gradients as DDP would give it."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{place}/meet", rank=rank, world_size=2)
    whole: dict[str, Any] = torch.load(f"{place}/rows.pt")
    half = slice(2 * rank, 2 * rank + 2)
    columns = [one[half].clone().requires_grad_() for one in whole["columns"]]
    loss = DistilledRankingLoss(
        torch.nn.Identity(),  # type: ignore[arg-type]
        batch_tokens=1,
        scale=SCALE,
        weight=WEIGHT,
        gather_across_devices=True,
    )
    loss.compute_loss_from_embeddings(columns, whole["taught"][half].unsqueeze(-1)).backward()
    torch.save([one.grad / 2 for one in columns], f"{place}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_devices_are_one(tmp_path: Path) -> None:
    columns = [torch.randn(4, 6).requires_grad_() for _ in range(3)]
    taught = torch.randn(4, 3, 5)
    torch.save({"columns": [one.detach() for one in columns], "taught": taught}, tmp_path / "rows.pt")
    torch.multiprocessing.spawn(share, (str(tmp_path),), nprocs=2)
    by_hand(columns, taught).backward()
    for number, halves in enumerate(zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in range(2)), strict=True)):
        torch.testing.assert_close(torch.cat(halves), columns[number].grad, rtol=1e-4, atol=1e-6)
