"""Words to tokens, by the characters that both cover, and sentences to windows that a model can read.

A sentence is tokenised as it stands, never word by word: so the model sees what it saw in training, and the tokens of
a word are those whose characters overlap with the word's. A sentence that is longer than the limit becomes windows
that overlap by half, and each of its words is read in that one which shows most of what stands around it.

In the names of arrays: M words, N windows, T tokens, S sentences, K tokens that cover characters.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from turncoder.data.tokenizer import pad_token_id
from turncoder.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

__all__ = ["Alignment", "align_words", "choose_bos"]

BATCH = 1000  # sentences that are tokenised together
STRIDE = 1 << 32  # between the characters of one sentence and those of the next, where all are in one order
COUNTS = (
    "sentences", "words", "windows", "tokens",
    "cut_sentences", "cut_words", "words_without_token", "words_sharing_token",
)  # fmt: skip


@dataclass(frozen=True)
class Alignment:
    """Which tokens of which window a word has.

    Attributes
    ----------
    tokens
        int32 [T]: the tokens of all windows, special ones included, one window after the other.
    window_ends
        int64 [N]: where in ``tokens`` a window ends. Every window has a word.
    word_window
        int32 [M]: the window that a word is read in; never a lower one than that of the word before.
    word_first, word_last
        int32 [M]: the word's tokens are ``[first, last)``, counted from the beginning of its window. There is always
        one, and one before it where the tokenizer or ``bos`` puts a token in front of texts.
    counts
        ``sentences``, ``words``, ``windows``, ``tokens``; ``cut_sentences``, which have several windows; ``cut_words``,
        which are longer than a window and have their first tokens; ``words_without_token``, which take the token
        before them; ``words_sharing_token``.
    """

    tokens: np.ndarray
    window_ends: np.ndarray
    word_window: np.ndarray
    word_first: np.ndarray
    word_last: np.ndarray
    counts: dict[str, int]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each window, int64 [N]."""
        return np.diff(self.window_ends, prepend=0)


class _Batch(NamedTuple):
    """Some sentences: their texts; how many words each has; the characters [start, end) of each word."""

    texts: list[str]
    words_S: np.ndarray
    start_M: np.ndarray
    end_M: np.ndarray


class _Frame(NamedTuple):
    """What stands around the tokens of a text, what stands for a text without any, and how many there is room for."""

    head: list[int]
    tail: list[int]
    nothing: list[int]
    room: int


