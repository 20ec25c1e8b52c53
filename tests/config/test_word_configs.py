"""The word-level files of LLM2Vec and of its fork run unchanged: what each means, what is told, and whole runs."""

import json
import logging
import random
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from turncoder.cli import main
from turncoder.config import legacy
from turncoder.config.stages import load_config
from turncoder.config.words import WordsConfig
from turncoder.errors import UserError

CONFIGS = Path(__file__).resolve().parents[3] / "shared" / "configs"
FILES = sorted(CONFIGS.glob("*/t*_configs/word-task/*.json"))
TRAIN_FILES = [file for file in FILES if "train_configs" in file.parts]
SILENT = "does not say which weights train"


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    logging.getLogger("turncoder").propagate = True
    return lambda: [record.getMessage() for record in caplog.records]


def test_files_are_there(shared: Path) -> None:
    assert (len(FILES), len(TRAIN_FILES)) == (12 + 12 + 10 + 11, 12 + 11)


@pytest.mark.parametrize("file", FILES, ids=lambda file: "/".join([file.parts[-4], file.parts[-3], file.stem]))
def test_file_means_what_it_meant(file: Path, said: Callable[[], list[str]]) -> None:
    raw = json.loads(file.read_text())
    config = load_config(WordsConfig, file)
    encoder, full = raw["model_class"] == "auto", raw.get("full_fine_tune", False)
    shifted = raw.get("retroactive_labels", "next_token") == "next_token"
    assert config.train_mode == ("full" if full else "probe")
    assert config.alignment == ("previous_token" if shifted and not encoder else "same_token")
    assert config.task == (raw["task"],)
    assert config.evaluate == raw.get("cls_addr")
    assert config.adapters == ((raw["peft_addr"],) if "peft_addr" in raw else ())
    assert file not in TRAIN_FILES or config.learning_rate == (raw["learning_rate"],)
    same = ("model_name_or_path", "dataset_name", "dataset_config_name", "merge_subwords", "output_dir", "seed",
            "max_seq_length", "stop_after_n_steps", "num_train_epochs", "eval_steps", "save_steps",
            "classifier_dropout", "attn_implementation")  # fmt: skip
    for name in same:
        assert name not in raw or config.training.get(name, getattr(config, name, None)) == raw[name], name
    assert config.bidirectional == raw.get("bidirectional", True)


@pytest.mark.parametrize("file", FILES, ids=lambda file: "/".join([file.parts[-4], file.parts[-3], file.stem]))
def test_what_is_done_otherwise_is_told(file: Path, said: Callable[[], list[str]]) -> None:
    raw = json.loads(file.read_text())
    load_config(WordsConfig, file)
    lines = said()
    assert len(lines) == len(set(lines))
    assert lines.count(legacy.tell_differences("words")) == 1
    for what, theirs in legacy.WORD_FAULTS.items():
        assert any(what in line and theirs in line for line in lines), what
    for name, value in raw.items():
        ignored = {**legacy.IGNORED, **WordsConfig.IGNORED}
        asks = name in ignored and value not in legacy.ASKS_NOTHING.get(name, (None, False))
        changed = asks or name in legacy.RENAMED or name in ("retroactive_labels", "full_fine_tune")
        found = [line for line in lines if line.startswith(f"{file}: {name} ")]
        assert len(found) == changed, (name, found)
    encoder = raw["model_class"] == "auto"
    assert any("an encoder is read at a word's own tokens" in line for line in lines) == encoder
    silent = file in TRAIN_FILES and "full_fine_tune" not in raw
    assert sum(SILENT in line and "--train_mode full" in line for line in lines) == silent
    assert any("5e-4" in line or "0.0005" in line for line in lines) == raw.get("full_fine_tune", False)


def test_two_files_that_differ_in_their_names_alone(said: Callable[[], list[str]]) -> None:
    """What trained was written in the script: the flag that says it is told, and is enough."""
    folder = CONFIGS / "word-level" / "train_configs" / "word-task"
    one, other = (json.loads((folder / f"DeBERTa-{name}-ewt.json").read_text()) for name in ("frozen", "unfrozen"))
    assert {name for name in one if one[name] != other[name]} == {"output_dir"}
    config = load_config(WordsConfig, folder / "DeBERTa-unfrozen-ewt.json", ["--train_mode", "full"])
    assert config.train_mode == "full" and not any(SILENT in line for line in said())


