"""push_to_hub of a training is done by publish when the run is done, and what would keep it from that is said first."""

from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer

from fakehub import READ, FakeHub
from turncoder.cli import main


@pytest.fixture
def words(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A training that publishes."""
    monkeypatch.setattr(Trainer, "push_to_hub", None)  # not callable
    monkeypatch.setattr(Trainer, "init_hf_repo", None)
    (tmp_path / "mntp.json").write_text(
        '{"push_to_hub": true, "hub_model_id": "me/pushed", "hub_strategy": "every_save", "hub_token": "hf_secret"}'
    )
    base = ["mntp", str(tmp_path / "mntp.json"), "--model_name_or_path", str(runs / "stories")]
    text = ["--train_file", str(runs / "text.txt"), "--max_seq_length", "64", "--max_eval_samples", "8"]
    return [*base, *text, "--max_steps", "2", "--save_steps", "1", "--output", str(tmp_path / "run")]


def test_a_run_is_published_once_when_it_is_done(hub: FakeHub, words: list[str], tmp_path: Path, capsys: Any) -> None:
    assert main(words) == 0
    said = capsys.readouterr().err
    assert f"published: {hub.url}/me/pushed" in said and "hub_strategy is ignored" in said
    repository = hub.repositories["me/pushed"]
    assert (
        repository.private
        and len(repository.commits["main"]) == 2
        and "model.safetensors" in repository.branches["main"]
    )
    assert "hf_secret" not in (tmp_path / "run/run.json").read_text()
    assert main(words) == 0  # again: done, and there
    assert len(repository.commits["main"]) == 2


def test_what_the_keys_say_is_done(hub: FakeHub, words: list[str]) -> None:
    assert main([*words, "--training.hub_private_repo", "false", "--training.hub_revision", "v2"]) == 0
    repository = hub.repositories["me/pushed"]
    assert not repository.private and "model.safetensors" in repository.branches["v2"]


@pytest.mark.parametrize("fault", ["reads", "licence", "nowhere"])
def test_what_cannot_be_published_does_not_start(
    fault: str,
    hub: FakeHub,
    words: list[str],
    stories: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    parts = {
        "reads": ["may only read"],
        "licence": ["push_to_hub", "license is not known", "turncoder publish", "--license"],
        "nowhere": ["push_to_hub needs a repository", "hub_model_id"],
    }[fault]
    if fault == "reads":
        monkeypatch.setenv("HF_TOKEN", READ)
    if fault == "licence":
        words[words.index("--model_name_or_path") + 1] = str(stories)  # which has no card
    if fault == "nowhere":
        (tmp_path / "mntp.json").write_text('{"push_to_hub": true}')
    assert main(words) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert all(part in said for part in parts), said
    assert not (tmp_path / "run").exists() and not hub.repositories


def test_a_run_that_could_not_be_sent_is_kept(hub: FakeHub, words: list[str], tmp_path: Path, capsys: Any) -> None:
    hub.forbidden.add("me/pushed")
    assert main(words) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the run is done" in said and f"turncoder publish {tmp_path / 'run'} --to me/pushed" in said
    hub.forbidden.clear()
    assert main(words) == 0
    assert "model.safetensors" in hub.repositories["me/pushed"].branches["main"]
