"""Models as mteb asks them: an encoder of any kind, the bag of its input embeddings, and words alone.

In the names of tensors: N texts, V vocabulary, D width, Q queries.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder, get_prompt_name
from mteb.models.model_meta import ScoringFunction
from mteb.types import PromptType
from scipy.sparse import csr_matrix
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedModel

from turncoder.data.sentences import clean, split_words
from turncoder.encode.llm2vec import LLM2VecTransformer
from turncoder.encode.texts import BatchEncoder, Counts
from turncoder.evaluate.retrieval import BLOCK, scan_bm25, weigh_words
from turncoder.samples import show_text

__all__ = ["SIDES", "BagModel", "EncoderModel", "WordModel", "WordSearch", "can_bag", "describe"]

KEPT_BYTES = 2**29  # of vectors, for texts that come again
SIDES = ("text", "query", "document")
COUNTED = 16384  # texts whose tokens are held at a time


def describe(name: str, revision: str, similarity: str | None = "cosine") -> ModelMeta:
    """Describe a model as mteb wants it."""
    function = ScoringFunction.DOT_PRODUCT if similarity == "dot" else ScoringFunction.COSINE
    told = {"name": name if "/" in name else f"local/{name}", "revision": revision, "similarity_fn_name": function}
    return ModelMeta.create_empty(overwrites=told)


def read_texts(inputs: Any) -> list[str]:
    """Read the texts of a loader of mteb's, without its batches."""
    data = inputs.dataset
    if isinstance(data, Dataset) and "text" in data.column_names:
        return list(data["text"])
    return [text for batch in inputs for text in batch["text"]]


