"""A base model and its adapters become one folder."""

import logging
from pathlib import Path

from sentence_transformers.models import Pooling
from transformers import PreTrainedModel

from turncoder.artifact import save_encoder
from turncoder.config import MergeConfig
from turncoder.encoder import MAX_SEQ_LENGTH, TEXT_ONLY, open_encoder
from turncoder.errors import UserError
from turncoder.llm2vec import LLM2VecTransformer
from turncoder.model.source import find_source

__all__ = ["merge_to_folder"]

logger = logging.getLogger("turncoder")


def merge_to_folder(name: str, config: MergeConfig) -> Path:
    """Write a base model with its adapters merged in as a folder that sentence-transformers opens without us.

    LLM2Vec's settings go along as ``llm2vec_config.json``, which `load_encoder` reads.

    Parameters
    ----------
    name
        As for `load_encoder`.
    config
        All the rest; the folder is written under another name first.

    Raises
    ------
    UserError
        As `load_encoder`; the folder exists.
    """
    assert config.output_dir is not None
    out = Path(config.output_dir)
    if out.exists() and not config.overwrite:
        raise UserError(f"--output {out} exists; choose another name, or use --overwrite to replace it")
    if out.exists() and not (out / "modules.json").exists():
        raise UserError(f"--output {out} is no model folder, and is not replaced; choose another name")
    source = find_source(name, config.adapters, revision=config.model_revision, cache_dir=config.cache_dir)
    encoder = open_encoder(name, config, device="cpu")
    backbone, pools = encoder.transformers_model, [module for module in encoder if isinstance(module, Pooling)]
    if len(list(encoder)) != 2 or not pools or not isinstance(backbone, PreTrainedModel):
        raise UserError(f"model_name_or_path: {name} has other modules than a model and its pooling; name their model")
    extra = {}
    if isinstance(encoder[0], LLM2VecTransformer):
        extra["llm2vec_config.json"] = {
            "pooling_mode": encoder[0].pooling,
            "max_length": encoder.max_seq_length,
            "doc_max_length": encoder[0].doc_max_length,
            "skip_instruction": encoder[0].skip_instruction,
            "template_name": encoder[0].template_name,
        }
        logger.warning("%s: LLM2Vec's semantics need turncoder.load_encoder; others pool every token", out)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_encoder(
        backbone,
        out,
        tokenizer=encoder.tokenizer,
        tokenizer_files=None,
        max_seq_length=encoder.max_seq_length or MAX_SEQ_LENGTH,
        pooling=str(pools[0].pooling_mode),
        inputs={name: getattr(encoder[0], name) for name in TEXT_ONLY} if config.chat_template else None,
        prompts={name: prompt for name, prompt in encoder.prompts.items() if prompt},
        default_prompt_name=encoder.default_prompt_name,
        record={"stage": "merge", "parents": [{"name": source.base}, *({"name": one} for one in source.adapters)]},
        extra=extra,
    )
    return out
