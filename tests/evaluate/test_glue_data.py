"""Rows of GLUE from its own files, from other files, from saved data sets; and what is wrong with them."""

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import datasets
import pytest

from turncoder.config.glue import GlueConfig
from turncoder.errors import UserError
from turncoder.evaluate.gluedata import Splits, find_jobs, open_splits
from turncoder.evaluate.gluetasks import TASKS

LONG_MNLI = "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse"
GLUE_FILES = {
    "CoLA": ("", [["gj04", "1", "", 'He said "no.'], ["gj04", "0", "*", "He no said."]]),
    "SST-2": ("sentence label", [["good fun ", "1"], ["bad \"fun", "0"]]),
    "MRPC": ("Quality|#1 ID|#2 ID|#1 String|#2 String", [["1", "7", "8", "A b.", "A."], ["0", "7", "9", "C.", "D."]]),
    "QQP": (
        "id qid1 qid2 question1 question2 is_duplicate",
        [["1", "2", "3", "Why?", "Why not?", "0"], ["4", "5", "6", "How?", "How so?", "1"]],
    ),
    "STS-B": (
        "index genre filename year old_index source1 source2 sentence1 sentence2 score",
        [[*"0123456", "A.", "B.", "3.250"], [*"0123456", "C.", "C.", "5.000"]],
    ),
    "MNLI": (
        f"{LONG_MNLI} sentence1 sentence2 label1 gold_label",
        [[*"01234567", "A.", "B.", "neutral", "entailment"], [*"01234567", "C.", "D.", "neutral", "neutral"]],
    ),
    "QNLI": ("index question sentence label", [["0", "Q?", "A.", "entailment"], ["1", "R?", "B.", "not_entailment"]]),
    "RTE": ("index sentence1 sentence2 label", [["0", "A.", "B.", "entailment"], ["1", "C", "D", "not_entailment"]]),
    "WNLI": ("index sentence1 sentence2 label", [["0", "A.", "B.", "1"], ["1", "C.", "D.", "0"]]),
}  # fmt: skip
WANTED: dict[str, tuple[list[tuple[str, ...]], list[Any]]] = {
    "cola": ([('He said "no.',), ("He no said.",)], ["1", "0"]),
    "sst2": ([("good fun",), ('bad "fun',)], ["1", "0"]),
    "mrpc": ([("A b.", "A."), ("C.", "D.")], ["1", "0"]),
    "qqp": ([("Why?", "Why not?"), ("How?", "How so?")], ["0", "1"]),
    "stsb": ([("A.", "B."), ("C.", "C.")], [3.25, 5.0]),
    "mnli": ([("A.", "B."), ("C.", "D.")], ["entailment", "neutral"]),
    "qnli": ([("Q?", "A."), ("R?", "B.")], ["entailment", "not_entailment"]),
    "rte": ([("A.", "B."), ("C", "D")], ["entailment", "not_entailment"]),
    "wnli": ([("A.", "B."), ("C.", "D.")], ["1", "0"]),
}


def write_rows(path: Path, header: list[str], rows: list[list[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(row) + "\n" for row in ([header] if header else []) + rows), encoding="utf8")


def read(data: Path, task: str, **keys: Any) -> Splits:
    config = GlueConfig(model_name_or_path="m", data=str(data), tasks=(task,), **keys)
    return open_splits(config, find_jobs(config)[0])


@pytest.fixture
def sst(tmp_path: Path) -> Path:
    """A folder with a task of two sentences in each file."""
    for split in ("train", "dev"):
        write_rows(tmp_path / "sst2" / f"{split}.tsv", ["sentence", "label"], [["good", "1"], ["bad", "0"]])
    return tmp_path


@pytest.mark.parametrize("folder", GLUE_FILES)
def test_glues_own_files(folder: str, tmp_path: Path) -> None:
    name = folder.lower().replace("-", "")
    header, rows = GLUE_FILES[folder]
    names = header.split("|") if "|" in header else header.split()
    for split in ("train", *(f"dev{'_' * bool(one)}{one}" for one in TASKS[name].sets)):
        write_rows(tmp_path / folder / f"{split}.tsv", names, rows)
    splits = read(tmp_path, name)
    assert list(splits.dev) == list(splits.scored) == list(TASKS[name].sets)
    for examples in (splits.train, *splits.dev.values(), *splits.scored.values()):
        assert (examples.texts, examples.gold) == WANTED[name]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "json", "parquet", "tsv.gz"])
