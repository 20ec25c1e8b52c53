"""The chunked loss against full logits."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from turncoder.objectives.vocabulary import cross_entropy, score_rows

MEGABYTE = 1 << 20


@dataclasses.dataclass
class PlainHead:
    """A head made of tensors; `is_linear=False` sends the same arithmetic down the other path."""

    weight_VD: torch.Tensor
    bias_V: torch.Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    is_linear: bool = True

    def features(self, rows_KD):
        return rows_KD

    def parameters(self):
        return [weight for weight in (self.weight_VD, self.bias_V) if weight is not None]

    def __call__(self, rows_KD):
        logits_KV = F.linear(rows_KD, self.weight_VD, self.bias_V) * self.scale
        return logits_KV if self.softcap is None else torch.tanh(logits_KV / self.softcap) * self.softcap


def build(rows, vocabulary, width=5, *, bias=False, seed=0, dtype=torch.float32, train=True, spread=1.0, **kwargs):
    generator = torch.Generator().manual_seed(seed)
    rows_KD = (spread * torch.randn(rows, width, generator=generator)).to(dtype).requires_grad_()
    weight_VD = torch.randn(vocabulary, width, generator=generator).to(dtype).requires_grad_(train)
    bias_V = torch.randn(vocabulary, generator=generator).to(dtype).requires_grad_(train) if bias else None
    targets_K = torch.randint(vocabulary, (rows,), generator=generator)
    return rows_KD, targets_K, PlainHead(weight_VD, bias_V, **kwargs)


def full(rows_KD, targets_K, head):
    return F.cross_entropy(head(rows_KD).float(), targets_K, reduction="sum")


def gradients(loss, rows_KD, head):
    inputs = [rows_KD, *[weight for weight in head.parameters() if weight.requires_grad]]
    return torch.autograd.grad(loss, inputs)


@settings(deadline=None, max_examples=150)
@given(
    rows=st.integers(0, 40),
    vocabulary=st.integers(1, 300),
    budget=st.sampled_from([1, 64, 1000, 5000, 40_000, MEGABYTE]),
    bias=st.booleans(),
    train=st.booleans(),
    linear=st.booleans(),
    scale=st.sampled_from([1.0, 0.0625, 3.0]),
    softcap=st.sampled_from([None, 5.0]),
    seed=st.integers(0, 1000),
)
def test_value_and_gradients_equal_those_of_full_logits(
    rows, vocabulary, budget, bias, train, linear, scale, softcap, seed
):
    rows_KD, targets_K, head = build(
        rows, vocabulary, bias=bias, seed=seed, train=train, scale=scale, softcap=softcap, is_linear=linear
    )
    loss = cross_entropy(rows_KD, targets_K, head, budget_bytes=budget)
    assert loss.dtype == torch.float32
    if rows == 0:
        assert loss == 0
        assert torch.autograd.grad(loss, rows_KD)[0].shape == rows_KD.shape
        return
    expected = full(rows_KD, targets_K, head)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    got = gradients(3 * loss, rows_KD, head)
    for mine, theirs in zip(got, gradients(3 * expected, rows_KD, head), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("budget", [300, MEGABYTE])
def test_gradcheck_in_double_precision(softcap, bias, linear, budget):
    rows_KD, targets_K, head = build(
        5, 11, 3, bias=bias, dtype=torch.float64, scale=0.7, softcap=softcap, is_linear=linear
    )

    def loss(rows_KD, *weights):
        return cross_entropy(
            rows_KD, targets_K, dataclasses.replace(head, **dict(zip(["weight_VD", "bias_V"], weights, strict=False))),
            budget_bytes=budget,
        )  # fmt: skip

    assert torch.autograd.gradcheck(loss, [rows_KD, *head.parameters()])


@pytest.mark.parametrize("target", [0, 299])
def test_targets_at_the_ends_of_the_vocabulary(target):
    rows_KD, targets_K, head = build(7, 300)
    targets_K.fill_(target)
    loss = cross_entropy(rows_KD, targets_K, head, budget_bytes=3000)
    torch.testing.assert_close(loss, full(rows_KD, targets_K, head), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("train", [True, False])
def test_logits_far_beyond_the_reference_do_not_overflow(train):
    """The last token beats the first slice and the targets by hundreds: exp would be infinite against them."""
    rows_KD, targets_K, head = build(9, 400, train=False, spread=30.0)
    head.weight_VD[-1] = 40 * rows_KD.detach().mean(0)
    head.weight_VD.requires_grad_(train)
    targets_K[:5] = 399
    loss = cross_entropy(rows_KD, targets_K, head, budget_bytes=4000)
    expected = full(rows_KD, targets_K, head)
    assert expected > 1000
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(gradients(loss, rows_KD, head), gradients(expected, rows_KD, head), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("softcap", [None, 30.0])
def test_half_precision_under_autocast(softcap):
    """bf16 products, fp32 log-sum-exp: as far from the fp32 loss as full logits under autocast are, and no further."""
    rows_KD, targets_K, head = build(64, 3000, 48, spread=0.3, softcap=softcap, bias=True)
    exact = full(rows_KD, targets_K, head)
    with torch.autocast("cpu", torch.bfloat16):
        loss = cross_entropy(rows_KD, targets_K, head, budget_bytes=MEGABYTE)
        reference = full(rows_KD, targets_K, head)
    assert loss.dtype == torch.float32
    assert abs(loss - exact) <= abs(reference - exact) + 1e-3 * exact
    exact_grads = gradients(exact, rows_KD, head)
    for mine, true in zip(gradients(loss, rows_KD, head), exact_grads, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - true).norm() < 0.02 * true.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_and_rows(dtype):
    rows_KD, targets_K, head = build(33, 2000, 32, spread=0.3, dtype=dtype)
    loss = cross_entropy(rows_KD, targets_K, head, budget_bytes=200_000)
    exact = PlainHead(head.weight_VD.detach().float())
    reference_KD = rows_KD.detach().float().requires_grad_()
    expected = full(reference_KD, targets_K, exact)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=2e-3, atol=0)
    true = torch.autograd.grad(expected, reference_KD)[0]
    mine = gradients(loss, rows_KD, head)[0]
    assert mine.dtype == dtype
    assert (mine.float() - true).norm() < 0.02 * true.norm()


def test_a_head_alone_does_not_overflow_in_float16():
    """Its gradient is made of exponentials in half precision, of which nothing else tells that they are too large."""
    rows_KD, targets_K, head = build(40, 3000, 32, spread=2.0, dtype=torch.float16)
    rows_KD = rows_KD.detach()
    loss = cross_entropy(rows_KD, targets_K, head, budget_bytes=200_000)
    weight_VD = head.weight_VD.detach().float().requires_grad_()
    expected = full(rows_KD.float(), targets_K, PlainHead(weight_VD))
    logits_KV = rows_KD.float() @ weight_VD.T
    assert (logits_KV.max(1).values - logits_KV.gather(1, targets_K[:, None])[:, 0]).max() > math.log(65504)
    (mine,), (true,) = torch.autograd.grad(loss, head.weight_VD), torch.autograd.grad(expected, weight_VD)
    assert (mine.float() - true).norm() < 0.02 * true.norm()


class Largest(TorchDispatchMode):
    """The largest number of bytes of any tensor that an operation returns, those of the weight's shape apart."""

    def __init__(self, vocabulary, width):
        super().__init__()
        self.bytes, self.exempt = 0, {vocabulary, width}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor) and set(tensor.shape) != self.exempt:
                self.bytes = max(self.bytes, tensor.numel() * tensor.element_size())
        return out


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tensor_is_larger_than_the_budget(linear, train, dtype):
    rows_KD, targets_K, head = build(500, 5000, 8, train=train, is_linear=linear, softcap=9.0, dtype=dtype)
    for budget in (150_000, MEGABYTE):
        with Largest(5000, 8) as largest:
            cross_entropy(rows_KD, targets_K, head, budget_bytes=budget).backward()
        assert largest.bytes <= budget
        with Largest(5000, 8) as largest:
            score_rows(rows_KD, targets_K, head, budget_bytes=budget)
        assert largest.bytes <= budget


