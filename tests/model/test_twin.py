import csv

import pytest
import torch
from transformers import FalconConfig, FalconModel, LlamaConfig, LlamaModel, MistralConfig, MistralForCausalLM

from turncoder.model.twin import build_twin, causal_architectures, tiny_model

CHARACTERISTIC = (
    "llama mistral gemma2 gemma3_text gemma4_text gpt2 gpt_neo stablelm nemotron llama4_text mpt"
    " modernbert-decoder bloom lfm2 falcon_h1 mamba deepseek_v4 qwen3_next mixtral deepseek_v3 opt xlm"
)


@pytest.mark.parametrize("name", CHARACTERISTIC.split())
def test_a_tiny_model_is_small_and_carries_signal(name):
    model = tiny_model(name)
    assert not model.training
    assert sum(parameter.numel() for parameter in model.parameters()) < 500_000
    tokens_BL = torch.randint(5, 120, (2, 11))
    with torch.no_grad():
        logits_BLV = model(input_ids=tokens_BL)[0]
    assert logits_BLV.shape == (2, 11, 128)
    assert torch.isfinite(logits_BLV).all()
    assert (logits_BLV[0] - logits_BLV[1]).std() > 1e-3


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("gemma3_text", {"sliding_attention", "full_attention"}),
        ("llama4_text", {"chunked_attention", "full_attention"}),
        ("lfm2", {"conv", "full_attention"}),
        ("qwen3_next", {"linear_attention", "full_attention"}),
    ],
)
def test_every_type_of_layer_is_there(name, kinds):
    config = tiny_model(name).config
    assert set(config.layer_types) == kinds
    assert len(config.layer_types) == config.num_hidden_layers


def test_a_twin_has_class_implementation_and_window_of_the_original():
    config = MistralConfig(sliding_window=4096)
    config._attn_implementation = "eager"
    before = config.to_dict()
    twin = build_twin(config, MistralForCausalLM)
    assert config.to_dict() == before
    assert type(twin) is MistralForCausalLM
    assert twin.config._attn_implementation == "eager"
    assert (twin.config.hidden_size, twin.config.sliding_window) == (64, 4)


def test_a_model_without_windows_gets_none():
    assert build_twin(MistralConfig(sliding_window=None), MistralForCausalLM).config.sliding_window is None


def test_a_falcon_without_shared_heads_has_a_twin():
    config = FalconConfig(hidden_size=2048, num_attention_heads=32, multi_query=False, parallel_attn=False, alibi=True)
    with torch.no_grad():
        states = build_twin(config, FalconModel)(input_ids=torch.arange(5, 12)[None]).last_hidden_state
    assert torch.isfinite(states).all()


def test_grouped_queries_stay_grouped():
    twin = build_twin(LlamaConfig(num_attention_heads=32, num_key_value_heads=8), LlamaModel)
    assert (twin.config.num_attention_heads, twin.config.num_key_value_heads) == (4, 2)


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_models_with_fewer_heads_than_a_twin_have_one(heads):
    config = LlamaConfig(hidden_size=12, num_attention_heads=heads, num_key_value_heads=heads)
    ids_BL = torch.tensor([[5, 6, 7]])
    assert build_twin(config, LlamaModel)(ids_BL).last_hidden_state.isfinite().all()


def test_the_same_twin_twice_and_the_global_generator_untouched():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    one, two = tiny_model("llama"), tiny_model("llama")
    assert torch.equal(torch.rand(3), expected)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


def test_an_implementation_that_the_class_lacks_is_an_error():
    with pytest.raises(ValueError, match="scaled_dot_product_attention"):
        tiny_model("gemma2", "sdpa")


@pytest.mark.slow
def test_every_architecture_that_can_be_built_is(shared):
    with (shared / "reference" / "architectures.csv").open() as file:
        rows = {row["model_type"]: row["builds"] == "True" for row in csv.DictReader(file)}
    for name in causal_architectures():
        if rows.get(name):
            tiny_model(name)
