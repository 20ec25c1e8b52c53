"""The hub is asked for hub ids alone, wherever they stand, and once."""

import io
import json
import logging
import os
import ssl
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import pytest

from turncoder.cli import main
from turncoder.hub import find_run, is_model_type, look_for_hub


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What was asked of a hub that does not answer."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    found: list[str] = []

    def urlopen(request: object, timeout: float) -> None:
        found.append(request.full_url)  # type: ignore[attr-defined]
        raise OSError("no route")

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    return found


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    """Write the record of a run."""

    def write(name: str, model: str, *adapters: str, **record: object) -> Path:
        (tmp_path / name).mkdir(parents=True)
        config = {"model_name_or_path": model, "adapters": adapters}
        (tmp_path / name / "run.json").write_text(json.dumps({"config": config, **record}))
        return tmp_path / name

    return write


@pytest.mark.parametrize("reachable", [True, False])
def test_hub_ids_without_the_hub_fail_fast(asked: list[str], monkeypatch: pytest.MonkeyPatch, reachable: bool) -> None:
    if reachable:
        monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: asked.append("") or io.BytesIO())
    look_for_hub(".", None, "./gone", "/gone", "~gone")
    assert not asked
    look_for_hub(".", "someone/something")
    assert len(asked) == 1
    assert os.environ.get("HF_HUB_OFFLINE") == (None if reachable else "1")


def test_a_hub_whose_certificate_this_python_cannot_check_is_reachable(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def urlopen(*_: object, **__: object) -> None:
        asked.append("")
        raise URLError(ssl.SSLCertVerificationError(1, "unable to get local issuer certificate"))

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    look_for_hub("someone/something")
    assert asked and "HF_HUB_OFFLINE" not in os.environ


def test_what_a_run_or_an_adapter_needs_is_asked_for(
    asked: list[str], run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def asks(*names: str) -> bool:
        asked.clear()
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        look_for_hub(*names)
        return bool(asked)

    run("base", "someone/something")
    run("local", "base/../plain")
    Path("plain").mkdir()
    run("upper", "local", "base")
    run("circle", "circle")
    Path("adapter").mkdir()
    Path("adapter/adapter_config.json").write_text('{"base_model_name_or_path": "someone/something"}')
    Path("broken").mkdir()
    Path("broken/run.json").write_text("{")
    assert [asks(name) for name in ("base", "local", "upper", "plain", "circle", "adapter", "broken")] == [
        True, False, True, False, False, True, False
    ]  # fmt: skip
    Path("base/model").mkdir()
    assert not asks("base") and not asks("upper")
    elsewhere = run("there/started", "inner", cwd=str(Path("there").resolve()))
    Path("there/inner").mkdir()
    assert not asks(str(elsewhere))
    Path("there/inner").rmdir()
    assert asks(str(elsewhere))


def test_the_run_of_a_checkpoint(run: Callable[..., Path], tmp_path: Path) -> None:
    home = run("home", "m")
    for name in ("home", "home/500", "home/checkpoints/checkpoint-500", "home/checkpoint-500"):
        assert tmp_path / find_run(str(tmp_path / name)) == home  # type: ignore[operator]
    assert find_run(str(tmp_path / "other" / "500")) is None


def test_evaluation_asks_for_what_the_run_was_made_from_and_not_for_the_run(
    asked: list[str], run: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "turncoder")
    run("local", "/gone/model", train_mode="lora")
    Path("words").write_text("a X\n")
    for name in ("local/500", "local/checkpoints/checkpoint-500", "nowhere", "nowhere/500"):
        assert main(["words", "--evaluate", name, "--test_file", "words", "--model_name_or_path", "not/read"]) == 2
    assert not asked and "cannot be reached" not in caplog.text
    run("remote", "someone/something")
    Path("remote/model").mkdir()
    assert main(["words", "--evaluate", "remote", "--test_file", "words"]) == 2
    assert not asked
    assert main(["words", "--evaluate", "remote/500", "--test_file", "words"]) == 2
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("name", "known"), [("llama", True), ("gpt_neox", True), ("xlm-roberta", True), ("lam", False), ("a/llama", False)]
)
def test_architectures_are_known_without_the_hub(name: str, known: bool) -> None:
    assert is_model_type(name) == known
