"""The rungs between a decoder and an encoder, measured on the same data, so that each step shows what it gave.

Every rung finds the rest of a held-out document from its first sentence, which needs no labels; and is measured on
scored sentence pairs and on held-out triplets where there are any. Word counts stand beside it, for comparison.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from turncoder.errors import UserError
from turncoder.evaluate.anisotropy import measure_anisotropy
from turncoder.evaluate.projection import map_pairs
from turncoder.evaluate.retrieval import (
    Pairs,
    compare_ranks,
    encode_pairs,
    nearest,
    rank_answers,
    rank_vectors,
    score_bm25,
    score_ranks,
    score_tfidf,
    split_pairs,
)
from turncoder.evaluate.sentences import (
    Sts,
    encode_columns,
    score_columns,
    score_columns_words,
    score_sts,
    score_sts_words,
)

if TYPE_CHECKING:
    from rich.table import Table
    from sentence_transformers import SentenceTransformer

    from turncoder.data.pairs import Rows

__all__ = [
    "COLUMNS",
    "MACRO",
    "PROBED",
    "USUAL_TAG",
    "Rung",
    "Trial",
    "build_table",
    "choose_sentences",
    "explain",
    "open_trial",
    "read_masked",
    "score_rung",
    "score_words",
]

logger = logging.getLogger("turncoder")

FEWEST = 10
COLUMNS = {
    "loss": "loss",
    "accuracy": "top-1",
    "mrr@10": "MRR@10",
    "recall@1": "R@1",
    "sts": "STS",
    "triplets": "triplets",
    "pairs_mrr@10": "pairs",
}
"""The scores and their headings, short enough for a table of all of them to be whole at 80 columns."""
PROBED = "words/"
"""What the keys of scores on labels of words begin with; the column of labels follows."""
MACRO = " F1"
"""What the key of macro F1 ends in, which stands beside the share of right labels."""
PROBE_SCORES = {"token_accuracy": "the share of right labels", "span_f1": "F1 over chunks (conlleval's)"}
SHOWN_LABELS = 7
SHOWN_SENTENCES = 4
LOOKED_AT = 16, 128
"""Texts that anisotropy is measured on, and the tokens of each."""
USUAL_TAG = "usual tag (words)"


@dataclass(frozen=True)
class Rung:
    """A model on the way.

    Attributes
    ----------
    name
        As the table has it.
    model
        What `turncoder.load_encoder` opens.
    options
        With which.
    measured
        What its training, and a probe, measured: loss and accuracy at masked places, labels of words.
    place
        Folder of its probe.
    """

    name: str
    model: str
    options: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)
    place: str = ""


@dataclass(frozen=True)
class Trial:
    """What rungs are measured on: documents cut in two, scored pairs, held-out rows of pairs."""

    documents: Pairs
    sts: Sts | None
    pairs: Sequence["Rows"] = ()


def open_trial(
    texts: Sequence[str],
    sts: Sts | None,
    pairs: Sequence["Rows"],
    limit: int,
    remedy: str = "give more or longer texts, or --sts or --pairs",
) -> Trial:
    """Cut held-out documents into first sentence and rest.

    Raises
    ------
    UserError
        Fewer than ten can be cut, and there is nothing else to measure; where there is, a notice says so.
    """
    documents = split_pairs(texts, limit=limit)
    if len(documents.queries) < FEWEST and sts is None and not pairs:
        raise UserError(
            f"--text: {len(documents.queries)} of {len(texts)} held-out documents have a first sentence of 4 to 40 "
            f"words and a rest of 12 or more, and rungs are measured on at least {FEWEST} of those; {remedy}"
        )
    if len(documents.queries) < FEWEST:
        logger.warning(
            "%d of %d held-out documents have a first sentence of 4 to 40 words and a rest of 12 or more: too few to "
            "measure whether the one finds the other (%d are needed; --validation_text gives more)",
            len(documents.queries), len(texts), FEWEST,
        )  # fmt: skip
        documents = Pairs([], [])
    return Trial(documents, sts, [rows for rows in pairs if len(rows)])


def read_masked(run: Path, model: str | None = None) -> dict[str, float]:
    """Read loss and accuracy at masked places: of the untrained ``model`` at step 0, or (None) at the run's end."""
    if model is None:
        final = json.loads((run / "run.json").read_text(encoding="utf8")).get("results", {})
        return {key: final[key] for key in ("loss", "accuracy") if key in final}
    rows = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf8").splitlines())
    for row in rows:
        if row["step"] == 0 and row.get("model") == model:
            return {key: row[f"eval_{key}"] for key in ("loss", "accuracy")}
    return {}


