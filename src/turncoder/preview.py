"""A glance at a corpus before a run: its first texts, packed and masked as training would, and how much there is."""

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from turncoder.config.keys import DataKeys
from turncoder.config.pretraining import PretrainConfig
from turncoder.config.stages import MntpConfig, SimcseConfig
from turncoder.data.blocks import Blocks
from turncoder.data.corpus import Corpus, open_corpora
from turncoder.data.files import choose_column
from turncoder.data.masking import MaskedBlocks
from turncoder.data.packing import prepare_blocks
from turncoder.data.saved import find_home
from turncoder.errors import UserError, first_line
from turncoder.train.text import choose_masking, drop_remainders

__all__ = [
    "Preview",
    "cache_in",
    "open_streams",
    "preview_corpus",
    "quiet",
    "read_tokens",
    "stream_rows",
    "take_first",
    "weigh",
]

GLANCE_BYTES = 1 << 20
GLANCE_TEXTS = 2000
SAMPLES = 3
SHOWN_TOKENS = 64


@dataclass(frozen=True)
class Preview:
    """What a glance at the corpus showed.

    Attributes
    ----------
    samples
        The first rows as the model would see them; ``[mask->token]`` where something is to be predicted.
    rows, tokens
        Of the training set; None where they cannot be told without reading all of it.
    assumption
        How ``rows`` was told, when it was not counted.
    """

    samples: list[str]
    rows: int | None
    tokens: int | None
    assumption: str | None


def preview_corpus(config: MntpConfig | PretrainConfig, tokenizer: PreTrainedTokenizerBase, block_size: int) -> Preview:
    """Look at the first megabyte of the corpus; nothing is kept.

    Parameters
    ----------
    config
        The resolved config.
    tokenizer
        As loaded.
    block_size
        Tokens in a row, at most.

    Raises
    ------
    UserError
        The corpus cannot be read.
    """
    corpus, validation = open_streams(config)
    if corpus.prepared is not None and not config.line_by_line:
        packed, _ = prepare_blocks(
            corpus=corpus,
            tokenizer=tokenizer,
            block_size=block_size,
            validation_percentage=0,
            as_llm2vec=config.as_llm2vec,
        )
        if packed.layout == "packed":
            packed = drop_remainders(packed, "train_file") if isinstance(config, PretrainConfig) else packed
            return Preview(_render(packed, config, tokenizer), len(packed), packed.num_tokens, None)
    texts, seen, whole = take_first(corpus, weigh)
    glance = Corpus(corpus.name, lambda: iter(texts), lambda: "glance", corpus.tokenised)
    with tempfile.TemporaryDirectory() as folder, quiet():
        train, held_out = prepare_blocks(
            corpus=glance,
            validation=validation if whole else glance,
            tokenizer=tokenizer,
            block_size=block_size,
            folder=Path(folder),
            validation_percentage=config.validation_split_percentage,
            line_by_line=config.line_by_line,
            as_llm2vec=config.as_llm2vec,
        )
        if isinstance(config, PretrainConfig) and train.is_packed and whole:
            train = drop_remainders(train, "train_file")
            drop_remainders(held_out, "validation_file")
        samples = _render(train, config, tokenizer)
        rows, tokens = len(train), train.num_tokens
        train.file.__dict__.clear()  # lets go of the memory maps before their folder goes
    if whole:
        return Preview(samples, rows, tokens, None)
    if corpus.size is None:
        return Preview(samples, None, None, "the corpus is large enough for all steps")
    share = corpus.size / seen * (1 if validation else 1 - config.validation_split_percentage / 100)
    told = f"rows: from the first {len(texts):,} texts and the {corpus.size / 1e6:,.1f} MB of the files"
    return Preview(samples, round(rows * share), round(tokens * share), told)


def open_streams(config: MntpConfig | SimcseConfig | PretrainConfig) -> tuple[Corpus, Corpus | None]:
    """Open the corpus; a data set on the hub as a stream, so that its first texts are all that is fetched."""
    if config.dataset_name and not Path(config.dataset_name).exists():
        return _stream(config), None
    return open_corpora(config)