def test_full_fine_tune_that_is_off_says_what_trains(tmp_path: Path, said: Callable[[], list[str]]) -> None:
    path = tmp_path / "theirs.json"
    path.write_text(
        '{"model_name_or_path": "m", "dataset_name": "d", "model_class": "custom", "full_fine_tune": false}'
    )
    assert load_config(WordsConfig, path).train_mode == "probe" and not any(SILENT in line for line in said())


@pytest.mark.parametrize("name", ["seeds", "learning_rate", "task"])
def test_lists_of_the_command_line_have_spaces(name: str, tmp_path: Path) -> None:
    given = ["--model_name_or_path", "m", "--train_file", "t"]
    text, values = {"seeds": ("1,2", (1, 2)), "learning_rate": ("1e-3,3e-3", (1e-3, 3e-3)), "task": ("a,b", ("a,b",))}[
        name
    ]
    if name == "task":  # a column may have any name
        assert load_config(WordsConfig, flags=[*given, f"--{name}", text]).task == values
        return
    with pytest.raises(UserError, match=rf"--{name} = \['{text}'\] is not a list of .*numbers, with spaces between$"):
        load_config(WordsConfig, flags=[*given, f"--{name}", text])
    assert getattr(load_config(WordsConfig, flags=[*given, f"--{name}", *text.split(",")]), name) == values


def test_keys_that_are_of_no_use_are_listed() -> None:
    given = {"model_name_or_path": "m", "train_file": "t", "save_steps": 7, "training": {"optim": "sgd"}}
    given |= {"per_device_eval_batch_size": 2, "probe_batch_words": 64, "weight_decay": 0.1, "lora_r": 3}
    assert WordsConfig(**given).list_idle() == ["lora_r", "per_device_eval_batch_size", "save_steps", "optim"]
    assert WordsConfig(**given, train_mode="lora").list_idle() == ["per_device_eval_batch_size", "probe_batch_words"]
    assert WordsConfig(model_name_or_path="m", train_file="t").list_idle() == []
    known = {field.name for field in fields(WordsConfig)}
    assert known >= WordsConfig.OF_TRAINER | WordsConfig.OF_OTHERS


# ---------------------------------------------------------------- whole runs

SPLITS = {"train": 24, "validation": 8, "test": 8}
STORY = "Once upon a time there was a little girl named Lily who loved to play outside in the park ."


@pytest.fixture
def decoder(make_model: Callable[..., Path]) -> Path:
    from transformers import LlamaConfig

    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return make_model(LlamaConfig(vocab_size=512, max_position_embeddings=256, **size), "decoder")


@pytest.fixture
def encoder(make_model: Callable[..., Path]) -> Path:
    from transformers import DebertaV2Config

    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = DebertaV2Config(vocab_size=512, max_position_embeddings=256, relative_attention=True, **size)
    return make_model(config, "encoder", pad_token="<unk>")


@pytest.fixture
def adapter(decoder: Path, tmp_path: Path) -> Path:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel

    torch.manual_seed(1)
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(AutoModel.from_pretrained(decoder), lora).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def data(tmp_path: Path) -> Callable[[bool], Path]:
    """Write what the hub's scripts gave: CoNLL-2003's columns, or those of Universal Dependencies."""
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Sequence, Value

    draw = random.Random(0)

    def columns(words: list[str], treebank: bool) -> dict[str, list]:
        marks = [int(word[0].isupper()) for word in words]
        if not treebank:
            return {"pos_tags": [len(word) % 5 for word in words], "chunk_tags": marks, "ner_tags": marks}
        rest = {name: ["None" for _ in words] for name in ("feats", "head", "deps", "misc")}
        return {"upos": marks, "xpos": [f"X{len(word) % 4}" for word in words], **rest, "head": ["0" for _ in words]}

    def write(treebank: bool) -> Path:
        text = Value("string")
        classes = {
            "pos_tags": ClassLabel(names=["DT", "IN", "JJ", "NN", "VB"]),
            "chunk_tags": ClassLabel(names=["O", "B-NP"]),
            "ner_tags": ClassLabel(names=["O", "B-PER"]),
            "upos": ClassLabel(names=["NOUN", "PROPN"]),
        }
        splits = {}
        for split, count in SPLITS.items():
            rows = []
            for _ in range(count):
                words = draw.sample(STORY.split(), draw.randint(4, 12))
                rows.append({"tokens": words, **columns(words, treebank)})
            features = Features({name: Sequence(classes.get(name, text)) for name in rows[0]})
            splits[split] = Dataset.from_list(rows, features=features)
        folder = tmp_path / ("treebank" if treebank else "conll")
        DatasetDict(splits).save_to_disk(folder)
        return folder

    return write


