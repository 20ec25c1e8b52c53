import json
import tomllib
import typing
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turncoder.commands import COMMANDS
from turncoder.config import settings
from turncoder.config.encoding import EncodeConfig
from turncoder.config.files import plain_json
from turncoder.config.flags import read_flags
from turncoder.config.glue import GlueConfig
from turncoder.config.language import LanguageConfig
from turncoder.config.sentences import SentencesConfig
from turncoder.config.stages import (
    MAY_CHANGE,
    MntpConfig,
    PrepareConfig,
    SimcseConfig,
    SupervisedConfig,
    TurnConfig,
    differences,
    load_config,
    to_dict,
    to_toml,
)
from turncoder.config.values import coerce, list_kinds, read_literal
from turncoder.config.words import WordsConfig
from turncoder.errors import UserError

MINIMAL = ["--model_name_or_path", "m", "--train_file", "t.txt"]
STAGES = {"mntp": MntpConfig, "simcse": SimcseConfig, "supervised": SupervisedConfig}


def load(*flags, path=None):
    return load_config(MntpConfig, path, [*MINIMAL, *flags])


def write(tmp_path, text, name="run.json"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_are_llm2vecs():
    config = load()
    expected = {
        "mlm_probability": 0.15,
        "lora_r": 8,
        "lora_dropout": 0.05,
        "mask_token_type": "blank",
        "data_collator_type": "default",
        "stop_after_n_steps": 10000,
        "learning_rate": 5e-5,
        "num_train_epochs": 3,
        "per_device_train_batch_size": 8,
        "validation_split_percentage": 5,
        "attn_implementation": "sdpa",
        "lr_scheduler_type": "linear",
        "logging_steps": 500,
        "save_steps": 500,
        "seed": 42,
    }
    assert {name: getattr(config, name) for name in expected} == expected


def test_flags_win_over_the_file(tmp_path):
    path = write(tmp_path, 'lora_r = 4\nlearning_rate = 1e-3\n[training]\noptim = "adafactor"\n', "run.toml")
    config = load("--lora_r", "32", "--training.adam_beta2", "0.95", path=path)
    assert (config.lora_r, config.learning_rate) == (32, 1e-3)
    assert config.training == {"optim": "adafactor", "adam_beta2": 0.95}


def test_any_training_argument_from_the_top_level_of_a_file(tmp_path):
    path = write(tmp_path, '{"optim": "adafactor", "adam_beta2": 0.9, "dataloader_prefetch_factor": 3}')
    assert load(path=path).training == {"optim": "adafactor", "adam_beta2": 0.9, "dataloader_prefetch_factor": 3}


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--no-do-eval"], "do_eval", False),
        (["--no_do_eval"], "do_eval", False),
        (["--do_eval", "False"], "do_eval", False),
        (["--do-eval=no"], "do_eval", False),
        (["--bf16"], "bf16", True),
        (["--bf16", "True"], "bf16", True),
        (["--max_steps", "-1"], "max_steps", -1),
        (["--learning-rate=1e-4"], "learning_rate", 1e-4),
        (["--adapters", "a", "b"], "adapters", ("a", "b")),
        (["--adapters"], "adapters", ()),
        (["--lora_target_modules=q_proj"], "lora_target_modules", ("q_proj",)),
        (["--stop_after_n_steps", "none"], "stop_after_n_steps", None),
        (["--output", "runs/a"], "output_dir", "runs/a"),
        (["--training.lora_r", "3"], "lora_r", 3),
        (["--mask_token_type", "<unused0>"], "mask_token_type", "<unused0>"),
        (["--warmup_steps", "0.1"], "warmup_steps", 0.1),
    ],
)
def test_spellings_of_flags(words, name, value):
    assert getattr(load(*words), name) == value


