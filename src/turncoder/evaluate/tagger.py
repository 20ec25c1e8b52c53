"""A trained word-level model as something to use: it tags sentences, and scores files.

What a run keeps in ``tagger/``: ``tagger.json`` says which model is read at which state, and names the labels;
``heads.safetensors`` holds a linear head for each task and seed. Backbone and adapters are those that the run names.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HTTPError
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from turncoder.config.words import WordsConfig
from turncoder.disk import replace_folder
from turncoder.encode.encoder import load_encoder
from turncoder.encode.wordvectors import split_words
from turncoder.errors import UserError, first_line
from turncoder.evaluate.prediction import Head, Reader, predict
from turncoder.evaluate.words import find_spans
from turncoder.hub import find_run, is_hub_id, locate_parent
from turncoder.model.source import read_json

__all__ = ["Tagged", "Tagger", "find_tagger", "load_tagger", "save_tagger"]

FORMAT = 1


@dataclass(frozen=True)
class Tagged:
    """A sentence with its tags.

    Attributes
    ----------
    text
        As it was given.
    words
        Of the text.
    places
        The characters [start, end) of each.
    tags
        Of each task: a label for each word.
    spans
        Of each task whose labels mark spans: text, type, and the characters [start, end) of each.
    """

    text: str
    words: list[str]
    places: list[tuple[int, int]]
    tags: dict[str, list[str]]
    spans: dict[str, list[tuple[str, str, int, int]]]


class Tagger:
    """Tags sentences: `load_tagger` opens one.

    Parameters
    ----------
    encoder
        The model.
    reader
        How its words are read.
    heads
        Of every task and seed.
    schemes
        How the labels of a task mark spans; None where they do not.
    best
        The seed of each task that was best on the validation words.
    columns
        The column of the training file that a task's labels stood in.
    """

    def __init__(
        self,
        encoder: SentenceTransformer,
        reader: Reader,
        heads: Sequence[Head],
        schemes: dict[str, str | None],
        best: dict[str, int],
        columns: dict[str, str],
    ) -> None:
        self.encoder = encoder
        self.reader = reader
        self.heads = list(heads)
        self.schemes = schemes
        self.best = best
        self.columns = columns

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks."""
        return list(self.schemes)

    def tag(self, texts: Sequence[str] | Sequence[Sequence[str]]) -> list[Tagged]:
        """Tag texts.

        Parameters
        ----------
        texts
            Strings, which are cut into words at Unicode's word boundaries; or lists of words, which are joined by
            spaces.

        Returns
        -------
        list of Tagged
            By the heads that were best on the validation words.

        Raises
        ------
        UserError
            Something else than a list of them, such as a string.
        """
        if (
            isinstance(texts, str)
            or not isinstance(texts, Sequence)
            or not all(
                isinstance(text, str)
                or (isinstance(text, list | tuple) and all(isinstance(word, str) for word in text))
                for text in texts
            )
        ):
            raise UserError("texts must be a list of strings, or of lists of words")
        if not texts:
            return []
        data = _lay_out(texts)
        heads = [head for head in self.heads if head.seed == self.best[head.task]]
        known = [number for number, starts in enumerate(data["starts"]) if starts]
        found = predict(self.encoder, self.reader, data.select(known), heads) if known else [[] for _ in heads]
        place = {number: position for position, number in enumerate(known)}
        tagged = []
        for number, row in enumerate(data):
            text, starts, ends = row["text"], row["starts"], row["ends"]
            places = list(zip(starts, ends, strict=True))
            tags = {
                head.task: tags[place[number]] if number in place else []
                for head, tags in zip(heads, found, strict=True)
            }
            spans = {
                task: [
                    (text[starts[first] : ends[last - 1]], kind, starts[first], ends[last - 1])
                    for first, last, kind in find_spans(tags[task])
                ]
                for task, scheme in self.schemes.items()
                if scheme is not None
            }
            tagged.append(Tagged(text, row["words"], places, tags, spans))
        return tagged


def _lay_out(texts: Sequence[str] | Sequence[Sequence[str]]) -> Dataset:
    """Give texts with the places of their words; a list of words is joined by spaces."""
    rows: list[dict[str, Any]] = []
    for text in texts:
        if isinstance(text, str):
            rows += split_words([text]).to_list()
            continue
        ends = np.cumsum([len(word) + 1 for word in text]) - 1
        starts = [int(end) - len(word) for word, end in zip(text, ends, strict=True)]
        rows.append({"text": " ".join(text), "starts": starts, "ends": ends.tolist(), "words": list(text)})
    return Dataset.from_list(rows)


def save_tagger(folder: Path, tagger: Tagger, model: dict[str, Any]) -> None:
    """Write a tagger to a folder.

    Parameters
    ----------
    folder
        Of the run: ``tagger/`` is written into it.
    tagger
        What to keep.
    model
        Arguments of `turncoder.load_encoder`; ``name`` "." is the run itself.
    """
    tasks: dict[str, Any] = {}
    for head in tagger.heads:
        task = tasks.setdefault(
            head.task,
            {
                "column": tagger.columns[head.task],
                "labels": head.labels,
                "scheme": tagger.schemes[head.task],
                "best": tagger.best[head.task],
                "seeds": {},
            },
        )
        task["seeds"][str(head.seed)] = {"alignment": head.reading, "layers": head.layers}
    spec = {"format": FORMAT, "model": model, "reader": asdict(tagger.reader), "tasks": tasks}
    weights = {}
    for head in tagger.heads:
        weights[f"{head.task}.{head.seed}.weight"] = head.weight_CE.contiguous()
        weights[f"{head.task}.{head.seed}.bias"] = head.bias_C.contiguous()
    with replace_folder(folder / "tagger") as partial:
        save_file(weights, partial / "heads.safetensors")
        (partial / "tagger.json").write_text(json.dumps(spec, indent=2, ensure_ascii=False) + "\n", encoding="utf8")


