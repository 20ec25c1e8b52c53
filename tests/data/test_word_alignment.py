"""Words to tokens: against a loop over all words and tokens, for every kind of tokenizer and for wild text."""

import itertools

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from turncoder.data import alignment as alignments
from turncoder.data.alignment import Alignment, align_words, choose_bos
from turncoder.data.words import open_words
from turncoder.errors import UserError

REAL = ("tokenizers/gpt2", "tokenizers/gpt-neox-20b", "tokenizers/mistral-7b-v1", "models/stories260k-hf")
MADE = ("wordpiece", "unigram", "phrases", "words")
PROSE = ["the lamp of the river", "of the old stone", "Über the naïve café", "a lamp, a stone; 1984!", "снег 눈 أهلا"]


def make_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of a kind that the real ones here are not, learnt from a few lines."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "</s>"]
    if kind == "wordpiece":  # BERT's: drops control characters and accents, lower case
        backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        backend.normalizer = normalizers.BertNormalizer()
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    elif kind == "words":  # no token at all for what is not a word
        backend = Tokenizer(models.WordLevel(unk_token="[UNK]"))
        backend.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Whitespace(), pre_tokenizers.Split(",", "removed")]
        )
        trainer = trainers.WordLevelTrainer(special_tokens=special, show_progress=False)
    else:  # T5's; "phrases" has tokens over several words
        backend = Tokenizer(models.Unigram())
        backend.normalizer = normalizers.NFKC()
        backend.pre_tokenizer = pre_tokenizers.Metaspace(split=kind == "unigram")
        trainer = trainers.UnigramTrainer(
            vocab_size=90, special_tokens=special, unk_token="[UNK]", show_progress=False, max_piece_length=24
        )
    backend.train_from_iterator(PROSE * 20, trainer=trainer)
    single = {"wordpiece": "[CLS] $A [SEP]", "unigram": "$A </s>"}.get(kind)
    if single:
        named = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]", "</s>")]
        backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=named)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", eos_token="</s>")


@pytest.fixture(scope="module")
def tokenizers(shared) -> dict:
    return {name: AutoTokenizer.from_pretrained(shared / name) for name in REAL} | {
        kind: make_tokenizer(kind) for kind in MADE
    }


def make_data(sentences: list[tuple[str, list[tuple[int, int]]]]) -> Dataset:
    columns = {
        "text": [text for text, _ in sentences],
        "starts": [[start for start, _ in spans] for _, spans in sentences],
        "ends": [[end for _, end in spans] for _, spans in sentences],
    }
    return Dataset.from_dict(columns)


def split_words(text: str) -> tuple[str, list[tuple[int, int]]]:
    spans, at = [], 0
    for word in text.split():
        at = text.index(word, at)
        spans.append((at, at + len(word)))
        at += len(word)
    return text, spans


def find_tokens(offsets: list[tuple[int, int]], start: int, end: int) -> tuple[int, int] | None:
    """Look at every token: those whose characters overlap with the word's, and what stands between."""
    own = [number for number, (low, high) in enumerate(offsets) if any(start <= at < end for at in range(low, high))]
    return (own[0], own[-1] + 1) if own else None


def read_window(alignment: Alignment, word: int) -> tuple[list[int], int, int]:
    window = alignment.word_window[word]
    begin = alignment.window_ends[window - 1] if window else 0
    ids = alignment.tokens[begin : alignment.window_ends[window]].tolist()
    return ids, int(alignment.word_first[word]), int(alignment.word_last[word])


CHARACTERS = st.one_of(
    st.sampled_from("aeo the lamp of river,.'\t\u00a0"),
    st.sampled_from(["\u0301", "\u0327", "\u200d", "\u200f", "\u0000", "\u0007", "\x85", "\ufeff", "\ufffd"]),
    st.sampled_from(["😀", "👩🏽\u200d🚀", "🇧🇬", "é", "e\u0301", "אבג", "أهلا", "눈", "снег", "ﷺ", "ﬁ", "İ", "ẞ"]),
    st.characters(exclude_categories=["Cs"]),
)


@st.composite
def sentences(draw: st.DrawFn) -> tuple[str, list[tuple[int, int]]]:
    """A text, and words in it: they may touch, be one and the same, be empty, or leave characters to nobody."""
    text = "".join(draw(st.lists(CHARACTERS, min_size=1, max_size=40)))
    places = sorted(draw(st.lists(st.integers(0, len(text)), min_size=2, max_size=16)))
    spans = [(low, high) for low, high in itertools.pairwise(places)]
    twice = draw(st.integers(1, 3))
    return text, sorted(span for span in spans[:1] * twice + spans[1:])


