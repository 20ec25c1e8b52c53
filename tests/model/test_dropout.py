"""Sparse dropout is dropout: the same law, exact gradients, the same adapter."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModel,
    BertConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    LlamaModel,
    OPTConfig,
    Qwen3Config,
)

from turncoder.model.dropout import DroppedLinear, drop_sparsely, set_attention_dropout


def layer(width: int, rank: int, p: float) -> DroppedLinear:
    return DroppedLinear(nn.Linear(width, rank, bias=False).double(), p).train()


@pytest.mark.parametrize("p", [0.05, 0.3, 0.9])
def test_each_entry_falls_with_probability_p_on_its_own(p: float) -> None:
    torch.manual_seed(0)
    width, draws = 64, 2000
    eye = DroppedLinear(nn.Linear(width, width, bias=False), p).train()
    nn.init.eye_(eye.weight)
    fell = eye(torch.ones(draws, width)) == 0
    share = fell.float().mean().item()
    assert share == pytest.approx(p, abs=5 * (p * (1 - p) / (draws * width)) ** 0.5)
    pairs = (fell[:, :-1] & fell[:, 1:]).float().mean().item()  # neighbours are independent
    assert pairs == pytest.approx(p * p, abs=6 * (p * p / (draws * width)) ** 0.5)
    kept = eye(torch.ones(draws, width))
    assert torch.allclose(kept[kept != 0], torch.tensor(1 / (1 - p)))


def test_gradients_are_those_of_the_function_that_was_drawn() -> None:
    projection = layer(6, 3, 0.4)
    x = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)

    def project(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)  # the same entries fall at every evaluation
        projection.weight = nn.Parameter(weight) if not isinstance(weight, nn.Parameter) else weight
        from turncoder.model.dropout import _DropAndProject

        return _DropAndProject.apply(x.reshape(-1, 6), weight, 0.4)

    assert torch.autograd.gradcheck(project, (x, projection.weight))


def test_evaluation_drops_nothing_and_names_stay() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=64
    )
    model = get_peft_model(LlamaModel(config), LoraConfig(r=4, lora_dropout=0.5, target_modules=["q_proj", "up_proj"]))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    ids = torch.arange(10)[None]
    before, names = model.eval()(ids).last_hidden_state, list(model.state_dict())
    drop_sparsely(model)
    assert list(model.state_dict()) == names
    assert torch.equal(model(ids).last_hidden_state, before)
    model.train()
    torch.manual_seed(1)
    one, other = model(ids).last_hidden_state, model(ids).last_hidden_state
    assert not torch.equal(one, other)
    torch.manual_seed(1)
    assert torch.equal(model(ids).last_hidden_state, one)


def test_under_autocast_it_is_ordinary_dropout() -> None:
    projection = DroppedLinear(nn.Linear(8, 4, bias=False), 0.5).train()
    x = torch.randn(16, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.manual_seed(0)
        found = projection(x)
        torch.manual_seed(0)
        expected = nn.functional.linear(nn.functional.dropout(x, 0.5), projection.weight)
    assert found.dtype == torch.bfloat16 and torch.equal(found, expected)


SMALL = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
MODELS = {
    "llama": LlamaConfig(**SMALL, num_key_value_heads=1),
    "qwen3": Qwen3Config(**SMALL, num_key_value_heads=1, head_dim=8),
    "gpt2": GPT2Config(vocab_size=64, n_embd=16, n_layer=3, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
    "gpt_neox": GPTNeoXConfig(**SMALL),
    "opt": OPTConfig(
        vocab_size=64, hidden_size=16, ffn_dim=32, num_hidden_layers=3, num_attention_heads=2, dropout=0.0
    ),
    "bert": BertConfig(**SMALL, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_dropout_reaches_every_layer_and_leaves_the_config(name: str, attention: str) -> None:
    torch.manual_seed(0)
    model = AutoModel.from_config(MODELS[name], attn_implementation=attention).train()
    before = model.config.to_dict()
    ids = torch.arange(1, 13).reshape(2, 6)

    def differs() -> bool:
        first, second = (model(input_ids=ids).last_hidden_state for _ in range(2))
        return not torch.equal(first, second)

    assert not differs()
    assert set_attention_dropout(model, 0.4) == 3
    assert differs()
    assert model.config.to_dict() == before
    assert set_attention_dropout(model, 0.0) == 3 and not differs()
    assert set_attention_dropout(torch.nn.Linear(2, 2), 0.4) == 0
