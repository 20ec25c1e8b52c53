"""The dry run of ``pretrain``: it says what the run does, refuses what the run refuses, and writes nothing."""

import json
import os
import shutil
from pathlib import Path

import pytest
from launching import launch, write_words
from transformers import AutoTokenizer

import turncoder
from turncoder.config.pretraining import PretrainConfig
from turncoder.config.stages import load_config
from turncoder.errors import UserError
from turncoder.train.pretrainplan import plan_pretrain

LLAMA = {
    "config_name": "llama",
    "config_overrides.hidden_size": 32,
    "config_overrides.intermediate_size": 64,
    "config_overrides.num_hidden_layers": 2,
    "config_overrides.num_attention_heads": 2,
    "config_overrides.max_position_embeddings": 64,
}
BERT = {**LLAMA, "config_name": "bert", "kind": "mlm"}
LEARNT = {"train_tokenizer": "bpe", "vocab_size": 400}
SMALL = {"max_seq_length": 32, "per_device_train_batch_size": 8, "logging_steps": 2, "save_steps": 3}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch, shared):
    monkeypatch.setenv("TURNCODER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    lines = (shared / "data/wiki_paragraphs_en/wiki_en.txt").read_text(encoding="utf8").splitlines()
    Path("text.txt").write_text("\n".join(lines[:150]) + "\n", encoding="utf8")
    return tmp_path


def make(**keys):
    words = write_words("pretrain", {**SMALL, "train_file": "text.txt", "output_dir": "run", **keys})
    return load_config(PretrainConfig, None, words[1:])


def list_all(folder):
    return sorted((path, sorted(files)) for path, _, files in os.walk(folder))


@pytest.mark.parametrize(
    "keys",
    [
        {**LLAMA, **LEARNT, "max_steps": 3},
        {**BERT, **LEARNT, "objective": "both", "max_steps": 3, "gradient_accumulation_steps": 2},
        {**LLAMA, **LEARNT, "sparse_embeddings": True, "num_train_epochs": 0.1},
        {**LLAMA, **LEARNT, "trains": "embeddings", "max_steps": 3, "max_train_samples": 50},
        {**BERT, **LEARNT, "objective": "cross_entropy", "line_by_line": True, "num_train_epochs": 0.1},
    ],
    ids=["headless", "both", "sparse", "embeddings", "lines"],
)  # fmt: skip
def test_the_plan_is_what_the_run_does(keys):
    plan = plan_pretrain(make(do_eval=False, **keys))
    turncoder.train(make(do_eval=False, **keys))
    run = json.loads(Path("run/run.json").read_text())
    assert plan.parameters == run["parameters"]
    assert plan.steps["steps"] == run["trained"]["steps"]
    assert plan.steps["tokens"] == pytest.approx(run["tokens"], rel=0.1)
    if "max_train_samples" not in keys:
        assert plan.steps["rows"] == run["data"]["train"]["blocks"]
    size = Path("run/model/model.safetensors").stat().st_size
    assert plan.disk["model/"] == pytest.approx(size, rel=0.1)
    (checkpoint,) = Path("run/checkpoints").glob("checkpoint-3")
    sizes = [checkpoint / name for name in ("model.safetensors", "optimizer.pt")]
    assert plan.disk[next(iter(plan.disk))] // plan_count(plan) == pytest.approx(
        sum(path.stat().st_size for path in sizes), rel=0.15
    )
    written = {path.name for path in Path("run").iterdir() if not path.name.startswith(".")}
    assert {path.rstrip("/").removeprefix("run/") for path in plan.files} == written
    table = 400 * 32
    assert plan.memory["optimizer, of the embeddings"] == 8 * table
    assert sum(plan.memory[name] for name in plan.memory if "optimizer" in name) == 8 * plan.parameters["trainable"]
    assert plan.memory["activations"] > 0 and plan.seconds > 0


def plan_count(plan):
    """How many checkpoints the plan counts: ``checkpoints (2 x ...)``."""
    return int(next(iter(plan.disk)).partition("(")[2].partition(" ")[0])


