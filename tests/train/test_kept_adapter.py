"""A run that kept its adapter alone opens as the encoder that it trained."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from launching import launch
from sentence_transformers import SentenceTransformer
from test_contrast import simcse
from transformers import AutoTokenizer

from turncoder import load_encoder
from turncoder.train import contrast

TEXTS = ["A man is walking.", "The weather was warm, and they all went to the park to play.", "No."]


@pytest.mark.parametrize("pooling", ["weighted_mean", "eos_token"])
def test_a_run_without_a_model_folder_is_the_same_encoder(
    stories: Path, stories_text: Path, tmp_path: Path, pooling: str
) -> None:
    run, again, merged = tmp_path / "run", tmp_path / "again", tmp_path / "merged"
    words = {"max_steps": 2, "save_merged": "never", "pooling": pooling, "prompt": "Sentence:\n", "save_strategy": "no"}
    launch(simcse(stories, stories_text, run, **words))
    assert not (run / "model").exists()
    launch(simcse(run, stories_text, again, max_steps=2, save_merged="never", save_strategy="no"))  # says nothing anew
    for folder in (run, again):
        launch(["merge", str(folder), "--output", str(merged), "--overwrite"])
        opened, plain = load_encoder(str(folder), device="cpu"), SentenceTransformer(str(merged), device="cpu")
        np.testing.assert_allclose(opened.encode(TEXTS), plain.encode(TEXTS), atol=1e-5)
        default = "text" if folder == run else None  # a run that gives no prompt forgets its parent's default
        assert opened.default_prompt_name == plain.default_prompt_name == default
        assert opened.prompts["text"] == plain.prompts["text"] == "Sentence:\n"
        assert opened.max_seq_length == plain.max_seq_length == 512
        assert opened[1].pooling_mode == plain[1].pooling_mode != "mean"
    kept = json.loads((run / "adapter" / "encoder.json").read_text())
    assert (kept["bidirectional"], kept["chat_template"]) == (True, False)
    launch(simcse(stories, stories_text, tmp_path / "with", **{**words, "save_merged": "always"}))
    ours, model = load_encoder(str(run), device="cpu"), SentenceTransformer(str(tmp_path / "with/model"), device="cpu")
    np.testing.assert_allclose(ours.encode(TEXTS), model.encode(TEXTS), atol=1e-5)


@pytest.fixture
def chat(stories: Path, tmp_path: Path) -> Path:
    """The stories' model with a chat template."""
    shutil.copytree(stories, tmp_path / "chat")
    tokenizer = AutoTokenizer.from_pretrained(stories)
    tokenizer.chat_template = "{% for one in messages %}{{ one['role'] }}: {{ one['content'] }}\n{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "chat")
    return tmp_path / "chat"


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Vectors of the encoders that were trained, just before they are saved, by the name of their run."""
    vectors = {}
    save = contrast._save

    def look(config: Any, run: Any, encoder: SentenceTransformer, *others: Any) -> None:
        vectors[run.folder.name] = encoder.eval().encode(TEXTS)
        save(config, run, encoder, *others)

    monkeypatch.setattr(contrast, "_save", look)
    return vectors


@pytest.mark.parametrize("second", ["always", "never"])
@pytest.mark.parametrize("first", ["always", "never"])
@pytest.mark.parametrize("words", [{"chat_template": True}, {"pooling": "eos_token"}], ids=["template", "eos"])
def test_a_stage_goes_on_with_the_encoder_that_it_opened(
    chat: Path, stories_text: Path, tmp_path: Path, trained: dict[str, np.ndarray], words: dict, first: str, second: str
) -> None:
    common = {"max_steps": 2, "save_strategy": "no", "do_eval": False}
    launch(simcse(chat, stories_text, tmp_path / "one", **common, **words, save_merged=first))
    launch(simcse(tmp_path / "one", stories_text, tmp_path / "two", **common, save_merged=second))
    for name, wanted in trained.items():
        run, merged = tmp_path / name, tmp_path / f"{name}-merged"
        launch(["merge", str(run), "--output", str(merged)])
        found = {"run": load_encoder(str(run), device="cpu"), "merged": SentenceTransformer(str(merged), device="cpu")}
        if (run / "model").exists():
            found["model"] = SentenceTransformer(str(run / "model"), device="cpu")
        for kind, encoder in found.items():
            np.testing.assert_allclose(encoder.encode(TEXTS), wanted, atol=1e-4, err_msg=f"{name}: {kind}")
    assert list(trained) == ["one", "two"]
    launch(simcse(chat, stories_text, tmp_path / "plain", **common))
    assert np.abs(trained["plain"] - trained["one"]).max() > 0.01  # there is something to lose


def test_a_prompt_and_the_template_of_the_opened_encoder(chat: Path, stories_text: Path, tmp_path: Path) -> None:
    launch(simcse(chat, stories_text, tmp_path / "one", max_steps=1, chat_template=True))
    for words in ([], ["--dry-run"]):
        again = simcse(tmp_path / "one", stories_text, tmp_path / "two", max_steps=1, prompt="Sentence:\n")
        assert "chat_template: a template cannot leave a prompt out" in launch([*again, *words], code=2)


def test_the_card_tells_how_it_was_trained(stories: Path, stories_text: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    launch(simcse(stories, stories_text, run, max_steps=2, save_strategy="no"))
    card, record = (run / "model/README.md").read_text(), json.loads((run / "run.json").read_text())
    assert "| steps | 2 |" in card and "| learning_rate | 0.001 |" in card and "| lora_r | 8 |" in card
    assert f"| tokens | {record['tokens']:,} |" in card
    assert f"| data: rows | {sum(one['rows'] for one in record['data']['train'].values()):,} |" in card
    assert f"| loss | {float(format(record['results']['loss'], '.4g')):,} |" in card
    assert '("run/model")' in card and "trained on texts of 48 at most" in card
    assert (run / "model/turncoder.json").stat().st_size < 2000
