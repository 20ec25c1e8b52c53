"""The corpus as a trainer takes it: rows of tokens, how they are corrupted, and how they make a batch."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from turncoder.config.keys import CorpusKeys, locate_model
from turncoder.config.pretraining import PretrainConfig, VocabularyKeys
from turncoder.config.stages import MntpConfig
from turncoder.data.corpus import open_corpora
from turncoder.data.masking import EVALUATION_SEED, IGNORED, Masking, MaskingStyle, collate
from turncoder.data.packing import Blocks, prepare_blocks
from turncoder.data.tokenizer import find_padding, load_tokenizer, mask_token_id, pad_token_id, special_ids
from turncoder.data.vocabulary import open_trained
from turncoder.disk import default_cache
from turncoder.encode.encoder import limit_length
from turncoder.errors import UserError
from turncoder.model.backbone import count_embeddings, read_record, resolve_model
from turncoder.model.isolation import can_isolate

__all__ = [
    "VOCABULARY",
    "Text",
    "choose_block_size",
    "choose_masking",
    "count_targets",
    "drop_remainders",
    "measure_bytes",
    "open_blocks",
    "open_text",
    "open_tokenizer",
]

logger = logging.getLogger("turncoder")

VOCABULARY = 16384
COUNTED_AT_ONCE = 1 << 24
MEASURED = 1000  # documents


@dataclasses.dataclass(frozen=True)
class Text:
    """The corpus as the trainer takes it.

    Attributes
    ----------
    train, validation
        Rows of token ids.
    masking, eval_masking
        How rows are corrupted in training and in evaluation.
    isolate
        Whether a row holds several documents that must not see each other.
    block_size
        Tokens in a row, at most.
    pad_token_id, pad_to
        For rows of unequal length.
    padding
        The token that fills rows in the corpus itself, where those who tokenised it filled them: neither read nor
        predicted. None: all tokens are text.
    """

    train: Blocks
    validation: Blocks
    masking: Masking
    eval_masking: Masking
    isolate: bool
    block_size: int
    pad_token_id: int
    pad_to: int | None
    padding: int | None = None

    @property
    def never_targets(self) -> tuple[int, ...]:
        """Token ids that are never predicted."""
        return (*self.masking.special_ids, *(() if self.padding is None else (self.padding,)))

    def collate(self, features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Make a batch; of isolated documents the first token is no label to the state before it, another's."""
        batch = collate(features, self.pad_token_id, pad_to=self.pad_to)
        if self.padding is not None:
            self._leave_padding(batch)
        if self.isolate and not self.masking.first_counts:
            documents_BL = batch["document_ids"]
            batch["labels"][:, 1:][documents_BL[:, 1:] != documents_BL[:, :-1]] = -100
        return batch

    def _leave_padding(self, batch: dict[str, torch.Tensor]) -> None:
        """Let padding of the corpus be neither read nor predicted, in place; a row of nothing else has no label."""
        labels_BL = batch["labels"]
        labels_BL[labels_BL == self.padding] = IGNORED
        filled_BL = (batch["input_ids"] == self.padding) & (labels_BL == IGNORED)
        filled_BL[filled_BL.all(1)] = False  # attention needs something to look at
        batch["attention_mask"][filled_BL] = 0