def test_no_gradient_is_formed_where_none_is_wanted():
    rows_KD, targets_K, head = build(20, 300)
    with torch.no_grad():
        loss = cross_entropy(rows_KD, targets_K, head, budget_bytes=MEGABYTE)
    assert not loss.requires_grad
    frozen = dataclasses.replace(head, weight_VD=head.weight_VD.detach())
    cross_entropy(rows_KD, targets_K, frozen, budget_bytes=MEGABYTE).backward()
    assert rows_KD.grad is not None
    assert head.weight_VD.grad is None


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 30), st.integers(1, 60), st.sampled_from([1, 500, MEGABYTE]), st.integers(0, 100))
def test_scores_equal_a_full_sort(rows, vocabulary, budget, seed):
    rows_KD, targets_K, head = build(rows, vocabulary, seed=seed)
    nll_K, first_K, among_K = score_rows(rows_KD, targets_K, head, budget_bytes=budget)
    logits_KV = head(rows_KD)
    torch.testing.assert_close(nll_K, F.cross_entropy(logits_KV, targets_K, reduction="none"), rtol=1e-5, atol=1e-5)
    best = logits_KV.topk(min(5, vocabulary)).indices
    assert first_K.tolist() == (best[:, 0] == targets_K).tolist()
    assert among_K.tolist() == (best == targets_K[:, None]).any(1).tolist()
    assert not nll_K.requires_grad


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("softcap", [None, 30.0])
def test_liger_gives_the_same(softcap, monkeypatch):
    pytest.importorskip("liger_kernel")
    from turncoder.objectives import vocabulary

    rows_KD, targets_K, head = build(700, 9000, 64, train=False, softcap=softcap)
    rows_KD = rows_KD.detach().cuda().requires_grad_()
    head.weight_VD, targets_K = head.weight_VD.cuda(), targets_K.cuda()
    fused = vocabulary._liger(rows_KD, targets_K, head, head.weight_VD, None, 100 * MEGABYTE)
    assert fused is not None
    monkeypatch.setattr(vocabulary, "_liger", lambda *_: None)
    own = cross_entropy(rows_KD, targets_K, head, budget_bytes=100 * MEGABYTE)
    torch.testing.assert_close(fused, own, rtol=1e-5, atol=1e-3)
    for one, other in zip(
        gradients(fused, rows_KD, PlainHead(head.weight_VD)), gradients(own, rows_KD, head), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("train", [False, True])
def test_an_accelerator_gives_the_same(train):
    rows_KD, targets_K, head = build(300, 9000, 64, train=train, bias=True, softcap=30.0)
    loss = cross_entropy(rows_KD, targets_K, head, budget_bytes=MEGABYTE)
    there = PlainHead(head.weight_VD.cuda(), head.bias_V.cuda(), softcap=30.0)
    loss_there = cross_entropy(rows_KD.cuda(), targets_K.cuda(), there, budget_bytes=MEGABYTE)
    torch.testing.assert_close(loss, loss_there.cpu(), rtol=1e-5, atol=1e-3)
    for one, other in zip(gradients(loss, rows_KD, head), gradients(loss_there, rows_KD, head), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
