"""A vocabulary of one's own: a tokenizer that is trained on the text, once, and found again in the cache."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from turncoder.data.corpus import Corpus
from turncoder.disk import replace_folder
from turncoder.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerFast

__all__ = ["check_text", "open_trained", "train_tokenizer"]

logger = logging.getLogger("turncoder")

SPECIAL = ("<s>", "</s>", "<pad>", "<mask>")


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, *, algorithm: Literal["bpe", "unigram"] = "bpe", closes: bool = False
) -> PreTrainedTokenizerFast:
    """Train a tokenizer: any text has tokens, ``_`` is one of them, each document begins with ``<s>``.

    Parameters
    ----------
    texts
        What it learns from; read once.
    vocab_size
        Number of tokens, at least 260: the 256 bytes and ``<s>``, ``</s>``, ``<pad>``, ``<mask>``.
    algorithm
        ``bpe``: byte-level byte pair encoding (as GPT-2's); ``unigram``: a unigram model of the same bytes (Kudo 2018,
        arXiv 1804.10959).
    closes
        Documents also end with ``</s>``, as encoders have it.

    Raises
    ------
    UserError
        ``vocab_size`` is too small, or the text is too little for so many tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    least = len(alphabet) + len(SPECIAL)
    if vocab_size < least:
        raise UserError(f"vocab_size {vocab_size} is too small; a tokenizer of bytes needs at least {least}")
    backend = Tokenizer(models.BPE() if algorithm == "bpe" else models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    kind = trainers.BpeTrainer if algorithm == "bpe" else trainers.UnigramTrainer
    trainer = kind(vocab_size=vocab_size, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(texts, trainer=trainer)
    single, pair = ("<s> $A </s>", "<s> $A </s> $B:1 </s>:1") if closes else ("<s> $A", "<s> $A <s>:1 $B:1")
    backend.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(token, backend.token_to_id(token)) for token in ("<s>", "</s>")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        mask_token="<mask>",
        **({"cls_token": "<s>", "sep_token": "</s>"} if closes else {}),
    )


def check_text(corpus: Corpus) -> None:
    """Refuse a corpus of tokens, from which no tokenizer is learnt; raises UserError."""
    if corpus.tokenised:
        raise UserError(f"train_tokenizer: {corpus.name} holds tokens, not text; give the text, or its tokenizer_name")


def open_trained(
    corpus: Corpus, vocab_size: int, *, algorithm: Literal["bpe", "unigram"], closes: bool, root: Path
) -> Path:
    """Find the tokenizer that was trained on a corpus, or train it.

    Parameters
    ----------
    corpus
        Of texts, all of which are read.
    vocab_size, algorithm, closes
        As for `train_tokenizer`.
    root
        Under which tokenizers are kept, in a folder named by their fingerprint.

    Returns
    -------
    Path
        The folder of the tokenizer.

    Raises
    ------
    UserError
        The corpus holds tokens already, or what `train_tokenizer` refuses.
    """
    from filelock import FileLock

    check_text(corpus)
    options = [corpus.fingerprint, vocab_size, algorithm, closes]
    home = root / hashlib.sha256(json.dumps(options).encode()).hexdigest()[:20]
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{home}.lock"):
        if home.exists():
            return home
        logger.info("%s: training a tokenizer of %s tokens (%s)", corpus.name, f"{vocab_size:,}", algorithm)
        tokenizer = train_tokenizer((str(text) for text in corpus), vocab_size, algorithm=algorithm, closes=closes)
        if len(tokenizer) < vocab_size:
            logger.warning(
                "vocab_size = %d: the text gives no more than %d tokens; they are the vocabulary",
                vocab_size,
                len(tokenizer),
            )
        with replace_folder(home) as partial:
            tokenizer.save_pretrained(partial)
    return home
