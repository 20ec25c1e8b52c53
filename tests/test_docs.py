"""The pages are true: every command is run, and says what the page says; every piece of Python runs."""

import http.server
import json
import os
import re
import shlex
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM

import turncoder
from slurm import Slurm
from turncoder.cli import main

DOCS = Path(__file__).resolve().parents[1] / "docs"
TUTORIALS = [DOCS / "tutorials" / name for name in ("word-level.md", "headless.md", "cluster.md")]
FOLDERS = ("how-to", "explanation", "reference")
GRID = """train_file = "train.conllu"
validation_file = "dev.conllu"
test_file = "test.conllu"

[tasks.upos]
task = "upos"

[tasks.number]
task = "Number"

[regimes.probe]
train_mode = "probe"
seeds = [1, 2]

[models.causal]
model_name_or_path = "stories260k"
bidirectional = false

[models.mntp]
model_name_or_path = "mine"
"""
GLUE: list[tuple[str, str, bool, list[tuple[str, int, int]]]] = [
    ("QNLI", "qnli/dev.tsv", True, [("train", 1, 161), ("dev", 161, 241)]),
    ("STS-B", "stsb/stsb-train.tsv", True, [("train", 1, 161), ("dev", 161, 241)]),
    ("pawsx", "pawsx/dev-en.tsv", False, [("train-en", 0, 160), ("dev-en", 160, 200), ("test-en", 200, 240)]),
    ("pawsx", "pawsx/dev-ko.tsv", False, [("test-ko", 200, 240)]),
]
"""Folder, source, whether it has a header, and the rows of each file."""
BLOCK = re.compile(r"```(console|python)\n(.*?)```", re.DOTALL)
PAGES = [*(page for folder in FOLDERS for page in sorted((DOCS / folder).glob("*.md"))), *TUTORIALS]
PAGES = [page for page in PAGES if BLOCK.search(page.read_text(encoding="utf8"))]


@pytest.fixture
def place(stories: Path, stories_text: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the pages speak of."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Slurm(tmp_path / 'slurm').home / 'bin'}:{os.environ['PATH']}")
    shutil.copytree(stories, "stories260k")
    lines = [line for line in stories_text.read_text(encoding="utf8").splitlines() if line.strip()][:2000]
    Path("stories.txt").write_text("\n".join(lines) + "\n", encoding="utf8")
    rows = [json.dumps({"key": number, "story": line}) for number, line in enumerate(lines)]
    Path("stories.jsonl").write_text("\n".join(rows) + "\n", encoding="utf8")
    for name, source, count in (
        ("pairs.jsonl", "nli_triplets/train-en.jsonl", 400),
        ("sts.tsv", "stsb/stsb-dev.tsv", 201),
    ):
        rows = (shared / "data" / source).read_text(encoding="utf8").split("\n")[:count]
        Path(name).write_text("\n".join(rows) + "\n", encoding="utf8")
    for ending, folder, files in (
        ("conllu", "ud_english_ewt", ("train", "dev", "test")),
        ("iob2", "uner_english_ewt", ("train.prerelease", "dev", "test")),
    ):
        for split, count in zip(files, (1000, 300, 300), strict=True):
            whole = (shared / "data" / folder / f"en_ewt-ud-{split}.{ending}").read_text(encoding="utf8")
            some = "\n\n".join(whole.split("\n\n")[:count])
            Path(f"{split.partition('.')[0]}.{ending}").write_text(some + "\n\n", encoding="utf8")
    Path("grid.toml").write_text(GRID, encoding="utf8")
    for language, folder in (("english", "en"), ("korean", "ko")):
        text = (shared / f"data/wiki_paragraphs_{folder}/wiki_{folder}.txt").read_text(encoding="utf8")
        Path(f"{language}.txt").write_text("\n".join(text.splitlines()[:500]) + "\n", encoding="utf8")
    for name in ("decoder.toml", "encoder.toml"):
        shutil.copyfile(DOCS.parent / "recipes" / "headless" / name, name)
    shutil.copytree(shared / "configs" / "llm2vec" / "train_configs", "train_configs")
    for name, source, headed, parts in GLUE:
        lines = (shared / "data" / source).read_text(encoding="utf8").split("\n")
        for part, start, stop in parts:
            path = Path("glue") / name / f"{part}.tsv"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join([lines[0]] * headed + lines[start:stop]) + "\n", encoding="utf8")
    words = "mntp --model_name_or_path stories260k --train_file stories.txt --max_seq_length 64 --max_steps 20"
    assert main([*words.split(), "--learning_rate", "1e-3", "--output", "mine", "--max_eval_samples", "8"]) == 0
    return tmp_path


