"""States of words: those of a forward of each window alone, whatever the batch, the reading, the layer or the cache."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, GPT2Config, GPT2Model

from turncoder import make_bidirectional
from turncoder.data.alignment import Alignment, align_words, choose_bos
from turncoder.errors import UserError
from turncoder.train import features
from turncoder.train.features import compute_features

READINGS = ("same_token", "previous_token")


@pytest.fixture(scope="module")
def stories_model(stories):
    return AutoModel.from_pretrained(stories).eval(), AutoTokenizer.from_pretrained(stories)


@pytest.fixture(scope="module")
def sentences(stories_text) -> Dataset:
    texts = stories_text.read_text(encoding="utf-8").split("\n")[:48]
    texts = [text[: 40 + 15 * number] for number, text in enumerate(texts) if text.strip()]
    rows: dict[str, list] = {"text": texts, "starts": [], "ends": []}
    for text in texts:
        places, at = [], 0
        for word in text.split():
            at = text.index(word, at)
            places.append((at, at + len(word)))
            at += len(word)
        rows["starts"].append([start for start, _ in places])
        rows["ends"].append([end for _, end in places])
    return Dataset.from_dict(rows)


def assert_close(states, expected):
    """Equal but for the rounding of a batch, in parts of the largest number."""
    share = 1e-10 if states.dtype == torch.float64 else 1e-5
    np.testing.assert_allclose(states, expected, rtol=0, atol=share * np.abs(np.asarray(expected)).max())


def align(tokenizer, data, limit=120) -> Alignment:
    return align_words(tokenizer, data, limit=limit, bos=choose_bos(tokenizer))


def compute(model, alignment, folder, **others):
    options = {"layers": [-1], "readings": ["same_token"], "merge": True, "fingerprint": "x", "pad_token_id": 0}
    return compute_features(model, alignment, folder=folder, **{**options, **others})


@torch.no_grad()
def read_alone(model, alignment: Alignment, layer: int, reading: str, merge: bool) -> np.ndarray:
    """One window at a time, one word at a time."""
    rows = []
    windows = np.split(alignment.tokens, alignment.window_ends[:-1])
    outputs = [model(torch.tensor(ids[None]).long(), output_hidden_states=True) for ids in windows]
    for word, window in enumerate(alignment.word_window):
        output = outputs[window]
        states = (output.last_hidden_state if layer == -1 else output.hidden_states[layer])[0]
        places = list(range(alignment.word_first[word], alignment.word_last[word]))
        if reading == "previous_token":
            places = [place - 1 for place in places if place] or [0]
        rows.append(states[places].double().mean(0) if merge else states[places[0]].double())
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_states_are_those_of_a_window_alone(stories, sentences, merge, turned, dtype, tmp_path):
    model, tokenizer = AutoModel.from_pretrained(stories, dtype=dtype), AutoTokenizer.from_pretrained(stories)
    if turned:
        make_bidirectional(model)
    alignment = align(tokenizer, sentences)
    assert alignment.counts["cut_sentences"] > 3 and alignment.counts["windows"] > 30
    options = {"layers": [-1, 0, 2, 5], "readings": READINGS, "merge": merge}
    found = compute(model, alignment, tmp_path, batch_tokens=500, **options)
    assert (found.num_words, found.width) == (alignment.counts["words"], 64)
    for (reading, layer), states in found.states.items():
        expected = read_alone(model, alignment, layer, reading, merge)
        assert_close(states, expected)
    assert set(found.states) == {(reading, layer) for reading in READINGS for layer in (-1, 0, 2, 5)}


@pytest.mark.parametrize(
    "config",
    [
        BertConfig(vocab_size=512, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64),
        GPT2Config(vocab_size=512, n_embd=32, n_layer=2, n_head=2, n_positions=128),
    ],
)
def test_encoders_and_learnt_positions(config, stories_model, sentences, tmp_path):
    torch.manual_seed(0)
    model = (BertModel if config.model_type == "bert" else GPT2Model)(config).eval()
    alignment = align(stories_model[1], sentences)
    found = compute(model, alignment, tmp_path, layers=[-1, 1], readings=READINGS)
    for (reading, layer), states in found.states.items():
        assert_close(states, read_alone(model, alignment, layer, reading, True))


def test_the_size_of_batches_and_parts_changes_nothing(shared, sentences, tmp_path, monkeypatch):
    folder = shared / "models" / "babyllama-char105-hf"
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    alignment = align(tokenizer, sentences)
    whole = compute(model, alignment, tmp_path / "a", readings=READINGS)
    monkeypatch.setattr(features, "SHARD_BYTES", 20_000)
    parts = compute(model, alignment, tmp_path / "b", readings=READINGS, batch_tokens=1)
    for key, states in whole.states.items():
        assert torch.equal(torch.as_tensor(states), torch.as_tensor(parts.states[key]))


def test_without_anything_in_front_the_first_word_reads_itself(stories_model, sentences, tmp_path):
    model, tokenizer = stories_model
    alignment = align(tokenizer, sentences.select(range(3)), limit=1000)
    keep = np.ones(len(alignment.tokens), dtype=bool)
    keep[alignment.window_ends - alignment.lengths] = False  # the beginnings, which are <s>
    ends = alignment.window_ends - np.arange(1, 4)
    bare = Alignment(
        alignment.tokens[keep], ends, alignment.word_window, alignment.word_first - 1, alignment.word_last - 1, {}
    )
    for merge in (True, False):
        found = compute(model, bare, tmp_path, readings=["previous_token"], merge=merge)
        expected = read_alone(model, bare, -1, "previous_token", merge)
        assert_close(found.states["previous_token", -1], expected)


def test_half_precision_is_kept_as_it_is(stories, sentences, tmp_path):
    model, tokenizer = AutoModel.from_pretrained(stories, dtype=torch.bfloat16), AutoTokenizer.from_pretrained(stories)
    alignment = align(tokenizer, sentences)
    states = compute(model, alignment, tmp_path, merge=False, layers=[0]).states["same_token", 0]
    assert states.dtype == torch.bfloat16
    first = alignment.tokens[(alignment.window_ends - alignment.lengths)[alignment.word_window] + alignment.word_first]
    assert torch.equal(states, model.get_input_embeddings().weight[torch.from_numpy(first).long()])


class Counted:
    """How often the model was asked."""

    def __init__(self, model, monkeypatch):
        self.calls, ask = 0, model.forward

        def forward(*args, **named):
            self.calls += 1
            return ask(*args, **named)

        monkeypatch.setattr(model, "forward", forward)


def test_what_is_there_is_not_computed_again(stories, sentences, tmp_path, monkeypatch):
    model, tokenizer = AutoModel.from_pretrained(stories).eval(), AutoTokenizer.from_pretrained(stories)
    alignment = align(tokenizer, sentences)
    counted = Counted(model, monkeypatch)
    first = compute(model, alignment, tmp_path)
    once = counted.calls
    again = compute(model, align(tokenizer, sentences), tmp_path)
    assert counted.calls == once and torch.equal(first.states["same_token", -1], again.states["same_token", -1])
    more = compute(model, alignment, tmp_path, layers=[-1, 1])
    assert counted.calls == 2 * once and set(more.states) == {("same_token", -1), ("same_token", 1)}
    (folder,) = tmp_path.iterdir()
    assert {path.name for path in folder.iterdir()} == {"same_token-last.safetensors", "same_token-1.safetensors"}
    path = folder / "same_token-last.safetensors"
    (tmp_path / "cut").write_bytes(path.read_bytes()[:1000])  # after a power cut
    (tmp_path / "cut").replace(path)
    whole = compute(model, alignment, tmp_path)
    assert counted.calls == 3 * once and torch.equal(whole.states["same_token", -1], more.states["same_token", -1])
    whole.close()
    assert not whole.states


@pytest.mark.parametrize("change", ["weights", "adapter", "scale", "turned", "tokenizer", "limit", "merge", "other"])
def test_anything_else_is_computed_anew(change, stories, shared, sentences, tmp_path, monkeypatch):
    model, tokenizer = AutoModel.from_pretrained(stories).eval(), AutoTokenizer.from_pretrained(stories)
    if change == "scale":
        model = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, init_lora_weights=False)).eval()
    alignment = align(tokenizer, sentences)
    compute(model, alignment, tmp_path)
    options = {}
    if change == "weights":
        model.layers[0].mlp.up_proj.weight.data += 0.01
    elif change == "adapter":
        model = get_peft_model(model, LoraConfig(r=2, init_lora_weights=False)).eval()
    elif change == "scale":
        for module in model.modules():
            if hasattr(module, "lora_A"):
                module.scaling["default"] = 0.5
    elif change == "turned":
        make_bidirectional(model)
    elif change == "tokenizer":
        alignment = align(AutoTokenizer.from_pretrained(shared / "models/babyllama-char105-hf"), sentences)
    elif change == "limit":
        alignment = align(tokenizer, sentences, limit=100)
    elif change == "merge":
        options = {"merge": False}
    else:
        options = {"fingerprint": "y"}
    found = compute(model, alignment, tmp_path, **options)
    assert len(list(tmp_path.iterdir())) == 2
    expected = read_alone(model, alignment, -1, "same_token", options.get("merge", True))
    assert_close(found.states["same_token", -1], expected)


def test_dropout_is_off_and_the_model_stays_as_it_was(stories_model, sentences, tmp_path):
    torch.manual_seed(0)
    config = BertConfig(vocab_size=512, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    model = BertModel(config).train()
    alignment = align(stories_model[1], sentences.select(range(4)))
    once, again = (compute(model, alignment, tmp_path / name) for name in "ab")
    assert torch.equal(once.states["same_token", -1], again.states["same_token", -1])
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())


def test_nothing_is_left_of_what_went_wrong(stories, stories_model, sentences, tmp_path):
    model, tokenizer = stories_model
    alignment = align(tokenizer, sentences)
    with pytest.raises(UserError, match=r"layer = 9: the model has layers 0 to 5"):
        compute(model, alignment, tmp_path, layers=[-1, 9])
    broken = AutoModel.from_pretrained(stories)
    broken.norm.weight.data[3] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        compute(broken, alignment, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be kept there"):
        compute(model, alignment, tmp_path / "file")
