"""MaChAmp: its files hold our words and labels, and its scores become our rows."""

import json
import logging
import statistics
from pathlib import Path
from typing import Any

import pytest

from turncoder.cli import main
from turncoder.data.words import WordSet, open_words
from turncoder.errors import UserError
from turncoder.evaluate.words import score, tally
from turncoder.machamp import export_machamp, read_machamp


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNCODER_CACHE", str(tmp_path / "cache"))
    logging.getLogger("turncoder").propagate = True


def open_one(path: Path, content: str) -> WordSet:
    path.write_text(content, encoding="utf8")
    return open_words(file=str(path))


def read_as_machamp(path: Path) -> list[list[list[str]]]:
    """Read sentences by MaChAmp's rule: lines split at tabs, and one with nothing else ends a sentence."""
    sentences: list[list[list[str]]] = [[]]
    with path.open(encoding="utf8") as file:
        for line in file:
            if len(line) < 2 or line.replace("\t", "") == "":
                sentences += [[]] if sentences[-1] else []
            else:
                sentences[-1].append(line.rstrip("\n").split("\t"))
    return [sentence for sentence in sentences if sentence]


def test_a_treebank_as_machamp_reads_it(shared: Path, tmp_path: Path):
    data = shared / "data" / "ud_english_ewt"
    splits = {name: open_words(file=str(data / f"en_ewt-ud-{name}.conllu")) for name in ("dev", "test")}
    splits = {"train": splits["dev"], "dev": splits["dev"], "test": splits["test"]}
    tasks = {"upos": "upos", "pos_tags": "xpos"}
    commands = export_machamp(tasks, splits, tmp_path / "a folder" / "machamp", model="bert-large-cased", frozen=True)
    folder = tmp_path / "a folder" / "machamp"
    config = json.loads((folder / "dataset.json").read_text())
    assert config == {
        "en_ewt-ud-dev": {
            "train_data_path": str(folder / "en_ewt-ud-dev.train.conll"),
            "dev_data_path": str(folder / "en_ewt-ud-dev.dev.conll"),
            "word_idx": 0,
            "tasks": {
                "upos": {"task_type": "seq", "column_idx": 1},
                "pos_tags": {"task_type": "seq", "column_idx": 2},
            },
        }
    }
    for split, words in splits.items():
        sentences = read_as_machamp(folder / f"en_ewt-ud-dev.{split}.conll")
        columns = [words.data["words"][:], list(words.labels("upos")), list(words.labels("xpos"))]
        assert [list(map(list, zip(*sentence, strict=True))) for sentence in sentences] == [
            list(row) for row in zip(*columns, strict=True)
        ]
    parameters = json.loads((folder / "params.json").read_text())
    assert (parameters["transformer_model"], parameters["random_seed"]) == ("bert-large-cased", 8446)
    assert parameters["encoder"] == {"dropout": 0.2, "max_input_length": 128, "update_weights_encoder": False}
    assert not parameters["training"]["learning_rate_scheduler"]["gradual_unfreezing"]
    whole_models, train, predict = commands.split("\n")
    assert whole_models == "export TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1"
    assert train == (
        f"python3 train.py --dataset_configs '{folder}/dataset.json' --parameters_config '{folder}/params.json' "
        "--name en_ewt-ud-dev --seed 8446"
    )
    assert predict.endswith(f"'{folder}/en_ewt-ud-dev.test.conll' logs/en_ewt-ud-dev/DATE/test.out")


def test_spans_are_a_task_of_their_own(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    record = {"tokens": ["a\tb", "", "c\nd"], "pos": ["X", None, "Y"], "ner": ["I-PER", "O", "I-LOC"]}
    words = open_one(tmp_path / "my words.jsonl", json.dumps(record))
    commands = export_machamp({"ner": "ner", "pos": "pos"}, {"train": words}, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "dataset.json").read_text())["my_words"]
    assert {task: found["task_type"] for task, found in config["tasks"].items()} == {"ner": "seq_bio", "pos": "seq"}
    assert "dev_data_path" not in config and "predict.py" not in commands
    sentences = read_as_machamp(tmp_path / "out" / "my_words.train.conll")
    assert sentences == [[["a b", "B-PER", "X"], ["", "O", "_"], ["c d", "B-LOC", "Y"]]]
    assert "1 words have no label for pos; we leave them out, and MaChAmp learns and scores them as '_'" in caplog.text
    assert "for ner" not in caplog.text
    again = open_words(file=str(tmp_path / "out" / "my_words.train.conll"))
    assert [list(again.labels("column_2")), again.num_words] == [[["B-PER", "O", "B-LOC"]], 3]


