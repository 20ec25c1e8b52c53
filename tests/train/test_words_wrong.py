"""What is wrong with the input of ``words`` is one line; what is odd about it is a notice, and every word is scored."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from launching import launch, write_words
from tagging_models import command, make_decoder, write_columns
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from turncoder import load_tagger
from turncoder.errors import UserError

Say = Callable[..., str]
GOOD = [[("the", "DET"), ("cat", "NOUN"), ("sleeps", "VERB")], [("the", "DET"), ("dog", "NOUN"), (".", "PUNCT")]] * 6


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TURNCODER_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def say(tiny: Callable[[str], Path]) -> Say:
    """Run a way, on files of this test."""

    def run(code: int = 0, model: str | Path = "llama", **changes: Any) -> str:
        for name in ("train", "dev", "test"):
            if not Path(name).exists():
                write_columns(Path(name), GOOD)
        where = tiny(str(model)) if model in ("llama", "bert") else model
        files = {"validation_file": "dev", "test_file": "test", "seeds": 1, "learning_rate": 1e-2, "task": "pos"}
        said = launch(command(where, Path("train"), Path("run"), **{**files, **changes}), code)
        if code:
            errors = [line for line in said.splitlines() if line.startswith("error: ")]
            assert len(errors) == 1 and said.splitlines()[-1] == errors[0] and "Traceback" not in said
            assert not Path("run").exists() or changes.get("output_dir")
            return errors[0]
        return said

    return run


def read_results() -> dict[str, Any]:
    return next(iter(json.loads(Path("run/results.json").read_text(encoding="utf8"))["tasks"].values()))


def predicted() -> list[list[str]]:
    lines = Path("run/predictions.tsv").read_text(encoding="utf8").split("\n")
    return [line.split("\t") for line in lines if line]


def test_a_column_that_is_not_there(say: Say, treebank: Path) -> None:
    files = {f"{key}_file": treebank / "dev.conllu" for key in ("train", "validation", "test")}
    error = say(2, **{**files, "task": "nerr"})
    assert "task = 'nerr'" in error and "upos, xpos" in error and "feats:Number" in error and "dev.conllu" in error
    error = say(2, **{**files, "test_file": treebank / "test.iob2", "task": "upos"})
    assert "test.iob2" in error and "upos" in error


def test_tags_that_differ_between_files(say: Say) -> None:
    odd = [[("the", "DET"), ("cat", "NOMEN"), ("sleeps", "X")], [("cat", "NOMEN"), (".", "PUNCT")]]
    write_columns(Path("test"), odd)
    said = say()
    assert "note: test: labels of tags that training does not have count as wrong: NOMEN (2), X (1)" in said
    told = read_results()
    assert told["unseen_labels"] == {"NOMEN": 2, "X": 1} and told["words_scored"] == 5
    assert told["mean"]["token_accuracy"] <= 2 / 5
    assert told["per_class"]["NOMEN"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 2}
    write_columns(Path("dev"), odd)
    say(train_mode="full", overwrite=True)
    assert read_results()["unseen_labels"] == {"NOMEN": 2, "X": 1}


@pytest.mark.parametrize("name", ["train", "dev", "test"])
@pytest.mark.parametrize("content", ["", "\n\n\n"])
def test_an_empty_file(name: str, content: str, say: Say) -> None:
    Path(name).write_text(content)
    assert name in say(2)


def test_a_file_whose_words_have_no_label_of_the_task(say: Say) -> None:
    """A feature that no word of the test file has."""
    columns = "# global.columns = FORM UPOS NER\n"
    for name, label in (("train", "B-LOC"), ("dev", "B-LOC"), ("test", "")):
        rows = "the\tDET\tO\ncat\tNOUN\tO\nRome\tPROPN\tB-LOC\n\n" if label else "the\tDET\t\ncat\tNOUN\t\n\n"
        Path(name).write_text(columns + rows * 4)
    error = say(2, task="ner")
    assert "test" in error and "ner" in error.lower()


@pytest.mark.parametrize(("mode", "model"), [("probe", "llama"), ("lora", "llama"), ("full", "bert")])
def test_a_sentence_of_5000_words(mode: str, model: str, say: Say) -> None:
    long = [(f"word{number}" if number % 3 else "a", "NOUN" if number % 3 else "DET") for number in range(5000)]
    write_columns(Path("test"), [GOOD[0], long, GOOD[1]])
    write_columns(Path("train"), [*GOOD, long[:300]])
    said = say(model=model, train_mode=mode, num_train_epochs=1)
    for name in ("train", "test"):
        assert f"note: {name}: 1 sentences are longer than max_seq_length and go through in windows" in said
    told = read_results()
    assert told["words_scored"] == told["words_in_file"] == 5006 == len(predicted())
    assert [row[0] for row in predicted()] == [word for word, _ in [*GOOD[0], *long, *GOOD[1]]]


@pytest.mark.parametrize(("mode", "model"), [("probe", "llama"), ("probe", "bert"), ("full", "llama")])
def test_words_that_are_hard_to_read(mode: str, model: str, say: Say) -> None:
    """Without a subword, of control characters, a lone accent, emoji, right to left, very long."""
    odd = ["\u200b", "\x01", "\u0301", "🙂", "👩‍👩‍👧‍👦", "שלום", "مرحبا", "\ufeff", "x" * 3000, "नमस्ते", "\u00ad"]
    sentences = [[(word, "X") for word in odd], *[[(word, "X")] for word in odd], [("the", "DET"), (odd[0], "X")]]
    write_columns(Path("train"), GOOD + sentences)
    write_columns(Path("test"), sentences)
    say(model=model, train_mode=mode, num_train_epochs=1)
    told = read_results()
    assert told["words_scored"] == told["words_in_file"] == sum(map(len, sentences))
    assert [row[0] for row in predicted()] == [word for sentence in sentences for word, _ in sentence]
    say(model=model, train_mode=mode, num_train_epochs=1, alignment="previous_token", overwrite=True)
    assert read_results()["words_scored"] == sum(map(len, sentences))


def test_without_a_validation_file_some_sentences_are_held_out_by_their_hash(say: Say) -> None:
    sentences = [[(f"w{number}", "A"), ("b", "B")] for number in range(200)]
    write_columns(Path("train"), sentences)
    said = say(validation_file=None, test_file=None)
    assert "20 % of" not in said and "by a hash of their text" in said
    assert "no test_file: the validation words are scored" in said
    held = {tuple(row[0] for row in rows) for rows in zip(predicted()[::2], predicted()[1::2], strict=True)}
    assert 8 <= len(held) <= 35
    told = read_results()
    assert told["words_scored"] == told["words_in_file"] == 2 * len(held)
    results = json.loads(Path("run/results.json").read_text())
    assert results["test_is_validation"] and results["train_sentences"] == 200 - len(held)
    write_columns(Path("train"), [*sentences[::-1], [("new", "A"), ("b", "B")]])  # others stay where they were
    say(validation_file=None, test_file=None, overwrite=True)
    again = {tuple(row[0] for row in rows) for rows in zip(predicted()[::2], predicted()[1::2], strict=True)}
    assert again - {("new", "b")} == held


def test_a_tagger_opens_from_another_folder_and_takes_nothing_but_texts(
    say: Say, tiny: Callable[[str], Path], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny("llama"), "model")
    say(model="model")
    monkeypatch.chdir(place.parent)
    tagger = load_tagger(place / "run", device="cpu")
    assert [one.words for one in tagger.tag([["the", "cat"], "the dog"])] == [["the", "cat"], ["the", "dog"]]
    assert tagger.tag([]) == []
    for wrong in ("the dog", [["the", 1]], [None], None, iter(["the dog"]), {"the dog": 1}):
        with pytest.raises(UserError, match="texts must be a list of strings, or of lists of words"):
            tagger.tag(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("kept", ["checkpoint", "adapter"])
def test_a_run_finds_its_model_from_another_folder(
    kept: str, say: Say, tiny: Callable[[str], Path], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named relative to where the run was started; a checkpoint, and a run without model/, need it."""
    shutil.copytree(tiny("llama"), "model")
    say(model="model", train_mode="lora", max_steps=2, save_merged="never", save_strategy="steps", save_steps=1)
    (place / "elsewhere").mkdir()
    monkeypatch.chdir(place / "elsewhere")
    name = "../run/2" if kept == "checkpoint" else "../run"
    flags = {"evaluate": name, "test_file": "../test", "output_dir": "out"}
    launch(write_words("words", flags))
    told = json.loads(Path("out/results.json").read_text())["tasks"]["pos"]["mean"]
    assert told.items() <= json.loads(Path("../run/results.json").read_text())["tasks"]["pos"]["mean"].items()
    (place / "model").rename(place / "moved")
    said = launch(write_words("words", {**flags, "output_dir": "again"}), 2)
    assert said.count("error: ") == 1 and "Traceback" not in said
    assert "../run: the model that it was trained on cannot be opened: model_name_or_path: " in said


