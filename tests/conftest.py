"""What tests share: where the real data lies, and a quiet, offline, deterministic environment."""

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and models beside the repository; tests that need it skip, visibly, without it."""
    if not (SHARED / "README.md").exists():
        pytest.skip(f"no shared data at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def stories(shared: Path) -> Path:
    """A 260,032-parameter Llama trained on TinyStories, in Hugging Face form."""
    return shared / "models" / "stories260k-hf"


@pytest.fixture(scope="session")
def stories_text(shared: Path) -> Path:
    """944 kB of TinyStories text."""
    return shared / "data" / "tinystories_sample" / "tiny_stories.txt"


@pytest.fixture(scope="session", autouse=True)
def proofs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Proofs and tokens are kept in a folder of the test run, not in the user's."""
    before = os.environ.get("TURNCODER_CACHE")
    os.environ["TURNCODER_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("TURNCODER_CACHE")
    if before is not None:
        os.environ["TURNCODER_CACHE"] = before


@pytest.fixture(autouse=True)
def notices() -> Iterator[None]:
    """What the library reports reaches caplog again, once, after a command has taken it to the console."""
    yield
    logging.getLogger("turncoder").propagate = True


@pytest.fixture
def make_model(stories: Path, tmp_path: Path) -> Callable[..., Path]:
    """Write a folder with a tiny random model of any architecture, and the tokenizer of the stories' model."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    from turncoder.model.twin import redraw_weights

    def make(config: Any, name: str = "model", **tokens: str | None) -> Path:
        import torch
        from transformers import AutoModel

        torch.manual_seed(0)
        model = AutoModel.from_config(config).eval()
        redraw_weights(model)
        model.save_pretrained(tmp_path / name)
        backend = AutoTokenizer.from_pretrained(stories).backend_tokenizer
        named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **tokens}
        PreTrainedTokenizerFast(tokenizer_object=backend, **named).save_pretrained(tmp_path / name)
        return tmp_path / name

    return make
