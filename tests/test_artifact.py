"""The model folder: what other readers look for in it, and that plain libraries open it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, PreTrainedModel

from turncoder.artifact import save_encoder
from turncoder.data.tokenizer import load_tokenizer, tokenizer_files
from turncoder.model.attention import make_bidirectional
from turncoder.model.backbone import load_language_model
from turncoder.model.heads import take_backbone
from turncoder.model.twin import tiny_model

TEXTS = ["Once upon a time", "The little dog ran home to its mother", "a"]


@pytest.fixture
def folder(stories: Path, tmp_path: Path) -> Path:
    backbone = take_backbone(load_language_model(str(stories)))
    make_bidirectional(backbone)
    target = tmp_path / "model"
    target.mkdir()
    (target / "stale.txt").write_text("of an earlier attempt")
    return save(backbone, target, stories, max_seq_length=128)


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def save(backbone: PreTrainedModel, folder: Path, stories: Path, **others: Any) -> Path:
    files = tokenizer_files(stories)
    save_encoder(backbone, folder, tokenizer=load_tokenizer(stories), tokenizer_files=files, **others)
    return folder


def test_old_and_new_readers_find_their_keys(folder: Path) -> None:
    types = [module["type"] for module in read(folder / "modules.json")]
    assert types == ["sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling"]
    pooling = read(folder / "1_Pooling/config.json")
    # sentence-transformers before 5.4 passes all of them to Pooling(), and stops at a name that it does not have
    before = {f"pooling_mode_{mode}" for mode in ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens")}
    before |= {"pooling_mode_weightedmean_tokens", "pooling_mode_lasttoken"}
    assert pooling.keys() == before | {"word_embedding_dimension", "pooling_mode", "include_prompt"}
    assert pooling["pooling_mode"] == "mean" and pooling["word_embedding_dimension"] == 64
    assert [key for key, value in pooling.items() if value is True] == ["pooling_mode_mean_tokens"]  # as vLLM looks
    assert read(folder / "config_sentence_transformers.json")["similarity_fn_name"] == "cosine"
    assert read(folder / "sentence_bert_config.json")["max_seq_length"] == 128
    assert read(folder / "turncoder.json")["reopens"] == "bidirectional"
    assert (folder / "README.md").read_text().startswith("---\n")
    assert not list(folder.glob("*.bin")) and not (folder / "stale.txt").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("name", "server_key"), [("llama", True), ("mistral", True), ("qwen3", True), ("qwen2", False), ("gemma2", False)]
)
def test_servers_find_their_keys(name: str, server_key: bool, stories: Path, tmp_path: Path) -> None:
    """``use_bidirectional_attention`` means more than attention to the Gemmas; the others do not read it."""
    backbone = take_backbone(tiny_model(name))
    make_bidirectional(backbone)
    config = read(save(backbone, tmp_path / "model", stories, max_seq_length=16) / "config.json")
    assert config["is_causal"] is False and "auto_map" not in config
    assert bool(config.get("use_bidirectional_attention")) is server_key
    assert config["architectures"] == [type(backbone).__name__]  # vLLM makes an encoder of *Model
    assert isinstance(config.get("pad_token_id", 0), int)  # Text Embeddings Inference does not take null
    with safe_open(tmp_path / "model/model.safetensors", "pt") as weights:
        assert "embed_tokens.weight" in weights.keys()  # noqa: SIM118  # without "model.", for the same server


def test_dimensions_that_were_trained_are_kept(stories: Path, tmp_path: Path) -> None:
    """sentence-transformers keeps no such key; vLLM asks config.json, people the card."""
    backbone = take_backbone(load_language_model(str(stories)))
    make_bidirectional(backbone)
    record = {"stage": "simcse", "matryoshka_dims": [64, 16]}
    folder = save(backbone, tmp_path / "model", stories, max_seq_length=64, record=record)
    assert read(folder / "config.json")["matryoshka_dimensions"] == [64, 16]
    assert read(folder / "turncoder.json")["matryoshka_dims"] == [64, 16]
    assert "cut to 64, 16" in (folder / "README.md").read_text()
    assert SentenceTransformer(str(folder), truncate_dim=16).encode("a").shape == (16,)


def test_vectors_are_masked_means_and_do_not_depend_on_the_batch(folder: Path) -> None:
    encoder = SentenceTransformer(str(folder))
    assert encoder.max_seq_length == 128
    together = encoder.encode(TEXTS)
    model = AutoModel.from_pretrained(folder).eval()
    tokenizer = load_tokenizer(folder)
    for text, vector in zip(TEXTS, together, strict=True):
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        np.testing.assert_allclose(vector, states.mean(0).numpy(), atol=1e-5)
        np.testing.assert_allclose(vector, encoder.encode(text), atol=1e-5)


def test_a_model_that_reopens_otherwise_says_so(
    stories: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = take_backbone(tiny_model("stablelm"))
    make_bidirectional(backbone)
    with caplog.at_level("WARNING", logger="turncoder"):
        save(backbone, tmp_path / "model", stories, max_seq_length=16)
    assert "causal in some batches" in caplog.text and "make_bidirectional" in caplog.text
    assert read(tmp_path / "model/turncoder.json")["reopens"] == "disagrees"
