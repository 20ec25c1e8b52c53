"""MNTP from the command line on a real decoder: it learns, resumes exactly, divides exactly, and loads without us."""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from launching import (
    BOTH,
    GRADIENT,
    PROCESS,
    adapter,
    check_same_steps,
    kill_after_checkpoint,
    launch,
    launch_process,
    losses,
    metrics,
    write_words,
)
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

LEARNS = {
    "max_steps": 150,
    "save_steps": 75,
    "logging_steps": 25,
    "per_device_train_batch_size": 8,
    "learning_rate": 3e-3,
    "lora_r": 16,
    "evaluate_step_zero": True,
    "max_eval_samples": 64,
}
SMALL = {
    "max_seq_length": 64,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
    "max_eval_samples": 16,
    "lora_dropout": 0.0,
    "logging_steps": 1,
    "save_steps": 4,
    "max_steps": 8,
    "evaluate_step_zero": False,
}


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _environment(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNCODER_CACHE", str(cache))


def command(model: Path, text: Path, output: Path, **changes: object) -> list[str]:
    flags = {**SMALL, "model_name_or_path": model, "train_file": text, "output_dir": output, **changes}
    return write_words("mntp", flags)


@pytest.fixture(scope="session")
def trained(stories: Path, stories_text: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 150 steps with everything on."""
    os.environ["TURNCODER_CACHE"] = str(cache)
    folder = tmp_path_factory.mktemp("runs") / "learns"
    launch(command(stories, stories_text, folder, **LEARNS))
    return folder


def test_loss_falls_and_aligned_accuracy_rises(trained: Path) -> None:
    rows = metrics(trained)
    causal = next(row for row in rows if row.get("model") == "causal")
    untrained = next(row for row in rows if row.get("model") == "bidirectional")
    last = [row for row in rows if "eval_loss" in row][-1]
    assert last["step"] == 150
    assert untrained["eval_loss"] > causal["eval_loss"]  # looking ahead untrained is worse than not looking
    assert last["eval_loss"] < untrained["eval_loss"] - 1.0
    assert last["eval_accuracy"] > 1.5 * untrained["eval_accuracy"]
    assert last["eval_accuracy"] <= last["eval_top5_accuracy"] <= 1


def test_run_folder_has_what_the_interface_says(trained: Path) -> None:
    record = json.loads((trained / "run.json").read_text())
    assert record["status"] == "done"
    assert record["stage"] == "mntp"
    assert record["tokens"] == 150 * 8 * 64
    assert record["wall_time_s"] > 0
    assert record["parameters"]["trainable"] < record["parameters"]["total"]
    assert record["merged_cosine"] > 0.99999
    assert record["results"]["accuracy"] > 0
    assert record["data"]["fingerprint"]
    assert record["memory"]["process"] > 10**8 and record["hardware"]["cores"] >= 1
    names = {path.name for path in trained.iterdir()}
    assert names == {"run.json", "config.toml", "metrics.jsonl", "checkpoints", "adapter", "model", "report.html"}


def test_model_opens_in_plain_sentence_transformers_and_looks_both_ways(trained: Path) -> None:
    script = """
import sys, torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel
folder = sys.argv[1]
encoder = SentenceTransformer(folder)
vectors = encoder.encode(["Once upon a time", "The little dog ran home to his mom and they played", "a"])
alone = encoder.encode(["a"])
assert abs(vectors[2] - alone[0]).max() < 1e-5
model = AutoModel.from_pretrained(folder).eval()
ids = torch.tensor([[1, 300, 301, 302], [1, 300, 301, 40]])
with torch.no_grad():
    states = model(ids).last_hidden_state
assert (states[0, 0] - states[1, 0]).abs().max() > 1e-4
assert not any(name.startswith("turncoder") for name in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", script, str(trained / "model")], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]


def test_tokenizer_files_are_the_original_bytes(trained: Path, stories: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (trained / "model" / name).read_bytes() == (stories / name).read_bytes()


def test_adapter_loads_on_plain_automodel_and_equals_the_merged_model(trained: Path, stories: Path) -> None:
    from peft import PeftModel
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(stories)
    config.is_causal = False
    bare = AutoModel.from_pretrained(stories, config=config, dtype=torch.float32).eval()
    ids = torch.arange(3, 35)[None]
    with torch.no_grad():
        before = bare(ids).last_hidden_state
        adapted = PeftModel.from_pretrained(bare, trained / "adapter").eval()(ids).last_hidden_state
        merged = AutoModel.from_pretrained(trained / "model", dtype=torch.float32).eval()(ids).last_hidden_state
    assert (adapted - before).abs().max() > 1e-2
    torch.testing.assert_close(adapted, merged, atol=1e-4, rtol=1e-4)


def test_same_command_again_does_nothing_and_a_changed_one_is_refused(
    trained: Path, stories: Path, stories_text: Path
) -> None:
    before = (trained / "metrics.jsonl").read_bytes()
    launch(command(stories, stories_text, trained, **LEARNS))
    assert (trained / "metrics.jsonl").read_bytes() == before
    said = launch(command(stories, stories_text, trained, **{**LEARNS, "lora_r": 4}), code=2)
    assert (
        said.startswith("error: ")
        and said.count("\n") == 1
        and "lora_r" in said
        and "16" in said
        and "--overwrite" in said
    )


@pytest.mark.slow
def test_killed_and_resumed_gives_identical_weights(stories: Path, stories_text: Path, tmp_path: Path) -> None:
    changes = {"max_steps": 40, "save_steps": 5, "lora_dropout": 0.1, "save_total_limit": 2}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    launch(command(stories, stories_text, whole, **changes))
    words = command(stories, stories_text, cut, **changes)
    kill_after_checkpoint([*PROCESS, *words], cut, 10)
    launch(words)
    assert (whole / "adapter/adapter_model.safetensors").read_bytes() == (
        cut / "adapter/adapter_model.safetensors"
    ).read_bytes()
    assert (whole / "model/model.safetensors").read_bytes() == (cut / "model/model.safetensors").read_bytes()
    drop = ("tokens_per_second",)
    assert [{k: v for k, v in row.items() if k not in drop} for row in metrics(whole)] == [
        {k: v for k, v in row.items() if k not in drop} for row in metrics(cut)
    ]
    assert json.loads((cut / "run.json").read_text())["tokens"] == 40 * 4 * 64
    assert sorted(path.name for path in (cut / "checkpoints").iterdir()) == ["checkpoint-35", "checkpoint-40"]


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on_and_loses_nothing(stories: Path, stories_text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = command(stories, stories_text, folder, max_steps=3000, save_steps=2, logging_steps=500, save_total_limit=1)
    process = subprocess.Popen(
        [*PROCESS, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(folder.glob("checkpoints/checkpoint-*/complete")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command again resumes" in said and "Traceback" not in said
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"
    assert list(folder.glob("checkpoints/checkpoint-*/complete"))


def test_an_unfinished_checkpoint_is_not_resumed_from(stories: Path, stories_text: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    launch(command(stories, stories_text, whole))
    shutil.copytree(whole, cut)
    for gone in ("adapter", "model"):
        shutil.rmtree(cut / gone)
    # what a kill in the middle of writing the second checkpoint leaves: no marker, files cut off
    (cut / "checkpoints/checkpoint-8/complete").unlink()
    (cut / "checkpoints/checkpoint-8/optimizer.pt").write_bytes(b"cut off")
    record = json.loads((cut / "run.json").read_text())
    (cut / "run.json").write_text(json.dumps({**record, "status": "running"}))
    launch(command(stories, stories_text, cut))
    assert losses(whole) == losses(cut)
    for name, tensor in adapter(whole).items():
        assert torch.equal(tensor, adapter(cut)[name])


def test_accumulation_does_not_change_the_result(stories: Path, stories_text: Path, tmp_path: Path) -> None:
    one, eight = tmp_path / "one", tmp_path / "eight"
    common = {"max_steps": 4, "save_strategy": "no", "do_eval": False}
    launch(command(stories, stories_text, one, per_device_train_batch_size=8, **common))
    launch(
        command(stories, stories_text, eight, per_device_train_batch_size=1, gradient_accumulation_steps=8, **common)
    )
    assert losses(one) == pytest.approx(losses(eight), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "ways",
    [
        {},
        {"gradient_checkpointing": True},
        {"train_mode": "full"},
        {"train_mode": "full", "gradient_checkpointing": True, "gradient_accumulation_steps": 2},
    ],
    ids=["LoRA", "checkpointed", "full", "all of it"],
)
def test_two_processes_equal_one(stories: Path, stories_text: Path, tmp_path: Path, ways: dict[str, object]) -> None:
    """Losses, scores, and, since the descent is plain, gradients: what is left of them is how far the weights moved."""
    one, two = tmp_path / "one", tmp_path / "two"
    more = {"max_steps": 2, "learning_rate": 0.1, "do_eval": True, "max_eval_samples": 9}
    common = {**GRADIENT, **more, "save_strategy": "steps", "save_steps": 1, **ways}
    launch(command(stories, stories_text, one, per_device_train_batch_size=8, **common))
    launch_process([*BOTH, *command(stories, stories_text, two, per_device_train_batch_size=4, **common)])
    check_same_steps(one, two, stories / "model.safetensors")
    assert losses(one) == pytest.approx(losses(two), rel=1e-5) and len(losses(one)) == 2
    assert [row["eval_loss"] for row in metrics(one) if "eval_loss" in row] == pytest.approx(
        [row["eval_loss"] for row in metrics(two) if "eval_loss" in row], rel=1e-5
    )
    assert json.loads((one / "run.json").read_text())["tokens"] == json.loads((two / "run.json").read_text())["tokens"]


def test_losses_equal_those_of_the_loop_written_by_hand(stories: Path, stories_text: Path, tmp_path: Path) -> None:
    """Over more than one epoch of so little text, the last row of which is short."""
    script = Path(__file__).parents[2] / "examples" / "by_hand.py"
    assert len(script.read_text().splitlines()) <= 80
    lines = [line for line in stories_text.read_text(encoding="utf8").splitlines() if line.strip()]
    (tmp_path / "text.txt").write_text("\n\n".join(lines[:40]), encoding="utf8")
    example = runpy.run_path(str(script))
    by_hand = list(example["train"](str(stories), str(tmp_path / "text.txt"), 8))
    given = {"MODEL": stories, "TEXT_FILE": tmp_path / "text.txt", "STEPS": 8, "RUN": tmp_path / "run"}
    launch([str(given.get(word, word)) for word in example["__doc__"].partition("    turncoder ")[2].split()])
    assert losses(tmp_path / "run") == pytest.approx(by_hand, abs=2e-5)
    assert by_hand[-1] < by_hand[0] - 1 and len(by_hand) == 8
    assert metrics(tmp_path / "run")[-1]["epoch"] > 1


def test_the_last_step_is_logged_however_few_there_are(stories: Path, stories_text: Path, tmp_path: Path) -> None:
    flags = {"max_steps": 3, "logging_steps": 500, "do_eval": False, "save_strategy": "no"}
    launch(command(stories, stories_text, tmp_path / "run", **flags))
    launch(command(stories, stories_text, tmp_path / "never", **flags, logging_strategy="no"))
    launch(command(stories, stories_text, tmp_path / "stopped", **{**flags, "max_steps": 9, "stop_after_n_steps": 2}))
    assert [row["step"] for row in metrics(tmp_path / "run") if "loss" in row] == [3]
    assert [row["step"] for row in metrics(tmp_path / "stopped") if "loss" in row] == [2]
    assert not (tmp_path / "never/metrics.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"train_mode": "full"},
        {"gradient_checkpointing": True},
        {"bf16": True},
        {"dtype": "bfloat16"},
        {"data_collator_type": "unmasked", "bidirectional": False},
        {"line_by_line": True},
        {"early_stopping_patience": 1, "eval_strategy": "steps", "eval_steps": 2},
        {"as_llm2vec": True, "stop_after_n_steps": 6},
        {"train_head": True},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_variants_run_and_learn(stories: Path, stories_text: Path, tmp_path: Path, changes: dict) -> None:
    longer = {"per_device_train_batch_size": 16, "max_steps": 12, "evaluate_step_zero": True, **changes}
    launch(command(stories, stories_text, tmp_path / "run", **longer))
    rows = metrics(tmp_path / "run")
    scores = [row["eval_loss"] for row in rows if "eval_loss" in row]
    if "bidirectional" in changes:  # causal training on clean text: the loss of the language model itself
        assert all(value < 2.6 for value in losses(tmp_path / "run"))
    elif "as_llm2vec" in changes:  # no scores before training
        assert len(losses(tmp_path / "run")) == 6
    else:
        assert scores[-1] < scores[1]
    assert (tmp_path / "run/model/model.safetensors").exists()
    assert (tmp_path / "run/adapter").exists() == (changes.get("train_mode") != "full")


def test_gradient_checkpointing_gives_the_same_losses(stories: Path, stories_text: Path, tmp_path: Path) -> None:
    common = {"max_steps": 3, "save_strategy": "no", "do_eval": False}
    launch(command(stories, stories_text, tmp_path / "plain", **common))
    launch(command(stories, stories_text, tmp_path / "checkpointed", gradient_checkpointing=True, **common))
    assert losses(tmp_path / "plain") == pytest.approx(losses(tmp_path / "checkpointed"), rel=1e-6)


def test_a_folder_that_is_no_run_is_not_touched(stories: Path, stories_text: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    said = launch(command(stories, stories_text, tmp_path), code=2)
    assert said.startswith("error: ") and str(tmp_path) in said
    said = launch(command(stories, stories_text, tmp_path, overwrite=True), code=2)
    assert "will not be deleted" in said
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_wrong_input_leaves_no_run_in_the_way_of_the_right_one(
    stories: Path, stories_text: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    launch(command(stories, tmp_path / "typo.txt", run, max_steps=1), code=2)
    assert not run.exists()
    launch(command(stories, stories_text, run, max_steps=1))
    assert (run / "model").is_dir()


def test_a_run_that_failed_early_starts_anew_with_another_config(
    stories: Path, stories_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("turncoder.train.mntp.fit", lambda *_: (_ for _ in ()).throw(MemoryError))
        said = launch(command(stories, stories_text, run, max_steps=1, evaluate_step_zero=True), code=2)
    assert "per_device_train_batch_size" in said
    remedied = {"max_steps": 1, "evaluate_step_zero": True, "per_device_train_batch_size": 2}
    launch(command(stories, stories_text, run, **remedied))
    assert [row["model"] for row in metrics(run) if "model" in row] == ["causal", "bidirectional"]
    assert json.loads((run / "run.json").read_text())["config"]["per_device_train_batch_size"] == 2


def test_overwrite_with_wrong_input_loses_nothing(stories: Path, stories_text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    short = {"max_steps": 2, "do_eval": False}
    launch(command(stories, stories_text, folder, **short))
    before = (folder / "model/model.safetensors").read_bytes()
    for wrong in (
        {"train_file": tmp_path / "typo.txt"},
        {"lr_scheduler_type": "zigzag"},
        {"lora_target_modules": "foo"},
    ):
        said = launch(command(stories, stories_text, folder, overwrite=True, **{**short, **wrong}), code=2)
        assert next(iter(wrong)) in said
        assert (folder / "model/model.safetensors").read_bytes() == before
    launch(command(stories, stories_text, folder, overwrite=True, **{**short, "learning_rate": 1e-4}))
    assert (folder / "model/model.safetensors").read_bytes() != before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_resuming_on_another_text_is_refused(stories: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"Once upon a time there were {count} little dogs.\n" for count in range(400)))
    launch(command(stories, text, tmp_path / "run", lr_scheduler_type="constant", max_steps=4, do_eval=False))
    text.write_text(text.read_text() + "And one more.\n")
    more = {"lr_scheduler_type": "constant", "max_steps": 8, "do_eval": False}
    said = launch(command(stories, text, tmp_path / "run", **more), code=2)
    assert "another text" in said and (tmp_path / "run/model").exists()


def test_more_steps_under_a_constant_schedule_continue(stories: Path, stories_text: Path, tmp_path: Path) -> None:
    common = {"lr_scheduler_type": "constant", "do_eval": False}
    launch(command(stories, stories_text, tmp_path / "whole", max_steps=8, **common))
    launch(command(stories, stories_text, tmp_path / "grown", max_steps=4, **common))
    launch(command(stories, stories_text, tmp_path / "grown", max_steps=8, **common))
    assert losses(tmp_path / "whole") == losses(tmp_path / "grown")
    for name, tensor in adapter(tmp_path / "whole").items():
        assert torch.equal(tensor, adapter(tmp_path / "grown")[name])


def test_the_model_is_readable_by_others(trained: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    for name in ("model/model.safetensors", "adapter/adapter_model.safetensors", "model/tokenizer.json"):
        assert (trained / name).stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("kind", ["mamba", "lfm2"])
def test_recurrent_and_hybrid_models_are_refused_before_the_corpus_is_read(
    kind: str, shared: Path, tmp_path: Path
) -> None:
    from turncoder.model.twin import tiny_model

    tiny_model(kind).save_pretrained(tmp_path / kind)
    tokenizer = shared / "models" / "babyllama-char105-hf"
    said = launch(command(tmp_path / kind, tmp_path / "none.txt", tmp_path / "run", tokenizer_name=tokenizer), code=2)
    assert "look back only" in said.splitlines()[-1] or "back only" in said.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_sampled_vocabulary_learns_and_divides_exactly(stories: Path, stories_text: Path, tmp_path: Path) -> None:
    """MNTP over the rows of the head that are masked somewhere in the step, against that over all of them."""
    common = {
        "max_steps": 60,
        "learning_rate": 3e-3,
        "logging_steps": 60,
        "save_strategy": "no",
        "max_eval_samples": 64,
    }
    scores = {}
    for objective in ("cross_entropy", "cwt"):
        rows = {"per_device_train_batch_size": 8, "objective": objective}
        launch(command(stories, stories_text, tmp_path / objective, **common, **rows))
        scores[objective] = [row["eval_accuracy"] for row in metrics(tmp_path / objective) if "eval_loss" in row][-1]
    assert scores["cwt"] > 0.8 * scores["cross_entropy"]
    divided = {**common, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 8, "objective": "cwt"}
    launch(command(stories, stories_text, tmp_path / "divided", **divided))
    assert losses(tmp_path / "divided") == pytest.approx(losses(tmp_path / "cwt"), rel=1e-4)


def test_sampled_vocabulary_keeps_the_head(stories: Path, stories_text: Path, tmp_path: Path) -> None:
    out = launch(command(stories, stories_text, tmp_path / "run", objective="cwt", train_head=True), code=2)
    assert "train_head" in out and not (tmp_path / "run").exists()


def test_the_best_step_is_kept_with_its_head(stories: Path, stories_text: Path, tmp_path: Path) -> None:
    """At a rate at which steps make it worse, adapter and head are those of the best step, not of the last."""
    model = AutoModelForCausalLM.from_pretrained(stories, tie_word_embeddings=False)
    model.lm_head.weight = torch.nn.Parameter(model.get_input_embeddings().weight.detach().clone())
    model.save_pretrained(tmp_path / "untied")
    AutoTokenizer.from_pretrained(stories).save_pretrained(tmp_path / "untied")
    keys = {"train_head": True, "learning_rate": 0.3, "lr_scheduler_type": "constant", "evaluate_step_zero": False}
    keys |= {"early_stopping_patience": 9, "eval_strategy": "steps", "eval_steps": 1, "max_steps": 4}
    launch(command(tmp_path / "untied", stories_text, tmp_path / "run", **keys))
    scores = {row["step"]: row["eval_loss"] for row in reversed(metrics(tmp_path / "run")) if "eval_loss" in row}
    best = min(scores, key=lambda step: scores[step])
    assert best < 4
    for name in ("head.safetensors", "adapter_model.safetensors"):
        kept = load_file(tmp_path / f"run/checkpoints/checkpoint-{best}" / name)
        for key, found in load_file(tmp_path / "run/adapter" / name).items():
            assert torch.equal(found, kept[key]), (name, key)


def test_how_often_is_logged_and_saved_may_change_when_a_run_goes_on(
    stories: Path, stories_text: Path, tmp_path: Path
) -> None:
    common = {"lr_scheduler_type": "constant", "do_eval": False}
    launch(command(stories, stories_text, tmp_path, max_steps=4, logging_steps=4, **common))
    launch(command(stories, stories_text, tmp_path, max_steps=10, logging_steps=2, save_steps=3, **common))
    assert [row["step"] for row in metrics(tmp_path)] == [4, 6, 8, 10]
    assert sorted(int(path.name[11:]) for path in (tmp_path / "checkpoints").iterdir()) == [4, 6, 9, 10]


WORSE = {"learning_rate": 0.3, "lr_scheduler_type": "constant", "eval_strategy": "steps", "eval_steps": 1}
"""At this rate steps make it worse."""


def cut_off(run: Path, after: int | None = None) -> None:
    """Leave what a kill after a step leaves; None: a kill after the last, while the result is written."""
    for name in ("adapter", "model"):
        shutil.rmtree(run / name)
    record = json.loads((run / "run.json").read_text())
    if after is not None:
        del record["trained"]
        for path in (run / "checkpoints").iterdir():
            if int(path.name[11:]) > after:
                shutil.rmtree(path)
    (run / "run.json").write_text(json.dumps({**record, "status": "running"}))


def test_patience_goes_on_where_it_was(stories: Path, stories_text: Path, tmp_path: Path) -> None:
    words = command(stories, stories_text, tmp_path / "run", **WORSE, early_stopping_patience=2)
    launch(words)
    steps = [row["step"] for row in metrics(tmp_path / "run") if "loss" in row]
    assert steps == [1, 2, 3]
    cut_off(tmp_path / "run", after=2)
    launch(words)
    assert [row["step"] for row in metrics(tmp_path / "run") if "loss" in row] == steps


def test_patience_may_come_when_a_run_goes_on(stories: Path, stories_text: Path, tmp_path: Path) -> None:
    launch(command(stories, stories_text, tmp_path / "run", **WORSE, save_steps=1))
    cut_off(tmp_path / "run", after=1)
    launch(command(stories, stories_text, tmp_path / "run", **WORSE, early_stopping_patience=9))
    *scores, end = [row["eval_loss"] for row in metrics(tmp_path / "run") if "eval_loss" in row]
    assert end == min(scores[1:])  # of the steps since


@pytest.mark.parametrize(("strategy", "after"), [("steps", None), ("best", 1)])
def test_the_best_step_is_found_in_a_folder_that_was_moved(
    strategy: str, after: int | None, stories: Path, stories_text: Path, tmp_path: Path
) -> None:
    """An epoch is one step, the first the best: ``best`` saves nothing after it."""
    lines = stories_text.read_text(encoding="utf8").splitlines()
    for name, some in (("train", lines[:3]), ("dev", lines[3:9])):
        (tmp_path / f"{name}.txt").write_text("\n".join(some), encoding="utf8")
    keys = {**WORSE, "early_stopping_patience": 9, "save_strategy": strategy, "validation_file": tmp_path / "dev.txt"}
    keys["eval_strategy"] = "epoch" if strategy == "best" else "steps"
    launch(command(stories, tmp_path / "train.txt", tmp_path / "run", **keys))
    before = adapter(tmp_path / "run")
    best = load_file(tmp_path / "run/checkpoints/checkpoint-1/adapter_model.safetensors")
    assert all(torch.equal(tensor, best[name]) for name, tensor in before.items())
    cut_off(tmp_path / "run", after)
    (tmp_path / "run").rename(tmp_path / "moved")
    launch(command(stories, tmp_path / "train.txt", tmp_path / "moved", **keys))
    for name, tensor in adapter(tmp_path / "moved").items():
        assert torch.equal(tensor, before[name])
