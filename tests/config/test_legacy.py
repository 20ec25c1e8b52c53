import json
import logging
from dataclasses import fields
from pathlib import Path

import pytest

from turncoder.config import legacy
from turncoder.config.settings import training_argument_names
from turncoder.config.stages import MntpConfig, SimcseConfig, SupervisedConfig, load_config
from turncoder.config.words import WordsConfig
from turncoder.errors import UserError

# What LLM2Vec's run_mntp.py takes (reference: llm2vec.md 1.7)
MODEL = [
    "model_name_or_path",
    "model_type",
    "config_overrides",
    "config_name",
    "tokenizer_name",
    "cache_dir",
    "use_fast_tokenizer",
    "model_revision",
    "token",
    "use_auth_token",
    "trust_remote_code",
    "torch_dtype",
    "attn_implementation",
    "low_cpu_mem_usage",
]
DATA = [
    "dataset_name",
    "dataset_config_name",
    "train_file",
    "validation_file",
    "overwrite_cache",
    "validation_split_percentage",
    "max_seq_length",
    "preprocessing_num_workers",
    "mlm_probability",
    "line_by_line",
    "pad_to_max_length",
    "max_train_samples",
    "max_eval_samples",
    "streaming",
]
# What its run_simcse.py and run_supervised.py take beside those (llm2vec.md 1.8, 1.9)
CONTRAST = [
    "peft_model_name_or_path",
    "bidirectional",
    "pooling_mode",
    "dataset_file_path",
    "loss_class",
    "loss_scale",
    "experiment_id",
    "max_seq_length",
    "lora_r",
    "lora_dropout",
    "stop_after_n_steps",
    "attn_implementation",
    "torch_dtype",
]
CUSTOM = ["lora_dropout", "lora_r", "mask_token_type", "stop_after_n_steps", "data_collator_type"]


@pytest.mark.parametrize("name", [*MODEL, *DATA, *CUSTOM])
def test_every_key_of_llm2vecs_mntp_has_an_answer(name):
    ours = {f.name for f in fields(MntpConfig)}
    assert name in ours or name in legacy.OLD_NAMES


@pytest.mark.parametrize("name", CONTRAST)
@pytest.mark.parametrize("stage", [SimcseConfig, SupervisedConfig])
def test_every_key_of_llm2vecs_contrastive_stages_has_an_answer(stage, name):
    assert name in {f.name for f in fields(stage)} or name in legacy.OLD_NAMES


def test_new_names_exist():
    ours = {f.name for f in (*fields(MntpConfig), *fields(SimcseConfig), *fields(WordsConfig))} | set(
        training_argument_names()
    )
    assert set(legacy.RENAMED.values()) | set(legacy.ALIASES.values()) <= ours


def test_tables_do_not_contradict_each_other():
    tables = [set(legacy.RENAMED), set(legacy.IGNORED), set(legacy.REFUSED), set(legacy.ALIASES)]
    assert sum(map(len, tables)) == len(set.union(*tables))
    ours = {f.name for f in fields(MntpConfig)}
    assert not ours & set.union(*tables)


def test_translations_are_said_once_each():
    raw = {"torch_dtype": "bfloat16", "evaluation_strategy": "steps", "overwrite_output_dir": True, "lora_r": 4}
    keys, notices = legacy.translate(raw, "a.json: ")
    assert keys == {"dtype": "bfloat16", "eval_strategy": "steps", "lora_r": 4}
    assert len(notices) == 3
    assert all(any(name in notice for notice in notices) for name in ("torch_dtype", "evaluation_strategy"))


@pytest.mark.parametrize("value", [None, False, "", []])
def test_keys_that_ask_for_nothing_are_dropped_without_a_word(value):
    assert legacy.translate({"streaming": value, "push_to_hub": value}, "") == ({}, [])


@pytest.mark.parametrize("name", legacy.REFUSED)
def test_what_cannot_be_honoured_is_refused(name):
    with pytest.raises(UserError, match=name):
        legacy.translate({name: True}, "a.json: ")


def test_an_adapter_that_is_null_is_none(tmp_path):
    path = tmp_path / "simcse.json"
    path.write_text('{"model_name_or_path": "m", "train_file": "t.txt", "peft_model_name_or_path": null}')
    assert load_config(SimcseConfig, path).adapters == ()


def test_both_names_of_a_key():
    for raw in ({"dtype": "auto", "torch_dtype": "auto"}, {"torch_dtype": "auto", "dtype": "auto"}):
        with pytest.raises(UserError, match="same key"):
            legacy.translate(raw, "a.json: ")


def test_trackers_as_a_list():
    assert legacy.translate({"report_to": ["wandb", "tensorboard"]}, "")[0] == {"report_to": "wandb,tensorboard"}


def test_migrate_page_holds_the_tables():
    page = (Path(__file__).parents[2] / "docs" / "migrate.md").read_text(encoding="utf-8")
    table = page.partition("| what | stages |")[2].partition("\n\n")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    assert all(len(row) == 6 for row in rows)
    switched = {what: tuple(stages.split(", ")) for what, stages, *_, back in rows if "--as-llm2vec" in back}
    assert switched == legacy.SWITCHED_BACK
    assert {what: theirs.rstrip(".") for what, stages, theirs, *_ in rows if stages == "words"} == legacy.WORD_FAULTS
    for table in (legacy.RENAMED, legacy.IGNORED, legacy.REFUSED):
        for name, meaning in table.items():
            assert f"| `{name}` | {meaning} |" in page or f"| `{name}` | `{meaning}` |" in page, name


