"""The model folder: what other readers look for in it, and that plain libraries open it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel

from turncoder.artifact import save_encoder
from turncoder.data.tokenizer import load_tokenizer, tokenizer_files
from turncoder.model.attention import make_bidirectional
from turncoder.model.backbone import load_causal_lm
from turncoder.model.heads import take_backbone
from turncoder.model.twin import tiny_model

TEXTS = ["Once upon a time", "The little dog ran home to its mother", "a"]


@pytest.fixture
def folder(stories: Path, tmp_path: Path) -> Path:
    backbone = take_backbone(load_causal_lm(str(stories)))
    make_bidirectional(backbone)
    target = tmp_path / "model"
    target.mkdir()
    (target / "stale.txt").write_text("of an earlier attempt")
    files = tokenizer_files(stories)
    save_encoder(backbone, target, tokenizer=load_tokenizer(stories), tokenizer_files=files, max_seq_length=128)
    return target


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_old_and_new_readers_find_their_keys(folder: Path) -> None:
    types = [module["type"] for module in read(folder / "modules.json")]
    assert types == ["sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling"]
    pooling = read(folder / "1_Pooling/config.json")
    assert pooling["pooling_mode"] == "mean" and pooling["pooling_mode_mean_tokens"] is True
    assert pooling["pooling_mode_cls_token"] is False
    assert pooling["embedding_dimension"] == pooling["word_embedding_dimension"] == 64
    config = read(folder / "config.json")
    assert config["is_causal"] is False and config["use_bidirectional_attention"] is True
    assert read(folder / "turncoder.json")["reopens"] == "bidirectional"
    assert not list(folder.glob("*.bin")) and not (folder / "stale.txt").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


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
        save_encoder(
            backbone,
            tmp_path / "model",
            tokenizer=load_tokenizer(stories),
            tokenizer_files=tokenizer_files(stories),
            max_seq_length=16,
        )
    assert "causal in some batches" in caplog.text and "make_bidirectional" in caplog.text
    assert read(tmp_path / "model/turncoder.json")["reopens"] == "disagrees"
