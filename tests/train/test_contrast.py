"""SimCSE and supervised training from the command line: they learn, resume exactly, divide exactly, load without us."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from launching import (
    BOTH,
    GRADIENT,
    PROCESS,
    check_same_steps,
    kill_after_checkpoint,
    launch,
    launch_process,
    losses,
    metrics,
    write_words,
)
from sentence_transformers import SentenceTransformer

from turncoder import encode_texts, load_encoder
from turncoder.evaluate.sentences import read_sts, score_sts

SMALL = {
    "max_seq_length": 48,
    "per_device_train_batch_size": 16,
    "learning_rate": 1e-3,
    "max_eval_samples": 40,
    "logging_steps": 1,
    "save_steps": 4,
    "max_steps": 8,
    "evaluate_step_zero": False,
}
TRIPLETS = ("nli_triplets", "train-en.jsonl")


def simcse(model: Path, text: Path, output: Path, **changes: object) -> list[str]:
    flags = {**SMALL, "model_name_or_path": model, "train_file": text, "output_dir": output, **changes}
    return write_words("simcse", flags)


def supervised(model: Path, pairs: Path, output: Path, **changes: object) -> list[str]:
    flags = {**SMALL, "model_name_or_path": model, "train_file": pairs, "output_dir": output, **changes}
    return write_words("supervised", flags)


@pytest.fixture(scope="module")
def trained(stories: Path, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SimCSE run on sentences, with everything on."""
    folder = tmp_path_factory.mktemp("runs") / "simcse"
    text = shared / "data/wiki_paragraphs_en/wiki_en.txt"
    changes = {
        "split_sentences": True, "max_train_samples": 2000, "max_steps": 30, "per_device_train_batch_size": 32,
        "evaluate_step_zero": True, "eval_strategy": "steps", "eval_steps": 15, "save_steps": 15,
        "logging_steps": 5, "prompt": "Sentence:\n", "simcse_dropout": 0.2,
    }  # fmt: skip
    launch(simcse(stories, text, folder, **changes))
    return folder


def test_simcse_learns_to_tell_texts_apart(trained: Path) -> None:
    rows = [row for row in metrics(trained) if "eval_loss" in row]
    assert [row["step"] for row in rows] == [0, 15, 30]
    assert rows[-1]["eval_loss"] < 0.5 * rows[0]["eval_loss"]
    assert rows[-1]["eval_uniformity"] < rows[0]["eval_uniformity"]
    assert losses(trained)[-1] < 0.5 * losses(trained)[0]


def test_run_folder_has_what_the_interface_says(trained: Path) -> None:
    record = json.loads((trained / "run.json").read_text())
    assert (record["status"], record["stage"]) == ("done", "simcse")
    assert record["attention"]["verdict"] == "bidirectional"
    assert record["merged_cosine"] > 0.99999
    assert set(record["results"]) == {"loss", "alignment", "uniformity"}
    assert record["tokens"] > 0 and record["parents"][0]["name"]
    assert {path.name for path in (trained / "checkpoints").iterdir()} == {"checkpoint-15", "checkpoint-30"}
    names = {path.name for path in trained.iterdir()}
    assert names == {"run.json", "config.toml", "metrics.jsonl", "checkpoints", "adapter", "model", "report.html"}


def test_folder_gives_the_same_vectors_in_plain_sentence_transformers(trained: Path) -> None:
    texts = ["A man is walking.", "The weather was warm, and they all went to the park to play.", "No."]
    ours = encode_texts(load_encoder(str(trained), device="cpu"), texts)
    script = """
import json, sys, numpy
from sentence_transformers import SentenceTransformer
encoder = SentenceTransformer(sys.argv[1], device="cpu")
assert encoder.default_prompt_name == "text" and encoder.prompts["text"] == "Sentence:\\n"
assert "turncoder" not in sys.modules
numpy.save(sys.argv[3], encoder.encode(json.loads(sys.argv[2])))
"""
    where = trained / "vectors.npy"
    subprocess.run([sys.executable, "-c", script, trained / "model", json.dumps(texts), where], check=True)
    np.testing.assert_allclose(np.load(where), ours, atol=1e-5)
    where.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("ways", [{"mini_batch_num_tokens": 200}, {"train_mode": "full"}])
