"""Heads of every architecture: the gathered loss is the one of the model's own logits."""

import copy
import csv

import pytest
import torch
import torch.nn.functional as F

from turncoder.errors import UserError
from turncoder.model.heads import take_backbone, take_head
from turncoder.model.twin import causal_architectures, tiny_model
from turncoder.objectives.alignment import IGNORED, select_rows
from turncoder.objectives.vocabulary import cross_entropy, score_rows

CHARACTERISTIC = [
    "llama",
    "gemma2",
    "gemma3_text",
    "cohere",
    "granite",
    "gpt2",
    "opt",
    "mpt",
    "codegen",
    "gptj",
    "falcon",
    "modernbert-decoder",
    "bloom",
    "minicpm3",
    "hunyuan_v1_dense",
    "gpt_neox",
    "nanochat",
    "llama4_text",
    "bert",
    "electra",
    "marian",
    "inkling_text",
]
# What changes logits after the weight, by the name of the key, and a value at which it matters.
SCALES = {
    "logit_scale": 0.37,
    "logits_scaling": 2.7,
    "lm_head_multiplier": 0.61,
    "output_multiplier": 1.7,
    "dim_model_base": 8,
    "final_logit_softcapping": 8.0,
    "logits_soft_cap": 8.0,
    "output_logit_soft_cap": 8.0,
}
CONVERTIBLE = [
    "native_config",
    "needs_fixup",
    "needs_module_flag",
    "already_bidirectional",
    "bidirectional_right_padding_only",
    "partial_compressed_branch_causal",
]


def build(model_type):
    """A tiny model in which every scale, cap and bias of the head matters."""
    model = tiny_model(model_type)
    for owner in (model.config, model.config.get_text_config(decoder=True), model):
        for key, value in SCALES.items():
            if type(getattr(owner, key, None)) in (int, float) and not isinstance(
                getattr(type(owner), key, None), property
            ):
                setattr(owner, key, value)
    return model


