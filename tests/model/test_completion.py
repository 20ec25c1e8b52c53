"""Temperature and prior in a model's own weights: plain transformers gives the logits of the language model."""

import copy
import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from turncoder.artifact import save_language_model
from turncoder.cli import main
from turncoder.model.completion import choose_way, compare, find_norm, put_prior, untie
from turncoder.model.heads import take_backbone, take_head
from turncoder.model.prior import Prior
from turncoder.model.twin import build_twin, tiny_model

MASKED = ["bert", "roberta", "modernbert", "electra", "xlm-roberta", "eurobert"]
WAYS = {
    "gpt2": "fold",
    "gpt_neox": "fold",
    "opt": "fold",
    "gpt_neo": "fold",
    "gptj": "bias",
    "phi": "bias",
    "phimoe": "bias",
    "modernbert-decoder": "bias",
    "eurobert": "bias",  # by mlp_bias, a key of its config
    **dict.fromkeys(MASKED, "bias"),
}


def tie(model):
    """Make the head the input embeddings, as headless training has it."""
    model.config.tie_word_embeddings = True
    model.get_output_embeddings().weight = model.get_input_embeddings().weight
    model.tie_weights()
    return model


def build(kind):
    if kind not in MASKED:
        return tie(tiny_model(kind))
    config = AutoConfig.for_model(kind)
    return tie(build_twin(config, AutoModelForMaskedLM._model_mapping[type(config)], width=32))


@pytest.fixture
def save(tmp_path: Path, stories: Path):
    """Write a tiny random model as headless pretraining leaves it."""

    def write(kind: str, temperature: float = 1.0, tau: float = 0.0, prior: bool = True) -> Path:
        model = build(kind)
        generator = torch.Generator().manual_seed(1)
        counts_V = torch.randint(0, 1 << 20, (model.get_input_embeddings().weight.shape[0],), generator=generator)
        counts_V[:5] = 0
        folder = tmp_path / f"{kind}-headless"
        save_language_model(
            model,
            folder,
            tokenizer=AutoTokenizer.from_pretrained(stories),
            tokenizer_files=None,
            prior=Prior(counts_V, temperature, tau) if prior else None,
            record={"stage": "pretrain", "kind": "mlm" if kind in MASKED else "clm", "objective": "cwt"},
        )
        return folder

    return write


def load(folder, kind):
    """Open a folder with plain transformers; nothing may be missing or left over."""
    auto = AutoModelForMaskedLM if kind in MASKED else AutoModelForCausalLM
    model, told = auto.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    return model.eval()


def expect(folder, kind, temperature, tau, prior=True):
    """Give token ids and the log-probabilities by the definition: h E^T / T + own bias + (1 - tau) log p."""
    from safetensors.torch import load_file

    model = load(folder, kind)
    token_ids_BL = torch.randint(5, 120, (3, 11), generator=torch.Generator().manual_seed(2))
    counts_V = load_file(folder / "unigram.safetensors")["counts"].double() + 1
    bias_V = model.get_output_embeddings().bias
    own_V = 0.0 if bias_V is None else bias_V.detach().double()
    with torch.no_grad():
        raw_BLV = model(input_ids=token_ids_BL).logits.double()
    shift_V = (1 - tau) * (counts_V / counts_V.sum()).log() if prior else 0.0
    return token_ids_BL, ((raw_BLV - own_V) / temperature + own_V + shift_V).log_softmax(-1)


@pytest.mark.parametrize("kind", WAYS)
@pytest.mark.parametrize("temperature", [1.0, 0.35])
def test_the_saved_models_own_logits_are_those_of_the_language_model(kind, temperature, save, tmp_path):
    folder = save(kind, temperature, tau=0.25)
    token_ids_BL, expected_BLV = expect(folder, kind, temperature, 0.25)
    assert main(["head", "add", str(folder), "--output", str(tmp_path / "out")]) == 0
    model = load(tmp_path / "out", kind)
    with torch.no_grad():
        found_BLV = model(input_ids=token_ids_BL).logits.double().log_softmax(-1)
    torch.testing.assert_close(found_BLV, expected_BLV, rtol=1e-6, atol=1e-5 / temperature)
    record = json.loads((tmp_path / "out" / "turncoder.json").read_text())
    assert record["head"]["way"] == WAYS[kind]
    assert record["prior"] is None
    assert not (tmp_path / "out" / "unigram.safetensors").exists()
    shares = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert shares == record["head"]["tied"] == (WAYS[kind] == "bias")
    if kind not in MASKED:
        made = model.generate(token_ids_BL[:1], max_new_tokens=3, do_sample=False, pad_token_id=0)
        assert made.shape[1] <= 14


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize("untied", [False, True])
def test_without_prior_the_head_is_the_embeddings(kind, untied, save, tmp_path):
    folder = save(kind)
    token_ids_BL, expected_BLV = expect(folder, kind, 1.0, 0.0, prior=False)
    flags = ["--no-prior", *(["--untied"] if untied else [])]
    assert main(["head", "add", str(folder), "--output", str(tmp_path / "out"), *flags]) == 0
    model = load(tmp_path / "out", kind)
    with torch.no_grad():
        found_BLV = model(input_ids=token_ids_BL).logits.double().log_softmax(-1)
    assert float((found_BLV - expected_BLV).abs().max()) < 1e-5
    output, inputs = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    assert torch.equal(output, inputs)
    assert (output is inputs) != untied