def score_words(trial: Trial) -> list[dict[str, Any]]:
    """Score BM25 and TF-IDF, which know words and nothing of their meaning."""
    rows = []
    sts = score_sts_words(trial.sts) if trial.sts is not None else {}
    for name, key, score in (("BM25 (words)", "bm25", score_bm25), ("TF-IDF (words)", "tfidf", score_tfidf)):
        row: dict[str, Any] = {"name": name}
        if trial.documents.queries:
            rank_Q = rank_answers(score(trial.documents.queries, trial.documents.documents))
            row |= {**score_ranks(rank_Q), "ranks": rank_Q.tolist()}
        if key in sts:
            row["sts"] = sts[key]
        row |= _average([score_columns_words(one.data[:], score) for one in trial.pairs])
        rows.append(row)
    return rows


def score_rung(rung: Rung, trial: Trial) -> dict[str, Any]:
    """Score one rung; ``ranks``, a ``map``, ``neighbours``, a ``rendered`` text and ``anisotropy`` go along."""
    from turncoder.encode.encoder import load_encoder
    from turncoder.samples import show_text

    encoder = load_encoder(rung.model, **rung.options)
    row: dict[str, Any] = {"name": rung.name, "model": rung.model, **rung.measured}
    default = encoder.prompts.get(encoder.default_prompt_name or "")
    query, document = (encoder.prompts.get(side) or default or None for side in ("query", "document"))
    documents = trial.documents
    if documents.queries:
        vectors = encode_pairs(encoder, documents, query_prompt=query, document_prompt=document)
        rank_Q = rank_vectors(*vectors)
        row |= {**score_ranks(rank_Q), "ranks": rank_Q.tolist(), "map": map_pairs(*vectors)}
        chosen = choose_sentences(documents.queries, SHOWN_SENTENCES)
        row["neighbours"] = [list(found) for found in nearest(encoder, documents.queries, chosen, query)]
        row["rendered"] = {"retrieval": show_text(encoder, documents.queries[0], query)}
    if trial.sts is not None:
        row["sts"] = score_sts(encoder, trial.sts, prompt=query)  # either side could be the query
        row.setdefault("rendered", {})["sts"] = show_text(encoder, trial.sts.first[0], query)
    found: list[dict[str, float]] = []
    for rows in trial.pairs:
        sides = {name: query if name == "anchor" else document for name in rows.data.column_names}
        prompts = {name: rows.prompts.get(name) or side for name, side in sides.items()}
        found.append(score_columns(encode_columns(encoder, rows.data[:], prompts)))
        shown = show_text(encoder, rows.data["anchor"][0], prompts["anchor"])
        row.setdefault("rendered", {})[rows.name] = shown
    texts = documents.documents or (list(trial.sts.first) if trial.sts is not None else [])
    return row | _average(found) | ({"anisotropy": _look(encoder, texts)} if texts else {})


def _look(encoder: "SentenceTransformer", texts: Sequence[str]) -> list[float]:
    """Measure the anisotropy of every layer on some texts, without prompts."""
    assert encoder.transformers_model is not None
    count, length = LOOKED_AT
    features = encoder.preprocess(list(texts[:count]))
    inputs = (features[name][:, :length].to(encoder.device) for name in ("input_ids", "attention_mask"))
    return measure_anisotropy(encoder.transformers_model, *inputs)


def _average(found: Sequence[dict[str, float]]) -> dict[str, float]:
    """Give the means over sets of pairs; a set without negatives has no triplets."""
    keys = {"pairs_mrr@10": "mrr@10", "triplets": "triplet_accuracy"}
    scores = {key: [one[name] for one in found if name in one] for key, name in keys.items()}
    return {key: float(np.mean(values)) for key, values in scores.items() if values}