def test_each_task_has_the_best_seed_that_it_can_have(say: Say) -> None:
    """Seeds of a probe share the model; those of lora have one each, chosen by the mean over tasks."""
    columns = "# global.columns = FORM UPOS XPOS\n"
    for name in ("train", "dev", "test"):
        Path(name).write_text(columns + "the\tDET\tD\ncat\tNOUN\tN\n\n" * 8)
    several = {"task": ["upos", "xpos"], "seeds": [1, 2, 3]}

    def best(run: str) -> dict[str, int]:
        tagger = load_tagger(run, device="cpu")
        assert {head.task for head in tagger.heads} == {"upos", "xpos"}
        return tagger.best

    say(output_dir="lora", train_mode="lora", max_steps=1, **several)
    path = Path("lora/results.json")
    results = json.loads(path.read_text())
    for task, scores in (("upos", (0.9, 0.2, 0.8)), ("xpos", (0.1, 0.9, 0.8))):
        for seed, score in enumerate(scores, 1):
            results["tasks"][task]["seeds"][str(seed)]["dev"]["token_accuracy"] = score
    path.write_text(json.dumps(results))
    assert best("lora") == {"upos": 3, "xpos": 3}
    say(output_dir="probe", **several)
    path = Path("probe/tagger/tagger.json")
    spec = json.loads(path.read_text())
    spec["tasks"]["upos"]["best"], spec["tasks"]["xpos"]["best"] = 1, 2
    path.write_text(json.dumps(spec))
    assert best("probe") == {"upos": 1, "xpos": 2}


