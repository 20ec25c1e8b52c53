"""Files and flags of headless-lm: what each means here, and that every published run runs."""

import json
import logging
from dataclasses import fields
from pathlib import Path

import datasets
import pytest
from transformers import AutoTokenizer, BertConfig, GPTNeoXConfig

from turncoder.cli import main
from turncoder.config import legacy_headless, legacy_values
from turncoder.config.pretraining import PretrainConfig
from turncoder.config.settings import training_argument_names
from turncoder.config.stages import MntpConfig, PrepareConfig, load_config
from turncoder.data.packing import TokenPass
from turncoder.errors import UserError

FILES = Path(__file__).parents[1] / "fixtures" / "headless"
PYTHIA = "EleutherAI/pythia-70m-deduped"
FLAGS = {
    "hf_path": "org/model", "hf_tokenizer": PYTHIA, "dataset": "owt2", "global_bs": 256, "gpu_bs": 32, "num_nodes": 1,
    "run_name": "first", "saved_ckpt_path": "ckpts",
}  # fmt: skip
BERT = {"learning_rate": 1e-4, "weight_decay": 0.01, "warmup_steps": 1e4, "max_steps": 10**6, "max_seq_length": 128}
NEOX = {
    "weight_decay": 0.1, "warmup_steps": 1430, "max_steps": 143_000, "max_seq_length": 2048, "temperature": 1.0,
    "training": {"adam_beta1": 0.9, "adam_beta2": 0.95}, "lr_scheduler_type": "cosine",
}  # fmt: skip
RUNS = {
    "mlm_headless": {**BERT, "kind": "mlm", "objective": "cwt", "negatives": "micro", "lr_scheduler_type": "linear"},
    "mlm_vanilla": {**BERT, "kind": "mlm", "objective": "cross_entropy", "lr_scheduler_type": "linear"},
    "gpt_headless_70m": {**NEOX, "kind": "clm", "objective": "cwt", "learning_rate": 1e-3, "negatives": "micro"},
    "gpt_vanilla_70m": {**NEOX, "kind": "clm", "objective": "cross_entropy", "learning_rate": 1e-3},
    "gpt_headless_160m": {**NEOX, "kind": "clm", "objective": "cwt", "learning_rate": 6e-4, "negatives": "micro"},
    "gpt_vanilla_160m": {**NEOX, "kind": "clm", "objective": "cross_entropy", "learning_rate": 6e-4},
}
REFERENCE = """dataset_name dataset_config hf_tokenizer output max_seq_len config num_nodes global_bs gpu_bs dataset
hf_path model_max_seq_len accelerator precision ckpt_path saved_ckpt_path ckpt_every run_name mask_prob replace_prob
random_token_prob text_key tokenized learning_rate weight_decay warmup_steps total_nb_steps adam_betas adam_eps mode
emb_loss_weight mlm_loss_weight lm_loss_weight loss_name contrastive_temperature schedule_type num_tokens pad_token_id
mask_token_id mask_ignore_token_ids"""
"""What its scripts for preparation, pretraining and fine-tuning take (reference: headless.md 1.1, 1.2, 1.4, 1.7)."""
PER_RUN = {
    "config_name": "org/model", "tokenizer_name": PYTHIA, "dataset_name": "owt2", "text_column": None,
    "per_device_train_batch_size": 32, "gradient_accumulation_steps": 8, "output_dir": "ckpts/first",
    "save_steps": 10_000, "attn_implementation": "sdpa", "fp16": False, "bf16": False, "mlm_probability": 0.15,
    "mask_share": 0.8, "random_share": 0.1, "trains": "all", "config_overrides": {},
}  # fmt: skip


@pytest.fixture(autouse=True)
def alone(monkeypatch, caplog):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    caplog.set_level(logging.WARNING)


def write(flags):
    return [str(word) for name, value in flags.items() for word in (f"--{name}", value)]


def load(name, flags, *words, stage=PretrainConfig):
    return load_config(stage, FILES / f"{name}.json", [*write(flags), *words])


def load_keys(tmp_path, keys, *words, **flags):
    path = tmp_path / "task.json"
    path.write_text(json.dumps(keys))
    return load_config(PretrainConfig, path, [*write({**FLAGS, **flags}), *words])


def values(config, names):
    return {name: getattr(config, name) for name in names}


