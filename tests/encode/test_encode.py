"""The same text gives the same vector, whatever it is encoded with; batches hold so many tokens; prompts stay apart."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, BertConfig, GPT2Config, LlamaConfig, MistralConfig, ModernBertConfig

import turncoder
from turncoder import budget as budgets
from turncoder.data.batching import budget_batches
from turncoder.data.vocabulary import train_tokenizer
from turncoder.encode.encoder import load_encoder
from turncoder.encode.texts import BatchEncoder, encode_stream, encode_texts
from turncoder.errors import UserError
from turncoder.prompts import check_prompt

SMALL = {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
MODELS = {
    "llama": LlamaConfig(**SMALL, intermediate_size=48, max_position_embeddings=256),
    "windows": MistralConfig(
        **SMALL, intermediate_size=48, num_key_value_heads=2, sliding_window=8, max_position_embeddings=256
    ),
    "absolute positions": GPT2Config(vocab_size=512, n_embd=32, n_layer=2, n_head=4, n_positions=256),
    "bert": BertConfig(**SMALL, intermediate_size=48, max_position_embeddings=256, pad_token_id=0),
    "modernbert": ModernBertConfig(**SMALL, intermediate_size=48, local_attention=8, pad_token_id=0),
}
WIDE_SIZES = {"vocab_size": 512, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
WIDE = {
    "llama": LlamaConfig(**WIDE_SIZES, intermediate_size=352, max_position_embeddings=256),
    "absolute positions": GPT2Config(vocab_size=512, n_embd=128, n_layer=2, n_head=2, n_positions=256),
    "bert": BertConfig(**WIDE_SIZES, intermediate_size=512, max_position_embeddings=256, pad_token_id=0),
    "modernbert": ModernBertConfig(**WIDE_SIZES, intermediate_size=192, local_attention=8, pad_token_id=0),
}
WORDS = [
    "once",
    "upon",
    "a",
    "time",
    "there",
    "was",
    "little",
    "dog",
    "that",
    "ran",
    "home",
    "to",
    "its",
    "mother",
    "and",
    "the",
    "cat",
    "sat",
]


def make_texts(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    texts = [" ".join(draw.choices(WORDS, k=draw.choice([1, 2, 3, 5, 9, 30, 60]))) for _ in range(count)]
    return [*texts, "", "   ", texts[0]]


@pytest.mark.parametrize("name", MODELS)
def test_the_same_text_the_same_vector(name: str, make_model: Callable[..., Path]) -> None:
    folder = str(make_model(MODELS[name]))
    texts = make_texts(40)
    encoder = load_encoder(folder)
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    other = "eager" if encoder.transformers_model.config._attn_implementation == "sdpa" else "sdpa"
    for opened in (encoder, load_encoder(folder, attn_implementation=other)):
        for budget in (1, 100, 1000, 100_000):
            order = random.Random(budget).sample(range(len(texts)), len(texts))
            vectors = encode_texts(opened, [texts[row] for row in order], batch_tokens=budget)
            np.testing.assert_allclose(vectors, alone[order], atol=1e-5)
    np.testing.assert_allclose(encoder.encode(texts), alone, atol=1e-5)


@pytest.fixture
def torch_threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", WIDE)
@pytest.mark.parametrize("length", [256, 200])
def test_on_a_cpu_the_same_text_has_the_same_bits(
    name: str, length: int, make_model: Callable[..., Path], torch_threads: Callable[[int], None]
) -> None:
    encoder = load_encoder(str(make_model(WIDE[name])), device="cpu", max_seq_length=length)
    texts = make_texts(150) + [" ".join(WORDS * repeats) for repeats in range(3, 20)]
    kept: dict[str, np.ndarray] = {}
    for budget, count, threads in (
        (2048, 170, 2),
        (1, 40, 1),
        (500, 170, 2),
        (300, 1, 2),
        (300, 9, 2),
        (9_999, 170, 2),
    ):
        order = random.Random(budget).sample(range(len(texts)), count)
        torch_threads(threads)
        vectors = encode_texts(encoder, [texts[row] for row in order], batch_tokens=budget)
        for row, vector in zip(order, vectors, strict=True):
            assert np.array_equal(kept.setdefault(texts[row], vector), vector), (budget, texts[row])


def test_a_stream_is_the_same_in_pieces(make_model: Callable[..., Path]) -> None:
    encoder = load_encoder(str(make_model(MODELS["llama"])))
    texts = make_texts(50)
    pieces = list(turncoder.encode_stream(encoder, iter(texts), shard_texts=20))
    assert [len(piece) for piece in pieces] == [20, 20, 13]
    np.testing.assert_allclose(np.concatenate(pieces), turncoder.encode_texts(encoder, texts), atol=1e-5)
    assert list(encode_stream(encoder, [])) == []
    assert encode_texts(encoder, []).shape == (0, 32)


def test_each_distinct_text_is_encoded_once_and_everything_is_counted(make_model: Callable[..., Path]) -> None:
    encoder = load_encoder(str(make_model(MODELS["llama"])), max_seq_length=16)
    seen: list[int] = []
    preprocess = encoder.preprocess
    batches = BatchEncoder(encoder, batch_tokens=64)
    encoder.preprocess = lambda texts, **named: seen.append(len(texts)) or preprocess(texts, **named)  # type: ignore
    texts = ["a dog", "a dog", " ".join(WORDS * 4), "", " ", "a cat"]
    _, counts = batches.encode(texts)
    assert sum(seen) == counts.distinct == 5
    assert (counts.texts, counts.truncated, counts.blank) == (6, 1, 2)
    whole = [len(encoder.tokenizer(text)["input_ids"]) for text in dict.fromkeys(texts)]
    assert counts.tokens == sum(min(length, 16) for length in whole) <= counts.padded


def test_a_text_without_any_token_has_the_zero_vector(make_model: Callable[..., Path]) -> None:
    folder = make_model(MODELS["llama"])
    state = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**state, "post_processor": None}))
    encoder = load_encoder(str(folder))
    vectors = encode_texts(encoder, ["", "a dog", ""], normalize=True)
    assert not vectors[[0, 2]].any() and np.isclose(np.linalg.norm(vectors[1]), 1)
    assert encode_texts(encoder, [""]).shape == (1, 32)


def test_what_the_encoder_keeps_is_honoured(make_model: Callable[..., Path], tmp_path: Path) -> None:
    encoder = load_encoder(str(make_model(MODELS["llama"])))
    encoder.prompts = {"query": "Find this:\n", "passage": ""}
    texts = make_texts(10)
    for name in ("query", "passage"):
        expected = encoder.encode(texts, prompt_name=name)
        np.testing.assert_allclose(encode_texts(encoder, texts, prompt_name=name), expected, atol=1e-5)
    encoder.default_prompt_name = "query"
    np.testing.assert_allclose(encode_texts(encoder, texts), encoder.encode(texts), atol=1e-5)
    encoder.truncate_dim = 8
    np.testing.assert_allclose(encode_texts(encoder, texts), encoder.encode(texts), atol=1e-5)
    encoder.truncate_dim = None
    encoder.save(str(tmp_path / "saved"))
    again = SentenceTransformer(str(tmp_path / "saved"))
    np.testing.assert_allclose(again.encode(texts), encode_texts(encoder, texts), atol=1e-5)


def test_a_prompt_is_attended_to_and_not_pooled(make_model: Callable[..., Path]) -> None:
    encoder = load_encoder(str(make_model(MODELS["llama"])))
    text, prompt = "a little dog", "Find this:\n"
    vector = encode_texts(encoder, [text], prompt=prompt)[0]
    ids = encoder.tokenizer(prompt + text, return_tensors="pt")["input_ids"]
    states = encoder.transformers_model(input_ids=ids).last_hidden_state[0].detach().numpy()
    count = len(encoder.tokenizer(prompt)["input_ids"])
    np.testing.assert_allclose(vector, states[count:].mean(0), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "Find: "}, "does not stay apart.*newline"),
        ({"prompt": "many words " * 100}, "the prompt has .* tokens and max_seq_length is 64"),
        ({"prompt_name": "absent"}, "'absent' is not among the encoder's prompts; it has query, document"),
        ({"prompt": "a\n", "prompt_name": "b"}, "both given"),
    ],
)
def test_prompts_that_cannot_be_are_refused(
    options: dict[str, str], message: str, make_model: Callable[..., Path]
) -> None:
    encoder = load_encoder(str(make_model(MODELS["llama"])), max_seq_length=64)
    with pytest.raises(UserError, match=message):
        encode_texts(encoder, ["once upon a time", "a"], **options)


def test_one_string_is_no_list(make_model: Callable[..., Path]) -> None:
    encoder = load_encoder(str(make_model(MODELS["llama"])))
    with pytest.raises(UserError, match="one string"):
        encode_texts(encoder, "a dog")
    with pytest.raises(UserError, match="one string"):
        next(encode_stream(encoder, "a dog"))


def test_a_long_text_goes_alone_and_fast(make_model: Callable[..., Path]) -> None:
    encoder = load_encoder(str(make_model(MODELS["llama"])), max_seq_length=64)
    batches = BatchEncoder(encoder, batch_tokens=32)
    vectors, counts = batches.encode(["dog " * 250_000, "a"])
    assert counts.truncated == 1 and counts.tokens < 70
    np.testing.assert_allclose(vectors, encoder.encode(["dog " * 250_000, "a"]), atol=1e-5)


def test_an_encoder_of_another_kind_is_encoded_too() -> None:
    from sentence_transformers.models import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({"[UNK]": 0, **{word: n + 1 for n, word in enumerate(WORDS)}}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    encoder = SentenceTransformer(modules=[StaticEmbedding(backend, embedding_dim=8)])
    texts = make_texts(20)[:20]
    np.testing.assert_allclose(encode_texts(encoder, texts), encoder.encode(texts), atol=1e-5)


def test_the_budget_follows_the_memory(make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load_encoder(str(make_model(MODELS["llama"])))
    assert budgets.choose_batch_tokens(encoder.transformers_model, encoder.max_seq_length) == budgets.CPU_TOKENS
    monkeypatch.setattr(budgets, "free_memory", lambda device: 4_000_000)
    assert 1 <= budgets.choose_batch_tokens(encoder.transformers_model, encoder.max_seq_length) < budgets.CPU_TOKENS
    monkeypatch.setattr(budgets, "free_memory", lambda device: 10)
    assert budgets.choose_batch_tokens(encoder.transformers_model, encoder.max_seq_length) == 1


@given(st.lists(st.integers(0, 600), max_size=200), st.integers(1, 2000))
def test_batches_hold_their_budget_and_every_row_once(lengths: list[int], budget: int) -> None:
    length_N = np.array(lengths, dtype=np.int64)
    batches = budget_batches(length_N, budget)
    rows = [row for batch in batches for row in batch]
    assert sorted(rows) == [row for row, length in enumerate(lengths) if length]
    for batch in batches:
        assert len(batch) == 1 or len(batch) * length_N[batch].max() <= budget
    flat = length_N[rows]
    assert (np.diff(flat) <= 0).all()


def test_prompts_are_checked_on_real_texts(stories: Path) -> None:
    from turncoder.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(stories)
    check_prompt(tokenizer, "Find:\n", ["a dog", "", "  "], 100)
    with pytest.raises(UserError, match="does not stay apart"):
        check_prompt(tokenizer, "There w", ["as a dog"], 100)


def test_vectors_that_are_not_finite_are_refused(make_model: Callable[..., Path]) -> None:
    folder = make_model(MODELS["absolute positions"])  # no norm is the last thing that happens to a state
    model = AutoModel.from_pretrained(folder)
    with torch.no_grad():
        model.ln_f.weight.fill_(6e4)  # float16 ends at 65504
    model.save_pretrained(folder)
    texts = make_texts(5)
    assert np.isfinite(encode_texts(load_encoder(str(folder)), texts)).all()
    assert np.isfinite(encode_texts(load_encoder(str(folder)).bfloat16(), texts)).all()
    with pytest.raises(UserError, match=r"dtype = float16.* not finite.*--dtype bfloat16 or float32"):
        encode_texts(load_encoder(str(folder)).half(), texts, normalize=True)
    with pytest.raises(UserError, match=r"dtype = float16.* not finite.*--dtype bfloat16 or float32"):
        load_encoder(str(folder), dtype="float16")  # whose proof would speak of other things


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gpu_gives_the_vectors_of_the_cpu(dtype: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    AutoModel.from_config(MODELS["llama"]).save_pretrained(tmp_path)
    texts = make_texts(200)
    train_tokenizer(texts, 300).save_pretrained(tmp_path)
    cpu, gpu = (load_encoder(str(tmp_path), dtype=dtype, device=device) for device in ("cpu", "cuda"))
    expected, found = encode_texts(cpu, texts, normalize=True), encode_texts(gpu, texts, normalize=True)
    np.testing.assert_allclose(found, expected, atol=1e-5 if dtype == "float32" else 3e-2)
    assert BatchEncoder(gpu).batch_tokens > budgets.CPU_TOKENS
