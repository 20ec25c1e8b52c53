"""Encoders at work: in a thread of this process, or in processes that each have a model and a device of their own."""

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from turncoder.budget import free_memory
from turncoder.config.encoding import EncodeConfig
from turncoder.data.tokenizer import digest_tokenizer
from turncoder.encode.encoder import open_encoder
from turncoder.encode.texts import BatchEncoder, Counts
from turncoder.model.backbone import describe_model, digest_module

__all__ = ["Workers", "count_gpus", "digest_encoder", "open_batches"]

_worker: BatchEncoder | None = None
_device: str | None = None


class Workers:
    """A thread of this process, or processes that each have the model on a device of their own."""

    def __init__(self, config: EncodeConfig) -> None:
        gpus = count_gpus(config)
        self.count = config.processes or max(1, gpus)
        devices = [f"cuda:{number}" for number in range(gpus)] if gpus > 1 else [config.device]
        global _worker, _device
        _worker, _device = None, devices[0]
        if self.count == 1:
            self.pool: Executor = ThreadPoolExecutor(1)
            return
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        number = context.Value("i", 0)
        self.pool = ProcessPoolExecutor(
            self.count,
            mp_context=context,
            initializer=_adopt,  # type: ignore[arg-type]
            initargs=(number, devices, self.count),  # type: ignore[arg-type]
        )

    def __enter__(self) -> "Workers":
        return self

    def describe(self, spec: dict[str, Any]) -> dict[str, Any]:
        """Open the encoder in one of them, and say what it is."""
        return self.pool.submit(_describe, spec).result()

    def submit(self, spec: dict[str, Any], texts: list[str]) -> "Future[tuple[np.ndarray, Counts]]":
        """Have texts encoded."""
        return self.pool.submit(_encode, spec, texts)

    def report_to(self, listener: Callable[[int], None]) -> None:
        """Have every batch told of, where the one worker is a thread of this process."""
        if _worker is not None:
            _worker.report = listener

    def __exit__(self, kind: Any, *error: Any) -> None:
        if kind is not None and _worker is not None:
            _worker.stopped = True  # else the shard at hand is waited for
        if kind is not None and isinstance(self.pool, ProcessPoolExecutor):
            for process in list((self.pool._processes or {}).values()):
                process.terminate()
        self.pool.shutdown(wait=True, cancel_futures=True)


def count_gpus(config: EncodeConfig) -> int:
    """Count the GPUs that are to be used."""
    return torch.cuda.device_count() if config.device in (None, "cuda") else 0


def open_batches(config: EncodeConfig, device: str | None, batch_tokens: int | None) -> BatchEncoder:
    """Open the encoder of a job; raises UserError as `load_encoder` and `BatchEncoder`."""
    return BatchEncoder(
        open_encoder(config, device=device),
        prompt=config.prompt,
        prompt_name=config.prompt_name,
        batch_tokens=batch_tokens,
        normalize=config.normalize,
    )


def _adopt(number: Any, devices: list[str | None], count: int) -> None:
    """Take a device, and in turn a share of the processor's threads."""
    global _device
    with number.get_lock():
        _device = devices[number.value % len(devices)]
        number.value += 1
    torch.set_num_threads(max(1, torch.get_num_threads() // count))
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _leave_with(parent: Any) -> None:
    """End when the process that writes has ended, killed perhaps: nobody would take the vectors."""
    parent.join()
    os._exit(1)


def _open(spec: dict[str, Any]) -> BatchEncoder:
    global _worker
    if _worker is None:
        _worker = open_batches(spec["config"], _device, spec["batch_tokens"])
    return _worker


def _encode(spec: dict[str, Any], texts: list[str]) -> tuple[np.ndarray, Counts]:
    return _open(spec).encode(texts)


def _describe(spec: dict[str, Any]) -> dict[str, Any]:
    """Open the encoder and say what it is; in half precision also what that costs."""
    batches = _open(spec)
    first, _ = batches.encode(spec["sample"] or ("a",))
    dtype = batches.encoder.dtype
    return {
        "notice": _compare(batches, first, spec, str(dtype).removeprefix("torch."))
        if dtype not in (torch.float32, None)
        else None,
        "fingerprint": digest_encoder(batches),
        "dimension": first.shape[1] if len(first) else batches.width,
        "batch_tokens": batches.batch_tokens,
        "max_seq_length": batches.limit,
    }


def _compare(batches: BatchEncoder, half_ND: np.ndarray, spec: dict[str, Any], name: str) -> str:
    """Say how far the vectors of a sample are from float32's, where a second model fits beside the first."""
    size = 4 * sum(parameter.numel() for parameter in batches.encoder.parameters())
    if size > 0.8 * free_memory(batches.encoder.device):
        return f"{name}: not compared to float32, whose model does not fit into memory beside this one"
    whole = BatchEncoder(
        open_encoder(spec["config"], device=_device, dtype="float32"),
        prompt=batches.prompt,
        batch_tokens=batches.batch_tokens,
        normalize=batches.normalize,
    )
    full_ND, _ = whole.encode(spec["sample"] or ("a",))
    lengths_N = np.linalg.norm(full_ND, axis=1) * np.linalg.norm(half_ND, axis=1)
    cosine_N = (full_ND * half_ND).sum(1) / np.maximum(lengths_N, 1e-12)
    off_N = np.linalg.norm(full_ND - half_ND, axis=1) / np.maximum(np.linalg.norm(full_ND, axis=1), 1e-12)
    return (
        f"{name} against float32 on {len(cosine_N)} texts: lowest cosine {cosine_N.min():.5f}, largest difference "
        f"{off_N.max():.2g} of a vector's length"
    )


def digest_encoder(batches: BatchEncoder) -> str:
    """Hash all that vectors depend on: settings of every module, tokenizer, prompt, limit, and the weights."""
    encoder = batches.encoder
    settings: list[Any] = [[type(module).__name__, getattr(module, "get_config_dict", dict)()] for module in encoder]
    model = encoder.transformers_model
    if isinstance(model, PreTrainedModel):
        settings.append(describe_model(model))
    settings.append(["text", [batches.prompt, batches.limit, encoder.truncate_dim]])
    if batches.backend is not None:
        settings.append(["tokenizer", digest_tokenizer(encoder.tokenizer)])
    return digest_module(encoder, settings)
