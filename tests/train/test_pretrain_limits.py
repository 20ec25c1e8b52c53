"""Pretraining at its limits: what is resumed otherwise, rows of padding, lines, and input that is wrong."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import BOTH, launch, launch_process, losses, write_words
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertConfig, LlamaConfig

from turncoder.data.masking import Masking
from turncoder.train.text import Text

LLAMA = {
    "config_name": "llama",
    "config_overrides.hidden_size": 32,
    "config_overrides.intermediate_size": 64,
    "config_overrides.num_hidden_layers": 2,
    "config_overrides.num_attention_heads": 2,
    "config_overrides.max_position_embeddings": 64,
}
BERT = {**LLAMA, "config_name": "bert", "kind": "mlm", "config_overrides.hidden_dropout_prob": 0.0}
BERT |= {"config_overrides.attention_probs_dropout_prob": 0.0}
SMALL = {
    "train_file": "text.txt", "train_tokenizer": "bpe", "vocab_size": 400, "max_seq_length": 32, "max_steps": 6,
    "per_device_train_batch_size": 8, "logging_steps": 1, "save_steps": 3, "max_eval_samples": 8,
    "evaluate_step_zero": False, "learning_rate": 3e-3,
}  # fmt: skip
OWN = {"train_tokenizer": None, "vocab_size": None}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch, shared):
    monkeypatch.setenv("TURNCODER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    lines = (shared / "data/wiki_paragraphs_en/wiki_en.txt").read_text(encoding="utf8").splitlines()
    Path("text.txt").write_text("\n".join(lines[:200]) + "\n", encoding="utf8")
    return tmp_path


def command(output, architecture=LLAMA, **changes):
    flags = {**architecture, **SMALL, "output_dir": output, **changes}
    return write_words("pretrain", {key: value for key, value in flags.items() if value is not None})


def read_weights(folder):
    return load_file(Path(folder) / "model" / "model.safetensors")


def cut(whole, folder, **record):
    """Copy a run as if it had been killed after its third step."""
    shutil.copytree(whole, folder)
    shutil.rmtree(Path(folder) / "model")
    shutil.rmtree(Path(folder) / "checkpoints" / "checkpoint-6")
    old = json.loads(Path(folder, "run.json").read_text())
    Path(folder, "run.json").write_text(json.dumps({**old, "status": "running", **record}))


def check_same_end(one, two):
    assert losses(Path(one)) == pytest.approx(losses(Path(two)), rel=1e-5)
    for name, weight in read_weights(one).items():
        assert torch.allclose(weight, read_weights(two)[name], atol=2e-5), name


@pytest.mark.parametrize("negatives", ["global", "window"])
def test_the_same_rows_may_be_divided_otherwise(negatives):
    launch(command("whole", negatives=negatives))
    for rows, passes in ((1, 8), (4, 2)):
        cut("whole", f"cut{rows}")
        flags = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": passes, "negatives": negatives}
        launch(command(f"cut{rows}", **flags))
        check_same_end("whole", f"cut{rows}")
        tokens = [json.loads(Path(folder, "run.json").read_text())["tokens"] for folder in ("whole", f"cut{rows}")]
        assert tokens[0] == tokens[1]  # whatever the record said when it was killed


@pytest.mark.slow
def test_two_processes_go_on_where_one_stopped():
    launch(command("whole"))
    cut("whole", "cut")
    launch_process([*BOTH, *command("cut", per_device_train_batch_size=4)])
    check_same_end("whole", "cut")
    assert json.loads(Path("cut/run.json").read_text())["processes"] == 2


@pytest.mark.parametrize(
    ("changes", "record", "parts"),
    [
        ({"per_device_train_batch_size": 4}, {}, ["per_device_train_batch_size: 8 -> 4"]),
        ({"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "negatives": "micro"}, {},
         ["per_device_train_batch_size: 8 -> 4"]),
        ({}, {"processes": 2}, ["2 processes, 16 rows", "by 1 a step has 8", "start 2, or let", "be 16 again"]),
        ({"gradient_accumulation_steps": 2, "negatives": "window"}, {"processes": 2},
         ["gradient_accumulation_steps: 1 -> 2"]),
    ],
)  # fmt: skip
def test_other_rows_are_refused(changes, record, parts):
    pool = {"negatives": changes.get("negatives", "global")}
    launch(command("whole", **pool))
    cut("whole", "cut", **record)
    said = launch(command("cut", **{**pool, **changes}), code=2)
    assert all(part in said for part in parts), said


def test_more_processes_may_share_the_published_pool():
    """Micro-batches of 8 are micro-batches of 8, whoever has them."""
    launch(command("whole", negatives="micro"))
    cut("whole", "cut", processes=2)
    said = launch(command("cut", negatives="micro", gradient_accumulation_steps=2))
    assert "resumes after step 3" in said


@pytest.mark.parametrize("objective", ["cwt", "cross_entropy"])
def test_padding_of_a_tokenised_corpus_teaches_nothing(objective):
    """A data set that others padded, on whichever side, teaches what it teaches unpadded."""
    launch(command("first", max_steps=1))
    tokenizer = AutoTokenizer.from_pretrained("first/model")
    rows = [tokenizer(line)["input_ids"][:20] for line in Path("text.txt").read_text().splitlines()]
    rows, flags = (
        [ids for ids in rows if len(ids) == 20],
        {"max_steps": 3, "save_strategy": "no", "max_eval_samples": None},
    )
    for name, width in (("bare", 0), ("padded", 8)):
        filled = [ids + [tokenizer.pad_token_id] * width for ids in rows]
        Path(f"{name}.jsonl").write_text("".join(json.dumps({"input_ids": ids}) + "\n" for ids in filled[8:]))
        Path(f"{name}-held.jsonl").write_text("".join(json.dumps({"input_ids": ids}) + "\n" for ids in filled[:8]))
        files = {"train_file": f"{name}.jsonl", "validation_file": f"{name}-held.jsonl"}
        launch(command(name, **files, tokenizer_name="first/model", objective=objective, **OWN, **flags))
    check_same_end("bare", "padded")
    results = [json.loads(Path(name, "run.json").read_text())["results"] for name in ("bare", "padded")]
    assert results[0] == pytest.approx(results[1], rel=1e-5)


def test_padding_of_a_tokenised_corpus_is_not_read():
    masking = Masking(mlm_probability=0.5, mask_token_id=3, vocab_size=9, special_ids=(0, 3))
    text = Text(None, None, masking, masking, isolate=False, block_size=6, pad_token_id=0, pad_to=None, padding=0)
    rows = [[5, 6, 7, 0, 0, 0], [0, 0, 8, 5], [0, 0, 0, 0, 0, 0]]
    labels = [[5, -100, 7, -100, -100, -100], [-100, 0, 8, -100], [-100] * 6]
    features = [
        {"input_ids": np.array(ids), "labels": np.array(wanted), "document_ids": np.zeros(len(ids), dtype=int)}
        for ids, wanted in zip(rows, labels, strict=True)
    ]
    batch = text.collate(features)
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 0, 0], [1] * 6]
    assert batch["labels"].tolist() == [[5, -100, 7, -100, -100, -100], [-100, -100, 8, -100, -100, -100], [-100] * 6]


def test_rows_of_padding_alone():
    launch(command("first", max_steps=1))
    pad = AutoTokenizer.from_pretrained("first/model").pad_token_id
    rows = [[pad] * 16] * 7 + [list(range(10, 26))] * 2
    Path("rows.jsonl").write_text("".join(json.dumps({"input_ids": ids}) + "\n" for ids in rows))
    Path("held.jsonl").write_text(json.dumps({"input_ids": list(range(10, 26))}) + "\n")
    flags = {"train_file": "rows.jsonl", "validation_file": "held.jsonl", "tokenizer_name": "first/model"}
    for number, keys in enumerate(
        ({}, {"objective": "cross_entropy"}, {"negatives": "micro"}, {"negatives": "unigram:9"})
    ):
        launch(command(f"run{number}", **OWN, **flags, **keys, per_device_train_batch_size=1, max_steps=9))
        assert all(loss == loss and loss < 100 for loss in losses(Path(f"run{number}")))
        assert all(weight.isfinite().all() for weight in read_weights(f"run{number}").values())


def test_positions_behind_that_of_the_padding_are_those_that_there_are():
    launch(command("run", {**BERT, "config_name": "roberta"}, max_seq_length=None, max_steps=1))
    padding = AutoTokenizer.from_pretrained("run/model").pad_token_id
    record = json.loads(Path("run/model/turncoder.json").read_text())
    assert record["max_seq_length"] == 64 - 1 - padding


@pytest.mark.parametrize("objective", ["cwt", "cross_entropy"])
def test_an_encoder_learns_from_lines(objective):
    Path("text.txt").write_text("".join(f"line {n} of {n * 'many '}words\n" for n in range(1, 60)))
    flags = {"line_by_line": True, "objective": objective, "max_steps": 40, "evaluate_step_zero": True}
    launch(command("run", BERT, **flags, logging_steps=40, max_eval_samples=None, validation_split_percentage=20))
    record = json.loads(Path("run/run.json").read_text())
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    scores = [row["eval_loss"] for row in rows if "eval_loss" in row]
    assert scores[-1] < scores[0]
    counts = record["data"]["train"]
    assert counts["blocks"] >= counts["documents"] and record["tokens"] < 40 * 8 * 32


@pytest.mark.parametrize(
    ("architecture", "changes", "parts"),
    [
        (LLAMA, {"as_llm2vec": True}, ["as_llm2vec", "drop the key"]),
        (BERT, {"tokenizer_name": "gpt2", **OWN}, ["mask_token_type 'mask'", "choose blank, eos"]),
        (BERT, {"mask_share": 0.9, "random_share": 0.2}, ["mask_share = 0.9", "more than 1"]),
        ({"config_name": "broken/config.json"}, {}, ["config_name: broken/config.json is broken JSON"]),
        ({"config_name": "odd/config.json"}, {}, ["odd/config.json has no model_type that transformers knows"]),
        ({"config_name": "./empty"}, {}, ["config_name", "config.json"]),
        ({"config_name": "folder"}, {**OWN}, ["tokenizer_name", "no tokenizer"]),
        (LLAMA, {"config_overrides.vocab_size": 100}, ["config_overrides.vocab_size = 100", "400 tokens"]),
        (LLAMA, {"config_overrides.num_attention_heads": 5}, ["config_overrides", "not a multiple of"]),
        (LLAMA, {"sparse_embeddings": True, "objective": "cross_entropy"}, ["sparse_embeddings", "use cwt"]),
        (LLAMA, {"negatives": "foo"}, ["negatives = 'foo'", "unigram:N"]),
        (LLAMA, {"train_file": "empty.txt"}, ["empty"]),
        (LLAMA, {"train_file": "packed.jsonl"}, ["packed.jsonl holds tokens, not text"]),
        (LLAMA, {"train_file": "packed.jsonl", "tokenizer_name": "gpt2", **OWN}, ["token id 60000"]),
    ],
)  # fmt: skip
def test_wrong_input(architecture, changes, parts, shared):
    shutil.copytree(shared / "tokenizers" / "gpt2", "gpt2")
    for folder, text in (("broken", '{"model_type": "llama",'), ("odd", '{"model_type": "lamp"}')):
        Path(folder).mkdir()
        Path(folder, "config.json").write_text(text)
    Path("empty").mkdir()
    Path("empty.txt").touch()
    Path("packed.jsonl").write_text('{"input_ids": [1, 2, 60000]}\n' * 30)
    LlamaConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2).save_pretrained("folder")
    said = launch(command("run", architecture, **changes), code=2)
    errors = [line for line in said.splitlines() if line.startswith("error")]
    assert len(errors) == 1 and all(part in errors[0] for part in parts), said
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("architecture", "changes", "said"),
    [
        (LLAMA, {"kind": "mlm"}, "no such language model of llama"),
        (
            {**LLAMA, "config_overrides.tie_word_embeddings": True},
            {"trains": "head", "objective": "cross_entropy"},
            "trains = 'head': the head is the input embeddings",
        ),
        (
            {"config_name": "ibert", "kind": "mlm"},
            {"sparse_embeddings": True},
            "sparse_embeddings: QuantEmbedding is no plain embedding",
        ),
    ],
)
def test_what_the_architecture_forbids_is_found_before_the_text_is_read(architecture, changes, said):
    assert said in launch(command("run", architecture, **changes, train_file="gone.txt"), code=2)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="is for machines without a GPU")
def test_half_precision_without_a_gpu_is_said():
    said = launch(command("run", fp16=True, max_steps=1))
    assert "note: fp16: float16 is for GPUs" in said


def test_a_folder_without_weights_is_an_architecture():
    BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32).save_pretrained("bert")
    launch(command("run", {"config_name": "bert", "kind": "mlm"}, max_steps=1))
    flags = {"model_name_or_path": "bert", "kind": "mlm", "tokenizer_name": "run/model", **OWN}
    said = launch(command("other", {}, **flags), code=2)
    assert "bert" in said and "weights" in said
