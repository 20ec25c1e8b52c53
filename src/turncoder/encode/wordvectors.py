"""One vector per word, with the characters that it covers: files of texts, or of words, to Parquet.

The words of a text are what lies between Unicode's word boundaries (UAX 29) and is no white space: punctuation stands
by itself, "don't", "3.14" and an emoji with its modifiers are one word, and so is a Chinese character. A file of words
brings its own. In the names of arrays: M words, D width.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import regex
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from torch.nn import functional
from transformers import PreTrainedModel

from turncoder.config.encoding import EncodeConfig
from turncoder.data.alignment import Alignment, align_words, choose_bos
from turncoder.data.rows import Rows, scan_rows
from turncoder.data.sentences import clean
from turncoder.data.tokenizer import pad_token_id
from turncoder.data.vectorfile import VectorFile
from turncoder.data.words import WordSet, open_words
from turncoder.disk import lock_output
from turncoder.encode.encoder import MAX_SEQ_LENGTH, check_flags, open_encoder
from turncoder.encode.vectors import look_at_output
from turncoder.errors import UserError
from turncoder.train.features import read_states

__all__ = ["WordReader", "WordSource", "encode_words", "open_word_reader", "open_word_source", "split_words"]

logger = logging.getLogger("turncoder")

WORD_FILES = (".conllu", ".conll", ".iob2")
SHARD_TEXTS = 4096
BOUNDARY = regex.compile(r"\b", regex.WORD | regex.VERSION1)


@dataclass(frozen=True)
class WordSource:
    """Texts and where their words are: from a file of words, or split as they are read."""

    rows: Rows | WordSet

    @property
    def count(self) -> int:
        """How many texts there are."""
        return self.rows.count if isinstance(self.rows, Rows) else len(self.rows)

    def shards(self, size: int) -> Iterator[Dataset]:
        """Yield ``text``, ``starts``, ``ends`` and ``words`` of so many texts at a time."""
        if isinstance(self.rows, Rows):
            yield from (split_words(texts) for texts, _ in self.rows.shards(size))
            return
        data = self.rows.data.select_columns(["text", "starts", "ends", "words"])
        for start in range(0, len(data), size):
            yield data.select(range(start, min(start + size, len(data))))


@dataclass(frozen=True)
class WordReader:
    """A backbone and how words are read from it."""

    encoder: SentenceTransformer
    backbone: PreTrainedModel
    config: EncodeConfig

    def align(self, data: Dataset) -> Alignment:
        """Find the tokens of all words."""
        tokenizer = self.encoder.tokenizer
        limit = self.encoder.max_seq_length or MAX_SEQ_LENGTH
        return align_words(tokenizer, data, limit=limit, bos=choose_bos(tokenizer))

    def read(self, alignment: Alignment) -> Iterator[np.ndarray]:
        """Yield the vectors of words, float32 [M, D], some at a time, in their order."""
        if not len(alignment.word_window):
            return
        config = self.config
        for states in read_states(
            self.backbone,
            alignment,
            layers=[config.layer],
            readings=[config.alignment],
            merge=config.merge_subwords,
            batch_tokens=config.batch_tokens,
            pad_token_id=pad_token_id(self.encoder.tokenizer),
        ):
            vectors_MD = states[config.alignment, config.layer].float()
            yield (functional.normalize(vectors_MD, dim=-1) if config.normalize else vectors_MD).numpy()


def encode_words(config: EncodeConfig) -> Path:
    """Write a row for every word: ``row`` of its text from 0, ``word``, ``start``, ``end`` (code points), ``vector``.

    Raises
    ------
    UserError
        Something is wrong with the model, the texts or the output; nothing was written then.
    """
    out, source = open_word_source(config)
    reader = open_word_reader(config)
    counts: Counter[str] = Counter()
    with ExitStack() as stack:
        stack.enter_context(lock_output(out))
        file: VectorFile | None = None
        for columns, vectors_MD in _encode(reader, source, counts):
            file = file or stack.enter_context(VectorFile(out, None, vectors_MD.shape[1], column="vector"))
            file.append(columns, vectors_MD)
        if file is None:
            raise UserError(f"{config.input_file}: no word in it, only white space; give another INPUT")
    _say(out, counts)
    return out


def open_word_source(config: EncodeConfig) -> tuple[Path, WordSource]:
    """Return where to, and the texts with their words; raises UserError."""
    out = Path(str(config.output_dir))
    check_flags(config.pooling, config.dtype, config.device, config.max_seq_length)
    look_at_output(out, config)
    name = str(config.input_file)
    if name.lower().removesuffix(".gz").endswith(WORD_FILES):
        return out, WordSource(open_words(file=name, key="INPUT"))
    shape: dict[str, Any] = {"dataset_config_name": config.dataset_config_name, "split": config.split}
    return out, WordSource(scan_rows(name, text_column=config.text_column, cache_dir=config.cache_dir, **shape))


def open_word_reader(config: EncodeConfig) -> WordReader:
    """Open the model whose states words are read from; raises UserError."""
    encoder = open_encoder(config, device=config.device)
    backbone = encoder.transformers_model
    if not isinstance(backbone, PreTrainedModel):
        raise UserError(f"--words: {config.model_name_or_path} has no transformer whose states could be read")
    return WordReader(encoder, backbone, config)


def split_words(texts: list[str]) -> Dataset:
    """Split texts at Unicode's word boundaries: ``text``, ``starts``, ``ends``, ``words``; white space is no word."""
    columns: dict[str, list[Any]] = {"text": [], "starts": [], "ends": [], "words": []}
    for text in map(clean, texts):
        parts = BOUNDARY.split(text)
        begins = np.cumsum([0, *map(len, parts)]).tolist()
        kept = [
            (end - len(part.lstrip()), end, part.lstrip())  # a mark on a space brings the space along
            for part, end in zip(parts, begins[1:], strict=True)
            if part and not part.isspace()
        ]
        columns["text"].append(text)
        for name, place in (("starts", 0), ("ends", 1), ("words", 2)):
            columns[name].append([word[place] for word in kept])
    nested = {name: pa.array(columns[name], pa.list_(pa.int32())) for name in ("starts", "ends")}
    words = pa.array(columns["words"], pa.list_(pa.string()))
    return Dataset(pa.table({"text": pa.array(columns["text"], pa.string()), **nested, "words": words}))


