"""lm-eval on a causal model: its scores are those that the model's logits give, and other models are refused."""

import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertForMaskedLM, LlamaConfig, T5Config

from turncoder.cli import main
from turncoder.config.language import LanguageConfig
from turncoder.config.stages import load_config
from turncoder.errors import UserError
from turncoder.evaluate import language
from turncoder.evaluate.language import evaluate_language
from turncoder.evaluate.languageplan import plan_language
from turncoder.evaluate.taskfiles import open_task_file
from turncoder.model.backbone import load_model_config
from turncoder.report.summary import read_run, table

lm_eval = pytest.importorskip("lm_eval", reason="lm_eval is not installed (pip install 'turncoder[language]')")
harness = pytest.importorskip("turncoder.evaluate.harness")

OFFLINE = """
import socket, sys
from turncoder.cli import main
def refuse(*words, **others):
    raise AssertionError(f"the network was asked for: {words}")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
raise SystemExit(main(sys.argv[1:]))
"""


class Oracle:
    """The log-probabilities of a model, a text at a time, and nothing of lm-eval."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.reads = self.model.config.max_position_embeddings

    def encode(self, text: str) -> list[int]:
        return [self.tokenizer.bos_token_id, *self.tokenizer.encode(text, add_special_tokens=False)]

    def give_logits(self, ids: list[int]) -> torch.Tensor:
        return self.model(torch.tensor([ids])).logits[0]

    @torch.no_grad()
    def score(self, ids: list[int], first: int = 1) -> tuple[float, bool]:
        """Log-probability of the tokens from ``first`` on, and whether each is the likeliest."""
        logits_LV = self.give_logits(ids)[first - 1 : -1]
        told = torch.tensor(ids[first:])
        total = torch.log_softmax(logits_LV.double(), -1).gather(1, told[:, None]).sum()
        return float(total), bool((logits_LV.argmax(-1) == told).all())

    def score_long(self, text: str) -> float:
        """Log-probability of a text of any length: windows that predict each token once, the last with more before."""
        ids = self.encode(text)
        total, begin = 0.0, 1
        while begin < len(ids):
            end = min(begin + self.reads, len(ids))
            start = max(end - self.reads - 1, 0)
            total += self.score(ids[start:end], begin - start)[0]
            begin = end
        return total

    def score_after(self, context: str, continuation: str) -> tuple[float, bool]:
        ids = self.encode(context + continuation)
        return self.score(ids, len(self.encode(context)))


@pytest.fixture(scope="module")
def oracle(stories: Path) -> Oracle:
    return Oracle(stories)


@pytest.fixture(scope="module")
def lines(stories_text: Path) -> list[str]:
    return [line for line in stories_text.read_text(encoding="utf8").splitlines() if len(line) > 40][:12]


@pytest.fixture
def ask(stories: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Score files of the stories' model, and give its results by task."""

    def score(*specs: str, model: Path = stories, output: str = "run", **keys: Any) -> dict[str, Any]:
        folder = evaluate_language(
            LanguageConfig(
                model_name_or_path=str(model), task_file=specs, output_dir=str(tmp_path / output), device="cpu", **keys
            )
        )
        return json.loads((folder / "results.json").read_text(encoding="utf8"))["tasks"]

    return score


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf8")
    return str(path)