@pytest.mark.parametrize("name", RUNS)
def test_every_published_run_is_read(name, caplog):
    config = load(name, FLAGS)
    assert values(config, {**PER_RUN, **RUNS[name]}) == {**PER_RUN, **RUNS[name]}
    said = [record.getMessage() for record in caplog.records]
    assert all("\n" not in line for line in said)
    assert len(said) == len(set(said))
    for translated in (*json.loads((FILES / f"{name}.json").read_text()), *FLAGS):
        if translated not in ("text_key", "tokenized", "learning_rate", "max_seq_len"):
            assert sum(f"{translated}" in line.replace("_checkpoint", "") for line in said), translated
    assert ("--negatives global" in caplog.text) == (RUNS[name]["objective"] == "cwt")
    assert "done otherwise than headless-lm" in caplog.text
    assert load(name, FLAGS, "--negatives", "global", "--learning_rate", "1").learning_rate == 1


def test_the_fine_tuning_of_a_decoder():
    flags = {name: FLAGS[name] for name in ("dataset", "global_bs", "gpu_bs", "num_nodes", "run_name")}
    wanted = {
        "objective": "cross_entropy", "kind": "clm", "learning_rate": 1e-4, "max_steps": 10_000, "save_steps": 2500,
        "lr_scheduler_type": "cosine", "warmup_steps": 1430, "model_name_or_path": "RUN", "config_name": None,
    }  # fmt: skip
    for mode, trains in (({}, "all"), ({"mode": "ft"}, "all"), ({"mode": "probe"}, "head")):
        config = load("gpt_vanilla_ft", {**flags, "ckpt_path": "RUN", **mode})
        assert values(config, [*wanted, "trains"]) == {**wanted, "trains": trains}
    with pytest.raises(UserError, match=r"--mode ft goes on.*--ckpt_path RUN"):
        load("gpt_vanilla_ft", {**flags, "mode": "ft"})
    with pytest.raises(UserError, match="--mode full is none of ft"):
        load("gpt_vanilla_ft", {**flags, "mode": "full", "ckpt_path": "RUN"})
    assert load_config(PretrainConfig, None, write({"ckpt_path": "RUN", "dataset": "d"})).objective == "cross_entropy"


def test_preprocessing_is_prepare():
    config = load("preprocess_owt2", {}, stage=PrepareConfig)
    wanted = {
        "dataset_name": "the_pile_openwebtext2", "dataset_config_name": "plain_text", "tokenizer_name": PYTHIA,
        "output_dir": "./dataset_storage/owt2_pythia.hf", "max_seq_length": 2048, "append_eos": None, "pretrains": True,
    }  # fmt: skip
    assert values(config, wanted) == wanted
    assert load("preprocess_owt2", {"output": "there"}, stage=PrepareConfig).output_dir == "there"
    task = load("mlm_headless", {"hf_tokenizer": PYTHIA, "dataset": "d", "hf_path": "p"}, stage=PrepareConfig)
    assert values(task, ["max_seq_length", "output_dir", "config_name"]) == {
        "max_seq_length": 128, "output_dir": None, "config_name": "p",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({"mask_prob": 0.3, "replace_prob": 0.7, "random_token_prob": 0.2},
         {"kind": "mlm", "objective": "both", "mlm_probability": 0.3, "mask_share": 0.7, "random_share": 0.2}),
        ({"mlm_loss_weight": 0.5, "emb_loss_weight": 2},
         {"objective": "both", "cwt_weight": 2.0, "cross_entropy_weight": 0.5, "negatives": "micro"}),
        ({"lm_loss_weight": 0, "schedule_type": "constant", "adam_betas": [0.8, 0.9], "adam_eps": 1e-6},
         {"kind": "clm", "objective": "cwt", "lr_scheduler_type": "constant_with_warmup",
          "training": {"adam_beta1": 0.8, "adam_beta2": 0.9, "adam_epsilon": 1e-6}}),
        ({"lm_loss_weight": 0, "contrastive_temperature": 0.5, "text_key": "body", "tokenized": False},
         {"temperature": 0.5, "text_column": "body", "max_seq_length": 512}),
        ({"lm_loss_weight": 0, "tokenized": False, "max_seq_len": 64, "warmup_steps": 5, "weight_decay": 0},
         {"max_seq_length": 64, "warmup_steps": 5, "weight_decay": 0}),
        ({"lm_loss_weight": 1, "emb_loss_weight": 0, "num_tokens": 9, "pad_token_id": 0, "mask_ignore_token_ids": [1]},
         {"objective": "cross_entropy"}),
        ({"text_key": "packed", "kind": "clm"}, {"objective": "both"}),
    ],
)  # fmt: skip
def test_keys_of_tasks(tmp_path, keys, wanted):
    assert values(load_keys(tmp_path, keys), wanted) == wanted


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ({"accelerator": "hf"}, {"attn_implementation": "sdpa"}),
        ({"accelerator": "xformers"}, {"attn_implementation": "sdpa"}),
        ({"accelerator": "flash_attention"}, {"attn_implementation": "flash_attention_2"}),
        ({"precision": "16-mixed"}, {"fp16": True, "bf16": False}),
        ({"precision": "bf16-mixed"}, {"fp16": False, "bf16": True}),
        ({"precision": "32"}, {"fp16": False, "bf16": False}),
        ({"ckpt_every": 50}, {"save_steps": 50}),
        ({"model_max_seq_len": 64}, {"config_overrides": {"max_position_embeddings": 64}, "max_seq_length": 64}),
        ({"max_steps": 3, "max_seq_length": 16}, {"max_steps": 3, "max_seq_length": 16}),
        ({"num_train_epochs": 2}, {"max_steps": 143_000, "num_train_epochs": 2}),
        ({"gpu_bs": 256}, {"per_device_train_batch_size": 256, "gradient_accumulation_steps": 1}),
    ],
)
def test_flags(flags, wanted):
    assert values(load("gpt_headless_70m", {**FLAGS, **flags}), wanted) == wanted


