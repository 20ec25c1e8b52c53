"""Files of texts to files of vectors: read in a stream, encoded a shard at a time, in one process or several.

A folder holds ``manifest.json`` and a file per shard, ``vectors-00000.npy`` and so on (``.parquet`` with ids). Each is
renamed to its name when it is whole: an interrupted job goes on with the shards that are missing, and ends in the same
bytes.
"""

import hashlib
import json
import logging
import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedModel

from turncoder.config import ACTIONS, EncodeConfig, differences, to_dict
from turncoder.data.rows import Rows, scan_rows
from turncoder.data.vectorfile import VectorFile, is_whole
from turncoder.encode import SHARD_TEXTS, BatchEncoder, Counts, free_memory
from turncoder.encoder import check_flags, load_encoder
from turncoder.errors import UserError
from turncoder.progress import NOTICE_SECONDS, open_bar

__all__ = ["encode_file"]

logger = logging.getLogger("turncoder")

FORMAT = 1
PLACES = ACTIONS | {"output_dir", "processes", "cache_dir", "batch_tokens", "model_revision"}
"""Settings that the vectors do not depend on, or that the manifest has otherwise."""
FILES = (".npz", ".pt", ".csv", ".tsv", ".json", ".jsonl", ".txt", ".h5", ".safetensors", ".gz")


def encode_file(model: str, source: str, config: EncodeConfig) -> Path:
    """Encode the texts of a file, a folder or a hub data set: one vector per row, in their order.

    Parameters
    ----------
    model
        As for `turncoder.load_encoder`.
    source
        Texts in any shape that training takes.
    config
        All the rest.

    Returns
    -------
    Path
        What was written.

    Raises
    ------
    UserError
        Something is wrong with the model, the texts or the output; nothing was written then.
    """
    assert config.output_dir is not None
    out = Path(config.output_dir)
    check_flags(config.pooling, config.dtype, config.device, config.max_seq_length)
    manifest = _look_at(out, config)
    texts = scan_rows(source, text_column=config.text_column, id_column=config.id_column, cache_dir=config.cache_dir)
    spec = {"model": model, "config": config, "sample": texts.sample, "batch_tokens": config.batch_tokens}
    if manifest is not None:
        spec["batch_tokens"] = config.batch_tokens or manifest["batch_tokens"]
    with ExitStack() as stack:
        pool, width = stack.enter_context(_start(config))
        facts = pool.submit(_describe, spec).result()
        spec["batch_tokens"] = facts["batch_tokens"]
        now = {
            "format": FORMAT,
            "model": facts["fingerprint"],
            "texts": texts.fingerprint,
            "rows": texts.count,
            "dimension": facts["dimension"],
            "batch_tokens": facts["batch_tokens"],
            **{name: value for name, value in to_dict(config).items() if name not in PLACES},
            "dtype": config.dtype or "float32",
            "shard_texts": config.shard_texts
            or (manifest or {}).get("shard_texts")
            or _choose_shard(texts.count, width),
        }
        if manifest is not None and (changed := differences(manifest, now)):
            raise UserError(
                f"--output {out} holds vectors of another job ({'; '.join(changed)}); "
                "restore that, choose another --output, or use --overwrite to start anew"
            )
        if facts["notice"]:
            logger.info("%s", facts["notice"])
        logger.info("batches of up to %s tokens", f"{facts['batch_tokens']:,}")
        stack.enter_context(_lock(out))
        encode_shards = _encode_to_folder if out.suffix not in (".npy", ".parquet") else _encode_to_file
        counts = encode_shards(out, now, texts, pool, width, spec)
    _say(out, texts, counts, config)
    return out