def test_other_files(ending: str, tmp_path: Path) -> None:
    (tmp_path / "rte").mkdir()
    rows = [{"sentence1": 'A, "b".', "sentence2": "C", "label": 1}, {"sentence1": "", "sentence2": "D", "label": 0}]
    for split in ("train", "dev"):
        path = tmp_path / "rte" / f"{split}.{ending}"
        if ending == "csv":
            path.write_text('sentence1,sentence2,label\n"A, ""b"".",C,1\n,D,0\n')
        elif ending == "parquet":
            datasets.Dataset.from_list(rows).to_parquet(path)
        elif ending == "tsv.gz":
            with gzip.open(path, "wt") as file:
                file.write('sentence1\tsentence2\tlabel\nA, "b".\tC\t1\n\tD\t0\n')
        else:
            lines = [json.dumps(row) for row in rows]
            path.write_text("\n".join(lines) if ending == "jsonl" else f"[{','.join(lines)}]")
    splits = read(tmp_path, "rte")
    assert (splits.train.texts, splits.train.gold) == ([('A, "b".', "C"), ("", "D")], ["1", "0"])


def test_a_saved_data_set_is_read_as_the_hubs(tmp_path: Path) -> None:
    features = datasets.Features(
        {
            "premise": datasets.Value("string"),
            "hypothesis": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["entailment", "neutral", "contradiction"]),
        }
    )
    rows = {"premise": ["a", "b", "c"], "hypothesis": ["d", "e", "f"], "label": [2, 0, 1]}
    part = datasets.Dataset.from_dict(rows, features=features)
    names = ("train", "validation_matched", "validation_mismatched")
    datasets.DatasetDict(dict.fromkeys(names, part)).save_to_disk(tmp_path / "mnli")
    splits = read(tmp_path, "mnli")
    assert splits.train.texts == [("a", "d"), ("b", "e"), ("c", "f")]
    assert splits.scored["mismatched"].gold == ["contradiction", "entailment", "neutral"]


def test_languages(tmp_path: Path) -> None:
    rows = [["A", "B", "contradictory"], ["C", "D", "entailment"]]
    write_rows(tmp_path / "xnli" / "train-en.tsv", ["premise", "hypo", "label"], rows)  # as its makers have them
    write_rows(tmp_path / "xnli" / "dev-en.tsv", ["language", "gold_label", "sentence1", "sentence2"],
               [["en", "contradiction", "A", "B"], ["en", "entailment", "C", "D"]])  # fmt: skip
    for language in ("bg", "en"):
        write_rows(tmp_path / "xnli" / f"test-{language}.tsv", [], [["E", "F", "entailment"]])
    splits = read(tmp_path, "xnli")
    assert list(splits.scored) == ["bg", "en"] and list(splits.dev) == ["en"]
    assert splits.train.gold == splits.dev["en"].gold == ["contradiction", "entailment"]
    assert splits.scored["bg"].texts == [("E", "F")]
    config = GlueConfig(model_name_or_path="m", data=str(tmp_path), tasks=("xnli",), translate_train=True)
    jobs = find_jobs(config)
    assert [(job.name, job.train.stem, job.dev[0].stem, [part.stem for part in job.scored]) for job in jobs] == [
        ("xnli-bg", "train-bg", "dev-bg", ["test-bg"]),
        ("xnli-en", "train-en", "dev-en", ["test-en"]),
    ]
    with pytest.raises(UserError, match=r"xnli has no train-bg\.tsv .*; it has dev-en\.tsv, test-bg\.tsv"):
        open_splits(config, jobs[0])
    (tmp_path / "xnli" / "test-bg.tsv").unlink()
    (tmp_path / "xnli" / "test-en.tsv").unlink()
    with pytest.raises(UserError, match=r"no test set of xnli: name it test-LANGUAGE\.tsv"):
        find_jobs(config)


def test_on_the_hub_parts_have_its_names() -> None:
    config = GlueConfig(model_name_or_path="m", tasks=("mnli", "cola", "pawsx"), languages=("ko",))
    mnli, cola, pawsx = find_jobs(config)
    assert [part.hub_split for part in mnli.parts] == ["train", "validation_matched", "validation_mismatched"]
    assert [part.hub_split for part in cola.parts] == ["train", "validation"]
    assert [(part.name, part.hub_split) for part in pawsx.parts] == [
        ("en", "train"), ("en", "validation"), ("ko", "test"),
    ]  # fmt: skip