@pytest.mark.parametrize("kind", [*REAL, *MADE])
@settings(deadline=None, max_examples=40)
@given(batch=st.lists(sentences(), min_size=1, max_size=4))
def test_words_have_the_tokens_that_they_overlap_with(tokenizers: dict, kind: str, batch: list):
    tokenizer = tokenizers[kind]
    alignment = align_words(tokenizer, make_data(batch), limit=10_000, bos=choose_bos(tokenizer))
    word, without, sharing = 0, 0, 0
    for number, (text, spans) in enumerate(sentence for sentence in batch if sentence[1]):
        whole = tokenizer(text, return_special_tokens_mask=True)
        added = 0 if whole["special_tokens_mask"][:1] == [1] else 1
        bare = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        offsets = bare["offset_mapping"]
        head = whole["special_tokens_mask"].index(0) + added if bare["input_ids"] else 1
        found = [find_tokens(offsets, *span) for span in spans]
        own = [set(range(*tokens)) for tokens in found if tokens]
        without += found.count(None)
        sharing += sum(any(mine & other for other in own[:at] + own[at + 1 :]) for at, mine in enumerate(own))
        for (_, end), tokens in zip(spans, found, strict=True):
            ids, first, last = read_window(alignment, word)
            assert alignment.word_window[word] == number
            if bare["input_ids"]:
                assert ids[added:] == whole["input_ids"]
            if tokens is None:
                before = [at for at, (low, high) in enumerate(offsets) if low < min(high, end)]
                tokens = (max(before, default=0), max(before, default=0) + 1)
            assert (first - head, last - head) == tokens
            assert 1 <= first < last <= len(ids)
            word += 1
    assert word == len(alignment.word_window) == alignment.counts["words"]
    assert alignment.counts["words_without_token"] == without
    assert alignment.counts["words_sharing_token"] == sharing
    assert alignment.counts["sentences"] == len(batch)


@pytest.mark.parametrize("kind", [*REAL, *MADE])
@settings(deadline=None, max_examples=40)
@given(batch=st.lists(sentences(), min_size=1, max_size=3), limit=st.integers(3, 14))
def test_windows_hold_every_word_once_with_its_own_tokens(tokenizers: dict, kind: str, batch: list, limit: int):
    tokenizer = tokenizers[kind]
    whole = align_words(tokenizer, make_data(batch), limit=10_000, bos=choose_bos(tokenizer))
    cut = align_words(tokenizer, make_data(batch), limit=limit, bos=choose_bos(tokenizer))
    head = tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
    room = limit - max(1, head.index(0)) - head[::-1].index(0)
    assert (cut.lengths <= limit).all() and set(cut.word_window) == set(range(len(cut.window_ends)))
    assert (np.diff(cut.word_window) >= 0).all() and cut.counts["windows"] == len(cut.window_ends)
    longer = 0
    for word in range(len(whole.word_window)):
        ids, first, last = read_window(whole, word)
        part, start, end = read_window(cut, word)
        assert part[start:end] == ids[first:last][:room] and start >= 1
        longer += last - first > room
    assert cut.counts["cut_words"] == longer
    assert cut.counts["cut_sentences"] == len(set(whole.word_window[whole.lengths[whole.word_window] > limit]))