def sample(hint):
    """Give a value of a key as it is typed, and as it is read; None for a table of keys."""
    kind = next(one for one in list_kinds(hint) if one is not type(None))
    if typing.get_origin(kind) is typing.Literal:
        return (typing.get_args(kind)[-1],) * 2
    if typing.get_origin(kind) is tuple:
        typed, read = sample(typing.get_args(kind)[0])
        return typed, (read,)
    return {bool: ("yes", True), int: ("7", 7), float: ("0.5", 0.5), str: ("word", "word")}.get(kind)


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if is_dataclass(command.flags)])
def test_every_flag_of_every_command_means_what_it_says(name, caplog):
    cls = COMMANDS[name].flags
    hints = typing.get_type_hints(cls)
    pairs = {f.name: pair for f in fields(cls) if (pair := sample(hints[f.name]))}
    typed, read = ({key: pair[place] for key, pair in pairs.items()} for place in (0, 1))
    switches = [key for key, value in read.items() if value is True]

    def check(words, wanted):
        flags, others = read_flags(cls, words)
        entries = settings._gather(cls, flags, "--")
        assert {key: coerce(entry.value, hints[key], entry.said) for key, entry in entries.items()} == wanted
        assert not others and not caplog.messages

    for form in (str, lambda key: key.replace("_", "-")):
        check([word for key, value in typed.items() for word in (f"--{form(key)}", value)], read)
        check([f"--{form(key)}={value}" for key, value in typed.items()], read)
        check([f"--{form(key)}" for key in switches], dict.fromkeys(switches, True))
        check([f"--no-{form(key)}" for key in switches], dict.fromkeys(switches, False))


def test_a_key_that_is_an_old_name_elsewhere(tmp_path, caplog):
    """``batch_size`` is what LLM2Vec's word tasks call another key, and lm-eval's own name."""
    config = LanguageConfig(model_name_or_path="m", tasks=("sciq",), batch_size=4)
    assert load_config(LanguageConfig, write(tmp_path, to_toml(config), "config.toml")) == config
    assert load_config(LanguageConfig, write(tmp_path, json.dumps(to_dict(config)))) == config
    assert not caplog.messages


def test_an_old_name_of_a_key_that_is_not_had_is_unknown_as_it_was_typed(caplog):
    with pytest.raises(UserError, match=r"^--batch_size is not a known flag; did you mean --batch_tokens\?"):
        load_config(EncodeConfig, None, ["--model_name_or_path", "m", "--batch_size", "7"])
    assert not caplog.messages


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--learning_rat", "3"], ["--learning_rat", "did you mean --learning_rate?"]),
        (["--adam_beta", "3"], ["did you mean --adam_beta"]),
        (["--batch_size", "3"], ["--batch_size is not a known flag; did you mean --per_device_train_batch_size?"]),
        (["--lora_rank", "3"], ["did you mean --lora_r?"]),
        (["--lr", "3"], ["did you mean --learning_rate?"]),
        (["--epochs", "3"], ["did you mean --num_train_epochs?"]),
        (["--model", "m"], ["did you mean --model_name_or_path?"]),
        (["--zzzzqqqq", "3"], ["--zzzzqqqq", "--help"]),
        (["--learning_rate", "abc"], ["--learning_rate", "'abc'", "a number"]),
        (["--lora_r", "2.5"], ["--lora_r", "'2.5'", "whole number"]),
        (["--dtype", "int8"], ["--dtype", "'int8'", "bfloat16"]),
        (["--bf16=maybe"], ["--bf16", "'maybe'", "true or false"]),
        (["--lora_r"], ["--lora_r needs a value"]),
        (["--adapters", "one", "--adapter", "two"], ["--adapter is given twice", "spaces between"]),
        (["word"], ["'word'"]),
        (["--learning_rate", "nan"], ["--learning_rate", "nan"]),
        (["--mlm_probability", "0"], ["mlm_probability = 0.0", "above 0"]),
        (["--mlm_probability", "1.5"], ["mlm_probability = 1.5", "at most 1"]),
        (["--lora_r", "0"], ["lora_r = 0", "at least 1"]),
        (["--lora_dropout", "1"], ["lora_dropout", "below 1"]),
        (["--max_steps", "0"], ["max_steps = 0", "-1"]),
        (["--max_seq_length", "1"], ["max_seq_length = 1"]),
        (["--dataset_name", "wikitext"], ["dataset_name = 'wikitext'", "train_file = 't.txt'", "keep one"]),
        (["--dataset_config_name", "x"], ["dataset_config_name", "dataset_name"]),
        (["--bf16", "--fp16"], ["bf16", "fp16"]),
        (["--data_collator_type", "unmasked"], ["unmasked", "--no-bidirectional"]),
        (["--early_stopping_patience", "3"], ["early_stopping_patience", "eval_strategy"]),
        (["--save_strategy", "best"], ["save_strategy = 'best'", "eval_strategy"]),
        (["--no-do-train", "--no-do-eval"], ["do_train", "do_eval"]),
        (["--push_to_hub"], ["push_to_hub"]),
    ],
)
def test_wrong_flags_are_one_line_that_names_them(words, parts):
    with pytest.raises(UserError) as caught:
        load(*words)
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("missing", ["model_name_or_path", "train_file"])
def test_what_must_be_given(missing):
    flags = {"model_name_or_path": "m", "train_file": "t.txt"}
    del flags[missing]
    with pytest.raises(UserError, match=missing):
        load_config(MntpConfig, None, [word for name, value in flags.items() for word in (f"--{name}", value)])


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("a.json", '{"learning_rat": 1}', ["a.json", "learning_rat", "did you mean learning_rate?"]),
        ("a.json", '{"learning_rate": "abc"}', ["a.json", "learning_rate", "'abc'", "number"]),
        ("a.json", '{"lora_r": true}', ["lora_r", "whole number"]),
        ("a.json", '{"adapters": 3}', ["adapters", "list of names"]),
        ("a.json", '{"lora_r": 1,\n "lora_r": 2}', ["lora_r", "twice"]),
        ("a.json", '{"lora_r": 1\n "x": 2}', ["a.json", "not valid JSON", "line 2"]),
        ("a.json", "[1]", ["a.json", "list"]),
        ("a.toml", "lora_r = = 1", ["a.toml", "not valid TOML", "line 1"]),
        ("a.toml", "training = 3", ["training"]),
        ("a.toml", "lora_r = 2\n[training]\nlora_r = 3", ["lora_r", "twice"]),
        ("a.yaml", "lora_r: 1", ["a.yaml", ".toml or .json"]),
    ],
)
def test_wrong_files_are_one_line_that_names_file_and_key(tmp_path, name, text, parts):
    path = write(tmp_path, text, name)
    with pytest.raises(UserError) as caught:
        load(path=path)
    assert "\n" not in str(caught.value)
    assert all(part in str(caught.value) for part in parts), caught.value


