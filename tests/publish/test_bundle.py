"""What is published is on a list, whole, and of a run that is done."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from turncoder.cli import main
from turncoder.config.publishing import PublishConfig
from turncoder.errors import UserError
from turncoder.publish.bundle import follow_base, is_published, open_bundle


@pytest.fixture
def run(runs: Path, tmp_path: Path) -> Path:
    """A copy of the run of simcse that may be spoilt."""
    shutil.copytree(runs / "simcse", tmp_path / "simcse")
    return tmp_path / "simcse"


def open_folder(folder: Path, **others: Any) -> Any:
    return open_bundle(PublishConfig(folder=str(folder), to="me/mine", **others))


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("spoil", "others", "parts"),
    [
        (shutil.rmtree, {}, ["is no folder"]),
        (lambda run: edit(run / "run.json", status="interrupted"), {}, ["is interrupted", "finishes it"]),
        (lambda run: (run / "model/model.safetensors").unlink(), {}, ["model.safetensors is missing"]),
        (lambda run: cut(run / "model/model.safetensors"), {}, ["model.safetensors is not whole"]),
        (
            lambda run: (run / "model/model.safetensors").rename(run / "model/pytorch_model.bin"),
            {},
            ["pickle", "pytorch_model.bin", "safetensors"],
        ),
        (lambda run: (run / "model/tokenizer.json").unlink(), {}, ["no tokenizer"]),
        (lambda run: (run / "model/1_Pooling/config.json").unlink(), {}, ["1_Pooling/config.json is missing"]),
        (lambda run: (run / "model/turncoder.json").unlink(), {}, ["turncoder.json", "turncoder merge"]),
        (lambda run: shutil.rmtree(run / "model"), {"merged": True}, ["no model/", "turncoder merge"]),
        (lambda run: shutil.rmtree(run / "adapter"), {"adapter_only": True}, ["no adapter/"]),
        (lambda run: [shutil.rmtree(run / name) for name in ("adapter", "model")], {}, ["no model to publish"]),
        (lambda run: None, {"adapter_only": True}, ["a folder that nobody else has", "--base_model", "--merged"]),
        (
            lambda run: cut(run / "adapter/adapter_model.safetensors"),
            {"adapter_only": True, "base_model": "me/base"},
            ["adapter_model.safetensors is not whole"],
        ),
    ],
)
def test_what_is_not_whole_is_refused(
    spoil: Callable[[Path], object], others: dict[str, Any], parts: list[str], run: Path
) -> None:
    spoil(run)
    with pytest.raises(UserError) as caught:
        open_folder(run, **others)
    assert "\n" not in str(caught.value)
    assert all(part in str(caught.value) for part in parts), caught.value


def test_an_adapter_on_a_model_without_an_owner(run: Path, keep_in_cache: Callable[..., None]) -> None:
    keep_in_cache("models--gpt2")
    config = json.loads((run / "run.json").read_text())["config"]
    edit(run / "run.json", config={**config, "model_name_or_path": "gpt2"})
    bundle = open_folder(run, adapter_only=True)
    assert bundle.base == bundle.read("adapter_config.json")["base_model_name_or_path"] == "gpt2"
    for gone in ("/gone/gpt2", "base"):
        edit(run / "run.json", config={**config, "model_name_or_path": gone})
        with pytest.raises(UserError, match=f"{gone}, a folder that nobody else has"):
            open_folder(run, adapter_only=True)


def test_an_adapter_on_a_run_that_is_gone_is_not_taken_for_one_on_a_hub_id(run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    first, *others = record["parents"]
    config = {**record["config"], "model_name_or_path": "runs/mntp"}
    edit(run / "run.json", config=config, parents=[{**first, "name": "runs/mntp"}, *others])
    for more in ({}, {"base_model": "me/base"}):
        with pytest.raises(UserError, match=r"trained on the run runs/mntp, which is not here any more"):
            open_folder(run, adapter_only=True, **more)


def test_a_chain_with_a_fully_trained_part_is_no_adapter(runs: Path, tmp_path: Path) -> None:
    for name in ("mntp", "simcse", "stories"):
        shutil.copytree(runs / name, tmp_path / name)
    edit(tmp_path / "simcse/run.json", cwd=str(tmp_path))
    record = json.loads((tmp_path / "simcse/run.json").read_text())
    record["config"]["model_name_or_path"] = "mntp"
    (tmp_path / "simcse/run.json").write_text(json.dumps(record))
    shutil.rmtree(tmp_path / "mntp/adapter")
    with pytest.raises(UserError, match="mntp below it trained every weight"):
        open_folder(tmp_path / "simcse", adapter_only=True, base_model="me/base")


def test_only_what_is_listed_goes_up(run: Path) -> None:
    for name in ("optimizer.pt", "notes.md", "deep/config.json", "onnx/model.onnx", ".env", "LICENSE", "custom.py"):
        (run / "model" / name).parent.mkdir(exist_ok=True)
        (run / "model" / name).write_text("x")
    bundle = open_folder(run)
    assert set(bundle.left_out) == {"optimizer.pt", "notes.md", "deep/config.json", ".env", "custom.py"}
    assert {"LICENSE", "onnx/model.onnx", "model.safetensors", "1_Pooling/config.json"} <= set(bundle.files)
    assert set(open_folder(run / "model").files) == set(bundle.files)


def test_all_weights_of_an_index_are_wanted(run: Path) -> None:
    model = run / "model"
    (model / "model.safetensors").unlink()
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict(zip("ab", names, strict=True))}))
    save_file({"a": np.zeros(3)}, model / names[0])
    with pytest.raises(UserError, match=r"model-00002-of-00002\S+ is missing"):
        open_folder(run)
    save_file({"b": np.zeros(3)}, model / names[1])
    assert set(names) <= set(open_folder(run).files)


def test_what_a_repository_may_lose() -> None:
    assert all(map(is_published, ["model.safetensors", "onnx/model.onnx", "tagger/tagger.json", "vocab.txt"]))
    assert not any(map(is_published, [".gitattributes", "LICENSE", "notes.md", "x/config.json", "picture.png"]))


@pytest.mark.parametrize(
    ("others", "parts"),
    [
        ({"folder": None}, ["FOLDER"]),
        ({"to": None}, ["--to"]),
        ({"to": "mine"}, ["'mine'", "OWNER/NAME"]),
        ({"to": "me/a/b"}, ["OWNER/NAME"]),
        ({"to": "me/a..b"}, ["OWNER/NAME"]),
        ({"to": "me/" + "a" * 100}, ["96"]),
        ({"base_model": "base"}, ["base_model = 'base'"]),
        ({"merged": True, "adapter_only": True}, ["merged", "adapter_only", "keep one"]),
        ({"license": "other"}, ["--license_name"]),
        ({"license": "mit", "license_name": "x"}, ["license = other"]),
    ],
)
def test_wrong_keys_are_named(others: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        PublishConfig(**{"folder": "run", "to": "me/mine", **others})
    assert all(part in str(caught.value) for part in parts), caught.value


def test_what_a_model_was_made_from_in_the_end(runs: Path, tmp_path: Path) -> None:
    stories = str(runs / "stories")
    assert {follow_base(str(runs / name)) for name in ("mntp", "mntp/model", "simcse", "simcse/model")} == {stories}
    assert follow_base(stories) == stories and follow_base("them/base") == "them/base" and follow_base(None) is None
    assert main(["merge", str(runs / "simcse"), "--output", str(tmp_path / "merged")]) == 0
    assert open_folder(tmp_path / "merged").base == stories
    (tmp_path / "merged/turncoder.json").write_text('{"stage": "pretrain", "parents": []}')
    assert follow_base(str(tmp_path / "merged")) is None