def load_tagger(
    run: str | Path,
    *,
    encoder: SentenceTransformer | None = None,
    checkpoint: Path | None = None,
    device: str | None = None,
) -> Tagger:
    """Open what ``turncoder words`` trained.

    Parameters
    ----------
    run
        The run folder, or the hub id of one that was published.
    encoder
        The model, where it is open already.
    checkpoint
        Of a run of ``lora`` or ``full``: its weights instead of those that the run ended with.
    device
        Such as ``cpu`` or ``cuda:1``; None is sentence-transformers' choice.

    Returns
    -------
    Tagger
        ``.tag(["A sentence.", ...])`` gives words, tags and spans. Of several seeds, those of a probe share the model,
        and each task has the head that was best on its validation words; each seed of ``lora`` and ``full`` is a model
        of its own, and the one whose scores there are best in the mean over tasks has all of them.

    Raises
    ------
    UserError
        No run of ``words`` that is done, or a model that cannot be opened.
    """
    folder = find_tagger(_fetch(str(run)) if is_hub_id(str(run)) else Path(run))
    spec = read_json(folder / "tagger" / "tagger.json")
    if spec["format"] > FORMAT:
        raise UserError(f"{folder} was written by a later turncoder; update this one")
    weights = load_file(folder / "tagger" / "heads.safetensors")
    try:
        if checkpoint is not None:
            encoder = _open_checkpoint(folder, checkpoint, spec, weights)
        elif encoder is None:
            name = spec["model"]["name"]
            encoder = load_encoder(**{**spec["model"], "name": str(folder) if name == "." else name}, device=device)
    except UserError as error:
        raise UserError(f"{folder}: the model that it was trained on cannot be opened: {error}") from error
    heads = _build_heads(spec, weights)
    width = encoder.transformers_model.config.get_text_config().hidden_size  # type: ignore[union-attr]
    for head in heads:
        if head.weight_CE.shape[1] != width * len(head.layers):
            raise UserError(
                f"{folder}: its heads read states of width {head.weight_CE.shape[1] // len(head.layers)}, and the "
                f"model has {width}; restore the model that it was trained on"
            )
    tasks = spec["tasks"].items()
    return Tagger(
        encoder,
        Reader(**spec["reader"]),
        heads,
        {name: task["scheme"] for name, task in tasks},
        {name: task["best"] for name, task in tasks},
        {name: task["column"] for name, task in tasks},
    )


def _fetch(name: str) -> Path:
    """Fetch what was published under a hub id; raises UserError."""
    try:
        return Path(snapshot_download(name))
    except (HTTPError, OSError) as error:
        raise UserError(f"{name} is no folder, and the hub does not give it: {first_line(error)}") from error


def find_tagger(folder: Path) -> Path:
    """Find the folder that holds the tagger: the run's own, or that of its best seed; raises UserError."""
    if (folder / "classifier.pt").exists():
        raise UserError(
            f"{folder} holds a pickled classifier.pt, and unpickling runs whatever code is in it; train again with "
            "turncoder words, which writes safetensors"
        )
    if not (folder / "tagger").exists() and (folder / "results.json").exists():  # a run for each seed
        told = read_json(folder / "results.json")

        def value(seed: str) -> float:
            return fmean(task["seeds"][seed]["dev"][task["metric"]] for task in told["tasks"].values())

        folder /= told["runs"][max(told["runs"], key=value)] if "runs" in told else ""
    if not folder.exists():
        raise UserError(f"there is no run {folder}; name the folder that turncoder words wrote")
    if not (folder / "tagger" / "tagger.json").exists():
        home = find_run(str(folder))
        remedy = f"; name the run, {home}" if home not in (None, folder) else ""
        raise UserError(f"{folder} is no finished run of turncoder words: it has no tagger/tagger.json{remedy}")
    return folder


def _open_checkpoint(
    folder: Path, checkpoint: Path, spec: dict[str, Any], weights: dict[str, torch.Tensor]
) -> SentenceTransformer:
    """Open the model of a checkpoint, and put its heads in the place of those of the run."""
    from turncoder.train.finetuning import open_checkpoint

    record = read_json(folder / "run.json")
    config = WordsConfig(**record["config"])
    parents = [locate_parent(name, record) for name in (str(config.model_name_or_path), *config.adapters)]
    config = replace(config, model_name_or_path=parents[0], adapters=tuple(parents[1:]))
    counts = {name: len(task["labels"]) for name, task in spec["tasks"].items()}
    encoder, trained = open_checkpoint(config, checkpoint, counts)
    for name, linear in zip(counts, trained.heads, strict=True):
        weights[f"{name}.{config.seeds[0]}.weight"] = linear.weight.detach()
        weights[f"{name}.{config.seeds[0]}.bias"] = linear.bias.detach()
    return encoder


def _build_heads(spec: dict[str, Any], weights: dict[str, torch.Tensor]) -> list[Head]:
    return [
        Head(
            name,
            int(seed),
            tuple(task["labels"]),
            kept["alignment"],
            tuple(kept["layers"]),
            weights[f"{name}.{seed}.weight"],
            weights[f"{name}.{seed}.bias"],
        )
        for name, task in spec["tasks"].items()
        for seed, kept in task["seeds"].items()
    ]