def test_a_file_that_is_missing_or_not_utf8(tmp_path):
    with pytest.raises(UserError, match=r"gone\.json"):
        load(path=tmp_path / "gone.json")
    (tmp_path / "a.json").write_bytes(b'{"model_name_or_path": "\xff"}')
    with pytest.raises(UserError, match="UTF-8"):
        load(path=tmp_path / "a.json")


def test_a_tilde_that_no_shell_has_read_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    path = write(tmp_path, 'model_name_or_path = "~/m"\ntrain_file = "t"\nadapters = ["~/a", "b"]\n', "run.toml")
    config = load_config(MntpConfig, path, ["--output=~/runs/x"])
    assert (config.model_name_or_path, config.adapters, config.output_dir) == (
        "/home/me/m", ("/home/me/a", "b"), "/home/me/runs/x",
    )  # fmt: skip
    assert MntpConfig(model_name_or_path="~nobody-here", train_file="t").model_name_or_path == "~nobody-here"


def test_a_number_in_a_file_is_what_it_is_as_a_flag(tmp_path):
    path = write(tmp_path, 'model_name_or_path = "m"\ntrain_file = "t"\nlayer = -2\n', "run.toml")
    plain = ["--model_name_or_path", "m", "--train_file", "t", "--layer", "-2"]
    assert (
        load_config(WordsConfig, path)
        == load_config(WordsConfig, None, plain)
        == WordsConfig(model_name_or_path="m", train_file="t", layer=-2)
    )
    with pytest.raises(UserError, match="layer = True is not text"):
        WordsConfig(model_name_or_path="m", train_file="t", layer=True)


def test_a_flag_takes_the_place_of_the_files_corpus(tmp_path, caplog):
    path = write(tmp_path, '{"model_name_or_path": "m", "dataset_name": "w", "dataset_config_name": "c"}')
    config = load_config(MntpConfig, path, ["--train_file", "t.txt"])
    assert (config.dataset_name, config.dataset_config_name, config.train_file) == (None, None, "t.txt")
    assert "dataset_name" in caplog.text


def test_json_with_comments_and_trailing_commas():
    text = """// head
    {
      "a": "http://x//y", // a comment, with a comma
      "b": ["1,]", "\\"//\\"",], /* block, ] */
      "c": {"d": 1, /* } */ },
    }
    """
    assert json.loads(plain_json(text)) == {"a": "http://x//y", "b": ["1,]", '"//"'], "c": {"d": 1}}
    assert plain_json(text).count("\n") == text.count("\n")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_plain_json_leaves_json_as_it_is(value):
    for indent in (None, 1):
        text = json.dumps(value, indent=indent)
        assert plain_json(text) == text
        # "[" and "{" make every place behind a value one where a comma may trail
        assert json.loads(plain_json(f"[{text}, // end, ]\n]")) == [value]


