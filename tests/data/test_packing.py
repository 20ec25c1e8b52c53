"""Packing: nothing is lost, nothing is done twice, and a killed run ends in the same bytes."""

import errno
import itertools
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from turncoder.config.stages import MntpConfig
from turncoder.data import encoding, packing, tokens
from turncoder.data.corpus import open_corpora, open_corpus
from turncoder.data.packing import prepare_blocks
from turncoder.data.tokenizer import load_tokenizer
from turncoder.data.vocabulary import train_tokenizer
from turncoder.disk import default_cache
from turncoder.errors import UserError


def write(folder, texts, name="corpus.txt"):
    path = folder / name
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def prepare(path, tokenizer, folder, block_size=32, **options):
    return prepare_blocks(
        corpus=open_corpus(file=path), tokenizer=tokenizer, block_size=block_size, folder=folder, **options
    )


def read_rows(blocks):
    return [blocks[row][0].tolist() for row in range(len(blocks))]


def read_files(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.suffix in (".tokens", ".ends")}


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(tokens, "SHARD_CHARACTERS", 4000)


def test_tokens_are_those_of_tokenising_again(tmp_path, texts, tokenizer, caplog):
    lines = [texts[0], "", "   ", *texts[1:200], ""]
    path = write(tmp_path, lines)
    with caplog.at_level("INFO", logger="turncoder"):
        train, validation = prepare(path, tokenizer, tmp_path / "cache", validation_percentage=0)
    assert "200 documents (3 empty ones left out), " in caplog.text
    expected = [tokenizer(line)["input_ids"] for line in lines if line.strip()]
    flat = list(itertools.chain(*expected))
    assert len(validation) == 0
    rows = read_rows(train)
    assert list(itertools.chain(*rows)) == flat
    assert [len(row) for row in rows] == train.lengths().tolist()
    assert set(map(len, rows[:-1])) == {32}
    owner = np.repeat(np.arange(len(expected)), [len(ids) for ids in expected])
    for row in range(len(train)):
        part = owner[row * 32 : (row + 1) * 32]
        np.testing.assert_array_equal(train[row][1], part - part[0])
    assert train.counts == {
        "blocks": len(rows),
        "tokens": len(flat),
        "documents": 200,
        "remainder": len(flat) % 32,
        "dropped": 0,
    }
    manifest = json.loads((train.file.folder / "manifest.json").read_text())
    assert manifest["empty"] == 3
    assert manifest["dtype"] == "uint16"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), max_size=30), max_size=15),
    st.integers(2, 20),
)
def test_views_lose_nothing(tmp_path_factory, tokenizer, lines, block_size):
    folder = tmp_path_factory.mktemp("views")
    kept = [line for line in lines if line.strip() and line != "\ufeff"]
    if not kept:
        return
    corpus = packing.Corpus("ours", lambda: iter(lines), lambda: repr(lines))
    train, _ = prepare_blocks(
        corpus=corpus, tokenizer=tokenizer, block_size=block_size, folder=folder, validation_percentage=0
    )
    expected = [tokenizer(line)["input_ids"] for line in lines if line and not line.isspace()]
    flat = list(itertools.chain(*expected))
    assert list(itertools.chain(*read_rows(train))) == flat
    pieces = train.by_document(5)
    cut = [ids[at : at + 5] for ids in expected for at in range(0, len(ids), 5)]
    assert read_rows(pieces) == cut
    assert pieces.num_tokens == train.num_tokens == len(flat)
    assert all((pieces[row][1] == 0).all() for row in range(len(pieces)))


def test_line_by_line_is_one_text_a_row(tmp_path, texts, tokenizer):
    train, validation = prepare(write(tmp_path, texts), tokenizer, tmp_path, line_by_line=True, block_size=20)
    rows = read_rows(train)
    assert max(map(len, rows)) == 20
    starts = sum(row[0] == tokenizer.bos_token_id for row in rows + read_rows(validation))
    assert starts == len(texts)