PAIRS = (
    ("word-level", "ShearedLlama-bi-mntp_ner", "ShearedLlama-bi-mntp_ner"),
    ("word-level", "ShearedLlama-bi-mntp_pos_ewt", "ShearedLlama-bi-mntp_pos_ewt"),
    ("word-level", "ShearedLlama-bi-mntp-unfrozen-ner", "ShearedLlama-bi-mntp_unfrozen_ner"),
    ("word-level", "ShearedLlama-unfrozen-mntp_pos_ewt", "ShearedLlama-bi-mntp_unfrozen_ewt"),
    ("word-level", "DeBERTa-frozen-ner", "DeBERTa-frozen-ner"),
    ("word-level", "DeBERTa-frozen-ewt", "DeBERTa-frozen-ewt"),
    ("word-level", "BERT-frozen-pos", "BERT-frozen-pos-test"),
    ("llm2vec", "ShearedLlama-uni", "ShearedLlama-uni"),
    ("llm2vec", "Mistral-bi-mntp-simcse", "Mistral-bi-mntp-simcse"),
)


@pytest.mark.slow
@pytest.mark.parametrize(("home", "train", "test"), PAIRS, ids=[f"{home}/{train}" for home, train, _ in PAIRS])
def test_two_steps_and_their_test(
    home: str,
    train: str,
    test: str,
    request: pytest.FixtureRequest,
    data: Callable[[bool], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The test file scores what the training file gave, to the digit: the run, and a checkpoint by its name."""
    folder = CONFIGS / home
    train_file, test_file = (folder / f"{kind}_configs/word-task/{name}.json" for kind, name in
                             (("train", train), ("test", test)))  # fmt: skip
    raw = json.loads(train_file.read_text())
    model = request.getfixturevalue("encoder" if raw["model_class"] == "auto" else "decoder")
    words = data(raw["dataset_name"] == "universal_dependencies")
    given = ["--model_name_or_path", str(model), "--dataset_name", str(words)]
    if "peft_addr" in raw:
        given += ["--adapters", str(request.getfixturevalue("adapter"))]
    run, out = tmp_path / "run", tmp_path / "out"
    steps = ["--max_steps", "2", "--save_steps", "1", "--eval_steps", "1", "--seeds", "42"]
    assert main(["words", str(train_file), *given, *steps, "--output", str(run)]) == 0, capsys.readouterr().err
    results = json.loads((run / "results.json").read_text())
    told = results["tasks"][raw["task"]]
    assert results["train_mode"] == ("full" if raw.get("full_fine_tune") else "probe")
    assert told["words_scored"] == told["words_in_file"] > 0
    steps_kept = [path.name for path in (run / "checkpoints").glob("checkpoint-*")] or ["checkpoint-3000"]
    for name in ["", *steps_kept]:
        capsys.readouterr()
        flags = ["--evaluate", str(run / name), "--output", str(out / (name or "run"))]
        assert main(["words", str(test_file), *given, *flags]) == 0, capsys.readouterr().err
        again = json.loads((out / (name or "run") / "results.json").read_text())["tasks"][raw["task"]]
        assert again["words_scored"] == told["words_in_file"]
        if not name or results["train_mode"] == "probe":
            assert again["mean"] == told["mean"]
        assert "is not read" not in capsys.readouterr().err
    words_other = ["--evaluate", str(run), "--output", str(out / "other"), "--dataset_name", str(words)]
    assert main(["words", str(test_file), *words_other]) == 0
    named = json.loads(test_file.read_text())["model_name_or_path"]
    assert f"model_name_or_path = {named!r} is not read: the run was trained on {str(model)!r}" in (
        capsys.readouterr().err.replace("\n", " ")
    )
