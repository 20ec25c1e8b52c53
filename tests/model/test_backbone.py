"""Loading a causal language model: what is wrong with a folder is said in one line."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError
from transformers import AutoModel

from turncoder.errors import UserError
from turncoder.model import backbone
from turncoder.model.backbone import count_embeddings, load_language_model, load_model_config, resolve_model


def test_a_real_model_loads_causal_in_float32_and_evaluation_mode(stories: Path) -> None:
    model = load_language_model(str(stories))
    assert not model.training
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert getattr(model.config, "is_causal", True)
    assert count_embeddings(model) == 512
    assert load_language_model(str(stories), dtype="bfloat16").dtype == torch.bfloat16


def test_a_run_folder_stands_for_its_model(tmp_path: Path) -> None:
    assert resolve_model(str(tmp_path)) == str(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "model").mkdir()
    assert resolve_model(str(tmp_path)) == str(tmp_path / "model")


def test_a_missing_folder_and_one_without_a_config_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no model folder"):
        load_language_model(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"no config\.json"):
        load_model_config(str(tmp_path))


def test_a_folder_without_weights_is_named(stories: Path, tmp_path: Path) -> None:
    shutil.copy(stories / "config.json", tmp_path)
    with pytest.raises(UserError, match="has no weights") as caught:
        load_language_model(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_an_unknown_architecture_is_named(stories: Path, tmp_path: Path) -> None:
    config = json.loads((stories / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "perceptron9"}))
    with pytest.raises(UserError, match="perceptron9") as caught:
        load_language_model(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_bare_backbone_has_no_head_to_train_with(stories: Path, tmp_path: Path) -> None:
    bare = AutoModel.from_pretrained(stories)
    bare.config.tie_word_embeddings = False
    bare.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"lm_head\.weight.*no head"):
        load_language_model(str(tmp_path))


def test_weights_of_another_shape_are_refused(stories: Path, tmp_path: Path) -> None:
    shutil.copy(stories / "model.safetensors", tmp_path)
    config = json.loads((stories / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": 180}))
    with pytest.raises(UserError):
        load_language_model(str(tmp_path))


def test_a_kernel_that_is_not_here_falls_back_with_a_notice_and_a_typo_does_not(
    stories: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", logger="turncoder"):
        model = load_language_model(str(stories), attn_implementation="flash_attention_2")
    assert model.config._attn_implementation in ("flash_attention_2", "sdpa")
    if model.config._attn_implementation == "sdpa":
        assert "flash_attention_2 is not available here; sdpa is used" in caplog.text
    with pytest.raises(UserError, match="'sdpq' is none of sdpa, eager"):
        load_language_model(str(stories), attn_implementation="sdpq")


def test_a_failing_hub_is_not_an_absent_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(error: type[HfHubHTTPError]) -> None:
        def fetch(*_: object, **__: object) -> str:
            raise error.__new__(error)  # whose constructor wants a response of the library below

        monkeypatch.setattr(backbone, "hf_hub_download", fetch)

    answer(RemoteEntryNotFoundError)
    assert backbone.find_file("owner/model", "modules.json") is None
    answer(HfHubHTTPError)
    with pytest.raises(UserError, match=r"modules\.json cannot be fetched.*try again"):
        backbone.find_file("owner/model", "modules.json")