class EncoderModel(AbsEncoder):
    """An encoder behind mteb's interface: token-budget batches, each text under each prompt once, prompts by task.

    Parameters
    ----------
    encoder
        Any `SentenceTransformer` that reads texts.
    prompts
        From `turncoder.prompts.read_prompt_file`; where they say nothing of a task, or None, those of the encoder.
    falls_back
        Give tasks that the prompts do not name mteb's own instruction, as LLM2Vec does.
    batch_tokens
        As for `BatchEncoder`.

    Attributes
    ----------
    examples
        The first text of each side of the task, as the model sees it.
    used
        The prompt of each side of the task; None for none.
    texts
        Distinct texts of the task, in the order in which they came.
    cut
        Those of them that were longer than the limit, under any of their prompts.
    advance
        Called with a number of texts when they have been encoded.
    """

    def __init__(
        self,
        encoder: SentenceTransformer,
        *,
        prompts: Mapping[str, Any] | None = None,
        falls_back: bool = False,
        batch_tokens: int | None = None,
    ) -> None:
        self.model = encoder
        self.mteb_model_meta = describe("model", "0", encoder.similarity_fn_name)
        self.table, self.falls_back = prompts or {}, falls_back
        self.plain = BatchEncoder(encoder, prompt="", batch_tokens=batch_tokens)
        self.batches: dict[str, BatchEncoder] = {"": self.plain}
        self.kept: dict[str, dict[str, np.ndarray]] = {}
        self.kept_cut: dict[str, set[str]] = {}
        self.kept_bytes = 0
        self.advance: Any = lambda texts: None
        self.begin(None)

    def begin(self, task: Any) -> None:
        """Begin a task."""
        self.task = task
        self.examples: dict[str, str] = {}
        self.used: dict[str, str | None] = {}
        self.texts: dict[str, None] = {}
        self.cut: set[str] = set()

    def find_prompt(self, task: Any, side: str) -> tuple[str, str]:
        """Give the prompt before the texts of a side of a task, and what stands between the two.

        The space after an instruction belongs to the text: so do tokenizers have it, and the instruction stays apart.
        """
        described = getattr(task, "metadata", task)
        entry = self.table.get(described.name, self.table.get(described.type))
        if entry is None and self.falls_back:
            own = described.prompt or getattr(task, "abstask_prompt", "") or ""
            own = own.get("query", "") if isinstance(own, dict) else own
            entry = f"{own.strip('.')}:" if own and not own.endswith(":") else own
        if isinstance(entry, str):
            prompt = "" if side == "document" else entry.strip()
            apart = " " if prompt and not isinstance(self.model[0], LLM2VecTransformer) else ""  # which has its own
            return prompt, apart
        if entry is not None:
            return entry.get("document" if side == "document" else "query", ""), ""
        kept = {name: text for name, text in self.model.prompts.items() if text is not None}
        name = get_prompt_name(kept, described, None if side == "text" else PromptType(side))
        return kept.get(name or self.model.default_prompt_name or "", ""), ""

    def encode(self, inputs: Any, *, task_metadata: Any, prompt_type: Any = None, **_: Any) -> np.ndarray:
        """Encode the texts of a loader; float32 [N, D]."""
        side = "text" if prompt_type is None else prompt_type.value
        prompt, apart = self.find_prompt(self.task or task_metadata, side)
        plain = [clean(text) for text in read_texts(inputs)]
        self.texts |= dict.fromkeys(plain)
        texts = [apart + text for text in plain]
        if side not in self.used and texts:
            self.used[side] = prompt + apart or None
            self.examples[side] = show_text(self.model, texts[0], prompt or None)
        if prompt not in self.batches:
            self.batches[prompt] = BatchEncoder(self.model, prompt=prompt, batch_tokens=self.plain.batch_tokens)
        vectors_ND, cut = self._look_up(self.batches[prompt], texts)[:2]
        self.cut.update(text.removeprefix(apart) for text in cut.intersection(texts))
        return vectors_ND

    def warm_up(self, texts: list[str]) -> Counts:
        """Encode texts without a prompt, and tell what that took; a task that has them without one finds them done."""
        return self._look_up(self.plain, [clean(text) for text in texts])[2]

    def _look_up(self, batches: BatchEncoder, texts: list[str]) -> tuple[np.ndarray, set[str], Counts]:
        """Encode what has not been encoded under this prompt, as far as it is still kept; also gives what was cut."""
        known = self.kept.setdefault(batches.prompt or "", {})
        new = [text for text in dict.fromkeys(texts) if text not in known]
        batches.report = self.advance
        vectors_ND, counts = batches.encode(new)
        cut = self.kept_cut.setdefault(batches.prompt or "", set())
        cut |= batches.cut
        self.kept_bytes += vectors_ND.nbytes
        if len(new) == len(texts):
            result_ND = vectors_ND
        else:
            found = dict(zip(new, vectors_ND, strict=True))
            result_ND = np.stack([found[text] if text in found else known[text] for text in texts])
        if self.kept_bytes > KEPT_BYTES:
            self.kept, self.kept_cut, self.kept_bytes = {}, {}, 0
        else:
            known.update(zip(new, vectors_ND, strict=True))
        return result_ND, cut, counts


def can_bag(encoder: SentenceTransformer) -> bool:
    """Tell whether an encoder has a tokenizer and input embeddings that `BagModel` could read."""
    backend = getattr(getattr(encoder[0], "tokenizer", None), "backend_tokenizer", None)
    return backend is not None and isinstance(encoder.transformers_model, PreTrainedModel)


