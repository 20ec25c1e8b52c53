"""What can be learnt is learnt: labels that follow from the word, from the one after it, and from the one before."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from launching import launch
from tagging_models import command, write_columns

WORDS = ["a", "he", "it", "we", "is", "the", "can", "did", "saw", "run", "play", "big"]
KINDS = {word: "XYZ"[place % 3] for place, word in enumerate(WORDS)}


@pytest.fixture(autouse=True)
def _environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNCODER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def score(tiny: Callable[[str], Path], tmp_path: Path) -> Callable[..., float]:
    """Train on sentences of random words, and give the accuracy on others."""

    def train(shift: int, model: str = "llama", **changes: object) -> float:
        draw = random.Random(0)
        for name, count in (("train", 320), ("dev", 40), ("test", 80)):
            rows = []
            for _ in range(count):
                words = [draw.choice(WORDS) for _ in range(draw.randint(4, 9))]
                kinds = ["END", *(KINDS[word] for word in words), "END"]
                rows.append(list(zip(words, kinds[1 + shift : len(words) + 1 + shift], strict=True)))
            write_columns(tmp_path / name, rows)
        files = {"validation_file": tmp_path / "dev", "test_file": tmp_path / "test", "task": "kind", "seeds": 1}
        flags = {**files, "num_train_epochs": 12, "logging_steps": 500, "classifier_dropout": 0.0, **changes}
        launch(command(tiny(model), tmp_path / "train", tmp_path / "run", **flags))
        results = json.loads((tmp_path / "run" / "results.json").read_text())
        return results["tasks"]["kind"]["mean"]["token_accuracy"]

    return train


@pytest.mark.parametrize(
    ("mode", "rate"), [("probe", 1e-2), ("full", 3e-3), pytest.param("lora", 1e-2, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("model", ["llama", "bert"])
def test_labels_that_follow_from_the_word(mode: str, rate: float, model: str, score: Callable[..., float]) -> None:
    probe = {"num_train_epochs": 20, "probe_batch_words": 64, "layer": 1}
    ways = probe if mode == "probe" else {"num_train_epochs": 4}
    assert score(0, model, train_mode=mode, learning_rate=rate, **ways) > 0.95


def test_labels_that_follow_from_the_word_before_a_reading_one_before(score: Callable[..., float]) -> None:
    """The state before a word's first token knows nothing of the word, where the model looks back only."""
    common = {"bidirectional": False, "merge_subwords": False, "alignment": "previous_token", "layer": 1}
    common |= {"learning_rate": 1e-2, "probe_batch_words": 64, "num_train_epochs": 20}
    assert score(-1, **common) > 0.95
    assert score(0, overwrite=True, **common) < 0.6


@pytest.mark.slow
def test_labels_that_follow_from_the_next_word_need_a_model_that_looks_ahead(score: Callable[..., float]) -> None:
    common = {"train_mode": "full", "learning_rate": 3e-3}
    ahead = score(1, bidirectional=True, **common)
    causal = score(1, bidirectional=False, overwrite=True, **common)
    assert ahead > 0.95
    assert causal < 0.6  # one of three kinds, or the end
