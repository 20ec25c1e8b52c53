"""Dropout: that of attention weights, and LoRA's in one step with its first matrix, for training on a CPU.

On a CPU, ordinary dropout draws a number for every entry and keeps the mask and the dropped copy of its input for the
backward pass, seven times a layer: about a tenth of an MNTP step's time and a third of its activations. Here the few
entries that fall are drawn directly, and the input itself is kept, which the adapters that share it share.

Shapes: N rows, D width, R rank.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["DroppedLinear", "drop_sparsely", "set_attention_dropout"]

# By which attention modules of transformers call the dropout of their weights: a number, or a module
ATTENTION_DROPOUTS = ("attention_dropout", "attn_dropout", "attn_dropout_p", "dropout", "dropout_prob")


class _DropAndProject(torch.autograd.Function):
    """``dropout(x) @ weight.T``."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_RD: Tensor, p: float) -> Tensor:
        # Poisson(-n log(1-p)) throws at n places leave each of them untouched with probability 1-p, independently
        mean = torch.tensor(-x_ND.numel() * math.log1p(-p), dtype=torch.float64, device="cpu")
        fallen = torch.randint(x_ND.numel(), (int(torch.poisson(mean)),), device=x_ND.device)
        ctx.save_for_backward(x_ND, weight_RD, fallen)
        ctx.scale = 1 / (1 - p)
        return _drop(x_ND, fallen, ctx.scale) @ weight_RD.t()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NR: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, weight_RD, fallen = ctx.saved_tensors
        grad_weight = grad_NR.t() @ _drop(x_ND, fallen, ctx.scale) if ctx.needs_input_grad[1] else None
        grad_x = _drop(grad_NR @ weight_RD, fallen, ctx.scale) if ctx.needs_input_grad[0] else None
        return grad_x, grad_weight, None


def _drop(x_ND: Tensor, fallen: Tensor, scale: float) -> Tensor:
    dropped_ND = x_ND * scale
    dropped_ND.view(-1).index_fill_(0, fallen, 0)
    return dropped_ND


class DroppedLinear(nn.Linear):
    """A linear layer without bias whose input is dropped out with probability ``p`` while it trains."""

    def __init__(self, linear: nn.Linear, p: float) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight = linear.weight
        self.p = p
        self.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        """Project the dropped input; in two ordinary steps off the CPU and under autocast, which casts each of them."""
        if not self.training:
            return F.linear(input, self.weight)
        ordinary = input.device.type not in ("cpu", "meta") or torch.is_autocast_enabled("cpu")
        if ordinary or input.dtype != self.weight.dtype:
            return F.linear(F.dropout(input, self.p), self.weight)
        rows_ND = input.reshape(-1, input.shape[-1]).contiguous()
        return _DropAndProject.apply(rows_ND, self.weight, self.p).view(*input.shape[:-1], -1)


def drop_sparsely(model: nn.Module) -> None:
    """Replace dropout and first matrix of every LoRA layer of ``model``, in place; names and weights stay."""
    for layer in model.modules():
        if not isinstance(layer, LoraLayer):
            continue
        for name, linear in layer.lora_A.items():
            dropout = layer.lora_dropout[name]
            if type(linear) is nn.Linear and linear.bias is None and isinstance(dropout, nn.Dropout) and dropout.p:
                layer.lora_A[name] = DroppedLinear(linear, dropout.p)
                layer.lora_dropout[name] = nn.Identity()


def set_attention_dropout(model: nn.Module, p: float) -> int:
    """Set the dropout of attention weights, and return in how many modules there is one.

    The configuration is left as it is: what is saved afterwards is not another model.
    """
    count = 0
    for module in model.modules():
        if "Attention" not in type(module).__name__:
            continue
        for name in ATTENTION_DROPOUTS:
            value = getattr(module, name, None)
            if isinstance(value, nn.Dropout):
                value.p = p
            elif isinstance(value, float | int) and not isinstance(value, bool):
                setattr(module, name, p)
            else:
                continue
            count += 1
    return count
