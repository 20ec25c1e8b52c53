"""A language model to pretrain: an architecture with random weights, or weights to go on with.

Legend: V vocabulary, D width.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from turncoder.config.keys import locate_model
from turncoder.config.pretraining import PretrainConfig
from turncoder.config.settings import nearest
from turncoder.data.tokenizer import find_padding, load_tokenizer, mask_token_id
from turncoder.errors import UserError, first_line
from turncoder.model.backbone import (
    count_embeddings,
    load_language_model,
    load_model_config,
    resolve_model,
    try_implementations,
)
from turncoder.model.influence import look_around
from turncoder.model.swap import swap_vocabulary

__all__ = ["build_config", "check_direction", "choose_class", "start_model", "tie_embeddings"]

logger = logging.getLogger("turncoder")

ALIKE = 0.9
DERIVED = {
    "hidden_size": ("head_dim", "intermediate_size"),
    "num_attention_heads": ("head_dim", "num_key_value_heads"),
    "num_hidden_layers": ("layer_types",),
}
"""Keys of a config that follow from others, where a config.json has both."""


def start_model(config: PretrainConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Build the language model, or load it, with embeddings for every token of the tokenizer, in float32.

    Random weights are drawn from torch's generator: seed it before.

    Returns
    -------
    PreTrainedModel
        A causal or a masked language model, in evaluation mode. Where there is a contrast with the embeddings, the head
        is tied to them.

    Raises
    ------
    UserError
        The architecture is unknown or has no such head, a key of its config does not exist, or its head cannot be tied.
    """
    if config.config_name:
        model = _build(config, tokenizer)
    else:
        name, where = str(config.model_name_or_path), locate_model(config)
        model = load_language_model(
            name,
            kind=config.kind,
            attn_implementation=config.attn_implementation,
            is_decoder=config.kind == "clm",
            **where,
        )
        if config.swap_vocabulary:
            own = load_tokenizer(resolve_model(name), **where)
            _free_padding(config, model, own)  # before its zeros are handed on
            swap_vocabulary(model, own, tokenizer)
        else:
            if config.tokenizer_name:
                _compare_tokenizers(config, tokenizer)
            fit_vocabulary(model, tokenizer)
    _free_padding(config, model, tokenizer)
    if config.objective != "cross_entropy":
        tie_embeddings(model)
    return model.float().eval()