def test_a_file_is_no_folder(tmp_path: Path):
    words = open_one(tmp_path / "a.conll", "a X\n")
    with pytest.raises(UserError, match=r"export_machamp: .*a.conll is a file; name a folder"):
        export_machamp({"pos": "tags"}, {"train": words}, tmp_path / "a.conll")


def test_the_encoder_is_found_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    words = open_one(tmp_path / "a.conll", "a X\n")
    (tmp_path / "my-bert").mkdir()
    monkeypatch.chdir(tmp_path)
    for model, expected in (("my-bert", str(tmp_path / "my-bert")), ("google-bert/x", "google-bert/x")):
        export_machamp({"pos": "tags"}, {"train": words}, tmp_path / "out", model=model)
        assert json.loads((tmp_path / "out" / "params.json").read_text())["transformer_model"] == expected


def write_log(folder: Path, accuracy: float, spans: tuple[float, float, float], time: str) -> None:
    """Write the files of a training and of predict.py, with the keys and in the order of MaChAmp 0.4.2."""
    folder.mkdir(parents=True)
    metrics: dict[str, Any] = {"epoch": "20/20", "best_epoch": 17, "max_gpu_mem": "2.1", "cur_ram": "1.0"}
    metrics |= {"time_epoch": "0:00:05", "time_total": time}
    both = (("best_", 0.0), ("", -0.01))
    for split in ("train", "dev"):
        metrics |= {f"{prefix}{split}_{task}_loss": 0.4 for prefix, _ in both for task in ("my_ner", "upos")}
        metrics |= {f"{prefix}{split}_sum": 1.7 for prefix, _ in both}
    for split, better in (("train", 0.02), ("dev", 0.0)):
        for prefix, worse in both:
            for name, value in zip(("precision", "recall", "span_f1"), spans, strict=True):
                metrics[f"{prefix}{split}_my_ner_{name}"] = value + better + worse
            metrics[f"{prefix}{split}_upos_accuracy"] = accuracy + better + worse
    for name in ("metrics_epoch_19.json", "metrics.json"):  # counted from 0
        (folder / name).write_text(json.dumps(metrics, indent=4))
    (folder / "dataset-configs.json").write_text(json.dumps({"EWT": {}}))
    for name, content in (("params-config.json", "{}"), ("scalars.json", "{}"), ("log.txt", ""), ("model_17.pt", "")):
        (folder / name).write_text(content)
    (folder / "model.pt").symlink_to("model_17.pt")
    (folder / "vocabularies").mkdir()
    scored = {
        "upos": {"optimization_metrics": "accuracy", "accuracy": {"accuracy": accuracy - 0.1, "sum": "accuracy"}},
        "my_ner": {
            "optimization_metrics": "span_f1",
            "span_f1": dict(zip(("precision", "recall", "span_f1"), spans, strict=True)) | {"sum": "span_f1"},
        },
        "sum": 1.6,
    }
    (folder / "test.out.eval").write_text(json.dumps(scored))
    (folder / "EWT.out.eval").write_text(json.dumps(scored))


def test_scores_become_rows(tmp_path: Path):
    write_log(tmp_path / "ewt" / "2024.01.01_10.00.00", 0.95, (0.8, 0.7, 0.75), "0:01:40")
    write_log(tmp_path / "ewt" / "2024.01.02_10.00.00", 0.97, (0.9, 0.8, 0.85), "1 day, 0:00:20")
    (tmp_path / "ewt" / "2024.01.03_10.00.00").mkdir()  # of a training that was stopped
    rows = {(row["model"], row["seeds"]): row for row in read_machamp(tmp_path / "ewt")}
    assert list(rows) == [
        ("MaChAmp my_ner, dev", 2),
        ("MaChAmp upos, dev", 2),
        ("MaChAmp my_ner, test.out", 2),
        ("MaChAmp upos, test.out", 2),
    ]
    upos = rows["MaChAmp upos, dev", 2]
    assert upos["task"] == "upos" and "span_f1" not in upos
    assert upos["token_accuracy"] == pytest.approx(0.96)
    assert upos["std"]["token_accuracy"] == pytest.approx(statistics.stdev([0.95, 0.97]))
    assert upos["seconds"] == (100 + 24 * 3600 + 20) / 2
    assert rows["MaChAmp upos, test.out", 2]["token_accuracy"] == pytest.approx(0.86)
    for words in ("dev", "test.out"):
        spans = rows[f"MaChAmp my_ner, {words}", 2]
        names = ("span_precision", "span_recall", "span_f1")
        assert [spans[name] for name in names] == pytest.approx([0.85, 0.75, 0.8])
    single = read_machamp(tmp_path / "ewt" / "2024.01.01_10.00.00")
    assert [row["seeds"] for row in single] == [1] * 4
    assert single[1]["token_accuracy"] == 0.95 and single[1]["std"]["token_accuracy"] is None


