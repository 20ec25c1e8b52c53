"""``words`` from the command line: scores of every way to train follow from its predictions, and come back."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from launching import launch, metrics, write_words
from safetensors.torch import load_file
from tagging_models import command
from transformers import pipeline

from turncoder import load_tagger
from turncoder.evaluate.words import find_spans

QUICK = {"lora": {"learning_rate": 3e-2}, "full": {"learning_rate": 3e-3}, "probe": {"learning_rate": 1e-2}}
TWO = {"seeds": [3, 5], "learning_rate": [1e-2, 3e-2]}
WAYS: dict[str, dict[str, Any]] = {
    "probe": {**TWO},
    "all layers": {"layer": "all", **TWO},
    "mix": {"layer": "mix", "task": ["xpos"]},
    "first token, before, of layer 1": {"layer": "1", "merge_subwords": False, "alignment": "previous_token"},
    "three tasks": {"task": ["upos", "xpos", "Number"], **TWO},
    "causal": {"bidirectional": False, "seeds": 1},
    "bert": {"model": "bert", "alignment": "same_token"},
    "deberta": {"model": "deberta", "layer": "mix"},
    "modernbert": {"model": "modernbert", "layer": "all", "seeds": 1},
    "entities": {"task": ["ner"], "data": "iob2", **TWO},
    "lora": {"train_mode": "lora", "task": ["upos", "xpos"], "alignment": "previous_token", "layer": "1"},
    "lora causal": {"train_mode": "lora", "bidirectional": False, "save_merged": "never"},
    "lora bert": {"train_mode": "lora", "model": "bert", "merge_subwords": False},
    "lora entities": {"train_mode": "lora", "task": ["ner_tags"], "data": "iob2", "model": "modernbert"},
    "full": {"train_mode": "full", "learning_rate": [1e-3, 3e-3], "seeds": [3, 5]},
    "full deberta": {"train_mode": "full", "model": "deberta", "task": ["upos", "feats:Number"]},
    "full, all of it": {"train_mode": "full", "model": "bert", "gradient_checkpointing": True, "layer": "0"},
}  # fmt: skip
SLOW = {"causal", "first token, before, of layer 1", "modernbert", "deberta", "lora causal", "lora bert", "full"}
SLOW |= {"lora entities", "full, all of it"}


@pytest.fixture(autouse=True)
def _environment(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNCODER_CACHE", str(tmp_path_factory.getbasetemp() / "words cache"))


@pytest.fixture
def train(treebank: Path, tiny: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """Run a way, and give its run folder."""

    def run(name: str, **changes: Any) -> Path:
        flags = {"task": ["upos"], "train_mode": "probe", "model": "llama", "data": "conllu", **WAYS[name], **changes}
        kind, data = flags.pop("model"), flags.pop("data")
        files = {
            f"{key}_file": treebank / f"{split}.{data}" for key, split in (("validation", "dev"), ("test", "test"))
        }
        flags = {**QUICK[flags["train_mode"]], **files, **flags}
        launch(command(tiny(kind), treebank / f"train.{data}", tmp_path / "run", **flags))
        return tmp_path / "run"

    return run


def read_results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text(encoding="utf8"))


def read_words(path: Path) -> list[list[str]]:
    """Words of a CoNLL-U or IOB2 file, by a reader of its own."""
    blocks = path.read_text(encoding="utf8").split("\n\n")
    rows = [[line.split("\t") for line in block.splitlines() if line and line[0] != "#"] for block in blocks]
    return [[row[1] for row in sentence if row[0].isdigit()] for sentence in rows if sentence]


def check_predictions(place: Path, told: dict[str, Any], words: list[list[str]]) -> None:
    """The table of predictions has every word of the file, and the scores of the best seed follow from it."""
    blocks = (place / "predictions.tsv").read_text(encoding="utf8").split("\n\n")[:-1]
    rows = [[line.split("\t") for line in block.splitlines()] for block in blocks]
    assert [[row[0] for row in sentence] for sentence in rows] == words
    scored = [row for sentence in rows for row in sentence if row[1]]
    best = told["seeds"][str(told["best_seed"])]
    assert best["token_accuracy"] == sum(gold == said for _, gold, said in scored) / len(scored)
    assert len(scored) == told["words_scored"] == best["words_scored"]
    assert told["words_in_file"] == sum(map(len, words))
    if "span_f1" in best:
        gold, said = (
            {(place, *span) for place, one in enumerate(rows) for span in find_spans([row[side] for row in one])}
            for side in (1, 2)
        )
        assert best["span_f1"] == pytest.approx(2 * len(gold & said) / (len(gold) + len(said)))
    with (place / "confusion.csv").open(newline="") as file:
        head, *table = csv.reader(file)
    assert sum(int(cell) for row in table for cell in row[1:]) == len(scored)
    assert (place / "confusion.png").stat().st_size > 10_000 and len(head) == len(table) + 1


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in WAYS])
def test_every_way_gives_scores_that_follow_from_its_predictions_and_return(
    name: str, train: Callable[..., Path], treebank: Path, tmp_path: Path
) -> None:
    run = train(name)
    way = WAYS[name]
    results, tasks = read_results(run), way.get("task", ["upos"])
    test = treebank / f"test.{way.get('data', 'conllu')}"
    words = read_words(test)
    assert json.loads((run / "run.json").read_text())["status"] == "done"
    assert list(results["tasks"]) == tasks
    for task, told in results["tasks"].items():
        check_predictions(run / task if len(tasks) > 1 else run, told, words)
        if "Number" not in task:
            assert told["words_scored"] == told["words_in_file"]
    launch(write_words("words", {"evaluate": run, "test_file": test, "output_dir": tmp_path / "again"}))
    again = read_results(tmp_path / "again")
    for task, told in again["tasks"].items():
        mine = results["tasks"][task]
        for seed, scores in told["seeds"].items():
            assert {key: mine["seeds"][seed][key] for key in scores} == scores
        same = (
            "metric",
            "best_seed",
            "per_class",
            "per_type",
            "words_scored",
            "words_in_file",
            "unseen_labels",
            "confusions",
        )
        assert {key: mine[key] for key in same if key in mine} == {key: told[key] for key in same if key in told}
        assert {key: mine["mean"][key] for key in told["mean"]} == told["mean"]
        assert {key: mine["std"][key] for key in told["std"]} == told["std"]
        if name in ("probe", "full"):
            assert told["std"]["token_accuracy"] > 0
    for path in run.rglob("predictions.tsv"):
        if "seed-" not in str(path):
            assert path.read_bytes() == (tmp_path / "again" / path.relative_to(run)).read_bytes()


def test_probes_of_every_layer_are_put_side_by_side(train: Callable[..., Path]) -> None:
    run = train("all layers")
    told = read_results(run)["tasks"]["upos"]
    assert set(told["layers"]) == {"0", "1", "last"} and set(told["readings"]) == {"same_token", "previous_token"}
    best = told["layers"][told["chosen"]["layer"]]["mean"]["token_accuracy"]
    assert (
        best
        == told["mean"]["token_accuracy"]
        == told["readings"][told["chosen"]["alignment"]]["mean"]["token_accuracy"]
    )
    assert told["dev"]["mean"]["token_accuracy"] > 0
    assert {row["probe"] for row in metrics(run)} == {
        f"upos {reading} {layer}" for reading in ("same_token", "previous_token") for layer in ("0", "1", "last")
    }


def test_a_tagger_is_opened_in_python(train: Callable[..., Path], treebank: Path) -> None:
    run = train("three tasks")
    texts = ["From the AP comes this story :", "¿Qué? 🙂", "", ["New", "York"]]
    tagger = load_tagger(run, device="cpu")
    tagged = tagger.tag(texts)
    assert tagger.tasks == ["upos", "xpos", "Number"]
    assert [one.words for one in tagged] == [texts[0].split(), ["¿", "Qué", "?", "🙂"], [], ["New", "York"]]
    for one in tagged:
        assert [one.text[start:end] for start, end in one.places] == one.words
        assert all(len(tags) == len(one.words) for tags in one.tags.values()) and not one.spans
    names = set(tagger.heads[0].labels)
    assert {tag for one in tagged for tag in one.tags["upos"]} <= names
    alone = [tagger.tag([text])[0].tags for text in texts]
    assert alone == [one.tags for one in tagged]


@pytest.mark.slow
def test_a_tagger_of_entities_gives_spans(train: Callable[..., Path], treebank: Path) -> None:
    run = train("lora entities", num_train_epochs=20, learning_rate=1e-2, early_stopping_patience="none")
    tagger = load_tagger(run, device="cpu")
    words = read_words(treebank / "train.iob2")[:40]
    tagged = tagger.tag(words)
    for one, forms in zip(tagged, words, strict=True):
        assert one.words == forms
        starts = {start: place for place, (start, _) in enumerate(one.places)}
        ends = {end: place for place, (_, end) in enumerate(one.places)}
        found = [(starts[begin], ends[end] + 1, kind) for _, kind, begin, end in one.spans["ner_tags"]]
        assert found == find_spans(one.tags["ner_tags"])
        assert [text for text, *_ in one.spans["ner_tags"]] == [one.text[a:b] for *_, a, b in one.spans["ner_tags"]]
    assert any(one.spans["ner_tags"] for one in tagged)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "model"), [("full", "llama"), ("lora bert", "bert"), ("full deberta", "deberta")])
def test_transformers_opens_what_was_trained(name: str, model: str, train: Callable[..., Path], treebank: Path) -> None:
    """Labels of first tokens, where words are read there."""
    run = train(name, merge_subwords=False, seeds=1, learning_rate=3e-3, task=["upos"], model=model)
    tag = pipeline("token-classification", model=str(run / "classifier"), device="cpu")
    words = [forms for forms in read_words(treebank / "test.conllu") if len(forms) < 10]
    assert len(words) > 9
    for one in load_tagger(run, device="cpu").tag(words):
        tokens = tag(one.text)
        for (start, _), label in zip(one.places, one.tags["upos"], strict=True):
            assert next(token["entity"] for token in tokens if token["end"] > start) == label


def test_an_adapter_stack(
    tiny: Callable[[str], Path], train: Callable[..., Path], treebank: Path, tmp_path: Path
) -> None:
    """Adapters of runs under a probe and under another adapter; what is scored is what they make of the model."""
    launch(
        command(
            tiny("llama"), treebank / "train.conllu", tmp_path / "first", train_mode="lora", task="xpos",
            learning_rate=3e-2, validation_file=treebank / "dev.conllu",
        )
    )  # fmt: skip
    stack = [tmp_path / "first" / "adapter"]
    probe = train("probe", seeds=1, learning_rate=1e-2, overwrite=True)
    plain = read_results(probe)["tasks"]["upos"]["mean"]
    stacked = read_results(train("probe", seeds=1, learning_rate=1e-2, adapters=stack, overwrite=True))["tasks"]["upos"]
    assert stacked["mean"] != plain
    launch(
        write_words("words", {"evaluate": probe, "test_file": treebank / "test.conllu", "output_dir": tmp_path / "a"})
    )
    assert read_results(tmp_path / "a")["tasks"]["upos"]["mean"].items() <= stacked["mean"].items()
    lora = train("lora", adapters=stack, task=["upos"], overwrite=True)
    assert [parent["name"] for parent in json.loads((lora / "run.json").read_text())["parents"]]
    launch(
        write_words("words", {"evaluate": lora, "test_file": treebank / "test.conllu", "output_dir": tmp_path / "b"})
    )
    mine, again = (read_results(folder)["tasks"]["upos"]["mean"] for folder in (lora, tmp_path / "b"))
    assert again.items() <= mine.items()
    assert load_file(lora / "adapter" / "adapter_model.safetensors")