def choose_bos(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """Choose what stands in front of a text, where the tokenizer puts nothing: BOS, else end of text, else padding."""
    choices = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return next((int(choice) for choice in choices if choice is not None), None)


def align_words(tokenizer: "PreTrainedTokenizerBase", data: "Dataset", *, limit: int, bos: int | None) -> Alignment:
    """Find the tokens of every word.

    Parameters
    ----------
    tokenizer
        A fast one: only those tell which characters a token covers. Its own special tokens stay.
    data
        Rows with ``text``, and ``starts`` and ``ends`` of its words: characters (code points), in the order of the
        text.
    limit
        Tokens that a window may have, special ones included.
    bos
        Put in front where the tokenizer puts nothing there (`choose_bos`); None puts nothing there.

    Returns
    -------
    Alignment
        All words of ``data``, in their order.

    Raises
    ------
    UserError
        A slow tokenizer, or a limit that leaves no room beside the special tokens.
    """
    frame = _find_frame(tokenizer, limit, bos)
    counts: Counter[str] = Counter(sentences=len(data))
    tokens, lengths, windows, firsts, lasts = [np.empty(0, np.int32)], [np.empty(0, np.int64)], [], [], []
    for batch in _read(data):
        ids, window_M, first_M, last_M = _align(tokenizer, batch, frame, counts)
        windows.append(window_M + counts["windows"])
        firsts.append(first_M)
        lasts.append(last_M)
        tokens.append(np.fromiter(chain.from_iterable(ids), dtype=np.int32))
        lengths.append(np.fromiter(map(len, ids), dtype=np.int64, count=len(ids)))
        counts.update(words=len(window_M), windows=len(ids), tokens=len(tokens[-1]))
    window_M, first_M, last_M = (
        np.concatenate([tokens[0], *part]).astype(np.int32) for part in (windows, firsts, lasts)
    )
    ends = np.cumsum(np.concatenate(lengths))
    return Alignment(np.concatenate(tokens), ends, window_M, first_M, last_M, {name: counts[name] for name in COUNTS})


def _find_frame(tokenizer: "PreTrainedTokenizerBase", limit: int, bos: int | None) -> _Frame:
    """Find what stands around the tokens of a text; raises UserError."""
    if not tokenizer.is_fast:
        raise UserError(
            f"model_name_or_path: its tokenizer, a {type(tokenizer).__name__}, does not say which characters a token "
            "covers; give a model with a tokenizer.json"
        )
    probes = (
        tokenizer(text, return_special_tokens_mask=True, verbose=False) for text in chain("a", tokenizer.get_vocab())
    )  # some alphabets lack a letter
    probe = next(probe for probe in probes if 0 in probe["special_tokens_mask"])
    ids, ordinary = probe["input_ids"], np.flatnonzero(~np.array(probe["special_tokens_mask"], dtype=bool))
    head, tail = ids[: ordinary[0]], ids[ordinary[-1] + 1 :]
    if not head and bos is not None:
        head = [bos]
    room = limit - len(head) - len(tail)
    if room < 1:
        raise UserError(
            f"max_seq_length = {limit} leaves no token for text beside {len(head) + len(tail)} special ones; raise it"
        )
    return _Frame(head, tail, [pad_token_id(tokenizer)], room)


def _read(data: "Dataset") -> Iterator[_Batch]:
    """Give batches of sentences, without those that have no word."""
    for table in data.select_columns(["text", "starts", "ends"]).with_format("arrow").iter(BATCH):
        start, end = (table[name].combine_chunks() for name in ("starts", "ends"))
        words_S = start.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
        start_M, end_M = (column.flatten().to_numpy(zero_copy_only=False).astype(np.int64) for column in (start, end))
        texts = [text for text, words in zip(table["text"].to_pylist(), words_S, strict=True) if words]
        words_S = words_S[words_S > 0]
        for place_M in (start_M, end_M):
            key_M = np.repeat(np.arange(len(texts)), words_S) * STRIDE + place_M
            assert len(key_M) == len(start_M) and bool((np.diff(key_M) >= 0).all()), "words in the order of the text"
        if texts:
            yield _Batch(texts, words_S, start_M, end_M)


def _align(
    tokenizer: "PreTrainedTokenizerBase", batch: _Batch, frame: _Frame, counts: Counter[str]
) -> tuple[list[list[int]], np.ndarray, np.ndarray, np.ndarray]:
    """Give the tokens of each window of a batch, and of each word its window, first and last token; add to counts."""
    encodings = tokenizer(batch.texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False).encodings
    ids = [encoding.ids or frame.nothing for encoding in encodings]
    length_S = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
    begin_S = np.cumsum(length_S) - length_S
    first_M, last_M = _match(encodings, batch, begin_S, length_S, counts)  # counted through the batch
    sentence_M = np.repeat(np.arange(len(ids)), batch.words_S)
    first_M, last_M = first_M - begin_S[sentence_M], last_M - begin_S[sentence_M]
    windows: list[list[int]] = []
    window_M = np.zeros(len(first_M), dtype=np.int64)
    after_S = np.cumsum(batch.words_S)
    for sentence, own in enumerate(ids):
        words = slice(after_S[sentence] - batch.words_S[sentence], after_S[sentence])
        window_M[words] = len(windows)
        if len(own) <= frame.room:
            windows.append([*frame.head, *own, *frame.tail])
            continue
        counts["cut_sentences"] += 1
        counts["cut_words"] += int((last_M[words] - first_M[words] > frame.room).sum())
        last_M[words] = np.minimum(last_M[words], first_M[words] + frame.room)
        starts, number_M = _cut(first_M[words], last_M[words], len(own), frame.room)
        windows += [[*frame.head, *own[start : start + frame.room], *frame.tail] for start in starts]
        window_M[words] += number_M
        first_M[words] -= starts[number_M]
        last_M[words] -= starts[number_M]
    return windows, window_M, first_M + len(frame.head), last_M + len(frame.head)


def _match(
    encodings: list, batch: _Batch, begin_S: np.ndarray, length_S: np.ndarray, counts: Counter[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Find the tokens [first, last) of each word, counted through the batch.

    Characters are numbered through the batch too, so that one search serves all its words. The order of tokens is the
    order of the text; where a normalizer changed it, all that stands between two tokens of a word is the word's.
    """
    offsets = chain.from_iterable(chain.from_iterable(encoding.offsets for encoding in encodings))
    start_T, end_T = np.fromiter(offsets, dtype=np.int64).reshape(-1, 2).T
    found_S = np.fromiter(map(len, encodings), dtype=np.int64, count=len(encodings))  # 0 where a stand-in is the token
    place_T = np.repeat(begin_S - (np.cumsum(found_S) - found_S), found_S) + np.arange(len(start_T))
    key_T = np.repeat(np.arange(len(encodings)), found_S) * STRIDE
    covers_T = end_T > start_T
    place_K = place_T[covers_T]
    end_K = np.maximum.accumulate((key_T + end_T)[covers_T])
    start_K = np.minimum.accumulate((key_T + start_T)[covers_T][::-1])[::-1]
    sentence_M = np.repeat(np.arange(len(encodings)), batch.words_S)
    low_M = np.searchsorted(end_K, sentence_M * STRIDE + batch.start_M, side="right")
    high_M = np.searchsorted(start_K, sentence_M * STRIDE + batch.end_M, side="left")
    has_M = (high_M > low_M) & (batch.end_M > batch.start_M)
    place_K = np.append(place_K, -1)
    before_M = np.maximum(place_K[high_M - 1], begin_S[sentence_M])  # the token before, or the first of the sentence
    first_M = np.where(has_M, place_K[low_M], before_M)
    last_M = np.where(has_M, place_K[high_M - 1], before_M) + 1
    sharing_M = np.zeros(has_M.sum(), dtype=bool)
    shares = first_M[has_M][1:] < last_M[has_M][:-1]
    sharing_M[1:] |= shares
    sharing_M[:-1] |= shares
    counts.update(words_without_token=int((~has_M).sum()), words_sharing_token=int(sharing_M.sum()))
    return first_M, last_M


def _cut(first_M: np.ndarray, last_M: np.ndarray, length: int, room: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose the windows of a sentence: where each starts, and which one each word is read in.

    The poorer side of a word's context is largest in the window whose middle is nearest to the word's.
    """
    wide_M = last_M - first_M > room // 2  # may lie in none of the windows below, and has one of its own
    own = np.clip((first_M + last_M - room) // 2, 0, length - room)[wide_M]
    starts = np.unique(np.concatenate([np.arange(0, length - room, room - room // 2), [length - room], own]))
    number_M = np.searchsorted(starts[:-1] + starts[1:], first_M + last_M - room)
    used, number_M = np.unique(number_M, return_inverse=True)
    return starts[used], number_M
