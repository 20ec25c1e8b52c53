"""From a corpus to rows of tokens: found in the cache, or made in one pass over the text.

The tokens of a corpus lie in a folder that is named by their fingerprint (content of the corpus, tokenizer, options).
How they are cut into rows is decided when they are read (`turncoder.data.blocks`), so another ``block_size`` is free.
"""

import hashlib
import json
import logging
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turncoder.data.blocks import FORMAT, Blocks, Layout, TokenFile
from turncoder.data.corpus import Corpus
from turncoder.data.tokenizer import digest_tokenizer
from turncoder.data.tokens import TokenPass
from turncoder.disk import default_cache
from turncoder.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Blocks", "prepare_blocks"]

logger = logging.getLogger("turncoder")


def prepare_blocks(
    *,
    corpus: Corpus,
    validation: Corpus | None = None,
    tokenizer: "PreTrainedTokenizerBase",
    block_size: int,
    folder: Path | None = None,
    validation_percentage: float = 5,
    line_by_line: bool = False,
    workers: int | None = None,
    as_llm2vec: bool = False,
) -> tuple[Blocks, Blocks]:
    """Turn a corpus into rows of tokens on disk, or find those that an earlier call made.

    Parameters
    ----------
    corpus, validation
        From :func:`turncoder.data.corpus.open_corpora`.
    tokenizer
        Its own special tokens are put around each document.
    block_size
        Largest number of tokens in a row.
    folder
        Under which the tokens are kept, in a folder named by their fingerprint; None means that of `turncoder.disk`.
    validation_percentage
        Without a validation corpus: the share of documents, by a hash of their text, that becomes one. 0 means none.
    line_by_line
        One document per row instead of packed blocks; longer ones become several rows.
    workers
        Processes that tokenise; None means this one, with the tokenizer's own threads.
    as_llm2vec
        As LLM2Vec does it: the first documents validate, empty ones are kept (packed), what is left over of each
        thousand documents is dropped, and with ``line_by_line`` what is too long is cut off.

    Returns
    -------
    tuple of Blocks
        Training and validation rows; there are none of the second when there is no validation corpus and the percentage
        is 0.

    Raises
    ------
    UserError
        No text at all, none for training or none for validation, token ids outside of the vocabulary, or whatever is
        wrong with the files.
    OSError
        Such as a full disk; finished shards stay and are taken up again.
    """
    if block_size < 2:
        raise UserError(f"max_seq_length {block_size} is too short; a row needs at least 2 tokens")
    if validation is None and not 0 <= validation_percentage < 100:
        raise UserError(f"validation_split_percentage {validation_percentage} is not in [0, 100)")
    keep_empty = as_llm2vec and not line_by_line
    if corpus.prepared is not None:
        home, manifest = corpus.prepared, _check_prepared(corpus.prepared, tokenizer, keep_empty)
        if validation is None and validation_percentage and not manifest["splits"]["validation"][1]:
            raise UserError(f"{corpus.name} was prepared without validation text; give a validation_file")
    else:
        home, manifest = _prepare(
            corpus, validation, tokenizer, folder, validation_percentage, workers, keep_empty, as_llm2vec
        )
    layout: Layout = "packed"
    if manifest["tokenised"] or (line_by_line and not as_llm2vec):
        layout = "pieces"
    elif as_llm2vec:
        layout = "truncated" if line_by_line else "llm2vec"
    train, held_out = (
        Blocks(
            TokenFile(home, name, manifest["dtype"], tokens, documents, size, manifest["fingerprint"]),
            block_size,
            layout,
        )
        for name, (tokens, documents, size) in manifest["splits"].items()
    )
    if corpus.prepared is not None and validation is not None:
        held_out, _ = prepare_blocks(
            corpus=validation,
            tokenizer=tokenizer,
            block_size=block_size,
            folder=folder,
            validation_percentage=0,
            line_by_line=line_by_line,
            workers=workers,
            as_llm2vec=as_llm2vec,
        )
    _report(corpus.name, manifest, train, held_out)
    return train, held_out


def _prepare(
    corpus: Corpus,
    validation: Corpus | None,
    tokenizer: "PreTrainedTokenizerBase",
    folder: Path | None,
    percentage: float,
    workers: int | None,
    keep_empty: bool,
    as_llm2vec: bool,
) -> tuple[Path, dict[str, Any]]:
    """Find the folder that holds these tokens, or fill it; give it and its manifest."""
    options = {
        "format": FORMAT,
        "corpus": corpus.fingerprint,
        "validation": None if validation is None else validation.fingerprint,
        "validation_percentage": None if validation is not None else float(percentage),
        "tokenizer": digest_tokenizer(tokenizer),
        "tokenizers": version("tokenizers"),
        "tokenised": corpus.tokenised,
        "keep_empty": keep_empty,
        "first_validate": as_llm2vec and validation is None,
    }
    fingerprint = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()
    root = default_cache() / "tokens" if folder is None else Path(folder)
    home = root / fingerprint[:20]
    if not (home / "manifest.json").exists():
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{root}: tokens cannot be kept there ({error.strerror}); set TURNCODER_CACHE") from error
        with _lock(root / f"{fingerprint[:20]}.lock"):
            if not (home / "manifest.json").exists():
                TokenPass(corpus, validation, tokenizer, {**options, "fingerprint": fingerprint}, home).run(workers)
    return home, json.loads((home / "manifest.json").read_text())


def _check_prepared(home: Path, tokenizer: "PreTrainedTokenizerBase", keep_empty: bool) -> dict[str, Any]:
    """Read the manifest of a folder that was named as the corpus; refuse it where it does not fit the run."""
    manifest = json.loads((home / "manifest.json").read_text())
    if manifest["tokenizer"] != digest_tokenizer(tokenizer):
        raise UserError(
            f"train_file: {home} was prepared with another tokenizer; give that one (tokenizer_name), or the text"
        )
    if manifest["keep_empty"] != keep_empty:
        raise UserError(
            f"train_file: {home} was prepared with another as_llm2vec or line_by_line; use the same, or the text"
        )
    return manifest


def _lock(path: Path) -> Any:
    from filelock import FileLock

    return FileLock(path)


def _report(name: str, manifest: dict[str, Any], train: Blocks, held_out: Blocks) -> None:
    counts = train.counts
    left = f"the last one has {counts['remainder']} tokens" if counts["remainder"] else "none is short"
    if counts["dropped"]:
        left = f"{counts['dropped']:,} tokens left out, as LLM2Vec does"
    empty = f" ({manifest['empty']:,} empty ones left out)" if manifest["empty"] else ""
    logger.info(
        "%s: %s documents%s, %s tokens, %s rows of up to %s for training (%s), %s for validation; in %s",
        name,
        f"{sum(documents for _, documents, _ in manifest['splits'].values()):,}",
        empty,
        f"{sum(tokens for tokens, *_ in manifest['splits'].values()):,}",
        f"{len(train):,}",
        train.block_size,
        left,
        f"{len(held_out):,}",
        train.file.folder,
    )
