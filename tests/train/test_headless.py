"""A headless model is a backbone like any other: what starts from it counts its temperature and its prior in."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from launching import launch, metrics, write_words
from safetensors.torch import load_file

import turncoder
from turncoder.train import fitting

TEMPERATURE, TAU = 0.5, 0.25
SIZES = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "llama": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    "bert": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
}
SHORT = {
    "max_seq_length": 32, "per_device_train_batch_size": 8, "max_steps": 12, "max_train_samples": 200,
    "max_eval_samples": 20, "logging_steps": 4, "save_strategy": "no",
}  # fmt: skip


def command(stage: str, model: Path, text: Path, output: Path, **changes: object) -> list[str]:
    """Write a command that trains from a model for a few steps."""
    flags = {**SHORT, "model_name_or_path": model, "train_file": text, "output_dir": output, **changes}
    return write_words(stage, flags)


@pytest.fixture(scope="session")
def pretrain(stories: Path, stories_text: Path, tmp_path_factory: pytest.TempPathFactory):
    """Give a headless run of an architecture: ``gpt2``, ``llama`` or ``bert``."""
    home = tmp_path_factory.mktemp("headless")
    text = home / "text.txt"
    text.write_text(stories_text.read_text(encoding="utf8")[:150_000], encoding="utf8")

    def give(kind: str) -> Path:
        os.environ["TURNCODER_CACHE"] = str(home / "cache")
        if not (home / kind).exists():
            overrides = {f"config_overrides.{key}": value for key, value in SIZES[kind].items()}
            flags = {
                **SHORT, **overrides, "config_name": kind, "tokenizer_name": stories, "train_file": text,
                "output_dir": home / kind, "temperature": TEMPERATURE, "tau": TAU, "learning_rate": 1e-2,
                "max_steps": 40, "kind": "mlm" if kind == "bert" else "clm", "mask_token_type": "<unk>",
            }  # fmt: skip
            launch(write_words("pretrain", flags))
        return home / kind

    give.text = text
    return give


def read_end(run: Path) -> float:
    return json.loads((run / "run.json").read_text())["results"]["loss"]


def first(run: Path, model: str) -> float:
    return next(row["eval_loss"] for row in metrics(run) if row.get("model") == model)


def test_cross_entropy_goes_on_from_where_the_contrast_ended(pretrain, tmp_path: Path) -> None:
    """The first score of the second run is the last of the first: nothing of temperature and prior was lost."""
    run = pretrain("gpt2")
    launch(command("pretrain", run, pretrain.text, tmp_path / "on", objective="cross_entropy", learning_rate=1e-3))
    assert first(tmp_path / "on", "untrained") == pytest.approx(read_end(run), rel=1e-6)
    assert read_end(tmp_path / "on") < read_end(run)
    record = json.loads((tmp_path / "on" / "model" / "turncoder.json").read_text())
    assert record["prior"] == {"temperature": TEMPERATURE, "tau": TAU}
    kept, counts = (load_file(folder / "model" / "unigram.safetensors")["counts"] for folder in (tmp_path / "on", run))
    assert torch.equal(kept, counts)


def test_mntp_reads_a_headless_decoder_with_its_prior(pretrain, tmp_path: Path) -> None:
    """Its scores before training are those of the same model with its head in its own weights."""
    run = pretrain("gpt2")
    launch(["head", "add", str(run), "--output", str(tmp_path / "complete")])
    launch(["head", "add", str(run), "--output", str(tmp_path / "published"), "--no-prior"])
    for name, model in (("headless", run), ("own", tmp_path / "complete"), ("bare", tmp_path / "published")):
        launch(command("mntp", model, pretrain.text, tmp_path / name, max_steps=1, mask_token_type="<unk>"))
    scores = {name: first(tmp_path / name, "causal") for name in ("headless", "own", "bare")}
    assert scores["headless"] == pytest.approx(scores["own"], rel=1e-5)
    assert scores["headless"] < scores["bare"] - 0.1
    losses = {name: metrics(tmp_path / name)[-1]["eval_loss"] for name in ("headless", "own")}
    assert losses["headless"] == pytest.approx(losses["own"], rel=1e-5)


def test_a_head_under_rmsnorm_is_fitted_to_the_text_of_the_run(pretrain, tmp_path: Path) -> None:
    run = pretrain("llama")
    said = launch(["head", "add", str(run), "--output", str(tmp_path / "out"), "--fit_steps", "150"])
    told = json.loads((tmp_path / "out" / "turncoder.json").read_text())["head"]
    assert told["way"] == "fit"
    assert not told["tied"]
    assert told["divergence"] < 0.8 * told["divergence_before"]
    assert told["cross_entropy"] == pytest.approx(told["cross_entropy_wanted"], abs=0.12)
    assert f"h E^T + log p, {told['divergence']:.4f} nats a token" in said
    launch(["head", "add", str(run), "--output", str(tmp_path / "start"), "--fit_steps", "0"])
    start = json.loads((tmp_path / "start" / "turncoder.json").read_text())["head"]
    assert start["divergence"] == start["divergence_before"] == pytest.approx(told["divergence_before"])
    # The same cross-entropy from plain transformers, on the run's own held-out rows
    changes = {"objective": "cross_entropy", "max_steps": 1, "max_eval_samples": 300}
    launch(command("pretrain", tmp_path / "out", pretrain.text, tmp_path / "on", **changes))
    assert first(tmp_path / "on", "untrained") == pytest.approx(told["cross_entropy"], rel=1e-4)


def test_a_head_is_fitted_to_documents_apart_where_the_run_kept_them_apart(pretrain, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(pretrain("llama"), run)
    record = json.loads((run / "run.json").read_text())
    record["config"]["isolate_documents"] = True
    (run / "run.json").write_text(json.dumps(record))
    launch(["head", "add", str(run), "--output", str(tmp_path / "out"), "--fit_steps", "1"])
    told = json.loads((tmp_path / "out" / "turncoder.json").read_text())["head"]
    changes = {"objective": "cross_entropy", "max_steps": 1, "max_eval_samples": 300}
    losses = {}
    for apart in (True, False):
        place = tmp_path / f"on {apart}"
        launch(command("pretrain", tmp_path / "out", pretrain.text, place, isolate_documents=apart, **changes))
        losses[apart] = first(place, "untrained")
    assert told["cross_entropy"] == pytest.approx(losses[True], rel=1e-5)
    assert told["cross_entropy"] != pytest.approx(losses[False], rel=1e-3)


def test_a_fit_that_leads_away_from_its_start_is_not_kept(pretrain, tmp_path: Path, monkeypatch) -> None:
    @torch.no_grad()
    def spoil(head, *_, steps: int, **__) -> None:
        for one in head.parameters():
            one.add_(steps * torch.randn_like(one))

    monkeypatch.setattr(fitting, "fit_head", spoil)
    said = [
        launch(["head", "add", str(pretrain("llama")), "--output", str(tmp_path / steps), "--fit_steps", steps])
        for steps in ("0", "2")
    ]
    assert ["no better than its start, which is kept" in text for text in said] == [False, True]
    start, kept = (json.loads((tmp_path / steps / "turncoder.json").read_text())["head"] for steps in ("0", "2"))
    assert kept == start
    heads = [load_file(tmp_path / steps / "model.safetensors")["lm_head.weight"] for steps in ("0", "2")]
    assert torch.equal(*heads)


def test_what_goes_on_keeps_the_length_of_a_row(pretrain, tmp_path: Path) -> None:
    flags = {key: value for key, value in SHORT.items() if key != "max_seq_length"} | {"max_steps": 1}
    words = [*write_words("", flags)[1:], "--train_file", str(pretrain.text)]
    for number, stage in enumerate((["head", "finetune"], ["pretrain", "--model_name_or_path"])):
        out = tmp_path / str(number)
        said = launch([*stage, str(pretrain("llama")), *words, "--output", str(out)])
        assert "max_seq_length = 32, as " in said
        assert json.loads((out / "model" / "turncoder.json").read_text())["max_seq_length"] == 32
        assert json.loads((out / "run.json").read_text())["tokens"] == 8 * 32
    said = launch([*stage, str(pretrain("llama")), *words, "--max_seq_length", "16", "--output", str(tmp_path / "16")])
    assert "as " not in said.partition("max_seq_length")[2]
    assert json.loads((tmp_path / "16" / "run.json").read_text())["tokens"] == 8 * 16


def test_a_prior_is_given_once(pretrain, stories: Path, tmp_path: Path) -> None:
    """Refused of weights whose logits hold it, before anything is read; what lacks it gets it."""
    run = pretrain("gpt2")
    launch(["head", "add", str(run), "--output", str(tmp_path / "own")])
    launch(["head", "add", str(run), "--output", str(tmp_path / "bare"), "--no-prior"])
    flags = {"objective": "cross_entropy", "head_prior": True, "max_steps": 1}
    for model in (stories, tmp_path / "own"):
        for words in ([], ["--dry_run"]):
            said = launch(
                [*command("pretrain", model, tmp_path / "gone.txt", tmp_path / "no", **flags), *words], code=2
            )
            assert f"head_prior: the logits of {model} hold log p already" in said and "--swap_vocabulary" in said
    for number, model in enumerate((run, tmp_path / "bare")):
        launch(command("pretrain", model, pretrain.text, tmp_path / f"on{number}", **flags))
    assert first(tmp_path / "on0", "untrained") == pytest.approx(read_end(run), rel=1e-6)
    launch(command("pretrain", tmp_path / "bare", pretrain.text, tmp_path / "without", **flags | {"head_prior": False}))
    assert first(tmp_path / "on1", "untrained") < first(tmp_path / "without", "untrained") - 0.1
    changes = {"train_tokenizer": "bpe", "vocab_size": 400, "swap_vocabulary": True}
    launch(command("pretrain", stories, pretrain.text, tmp_path / "swapped", **flags, **changes))


def test_a_headless_encoder_is_opened_as_one(pretrain, tmp_path: Path) -> None:
    run = pretrain("bert")
    encoder = turncoder.load_encoder(str(run))
    assert encoder.encode(["One day, a girl found a ball."]).shape == (1, 32)
    launch(
        command("simcse", run, pretrain.text, tmp_path / "simcse", max_seq_length=32, max_steps=2, train_mode="full")
    )
    assert (tmp_path / "simcse" / "model" / "modules.json").exists()


def test_a_head_alone_is_finetuned_if_it_is_untied(pretrain, tmp_path: Path) -> None:
    run = pretrain("gpt2")
    flags = ["--train_file", str(pretrain.text), *write_words("", SHORT)[1:], "--output", str(tmp_path / "probe")]
    missing = ["--train_file", str(tmp_path / "gone.txt"), *flags[2:]]  # which is looked for later
    said = launch(["head", "finetune", str(run), "--probe", *missing], code=2)
    assert "error: --probe: the head is the input embeddings" in said and "head add --untied" in said
    assert "head finetune RUN" in launch(["head", "finetune", *flags], code=2)
    said = launch(["head", "finetune", str(run), "--probe", "--trains", "embeddings", *flags], code=2)
    assert "keep one" in said
    launch(["head", "add", str(run), "--output", str(tmp_path / "untied")])
    launch(["head", "finetune", str(tmp_path / "untied"), "--probe", "--learning_rate", "3e-3", *flags])
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("untied", "probe/model"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"lm_head.weight"}
    assert read_end(tmp_path / "probe") < first(tmp_path / "probe", "untrained")


def test_a_whole_encoder_is_finetuned_without_saying_that_it_is_one(pretrain, tmp_path: Path) -> None:
    run = pretrain("bert")
    flags = {**SHORT, "train_file": pretrain.text, "output_dir": tmp_path / "on", "max_steps": 200}
    flags |= {"learning_rate": 3e-3, "max_train_samples": 2000}
    launch(["head", "finetune", str(run), "--mask_token_type", "<unk>", *write_words("", flags)[1:]])
    assert first(tmp_path / "on", "untrained") == pytest.approx(read_end(run), rel=1e-6)
    assert read_end(tmp_path / "on") < read_end(run)
    assert json.loads((tmp_path / "on" / "run.json").read_text())["config"]["kind"] == "mlm"
    launch(["head", "add", str(tmp_path / "on"), "--output", str(tmp_path / "complete")])
    words = ["--objective", "cwt", "--train_file", str(pretrain.text), "--output", str(tmp_path / "no")]
    assert "drop objective" in launch(["head", "finetune", str(tmp_path / "complete"), *words], code=2)


def test_a_contrast_drops_the_bias_that_holds_the_old_prior(pretrain, tmp_path: Path) -> None:
    launch(["head", "add", str(pretrain("bert")), "--output", str(tmp_path / "complete")])
    changes = {
        "kind": "mlm",
        "mask_token_type": "<unk>",
        "max_steps": 1,
        "objective": "cwt",
        "evaluate_step_zero": False,
    }
    said = launch(command("pretrain", tmp_path / "complete", pretrain.text, tmp_path / "on", **changes))
    assert "output bias is dropped" in said
    assert not load_file(tmp_path / "on" / "model" / "model.safetensors")["cls.predictions.bias"].any()


def test_another_vocabulary_counts_its_own_prior(pretrain, tmp_path: Path) -> None:
    """Temperature and share stay those of the headless model, whose embeddings the new ones are made from."""
    changes = {"objective": "cross_entropy", "train_tokenizer": "bpe", "vocab_size": 400, "swap_vocabulary": True}
    said = launch(command("pretrain", pretrain("gpt2"), pretrain.text, tmp_path / "on", **changes, learning_rate=3e-3))
    assert "of 400 new tokens" in said
    record = json.loads((tmp_path / "on" / "model" / "turncoder.json").read_text())
    assert record["prior"] == {"temperature": TEMPERATURE, "tau": TAU}
    counts_V = load_file(tmp_path / "on" / "model" / "unigram.safetensors")["counts"]
    assert counts_V.shape == (400,)
    assert counts_V.sum() > 10_000
    assert read_end(tmp_path / "on") < first(tmp_path / "on", "untrained")


def test_a_headless_decoder_is_turned(pretrain, stories_text: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(stories_text.read_text(encoding="utf8")[:60_000], encoding="utf8")
    steps = ["--steps_mntp", "2", "--steps_simcse", "2", "--eval_documents", "20", "--max_seq_length", "32"]
    launch(["turn", str(pretrain("gpt2")), "--text", str(text), "--output", str(tmp_path / "turned"), *steps])
    assert turncoder.load_encoder(str(tmp_path / "turned" / "model")).encode(["a ball"]).shape == (1, 32)
    rows = json.loads((tmp_path / "turned" / "results.json").read_text())["rows"]
    assert "+ MNTP" in [row["name"] for row in rows]


def test_words_are_read_from_a_headless_encoder(pretrain, shared: Path, tmp_path: Path) -> None:
    lines = (shared / "data/ud_english_ewt/en_ewt-ud-dev.conllu").read_text(encoding="utf8").split("\n\n")
    for name, blocks in (("train", lines[:40]), ("dev", lines[40:60])):
        (tmp_path / f"{name}.conllu").write_text("\n\n".join(blocks) + "\n\n", encoding="utf8")
    flags = {
        "model_name_or_path": pretrain("bert"), "train_file": tmp_path / "train.conllu", "task": "upos",
        "validation_file": tmp_path / "dev.conllu", "test_file": tmp_path / "dev.conllu", "num_train_epochs": 1,
        "output_dir": tmp_path / "words",
    }  # fmt: skip
    launch(write_words("words", flags))
    assert json.loads((tmp_path / "words" / "run.json").read_text())["status"] == "done"


def test_a_contrast_with_another_temperature_is_noticed(pretrain, tmp_path: Path) -> None:
    changes = {"objective": "cwt", "max_steps": 1, "evaluate_step_zero": False}
    said = launch(command("pretrain", pretrain("gpt2"), pretrain.text, tmp_path / "on", **changes, temperature=0.7))
    assert "temperature = 0.7 and tau = 0.25; the weights that this starts from were trained with 0.5 and 0.25" in said
    changes |= {"temperature": TEMPERATURE, "tau": TAU}
    said = launch(command("pretrain", pretrain("gpt2"), pretrain.text, tmp_path / "same", **changes))
    assert "were trained with" not in said
