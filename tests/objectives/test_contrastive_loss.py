"""The contrastive loss: the value and the gradients of an independent computation, however rows are put through."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.losses import MultipleNegativesRankingLoss
from torch import Tensor
from transformers import LlamaConfig

from turncoder import load_encoder
from turncoder.model.adapters import attach_lora
from turncoder.objectives.contrast import build_loss, embed_by_length

TEXTS = [
    "A cat sat.",
    "Once upon a time there was a little girl who had a very big red ball and a dog.",
    "The sun is warm.",
    "He ran to the house, and she ran after him, and they all had a lot of fun that day.",
    "No.",
    "Tom and Lily went to the park to play with a kite, but the wind was far too strong for it.",
]
OTHERS = ["A cat is sitting.", "A girl had a ball.", "It is warm.", "They ran home.", "Never!", "The kite flew away."]
SCALE = 7.0


@pytest.fixture
def encoder(make_model: Callable[..., Path]) -> SentenceTransformer:
    """A tiny bidirectional Llama without dropout, with a LoRA whose B is not zero."""
    config = LlamaConfig(
        vocab_size=512, hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=128,
    )  # fmt: skip
    opened = load_encoder(str(make_model(config)), device="cpu")
    attach_lora(opened.transformers_model, r=4, alpha=None, dropout=0.0, targets=None)  # type: ignore[arg-type]
    torch.manual_seed(1)
    for name, weight in opened.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return opened.train()


def features_of(encoder: SentenceTransformer) -> list[dict[str, Any]]:
    """Tokenise two columns, each in the order of the rows' total length, as the collator does."""
    columns = [encoder.preprocess(texts) for texts in (TEXTS, OTHERS)]
    order = sum(column["attention_mask"].sum(1) for column in columns).argsort(descending=True)
    return [{k: v[order] if isinstance(v, Tensor) else v for k, v in column.items()} for column in columns]


def gradients(encoder: SentenceTransformer, loss: Tensor) -> dict[str, Tensor]:
    encoder.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in encoder.named_parameters() if weight.grad is not None}


def by_hand(encoder: SentenceTransformer, columns: list[dict[str, Any]], symmetric: bool) -> Tensor:
    """InfoNCE from its formula: every text alone through the model, mean over its tokens, cosines, cross-entropy."""
    vectors = []
    for column in columns:
        rows = []
        for ids, mask in zip(column["input_ids"], column["attention_mask"], strict=True):
            ids = ids[mask.bool()][None]
            state = encoder.transformers_model(input_ids=ids).last_hidden_state  # type: ignore[misc]
            rows.append(torch.nn.functional.normalize(state.mean(1), dim=-1))
        vectors.append(torch.cat(rows))
    scores = SCALE * vectors[0] @ vectors[1].T
    forward = -(scores.diagonal() - scores.logsumexp(1)).mean()
    if not symmetric:
        return forward
    return (forward - (scores.diagonal() - scores.logsumexp(0)).mean()) / 2


