"""A glance at a corpus before a run: its first texts, packed and masked as training would, and how much there is."""

import contextlib
import itertools
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from turncoder.config import MntpConfig
from turncoder.data.blocks import Blocks
from turncoder.data.corpus import PARQUET_HOMES, Corpus, open_corpora
from turncoder.data.files import choose_column
from turncoder.data.masking import MaskedBlocks
from turncoder.data.packing import prepare_blocks
from turncoder.errors import UserError
from turncoder.train.text import choose_masking

__all__ = ["Preview", "preview_corpus", "read_tokens"]

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


def preview_corpus(config: MntpConfig, tokenizer: PreTrainedTokenizerBase, block_size: int) -> Preview:
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
    corpus, validation = _open(config)
    texts = list(itertools.islice(_first(corpus), GLANCE_TEXTS))
    whole = len(texts) < GLANCE_TEXTS and sum(map(_size, texts)) < GLANCE_BYTES
    glance = Corpus(corpus.name, lambda: iter(texts), lambda: "glance", corpus.tokenised)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        train, _ = prepare_blocks(
            corpus=glance,
            validation=validation if whole else glance,
            tokenizer=tokenizer,
            block_size=block_size,
            folder=Path(folder),
            validation_percentage=config.validation_split_percentage,
            line_by_line=config.line_by_line,
            as_llm2vec=config.as_llm2vec,
        )
        samples = _render(train, config, tokenizer)
        rows, tokens = len(train), train.num_tokens
        train.file.__dict__.clear()  # lets go of the memory maps before their folder goes
    if whole:
        return Preview(samples, rows, tokens, None)
    if corpus.size is None:
        return Preview(samples, None, None, "the corpus is large enough for all steps")
    share = corpus.size / sum(map(_size, texts)) * (1 if validation else 1 - config.validation_split_percentage / 100)
    told = f"rows: from the first {len(texts):,} texts and the {corpus.size / 1e6:,.1f} MB of the files"
    return Preview(samples, round(rows * share), round(tokens * share), told)


def _open(config: MntpConfig) -> tuple[Corpus, Corpus | None]:
    """Open the corpus; a data set on the hub as a stream, so that its first texts are all that is fetched."""
    if config.dataset_name and not Path(config.dataset_name).exists():
        return _stream(config), None
    return open_corpora(
        dataset_name=config.dataset_name,
        dataset_config_name=config.dataset_config_name,
        train_file=config.train_file,
        validation_file=config.validation_file,
        text_column=config.text_column,
        cache_dir=config.cache_dir,
    )


def _stream(config: MntpConfig) -> Corpus:
    import datasets

    name = PARQUET_HOMES.get(str(config.dataset_name), str(config.dataset_name))
    try:
        rows = datasets.load_dataset(
            name, config.dataset_config_name, split="train", streaming=True, cache_dir=config.cache_dir
        )
        first = next(iter(rows))
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"dataset_name: {config.dataset_name!r} cannot be seen from here ({reason})") from error
    column = choose_column(list(first), config.text_column, name)
    tokenised = not isinstance(first[column], str)
    return Corpus(name, lambda: (_row(row[column]) for row in rows), lambda: name, tokenised)


def _row(value: Any) -> Any:
    return value if isinstance(value, str) else np.asarray(value, dtype=np.int64)


def _first(corpus: Corpus) -> Iterator[Any]:
    seen = 0
    for text in corpus:
        yield text
        seen += _size(text)
        if seen >= GLANCE_BYTES:
            return


def _size(text: Any) -> int:
    return len(text.encode("utf-8", "replace")) + 1 if isinstance(text, str) else text.nbytes


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what packing reports to itself: it is about the glance, not about the corpus."""
    log = logging.getLogger("turncoder")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _render(blocks: Blocks, config: MntpConfig, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    rows = MaskedBlocks(blocks, choose_masking(config, tokenizer))
    return [_render_row(rows[number], tokenizer) for number in range(min(SAMPLES, len(blocks)))]


def _render_row(item: dict[str, np.ndarray], tokenizer: PreTrainedTokenizerBase) -> str:
    """Write a row: plain text where nothing is predicted, ``[put in->to be predicted]`` where a token is."""
    written: list[str] = []
    plain: list[int] = []
    inputs, labels, documents = (item[name][:SHOWN_TOKENS].tolist() for name in ("input_ids", "labels", "document_ids"))
    for place, (put, label) in enumerate(zip(inputs, labels, strict=True)):
        border = place and documents[place] != documents[place - 1]
        if border or label >= 0:
            written.append(read_tokens(plain, tokenizer))
            plain = []
        written += [" || "] if border else []
        if label < 0:
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
