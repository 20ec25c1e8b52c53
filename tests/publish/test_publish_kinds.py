"""Language models, heads of word tasks, turns and scores, published; and all of it opened in a stranger's process."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard, snapshot_download
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM

from fakehub import WRITE, FakeHub, Repository
from turncoder.cli import main
from turncoder.encode.encoder import load_encoder
from turncoder.evaluate.tagger import load_tagger

TEXTS = ["Once upon a time", "The little dog ran home to its mother", "a"]
WORDS = "tagger.tag(['The dog ran home .'])[0].tags"


@pytest.fixture(scope="module")
def place(runs: Path, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs on words, a probe and an adapter, and a headless model."""
    folder = tmp_path_factory.mktemp("kinds")
    whole = (shared / "data/ud_english_ewt/en_ewt-ud-dev.conllu").read_text(encoding="utf8").split("\n\n")
    (folder / "words.conllu").write_text("\n\n".join(whole[:60]) + "\n\n", encoding="utf8")
    file = str(folder / "words.conllu")
    common = ["words", "--train_file", file, "--validation_file", file, "--test_file", file, "--task", "upos"]
    for mode, base in (("probe", runs / "mntp"), ("lora", runs / "mntp")):
        words = [*common, "--train_mode", mode, "--seeds", "1", "--model_name_or_path", str(base), "--max_steps", "3"]
        assert main([*words, "--output", str(folder / mode)]) == 0
    words = [
        "pretrain",
        "--config_name",
        str(runs / "stories"),
        "--tokenizer_name",
        str(runs / "stories"),
        "--kind",
        "clm",
    ]
    text = ["--train_file", str(runs / "text.txt"), "--max_seq_length", "64", "--max_steps", "2"]
    assert main([*words, *text, "--output", str(folder / "headless")]) == 0
    return folder


def fetch(hub: FakeHub, name: str, folder: Path) -> Path:
    return Path(snapshot_download(name, endpoint=hub.url, local_dir=folder, token=WRITE))


def test_a_language_model_keeps_what_its_logits_lack(hub: FakeHub, place: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["publish", str(place / "headless"), "--to", "me/lm"]) == 2
    assert "no base model" in capsys.readouterr().err
    assert main(["publish", str(place / "headless"), "--to", "me/lm", "--license", "mit"]) == 0
    fetched = fetch(hub, "me/lm", tmp_path / "lm")
    card = ModelCard.load(fetched / "README.md")
    assert (card.data.license, card.data.pipeline_tag, card.data.base_model) == ("mit", "text-generation", None)
    assert (
        "headless" in card.text and "| bits_per_byte |" in card.text and "turncoder pretrain config.toml" in card.text
    )
    ids = torch.arange(3, 20)[None]
    logits = [AutoModelForCausalLM.from_pretrained(one)(ids).logits for one in (place / "headless/model", fetched)]
    assert torch.equal(*logits)
    assert (fetched / "unigram.safetensors").exists()


def test_a_model_with_its_head_says_how_it_was_trained(place: Path, tmp_path: Path, capsys: Any) -> None:
    words = ["head", "add", str(place / "headless"), "--untied", "--no-prior", "--output", str(tmp_path / "lm")]
    assert main(words) == 0
    publish = ["publish", str(tmp_path / "lm"), "--to", "me/lm", "--license", "mit", "--dry-run"]
    assert main(publish) == 0
    card = capsys.readouterr().out
    assert "pretrain → head add" in card and "turncoder pretrain config.toml" in card and "`text.txt`" in card
    record = json.loads((tmp_path / "lm/turncoder.json").read_text())
    record["parents"][0]["started"] = "another day"  # a run of that name, and not the one
    (tmp_path / "lm/turncoder.json").write_text(json.dumps(record))
    assert main(publish) == 0
    assert "turncoder pretrain" not in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["probe", "lora"])