def check(model_type):
    """Compare the loss of the gathered rows with the loss of full logits; return the head."""
    model = build(model_type)
    backbone, head = take_backbone(model), take_head(model)
    generator = torch.Generator().manual_seed(0)
    token_ids_BL = torch.randint(20, 120, (2, 12), generator=generator)
    labels_BL = torch.where(torch.rand(2, 12, generator=generator) < 0.5, token_ids_BL, IGNORED)
    with torch.no_grad():
        logits_BLV = model(input_ids=token_ids_BL).logits
        hidden_BLD = backbone(input_ids=token_ids_BL).last_hidden_state
    expected = F.cross_entropy(
        logits_BLV[:, :-1].flatten(0, 1).float(), labels_BL[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
    )
    rows_KD, targets_K = select_rows(hidden_BLD, labels_BL)
    loss = cross_entropy(rows_KD, targets_K, head, budget_bytes=2000)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    nll_K, first_K, _ = score_rows(rows_KD, targets_K, head, budget_bytes=2000)
    torch.testing.assert_close(nll_K.sum(), expected, rtol=1e-5, atol=0)
    best_K = logits_BLV[:, :-1].argmax(-1)[labels_BL[:, 1:] != IGNORED]
    assert (first_K == (best_K == targets_K)).all()
    return head, rows_KD, targets_K


@pytest.mark.parametrize("model_type", CHARACTERISTIC)
def test_gathered_loss_equals_the_models_own(model_type):
    if model_type not in causal_architectures():
        pytest.skip(f"this transformers has no {model_type}")
    head, rows_KD, targets_K = check(model_type)
    rows_KD = rows_KD.requires_grad_()
    loss = cross_entropy(rows_KD, targets_K, head, budget_bytes=2000)
    whole = F.cross_entropy(head(rows_KD).float(), targets_K, reduction="sum")
    (mine,), (theirs,) = torch.autograd.grad(loss, rows_KD), torch.autograd.grad(whole, rows_KD)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_every_convertible_architecture(shared):
    """Each row of the survey: whatever can be turned has a head that can be taken."""
    with (shared / "reference" / "architectures.csv").open() as lines:
        convertible = [row["model_type"] for row in csv.DictReader(lines) if row["verdict"] in CONVERTIBLE]
    wrong = []
    for model_type in set(convertible) & set(causal_architectures()):
        try:
            check(model_type)
        except Exception as error:  # one line each: what fails is wanted for all
            wrong.append(f"{model_type}: {type(error).__name__} {error}")
    assert not wrong
    assert len(convertible) > 140


def test_scale_and_cap_are_measured():
    assert take_head(build("cohere")).scale == pytest.approx(0.37, rel=1e-12)
    assert take_head(build("granite")).scale == pytest.approx(1 / 2.7, rel=1e-6)
    assert take_head(build("gemma2")).softcap == pytest.approx(8.0, rel=1e-12)
    assert take_head(build("llama")).kind == "linear"
    assert take_head(build("bert")).kind == "features + linear"


def test_a_head_of_no_known_shape_runs_in_pieces():
    model = tiny_model("llama")
    inner = model.forward

    def forward(*args, **kwargs):
        output = inner(*args, **kwargs)
        output.logits = output.logits + torch.arange(output.logits.shape[-1]) / 10
        output.logits[..., :4] = torch.finfo(output.logits.dtype).min
        return output

    model.forward = forward
    head = take_head(model, trainable=True)
    assert head.kind == "own forward"
    rows_KD = torch.randn(9, 32, requires_grad=True)
    targets_K = torch.arange(9) + 5
    loss = cross_entropy(rows_KD, targets_K, head, budget_bytes=5000)
    expected = F.cross_entropy(head(rows_KD), targets_K, reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    inputs = [rows_KD, *head.parameters()]
    assert len(inputs) == 2
    for mine, theirs in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_a_model_whose_logits_need_more_than_the_states_is_refused():
    model = tiny_model("llama")
    inner = model.forward

    def forward(input_ids, **kwargs):
        output = inner(input_ids, **kwargs)
        output.logits = output.logits + input_ids[..., None] * torch.linspace(0, 1, output.logits.shape[-1])
        return output

    model.forward = forward
    with pytest.raises(UserError, match="last hidden states alone"):
        take_head(model)


def test_a_model_without_a_head_is_refused():
    with pytest.raises(UserError, match="no backbone apart from its head"):
        take_head(take_backbone(tiny_model("llama")))


def test_a_frozen_head_is_outside_the_module_tree_and_gets_no_gradient():
    model = tiny_model("llama")
    backbone, head = take_backbone(model), take_head(model)
    assert not head.is_tied
    assert not any("lm_head" in name for name in backbone.state_dict())
    assert [*head.named_parameters()] == ["lm_head.weight"]
    rows_KD, targets_K = torch.randn(5, 32, requires_grad=True), torch.arange(5)
    cross_entropy(rows_KD, targets_K, head, budget_bytes=1 << 20).backward()
    assert rows_KD.grad is not None
    assert all(parameter.grad is None for parameter in model.parameters())
    head.train()
    cross_entropy(rows_KD, targets_K, head, budget_bytes=1 << 20).backward()
    assert model.lm_head.weight.grad is not None


def test_a_trained_head_is_still_known_after_a_trainer_registered_it():
    model = tiny_model("llama")
    backbone, head = take_backbone(model), take_head(model, trainable=True)
    backbone.register_parameter("vocabulary_head", head.parameters()[0])
    assert [*head.named_parameters()] == ["lm_head.weight"]
    assert not head.is_tied


def test_a_tied_head_follows_the_embedding():
    model = tiny_model("gemma2")
    backbone, head = take_backbone(model), take_head(model)
    assert head.is_tied
    assert head.parameters() == []
    rows_KD = torch.randn(3, 32)
    before_KV = head(rows_KD)
    with torch.no_grad():
        backbone.get_input_embeddings().weight.mul_(-1)
    torch.testing.assert_close(head(rows_KD), -before_KV)
    assert head.weight_VD.data_ptr() == backbone.get_input_embeddings().weight.data_ptr()
    backbone.double()
    assert head.weight_VD.dtype == torch.float64


def test_taking_leaves_the_model_as_it_was():
    model = tiny_model("gemma2").train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    saved = copy.deepcopy(model.state_dict())
    head = take_head(model)
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in saved.items())
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    head(torch.randn(2, 32))
    assert not any("forward" in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models(dtype):
    model = build("gemma2").to(dtype)
    head = take_head(model)
    assert head.softcap == pytest.approx(8.0, rel=1e-12)
    assert head.is_linear
    rows_KD = torch.randn(6, 32, dtype=dtype, requires_grad=True)
    cross_entropy(rows_KD, torch.arange(6), head, budget_bytes=1 << 20).backward()
    assert rows_KD.grad.dtype == dtype


def test_the_head_sees_adapters_of_the_backbone_only_through_the_rows():
    """Taken before LoRA is attached, the head is the same after: the adapter is in the backbone."""
    from peft import LoraConfig, get_peft_model

    model = build("bert")
    head = take_head(model)
    rows_KD = torch.randn(4, 32)
    before_KV = head(rows_KD)
    get_peft_model(take_backbone(model), LoraConfig(r=2, target_modules=["query"], task_type="FEATURE_EXTRACTION"))
    torch.testing.assert_close(head(rows_KD), before_KV)
    assert len(head.parameters()) > 0
