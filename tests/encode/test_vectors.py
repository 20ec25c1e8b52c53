"""The command: files of texts to files of vectors, resumed, refused, in several processes; nothing half-written."""

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sentence_transformers import SentenceTransformer
from transformers import LlamaConfig

from turncoder.cli import main
from turncoder.data.vectorfile import VectorFile
from turncoder.errors import UserError

LLAMA = LlamaConfig(
    vocab_size=512, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
    max_position_embeddings=256,
)  # fmt: skip
TEXTS = [f"Once upon a time there were {number} dogs" + " and a cat" * (number % 7) for number in range(60)] + ["", " "]

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


@pytest.fixture
def model(make_model: Callable[..., Path]) -> Path:
    return make_model(LLAMA)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    rows = [{"text": text, "number": number} for number, text in enumerate(TEXTS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf8")
    return path


@pytest.fixture
def expected(model: Path, tmp_path: Path) -> np.ndarray:
    main(["merge", str(model), "--output", str(tmp_path / "merged")])
    return SentenceTransformer(str(tmp_path / "merged")).encode(TEXTS)


def test_one_row_per_line_in_order(
    model: Path, source: Path, expected: np.ndarray, tmp_path: Path, command: Command
) -> None:
    code, out, err = command("encode", model, source, "--output", tmp_path / "out.npy")
    assert code == 0 and out.strip() == str(tmp_path / "out.npy")
    assert "62 texts, 62 distinct" in err and "2 texts are empty or white space" in err
    assert "batches of up to 2,048 tokens" in err
    vectors = np.load(tmp_path / "out.npy")
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_parquet_with_ids(model: Path, source: Path, expected: np.ndarray, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "new" / "out.parquet"
    assert command("encode", model, source, "--output", out, "--id-column", "number", "--shard_texts", 9)[0] == 0
    table = pq.read_table(out)
    assert table["id"].to_pylist() == [str(number) for number in range(len(TEXTS))]
    np.testing.assert_allclose(np.stack(table["embedding"].to_numpy()), expected, atol=1e-5)


@pytest.mark.parametrize("shape", ["txt", "csv", "json.gz", "parquet", "folder", "saved"])
def test_all_shapes_of_text(shape: str, model: Path, expected: np.ndarray, tmp_path: Path, command: Command) -> None:
    path, words = tmp_path / f"in.{shape}", ["--id-column", "key"]
    rows = [{"key": f"k{number}", "text": text} for number, text in enumerate(TEXTS)]
    if shape == "txt":
        path.write_text("\n".join(TEXTS) + "\n")
        words = []
    elif shape == "csv":
        path.write_text("key,text\n" + "".join(f'{row["key"]},"{row["text"]}"\n' for row in rows))
    elif shape == "json.gz":
        path.write_bytes(gzip.compress(json.dumps(rows).encode()))
    elif shape == "saved":
        import datasets

        datasets.Dataset.from_list(rows).save_to_disk(str(path))
    else:
        import pyarrow as pa

        path = path if shape == "parquet" else tmp_path / "many" / "part.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), path)
        path = path if shape == "parquet" else path.parent
    assert command("encode", model, path, "--output", tmp_path / "out.parquet", *words)[0] == 0
    table = pq.read_table(tmp_path / "out.parquet")
    assert not words or table["id"].to_pylist() == [row["key"] for row in rows]
    np.testing.assert_allclose(np.stack(table["embedding"].to_numpy()), expected, atol=1e-5)


def read_folder(folder: Path) -> dict[str, bytes]:
    """All but metrics.jsonl, which says how long things took."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "metrics.jsonl"}


def read_metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_folder_goes_on_where_it_stopped(
    model: Path, source: Path, expected: np.ndarray, tmp_path: Path, command: Command
) -> None:
    words = ["encode", model, source, "--shard_texts", 10, "--output"]
    assert command(*words, tmp_path / "whole")[0] == 0
    whole = read_folder(tmp_path / "whole")
    assert sorted(whole) == ["manifest.json", *(f"vectors-{number:05d}.npy" for number in range(7))]
    names = sorted((tmp_path / "whole").glob("*.npy"))
    np.testing.assert_allclose(np.concatenate([np.load(name) for name in names]), expected, atol=1e-5)
    for name in (names[0], names[3], names[6]):
        name.unlink()
    (tmp_path / "whole" / "vectors-00003.npy.partial").write_bytes(b"half")
    _, _, err = command(*words, tmp_path / "whole")
    assert "resumes after 40 of 62 texts" in err
    assert read_folder(tmp_path / "whole") == whole
    _, _, err = command(*words, tmp_path / "whole")
    assert "encoded now: 0 texts" in err and read_folder(tmp_path / "whole") == whole
    rows = read_metrics(tmp_path / "whole")
    assert [row["shard"] for row in rows] == [0, 1, 2, 3, 4, 5, 6, 0, 3, 6]
    assert [row["texts"] for row in rows[:7]] == [10] * 6 + [2]
    assert all(row["distinct"] <= row["texts"] and 0 < row["tokens"] <= row["padded"] for row in rows)
    assert rows[0]["truncated"] == 0 and rows[0]["seconds"] >= 0 and rows[0]["texts_per_second"] > 0


def test_another_job_is_refused_and_overwritten_on_request(
    model: Path, source: Path, tmp_path: Path, command: Command, make_model: Callable[..., Path]
) -> None:
    out, words = tmp_path / "out", ["--shard_texts", 10, "--output", tmp_path / "out"]
    assert command("encode", model, source, *words)[0] == 0
    before = read_folder(out)
    code, _, err = command("encode", model, source, *words, "--normalize")
    assert code == 2 and "normalize: False -> True" in err and "--overwrite" in err
    other = make_model(LlamaConfig(**{**LLAMA.to_dict(), "num_hidden_layers": 1, "layer_types": None}), "other")
    code, _, err = command("encode", other, source, *words)
    assert code == 2 and "model:" in err
    source.write_text(source.read_text().replace("Once", "Twice", 1))
    code, _, err = command("encode", model, source, *words)
    assert code == 2 and "texts:" in err
    assert read_folder(out) == before
    assert command("encode", model, source, *words, "--normalize", "--overwrite")[0] == 0
    assert np.allclose(np.linalg.norm(np.load(out / "vectors-00000.npy"), axis=1), 1)
    assert [row["shard"] for row in read_metrics(out)] == list(range(7))


def test_processes_have_a_model_each_and_the_same_vectors(
    model: Path, source: Path, expected: np.ndarray, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "out"
    assert command("encode", model, source, "--processes", 2, "--shard_texts", 10, "--output", out)[0] == 0
    vectors = np.concatenate([np.load(name) for name in sorted(out.glob("*.npy"))])
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_half_precision_says_what_it_costs(
    model: Path, source: Path, expected: np.ndarray, tmp_path: Path, command: Command
) -> None:
    _, _, err = command("encode", model, source, "--dtype", "bfloat16", "--output", tmp_path / "out.npy")
    assert "bfloat16 against float32 on 60 texts: lowest cosine 0.99" in err
    vectors = np.load(tmp_path / "out.npy")
    assert vectors.dtype == np.float32 and 1e-4 < np.abs(vectors - expected).max() < 0.5


def test_settings_reach_the_encoder(model: Path, source: Path, tmp_path: Path, command: Command) -> None:
    words = ["encode", model, source, "--overwrite", "--output", tmp_path / "out.npy"]
    found = []
    for flags in (
        [], ["--no-bidirectional"], ["--pooling", "eos_token"], ["--prompt", "Find this:\n"], ["--max-seq-length", "8"],
        ["--llm2vec"], ["--normalize"],
    ):  # fmt: skip
        code, _, err = command(*words, *flags)
        assert code == 0
        assert ("cut off (max_seq_length = 8)" in err) == ("--max-seq-length" in flags)
        found.append(np.load(tmp_path / "out.npy"))
    for one in range(len(found)):
        for other in range(one):
            assert np.abs(found[one] - found[other]).max() > 1e-3


@pytest.mark.parametrize("name", ["job.toml", "job.json"])
def test_a_config_file_says_what_flags_say_and_flags_win(
    name: str, model: Path, source: Path, expected: np.ndarray, tmp_path: Path, command: Command
) -> None:
    keys = {"model_name_or_path": str(model), "input_file": str(source), "output_dir": str(tmp_path / "a.npy")}
    keys["max_seq_length"] = 4
    path = tmp_path / name
    lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    path.write_text(json.dumps(keys) if name.endswith("json") else "\n".join(lines))
    assert command("encode", path)[0] == 0
    cut = np.load(tmp_path / "a.npy")
    assert np.abs(cut - expected).max() > 1e-3
    words = [path, "--max-seq-length", "256", "--output", tmp_path / "b.npy"]
    assert command("encode", *words)[0] == 0
    np.testing.assert_allclose(np.load(tmp_path / "b.npy"), expected, atol=1e-5)
    few = tmp_path / "few.json"  # a text file in INPUT's place is no config
    few.write_text(json.dumps([{"text": TEXTS[0]}]))
    assert command("encode", model, few, path, "--output", tmp_path / "c.npy")[0] == 0
    np.testing.assert_allclose(np.load(tmp_path / "c.npy"), cut[:1], atol=1e-5)
    assert command("encode", model, few, "--output", tmp_path / "d.npy")[0] == 0
    np.testing.assert_allclose(np.load(tmp_path / "d.npy"), expected[:1], atol=1e-5)


def test_merge_takes_a_config_file_too(model: Path, tmp_path: Path, command: Command) -> None:
    path = tmp_path / "merge.toml"
    path.write_text(f'pooling = "last_token"\noutput_dir = "{tmp_path / "out"}"\n')
    assert command("merge", model, path)[0] == 0
    assert SentenceTransformer(str(tmp_path / "out"))[1].pooling_mode == "lasttoken"
    path.write_text(f'model_name_or_path = "{model}"\noutput_dir = "{tmp_path / "other"}"\n')
    assert command("merge", path)[0] == 0 and (tmp_path / "other" / "modules.json").exists()


@pytest.mark.parametrize(("key", "message"), [("dataset_config_name", "is no hub id"), ("split", "has no splits")])
def test_a_file_has_no_splits(
    key: str, message: str, model: Path, source: Path, tmp_path: Path, command: Command
) -> None:
    code, _, err = command("encode", model, source, f"--{key}", "x", "--output", tmp_path / "out.npy")
    assert code == 2 and f"{key} = 'x'" in err and message in err


BAD = {
    "no words": (["encode"], "--output is missing"),
    "no input": (["encode", "MODEL", "--output", "OUT.npy"], "encode needs MODEL and INPUT"),
    "missing input": (["encode", "MODEL", "nothing.txt", "--output", "OUT.npy"], "INPUT: nothing.txt: no such file"),
    "no such data set": (["encode", "MODEL", "no/such", "--output", "OUT.npy"], "INPUT: 'no/such' "),
    "that of a dry run": (
        ["encode", "MODEL", "no/such", "--output", "OUT.npy", "--dry-run"],
        "INPUT: 'no/such' ",
    ),
    "empty input": (["encode", "MODEL", "empty.txt", "--output", "OUT.npy"], "the file is empty"),
    "broken line": (["encode", "MODEL", "broken.jsonl", "--output", "OUT.npy"], "broken.jsonl, line 2: broken JSON"),
    "not UTF-8": (["encode", "MODEL", "latin.txt", "--output", "OUT.npy"], "line 2.*not UTF-8"),
    "no such column": (
        ["encode", "MODEL", "INPUT", "--text-column", "body", "--output", "OUT.npy"],
        "text_column 'body' is not there|no key 'body'",
    ),
    "no such id column": (
        ["encode", "MODEL", "INPUT", "--id-column", "key", "--output", "OUT.parquet"],
        "'key'",
    ),
    "twice the same id": (
        ["encode", "MODEL", "twice.jsonl", "--id-column", "id", "--output", "OUT.parquet"],
        "the id 'b' of column 'id' stands in rows 2 and 4",
    ),
    "ids of lines": (
        ["encode", "MODEL", "good.txt", "--id-column", "id", "--output", "OUT.parquet"],
        "has lines and no columns",
    ),
    "ids in npy": (["encode", "MODEL", "INPUT", "--id-column", "id", "--output", "OUT.npy"], "holds vectors only"),
    "token ids": (["encode", "MODEL", "tokens.jsonl", "--output", "OUT.npy"], "holds token ids"),
    "unknown pooling": (
        ["encode", "MODEL", "INPUT", "--pooling", "max", "--output", "OUT.npy"],
        "pooling = 'max' is not one of mean",
    ),
    "no model": (["encode", "absent/", "INPUT", "--output", "OUT.npy"], "model_name_or_path"),
    "a folder that is no model": (["encode", "FOLDER", "INPUT", "--output", "OUT.npy"], "no config.json"),
    "prompt too long": (
        ["encode", "MODEL", "INPUT", "--prompt", "word " * 300, "--output", "OUT.npy"],
        "tokens and max_seq_length is 256",
    ),
    "a folder of others": (["encode", "MODEL", "INPUT", "--output", "FOLDER"], "with other things in it"),
    "no budget": (["encode", "MODEL", "INPUT", "--batch-tokens", "0", "--output", "OUT.npy"], "at least 1"),
    "unknown device": (["encode", "MODEL", "INPUT", "--device", "cudda", "--output", "OUT.npy"], "device = 'cudda'"),
    "unknown suffix": (["encode", "MODEL", "INPUT", "--output", "OUT.npz"], r"\.npz is not written"),
    "inside a file": (["encode", "MODEL", "INPUT", "--output", "good.txt/x.npy"], "is no folder"),
    "a column of lines": (
        ["encode", "MODEL", "good.txt", "--text-column", "body", "--output", "OUT.npy"],
        "has lines and no columns",
    ),
    "unknown flag": (["encode", "MODEL", "INPUT", "--poling", "mean", "--output", "OUT.npy"], "did you mean --pooling"),
    "a word too many": (["encode", "MODEL", "INPUT", "INPUT", "--output", "OUT.npy"], "does not know what to do with"),
    "a model twice": (
        ["encode", "MODEL", "INPUT", "--model_name_or_path", "other", "--output", "OUT.npy"],
        "--model_name_or_path 'other' are both given",
    ),
    "merge without model": (["merge", "--output", "OUT"], "merge needs MODEL"),
    "merge without output": (["merge", "MODEL"], "--output is missing"),
    "merge over something": (["merge", "MODEL", "--output", "FOLDER", "--overwrite"], "is no model folder"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_nothing_is_written(
    name: str, model: Path, source: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").touch()
    Path("good.txt").write_text("a dog\n")
    Path("broken.jsonl").write_text('{"text": "a"}\n{"text": \n')
    Path("latin.txt").write_bytes("a\nFüße\n".encode("latin1"))
    Path("twice.jsonl").write_text("".join(json.dumps({"id": one, "text": "a"}) + "\n" for one in "abcb"))
    Path("tokens.jsonl").write_text('{"input_ids": [1, 2]}\n')
    (tmp_path / "FOLDER").mkdir()
    (tmp_path / "FOLDER" / "thesis.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    words, message = BAD[name]
    names = {"MODEL": str(model), "INPUT": str(source)}
    code, out, err = command(*(names.get(word, word) for word in words))
    assert code == 2 and out == ""
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and re.search(message, errors[0]), err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_full_disk_leaves_nothing(
    model: Path, source: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "out.npy")

    monkeypatch.setattr(VectorFile, "append", full)
    code, _, err = command("encode", model, source, "--output", tmp_path / "out.npy")
    assert code == 2 and "the disk is full" in err
    assert not list(tmp_path.glob("*out*"))


def test_out_of_memory_names_what_to_lower(model: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from turncoder.encode.encoder import load_encoder
    from turncoder.encode.texts import encode_texts

    encoder = load_encoder(str(model))

    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(encoder[0], "forward", fail)
    with pytest.raises(UserError, match="lower --batch_tokens"):
        encode_texts(encoder, ["a"], batch_tokens=100)


@pytest.mark.slow
def test_killed_twice_the_bytes_are_those_of_one_go(model: Path, tmp_path: Path, command: Command) -> None:
    source = tmp_path / "many.txt"
    source.write_text("".join(f"Story {number}: a dog and {number % 97} cats.\n" for number in range(30_000)))
    words = ["encode", model, source, "--shard_texts", "1000", "--output"]
    assert command(*words, tmp_path / "whole")[0] == 0
    for shards in (3, 12):
        start = [sys.executable, "-m", "turncoder.cli", *map(str, words), str(tmp_path / "killed")]
        process = subprocess.Popen(start, stderr=subprocess.DEVNULL)
        while len(list((tmp_path / "killed").glob("vectors-*.npy"))) < shards and process.poll() is None:
            time.sleep(0.005)
        assert process.poll() is None, "it was done before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert command(*words, tmp_path / "killed")[0] == 0
    assert read_folder(tmp_path / "killed") == read_folder(tmp_path / "whole")


def test_overwriting_waits_for_right_input_and_takes_nothing_else(
    model: Path, source: Path, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "out"
    assert command("encode", model, source, "--output", out)[0] == 0
    (out / "notes.md").write_text("mine")
    before = read_folder(out)
    for words in ([model, tmp_path / "nothing.txt"], [tmp_path / "nothing", source]):
        assert command("encode", *words, "--output", out, "--overwrite")[0] == 2
        assert read_folder(out) == before
    assert command("encode", model, source, "--output", out, "--overwrite", "--normalize")[0] == 0
    assert (out / "notes.md").read_text() == "mine"
    app = tmp_path / "app"
    app.mkdir()
    (app / "manifest.json").write_text('{"name": "an app"}')
    assert command("encode", model, source, "--output", app, "--overwrite")[0] == 2
    assert [path.name for path in app.iterdir()] == ["manifest.json"]


def test_a_folder_is_not_taken_up_with_another_pooling(
    model: Path, source: Path, tmp_path: Path, command: Command
) -> None:
    main(["merge", str(model), "--output", str(tmp_path / "merged")])
    words = ["encode", tmp_path / "merged", source, "--shard_texts", 10, "--output", tmp_path / "out"]
    assert command(*words)[0] == 0
    path = tmp_path / "merged" / "sentence_bert_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_seq_length": 4}))
    (tmp_path / "out" / "vectors-00001.npy").unlink()
    code, _, err = command(*words)
    assert code == 2 and "model:" in err


def test_a_shard_without_content_is_not_done(model: Path, source: Path, tmp_path: Path, command: Command) -> None:
    words = ["encode", model, source, "--shard_texts", 10, "--output", tmp_path / "out"]
    assert command(*words)[0] == 0
    whole = read_folder(tmp_path / "out")
    (tmp_path / "out" / "vectors-00002.npy").write_bytes(b"")
    assert command(*words)[0] == 0
    assert read_folder(tmp_path / "out") == whole


def test_a_second_job_keeps_out(model: Path, source: Path, tmp_path: Path, command: Command) -> None:
    from filelock import FileLock

    with FileLock(tmp_path / ".out.lock"):
        code, _, err = command("encode", model, source, "--output", tmp_path / "out")
    assert code == 2 and "another job is writing there" in err


def test_every_text_is_held_against_the_prompt(model: Path, tmp_path: Path, command: Command) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("".join(f"{number} dogs\n" for number in range(300)) + "as a dog\n")
    code, _, err = command("encode", model, path, "--prompt", "There w", "--output", tmp_path / "out.npy")
    assert code == 2 and "share a token" in err and not (tmp_path / "out.npy").exists()


def test_half_a_surrogate_pair_and_blank_texts(model: Path, tmp_path: Path, command: Command) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "\\ud800 hi"}\n{"text": " "}\n{"text": ""}\n')
    words = ["encode", model, path, "--output", tmp_path / "out.npy", "--overwrite"]
    assert command(*words)[0] == 0 and np.isfinite(np.load(tmp_path / "out.npy")).all()
    path.write_text("\n  \n\n")
    blank = path.rename(tmp_path / "blank.txt")
    assert command("encode", model, blank, "--dtype", "bfloat16", "--output", tmp_path / "b.npy")[0] == 0


def test_ctrl_c_does_not_wait_for_the_shard(model: Path, tmp_path: Path) -> None:
    source = tmp_path / "many.txt"
    source.write_text("".join(f"{number} " + "a dog and a cat " * 150 + "\n" for number in range(6_000)))
    words = [sys.executable, "-m", "turncoder.cli", "encode", str(model), str(source), "--output", str(tmp_path / "o")]
    process = subprocess.Popen(
        words,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    while not (tmp_path / "o" / "manifest.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.2)  # of the many seconds that it has to go
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    assert process.wait(timeout=120) == 130
    assert time.monotonic() - began < 40  # the shard takes longer, and machines may be busy
    assert not list((tmp_path / "o").glob("vectors-*"))


def test_progress_is_told_batch_by_batch(
    model: Path, source: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("turncoder.encode.vectors.NOTICE_SECONDS", -1.0)
    _, _, err = command("encode", model, source, "--batch-tokens", 200, "--output", tmp_path / "out.npy")
    lines = [line for line in err.splitlines() if " of 62 texts, " in line]
    assert len(lines) > 5 and "texts/s" in lines[0] and "min left" in lines[0]


def test_a_few_texts_keep_several_processes_busy() -> None:
    from turncoder.encode.vectors import _choose_shard

    assert _choose_shard(10_000, 1) == 16_384
    assert 10_000 / _choose_shard(10_000, 4) >= 4 and _choose_shard(10**9, 8) == 16_384
