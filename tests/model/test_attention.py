import copy
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModel, Gemma3TextConfig, Gemma4TextConfig

from turncoder.errors import ConversionError
from turncoder.model import attention
from turncoder.model.attention import (
    attention_map,
    check_attention,
    inspect_attention,
    make_bidirectional,
    reopens,
    settle_implementation,
)
from turncoder.model.conversion import causal_masks
from turncoder.model.influence import backbone_of
from turncoder.model.memory import remember
from turncoder.model.proof import prove
from turncoder.model.twin import tiny_model

KEY = "config.is_causal = False"
CONVERTIBLE = {  # how, and how AutoModel opens a saved copy
    "llama": ((KEY,), "bidirectional"),
    "mistral": ((KEY,), "bidirectional"),
    "gemma2": ((KEY,), "bidirectional"),
    "gemma3_text": (("config.use_bidirectional_attention = True",), "bidirectional"),
    "gemma4_text": (("config.use_bidirectional_attention = 'all'",), "bidirectional"),
    "gpt2": ((KEY,), "bidirectional"),
    "gpt_neo": ((KEY, "causal buffers mirrored"), "causal"),
    "openai-gpt": ((KEY, "causal buffers mirrored"), "causal"),
    "stablelm": ((KEY, "module.is_causal = False"), "disagrees"),
    "nemotron": ((KEY, "module.is_causal = False"), "disagrees"),
    "llama4_text": ((KEY, "mask factories wrapped"), "disagrees"),
    "mpt": ((KEY, "mask factories wrapped"), "fails"),
    "modernbert-decoder": ((KEY,), "bidirectional"),
    "bloom": ((KEY,), "bidirectional"),
    "xlm": ((), "bidirectional"),
}
REFUSED = {  # verdict, and what the message names
    "lfm2": ("partial", r"layers\.0: back only \(conv\)"),
    "qwen3_next": ("partial", r"layers\.0: back only \(linear_attn\)"),
    "falcon_h1": ("partial", r"layers\.0-1: back further than ahead \(mamba\)"),
    "inkling_text": ("partial", r"attn_sconv"),
    "zaya": ("partial", r"self_attn\.qkv_proj"),
    "deepseek_v4": ("partial", r"memory beyond the window"),
    "mamba": ("causal", r"layers\.0-1: back only .*none exists"),
    "rwkv": ("causal", r"blocks\.0-1: back only .*none exists"),
    "cpmant": ("padding leaks", r"padded texts come out differently"),
}


def states(model, ids_BL, mask_BL=None):
    with torch.no_grad():
        output = backbone_of(model)(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False)
    return output[0]


def earlier_moves(model, padded):
    """By brute force: the least share of a standard deviation by which token j moves an earlier output."""
    ids_BL = torch.randint(5, 100, (1, 9), generator=torch.Generator().manual_seed(3))
    mask_BL = torch.ones_like(ids_BL)
    mask_BL[:, 7:] = 1 - int(padded)
    mask_BL = mask_BL if padded else None
    base_LD = states(model, ids_BL, mask_BL)[0]
    least = float("inf")
    for j in range(1, 7):
        other_BL = ids_BL.clone()
        other_BL[0, j] += 1
        moved_L = (states(model, other_BL, mask_BL)[0] - base_LD).abs().amax(-1) / base_LD.std()
        least = min(least, float(moved_L[:j].min()))
    return least


@pytest.mark.parametrize("name", CONVERTIBLE)
def test_converted_models_look_both_ways(name):
    how, reopened = CONVERTIBLE[name]
    model = tiny_model(name)
    report = make_bidirectional(model)
    assert (report.verdict, report.how, report.reopens) == ("bidirectional", how, reopened)
    assert reopens(model) == reopened
    mixing = [layer for layer in report.layers if layer.looks_back]
    assert len(mixing) >= 2
    assert all(layer.looks_ahead for layer in mixing)
    assert earlier_moves(model, padded=False) > 1e-4
    assert earlier_moves(model, padded=True) > 1e-4
    check_attention(model)


@pytest.mark.parametrize("name", sorted(set(CONVERTIBLE) - {"xlm"} | set(REFUSED) - {"cpmant"}))
def test_a_causal_model_is_never_called_bidirectional(name):
    model = tiny_model(name)
    assert earlier_moves(model, padded=False) == pytest.approx(0, abs=1e-5)
    assert not any(layer.looks_ahead for layer in attention_map(model))
    with pytest.raises(ConversionError, match="back only"):
        check_attention(model)


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_cannot_be_converted_are_refused_by_name(name):
    verdict, named = REFUSED[name]
    model = tiny_model(name)
    with pytest.raises(ConversionError, match=named):
        make_bidirectional(model)
    assert inspect_attention(model).verdict == verdict


