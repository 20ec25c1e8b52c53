"""``prepare`` for pretraining: a tokenizer without a model, ends of documents, and tokens that training finds."""

import hashlib
import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from turncoder.cli import main
from turncoder.config.stages import PrepareConfig, load_config
from turncoder.data.corpus import open_corpus
from turncoder.data.tokens import TokenPass
from turncoder.errors import UserError

TEXTS = [f"Story {number}: a cat and {number} dogs." for number in range(200)]
TINY = """
kind = "clm"
config_name = "llama"
train_file = "text.txt"
output_dir = "run"
max_seq_length = 32
per_device_train_batch_size = 4
max_steps = 2
do_eval = false
logging_steps = 1

[config_overrides]
hidden_size = 16
num_hidden_layers = 1
num_attention_heads = 2
intermediate_size = 32
"""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch, shared):
    monkeypatch.setenv("TURNCODER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("\n".join(TEXTS) + "\n")
    Path("tokenizer").symlink_to(shared / "tokenizers" / "gpt2")


def read_tokens(folder):
    return [token for row in open_corpus(file=folder) for token in row.tolist()]


def prepare(*words, code=0):
    assert main(["prepare", "--train_file", "text.txt", *words]) == code


@pytest.mark.parametrize(("flag", "ends"), [([], True), (["--no-append_eos"], False), (["--append_eos"], True)])
def test_documents_end_as_asked(flag, ends, capsys):
    prepare("--tokenizer_name", "tokenizer", "--output", "blocks", *flag)
    tokenizer = AutoTokenizer.from_pretrained("tokenizer")
    texts = [row.tolist() for row in open_corpus(file="blocks")]
    assert 150 < len(texts) < 200  # the others are held out
    for ids in texts:
        text = tokenizer.decode(ids).removesuffix("<|endoftext|>")
        assert text in TEXTS
        assert ids == tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] * ends


def test_for_mntp_a_text_is_as_its_tokenizer_has_it(stories):
    prepare("--model_name_or_path", str(stories), "--tokenizer_name", "tokenizer", "--output", "plain")
    prepare("--model_name_or_path", str(stories), "--tokenizer_name", "tokenizer", "--output", "kind", "--kind", "clm")
    end = AutoTokenizer.from_pretrained("tokenizer").eos_token_id
    assert end not in read_tokens("plain")
    assert read_tokens("kind").count(end) > 150


def test_the_same_words_give_the_same_bytes():
    digests = []
    for folder in ("one", "two"):
        prepare("--tokenizer_name", "tokenizer", "--output", folder, "--max_seq_length", "32")
        files = sorted(
            path for path in Path(folder).rglob("*") if path.is_file() and path.suffix in (".tokens", ".ends")
        )
        digests.append([hashlib.sha256(path.read_bytes()).hexdigest() for path in files])
    assert digests[0] == digests[1]
    assert len(digests[0]) == 4


@pytest.mark.parametrize("more", [0, 1, 7])
def test_training_takes_every_full_row(more):
    """As many rows as floor(tokens / length), also where nothing is left over."""
    Path("same.txt").write_text("one two three\n" * 40 + " a" * more + "\n" * bool(more))  # 4 tokens each, with the end
    Path("held.txt").write_text("one two three\n" * 20)
    words = ["--tokenizer_name", "tokenizer", "--validation_file", "held.txt", "--max_seq_length", "16"]
    assert main(["prepare", "--train_file", "same.txt", *words, "--output", "blocks"]) == 0
    tokens = len(read_tokens("blocks"))
    assert tokens == 160 + (more + 1) * bool(more)
    for number, corpus in enumerate(("same.txt", "blocks")):
        Path("run.toml").write_text(TINY.replace("text.txt", corpus).replace('"run"', f'"run{number}"'))
        assert main(["pretrain", "run.toml", *words]) == 0
        counts = json.loads(Path(f"run{number}/run.json").read_text())["data"]["train"]
        assert (counts["blocks"], counts["tokens"]) == (tokens // 16, tokens // 16 * 16)


NAMED, LEARNT = 'tokenizer_name = "tokenizer"', 'train_tokenizer = "bpe"\nvocab_size = 400'


@pytest.mark.parametrize(("tokenizer", "folder"), [(NAMED, True), (NAMED, False), (LEARNT, False)])
def test_training_does_not_tokenise_again(tokenizer, folder, monkeypatch):
    Path("run.toml").write_text(f"{tokenizer}\n{TINY}")
    assert main(["prepare", "run.toml", *(["--output", "blocks"] if folder else [])]) == 0
    assert not Path("run").exists()
    words = ["--train_file", "blocks"] if folder else []
    monkeypatch.setattr(TokenPass, "run", lambda *_: pytest.fail("the text was tokenised again"))
    assert main(["pretrain", "run.toml", *words]) == 0


def test_a_tokenizer_is_needed():
    with pytest.raises(UserError, match="no tokenizer: give tokenizer_name"):
        load_config(PrepareConfig, None, ["--train_file", "text.txt"])
    with pytest.raises(UserError, match="both set"):
        load_config(PrepareConfig, None, ["--train_file", "t", "--tokenizer_name", "t", "--train_tokenizer", "bpe"])
