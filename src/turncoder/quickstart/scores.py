"""What each stage gave: masked tokens recovered, texts found, nearest neighbours; and the page that says so."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turncoder.errors import UserError
from turncoder.evaluate.retrieval import (
    Pairs,
    compare_ranks,
    forget_weights,
    nearest,
    rank_answers,
    rank_encoded,
    score_bm25,
    score_ranks,
    split_pairs,
)

if TYPE_CHECKING:
    from rich.table import Table

    from turncoder.quickstart.tour import Sizes

__all__ = ["compare", "show"]

CAUSAL, CONTROL = "causal", "causal, more steps"
WORDS, RANDOM = "BM25 (words)", "random weights"
UNTRAINED, TURNED = "bidirectional", "bidirectional, MNTP"
COLUMNS = {
    "loss": "loss",
    "accuracy": "accuracy",
    "mrr@10": "MRR@10",
    "recall@1": "recall@1",
    "ndcg@10": "nDCG@10",
}


def compare(base: str, turned: Path, control: Path, held_out: Sequence[str], sizes: "Sizes") -> dict[str, Any]:
    """Score every stage on the same masks and the same pairs.

    Parameters
    ----------
    base
        The decoder as it was.
    turned, control
        Run folders: MNTP, and causal training on the same text for as many steps.
    held_out
        Texts that nothing was trained on.
    sizes
        How many pairs, and how many tokens of a text are read.

    Returns
    -------
    dict
        ``rows`` of the table, ``pairs`` (their number), ``mrr_gains`` (what MNTP adds to MRR@10 over each earlier
        stage, with its standard error) and ``neighbours``.

    Raises
    ------
    UserError
        Fewer than ten of the held-out texts have a first sentence and a rest.
    """
    from turncoder.encoder import load_encoder

    pairs = split_pairs(held_out, limit=sizes.pairs)
    if len(pairs.queries) < 10:
        raise UserError(
            f"--text: only {len(pairs.queries)} of {len(held_out)} held-out texts have a first sentence of 4 to 40 "
            "words and a rest of 12 or more; give more, or longer, texts"
        )
    masked = {CAUSAL: _read_scores(turned, "causal"), UNTRAINED: _read_scores(turned, "bidirectional")}
    masked |= {TURNED: _read_scores(turned, None), CONTROL: _read_scores(control, None)}
    options: dict[str, Any] = {"max_seq_length": sizes.block_size, "device": "cpu"}
    builders = {
        RANDOM: lambda: forget_weights(load_encoder(base, **options)),
        CAUSAL: lambda: load_encoder(base, bidirectional=False, **options),
        CONTROL: lambda: load_encoder(str(control), **options),
        UNTRAINED: lambda: load_encoder(base, **options),
        TURNED: lambda: load_encoder(str(turned), **options),
    }
    chosen, found = _choose(pairs), {}
    ranks = {WORDS: rank_answers(score_bm25(pairs.queries, pairs.documents))}
    for name, build in builders.items():
        encoder = build()
        ranks[name] = rank_encoded(encoder, pairs)
        if name in (CAUSAL, TURNED):
            found[name] = nearest(encoder, pairs.queries, chosen)
    rows = [{"name": name, **masked.get(name, {}), **score_ranks(rank_Q)} for name, rank_Q in ranks.items()]
    gains = {name: list(compare_ranks(ranks[TURNED], ranks[name])) for name in (CAUSAL, CONTROL, UNTRAINED)}
    neighbours = [
        {"sentence": pairs.queries[row], **{name: list(found[name][place]) for name in found}}
        for place, row in enumerate(chosen)
    ]
    return {"pairs": len(pairs.queries), "rows": rows, "mrr_gains": gains, "neighbours": neighbours}


def _read_scores(run: Path, model: str | None) -> dict[str, float]:
    """Read masked loss and accuracy: of the untrained ``model`` at step 0, or (None) at the end of the run."""
    if model is None:
        final = json.loads((run / "run.json").read_text(encoding="utf8"))["results"]
        return {key: final[key] for key in ("loss", "accuracy", "top5_accuracy")}
    lines = (run / "metrics.jsonl").read_text(encoding="utf8").splitlines()
    row = next(row for row in map(json.loads, lines) if row["step"] == 0 and row.get("model") == model)
    return {key: row[f"eval_{key}"] for key in ("loss", "accuracy", "top5_accuracy")}


def _choose(pairs: Pairs, count: int = 4) -> list[int]:
    """Pick sentences of a readable length, spread over all of them."""
    readable = [row for row, query in enumerate(pairs.queries) if 8 <= len(query.split()) <= 16]
    readable = readable or list(range(len(pairs.queries)))
    return readable[:: max(1, len(readable) // count)][:count]


def build_table(results: dict[str, Any]) -> "Table":
    """Lay out ``results["rows"]``; a dash where a row has no such score."""
    from rich.table import Table

    table = Table(title=f"What each step gave ({results['pairs']} pairs: first sentence -> rest of the text)")
    table.add_column("")
    for column in COLUMNS.values():
        table.add_column(column, justify="right")
    for row in results["rows"]:
        table.add_row(row["name"], *(f"{row[key]:.3f}" if key in row else "-" for key in COLUMNS))
    return table


def explain(results: dict[str, Any]) -> list[str]:
    """Say in plain sentences what the numbers show and what they do not."""
    by_name = {row["name"]: row for row in results["rows"]}
    causal, turned, control = (by_name[name] for name in (CAUSAL, TURNED, CONTROL))
    lines = [
        "Loss (nats) and accuracy: held-out tokens recovered at masked places, the same masks for every row, "
        "the state at t-1 predicting token t.",
        f"'{CONTROL}' is the same decoder after as many steps of ordinary causal training on the same text: what it "
        "gains is the text's doing, not that of MNTP.",
        f"Accuracy at masked places: {causal['accuracy']:.3f} as it was, {control['accuracy']:.3f} after the control, "
        f"{turned['accuracy']:.3f} after MNTP.",
    ]
    for name, (gain, error) in results["mrr_gains"].items():
        verdict = "better" if gain > 2 * error else "worse" if gain < -2 * error else "no difference that can be told"
        lines.append(f"Retrieval, MNTP against '{name}': MRR@10 {gain:+.3f} (standard error {error:.3f}): {verdict}.")
    lines.append(
        "These vectors are plain means of hidden states, which nothing has trained to tell texts apart; contrastive "
        "training (SimCSE) is the stage that does."
    )
    return lines


def show(results: dict[str, Any], *, base: str, text: str | Path | None, output: Path, folder: Path) -> None:
    """Print table, neighbours, next commands and paths, and write the same to ``report.md``."""
    from rich.console import Console

    console = Console()
    console.print(build_table(results))
    for line in explain(results):
        console.print(line, highlight=False, markup=False)
    console.print("\nNearest neighbours among the held-out first sentences", style="bold")
    for neighbour in results["neighbours"]:
        console.print(f"  {neighbour['sentence']}", style="cyan", highlight=False, markup=False)
        for name in (CAUSAL, TURNED):
            other, cosine = neighbour[name]
            console.print(f"    {name}: {other} ({cosine:.2f})", highlight=False, markup=False)
    _write_report(output / "report.md", results)
    own = "" if text else "  turncoder quickstart --model MODEL --text FILE --output FOLDER   # the same for your own\n"
    console.print(
        f"\nWith your own model (a folder or hub id) and text:\n{own}"
        "  turncoder check MODEL\n"
        "  turncoder mntp --model_name_or_path MODEL --train_file FILE --output RUN\n"
        "  turncoder report RUN\n\n"
        f"Decoder    {base}\n"
        f"Text       {output / 'text'}\n"
        f"Runs       {output / 'mntp'}, {output / 'control'}\n"
        f"Results    {output / 'report.md'}, {output / 'results.json'}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    console.print(f"SentenceTransformer({str(folder)!r})", highlight=False, markup=False, soft_wrap=True)


def _write_report(path: Path, results: dict[str, Any]) -> None:
    lines = ["# Quickstart", "", "| | " + " | ".join(COLUMNS.values()) + " |", "|---|" + "---:|" * len(COLUMNS)]
    for row in results["rows"]:
        lines.append(f"| {row['name']} | " + " | ".join(f"{row[k]:.3f}" if k in row else "-" for k in COLUMNS) + " |")
    lines += ["", *explain(results), "", "## Nearest neighbours", ""]
    for neighbour in results["neighbours"]:
        lines.append(f"- {neighbour['sentence']}")
        lines += [f"  - {name}: {neighbour[name][0]} ({neighbour[name][1]:.2f})" for name in (CAUSAL, TURNED)]
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("\n".join(lines) + "\n", encoding="utf8")
    partial.replace(path)