def test_flags_alone_leave_our_defaults():
    config = load_config(PretrainConfig, None, write(FLAGS))
    ours = PretrainConfig(config_name="c", tokenizer_name="t", dataset_name="d")
    assert values(config, ["learning_rate", "max_steps", "negatives"]) == values(
        ours, ["learning_rate", "max_steps", "negatives"]
    )
    assert config.gradient_accumulation_steps == 8


@pytest.mark.parametrize(
    ("keys", "flags", "parts"),
    [
        ({}, {"global_bs": 250}, ["--global_bs 250", "--gpu_bs 32", "224 or 256", "--gpu_bs 25"]),
        ({}, {"global_bs": 8}, ["--global_bs 8", "give --global_bs 32,", "--gpu_bs 8"]),
        ({}, {"gpu_bs": 0}, ["gpu_bs = '0'", "at least 1"]),
        ({}, {"global_bs": "many"}, ["global_bs = 'many'", "not a number"]),
        ({}, {"num_nodes": 2}, ["--num_nodes 2", "torchrun --nnodes=2", "turncoder submit pretrain"]),
        ({}, {"accelerator": "tpu"}, ["accelerator = 'tpu'", "hf, xformers, flash_attention"]),
        ({}, {"precision": "16-true"}, ["precision = '16-true'", "16-mixed"]),
        ({}, {"ckpt_path": "x/last.ckpt"}, ["last.ckpt", "pickle", "hf_publisher.py"]),
        ({}, {"mode": "mlm"}, ["hf_publisher.py", "head add RUN --output OUT", "turncoder publish OUT"]),
        ({}, {"mode": "add_head"}, ["hf_publisher.py", "--untied", "turncoder publish OUT"]),
        ({}, {"mode": "lm"}, ["hf_publisher.py", "turncoder publish RUN --to"]),
        ({}, {"ckpt_path": "elsewhere"}, ["elsewhere", "ckpts/first", "--model_name_or_path"]),
        ({}, {"per_device_train_batch_size": 4}, ["gpu_bs", "same key", "keep per_device_train_batch_size"]),
        ({}, {"output": "there"}, ["saved_ckpt_path", "same key", "keep output_dir"]),
        ({}, {"gobal_bs": 4}, ["--gobal_bs", "did you mean --global_bs"]),
        ({"emb_loss_weight": 0, "lm_loss_weight": 0}, {}, ["nothing to learn"]),
        ({"lm_loss_weight": 1, "mlm_loss_weight": 0}, {}, ["two tasks"]),
        ({"text_key": "packed"}, {}, ["neither mlm_loss_weight nor lm_loss_weight", "--kind mlm"]),
        ({"lm_loss_weight": 0, "loss_name": "ranking"}, {}, ["loss_name = 'ranking'"]),
        ({"lm_loss_weight": 0, "schedule_type": "linear"}, {}, ["schedule_type = 'linear'", "cosine, constant"]),
        ({"lm_loss_weight": 0, "adam_betas": 0.9}, {}, ["adam_betas = 0.9"]),
        ({"lm_loss_weight": 0, "max_steps": 3, "total_nb_steps": 4}, {}, ["total_nb_steps", "same key"]),
        ({"mlm_loss_weight": 0, "mask_token_id": 1}, {}, ["mask_token_id = 1", "mask_token_type"]),
        ({"mlm_loss_weight": 0, "replace_prob": 0.95}, {}, ["mask_share", "more than 1"]),
        ({"lm_loss_weight": 0}, {"kind": "gpt"}, ["kind = 'gpt'", "mlm, clm"]),
    ],
)
def test_what_cannot_be_honoured_is_refused(tmp_path, keys, flags, parts):
    with pytest.raises(UserError) as caught:
        load_keys(tmp_path, keys or {"lm_loss_weight": 0}, **flags)
    assert all(part in str(caught.value) for part in parts), caught.value


