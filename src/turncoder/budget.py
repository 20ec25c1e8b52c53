"""How many tokens go through a model together: as many as memory holds, and on CPUs no more than their caches do."""

import ctypes
from functools import cache

import psutil
import torch
from transformers import PreTrainedModel

__all__ = [
    "CPU_TOKENS",
    "choose_batch_tokens",
    "count_token_bytes",
    "free_memory",
    "keep_freed_memory",
    "pass_tokens",
]

CPU_TOKENS = 2048  # what keeps the activations of a layer in the processor's cache; measured, see docs/decisions.md
MOST_TOKENS = 1 << 18
DEVICE_TOKENS = 1 << 15  # of a pass in training


def pass_tokens(device: torch.device) -> int:
    """Give the tokens that go through the model together: on a CPU those that its cache can hold."""
    return CPU_TOKENS if device.type == "cpu" else DEVICE_TOKENS


def count_token_bytes(model: PreTrainedModel | None, longest: int | None, states: int = 12) -> int:
    """Estimate the memory of a token in a batch from the widths of the model; 0 where there is no transformer.

    Some states, the feed-forward and, for attention that keeps its scores, a row of them for each head.
    """
    if model is None:
        return 0
    config = model.config.get_text_config()
    width = getattr(config, "hidden_size", 1024)
    inner = getattr(config, "intermediate_size", None) or 4 * width
    size = next(model.parameters()).element_size()
    per_token = size * (states * width + 4 * inner)
    if config._attn_implementation == "eager":
        per_token += 3 * size * min(longest or 512, 8192) * getattr(config, "num_attention_heads", 16)
    return int(per_token)


def choose_batch_tokens(model: PreTrainedModel | None, longest: int | None, states: int = 12) -> int:
    """Choose how many tokens a batch has: all that half of the free memory allows, and on CPUs no more than is fast.

    Parameters
    ----------
    model
        What reads them; None for something that is no transformer.
    longest
        Tokens of the longest row.
    states
        How many states of a token are kept in memory at once.
    """
    per_token = count_token_bytes(model, longest, states)
    if model is None or not per_token:
        return CPU_TOKENS
    device = model.device
    most = int(free_memory(device) / 2 / per_token)
    if device.type == "cpu":
        most = min(most, CPU_TOKENS)
    return max(1, min(most, MOST_TOKENS))


@cache
def keep_freed_memory() -> None:
    """Tell glibc to keep what is freed instead of giving it back to the system, for the rest of the process.

    Activations of some megabytes are allocated and freed for every operation of a layer; given back each time, every
    page of them faults anew (300,000 faults against 7,000 for 2,000 texts). Other systems are left alone.
    """
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(trim_threshold, 256 << 20)
        libc.mallopt(mmap_threshold, 64 << 20)
    except (OSError, AttributeError):
        return


def free_memory(device: torch.device) -> int:
    """Return the bytes of a device's memory that can be had; of main memory, with what the system only caches."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
