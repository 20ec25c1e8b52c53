import json
import logging
from dataclasses import fields
from pathlib import Path

import pytest

from turncoder import legacy
from turncoder.config import MntpConfig, SimcseConfig, load_config
from turncoder.errors import UserError
from turncoder.settings import training_argument_names

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
CUSTOM = ["lora_dropout", "lora_r", "mask_token_type", "stop_after_n_steps", "data_collator_type"]


@pytest.mark.parametrize("name", [*MODEL, *DATA, *CUSTOM])
def test_every_key_of_llm2vecs_mntp_has_an_answer(name):
    ours = {f.name for f in fields(MntpConfig)}
    assert name in ours or name in legacy.OLD_NAMES


def test_new_names_exist():
    ours = {f.name for f in (*fields(MntpConfig), *fields(SimcseConfig))} | set(training_argument_names())
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


def test_both_names_of_a_key():
    for raw in ({"dtype": "auto", "torch_dtype": "auto"}, {"torch_dtype": "auto", "dtype": "auto"}):
        with pytest.raises(UserError, match="same key"):
            legacy.translate(raw, "a.json: ")


def test_trackers_as_a_list():
    assert legacy.translate({"report_to": ["wandb", "tensorboard"]}, "")[0] == {"report_to": "wandb,tensorboard"}


def test_migrate_page_holds_the_tables():
    page = (Path(__file__).parents[1] / "docs" / "migrate.md").read_text(encoding="utf-8")
    for row in legacy.DIFFERENCES:
        assert f"| {row.what} | {row.theirs} | {row.ours} | {row.why} | {row.back} |" in page, row.what
    for table in (legacy.RENAMED, legacy.IGNORED, legacy.REFUSED):
        for name, meaning in table.items():
            assert f"| `{name}` | {meaning} |" in page or f"| `{name}` | `{meaning}` |" in page, name


def test_notice_is_one_line_with_every_difference_that_can_be_switched_back():
    for stage in legacy.ALL:
        notice = legacy.tell_differences(stage)
        assert "\n" not in notice
        for row in legacy.DIFFERENCES:
            assert (row.what in notice) == ("--as-llm2vec" in row.back and stage in row.stages)


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
