"""How many tokens go through a model together: as many as memory holds, and on CPUs no more than their caches do.

There a row also comes out the same to the last bit, whatever it is read with, if one thread runs its batch: products
are rounded by the columns that it is padded to, and by the rows of the batch only where those have few tokens, or no
multiple of four (docs/decisions.md).
"""

import ctypes
import math
from functools import cache

import numpy as np
import psutil
import torch
from transformers import PreTrainedModel

__all__ = [
    "CPU_TOKENS",
    "LEAST_TOKENS",
    "choose_batch_tokens",
    "count_fillers",
    "count_token_bytes",
    "free_memory",
    "keep_freed_memory",
    "pad_lengths",
    "pass_tokens",
]

CPU_TOKENS = 2048  # what keeps the activations of a layer in the processor's cache; measured, see docs/decisions.md
LEAST_TOKENS, TOKENS_MULTIPLE = 128, 4  # with 64 and fewer products round otherwise; measured, too
WIDTHS = np.array([0, *range(2, 32, 2), *range(32, 128, 8), *range(128, 1 << 16, 16)])
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


def pad_lengths(length_N: np.ndarray, limit: int) -> np.ndarray:
    """Give the columns that rows on a CPU are padded to: each length always to the same, a few tokens longer.

    Parameters
    ----------
    length_N
        Tokens of each row [N].
    limit
        The most that the model reads.
    """
    near_N = WIDTHS[np.minimum(np.searchsorted(WIDTHS, length_N), len(WIDTHS) - 1)]
    return np.maximum(length_N, np.minimum(near_N, limit))


def count_fillers(rows: int, width: int) -> int:
    """Count the rows that a batch lacks to have `LEAST_TOKENS` or more, padding included, in multiples of four."""
    step = TOKENS_MULTIPLE // math.gcd(width, TOKENS_MULTIPLE)
    return -(-max(rows, -(-LEAST_TOKENS // width)) // step) * step - rows


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
