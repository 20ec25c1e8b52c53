"""SimCSE and supervised training from the command line: what is wrong is one line; files of others run."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, LlamaConfig, MistralConfig

from turncoder.cli import main

SIZES = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
TEXTS = "".join(f"the {word} sleeps\n" for word in ("cat", "dog", "fox", "cow", "owl", "bee", "ant", "hen")).encode()
PAIRS = b"".join(b'{"anchor": "a %d", "positive": "b %d", "negative": "c %d"}\n' % (row, row, row) for row in range(8))
E_PAIRS = PAIRS.replace(b'"a ', b'"e ')
SAME = b"".join(b'{"anchor": "a %d", "positive": "yes"}\n' % row for row in range(8))
ONE = {"simcse": ("data.txt", TEXTS), "supervised": ("data.jsonl", PAIRS)}
WORKERS = ["--max_eval_samples", "4", "--dataloader_num_workers", "0", "--dataloader_prefetch_factor", "none"]
LONG = ["--max_seq_length", "4096"]
BEST = ["--save_strategy", "best", "--eval_strategy", "steps"]
QUICK = ["--max_steps", "2", "--per_device_train_batch_size", "4", "--max_eval_samples", "4", "--no-evaluate_step_zero"]


@pytest.fixture
def model(make_model: Callable[..., Path]) -> Path:
    return make_model(LlamaConfig(**SIZES), pad_token="<unk>")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TURNCODER_CACHE", str(tmp_path / "cache"))
    return tmp_path


Said = tuple[int, str, str]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run a command line: exit code, stdout, stderr without what libraries print."""

    def run(*words: object) -> Said:
        capsys.readouterr()
        code = main([str(word) for word in words])
        said = capsys.readouterr()
        return code, said.out, "".join(line for line in said.err.splitlines(True) if "%|" not in line)

    return run


@pytest.mark.parametrize("stage", ["simcse", "supervised"])
def test_it_runs(stage: str, model: Path, say: Callable[..., Said]):
    """The line that the wrong ones below differ from in one thing."""
    name, content = ONE[stage]
    Path(name).write_bytes(content)
    code, out, err = say(stage, "--model_name_or_path", model, "--train_file", name, "--output", "run", *QUICK, *LONG)
    assert (code, out) == (0, "run\n") and "the model has 512 positions; 512 are read" in err, err
    assert SentenceTransformer("run/model", device="cpu").encode(["the cat"]).shape == (1, 32)


BROKEN = [
    ("empty", b"", [], ["data", "the file is empty"]),
    ("latin", TEXTS + b"\xe9\n", [], ["line 9", "not UTF-8"]),
    ("missing", None, [], ["data", "no such file"]),
    (
        "prompt",
        b"e cat\ne dog\n",
        ["--prompt", "Once upon a tim"],
        ["'Once upon a tim' does not stay apart", "newline"],
    ),
    ("long prompt", ..., ["--prompt", "Once upon a time\n", "--max_seq_length", "3"], ["max_seq_length is 3"]),
    ("one row", b"a cat\n", [], ["1 rows to train on"]),
    ("equal rows", b"a cat\n" * 9, [], ["1 rows to train on (8 repeated left out)"]),
    ("batch of one", ..., ["--per_device_train_batch_size", "1"], ["per_device_train_batch_size = 1", "at least 2"]),
    ("accumulation", ..., ["--gradient_accumulation_steps", "9"], ["8 rows and a step takes 36", "lower"]),
    ("no views", ..., ["--simcse_dropout", "0", "--lora_dropout", "0"], ["simcse_dropout = 0", "the same"]),
    ("wide", ..., ["--matryoshka_dims", "16", "64"], ["matryoshka_dims: 64", "32"]),
    ("targets", ..., ["--lora_target_modules", "q_projj"], ["lora_target_modules", "q_projj"]),
    ("sts", ..., ["--sts_file", "gone.csv"], ["gone.csv"]),
    ("best of none", ..., [*BEST, "--validation_split_percentage", "0"], ["save_strategy = 'best'", "held-out rows"]),
    ("no output", ..., ["--output", "none"], ["--output is missing"]),
]
BROKEN_PAIRS = [
    ("no positive", b'{"anchor": "a"}\n', [], ["line 1", "one column", "simcse"]),
    ("no anchor", b'{"premise": "a", "positive": "b"}\n', [], ["line 1", "no anchor", "--columns"]),
    ("unknown", b'{"anchor": "a", "positive": "b", "label": 1}\n', [], ["line 1", "'label'", "--columns"]),
    ("broken", PAIRS + b'{"anchor": \n', [], ["line 9", "broken JSON"]),
    ("empty sides", b'{"anchor": "", "positive": "b"}\n' * 3, [], ["0 rows", "3 with an empty side left out"]),
    (
        "no columns",
        ...,
        ["--columns", "anchor", "hypothesis"],
        ["columns", "'hypothesis'", "anchor, positive, negative"],
    ),
    ("same texts", SAME, [], ["too few different texts", "per_device_train_batch_size"]),
    (
        "anchor is negative",
        b'{"anchor": "a", "positive": "b", "negative": "a"}\n' * 3,
        [],
        ["0 rows", "3 with a false negative left out"],
    ),
    ("prompts", ..., ["--prompts_file", "gone.json"], ["prompts_file: gone.json cannot be read"]),
    ("query", E_PAIRS, ["--query_prompt", "Once upon a tim"], ["does not stay apart"]),
    ("long", ..., ["--document_prompt", "Once upon a time\n", "--max_seq_length", "3"], ["max_seq_length is 3"]),
]


