"""Models without storage (torch's meta device), for what can be told without weights: sizes, activations, tokens."""

import warnings
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Pooling, Transformer
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from turncoder.config.glue import GlueConfig
from turncoder.config.stages import MntpConfig, SimcseConfig, SupervisedConfig
from turncoder.encode.encoder import apply_flags, read_modules, wrap_model
from turncoder.errors import UserError, first_line
from turncoder.model.adapters import attach_lora
from turncoder.model.backbone import load_model_config
from turncoder.model.dropout import set_attention_dropout
from turncoder.model.source import find_source

__all__ = ["build_unstored", "open_unstored"]


def build_unstored(
    model_config: PretrainedConfig, config: MntpConfig | SimcseConfig | SupervisedConfig | GlueConfig
) -> PreTrainedModel:
    """Build the model on the meta device, with its adapter, trainable as the run would have it.

    Raises
    ------
    UserError
        The architecture has no causal language model, or no module that ``lora_target_modules`` names.
    """
    kind: Any = AutoModelForCausalLM if isinstance(config, MntpConfig) else AutoModel
    dtype = model_config.dtype if config.dtype == "auto" else getattr(torch, config.dtype or "float32")
    if config.train_mode == "full":
        dtype = torch.float32
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = kind.from_config(
                model_config,
                dtype=dtype or torch.float32,
                attn_implementation="sdpa",
                trust_remote_code=config.trust_remote_code,
            )
        except ValueError as error:
            if "scaled_dot_product" not in str(error):
                raise UserError(f"model_name_or_path: {first_line(error)}") from None
            model = kind.from_config(model_config, dtype=dtype, attn_implementation="eager")
        if config.train_mode == "lora":
            attach_lora(
                model.base_model,
                r=config.lora_r,
                alpha=config.lora_alpha,
                dropout=config.lora_dropout,
                targets=config.lora_target_modules,
            )
    if isinstance(config, SimcseConfig):
        set_attention_dropout(model, config.simcse_dropout)
    head = model.get_output_embeddings()
    inside = {id(parameter) for parameter in model.base_model.parameters()}
    for parameter in head.parameters() if isinstance(head, nn.Module) else ():
        if id(parameter) not in inside:
            parameter.requires_grad_(getattr(config, "train_head", False))
    return model.train()


def open_unstored(config: SimcseConfig | SupervisedConfig | GlueConfig) -> SentenceTransformer:
    """Open the encoder that training starts from, around a model without storage.

    It tokenises, cuts and pools as the encoder itself does.

    Raises
    ------
    UserError
        As `turncoder.encode.encoder.load_encoder`, as far as it can be told without weights.
    """
    name = str(config.model_name_or_path)
    source = find_source(name, config.adapters, revision=config.model_revision, cache_dir=config.cache_dir)
    where: dict[str, Any] = {
        "revision": source.revision,
        "cache_dir": config.cache_dir,
        "trust_remote_code": config.trust_remote_code,
    }
    listed = read_modules(source, where) if source.is_encoder else []
    more = len(listed) > 2 and not isinstance(config, GlueConfig)  # whose head reads whatever comes out
    if listed and (more or len(listed) < 2 or not listed[1]["type"].endswith("Pooling")):
        raise UserError(f"model_name_or_path: {name} has other modules than a model and its pooling; name their model")
    model = build_unstored(load_model_config(source.base, **where), config)
    if not listed:
        options = {name: getattr(config, name) for name in ("pooling", "max_seq_length", "chat_template")}
        return wrap_model(model, source, where, device="meta", **options)

    class Unstored(Transformer):
        """sentence-transformers' module around that model."""

        def _load_model(self, *_: Any, **__: Any) -> PreTrainedModel:
            return model

    place = {"cache_folder": where.pop("cache_dir"), **where}
    modules = [
        kind.load(source.base, subfolder=one["path"], **place)
        for kind, one in zip((Unstored, Pooling), listed[:2], strict=True)
    ]
    encoder = SentenceTransformer(modules=modules, device="meta")
    apply_flags(encoder, config.pooling, config.max_seq_length)
    return encoder