@settings(deadline=None)
@given(st.data(), st.integers(1, 30), st.integers(1, 60))
def test_a_word_is_read_where_it_has_most_context(data: st.DataObject, room: int, more: int):
    length = room + more
    places = data.draw(st.lists(st.tuples(st.integers(0, length - 1), st.integers(1, room)), min_size=1, max_size=12))
    first, last = (np.sort(values) for values in np.array([(at, min(at + n, length)) for at, n in places]).T)
    last = np.minimum(last, first + room)
    starts, number = alignments._cut(first, last, length, room)
    assert (np.diff(number) >= 0).all() and set(number) == set(range(len(starts)))
    assert (starts >= 0).all() and (starts + room <= length).all()
    context = np.minimum(first[:, None] - starts, starts + room - last[:, None])  # of each word in each window
    chosen = context[np.arange(len(first)), number]
    assert (chosen >= 0).all() and (chosen == context.max(1)).all()
    at_edge = (starts[number] == 0) | (starts[number] == length - room)
    assert (at_edge | (2 * chosen >= room - (last - first) - (room - room // 2) - 1)).all()


def test_every_word_of_a_treebank_keeps_its_letters(tokenizers: dict, shared):
    data = open_words(file=str(shared / "data/ud_english_ewt/en_ewt-ud-dev.conllu")).data.select(range(700))
    for name in REAL:
        tokenizer = tokenizers[name]
        alignment = align_words(tokenizer, data, limit=100, bos=choose_bos(tokenizer))
        assert alignment.counts["words_without_token"] == alignment.counts["cut_words"] == 0
        word = 0
        for row in data:
            for start, end in zip(row["starts"], row["ends"], strict=True):
                ids, first, last = read_window(alignment, word)
                decoded = tokenizer.decode(ids[first:last], clean_up_tokenization_spaces=False)
                assert row["text"][start:end] in decoded or "�" in decoded, (row["text"], decoded)
                word += 1
        assert word == alignment.counts["words"] == len(alignment.word_first)


def test_a_sentence_of_5000_words_is_read_in_windows(tokenizers: dict):
    sentence = split_words(" ".join(f"w{number}" for number in range(5000)))
    alignment = align_words(tokenizers["tokenizers/gpt2"], make_data([sentence]), limit=512, bos=50256)
    assert alignment.counts["words"] == 5000 and alignment.counts["cut_words"] == 0
    assert (alignment.lengths == 512).all() and (alignment.tokens[:1] == 50256).all()
    inner = (alignment.word_window > 0) & (alignment.word_window < alignment.counts["windows"] - 1)
    assert alignment.word_first[inner].min() >= 100 and alignment.word_last[inner].max() <= 412


def test_a_word_longer_than_a_window_has_its_first_tokens(tokenizers: dict):
    tokenizer = tokenizers["models/stories260k-hf"]
    text, spans = split_words("before " + "x" * 100 + " after")
    alignment = align_words(tokenizer, make_data([(text, spans)]), limit=21, bos=None)
    assert alignment.counts["cut_words"] == 1
    ids, first, last = read_window(alignment, 1)
    whole = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    begin, end = find_tokens(whole["offset_mapping"], *spans[1])
    assert end - begin > 20 and ids[first:last] == whole["input_ids"][begin : begin + 20]


def test_words_without_tokens_take_the_one_before(tokenizers: dict):
    tokenizer = tokenizers["wordpiece"]
    text = "\u0007 lamp \u0301 \u200d stone"
    spans = [(0, 1), (2, 6), (7, 8), (9, 10), (11, 16)]
    alignment = align_words(tokenizer, make_data([(text, spans), ("\u0007", [(0, 1)])]), limit=64, bos=None)
    assert alignment.counts["words_without_token"] == 4
    pieces = [tokenizer.decode(ids[first:last]) for ids, first, last in (read_window(alignment, at) for at in range(5))]
    assert pieces[1] == "lamp" and pieces[4] == "stone"
    assert pieces[2] and pieces[2] == pieces[3] and pieces[1].endswith(pieces[2].removeprefix("##"))
    ids, first, last = read_window(alignment, 5)
    assert (first, last) == (1, 2) and ids == [2, 0, 3]


def test_bos_stands_in_front_where_the_tokenizer_puts_nothing(tokenizers: dict):
    data = make_data([split_words("the lamp")])
    for name, added in (("tokenizers/gpt2", 50256), ("unigram", 4), ("wordpiece", None)):
        tokenizer = tokenizers[name]
        bare = tokenizer("the lamp")["input_ids"]
        tokens = align_words(tokenizer, data, limit=64, bos=choose_bos(tokenizer)).tokens.tolist()
        assert tokens == ([added, *bare] if added is not None else bare)
        assert align_words(tokenizer, data, limit=64, bos=None).tokens.tolist() == bare


def test_limits_and_alphabets_that_a_tokenizer_was_saved_with(tokenizers: dict):
    data = make_data([split_words("я лампа за реки")])
    backend = Tokenizer(models.BPE())  # no token for what it has not seen
    trainer = trainers.BpeTrainer(special_tokens=["<s>", "</s>"], show_progress=False)
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.train_from_iterator([data[0]["text"]] * 3, trainer=trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    backend.enable_truncation(4)
    backend.enable_padding(length=30)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    alignment = align_words(tokenizer, data, limit=64, bos=choose_bos(tokenizer))
    ids = alignment.tokens.tolist()
    assert ids[0] == 0 and ids[-1] == 1 and ids.count(0) == ids.count(1) == 1
    read = [read_window(alignment, word) for word in range(4)]
    assert ["".join(tokenizer.convert_ids_to_tokens(ids[first:last])) for ids, first, last in read] == [
        "я", "лампа", "за", "реки",
    ]  # fmt: skip
    assert alignment.word_last[-1] == len(ids) - 1


def test_no_bos_no_words_and_no_rows(tokenizers: dict):
    tokenizer = tokenizers["phrases"]
    data = make_data([("the lamp", []), split_words("the lamp")])
    alignment = align_words(tokenizer, data, limit=8, bos=None)
    assert alignment.counts["sentences"] == 2 and alignment.counts["windows"] == 1
    assert alignment.word_first[0] == 0
    empty = align_words(tokenizer, data.select([0]), limit=8, bos=None)
    assert empty.counts["words"] == len(empty.tokens) == len(empty.window_ends) == len(empty.word_first) == 0


def test_what_cannot_be_aligned_is_refused(tokenizers: dict, tmp_path):
    from transformers import ByT5Tokenizer

    data = make_data([split_words("the lamp")])
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        align_words(ByT5Tokenizer(), data, limit=64, bos=None)
    with pytest.raises(UserError, match="max_seq_length = 2 leaves no token"):
        align_words(tokenizers["wordpiece"], data, limit=2, bos=None)
