"""An encoder with a head: its loss, its batches, what it predicts; and what stands between two texts."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn import functional
from transformers import AutoTokenizer, PreTrainedTokenizerFast, TrainingArguments

from turncoder import load_encoder
from turncoder.evaluate.gluescores import balance
from turncoder.prompts import mark_border
from turncoder.train.classifying import LabelledTexts, TextCollator, TextModel, choose_loss, predict
from turncoder.train.headtrainer import HeadTrainer

ROWS = [
    (("Once upon a time", "there was a dog."), 0),
    (("A cat sat on the mat because it liked to sit there all day long.", "It sat."), 2),
    (("No.", "Yes, it is so."), 1),
    (("Tom saw a red ball.", "Sue did not."), 2),
    (("Rain.", ""), 2),
]
TEXTS = [texts for texts, _ in ROWS]
WEIGHTS = balance(np.array([label for _, label in ROWS]), 3)


@pytest.fixture(scope="module")
def encoder(stories: Path) -> SentenceTransformer:
    encoder = load_encoder(str(stories), device="cpu")
    assert mark_border(encoder.tokenizer)
    return encoder


def build(encoder: SentenceTransformer, outputs: int = 3, dropout: float = 0.0) -> TextModel:
    torch.manual_seed(0)
    return TextModel(encoder, outputs, dropout=dropout).eval()


@pytest.mark.parametrize("weight_C", [None, WEIGHTS], ids=["plain", "balanced"])
def test_the_loss_is_one_cross_entropy_of_the_logits(
    weight_C: np.ndarray | None, encoder: SentenceTransformer, tmp_path: Path
) -> None:
    """One softmax: headless-lm took another before."""
    model, collate = build(encoder), TextCollator(encoder, None)
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", remove_unused_columns=False)
    trainer = HeadTrainer(judge=dict, add_losses=choose_loss(False, weight_C), model=model, args=args)
    batch = collate(ROWS)
    labels_B = batch["labels"].clone()
    loss = trainer.compute_loss(model, dict(batch), num_items_in_batch=len(ROWS)).item()
    with torch.no_grad():
        logits_NC = model.head(torch.stack([encode_alone(encoder, texts) for texts in TEXTS]))
    if weight_C is None:
        wanted = float(functional.cross_entropy(logits_NC, labels_B))
        twice = float(functional.cross_entropy(logits_NC.softmax(-1), labels_B))
        assert abs(twice - wanted) > 1e-3
    else:  # rows / (classes x rows of the class) times each row's own
        counts = {label: sum(other == label for _, other in ROWS) for _, label in ROWS}
        logs_NC = logits_NC.log_softmax(-1)
        wanted = -sum(
            len(ROWS) / (3 * counts[label]) * float(logs_NC[row, label]) for row, (_, label) in enumerate(ROWS)
        ) / len(ROWS)
    assert loss == pytest.approx(wanted, rel=1e-5)


def encode_alone(encoder: SentenceTransformer, texts: tuple[str, str]) -> torch.Tensor:
    """The mean of a pair's states, without padding and without our code."""
    ids = encoder.tokenizer([texts], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return encoder.transformers_model(ids).last_hidden_state[0].mean(0)


def test_the_loss_of_numbers_is_their_squared_distance(encoder: SentenceTransformer) -> None:
    model, collate = build(encoder, 1), TextCollator(encoder, None)
    batch = collate([(texts, np.float32(label)) for texts, label in ROWS])
    assert batch["labels"].dtype == torch.float32
    outputs_B1 = model(**dict(batch))
    wanted = sum((said - label) ** 2 for said, (_, label) in zip(outputs_B1[:, 0].tolist(), ROWS, strict=True))
    assert choose_loss(True)(outputs_B1, batch["labels"]).item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("prompt", [None, "Is it so?\n"])
def test_a_row_is_predicted_alike_alone_and_in_any_batch(prompt: str | None, encoder: SentenceTransformer) -> None:
    """Padding is neither seen nor pooled: headless-lm passed no attention masks."""
    model, collate = build(encoder, dropout=0.5), TextCollator(encoder, prompt)
    alone_NC = np.concatenate([predict(model, collate, [texts], 1) for texts in TEXTS])
    for size in (2, 5):
        np.testing.assert_allclose(predict(model, collate, TEXTS, size), alone_NC, rtol=1e-4, atol=1e-5)
    assert len(np.unique(alone_NC.round(4), axis=0)) == len(TEXTS)
    turned_NC = predict(model, collate, TEXTS[::-1], 2)
    np.testing.assert_allclose(turned_NC[::-1], alone_NC, rtol=1e-4, atol=1e-5)


def test_dropout_is_there_in_training_alone(encoder: SentenceTransformer) -> None:
    model, collate = build(encoder, dropout=0.5), TextCollator(encoder, None)
    model.train()
    features = collate.tokenise(TEXTS)
    assert not torch.equal(model(**dict(features)), model(**dict(features)))
    assert np.array_equal(predict(model, collate, TEXTS, 5), predict(model, collate, TEXTS, 5)) and model.training
    encoder.eval()


def test_batches_hold_rows_of_like_length_and_every_row_once_an_epoch() -> None:
    texts = [("a" * (1 + 37 * number % 100),) for number in range(100)]
    lengths_N = np.array([len(one) for (one,) in texts])
    rows = LabelledTexts(texts, np.arange(100), lengths_N, epochs=3, seed=1, batch_size=10)
    epochs = [[int(rows[epoch * 100 + place][1]) for place in range(100)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(100)) for epoch in epochs) and epochs[0] != epochs[1]
    assert all(rows[place][0] == texts[epochs[0][place]] for place in range(100))
    spread = [np.ptp([len(texts[row][0]) for row in epochs[0][start : start + 10]]) for start in range(0, 100, 10)]
    assert max(spread) < 20  # of 100 lengths
    with pytest.raises(IndexError):
        rows[300]


def test_tokens_are_counted_as_they_are_read(stories: Path) -> None:
    encoder = load_encoder(str(stories), max_seq_length=16, device="cpu")
    collate = TextCollator(encoder, None)
    for texts in (TEXTS, [(first,) for first, _ in TEXTS]):
        lengths_N = collate.count_tokens(texts)
        assert lengths_N.tolist() == [int(collate.tokenise([row])["attention_mask"].sum()) for row in texts]
        assert lengths_N.max() == 16 and lengths_N.min() < 10


def test_what_is_too_long_is_cut_from_the_longer_text(stories: Path) -> None:
    encoder = load_encoder(str(stories), max_seq_length=16, device="cpu")
    ids = TextCollator(encoder, None).tokenise([("Once upon a time " * 20, "No.")])["input_ids"]
    alone = encoder.tokenizer("No.", add_special_tokens=False)["input_ids"]
    assert ids.shape == (1, 16) and ids[0, -len(alone) :].tolist() == alone


def test_modules_behind_the_pooling_are_read_too(encoder: SentenceTransformer) -> None:
    from sentence_transformers.models import Normalize

    normed = SentenceTransformer(modules=[*encoder, Normalize()], device="cpu")
    model = build(normed)
    plain_ND = torch.stack([encode_alone(encoder, texts) for texts in TEXTS])
    with torch.no_grad():
        wanted_NC = model.head(functional.normalize(plain_ND))
    said_NC = predict(model, TextCollator(normed, None), TEXTS, 5)
    np.testing.assert_allclose(said_NC, wanted_NC.numpy(), rtol=1e-4, atol=1e-5)


def make_tokenizer(processor: Any, **tokens: str) -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate(["<s>", "</s>", "a", "b"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if processor is not None:
        backend.post_processor = processor
    return PreTrainedTokenizerFast(tokenizer_object=backend, **tokens)


BOS = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B:1", special_tokens=[("<s>", 0)])
CASES = {
    "nothing at all": (None, [2, 1, 3], [2]),
    "bytes": (processors.ByteLevel(), [2, 1, 3], [2]),
    "one at the beginning": (BOS, [0, 2, 1, 3], [0, 2]),
    "bytes and one": (processors.Sequence([processors.ByteLevel(), BOS]), [0, 2, 1, 3], [0, 2]),
    "a border": (
        processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B:1", special_tokens=[("<s>", 0)]),
        [0, 2, 0, 3],
        [0, 2],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_something_stands_between_two_texts(name: str, tmp_path: Path) -> None:
    processor, pair, single = CASES[name]
    tokenizer = make_tokenizer(processor, eos_token="</s>")
    for _ in range(2):  # once is enough
        assert mark_border(tokenizer)
        assert tokenizer("a", "b")["input_ids"] == pair and tokenizer("a")["input_ids"] == single
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)("a", "b")["input_ids"] == pair


def test_without_a_token_to_put_there_it_is_told() -> None:
    tokenizer = make_tokenizer(None)
    assert not mark_border(tokenizer) and tokenizer("a", "b")["input_ids"] == [2, 3]


def test_the_weights_of_an_even_task_are_one() -> None:
    assert balance(np.array([0, 1, 0, 1]), 2).tolist() == [1, 1]
    assert math.isclose(balance(np.array([0, 0, 0, 1]), 2)[1], 2.0)
