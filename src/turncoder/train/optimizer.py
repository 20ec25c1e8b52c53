"""AdamW for dense weights and SparseAdam for an embedding matrix whose gradient holds only the rows in use.

So a step costs the same at any size of the vocabulary. What that changes: the moments of a row stand still while it is
not used, and embeddings have no weight decay. A mean of gradients that stands still would be applied once where dense
Adam applies it step after step while it fades, so a rare row would hardly move: rows have no first moment (beta1 = 0).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import AdamW, Optimizer, SparseAdam

__all__ = ["RowSparseAdamW", "clip_norm"]


class RowSparseAdamW(Optimizer):
    """One optimizer to its owner: `torch.optim.AdamW` for some parameters and `torch.optim.SparseAdam` for another.

    Parameters
    ----------
    groups
        Parameter groups of the dense weights.
    embedding
        The parameter whose gradients are sparse.
    lr, betas, eps
        Of both; the first of the betas is that of the dense weights alone.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        embedding: Parameter,
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        self.parts: dict[str, Optimizer] = {
            "dense": AdamW(groups, lr=lr, betas=betas, eps=eps),
            "sparse": SparseAdam([embedding], lr=lr, betas=(0.0, betas[1]), eps=eps),
        }
        super().__init__([{"params": [embedding]}], {"lr": lr})
        self._share()

    def _share(self) -> None:
        """Let schedulers, which write into the groups, reach those of the parts."""
        self.param_groups = [group for part in self.parts.values() for group in part.param_groups]

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Take a step; a closure is not called."""
        assert closure is None
        for part in self.parts.values():
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Give the states of both."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the states of both."""
        for name, part in self.parts.items():
            part.load_state_dict(state_dict[name])
        self._share()


@torch.no_grad()
def clip_norm(parameters: Iterable[Parameter], max_norm: float) -> Tensor:
    """Scale gradients, dense and sparse, down to a total 2-norm, and return what it was.

    A sparse gradient is coalesced first: rows that are used twice count once, with their sum.
    """
    parts: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is None:
            continue
        if parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
            parts.append(parameter.grad._values())
        else:
            parts.append(parameter.grad)
    if not parts:
        return torch.zeros(())
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(parts)))
    if math.isfinite(max_norm):
        torch._foreach_mul_(parts, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm
