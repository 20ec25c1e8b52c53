"""Masks: LLM2Vec's shares, drawn from (seed, epoch, row) alone."""

import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from turncoder.data.blocks import Blocks, TokenFile
from turncoder.data.masking import EVALUATION_EPOCH, MaskedBlocks, Masking, collate

VOCABULARY, MASK, SPECIAL = 1000, 7, (0, 1, 2)


def make_masking(probability=0.2, **changes):
    return Masking(probability, MASK, VOCABULARY, SPECIAL, **changes)


def make_blocks(folder, lengths, block_size=16, layout="packed"):
    tokens = np.random.default_rng(0).integers(10, VOCABULARY, sum(lengths)).astype("<u2")
    tokens.tofile(folder / "train.tokens")
    np.cumsum(lengths).astype("<u8").tofile(folder / "train.ends")
    return Blocks(TokenFile(folder, "train", "uint16", len(tokens), len(lengths), 0, "f"), block_size, layout)


def within(count, total, share, sigmas=5):
    return abs(count - total * share) < sigmas * math.sqrt(total * share * (1 - share)) + 1


@pytest.mark.parametrize("probability", [0.15, 0.8])
def test_shares_are_binomial(probability):
    rows, length = 400, 512
    tokens = np.random.default_rng(1).integers(10, VOCABULARY, (rows, length))
    tokens[:, ::16] = 1
    masking = make_masking(probability)
    pairs = [masking.corrupt(tokens[row], 0, row) for row in range(rows)]
    inputs, labels = (np.stack(part) for part in zip(*pairs, strict=True))
    ordinary = (tokens != 1) & (np.arange(length) > 0)
    selected = labels != -100
    assert not (selected & ~ordinary).any(), "special tokens and the first position are never predicted"
    assert (labels[selected] == tokens[selected]).all()
    total = selected.sum()
    assert within(total, ordinary.sum(), probability)
    assert within((inputs[selected] == MASK).sum(), total, 0.8 + 0.1 / VOCABULARY)
    other = selected & (inputs != MASK) & (inputs != tokens)
    assert within(other.sum(), total, 0.1 * (1 - 2 / VOCABULARY))
    assert (inputs[:, 1:][~selected[:, 1:]] == tokens[:, 1:][~selected[:, 1:]]).all()
    kinds = np.bincount(inputs[other], minlength=VOCABULARY)
    assert kinds[list(SPECIAL)].sum() > 0, "random tokens come from the whole vocabulary, as in LLM2Vec"
    assert (kinds > 0).mean() > 0.8
    columns = selected[:, 1:].sum(axis=0)[tokens[0, 1:] != 1]
    assert columns.std() < 2 * math.sqrt(rows * probability * (1 - probability)), "no column is preferred"


def test_all_mask_and_unmasked():
    tokens = np.arange(10, 500)
    inputs, labels = make_masking(0.5, style="all_mask").corrupt(tokens, 0, 0)
    assert (inputs[1:][labels[1:] != -100] == MASK).all()
    assert (inputs[1:][labels[1:] == -100] == tokens[1:][labels[1:] == -100]).all()
    inputs, labels = make_masking(style="unmasked").corrupt(np.array([1, 5, 2, 9]), 0, 0)
    assert inputs.tolist() == [1, 5, 2, 9]
    assert labels.tolist() == [-100, 5, 2, 9]


def test_real_mask_tokens_can_be_selected():
    tokens = np.full(4000, MASK)
    _, labels = make_masking().corrupt(tokens, 0, 0)
    assert within((labels == MASK).sum(), 4000, 0.2)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**40), st.integers(0, 2**40), st.integers(1, 80))