@pytest.mark.parametrize(
    ("stage", "content", "words", "parts"),
    [pytest.param("simcse", *row[1:], id=f"simcse {row[0]}") for row in BROKEN]
    + [pytest.param("supervised", *row[1:], id=f"supervised {row[0]}") for row in BROKEN_PAIRS],
)
def test_wrong_input_is_one_line_and_leaves_nothing(
    stage: str, content: bytes | None, words: list[str], parts: list[str], model: Path, say: Callable[..., Said]
):
    name, good = ONE[stage]
    if content is not None:
        Path(name).write_bytes(good if content is ... else content)
    words = ["--model_name_or_path", str(model), "--train_file", name, *QUICK, "--output", "run", *words]
    code, out, err = say(stage, *words)
    assert (code, out) == (2, ""), err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and err.splitlines()[-1] == errors[0] and "Traceback" not in err
    assert all(part in errors[0] for part in parts), errors[0]
    assert not Path("run").exists()
    assert (
        not list(Path("cache").rglob("*.arrow"))
        or "rows" in errors[0]
        or content in (..., SAME, E_PAIRS)
        or "apart" in errors[0]
    )


def test_sets_smaller_than_a_batch_are_told(model: Path, say: Callable[..., Said]):
    Path("sets").mkdir()
    for name, count in (("nq", 8), ("fever", 3), ("squad", 2)):
        Path(f"sets/{name}.jsonl").write_bytes(b"".join(PAIRS.splitlines(True)[:count]))
    words = ["--model_name_or_path", model, "--train_file", "sets", "--output", "run", *QUICK]
    code, _, err = say("supervised", *words, "--as-llm2vec", "--gradient_accumulation_steps", "2")
    assert code == 0, err
    assert "fever: 3 rows, and a step takes 8: it is left out" in err
    assert "squad: 2 rows, and a step takes 8: it is left out" in err
    code, _, err = say("supervised", *words, "--as-llm2vec", "--overwrite")
    assert code == 0, err
    assert "fever: 3 rows, and a step takes 4: its steps take 3" in err and "nq: 8 rows, and" not in err


def test_a_run_of_another_config_is_refused_and_kept(model: Path, say: Callable[..., Said]):
    Path("data.jsonl").write_bytes(PAIRS)
    words = ["supervised", "--model_name_or_path", model, "--train_file", "data.jsonl", "--output", "run", *QUICK]
    assert say(*words)[0] == 0
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    code, _, err = say(*words, "--learning_rate", "1e-3")
    assert code == 2 and "learning_rate: 5e-05 -> 0.001" in err
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("stage", "file", "kind"),
    [
        ("simcse", "llm2vec/train_configs/simcse/Llama2.json", LlamaConfig),
        ("simcse", "bg2vec/model_configurations/bggpt-7b-simcse.json", MistralConfig),
        ("supervised", "llm2vec/train_configs/supervised/Mistral.json", MistralConfig),
    ],
)
def test_files_of_others_run_with_only_paths_changed(
    stage: str, file: str, kind: type, make_model: Callable[..., Path], shared: Path, say: Callable[..., Said]
):
    model = make_model(kind(**SIZES), pad_token="<unk>")
    base = AutoModel.from_pretrained(model)
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained("adapter")
    raw = json.loads((shared / "configs" / file).read_text())
    rows = b'{"query": "a %d", "positive": "b %d", "negative": "c %d"}\n'
    Path("e5").mkdir()
    for name in ("allnli", "nq"):
        Path(f"e5/{name}.jsonl").write_bytes(b"".join(rows % (row, row, row) for row in range(300)))
    Path("wiki.txt").write_text("\n".join(f"this is sentence {row}" for row in range(300)))
    data = "wiki.txt" if stage == "simcse" else "e5"
    paths = {"model_name_or_path": str(model), "peft_model_name_or_path": "adapter", "output_dir": "run"}
    raw.pop("dataset_name")
    Path("theirs.json").write_text(json.dumps(raw | paths | {"dataset_file_path": data}))
    code, out, err = say(stage, "theirs.json", "--stop_after_n_steps", "2", *WORKERS)
    assert (code, out) == (0, "run\n"), err
    record = json.loads(Path("run/run.json").read_text())
    assert record["status"] == "done" and record["trained"]["steps"] == 2 and record["attention"]["verdict"]
    if stage == "supervised":
        assert set(record["prompts"]) == {"allnli_1", "allnli_2", "nq"}
    assert SentenceTransformer("run/model", device="cpu").encode(["the cat"]).shape == (1, 32)
    assert (
        "flash_attention_2" in err and "preparation" not in err and logging.getLogger("turncoder").level == logging.INFO
    )