def test_a_file_with_labels_of_another_kind_is_refused(say: Say) -> None:
    """Also where its column is the only one, whose name does not matter."""
    say()
    write_columns(Path("other"), [[("the", "DT"), ("cat", "NN"), ("sleeps", "VBZ")]] * 3)
    refused = "no label of its column tags (DT, NN, VBZ) was trained on; those are DET, NOUN, PUNCT, ...: give"
    said = launch(write_words("words", {"evaluate": "run", "test_file": "other", "output_dir": "out"}), 2)
    assert said.splitlines()[-1].startswith("error: other: ") and refused in said and not Path("out").exists()
    for key in ("validation_file", "test_file"):
        error = say(2, **{key: "other", "output_dir": "new"})
        assert refused in error and not Path("new").exists()


def test_keys_that_are_of_no_use_are_told_once(say: Say) -> None:
    assert "of no use" not in say(logging_steps=500)
    changes = {"max_grad_norm": 2, "training.optim": "sgd", "weight_decay": 0.1}
    told = "note: logging_steps, max_grad_norm, per_device_train_batch_size, optim: of no use with train_mode = 'probe'"
    for more in ({"overwrite": True}, {"dry_run": True}):
        said = say(per_device_train_batch_size=4, **changes, **more)
        assert said.count("of no use") == 1 and told in said
    lora = {"train_mode": "lora", "max_steps": 1, "seeds": [1, 2], "probe_batch_words": 64, "output_dir": "lora"}
    said = say(**changes, **lora)
    assert said.count("of no use") == 1 and "note: probe_batch_words: of no use with train_mode = 'lora'" in said
    assert "--evaluate RUN" in say(2, do_train=False, output_dir="new")