def test_weights_that_go_on_are_planned_without_them(stories):
    first = make(model_name_or_path=stories, max_steps=2, do_eval=False)
    plan = plan_pretrain(first)
    assert plan.parameters == {"trainable": 260_032, "total": 260_032}
    tokenizer = AutoTokenizer.from_pretrained(stories)
    tokenizer.add_tokens(["<new>", "<newer>"])
    tokenizer.save_pretrained("larger")
    plan = plan_pretrain(make(model_name_or_path=stories, tokenizer_name="larger", max_steps=2))
    assert plan.parameters["total"] == 260_032 + 2 * 64


def test_samples(stories_text, shared):
    plan = plan_pretrain(make(tokenizer_name=shared / "tokenizers" / "gpt2", train_file=stories_text, **LLAMA))
    assert "every token is predicted" in plan.legend
    assert not any("->" in sample for sample in plan.samples) and len(plan.samples) == 3
    assert any("<|endoftext|> || " in sample for sample in plan.samples)
    plan = plan_pretrain(make(**LEARNT, **BERT))
    assert any("[<mask>->" in sample for sample in plan.samples)


def test_prepared_text_is_counted(shared):
    tokenizer = str(shared / "tokenizers" / "gpt2")
    launch(["prepare", "--tokenizer_name", tokenizer, "--train_file", "text.txt", "--output", "blocks"])
    plans = [plan_pretrain(make(tokenizer_name=tokenizer, **LLAMA, train_file=name)) for name in ("text.txt", "blocks")]
    assert plans[0].steps == plans[1].steps and plans[0].samples == plans[1].samples
    assert "rows" in plans[0].steps


@pytest.mark.parametrize("keys", [LEARNT, {"tokenizer_name": "gpt2"}], ids=["learnt", "named"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_dry_run_writes_nothing(keys, whole, shared, tmp_path):
    shutil.copytree(shared / "tokenizers" / "gpt2", "gpt2")
    text = Path("text.txt") if whole else shared / "data/wiki_paragraphs_en/wiki_en.txt"
    before = list_all(tmp_path)
    flags = {**LLAMA, **SMALL, **keys, "train_file": text, "output_dir": "run", "dry_run": True}
    said = launch(write_words("pretrain", flags))
    assert list_all(tmp_path) == before
    parts = ("trainable parameters", "optimizer, of the embeddings", "contrastive loss", "run/model/", "epochs")
    assert all(part in said for part in parts)
    learns = "train_tokenizer" in keys and not whole
    assert ("a tokenizer that was trained on the first" in " ".join(said.split())) == learns


def test_the_hub_may_be_out_of_reach():
    for keys in ({"tokenizer_name": "nobody/nothing"}, {"model_name_or_path": "nobody/nothing", "config_name": None}):
        flags = {**LLAMA, **keys} if "config_name" not in keys else {"model_name_or_path": "nobody/nothing"}
        plan = plan_pretrain(make(max_steps=5, **flags))
        assert plan.steps["steps"] == 5
        assert any("nobody/nothing" in line for line in plan.unseen)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"config_name": "./gone"}, "config_name"),
        ({"config_overrides.hiden_size": 3}, "did you mean hidden_size"),
        ({"kind": "mlm"}, "no such language model of llama"),
        ({"max_seq_length": 65}, "64 positions"),
        ({"train_file": "./gone.txt"}, "gone.txt"),
        ({"train_file": "short.txt", "validation_split_percentage": 40}, "fill no block of 32"),
        ({"trains": "head", "objective": "cross_entropy", "config_overrides.tie_word_embeddings": True}, "untie"),
        ({"train_file": "tokens.jsonl"}, "holds tokens, not text"),
        ({"mask_token_type": "nonsense", **BERT}, "no token of this vocabulary"),
    ],
)
def test_what_training_refuses_is_refused(keys, message):
    Path("short.txt").write_text("".join(f"one {number}\n" for number in range(3)))
    Path("tokens.jsonl").write_text('{"input_ids": [1, 2, 3]}\n')
    config = make(**{**LLAMA, **LEARNT, **keys})
    with pytest.raises(UserError, match=message) as planned:
        plan_pretrain(config)
    with pytest.raises(UserError) as trained:
        turncoder.train(config)
    assert str(planned.value) == str(trained.value)
    assert not Path("run").exists()
