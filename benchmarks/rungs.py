"""What each rung gives: a small decoder of the quickstart's sizes, turned, and measured by people's labels.

    python benchmarks/rungs.py                     # writes benchmarks/results/rungs.json
    python benchmarks/rungs.py --part bg           # that part anew

``en``: a decoder by cross-entropy on Wikipedia paragraphs, turned, with STS-B's dev set and English NLI triplets,
over several seeds (of decoder, masks, order and dropout). The dev set is cut in two by a fixed draw: one half was seen
while sizes were chosen, the other is what is reported. ``bg`` and ``ko``: the same on Bulgarian sentences and Korean
paragraphs, with triplets in these languages and no STS. Triplets are trained on ``train-*.jsonl`` and measured on
``dev-*.jsonl``. Word counts (BM25, TF-IDF) stand beside the rungs, and a control that is trained causally on as many
tokens as MNTP is.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

SHARED = Path(__file__).resolve().parents[2] / "shared"
PARTS = ("en", "bg", "ko")
SEEDS = {"en": (1, 2, 3), "bg": (1,), "ko": (1,)}
SCORES = ("loss", "accuracy", "mrr@10", "sts", "triplets", "pairs_mrr@10")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, action="append", help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", help="of each part")
    parser.add_argument("--half", choices=("chosen", "reported"), default="reported", help="of STS-B's dev set")
    parser.add_argument("--folder", type=Path, help="keep the runs here; default: a temporary folder")
    options = parser.parse_args()
    from machine import RESULTS, write_results

    path = RESULTS / "rungs.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    with tempfile.TemporaryDirectory(prefix="rungs-") as temporary:
        home = options.folder or Path(temporary)
        for part in options.part or PARTS:
            seeds = options.seeds or SEEDS[part]
            runs = [measure(part, seed, options.half, home / f"{part}-{seed}") for seed in seeds]
            known[part] = {"seeds": list(seeds), "half": options.half, "rungs": summarise(runs)}
            print(json.dumps(known[part]["rungs"], indent=1), flush=True)
            if options.half == "reported":
                print(write_results("rungs", {name: known[name] for name in PARTS if name in known}), flush=True)


def read_text(part: str) -> list[str]:
    """Give the texts of a language."""
    if part == "bg":
        lines = (SHARED / "data/bulgarian_text/bg_sentences.tsv").read_text(encoding="utf8").splitlines()
        return [line.split("\t", 1)[1] for line in lines if "\t" in line]
    return (SHARED / f"data/wiki_paragraphs_{part}/wiki_{part}.txt").read_text(encoding="utf8").splitlines()


def measure(part: str, seed: int, half: str, home: Path) -> list[dict[str, Any]]:
    """Train a decoder, turn it, and give the rows of all rungs."""
    import turncoder
    from turncoder.quickstart import Sizes
    from turncoder.quickstart.tour import configure, configure_decoder, gather

    home.mkdir(parents=True, exist_ok=True)
    text = home / "text.txt"
    text.write_text("\n".join(line for line in read_text(part) if line.strip()) + "\n", encoding="utf8")
    sizes = Sizes()
    gather(text, home, sizes)
    base = str(turncoder.train(replace(configure_decoder(home, sizes, seed), objective="cross_entropy")))
    config = configure(base, home, sizes, seed)
    triplets = SHARED / "data/nli_triplets"
    config = replace(
        config,
        pairs=str(triplets / f"train-{part}.jsonl"),
        sts=str(cut_sts(home, half)) if part == "en" else None,
        supervised={"validation_file": str(triplets / f"dev-{part}.jsonl")},
    )
    folder = turncoder.train(config)
    return json.loads((folder / "results.json").read_text())["rows"]


def cut_sts(home: Path, half: str) -> Path:
    """Write one half of STS-B's dev set, drawn once and for all."""
    header, *rows = (SHARED / "data/stsb/stsb-dev.tsv").read_text(encoding="utf8").splitlines()
    random.Random(0).shuffle(rows)
    middle = len(rows) // 2
    path = home / f"sts-{half}.tsv"
    chosen = rows[:middle] if half == "chosen" else rows[middle:]
    path.write_text("\n".join([header, *chosen]) + "\n", encoding="utf8")
    return path


def summarise(runs: list[list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Mean, standard deviation and every seed's score."""
    rungs: dict[str, dict[str, Any]] = {}
    for rows in zip(*runs, strict=True):
        told = {}
        for score in SCORES:
            values = [row[score] for row in rows if score in row]
            if values:
                spread = statistics.stdev(values) if len(values) > 1 else None
                told[score] = {
                    "mean": round(statistics.mean(values), 4),
                    "std": round(spread, 4) if spread is not None else None,
                    "seeds": [round(value, 4) for value in values],
                }
        rungs[rows[0]["name"]] = told
    return rungs


if __name__ == "__main__":
    main()