def test_global_bs_needs_gpu_bs():
    with pytest.raises(UserError, match="--global_bs needs --gpu_bs"):
        load("mlm_headless", {name: value for name, value in FLAGS.items() if name != "gpu_bs"})


@pytest.mark.parametrize(("processes", "passes"), [(1, 8), (2, 4), (8, 1)])
def test_processes_share_the_batch(monkeypatch, processes, passes):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    config = load("mlm_headless", {**FLAGS, "num_nodes": 2})
    assert (config.per_device_train_batch_size, config.gradient_accumulation_steps) == (32, passes)


def test_masked_models_cut_packed_rows(tmp_path, caplog):
    rows = {"packed": [list(range(200))] * 3}
    datasets.DatasetDict(train=datasets.Dataset.from_dict(rows)).save_to_disk(str(tmp_path / "packed"))
    config = load("mlm_headless", {**FLAGS, "dataset": tmp_path / "packed"})
    assert (config.train_file, config.max_seq_length) == (str(tmp_path / "packed"), 128)
    assert (config.per_device_train_batch_size, config.gradient_accumulation_steps) == (64, 8)
    assert "each is 2 of up to 128 tokens" in caplog.text
    config = load("gpt_headless_70m", {**FLAGS, "dataset": tmp_path / "packed"})
    assert (config.max_seq_length, config.per_device_train_batch_size) == (200, 32)


def test_a_run_is_resumed_by_its_folder(caplog):
    load("mlm_headless", {**FLAGS, "ckpt_path": "ckpts/first/checkpoints/checkpoint-10"})
    assert "ckpt_path is ignored: the same run folder resumes" in caplog.text


def test_other_stages_do_not_know_these_names():
    with pytest.raises(UserError, match="--global_bs is not a known flag"):
        load_config(MntpConfig, None, write({"global_bs": 8, "model_name_or_path": "m", "train_file": "t"}))


def test_a_flag_that_says_nothing_of_the_text_is_no_flag_of_prepare():
    with pytest.raises(UserError, match=r"--global_bs is not a known flag(?!; did you mean --global_bs)"):
        load("mlm_headless", {"hf_tokenizer": PYTHIA, "dataset": "d", "global_bs": 8}, stage=PrepareConfig)


def test_new_names_exist():
    ours = {f.name for f in (*fields(PretrainConfig), *fields(PrepareConfig))} | set(training_argument_names())
    assert set(legacy_headless.RENAMED.values()) <= ours
    assert not legacy_headless.NAMES & ours
    for defaults in legacy_headless.DEFAULTS.values():
        assert defaults.keys() <= ours
    known = {*legacy_headless.NAMES, "config", "learning_rate", "weight_decay", "warmup_steps", "run_name"}
    assert set(REFERENCE.split()) - known == {"dataset_name", "output"}  # which have these names here too


def test_migrate_page_holds_the_tables():
    page = (Path(__file__).parents[2] / "docs" / "migrate.md").read_text(encoding="utf-8")
    table = page.partition("| what | headless-lm |")[2].partition("\n\n")[0]
    assert [line.split(" | ")[0].strip("| ") for line in table.splitlines()[2:]] == list(legacy_headless.DIFFERENCES)
    for table in (legacy_headless.RENAMED, legacy_headless.IGNORED):
        for name, meaning in table.items():
            assert f"| `{name}` | {meaning} |" in page or f"| `{name}` | `{meaning}` |" in page, name
    for names in legacy_values.READERS:
        assert f"| {', '.join(f'`{name}`' for name in names)} |" in page, names


