"""What ``evaluate glue`` opens: the encoder's own prompt, and encoders that cannot read pairs."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from turncoder import load_encoder
from turncoder.config.glue import GlueConfig
from turncoder.errors import UserError
from turncoder.evaluate.gluetraining import choose_prompt, open_model

ROWS = [("Once upon a time.", "It was."), ("Tom ran.", "No.")]


def configure(model: Any, **keys: Any) -> GlueConfig:
    return GlueConfig(model_name_or_path=str(model), tasks=("rte",), **keys)


def test_the_prompt_that_an_encoder_keeps_is_used(stories: Path, tmp_path: Path) -> None:
    encoder = load_encoder(str(stories), device="cpu")
    encoder.prompts, encoder.default_prompt_name = {"task": "Read this:\n"}, "task"
    encoder.save(str(tmp_path / "kept"))
    opened = open_model(configure(tmp_path / "kept"))
    assert choose_prompt(configure(tmp_path / "kept"), opened, ROWS) == "Read this:\n"
    assert choose_prompt(configure(tmp_path / "kept", prompt="Is it?\n"), opened, ROWS) == "Is it?\n"
    assert choose_prompt(configure(stories), open_model(configure(stories)), ROWS) is None
    with pytest.raises(UserError, match="does not stay apart from the text"):
        choose_prompt(configure(stories, prompt="Is it "), open_model(configure(stories)), ROWS)


def test_pooling_and_length_are_the_folders_unless_keys_say_otherwise(stories: Path, tmp_path: Path) -> None:
    load_encoder(str(stories), pooling="last_token", max_seq_length=32, device="cpu").save(str(tmp_path / "kept"))
    own = open_model(configure(tmp_path / "kept"))
    assert (own[1].pooling_mode, own.max_seq_length) == ("lasttoken", 32)
    said = open_model(configure(tmp_path / "kept", pooling="cls", max_seq_length=16))
    assert (said[1].pooling_mode, said.max_seq_length) == ("cls", 16)


def test_encoders_that_read_no_pairs_are_refused(stories: Path, tmp_path: Path) -> None:
    load_encoder(str(stories), llm2vec=True, device="cpu").save(str(tmp_path / "llm2vec"))
    with pytest.raises(UserError, match="is no transformer that reads pairs of texts"):
        open_model(configure(tmp_path / "llm2vec"))
    tokenizer = AutoTokenizer.from_pretrained(stories)
    tokenizer.chat_template = "{% for one in messages %}{{ one['role'] }}: {{ one['content'] }}\n{% endfor %}"
    load_encoder(str(stories), device="cpu").transformers_model.save_pretrained(tmp_path / "chat")
    tokenizer.save_pretrained(tmp_path / "chat")
    load_encoder(str(tmp_path / "chat"), chat_template=True, device="cpu").save(str(tmp_path / "through"))
    with pytest.raises(UserError, match=r"tasks: rte has pairs of texts, and .* puts a text through a chat template"):
        open_model(configure(tmp_path / "through"))
    assert open_model(configure(tmp_path / "chat")).max_seq_length == 512  # a template that is there is not taken