def _encode(
    reader: WordReader, source: WordSource, counts: Counter[str]
) -> Iterator[tuple[dict[str, pa.Array], np.ndarray]]:
    """Give columns and vectors of some words at a time; add to counts."""
    for data in source.shards(reader.config.shard_texts or SHARD_TEXTS):
        alignment = reader.align(data)
        table = data.with_format("arrow")[:]
        lists = {name: table[name].combine_chunks() for name in ("words", "starts", "ends")}
        row_M = counts["sentences"] + np.repeat(np.arange(len(data)), lists["words"].value_lengths().to_numpy())
        columns = {"row": pa.array(row_M, pa.int64())}
        columns |= {name.removesuffix("s"): values.flatten() for name, values in lists.items()}
        done = 0
        for vectors_MD in reader.read(alignment):
            yield {name: values.slice(done, len(vectors_MD)) for name, values in columns.items()}, vectors_MD
            done += len(vectors_MD)
        assert done == len(row_M)
        counts.update(alignment.counts)


def _say(out: Path, counts: Counter[str]) -> None:
    told = (f"{counts[name]:,}" for name in ("words", "sentences", "tokens"))
    logger.info("%s: vectors of %s words in %s texts, %s tokens", out, *told)
    if counts["words_without_token"]:
        logger.warning("%s words have no token; each takes that before it", f"{counts['words_without_token']:,}")
    if counts["cut_sentences"]:
        logger.info("%s texts were longer than the limit and read in parts", f"{counts['cut_sentences']:,}")