def choose_sentences(queries: Sequence[str], count: int) -> list[int]:
    """Pick sentences of a readable length, spread over all of them."""
    readable = [row for row, query in enumerate(queries) if 8 <= len(query.split()) <= 16] or list(range(len(queries)))
    return readable[:: max(1, len(readable) // count)][:count]


def compare_rungs(rows: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Give what the last rung adds to MRR@10 over each before it, with the standard error (paired)."""
    last = np.array(rows[-1].get("ranks", []))
    return {
        row["name"]: list(compare_ranks(last, np.array(row["ranks"])))
        for row in rows[:-1]
        if len(last) and "model" in row
    }


def choose_columns(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Choose the scores that a row has, with their headings; columns of labels of words are the last."""
    own = {key: told for key, told in COLUMNS.items() if any(key in row for row in rows)}
    probed = dict.fromkeys(key for row in rows for key in row if key.startswith(PROBED))
    return own | {key: _name_probe(key.removeprefix(PROBED)) for key in probed}


def _name_probe(column: str) -> str:
    return column.removeprefix("feats:").replace(f"_tags{MACRO}", MACRO).removesuffix("_tags")


def build_table(rows: Sequence[dict[str, Any]], title: str) -> "Table":
    """Lay out the rungs for a terminal; a dash where one has no such score."""
    from rich.table import Table

    columns = choose_columns(rows)
    if len(columns) > len(COLUMNS) + 1:  # than which no more fit into 80 columns; the page has them all
        columns = {key: told for key, told in columns.items() if not key.endswith(MACRO)}
    narrow = len(columns) > len(COLUMNS)
    table = Table(title=title, show_edge=False, pad_edge=False, collapse_padding=narrow)
    table.add_column("", no_wrap=True)
    for told in columns.values():
        table.add_column(told, justify="right")
    for row in rows:
        table.add_row(row["name"], *(f"{row[key]:.3f}" if key in row else "-" for key in columns))
    return table


def explain(rows: Sequence[dict[str, Any]], control: str | None) -> list[str]:
    """Say in plain sentences what the numbers are, and what they do not show."""
    lines = []
    if any("accuracy" in row for row in rows):
        lines.append(
            "Loss (nats) and top-1 (accuracy): held-out tokens recovered at masked places, the same masks for every "
            "row, the state at t-1 predicting token t."
        )
    if any("mrr@10" in row for row in rows):
        lines.append("MRR@10 and R@1 (recall): retrieval of the rest of a held-out document by its first sentence.")
    if any("sts" in row for row in rows):
        lines.append("STS: Spearman correlation of cosine similarity and gold scores.")
    if any("triplets" in row for row in rows):
        lines.append("Triplets: how often a held-out anchor is nearer to its positive than to its negative.")
    if any("pairs_mrr@10" in row for row in rows):
        lines.append(
            "Pairs (MRR@10): retrieval of a held-out anchor's positive among the positives and negatives of its set; "
            "the mean over sets."
        )
    lines += _explain_probes(rows[-1].get("probes", {}))
    if control:
        lines.append(
            f"'{control}' is the same decoder after as many steps of ordinary causal training on the same text: what "
            "it gains comes from the text, not from turning."
        )
    last = rows[-1]["name"]
    for name, (gain, error) in compare_rungs(rows).items():
        verdict = "better" if gain > 2 * error else "worse" if gain < -2 * error else "not significant"
        lines.append(f"MRR@10, '{last}' against '{name}': {gain:+.3f} (standard error {error:.3f}): {verdict}.")
    return lines


def _explain_probes(probes: dict[str, dict[str, Any]]) -> list[str]:
    lines = []
    for column, told in probes.items():
        name, metric = _name_probe(column), PROBE_SCORES[told["metric"]]
        labels = ", ".join(told["labels"][:SHOWN_LABELS]) + (", ..." if len(told["labels"]) > SHOWN_LABELS else "")
        lines.append(
            f"{name} ({labels}): {metric} of {told['words']:,} test words, read from the frozen states by a linear "
            f"probe; mean of {told['seeds']} seeds (standard deviation on the last row {told['std']:.3f})."
        )
    if by_class := [_name_probe(column) + MACRO for column, told in probes.items() if told["metric"] != "span_f1"]:
        lines.append(f"{', '.join(by_class)} (macro): the mean of the labels' F1, in which rare ones count as much.")
    if probes:
        lines.append(f"'{USUAL_TAG}' gives each word the label that it has most often in the training words.")
    return lines
