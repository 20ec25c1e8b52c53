"""A teacher's vectors of everything that is trained on, made once and mapped into memory from the cache.

In the names of tensors: N rows of a set, C columns (anchor, positive, negatives), U distinct texts, B rows of a batch,
D width of the teacher.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from sentence_transformers import SentenceTransformer

from turncoder.config.stages import SimcseConfig, SupervisedConfig
from turncoder.data.pairs import Rows, hash_rows
from turncoder.data.vectorfile import VectorFile, is_whole
from turncoder.disk import default_cache
from turncoder.encode.encoder import load_encoder
from turncoder.encode.texts import SHARD_TEXTS, BatchEncoder, open_sides
from turncoder.encode.workers import digest_encoder
from turncoder.errors import UserError
from turncoder.progress import open_bar
from turncoder.train.running import Run

__all__ = ["Lessons", "ask_teacher", "open_teacher"]

logger = logging.getLogger("turncoder")

DOCUMENTS = np.uint64(0x9E3779B97F4A7C15)  # tells a text as a document from the same as a query


@dataclass(frozen=True)
class Lessons:
    """What a teacher makes of the rows.

    Attributes
    ----------
    vectors_UD
        float32, of length 1.
    places
        For each set, int64 [C, N]: which of the vectors belongs to a text.
    """

    vectors_UD: np.ndarray
    places: list[np.ndarray]

    def __call__(self, number: int, rows: Sequence[int]) -> torch.Tensor:
        """Give the vectors [B, C, D] of rows of a set."""
        return torch.from_numpy(np.array(self.vectors_UD[self.places[number][:, list(rows)].T]))


def open_teacher(config: SimcseConfig | SupervisedConfig) -> SentenceTransformer | None:
    """Open the encoder that is learnt from, if there is one.

    Raises
    ------
    UserError
        It cannot be opened.
    """
    if isinstance(config, SimcseConfig) or config.teacher_name_or_path is None or not config.do_train:
        return None
    try:
        return load_encoder(
            config.teacher_name_or_path,
            allow_partial=config.allow_partial,
            cache_dir=config.cache_dir,
            trust_remote_code=config.trust_remote_code,
        )
    except UserError as error:
        raise UserError(f"teacher_name_or_path = {config.teacher_name_or_path!r}: {error}") from error


def ask_teacher(teacher: SentenceTransformer, sets: Sequence[Rows], run: Run) -> Lessons:
    """Have every distinct text of the sets encoded, unless that has been done; with the teacher's own prompts.

    Parameters
    ----------
    teacher
        Its prompts "query" and "document", or its default, stand before anchors and other texts.
    sets
        Rows to train on.
    run
        Keeps which teacher it is.

    Raises
    ------
    UserError
        A run is resumed, and the teacher is another one.
    """
    query, document = open_sides(teacher)
    digest = hashlib.sha256(f"{digest_encoder(query)} {digest_encoder(document)}".encode()).hexdigest()
    before = run.record.get("teacher", {}).get("digest", digest)
    if run.resume_from and before != digest:
        raise UserError(
            f"--output {run.folder} learnt from another teacher (its weights, tokenizer or prompts changed): restore "
            "it to resume, or use --overwrite to start anew"
        )
    tables = [hash_rows(rows).T.copy() for rows in sets]
    for table in tables:
        if query.prompt != document.prompt:
            table[1:] ^= DOCUMENTS
    flat = np.concatenate([table.ravel() for table in tables])
    _, first_U, inverse = np.unique(flat, return_index=True, return_inverse=True)
    order_U = np.argsort(first_U)  # as the texts come first
    place_U = np.empty_like(order_U)
    place_U[order_U] = np.arange(len(order_U))
    ends = np.cumsum([table.size for table in tables])[:-1]
    places = [part.reshape(table.shape) for part, table in zip(np.split(place_U[inverse], ends), tables, strict=True)]
    key = hashlib.sha256(digest.encode() + flat[first_U[order_U]].tobytes()).hexdigest()
    path = default_cache() / "teacher" / f"{key[:32]}.npy"
    with PartialState().main_process_first():
        if not is_whole(path, len(order_U), query.width):
            _write(path, query, document, sets, places)
    run.update(teacher={"digest": digest, "texts": len(order_U), "width": query.width})
    return Lessons(np.load(path, mmap_mode="r"), places)


def _write(
    path: Path, query: BatchEncoder, document: BatchEncoder, sets: Sequence[Rows], places: list[np.ndarray]
) -> None:
    """Encode texts in the order in which they come first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 1 + max(int(one.max()) for one in places)
    done = 0
    with open_bar() as bar, VectorFile(path, count, query.width) as file:
        task: Any = bar.add_task("the teacher's vectors", total=count, speed="")
        for rows, place_CN in zip(sets, places, strict=True):
            for name, place_N in zip(rows.data.column_names, place_CN, strict=True):
                found, first = np.unique(place_N, return_index=True)
                fresh = first[found >= done]  # places are numbered as they come, so these follow one another
                done += len(fresh)
                for start in range(0, len(fresh), SHARD_TEXTS):
                    texts = rows.data.select(fresh[start : start + SHARD_TEXTS])[name][:]
                    vectors_UD, _ = (query if name == "anchor" else document).encode(texts)
                    file.append(None, vectors_UD)
                    bar.advance(task, len(texts))
    logger.info("teacher: %s vectors of width %s", f"{count:,}", query.width)
