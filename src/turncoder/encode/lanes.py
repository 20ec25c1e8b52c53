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

Batch = TypeVar("Batch")
Result = TypeVar("Result")


def count_lanes(model: PreTrainedModel | None, device: torch.device, batch_tokens: int, longest: int | None) -> int:
    """Count the batches that go side by side: a thread each, as many as half of the free memory holds; 1 on a GPU.

    Parameters
    ----------
    model
        As for `turncoder.budget.count_token_bytes`.
    device
        That it is on.
    batch_tokens
        Tokens of a batch.
    longest
        Tokens of the longest row.
    """
    if device.type != "cpu":
        return 1
    bytes_each = batch_tokens * count_token_bytes(model, longest)
    threads = torch.get_num_threads()
    return max(1, min(threads, int(free_memory(device) / 2 / bytes_each)) if bytes_each else threads)


def run_batches(
    module: nn.Module, run: Callable[[Batch], Result], batches: Sequence[Batch], lanes: int
) -> Iterator[Result]:
    """Give what ``run`` makes of each batch, in their order; side by side where nothing in the module changes by it.

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
    lanes = min(lanes, len(batches) - 1)
    if lanes > 1:
        watch = StateWatch(module)
        yield run(batches[0])
        batches, lanes = batches[1:], 1 if watch.has_changed() else lanes
    if lanes <= 1:
        yield from map(run, batches)
        return
    with share_threads(lanes) as pool:
        yield from pool.map(run, batches)


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

    Rotary embeddings that grow with the text are such (longrope, dynamic), and perhaps code from the hub.
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