@pytest.fixture(scope="module")
def place(shared, tmp_path_factory):
    """Tiny architectures, a text, and a packed data set as headless-lm's preprocess.py leaves one."""
    home = tmp_path_factory.mktemp("headless")
    BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50304
    ).save_pretrained(home / "bert")
    GPTNeoXConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50304
    ).save_pretrained(home / "neox")
    lines = (shared / "data/tinystories_sample/tiny_stories.txt").read_text(encoding="utf8").splitlines()[:3000]
    texts = [line for line in lines if line.strip()]
    datasets.DatasetDict(train=datasets.Dataset.from_dict({"text": texts})).save_to_disk(str(home / "raw"))
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / "gpt-neox-20b")
    ids = [token for ids in tokenizer(texts)["input_ids"] for token in ids]
    rows = [ids[start : start + 64] for start in range(0, len(ids) - 63, 64)]
    datasets.Dataset.from_dict({"packed": rows}).save_to_disk(str(home / "packed"))
    return home


def run_words(name, shared, place, *, dataset="packed", **more):
    """The command line of a published run with paths, ids and steps replaced."""
    flags = {
        **FLAGS, "hf_path": place / ("bert" if name.startswith("mlm") else "neox"), "num_nodes": 1,
        "hf_tokenizer": shared / "tokenizers" / "gpt-neox-20b", "dataset": place / dataset, "global_bs": 8, "gpu_bs": 2,
        "model_max_seq_len": 64, "accelerator": "hf", "precision": "32-true", "max_steps": 2, "max_eval_samples": 4,
        **more,
    }  # fmt: skip
    if name.startswith("mlm"):
        flags["model_max_seq_len"] = 128
    return ["pretrain", "--config", str(FILES / f"{name}.json"), *write(flags)]


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("mlm_headless", "gpt_headless_70m") else pytest.param(name, marks=pytest.mark.slow)
        for name in RUNS
    ],
)
def test_every_published_run_runs(name, shared, place, tmp_path, capsys):
    assert main(run_words(name, shared, place, saved_ckpt_path=tmp_path, run_name=name)) == 0, capsys.readouterr().err
    record = json.loads((tmp_path / name / "run.json").read_text())
    assert record["trained"]["steps"] == 2
    assert record["results"]["bits_per_byte"] > 0
    told = json.loads((tmp_path / name / "model" / "turncoder.json").read_text())
    assert (told["kind"], told["objective"]) == (RUNS[name]["kind"], RUNS[name]["objective"])
    assert record["data"]["train"]["blocks"] == pytest.approx(
        0.95 * len(datasets.load_from_disk(place / "packed")), rel=0.1
    )


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ft", "probe"])
def test_the_fine_tuning_runs(shared, place, tmp_path, capsys, mode):
    assert main(run_words("gpt_headless_70m", shared, place, saved_ckpt_path=tmp_path, run_name="first")) == 0
    assert main(["head", "add", str(tmp_path / "first"), "--untied", "--output", str(tmp_path / "headed")]) == 0
    flags = {
        "ckpt_path": tmp_path / "headed", "mode": mode, "dataset": place / "packed", "global_bs": 4, "gpu_bs": 2,
        "num_nodes": 1, "saved_ckpt_path": tmp_path, "run_name": "tuned", "max_steps": 2, "max_eval_samples": 4,
    }  # fmt: skip
    words = ["head", "finetune", str(FILES / "gpt_vanilla_ft.json"), *write(flags)]
    assert main([*words, "--dry_run"]) == 0, capsys.readouterr().err
    assert main(words) == 0, capsys.readouterr().err
    record = json.loads((tmp_path / "tuned" / "run.json").read_text())
    assert (record["parameters"]["trainable"] < record["parameters"]["total"]) == (mode == "probe")


def test_training_finds_what_preprocessing_made(shared, place, tmp_path, capsys, monkeypatch):
    table = json.loads((FILES / "preprocess_owt2.json").read_text())
    table |= {"dataset_name": str(place / "raw"), "hf_tokenizer": str(shared / "tokenizers" / "gpt-neox-20b")}
    table |= {"output": str(tmp_path / "owt2.hf"), "max_seq_len": 64}
    (tmp_path / "preprocess.json").write_text(json.dumps(table))
    assert main(["prepare", "--config", str(tmp_path / "preprocess.json")]) == 0, capsys.readouterr().err
    assert str(tmp_path / "owt2.hf") in capsys.readouterr().out
    monkeypatch.setattr(TokenPass, "run", lambda *_: pytest.fail("the text was tokenised again"))
    words = run_words("gpt_headless_70m", shared, place, saved_ckpt_path=tmp_path, dataset=tmp_path / "owt2.hf")
    assert main(words) == 0, capsys.readouterr().err
