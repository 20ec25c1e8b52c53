"""Hard negatives: an encoder finds what it takes for near an anchor, and what is no positive of it becomes a negative.

The choice is that of sentence-transformers' `mine_hard_negatives`, the vectors are ours. In the names of tensors:
N texts, D width.
"""

import contextlib
import io
import json
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from sentence_transformers.util import mine_hard_negatives

from turncoder.config.encoding import MineConfig
from turncoder.data.files import names_file
from turncoder.data.pairs import open_pairs
from turncoder.data.rows import scan_rows
from turncoder.data.saved import is_saved
from turncoder.disk import replace_file
from turncoder.encode.encoder import open_encoder
from turncoder.encode.texts import BatchEncoder, open_sides
from turncoder.errors import UserError
from turncoder.progress import open_bar

__all__ = ["Candidates", "look_at_mine", "mine_file", "mine_rows"]

logger = logging.getLogger("turncoder")

OPTIONS = (
    "num_negatives", "range_min", "range_max", "max_score", "min_score", "absolute_margin", "relative_margin",
    "sampling_strategy", "use_faiss",
)  # fmt: skip
SCORES = 1 << 26  # similarities that are held at a time


@dataclass(frozen=True)
class Candidates:
    """What is mined.

    Attributes
    ----------
    pairs
        Anchors and positives, each pair once.
    corpus
        Distinct texts to choose negatives from, the positives among them.
    repeated
        Rows that were equal to one before.
    """

    pairs: list[tuple[str, str]]
    corpus: list[str]
    repeated: int = 0

    def own(self) -> dict[str, set[str]]:
        """Give what must not become a negative of each anchor: its positives and itself."""
        own: dict[str, set[str]] = {}
        for anchor, positive in self.pairs:
            own.setdefault(anchor, {anchor}).add(positive)
        return own


def mine_file(config: MineConfig) -> Path:
    """Write the pairs with hard negatives: ``anchor``, ``positive``, ``negative_1``, ..., as ``supervised`` reads them.

    Parameters
    ----------
    config
        See `turncoder.config.encoding.MineConfig`.

    Returns
    -------
    Path
        What was written.

    Raises
    ------
    UserError
        Something is wrong with the pairs, the model or the output; nothing was written then.
    """
    out, candidates = look_at_mine(config)
    query, document = open_sides(
        open_encoder(config, device=config.device), config.query_prompt, config.document_prompt, config.batch_tokens
    )
    rows = mine_rows(candidates, query, document, seed=config.seed, **{name: getattr(config, name) for name in OPTIONS})
    anchors, found = {anchor for anchor, _ in candidates.pairs}, {row["anchor"] for row in rows}
    if not rows:
        raise UserError(
            f"no anchor of {config.pairs_file} has num_negatives = {config.num_negatives} candidates within the "
            "limits; lower num_negatives or the margins, widen min_score, max_score or range_max, or add texts by "
            "--corpus_file"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(out) as partial:
        if out.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), partial)
        else:
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            partial.write_text("".join(lines), encoding="utf8")
    logger.info(
        "%s: %s of %s anchors got %s negatives each, from %s candidates; %s rows written, %s left out (%s had too few "
        "negatives, %s were repeated)",
        out,
        *(f"{number:,}" for number in (len(found), len(anchors), config.num_negatives, len(candidates.corpus))),
        *(f"{number:,}" for number in (len(rows), len(candidates.pairs) - len(rows) + candidates.repeated)),
        *(f"{number:,}" for number in (len(candidates.pairs) - len(rows), candidates.repeated)),
    )
    return out