configs = st.builds(
    MntpConfig,
    model_name_or_path=st.text(min_size=1, max_size=20),
    train_file=st.text(min_size=1, max_size=20).filter(lambda name: name.lower() not in ("none", "null")),
    adapters=st.lists(st.text(max_size=5), max_size=3).map(tuple),
    learning_rate=st.floats(1e-9, 1.0),
    mlm_probability=st.floats(0.001, 1.0),
    stop_after_n_steps=st.none() | st.integers(1, 10**6),
    dtype=st.sampled_from([None, "auto", "bfloat16"]),
    max_seq_length=st.none() | st.integers(2, 4096),
    bf16=st.booleans(),
    eval_steps=st.none() | st.floats(0.01, 500),
    training=st.dictionaries(
        st.sampled_from(["optim", "adam_beta2", "torch_compile", "optim_args"]),
        st.text(min_size=1, max_size=9) | st.booleans() | st.integers(0, 9),
    ),
)


@given(configs)
def test_toml_is_read_back_to_an_equal_config(tmp_path_factory, config):
    text = to_toml(config)
    tomllib.loads(text)
    path = tmp_path_factory.mktemp("config") / "config.toml"
    path.write_text(text, encoding="utf-8")
    read = load_config(MntpConfig, path)
    literal = {name: read_literal(value) for name, value in config.training.items()}
    assert read == replace(config, training=literal)


def test_a_string_that_says_none_cannot_be_a_name():
    assert load("--text_column", "none").text_column is None


def test_python_gets_the_checks_of_files():
    base = {"model_name_or_path": "m", "train_file": "t.txt"}
    assert MntpConfig(**base, adapters=["a"], lora_r="4").adapters == ("a",)
    with pytest.raises(UserError, match="dtype"):
        MntpConfig(**base, dtype="int8")


