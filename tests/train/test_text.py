import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from turncoder.config.stages import MntpConfig
from turncoder.data.corpus import open_corpus
from turncoder.data.masking import MaskedBlocks, Masking
from turncoder.data.packing import prepare_blocks
from turncoder.errors import UserError
from turncoder.model.prior import Prior
from turncoder.objectives.alignment import select_targets
from turncoder.objectives.cwt import draw_pool
from turncoder.train.text import Text, count_targets, measure_bytes, open_text

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
TEXTS = ["Ein  Fluß, zwei FLÜSSE!", "", "눈이 온다", "a b c", "  \t", "x" * 50] * 5


@pytest.fixture
def uncased():
    """WordPiece as BERT's: what it decodes is lower case, with other blanks, and [UNK] for much."""
    words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "ein": 4, "fluß": 5, "zwei": 6, "a": 7, "b": 8, ",": 9}
    inner = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )


@pytest.mark.parametrize("workers", [None, 2])
@pytest.mark.parametrize("share", [0, 40])
def test_a_token_stands_for_bytes_of_the_text_and_not_of_what_is_decoded(uncased, tmp_path, share, workers):
    path = tmp_path / "text.jsonl"
    import json

    path.write_text("".join(json.dumps({"text": f"{text} {number}" if text.strip() else text}) + "\n"
                            for number, text in enumerate(TEXTS)))  # fmt: skip
    texts = [f"{text} {number}" for number, text in enumerate(TEXTS) if text.strip()]
    corpus = open_corpus(file=str(path))
    blocks = prepare_blocks(
        corpus=corpus,
        tokenizer=uncased,
        block_size=8,
        folder=tmp_path / "tokens",
        validation_percentage=share,
        workers=workers,
    )
    parts = [part for part in blocks if part.file.num_tokens]
    assert len(parts) == (2 if share else 1)
    special = (0, 2, 3)
    total = sum(len(text.encode()) for text in texts)
    assert sum(part.file.num_bytes for part in parts) == total
    counted = [np.isin(part.file.tokens, special, invert=True).sum() for part in parts]
    assert sum(counted) == sum(len(ids) - 2 for ids in uncased(texts)["input_ids"])
    means = [measure_bytes(part, uncased, special) for part in parts]
    assert np.dot(means, counted) == pytest.approx(total)


def test_text_that_came_as_tokens_is_decoded(uncased, tmp_path):
    import datasets

    rows = uncased(["ein fluß", "a b"])["input_ids"]
    datasets.Dataset.from_dict({"input_ids": rows}).save_to_disk(tmp_path / "saved")
    corpus = open_corpus(dataset_name=str(tmp_path / "saved"))
    train, _ = prepare_blocks(
        corpus=corpus, tokenizer=uncased, block_size=8, folder=tmp_path / "tokens", validation_percentage=0
    )
    assert train.file.num_bytes == 0
    assert measure_bytes(train, uncased, (0, 2, 3)) == len("ein flußa b".encode()) / 4


@pytest.mark.parametrize("shift", [0, 1], ids=["its own state", "the state before"])
@pytest.mark.parametrize("marked", [True, False], ids=["bos and eos", "bare"])
@pytest.mark.parametrize("layout", ["isolated", "mixed", "lines"])
def test_what_is_counted_is_what_batches_ask_for(uncased, tmp_path, layout, marked, shift):
    if not marked:
        uncased.backend_tokenizer.post_processor = None
    path = tmp_path / "text.txt"
    path.write_text("ein fluß, zwei\na b ein\nb\nzwei b, b\n" * 3, encoding="utf8")
    corpus = open_corpus(file=str(path))
    blocks, _ = prepare_blocks(
        corpus=corpus,
        tokenizer=uncased,
        block_size=512,  # all in one row, of which nothing but documents says where labels end
        folder=tmp_path / "tokens",
        validation_percentage=0,
        line_by_line=layout == "lines",
    )
    masking = Masking(
        mlm_probability=1.0,
        mask_token_id=1,
        vocab_size=len(uncased),
        special_ids=(0, 1, 2, 3),
        style="all_mask",
        first_counts=shift == 0,
    )
    text = Text(blocks, blocks, masking, masking, layout == "isolated", block_size=512, pad_token_id=0, pad_to=None)
    counts_V = count_targets(text, len(uncased))
    rows = MaskedBlocks(blocks, masking, evaluation=True)
    asked_K = select_targets(text.collate([rows[row] for row in range(len(rows))])["labels"], shift)
    first = torch.zeros_like(counts_V)
    if layout == "mixed" and not marked and shift:
        first[4] = 1  # of the row: one token in all of a corpus, which is not looked for
    assert counts_V.tolist() == (torch.bincount(asked_K, minlength=len(uncased)) + first).tolist()


def test_negatives_are_drawn_as_often_as_they_stand_in_the_text(uncased, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("ein fluß, zwei\na b ein\nb\nzwei b, b\n" * 3, encoding="utf8")
    corpus = open_corpus(file=str(path))
    folder = tmp_path / "tokens"
    blocks, _ = prepare_blocks(corpus=corpus, tokenizer=uncased, block_size=512, folder=folder, validation_percentage=0)
    masking = Masking(mlm_probability=0.2, mask_token_id=1, vocab_size=len(uncased), special_ids=(0, 1, 2, 3))
    text = Text(blocks, blocks, masking, masking, True, block_size=512, pad_token_id=0, pad_to=None)
    prior = Prior(count_targets(text, len(uncased)))
    pool = draw_pool(torch.tensor([4]), prior.log_p_V, 20_000, seed=1, step=1)
    share_V = torch.zeros(len(uncased)).index_put((pool.ids_U,), pool.counts_U / 20_000)
    # ein fluß , zwei a b: 6 3 6 6 3 15 of 39, and one more of each of ten ids
    wanted_V = torch.tensor([1, 1, 1, 1, 7, 4, 7, 4, 13, 7]) / 49
    assert share_V.tolist() == pytest.approx(wanted_V.tolist(), abs=0.02)


def test_a_token_without_embedding_is_neither_drawn_nor_read(uncased, tmp_path):
    backbone = LlamaModel(LlamaConfig(**SMALL, vocab_size=len(uncased)))
    uncased.add_tokens(["<image>"], special_tokens=True)
    path = tmp_path / "text.txt"
    config = MntpConfig(model_name_or_path="m", train_file=str(path), max_seq_length=8)
    path.write_text("\n".join(f"ein fluß {number}" for number in range(200)))
    text = open_text(config, backbone, uncased)
    assert {text.masking.vocab_size, text.eval_masking.vocab_size} == {len(uncased) - 1}
    path.write_text("\n".join(f"ein <image> {number}" for number in range(200)))
    with pytest.raises(UserError, match=r"train_file: the text holds '<image>' \(id 10\), .* take it out"):
        open_text(config, backbone, uncased)
