"""Batches side by side on a CPU: one for each thread, where torch would set all its threads to each product of one.

Threads that share a product wait for each other at its end, hundreds of times a batch: a tenth of the time on a quiet
machine, two thirds on one where something else runs (docs/decisions.md).
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from turncoder.budget import count_token_bytes, free_memory

__all__ = ["StateWatch", "count_lanes", "run_batches", "share_threads"]

MOST_PRODUCTS = 1 << 38  # weights times tokens of a batch: some ten seconds of a thread
Batch = TypeVar("Batch")
Result = TypeVar("Result")


def count_lanes(
    model: PreTrainedModel | None, device: torch.device, tokens: int, longest: int | None, states: int = 12
) -> int:
    """Count the batches that may go side by side: a thread each, as many as a quarter of the free memory holds.

    One on a GPU, and where a thread alone would take long with a batch: products of large models are worth sharing, and
    who interrupts waits for what has begun.

    Parameters
    ----------
    model
        What reads them; None for something that is no transformer.
    device
        That it is on.
    tokens
        Of the longest batch.
    longest, states
        As for `turncoder.budget.count_token_bytes`.
    """
    if device.type != "cpu" or (model is not None and tokens * _count_weights(model) > MOST_PRODUCTS):
        return 1
    threads = torch.get_num_threads()
    bytes_each = tokens * count_token_bytes(model, longest, states)
    return max(1, min(threads, int(free_memory(device) / 4 / bytes_each)) if bytes_each else threads)


def _count_weights(model: PreTrainedModel) -> int:
    """Count the weights that every token is multiplied with."""
    table = model.get_input_embeddings()
    return sum(weight.numel() for weight in model.parameters()) - sum(one.numel() for one in table.parameters())


def run_batches(
    module: nn.Module, run: Callable[[Batch], Result], batches: Sequence[Batch], lanes: int
) -> Iterator[Result]:
    """Give what ``run`` makes of each batch, in their order; side by side where nothing in the module changes by it.

    The first goes alone, to find that out.

    Parameters
    ----------
    module
        That ``run`` calls.
    run
        Called by threads other than this one.
    batches
        The longest first.
    lanes
        From `count_lanes`.
    """
    # Also a single batch goes to one thread: shared products round otherwise. Autocast is a thread's own
    if lanes > 1 and batches and not torch.is_autocast_enabled("cpu") and not _follows_length(module):
        with share_threads(lanes) as pool:
            for _ in range(2):  # the first pass may leave what all others find
                watch = StateWatch(module)
                yield from pool.map(run, batches[:1])
                batches = batches[1:]
                if not batches or not watch.has_changed():
                    yield from pool.map(run, batches)
                    return
    yield from map(run, batches)


def _follows_length(module: nn.Module) -> bool:
    """Return whether there are rotary embeddings that change with the length of the text (longrope, dynamic)."""
    kinds = [str(getattr(one, "rope_type", "")) for one in module.modules()]
    return any(name in kind for kind in kinds for name in ("longrope", "dynamic"))


@contextmanager
def share_threads(lanes: int) -> Iterator[Executor]:
    """Give so many threads that have torch's threads shared out among them."""
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(lanes, initializer=torch.set_num_threads, initargs=(threads // lanes,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)  # what a thread sets for itself is the default of those made later


class StateWatch:
    """Notices what a forward pass leaves in the modules; two passes at once would read each other's.

    Recurrent models are such, and perhaps code from the hub.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.before = self._read()

    def _read(self) -> dict[tuple[str, str], tuple[Any, Any]]:
        """List what each module holds, and for tensors how often they were written to."""
        return {
            (path, name): (value, _count_writes(value))
            for path, one in self.module.named_modules()
            for held in (vars(one), one._buffers, one._parameters)
            for name, value in held.items()
        }

    def has_changed(self) -> bool:
        """Return whether a module holds something else than at the beginning."""
        after = self._read()
        if after.keys() != self.before.keys():
            return True
        pairs = ((self.before[key], now) for key, now in after.items())
        return any(value is not kept or count != writes for (kept, writes), (value, count) in pairs)


def _count_writes(value: Any) -> int | None:
    """Give how often a tensor was written to; those made in inference mode do not tell, and are new themselves."""
    return value._version if isinstance(value, torch.Tensor) and not value.is_inference() else None
