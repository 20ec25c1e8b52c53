"""One walk over tiles of rows and classes: the cross-entropy of a linear head with all its gradients.

A tile of logits is exponentiated in place against a reference that is fixed per row, and multiplied by its slice of
the head at once, so that one walk over the head gives the log-sum-exp and the gradient of the rows together: with
``e = exp(logits - reference)`` and ``z = sum_V e``, ``d nll / d row = (e @ W) / z - W[target]``. No tile is ever read
from main memory, nor is the head read twice.

Legend: K selected rows, D width, V classes (a vocabulary, or some of it), T a slice of the classes.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["choose_precision", "walk_classes"]

CPU_ROWS = 2048
"""Rows that share one reading of the head: enough for matrix products at full speed."""
CPU_TILE = 1 << 19
"""Logits per tile that stay in the second-level caches (2 MiB in fp32); measured by benchmarks/mntp.py."""


def walk_classes(
    rows_KD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    targets_K: Tensor,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    apart_K: Tensor | None = None,
    budget_bytes: int,
) -> Tensor:
    """Sum of the cross-entropies of rows over ``cap(scale * (rows @ weight.T + bias))``, with exact gradients.

    The gradients are formed in the forward pass, of rows, weight and bias where they require one.

    Parameters
    ----------
    rows_KD, weight_VD, bias_V, targets_K
        ``targets_K`` are in [0, V).
    apart_K
        Where given, the target of a row is an entry of its own beside the V classes, with this bias instead of that of
        its class; classes that are nothing but targets have a bias of minus infinity. Without a soft cap.
    budget_bytes
        Largest size in bytes of what is held of the (rows x classes) matrix at any moment, at least a row.
    """
    assert apart_K is None or softcap is None
    return _LinearHead.apply(
        rows_KD, weight_VD, bias_V, targets_K, scale, softcap, apart_K, budget_bytes, torch.is_grad_enabled()
    )


class _LinearHead(torch.autograd.Function):
    """``cap(scale * (rows @ weight.T + bias))`` and the cross-entropy on top of it."""

    @staticmethod
    def forward(
        ctx: Any,
        rows_KD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_K: Tensor,
        scale: float,
        softcap: float | None,
        apart_K: Tensor | None,
        budget_bytes: int,
        wants_gradients: bool,
    ) -> Tensor:
        device = rows_KD.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VD.dtype
        train_rows = wants_gradients and ctx.needs_input_grad[0]
        train_weight = wants_gradients and ctx.needs_input_grad[1]
        train_bias = wants_gradients and ctx.needs_input_grad[2]
        with torch.autocast(device, enabled=False):
            walk = _Walk(rows_KD, weight_VD, bias_V, targets_K, scale, softcap, apart_K, dtype)
            if train_rows:
                walk.rows_grad_KD = torch.empty_like(rows_KD)
            if train_weight:
                walk.weight_grad_VD = torch.zeros_like(weight_VD, dtype=walk.precision)
            if train_bias and bias_V is not None:
                walk.bias_grad_V = torch.zeros_like(bias_V, dtype=walk.precision)
            loss = walk.run(budget_bytes)
        ctx.save_for_backward(walk.rows_grad_KD, walk.weight_grad_VD, walk.bias_grad_V)
        ctx.dtypes = (rows_KD.dtype, weight_VD.dtype, None if bias_V is None else bias_V.dtype)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        grads = [
            None if grad is None else (grad * upstream).to(dtype)
            for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return (*grads, None, None, None, None, None, None)


class _Walk:
    """One walk over tiles of rows and vocabulary; the gradients that are not None are filled on the way."""

    def __init__(
        self,
        rows_KD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_K: Tensor,
        scale: float,
        softcap: float | None,
        apart_K: Tensor | None,
        dtype: torch.dtype,
    ) -> None:
        self.dtype = dtype
        self.precision = choose_precision(dtype)
        self.rows_KD, self.weight_VD, self.targets_K = rows_KD, weight_VD, targets_K
        self.bias_V = None if bias_V is None else bias_V.to(self.precision) * scale
        self.scale, self.softcap = scale, softcap
        self.apart_K = None if apart_K is None else apart_K.to(self.precision) * scale
        self.rows_grad_KD: Tensor | None = None
        self.weight_grad_VD: Tensor | None = None
        self.bias_grad_V: Tensor | None = None

    @property
    def trains_head(self) -> bool:
        return self.weight_grad_VD is not None or self.bias_grad_V is not None

    def run(self, budget_bytes: int) -> Tensor:
        """Sum of the negative log-likelihoods."""
        rows, tile = self._tile(budget_bytes)
        count = self.rows_KD.shape[0]
        kept = self.weight_VD.shape[0] if self.trains_head else tile
        buffer = torch.empty(min(rows, count) * kept, dtype=self.precision, device=self.rows_KD.device)
        total = torch.zeros((), dtype=torch.float64 if buffer.device.type == "cpu" else self.precision)
        total = total.to(buffer.device)
        for lo in range(0, count, rows):
            total += self._rows(slice(lo, min(lo + rows, count)), buffer, tile)
        return total.to(self.precision)

    def _tile(self, budget_bytes: int) -> tuple[int, int]:
        """Rows and vocabulary entries of a tile. A head that trains keeps the exponentials of all tiles of its rows."""
        size = self.precision.itemsize
        # A tile, its half-precision twin, and what the derivative of a soft cap needs.
        size += self.dtype.itemsize * (self.dtype != self.precision) + size * (self.softcap is not None)
        cells = max(1, budget_bytes // size)
        vocabulary, count = self.weight_VD.shape[0], self.rows_KD.shape[0]
        on_cpu = self.rows_KD.device.type == "cpu"
        rows = max(1, cells // vocabulary) if self.trains_head else math.isqrt(cells)
        rows = min(rows, count, CPU_ROWS if on_cpu else count)
        tile = min(cells // rows, max(256, CPU_TILE // rows) if on_cpu else cells)
        return rows, max(1, min(tile, vocabulary))

    def _rows(self, part: slice, buffer: Tensor, tile: int) -> Tensor:
        """Walk over the vocabulary for some rows."""
        rows_KD, targets_K = self.rows_KD[part].to(self.dtype), self.targets_K[part]
        target_KD = self.weight_VD[targets_K].to(self.dtype)
        target_K = (rows_KD.to(self.precision) * target_KD.to(self.precision)).sum(1).to(self.dtype).to(self.precision)
        target_K = target_K * self.scale
        if self.apart_K is not None:
            target_K = target_K + self.apart_K[part]
        elif self.bias_V is not None:
            target_K = target_K + self.bias_V[targets_K]
        slope_K = torch.ones_like(target_K)
        if self.softcap is not None:
            tanh_K = torch.tanh(target_K / self.softcap)
            target_K, slope_K = tanh_K * self.softcap, 1 - tanh_K * tanh_K
        # exp(logit - reference) overflows only where a logit beats both the target's and the first slice's by 88:
        # then, and only then, the rows are walked again with their true maximum.
        reference_K = torch.maximum(target_K, self._highest(rows_KD, buffer, tile, first_only=True))
        sums_K, mixed_KD = self._accumulate(rows_KD, reference_K, buffer, tile)
        largest = torch.finfo(self.dtype if mixed_KD is None and self.trains_head else self.precision).max
        healthy = (sums_K <= largest).all() & (mixed_KD is None or torch.isfinite(mixed_KD).all())
        if not healthy:
            reference_K = torch.maximum(target_K, self._highest(rows_KD, buffer, tile))
            sums_K, mixed_KD = self._accumulate(rows_KD, reference_K, buffer, tile)
        if self.apart_K is not None:
            own_K = (target_K - reference_K).exp()
            sums_K += own_K
            slope_K = slope_K - own_K / sums_K
        if self.rows_grad_KD is not None and mixed_KD is not None:
            mixed_KD.div_(sums_K[:, None]).sub_(target_KD * slope_K[:, None]).mul_(self.scale)
            self.rows_grad_KD[part] = mixed_KD.to(self.rows_grad_KD.dtype)
        if self.trains_head:
            self._head_gradients(rows_KD, targets_K, sums_K, slope_K, buffer, tile)
        return (reference_K + sums_K.log() - target_K).sum()

    def _slices(self, tile: int) -> Iterator[tuple[int, int, Tensor]]:
        for lo in range(0, self.weight_VD.shape[0], tile):
            hi = min(lo + tile, self.weight_VD.shape[0])
            yield lo, hi, self.weight_VD[lo:hi].to(self.dtype)

    def _logits(self, rows_KD: Tensor, weight_TD: Tensor, lo: int, out_KT: Tensor) -> Tensor | None:
        """Fill a tile with logits; return the derivative of the soft cap there, if there is one."""
        if self.dtype == self.precision:
            if self.bias_V is None:
                torch.addmm(out_KT, rows_KD, weight_TD.t(), beta=0, alpha=self.scale, out=out_KT)
            else:
                bias_T = self.bias_V[lo : lo + weight_TD.shape[0]]
                torch.addmm(bias_T, rows_KD, weight_TD.t(), alpha=self.scale, out=out_KT)
        else:
            out_KT.copy_(rows_KD @ weight_TD.t()).mul_(self.scale)
            if self.bias_V is not None:
                out_KT.add_(self.bias_V[lo : lo + weight_TD.shape[0]])
        if self.softcap is None:
            return None
        out_KT.div_(self.softcap).tanh_()
        slope_KT = (out_KT * out_KT).neg_().add_(1)
        out_KT.mul_(self.softcap)
        return slope_KT

    def _highest(self, rows_KD: Tensor, buffer: Tensor, tile: int, first_only: bool = False) -> Tensor:
        """Largest logit of each row, in the whole vocabulary or its first slice."""
        highest_K = torch.full((rows_KD.shape[0],), -torch.inf, dtype=self.precision, device=rows_KD.device)
        for lo, hi, weight_TD in self._slices(min(tile, 64) if first_only else tile):
            out_KT = _view(buffer, rows_KD.shape[0], 0, hi - lo)
            self._logits(rows_KD, weight_TD, lo, out_KT)
            highest_K = torch.maximum(highest_K, out_KT.amax(1))
            if first_only:
                break
        return highest_K

    def _accumulate(
        self, rows_KD: Tensor, reference_K: Tensor, buffer: Tensor, tile: int
    ) -> tuple[Tensor, Tensor | None]:
        """Sum the exponentials, and, for the gradient of the rows, of the exponentials times the weight."""
        count, width = rows_KD.shape
        sums_K = torch.zeros_like(reference_K)
        mixed_KD = None if self.rows_grad_KD is None else reference_K.new_zeros(count, width)
        for lo, hi, weight_TD in self._slices(tile):
            out_KT = _view(buffer, count, lo if self.trains_head else 0, hi - lo)
            slope_KT = self._logits(rows_KD, weight_TD, lo, out_KT)
            out_KT.sub_(reference_K[:, None]).exp_()
            sums_K += out_KT.sum(1)
            if slope_KT is not None:
                out_KT.mul_(slope_KT)
            if mixed_KD is None:
                continue
            if self.dtype == self.precision:
                mixed_KD.addmm_(out_KT, weight_TD)
            else:
                mixed_KD += out_KT.to(self.dtype) @ weight_TD
        return sums_K, mixed_KD

    def _head_gradients(
        self, rows_KD: Tensor, targets_K: Tensor, sums_K: Tensor, slope_K: Tensor, buffer: Tensor, tile: int
    ) -> None:
        """Read the kept exponentials once more, transposed."""
        count = rows_KD.shape[0]
        shares_K = self.scale / sums_K
        shares_KD = rows_KD.to(self.precision) * shares_K[:, None]
        for lo in range(0, self.weight_VD.shape[0], tile):
            hi = min(lo + tile, self.weight_VD.shape[0])
            kept_KT = _view(buffer, count, lo, hi - lo)
            if self.weight_grad_VD is not None and self.dtype == self.precision:
                self.weight_grad_VD[lo:hi].addmm_(kept_KT.t(), shares_KD)
            elif self.weight_grad_VD is not None:
                self.weight_grad_VD[lo:hi] += kept_KT.to(self.dtype).t() @ shares_KD.to(self.dtype)
            if self.bias_grad_V is not None:
                self.bias_grad_V[lo:hi].addmv_(kept_KT.t(), shares_K)
        slope_K = -self.scale * slope_K
        if self.weight_grad_VD is not None:
            self.weight_grad_VD.index_add_(0, targets_K, rows_KD.to(self.precision) * slope_K[:, None])
        if self.bias_grad_V is not None:
            self.bias_grad_V.index_add_(0, targets_K, slope_K)


def _view(buffer: Tensor, rows: int, lo: int, tile: int) -> Tensor:
    """Take a contiguous tile out of the buffer, after the tiles of ``lo`` entries of the vocabulary."""
    return buffer[rows * lo : rows * (lo + tile)].view(rows, tile)


def choose_precision(dtype: torch.dtype) -> torch.dtype:
    """Choose the type of sums: fp64 for fp64, else fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