def look_at_mine(config: MineConfig) -> tuple[Path, Candidates]:
    """Return where to, and the pairs and candidates; raises UserError where something is wrong with them."""
    out, source = Path(str(config.output_dir)), Path(str(config.pairs_file)).expanduser()
    if out.exists() and (out.is_dir() or not config.overwrite):
        remedy = "" if out.is_dir() else ", or use --overwrite to replace it"
        raise UserError(f"--output {out} exists; choose another name{remedy}")
    if source.is_dir() and not is_saved(source):
        raise UserError(f"PAIRS: {source} is a folder; mine takes one file of pairs at a time")
    if not source.exists() and names_file(str(config.pairs_file)):
        raise UserError(f"PAIRS: {source}: no such file; give a file of pairs, or a hub id")
    where: dict[str, Any] = {"file": str(source)} if source.is_file() else {"dataset_name": str(config.pairs_file)}
    if source.is_file() and config.dataset_config_name:
        raise UserError(f"dataset_config_name = {config.dataset_config_name!r}: {source} is no hub id; leave it out")
    [(rows, _)] = open_pairs(
        **where,
        dataset_config_name=config.dataset_config_name,
        cache_dir=config.cache_dir,
        columns=config.columns,
        key="PAIRS",
    )
    columns = {name: rows.data[name][:] for name in rows.data.column_names}
    pairs = list(dict.fromkeys(zip(columns["anchor"], columns["positive"], strict=True)))
    texts = [text for name, column in columns.items() if name != "anchor" for text in column]
    if config.corpus_file:
        texts += [
            text.strip()
            for text in scan_rows(config.corpus_file, cache_dir=config.cache_dir, key="--corpus_file").texts
        ]
    candidates = Candidates(pairs, [text for text in dict.fromkeys(texts) if text], len(rows) - len(pairs))
    _check_number(config, candidates)
    return out, candidates


def _check_number(config: MineConfig, candidates: Candidates) -> None:
    """Refuse what cannot work for any anchor."""
    corpus = set(candidates.corpus)
    most = max(len(corpus) - len(own & corpus) for own in candidates.own().values())
    wanted = config.range_min + config.num_negatives
    if most < wanted:
        raise UserError(
            f"num_negatives = {config.num_negatives} and range_min = {config.range_min}: an anchor has at most {most} "
            "candidates that are no positives of it; lower them, or add texts by --corpus_file"
        )


def mine_rows(
    candidates: Candidates, query: BatchEncoder, document: BatchEncoder, *, seed: int, **options: Any
) -> list[dict[str, str]]:
    """Find hard negatives: never a positive of the same anchor, and never the anchor itself.

    An anchor that is a candidate too counts as one of its own positives. A margin is measured from the furthest
    positive; that is another one than the anchor, unless two different prompts draw anchor and anchor apart.

    Parameters
    ----------
    candidates
        Pairs and corpus.
    query, document
        Encode anchors and candidates.
    seed
        Of what is drawn.
    **options
        Of `sentence_transformers.util.mine_hard_negatives`.

    Returns
    -------
    list of dict
        Rows in the order of the pairs; those without enough negatives are not among them.
    """
    corpus = set(candidates.corpus)
    itself = [(anchor, anchor) for anchor, _ in candidates.pairs if anchor in corpus]
    pairs = list(dict.fromkeys([*candidates.pairs, *itself]))
    data = Dataset.from_dict({"anchor": [one for one, _ in pairs], "positive": [other for _, other in pairs]})
    options.setdefault("use_faiss", False)
    if options["use_faiss"]:
        try:
            import faiss  # noqa: F401
        except ImportError as error:
            raise UserError("use_faiss: faiss is not installed; pip install faiss-cpu, or leave it out") from error
    before = random.getstate()
    random.seed(seed)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # its bars
            mined = mine_hard_negatives(
                data,
                _Vectors(query, document),  # type: ignore[arg-type]
                corpus=candidates.corpus,
                output_format="n-tuple",
                faiss_batch_size=max(1, min(16384, SCORES // len(corpus))),
                verbose=False,
                **options,
            )
    finally:
        random.setstate(before)
    found = {(row["anchor"], row["positive"]): row for row in mined.to_list()}
    return [found[pair] for pair in candidates.pairs if pair in found and pair[0] != pair[1]]


class _Vectors:
    """What `mine_hard_negatives` asks of a model."""

    def __init__(self, query: BatchEncoder, document: BatchEncoder) -> None:
        self.query, self.document = query, document
        encoder = query.encoder
        self.device, self.similarity, self.similarity_pairwise = "cpu", encoder.similarity, encoder.similarity_pairwise

    def get_embedding_dimension(self) -> int:
        return self.query.width

    def encode_query(self, texts: Sequence[str], **options: Any) -> np.ndarray:
        return _encode(self.query, texts, "anchors")

    def encode_document(self, texts: Sequence[str], **options: Any) -> np.ndarray:
        return _encode(self.document, texts, "candidates")


def _encode(batches: BatchEncoder, texts: Sequence[str], name: str) -> np.ndarray:
    """Encode with a bar."""
    with open_bar() as bar:
        task = bar.add_task(name, total=len(texts), speed="")
        batches.report = lambda count: bar.advance(task, count)
        return batches.encode(texts)[0]
