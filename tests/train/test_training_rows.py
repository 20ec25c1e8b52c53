"""Rows with their prompts: those of the E5 mixture, a file's or two flags', kept apart from the texts."""

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from sentence_transformers import SentenceTransformer

from turncoder.config.stages import MntpConfig, SimcseConfig, SupervisedConfig
from turncoder.data.masking import MaskedBlocks
from turncoder.data.pairs import Rows
from turncoder.encode.encoder import load_encoder
from turncoder.errors import UserError
from turncoder.train.rows import open_rows
from turncoder.train.text import open_text

SYMMETRIC = {
    "Retrieve semantically similar text",
    "Given a question, retrieve questions that are semantically equivalent to the given question",
    "Find questions that have the same meaning as the input question",
}
SETS = json.loads((files("turncoder") / "resources" / "e5.json").read_text(encoding="utf8"))["sets"]


@pytest.fixture(scope="module")
def encoder(stories: Path) -> SentenceTransformer:
    return load_encoder(str(stories), device="cpu")


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNCODER_CACHE", str(tmp_path_factory.mktemp("cache")))


def write(path: Path, count: int = 12, **others: str) -> Path:
    rows = [{"query": f"query {row}", "positive": f"good {row}", "negative": f"bad {row}"} for row in range(count)]
    path.write_text("".join(json.dumps(row | others) + "\n" for row in rows))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of the 14 sets."""
    (tmp_path / "e5").mkdir()
    for name in SETS:
        write(tmp_path / "e5" / f"{name}.jsonl")
    return tmp_path / "e5"


def open_all(encoder: SentenceTransformer, file: Path, **keys: Any) -> dict[str, Rows]:
    keys = {"validation_split_percentage": 1e-9, **keys}
    config = SupervisedConfig(model_name_or_path="m", train_file=str(file), **keys)
    return {rows.name: rows for rows, _ in open_rows(config, encoder.tokenizer, encoder.max_seq_length, template=False)}


def test_the_e5_instructions_are_those_of_the_reference(shared: Path):
    reference = (shared / "reference" / "llm2vec.md").read_text(encoding="utf8")
    section = " ".join(re.search(r"### 1\.9.*?### 1\.10", reference, re.DOTALL).group().split())  # type: ignore[union-attr]
    names = re.search(r"14 subsets: (.*?) \(\*", section).group(1)  # type: ignore[union-attr]
    assert {name.strip("*") for name in names.split(", ")} == set(SETS)
    assert {name.strip("*") for name in names.split(", ") if "*" in name} == {n for n, c in SETS.items() if len(c) == 2}
    said = section.partition("Prompts: ")[2].replace("passages|documents", "passages")
    found: dict[str, list[str]] = {}
    for heads, first, second in re.findall(r'([\w, /]+) "([^"]+)"(?: / "([^"]+)")?', said):
        for head in re.split(r"[ ,/]+", heads.strip()):
            found[head] = [first, second] if second else [first]
    found["msmarco_document"] = [found.pop("_document")[0].replace("passages", "documents")]
    whole = {name: next(prompts for head, prompts in found.items() if name.startswith(head)) for name in SETS}
    assert {name: [one["query"] for one in choices] for name, choices in SETS.items()} == whole
    assert sum(map(len, SETS.values())) == 16
    assert {one["query"] for choices in SETS.values() for one in choices if one.get("symmetric")} == SYMMETRIC


def test_a_folder_of_the_14_sets_gets_them(folder: Path, encoder: SentenceTransformer):
    sets = open_all(encoder, folder)
    parts = {name: [name] if len(SETS[name]) == 1 else [f"{name}_1", f"{name}_2"] for name in SETS}
    assert [*sets] == [part for name in sorted(parts) for part in parts[name]]
    for name, names in parts.items():
        for number, part in enumerate(names):
            prompt = SETS[name][number]["query"]
            columns = sets[part].data.column_names if prompt in SYMMETRIC else ["anchor"]
            assert sets[part].prompts == dict.fromkeys(columns, f"{prompt}\n")
            assert sets[part].data["anchor"][:] == [f"query {row}" for row in range(number, 12, len(names))]
            assert sets[part].counts["rows"] == len(sets[part]) == 12 // len(names)


@pytest.mark.parametrize(
    "keys",
    [{"query_prompt": "Find:\n"}, {"document_prompt": "Text:\n"}, {"query_prompt": "Q:\n", "document_prompt": "D:\n"}],
)
def test_two_flags_are_the_prompts_of_all_sets(keys: dict[str, str], folder: Path, encoder: SentenceTransformer):
    sets = open_all(encoder, folder, **keys)
    assert set(sets) == set(SETS)
    sides = {"anchor": "query_prompt", "positive": "document_prompt", "negative_1": "document_prompt"}
    wanted = {column: keys[key] for column, key in sides.items() if key in keys}
    assert all(rows.prompts == wanted for rows in sets.values())


def test_a_file_has_the_prompts_of_its_sets_and_others_the_flags(
    folder: Path, encoder: SentenceTransformer, tmp_path: Path
):
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps({"nq": {"query": "Frage:\n", "document": None}, "allnli": {"document": "Text:\n"}}))
    sets = open_all(encoder, folder, prompts_file=str(path), query_prompt="Q:\n")
    assert set(sets) == set(SETS), "a set with prompts of its own is not divided"
    assert sets["nq"].prompts == {"anchor": "Frage:\n"}
    assert sets["allnli"].prompts == {"positive": "Text:\n", "negative_1": "Text:\n"}
    assert sets["fever"].prompts == {"anchor": "Q:\n"}


def test_a_set_without_a_prompt_among_those_of_the_mixture_is_said(
    folder: Path, encoder: SentenceTransformer, caplog: pytest.LogCaptureFixture
):
    open_all(encoder, folder)
    assert "E5" not in caplog.text
    write(folder / "mine.jsonl")
    assert open_all(encoder, folder)["mine"].prompts == {}
    assert "mine: no set of the E5 mixture" in caplog.text


def test_no_held_out_rows_where_none_are_asked_for(encoder: SentenceTransformer, folder: Path):
    assert len(open_all(encoder, folder / "nq.jsonl", validation_split_percentage=0)["nq"]) == 12


def test_a_single_file_has_no_prompts_of_itself(encoder: SentenceTransformer, tmp_path: Path):
    assert open_all(encoder, write(tmp_path / "nq.jsonl"))["nq"].prompts == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"prompts\.json cannot be read"),
        ('{"nq": ', r"prompts\.json cannot be read"),
        ("[1]", "must be"),
        ('{"nq": "Q:"}', "'nq' must be"),
        ('{"nq": {"question": "Q:"}}', "'nq' must be"),
        ('{"nq": {"query": 3}}', "'nq' must be"),
        ('{"fevre": {"query": "Q:"}}', "has prompts for 'fevre'; the sets are nq"),
    ],
)
def test_wrong_files_of_prompts(content: str | None, message: str, encoder: SentenceTransformer, tmp_path: Path):
    path = tmp_path / "prompts.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=f"prompts_file.*{message}") as caught:
        open_all(encoder, write(tmp_path / "nq.jsonl"), prompts_file=str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("side", ["query_prompt", "document_prompt"])
def test_prompts_that_do_not_keep_apart_or_are_too_long(
    side: str, stories: Path, encoder: SentenceTransformer, tmp_path: Path
):
    path = tmp_path / "set.jsonl"
    path.write_text('{"query": "e cat", "positive": "e dog", "negative": "e end"}\n' * 2)
    with pytest.raises(UserError, match=r"'Once upon a tim' does not stay apart.*end it in a newline"):
        open_all(encoder, path, **{side: "Once upon a tim"})
    assert open_all(encoder, path, **{side: "Once upon a tim\n"})
    short = load_encoder(str(stories), device="cpu", max_seq_length=4)
    with pytest.raises(UserError, match="max_seq_length is 4: no token of a text would be seen"):
        open_all(short, path, **{side: "Once upon a time there was\n"})
    with pytest.raises(UserError, match="does not stay apart"):
        texts = tmp_path / "texts.txt"
        texts.write_text("e cat\ne dog\n")
        open_rows(
            SimcseConfig(model_name_or_path="m", train_file=str(texts), prompt="Once upon a tim"),
            encoder.tokenizer,
            encoder.max_seq_length,
            template=False,
        )


def test_held_out_rows_are_a_share_or_a_file(encoder: SentenceTransformer, tmp_path: Path):
    train, held_out = write(tmp_path / "set.jsonl", 400), write(tmp_path / "other.jsonl", 7)
    keys: dict[str, Any] = {"model_name_or_path": "m", "train_file": str(train), "query_prompt": "Q:\n"}

    def count(**more: Any) -> tuple[int, int]:
        ((rows, others),) = open_rows(
            SupervisedConfig(**keys, **more), encoder.tokenizer, encoder.max_seq_length, template=False
        )
        assert rows.prompts == others.prompts == {"anchor": "Q:\n"}
        return len(rows), len(others)

    kept, apart = count(validation_split_percentage=20)
    assert kept + apart == 400 and 50 < apart < 110
    assert count(validation_file=str(held_out)) == (400, 7)
    assert count(as_llm2vec=True) == (400, 0)
    assert count(max_train_samples=9, max_eval_samples=3, validation_split_percentage=20) == (9, 3)
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(f"text {row}. And {row} more." for row in range(400)))
    keys = {"model_name_or_path": "m", "train_file": str(texts)}
    for split, total in ((False, 400), (True, 800)):
        ((rows, others),) = open_rows(
            SimcseConfig(**keys, prompt="P:\n", split_sentences=split),
            encoder.tokenizer,
            encoder.max_seq_length,
            template=False,
        )
        assert len(rows) + len(others) == total and rows.prompts == others.prompts == {"text": "P:\n"}
        ((rows, others),) = open_rows(
            SimcseConfig(**keys, split_sentences=split, validation_file=str(texts), max_train_samples=5),
            encoder.tokenizer,
            encoder.max_seq_length,
            template=False,
        )
        assert (len(rows), len(others)) == (5, total)


def test_what_is_measured_does_not_depend_on_the_seed(
    encoder: SentenceTransformer, stories: Path, stories_text: Path, tmp_path: Path
) -> None:
    rows = {"model_name_or_path": "m", "train_file": str(write(tmp_path / "set.jsonl", 400))}
    rows |= {"validation_split_percentage": 20, "max_train_samples": 30, "max_eval_samples": 9}
    pairs = [
        open_rows(SupervisedConfig(**rows, seed=seed), encoder.tokenizer, 512, template=False)[0] for seed in (0, 1)
    ]
    assert pairs[0][1].data[:] == pairs[1][1].data[:] and pairs[0][0].data[:] != pairs[1][0].data[:]

    keys = {"model_name_or_path": str(stories), "train_file": str(stories_text), "max_seq_length": 64}
    keys |= {"max_train_samples": 30, "max_eval_samples": 5}
    texts = [open_text(MntpConfig(**keys, seed=seed), encoder.transformers_model, encoder.tokenizer) for seed in (0, 1)]
    scored = [MaskedBlocks(text.validation, text.eval_masking, evaluation=True) for text in texts]
    trained = [MaskedBlocks(text.train, text.masking) for text in texts]
    for name in ("input_ids", "labels"):
        assert [row[name].tolist() for row in scored[0]] == [row[name].tolist() for row in scored[1]]
        assert [row[name].tolist() for row in trained[0]] != [row[name].tolist() for row in trained[1]]


def test_pairs_that_are_evaluated_on_belong_to_sets_by_their_names(encoder: SentenceTransformer, tmp_path: Path):
    for folder, names in (("train", "ab"), ("dev", "bc")):
        (tmp_path / folder).mkdir()
        for name in names:
            write(tmp_path / folder / f"{name}.jsonl")
    keys = {"model_name_or_path": "m", "train_file": str(tmp_path / "train")}

    def measure(name: str) -> list[int]:
        config = SupervisedConfig(**keys, validation_file=str(tmp_path / "dev" / name))
        rows = open_rows(config, encoder.tokenizer, encoder.max_seq_length, template=False)
        return [len(held_out) for _, held_out in rows]

    assert measure("b.jsonl") == [0, 12]
    for name in ("c.jsonl", ""):
        with pytest.raises(UserError, match=r"^validation_file: .*'c'.*the sets are a, b"):
            measure(name)