def _choose_shard(rows: int, processes: int) -> int:
    """Choose a shard's texts: few enough that each process gets some shards, many enough that batches are full."""
    if processes == 1:
        return SHARD_TEXTS
    return min(SHARD_TEXTS, max(512, -(-rows // (4 * processes))))


def _look_at(out: Path, config: EncodeConfig) -> dict[str, Any] | None:
    """Look at what is there already: nothing, the shards of a job that is taken up, or something else."""
    suffix = out.suffix.lower()
    if suffix in FILES or suffix != out.suffix:
        raise UserError(f"--output {out}: {out.suffix} is not written; give OUT.npy, OUT.parquet, or a folder")
    if any(parent.exists() and not parent.is_dir() for parent in out.parents):
        raise UserError(f"--output {out} lies in something that is no folder; choose another place")
    as_file = suffix in (".npy", ".parquet")
    if out.is_dir() and as_file:
        raise UserError(f"--output {out} is a folder; name a file, or a folder without .npy or .parquet in its name")
    if out.is_file() and not (config.overwrite and as_file):
        remedy = ", or use --overwrite to replace it" if as_file else ""
        raise UserError(f"--output {out} exists; choose another name{remedy}")
    if not out.is_dir() or not any(out.iterdir()):
        return None
    try:
        manifest = json.loads((out / "manifest.json").read_text(encoding="utf8"))
    except FileNotFoundError:
        manifest = None
    except ValueError as error:
        raise UserError(f"--output {out}: its manifest.json is broken; choose a new folder") from error
    if not isinstance(manifest, dict) or not {"format", "shard_texts", "batch_tokens", "dimension"} <= set(manifest):
        raise UserError(f"--output {out} is a folder with other things in it; choose a new one")
    return None if config.overwrite else manifest


@contextmanager
def _lock(out: Path) -> Iterator[None]:
    """Keep a second job out of a folder; what is killed leaves no lock behind."""
    path = out.with_name(f".{out.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path, timeout=0):
            yield
    except Timeout as error:
        raise UserError(
            f"--output {out}: another job is writing there; wait for it, or choose another place"
        ) from error
    path.unlink(missing_ok=True)


def _clear(out: Path) -> None:
    """Remove the vectors of another job, and nothing else."""
    for pattern in ("manifest.*", "vectors-*"):
        for path in out.glob(pattern):
            path.unlink()


# In a process that encodes ------------------------------------------------------------------------------------------

_worker: BatchEncoder | None = None
_device: str | None = None


class _start:
    """A thread of this process, or processes that each have the model on a device of their own."""

    def __init__(self, config: EncodeConfig) -> None:
        gpus = torch.cuda.device_count() if config.device in (None, "cuda") else 0
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

    def __enter__(self) -> tuple[Executor, int]:
        return self.pool, self.count

    def __exit__(self, kind: Any, *error: Any) -> None:
        if kind is not None and _worker is not None:
            _worker.stopped = True  # else the shard at hand is waited for
        if kind is not None and isinstance(self.pool, ProcessPoolExecutor):
            for process in list((self.pool._processes or {}).values()):
                process.terminate()
        self.pool.shutdown(wait=True, cancel_futures=True)


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
        config = spec["config"]
        _worker = BatchEncoder(
            _load(spec, config.dtype),
            prompt=config.prompt,
            prompt_name=config.prompt_name,
            batch_tokens=spec["batch_tokens"],
            normalize=config.normalize,
        )
    return _worker


def _load(spec: dict[str, Any], dtype: str | None) -> SentenceTransformer:
    config: EncodeConfig = spec["config"]
    return load_encoder(
        spec["model"],
        adapters=config.adapters,
        pooling=config.pooling,
        bidirectional=config.bidirectional,
        allow_partial=config.allow_partial,
        max_seq_length=config.max_seq_length,
        chat_template=config.chat_template,
        llm2vec=config.llm2vec,
        dtype=dtype,
        attn_implementation=config.attn_implementation,
        device=_device,
        revision=config.model_revision,
        cache_dir=config.cache_dir,
        trust_remote_code=config.trust_remote_code,
    )


def _encode(spec: dict[str, Any], texts: list[str]) -> tuple[np.ndarray, Counts]:
    return _open(spec).encode(texts)


def _describe(spec: dict[str, Any]) -> dict[str, Any]:
    """Open the encoder and say what it is; in half precision also what that costs."""
    batches = _open(spec)
    first, _ = batches.encode(spec["sample"] or ("a",))
    dtype = batches.encoder.dtype
    return {
        "notice": _compare(batches, first, spec, str(dtype)[6:]) if dtype not in (torch.float32, None) else None,
        "fingerprint": digest_encoder(batches),
        "dimension": first.shape[1] if len(first) else batches.width,
        "batch_tokens": batches.batch_tokens,
    }


def _compare(batches: BatchEncoder, half_ND: np.ndarray, spec: dict[str, Any], name: str) -> str:
    """Say how far the vectors of a sample are from float32's, where a second model fits beside the first."""
    size = 4 * sum(parameter.numel() for parameter in batches.encoder.parameters())
    on_gpu = batches.encoder.device.type == "cuda"
    free = torch.cuda.mem_get_info(batches.encoder.device)[0] if on_gpu else free_memory()
    if size > 0.8 * free:
        return f"{name}: not compared to float32, whose model does not fit into memory beside this one"
    whole = BatchEncoder(
        _load(spec, "float32"), prompt=batches.prompt, batch_tokens=batches.batch_tokens, normalize=batches.normalize
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
    """Hash all that vectors depend on: settings of every module, tokenizer, prompt, limit, and the weights.

    Of each weight up to 1024 values, evenly spread, stand for it: quick, and another for another model.
    """
    encoder = batches.encoder
    settings: list[Any] = [[type(module).__name__, getattr(module, "get_config_dict", dict)()] for module in encoder]
    model = encoder.transformers_model
    if isinstance(model, PreTrainedModel):
        unsaid = {"_name_or_path": None, "transformers_version": None}
        settings.append(["model", {**model.config.to_dict(), **unsaid}, model.config._attn_implementation])
    settings.append(["text", [batches.prompt, batches.limit, encoder.truncate_dim]])
    if batches.backend is not None:
        batches.backend.no_padding()
        batches.backend.no_truncation()
        settings.append(["tokenizer", batches.backend.to_str()])
    whole = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        values = flat[:: max(1, flat.numel() // 1024)].float().cpu().numpy()
        whole.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode() + values.tobytes())
    return whole.hexdigest()


# In the process that writes -----------------------------------------------------------------------------------------


def _results(
    work: Iterator[tuple[int, list[str], list[str] | None]], pool: Executor, width: int, spec: dict[str, Any]
) -> Iterator[tuple[int, list[str] | None, np.ndarray, Counts]]:
    """Send shards to the pool, a few ahead, and give their vectors in order."""
    pending: deque[tuple[int, list[str] | None, Future[tuple[np.ndarray, Counts]]]] = deque()
    for number, texts, ids in work:
        pending.append((number, ids, pool.submit(_encode, spec, texts)))
        if len(pending) > width:
            number, ids, future = pending.popleft()
            yield number, ids, *future.result()
    while pending:
        number, ids, future = pending.popleft()
        yield number, ids, *future.result()


class _Progress:
    """Texts per second and the time that is left, as a bar or as lines."""

    def __init__(self, rows: int, done: int) -> None:
        self.bar = open_bar()
        self.task = self.bar.add_task("texts", total=rows, completed=done, speed="")
        self.rows, self.done, self.encoded, self.within = rows, done, 0, 0
        self.started = self.noticed = time.monotonic()
        if _worker is not None:  # in this process: every batch can be told of
            _worker.report = self.move

    def advance(self, texts: int) -> None:
        """A shard is written."""
        self.done += texts
        self.encoded += texts
        self.within = 0
        self.move(0)

    def move(self, texts: int) -> None:
        """A batch of the shard at hand is done."""
        self.within += texts
        now = time.monotonic()
        encoded = self.encoded + self.within
        rate = max(encoded, 1) / max(now - self.started, 1e-9)
        self.bar.update(self.task, completed=self.done + self.within, speed=f"{rate:,.0f} texts/s")
        if self.bar.disable and now - self.noticed > NOTICE_SECONDS:
            self.noticed = now
            done = self.done + self.within
            left = max(self.rows - done, 0) / rate / 60
            logger.info("%s of %s texts, %s texts/s, %.1f min left", *map(_grouped, (done, self.rows, rate)), left)


def _grouped(number: float) -> str:
    return f"{number:,.0f}"


def _encode_to_folder(
    out: Path, manifest: dict[str, Any], source: Rows, pool: Executor, width: int, spec: dict[str, Any]
) -> Counts:
    """Write the shards that are not there yet."""
    out.mkdir(parents=True, exist_ok=True)
    if spec["config"].overwrite:
        _clear(out)
    for path in out.glob("*.partial"):  # of a job that was killed
        path.unlink()
    if not (out / "manifest.json").exists():
        partial = out / "manifest.partial"
        partial.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf8")
        partial.replace(out / "manifest.json")
    ending = ".npy" if source.ids is None else ".parquet"
    size = manifest["shard_texts"]
    shards = range(-(-source.count // size))
    names = [out / f"vectors-{number:05d}{ending}" for number in shards]
    there = [
        is_whole(name, min(size, source.count - number * size), manifest["dimension"])
        for number, name in enumerate(names)
    ]
    counts = Counts()
    done = sum(min(size, source.count - number * size) for number in shards if there[number])
    if done:
        logger.info("%s: goes on after %s of %s texts", out, _grouped(done), _grouped(source.count))
    progress = _Progress(source.count, done)
    missing = ((number, texts, ids) for number, (texts, ids) in enumerate(source.shards(size)) if not there[number])
    with progress.bar:
        for number, ids, vectors, counted in _results(missing, pool, width, spec):
            with VectorFile(names[number], len(vectors), vectors.shape[1]) as file:
                file.append(ids, vectors)
            counts.add(counted)
            progress.advance(len(vectors))
    return counts


def _encode_to_file(
    out: Path, manifest: dict[str, Any], source: Rows, pool: Executor, width: int, spec: dict[str, Any]
) -> Counts:
    """Write one file."""
    out.parent.mkdir(parents=True, exist_ok=True)
    counts = Counts()
    progress = _Progress(source.count, 0)
    work = ((number, texts, ids) for number, (texts, ids) in enumerate(source.shards(manifest["shard_texts"])))
    try:
        with progress.bar, VectorFile(out, source.count, manifest["dimension"]) as file:
            for _, ids, vectors, counted in _results(work, pool, width, spec):
                file.append(ids, vectors)
                counts.add(counted)
                progress.advance(len(vectors))
    except KeyboardInterrupt:
        logger.warning("%s begins anew next time; --output with a folder goes on where it stopped", out)
        raise
    return counts


def _say(out: Path, source: Rows, counts: Counts, config: EncodeConfig) -> None:
    padding = 1 - counts.tokens / counts.padded if counts.padded else 0.0
    logger.info(
        "%s: %s vectors; encoded now: %s texts, %s distinct, %s tokens, %.1f %% padding",
        out,
        _grouped(source.count),
        _grouped(counts.texts),
        _grouped(counts.distinct),
        _grouped(counts.tokens),
        100 * padding,
    )
    if counts.truncated:
        logger.warning("%s texts were longer than the limit and cut off (--max_seq_length)", _grouped(counts.truncated))
    if counts.blank:
        logger.warning(
            "%s texts are empty or white space: their vectors are what the model makes of its special tokens, zero "
            "where it has none",
            _grouped(counts.blank),
        )
