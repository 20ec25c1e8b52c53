"""Packing: turncoder against the `datasets.map` route of run_mlm, against the bare tokenizer, and in memory.

    python benchmarks/packing.py [--megabytes 16] [--repeats 3] [--memory 10 100 1000]

Every round runs all sides one after the other on the same text; medians over rounds, of the wall clock and of processor
time (which does not mind what else the machine is doing). Texts are paragraphs of a seed
file (any file with a text a line), put together anew with numbers in them, so that no cache of words sees a loop.
Results go to benchmarks/results/packing.json.
"""

import argparse
import itertools
import json
import logging
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

import numpy as np

from machine import RESULTS, write_results

SHARED = Path(__file__).resolve().parents[2] / "shared"
BLOCK = 512
ROUTES = ("turncoder", "datasets", "bare")


def write_text(path: Path, seed_file: Path, megabytes: float) -> None:
    """Write paragraphs made of the seed file's sentences, shuffled, some of their words swapped and numbered."""
    draw = random.Random(0)
    sentences = [
        part for line in seed_file.read_text(encoding="utf-8").splitlines() for part in line.split(". ") if part
    ]
    words = sorted({word for part in sentences for word in part.split()})
    size = 0
    with path.open("w", encoding="utf-8") as stream:
        while size < megabytes * 1e6:
            parts = draw.choices(sentences, k=draw.randint(2, 9))
            place = draw.randrange(len(parts))
            parts[place] += f" {draw.choice(words)} {draw.choice(words)} {draw.randrange(10**6)}"
            line = ". ".join(parts) + ".\n"
            size += len(line.encode())
            stream.write(line)


def read_clocks() -> tuple[float, float]:
    """Wall clock, and processor time of this process and of its children that have ended."""
    return time.perf_counter(), sum(os.times()[:4])


def since(start: tuple[float, float]) -> dict:
    wall, busy = read_clocks()
    return {"seconds": wall - start[0], "cpu_seconds": busy - start[1]}


def run_turncoder(text: Path, tokenizer_folder: Path, workers: int, folder: Path) -> dict:
    from turncoder.data.corpus import open_corpus
    from turncoder.data.packing import prepare_blocks
    from turncoder.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_folder)
    start = read_clocks()
    corpus = open_corpus(file=text)
    train, _ = prepare_blocks(
        corpus=corpus,
        tokenizer=tokenizer,
        block_size=BLOCK,
        folder=folder,
        validation_percentage=0,
        workers=workers if workers > 1 else None,
    )
    return {**since(start), "tokens": train.num_tokens}


def run_datasets(text: Path, tokenizer_folder: Path, workers: int, folder: Path) -> dict:
    import datasets

    from turncoder.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_folder)
    start = read_clocks()
    raw = datasets.load_dataset("text", data_files=str(text), cache_dir=str(folder), split="train")

    def tokenize(examples):
        return tokenizer(examples["text"], return_special_tokens_mask=True)

    shape = {"batched": True, "num_proc": workers if workers > 1 else None, "load_from_cache_file": False}
    tokens = raw.map(tokenize, remove_columns=["text"], **shape)
    middle = read_clocks()
    grouped = tokens.map(group_texts, **shape)
    grouping = {f"grouping_{key}": value for key, value in since(middle).items()}
    return {**since(start), **grouping, "tokens": len(grouped) * BLOCK}


def group_texts(examples):
    """Cut the batch's tokens into blocks, the remainder dropped: what run_mlm does."""
    joined = {key: list(itertools.chain(*values)) for key, values in examples.items()}
    total = len(joined["input_ids"]) // BLOCK * BLOCK
    return {key: [values[at : at + BLOCK] for at in range(0, total, BLOCK)] for key, values in joined.items()}