def open_text(
    config: MntpConfig | PretrainConfig, backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Text:
    """Prepare the corpus for a model: blocks with isolated documents, or one document a row where that is not proven.

    Raises
    ------
    UserError
        The corpus cannot be read, is empty, or leaves nothing to train or to evaluate on.
    """
    block_size = limit_length(backbone, choose_block_size(config, backbone.config, tokenizer))
    masking, scored_as = choose_masking(config, tokenizer)
    with PartialState().main_process_first():
        train, held_out = open_blocks(config, tokenizer, block_size)
    size = count_embeddings(backbone)
    masking = dataclasses.replace(masking, vocab_size=min(masking.vocab_size, size))
    if max(tokenizer.get_vocab().values()) >= size:
        _check_tokens((train, held_out), size, tokenizer)
    isolate = config.isolate_documents and train.is_packed
    if isolate and (reason := can_isolate(backbone)) is not True:
        logger.warning("documents cannot be isolated within a row (%s): one document per row, by length", reason)
        train, held_out, isolate = train.by_document(block_size), held_out.by_document(block_size), False
    if isinstance(config, PretrainConfig) and train.is_packed:
        train, held_out = drop_remainders(train, "train_file"), drop_remainders(held_out, "validation_file")
    seed = None if config.as_llm2vec else config.seed  # LLM2Vec takes the first ones
    if config.max_train_samples:
        train = train.select(config.max_train_samples, seed=seed)
    if config.max_eval_samples:
        held_out = held_out.select(config.max_eval_samples, seed=None if config.as_llm2vec else EVALUATION_SEED)
    return Text(
        train=train,
        validation=held_out,
        masking=masking,
        eval_masking=dataclasses.replace(masking, style=scored_as, seed=EVALUATION_SEED),
        isolate=isolate,
        block_size=block_size,
        pad_token_id=pad_token_id(tokenizer),
        pad_to=block_size if config.pad_to_max_length else None,
        padding=find_padding(tokenizer) if isinstance(config, PretrainConfig) else None,
    )


def _check_tokens(parts: tuple[Blocks, Blocks], size: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse text that holds a token without an embedding; raises UserError."""
    highest = max((int(part.max()) for blocks in parts for part in _cut(blocks.file.tokens)), default=0)
    if highest >= size:
        raise UserError(
            f"train_file: the text holds {tokenizer.convert_ids_to_tokens(highest)!r} (id {highest}), for which the "
            f"model has no embedding ({size} tokens have one); take it out of the text"
        )


def open_blocks(
    config: CorpusKeys, tokenizer: PreTrainedTokenizerBase, block_size: int, folder: Path | None = None
) -> tuple[Blocks, Blocks]:
    """Find the rows of tokens that a config describes, or make them: training rows and held-out ones.

    Parameters
    ----------
    config
        Which corpus, and how it is cut.
    tokenizer
        As loaded.
    block_size
        From `choose_block_size`.
    folder
        Where the tokens are kept; None means the cache that every command looks into.

    Raises
    ------
    UserError
        The corpus cannot be read, is empty, or leaves nothing to train or to evaluate on.
    """
    corpus, validation = open_corpora(config)
    train, held_out = prepare_blocks(
        corpus=corpus,
        validation=validation,
        tokenizer=tokenizer,
        block_size=block_size,
        folder=folder,
        validation_percentage=config.validation_split_percentage,
        line_by_line=config.line_by_line,
        workers=config.preprocessing_num_workers,
        as_llm2vec=config.as_llm2vec,
    )
    assert held_out is not None  # the configuration does not let the percentage be 0
    return train, held_out


def open_tokenizer(config: VocabularyKeys) -> PreTrainedTokenizerBase:
    """Load the tokenizer that a configuration names, or train it on the text; raises UserError."""
    if not config.train_tokenizer:
        name = config.tokenizer_name or resolve_model(config.model_name_or_path or str(config.config_name))
        if not config.tokenizer_name and config.config_name and not Path(name).is_dir() and "/" not in name:
            raise UserError(
                f"config_name = {config.config_name!r} has no tokenizer: give tokenizer_name, or --train_tokenizer bpe"
            )
        return load_tokenizer(name, **locate_model(config))
    corpus, _ = open_corpora(config)
    with PartialState().main_process_first():
        folder = open_trained(
            corpus,
            config.vocab_size or VOCABULARY,
            algorithm=config.train_tokenizer,
            closes=config.kind == "mlm",
            root=default_cache() / "tokenizers",
        )
    return load_tokenizer(folder)


def choose_masking(
    config: MntpConfig | PretrainConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[Masking, MaskingStyle]:
    """Say how rows are corrupted in training, and in which style in evaluation."""
    style: MaskingStyle
    scored_as: MaskingStyle
    if isinstance(config, PretrainConfig):
        style = "default" if config.kind == "mlm" else "unmasked"
        scored_as = style
        if config.kind == "clm":
            return Masking(mlm_probability=1.0, mask_token_id=0, vocab_size=1, style=style, seed=config.seed), scored_as
    else:
        style = config.data_collator_type
        scored_as = "default" if style == "unmasked" else style
    mask_id = mask_token_id(tokenizer, config.mask_token_type)
    masking = Masking(
        mlm_probability=config.mlm_probability,
        mask_token_id=mask_id,
        vocab_size=len(tokenizer),
        special_ids=special_ids(tokenizer, mask_id, as_llm2vec=config.as_llm2vec),
        style=style,
        seed=config.seed,
    )
    if isinstance(config, PretrainConfig):
        masking = dataclasses.replace(
            masking, mask_share=config.mask_share, random_share=config.random_share, first_counts=True
        )
    return masking, scored_as


def count_targets(text: Text, vocabulary: int) -> torch.Tensor:
    """Count how often each of so many token ids can be a target in the training text, int64 [V]."""
    file, special = text.train.file, np.array(text.never_targets, dtype=np.int64)
    counts_V = np.zeros(vocabulary, dtype=np.int64)
    for part in _cut(file.tokens):
        counts_V += np.bincount(part, minlength=vocabulary)
    if not text.masking.first_counts and (text.isolate or not text.train.is_packed):
        starts = np.concatenate([[0], file.ends[:-1]])[np.diff(file.ends, prepend=0) > 0].astype(np.int64)
        counts_V -= np.bincount(file.tokens[starts], minlength=vocabulary)  # nothing stands before them
    counts_V[special] = 0
    return torch.from_numpy(counts_V)


def measure_bytes(blocks: Blocks, tokenizer: PreTrainedTokenizerBase, special: tuple[int, ...] = ()) -> float:
    """Measure how many bytes of UTF-8 a token stands for; ``special`` ones do not count.

    Text that came as tokens is decoded, the first documents of it.
    """
    file = blocks.file
    if file.num_bytes:
        return file.num_bytes / max(1, sum(_count_others(part, special) for part in _cut(file.tokens)))
    documents = np.split(file.tokens[: file.ends[:MEASURED][-1]], file.ends[:MEASURED][:-1].astype(int))
    texts = tokenizer.batch_decode(
        [document.tolist() for document in documents], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return sum(len(text.encode()) for text in texts) / max(1, sum(_count_others(part, special) for part in documents))


def _count_others(tokens: np.ndarray, special: tuple[int, ...]) -> int:
    return int(np.isin(tokens, special, invert=True).sum())


def _cut(tokens: np.ndarray) -> Iterator[np.ndarray]:
    """Take tokens that are mapped from a file bit by bit, so that they need not fit into memory."""
    return (tokens[start : start + COUNTED_AT_ONCE] for start in range(0, len(tokens), COUNTED_AT_ONCE))


def drop_remainders(blocks: Blocks, key: str) -> Blocks:
    """Keep the full rows; raises UserError where there is none."""
    full = blocks.without_remainder()
    if not len(full):
        raise UserError(
            f"{key}: the text has {blocks.file.num_tokens:,} tokens, which fill no block of {blocks.block_size}; "
            "lower max_seq_length, or bring more text (of held-out text: raise validation_split_percentage)"
        )
    return full


def choose_block_size(
    config: CorpusKeys, model_config: PretrainedConfig | None, tokenizer: PreTrainedTokenizerBase
) -> int:
    """Choose the length of a row: ``max_seq_length``, else that of the pretraining that the model comes from.

    Of other models it is what tokenizer and model allow, at most 1024.

    Raises
    ------
    UserError
        ``max_seq_length`` is more than the model's positions.
    """
    text_config = model_config.get_text_config() if model_config is not None else None
    limit = getattr(text_config, "max_position_embeddings", None) or getattr(text_config, "n_positions", None)
    if config.max_seq_length is None:
        name = config.model_name_or_path if model_config is not None else None
        trained = read_record(name, **locate_model(config)).get("max_seq_length") if name else None
        if trained is None:
            return min(tokenizer.model_max_length, 1024, limit or 1024)
        logger.info("max_seq_length = %d, as %s was trained", trained, name)
        return int(trained)
    if limit and config.max_seq_length > limit:
        raise UserError(
            f"max_seq_length = {config.max_seq_length} is more than the model's {limit} positions: lower it"
        )
    return config.max_seq_length