class BagModel(AbsEncoder):
    """The mean of a model's own input embeddings over the tokens of a text: what the layers have to add to."""

    def __init__(self, encoder: SentenceTransformer) -> None:
        self.mteb_model_meta = describe("static", "0")
        model = encoder.transformers_model
        assert isinstance(model, PreTrainedModel)
        weight_VD = model.get_input_embeddings().weight
        assert isinstance(weight_VD, torch.Tensor)
        self.weight_VD = weight_VD.detach().float().cpu().numpy()
        self.backend: Any = encoder.tokenizer.backend_tokenizer
        self.limit = encoder.max_seq_length

    def encode(self, inputs: Any, **_: Any) -> np.ndarray:
        """Encode the texts of a loader; float32 [N, D], zeros for a text without tokens."""
        texts = [clean(text) for text in read_texts(inputs)]
        place = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        distinct = list(place)
        bags = [self._bag(distinct[start : start + COUNTED]) for start in range(0, len(distinct), COUNTED)]
        return np.concatenate(bags)[[place[text] for text in texts]]

    def _bag(self, texts: Sequence[str]) -> np.ndarray:
        self.backend.no_padding()
        self.backend.no_truncation()
        rows = [one.ids[: self.limit] for one in self.backend.encode_batch_fast(texts, add_special_tokens=False)]
        ids = np.fromiter((token for row in rows for token in row), dtype=np.int64)
        ends = np.cumsum([0, *map(len, rows)])
        shape = len(rows), len(self.weight_VD)
        count_NV = csr_matrix((np.ones(len(ids), dtype=np.float32), ids, ends), shape=shape)
        return (count_NV @ self.weight_VD) / np.maximum(1, np.diff(ends))[:, None].astype(np.float32)


class Rows(csr_matrix):
    """A sparse matrix that has a length, as mteb asks for."""

    def __len__(self) -> int:
        return int(self.shape[0])


class WordModel(AbsEncoder):
    """TF-IDF vectors, sparse and of length 1; the idf is that of all texts of a task (scikit-learn's defaults)."""

    def __init__(self, texts: Iterable[str]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.mteb_model_meta = describe("tfidf", "0")
        self.vectorizer = TfidfVectorizer(analyzer=split_words, dtype=np.float32).fit(texts)

    def encode(self, inputs: Any, **_: Any) -> Rows:
        """Encode the texts of a loader; [N, words]."""
        return Rows(self.vectorizer.transform(read_texts(inputs)))

    def similarity(self, embeddings1: Any, embeddings2: Any) -> np.ndarray:
        """Give the cosines."""
        return (csr_matrix(embeddings1) @ csr_matrix(embeddings2).T).toarray()


class WordSearch:
    """BM25 or TF-IDF as mteb asks for a search."""

    def __init__(self, kind: str) -> None:
        self.mteb_model_meta = describe(kind, "0")
        self.kind = kind

    def index(self, corpus: Dataset, **_: Any) -> None:
        """Take the corpus."""
        titles = corpus["title"] if "title" in corpus.column_names else [""] * len(corpus)
        self.names = list(corpus["id"])
        texts = zip(titles, corpus["text"], strict=True)
        self.documents = [f"{title or ''} {text}".strip() for title, text in texts]

    def search(
        self,
        queries: Dataset,
        *,
        top_k: int,
        top_ranked: Mapping[str, list[str]] | None = None,
        **_: Any,
    ) -> dict[str, dict[str, float]]:
        """Give the scores of the best documents of each query, or of those that are to be ranked."""
        place = {name: row for row, name in enumerate(self.names)}
        found: dict[str, dict[str, float]] = {}
        for query, scores_N in zip(queries["id"], self._score(queries["text"]), strict=True):
            if top_ranked is not None:
                best = np.array([place[name] for name in top_ranked.get(query, [])], dtype=np.int64)
            elif top_k < len(scores_N):
                best = np.argpartition(-scores_N, top_k)[:top_k]
            else:
                best = np.arange(len(scores_N))
            found[query] = {self.names[row]: float(scores_N[row]) for row in best}
        return found

    def _score(self, queries: Any) -> Iterable[np.ndarray]:
        texts = [text if isinstance(text, str) else str(text) for text in queries]
        if self.kind == "bm25":
            yield from scan_bm25(texts, self.documents)
            return
        queries_QV, documents_NV = weigh_words(texts, self.documents)
        for start in range(0, len(texts), BLOCK):
            yield from (queries_QV[start : start + BLOCK] @ documents_NV.T).toarray()