def run_bare(text: Path, tokenizer_folder: Path, workers: int, folder: Path) -> dict:
    """Only `encode_batch_fast`, nothing kept: texts are read before the clock starts; processes each do a part."""
    from tokenizers import Tokenizer

    if workers > 1:
        os.environ["RAYON_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // workers))
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    texts = [line for line in text.read_text(encoding="utf-8").split("\n") if line]
    batches = [texts[at : at + 4000] for at in range(0, len(texts), 4000)]

    def encode(part):
        return sum(len(row) for batch in part for row in tokenizer.encode_batch_fast(batch))

    if workers == 1:
        start = read_clocks()
        tokens = encode(batches)
    else:
        import multiprocessing

        context = multiprocessing.get_context("fork")
        receive, send = context.Pipe(False)
        children = [
            context.Process(target=lambda part=part: send.send(encode(part)))
            for part in (batches[at::workers] for at in range(workers))
        ]
        start = read_clocks()
        for child in children:
            child.start()
        tokens = sum(receive.recv() for _ in children)
        for child in children:
            child.join()
    return {**since(start), "tokens": tokens}


def run_grouping(text: Path, tokenizer_folder: Path, workers: int, folder: Path) -> dict:
    """Time what turncoder does after the tokenizer, as `group_texts` is timed: ids to arrays, the split, the files."""
    from turncoder.data import encoding, tokens
    from turncoder.data.corpus import open_corpus
    from turncoder.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_folder)
    corpus = open_corpus(file=text)
    shards = list(tokens._shards(corpus, 0))
    tokens._shards = lambda corpus, skip: shards  # neither side reads text
    backend = tokenizer.backend_tokenizer
    known = {shard[0]: [row.ids for row in backend.encode_batch_fast(shard)] for shard in shards}
    call = encoding.Encoder._call
    encoding.Encoder._call = lambda self, rows, specials=True: (  # the tokenizer costs nothing here
        known[rows[0]] if rows[0] in known else call(self, rows, specials)
    )
    options = {"keep_empty": False, "validation_percentage": 5, "first_validate": False}
    import rich.progress  # noqa: F401 - the command line has it loaded

    work = tokens.TokenPass(corpus, None, tokenizer, options, folder / "tokens")
    start = read_clocks()
    work.run(None)
    return {**since(start), "tokens": sum(len(ids) for rows in known.values() for ids in rows)}


