"""Batches side by side on a CPU: one for each thread, where torch would set all its threads to each product of one.

Threads that share a product wait for each other at its end, hundreds of times a batch: a tenth of the time on a quiet
machine, two thirds on one where something else runs (docs/decisions.md).
"""

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import nn

from turncoder.budget import count_token_bytes, free_memory

__all__ = ["StateWatch", "count_lanes", "share_threads"]


def count_lanes(encoder: SentenceTransformer, batches: int, batch_tokens: int, longest: int | None) -> int:
    """Count the batches that go side by side: a thread each, as many as half of the free memory holds; 1 on a GPU.

    Parameters
    ----------
    encoder
        Whose memory is the question.
    batches
        That there are.
    batch_tokens
        Tokens of each.
    longest
        Tokens of the longest text.
    """
    if encoder.device.type != "cpu":
        return 1
    bytes_each = batch_tokens * count_token_bytes(encoder.transformers_model, longest)
    fit = int(free_memory(encoder.device) / 2 / bytes_each) if bytes_each else batches
    return max(1, min(torch.get_num_threads(), batches, fit))


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
