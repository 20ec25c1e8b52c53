"""Words: how long it takes to find their tokens, and what memory the features of a frozen backbone take.

    python benchmarks/words.py                     # writes benchmarks/results/words.json
    python benchmarks/words.py --part alignment    # that part anew, the others as they are

``alignment``: all words of UD English-EWT, read before the clock starts, with tokenizers of several kinds, on one core.
Every run is a process of its own; medians over the rounds, of the wall clock and of processor time (which does not mind
what else the machine is doing). The tokenizer's own share is what it takes to tokenise the same sentences in one call,
with their offsets.

``memory``: the states of the stories' model, every layer and both readings, for ever more words of EWT: the peak of a
process above that on a few sentences, and how much lies on disk.

``probe``: a whole run of a probe against LLM2Vec's way; see probes.py.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from machine import RESULTS, write_results
from probes import measure_probe

SHARED = Path(__file__).resolve().parents[2] / "shared"
SPLITS = [SHARED / f"data/ud_english_ewt/en_ewt-ud-{split}.conllu" for split in ("train", "dev", "test")]
STORIES = SHARED / "models/stories260k-hf"
TOKENIZERS = (
    *(SHARED / "tokenizers" / name for name in ("gpt2", "gpt-neox-20b", "mistral-7b-v1")),
    STORIES,
)
SHARES = (0.01, 0.1, 0.3, 1.0)  # of the sentences


def measure_alignment(rounds: int) -> dict:
    """Take medians for each tokenizer; the slowest one counts."""
    rows = []
    for tokenizer in TOKENIZERS:
        runs = [run("align", str(tokenizer)) for _ in range(rounds)]
        row = {"tokenizer": tokenizer.name, **runs[0]["counts"]}
        for clock in ("seconds", "cpu_seconds", "tokenizer_cpu_seconds"):
            row[clock] = round(statistics.median(one[clock] for one in runs), 2)
        rows.append(row)
        print(json.dumps(row), flush=True)
    return {"rounds": rounds, "rows": rows, "slowest_seconds": max(row["seconds"] for row in rows)}


def measure_memory(rounds: int) -> dict:
    """Measure the peak for ever more words."""
    rows = [run("features", str(share)) for share in SHARES]
    for row in rows:
        row["above_the_first_mb"] = round(row["peak_mb"] - rows[0]["peak_mb"])
        print(json.dumps(row), flush=True)
    return {"rows": rows}


def align(tokenizer: str) -> dict:
    from turncoder.data.alignment import align_words, choose_bos
    from turncoder.data.tokenizer import load_tokenizer

    data = read_words()
    loaded = load_tokenizer(tokenizer)
    texts = data["text"][:]
    wall, busy = time.perf_counter(), time.process_time()
    found = align_words(loaded, data, limit=512, bos=choose_bos(loaded))
    result = {"counts": found.counts, "seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - busy}
    loaded = load_tokenizer(tokenizer)  # without the words that it remembers by now
    busy = time.process_time()
    loaded.backend_tokenizer.encode_batch(texts)
    return {**result, "tokenizer_cpu_seconds": time.process_time() - busy}


def features(share: str) -> dict:
    import resource

    from turncoder.data.alignment import align_words
    from turncoder.data.tokenizer import load_tokenizer
    from turncoder.model.backbone import load_backbone
    from turncoder.train.features import compute_features

    data = read_words()
    data = data.select(range(round(float(share) * len(data))))
    found = align_words(load_tokenizer(str(STORIES)), data, limit=512, bos=None)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        states = compute_features(
            load_backbone(str(STORIES)),
            found,
            layers=range(6),
            readings=("same_token", "previous_token"),
            merge=True,
            folder=Path(folder),
            fingerprint="benchmark",
            pad_token_id=0,
        )
        seconds = time.perf_counter() - begin
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        states.close()
    return {
        "words": found.counts["words"],
        "tokens": found.counts["tokens"],
        "disk_mb": round(size / 1e6),
        "seconds": round(seconds, 1),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def read_words():
    from datasets import concatenate_datasets

    from turncoder.data.words import open_words

    return concatenate_datasets([open_words(file=str(path)).data for path in SPLITS])


WORKERS: dict[str, Callable[[str], dict]] = {"align": align, "features": features}


def run(worker: str, argument: str) -> dict:
    """Run a worker in a process of its own, on one core."""
    single = {"RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, __file__, "--worker", worker, argument]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **single})
    return json.loads(done.stdout.splitlines()[-1])


PARTS: dict[str, Callable[[int], dict]] = {
    "alignment": measure_alignment,
    "memory": measure_memory,
    "probe": measure_probe,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, action="append", help="default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        name, argument = options.worker
        print(json.dumps(WORKERS[name](argument)))
        return
    path = RESULTS / "words.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    for part in options.part or PARTS:
        known[part] = PARTS[part](options.rounds)
    write_results("words", {part: known[part] for part in PARTS if part in known})


if __name__ == "__main__":
    main()