def test_heads_are_no_model(say: Say) -> None:
    say(output_dir="probe")
    assert "holds no model of its own, only heads; name /" in say(2, model="probe", output_dir="new")
    say(output_dir="seeds", train_mode="lora", seeds=[1, 2], max_steps=1)
    error = say(2, model="seeds", output_dir="new")
    assert "only heads; name one of seed-1-rate-0.01, seed-2-rate-0.01 in it" in error


def test_what_is_not_read_is_told_and_a_dry_run_writes_nothing(say: Say) -> None:
    say()
    flags = {"evaluate": "run", "test_file": "test", "output_dir": "out", "dry_run": True}
    assert "is not read" not in launch(write_words("words", {**flags, "task": "pos"}))
    said = launch(write_words("words", {**flags, "task": "ner"}))
    assert "note: task = ['ner'] is not read: the run was trained on ['pos'], and is scored with that" in said
    export = {"export_machamp": "out", "train_file": "train", "validation_file": "dev", "task": "pos", "dry_run": True}
    assert launch(write_words("words", export)).splitlines()[-1] == "would write: out"
    assert not Path("out").exists()


def test_a_data_set_without_splits_is_not_scored_on_itself(say: Say, caplog: pytest.LogCaptureFixture) -> None:
    data = {"tokens": [["the", "dog"], ["a", "cat"]] * 9, "tags": [["DET", "NOUN"]] * 18}
    Dataset.from_dict(data).save_to_disk("words")
    files = dict.fromkeys(("train_file", "validation_file", "test_file"))
    data["tokens"] = [[f"{word}{number}" for word in words] for number, words in enumerate(data["tokens"])]
    Dataset.from_dict(data).save_to_disk("different")
    said = say(0, dataset_name="different", task="tags", validation_split_percentage=30, **files)
    assert "different: 30 % of the sentences are chosen on" in said + caplog.text
    assert "no test_file" in said + caplog.text
    results = json.loads(Path("run/results.json").read_text())
    assert results["test_is_validation"] and results["train_sentences"] < 18


def test_too_few_words_to_hold_some_out(say: Say) -> None:
    write_columns(Path("train"), GOOD[:1])
    assert "none to choose on" in say(2, validation_file=None, test_file=None)


@pytest.mark.parametrize(
    ("wrong", "parts"),
    [
        ({"layer": 9}, ["layer = 9", "0 (its embeddings) to 2"]),
        ({"layer": "-2"}, ["layer = -2"]),
        ({"layer": "top"}, ["layer = 'top'", "all, or mix"]),
        ({"layer": "mix", "train_mode": "lora"}, ["layer = 'mix'", "probe"]),
        ({"alignment": "auto", "train_mode": "full"}, ["alignment = 'auto'", "same_token"]),
        ({"alignment": "next_token"}, ["alignment", "previous_token"]),
        ({"adapters": ["gone"]}, ["gone"]),
        ({"train_mode": "lora", "lora_target_modules": ["q_projj"]}, ["lora_target_modules", "q_projj"]),
        ({"train_mode": "lora", "lr_scheduler_type": "zigzag"}, ["zigzag"]),
        ({"lr_scheduler_type": "zigzag"}, ["lr_scheduler_type", "zigzag"]),
        ({"task": ["pos", "pos"]}, ["task"]),
        ({"seeds": [1, 1]}, ["seeds"]),
        ({"max_seq_length": 8, "model": "bert", "train_file": "gone"}, ["train_file", "gone", "no such file"]),
        ({"max_seq_length": 2}, ["max_seq_length = 2", "8"]),
        ({"num_train_epochs": 0}, ["num_train_epochs"]),
        ({"output_dir": None}, ["--output is missing"]),
        ({"dataset_name": "words", "train_file": None, "test_file": None}, ["dataset_name = 'words'", "('dev')"]),
        (
            {
                "dataset_name": "./gone",
                **dict.fromkeys(("train_file", "validation_file", "test_file")),
                "dry_run": True,
            },
            ["./gone"],
        ),
        ({"model": "gone"}, ["gone"]),
        ({"train_mode": "frozen"}, ["train_mode", "probe"]),
        ({"seeds": [1, 2], "train_mode": "full", "layer": 9}, ["layer = 9"]),
        ({"seeds": [1, 2**32]}, ["seeds = 4294967296", "at most 4294967295"]),
        ({"seed": 2**32, "train_mode": "full"}, ["seed = 4294967296"]),
        ({"report_to": "tensorbord", "train_mode": "full"}, ["report_to: tensorbord", "none"]),
        ({"output_dir": "train"}, ["--output train", "is a file; name a folder"]),
        ({"output_dir": "train/run"}, ["--output train/run: train is a file"]),
        ({"output_dir": "train", "overwrite": True}, ["--output train: train is a file"]),
        ({"train_file": "."}, ["train_file: .", "name a file in it"]),
    ],
    ids=str,
)
def test_wrong_keys(wrong: dict[str, Any], parts: list[str], say: Say) -> None:
    error = say(2, **wrong)
    assert all(part in error for part in parts), error


