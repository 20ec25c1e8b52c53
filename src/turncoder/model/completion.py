"""A headless model becomes an ordinary one: temperature and unigram prior go into the weights that it has.

Its logits are ``h E^T / T + b``, b = (1 - tau) log p (see `turncoder.model.prior`), its own class computes ``h W^T``.
Three ways lead from one to the other, and which is open is measured on the model, not told from its name:

- ``bias``: the output embedding has a bias, or a key of the config gives it one: it gets b.
- ``fold``: what enters the output embedding comes from a LayerNorm, ``h = g z + c`` with ``sum z = 0``. So h times 1/g
  is the same number for every token, ``s = sum(c / g)``, and ``W' = W + b a^T`` with ``a = (1/g) / s`` adds b to every
  row of logits, exactly. Where s is small, c moves along g first, which W' takes back.
- ``fit``: under RMSNorm no direction is constant. The closest in least squares is the start of a head that is then
  fitted to what its logits should be, on states of text: a convex problem, and no label can be learnt by heart.

W' is no longer E, so the last two untie the head.

Legend: K rows, D width, V vocabulary.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from turncoder.model.backbone import count_embeddings
from turncoder.model.heads import Head, take_head

__all__ = ["Way", "choose_way", "compare", "diverge", "find_norm", "fit_head", "give_bias", "put_prior", "untie"]

Way = Literal["bias", "fold", "fit"]
PROBED = (4, 24)  # rows and length of random token ids
RIDGE = 1e-4  # of the mean squared state
REACH = 0.5  # how far a step of the fit can move a logit
ROWS = 2048  # of a step
LOGITS = 1 << 25  # at once


def choose_way(model: PreTrainedModel, head: Head) -> Way:
    """Say how the prior can go into a model's weights; see the head of this module."""
    if not head.is_linear or head.softcap is not None:
        return "fit"
    if head.output_bias is not None:
        return "bias"
    norm = find_norm(model)
    if isinstance(norm, nn.LayerNorm) and type(norm).forward is nn.LayerNorm.forward and norm.bias is not None:
        gains_D = norm.weight.detach().double().abs()
        return "fold" if gains_D.min() > 1e-4 * gains_D.max() else "fit"
    return "fit"