@pytest.mark.parametrize("batch_size", [1, 5])
def test_perplexity_is_that_of_the_logits(
    batch_size: int, oracle: Oracle, lines: list[str], ask: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    texts = [*lines[:6], " ".join(lines) * 2]
    assert len(oracle.encode(texts[-1])) > 2 * oracle.reads
    told = ask(f"perplexity={write(tmp_path / 't.jsonl', [{'text': one} for one in texts])}", batch_size=batch_size)
    nats = -sum(oracle.score_long(text) for text in texts)
    octets, words = sum(len(text.encode()) for text in texts), sum(len(text.split()) for text in texts)
    assert told["perplexity_t"]["metrics"] == pytest.approx(
        {
            "bits_per_byte": nats / octets / math.log(2),
            "byte_perplexity": math.exp(nats / octets),
            "word_perplexity": math.exp(nats / words),
        },
        rel=1e-5,
    )
    assert told["perplexity_t"]["texts"] == 7
    assert set(told["perplexity_t"]["stderr"].values()) == {None}  # lm-eval knows none


def test_last_words_are_those_of_the_logits(
    oracle: Oracle, stories_text: Path, ask: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    texts = re.findall(r"\w[\w, ]{30,}", stories_text.read_text(encoding="utf8"))[:60]
    found = [oracle.score_after(*re.fullmatch(r"(.*\S)(\s+\S+)\s*", text).groups()) for text in texts]  # type: ignore[union-attr]
    told = ask(f"last_word={write(tmp_path / 't.jsonl', [{'text': text} for text in texts])}")["last_word_t"]
    hits = np.array([hit for _, hit in found], dtype=float)
    assert 0 < hits.mean() < 1
    assert told["metrics"]["acc"] == pytest.approx(hits.mean())
    assert told["stderr"]["acc"] == pytest.approx(hits.std(ddof=1) / math.sqrt(len(hits)))
    assert told["metrics"]["perplexity"] == pytest.approx(math.exp(-np.mean([nats for nats, _ in found])), rel=1e-5)
    assert 0 < told["stderr"]["perplexity"] < told["metrics"]["perplexity"]


def test_pairs_and_choices_are_those_of_the_logits(
    oracle: Oracle, lines: list[str], ask: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    shuffled = [" ".join(rng.permutation(line.split()[:6])) for line in lines]
    pairs = [{"good": " ".join(line.split()[:6]), "bad": bad} for line, bad in zip(lines, shuffled, strict=True)]
    pairs += [{"good": pair["bad"], "bad": pair["good"]} for pair in pairs[:3]]
    asked = []
    for number, line in enumerate(lines):
        question, *_ = line.partition(",")
        choices = [other.split()[-1] + " " * (number % 2) + other.split()[0] for other in lines[number:] + lines][:4]
        asked.append({"question": question, "choices": choices, "answer": number % 4})
    told = ask(write(tmp_path / "pairs.jsonl", pairs), write(tmp_path / "asked.jsonl", asked))
    better = [oracle.score(oracle.encode(one["good"]))[0] > oracle.score(oracle.encode(one["bad"]))[0] for one in pairs]
    assert told["minimal_pairs_pairs"]["metrics"] == {"acc": pytest.approx(np.mean(better))}
    assert 0 < np.mean(better) < 1
    right, right_norm = [], []
    for row in asked:
        nats = np.array([oracle.score_after(row["question"], f" {choice}")[0] for choice in row["choices"]])
        right.append(np.argmax(nats) == row["answer"])
        right_norm.append(np.argmax(nats / [len(choice) for choice in row["choices"]]) == row["answer"])
    assert told["multiple_choice_asked"]["metrics"] == pytest.approx(
        {"acc": np.mean(right), "acc_norm": np.mean(right_norm)}
    )


def test_solved_examples_stand_before_a_question(
    oracle: Oracle, ask: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    rows = [{"text": "Tim saw a dog"}, {"text": "Sue had a red ball"}]
    told = ask(f"last_word={write(tmp_path / 't.jsonl', rows)}", num_fewshot=1)["last_word_t"]
    nats = [
        oracle.score_after("Sue had a red ball\n\nTim saw a", " dog")[0],
        oracle.score_after("Tim saw a dog\n\nSue had a red", " ball")[0],
    ]
    assert told["num_fewshot"] == 1
    assert told["metrics"]["perplexity"] == pytest.approx(math.exp(-np.mean(nats)), rel=1e-5)


def test_a_token_that_a_tokenizer_adds_does_not_count(
    stories: Path, oracle: Oracle, lines: list[str], ask: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """A tokenizer that ends each text with a token: none in the middle, and no beginning that it does not write."""
    from tokenizers.processors import TemplateProcessing

    shutil.copytree(stories, tmp_path / "ends")
    tokenizer = AutoTokenizer.from_pretrained(stories)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    tokenizer.save_pretrained(tmp_path / "ends")
    assert AutoTokenizer.from_pretrained(tmp_path / "ends").encode(lines[0])[-1] == 2
    place = write(tmp_path / "t.jsonl", [{"text": line} for line in lines[:4]])
    told = ask(f"perplexity={place}", f"last_word={place}", model=tmp_path / "ends")
    nats = -sum(oracle.score_long(line) for line in lines[:4])
    octets = sum(len(line.encode()) for line in lines[:4])
    assert told["perplexity_t"]["metrics"]["bits_per_byte"] == pytest.approx(nats / octets / math.log(2), rel=1e-5)
    ends = []
    for line in lines[:4]:
        context, word = line.rsplit(maxsplit=1)
        ids = oracle.encode(f"{context} {word}")[1:]
        ends.append(oracle.score(ids, len(oracle.encode(context)) - 1)[0])
    assert told["last_word_t"]["metrics"]["perplexity"] == pytest.approx(math.exp(-np.mean(ends)), rel=1e-5)


def test_a_group_has_a_score_and_those_of_its_parts(stories: Path, lines: list[str], tmp_path: Path) -> None:
    from lm_eval.api.group import Group
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.config.group import GroupConfig

    group = Group.from_config(
        GroupConfig(group="both", aggregate_metric_list=[{"metric": "acc", "weight_by_size": True}])
    )
    for name, texts in (("a", lines[:3]), ("b", lines[3:8])):
        pairs = [{"good": text[::-1], "bad": text} for text in texts[1:]] + [{"good": texts[0], "bad": texts[0][::-1]}]
        group.add(ConfigurableTask(config=open_task_file(write(tmp_path / f"{name}.jsonl", pairs)).configure()))
    config = LanguageConfig(model_name_or_path=str(stories), tasks=("both",), device="cpu")
    model = harness.open_model(config)
    told = language._take(language._score(config, model, "both", language._open_manager(False).load([group])), "both")
    assert told["metrics"] == {"acc": pytest.approx(2 / 8)} and told["stderr"]["acc"] > 0
    assert [(one["metrics"]["acc"], one["texts"]) for one in told["parts"].values()] == [(1 / 3, 3), (1 / 5, 5)]


def test_only_what_is_missing_is_scored(
    stories: Path, lines: list[str], ask: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[str] = []
    evaluate = lm_eval.evaluate

    def count(model: Any, tasks: dict[str, Any], **keys: Any) -> Any:
        scored.extend(tasks["tasks"])
        if "last_word_t" in tasks["tasks"] and len(scored) == 2:
            raise KeyboardInterrupt
        return evaluate(model, tasks, **keys)

    monkeypatch.setattr(lm_eval, "evaluate", count)
    place = write(tmp_path / "t.jsonl", [{"text": line} for line in lines[:3]])
    both = (f"perplexity={place}", f"last_word={place}")
    with pytest.raises(KeyboardInterrupt):
        ask(*both)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"
    first = ask(*both)
    assert scored == ["perplexity_t", "last_word_t", "last_word_t"]
    assert ask(*both, batch_size=2) == first and len(scored) == 3
    write(tmp_path / "t.jsonl", [{"text": line} for line in lines[3:6]])
    again = ask(*both)
    assert len(scored) == 5 and again["perplexity_t"]["metrics"] != first["perplexity_t"]["metrics"]
    assert again == ask(*both, output="afresh")
    with pytest.raises(UserError, match=r"limit: None -> 2"):
        ask(*both, limit=2)
    assert ask(*both, limit=2, overwrite=True)["perplexity_t"]["texts"] == 2
    assert ask(*both, limit=0.5, output="half")["perplexity_t"]["texts"] == 2


def test_the_configuration_makes_everything_in_the_folder(
    stories: Path, lines: list[str], ask: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    one, two = (write(tmp_path / name, [{"text": line} for line in lines[:2]]) for name in ("one.jsonl", "two.jsonl"))
    ask(f"last_word={one}")
    ask(f"last_word={two}")
    run = tmp_path / "run"
    whole = load_config(LanguageConfig, run / "config.toml", [])
    assert whole.task_file == (f"last_word={two}", f"last_word={one}")
    plan = plan_language(replace(whole, dry_run=True, task_file=(*whole.task_file, f"perplexity={two}")))
    assert plan.steps == {"tasks scored already": 2, "texts": 2}
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"limit: None -> 1"):
        plan_language(replace(whole, dry_run=True, limit=1))
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_scores_of_other_weights_stay_apart(
    stories: Path, lines: list[str], ask: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    shutil.copytree(stories, tmp_path / "model")
    place = write(tmp_path / "t.jsonl", [{"text": line} for line in lines[:2]])
    ask(f"perplexity={place}", model=tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(stories)
    model.model.norm.weight.data *= 1.1
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="its weights have changed"):
        ask(f"last_word={place}", model=tmp_path / "model")


def test_models_that_predict_no_next_token_are_refused(
    stories: Path, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    def refuse(model: Path, said: str, **keys: Any) -> None:
        with pytest.raises(UserError, match=said):
            harness.open_model(
                LanguageConfig(model_name_or_path=str(model), tasks=("sciq",), **{"device": "cpu", **keys})
            )

    sizes = {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    bert = make_model(BertConfig(**sizes, intermediate_size=64), name="bert")
    BertForMaskedLM(BertConfig(**sizes, intermediate_size=64)).save_pretrained(bert)
    refuse(bert, "is a masked language model")
    config = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps({**config, "architectures": None}))
    refuse(bert, "sees the tokens that it should predict")
    shutil.copytree(stories, tmp_path / "turned")
    config = json.loads((stories / "config.json").read_text())
    (tmp_path / "turned" / "config.json").write_text(json.dumps({**config, "is_causal": False}))
    refuse(tmp_path / "turned", "is a bidirectional encoder.* name a causal language model")
    assert load_model_config(str(tmp_path / "turned")).is_causal is False
    T5Config(vocab_size=512, d_model=32).save_pretrained(tmp_path / "t5")
    refuse(tmp_path / "t5", "is an encoder-decoder")
    headless = make_model(LlamaConfig(**sizes, intermediate_size=64), name="bare")
    refuse(headless, "has no head to predict tokens with")
    refuse(stories, "reads at most 512", max_seq_length=513)
    refuse(stories, "device = 'cud' is none", device="cud")


def test_the_batch_fits_its_logits(stories: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """512 tokens of 512 logits of 4 bytes each: a MiB a text."""
    for budget, asked, expected in ((2**30, None, 32), (5 * 2**20, None, 5), (1, None, 1), (1, 7, 7)):
        monkeypatch.setattr(harness, "LOGITS_BYTES", budget)
        config = LanguageConfig(model_name_or_path=str(stories), tasks=("sciq",), device="cpu", batch_size=asked)
        assert harness.open_model(config).batch_size == expected


def test_a_tokenizer_without_a_first_token_is_refused(stories: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(stories)
    tokenizer = AutoTokenizer.from_pretrained(stories)
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(UserError, match="neither a bos_token nor an eos_token"):
        harness.CausalModel(model, tokenizer, batch_size=1)


def test_what_does_not_fit_is_said(
    lines: list[str], ask: Callable[..., dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = " ".join(lines)
    ask(f"last_word={write(tmp_path / 'w.jsonl', [{'text': long}, {'text': lines[0]}])}", max_seq_length=100)
    assert "last_word_w: 1 times the beginning of a context was cut off; the model reads 100 tokens" in caplog.text
    with pytest.raises(UserError, match=r"tokens is to be scored at once, and the model reads 512"):
        ask(write(tmp_path / "p.jsonl", [{"good": long * 2, "bad": "No."}]), output="pairs")
    assert not (tmp_path / "pairs").exists()


def test_a_headless_model_is_scored_with_its_prior(
    stories: Path, lines: list[str], ask: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    from turncoder.model.prior import Prior

    shutil.copytree(stories, tmp_path / "model")
    counts_V = torch.arange(512) ** 2
    prior = Prior(counts_V, temperature=2.0, tau=0.25)
    prior.save(tmp_path / "model")
    (tmp_path / "model" / "turncoder.json").write_text(json.dumps({"prior": prior.describe()}))
    place = write(tmp_path / "t.jsonl", [{"text": line} for line in lines[:3]])
    told = ask(f"perplexity={place}", f"last_word={place}", model=tmp_path / "model")

    class Headless(Oracle):
        def give_logits(self, ids: list[int]) -> torch.Tensor:
            p_V = (counts_V + 1.0) / (counts_V + 1.0).sum()
            return super().give_logits(ids) / 2.0 + 0.75 * p_V.log()

    oracle = Headless(stories)
    nats = -sum(oracle.score_long(line) for line in lines[:3]) / sum(len(line.encode()) for line in lines[:3])
    assert told["perplexity_t"]["metrics"]["bits_per_byte"] == pytest.approx(nats / math.log(2), rel=1e-5)
    ends = [oracle.score_after(line.rsplit(maxsplit=1)[0], f" {line.rsplit(maxsplit=1)[1]}")[0] for line in lines[:3]]
    assert told["last_word_t"]["metrics"]["perplexity"] == pytest.approx(math.exp(-np.mean(ends)), rel=1e-5)


def test_names_of_tasks(stories: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, ask: Any) -> None:
    with pytest.raises(
        UserError, match=r"tasks = 'lambada_opena' is no task of lm-eval; did you mean lambada_openai\?"
    ):
        ask(tasks=("lambada_opena",))
    with pytest.raises(UserError, match=r"'lambada'\] must name each once"):
        ask(tasks=("lambada", "lambada"))
    for more in ("lambada", "headless"):  # a tag and a set that have it too
        with pytest.raises(UserError, match="none of them can be loaded") as told:
            ask(tasks=("lambada_openai", more))
        assert str(told.value).count("lambada_openai (") == 1
    with pytest.raises(
        UserError,
        match=r"none of them can be loaded: lambada_openai \(.*boolq \(.*crows_pairs_english.*race.*sciq.*pubmedqa",
    ):
        ask(tasks=("headless",))
    with pytest.raises(UserError, match=r"humaneval \(.*\)"):
        ask(tasks=("humaneval",))
    assert not (tmp_path / "run").exists()


def test_tasks_without_data_do_not_stop_the_others(
    lines: list[str], ask: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = write(tmp_path / "t.jsonl", [{"text": line} for line in lines[:2]])
    with pytest.raises(UserError, match=r"sciq could not be scored .*; the others are scored: leave sciq out"):
        ask(f"perplexity={place}", tasks=("sciq",))
    assert "sciq cannot be loaded, and is left out: Couldn't reach 'allenai/sciq'" in caplog.text
    assert [row["model"] for row in read_run(tmp_path / "run")["rows"]] == ["perplexity_t"]
    assert list(ask(f"perplexity={place}")) == ["perplexity_t"]


def test_scores_of_any_size_are_shown(tmp_path: Path) -> None:
    """However narrow the terminal, and however bad the model."""
    name = "perplexity_of_a_file_with_a_long_name"
    told = {"metrics": {"word_perplexity": 133_506_872.02, "acc": 0.360049}, "stderr": {"acc": 0.0482}, "texts": 100}
    write(tmp_path / "results.json", [{"tasks": {name: told}}])
    console = Console(width=50, file=io.StringIO())
    language.show(tmp_path, console)
    said = console.file.getvalue()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in said.splitlines() if line.startswith("│")]
    columns = ["".join(cells) for cells in zip(*rows, strict=True)]
    assert columns == [name, "word_perplexityacc", "1.3351e+080.36005", "0.0482", "100"]
    assert "…" not in said


@pytest.fixture
def without_harness(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    kept = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "lm_eval"}
    for name in kept:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    language._open_manager.cache_clear()
    yield


def test_a_missing_package_is_named(without_harness: None, ask: Any) -> None:
    with pytest.raises(UserError, match=r"needs lm_eval: pip install 'turncoder\[language\]'"):
        ask(tasks=("sciq",))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"model_name_or_path": None, "tasks": ("sciq",)}, "model_name_or_path is missing"),
        ({}, "nothing to score"),
        ({"tasks": ("sciq", "sciq")}, "must name each once"),
        ({"tasks": ("sciq",), "batch_size": 0}, "batch_size = 0"),
        ({"tasks": ("sciq",), "limit": 0}, "limit = 0"),
        ({"tasks": ("sciq",), "limit": 1.5}, "limit = 1.5"),
        ({"tasks": ("sciq",), "num_fewshot": -1}, "num_fewshot = -1"),
    ],
)
def test_wrong_keys(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        LanguageConfig(**{"model_name_or_path": "model", **keys})


def test_the_plan(stories: Path, lines: list[str], tmp_path: Path) -> None:
    rows = [{"good": line, "bad": line[1:]} for line in lines]
    place = write(tmp_path / "p.jsonl", rows)
    config = LanguageConfig(
        model_name_or_path=str(stories), task_file=(place,), output_dir=str(tmp_path / "run"), limit=0.3
    )
    plan = plan_language(config)
    assert plan.steps == {"texts": 4} and plan.parameters == {"total": 260032}
    assert plan.samples == [f"minimal_pairs_p, 4 texts: [->{lines[0]}]"]
    assert not (tmp_path / "run").exists()


def test_the_command_without_a_network(stories: Path, lines: list[str], tmp_path: Path, oracle: Oracle) -> None:
    """As people call it: nothing is asked of the network, results are printed, and report shows them."""
    place = write(tmp_path / "t.jsonl", [{"text": line} for line in lines])
    pairs = write(tmp_path / "p.jsonl", [{"good": line, "bad": line.lower()[::-1]} for line in lines])
    words = ["evaluate", "language", str(stories), "--task_file", f"perplexity={place}", pairs, "--output", "run"]
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, *words], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == ["[1/2] perplexity_t", "[2/2] minimal_pairs_p"]
    assert re.search(r"minimal_pairs_p\W+acc\W+1\W+0\W+12", done.stdout), done.stdout
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "done" and "lm_eval" in record["versions"] and record["wall_time_s"] > 0
    assert record["parents"] == [{"name": str(stories)}]
    account = json.loads((tmp_path / "run" / "lm_eval" / "minimal_pairs_p.json").read_text())
    assert account["results"]["minimal_pairs_p"]["acc,none"] == 1
    found = read_run(tmp_path / "run")
    assert [row["model"] for row in found["rows"]] == ["perplexity_t", "minimal_pairs_p"]
    shown = [str(cell) for column in table([found]).columns for cell in (column.header, *column.cells)]
    nats = -sum(oracle.score_long(line) for line in lines)
    bits = nats / math.log(2) / sum(len(line.encode()) for line in lines)
    assert {"acc", "1.000 ±0.000", "bits/byte", f"{bits:.3f}"} <= set(shown)
    assert main(["report", str(tmp_path / "run"), "--json"]) == 0
