"""Words within training: the states, the loss and the order are those of a loop over words."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import nn
from torch._subclasses import FakeTensorMode
from transformers import AutoModel, AutoTokenizer, LlamaConfig, LlamaModel

from turncoder.config.words import WordsConfig
from turncoder.data.alignment import Alignment, align_words, choose_bos
from turncoder.data.labels import IGNORED, UNSEEN, LabelSet
from turncoder.model.adapters import attach_lora
from turncoder.train.features import read_states
from turncoder.train.finetuning import _Exam
from turncoder.train.headtrainer import HeadTrainer, load_trained
from turncoder.train.linear import apply_head
from turncoder.train.tagging import TaggedWindows, WordModel, add_losses, collate_windows
from turncoder.train.wordtasks import Task

TEXTS = ("Once upon a time there was a little dog.", "Hm.", "Unbelievably tremendous!", "a b c d e f g h " * 12, "x")


@pytest.fixture(scope="module")
def tokenizer(stories):
    return AutoTokenizer.from_pretrained(stories)


@pytest.fixture(scope="module")
def sentences() -> Dataset:
    rows: dict[str, list] = {"text": list(TEXTS), "starts": [], "ends": []}
    for text in TEXTS:
        starts = [place for place, sign in enumerate(text) if sign != " " and (not place or text[place - 1] == " ")]
        rows["starts"].append(starts)
        rows["ends"].append([(text + " ").index(" ", start) for start in starts])
    return Dataset.from_dict(rows)


@pytest.fixture(scope="module")
def alignment(tokenizer, sentences) -> Alignment:
    found = align_words(tokenizer, sentences, limit=40, bos=choose_bos(tokenizer))
    assert found.counts["cut_sentences"] == 1 and len(found.window_ends) > 6
    return found


def number(alignment: Alignment, classes=(4, 3)) -> np.ndarray:
    labels_MT = np.random.default_rng(0).integers(0, classes, (len(alignment.word_window), len(classes)))
    labels_MT[5, 0], labels_MT[7] = UNSEEN, IGNORED
    return labels_MT


def lay_out(alignment: Alignment, *, shift=0, merge=True, epochs=1, batch_size=3, seed=0) -> TaggedWindows:
    labels_MT = number(alignment)
    return TaggedWindows(
        alignment, labels_MT, shift=shift, merge=merge, epochs=epochs, seed=seed, batch_size=batch_size
    )


@torch.no_grad()
def read_slowly(model, alignment: Alignment, layer, shift: int, merge: bool) -> list[torch.Tensor]:
    """One window and one word at a time."""
    states = []
    for word, window in enumerate(alignment.word_window):
        end = alignment.window_ends[window]
        ids = alignment.tokens[end - alignment.lengths[window] : end]
        output = model(torch.from_numpy(ids).long()[None], output_hidden_states=True)
        hidden_LD = (output.last_hidden_state if layer is None else output.hidden_states[layer])[0]
        places = [*range(alignment.word_first[word], alignment.word_last[word])]
        places = [max(place - shift, 0) for place in (places if merge else places[:1])]
        states.append(hidden_LD[sorted(set(places))].mean(0))
    return states


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("layer", [None, 2])
def test_logits_are_those_of_one_word_after_the_other(stories, tokenizer, alignment, merge, shift, layer):
    backbone = AutoModel.from_pretrained(stories)
    torch.manual_seed(0)
    model = WordModel(backbone, {"a": 4, "b": 3}, 64, layer=layer, dropout=0.5).eval()
    windows = lay_out(alignment, shift=shift, merge=merge)
    batch = collate_windows([windows[item] for item in range(len(windows))], tokenizer.pad_token_id or 0)
    found = model(**batch)
    slow = read_slowly(backbone, alignment, layer, shift, merge)
    order = [word for window in windows.order.rows(0) for word in np.flatnonzero(alignment.word_window == window)]
    assert sorted(order) == list(range(len(slow)))
    for head, logits_WC in zip(model.heads, found, strict=True):
        expected = torch.stack([head(slow[word]) for word in order])
        torch.testing.assert_close(logits_WC, expected, rtol=1e-4, atol=1e-5)
    labels_MT = number(alignment)
    labels_MT[labels_MT == UNSEEN] = IGNORED
    assert np.array_equal(batch["labels"].numpy(), labels_MT[order])


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("front", [True, False])
def test_training_reads_the_states_that_scoring_reads(stories, tokenizer, sentences, merge, shift, front):
    """Also where nothing stands in front of the first word."""
    backbone = AutoModel.from_pretrained(stories).eval()
    alignment = align_words(tokenizer, sentences, limit=40, bos=choose_bos(tokenizer))
    if not front:
        keep = np.ones(len(alignment.tokens), dtype=bool)
        keep[alignment.window_ends - alignment.lengths] = False
        ends = alignment.window_ends - np.arange(1, len(alignment.window_ends) + 1)
        first, last = alignment.word_first - 1, alignment.word_last - 1
        alignment = Alignment(alignment.tokens[keep], ends, alignment.word_window, first, last, {})
    windows = lay_out(alignment, shift=shift, merge=merge)
    model = WordModel(backbone, {"a": 64}, 64, layer=None, dropout=0.0)
    model.heads = nn.ModuleList([nn.Identity()])
    found = model(**collate_windows([windows[item] for item in range(len(windows))], 0))[0]
    reading = ("same_token", "previous_token")[shift]
    read = read_states(backbone, alignment, layers=[-1], readings=[reading], merge=merge, pad_token_id=0)
    states = torch.cat([part[reading, -1] for part in read])
    order = [word for window in windows.order.rows(0) for word in np.flatnonzero(alignment.word_window == window)]
    torch.testing.assert_close(found, states[torch.tensor(order)], rtol=1e-4, atol=1e-5)


def test_a_batch_by_hand():
    features = [
        {"input_ids": np.array([1, 7, 8, 9]), "first": np.array([1, 2]), "last": np.array([2, 4]),
         "labels": np.array([[0, 5], [1, IGNORED]])},
        {"input_ids": np.array([1, 6]), "first": np.array([1]), "last": np.array([2]), "labels": np.array([[2, 4]])},
    ]  # fmt: skip
    batch = collate_windows(features, pad_token_id=3)
    assert {name: values.tolist() for name, values in batch.items()} == {
        "input_ids": [[1, 7, 8, 9], [1, 6, 3, 3]],
        "attention_mask": [[1, 1, 1, 1], [1, 1, 0, 0]],
        "token_place": [1, 2, 3, 5],
        "token_word": [0, 1, 1, 2],
        "labels": [[0, 5], [1, IGNORED], [2, 4]],
    }
    assert {values.dtype for values in batch.values()} == {torch.int64}


def test_every_epoch_has_every_word_once_in_an_order_of_its_own(alignment):
    windows = lay_out(alignment, epochs=3, batch_size=2)
    size = len(windows) // 3
    rows = [tuple(windows[item]["input_ids"].tolist()) for item in range(len(windows))]
    epochs = [rows[epoch * size : (epoch + 1) * size] for epoch in range(3)]
    whole = sorted(tuple(part.tolist()) for part in np.split(alignment.tokens, alignment.window_ends[:-1]))
    assert all(sorted(epoch) == whole for epoch in epochs)
    assert epochs[0] != epochs[1] and epochs[1] != epochs[2]
    words = sum(len(windows[item]["first"]) for item in range(size))
    assert words == len(alignment.word_window)
    again = lay_out(alignment, epochs=1, batch_size=2)
    assert [tuple(again[item]["input_ids"].tolist()) for item in range(size)] == epochs[0]
    other = lay_out(alignment, seed=1, batch_size=2)
    assert [tuple(other[item]["input_ids"].tolist()) for item in range(size)] != epochs[0]
    for wrong in (-1, len(windows)):
        with pytest.raises(IndexError):
            windows[wrong]


def test_the_loss_is_a_mean_over_all_labels_of_all_tasks(stories, alignment, tmp_path):
    from transformers import TrainingArguments

    backbone = AutoModel.from_pretrained(stories)
    model = WordModel(backbone, {"a": 4, "b": 3}, 64, layer=None, dropout=0.0).eval()
    windows = lay_out(alignment)
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", remove_unused_columns=False)
    trainer = HeadTrainer(judge=dict, add_losses=add_losses, model=model, args=args, train_dataset=windows)
    batch = collate_windows([windows[item] for item in range(len(windows))], 0)
    counted = (batch["labels"] != IGNORED).sum()
    loss = trainer.compute_loss(model, batch, num_items_in_batch=counted)
    slow, total, count = read_slowly(backbone, alignment, None, 0, True), 0.0, 0
    for state, labels in zip(slow, number(alignment), strict=True):
        for head, label in zip(model.heads, labels, strict=True):
            if label >= 0:
                total -= float(head(state).log_softmax(0)[label])
                count += 1
    assert count == int(counted) == 2 * len(slow) - 3
    assert float(loss) == pytest.approx(total / count, rel=1e-5)


def test_what_trains_is_what_a_checkpoint_holds(tmp_path, alignment):
    from safetensors.torch import load_file
    from transformers import TrainingArguments

    def build(mode: str, seed: int) -> WordModel:
        torch.manual_seed(0)
        sizes = {"vocab_size": 512, "hidden_size": 32, "intermediate_size": 48}
        backbone = LlamaModel(LlamaConfig(num_hidden_layers=1, num_attention_heads=4, **sizes))
        torch.manual_seed(seed)
        if mode == "lora":
            trained = attach_lora(backbone, r=2, alpha=None, dropout=0.0, targets=None)
            for name, weight in trained.named_parameters():
                if "lora_B" in name:
                    nn.init.normal_(weight.data)
        return WordModel(trained if mode == "lora" else backbone, {"a/b.c": 3}, 32, layer=None, dropout=0.0)

    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    ids = torch.arange(3, 20)[None]
    for mode in ("lora", "full"):
        model, other = build(mode, 1), build(mode, 2)
        trainer = HeadTrainer(
            judge=dict, add_losses=add_losses, model=model, args=args, train_dataset=lay_out(alignment)
        )
        trainer._save(str(tmp_path / mode))
        names = set(load_file(tmp_path / mode / "trained.safetensors"))
        assert names == {name for name, weight in model.named_parameters() if weight.requires_grad}
        assert ("backbone.embed_tokens.weight" in names) == (mode == "full")
        if mode == "lora":
            assert not torch.equal(model.backbone(ids)[0], other.backbone(ids)[0])
        load_trained(other, tmp_path / mode)
        assert torch.equal(model.backbone(ids)[0], other.backbone(ids)[0])
        assert torch.equal(model.heads[0].weight, other.heads[0].weight)


def test_heads_meet_the_states_of_words_that_came_off_a_gpu() -> None:
    with FakeTensorMode():  # knows of devices that are not there
        linear = SimpleNamespace(weight=torch.empty(3, 8, device="cuda"), bias=torch.empty(3, device="cuda"))
        config = WordsConfig(model_name_or_path="m", train_file="t", train_mode="lora")
        task = Task("upos", "upos", LabelSet(("A", "B", "C")))
        exam: Any = _Exam(config, None, None, -1, [task], None, SimpleNamespace(heads=[linear]))  # type: ignore[arg-type]
        (head,) = exam.take_heads()
        assert apply_head(torch.empty(5, 1, 8), head.weight_CE, head.bias_C).shape == (5, 3)
