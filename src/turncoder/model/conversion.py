"""Switch a decoder's attention from causal to bidirectional, in place.

``config.is_causal = False`` is the conversion (transformers >= 5.2); it is saved in ``config.json``. Some classes need
more, which is not saved: flags of modules, triangles kept in buffers, mask factories that know no other direction.
None of it depends on which class it is, except that Gemma 3 and 4 have a key of their own.
"""

import contextlib
import copy
import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from turncoder.model.influence import backbone_of

__all__ = ["REPAIRS", "causal_config", "causal_masks", "convert", "is_converted", "key_of"]

# The window that their key implies is halved when a configuration is constructed, and doubled when it is saved.
# (The multimodal Gemma 3 makes its masks without looking at it.)
OWN_KEYS = {"gemma3_text": True} | dict.fromkeys(
    ("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text"), "all"
)
REPAIRS = ("flags", "buffers", "masks")
FACTORIES = ("create_causal_mask", "create_sliding_window_causal_mask", "create_chunked_causal_mask")


def convert(model: PreTrainedModel, repairs: tuple[str, ...] = REPAIRS) -> None:
    """Switch a model to bidirectional attention: the key of its configuration, and the repairs that are named."""
    backbone = backbone_of(model)
    for config in {id(config): config for config in (model.config, backbone.config)}.values():
        set_key(config, backbone)
    if "flags" in repairs:
        clear_flags(backbone)
    if "buffers" in repairs:
        open_buffers(backbone)
    if "masks" in repairs:
        wrap_factories(backbone)


def key_of(config: PreTrainedConfig) -> str:
    """Return the key that converts a configuration, as one would write it."""
    own = OWN_KEYS.get(config.model_type)
    return "config.is_causal = False" if own is None else f"config.use_bidirectional_attention = {own!r}"


def set_key(config: PreTrainedConfig, backbone: nn.Module) -> None:
    """Set the key in a configuration and in that of its text model."""
    text = config.get_text_config(decoder=True)
    value = OWN_KEYS.get(config.model_type)
    if value is None:
        config.is_causal = text.is_causal = False
        return
    if text.use_bidirectional_attention != value:
        before, text.sliding_window = text.sliding_window, text.sliding_window // 2 + 1
        text.use_bidirectional_attention = value
        for module in backbone.modules():
            if getattr(module, "sliding_window", None) == before:
                module.sliding_window = text.sliding_window
    if value == "all":
        text.is_causal = False
    clear_flags(backbone)  # which these classes set from the key when they are constructed


def is_converted(config: PreTrainedConfig) -> bool:
    """Return whether a configuration says bidirectional."""
    text = config.get_text_config(decoder=True)
    own = OWN_KEYS.get(config.model_type)
    return getattr(text, "is_causal", None) is False or (own is not None and text.use_bidirectional_attention == own)


def causal_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return a copy of a configuration as it was before the conversion."""
    config = copy.deepcopy(config)
    text = config.get_text_config(decoder=True)
    own = OWN_KEYS.get(config.model_type)
    if own is not None and text.use_bidirectional_attention == own:
        text.sliding_window = text.to_dict()["sliding_window"]  # which undoes the halving
        text.use_bidirectional_attention = None if own == "all" else False
    for part in (config, text):
        vars(part).pop("is_causal", None)
    return config


def clear_flags(backbone: nn.Module) -> None:
    """Set every module's own ``is_causal`` to False: some classes give the kernel this one, not the configuration's."""
    for module in backbone.modules():
        if getattr(module, "is_causal", None) is True:
            vars(module)["is_causal"] = False


def open_buffers(backbone: nn.Module) -> None:
    """Mirror the triangles (and bands) that some classes keep as square buffers [1, 1, N, N] of the name ``bias``."""
    for module in backbone.modules():
        triangle = module._buffers.get("bias")
        if triangle is not None and triangle.ndim == 4 and triangle.shape[-1] == triangle.shape[-2]:
            module._buffers["bias"] = torch.maximum(triangle, triangle.mT)


def wrap_factories(backbone: nn.Module) -> None:
    """Wrap the mask factories in the namespace of a model's own module; they do as before for causal configurations."""
    for module in {sys.modules[type(part).__module__] for part in backbone.modules()}:
        for name in FACTORIES:
            original = getattr(module, name, None)
            if original is not None and not hasattr(original, "causal_original"):
                setattr(module, name, open_factory(original))


@contextlib.contextmanager
def causal_masks(backbone: nn.Module) -> Iterator[None]:
    """Put the mask factories of a model's module back as transformers has them, for a while."""
    wrapped: list[tuple[ModuleType, str, Any]] = []
    for module in {sys.modules[type(part).__module__] for part in backbone.modules()}:
        for name in FACTORIES:
            factory: Any = getattr(module, name, None)
            if hasattr(factory, "causal_original"):
                wrapped.append((module, name, factory))
                setattr(module, name, factory.causal_original)
    try:
        yield
    finally:
        for module, name, factory in wrapped:
            setattr(module, name, factory)


def open_factory(original: Callable) -> Callable:
    """Return a mask factory that opens chunks to both sides, and in eager attention never leaves the mask out."""
    signature = inspect.signature(original)

    @functools.wraps(original)
    def factory(*args: Any, **kwargs: Any) -> Any:
        mask_BHLL = original(*args, **kwargs)
        given = signature.bind(*args, **kwargs).arguments
        config, padding_BL = given["config"], given["attention_mask"]
        if getattr(config, "is_causal", True) or (isinstance(padding_BL, torch.Tensor) and padding_BL.ndim == 4):
            return mask_BHLL
        if original.__name__ == "create_chunked_causal_mask" and isinstance(mask_BHLL, torch.Tensor):
            return mirror(mask_BHLL, padding_BL)
        if mask_BHLL is None and config._attn_implementation == "eager":
            embeddings_BLD = given["inputs_embeds"]
            rows, length = embeddings_BLD.shape[:2]
            return embeddings_BLD.new_zeros(rows, 1, length, length)
        return mask_BHLL

    factory.causal_original = original  # type: ignore[attr-defined]
    return factory


def mirror(mask_BHLL: torch.Tensor, padding_BL: torch.Tensor | None) -> torch.Tensor:
    """Let a token see those that see it, as long as they are no padding; boolean and additive masks alike."""
    seen_BHLL = mask_BHLL if mask_BHLL.dtype == torch.bool else mask_BHLL == 0
    both_BHLL = seen_BHLL | seen_BHLL.mT
    if padding_BL is not None:
        both_BHLL = both_BHLL & (padding_BL[:, None, None, :].bool() | seen_BHLL)
    if mask_BHLL.dtype == torch.bool:
        return both_BHLL
    return torch.zeros_like(mask_BHLL).masked_fill(~both_BHLL, torch.finfo(mask_BHLL.dtype).min)