def test_killed_and_resumed_gives_identical_weights(
    stories: Path, stories_text: Path, tmp_path: Path, ways: dict[str, object]
) -> None:
    changes = {"max_steps": 24, "save_steps": 4, "lora_dropout": 0.1, "save_total_limit": 2, **ways}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    launch(simcse(stories, stories_text, whole, **changes))
    words = simcse(stories, stories_text, cut, **changes)
    kill_after_checkpoint([*PROCESS, *words], cut, 8)
    launch(words)
    assert (whole / "model/model.safetensors").read_bytes() == (cut / "model/model.safetensors").read_bytes()
    assert losses(whole) == losses(cut)
    tokens = [json.loads((folder / "run.json").read_text())["tokens"] for folder in (whole, cut)]
    assert tokens[0] == tokens[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "ways",
    [
        {"do_eval": True},
        {"mini_batch_num_tokens": 200},
        {"gradient_checkpointing": True},
        {"train_mode": "full", "learning_rate": 10.0},
        {"mini_batch_num_tokens": 200, "gradient_checkpointing": True, "train_mode": "full", "learning_rate": 10.0},
    ],
    ids=["plain", "cached", "checkpointed", "full", "all of it"],
)
def test_two_processes_equal_one(stories: Path, shared: Path, tmp_path: Path, ways: dict[str, object]) -> None:
    pairs = shared.joinpath("data", *TRIPLETS)
    one, two = tmp_path / "one", tmp_path / "two"
    launch(supervised(stories, pairs, one, per_device_train_batch_size=32, **{**GRADIENT, **ways}))
    words = supervised(stories, pairs, two, per_device_train_batch_size=16, **{**GRADIENT, **ways})
    said = launch_process([*BOTH, *words])
    assert "PAD/BOS/EOS" not in said  # by transformers, in the second process
    check_same_steps(one, two, stories / "model.safetensors")
    assert losses(one) == pytest.approx(losses(two), rel=1e-5)
    tokens = [json.loads((folder / "run.json").read_text())["tokens"] for folder in (one, two)]
    assert tokens[0] == tokens[1]  # though the two processes read rows of different length


def test_supervised_raises_triplet_accuracy(stories: Path, shared: Path, tmp_path: Path) -> None:
    pairs = shared.joinpath("data", *TRIPLETS)
    changes = {
        "max_steps": 40, "per_device_train_batch_size": 32, "evaluate_step_zero": True, "max_eval_samples": 80,
        "learning_rate": 3e-3, "query_prompt": "Find what follows\n", "matryoshka_dims": 32, "save_strategy": "no",
    }  # fmt: skip
    launch(supervised(stories, pairs, tmp_path / "run", **changes))
    rows = [row for row in metrics(tmp_path / "run") if "eval_loss" in row]
    assert rows[-1]["eval_loss"] < rows[0]["eval_loss"]
    assert rows[-1]["eval_mrr@10"] >= rows[0]["eval_mrr@10"]
    assert 0 <= rows[-1]["eval_triplet_accuracy"] <= 1
    encoder = SentenceTransformer(str(tmp_path / "run/model"), device="cpu")
    assert encoder.prompts["query"] == "Find what follows\n"
    assert json.loads((tmp_path / "run/model/turncoder.json").read_text())["matryoshka_dims"] == [32]


