"""`evaluate sentences` against mteb driving plain sentence-transformers, on the same files with the same model.

    python benchmarks/sentences.py --rounds 2 --arm turncoder --arm mteb  # writes benchmarks/results/sentences.json
    python benchmarks/sentences.py --share 0.2                            # all sides: .../sentences_part.json

Both sides open one folder of a random-weight Llama (float32, bidirectional, mean pooling, 512 tokens, as in encode.py)
and let mteb score the same tasks, made of the same files: STS-B dev, SciFact, BANKING77 and movie reviews. Every run of
a side is a process of its own that imports its libraries and warms up, and is then timed from the opening of the model
to the last score; the sides take turns, medians over the rounds. mteb runs with its default of 32
texts a batch, and at another batch size too; turncoder with its defaults without baselines, with them, and with a
twentieth of the tokens a batch. Scores must be the same to 1e-4. results/sentences_epyc.json is one round of the
first line on a processor without AVX-512.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from encode import SHARED, environment, make_model

DATA = SHARED / "data"
MTEB = "mteb"
ARMS = ("turncoder", "turncoder with baselines", "turncoder, small batches", MTEB, f"{MTEB} 128")
SMALL_BATCH = 1024  # tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--share", type=float, default=1.0, help="of each set of texts; the first ones")
    parser.add_argument("--arm", choices=ARMS, action="append", help="default: all")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(work(json.loads(options.worker))), flush=True)
        return
    import torch

    from machine import write_results

    with tempfile.TemporaryDirectory(prefix="sentences-") as place:
        folder = Path(place)
        make_model({"folder": str(folder / "model")})
        specs = take_share(options.share, folder)
        runs: dict[str, list[dict]] = {name: [] for name in options.arm or ARMS}
        for turn, name in itertools.product(range(options.rounds), runs):
            run = ask(options.threads, arm=name, model=str(folder / "model"), specs=specs)
            runs[name].append(run)
            print(turn, name, {key: run[key] for key in ("seconds", "cpu_seconds")}, run["tasks"], flush=True)
    torch.set_num_threads(options.threads)  # which is written down with the machine
    name = "sentences" if options.share == 1 else "sentences_part"
    print(write_results(name, summarise(runs, options.share)), flush=True)


def summarise(runs: dict[str, list[dict]], share: float) -> dict:
    """Medians, ratios to the default of mteb, and the largest differences of scores."""
    rows = {
        name: {
            "seconds": round(statistics.median(run["seconds"] for run in several), 2),
            "cpu_seconds": round(statistics.median(run["cpu_seconds"] for run in several), 2),
            "seconds_by_task": {
                task: round(statistics.median(run["tasks"][task] for run in several), 2) for task in several[0]["tasks"]
            },
        }
        for name, several in runs.items()
    }
    ratios = {
        name: {key: round(rows[MTEB][key] / row[key], 2) for key in ("seconds", "cpu_seconds")}
        | {"rounds": [round(runs[MTEB][turn]["seconds"] / run["seconds"], 2) for turn, run in enumerate(runs[name])]}
        for name, row in rows.items()
    }
    scores = {name: several[0]["scores"] for name, several in runs.items()}
    apart = {
        name: max(abs(value - scores[MTEB][task][key]) for task, told in found.items() for key, value in told.items())
        for name, found in scores.items()
    }
    main_scores = {task: told["main_score"] for task, told in scores["turncoder"].items()}
    return {
        "share": share,
        "rounds": len(runs[MTEB]),
        "sides": rows,
        "times_as_fast_as_mteb": ratios,
        "main_scores": main_scores,
        "largest_difference_of_a_metric_to_mteb": apart,
    }


def ask(threads: int, **setting: Any) -> dict:
    """Run a side in a process of its own and return its answer."""
    command = [sys.executable, __file__, "--worker", json.dumps({"threads": threads, **setting})]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(threads))
    if done.returncode:
        raise SystemExit(f"{setting}: ended with code {done.returncode}\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def take_share(share: float, folder: Path) -> list[str]:
    """Write the first texts of each set; of SciFact the documents that the first queries name, and the first ones."""
    sts, movies = folder / "stsb.tsv", folder / "movies.tsv"
    write_head(DATA / "stsb/stsb-dev.tsv", sts, share)
    rows = (DATA / "movie_reviews/movie_reviews.tsv").read_text().splitlines(keepends=True)
    movies.write_text("".join(rows[:1] + rows[1 :: round(1 / share)]))  # they are sorted by label
    bank = folder / "banking77"
    bank.mkdir()
    for split in ("train", "test"):
        with (DATA / f"banking77/{split}.csv").open(newline="") as source, (bank / f"{split}.csv").open("w") as target:
            rows = list(csv.reader(source))
            csv.writer(target).writerows(rows[:1] + rows[1 :: round(1 / share)])
    beir, scifact = folder / "scifact", DATA / "scifact_beir"
    (beir / "qrels").mkdir(parents=True)
    write_head(scifact / "qrels/test.tsv", beir / "qrels/test.tsv", share)
    named = {row.split("\t")[1] for row in (beir / "qrels/test.tsv").read_text().splitlines()[1:]}
    (beir / "queries.jsonl").write_text((scifact / "queries.jsonl").read_text())
    lines = (scifact / "corpus.jsonl").read_text().splitlines(keepends=True)
    kept = [
        line
        for number, line in enumerate(lines)
        if number < share * len(lines) - len(named) or json.loads(line)["_id"] in named
    ]
    (beir / "corpus.jsonl").write_text("".join(kept))
    return [f"sts={sts}", f"retrieval={beir}", f"classification={bank}", f"classification={movies}"]


def write_head(source: Path, target: Path, share: float) -> None:
    rows = source.read_text().splitlines(keepends=True)
    target.write_text("".join(rows[: 1 + round(share * (len(rows) - 1))]))


# ---------------------------------------------------------------- in a process of its own


def work(setting: dict) -> dict:
    """Time a side: wall and processor time, by task, and its scores."""
    import torch

    torch.set_num_threads(setting["threads"])
    side: Callable[[dict], tuple[dict, dict, float, float]] = (
        run_mteb if setting["arm"].startswith(MTEB) else run_turncoder
    )
    tasks, scores, seconds, busy = side(setting)
    return {"seconds": seconds, "cpu_seconds": busy, "tasks": tasks, "scores": scores}


def run_mteb(setting: dict) -> tuple[dict, dict, float, float]:
    import mteb
    from sentence_transformers import SentenceTransformer

    from turncoder.evaluate.sentencefiles import open_sentence_file
    from turncoder.evaluate.sentencetasks import make_task

    SentenceTransformer(setting["model"], device="cpu").encode(["to warm up"])
    size = int(setting["arm"].removeprefix(MTEB) or 32)
    begin, busy = time.perf_counter(), time.process_time()
    encoder = SentenceTransformer(setting["model"], device="cpu")
    tasks, scores = {}, {}
    for spec in setting["specs"]:
        start = time.perf_counter()
        task = make_task(open_sentence_file(spec), 42)
        encoding = {"batch_size": size, "show_progress_bar": False}
        found = mteb.evaluate(encoder, task, cache=None, encode_kwargs=encoding, show_progress_bar=False)
        (row,) = next(iter(found.task_results[0].scores.values()))
        tasks[task.metadata.name] = time.perf_counter() - start
        scores[task.metadata.name] = take_numbers(row)
    return tasks, scores, time.perf_counter() - begin, time.process_time() - busy


def run_turncoder(setting: dict) -> tuple[dict, dict, float, float]:
    import mteb  # noqa: F401  imported by both sides before the clock runs

    from turncoder import load_encoder
    from turncoder.config.sentences import SentencesConfig
    from turncoder.evaluate import baselines, items, mtebruns, mtebtasks, sentencetasks  # noqa: F401

    load_encoder(setting["model"], device="cpu").encode(["to warm up"])
    with tempfile.TemporaryDirectory() as folder:
        config = SentencesConfig(
            model_name_or_path=setting["model"],
            task_file=tuple(setting["specs"]),
            baselines="baselines" in setting["arm"],
            batch_tokens=SMALL_BATCH if "small" in setting["arm"] else None,
            device="cpu",
            output_dir=f"{folder}/run",
        )
        begin, busy = time.perf_counter(), time.process_time()
        run = mtebruns.evaluate_sentences(config)
        seconds, busy = time.perf_counter() - begin, time.process_time() - busy
        told = json.loads((run / "results.json").read_text())["tasks"]
    tasks = {name: one["seconds"] for name, one in told.items()}
    scores = {name: take_numbers({"main_score": one["main_score"], **one["metrics"]}) for name, one in told.items()}
    return tasks, scores, seconds, busy


def take_numbers(row: dict) -> dict[str, float]:
    return {name: value for name, value in row.items() if isinstance(value, int | float) and value == value}


if __name__ == "__main__":
    main()