def test_notice_is_one_line_with_every_difference_that_can_be_switched_back():
    for stage in legacy.ALL:
        notice = legacy.tell_differences(stage)
        assert "\n" not in notice
        for what, stages in legacy.SWITCHED_BACK.items():
            assert (what in notice) == (stage in stages)


@pytest.mark.parametrize("as_llm2vec", [False, True])
def test_files_of_others_run_unchanged(shared, caplog, as_llm2vec):
    files = sorted((shared / "configs").glob("*/train_configs/mntp/*.json"))
    files.append(shared / "configs" / "bg2vec" / "model_configurations" / "bggpt-7b.json")
    assert len(files) == 6
    for file in files:
        caplog.clear()
        raw = json.loads(file.read_text())
        with caplog.at_level(logging.WARNING):
            config = load_config(MntpConfig, file, ["--as-llm2vec"] if as_llm2vec else [])
        kept = {legacy.RENAMED.get(k, k): v for k, v in raw.items() if k not in legacy.IGNORED}
        for name, value in kept.items():
            assert config.training.get(name, getattr(config, name, None)) == value, (file, name)
        said = [record.getMessage() for record in caplog.records]
        assert len(said) == len(set(said))
        assert (legacy.tell_differences("mntp") in said) != as_llm2vec


FILES_OF_CONTRAST = {
    SimcseConfig: ["llm2vec/train_configs/simcse/*.json", "bg2vec/model_configurations/*-simcse.json"],
    SupervisedConfig: ["llm2vec/train_configs/supervised/*.json"],
}


@pytest.mark.parametrize("stage", FILES_OF_CONTRAST)
def test_contrastive_files_of_others_run_unchanged(shared, caplog, stage):
    logging.getLogger("turncoder").propagate = True
    files = sorted(file for glob in FILES_OF_CONTRAST[stage] for file in (shared / "configs").glob(glob))
    assert len(files) == 5
    for file in files:
        caplog.clear()
        raw = json.loads(file.read_text())
        config = load_config(stage, file)
        today = {**legacy.RENAMED, **legacy.ALIASES, "dataset_file_path": "train_file"}
        kept = {today.get(name, name): value for name, value in raw.items() if name not in legacy.IGNORED}
        if "train_file" in kept:
            del kept["dataset_name"]
        kept["adapters"] = (kept["adapters"],)
        for name, value in kept.items():
            assert config.training.get(name, getattr(config, name, None)) == value, (file, name)
        assert config.loss_scale == raw.get("loss_scale", 50)
        said = [record.getMessage() for record in caplog.records]
        assert len(said) == len(set(said))
        assert legacy.tell_differences(config.STAGE) in said
        for name in raw:
            asks = raw[name] not in legacy.ASKS_NOTHING.get(name, (None, False))
            told = name in legacy.RENAMED or name == "dataset_file_path" or (name in legacy.IGNORED and asks)
            assert sum(line.startswith(f"{file}: {name} is ") for line in said) == told, (file, name)


@pytest.mark.parametrize("stage", [SimcseConfig, SupervisedConfig])
@pytest.mark.parametrize(
    ("name", "text", "loss_scale", "bidirectional"),
    [
        ("theirs.json", '{"stop_after_n_steps": 1000}', 50, False),
        ("theirs.json", '{"stop_after_n_steps": 1000, "loss_scale": 7, "bidirectional": true}', 7, True),
        ("theirs.json", '{"stop_after_n_steps": 1000, "loss_scale": null, "bidirectional": null}', None, None),
        ("mine.json", '{"lora_r": 4}', None, None),
        ("mine.toml", "stop_after_n_steps = 1000", None, None),
    ],
)
def test_llm2vecs_defaults_are_for_its_files_alone(tmp_path, stage, name, text, loss_scale, bidirectional):
    (tmp_path / name).write_text(text)
    config = load_config(stage, tmp_path / name, ["--model_name_or_path", "m", "--train_file", "t"])
    assert (config.loss_scale, config.bidirectional) == (loss_scale, bidirectional)
    won = load_config(stage, tmp_path / name, ["--model_name_or_path", "m", "--train_file", "t", "--loss_scale", "3"])
    assert won.loss_scale == 3


def test_temperature_in_a_file_of_llm2vec(tmp_path):
    (tmp_path / "a.json").write_text('{"stop_after_n_steps": 9, "temperature": 0.1}')
    config = load_config(SimcseConfig, tmp_path / "a.json", ["--model_name_or_path", "m", "--train_file", "t"])
    assert (config.temperature, config.loss_scale) == (0.1, None)


def test_the_class_of_the_loss_and_the_name_of_the_experiment(tmp_path, caplog):
    logging.getLogger("turncoder").propagate = True
    flags = ["--model_name_or_path", "m", "--train_file", "t"]
    path = tmp_path / "a.json"
    path.write_text('{"loss_class": "HardNegativeNLLLoss", "experiment_id": "mine"}')
    load_config(SupervisedConfig, path, flags)
    assert "experiment_id is ignored: --output" in caplog.text and "loss_class" not in caplog.text
    path.write_text('{"loss_class": "MarginLoss"}')
    with pytest.raises(UserError, match="loss_class = 'MarginLoss' cannot be honoured"):
        load_config(SupervisedConfig, path, flags)
