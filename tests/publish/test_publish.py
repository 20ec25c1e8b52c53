"""What is published is whole, described, private, sent once, and opens as it did before: against a hub on loopback."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard, constants, snapshot_download
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModel

from fakehub import READ, WRITE, FakeHub, Repository
from turncoder.cli import main
from turncoder.encode.encoder import load_encoder

TEXTS = ["Once upon a time", "The little dog ran home to its mother", "a"]


@pytest.fixture
def run(runs: Path, tmp_path: Path) -> Path:
    """A copy of the run of simcse that may be spoilt, beside what it was made from."""
    for name in ("stories", "mntp", "simcse"):
        shutil.copytree(runs / name, tmp_path / name)
    return tmp_path / "simcse"


def fetch(hub: FakeHub, name: str, folder: Path) -> Path:
    return Path(snapshot_download(name, endpoint=hub.url, local_dir=folder, token=WRITE))


def refused(capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    """The one line that a command is refused with."""
    capsys.readouterr()
    assert main(["publish", *map(str, words)]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ")
    return said


def test_a_stranger_gets_the_same_vectors(hub: FakeHub, runs: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["publish", str(runs / "simcse"), "--to", "me/mine", "--commit_message", "First"]) == 0
    assert capsys.readouterr().out.strip().endswith(f"{hub.url}/me/mine")
    assert hub.repositories["me/mine"].private and hub.repositories["me/mine"].commits["main"] == ["created", "First"]
    fetched = fetch(hub, "me/mine", tmp_path / "fetched")
    expected = SentenceTransformer(str(runs / "simcse/model")).encode(TEXTS)
    assert np.array_equal(SentenceTransformer(str(fetched)).encode(TEXTS), expected)
    assert np.array_equal(load_encoder(str(fetched)).encode(TEXTS), expected)


def test_a_dry_run_tells_all_that_is_sent_and_sends_nothing(
    hub: FakeHub, runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.delenv("HF_TOKEN")
    (runs / "simcse/model/notes.txt").write_text("mine")
    assert main(["publish", str(runs / "simcse"), "--to", "me/mine", "--dry-run"]) == 0
    (runs / "simcse/model/notes.txt").unlink()
    assert not hub.repositories
    said = capsys.readouterr().out
    assert "SimCSE's contrastive loss on 8 held-out texts" in said  # as many as the run was told to take
    assert said.startswith("me/mine, private, branch main: 10 files") and "notes.txt" in said.split("stays here")[1]
    shown = {name: int(size.replace(",", "")) for size, name in re.findall(r"^ +([\d,]+)  (\S+)$", said, re.MULTILINE)}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", WRITE)
    assert main(["publish", str(runs / "simcse"), "--to", "me/mine"]) == 0
    sent = hub.repositories["me/mine"].branches["main"]
    assert shown == {name: len(content) for name, content in sent.items()}
    assert said.endswith(sent["README.md"].decode() + "\n")


def test_nothing_of_this_machine_goes_along(hub: FakeHub, runs: Path) -> None:
    assert main(["publish", str(runs / "simcse"), "--to", "me/mine"]) == 0
    base = ["--adapter_only", "--base_model", "me/stories", "--license", "mit"]
    assert main(["publish", str(runs / "simcse"), "--to", "me/adapter", *base]) == 0
    for repository in hub.repositories.values():
        for name, content in repository.branches["main"].items():
            assert str(runs).encode() not in content, name
            assert not name.startswith("checkpoints") and name.rpartition(".")[2] in ("json", "md", "safetensors")


def test_the_same_again_sends_nothing(hub: FakeHub, run: Path, capsys: Any) -> None:
    words = ["publish", str(run), "--to", "me/mine"]
    assert main(words) == 0
    commits, uploads = list(hub.repositories["me/mine"].commits["main"]), list(hub.uploads)
    capsys.readouterr()
    assert main(words) == 0
    assert "nothing was sent" in capsys.readouterr().err
    assert hub.repositories["me/mine"].commits["main"] == commits and hub.uploads == uploads and len(uploads) == 1


def shard(run: Path) -> int:
    """Save the weights of a run in several files; give their number."""
    model = AutoModel.from_pretrained(run / "model")
    (run / "model/model.safetensors").unlink()
    model.save_pretrained(run / "model", max_shard_size="250KB")
    return len(list((run / "model").glob("model-*-of-*.safetensors")))


def test_what_was_cut_goes_on(hub: FakeHub, run: Path, tmp_path: Path, capsys: Any) -> None:
    shards = shard(run)
    assert shards > 3
    hub.cut_after = 2
    said = refused(capsys, run, "--to", "me/mine")
    assert "the connection was cut" in said and "the same command goes on" in said
    assert hub.repositories["me/mine"].branches["main"] == {}  # nobody finds half a model
    assert len(hub.uploads) == 2
    hub.cut_after = None
    assert main(["publish", str(run), "--to", "me/mine"]) == 0
    assert len(hub.uploads) == len(set(hub.uploads)) == shards
    expected = SentenceTransformer(str(run / "model")).encode(TEXTS)
    assert np.array_equal(SentenceTransformer(str(fetch(hub, "me/mine", tmp_path / "there"))).encode(TEXTS), expected)


def test_weights_of_another_time_do_not_stay(hub: FakeHub, run: Path) -> None:
    assert main(["publish", str(run), "--to", "me/mine"]) == 0
    there = hub.repositories["me/mine"].branches["main"]
    there |= {"NOTES.md": b"by hand", "LICENSE": b"MIT"}
    shard(run)
    assert main(["publish", str(run), "--to", "me/mine"]) == 0
    assert "model.safetensors" not in there and "model.safetensors.index.json" in there
    assert there["NOTES.md"] == b"by hand" and there["LICENSE"] == b"MIT"


def test_a_branch(hub: FakeHub, run: Path) -> None:
    assert main(["publish", str(run), "--to", "ours/mine", "--public", "--revision", "v1"]) == 0
    repository = hub.repositories["ours/mine"]
    assert not repository.private and not repository.branches["main"]
    assert "model.safetensors" in repository.branches["v1"]


def test_an_adapter_is_one_for_the_whole_chain(hub: FakeHub, runs: Path, tmp_path: Path) -> None:
    words = ["--adapter_only", "--base_model", "me/stories"]
    for stage in ("mntp", "simcse"):
        assert main(["publish", str(runs / stage), "--to", f"me/{stage}", *words]) == 0
    single, joined = (fetch(hub, f"me/{stage}", tmp_path / stage) for stage in ("mntp", "simcse"))
    assert (single / "adapter_model.safetensors").read_bytes() == (
        runs / "mntp/adapter/adapter_model.safetensors"
    ).read_bytes()
    weights = load_file(joined / "adapter_model.safetensors")
    config = json.loads((joined / "adapter_config.json").read_text())
    assert config["r"] == 16 and {w.shape[0] for name, w in weights.items() if "lora_A" in name} == {16}
    card = ModelCard.load(joined / "README.md")
    assert (card.data.base_model, card.data.base_model_relation) == ("me/stories", "adapter")
    assert (
        "`me/stories` \u2192 mntp \u2192 simcse" in card.text
        and "me/stories" in (joined / "turncoder.json").read_text()
    )
    for stage, folder, exact in (("mntp", single, True), ("simcse", joined, False)):
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "me/stories"
        config["base_model_name_or_path"] = str(runs / "stories")
        (folder / "adapter_config.json").write_text(json.dumps(config))
        found, expected = (load_encoder(str(place)).encode(TEXTS) for place in (folder, runs / stage))
        causal = load_encoder(str(runs / "stories")).encode(TEXTS)
        assert np.abs(expected - causal).max() > 1e-2
        np.testing.assert_allclose(found, expected, atol=1e-6 if exact else 2e-5, rtol=0)


@pytest.mark.parametrize(
    ("env", "prepare", "words", "parts"),
    [
        ({"HF_TOKEN": None}, None, [], ["no token", "hf auth login", "HF_TOKEN"]),
        ({"HF_TOKEN": "hf_nobody_knows"}, None, [], ["token is not valid"]),
        ({"HF_TOKEN": READ}, None, [], ["token of me may only read", "settings/tokens"]),
        ({}, lambda hub: hub.forbidden.add("me/mine"), [], ["'me/mine'", "may not write there"]),
        ({}, None, ["--to", "them/mine"], ["them is not you", "me, ours"]),
        ({}, lambda hub: hub.repositories.update({"me/mine": Repository()}), [], ["is public already", "--public"]),
        (
            {},
            lambda hub: hub.repositories.update({"me/mine": Repository(private=True)}),
            ["--public"],
            ["is private already", "drop --public"],
        ),
        ({}, FakeHub.close, [], ["http://127.0.0.1", "cannot be reached"]),
        ({}, None, ["--license", "aapache-2.0"], ["refuses: - Error: ", '"license" must be one of [apache-2.0, mit']),
    ],
    ids=["none", "invalid", "reads", "forbidden", "theirs", "public", "private", "away", "licence"],
)
def test_what_may_not_be_is_said_and_nothing_is_sent(
    env: dict[str, str | None],
    prepare: Callable[[FakeHub], None] | None,
    words: list[str],
    parts: list[str],
    hub: FakeHub,
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    if prepare:
        prepare(hub)
    said = refused(capsys, runs / "simcse", *([] if "--to" in words else ["--to", "me/mine"]), *words)
    assert all(part in said for part in parts), said
    assert not hub.uploads and not any(any(one.branches.values()) for one in hub.repositories.values())
    if "--license" in words:
        assert not hub.repositories


def test_offline_is_said(hub: FakeHub, runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refused(capsys, runs / "simcse", "--to", "me/mine")


def test_the_token_of_a_read_only_repository_is_refused_before_anything_is_sent(
    hub: FakeHub, run: Path, capsys: Any
) -> None:
    assert main(["publish", str(run), "--to", "me/mine"]) == 0
    hub.forbidden.add("me/mine")
    (run / "model/model.safetensors").write_bytes((run.parent / "mntp/model/model.safetensors").read_bytes())
    uploads = list(hub.uploads)
    assert "may not write there" in refused(capsys, run, "--to", "me/mine")
    assert hub.uploads == uploads


def test_a_card_that_was_edited_there_is_not_written_over(hub: FakeHub, run: Path, capsys: Any) -> None:
    words = ["publish", str(run), "--to", "me/mine"]
    assert main(words) == 0
    there = hub.repositories["me/mine"].branches["main"]
    written = there["README.md"]
    there["README.md"] = written + b"\nBy hand.\n"
    assert "--card keep" in refused(capsys, run, "--to", "me/mine", "--language", "en")
    assert main([*words, "--card", "keep", "--language", "en"]) == 0
    assert there["README.md"] == written + b"\nBy hand.\n"
    assert main([*words, "--card", "replace"]) == 0
    assert there["README.md"] == written
    assert main([*words, "--language", "en"]) == 0  # ours, so it may change
    assert b"language:\n- en" in there["README.md"]


def test_a_card_that_was_edited_here_goes_up_as_it_is(hub: FakeHub, run: Path, capsys: Any) -> None:
    card = run / "model/README.md"
    card.write_text("# Mine\n")
    assert "names no license" in refused(capsys, run, "--to", "me/mine")
    card.write_text("---\nlicense: mit: mine\n---\n# Mine\n")
    assert "its header is no YAML" in refused(capsys, run, "--to", "me/mine")
    card.write_text("---\nlicense: mit\n---\n# Mine\n")
    assert "license: " in (said := refused(capsys, run, "--to", "me/mine", "--license", "mit")) and "was edited" in said
    assert main(["publish", str(run), "--to", "me/mine"]) == 0
    assert hub.repositories["me/mine"].branches["main"]["README.md"] == card.read_bytes()
    assert main(["publish", str(run), "--to", "me/mine"]) == 0
