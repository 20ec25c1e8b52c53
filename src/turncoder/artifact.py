"""The model folder: what ``SentenceTransformer(folder)`` and ``AutoModel.from_pretrained(folder)`` load without us.

The layout is the one that old and new sentence-transformers, vLLM and Text Embeddings Inference all read
(see docs/serving.md): module types under ``sentence_transformers.models``, both key sets for the pooling,
``is_causal: false`` in ``config.json``. The tokenizer's files are the original ones, byte for byte.
``README.md`` is the model card.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from turncoder.data.tokenizer import pad_token_id
from turncoder.disk import replace_folder
from turncoder.model.attention import inspect_attention
from turncoder.model.conversion import is_converted
from turncoder.model.prior import Prior
from turncoder.model.views import AttentionReport
from turncoder.publish.card import OPENS, digest_card, write_card

__all__ = ["OPENS", "save_encoder", "save_language_model"]

logger = logging.getLogger("turncoder")

POOLING_MODES = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]
PACKAGES = {"sentence_transformers": "sentence-transformers", "transformers": "transformers", "pytorch": "torch"}
MENDS = "turncoder.make_bidirectional(model) after loading mends it"
# Text Embeddings Inference reads this key where transformers ignores it; on Gemma it means a window too
SERVER_KEY_TYPES = frozenset({"llama", "mistral", "qwen3"})


def save_encoder(
    backbone: PreTrainedModel,
    folder: Path,
    *,
    tokenizer: PreTrainedTokenizerBase,
    tokenizer_files: list[Path] | None,
    max_seq_length: int,
    pooling: str = "mean",
    inputs: dict[str, Any] | None = None,
    prompts: dict[str, str] | None = None,
    default_prompt_name: str | None = None,
    record: dict[str, Any] | None = None,
    extra: dict[str, Any] | None = None,
) -> None:
    """Save a backbone as a sentence-transformers folder, under a temporary name that is renamed at the end.

    Parameters
    ----------
    backbone
        The merged, bidirectional model without head.
    folder
        Where to; an existing folder is replaced.
    tokenizer
        For its padding token, which goes into ``sentence_bert_config.json``: many decoders' tokenizers name none.
    tokenizer_files
        The original files, copied unchanged; None saves the tokenizer as it is.
    max_seq_length
        In tokens.
    pooling
        A pooling mode of sentence-transformers.
    inputs
        Keys for ``sentence_bert_config.json`` that say what the model reads; None is plain text, as for every reader.
    prompts, default_prompt_name
        That the encoder keeps.
    record
        Extra keys for ``turncoder.json``: how MNTP aligned labels and states, the mask token id, and what `write_card`
        tells: stage, parents, ``matryoshka_dims``, ``training``, ``results``.
    extra
        More JSON files, by name.

    Notes
    -----
    Where plain ``AutoModel`` would not open the folder bidirectional again, a warning says so and ``turncoder.json``
    records it.
    """
    report, opens = _look(backbone, folder)
    pad_token = tokenizer.convert_ids_to_tokens(pad_token_id(tokenizer))
    width = backbone.config.get_text_config().hidden_size
    card = write_card(
        report,
        name=_name_here(folder),
        opens=opens,
        dimensions=width,
        max_seq_length=max_seq_length,
        pooling=pooling,
        pad_token=str(pad_token),
        prompts=prompts or {},
        default_prompt_name=default_prompt_name,
        record=record or {},
    )
    contents = {
        "modules.json": MODULES,
        "sentence_bert_config.json": {
            "max_seq_length": max_seq_length,
            "do_lower_case": False,
            "tokenizer_args": {"padding_side": "right", "pad_token": pad_token},
            **(inputs or {}),
        },
        "1_Pooling/config.json": _pooling_config(width, pooling),
        "config_sentence_transformers.json": {
            "__version__": {key: importlib.metadata.version(package) for key, package in PACKAGES.items()},
            "model_type": "SentenceTransformer",
            "prompts": prompts or {},
            "default_prompt_name": default_prompt_name,
            "similarity_fn_name": "cosine",
        },
        "turncoder.json": {
            **(record or {}),
            "reopens": opens,
            "attention": asdict(report.facts),
            "card": digest_card(card),
        },
        **(extra or {}),
    }
    with replace_folder(folder) as partial:
        (partial / "1_Pooling").mkdir()
        backbone.save_pretrained(partial)
        _save_tokenizer(tokenizer, tokenizer_files, partial)
        for name, content in contents.items():
            _write(partial / name, content)
        (partial / "README.md").write_text(card, encoding="utf8")
        _fit_servers(partial / "config.json", backbone, (record or {}).get("matryoshka_dims"))


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, files: list[Path] | None, folder: Path) -> None:
    if files is None:
        tokenizer.save_pretrained(folder)
    for file in files or []:
        shutil.copyfile(file, folder / file.name)


def _name_here(folder: Path) -> str:
    """Name a folder as it is opened from here; one that lies elsewhere by its last names, not by this machine's."""
    path = folder.resolve()
    if path.is_relative_to(Path.cwd()) and path != Path.cwd():
        return path.relative_to(Path.cwd()).as_posix()
    return "/".join(path.parts[-2 if path.name == "model" else -1 :])