def test_a_row_is_a_pure_function_of_seed_epoch_and_row(seed, epoch, row, length):
    tokens = np.arange(10, 10 + length)
    first = make_masking(0.5, seed=seed).corrupt(tokens, epoch, row)
    np.random.seed(0)  # noqa: NPY002 - global state must not matter
    again = make_masking(0.5, seed=seed).corrupt(tokens.astype(np.uint16), epoch, row)
    for ours, theirs in zip(first, again, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_seed_epoch_and_row_each_matter():
    tokens = np.arange(10, 300)
    draws = [
        make_masking(0.5, seed=seed).corrupt(tokens, epoch, row)[0].tobytes()
        for seed in (0, 1)
        for epoch in (0, 1, EVALUATION_EPOCH)
        for row in (0, 1)
    ]
    assert len(set(draws)) == 12


def test_another_process_draws_the_same():
    code = (
        "import numpy as np, hashlib; from turncoder.data.masking import Masking; m = Masking(.2, 7, 1000, (1,));"
        "print(hashlib.sha256(b''.join(m.corrupt(np.arange(512), 3, r)[0].tobytes() for r in range(50))).hexdigest())"
    )
    outputs = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout for _ in range(2)}
    assert len(outputs) == 1
    assert len(outputs.pop().strip()) == 64


def test_unrolled_epochs_see_every_row_once_and_mask_it_anew(tmp_path):
    blocks = make_blocks(tmp_path, [40, 3, 90, 27])
    data = MaskedBlocks(blocks, make_masking(0.5), epochs=3)
    assert len(blocks) == 10
    assert len(data) == 30
    rows = [[data.order(epoch, place) for place in range(10)] for epoch in range(3)]
    assert all(sorted(row) == list(range(10)) for row in rows)
    assert rows[0] != rows[1]
    originals = [blocks[row][0] for row in range(10)]
    for item in range(30):
        epoch, place = divmod(item, 10)
        sample, original = data[item], originals[rows[epoch][place]]
        chosen = sample["labels"] != -100
        assert (sample["labels"][chosen] == original[chosen]).all()
        assert sample["document_ids"].tolist() == blocks[rows[epoch][place]][1].tolist()
    masks = [data[10 * epoch + rows[epoch].index(4)]["labels"].tobytes() for epoch in range(3)]
    assert len(set(masks)) == 3
    with pytest.raises(IndexError):
        data[30]


def test_items_do_not_depend_on_when_or_where_they_are_asked_for(tmp_path):
    blocks = make_blocks(tmp_path, [5, 9, 30, 2, 17, 8], layout="pieces")
    data = MaskedBlocks(blocks, make_masking(), epochs=2, batch_size=2)
    forwards = [data[item]["input_ids"] for item in range(len(data))]
    copy = pickle.loads(pickle.dumps(data))
    for item in reversed(range(len(data))):
        np.testing.assert_array_equal(copy[item]["input_ids"], forwards[item])


def test_a_pickled_dataset_holds_no_tokens(tmp_path):
    data = MaskedBlocks(make_blocks(tmp_path, [100000]), make_masking())
    data[0]
    assert len(pickle.dumps(data)) < 20000


def test_evaluation_is_the_same_every_time_and_unlike_training(tmp_path):
    blocks = make_blocks(tmp_path, [400])
    first, again = (MaskedBlocks(blocks, make_masking(), evaluation=True, epochs=5) for _ in range(2))
    assert len(first) == len(blocks)
    for row in range(len(blocks)):
        np.testing.assert_array_equal(first[row]["labels"], again[row]["labels"])
        original = blocks[row][0]
        chosen = first[row]["labels"] != -100
        assert (first[row]["labels"][chosen] == original[chosen]).all(), "rows come in their own order"


@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.one_of(st.none(), st.integers(1, 20)))
def test_collate_pads_on_the_right(lengths, pad_to):
    features = [
        {"input_ids": np.arange(5, 5 + n), "labels": np.arange(n), "document_ids": np.zeros(n, int)} for n in lengths
    ]
    batch = collate(features, 99, pad_to)
    assert set(batch) == {"input_ids", "attention_mask", "labels", "document_ids"}
    width = max(*lengths, pad_to or 0, 0)
    for row, n in enumerate(lengths):
        assert batch["input_ids"].shape == (len(lengths), width)
        assert batch["input_ids"].dtype == torch.int64
        assert batch["input_ids"][row].tolist() == [*range(5, 5 + n), *[99] * (width - n)]
        assert batch["attention_mask"][row].tolist() == [1] * n + [0] * (width - n)
        assert batch["labels"][row].tolist() == [*range(n), *[-100] * (width - n)]
        assert batch["document_ids"][row].tolist() == [0] * n + [-1] * (width - n)
