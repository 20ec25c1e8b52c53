"""What tests share: where the real data lies, and a quiet, offline, deterministic environment."""

import os
from pathlib import Path

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
