"""Texts in, vectors out: token-budget batches, longest first, each distinct text once.

A batch holds as many texts as fit into a number of tokens, padding included, so that short texts go by the hundred and
long ones a few at a time. A vector does not depend on its batch: on a CPU, where a thread alone runs each batch
(`turncoder.encode.lanes.count_lanes`), to the last bit.

In the names of tensors: N texts, U distinct ones, B texts of a batch, F that fill it, L tokens, D width.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from itertools import islice
from threading import Lock
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Pooling, Transformer
from sentence_transformers.util import batch_to_device, truncate_embeddings
from torch.nn import functional

from turncoder.budget import LEAST_TOKENS, choose_batch_tokens, count_fillers, keep_freed_memory, pad_lengths
from turncoder.data.batching import budget_batches
from turncoder.data.sentences import clean
from turncoder.encode.encoder import check_finite, find_template
from turncoder.encode.lanes import count_lanes, run_batches
from turncoder.encode.llm2vec import LLM2VecTransformer
from turncoder.errors import UserError
from turncoder.prompts import check_prompt

__all__ = ["BatchEncoder", "Counts", "encode_stream", "encode_texts", "open_sides"]

logger = logging.getLogger("turncoder")

SHARD_TEXTS = 16384
MEASURED_CHARACTERS = 1 << 20  # a text takes some twenty times its size while its tokens are counted


@dataclass
class Counts:
    """What was done: texts, and how many of them were distinct, cut off at the limit, or without any token or letter.

    Attributes
    ----------
    tokens, padded
        Tokens of the distinct texts, as the model reads them, and those and the padding beside them.
    seconds
        Spent on it.
    """

    texts: int = 0
    distinct: int = 0
    truncated: int = 0
    blank: int = 0
    tokens: int = 0
    padded: int = 0
    seconds: float = 0.0

    def add(self, other: "Counts") -> None:
        """Add up."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


