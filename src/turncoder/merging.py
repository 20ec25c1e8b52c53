"""A base model and its adapters become one folder."""

import logging
from pathlib import Path
from typing import Any

from turncoder.artifact import save_encoder
from turncoder.config.encoding import MergeConfig
from turncoder.encode.encoder import MAX_SEQ_LENGTH, find_template, open_encoder, take_pair
from turncoder.encode.llm2vec import LLM2VecTransformer
from turncoder.errors import UserError
from turncoder.model.source import find_source

__all__ = ["check_output", "merge_to_folder", "name_settings", "open_merged"]

logger = logging.getLogger("turncoder")


def merge_to_folder(config: MergeConfig) -> Path:
    """Write a base model with its adapters merged in as a folder that sentence-transformers opens without us.

    LLM2Vec's settings go along as ``llm2vec_config.json``, which `load_encoder` reads.

    Parameters
    ----------
    config
        All that is to be known; the folder is written under another name first.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    UserError
        As `load_encoder`; the folder exists.
    """
    out = check_output(config)
    encoder = open_merged(config)
    source = find_source(
        str(config.model_name_or_path), config.adapters, revision=config.model_revision, cache_dir=config.cache_dir
    )
    extra = name_settings(encoder)
    if extra:
        logger.warning("%s: LLM2Vec's semantics need turncoder.load_encoder; others pool every token", out)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_encoder(
        encoder.transformers_model,
        out,
        tokenizer=encoder.tokenizer,
        tokenizer_files=None,
        max_seq_length=encoder.max_seq_length or MAX_SEQ_LENGTH,
        pooling=str(encoder[1].pooling_mode),
        inputs=find_template(encoder),
        prompts={name: prompt for name, prompt in encoder.prompts.items() if prompt},
        default_prompt_name=encoder.default_prompt_name,
        record={"stage": "merge", "parents": [{"name": source.base}, *({"name": one} for one in source.adapters)]},
        extra=extra,
    )
    return out


def check_output(config: MergeConfig) -> Path:
    """Return where to; raises UserError where something is there that is not to be replaced."""
    out = Path(str(config.output_dir))
    if out.exists() and not config.overwrite:
        raise UserError(f"--output {out} exists; choose another name, or use --overwrite to replace it")
    if out.exists() and not (out / "modules.json").exists():
        raise UserError(f"--output {out} is no model folder, and is not replaced; choose another name")
    return out


def open_merged(config: MergeConfig) -> Any:
    """Open the encoder on the CPU, adapters merged; raises UserError where it is more than a model and its pooling."""
    encoder: Any = open_encoder(config, device="cpu")
    take_pair(encoder, str(config.model_name_or_path))
    return encoder


def name_settings(encoder: Any) -> dict[str, dict[str, Any]]:
    """Return ``llm2vec_config.json`` and its content, for an encoder with LLM2Vec's semantics."""
    module = encoder[0]
    if not isinstance(module, LLM2VecTransformer):
        return {}
    settings = {
        "pooling_mode": module.pooling,
        "max_length": encoder.max_seq_length,
        "doc_max_length": module.doc_max_length,
        "skip_instruction": module.skip_instruction,
        "template_name": module.template_name,
    }
    return {"llm2vec_config.json": settings}
