"""evaluate sentences: mteb's own scores of the same model, prompts that reach it, and only what is missing."""

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn.linear_model import LogisticRegression
from transformers import AutoModel, AutoTokenizer

from turncoder import load_encoder
from turncoder.cli import main
from turncoder.config.sentences import SentencesConfig
from turncoder.errors import UserError
from turncoder.evaluate import mtebruns
from turncoder.evaluate.mtebruns import evaluate_sentences
from turncoder.evaluate.retrieval import score_bm25, score_tfidf
from turncoder.evaluate.sentencefiles import open_sentence_file
from turncoder.evaluate.sentences import encode_columns, read_sts, score_columns, score_sts, score_sts_words
from turncoder.prompts import read_instructions, read_prompt_file
from turncoder.report.comparison import compare_runs
from turncoder.report.runrows import open_files
from turncoder.report.summary import read_run

mteb = pytest.importorskip("mteb", reason="mteb is not installed (pip install 'turncoder[sentences]')")
mtebtasks = pytest.importorskip("turncoder.evaluate.mtebtasks")
mtebmodel = pytest.importorskip("turncoder.evaluate.mtebmodel")
make_task = pytest.importorskip("turncoder.evaluate.sentencetasks").make_task

ROWS = 40
LABELS = ("order_physical_card", "passcode_forgotten", "pending_card_payment", "pending_cash_withdrawal")
CLASSES = ("classification", "folds")
Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def specs(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A slice of real data for each kind."""
    folder, data = tmp_path_factory.mktemp("data"), shared / "data"

    def cut(source: str, name: str, *rows: slice) -> Path:
        lines = (data / source).read_text(encoding="utf8").splitlines(keepends=True)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join("".join(lines[part]) for part in rows), encoding="utf8")
        return path

    for split, count in (("train", 20), ("test", 13)):
        whole = open_sentence_file(f"clustering={data}/banking77/{split}.csv").splits["test"]
        rows = list(zip(whole["sentences"], whole["labels"], strict=True))
        chosen = [row for label in LABELS for row in [row for row in rows if row[1] == label][:count]]
        path = folder / "bank" / f"{split}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps({"text": a, "label": b}) + "\n" for a, b in chosen), encoding="utf8")
    beir = folder / "beir"
    qrels = cut("scifact_beir/qrels/test.tsv", "beir/qrels/test.tsv", slice(0, 9))
    named = {line.split("\t")[1] for line in qrels.read_text(encoding="utf8").splitlines()}
    lines = (data / "scifact_beir/corpus.jsonl").read_text(encoding="utf8").splitlines(keepends=True)
    kept = [line for number, line in enumerate(lines) if number < 15 or json.loads(line)["_id"] in named]
    short = [{**row, "text": row["text"][:200]} for row in map(json.loads, kept)]
    (beir / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in short), encoding="utf8")
    cut("scifact_beir/queries.jsonl", "beir/queries.jsonl", slice(0, None))
    languages = [cut(f"ntrex/newstest2019.{one}.txt", f"news.{one}.txt", slice(0, ROWS)) for one in ("deu", "eng")]
    return {
        "sts": f"sts={cut('stsb/stsb-dev.tsv', 'sts.tsv', slice(0, 1), slice(300, 300 + ROWS))}",
        "retrieval": f"retrieval={beir}",
        "classification": f"classification={folder / 'bank'}",
        "folds": f"classification={folder / 'bank' / 'train.jsonl'}",
        "clustering": f"clustering={folder / 'bank' / 'train.jsonl'}",
        "pairs": f"pair_classification={cut('pawsx/dev-en.tsv', 'paws.tsv', slice(0, ROWS))}",
        "bitext": f"bitext={languages[0]},{languages[1]}",
        "triplets": f"triplets={cut('nli_triplets/dev-en.jsonl', 'nli.jsonl', slice(0, ROWS))}",
    }


@pytest.fixture(scope="module")
def scored(specs: dict[str, str], stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on all of them."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    words = ["evaluate", "sentences", str(stories), "--task_file", *specs.values(), "--device", "cpu"]
    assert main([*words, "--output", str(folder)]) == 0
    return folder


@pytest.fixture
def run(stories: Path, tmp_path: Path) -> Run:
    """Score files, and give the results by task."""

    def score(*files: str, output: str = "run", model: Path = stories, **keys: Any) -> dict[str, Any]:
        told = {"model_name_or_path": str(model), "device": "cpu", "baselines": False, **keys}
        config = SentencesConfig(task_file=files, output_dir=str(tmp_path / output), **told)
        return read(evaluate_sentences(config))

    return score


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text(encoding="utf8"))["tasks"]


def find(scored: Path, spec: str) -> tuple[str, dict[str, Any]]:
    name = open_sentence_file(spec).name
    return name, read(scored)[name]


class Border(LogisticRegression):
    """Notes the predictions that rounding may change.

    The regression of mteb stops on its way to the optimum, at a distance: the difference of its decisions to those of
    one that converges. Where the two best classes are nearer to each other than that of both, either may win.
    """

    near: ClassVar[list[bool]] = []

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        self.optimum = LogisticRegression(max_iter=100_000, tol=1e-8).fit(np.asarray(X, np.float64), y)
        return super().fit(X, y, sample_weight)

    def predict(self, X: Any) -> Any:
        decision_NC = self.decision_function(X)
        distance_N = np.abs(decision_NC - self.optimum.decision_function(np.asarray(X, np.float64))).max(1)
        best_NC = np.sort(decision_NC, axis=1)
        self.near.extend((best_NC[:, -1] - best_NC[:, -2] < 2 * distance_N).tolist())
        return super().predict(X)


@pytest.fixture(scope="module")
def borders(specs: dict[str, str], stories: Path) -> dict[str, float]:
    """The share of a classifier's predictions that rounding may change."""
    shares = {}
    for kind in CLASSES:
        task: Any = make_task(open_sentence_file(specs[kind]), 42)
        task.evaluator_model, Border.near = Border(max_iter=100), []
        model = mtebmodel.EncoderModel(load_encoder(str(stories), device="cpu"))
        mteb.evaluate(model, task, cache=None, show_progress_bar=False)
        shares[kind] = float(np.mean(Border.near))
        assert len(Border.near) > 0 and shares[kind] < 0.03
    return shares


def items(scored: Path, told: dict[str, Any]) -> dict[str, Any]:
    (part,) = json.loads((scored / told["items"]).read_text(encoding="utf8"))["parts"].values()
    return part


KIND_NAMES = ["sts", "retrieval", "classification", "folds", "clustering", "pairs", "bitext", "triplets"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KIND_NAMES)
def test_scores_are_those_of_mteb_with_plain_sentence_transformers(
    kind: str, specs: dict[str, str], stories: Path, scored: Path, borders: dict[str, float]
) -> None:
    name, told = find(scored, specs[kind])
    task = make_task(open_sentence_file(specs[kind]), 42)
    plain = load_encoder(str(stories), device="cpu")
    found = mteb.evaluate(plain, task, cache=None, encode_kwargs={"batch_size": 3}, show_progress_bar=False)
    (row,) = next(iter(found.task_results[0].scores.values()))
    numbers = {key: value for key, value in row.items() if isinstance(value, int | float) and not math.isnan(value)}
    ours = {key: value for key, value in told["metrics"].items() if value is not None}
    near = borders.get(kind, 0) + 1e-4
    assert numbers.pop("main_score") == pytest.approx(told["main_score"], abs=near)
    assert numbers.keys() == ours.keys() and len(numbers) >= 4
    assert kind in CLASSES or numbers == pytest.approx(ours, abs=near)
    kept = mteb.ResultCache(scored / "mteb")
    (place,) = (scored / "mteb").rglob(f"{name}.json")
    assert kept.cache_path in place.parents
    assert json.loads(place.read_text(encoding="utf8"))["task_name"] == name


@pytest.mark.slow
def test_a_batch_does_not_change_a_score(specs: dict[str, str], shared: Path, run: Run) -> None:
    model = shared / "models" / "babyllama-char105-hf"
    whole, small = (run(*specs.values(), model=model, output=str(size), batch_tokens=size) for size in (None, 64))
    assert len(whole) == len(specs)
    assert {name: told["metrics"] for name, told in small.items()} == {n: told["metrics"] for n, told in whole.items()}


def test_what_is_cut_is_counted(
    specs: dict[str, str], stories: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    told = run(specs["sts"], specs["retrieval"], max_seq_length=40)
    pairs = open_sentence_file(specs["sts"]).splits["test"]
    beir = open_sentence_file(specs["retrieval"]).splits
    corpus, asked = beir["corpus"], dict(zip(beir["queries"]["id"], beir["queries"]["text"], strict=True))
    found = {asked[name] for name in beir["qrels"]["query"]}
    found |= {f"{title} {text}".strip() for title, text in zip(corpus["title"], corpus["text"], strict=True)}
    tokenizer = AutoTokenizer.from_pretrained(stories)
    counts = []
    for spec, texts in (("sts", {*pairs["sentence1"], *pairs["sentence2"]}), ("retrieval", found)):
        row = told[open_sentence_file(specs[spec]).name]
        cut = sum(len(ids) > 40 for ids in tokenizer(sorted(texts))["input_ids"])
        assert (row["texts"], row["truncated"], row["max_seq_length"]) == (len(texts), cut, 40)
        counts.append((cut, len(texts)))
    cut, texts = map(sum, zip(*counts, strict=True))
    said = f"{cut} of {texts} texts were longer than the limit and cut off (max_seq_length = 40)"
    assert caplog.text.count("longer than the limit") == 1 and said in caplog.text
    assert 0 < counts[0][0] < counts[0][1] < texts


def test_an_evaluation_is_no_model(scored: Path, stories: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "sentences", str(scored), "--tasks", "SciFact", "--output", "other"]) == 2
    said = capsys.readouterr().err
    assert f"{scored} is a run of evaluate sentences and has no model; name the one that it scored: {stories}" in said


@pytest.mark.slow
def test_items_are_what_the_scores_are_means_of(specs: dict[str, str], scored: Path) -> None:
    for kind, metric in {
        "retrieval": "ndcg_at_10",
        "classification": "accuracy",
        "folds": "accuracy",
        "bitext": "accuracy",
        "triplets": "accuracy",
    }.items():
        _, told = find(scored, specs[kind])
        part = items(scored, told)
        assert np.mean(part["score"]) == pytest.approx(told["metrics"][metric], abs=1e-4), kind
        assert len(part["score"]) > 5
    _, told = find(scored, specs["sts"])
    part = items(scored, told)
    assert part["gold"] == read_sts(specs["sts"].partition("=")[2]).score_N.tolist()
    assert find(scored, specs["clustering"])[1]["items"] is None


@pytest.mark.slow
def test_scores_are_those_of_our_own_measures(specs: dict[str, str], scored: Path, stories: Path) -> None:
    encoder = load_encoder(str(stories), device="cpu")
    sts = read_sts(specs["sts"].partition("=")[2])
    _, told = find(scored, specs["sts"])
    assert told["main_score"] == pytest.approx(score_sts(encoder, sts), abs=1e-4)
    words = {name: told["baselines"][name] for name in ("tfidf", "bm25")}
    assert words == pytest.approx(score_sts_words(sts), abs=1e-6)
    columns = open_sentence_file(specs["triplets"]).splits["test"]
    three = {"anchor": columns["anchor"], "positive": columns["positive"]}
    three["negative_1"] = [row[0] for row in columns["negatives"]]
    accuracy = score_columns(encode_columns(encoder, three, {}))["triplet_accuracy"]
    assert find(scored, specs["triplets"])[1]["main_score"] == pytest.approx(accuracy)


@pytest.mark.slow
def test_baselines_of_a_search_are_those_of_its_words(specs: dict[str, str], scored: Path) -> None:
    splits = open_sentence_file(specs["retrieval"]).splits
    told = find(scored, specs["retrieval"])[1]["baselines"]
    right: dict[str, set[str]] = {}
    for query, document in zip(splits["qrels"]["query"], splits["qrels"]["document"], strict=True):
        right.setdefault(query, set()).add(document)
    texts = dict(zip(splits["queries"]["id"], splits["queries"]["text"], strict=True))
    documents = [f"{one} {two}" for one, two in zip(splits["corpus"]["title"], splits["corpus"]["text"], strict=True)]
    for name, score in (("bm25", score_bm25), ("tfidf", score_tfidf)):
        gains = []
        for row, query in zip(score([texts[query] for query in right], documents), right, strict=True):
            best = [splits["corpus"]["id"][place] for place in np.argsort(-row, kind="stable")[:10]]
            gain = sum(1 / math.log2(rank + 2) for rank, one in enumerate(best) if one in right[query])
            gains.append(gain / sum(1 / math.log2(rank + 2) for rank in range(min(10, len(right[query])))))
        assert told[name] == pytest.approx(np.mean(gains), abs=2e-3)  # where documents tie, the order differs


@pytest.mark.slow
def test_every_kind_has_its_baselines(specs: dict[str, str], scored: Path) -> None:
    found = {kind: set(find(scored, spec)[1]["baselines"]) for kind, spec in specs.items()}
    both = {"bm25", "tfidf", "static"}
    assert found == {
        kind: both if kind in ("sts", "retrieval", "pairs", "triplets") else {"tfidf", "static"} for kind in specs
    }
    rows = read_run(scored)["rows"]
    assert [row["main_score"] for row in rows] == [told["main_score"] for told in read(scored).values()]
    assert rows[0]["bm25"] == find(scored, specs["sts"])[1]["baselines"]["bm25"]


@pytest.mark.slow
def test_what_was_scored_is_said(specs: dict[str, str], scored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, told = find(scored, specs["sts"])
    revision = open_sentence_file(specs["sts"]).fingerprint[:12]
    assert told["mteb"] == mteb.__version__
    assert told["data"] == {"revision": revision, "splits": ["test"], "subsets": ["default"]}
    mtebruns.show(scored, Console(width=80))
    shown = capsys.readouterr().out
    assert all(f"{name} " in shown for name in read(scored))  # no name is broken
    found = compare_runs(open_files(scored), open_files(scored))
    pairs = find(scored, specs["pairs"])[1]["metrics"]
    judges = {kind: kind not in ("clustering", "bitext") for kind in KIND_NAMES}
    judges["pairs"] = pairs["max_ap"] == pairs["cosine_ap"]
    assert {one.task for one in found if one.judges} == {
        find(scored, specs[kind])[0] for kind, told in judges.items() if told
    }


def load(texts: list[str]) -> Any:
    """Put texts into a loader of mteb's."""
    from mteb._create_dataloaders import _create_dataloader_from_texts

    return _create_dataloader_from_texts(texts)


def test_the_bag_is_the_mean_of_the_input_embeddings(stories: Path) -> None:
    encoder = load_encoder(str(stories), device="cpu")
    texts = ["A small dog ran.", "", "A small dog ran.", "Tim"]
    bag_ND = mtebmodel.BagModel(encoder).encode(load(texts))
    weight_VD = AutoModel.from_pretrained(stories).get_input_embeddings().weight.detach()
    tokenizer = AutoTokenizer.from_pretrained(stories)
    for text, vector_D in zip(texts, bag_ND, strict=True):
        ids = tokenizer.encode(text, add_special_tokens=False)
        expected_D = weight_VD[ids].mean(0) if ids else torch.zeros(weight_VD.shape[1])
        np.testing.assert_allclose(vector_D, expected_D.numpy(), atol=1e-5)


@pytest.mark.parametrize("llm2vec", [False, True])
def test_an_instruction_is_seen_and_not_pooled(llm2vec: bool, stories: Path) -> None:
    encoder = load_encoder(str(stories), device="cpu", llm2vec=llm2vec)
    text = "there was a dog."  # whose first token takes the space, as those of larger vocabularies do
    told = {"Task": "Retrieve similar text:", "STS": {"query": "one\n", "document": "two\n"}}
    model = mtebmodel.EncoderModel(encoder, prompts=told)
    metadata = mtebtasks.mteb.get_task("STS12").metadata.model_copy(update={"name": "Task"})
    vector_D = model.encode(load([text]), task_metadata=metadata)[0]
    assert model.examples["text"].replace(" ", "") == f"<s>Retrievesimilartext:[{text.replace(' ', '')}]"
    tokenizer = AutoTokenizer.from_pretrained(stories)
    encoded = tokenizer(f"Retrieve similar text: {text}", return_offsets_mapping=True, return_tensors="pt")
    starts = len("Retrieve similar text: ")
    inside = [end > starts for _, end in encoded.pop("offset_mapping")[0].tolist()]
    with torch.no_grad():
        hidden_LD = load_encoder(str(stories), device="cpu").transformers_model(**encoded).last_hidden_state[0]
    np.testing.assert_allclose(vector_D, hidden_LD[inside].mean(0).numpy(), atol=1e-5)
    other_D = model.encode(load([text]), task_metadata=metadata.model_copy(update={"name": "Other"}))[0]
    assert np.abs(other_D - vector_D).max() > 1e-3


def test_sides_have_their_prompts(stories: Path) -> None:
    from mteb.types import PromptType

    encoder = load_encoder(str(stories), device="cpu")
    search, sts = mteb.get_task("SciFact"), mteb.get_task("STS12")
    file = mtebmodel.EncoderModel(encoder, prompts={"SciFact": "Find:", "STS": {"query": "q\n", "document": "d\n"}})
    assert [file.find_prompt(search, side) for side in mtebmodel.SIDES] == [("Find:", " "), ("Find:", " "), ("", "")]
    assert [file.find_prompt(sts, side)[0] for side in mtebmodel.SIDES] == ["q\n", "q\n", "d\n"]
    encoder.prompts = {"query": "ask\n", "document": "read\n", "STS": "alike\n"}
    own = mtebmodel.EncoderModel(encoder)
    assert [own.find_prompt(search, side)[0] for side in mtebmodel.SIDES] == ["", "ask\n", "read\n"]
    assert own.find_prompt(sts, "text")[0] == "alike\n"
    own.begin(search)
    for side in (PromptType.query, PromptType.document):
        own.encode(load(["a dog"]), task_metadata=search.metadata, prompt_type=side)
    assert own.used == {"query": "ask\n", "document": "read\n"}
    assert own.examples == {"query": "<s> ask\\n[a dog]", "document": "<s> read\\n[a dog]"}


def test_llm2vecs_instructions_are_its_own(shared: Path, stories: Path) -> None:
    theirs = json.loads((shared / "configs/llm2vec/test_configs/mteb/task_to_instructions.json").read_text())
    assert read_instructions() == theirs and len(theirs) == 67
    model = mtebmodel.EncoderModel(load_encoder(str(stories), device="cpu"), prompts=theirs, falls_back=True)
    assert model.find_prompt(mteb.get_task("STS12"), "text") == ("Retrieve semantically similar text:", " ")
    unknown = mteb.get_task("XNLI")  # LLM2Vec takes mteb's own, and ends it in a colon
    instruction = model.find_prompt(unknown, "text")[0]
    assert instruction.endswith(":") and len(instruction) > 10 and "." not in instruction[-2:]


def test_a_text_is_encoded_once(stories: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = mtebmodel.EncoderModel(load_encoder(str(stories), device="cpu", max_seq_length=8))
    encoded: list[str] = []
    encode = mtebmodel.BatchEncoder.encode

    def count(self: Any, texts: list[str]) -> Any:
        encoded.extend(texts)
        return encode(self, texts)

    monkeypatch.setattr(mtebmodel.BatchEncoder, "encode", count)
    metadata = mteb.get_task("STS12").metadata
    long = "a dog " * 9
    first_ND = model.encode(load(["a", "b", "a", long]), task_metadata=metadata)
    assert model.cut == {long}
    model.begin(None)
    second_ND = model.encode(load(["c", "a"]), task_metadata=metadata)
    assert model.cut == set() and encoded == ["a", "b", long, "c"]
    model.encode(load([long, "a"]), task_metadata=metadata)
    assert model.cut == {long} and encoded == ["a", "b", long, "c"]
    np.testing.assert_array_equal(first_ND[2], second_ND[1])
    monkeypatch.setattr(mtebmodel, "KEPT_BYTES", 0)
    model.encode(load(["d"]), task_metadata=metadata)
    np.testing.assert_allclose(model.encode(load(["a"]), task_metadata=metadata)[0], first_ND[0], atol=1e-5)


@pytest.mark.slow
def test_only_what_is_missing_is_scored(
    specs: dict[str, str], stories: Path, run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = Path(specs["sts"].partition("=")[2]).read_text(encoding="utf8")
    file = tmp_path / "mine.tsv"
    file.write_text(text, encoding="utf8")
    first = run(f"sts={file}")
    both = run(specs["bitext"])
    assert both["sts_mine"] == first["sts_mine"] and len(both) == 2  # seconds too
    assert f'task_file = ["{specs["bitext"]}", "sts={file}"]' in (tmp_path / "run" / "config.toml").read_text()
    assert run(f"sts={file}") == both and "has all these scores already" in caplog.text
    file.write_text("".join(text.splitlines(keepends=True)[:-3]), encoding="utf8")
    again = run(f"sts={file}")
    assert f"sts_mine is scored again: {file} has changed" in caplog.text
    assert again["sts_mine"]["main_score"] != first["sts_mine"]["main_score"]
    with pytest.raises(UserError, match=r"another configuration .*seed"):
        run(f"sts={file}", seed=1)
    prompts = tmp_path / "prompts.json"
    prompts.write_text('{"STS": "alike\\n"}', encoding="utf8")
    with_prompt = run(f"sts={file}", output="prompted", prompt_file=str(prompts))["sts_mine"]
    assert with_prompt["prompts"] == {"text": "alike "}
    prompts.write_text('{"STS": {"query": "same\\n"}}', encoding="utf8")
    assert run(f"sts={file}", output="prompted", prompt_file=str(prompts))["sts_mine"]["prompts"] == {"text": "same\n"}


@pytest.mark.slow
def test_a_task_that_fails_does_not_stop_those_after_it(
    specs: dict[str, str], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = mtebruns._score

    def fail(config: Any, folder: Path, model: Any, task: Any) -> dict[str, Any]:
        if task.metadata.name.startswith("sts"):
            raise ZeroDivisionError("in an evaluator")
        return score(config, folder, model, task)

    monkeypatch.setattr(mtebruns, "_score", fail)
    with pytest.raises(UserError, match=r"sts_\S+ could not be scored \(see above\); the others are"):
        run(specs["sts"], specs["bitext"])
    assert [name.partition("_")[0] for name in read(tmp_path / "run")] == ["bitext"]
    monkeypatch.undo()
    assert len(run(specs["sts"], specs["bitext"])) == 2


def test_scores_of_another_model_are_not_put_beside(
    specs: dict[str, str], stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(stories, tmp_path / "model")
    words = ["evaluate", "sentences", str(tmp_path / "model"), "--task_file", specs["bitext"], "--no-baselines"]
    words += ["--device", "cpu", "--output", str(tmp_path / "run")]
    assert main(words) == 0
    assert main([*words[:5], specs["sts"], *words[5:], "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"tasks scored already +│ 1 ", shown) and re.search(rf"texts +│ {2 * ROWS} ", shown)
    assert "items/sts_sts.json" in shown and "items/bitext" not in shown
    (weights,) = (tmp_path / "model").glob("*.safetensors")
    save_file({name: tensor * 1.01 for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    capsys.readouterr()
    words[words.index("--task_file") + 1] = specs["sts"]
    for more in ([], ["--dry-run"]):
        assert main([*words, *more]) == 2
        assert "its weights have changed; use --overwrite" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


BAD: dict[str, tuple[list[str], str]] = {
    "no task": ([], "nothing to score: --tasks NAME"),
    "twice": (["--tasks", "SciFact", "SciFact"], "must name each once"),
    "task": (["--tasks", "STSBenchmrk"], "is no task of mteb; did you mean STSBenchmark?"),
    "set": (["--tasks", "quick-look-everywhere"], "the sets are smoke, lite, bg2vec, full, llm2vec"),
    "set and task": (["--tasks", "lit"], "did you mean lite?"),
    "images": (["--tasks", "CIFAR10"], "is not of texts alone but of image"),
    "language": (["--languages", "bulgarian"], "is no ISO 639-3 code, such as bul"),
    "task in another language": (["--tasks", "SciFact", "--languages", "kor"], "SciFact has none of them, but eng"),
    "kind": (["--task_file", "stss=a.tsv"], "'stss' is no kind of task; choose sts=FILE"),
    "prompts": (["--tasks", "SciFact", "--prompt_file", "none.json"], "prompt_file = 'none.json' cannot be read"),
    "no network": (["--tasks", "STSBenchmark", "SciFact"], "there is no network, and none of STSBenchmark, SciFact"),
    "no network, a language": (["--languages", "bul"], "none of BulgarianStoreReviewSentimentClassfication, Language"),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_wrong_input_is_named(
    case: str, stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words, said = BAD[case]
    assert main(["evaluate", "sentences", str(stories), *words, "--output", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "holds no object"),
        ('{"STS": 3}', "'STS' must be a string, or"),
        ('{"STS": {"passage": "x"}}', "'STS' must be a string, or"),
    ],
    ids=["list", "number", "side"],
)
def test_a_prompt_file_of_another_shape_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(text, encoding="utf8")
    with pytest.raises(UserError, match=message):
        read_prompt_file(str(tmp_path / "p.json"))


@pytest.fixture
def hub(shared: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """A hub cache in which STSBenchmark lies, and what loading the others raises."""
    from datasets import Dataset, DatasetDict

    sts = read_sts(shared / "data/stsb/stsb-dev.tsv")
    columns = {"sentence1": sts.first[:ROWS], "sentence2": sts.second[:ROWS], "score": sts.score_N[:ROWS].tolist()}
    raised: dict[str, Any] = {}

    def open_cached(path: str, **_: Any) -> Any:
        if path in raised:
            raise raised[path]
        assert path == "mteb/stsbenchmark-sts"
        return DatasetDict({"test": Dataset.from_dict(columns)})

    monkeypatch.setattr("mteb.abstasks.abstask.load_dataset", open_cached)
    monkeypatch.setattr(mtebtasks.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "hub" / "datasets--mteb--stsbenchmark-sts" / "snapshots").mkdir(parents=True)
    yield raised


@pytest.mark.slow
def test_without_a_network_what_is_here_is_scored_and_the_rest_named(
    hub: dict[str, Any], stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "sentences", str(stories), "--tasks", "STSBenchmark", "SciFact", "--device", "cpu"]
    assert main([*words, "--output", str(tmp_path / "run")]) == 2
    printed, said = capsys.readouterr()
    assert "STSBenchmark (cosine_spearman)" in printed and (tmp_path / "run" / "report.html").exists()
    assert "no network: STSBenchmark can run, SciFact cannot" in said
    assert "error: tasks: SciFact could not be scored" in said and "leave SciFact out of --tasks" in said
    told = read(tmp_path / "run")
    assert list(told) == ["STSBenchmark"] and told["STSBenchmark"]["main_metric"] == "cosine_spearman"
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"
    assert main([*words, "--output", str(tmp_path / "run")]) == 2
    assert "none of SciFact is on this machine; the others are scored: leave SciFact out" in capsys.readouterr().err
    words.remove("SciFact")
    assert main([*words, "--output", str(tmp_path / "run")]) == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["status"], record["config"]["tasks"]) == ("done", ["STSBenchmark"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("Dataset 'mteb/sts12-sts' is a gated dataset on the Hub.", "is gated: ask for access at https://"),
        ("Dataset 'mteb/sts12-sts' doesn't exist on the Hub or cannot be accessed.", "there is no data set mteb/sts12"),
    ],
    ids=["gated", "missing"],
)
def test_data_that_the_hub_does_not_give_are_named(
    error: str, said: str, hub: dict[str, Any], stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from datasets.exceptions import DatasetNotFoundError

    hub["mteb/sts12-sts"] = DatasetNotFoundError(error)
    (tmp_path / "hub" / "datasets--mteb--sts12-sts" / "snapshots").mkdir(parents=True)
    words = ["evaluate", "sentences", str(stories), "--tasks", "STS12", "STSBenchmark", "--no-baselines"]
    assert main([*words, "--device", "cpu", "--output", str(tmp_path / "run")]) == 2
    shown = capsys.readouterr().err
    assert said in shown and "STS12 could not be scored" in shown
    assert list(read(tmp_path / "run")) == ["STSBenchmark"]


@pytest.mark.slow
def test_sets_are_tasks_of_mteb_in_one_language_and_split() -> None:
    sizes = {name: len(mtebtasks.find_tasks((name,), ())) for name in (*mtebtasks.SETS, "full", "llm2vec")}
    assert sizes == {"smoke": 3, "lite": 15, "bg2vec": 9, "full": 67, "llm2vec": 67}
    bulgarian = mtebtasks.find_tasks((), ("bul",))
    assert [task.metadata.name for task in bulgarian] == list(mtebtasks.SETS["bg2vec"])
    for task in (*bulgarian, *mtebtasks.find_tasks(("bg2vec",), ())):
        scripts = task.metadata.hf_subsets_to_langscripts
        assert all("bul-Cyrl" in scripts[subset] for subset in task.hf_subsets) and task.eval_splits == ["test"]
        assert len(task.hf_subsets) == (3 if task.metadata.name == "BelebeleRetrieval" else 1)  # with English, too
    wide = {task.metadata.name: task for task in mtebtasks.find_tasks(("lite",), ("eng",))}
    assert {"en-en", "en-de"} < set(wide["STS17"].hf_subsets)
    for name in ("smoke", "lite", "full", "llm2vec"):
        for task in mtebtasks.find_tasks((name,), ()):
            assert len(task.hf_subsets) == 1 and task.languages == ["eng"], task.metadata.name
            assert task.eval_splits == (["dev"] if task.metadata.name == "MSMARCO" else ["test"])
    german = mtebtasks.find_tasks((), ("deu",))
    assert len(german) > 9 and all(task.metadata.modalities == ["text"] for task in german)


@pytest.mark.slow
def test_a_dry_run_writes_nothing_and_lists_what_a_run_writes(
    specs: dict[str, str], scored: Path, stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "sentences", str(stories), "--task_file", *specs.values(), "--prompt_file", "llm2vec"]
    assert main([*words, "--dry-run", "--output", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr()
    listed = re.findall(r"would write: (\S+)", shown.out.replace(str(tmp_path / "run"), str(scored)))
    written = {str(path) for path in (*scored.glob("*.*"), *scored.glob("items/*"))} | {f"{scored}/mteb/"}
    assert set(listed) == written and len(listed) == len(written)
    assert "sts_sts, 80 texts: <s> Retrieve semantically similar text:[ " in shown.out
    assert "tokens/s measured on" in shown.err and "about" in shown.out
    assert not (tmp_path / "run").exists()