def _look(backbone: PreTrainedModel, folder: Path) -> tuple[AttentionReport, str]:
    """Return what the attention of a model is, and how plain `AutoModel` opens its folder."""
    report = inspect_attention(backbone)
    if not is_converted(backbone.config):  # an encoder, or a decoder that was left causal
        return report, "bidirectional" if report.verdict == "bidirectional" else "causal"
    if report.reopens != "bidirectional":
        name = type(backbone).__name__
        logger.warning("%s: plain AutoModel opens %s %s; %s", folder, name, OPENS[report.reopens], MENDS)
    return report, report.reopens


def save_language_model(
    model: PreTrainedModel,
    folder: Path,
    *,
    tokenizer: PreTrainedTokenizerBase,
    tokenizer_files: list[Path] | None,
    prior: Prior | None,
    record: dict[str, Any],
) -> None:
    """Save a language model with its head as an ordinary folder of transformers, under a temporary name first.

    Parameters
    ----------
    model, tokenizer
        As they are.
    folder
        Where to; an existing folder is replaced.
    tokenizer_files
        The original files, copied unchanged; None saves the tokenizer as it is.
    prior
        What the logits of the model lack (see `turncoder.model.prior`); None: nothing.
    record
        For ``turncoder.json``.
    """
    with replace_folder(folder) as partial:
        model.save_pretrained(partial)
        _save_tokenizer(tokenizer, tokenizer_files, partial)
        if prior is not None:
            prior.save(partial)
        _write(partial / "turncoder.json", {**record, "prior": prior.describe() if prior else None})


def _pooling_config(width: int, pooling: str) -> dict[str, Any]:
    """Return what old and new readers want to know of the pooling.

    Not ``embedding_dimension``: sentence-transformers before 5.4 stops at a name that it does not know, and later ones
    read the old name.
    """
    return {
        "word_embedding_dimension": width,
        "pooling_mode": pooling,
        **{key: mode == pooling for mode, key in POOLING_MODES.items()},
        "include_prompt": pooling == "cls",  # whose token comes before the prompt
    }


def _fit_servers(path: Path, backbone: PreTrainedModel, dims: list[int] | None) -> None:
    """Add to ``config.json`` the keys that only servers read, and take away a null that they stumble over."""
    config = json.loads(path.read_text(encoding="utf8"))
    if config.get("model_type") in SERVER_KEY_TYPES and config.get("is_causal") is False:
        config["use_bidirectional_attention"] = True
    if dims:
        config["matryoshka_dimensions"] = list(dims)  # without it vLLM refuses `dimensions`
    absent = getattr(type(backbone.config), "pad_token_id", None) is None  # what a missing key means to transformers
    if absent and config.get("pad_token_id", 0) is None:
        del config["pad_token_id"]  # Text Embeddings Inference wants a number or nothing
    _write(path, config)


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf8")