def _free_padding(config: PretrainConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let the embedding of the padding token train where the text has that token too, in another role."""
    inputs: Any = model.get_input_embeddings()
    row = inputs.padding_idx
    if row is None:
        return
    if row == find_padding(tokenizer) and (
        config.kind == "clm" or row != mask_token_id(tokenizer, config.mask_token_type)
    ):
        return
    inputs.padding_idx = None
    if not inputs.weight[row].any():
        torch.nn.init.normal_(inputs.weight[row], std=float(inputs.weight.detach().std()))


def check_direction(config: PretrainConfig, model: PreTrainedModel) -> None:
    """Refuse a causal model that sees later tokens, and a masked one that sees earlier tokens alone."""
    earlier, later = look_around(model)
    name = f"kind = {config.kind!r}: {type(model).__name__}"
    if config.kind == "clm" and later:
        raise UserError(f"{name} sees the tokens that it should predict: {_advise(config, model.config)}")
    if config.kind == "mlm" and earlier and not later:
        raise UserError(f"{name} sees nothing after the token that it should predict: {_advise(config, model.config)}")


def _advise(config: PretrainConfig, model_config: PretrainedConfig) -> str:
    """Name the other kind, if transformers has a class for it."""
    if config.kind == "clm" and type(model_config) in AutoModelForMaskedLM._model_mapping:
        return "use kind = 'mlm'"
    if config.kind == "mlm" and type(model_config) in AutoModelForCausalLM._model_mapping:
        return "use kind = 'clm' and then turncoder turn"
    return "choose another architecture, such as llama (clm) or bert (mlm)"


def _compare_tokenizers(config: PretrainConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer whose ids mean other tokens than the model's own."""
    name = resolve_model(str(config.model_name_or_path))
    try:
        own = load_tokenizer(name, **locate_model(config)).get_vocab()
    except UserError:  # the folder has none: what is given is taken at its word
        return
    given = tokenizer.get_vocab()
    agreement = sum(given.get(token) == place for token, place in own.items()) / len(own)
    if agreement < ALIKE:
        raise UserError(
            f"tokenizer_name: {config.tokenizer_name} gives {1 - agreement:.0%} of the ids of "
            f"{config.model_name_or_path} to other tokens than its own tokenizer does; drop it, or add "
            "--swap_vocabulary for new embeddings"
        )


def fit_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the model embeddings for the tokens that the tokenizer has beyond them, and say so."""
    size = max(tokenizer.get_vocab().values()) + 1
    before = count_embeddings(model)
    if size > before:
        logger.warning(
            "the tokenizer has %s tokens and the model %s embeddings: %s new ones, drawn around the mean of the others",
            f"{size:,}", f"{before:,}", f"{size - before:,}",
        )  # fmt: skip
        model.resize_token_embeddings(size)


def build_config(config: PretrainConfig, tokenizer: PreTrainedTokenizerBase | None) -> PretrainedConfig:
    """Make the configuration of the architecture: as named, with what is overridden, for the tokenizer's vocabulary.

    Without a tokenizer, which may have to be trained first, the vocabulary is the architecture's own.

    Raises
    ------
    UserError
        See `start_model`.
    """
    name, overrides = str(config.config_name), dict(config.config_overrides)
    if name in CONFIG_MAPPING and not Path(name).is_file() and not (Path(name) / "config.json").exists():
        kind, table = name, {}
    else:
        table = _read_config(config, name)
        kind = table.pop("model_type")
    known = CONFIG_MAPPING[kind]()
    for key in overrides:
        if not hasattr(known, key):
            raise UserError(
                f"config_overrides.{key}: {type(known).__name__} has no such key"
                f"{nearest(key, [key for key in vars(known) if not key.startswith('_')])}"
            )
        for follower in DERIVED.get(key, ()):
            if follower not in overrides:
                table.pop(follower, None)
    ends = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id", None) for role in ("bos", "eos")}
    size = max(tokenizer.get_vocab().values()) + 1 if tokenizer is not None else 0
    ours = {
        **({"vocab_size": size} if size else {}),
        "pad_token_id": getattr(tokenizer, "pad_token_id", None),
        **{key: token for key, token in ends.items() if token is not None},
        **({"tie_word_embeddings": True} if config.objective != "cross_entropy" else {}),
        **({"is_decoder": config.kind == "clm"} if hasattr(known, "is_decoder") else {}),
    }
    asked = table.get("vocab_size", size)
    if size and asked != size and "vocab_size" not in overrides:
        logger.warning(
            "config_name: %s says vocab_size = %s; the tokenizer has %s tokens, and the model as many embeddings",
            name, asked, size,
        )  # fmt: skip
    try:
        made = AutoConfig.for_model(kind, **{**table, **ours, **overrides})
    except (TypeError, ValueError, KeyError, StrictDataclassError) as error:
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise UserError(f"config_overrides: {kind} refuses {overrides}: {first_line(cause)}") from error
    if made.vocab_size < size:
        raise UserError(
            f"config_overrides.vocab_size = {made.vocab_size} is less than the {size} tokens of the tokenizer; drop it"
        )
    return made


def _read_config(config: PretrainConfig, name: str) -> dict[str, Any]:
    """Read the keys that a config.json sets."""
    path = Path(name)
    if path.is_file():
        try:
            table = json.loads(path.read_text(encoding="utf8"))
        except ValueError as error:
            raise UserError(f"config_name: {name} is broken JSON ({error})") from error
    else:
        try:
            table = load_model_config(name, **locate_model(config)).to_diff_dict()
        except UserError as error:
            types = [kind for kind in CONFIG_MAPPING if "_" not in kind]
            raise UserError(
                f"config_name: {name} is no config.json, no folder, no model type{nearest(name, types)}, and the hub "
                f"does not give it: {str(error).partition(': ')[2]}"
            ) from error
    if not isinstance(table, dict) or table.get("model_type") not in CONFIG_MAPPING:
        raise UserError(f"config_name: {name} has no model_type that transformers knows; add one, such as llama")
    drop = ("architectures", "transformers_version", "_name_or_path", "dtype", "torch_dtype", "auto_map")
    return {key: value for key, value in table.items() if key not in drop}


def choose_class(config: PretrainConfig, model_config: PretrainedConfig) -> Any:
    """Choose the class of transformers that has the architecture's head.

    Raises
    ------
    UserError
        The architecture has no such head.
    """
    auto_class = AutoModelForCausalLM if config.kind == "clm" else AutoModelForMaskedLM
    if type(model_config) not in auto_class._model_mapping:
        raise UserError(
            f"kind = {config.kind!r}: transformers has no such language model of {model_config.model_type}; "
            f"{_advise(config, model_config)}"
        )
    return auto_class


def _build(config: PretrainConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    model_config = build_config(config, tokenizer)
    auto_class = choose_class(config, model_config)
    placed = (
        f"config_name: {config.config_name} counts its positions from the id of the padding token, which the tokenizer"
    )
    try:
        model = try_implementations(
            str(config.config_name),
            config.attn_implementation,
            lambda choice: auto_class.from_config(model_config, attn_implementation=choice, dtype=torch.float32),
        )
    except AssertionError as error:
        if "padding_idx" not in str(error).lower():
            raise
        raise UserError(f"{placed} has at {tokenizer.pad_token_id}; give it one of the first ids") from error
    counts = (one for one in model.modules() if hasattr(one, "create_position_ids_from_input_ids"))
    if any(one.padding_idx is None for one in counts):
        raise UserError(f"{placed} does not have; use one with a padding token, or --train_tokenizer")
    return model


def tie_embeddings(model: PreTrainedModel) -> None:
    """See that the output embedding is the input embedding, as the contrast has it."""
    output, inputs = model.get_output_embeddings(), model.get_input_embeddings()
    bias = getattr(output, "bias", None)
    if bias is not None and not bias.is_meta and bool(bias.any()):
        logger.warning("the model's own output bias is dropped: the unigram prior of the text takes its place")
        with torch.no_grad():
            bias.zero_()
    if output is not None and output.weight is inputs.weight:
        return
    if output is None or output.weight.shape != inputs.weight.shape:
        raise UserError(
            f"objective: the output embedding of {type(model).__name__} cannot be tied to its input embeddings; use "
            "objective = 'cross_entropy', or another architecture"
        )
    model.config.tie_word_embeddings = True
    logger.warning("the model's own output embedding is dropped: the contrast is with its input embeddings")
    model.tie_weights()
    assert model.get_output_embeddings().weight is inputs.weight