def test_some_rows(tmp_path: Path) -> None:
    rows = [[f"text {number}", str(number % 2)] for number in range(50)]
    for split in ("train", "dev"):
        write_rows(tmp_path / "sst2" / f"{split}.tsv", ["sentence", "label"], rows)
    few = read(tmp_path, "sst2", max_train_samples=10, max_eval_samples=7)
    assert (len(few.train), len(few.dev[""]), len(few.scored[""])) == (10, 7, 7)
    assert all(
        label == str(int(texts[0].split()[1]) % 2) for texts, label in zip(few.train.texts, few.train.gold, strict=True)
    )
    again, other = (read(tmp_path, "sst2", max_train_samples=10, seed=seed) for seed in (42, 43))
    assert again.train == few.train and other.train != few.train
    one, two = (read(tmp_path, "sst2", max_eval_samples=7, seed=seed) for seed in (1, 2))
    assert one.dev == two.dev == few.dev  # a seed is that of training
    assert again.fingerprint() != other.fingerprint() != few.fingerprint()
    assert read(tmp_path, "sst2").fingerprint() == read(tmp_path, "sst2", seed=3).fingerprint()


def test_a_row_with_other_fields_is_left_out_and_told(sst: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("turncoder").propagate = True
    with (sst / "sst2" / "train.tsv").open("a") as file:
        file.write("no label\nfine\t1\ntoo\tmany\tfields\n")
    splits = read(sst, "sst2")
    assert [texts[0] for texts in splits.train.texts] == ["good", "bad", "fine"]
    assert "2 rows have not 2 fields, as the others do, and are left out (lines 4, 6)" in caplog.text


WRONG = {
    "no file": (lambda home: (home / "dev.tsv").unlink(), r"sst2 has no dev\.tsv \(.*\); it has train\.tsv"),
    "no folder": (lambda home: home.rename(home.with_name("SST")), r"no folder sst2 .*; its folders: SST"),
    "two files": (lambda home: (home / "dev.csv").write_text("a\n"), r"dev\.csv and dev\.tsv are both dev|both dev"),
    "empty": (lambda home: (home / "dev.tsv").write_text(""), r"dev\.tsv: no rows"),
    "only a header": (lambda home: (home / "dev.tsv").write_text("sentence\tlabel\n"), r"dev\.tsv: no rows"),
    "no text column": (
        lambda home: (home / "train.tsv").write_text("text\tlabel\na\t1\n"),
        r"train\.tsv, line 2: no column 'sentence'; there are text, label",
    ),
    "no label column": (
        lambda home: (home / "train.tsv").write_text("sentence\tgrade\na\t1\n"),
        r"no column 'label'; there are sentence, grade",
    ),
    "no text": (lambda home: (home / "train.tsv").write_text("sentence\tlabel\n \t1\n"), r"line 2: no text in"),
    "no label": (lambda home: (home / "dev.tsv").write_text("sentence\tlabel\na\t\n"), r"label = '' is no label"),
    "a test set": (lambda home: (home / "dev.tsv").write_text("sentence\tlabel\na\t-1\n"), r"GLUE's test sets"),
    "labels that training lacks": (
        lambda home: (home / "dev.tsv").write_text("sentence\tlabel\na\tyes\nb\tyes\nc\t0\n"),
        r"dev\.tsv: labels that .*train\.tsv does not have: 'yes' \(2 of 3 rows\); it has '0', '1'",
    ),
    "one label": (
        lambda home: (home / "train.tsv").write_text("sentence\tlabel\na\t1\nb\t1\n"),
        r"all 2 rows have the label '1'",
    ),
    "not UTF-8": (lambda home: (home / "dev.tsv").write_bytes(b"sentence\tlabel\n\xff\t1\n"), r"line 2 .*not UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(name: str, sst: Path) -> None:
    spoil, said = WRONG[name]
    spoil(sst / "sst2")
    with pytest.raises(UserError, match=said) as told:
        read(sst, "sst2")
    assert "\n" not in str(told.value)


def test_the_folder_has_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place, said in ((tmp_path / "file", "a file"), (tmp_path / "nowhere", "no such folder")):
        with pytest.raises(UserError, match=said):
            read(place, "rte")


@pytest.mark.parametrize("value", ["high", "nan", ""])
def test_a_score_has_to_be_a_number(value: str, tmp_path: Path) -> None:
    write_rows(
        tmp_path / "stsb" / "train.tsv", ["sentence1", "sentence2", "score"], [["a", "b", "1"], ["a", "c", value]]
    )
    with pytest.raises(UserError, match=rf"train\.tsv, line 3: score = '{value}' is no number; write it like 3\.8"):
        read(tmp_path, "stsb")


def test_f1_needs_to_know_its_class(tmp_path: Path) -> None:
    for split in ("train", "dev"):
        rows = [["a", "b", "same"], ["c", "d", "other"]]
        write_rows(tmp_path / "mrpc" / f"{split}.tsv", ["sentence1", "sentence2", "label"], rows)
    with pytest.raises(UserError, match=r"F1 is of the class 1 \(or equivalent, or duplicate\).* other, same; rename"):
        read(tmp_path, "mrpc")