def say(command: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Run a line of a transcript: turncoder, or rm."""
    words = shlex.split(command)
    capsys.readouterr()
    if words[0] == "rm":
        Path(words[1]).unlink()
        return []
    assert words[0] == "turncoder"
    main(words[1:])
    said = capsys.readouterr()
    text = (
        (said.err + said.out).replace(os.environ["TURNCODER_CACHE"], "~/.cache/turncoder").replace(f"{Path.cwd()}/", "")
    )
    slow = re.compile(r"[\d,]+ of [\d,]+ texts, .* left$")  # said where a shard takes long
    return [line for line in text.splitlines() if line.strip() and not slow.match(line)]


def loose(line: str) -> str:
    """Numbers with a point, times, processes, and the width of a table differ between processors; all else is exact.

    The names of prepared tokens go with the versions of libraries.
    """
    line = re.sub(r"tokens/[0-9a-f]{20}", "tokens/#", line)
    line = re.sub(r"(perplexity|│) *\d[\d,]{3,}\b", r"\1 #", line)  # beyond a thousand they have no point
    line = re.sub(r"job \d+ on this|(ps|-INT) \d+|\d+_0_log|[\d,]+ tokens/s", "#", line)
    line = re.sub(r"about \d+ (s|min)\b|\d:\d\d:\d\d left|\d+ threads|done in \d+ s|_second \S+", "#", line)
    line = re.sub(r"\d+ (s|min)\b", "# s", re.sub(r"\d+\.\d+(e-\d+)?", "#", line))
    return re.sub(r" *([│┃┼╇┳┏┓]) *", r"\1", re.sub(r"[─━]+|  +", " ", line))


def run_page(text: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Run all blocks of a page, in order; give the page with what they say now."""

    def run(block: re.Match[str]) -> str:
        kind, body = block.groups()
        if kind == "python":
            exec(compile(body, "page", "exec"), {})
            return block.group(0)
        lines = []
        for command in re.findall(r"^\$ (.*)$", body, re.MULTILINE):
            lines += [f"$ {command}", *say(command, capsys)]
        return "```console\n" + "\n".join(lines) + "\n```"

    return BLOCK.sub(run, text)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_are_true(page: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = page.read_text(encoding="utf8")
    now = run_page(text, capsys)
    (place / page.name).write_text(now, encoding="utf8")  # to copy from, when the page is to be changed
    assert [loose(line) for line in text.splitlines()] == [loose(line) for line in now.splitlines()]


README = DOCS.parent / "README.md"
FEWER = {
    "turn": "--steps_mntp 2 --steps_simcse 2 --eval_documents 20 --mntp.max_eval_samples 8 --simcse.max_eval_samples 8",
    "mntp": "--model_name_or_path stories260k --train_file my_texts.json --max_seq_length 64 --stop_after_n_steps 2 "
    "--per_device_train_batch_size 2 --max_eval_samples 4 --dtype float32 --attn_implementation sdpa",
    "encode": "",
}
"""What is added to README's commands so that they take seconds, by the command."""


def find_blocks(page: Path, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", page.read_text(encoding="utf8"), re.DOTALL | re.MULTILINE)


def run_block(code: str, **names: Any) -> dict[str, Any]:
    """Run a piece of Python and give its names."""
    exec(compile(code, "page", "exec"), names)
    return names


@pytest.mark.slow
def test_readme_is_true(place: Path) -> None:
    """Its commands in their order, with a small model in the place of the one on the hub, and its Python after them."""
    texts = Path("stories.txt").read_text(encoding="utf8").splitlines()[:300]
    Path("my_texts.json").write_text(json.dumps([{"text": text} for text in texts]), encoding="utf8")
    lines = "".join(find_blocks(README, "bash")).splitlines()
    made = re.findall(r"^(\w+):", (README.parent / "Makefile").read_text(encoding="utf8"), re.MULTILINE)
    assert {line.split()[1] for line in lines if line.startswith("make ")} <= set(made)
    ours = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("turncoder ")]
    assert len(ours) >= 4 and "--dry-run" in ours[0]
    for number, words in enumerate(ours):
        words = [word.replace("princeton-nlp/Sheared-LLaMA-1.3B", "stories260k") for word in words]
        assert main([*words, *FEWER[words[0]].split()]) == 0
        assert Path("runs/mine/model").exists() == (number > 0)
    plain, with_turncoder = find_blocks(README, "python")
    assert run_block(plain)["vectors"].shape == (2, 64)
    small = (
        'model_name_or_path="stories260k", train_file="my_texts.json", max_steps=2, max_seq_length=64, do_eval=False'
    )
    code = with_turncoder.replace('model_name_or_path="...", train_file="..."', small)
    found = run_block(code, model=AutoModelForCausalLM.from_pretrained("stories260k"))
    assert found["report"].verdict == "bidirectional" and len(found["layers"]) == 5
    assert (found["run"] / "model").is_dir()


@pytest.fixture
def served(place: Path) -> Iterator[str]:
    """The address of a server of embeddings, with the folder ``runs/mine/model`` that the page on serving speaks of."""
    encoder = turncoder.load_encoder("mine")
    encoder.prompts["query"] = "Find a story:\n"
    encoder.save("runs/mine/model")

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path == "/v1/embeddings" and asked["model"] == "runs/mine/model"
            rows = [{"embedding": vector.tolist()} for vector in encoder.encode(asked["input"])]
            body = json.dumps({"data": rows}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_the_python_of_serving_runs(served: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Against a server here; the servers that the page is about are not started, and it says so."""
    page = DOCS / "serving.md"
    ask, plain, onnx = find_blocks(page, "python")
    run_block(ask.replace("localhost:8000", served))
    assert [float(value) for value in capsys.readouterr().out.strip("[] \n").split()] == pytest.approx([1, 1], abs=1e-5)
    assert run_block(plain)["short"].shape == (1, 64)
    (export,) = re.findall(r'^python -c "(from turncoder.*)"$', "".join(find_blocks(page, "bash")), re.MULTILINE)
    run_block(export)
    texts = ["A decoder that looks both ways.", "An encoder, then."]
    np.testing.assert_allclose(
        run_block(onnx)["vectors"], SentenceTransformer("runs/mine/model").encode(texts), atol=1e-4
    )


@pytest.mark.slow
def test_the_python_of_migrate_runs(place: Path) -> None:
    """Its half that is ours; the package ``llm2vec`` is not there."""
    (code,) = find_blocks(DOCS / "migrate.md", "python")
    for name, value in (("BASE", "stories260k"), ("ADAPTER", "mine"), ("INSTRUCTION", "Find a story:")):
        code = code.replace(f'"{name}"', f'"{value}"')
    found = run_block(code, LLM2Vec=MagicMock(), turncoder=turncoder, texts=["Lily has a dog.", "Tom is sad."])
    assert found["vectors"].shape == (2, 64)


LANGUAGE = {"bulgarian_text": (".tsv", 1500), "nli_triplets": (".jsonl", 120), "ntrex": (".txt", 120)}
"""Data of the page on a language: ending of the files, and the lines that are taken of each."""


@pytest.mark.slow
def test_the_page_of_a_language_runs(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block in its order, with less data and two steps of each training; its numbers are those of the whole."""
    monkeypatch.chdir(tmp_path)
    for folder, (ending, count) in LANGUAGE.items():
        Path("data", folder).mkdir(parents=True)
        for path in (shared / "data" / folder).glob(f"*{ending}"):
            lines = path.read_text(encoding="utf8").split("\n")[:count]
            Path("data", folder, path.name).write_text("\n".join(lines) + "\n", encoding="utf8")
    shutil.copyfile(DOCS.parent / "recipes" / "headless" / "decoder.toml", "decoder.toml")
    for name in ("bggpt-7b.json", "bggpt-7b-simcse.json"):
        shutil.copyfile(shared / "configs" / "bg2vec" / "model_configurations" / name, name)
    page = DOCS / "tutorials" / "your-language.md"
    scripts = dict(zip(("prepare.py", "score.py"), find_blocks(page, "python"), strict=True))
    ran = []
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf8"), re.DOTALL | re.MULTILINE)
    transcripts = "".join(body for kind, body in blocks if not kind)
    for line in re.findall(r"^\$ (.*)$", transcripts, re.MULTILINE):
        words = shlex.split(re.sub(r"(--max_steps|--steps_\w+) \d+", r"\1 2", line))
        if words[0] == "awk":
            subprocess.run(line, shell=True, check=True)
        elif words[0] == "python":
            run_block(scripts[words[1]], __name__="__main__")
        else:
            short = {"turn": "--eval_documents 20", "pretrain": "--max_eval_samples 40"}.get(words[1], "")
            assert main([*words[1:], *short.split()]) == 0
        ran.append(words[1])
    assert ran[1:] == ["prepare.py", "pretrain", "turn", "score.py", "mntp", "simcse"]
    assert all(Path(name).is_dir() for name in ("decoder/model", "turned/model", "small-mntp", "small-simcse"))
