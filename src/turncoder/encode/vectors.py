"""Files of texts to files of vectors: read in a stream, encoded a shard at a time, in one process or several.

A folder holds ``manifest.json``, a file per shard, ``vectors-00000.npy`` and so on (``.parquet`` with ids), and a row
for each of those in ``metrics.jsonl``. A shard is renamed to its name when it is whole: an interrupted job goes on with
those that are missing, and ends in the same bytes.
"""

import json
import logging
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from turncoder.config.encoding import EncodeConfig
from turncoder.config.stages import ACTIONS, differences, to_dict
from turncoder.data.rows import Rows, scan_rows
from turncoder.data.vectorfile import VectorFile, is_whole
from turncoder.disk import lock_output, write_atomically
from turncoder.encode.encoder import check_flags
from turncoder.encode.texts import SHARD_TEXTS, Counts
from turncoder.encode.workers import Workers
from turncoder.errors import UserError
from turncoder.progress import NOTICE_SECONDS, open_bar

__all__ = ["describe_job", "encode_file", "look_at_job", "look_at_output", "name_shards"]

logger = logging.getLogger("turncoder")

FORMAT = 1
METRICS = "metrics.jsonl"
PLACES = ACTIONS | {
    "alignment", "layer", "merge_subwords", "words",
    "batch_tokens", "cache_dir", "dataset_config_name", "input_file", "model_name_or_path", "model_revision",
    "output_dir", "processes", "split",
}  # fmt: skip
"""Settings that the vectors do not depend on, or that the manifest has otherwise."""
FILES = (".npz", ".pt", ".csv", ".tsv", ".json", ".jsonl", ".txt", ".h5", ".safetensors", ".gz")


def encode_file(config: EncodeConfig) -> Path:
    """Encode the texts of a file, a folder or a hub data set: one vector per row, in their order, or one per word.

    Parameters
    ----------
    config
        See `turncoder.config.encoding.EncodeConfig`.

    Returns
    -------
    Path
        What was written.

    Raises
    ------
    UserError
        Something is wrong with the model, the texts or the output; nothing was written then.
    """
    if config.words:
        from turncoder.encode.wordvectors import encode_words

        return encode_words(config)
    out, texts, manifest = look_at_job(config)
    spec = {
        "config": config,
        "sample": texts.sample,
        "batch_tokens": config.batch_tokens or manifest.get("batch_tokens"),
    }
    with ExitStack() as stack:
        workers = stack.enter_context(Workers(config))
        facts = workers.describe(spec)
        spec["batch_tokens"] = facts["batch_tokens"]
        now = describe_job(config, texts, facts, manifest, workers.count)
        if facts["notice"]:
            logger.info("%s", facts["notice"])
        logger.info("batches of up to %s tokens", f"{facts['batch_tokens']:,}")
        stack.enter_context(lock_output(out))
        encode_shards = _encode_to_folder if out.suffix not in (".npy", ".parquet") else _encode_to_file
        counts = encode_shards(out, now, texts, workers, spec)
    _say(out, texts, counts, facts["max_seq_length"])
    return out


def look_at_job(config: EncodeConfig) -> tuple[Path, Rows, dict[str, Any]]:
    """Return where to, the texts, read once, and the manifest of a job that is taken up; raises UserError."""
    out = Path(str(config.output_dir))
    check_flags(config.pooling, config.dtype, config.device, config.max_seq_length)
    manifest = look_at_output(out, config)
    texts = scan_rows(
        str(config.input_file),
        text_column=config.text_column,
        id_column=config.id_column,
        dataset_config_name=config.dataset_config_name,
        split=config.split,
        cache_dir=config.cache_dir,
    )
    return out, texts, manifest or {}


def describe_job(
    config: EncodeConfig, texts: Rows, facts: dict[str, Any], kept: dict[str, Any], processes: int
) -> dict[str, Any]:
    """Return the manifest: all that the vectors and their shards depend on.

    Raises
    ------
    UserError
        It is another one than the one ``kept``.
    """
    now = {
        "format": FORMAT,
        "model": facts["fingerprint"],
        "texts": texts.fingerprint,
        "rows": texts.count,
        "dimension": facts["dimension"],
        "batch_tokens": facts["batch_tokens"],
        **{name: value for name, value in to_dict(config).items() if name not in PLACES},
        "dtype": config.dtype or "float32",
        "shard_texts": config.shard_texts or kept.get("shard_texts") or _choose_shard(texts.count, processes),
    }
    if kept and (changed := differences(kept, now)):
        raise UserError(
            f"--output {config.output_dir} holds vectors of another job ({'; '.join(changed)}); "
            "restore that, choose another --output, or use --overwrite to start anew"
        )
    return now


