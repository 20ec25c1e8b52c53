"""What a turn is given: model, text and pairs, opened before anything is trained, and the sizes that follow."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import PartialState

from turncoder.config.keys import locate_model
from turncoder.config.stages import MntpConfig, TurnConfig
from turncoder.data.corpus import Corpus, check_column, is_held_out, open_corpus
from turncoder.data.files import names_file
from turncoder.data.pairs import Rows
from turncoder.data.tokenizer import load_tokenizer
from turncoder.encode.encoder import MAX_SEQ_LENGTH
from turncoder.errors import UserError
from turncoder.evaluate.sentences import read_sts
from turncoder.model.attention import make_bidirectional, settle_implementation
from turncoder.model.backbone import load_backbone, load_model_config, resolve_model
from turncoder.model.proof import build_small
from turncoder.preview import take_first, weigh
from turncoder.prompts import check_prompt
from turncoder.skeleton import build_unstored
from turncoder.train.rows import open_rows
from turncoder.train.text import open_blocks
from turncoder.turn.rungs import Trial, open_trial
from turncoder.turn.rungwords import open_tagged
from turncoder.turn.sizes import Sizes, configure_stages, derive_sizes, has_bf16

__all__ = ["Opened", "open_all"]


@dataclass
class Opened:
    """What was given, opened: what rungs are measured on, and the sizes that follow."""

    sizes: Sizes
    positions: int
    trial: Trial


def open_all(config: TurnConfig, *, weigh_model: bool = True) -> Opened:
    """Open everything that is given, so that what is wrong is said now, and derive the sizes.

    Parameters
    ----------
    config
        Of the turn.
    weigh_model
        Prove the conversion on the model with its weights; else on its small twin alone.
    """
    given = Sizes(mntp={"max_seq_length": config.max_seq_length} if config.max_seq_length else {})
    stages = configure_stages(config, given)
    sts = read_sts(config.sts) if config.sts else None
    tagged, told_words = open_tagged(config) if config.words else ({}, [])
    check_column(config.text_column, config.text, config.validation_text)
    corpus = _open_text(config, config.text)
    told, parameters, positions = _check_model(config, stages["mntp"], weigh_model=weigh_model)
    tokenizer = load_tokenizer(
        stages["mntp"].tokenizer_name or resolve_model(config.model_name_or_path), **locate_model(config)
    )
    percent = min(stages[name].validation_split_percentage for name in ("mntp", "simcse"))
    held_out = list(_take_held_out(config, corpus, percent))
    if not (held_out or config.validation_text):
        raise UserError(
            f"--text: of {config.text} no document is held out to measure on, for it has few or no different ones; "
            "bring more text, one document a row, or give --validation_text"
        )
    length = stages["mntp"].max_seq_length or _choose_length(corpus, tokenizer, positions)
    shortened = {"max_seq_length": length}
    stages = configure_stages(config, Sizes(shortened, {**shortened, "split_sentences": True}, shortened))
    state = PartialState(cpu=not torch.accelerator.is_available())
    simcse, supervised = stages["simcse"], stages.get("supervised")
    with state.main_process_first():
        pairs = []
        if supervised:  # before the text, which may take an hour to pack
            template = simcse.chat_template or supervised.chat_template
            pairs = open_rows(supervised, tokenizer, length, "--pairs", template=template)
        trial = open_trial(held_out, sts, [rows for _, rows in pairs], config.eval_documents)
        _check_prompts(simcse.prompt, [rows for rows, _ in pairs], trial, tokenizer)
        tokens = open_blocks(stages["mntp"], tokenizer, length)[0].num_tokens
        texts = open_rows(simcse, tokenizer, length, template=simcse.chat_template)
    sentences = sum(len(rows) for rows, _ in texts)
    count = sum(len(rows) for rows, _ in pairs)
    sizes = Sizes(reasons=[f"{told}; {parameters / 1e6:,.1f} M parameters, {positions:,} positions"])
    sizes = derive_sizes(config, sizes, parameters, tokens, length, sentences, count)
    sizes.words = tagged
    sizes.reasons += told_words
    return Opened(sizes, positions, trial)


def _check_prompts(prompt: str | None, sets: list[Rows], trial: Trial, tokenizer: Any) -> None:
    """Refuse now a prompt that does not stay apart from the texts that rungs are measured on."""
    sts = [*trial.sts.first, *trial.sts.second] if trial.sts is not None else []
    for column, texts in (("anchor", trial.documents.queries + sts), ("positive", trial.documents.documents)):
        for one in {prompt, *(rows.prompts.get(column) for rows in sets)} - {None}:
            check_prompt(tokenizer, str(one), texts, 1 << 30)


def _check_model(config: TurnConfig, mntp: MntpConfig, *, weigh_model: bool) -> tuple[str, int, int]:
    """Prove that the decoder becomes bidirectional; give what was found, its parameters and its positions."""
    name, where = resolve_model(config.model_name_or_path), locate_model(config)
    backbone: Any
    if weigh_model:
        backbone = load_backbone(name, dtype="bfloat16" if has_bf16() else None, **where)
        settle_implementation(backbone, allow_partial=mntp.allow_partial)
        told = make_bidirectional(backbone, allow_partial=mntp.allow_partial).summary
    else:
        backbone = build_unstored(load_model_config(name, **where), replace(mntp, train_mode="full")).base_model
        told = _prove_twin(backbone, mntp)
    parameters = sum(parameter.numel() for parameter in backbone.parameters())
    positions = getattr(backbone.config.get_text_config(), "max_position_embeddings", None) or MAX_SEQ_LENGTH
    return told, parameters, positions


def _prove_twin(unstored: Any, mntp: MntpConfig) -> str:
    """Prove on the small twin of a model without storage that it becomes bidirectional."""
    name = type(unstored).__name__
    try:
        twin = build_small(unstored)
    except Exception:  # whatever a class of the hub does
        return f"{name} has no small twin; whether it becomes bidirectional is seen with its weights"
    settle_implementation(twin, allow_partial=mntp.allow_partial)
    make_bidirectional(twin, allow_partial=mntp.allow_partial)
    return f"{name} becomes bidirectional, by its small twin; its weights were not loaded"


def _choose_length(corpus: Corpus, tokenizer: Any, positions: int) -> int:
    """Choose the length of a block by the tokens of the corpus, told from its first megabyte before all is packed."""
    texts, seen, whole = take_first(corpus, weigh)
    times = 1.0 if whole else corpus.size / seen if corpus.size else (corpus.rows or math.inf) / len(texts)
    tokens = times * sum(map(len, tokenizer(texts, verbose=False)["input_ids"])) if texts else 0
    return min(positions, 512 if tokens >= 5e6 else 256 if tokens >= 1e6 else 128)


def _open_text(config: TurnConfig, name: str, key: str = "--text") -> Corpus:
    options: dict[str, Any] = {"text_column": config.text_column, "cache_dir": config.cache_dir, "key": key}
    if names_file(name):
        corpus = open_corpus(file=name, **options)
    else:
        corpus = open_corpus(dataset_name=name, dataset_config_name=config.dataset_config_name, **options)
    if corpus.tokenised:
        raise UserError(f"{key} {name} holds token ids; turn needs the texts themselves")
    return corpus


def _take_held_out(config: TurnConfig, corpus: Corpus, percent: float) -> Iterator[str]:
    """Yield the documents that no stage trains on, up to a few times as many as are measured."""
    given = config.validation_text
    texts = iter(_open_text(config, given, "--validation_text") if given else corpus)
    seen: set[str] = set()
    for text in texts:
        held = given or is_held_out(text, percent)
        if held and text.strip() and text not in seen:
            seen.add(text)
            yield text.strip()
        if len(seen) >= 4 * config.eval_documents:
            return