def test_heads_go_with_the_states_that_they_read(mode: str, hub: FakeHub, place: Path, tmp_path: Path) -> None:
    assert main(["publish", str(place / mode), "--to", "me/tags"]) == 0
    fetched = fetch(hub, "me/tags", tmp_path / "tags")
    for name, content in hub.repositories["me/tags"].branches["main"].items():
        assert b"/kinds" not in content and b"/runs" not in content, name
    sentences = ["The dog ran home .", "She was happy ."]
    assert load_tagger(fetched).tag(sentences) == load_tagger(place / mode).tag(sentences)
    card = ModelCard.load(fetched / "README.md")
    scores = {one.metric_type: one.metric_value for one in card.data.eval_results}
    told = json.loads((place / mode / "results.json").read_text())["tasks"]["upos"]["mean"]
    assert scores["token_accuracy"] == pytest.approx(told["token_accuracy"], abs=1e-6)
    assert card.data.eval_results[0].task_type == "token-classification"
    assert f"{100 * told['token_accuracy']:.2f}" in card.text and 'load_tagger("me/tags")' in card.text
    assert card.data.license == "mit"


def test_scores_of_other_runs_are_told_of_this_model_alone(
    hub: FakeHub, place: Path, runs: Path, tmp_path: Path, capsys: Any
) -> None:
    words = ["publish", str(runs / "mntp"), "--to", "me/mine", "--dry-run", "--results"]
    assert main([*words, str(place / "probe")]) == 0
    said = capsys.readouterr().out
    assert "`probe`:" in said and "model-index" in said and "token acc. %" in said
    words[1] = str(runs / "simcse")
    assert main([*words, str(place / "probe")]) == 2
    assert "scored" in (said := capsys.readouterr().err) and "not" in said
    assert main([*words, str(tmp_path)]) == 2
    assert "is no run folder" in capsys.readouterr().err


def test_a_turn_is_its_last_stage_with_its_table(hub: FakeHub, runs: Path, tmp_path: Path) -> None:
    turn = tmp_path / "turn"
    for name in ("mntp", "simcse"):
        shutil.copytree(runs / name, turn / name)
    rows = [{"name": "causal", "sts": 0.25}, {"name": "+ SimCSE", "sts": 0.5}]
    record = {"stage": "turn", "status": "done", "config": {}, "results": {"rows": rows}}
    (turn / "run.json").write_text(json.dumps(record))
    (turn / "model").symlink_to(Path("simcse/model"))
    cards = []
    for folder in (turn, turn / "model"):
        assert main(["publish", str(folder), "--to", "me/turn", "--card", "replace"]) == 0
        cards.append(hub.repositories["me/turn"].branches["main"]["README.md"].decode())
    assert cards[0] == cards[1] and "What each step of the turn gave" in cards[0] and "| + SimCSE | 0.500 |" in cards[0]
    assert len(hub.repositories["me/turn"].commits["main"]) == 2


@pytest.mark.slow
def test_a_stranger_opens_all_of_it_by_its_id(hub: FakeHub, place: Path, runs: Path, tmp_path: Path) -> None:
    hub.repositories["me/stories"] = Repository(card={"license": "mit"})
    files = {path.name: path.read_bytes() for path in (runs / "stories").iterdir()}
    hub.repositories["me/stories"].branches["main"] |= files
    adapter = ["--adapter_only", "--base_model", "me/stories"]
    for words in (["simcse", "me/merged"], ["simcse", "me/joined", *adapter], ["mntp", "me/single", *adapter]):
        assert main(["publish", str(runs / words[0]), "--to", *words[1:]]) == 0
    assert main(["publish", str(place / "lora"), "--to", "me/tags"]) == 0
    script = f"""
import numpy as np, json, turncoder
from sentence_transformers import SentenceTransformer
texts = {TEXTS!r}
np.save("merged.npy", SentenceTransformer("me/merged").encode(texts))
np.save("joined.npy", turncoder.load_encoder("me/joined").encode(texts))
np.save("single.npy", turncoder.load_encoder("me/single").encode(texts))
tagger = turncoder.load_tagger("me/tags")
json.dump({WORDS}, open("tags.json", "w"))
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", "HF_ENDPOINT": hub.url}
    environment.pop("HF_HUB_OFFLINE")
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True)
    merged, joined, single = (np.load(tmp_path / f"{name}.npy") for name in ("merged", "joined", "single"))
    expected = SentenceTransformer(str(runs / "simcse/model")).encode(TEXTS)
    assert np.array_equal(merged, expected)
    np.testing.assert_allclose(joined, expected, atol=2e-5, rtol=0)
    np.testing.assert_allclose(single, load_encoder(str(runs / "mntp")).encode(TEXTS), atol=2e-5, rtol=0)
    tagger = load_tagger(place / "lora")
    assert json.loads((tmp_path / "tags.json").read_text()) == eval(WORDS, {"tagger": tagger})
