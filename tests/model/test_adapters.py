"""Adapters: trained on the backbone or on the causal model, loaded on the backbone, merged exactly."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel, MixtralConfig, MixtralModel

from turncoder.errors import UserError
from turncoder.model.adapters import attach_lora, choose_targets, count_parameters, load_adapter, merge_adapter

IDS = torch.arange(2, 12)[None]


@pytest.fixture
def causal_lm() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=64
    )
    return LlamaForCausalLM(config).eval()


def randomize(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.1)


def copy_of(model: LlamaModel) -> LlamaModel:
    twin = LlamaModel(model.config).eval()
    twin.load_state_dict(model.state_dict())
    return twin


@pytest.mark.parametrize("targets", [("q_proj", "down_proj"), "all-linear"])
@pytest.mark.parametrize("task", ["CAUSAL_LM", None, "FEATURE_EXTRACTION"])
def test_an_adapter_of_any_origin_loads_on_the_backbone(
    causal_lm: LlamaForCausalLM, tmp_path: Path, targets: object, task: str | None
) -> None:
    bare = copy_of(causal_lm.model)
    trained_on = causal_lm.model if task == "FEATURE_EXTRACTION" else causal_lm
    targets = list(targets) if isinstance(targets, tuple) else targets
    adapted = get_peft_model(trained_on, LoraConfig(r=4, target_modules=targets, task_type=task)).eval()
    randomize(adapted)
    adapted.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = causal_lm.model(IDS).last_hidden_state
        assert not torch.allclose(bare(IDS).last_hidden_state, expected, atol=1e-3)
        found = load_adapter(bare, tmp_path)(IDS).last_hidden_state
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    "settings",
    [
        {"alpha_pattern": {Q: 64}},
        {"rank_pattern": {Q: 8, "^model.layers.1.mlp.down_proj": 2}},
        {"target_modules": r"model\.layers\.\d\.mlp\.(up|down)_proj"},
        {"target_modules": "all-linear", "exclude_modules": [Q]},
        {"layers_to_transform": [1]},
        {"modules_to_save": ["norm", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
        {"trainable_token_indices": [5, 6]},
        {"use_dora": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("merge", [True, False])
def test_settings_keep_the_meaning_that_they_had_on_the_causal_model(
    causal_lm: LlamaForCausalLM, tmp_path: Path, settings: dict, merge: bool
) -> None:
    bare = copy_of(causal_lm.model)
    adapted = get_peft_model(causal_lm, LoraConfig(r=4, **{"target_modules": ["q_proj", "down_proj"], **settings}))
    with torch.no_grad():
        for weight in adapted.parameters():
            weight.add_(torch.randn_like(weight) * 0.1 * weight.requires_grad)
        adapted.eval().save_pretrained(tmp_path)
        expected = causal_lm.model(IDS).last_hidden_state
        found = load_adapter(bare, tmp_path, merge=merge)(IDS).last_hidden_state
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_an_adapter_that_changes_nothing_is_refused(causal_lm: LlamaForCausalLM, tmp_path: Path) -> None:
    attach_lora(copy_of(causal_lm.model), r=2, alpha=None, dropout=0.0, targets=None).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="changes nothing"):
        load_adapter(causal_lm.model, tmp_path)


def test_an_adapter_of_another_model_is_refused(causal_lm: LlamaForCausalLM, tmp_path: Path) -> None:
    wide = LlamaModel(LlamaConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=64))
    adapted = attach_lora(wide, r=2, alpha=None, dropout=0.0, targets=("q_proj",))
    randomize(adapted)
    adapted.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="does not fit"):
        load_adapter(causal_lm.model, tmp_path)
    with pytest.raises(UserError, match="cannot be opened"):
        load_adapter(causal_lm.model, tmp_path / "nowhere")


def test_lora_is_twice_r_in_float32_on_seven_projections_of_a_bf16_model(causal_lm: LlamaForCausalLM) -> None:
    model = attach_lora(causal_lm.model.bfloat16(), r=4, alpha=None, dropout=0.0, targets=None)
    config = model.peft_config["default"]
    assert config.lora_alpha == 8 and len(config.target_modules) == 7
    assert {weight.dtype for weight in model.parameters() if weight.requires_grad} == {torch.float32}
    shapes = [(32, 32)] * 4 + [(32, 48)] * 3
    causal_lm.lm_head.requires_grad_(False)
    trainable, total = count_parameters(model, *causal_lm.lm_head.parameters())
    assert trainable == 2 * 4 * sum(rows + columns for rows, columns in shapes)
    assert total == trainable + sum(
        weight.numel() for name, weight in causal_lm.named_parameters() if "lora_" not in name
    )


def test_a_target_that_does_not_exist_is_named(causal_lm: LlamaForCausalLM) -> None:
    assert choose_targets(causal_lm.model, ("all-linear",)) == "all-linear"
    with pytest.raises(UserError, match="no module q_porj"):
        choose_targets(causal_lm.model, ("q_porj",))


def test_experts_cannot_have_dropout() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = MixtralModel(MixtralConfig(**sizes, num_hidden_layers=1, num_local_experts=2, vocab_size=64))
    with pytest.raises(UserError, match=r"lora_dropout = 0\.05: .* give lora_dropout = 0 "):
        attach_lora(model, r=4, alpha=None, dropout=0.05, targets=None)
    attach_lora(model, r=4, alpha=None, dropout=0.0, targets=None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merging_keeps_the_states_and_the_dtype(causal_lm: LlamaForCausalLM, dtype: torch.dtype) -> None:
    model = attach_lora(causal_lm.model.to(dtype), r=4, alpha=None, dropout=0.1, targets=None)
    randomize(model)
    model.eval()
    with torch.no_grad():
        before = model(IDS).last_hidden_state.float()
    merged, cosine = merge_adapter(model, {"input_ids": IDS})
    assert not isinstance(merged, PeftModel)
    assert not any("lora_" in name for name, _ in merged.named_parameters())
    assert {weight.dtype for weight in merged.parameters()} == {dtype}
    with torch.no_grad():
        after = merged(IDS).last_hidden_state.float()
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(before, after, atol=tolerance, rtol=tolerance)
    assert cosine > (0.99999 if dtype == torch.float32 else 0.999)


@pytest.mark.parametrize("merge", [True, False])
def test_a_stack_of_adapters_adds_up(causal_lm: LlamaForCausalLM, tmp_path: Path, merge: bool) -> None:
    backbone = causal_lm.model
    expected = copy_of(backbone)
    for number, target in enumerate(["q_proj", "q_proj"]):
        adapted = get_peft_model(copy_of(backbone), LoraConfig(r=4, target_modules=[target], task_type=None)).eval()
        randomize(adapted)
        adapted.save_pretrained(tmp_path / str(number))
        with torch.no_grad():
            for name, layer in adapted.base_model.model.named_modules():
                if name.endswith(target):
                    expected.get_submodule(name).weight += layer.get_delta_weight("default")
    for number in range(2):
        assert load_adapter(backbone, tmp_path / str(number), merge=merge) is backbone
    assert merge != any("lora_" in name for name, _ in backbone.named_parameters())
    with torch.no_grad():
        torch.testing.assert_close(
            backbone(IDS).last_hidden_state, expected(IDS).last_hidden_state, atol=1e-5, rtol=1e-5
        )