def test_a_run_lies_in_the_home_that_it_is_sent_to(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert MntpConfig(model_name_or_path="m", train_file="t", output_dir="~/runs/x").output_dir == "/home/me/runs/x"
    assert EncodeConfig(model_name_or_path="m", input_file="t", output_dir="~/x.npy").output_dir == "/home/me/x.npy"


def test_as_llm2vec_sets_what_it_names():
    config = load("--as-llm2vec")
    assert (config.isolate_documents, config.train_head, config.evaluate_step_zero) == (False, True, False)


def test_records_hold_no_actions():
    config = load("--overwrite", "--dry_run")
    assert not {"overwrite", "dry_run"} & to_dict(config).keys()
    assert "overwrite" not in to_toml(config)
    json.dumps(to_dict(config))


def test_differences():
    old, new = to_dict(load("--output", "a")), to_dict(load("--lora_r", "9", "--output", "b"))
    assert sorted(differences(old, new)) == ["lora_r: 8 -> 9", "output_dir: 'a' -> 'b'"]
    assert differences(old, new, ignore=MAY_CHANGE) == ["lora_r: 8 -> 9"]
    assert differences({}, {"x": 1}) == ["x: '(not set)' -> 1"]


def test_keys_that_may_change_exist():
    names = {f.name for f in fields(MntpConfig)}
    assert names >= MAY_CHANGE


def test_every_key_says_what_it_is():
    home = Path(settings.__file__).parent
    names = ("stages.py", "encoding.py", "keys.py")
    source = "".join((home / name).read_text(encoding="utf-8") for name in names).splitlines()
    for f in (*fields(MntpConfig), *fields(SimcseConfig), *fields(SupervisedConfig), *fields(EncodeConfig)):
        place = next(n for n, line in enumerate(source) if line.startswith(f"    {f.name}: "))
        assert source[place + 1].startswith('    """'), f.name


def test_prepare_takes_a_training_config(tmp_path):
    path = write(
        tmp_path, '{"model_name_or_path": "m", "train_file": "t.txt", "lora_r": 4, "output_dir": "run", "optim": "x"}'
    )
    config = load_config(PrepareConfig, path)
    assert (config.train_file, config.output_dir) == ("t.txt", None)
    assert load_config(PrepareConfig, path, ["--output", "blocks"]).output_dir == "blocks"
    with pytest.raises(UserError, match="lora_r"):
        load_config(PrepareConfig, path, ["--lora_r", "4"])


def test_training_argument_names_are_those_of_transformers():
    from transformers import TrainingArguments

    real = {f.name for f in fields(TrainingArguments) if f.init}
    assert set(settings.training_argument_names()) == real


@pytest.mark.parametrize(
    ("stage", "words", "parts"),
    [
        ("simcse", ["--loss_scale", "0"], ["loss_scale = 0", "above 0"]),
        ("simcse", ["--temperature", "-1"], ["temperature = -1", "above 0"]),
        (
            "simcse",
            ["--loss_scale", "20", "--temperature", "0.05"],
            ["loss_scale = 20", "temperature = 0.05", "keep one"],
        ),
        ("simcse", ["--per_device_train_batch_size", "1"], ["per_device_train_batch_size = 1", "at least 2"]),
        ("simcse", ["--simcse_dropout", "1"], ["simcse_dropout = 1", "below 1"]),
        ("simcse", ["--pooling_mode", "max"], ["'max'", "weighted_mean"]),
        ("simcse", ["--max_seq_length", "0"], ["max_seq_length = 0", "at least 1"]),
        ("simcse", ["--mini_batch_num_tokens", "0"], ["mini_batch_num_tokens = 0", "at least 1"]),
        ("simcse", ["--matryoshka_dims", "64", "0"], ["matryoshka_dims = [64, 0]", "at least 1"]),
        ("simcse", ["--columns", "a"], ["--columns"]),
        ("supervised", ["--columns", "a"], ["columns = ['a']", "anchor and positive"]),
        ("supervised", ["--simcse_dropout", "0.1"], ["--simcse_dropout"]),
        ("supervised", ["--multi_dataset_batch_sampler", "mixed"], ["'mixed'", "round_robin"]),
        ("supervised", ["--distillation_weight", "0"], ["distillation_weight = 0", "above 0"]),
        ("supervised", ["--distillation_weight", "2"], ["distillation_weight = 2", "--teacher_name_or_path"]),
        ("supervised", ["--validation_split_percentage", "100"], ["validation_split_percentage", "below 100"]),
        ("supervised", ["--validation_split_percentage", "-1"], ["validation_split_percentage", "at least 0"]),
        ("mntp", ["--validation_split_percentage", "0"], ["validation_split_percentage", "above 0"]),
    ],
)
def test_wrong_keys_of_stages(stage, words, parts):
    with pytest.raises(UserError) as caught:
        load_config(STAGES[stage], None, [*MINIMAL, *words])
    assert "\n" not in str(caught.value)
    assert all(part in str(caught.value) for part in parts), caught.value


def test_flags_of_a_stage_read_like_plain_ones(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("")
    words = ["--mntp.lora-target-modules", "q_proj", "v_proj", "--simcse.no-split-sentences", "m", "--simcse.do_eval"]
    flags, others = read_flags(TurnConfig, [*words, "rest", "--mntp.learning_rate=1e-4", "--mntp.optim", "sgd"])
    assert others == ["m", "rest"]
    assert flags["mntp"] == {"lora_target_modules": ["q_proj", "v_proj"], "learning_rate": "1e-4", "optim": "sgd"}
    assert flags["simcse"] == {"split_sentences": False, "do_eval": True}
    with pytest.raises(UserError, match=r"--mntp\.learning_rate needs a value"):
        read_flags(TurnConfig, ["--mntp.learning_rate"])
    words = ["--mntp.lora_target_modules", "q_proj", str(path)]
    assert read_flags(TurnConfig, words, config_last=True)[1] == [str(path)]


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [(GlueConfig, "seeds", (1, 2**32)), (SentencesConfig, "seed", 2**32), (LanguageConfig, "seed", 2**32)],
)
def test_a_seed_that_numpy_does_not_take_is_refused_at_once(kind, key, value):
    with pytest.raises(UserError, match=rf"{key} = 4294967296 must be at most 4294967295"):
        kind(model_name_or_path="m", **{key: value}, **({} if kind is GlueConfig else {"tasks": ("a",)}))


def test_a_list_leaves_the_config_file_alone(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("")
    words = ["--columns", "a", "b", str(path)]
    assert read_flags(SupervisedConfig, words, config_last=True) == ({"columns": ["a", "b"]}, [str(path)])
    assert read_flags(SupervisedConfig, words)[1] == []  # a command that takes none
    flags, _ = read_flags(SupervisedConfig, [*words[:3], "gone.toml"], config_last=True)
    assert flags["columns"] == ["a", "b", "gone.toml"]
    flags, _ = read_flags(SupervisedConfig, [*words, "c"], config_last=True)
    assert flags["columns"] == ["a", "b", str(path), "c"]