def find_norm(model: PreTrainedModel) -> nn.Module | None:
    """Find the norm whose output is what enters the output embedding, and nothing else; None where there is none."""
    entered: list[Tensor] = []
    outputs: list[tuple[nn.Module, Tensor]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
        if module is model.get_output_embeddings():
            entered.append(inputs[0])
        elif isinstance(output, Tensor) and not [*module.children()]:
            outputs.append((module, output))

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    try:
        with torch.no_grad():
            model(input_ids=_draw_tokens(model))
    finally:
        for hook in hooks:
            hook.remove()
    for module, output in reversed(outputs):
        weight = getattr(module, "weight", None)
        same = entered and output.shape == entered[-1].shape and torch.equal(output, entered[-1])
        if same and isinstance(weight, nn.Parameter) and weight.ndim == 1:
            return module if sum(one is module for one, _ in outputs) == 1 else None
    return None


def give_bias(model: PreTrainedModel) -> PreTrainedModel:
    """Give the output embedding a bias, where a key of the config does that: a model with new biases, which are 0.

    A model whose config has no such key, or that has a bias, is given back as it is.
    """
    if take_head(model).output_bias is not None:
        return model
    names = set(model.state_dict())
    for key, value in model.config.to_dict().items():
        if "bias" not in key or value is not False:
            continue
        config = copy.deepcopy(model.config)
        setattr(config, key, True)
        with torch.device("meta"):
            other = type(model)._from_config(config)
        output, new = other.get_output_embeddings(), set(other.state_dict()) - names
        if getattr(output, "bias", None) is None or not all(name.endswith("bias") for name in new):
            continue
        state = {**model.state_dict(), **{name: torch.zeros(other.state_dict()[name].shape) for name in new}}
        other = type(model)._from_config(config, dtype=model.dtype)
        other.load_state_dict(state)
        return other.eval()
    return model


@torch.no_grad()
def put_prior(model: PreTrainedModel, bias_V: Tensor, temperature: float, rows_KD: Tensor | None = None) -> Way:
    """Put temperature and prior into the weights, by the way that `choose_way` says.

    Parameters
    ----------
    model
        A headless model; changed in place.
    bias_V
        What is added to logits; zeros leave the head tied, whatever the norm.
    temperature
        What the rest is divided by.
    rows_KD
        States of text, without which there is no start for a ``fit``.
    """
    head = take_head(model)
    way = choose_way(model, head)
    embedding: Any = model.get_output_embeddings()
    if way != "bias" and bool(bias_V.any()):
        untie(model)
    if temperature != 1:
        _divide(model, temperature)
    if not bool(bias_V.any()):
        return way
    bias_V = bias_V.double() / head.scale  # which is behind the weight
    if way == "bias":
        embedding.bias.copy_(embedding.bias + bias_V)
        return way
    weight_VD = embedding.weight.double()
    if way == "fold":
        norm = find_norm(model)
        assert isinstance(norm, nn.LayerNorm)
        direction_D, shift_D = _find_constant(norm)
        bias_V = bias_V - weight_VD @ shift_D
        norm.bias.copy_(norm.bias + shift_D)
    else:
        assert rows_KD is not None
        features_KD = head.features(rows_KD).double()
        square_DD = features_KD.T @ features_KD / len(features_KD)
        square_DD += RIDGE * square_DD.diagonal().mean() * torch.eye(len(square_DD), dtype=torch.float64)
        direction_D = torch.linalg.solve(square_DD, features_KD.mean(0))
    embedding.weight.copy_(weight_VD + bias_V[:, None] * direction_D)
    return way


def _find_constant(norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """Find the direction in which every output of a LayerNorm is 1, once its bias has been shifted."""
    gains_D, bias_D = norm.weight.double(), norm.bias.double()
    width = len(gains_D)
    total = (bias_D / gains_D).sum()
    share = torch.zeros_like(total)
    if total.abs() < width**0.5:  # a small one makes for a long direction, in which rounding errors grow
        share = (torch.copysign(total.new_tensor(width**0.5), total) - total) / width
    shift_D = (share * gains_D).to(norm.bias).double()
    return 1 / gains_D / (total + (shift_D / gains_D).sum()), shift_D


def untie(model: PreTrainedModel) -> None:
    """Give the output embedding a weight of its own, a copy, if it shares the input's."""
    output: Any = model.get_output_embeddings()
    if output.weight is not model.get_input_embeddings().weight:
        return
    for name, parameter in [*output.named_parameters(recurse=False)]:  # BERT's bias is tied too, to one beside it
        output.register_parameter(name, nn.Parameter(parameter.detach().clone()))
    for config in (model.config, model.config.get_text_config(decoder=True)):
        config.tie_word_embeddings = False


def _divide(model: PreTrainedModel, temperature: float) -> None:
    """Divide what enters the output embedding by a temperature, in the norm before it or else in its weight."""
    output: Any = model.get_output_embeddings()
    norm: Any = find_norm(model) if output.weight is model.get_input_embeddings().weight else None
    if norm is not None:
        rows_KD = torch.randn(8, len(norm.weight))
        expected_KD = norm(rows_KD) / temperature
        vectors = [one for one in (norm.weight, getattr(norm, "bias", None)) if isinstance(one, nn.Parameter)]
        kept = [one.clone() for one in vectors]
        for one in vectors:
            one.copy_(one / temperature)
        if torch.allclose(norm(rows_KD), expected_KD, rtol=1e-5, atol=1e-6):
            return
        for one, before in zip(vectors, kept, strict=True):  # such as Gemma's, whose gain is 1 + weight
            one.copy_(before)
    untie(model)
    output.weight.copy_(output.weight / temperature)


def fit_head(head: Head, target: Head, rows_KD: Tensor, *, steps: int, seed: int) -> None:
    """Train what is a head's alone, until its logits are those of another head on the same states.

    Parameters
    ----------
    head
        Untied; its parameters change.
    target
        Of the same vocabulary.
    rows_KD
        Last hidden states.
    steps
        Of 2,048 rows, fewer where the vocabulary is large; AdamW without decay, its learning rate cosine.
    seed
        Of the order.
    """
    head.train()
    parameters = head.parameters()
    rate = REACH / float(head.features(rows_KD[:ROWS]).detach().abs().sum(1).mean())
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    generator = torch.Generator().manual_seed(seed)
    size = max(1, min(ROWS, LOGITS // head.weight_VD.shape[0]))
    for _ in range(steps):
        part_ND = rows_KD[torch.randint(len(rows_KD), (size,), generator=generator)]
        with torch.no_grad():
            wanted_NV = target(part_ND).softmax(-1)
        loss = F.cross_entropy(head(part_ND), wanted_NV)
        grads = torch.autograd.grad(loss, parameters)
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad
        optimizer.step()
        schedule.step()
    for parameter in parameters:
        parameter.grad = None
    head.train(False)


@torch.no_grad()
def diverge(head: Head, target: Head, rows_KD: Tensor, targets_K: Tensor) -> tuple[float, float, float]:
    """Measure on states of text: KL(target || head), and the cross-entropies of target and head, in nats per token."""
    sums = torch.zeros(3, dtype=torch.float64)
    size = max(1, min(ROWS, LOGITS // head.weight_VD.shape[0]))
    for part_ND, labels_N in zip(rows_KD.split(size), targets_K.split(size), strict=True):
        wanted_NV, found_NV = (one(part_ND).float().log_softmax(-1) for one in (target, head))
        sums[0] += (wanted_NV.exp() * (wanted_NV - found_NV)).sum()
        sums[1] += F.nll_loss(wanted_NV, labels_N, reduction="sum")
        sums[2] += F.nll_loss(found_NV, labels_N, reduction="sum")
    divergence, first, second = (sums / len(rows_KD)).tolist()
    return divergence, first, second


@torch.no_grad()
def compare(model: PreTrainedModel, target: Head, backbone: PreTrainedModel) -> float:
    """Measure how far log-probabilities of a model are from those of a head on a backbone: the largest difference.

    Beyond 1 nat it is relative: a number of 60 has fewer places behind the point.
    """
    token_ids_BL = _draw_tokens(model)
    states_BLD = backbone(input_ids=token_ids_BL).last_hidden_state
    wanted_KV = target(states_BLD.flatten(0, 1)).double().log_softmax(-1)
    found_KV = model(input_ids=token_ids_BL).logits.flatten(0, 1).double().log_softmax(-1)
    return float(((found_KV - wanted_KV).abs() / wanted_KV.abs().clamp(min=1)).max())


def _draw_tokens(model: PreTrainedModel) -> Tensor:
    """Draw token ids, the same ones at every call."""
    return torch.randint(count_embeddings(model), PROBED, generator=torch.Generator().manual_seed(0))
