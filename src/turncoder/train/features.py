"""What a frozen backbone makes of every word, computed once and kept on disk.

A word is read from the states of its own tokens (``same_token``), or from the states of the tokens before those
(``previous_token``: LLM2Vec's, where the state before a token is what predicts it); it is their mean, or the first of
them. Words are computed and written some megabytes at a time, so that memory does not grow with the corpus, and each
reading of each layer is a file of its own, so that one more layer does not cost those that are there.

In the names of tensors: M words, B rows of a batch, L positions, D width, N windows.
"""

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch.nn import functional
from transformers import PreTrainedModel

from turncoder.budget import LEAST_TOKENS, choose_batch_tokens, count_fillers, keep_freed_memory, pad_lengths
from turncoder.data.alignment import Alignment
from turncoder.data.batching import budget_batches
from turncoder.disk import replace_file
from turncoder.encode.encoder import check_finite
from turncoder.encode.lanes import count_lanes, run_batches
from turncoder.errors import UserError
from turncoder.model.backbone import describe_model, digest_module
from turncoder.model.influence import call_model
from turncoder.progress import NOTICE_SECONDS, open_bar

__all__ = ["LAST", "Features", "Reading", "compute_features", "read_states", "read_words"]

logger = logging.getLogger("turncoder")

Reading = Literal["same_token", "previous_token"]
Key = tuple[Reading, int]

FORMAT = 1
LAST = -1
SHARD_BYTES = 128 << 20
NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}


class Features:
    """States of words, mapped from disk: nothing is read before it is needed.

    Attributes
    ----------
    states
        For each (reading, layer) a tensor [M, D] of the model's own type.
    """

    def __init__(self, states: dict[Key, torch.Tensor]) -> None:
        self.states = states

    @property
    def num_words(self) -> int:
        """How many words M there are."""
        return next(iter(self.states.values())).shape[0]

    @property
    def width(self) -> int:
        """Width D of a state."""
        return next(iter(self.states.values())).shape[1]

    def close(self) -> None:
        """Let go of the files; tensors taken out before still hold theirs."""
        self.states.clear()


def compute_features(
    backbone: PreTrainedModel,
    alignment: Alignment,
    *,
    layers: Sequence[int],
    readings: Sequence[Reading],
    merge: bool,
    folder: Path,
    fingerprint: str = "",
    batch_tokens: int | None = None,
    pad_token_id: int,
) -> Features:
    """Compute the states of all words, or find those that an earlier call left.

    Parameters
    ----------
    backbone
        Gives hidden states; runs in evaluation mode, on its own device. Adapters may be on it.
    alignment
        From `turncoder.data.alignment.align_words`; at least one word.
    layers
        0 is the embeddings, n the n-th layer, -1 the ``last_hidden_state``.
    readings
        ``same_token``, ``previous_token`` or both: one pass gives all.
    merge
        A word is the mean of its tokens (computed in float32); else the first.
    folder
        Where features are kept, in a folder named by what they depend on: ``fingerprint``, the tokens of all windows,
        the words' places in them, ``merge``, the model's configuration and weights.
    fingerprint
        Of whatever else they depend on.
    batch_tokens
        Tokens of a batch, padding included; None finds it from the memory that is free.
    pad_token_id
        Fills short rows; nothing attends to it.

    Returns
    -------
    Features
        States in the order of the words.

    Raises
    ------
    UserError
        No such layer, states that are not finite, or too little memory.
    """
    assert len(alignment.word_window), "at least one word"
    home = folder / _digest(backbone, alignment, merge, fingerprint)
    words = len(alignment.word_window)
    paths = {(reading, layer): home / _name(reading, layer) for reading in readings for layer in layers}
    missing = {key: path for key, path in paths.items() if _read(path, words) is None}
    if missing:
        try:
            home.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{home}: features cannot be kept there ({error.strerror}); set TURNCODER_CACHE") from error
        pass_ = _Pass(backbone, alignment, list(missing), merge, batch_tokens, pad_token_id)
        _write(missing, pass_)
    states = {key: _read(path, words) for key, path in paths.items()}
    assert all(tensor is not None for tensor in states.values())
    return Features({key: tensor for key, tensor in states.items() if tensor is not None})


def read_states(
    backbone: PreTrainedModel,
    alignment: Alignment,
    *,
    layers: Sequence[int],
    readings: Sequence[Reading],
    merge: bool,
    batch_tokens: int | None = None,
    pad_token_id: int,
) -> Iterator[dict[Key, torch.Tensor]]:
    """Compute the states of all words without keeping them; parameters and errors as for `compute_features`.

    Yields
    ------
    dict
        For each (reading, layer) the states [M, D] of some words, which follow those before; it is emptied when the
        next is asked for.
    """
    keys = [(reading, layer) for reading in readings for layer in layers]
    with open_bar() as bar:
        yield from _Pass(backbone, alignment, keys, merge, batch_tokens, pad_token_id).shards(bar)