def stream_rows(config: DataKeys) -> tuple[dict[str, Any], datasets.IterableDataset]:
    """Give the first row of a data set on the hub, and all of them, which are fetched as they are read.

    Raises
    ------
    UserError
        It cannot be reached or found.
    """
    name = str(config.dataset_name)
    try:
        rows = datasets.load_dataset(
            find_home(name), config.dataset_config_name, split="train", streaming=True, cache_dir=config.cache_dir
        )
        return next(iter(rows)), rows
    except Exception as error:
        raise UserError(f"dataset_name: {name!r} cannot be seen from here ({first_line(error)})") from error


def _stream(config: MntpConfig | SimcseConfig | PretrainConfig) -> Corpus:
    name = str(config.dataset_name)
    first, rows = stream_rows(config)
    column = choose_column(list(first), config.text_column, name)
    tokenised = not isinstance(first[column], str)
    return Corpus(name, lambda: (_row(row[column]) for row in rows), lambda: name, tokenised)


def _row(value: Any) -> Any:
    return value if isinstance(value, str) else np.asarray(value, dtype=np.int64)


def take_first(items: Iterable[Any], size: Callable[[Any], int], fewest: int = 1) -> tuple[list[Any], int, bool]:
    """Take the first megabyte of items, but ``fewest`` at least: they, their bytes, and whether they are all."""
    taken: list[Any] = []
    seen = 0
    for item in items:
        if len(taken) >= GLANCE_TEXTS or (seen >= GLANCE_BYTES and len(taken) >= fewest):
            return taken, seen, False
        taken.append(item)
        seen += size(item)
    return taken, seen, True


def weigh(text: Any) -> int:
    """Count the bytes of a text, or of a row of token ids."""
    return len(text.encode("utf-8", "replace")) + 1 if isinstance(text, str) else text.nbytes


@contextlib.contextmanager
def cache_in(folder: Path) -> Iterator[None]:
    """Keep what is prepared in a folder and not in the user's cache."""
    before = os.environ.get("TURNCODER_CACHE")
    os.environ["TURNCODER_CACHE"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("TURNCODER_CACHE")
        if before is not None:
            os.environ["TURNCODER_CACHE"] = before


@contextlib.contextmanager
def quiet(level: int = logging.ERROR) -> Iterator[None]:
    """Keep what packing reports to itself: it is about the glance, not about the corpus."""
    log = logging.getLogger("turncoder")
    before = log.level
    log.setLevel(level)
    try:
        yield
    finally:
        log.setLevel(before)


def _render(blocks: Blocks, config: MntpConfig | PretrainConfig, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    masking, _ = choose_masking(config, tokenizer)
    rows = MaskedBlocks(blocks, masking)
    shows = not (isinstance(config, PretrainConfig) and config.kind == "clm")  # else every token is
    return [_render_row(rows[number], tokenizer, shows) for number in range(min(SAMPLES, len(blocks)))]


def _render_row(item: dict[str, np.ndarray], tokenizer: PreTrainedTokenizerBase, shows: bool = True) -> str:
    """Write a row: plain text where nothing is predicted, ``[put in->to be predicted]`` where a token is."""
    written: list[str] = []
    plain: list[int] = []
    inputs, labels, documents = (item[name][:SHOWN_TOKENS].tolist() for name in ("input_ids", "labels", "document_ids"))
    for place, (put, label) in enumerate(zip(inputs, labels, strict=True)):
        border = place and documents[place] != documents[place - 1]
        predicted = shows and label >= 0
        if border or predicted:
            written.append(read_tokens(plain, tokenizer))
            plain = []
        written += [" || "] if border else []
        if not predicted:
            plain.append(put)
        else:
            written.append(f"[{read_tokens([put], tokenizer)}->{read_tokens([label], tokenizer)}]")
    written.append(read_tokens(plain, tokenizer))
    more = len(item["input_ids"]) - len(inputs)
    return "".join(written).replace("\n", "\\n") + (f" ... ({more} more tokens)" if more > 0 else "")


def read_tokens(token_ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """Decode tokens as they stand inside a text: SentencePiece drops the space of a first word."""
    before = tokenizer.encode(".", add_special_tokens=False)
    return str(tokenizer.decode([*before, *token_ids]))[len(str(tokenizer.decode(before))) :]
