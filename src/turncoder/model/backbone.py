"""Load a model from a folder, a hub id or a run folder, or say in one line why that cannot be done."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import transformers
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PretrainedConfig,
    PreTrainedModel,
)

from turncoder.errors import UserError, first_line
from turncoder.hub import is_local

__all__ = [
    "count_embeddings",
    "describe_model",
    "digest_module",
    "find_file",
    "find_kind",
    "load_backbone",
    "load_language_model",
    "load_model_config",
    "read_record",
    "resolve_model",
    "split_revision",
    "try_implementations",
]

logger = logging.getLogger("turncoder")
transformers.utils.logging.disable_progress_bar()  # a bar per shard of weights is noise in a log

Loaded = TypeVar("Loaded")

FALLBACKS = ("sdpa", "eager")
IMPLEMENTATIONS = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention")


def resolve_model(name: str) -> str:
    """Return what transformers should open: ``RUN/model`` for a run folder of ours, else ``name`` itself."""
    if (Path(name) / "run.json").exists() and (Path(name) / "model").is_dir():
        return str(Path(name) / "model")
    return name


def load_model_config(
    name: str, *, revision: str = "main", cache_dir: str | None = None, trust_remote_code: bool = False
) -> PretrainedConfig:
    """Load a model's configuration.

    Raises
    ------
    UserError
        The folder has no ``config.json``, its architecture is unknown, or the hub id cannot be reached or found.
    """
    name = resolve_model(name)
    folder = Path(name)
    if folder.is_dir() and not (folder / "config.json").exists():
        raise UserError(f"model_name_or_path: {name} has no config.json: name a folder that holds a model, or a hub id")
    try:
        return AutoConfig.from_pretrained(
            name, revision=revision, cache_dir=cache_dir, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, HFValidationError) as error:
        raise UserError(_why_not(name, error)) from error


def find_kind(name: str, *, trust_remote_code: bool = False, **where: Any) -> Literal["clm", "mlm"]:
    """Tell what a language model predicts: the next token (clm), or masked ones (mlm), from what its config says.

    Raises
    ------
    UserError
        As `load_model_config`.
    """
    config = load_model_config(name, trust_remote_code=trust_remote_code, **where)
    return "mlm" if any(one.endswith("ForMaskedLM") for one in config.architectures or ()) else "clm"


def load_language_model(
    name: str,
    *,
    kind: Literal["clm", "mlm"] = "clm",
    revision: str = "main",
    cache_dir: str | None = None,
    trust_remote_code: bool = False,
    dtype: str | None = None,
    attn_implementation: str | None = "sdpa",
    is_decoder: bool | None = None,
) -> PreTrainedModel:
    """Load a language model with its head, and its attention as it was trained.

    Parameters
    ----------
    name
        A folder, a run folder of ours, or a hub id.
    kind
        What it predicts: the next token (clm), or masked ones (mlm); see `find_kind`.
    dtype
        ``float32`` (also for None), ``bfloat16``, ``float16``, or ``auto`` for the dtype of the files.
    attn_implementation
        The first of this, sdpa and eager that loads is taken, with a notice when it is not the one asked for.
    is_decoder
        For architectures that can be either (BERT's relatives), whatever their config says; None: as it says.

    Returns
    -------
    PreTrainedModel
        In evaluation mode.

    Raises
    ------
    UserError
        No weights, weights that lack parameters of the architecture (the head, for example), or an unknown model.
    """
    where = {"revision": revision, "cache_dir": cache_dir, "trust_remote_code": trust_remote_code}
    auto_class = AutoModelForCausalLM if kind == "clm" else AutoModelForMaskedLM
    return _load(auto_class, name, where, dtype, attn_implementation, is_decoder)


def load_backbone(
    name: str,
    *,
    revision: str = "main",
    cache_dir: str | None = None,
    trust_remote_code: bool = False,
    dtype: str | None = None,
    attn_implementation: str | None = "sdpa",
) -> PreTrainedModel:
    """Load a decoder or an encoder without its head; parameters and errors as for :func:`load_language_model`."""
    where = {"revision": revision, "cache_dir": cache_dir, "trust_remote_code": trust_remote_code}
    return _load(AutoModel, name, where, dtype, attn_implementation)


def _load(
    auto_class: Any,
    name: str,
    where: dict[str, Any],
    dtype: str | None,
    implementation: str | None,
    is_decoder: bool | None = None,
) -> PreTrainedModel:
    """Load with an attention implementation that can be had, and see that no weight is missing."""
    config = load_model_config(name, **where)
    if auto_class is AutoModel and config.is_encoder_decoder:
        raise UserError(
            f"model_name_or_path: {name} is an encoder-decoder; name a decoder or an encoder "
            "(sentence-transformers opens the encoder of such a model)"
        )
    if is_decoder is not None and hasattr(config, "is_decoder"):
        config.is_decoder = is_decoder
    name = resolve_model(name)
    kwargs: dict[str, Any] = {
        **where,
        "dtype": "auto" if dtype == "auto" else getattr(torch, dtype or "float32"),
        "output_loading_info": True,
        "use_safetensors": None,
    }
    model, loading = try_implementations(
        name,
        implementation,
        lambda choice: auto_class.from_pretrained(name, config=config, attn_implementation=choice, **kwargs),
    )
    _check_complete(name, loading)
    return model.eval()


def try_implementations(name: str, asked: str | None, load: Callable[[str], Loaded]) -> Loaded:
    """Load with the first of the attention implementation asked for, sdpa and eager that is to be had here.

    Parameters
    ----------
    name
        Of the model, for messages.
    asked
        What the user wants; None wants sdpa.
    load
        Called with the name of an implementation.

    Raises
    ------
    UserError
        No such implementation, none that works, or whatever else is wrong with the model.
    """
    if asked and "/" not in asked and asked not in IMPLEMENTATIONS:
        raise UserError(
            f"attn_implementation = {asked!r} is none of {', '.join(IMPLEMENTATIONS)}; "
            "choose one, or a kernel of the hub as owner/name"
        )
    tried: list[str] = []
    for choice in dict.fromkeys([asked or "sdpa", *FALLBACKS]):
        try:
            loaded = load(choice)
        except (ImportError, ValueError) as error:  # no such kernel here, or the architecture does not have it
            if "attention" not in str(error).lower() and "attn" not in str(error).lower():
                raise UserError(_why_not(name, error)) from error
            tried.append(choice)
            continue
        except (OSError, KeyError) as error:
            raise UserError(_why_not(name, error)) from error
        except RuntimeError as error:
            if "mismatched_sizes" not in str(error):
                raise
            raise UserError(
                f"model_name_or_path: the weights of {name} do not have the shapes that its config.json says"
            ) from error
        if tried:
            logger.warning("attn_implementation: %s is not available here; %s is used", tried[0], choice)
        return loaded
    raise UserError(f"attn_implementation: none of {', '.join(tried)} can be used with {name}")


def split_revision(name: str, revision: str = "main") -> tuple[str, str]:
    """Split ``owner/name@revision``; a path is left as it is, and a name without revision gets the one given."""
    repository, at, own = name.partition("@")
    if not at or is_local(name):
        return name, revision
    return repository, own


def find_file(name: str, file: str, *, revision: str = "main", cache_dir: str | None = None) -> Path | None:
    """Find a file of a model's folder, or of a hub repository (fetching it); None where there is none."""
    if Path(name).is_dir():
        path = Path(name) / file
        return path if path.exists() else None
    if is_local(name):
        return None
    try:
        return Path(hf_hub_download(name, file, revision=revision, cache_dir=cache_dir))
    except (EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError, HFValidationError):
        return None  # no such file; or no such repository, which transformers says better
    except HfHubHTTPError as error:
        raise UserError(f"{name}: {file} cannot be fetched from the hub ({first_line(error)}); try again") from error


def read_record(name: str, *, revision: str = "main", cache_dir: str | None = None, **_: Any) -> dict[str, Any]:
    """Read what turncoder wrote of a model (``turncoder.json``); empty for models that it did not make."""
    path = find_file(resolve_model(name), "turncoder.json", revision=revision, cache_dir=cache_dir)
    return json.loads(path.read_text(encoding="utf8")) if path else {}


def count_embeddings(model: PreTrainedModel) -> int:
    """Return how many tokens a model has input embeddings for."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    return weight.shape[0]


def describe_model(model: PreTrainedModel) -> list[Any]:
    """Return all that what a model computes depends on, besides its weights."""
    unsaid = {"_name_or_path": None, "transformers_version": None}
    return ["model", {**model.config.to_dict(), **unsaid}, model.config._attn_implementation]


def digest_module(module: torch.nn.Module, settings: list[Any]) -> str:
    """Hash settings and weights: of each weight up to 1024 values, evenly spread, stand for it.

    That is quick, and another for another model.
    """
    whole = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted(module.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        values = flat[:: max(1, flat.numel() // 1024)].float().cpu().numpy()
        whole.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode() + values.tobytes())
    return whole.hexdigest()


def _check_complete(name: str, loading: dict[str, Any]) -> None:
    missing = sorted(key for key in loading["missing_keys"] if not key.startswith("pooler."))  # BERT's, unused
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(
            f"model_name_or_path: the weights of {name} lack {', '.join(missing[:3])}{more}: name a complete model (a "
            "bare backbone has no head to predict tokens with)"
        )


def _why_not(name: str, error: Exception) -> str:
    folder = Path(name)
    if "trust_remote_code" in str(error):
        return f"model_name_or_path: {name} comes with Python code of its own: add --trust_remote_code if you trust it"
    if folder.is_dir():
        weights = [file for ending in ("safetensors", "bin") for file in folder.glob(f"*.{ending}*")]
        if isinstance(error, OSError) and not weights:
            return f"model_name_or_path: {name} has no weights (*.safetensors): name a folder that holds a whole model"
        return f"model_name_or_path: {name} cannot be opened: {first_line(error)}"
    if is_local(name):
        return f"model_name_or_path: there is no model folder {name}"
    return (
        f"model_name_or_path: {name} is neither a folder nor a model that the hub gives: {first_line(error)} "
        "(check the name, the network, and `hf auth login` for gated models)"
    )