class BatchEncoder:
    """An encoder with all that one way of encoding is made of.

    Parameters
    ----------
    encoder
        Any `SentenceTransformer` that reads texts.
    prompt
        Stands before each text; ``prompt_name`` names one that the encoder keeps.
    batch_tokens
        Tokens of a batch, padding included; None finds it from the memory that is free.
    normalize
        Give vectors the length 1.

    Attributes
    ----------
    cut
        Those of the texts encoded last that were longer than the limit.

    Raises
    ------
    UserError
        No such prompt, or a prompt that does not stay apart from the text.
    """

    def __init__(
        self,
        encoder: SentenceTransformer,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        batch_tokens: int | None = None,
        normalize: bool = False,
    ) -> None:
        if encoder.device.type == "cpu":
            keep_freed_memory()
        if batch_tokens is not None and batch_tokens < 1:
            raise UserError(f"batch_tokens = {batch_tokens} must be at least 1")
        self.encoder = encoder.eval()
        self.stopped = False  # by whoever has no use for the rest of a long list
        self.report: Callable[[int], None] = lambda texts: None  # told how many distinct texts a batch held
        self.cut: set[str] = set()
        self.prompt = self._find_prompt(prompt, prompt_name)
        self.normalize = normalize
        self.batch_tokens = batch_tokens or choose_batch_tokens(encoder.transformers_model, encoder.max_seq_length)
        self.limit = encoder.max_seq_length or 1 << 30
        module = encoder[0]
        tokenizer = module.tokenizer if isinstance(module, Transformer) else None
        self.backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        self.added = self._count_added() if self.backend is not None else 0
        self.evens = encoder.device.type == "cpu" and self.backend is not None
        self.prompt_ids = self._count_prompt() if self.prompt and _leaves_prompt_out(encoder) else []

    def _find_prompt(self, prompt: str | None, name: str | None) -> str | None:
        if prompt is not None and name is not None:
            raise UserError(f"--prompt and --prompt_name {name!r} are both given; keep one")
        prompts = self.encoder.prompts
        if name is not None and name not in prompts:
            known = ", ".join(prompts) or "none"
            raise UserError(f"prompt_name = {name!r} is not among the encoder's prompts; it has {known}")
        return prompt if prompt is not None else prompts.get(name or self.encoder.default_prompt_name or "")

    def _count_prompt(self) -> list[int]:
        """Give the tokens that pooling leaves out."""
        if find_template(self.encoder):
            raise UserError("--prompt: a chat template cannot leave a prompt out of the pooling; keep one of the two")
        return check_prompt(self.encoder.tokenizer, self.prompt or "", [], self.limit)

    def _count_added(self) -> int:
        """Count the tokens that the encoder puts around a text besides prompt and special tokens: a template's."""
        ids = self.encoder.preprocess(["a"], prompt=self.prompt)["input_ids"]
        return int(ids.shape[-1]) - len(self._tokenise(["a"])[0])

    def _tokenise(self, texts: Sequence[str]) -> list[Any]:
        module, prompt = self.encoder[0], self.prompt
        if isinstance(module, LLM2VecTransformer):
            written = [module.write(text, prompt)[0] for text in texts]
        else:
            written = [(prompt or "") + text for text in texts]
        # Every call of the tokenizer leaves padding and truncation behind, and sets them anew
        self.backend.no_padding()
        self.backend.no_truncation()
        return self.backend.encode_batch_fast(written)

    def _measure(self, texts: Sequence[str]) -> np.ndarray:
        """Count the tokens of each text [U], as if there were no limit but LLM2Vec's of words."""
        if self.backend is None:  # some other module, that cuts texts as it likes
            return np.array([len(text) // 4 + 1 for text in texts])
        lengths: list[int] = []
        batch: list[str] = []
        size = 0
        for number, text in enumerate(texts, 1):
            batch.append(text)
            size += len(text)
            if size < MEASURED_CHARACTERS and number < len(texts):
                continue
            for one, encoding in zip(batch, self._tokenise(batch), strict=True):
                lengths.append(len(encoding))
                if self.prompt_ids and encoding.ids[: len(self.prompt_ids)] != self.prompt_ids:
                    check_prompt(self.encoder.tokenizer, self.prompt or "", [one], self.limit)  # for its message
            batch, size = [], 0
        return np.array(lengths, dtype=np.int64) + self.added

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, Counts]:
        """Encode texts.

        Parameters
        ----------
        texts
            All of them are held in memory.

        Returns
        -------
        tuple
            float32 [N, D], in the order of the texts, and what was done. A text without any token has the zero vector.
        """
        begin = time.perf_counter()
        texts = [clean(text) for text in texts]
        place = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        distinct = list(place)
        whole_U = self._measure(distinct)
        cut_U = whole_U > self.limit
        module = self.encoder[0]
        if isinstance(module, LLM2VecTransformer):
            cut_U |= np.array([module.cuts(text) for text in distinct], dtype=bool)
        told = self.backend is not None
        self.cut = {text for text, cut in zip(distinct, cut_U, strict=True) if cut and told}
        length_U = np.minimum(whole_U, self.limit)
        width_U = pad_lengths(length_U, self.limit) if self.evens else length_U
        batches = budget_batches(width_U, self.batch_tokens, alike=self.evens)
        vectors_UD: np.ndarray | None = None
        padded = 0
        longest = max(self.batch_tokens, int(width_U.max(initial=0)), LEAST_TOKENS)
        for rows, vectors in zip(batches, self._run(distinct, width_U, batches, longest), strict=True):
            self.report(len(rows))
            if vectors_UD is None:
                vectors_UD = np.zeros((len(distinct), vectors.shape[1]), dtype=np.float32)
            vectors_UD[rows] = vectors
            padded += len(rows) * int(width_U[rows[0]])
        if vectors_UD is None:
            vectors_UD = np.zeros((len(distinct), self.width), dtype=np.float32)
        counts = Counts(
            texts=len(texts),
            distinct=len(distinct),
            truncated=sum(text in self.cut for text in texts),
            blank=sum(not text or text.isspace() for text in texts),
            tokens=int(length_U.sum()),
            padded=padded,
            seconds=time.perf_counter() - begin,
        )
        return vectors_UD[[place[text] for text in texts]], counts

    @property
    def width(self) -> int:
        """Width D of the vectors."""
        width = self.encoder.get_embedding_dimension() or 0
        return min(width, self.encoder.truncate_dim or width)

    def count_lanes(self, tokens: int) -> int:
        """Count the batches of so many tokens that may go side by side."""
        encoder = self.encoder
        return count_lanes(encoder.transformers_model, encoder.device, tokens, encoder.max_seq_length)

    def _run(
        self, texts: list[str], width_U: np.ndarray, batches: list[np.ndarray], tokens: int
    ) -> Iterator[np.ndarray]:
        """Give the vectors of each batch; on a GPU the next one is tokenised while the model runs."""
        tokenizer = Lock()  # which cannot be told to pad while it reads

        def prepare(rows: np.ndarray) -> dict[str, Any]:
            with tokenizer:
                features = self.encoder.preprocess([texts[row] for row in rows], prompt=self.prompt)
            return self._even(features, int(width_U[rows[0]])) if self.evens else features

        device = self.encoder.device
        if device.type == "cpu" or not batches:
            yield from run_batches(
                self.encoder, lambda rows: self._forward(prepare(rows))[: len(rows)], batches, self.count_lanes(tokens)
            )
            return
        with ThreadPoolExecutor(1) as ahead:
            following = ahead.submit(prepare, batches[0])
            for number in range(len(batches)):
                features = following.result()
                if number + 1 < len(batches):
                    following = ahead.submit(prepare, batches[number + 1])
                yield self._forward(features)

    def _even(self, features: dict[str, Any], width: int) -> dict[str, Any]:
        """Pad to so many tokens a text, and repeat the last text where the batch has too few."""
        tokenizer = self.encoder.tokenizer
        fills = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
        evened = dict(features)
        for name, value in features.items():
            if isinstance(value, torch.Tensor) and value.ndim == 2:  # [B, L]
                missing = max(0, width - value.shape[1])
                sides = (missing, 0) if tokenizer.padding_side == "left" else (0, missing)
                value_BL = functional.pad(value, sides, value=fills.get(name) or 0)
                again_FL = value_BL[-1:].expand(count_fillers(*value_BL.shape), -1)
                evened[name] = torch.cat([value_BL, again_FL])
        return evened

    @torch.inference_mode()
    def _forward(self, features: dict[str, Any]) -> np.ndarray:
        if self.stopped:
            raise RuntimeError("encoding was stopped")
        features = batch_to_device(features, self.encoder.device)
        try:
            vectors = self.encoder(features)["sentence_embedding"].float()
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise UserError(
                f"out of memory with batch_tokens = {self.batch_tokens}: lower --batch_tokens, or --max_seq_length"
            ) from error
        if self.encoder.truncate_dim is not None:
            vectors = truncate_embeddings(vectors, self.encoder.truncate_dim)
        if self.normalize:
            vectors = functional.normalize(vectors, dim=-1)
        check_finite(vectors, self.encoder.dtype)
        return vectors.cpu().numpy()


def _leaves_prompt_out(encoder: SentenceTransformer) -> bool:
    pools = [module for module in encoder if isinstance(module, Pooling)]
    return not isinstance(encoder[0], LLM2VecTransformer) and any(not pool.include_prompt for pool in pools)


def open_sides(
    encoder: SentenceTransformer,
    query_prompt: str | None = None,
    document_prompt: str | None = None,
    batch_tokens: int | None = None,
) -> tuple[BatchEncoder, BatchEncoder]:
    """Give the two ways in which an encoder reads: queries and documents, each with its prompt.

    Parameters
    ----------
    encoder
        Of any kind.
    query_prompt, document_prompt
        Stand before the texts of their side; None for the one that the encoder keeps, and for its default without one.
    batch_tokens
        As for `BatchEncoder`.
    """
    given = {"query": query_prompt, "document": document_prompt}
    prompts = {side: encoder.prompts.get(side) or None if text is None else text for side, text in given.items()}
    query, document = (
        BatchEncoder(encoder, prompt=prompts[side], batch_tokens=batch_tokens, normalize=True) for side in given
    )
    return query, document


def encode_texts(encoder: SentenceTransformer, texts: Sequence[str], **options: Any) -> np.ndarray:
    """Encode texts that fit in memory.

    Parameters
    ----------
    encoder
        From `turncoder.load_encoder`, or any other `SentenceTransformer`.
    texts
        Strings.
    **options
        Of `turncoder.encode.texts.BatchEncoder`: ``prompt``, which stands before each text, or ``prompt_name``, one
        that the encoder keeps; ``batch_tokens``, of a batch, padding included; ``normalize`` to the length 1.

    Returns
    -------
    numpy.ndarray
        float32 [N, D].

    Raises
    ------
    UserError
        A string instead of a list of them, or something wrong with the prompt.
    """
    if isinstance(texts, str):
        raise UserError("texts is one string; give a list of strings")
    return BatchEncoder(encoder, **options).encode(texts)[0]


def encode_stream(
    encoder: SentenceTransformer, texts: Iterable[str], *, shard_texts: int = SHARD_TEXTS, **options: Any
) -> Iterator[np.ndarray]:
    """Encode any number of texts in constant memory: a shard at a time is made distinct, sorted and batched.

    Parameters
    ----------
    encoder
        As for `encode_texts`.
    texts
        Read as they are needed.
    shard_texts
        Texts of a shard, 16,384 by default.
    **options
        As for `encode_texts`.

    Yields
    ------
    numpy.ndarray
        float32 [up to shard_texts, D], in the order of the texts.
    """
    if isinstance(texts, str):
        raise UserError("texts is one string; give an iterable of strings")
    batches = BatchEncoder(encoder, **options)
    source = iter(texts)
    while shard := list(islice(source, shard_texts)):
        yield batches.encode(shard)[0]