def read_words(
    hidden_BLD: torch.Tensor, row_M: np.ndarray, first_M: np.ndarray, last_M: np.ndarray, reading: Reading, merge: bool
) -> torch.Tensor:
    """Take the states of words [M, D] from those of their tokens.

    Parameters
    ----------
    hidden_BLD
        States of a batch.
    row_M, first_M, last_M
        The row of each word, and its tokens [first, last) there.
    reading
        From its own tokens, or from those before them; before the first token of a row there is nothing, and that one
        is read.
    merge
        Their mean, computed in float32 and given in the type of the states; else the first of them.
    """
    if reading == "previous_token":
        first_M, last_M = np.maximum(first_M - 1, 0), np.maximum(last_M - 1, 1)
    begin_M = row_M.astype(np.int64) * hidden_BLD.shape[1] + first_M
    states = hidden_BLD.flatten(0, 1)
    device = hidden_BLD.device
    if not merge:
        return states[torch.from_numpy(begin_M).to(device)]
    tokens_M = (last_M - first_M).astype(np.int64)
    after_M = np.cumsum(tokens_M)
    places = np.repeat(begin_M - (after_M - tokens_M), tokens_M) + np.arange(after_M[-1])
    bags = [torch.from_numpy(array).to(device) for array in (places, after_M - tokens_M)]
    exact = states.to(torch.promote_types(states.dtype, torch.float32))
    return functional.embedding_bag(bags[0], exact, bags[1], mode="mean").to(states.dtype)


class _Pass:
    """The pass over all windows: some words at a time, batches of like length, longest first."""

    def __init__(
        self,
        backbone: PreTrainedModel,
        alignment: Alignment,
        keys: list[Key],
        merge: bool,
        batch_tokens: int | None,
        pad_token_id: int,
    ) -> None:
        self.backbone, self.alignment, self.keys, self.merge = backbone, alignment, keys, merge
        self.pad_token_id = pad_token_id
        self.deep = any(layer != LAST for _, layer in keys)
        config = backbone.config.get_text_config()
        layers = config.num_hidden_layers + 1 if self.deep else 0
        self.length_N = alignment.lengths
        longest, states = int(self.length_N.max()), 16 + layers
        self.batch_tokens = batch_tokens or choose_batch_tokens(backbone, longest, states)
        most = max(self.batch_tokens, longest, LEAST_TOKENS)
        self.lanes = count_lanes(backbone, backbone.device, most, longest, states)
        self.evens = backbone.device.type == "cpu"
        self.width_N = pad_lengths(self.length_N, longest) if self.evens else self.length_N
        if self.evens:
            keep_freed_memory()
        numbers = np.arange(len(self.length_N) + 1)
        self.word_N = np.searchsorted(alignment.word_window, numbers)  # the first word of each window, and the end
        size = len(keys) * config.hidden_size * next(backbone.parameters()).element_size()
        shard_N = self.word_N[:-1] // max(1, SHARD_BYTES // size)
        self.cuts = [*np.flatnonzero(np.diff(shard_N, prepend=-1)), len(self.length_N)]

    def shards(self, bar: Any) -> Iterator[dict[Key, torch.Tensor]]:
        """Give the states [M, D] of words that follow one another, for each key."""
        task = bar.add_task("features", total=int(self.length_N.sum()), speed="")
        started = noticed = time.monotonic()
        done = 0
        for low, high in zip(self.cuts[:-1], self.cuts[1:], strict=True):
            begin, end = self.word_N[low], self.word_N[high]
            shard: dict[Key, torch.Tensor] = {}
            cut = budget_batches(self.width_N[low:high], self.batch_tokens, alike=self.evens)
            batches = [rows + low for rows in cut]
            found = run_batches(self.backbone, self.run, batches, self.lanes)
            for windows, (words_M, states) in zip(batches, found, strict=True):
                for key, states_MD in states.items():
                    if key not in shard:
                        shard[key] = torch.empty(end - begin, states_MD.shape[1], dtype=states_MD.dtype)
                    shard[key][torch.from_numpy(words_M - begin)] = states_MD.cpu()
                done += int(self.length_N[windows].sum())
                now = time.monotonic()
                speed = f"{done / max(now - started, 1e-9):,.0f} tokens/s"
                bar.update(task, completed=done, speed=speed)
                if bar.disable and now - noticed > NOTICE_SECONDS:
                    noticed = now
                    logger.info("features: %.0f %% of the tokens, %s", 100 * done / self.length_N.sum(), speed)
            yield shard
            shard.clear()  # before the next one takes as much

    @torch.inference_mode()
    def run(self, windows: np.ndarray) -> tuple[np.ndarray, dict[Key, torch.Tensor]]:
        """Read a batch of windows: give the numbers of their words, and the states of those."""
        alignment, device = self.alignment, self.backbone.device
        width = int(self.width_N[windows[0]])
        read_B = np.pad(windows, (0, count_fillers(len(windows), width) if self.evens else 0), mode="edge")
        length_B = self.length_N[read_B]
        ids_BL = torch.full((len(read_B), width), self.pad_token_id)
        mask_BL = torch.arange(width) < torch.from_numpy(length_B)[:, None]
        end_B = alignment.window_ends[read_B]
        own = [alignment.tokens[end - length : end] for end, length in zip(end_B, length_B, strict=True)]
        ids_BL[mask_BL] = torch.from_numpy(np.concatenate(own)).long()
        try:
            output = call_model(
                self.backbone,
                ids_BL.to(device),
                attention_mask=mask_BL.long().to(device),
                output_hidden_states=self.deep or None,
            )
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise UserError(
                f"out of memory with batch_tokens = {self.batch_tokens}: lower batch_tokens, or max_seq_length"
            ) from error
        count_B = self.word_N[windows + 1] - self.word_N[windows]
        row_M = np.repeat(np.arange(len(windows)), count_B)
        words_M = np.repeat(self.word_N[windows] - (np.cumsum(count_B) - count_B), count_B) + np.arange(count_B.sum())
        found = {}
        for reading, layer in self.keys:
            hidden_BLD = self._pick(output, layer)
            first_M, last_M = alignment.word_first[words_M], alignment.word_last[words_M]
            found[reading, layer] = read_words(hidden_BLD, row_M, first_M, last_M, reading, self.merge)
            check_finite(found[reading, layer], hidden_BLD.dtype)
        return words_M, found

    def _pick(self, output: Any, layer: int) -> torch.Tensor:
        if layer == LAST:
            return output.last_hidden_state if "last_hidden_state" in output else output[0]
        if not 0 <= layer < len(output.hidden_states):
            raise UserError(f"layer = {layer}: the model has layers 0 to {len(output.hidden_states) - 1}, and -1")
        return output.hidden_states[layer]


