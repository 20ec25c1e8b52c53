"""Batches side by side: the vectors are those of batches in turn, threads are given back, state goes alone."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig

from turncoder import load_encoder
from turncoder.encode import lanes
from turncoder.encode.lanes import StateWatch, count_lanes, run_batches, share_threads
from turncoder.encode.texts import BatchEncoder
from turncoder.errors import UserError

SMALL = {
    "vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
}  # fmt: skip
TEXTS = [f"Once upon a time there were {number} dogs" + " and a cat" * (number % 9) for number in range(80)] + ["", " "]
LONGROPE = {"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 10_000.0}


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def llama(make_model: Callable[..., Path]) -> Path:
    return make_model(LlamaConfig(**SMALL, max_position_embeddings=256))


def encode_in_turn(path: Path, **options: object) -> np.ndarray:
    torch.set_num_threads(1)  # which leaves one lane
    vectors = BatchEncoder(load_encoder(str(path)), **options).encode(TEXTS)[0]
    torch.set_num_threads(3)
    return vectors


def watch_lanes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """List the lanes of every group of batches that goes side by side."""
    taken: list[int] = []

    def share(count: int) -> object:
        taken.append(count)
        return share_threads(count)

    monkeypatch.setattr(lanes, "share_threads", share)
    return taken


@pytest.mark.parametrize("options", [{}, {"normalize": True}, {"prompt": "query:\n"}])
def test_side_by_side_is_as_in_turn(options: dict, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = watch_lanes(monkeypatch)
    told: list[int] = []
    batches = BatchEncoder(load_encoder(str(llama)), batch_tokens=64, **options)
    batches.report = told.append
    vectors, counts = batches.encode(TEXTS)
    assert taken == [3]
    assert sum(told) == counts.distinct == len(set(TEXTS))
    np.testing.assert_allclose(vectors, encode_in_turn(llama, batch_tokens=64, **options), atol=1e-6)
    assert np.array_equal(vectors, batches.encode(TEXTS)[0])  # whichever thread is first


def test_threads_are_given_back(llama: Path) -> None:
    batches = BatchEncoder(load_encoder(str(llama)), batch_tokens=64)
    batches.encode(TEXTS)
    assert torch.get_num_threads() == 3
    batches.stopped = True
    with pytest.raises(RuntimeError, match="stopped"):
        batches.encode(TEXTS)
    with share_threads(2) as pool:
        assert list(pool.map(lambda _: torch.get_num_threads(), range(8))) == [1] * 8
        assert torch.get_num_threads() == 3
    with share_threads(3) as pool:  # threads made later take what was set last
        assert pool.submit(torch.get_num_threads).result() == 1
    with share_threads(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 3


def test_what_goes_wrong_in_a_lane_is_said(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = BatchEncoder(load_encoder(str(llama)), batch_tokens=64)
    real, seen = batches.encoder.forward, []

    def forward(features: dict) -> dict:
        seen.append(1)
        if len(seen) > 5:
            raise MemoryError
        return real(features)

    monkeypatch.setattr(batches.encoder, "forward", forward)
    with pytest.raises(UserError, match="out of memory with batch_tokens = 64"):
        batches.encode(TEXTS)
    assert torch.get_num_threads() == 3


def test_lanes_are_threads_and_memory_and_of_small_batches(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load_encoder(str(llama))
    model, device = encoder.transformers_model, encoder.device
    assert count_lanes(model, device, 64, 256) == count_lanes(None, device, 64, None) == 3
    assert count_lanes(model, torch.device("meta"), 64, 256) == 1
    free = 8 * 64 * lanes.count_token_bytes(model, 256)  # of which a quarter is taken
    monkeypatch.setattr(lanes, "free_memory", lambda device: free)
    assert [count_lanes(model, device, tokens, 256) for tokens in (64, 65, 640)] == [2, 1, 1]
    assert count_lanes(model, device, 64, 256, states=100) == 1
    monkeypatch.setattr(lanes, "free_memory", lambda device: 1 << 40)
    layers = 2 * (4 * 32 * 32 + 3 * 32 * 48 + 2 * 32) + 32
    most = lanes.MOST_PRODUCTS // layers
    assert [count_lanes(model, device, tokens, 256) for tokens in (most, most + 1)] == [3, 1]
    batches = BatchEncoder(encoder, batch_tokens=64)
    monkeypatch.setattr(lanes, "MOST_PRODUCTS", 256 * layers)
    assert (batches.count_lanes(256), batches.count_lanes(257)) == (3, 1)
    taken = watch_lanes(monkeypatch)
    monkeypatch.setattr(lanes, "MOST_PRODUCTS", 255 * layers)
    batches.encode(["a dog " * 200, *TEXTS])  # one text fills a batch of 256 tokens by itself
    assert taken == []


def test_a_single_batch_has_a_lane_and_autocast_goes_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = watch_lanes(monkeypatch)
    module = nn.Identity()

    def run(count: int) -> list[int]:
        return list(run_batches(module, lambda batch: batch + 1, range(count), 3))

    assert [run(count) for count in range(9)] == [list(range(1, count + 1)) for count in range(9)]
    assert taken == [3] * 8
    with torch.autocast("cpu", torch.bfloat16):
        assert run(20) == list(range(1, 21))
    assert taken == [3] * 8


@pytest.mark.parametrize(("again", "parted"), [(False, 20), (True, 2)])
def test_what_the_first_pass_leaves_for_good_does_not_count(again: bool, parted: int) -> None:
    module, seen = nn.Module(), []

    def run(batch: int) -> int:
        seen.append(torch.get_num_threads())
        if again or not hasattr(module, "ready"):
            module.ready = object()
        return batch

    assert list(run_batches(module, run, range(20), 3)) == list(range(20))
    assert seen == [1] * parted + [3] * (20 - parted)


def test_what_a_pass_leaves_behind_is_noticed() -> None:
    class Keeps(nn.Module):
        def __init__(self, how: str) -> None:
            super().__init__()
            self.how, self.count, self.last = how, 1000, None
            self.register_buffer("kept", torch.zeros(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            match self.how:
                case "attribute":
                    self.last = x
                case "new attribute":
                    self.other = x
                case "number":
                    self.count += 1
                case "buffer":
                    self.kept = x
                case "in place":
                    self.kept.add_(x)
                case "new module":
                    self.inner = nn.Identity()
            return x + 1

    for how in ("attribute", "new attribute", "number", "buffer", "in place", "new module", "nothing"):
        module = nn.Sequential(Keeps(how))
        watch = StateWatch(module)
        with torch.inference_mode():
            module(torch.ones(2))
        assert watch.has_changed() == (how != "nothing"), how


def test_rotary_embeddings_that_follow_the_length_go_in_turn(
    make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts on both sides of the length at which the frequencies change."""
    rope = {**LONGROPE, "short_factor": [1.0] * 4, "long_factor": [3.0, 5.0, 7.0, 9.0]}
    path = make_model(LlamaConfig(**SMALL, max_position_embeddings=128, rope_parameters=rope))
    encoder = load_encoder(str(path))
    batches = BatchEncoder(encoder, batch_tokens=64)
    taken = watch_lanes(monkeypatch)
    vectors, _ = batches.encode(TEXTS)
    assert taken == []
    alone = np.concatenate([BatchEncoder(encoder).encode([text])[0] for text in TEXTS])
    np.testing.assert_allclose(vectors, alone, atol=1e-5)