def _choose_shard(rows: int, processes: int) -> int:
    """Choose a shard's texts: few enough that each process gets some shards, many enough that batches are full."""
    if processes == 1:
        return SHARD_TEXTS
    return min(SHARD_TEXTS, max(512, -(-rows // (4 * processes))))


def look_at_output(out: Path, config: EncodeConfig) -> dict[str, Any] | None:
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


def _clear(out: Path) -> None:
    """Remove the vectors of another job, and nothing else."""
    for pattern in ("manifest.*", "vectors-*", METRICS):
        for path in out.glob(pattern):
            path.unlink()


def _results(
    work: Iterator[tuple[int, list[str], list[str] | None]], workers: Workers, spec: dict[str, Any]
) -> Iterator[tuple[int, list[str] | None, np.ndarray, Counts]]:
    """Send shards to the pool, a few ahead, and give their vectors in order."""
    pending: deque[tuple[int, list[str] | None, Future[tuple[np.ndarray, Counts]]]] = deque()
    for number, texts, ids in work:
        pending.append((number, ids, workers.submit(spec, texts)))
        if len(pending) > workers.count:
            number, ids, future = pending.popleft()
            yield number, ids, *future.result()
    while pending:
        number, ids, future = pending.popleft()
        yield number, ids, *future.result()


class _Progress:
    """Texts per second and the time that is left, as a bar or as lines."""

    def __init__(self, rows: int, done: int, workers: Workers) -> None:
        self.bar = open_bar()
        self.task = self.bar.add_task("texts", total=rows, completed=done, speed="")
        self.rows, self.done, self.encoded, self.within = rows, done, 0, 0
        self.started = self.noticed = time.monotonic()
        workers.report_to(self.move)

    def advance(self, texts: int) -> None:
        """Count a shard that is written."""
        self.done += texts
        self.encoded += texts
        self.within = max(0, self.within - texts)  # of the next shard some batches may be done
        self.move(0)

    def move(self, texts: int) -> None:
        """Count a batch of the shard at hand."""
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
    out: Path, manifest: dict[str, Any], source: Rows, workers: Workers, spec: dict[str, Any]
) -> Counts:
    """Write the shards that are not there yet."""
    out.mkdir(parents=True, exist_ok=True)
    if spec["config"].overwrite:
        _clear(out)
    for path in out.glob("*.partial"):  # of a job that was killed
        path.unlink()
    if not (out / "manifest.json").exists():
        write_atomically(out / "manifest.json", json.dumps(manifest, indent=1) + "\n")
    size, names = manifest["shard_texts"], name_shards(out, manifest, source)
    rows = [min(size, source.count - number * size) for number in range(len(names))]
    there = [is_whole(name, count, manifest["dimension"]) for name, count in zip(names, rows, strict=True)]
    counts = Counts()
    done = sum(count for count, whole in zip(rows, there, strict=True) if whole)
    if done:
        logger.info("%s: resumes after %s of %s texts", out, _grouped(done), _grouped(source.count))
    progress = _Progress(source.count, done, workers)
    missing = ((number, texts, ids) for number, (texts, ids) in enumerate(source.shards(size)) if not there[number])
    with progress.bar:
        for number, ids, vectors, counted in _results(missing, workers, spec):
            with VectorFile(names[number], len(vectors), vectors.shape[1]) as file:
                file.append(None if ids is None else {"id": ids}, vectors)
            _log(out / METRICS, number, counted)
            counts.add(counted)
            progress.advance(len(vectors))
    return counts


def name_shards(out: Path, manifest: dict[str, Any], source: Rows) -> list[Path]:
    """Name the files of all shards."""
    ending = ".npy" if source.ids is None else ".parquet"
    return [out / f"vectors-{number:05d}{ending}" for number in range(-(-source.count // manifest["shard_texts"]))]


def _log(path: Path, shard: int, counts: Counts) -> None:
    """Add a row on a shard that was written."""
    names = ("texts", "distinct", "tokens", "padded", "truncated")
    row = {"shard": shard, **{name: getattr(counts, name) for name in names}, "seconds": round(counts.seconds, 3)}
    row["texts_per_second"] = round(counts.texts / max(counts.seconds, 1e-9), 1)
    with path.open("a", encoding="utf8") as stream:
        stream.write(json.dumps(row) + "\n")


def _encode_to_file(
    out: Path, manifest: dict[str, Any], source: Rows, workers: Workers, spec: dict[str, Any]
) -> Counts:
    """Write one file."""
    out.parent.mkdir(parents=True, exist_ok=True)
    counts = Counts()
    progress = _Progress(source.count, 0, workers)
    work = ((number, texts, ids) for number, (texts, ids) in enumerate(source.shards(manifest["shard_texts"])))
    try:
        with progress.bar, VectorFile(out, source.count, manifest["dimension"]) as file:
            for _, ids, vectors, counted in _results(work, workers, spec):
                file.append(None if ids is None else {"id": ids}, vectors)
                counts.add(counted)
                progress.advance(len(vectors))
    except KeyboardInterrupt:
        logger.warning("%s begins anew next time; --output with a folder goes on where it stopped", out)
        raise
    return counts


def _say(out: Path, source: Rows, counts: Counts, limit: int) -> None:
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
        told = "%s texts were longer than the limit and cut off (max_seq_length = %d)"
        logger.warning(told, _grouped(counts.truncated), limit)
    if counts.blank:
        logger.warning(
            "%s texts are empty or white space: their vectors are what the model makes of its special tokens, zero "
            "where it has none",
            _grouped(counts.blank),
        )