def measure(route: str, text: Path, tokenizer: Path, workers: int) -> dict:
    """Run one route in a process and a folder of its own; its peak memory includes its children's."""
    folder = Path(tempfile.mkdtemp(prefix="packing-"))
    try:
        command = [sys.executable, __file__, "--route", route, str(text), str(tokenizer), str(workers), str(folder)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return json.loads(done.stdout.splitlines()[-1])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_route(route: str, text: str, tokenizer: str, workers: str, folder: str) -> None:
    import resource

    logging.disable(logging.INFO)
    routes = {"turncoder": run_turncoder, "datasets": run_datasets, "bare": run_bare, "grouping": run_grouping}
    result = routes[route](Path(text), Path(tokenizer), int(workers), Path(folder))
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(json.dumps({**result, "peak_mb": round(peaks[0] / 1024, 1), "largest_child_mb": round(peaks[1] / 1024, 1)}))


def compare(tokenizer: Path, text: Path, workers: int, repeats: int) -> dict:
    """Interleave the routes; medians, and the ratios that the targets speak of."""
    routes = ROUTES if workers > 1 else (*ROUTES, "grouping")
    runs: dict[str, list[dict]] = {route: [] for route in routes}
    for _ in range(repeats):
        for route in routes:
            runs[route].append(measure(route, text, tokenizer, workers))
    speed = {
        route: statistics.median(run["tokens"] / run["seconds"] for run in results) for route, results in runs.items()
    }
    row = {
        "tokenizer": tokenizer.name,
        "processes": workers,
        "megabytes": round(text.stat().st_size / 1e6),
        "rounds": repeats,
        "tokens_per_second": {route: round(value) for route, value in speed.items()},
        "end_to_end_over_datasets": round(speed["turncoder"] / speed["datasets"], 2),
        "share_of_bare_tokenizer": round(speed["turncoder"] / speed["bare"], 3),
        "cpu_microseconds_per_token": {
            route: round(statistics.median(run["cpu_seconds"] / run["tokens"] for run in results) * 1e6, 3)
            for route, results in runs.items()
        },
        "end_to_end_over_datasets_in_cpu": 0.0,
        "share_of_bare_tokenizer_in_cpu": 0.0,
        "peak_mb": {route: max(run["peak_mb"] for run in results) for route, results in runs.items()},
    }
    busy = row["cpu_microseconds_per_token"]
    row["end_to_end_over_datasets_in_cpu"] = round(busy["datasets"] / busy["turncoder"], 2)
    row["share_of_bare_tokenizer_in_cpu"] = round(busy["bare"] / busy["turncoder"], 3)
    if workers == 1:
        theirs = statistics.median(run["tokens"] / run["grouping_seconds"] for run in runs["datasets"])
        row["tokens_per_second"]["group_texts"] = round(theirs)
        row["grouping_over_group_texts"] = round(speed["grouping"] / theirs, 1)
        cost = statistics.median(run["grouping_cpu_seconds"] / run["tokens"] for run in runs["datasets"])
        busy["group_texts"] = round(cost * 1e6, 3)
        row["grouping_over_group_texts_in_cpu"] = round(busy["group_texts"] / busy["grouping"], 1)
    print(json.dumps(row), flush=True)
    return row


def measure_memory(tokenizer: Path, seed_file: Path, size: float, scratch: Path) -> dict:
    text = scratch / f"text-{size:g}.txt"
    write_text(text, seed_file, size)
    result = measure("turncoder", text, tokenizer, 1)
    text.unlink()
    row = {"tokenizer": tokenizer.name, "megabytes": size, **{key: round(value, 1) for key, value in result.items()}}
    print(json.dumps(row), flush=True)
    return row


def measure_masking() -> dict:
    """Microseconds that masking one row of 512 tokens takes, which a training step takes 8 to 32 of."""
    from turncoder.data.masking import Masking

    masking = Masking(0.2, 5, 32000, (0, 1, 2))
    row = np.random.default_rng(0).integers(0, 32000, BLOCK)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        for index in range(1000):
            masking.corrupt(row, 0, index)
        times.append(time.perf_counter() - start)
    return {"microseconds_per_row_of_512": round(statistics.median(times) * 1000, 1)}


def keep(part: str, rows: list[dict]) -> None:
    """Put rows into the results, in the place of those that measured the same thing before."""
    path = RESULTS / "packing.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    results = {name: known.get(name, []) for name in ("speed", "memory", "masking")}
    what = [[row.get(key) for key in ("tokenizer", "processes", "megabytes")] for row in rows]
    others = [
        row for row in results[part] if [row.get(key) for key in ("tokenizer", "processes", "megabytes")] not in what
    ]
    write_results("packing", {**results, part: others + rows})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--route", nargs=5, help=argparse.SUPPRESS)
    parser.add_argument("--megabytes", type=float, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokenizers", nargs="*", default=["gpt2", "mistral-7b-v1"])
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--memory", type=float, nargs="*", default=[10, 100, 1000])
    parser.add_argument("--text", type=Path, default=SHARED / "data/wiki_paragraphs_en/wiki_en.txt")
    parser.add_argument("--part", choices=["speed", "memory"], action="append", help="default: both")
    options = parser.parse_args()
    if options.route:
        run_route(*options.route)
        return
    tokenizers = [SHARED / "tokenizers" / name for name in options.tokenizers]
    parts = options.part or ["speed", "memory"]
    with tempfile.TemporaryDirectory() as folder:
        if "speed" in parts:
            text = Path(folder) / "text.txt"
            write_text(text, options.text, options.megabytes)
            keep("masking", [measure_masking()])
            for name, workers in itertools.product(tokenizers, options.workers):
                keep("speed", [compare(name, text, workers, options.repeats)])
        if "memory" in parts:
            for size in options.memory:
                keep("memory", [measure_memory(tokenizers[-1], options.text, size, Path(folder))])


if __name__ == "__main__":
    main()