def assert_same(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert ours.keys() == expected.keys() and ours
    size = max(float(gradient.abs().max()) for gradient in expected.values())
    assert size > 1e-4
    for name, gradient in expected.items():
        assert float((ours[name] - gradient).abs().max()) < 1e-5 * size, name


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("ways", [{"batch_tokens": 10**6}, {"batch_tokens": 40}, {"batch_tokens": 1}, {"cached": 24}])
def test_loss_and_gradients_are_those_of_the_formula(
    encoder: SentenceTransformer, ways: dict[str, int], symmetric: bool
) -> None:
    columns = features_of(encoder)
    expected = by_hand(encoder, columns, symmetric)
    wanted = gradients(encoder, expected)
    loss = build_loss(
        encoder,
        scale=SCALE,
        symmetric=symmetric,
        batch_tokens=ways.get("batch_tokens", 64),
        mini_batch_num_tokens=ways.get("cached"),
    )
    value = loss([dict(column) for column in columns], None)
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    assert_same(gradients(encoder, value), wanted)


@pytest.mark.parametrize("cached", [None, 24])
def test_cosines_are_compared_in_float32_under_autocast(encoder: SentenceTransformer, cached: int | None) -> None:
    """Vectors that bfloat16 made, compared without it: eight bits of a cosine times twenty are a tenth of the loss."""
    columns = features_of(encoder)
    loss = build_loss(encoder, scale=20.0, batch_tokens=64, mini_batch_num_tokens=cached)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss([dict(column) for column in columns], None)
        vectors = [embed_by_length(encoder, column, 64).float() for column in columns]
    assert value.dtype == torch.float32
    first, second = (torch.nn.functional.normalize(one, dim=-1) for one in vectors)
    scores = 20.0 * first @ second.T
    expected = -(scores.diagonal() - scores.logsumexp(1)).mean()
    assert value.item() == pytest.approx(expected.item(), rel=2e-3)  # rows went through in other company


def test_it_is_the_loss_of_sentence_transformers(encoder: SentenceTransformer) -> None:
    columns = features_of(encoder)
    theirs = MultipleNegativesRankingLoss(encoder, scale=SCALE)([dict(column) for column in columns], None)
    ours = build_loss(encoder, scale=SCALE, batch_tokens=30)([dict(column) for column in columns], None)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-6)


def test_rows_go_through_by_length_and_come_back_in_order(encoder: SentenceTransformer) -> None:
    features = encoder.preprocess(TEXTS)
    positions: list[int] = []
    encoder[0].register_forward_pre_hook(lambda _, arguments: positions.append(arguments[0]["input_ids"].numel()))
    vectors = embed_by_length(encoder, features, 40)
    assert len(positions) > 2
    assert sum(positions) < features["input_ids"].numel()
    alone = torch.cat([encoder(encoder.preprocess([text]))["sentence_embedding"] for text in TEXTS])
    torch.testing.assert_close(vectors, alone, atol=1e-5, rtol=0)


def test_prompts_stay_out_of_every_pass(encoder: SentenceTransformer) -> None:
    encoder[1].include_prompt = False
    prompt = "Say it again\n"
    features = encoder.preprocess(TEXTS, prompt=prompt)
    assert "prompt_length" in features
    alone = torch.cat([encoder(encoder.preprocess([text], prompt=prompt))["sentence_embedding"] for text in TEXTS])
    torch.testing.assert_close(embed_by_length(encoder, features, 30), alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("ways", [{"batch_tokens": 10**6}, {"batch_tokens": 40}, {"batch_tokens": 1}, {"cached": 24}])
def test_matryoshka_is_the_mean_over_dimensions(encoder: SentenceTransformer, ways: dict[str, int]) -> None:
    columns = features_of(encoder)
    vectors = [torch.cat([encoder(dict(one))["sentence_embedding"] for one in rows(column)]) for column in columns]
    losses = []
    for width in (24, 8, 3):
        anchors, positives = (torch.nn.functional.normalize(one[:, :width], dim=-1) for one in vectors)
        losses.append(torch.nn.functional.cross_entropy(SCALE * anchors @ positives.T, torch.arange(len(TEXTS))))
    expected = sum(losses) / 3
    wanted = gradients(encoder, expected)
    loss = build_loss(
        encoder,
        scale=SCALE,
        batch_tokens=ways.get("batch_tokens", 64),
        mini_batch_num_tokens=ways.get("cached"),
        matryoshka_dims=(8, 3),
    )
    value = loss([dict(column) for column in columns], None)
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    assert_same(gradients(encoder, value), wanted)


def rows(column: dict[str, Any]) -> list[dict[str, Tensor]]:
    """Take each row alone, without padding."""
    return [
        {"input_ids": ids[mask.bool()][None], "attention_mask": mask[mask.bool()][None]}
        for ids, mask in zip(column["input_ids"], column["attention_mask"], strict=True)
    ]