@pytest.mark.parametrize("name", ["lfm2", "falcon_h1", "deepseek_v4"])
def test_partial_models_are_admitted_on_request(name):
    model = tiny_model(name)
    report = make_bidirectional(model, allow_partial=True)
    assert report.verdict == "partial"
    assert "of 2 layers look both ways" in report.summary


@pytest.mark.parametrize("name", ["mamba", "cpmant"])
def test_partial_is_no_way_around_the_others(name):
    with pytest.raises(ConversionError, match="none exists"):
        make_bidirectional(tiny_model(name), allow_partial=True)


@pytest.mark.parametrize("name", ["llama", "stablelm", "llama4_text", "modernbert-decoder", "gemma4_text"])
def test_eager_attention_is_proven_apart(name):
    report = make_bidirectional(tiny_model(name, "eager"))
    assert (report.verdict, report.implementation) == ("bidirectional", "eager")


def test_the_key_alone_is_seen_through_where_it_is_not_enough():
    for name in ("stablelm", "nemotron", "llama4_text", "gpt_neo"):
        model = tiny_model(name)
        model.config.is_causal = False
        with causal_masks(backbone_of(model)), pytest.raises(ConversionError, match="make_bidirectional"):
            check_attention(model)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_flag_of_the_first_gemma_is_no_conversion(implementation):
    model = tiny_model("gemma", implementation)
    for layer in backbone_of(model).layers:
        layer.self_attn.is_causal = False
    with pytest.raises(ConversionError):
        check_attention(model)


def test_another_model_of_the_class_stays_causal():
    for name in ("llama4_text", "mpt", "nemotron"):
        make_bidirectional(tiny_model(name))
        assert earlier_moves(tiny_model(name), padded=False) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(("name", "window"), [("mistral", 64), ("gemma2", 64), ("gpt_neo", None), ("llama", None)])
def test_windows_of_the_real_size_are_reported(name, window):
    report = make_bidirectional(tiny_model(name))
    windows = {layer.window for layer in report.layers} - {None}
    assert windows == ({window} if window else {63} if name == "gpt_neo" else set())


def test_the_window_before_is_reported():
    layer = next(layer for layer in make_bidirectional(tiny_model("mistral")).layers)
    assert (layer.window_before, layer.window) == (63, 64)


@pytest.mark.parametrize(
    ("name", "config_class", "value"),
    [("gemma3_text", Gemma3TextConfig, True), ("gemma4_text", Gemma4TextConfig, "all")],
)
def test_gemma_in_place_equals_gemma_constructed_and_saved(name, config_class, value, tmp_path):
    model = backbone_of(tiny_model(name))
    given = model.config.to_dict()
    report = make_bidirectional(model)
    constructed = config_class(**{**given, "use_bidirectional_attention": value})
    assert model.config.sliding_window == constructed.sliding_window == 33
    assert model.config.to_dict()["sliding_window"] == 64

    model.save_pretrained(tmp_path)
    opened = AutoModel.from_pretrained(tmp_path).eval()
    assert opened.config.sliding_window == 33
    again = check_attention(opened)
    assert [layer.window for layer in again.layers] == [layer.window for layer in report.layers]
    ids_BL = torch.randint(5, 100, (1, 90))
    torch.testing.assert_close(states(opened, ids_BL), states(model, ids_BL))


def test_converting_twice_is_converting_once():
    for name in ("gemma3_text", "gpt_neo", "llama4_text"):
        model = tiny_model(name)
        first = make_bidirectional(model)
        config = copy.deepcopy(model.config.to_dict())
        second = make_bidirectional(model)
        assert model.config.to_dict() == config
        assert [layer.window for layer in second.layers] == [layer.window for layer in first.layers]
        assert second.how == first.how


def test_a_saved_copy_opens_as_reported(tmp_path):
    for name in ("llama", "gpt_neo", "mpt"):
        model = backbone_of(tiny_model(name))
        report = make_bidirectional(model)
        model.save_pretrained(tmp_path / name)
        opened = AutoModel.from_pretrained(tmp_path / name).eval()
        with causal_masks(opened):
            if report.reopens == "fails":
                with pytest.raises(AttributeError):
                    states(opened, torch.arange(5, 10)[None])
            else:
                assert (earlier_moves(opened, padded=False) > 1e-4) == (report.reopens == "bidirectional")


def test_weights_mode_and_gradients_are_left_alone():
    model = tiny_model("llama").train()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    make_bidirectional(model)
    assert model.training
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    assert make_bidirectional(tiny_model("llama").to(dtype)).verdict == "bidirectional"
    with pytest.raises(ConversionError):
        check_attention(tiny_model("llama").to(dtype))