def test_the_command_line_exports(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("train", "dev", "test"):
        (tmp_path / f"{name}.conll").write_text("".join(f"{name}{n} N B-NP B-PER\n\n" for n in range(3)))
    flags = [f"--{key}_file={tmp_path / name}.conll" for key, name in (("train", "train"), ("test", "test"))]
    flags += [f"--validation_file={tmp_path / 'dev.conll'}", "--task=ner_tags", "--seeds", "3", "4"]
    assert main(["words", *flags, f"--export_machamp={tmp_path / 'out'}", "--train_mode=full"]) == 0
    whole_models, *printed = capsys.readouterr().out.split("\n")
    assert whole_models.startswith("export ")
    assert [line.split()[1] for line in printed if line] == ["train.py", "train.py", "predict.py"]
    assert [line.rsplit(" ", 1)[-1] for line in printed[:2]] == ["3", "4"]
    for split in ("train", "dev", "test"):
        sentences = read_as_machamp(tmp_path / "out" / f"train.{split}.conll")
        assert sentences == [[[f"{split}{n}", "B-PER"]] for n in range(3)]
    parameters = json.loads((tmp_path / "out" / "params.json").read_text())
    assert parameters["encoder"]["update_weights_encoder"]
    assert parameters["training"]["learning_rate_scheduler"]["gradual_unfreezing"]
    task = {"ner_tags": {"task_type": "seq_bio", "column_idx": 1}}
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["train"]["tasks"] == task


def test_predictions_are_scored_as_ours(shared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    data = shared / "data" / "uner_english_ewt"
    splits = {
        split: open_words(file=str(data / f"en_ewt-ud-{name}.iob2"))
        for split, name in (("train", "dev"), ("dev", "test"))
    }
    splits["test"] = splits["train"]
    column = next(column for column in splits["dev"].columns if splits["dev"].schemes[column])
    exported, logs = tmp_path / "exported", tmp_path / "ewt"
    export_machamp({"my_ner": column}, splits, exported)
    name, dataset = next(iter(json.loads((exported / "dataset.json").read_text()).items()))
    write_log(logs, 0.95, (0.8, 0.7, 0.75), "0:01:40")
    (logs / "dataset-configs.json").write_text(json.dumps({name: dataset}))
    (logs / "EWT.out.eval").unlink()
    expected = {}
    for words, output in (("dev", f"{name}.out"), ("test", "test.out")):
        gold = list(splits[words].labels(column))
        said = [
            [tag if (3 * row + place) % 7 else "I-PER" for place, tag in enumerate(tags)]
            for row, tags in enumerate(gold)
        ]
        forms = splits[words].forms()
        lines = [
            "".join(f"{form}\t{tag}\n" for form, tag in zip(*both, strict=True))
            for both in zip(forms, said, strict=True)
        ]
        (logs / output).write_text("".join(line + "\n" for line in lines), encoding="utf8")
        (logs / f"{output}.eval").write_text((logs / "test.out.eval").read_text())
        expected[words] = score(tally(gold, said, spans=True))
    rows = {row["model"]: row for row in read_machamp(logs)}
    for words, shown in (("dev", "dev"), ("test", "test.out")):
        row = rows[f"MaChAmp my_ner, {shown}"]
        for metric in ("token_accuracy", "macro_f1", "span_precision", "span_recall", "span_f1"):
            assert row[metric] == expected[words][metric] != 0.75
    assert rows["MaChAmp my_ner, dev"]["seconds"] == 100 and rows["MaChAmp upos, dev"]["token_accuracy"] == 0.95
    assert "not conlleval" not in caplog.text
    with (logs / f"{name}.out").open("a", encoding="utf8") as file:
        file.write("another\tO\n")
    (exported / f"{name}.test.conll").unlink()
    (exported / f"{name}.train.conll").write_text("gone\tO\n")
    assert [row["span_f1"] for row in read_machamp(logs) if row["task"] == "my_ner"] == [0.75, 0.75]
    assert len([one for one in caplog.messages if "span F1 of my_ner as MaChAmp counts it, not conlleval" in one]) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "machamp: .* has no metrics.json, which MaChAmp writes after the last epoch"),
        ("{", "machamp: .*metrics.json is broken"),
        ("[]", r"machamp: .*metrics.json is broken \(not an object\)"),
        ('{"best_train_upos_accuracy": 1}', "machamp: .*metrics.json has no best_dev_TASK_METRIC; was there a dev"),
    ],
)
def test_what_is_wrong_with_a_log(content: str | None, message: str, tmp_path: Path):
    if content is not None:
        (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_machamp(tmp_path)
