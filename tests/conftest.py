"""What tests share: where the real data lies, and a quiet, offline, deterministic environment."""

import logging
import os
import shutil
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


@pytest.fixture(scope="session")
def runs(stories: Path, stories_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of mntp and, on it, of simcse, on a model with a card."""
    from turncoder.cli import main

    place = tmp_path_factory.mktemp("runs")
    shutil.copytree(stories, place / "stories", ignore=shutil.ignore_patterns("SOURCE"))
    (place / "stories" / "README.md").write_text("---\nlicense: mit\nlanguage: en\n---\n# Stories\n")
    lines = stories_text.read_text(encoding="utf8").splitlines()[:400]
    (place / "text.txt").write_text("\n".join(lines) + "\n", encoding="utf8")
    common = ["--train_file", str(place / "text.txt"), "--max_seq_length", "64", "--learning_rate", "1e-2"]
    small = ["--max_eval_samples", "8", "--per_device_train_batch_size", "8"]
    for stage, base, steps in (("mntp", "stories", "4"), ("simcse", "mntp", "3")):
        words = [stage, "--model_name_or_path", str(place / base), "--output", str(place / stage), "--max_steps", steps]
        assert main([*words, *common, *small]) == 0
    return place


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A hub that may be written to; huggingface_hub reads its settings when it is imported, so they are set in it."""
    from huggingface_hub import constants

    from fakehub import WRITE, FakeHub

    server = FakeHub()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # loopback speaks Git LFS
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    places = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.url)
    monkeypatch.setenv("HF_ENDPOINT", server.url)  # for processes of their own; this one has read it
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", places)
    monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)  # transformers keeps a client
    monkeypatch.setenv("HF_TOKEN", WRITE)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    yield server
    server.close()


@pytest.fixture
def keep_in_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Give a function that has repositories in the hub's cache, by the names of their folders there."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub-cache"))

    def keep(*names: str) -> None:
        for name in names:
            (tmp_path / "hub-cache" / name).mkdir(parents=True)

    return keep