def test_stages_follow_each_other(trained: Path, shared: Path, tmp_path: Path) -> None:
    pairs = shared.joinpath("data", *TRIPLETS)
    launch(supervised(trained, pairs, tmp_path / "run", max_steps=2))
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert [parent.get("stage") for parent in record["parents"]] == ["simcse", None]
    encoder = SentenceTransformer(str(tmp_path / "run/model"), device="cpu")
    assert encoder.prompts["text"] == "Sentence:\n"  # what the parent knew is kept
    assert encoder.default_prompt_name is None  # but not trained with


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"per_device_train_batch_size": 1}, "per_device_train_batch_size = 1"),
        ({"simcse_dropout": 0.0, "train_mode": "full"}, "two views of a text are the same"),
        ({"simcse_dropout": 0.0, "lora_dropout": 0.0}, "two views of a text are the same"),
        ({"loss_scale": 20, "temperature": 0.05}, "keep one"),
        ({"matryoshka_dims": 1000}, "1000 is more than the 64"),
        ({"prompt": "word " * 100 + "\n"}, "shorten the prompt"),
        ({"prompt": "stick "}, "end it in a newline"),
        ({"sts_file": "gone.tsv"}, "gone.tsv"),
        ({"text_column": "body"}, "has lines and no columns"),
    ],
)
def test_wrong_input_says_what_and_writes_nothing(
    stories: Path, stories_text: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    said = launch(simcse(stories, stories_text, tmp_path / "run", **changes), code=2)
    assert message in said and "Traceback" not in said
    assert not (tmp_path / "run").exists()


def test_a_changed_configuration_is_refused(trained: Path, stories: Path, shared: Path) -> None:
    said = launch(simcse(stories, shared / "data/wiki_paragraphs_en/wiki_en.txt", trained, learning_rate=0.5), code=2)
    assert "holds a run with another configuration" in said


@pytest.mark.parametrize("share", [0, 5])
@pytest.mark.parametrize("stage", [simcse, supervised])
def test_scored_pairs_are_read_with_the_prompt_that_is_trained(
    stories: Path, stories_text: Path, shared: Path, tmp_path: Path, stage: Callable[..., list[str]], share: int
) -> None:
    lines = (shared / "data/stsb/stsb-dev.tsv").read_text(encoding="utf8").splitlines()[:100]
    (tmp_path / "sts.tsv").write_text("\n".join(lines) + "\n", encoding="utf8")
    prompt = "Find a sentence that means the same:\n"
    if stage is simcse:
        words = stage(stories, stories_text, tmp_path / "run", prompt=prompt)
    else:
        prompts = {"query_prompt": prompt, "document_prompt": "Text:\n"}
        words = stage(stories, shared / "data" / "/".join(TRIPLETS), tmp_path / "run", **prompts)
    measured = {"sts_file": tmp_path / "sts.tsv", "validation_split_percentage": share, "max_train_samples": 64}
    launch([*words, *write_words("", {**measured, "max_steps": 1, "save_strategy": "no"})[1:]])
    found = json.loads((tmp_path / "run" / "run.json").read_text())["results"]["sts_spearman"]
    encoder = load_encoder(str(tmp_path / "run"), max_seq_length=48, device="cpu")  # of training
    sts = read_sts(tmp_path / "sts.tsv")
    assert found == pytest.approx(score_sts(encoder, sts, prompt=prompt), abs=1e-4)
    assert found != pytest.approx(score_sts(encoder, sts, prompt=""), abs=1e-3)


def test_a_prompt_that_runs_into_scored_pairs_is_refused_before_training(
    stories: Path, shared: Path, tmp_path: Path
) -> None:
    pairs = [{"anchor": f"{row} dogs", "positive": f"{row} puppies"} for row in range(40)]
    scored = [{"sentence1": "e cat", "sentence2": f"a dog {row}", "score": row} for row in range(12)]
    for name, rows in (("pairs", pairs), ("sts", scored)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = {"query_prompt": "Once upon a tim", "sts_file": tmp_path / "sts.jsonl", "evaluate_step_zero": False}
    said = launch(supervised(stories, tmp_path / "pairs.jsonl", tmp_path / "run", **words), code=2)
    assert "'Once upon a tim' does not stay apart" in said and "'e cat'" in said
    assert "step 1" not in said