@pytest.mark.parametrize("kind", ["phi", "bert", "roberta", "eurobert"])
def test_an_untied_head_keeps_its_bias_with_the_prior(kind, save, tmp_path):
    folder = save(kind, 0.5)
    token_ids_BL, expected_BLV = expect(folder, kind, 0.5, 0.0)
    assert main(["head", "add", str(folder), "--output", str(tmp_path / "out"), "--untied"]) == 0
    model = load(tmp_path / "out", kind)
    with torch.no_grad():
        found_BLV = model(input_ids=token_ids_BL).logits.double().log_softmax(-1)
    torch.testing.assert_close(found_BLV, expected_BLV, rtol=1e-6, atol=3e-5)
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight


@pytest.mark.parametrize("kind", ["llama", "gemma2", "qwen3", "mpt", "cohere", "falcon"])
def test_where_no_direction_is_constant_a_fit_is_asked_for(kind):
    model = build(kind)
    way = choose_way(model, take_head(model))
    assert way == ("fold" if kind == "falcon" else "fit")
    norm = find_norm(model)
    assert norm is not None
    assert "Norm" in type(norm).__name__


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**20), bias=st.sampled_from([0.0, 1e-6, 0.3, 5.0]), spread=st.floats(0.05, 1.0))
def test_the_fold_is_exact_whatever_gain_and_bias_are(seed, bias, spread):
    """Among them a bias of 0, and gains over several orders of magnitude."""
    model = build("gpt2")
    norm = find_norm(model)
    assert isinstance(norm, nn.LayerNorm)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        norm.weight.copy_((torch.randn(32, generator=generator) * spread).exp())
        norm.bias.copy_(torch.randn(32, generator=generator) * bias)
        model.double()
        token_ids_BL = torch.randint(128, (2, 9), generator=generator)
        log_p_V = torch.randn(128, generator=generator).double() * 4
        expected_BLV = (model(input_ids=token_ids_BL).logits + log_p_V).log_softmax(-1)
        assert put_prior(model, log_p_V, 1.0) == "fold"
        found_BLV = model(input_ids=token_ids_BL).logits.log_softmax(-1)
    assert float((found_BLV - expected_BLV).abs().max()) < 1e-9


@pytest.mark.parametrize("kind", ["gemma2", "xlnet", "llama", "gpt2"])
def test_a_temperature_leaves_the_input_embeddings_alone(kind):
    """Whether a norm can take it (Llama, GPT-2) or not: Gemma's gain is 1 + weight, XLNet's norm has other uses."""
    model = build(kind)
    model.config.final_logit_softcapping = None
    target = take_head(copy.deepcopy(model)).add_prior(torch.zeros(128), 0.6)
    original, kept = copy.deepcopy(model), model.get_input_embeddings().weight.detach().clone()
    put_prior(model, torch.zeros(128), 0.6)
    assert compare(model, target, take_backbone(original)) < 1e-5
    assert torch.equal(model.get_input_embeddings().weight, kept)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == (kind in ("llama", "gpt2"))


def test_untying_changes_no_logits():
    model = build("gpt2")
    token_ids_BL = torch.arange(10)[None]
    before_BLV = model(input_ids=token_ids_BL).logits
    untie(model)
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    assert not model.config.tie_word_embeddings
    assert torch.equal(model(input_ids=token_ids_BL).logits, before_BLV)


def test_what_has_its_head_or_lacks_nothing_is_refused(save, tmp_path, capsys):
    folder = save("gpt2")
    assert main(["head", "add", str(folder), "--output", str(tmp_path / "out")]) == 0
    assert main(["head", "add", str(tmp_path / "out"), "--output", str(tmp_path / "again")]) == 2
    assert "has its head already" in capsys.readouterr().err
    assert main(["head", "add", str(folder), "--output", str(tmp_path / "out")]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["head", "add", str(folder), "--output", str(folder), "--overwrite"]) == 2
    assert "MODEL itself" in capsys.readouterr().err
    plain = save("bert", prior=False)
    assert main(["head", "add", str(plain), "--output", str(tmp_path / "again")]) == 2
    assert "is not headless" in capsys.readouterr().err
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / "empty").mkdir()
    for name, said in (
        ("text.txt", "there is no model folder"),
        ("empty", "no config.json"),
        ("gone", "no model folder"),
    ):
        assert main(["head", "add", str(tmp_path / name), "--output", str(tmp_path / "again")]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


def test_a_fit_without_text_is_refused_and_says_what_to_do(save, tmp_path, capsys):
    folder = save("llama")
    assert main(["head", "add", str(folder), "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "--train_file" in said
    assert [path.name for path in tmp_path.iterdir()] == ["llama-headless"]


def test_counts_that_are_gone_are_asked_for(save, tmp_path, capsys):
    folder = save("gpt2")
    (folder / "unigram.safetensors").unlink()
    assert main(["head", "add", str(folder), "--output", str(tmp_path / "out")]) == 2
    assert "unigram.safetensors" in capsys.readouterr().err


def test_a_plan_writes_nothing(save, tmp_path, capsys):
    folder = save("gpt2")
    assert main(["head", "add", str(folder), "--output", str(tmp_path / "out"), "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert "folded into the weights" in said
    assert "model.safetensors" in said
    assert not (tmp_path / "out").exists()
