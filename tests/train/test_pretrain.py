"""Pretraining from the command line: headless models learn, divide and resume exactly, and open without us."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path

import pytest
import torch
from launching import BOTH, PROCESS, kill_after_checkpoint, launch, launch_process, losses, metrics, write_words
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from turncoder.config.pretraining import PretrainConfig
from turncoder.config.stages import load_config
from turncoder.data.tokenizer import end_documents
from turncoder.model.prior import read_prior

LLAMA = {
    "config_name": "llama",
    "config_overrides.hidden_size": 32,
    "config_overrides.intermediate_size": 64,
    "config_overrides.num_hidden_layers": 2,
    "config_overrides.num_attention_heads": 2,
    "config_overrides.max_position_embeddings": 64,
}
EXPERTS = {**LLAMA, "config_name": "mixtral", "config_overrides.num_key_value_heads": 2}
"""Whose weights have other names on the hub than in memory."""
BERT = {**LLAMA, "config_name": "bert", "kind": "mlm", "config_overrides.hidden_dropout_prob": 0.0}
BERT |= {"config_overrides.attention_probs_dropout_prob": 0.0}
SMALL = {
    "train_tokenizer": "bpe",
    "vocab_size": 400,
    "max_seq_length": 32,
    "per_device_train_batch_size": 8,
    "max_steps": 6,
    "logging_steps": 1,
    "save_steps": 3,
    "max_eval_samples": 8,
    "evaluate_step_zero": False,
    "learning_rate": 3e-3,
}


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _environment(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNCODER_CACHE", str(cache))


@pytest.fixture(scope="session")
def text(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "paragraphs.txt"
    lines = (shared / "data/wiki_paragraphs_en/wiki_en.txt").read_text(encoding="utf8").splitlines()
    path.write_text("\n".join(lines[:400]) + "\n", encoding="utf8")
    return path


def command(text: Path, output: Path, architecture: dict[str, object] | None = None, **changes: object) -> list[str]:
    flags = {**(architecture or LLAMA), **SMALL, "train_file": text, "output_dir": output, **changes}
    return write_words("pretrain", {key: value for key, value in flags.items() if value is not None})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def first_loss(run: Path) -> float:
    return next(row["eval_loss"] for row in metrics(run) if "eval_loss" in row)


def test_a_headless_decoder_learns_and_opens_everywhere(text: Path, tmp_path: Path) -> None:
    launch(command(text, tmp_path / "run", max_steps=150, logging_steps=50, evaluate_step_zero=True))
    rows = [row for row in metrics(tmp_path / "run") if "eval_loss" in row]
    assert rows[0]["model"] == "untrained" and rows[-1]["eval_loss"] < rows[0]["eval_loss"] - 0.3
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "done" and record["tokens"] == 150 * 8 * 32
    looks = {row["step"]: row["anisotropy"] for row in metrics(tmp_path / "run") if "anisotropy" in row}
    assert list(looks) == [0, 150] and looks[150] == record["anisotropy"] != looks[0]
    assert len(record["anisotropy"]) == 3 and all(-1 <= value <= 1 for value in record["anisotropy"])
    folder = tmp_path / "run" / "model"
    model, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    out = model.generate(**tokenizer("The city", return_tensors="pt"), max_new_tokens=5, do_sample=False)
    assert out.shape[1] > 5

    # What the run says of its held-out text, from the folder alone: logits, log p, cross-entropy
    prior = read_prior(str(folder))
    assert prior is not None
    config = load_config(PretrainConfig, tmp_path / "run" / "config.toml", [])
    held_out = read_held_out(config, end_documents(tokenizer))
    with torch.no_grad():
        logits_BLV = model(held_out).logits
    bare = mean_loss(logits_BLV, held_out)
    complete = mean_loss(logits_BLV + prior.log_p_V, held_out)
    assert complete == pytest.approx(rows[-1]["eval_loss"], rel=1e-5)
    assert complete < bare - 0.3, "the unigram prior is what a headless model lacks"


def read_held_out(config: PretrainConfig, tokenizer: object) -> torch.Tensor:
    from turncoder.train.text import open_blocks

    blocks = open_blocks(config, tokenizer, 32)[1].without_remainder().select(8, seed=config.seed)  # type: ignore[arg-type]
    return torch.stack([torch.from_numpy(blocks[row][0]) for row in range(len(blocks))])


def mean_loss(logits_BLV: torch.Tensor, token_ids_BL: torch.Tensor) -> float:
    return torch.nn.functional.cross_entropy(logits_BLV[:, :-1].flatten(0, 1), token_ids_BL[:, 1:].flatten()).item()


def test_bits_per_byte_are_those_of_the_text(text: Path, tmp_path: Path) -> None:
    launch(command(text, tmp_path / "run", max_steps=1, max_eval_samples=None))
    row = [row for row in metrics(tmp_path / "run") if "eval_loss" in row][-1]
    config = load_config(PretrainConfig, tmp_path / "run" / "config.toml", [])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    from turncoder.train.text import open_blocks

    tokenizer = end_documents(tokenizer)
    file = open_blocks(config, tokenizer, 32)[1].file
    documents = [line for line in text.read_text(encoding="utf8").splitlines() if line]
    held_out = [line for line in documents if tokenizer(line)["input_ids"] in split(file.tokens, file.ends)]
    size = sum(len(line.encode()) for line in held_out)
    assert len(held_out) == file.num_documents
    assert row["eval_bits_per_byte"] == pytest.approx(row["eval_loss"] / math.log(2) * file.num_tokens / size, rel=1e-6)


def split(tokens: object, ends: object) -> list[list[int]]:
    import numpy as np

    return [part.tolist() for part in np.split(np.asarray(tokens), np.asarray(ends).astype(int))[:-1]]


@pytest.mark.parametrize("objective", ["cwt", "both", "cross_entropy"])
def test_a_masked_encoder_learns_and_opens_everywhere(text: Path, tmp_path: Path, objective: str) -> None:
    longer = {"max_steps": 150, "logging_steps": 50, "evaluate_step_zero": True, "save_strategy": "no"}
    longer |= {"max_eval_samples": 300, "per_device_train_batch_size": 16}
    launch(command(text, tmp_path / "run", BERT, objective=objective, **longer))
    rows = [row for row in metrics(tmp_path / "run") if "eval_loss" in row]
    assert rows[-1]["eval_loss"] < rows[0]["eval_loss"]
    folder = tmp_path / "run" / "model"
    model, loading = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert (read_prior(str(folder)) is None) == (objective == "cross_entropy")
    if objective == "cwt":  # which moves no output bias
        assert not model.get_output_embeddings().bias.any()


@pytest.mark.parametrize("negatives", ["window", "global", "unigram:50"])
@pytest.mark.parametrize("architecture", [LLAMA, BERT], ids=["clm", "mlm"])
def test_micro_batches_do_not_change_the_result(
    text: Path, tmp_path: Path, negatives: str, architecture: dict[str, object]
) -> None:
    common = {"negatives": negatives, "do_eval": False, "save_strategy": "no"}
    launch(command(text, tmp_path / "one", architecture, **common))
    eight = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}
    launch(command(text, tmp_path / "eight", architecture, **common, **eight))
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "eight"), rel=1e-5)
    for name, weight in weights(tmp_path / "one").items():
        assert torch.allclose(weight, weights(tmp_path / "eight")[name], atol=1e-4), name


def test_the_published_pool_depends_on_the_micro_batch(text: Path, tmp_path: Path) -> None:
    common = {"negatives": "micro", "do_eval": False, "save_strategy": "no", "max_steps": 2}
    launch(command(text, tmp_path / "one", **common))
    launch(command(text, tmp_path / "eight", per_device_train_batch_size=1, gradient_accumulation_steps=8, **common))
    assert losses(tmp_path / "one")[0] > losses(tmp_path / "eight")[0] + 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "ways",
    [
        {},
        {"sparse_embeddings": True},
        {"gradient_accumulation_steps": 2},
        {"negatives": "unigram:100"},
        {"objective": "cross_entropy"},
        BERT,
        {**BERT, "mlm_probability": 0.004, "objective": "both"},  # some processes have nothing to predict
    ],
    ids=["global", "sparse", "accumulated", "drawn", "untied", "mlm", "nothing to predict"],
)
def test_two_processes_equal_one(text: Path, tmp_path: Path, ways: dict[str, object]) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    common = {"max_steps": 3, "save_strategy": "no", "max_eval_samples": 9, **ways}
    launch(command(text, one, **common))
    launch_process([*BOTH, *command(text, two, per_device_train_batch_size=4, **common)])
    assert losses(one) == pytest.approx(losses(two), rel=1e-5)
    for name, weight in weights(one).items():
        assert torch.allclose(weight, weights(two)[name], atol=2e-5), name


@pytest.mark.parametrize(
    ("architecture", "ways"),
    [
        (LLAMA, {}),
        (LLAMA, {"sparse_embeddings": True}),
        (BERT, {}),
        (BERT, {"objective": "both"}),
        (LLAMA, {"objective": "cross_entropy"}),
        (EXPERTS, {}),
    ],
    ids=["clm", "sparse", "mlm", "both", "cross-entropy", "experts"],
)
def test_a_resumed_run_is_the_uninterrupted_one(
    text: Path, tmp_path: Path, architecture: dict[str, object], ways: dict[str, object]
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    launch(command(text, whole, architecture, **ways))
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "model")
    shutil.rmtree(cut / "checkpoints" / "checkpoint-6")
    record = json.loads((cut / "run.json").read_text())
    (cut / "run.json").write_text(json.dumps({**record, "status": "running"}))
    launch(command(text, cut, architecture, **ways))
    assert losses(whole) == losses(cut)
    for name, weight in weights(whole).items():
        assert torch.equal(weight, weights(cut)[name]), name


@pytest.mark.slow
def test_a_killed_run_goes_on(text: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    longer = {"max_steps": 60, "save_steps": 10}
    launch(command(text, whole, **longer))
    kill_after_checkpoint([*PROCESS, *command(text, cut, **longer)], cut, 10)
    launch(command(text, cut, **longer))
    assert losses(whole) == losses(cut)
    for name, weight in weights(whole).items():
        assert torch.equal(weight, weights(cut)[name]), name


def test_row_sparse_embeddings_learn_as_well(text: Path, tmp_path: Path) -> None:
    longer = {"max_steps": 60, "save_strategy": "no", "logging_steps": 60}
    launch(command(text, tmp_path / "dense", **longer))
    launch(command(text, tmp_path / "sparse", sparse_embeddings=True, **longer))
    dense, sparse = (
        [row for row in metrics(tmp_path / name) if "eval_loss" in row][-1] for name in ("dense", "sparse")
    )
    assert sparse["eval_loss"] == pytest.approx(dense["eval_loss"], abs=0.15)
    # An embedding that nothing used stands where it began
    begin = {**SMALL, "max_steps": 1, "learning_rate": 0.0}
    launch(command(text, tmp_path / "begin", **{key: begin[key] for key in ("max_steps", "learning_rate")}))
    prior = read_prior(str(tmp_path / "sparse" / "model"))
    assert prior is not None
    name = "model.embed_tokens.weight"
    moved_V = (weights(tmp_path / "sparse")[name] != weights(tmp_path / "begin")[name]).any(1)
    assert not moved_V[prior.counts_V == 0].any() and moved_V[prior.counts_V > 1000].all()


def test_embeddings_alone(text: Path, tmp_path: Path) -> None:
    launch(command(text, tmp_path / "begin", max_steps=1, learning_rate=0.0))
    launch(command(text, tmp_path / "run", trains="embeddings"))
    before, after = weights(tmp_path / "begin"), weights(tmp_path / "run")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"model.embed_tokens.weight"}


def test_weights_go_on(text: Path, tmp_path: Path) -> None:
    launch(command(text, tmp_path / "first", max_steps=30))
    first = [row for row in metrics(tmp_path / "first") if "eval_loss" in row][-1]
    onward = {"model_name_or_path": tmp_path / "first", "train_tokenizer": None, "vocab_size": None}
    flags = {**dict.fromkeys(LLAMA), **onward, "evaluate_step_zero": True, "max_steps": 30}
    launch(command(text, tmp_path / "second", **flags))
    rows = [row for row in metrics(tmp_path / "second") if "eval_loss" in row]
    assert rows[0]["eval_loss"] == pytest.approx(first["eval_loss"], rel=1e-5)
    assert rows[-1]["eval_loss"] < first["eval_loss"]
    record = json.loads((tmp_path / "second" / "run.json").read_text())
    assert record["parents"][0]["stage"] == "pretrain"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        first_bytes = (tmp_path / "first" / "model" / name).read_bytes()
        assert (tmp_path / "second" / "model" / name).read_bytes() == first_bytes


def test_the_prior_is_what_cross_entropy_may_begin_with(text: Path, tmp_path: Path) -> None:
    common = {"objective": "cross_entropy", "evaluate_step_zero": True, "max_steps": 1}
    launch(command(text, tmp_path / "bare", **common))
    launch(command(text, tmp_path / "prior", head_prior=True, **common))
    bare, prior = (first_loss(tmp_path / name) for name in ("bare", "prior"))
    assert bare == pytest.approx(math.log(400), abs=0.1)
    assert prior < bare - 0.5
    assert read_prior(str(tmp_path / "prior" / "model")) is not None


@pytest.mark.parametrize(
    ("architecture", "overrides"),
    [
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}),
        ("gpt_neox", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}),
        ("gemma2", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
                    "head_dim": 16, "intermediate_size": 64, "final_logit_softcapping": "none"}),
        ("granite", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
                     "num_key_value_heads": 2, "logits_scaling": 2.0}),
        ("modernbert", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}),
        ("roberta", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}),
        ("electra", {"hidden_size": 32, "embedding_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
                     "intermediate_size": 64}),
        ("albert", {"hidden_size": 32, "embedding_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
                    "intermediate_size": 64}),
        ("distilbert", {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}),
    ],
)  # fmt: skip
def test_architectures(text: Path, tmp_path: Path, architecture: str, overrides: dict[str, object]) -> None:
    masked = architecture in ("modernbert", "roberta", "electra", "albert", "distilbert")
    flags: dict[str, object] = {"config_name": architecture, "kind": "mlm" if masked else "clm"}
    flags |= {f"config_overrides.{key}": value for key, value in overrides.items()}
    longer = {"max_steps": 60, "save_strategy": "no", "max_eval_samples": 300, "logging_steps": 60}
    launch(command(text, tmp_path / "run", flags, evaluate_step_zero=True, **longer))
    rows = [row["eval_loss"] for row in metrics(tmp_path / "run") if "eval_loss" in row]
    assert rows[-1] < rows[0]
    auto = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    _, loading = auto.from_pretrained(tmp_path / "run" / "model", output_loading_info=True)
    assert not loading["missing_keys"]


def test_schedules(text: Path, tmp_path: Path) -> None:
    common = {"max_steps": 10, "do_eval": False, "save_strategy": "no", "warmup_steps": 2}
    launch(command(text, tmp_path / "run", lr_scheduler_type="warmup_stable_decay", **common))
    rates = [row["learning_rate"] for row in metrics(tmp_path / "run") if "learning_rate" in row]
    assert rates[3:7] == [3e-3] * 4 and rates[-1] < 2e-3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"config_name": "llamma"}, "config_name"),
        ({"config_name": None}, "no model"),
        ({"model_name_or_path": "x"}, "both set"),
        ({"config_overrides.hiden_size": 3}, "did you mean hidden_size"),
        ({"kind": "mlm"}, "no such language model of llama"),
        ({"negatives": "foo"}, "micro, window, global"),
        ({"negatives": "unigram:0"}, "unigram:N"),
        ({"tau": 2}, "tau"),
        ({"sparse_embeddings": True, "objective": "both"}, "sparse_embeddings"),
        ({"head_prior": True}, "head_prior"),
        ({"train_tokenizer": None}, "vocab_size"),
        ({"train_tokenizer": None, "vocab_size": None}, "tokenizer_name"),
        ({"tokenizer_name": "y"}, "both"),
        ({"max_seq_length": 65}, "64 positions"),
        ({"trains": "head"}, "cross_entropy"),
        (
            {"trains": "head", "objective": "cross_entropy", "config_overrides.tie_word_embeddings": True},
            "untie",
        ),
        ({"swap_vocabulary": True}, "model_name_or_path"),
        ({"config_name": "gemma2", "config_overrides.num_key_value_heads": 2}, "soft cap"),
        ({"sparse_embeddings": True, "training.optim": "adafactor"}, "adafactor"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_wrong_input(text: Path, tmp_path: Path, changes: dict[str, object], said: str) -> None:
    out = launch(command(text, tmp_path / "run", **changes), code=2)
    lines = [line for line in out.splitlines() if line.startswith("error")]
    assert len(lines) == 1 and said in lines[0], out
    assert not (tmp_path / "run").exists()


def test_a_corpus_shorter_than_a_block(tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("".join(f"one two three {number}\n" for number in range(8)))
    flags = {"validation_split_percentage": 40, "max_seq_length": 64}
    out = launch(command(short, tmp_path / "run", **flags), code=2)
    assert "fill no block of 64" in out and not (tmp_path / "run").exists()


def test_one_token_over_and_over(tmp_path: Path, text: Path) -> None:
    """A batch of one unique id teaches nothing and breaks nothing."""
    launch(command(text, tmp_path / "first", max_steps=1))
    same = tmp_path / "same.txt"
    same.write_text("a" * 1000 + "\n" + "aaa" * 300 + "\n" + "aa" * 500 + "\n" + "a" * 1200 + "\n")
    flags = {"train_tokenizer": None, "vocab_size": None, "tokenizer_name": tmp_path / "first" / "model"}
    launch(command(same, tmp_path / "run", validation_split_percentage=40, max_seq_length=16, **flags))
    assert all(math.isfinite(loss) for loss in losses(tmp_path / "run"))


@pytest.mark.skipif(sys.platform == "win32", reason="paths")
def test_a_tokenizer_with_more_tokens_than_the_model(text: Path, tmp_path: Path) -> None:
    launch(command(text, tmp_path / "first", max_steps=1))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "first" / "model")
    tokenizer.add_tokens(["<new>", "<newer>"])
    tokenizer.save_pretrained(tmp_path / "larger")
    flags = {**dict.fromkeys(LLAMA), "model_name_or_path": tmp_path / "first", "train_tokenizer": None}
    flags |= {"vocab_size": None, "tokenizer_name": tmp_path / "larger"}
    out = launch(command(text, tmp_path / "run", **flags))
    assert "2 new ones" in out
    assert len(weights(tmp_path / "run")["model.embed_tokens.weight"]) == 402


def test_a_key_that_came_later_is_no_change(text: Path, tmp_path: Path) -> None:
    launch(command(text, tmp_path / "run", max_steps=2))
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    for key in ("tau", "config_overrides"):
        kept = {name: value for name, value in record["config"].items() if name != key}
        (tmp_path / "run" / "run.json").write_text(json.dumps({**record, "config": kept}))
        said = launch(command(text, tmp_path / "run", max_steps=2), code=2 if key == "config_overrides" else 0)
        assert ("is done already" in said) == (key == "tau")
        assert ("config_overrides: {} ->" in said) == (key == "config_overrides")


def test_another_tokenizer_than_the_models_own(text: Path, tmp_path: Path) -> None:
    launch(command(text, tmp_path / "first", max_steps=1))
    launch(command(text, tmp_path / "other", max_steps=1, train_tokenizer="unigram"))
    flags = {**dict.fromkeys(LLAMA), "model_name_or_path": tmp_path / "first", "train_tokenizer": None}
    flags |= {"vocab_size": None, "tokenizer_name": tmp_path / "other" / "model"}
    said = launch(command(text, tmp_path / "run", **flags), code=2)
    assert "--swap_vocabulary" in said and not (tmp_path / "run").exists()


def test_weights_that_know_log_p_do_not_learn_it_again(text: Path, tmp_path: Path) -> None:
    trained = {"objective": "cross_entropy", "max_steps": 60, "save_strategy": "no"}
    launch(command(text, tmp_path / "first", {**LLAMA, "config_overrides.tie_word_embeddings": True}, **trained))
    first = [row for row in metrics(tmp_path / "first") if "eval_loss" in row][-1]["eval_loss"]
    flags = {**dict.fromkeys(LLAMA), "model_name_or_path": tmp_path / "first", "train_tokenizer": None}
    flags |= {"vocab_size": None, "evaluate_step_zero": True, "max_steps": 1, "trains": "all"}
    losses_ = {}
    for tau in (None, 0.0):
        said = launch(command(text, tmp_path / f"tau-{tau}", **flags, tau=tau))
        assert ("tau = 1" in said) == (tau is None)
        losses_[tau] = first_loss(tmp_path / f"tau-{tau}")
    assert losses_[None] < losses_[0.0] and losses_[None] < first + 1.0


def test_lines_apart_are_counted_without_their_first_token(text: Path, tmp_path: Path) -> None:
    launch(command(text, tmp_path / "run", max_steps=1, line_by_line=True))
    prior = read_prior(str(tmp_path / "run" / "model"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    assert prior is not None and prior.counts_V[tokenizer.bos_token_id] == 0
    assert prior.counts_V[tokenizer.eos_token_id] > 300


def test_gains_of_a_head_do_not_decay(text: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForMaskedLM

    from turncoder.model.heads import take_backbone, take_head
    from turncoder.train.stage import register_head
    from turncoder.train.trainer import GatheredTrainer

    launch(command(text, tmp_path / "run", {**LLAMA, "config_name": "modernbert", "kind": "mlm"}, max_steps=1))
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "run" / "model")
    backbone, head = take_backbone(model), take_head(model, trainable=True)
    register_head(backbone, head)
    names = GatheredTrainer.get_decay_parameter_names(GatheredTrainer.__new__(GatheredTrainer), backbone)
    vectors = {name for name, weight in backbone.named_parameters() if weight.ndim < 2}
    assert any("norm" in name and name.startswith("vocabulary_head") for name in vectors)
    assert not vectors & set(names) and "embeddings.tok_embeddings.weight" in names
