import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from turncoder.data.corpus import open_corpus
from turncoder.data.packing import prepare_blocks
from turncoder.train.text import measure_bytes

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