@pytest.mark.parametrize("line_by_line", [False, True])
def test_as_llm2vec_is_what_its_script_does(tmp_path, texts, tokenizer, line_by_line):
    lines = [line for text in (texts * 5)[:2437] for line in (text, "")][:-1]
    path = write(tmp_path, lines)
    raw = datasets.load_dataset("text", data_files={"train": str(path)}, cache_dir=str(tmp_path / "hf"))["train"]
    boundary = round(len(raw) * 7 / 100)
    assert raw["text"][:] == lines

    def tokenize(examples):
        if not line_by_line:
            return {"input_ids": tokenizer(examples["text"])["input_ids"]}
        kept = [line for line in examples["text"] if line and not line.isspace()]
        return {"input_ids": tokenizer(kept, truncation=True, max_length=32)["input_ids"]}

    def group(examples):
        joined = list(itertools.chain(*examples["input_ids"]))
        return {"input_ids": [joined[at : at + 32] for at in range(0, len(joined) // 32 * 32, 32)]}

    ours = prepare(
        path, tokenizer, tmp_path / "cache", as_llm2vec=True, line_by_line=line_by_line, validation_percentage=7
    )
    for blocks, part in zip(ours, (range(boundary, len(raw)), range(boundary)), strict=True):
        theirs = raw.select(part).map(tokenize, batched=True, remove_columns=["text"])
        if not line_by_line:
            theirs = theirs.map(group, batched=True)
            assert blocks.counts["dropped"] > 0
        assert read_rows(blocks) == theirs["input_ids"][:]


def test_split_goes_by_the_text(tmp_path, texts, tokenizer):
    def split(lines, folder):
        pair = prepare(
            write(tmp_path, lines), tokenizer, tmp_path / folder, validation_percentage=20, line_by_line=True
        )
        return [sorted(map(tuple, read_rows(blocks))) for blocks in pair]

    unique = list(dict.fromkeys(texts))
    train, validation = split(unique, "a")
    assert abs(len(validation) / len(unique) - 0.2) < 0.06
    assert split(unique[::-1], "b") == [train, validation], "the order of the file does not matter"
    twice = split(unique * 2, "c")
    assert not set(twice[0]) & set(twice[1]), "a repeated text is on one side only"


def test_a_validation_file_is_taken_whole(tmp_path, texts, tokenizer):
    paths = write(tmp_path, texts[:50]), write(tmp_path, texts[50:60], "other.txt")
    train, validation = open_corpora(
        MntpConfig(model_name_or_path="m", train_file=str(paths[0]), validation_file=str(paths[1]))
    )
    blocks = prepare_blocks(
        corpus=train, validation=validation, tokenizer=tokenizer, block_size=16, folder=tmp_path / "cache"
    )
    assert [part.counts["documents"] for part in blocks] == [50, 10]


def test_the_second_call_and_another_block_size_read_only(tmp_path, texts, tokenizer, monkeypatch):
    path = write(tmp_path, texts)
    monkeypatch.setenv("TURNCODER_CACHE", str(tmp_path / "cache"))
    first = prepare(path, tokenizer, None)
    assert first[0].file.folder.parent == default_cache() / "tokens" == tmp_path / "cache" / "tokens"
    monkeypatch.setattr(packing.TokenPass, "run", None)
    again = prepare(path, tokenizer, None)
    assert again[0].fingerprint == first[0].fingerprint
    assert prepare(path, tokenizer, None, block_size=16)[0].fingerprint != first[0].fingerprint
    monkeypatch.undo()
    stamp = path.stat().st_mtime_ns
    path.write_text(path.read_text().replace("lamp", "pmal"))
    os.utime(path, ns=(stamp, stamp))
    other = prepare(path, tokenizer, tmp_path / "cache" / "tokens")
    assert other[0].fingerprint != first[0].fingerprint, "changed content is noticed"


def test_several_processes_write_the_same_bytes(tmp_path, texts, tokenizer, small_shards):
    path = write(tmp_path, texts)
    prepare(path, tokenizer, tmp_path / "one")
    prepare(path, tokenizer, tmp_path / "two", workers=2)
    assert read_files(tmp_path / "one") == read_files(tmp_path / "two")


def _prepare_there(arguments):
    path, folder = arguments
    train, _ = prepare(path, load_tokenizer(path.parent / "tokenizer"), folder)
    return train.fingerprint


def test_two_calls_at_once_share_the_work(tmp_path, texts, tokenizer):
    path = write(tmp_path, texts)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    with ProcessPoolExecutor(2) as pool:
        fingerprints = set(pool.map(_prepare_there, [(path, tmp_path / "cache")] * 2))
    assert len(fingerprints) == 1
    assert not list((tmp_path / "cache").glob("*.partial"))


KILLED = """
import os, signal, sys
from pathlib import Path
from turncoder.data import packing, tokens
from turncoder.data.corpus import open_corpus
from turncoder.data.tokenizer import load_tokenizer
tokens.SHARD_CHARACTERS = 4000
folder, shards, stage = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
write, seen = tokens.write_atomically, 0
def die(path, text, **others):
    global seen
    seen += 1
    if seen == shards and stage == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, text, **others)
    if seen == shards:
        os.kill(os.getpid(), signal.SIGKILL)
tokens.write_atomically = die
packing.prepare_blocks(corpus=open_corpus(file=folder / "corpus.txt"), tokenizer=load_tokenizer(folder / "tokenizer"),
                       block_size=32, folder=folder / "killed")
"""


@pytest.mark.parametrize(("shards", "stage"), [(1, "before"), (3, "before"), (4, "after")])
def test_kill_in_the_middle_then_resume_to_the_same_bytes(
    tmp_path, texts, tokenizer, small_shards, monkeypatch, shards, stage
):
    path = write(tmp_path, texts)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(shards), stage])
    assert done.returncode == -signal.SIGKILL
    (partial,) = (tmp_path / "killed").glob("*.partial")
    assert not list((tmp_path / "killed").glob("*/manifest.json"))
    kept = shards - (stage == "before")
    read = json.loads((partial / "journal.json").read_text())["read"]["train"] if kept else 0
    encoded = []
    encode = encoding.Encoder.encode
    monkeypatch.setattr(
        encoding.Encoder, "encode", lambda self, rows, *rest: encoded.extend(rows) or encode(self, rows, *rest)
    )
    prepare(path, tokenizer, tmp_path / "killed")
    assert len(encoded) == len(texts) - read, "finished shards are kept"
    prepare(path, tokenizer, tmp_path / "whole")
    assert read_files(tmp_path / "killed") == read_files(tmp_path / "whole")
    assert not list((tmp_path / "killed").glob("*.partial"))


def stop_at_the_fourth(monkeypatch, trouble):
    """Let the journal be written three times, and give the function that writes it."""
    write_whole, calls = tokens.write_atomically, itertools.count(1)

    def fail(*arguments, **others):
        if next(calls) == 4:
            raise trouble
        write_whole(*arguments, **others)

    monkeypatch.setattr(tokens, "write_atomically", fail)
    return write_whole


@pytest.mark.parametrize("cut", ["train.tokens", "validation.ends", "journal.json"])
def test_files_shorter_than_the_journal_says_are_made_anew(
    tmp_path, texts, tokenizer, small_shards, monkeypatch, caplog, cut
):
    path = write(tmp_path, texts)
    write_whole = stop_at_the_fourth(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        prepare(path, tokenizer, tmp_path / "cut")
    (partial,) = (tmp_path / "cut").glob("*.partial")
    os.truncate(partial / cut, 16 * (cut != "journal.json"))  # as a power cut leaves what was not synced
    monkeypatch.setattr(tokens, "write_atomically", write_whole)
    with caplog.at_level("INFO", logger="turncoder"):
        prepare(path, tokenizer, tmp_path / "cut")
    assert (f"{cut} is shorter than its journal says" in caplog.text) == (cut != "journal.json")
    prepare(path, tokenizer, tmp_path / "whole")
    assert read_files(tmp_path / "cut") == read_files(tmp_path / "whole")


@pytest.mark.parametrize("trouble", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_and_ctrl_c_leave_whole_shards(tmp_path, texts, tokenizer, small_shards, monkeypatch, trouble):
    path = write(tmp_path, texts)
    stop_at_the_fourth(monkeypatch, trouble)
    with pytest.raises(type(trouble)) as caught:
        prepare(path, tokenizer, tmp_path / "full")
    assert caught.value is trouble
    (partial,) = (tmp_path / "full").glob("*.partial")
    journal = json.loads((partial / "journal.json").read_text())
    for name, (count, documents, _) in journal["splits"].items():
        assert (partial / f"{name}.tokens").stat().st_size == count * 2
        assert (partial / f"{name}.ends").stat().st_size == documents * 8
    assert not list(partial.glob("*.partial"))
    prepare(path, tokenizer, tmp_path / "full")
    monkeypatch.undo()
    prepare(path, tokenizer, tmp_path / "whole")
    assert read_files(tmp_path / "full") == read_files(tmp_path / "whole")


def test_a_real_write_error_comes_through(tmp_path, texts, tokenizer):
    """The system itself refuses to write more: as a full disk, but one that needs no disk of its own."""
    path = write(tmp_path, texts)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            prepare(path, tokenizer, tmp_path / "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    prepare(path, tokenizer, tmp_path / "full")
    prepare(path, tokenizer, tmp_path / "whole")
    assert read_files(tmp_path / "full") == read_files(tmp_path / "whole")


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        (["", "  ", ""], {}, "no text at all, 3 empty documents"),
        (["one document"], {}, "validation_split_percentage 5 of 1 documents leaves none"),
        (["one document"], {"validation_percentage": 99.999999}, "leaves none of 1 documents for training"),
        (["text"], {"validation_percentage": 100}, r"validation_split_percentage 100 is not in \[0, 100\)"),
        (["text"], {"block_size": 1}, "max_seq_length 1 is too short"),
    ],
)
def test_what_nothing_can_be_trained_on_is_refused(tmp_path, tokenizer, lines, options, message):
    path = write(tmp_path, lines)
    with pytest.raises(UserError, match=message) as caught:
        prepare(path, tokenizer, tmp_path / "cache", **options)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").glob("*.partial")), "nothing half-written"


def test_another_user_of_the_cache_can_read_all_of_it(tmp_path, texts, tokenizer):
    train, _ = prepare(write(tmp_path, texts), tokenizer, tmp_path / "cache", line_by_line=True)
    assert len(train)
    assert len({path.stat().st_mode for path in (tmp_path / "cache").rglob("*") if path.is_file()}) == 1


def test_a_cache_that_cannot_be_written(tmp_path, texts, tokenizer):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="set TURNCODER_CACHE"):
        prepare(write(tmp_path, texts), tokenizer, tmp_path / "file" / "cache")


def test_an_error_late_in_the_file_leaves_nothing_that_looks_whole(tmp_path, tokenizer):
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"text": "fine"}\n' * 50 + '{"text": "bro\n')
    with pytest.raises(UserError, match="line 51: broken JSON"):
        prepare(path, tokenizer, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*/manifest.json"))


def test_saved_tokens_are_used_as_they_are(tmp_path, tokenizer):
    rows = [[1, 5, 9], [4], list(range(10, 50))]
    for column in ("input_ids", "packed"):
        datasets.Dataset.from_dict({column: rows}).save_to_disk(tmp_path / column)
        train, _ = prepare(tmp_path / column, tokenizer, tmp_path / "cache", validation_percentage=0)
        assert read_rows(train) == [[1, 5, 9], [4], list(range(10, 42)), list(range(42, 50))]
    datasets.Dataset.from_dict({"packed": [[1, 2], [3, 320]]}).save_to_disk(tmp_path / "bad")
    with pytest.raises(UserError, match="token id 320 is outside of the tokenizer's 320 tokens"):
        prepare(tmp_path / "bad", tokenizer, tmp_path / "cache", validation_percentage=0)


def test_a_text_longer_than_any_limit_is_tokenised_in_pieces(tmp_path, tokenizer, monkeypatch, caplog):
    long = "quietly carried " * 3000
    monkeypatch.setattr(encoding, "LONGEST", 6000)
    train, _ = prepare(write(tmp_path, ["short", long, "x" * 20000]), tokenizer, tmp_path, validation_percentage=0)
    documents = read_rows(train.by_document(10**6))
    assert documents[1].count(tokenizer.bos_token_id) == 1
    assert documents[1] == tokenizer(long.rstrip("\n"))["input_ids"]
    assert tokenizer.decode(documents[2], skip_special_tokens=True) == "x" * 20000
    assert "tokenised in pieces" in caplog.text


def test_a_tokenizer_without_a_fast_path_is_called(tmp_path, texts, caplog):
    from transformers import ByT5Tokenizer

    slow = ByT5Tokenizer()
    train, _ = prepare(write(tmp_path, texts[:40]), slow, tmp_path / "cache", validation_percentage=0)
    assert "no fast path" in caplog.text
    assert read_rows(train.by_document(10**6)) == [slow(text)["input_ids"] for text in texts[:40]]


def test_a_tokenizer_that_truncates_and_pads_does_neither_here(tmp_path, texts, tokenizer):
    path = write(tmp_path, texts[:40])
    before = prepare(path, tokenizer, tmp_path / "cache", validation_percentage=0)[0]
    tokenizer(["a", texts[0]], truncation=True, max_length=4, padding="max_length")
    after = prepare(path, tokenizer, tmp_path / "other", validation_percentage=0)[0]
    assert read_files(tmp_path / "cache") == read_files(tmp_path / "other")
    assert before.fingerprint == after.fingerprint


def test_selections(tmp_path, texts, tokenizer):
    train, _ = prepare(write(tmp_path, texts), tokenizer, tmp_path)
    first, drawn = train.select(5), train.select(5, seed=1)
    assert read_rows(first) == read_rows(train)[:5]
    assert len(drawn) == 5
    assert len(set(drawn.rows.tolist())) == 5
    assert drawn.fingerprint not in (first.fingerprint, train.select(5, seed=2).fingerprint)
    assert read_rows(drawn) == [read_rows(train)[row] for row in drawn.rows]
    assert drawn.num_tokens == int(drawn.lengths().sum()) == drawn.counts["tokens"]
    assert len(train.select(10**9)) == len(train)
    assert len(pickle.dumps(train)) < 2000
    assert read_rows(pickle.loads(pickle.dumps(first))) == read_rows(first)
    assert train[-1][0].tolist() == train[len(train) - 1][0].tolist()
    with pytest.raises(IndexError):
        train[len(train)]


MEASURED = """
import re, sys
from pathlib import Path
from turncoder.data.corpus import open_corpus
from turncoder.data.packing import prepare_blocks
from turncoder.data.tokenizer import load_tokenizer
folder, name = Path(sys.argv[1]), sys.argv[2]
train, _ = prepare_blocks(corpus=open_corpus(file=folder / name), tokenizer=load_tokenizer(folder / "tokenizer"),
                          block_size=32, folder=folder / "cache")
status = Path("/proc/self/status").read_text()  # the peak of getrusage would count the process that started this one
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) / 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_peak_memory_is_flat(tmp_path, texts, tokenizer):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    peaks = []
    for name, times in (("small.txt", 60), ("large.txt", 600)):
        write(tmp_path, (f"{text} {place}" for place in range(times) for text in texts), name)
        command = [sys.executable, "-c", MEASURED, str(tmp_path), name]
        peaks.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    assert (tmp_path / "large.txt").stat().st_size > 9 * (tmp_path / "small.txt").stat().st_size > 2.5e7
    assert peaks[1] < peaks[0] + 40, peaks


def test_a_prepared_folder_is_a_corpus(tmp_path, texts, tokenizer):
    made = prepare(write(tmp_path, texts), tokenizer, tmp_path / "made")
    corpus = open_corpus(file=tmp_path / "made")
    assert corpus.tokenised
    assert [row.tolist() for row in corpus] == read_rows(made[0].by_document(10**6))
    found = prepare_blocks(corpus=corpus, tokenizer=tokenizer, block_size=32, folder=tmp_path / "unused")
    assert [blocks.fingerprint for blocks in found] == [blocks.fingerprint for blocks in made]
    assert not (tmp_path / "unused").exists()
    other = write(tmp_path, texts[:3], "other.txt")
    _, held_out = prepare_blocks(
        corpus=corpus, validation=open_corpus(file=other), tokenizer=tokenizer, block_size=32, folder=tmp_path / "more"
    )
    assert held_out.counts["documents"] == 3
    with pytest.raises(UserError, match="prepared with another tokenizer"):
        prepare(tmp_path / "made", train_tokenizer(texts, 300), None)
    with pytest.raises(UserError, match="another as_llm2vec or line_by_line"):
        prepare(tmp_path / "made", tokenizer, None, as_llm2vec=True)
    prepare(other, tokenizer, tmp_path / "made", validation_percentage=0)
    with pytest.raises(UserError, match="2 prepared corpora; name one"):
        open_corpus(file=tmp_path / "made")