def _write(paths: dict[Key, Path], work: _Pass) -> None:
    """Write every file under another name, and rename them when all are whole."""
    streams: dict[Key, IO[bytes]] = {}
    with open_bar() as bar, ExitStack() as stack:
        partials = {key: stack.enter_context(replace_file(path)) for key, path in paths.items()}
        for shard in work.shards(bar):
            for key, states_MD in shard.items():
                if key not in streams:
                    streams[key] = stack.enter_context(partials[key].open("wb"))
                    shape = (len(work.alignment.word_window), states_MD.shape[1])
                    streams[key].write(_head(shape, states_MD.dtype))
                streams[key].write(states_MD.view(torch.uint8).numpy().data)


def _head(shape: tuple[int, int], dtype: torch.dtype) -> bytes:
    """Give what stands before the numbers in a safetensors file with one tensor, which is written a part at a time."""
    entry = {"dtype": NAMES[dtype], "shape": shape, "data_offsets": [0, shape[0] * shape[1] * dtype.itemsize]}
    text = json.dumps({"states": entry}).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _read(path: Path, words: int) -> torch.Tensor | None:
    """Map a file into memory; None where there is none that is whole: a power cut leaves names without content."""
    with suppress(OSError, SafetensorError):
        with safe_open(path, "pt") as file:
            states_MD = file.get_tensor("states")
        return states_MD if len(states_MD) == words else None
    return None


def _name(reading: Reading, layer: int) -> str:
    return f"{reading}-{'last' if layer == LAST else layer}.safetensors"


def _digest(backbone: PreTrainedModel, alignment: Alignment, merge: bool, fingerprint: str) -> str:
    """Hash all that features depend on but reading and layer."""
    scales = [[name, str(getattr(module, "scaling", ""))] for name, module in backbone.named_modules()]  # adapters'
    settings = [FORMAT, fingerprint, merge, describe_model(backbone), scales]
    for array in (alignment.tokens, alignment.window_ends, alignment.word_window):
        settings.append(hashlib.sha256(array.tobytes()).hexdigest())
    for array in (alignment.word_first, alignment.word_last):
        settings.append(hashlib.sha256(array.tobytes()).hexdigest())
    return digest_module(backbone, settings)[:32]