def test_an_adapter_of_another_model(say: Say, stories: Path, tmp_path: Path) -> None:
    other = make_decoder(tmp_path / "other", stories, hidden_size=48, num_attention_heads=4)
    say(model=other, train_mode="lora", output_dir="lora")
    assert "adapter" in say(2, adapters=[tmp_path / "lora" / "adapter"])


def test_a_model_with_an_encoder_and_a_decoder(say: Say, stories: Path, tmp_path: Path) -> None:
    size = {"vocab_size": 512, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}
    from transformers import T5ForConditionalGeneration

    T5ForConditionalGeneration(T5Config(**size)).save_pretrained(tmp_path / "t5")
    PreTrainedTokenizerFast.from_pretrained(stories).save_pretrained(tmp_path / "t5")
    assert "t5" in say(2, model=tmp_path / "t5")
    assert T5EncoderModel.from_pretrained(tmp_path / "t5") is not None


def test_another_tokenizer_is_another_set_of_features(say: Say, shared: Path, stories: Path, tmp_path: Path) -> None:
    """Of the same weights: nothing of what the first tokenizer gave is used."""
    model = make_decoder(tmp_path / "model", stories)
    write_columns(Path("dev"), GOOD[:2])
    say(model=model)
    features = set((tmp_path / "cache" / "features").iterdir())
    say(model=model, overwrite=True)
    assert set((tmp_path / "cache" / "features").iterdir()) == features
    first = read_results()["dev"]
    other = PreTrainedTokenizerFast.from_pretrained(shared / "models" / "babyllama-char105-hf")
    other.save_pretrained(model)
    say(model=model, overwrite=True)
    assert len(features) == 2 and len(set((tmp_path / "cache" / "features").iterdir()) - features) == 2
    again = read_results()["dev"]
    say(model=model, overwrite=True)
    assert read_results()["dev"] == again != first


def test_what_cannot_be_evaluated(say: Say) -> None:
    def refuse(run: str, test: str = "test", **others: Any) -> str:
        said = launch(write_words("words", {"evaluate": run, "test_file": test, **others}), code=2)
        assert said.count("error: ") == 1 and "Traceback" not in said
        return said

    say(train_mode="lora")
    assert "there is no run gone" in refuse("gone")
    assert "name the run, run" in refuse("run/tagger")
    assert "gone" in refuse("run", "gone")
    assert "7" in refuse("run/7")
    Path("other").mkdir()
    Path("other/classifier.pt").write_bytes(pickle.dumps({}))
    assert "classifier.pt" in (said := refuse("other")) and "train again" in said
    assert "tagger/tagger.json" in refuse("cache")
    Path("empty").write_text("")
    assert "empty" in refuse("run", "empty")
    assert "holds something already" in refuse("run", output_dir="run")
    assert "test is a file" in refuse("run", output_dir="test")
    Path("words.jsonl").write_text('{"tokens": ["a"], "x": ["N"], "y": ["M"]}\n')
    assert "x, y" in refuse("run", "words.jsonl")
    (Path("run/tagger/tagger.json")).write_text((Path("run/tagger/tagger.json")).read_text()[:50])
    refuse("run")