def test_a_model_with_an_adapter():
    backbone = backbone_of(tiny_model("llama"))
    model = get_peft_model(backbone, LoraConfig(target_modules=["q_proj"], task_type="FEATURE_EXTRACTION"))
    assert make_bidirectional(model).architecture == "LlamaModel"
    assert backbone.config.is_causal is False


def sharpen(model):
    """Make a softmax as sharp as a rate of 0.1 leaves it: every position attends to one other."""
    with torch.no_grad():
        for name, weights in backbone_of(model).named_parameters():
            if "q_proj.weight" in name:
                weights.mul_(1e3)
            elif "c_attn.weight" in name:  # queries, keys and values in one
                weights[:, : weights.shape[1] // 3].mul_(1e3)
    return model


@pytest.mark.parametrize("name", ["gpt2", "mistral"])
def test_a_softmax_too_sharp_for_one_text_is_looked_at_with_more(name, monkeypatch):
    model = sharpen(tiny_model(name))
    assert inspect_attention(model).verdict == "causal"
    assert make_bidirectional(model).verdict == "bidirectional"
    monkeypatch.setattr(attention, "LOOKS", 1)
    assert {view.direction for view in attention_map(model)} != {"both ways"}  # or nothing was tested


def test_a_first_look_that_shows_nothing_is_not_the_last_one(monkeypatch):
    """In a converted model; what is not converted is not looked at again, for large models take seconds each time."""
    looks, look_once = [], attention.look_once

    def look(backbone, layers, number):
        looks.append(number)
        seen, sees_ahead, differs = look_once(backbone, layers, number)
        return (seen, sees_ahead, differs) if number else ([(set(), set(layers))] * 2, [False, False], differs)

    monkeypatch.setattr(attention, "look_once", look)
    model = tiny_model("llama")
    assert inspect_attention(model).verdict == "causal" and looks == [0]
    looks.clear()
    assert make_bidirectional(model).verdict == "bidirectional" and looks == [0, 1]


@pytest.mark.parametrize("name", ["lfm2", "qwen3_next", "zaya"])
def test_a_sharp_softmax_hides_no_causal_part(name):
    with pytest.raises(ConversionError, match=REFUSED[name][1]):
        make_bidirectional(sharpen(tiny_model(name)))


def test_a_report_is_json_and_a_table():
    report = make_bidirectional(tiny_model("mistral"))
    row = report.to_dict()["layers"][0]
    assert {"index", "name", "looks_ahead", "looks_back", "window"} <= set(row)
    assert report.table().row_count == 2
    assert report.summary == "2 of 2 layers look both ways, windows of +-64"


def test_proofs_lie_in_the_cache_for_every_user_to_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TURNCODER_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    remember(tiny_model("llama"), "topic", dict)
    (path,) = (tmp_path / "home/.cache/turncoder/proofs").iterdir()
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode


def test_proofs_are_remembered_and_a_broken_memory_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("TURNCODER_CACHE", str(tmp_path))
    model = tiny_model("llama")
    first = prove(model)
    (file,) = (tmp_path / "proofs").iterdir()
    assert prove(model) == first
    assert remember(model, "attention", lambda: pytest.fail("found before"))
    file.write_text("{", encoding="utf8")
    assert prove(model) == first
    make_bidirectional(model)  # the conversion is no other architecture
    assert len(list((tmp_path / "proofs").iterdir())) == 1


def test_a_folder_that_cannot_be_written_costs_time_only(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("", encoding="utf8")
    monkeypatch.setenv("TURNCODER_CACHE", str(tmp_path / "file"))
    assert make_bidirectional(tiny_model("llama")).verdict == "bidirectional"


def test_an_implementation_that_does_not_pass_gives_way_before_anything_is_converted(monkeypatch, caplog):
    def prove_only_eager(model):
        found = prove(model)
        return found if backbone_of(model).config._attn_implementation == "eager" else replace(found, converted=False)

    monkeypatch.setattr(attention, "prove", prove_only_eager)
    model = tiny_model("llama", "sdpa")
    settle_implementation(model)
    assert model.config._attn_implementation == "eager"
    assert "sdpa does not pass the proof" in caplog.text
    assert not any(layer.looks_ahead for layer in attention_map(model))
    assert make_bidirectional(model).verdict == "bidirectional"


def test_what_cannot_become_bidirectional_is_refused_before_anything_is_spent():
    with pytest.raises(ConversionError, match=r"layers\.0: back only \(conv\)"):
        settle_implementation(tiny_model("lfm2"))
    settle_implementation(tiny_model("lfm2"), allow_partial=True)
