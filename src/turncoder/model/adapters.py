"""LoRA on the backbone: attach one, merge it, and check that the merged model is the same model.

Hu et al. 2021, arXiv 2106.09685. The adapter wraps the backbone only (``task_type`` FEATURE_EXTRACTION), so that it
loads on plain ``AutoModel``.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.tuners.lora import LoraModel
from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from peft.utils import load_peft_weights
from peft.utils.other import get_pattern_key
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from turncoder.errors import UserError, first_line
from turncoder.model.backbone import split_revision
from turncoder.model.dropout import drop_sparsely

__all__ = ["attach_lora", "choose_targets", "count_parameters", "load_adapter", "merge_adapter"]

logger = logging.getLogger("turncoder")

# What LLM2Vec adapts, where the architecture names its projections like Llama
LLAMA_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def choose_targets(backbone: nn.Module, asked: tuple[str, ...] | None) -> list[str] | str:
    """Choose the modules to adapt: those asked for, Llama's seven projections, or every linear layer.

    Raises
    ------
    UserError
        A module asked for does not exist.
    """
    names = {name.rpartition(".")[2] for name, _ in backbone.named_modules()}
    if asked:
        paths = {name for name, _ in backbone.named_modules()}
        absent = [target for target in asked if target not in names | paths and target != "all-linear"]
        if absent:
            linear = {name.rpartition(".")[2] for name, layer in backbone.named_modules() if hasattr(layer, "weight")}
            raise UserError(
                f"lora_target_modules: the model has no module {absent[0]}; it has {', '.join(sorted(linear))}"
            )
        return "all-linear" if asked == ("all-linear",) else list(asked)
    return list(LLAMA_PROJECTIONS) if names.issuperset(LLAMA_PROJECTIONS) else "all-linear"


def attach_lora(
    backbone: PreTrainedModel, *, r: int, alpha: int | None, dropout: float, targets: tuple[str, ...] | None
) -> PeftModel:
    """Wrap ``backbone`` with a new LoRA whose matrices are fp32; everything else is frozen.

    ``alpha`` None means twice ``r``, as in LLM2Vec.
    """
    config = LoraConfig(
        r=r,
        lora_alpha=2 * r if alpha is None else alpha,
        lora_dropout=dropout,
        target_modules=choose_targets(backbone, targets),
        bias="none",
        task_type="FEATURE_EXTRACTION",
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in backbone.modules()),
    )
    try:
        model = get_peft_model(backbone, config, autocast_adapter_dtype=True)
    except (ValueError, NotImplementedError) as error:
        if "lora_dropout" in str(error):  # experts are parameters, not layers that something could stand before
            remedy = "adapters of this model's experts cannot have dropout; give lora_dropout = 0"
            raise UserError(f"lora_dropout = {dropout}: {remedy} ({first_line(error)})") from error
        raise UserError(f"lora_target_modules: {first_line(error)}") from error
    if not torch.cuda.is_available():  # measured on CPUs only; GPUs fuse dropout anyway
        drop_sparsely(model)
    return model


def load_adapter(
    backbone: PreTrainedModel,
    folder: str | Path,
    *,
    merge: bool = True,
    cache_dir: str | None = None,
) -> PreTrainedModel:
    """Load a LoRA, whether it was trained on the backbone or on the causal language model around it.

    Parameters
    ----------
    backbone
        The model without head that the adapter belongs to.
    folder
        A folder in peft's format, a run folder of ours, or a hub id, which may end in ``@revision``.
    merge
        Add it to the weights; else it stays beside them, on top of those that were loaded before, and can be saved
        or taken off again with peft.
    cache_dir
        Where downloads from the hub are kept.

    Returns
    -------
    PreTrainedModel
        The backbone, changed.

    Raises
    ------
    UserError
        No adapter there, or one whose weights do not fit this model; an adapter that changes nothing.
    """
    place = str(Path(folder) / "adapter" if (Path(folder) / "run.json").exists() else folder)
    name, revision = split_revision(place)
    try:
        where: dict[str, Any] = {} if Path(place).is_dir() else {"revision": revision, "cache_dir": cache_dir}
        config = LoraConfig.from_pretrained(name, **where)
        weights = load_peft_weights(name, device="cpu", **where)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"adapters: {place} cannot be opened: {first_line(error)}") from error
    config.task_type = "FEATURE_EXTRACTION"
    weights = {name.removeprefix("base_model.model."): tensor for name, tensor in weights.items()}
    weights = _fit_names(backbone, config, weights, place)
    before = len(getattr(backbone, "peft_config", {}))
    try:
        tuner = LoraModel(backbone, config, f"adapter_{before}")
        result: Any = set_peft_model_state_dict(backbone, weights, adapter_name=f"adapter_{before}")
    except (ValueError, RuntimeError) as error:
        raise UserError(f"adapters: {place} does not fit the model: {first_line(error)}") from error
    lacking = [name for name in result.missing_keys if "lora_" in name and f"adapter_{before}" in name]
    if lacking or result.unexpected_keys:
        raise UserError(f"adapters: {place} does not fit the model: {[*result.unexpected_keys, *lacking][0]}")
    if not any(bool(tensor.any()) for name, tensor in weights.items() if "lora_B" in name):
        raise UserError(f"adapters: {place} changes nothing (its B matrices are zero): it was not trained")
    if merge:
        _merge_layers(backbone)
        tuner.unload()
        vars(backbone).pop("peft_config", None)
    else:
        for layer in backbone.modules():
            if isinstance(layer, BaseTunerLayer):
                layer.set_adapter([f"adapter_{number}" for number in range(before + 1)])
        backbone.requires_grad_(False).eval()
    return backbone


def _fit_names(
    backbone: PreTrainedModel, config: LoraConfig, weights: dict[str, torch.Tensor], place: str
) -> dict[str, torch.Tensor]:
    """Give weights and settings of an adapter the backbone's names, if it was trained on the causal model around it.

    Settings name modules in part, or by patterns of whole names: what that meant in training is resolved.
    """
    prefix = f"{backbone.base_model_prefix}."
    paths = {name for name, _ in backbone.named_modules()}
    adapted = {name.partition(".lora_")[0] for name in weights if ".lora_" in name}
    if adapted & paths or not any(name.startswith(prefix) for name in adapted):
        return weights
    config.target_modules = [path for path in paths if check_target_module_exists(config, prefix + path)]
    config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
    config.modules_to_save = [name.removeprefix(prefix) for name in config.modules_to_save or ()] or None
    for key in ("rank_pattern", "alpha_pattern"):
        given = getattr(config, key)
        found = {path: get_pattern_key(given, prefix + path) for path in paths}
        setattr(config, key, {re.escape(path): given[name] for path, name in found.items() if name in given})
    head = sorted(name for name in weights if not name.startswith(prefix))
    if head:
        logger.warning("adapters: %s also changes what an encoder does not have; left out: %s", place, head[0])
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def count_parameters(model: nn.Module, *others: nn.Parameter) -> tuple[int, int]:
    """Count (trainable, all) parameters over the whole model and ``others`` (the head), tied ones once."""
    parameters = {id(parameter): parameter for parameter in [*model.parameters(), *others]}.values()
    return (
        sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        sum(parameter.numel() for parameter in parameters),
    )


@torch.no_grad()
def merge_adapter(model: PeftModel, probe: dict[str, torch.Tensor]) -> tuple[PreTrainedModel, float]:
    """Merge the adapter into the weights: layer by layer in fp32, cast last.

    Parameters
    ----------
    model
        The backbone with its adapter; it is used up.
    probe
        Inputs of a few real tokens, for the comparison of the states before and after.

    Returns
    -------
    merged
        The plain backbone.
    cosine
        The lowest cosine between states of the unmerged and of the merged model.

    Raises
    ------
    UserError
        The merged model is another model (cosine under 0.99), or the adapter changes nothing.
    """
    model.eval()
    before = model(**probe, use_cache=False).last_hidden_state.float()
    with model.disable_adapter():
        bare = model(**probe, use_cache=False).last_hidden_state.float()
    if torch.equal(before, bare):
        logger.warning("the adapter changes nothing: it was not trained, or its learning rate was 0")
    _merge_layers(model)
    merged = model.unload()
    after = merged(**probe, use_cache=False).last_hidden_state.float()
    cosine = nn.functional.cosine_similarity(before, after, dim=-1).min().item()
    if cosine < 0.99:
        raise UserError(
            f"the merged model differs from the adapted one (cosine {cosine:.4f}): keep it with save_merged=never"
        )
    return merged, cosine


def _merge_layers(model: nn.Module) -> None:
    """Add each adapter to its layer's weight in fp32, and cast the sum to what the weight was."""
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            weights = list(layer.get_base_layer().parameters(recurse=False))
            dtypes = [weight.dtype for weight in weights]
            for weight in weights:
                weight.data = weight.data.float()
            layer.merge()
            for weight, dtype in zip(weights, dtypes, strict=True):
                weight.data = weight.data.to(dtype)
