"""Texts to vectors on a CPU: turncoder, sentence-transformers and llm2vec 0.2.3; memory and precision of turncoder.

    python benchmarks/mntp.py --make-venv          # once: llm2vec 0.2.3 with its own transformers, in its own venv
    python benchmarks/encode.py                    # writes benchmarks/results/encode.json
    python benchmarks/encode.py --part memory      # that part anew, the others as they are

``speed``: all sides open one folder of a random-weight Llama (float32, bidirectional, mean pooling, 512 tokens) and
encode the same sentences and paragraphs. Every run of a side is a process of its own that loads the model, encodes a
few texts to warm up and is then timed; the sides take turns, medians over the rounds. sentence-transformers and llm2vec
run with their defaults (32 texts a batch), sentence-transformers at other batch sizes too. llm2vec does a little less:
it cuts texts to ``doc_max_length`` = 400 tokens, where the others go to 512, and leaves BOS out of the pooling.
turncoder's vectors must be those of sentence-transformers, and in its LLM2Vec mode those of llm2vec. Tokens are the
real ones that went through the model: a text that occurs twice counts twice with the others and once with turncoder,
which encodes it once. FLOPs are those of real tokens, so padding lowers the share of the matrix-product rate.

``memory``: ``turncoder encode`` on a million short texts, its peak above that on 100 texts; then again, killed twice on
the way, which must end in the same bytes.

``lanes``: batches side by side, a thread each, against one after another by all threads; paragraphs, in one
process, the two taking turns.

``precision``: half precision against float32, sdpa against eager, alone against in a batch.
"""

from __future__ import annotations

import argparse
import csv
import filecmp
import functools
import json
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHARED = Path(__file__).resolve().parents[2] / "shared"
TOKENIZER = SHARED / "tokenizers/mistral-7b-v1"
TINY = SHARED / "models/stories260k-hf"
STSB = SHARED / "data/stsb/stsb-dev.tsv"
WIKI = SHARED / "data/wiki_paragraphs_en/wiki_en.txt"

PARTS = ("speed", "lanes", "memory", "precision")
MOST_TEXTS = {"speed": 2000, "lanes": 300, "memory": 1_000_000, "precision": 500}
WIDTH, INNER, LAYERS, HEADS, VOCABULARY, POSITIONS, LENGTH = 256, 688, 4, 4, 32_000, 2048, 512
PRODUCTS = {"2048x256 @ 256x688": (2048, 256, 688), "1024x1024 @ 1024x1024": (1024, 1024, 1024)}
DEFAULT = "sentence-transformers"
BATCH_SIZES = {f"{DEFAULT} {size}": size for size in (8, 16, 64, 128)}
ARMS = ("turncoder", DEFAULT, *BATCH_SIZES, "llm2vec")
ALONE = 50
BASE_TEXTS = 100
SHARD_TEXTS = 16384  # the default of `turncoder encode`
WORDS = ("small", "dog", "red", "house", "old", "tree", "cold", "water", "girl", "happy", "bird", "garden", "day")
KILLS = (0.25, 0.6)  # shares of the shards that are there when it is killed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, action="append", help="default: all")
    parser.add_argument("--rounds", type=int, default=3, help="of the speed part")
    parser.add_argument("--texts", type=int, default=max(MOST_TEXTS.values()), help="at most so many in each part")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--llm2vec-venv", type=Path, default=Path.home() / ".cache/turncoder-bench/llm2vec")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(json.loads(options.worker))
        return
    parts = options.part or PARTS
    if "speed" in parts and not (options.llm2vec_venv / "bin" / "python").exists():
        raise SystemExit(f"no llm2vec in {options.llm2vec_venv}: run benchmarks/mntp.py --make-venv first")
    measures: dict[str, Callable[[argparse.Namespace, Path], dict]] = {
        "speed": measure_speed,
        "lanes": measure_lanes,
        "memory": measure_memory,
        "precision": measure_precision,
    }
    for part in PARTS:
        if part in parts:
            with tempfile.TemporaryDirectory(prefix="encode-") as folder:
                keep(part, measures[part](options, Path(folder)), options.threads)


def keep(part: str, row: dict, threads: int) -> None:
    """Put a part into the results; those of the other parts stay."""
    import torch

    from machine import RESULTS, write_results

    torch.set_num_threads(threads)  # which is written down with the machine
    file = "lanes" if part == "lanes" else "encode"  # by itself: its machine is another one
    path = RESULTS / f"{file}.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known[part] = row
    print(json.dumps({part: row}, indent=1), flush=True)
    print(write_results(file, {name: known[name] for name in PARTS if name in known}), flush=True)


def environment(threads: int) -> dict[str, str]:
    """Give every side the same threads, in its tokenizer too, and no accelerator."""
    count = str(threads)
    same = {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "RAYON_NUM_THREADS": count}
    return {**os.environ, **same, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}


def ask(task: str, threads: int, python: str | Path = sys.executable, **setting: Any) -> dict:
    """Do a task in a process of its own and return its answer."""
    command = [str(python), __file__, "--worker", json.dumps({"task": task, "threads": threads, **setting})]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(threads))
    if done.returncode:
        raise SystemExit(f"{task} {setting}: ended with code {done.returncode}\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def sample_texts(count: int, folder: Path) -> tuple[list[str], Path]:
    """Half sentences of STS-B and half paragraphs of Wikipedia, shuffled; also as a file."""
    draw = random.Random(0)
    with STSB.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    sentences = [row[column] for row in rows for column in ("sentence1", "sentence2")]
    paragraphs = [line for line in WIKI.read_text(encoding="utf-8").split("\n") if line.strip()]
    texts = draw.sample(sentences, count // 2) + draw.sample(paragraphs, count - count // 2)
    draw.shuffle(texts)
    path = folder / "texts.json"
    path.write_text(json.dumps(texts))
    return texts, path


# ---------------------------------------------------------------- speed


def measure_speed(options: argparse.Namespace, folder: Path) -> dict:
    """Interleave the sides; medians, ratios and the checks that all of them did the same."""
    texts, file = sample_texts(min(options.texts, MOST_TEXTS["speed"]), folder)
    model, threads = folder / "model", options.threads
    parameters = ask("make_model", threads, folder=str(model))["non_embedding_parameters"]
    theirs = options.llm2vec_venv / "bin" / "python"
    runs: dict[str, list[dict]] = {name: [] for name in ARMS}
    rates: dict[str, list[float]] = {name: [] for name in PRODUCTS}
    for turn in range(options.rounds):
        for name, rate in ask("matmul", threads).items():
            rates[name].append(rate)
        for name in ARMS:
            setting = {"model": str(model), "texts": str(file), "vectors": str(vectors_file(folder, name))}
            kind = DEFAULT if name in BATCH_SIZES else name
            python = theirs if name == "llm2vec" else sys.executable
            run = ask(kind, threads, python, batch_size=BATCH_SIZES.get(name, 32), **setting)
            runs[name].append(run)
            print(f"round {turn + 1}: {name:26} {run['seconds']:8.2f} s", file=sys.stderr, flush=True)
    reference = vectors_file(folder, "reference")
    ask("llm2vec_mode", threads, model=str(model), texts=str(file), vectors=str(reference))
    matmul = {name: statistics.median(values) for name, values in rates.items()}
    rows = {name: summarise(runs[name], len(texts), parameters, max(matmul.values())) for name in ARMS}
    speed = {name: row["texts_per_second"] for name, row in rows.items()}
    best = max((DEFAULT, *BATCH_SIZES), key=lambda name: speed[name])
    return {
        "model": {
            "width": WIDTH,
            "inner": INNER,
            "layers": LAYERS,
            "heads": HEADS,
            "vocabulary": VOCABULARY,
            "max_length": LENGTH,
            "non_embedding_parameters": parameters,
        },
        "texts": len(texts),
        "distinct_share": round(len(set(texts)) / len(texts), 4),
        "truncated_by_turncoder": runs["turncoder"][0]["truncated"],
        "threads": threads,
        "rounds": options.rounds,
        "matmul_gflops": {name: round(rate / 1e9, 1) for name, rate in matmul.items()},
        "arms": rows,
        "best_sentence_transformers": best,
        "turncoder_over": {
            "sentence-transformers_default": round(speed["turncoder"] / speed[DEFAULT], 2),
            "sentence-transformers_best": round(speed["turncoder"] / speed[best], 2),
            "llm2vec": round(speed["turncoder"] / speed["llm2vec"], 2),
        },
        "checks": check_vectors(folder),
    }


def vectors_file(folder: Path, arm: str) -> Path:
    return folder / f"{arm.replace(' ', '-')}.npy"


def summarise(runs: list[dict], texts: int, parameters: int, rate: float) -> dict:
    """Medians of one side."""
    first = runs[0]
    seconds = statistics.median(run["seconds"] for run in runs)
    # An attention layer multiplies each of L queries with L keys and L values, WIDTH numbers each; two FLOPs a product
    flops = 2 * parameters * first["tokens"] + 4 * LAYERS * WIDTH * first["squared_lengths"]
    return {
        "texts_per_second": round(texts / seconds, 1),
        "tokens_per_second": round(first["tokens"] / seconds, 1),
        "seconds": round(seconds, 3),
        "fastest": round(min(run["seconds"] for run in runs), 3),
        "slowest": round(max(run["seconds"] for run in runs), 3),
        "cpu_seconds": round(statistics.median(run["cpu_seconds"] for run in runs), 3),
        "tokens": first["tokens"],
        "padding_share": round(1 - first["tokens"] / first["positions"], 4),
        "batches": first["batches"],
        "gflop": round(flops / 1e9, 1),
        "share_of_matmul_rate": round(flops / seconds / rate, 3),
        "peak_mb": round(max(run["peak_mb"] for run in runs), 1),
        "loaded_mb": round(max(run["loaded_mb"] for run in runs), 1),
        "versions": first["versions"],
    }


def check_vectors(folder: Path) -> dict:
    """Assert that turncoder's vectors are the others'; return the largest absolute differences."""
    import numpy as np

    def gap(one: str, other: str) -> float:
        return float(np.abs(np.load(vectors_file(folder, one)) - np.load(vectors_file(folder, other))).max())

    pairs = {name: ("turncoder", name) for name in (DEFAULT, *BATCH_SIZES)} | {"llm2vec": ("reference", "llm2vec")}
    gaps = {name: gap(*pair) for name, pair in pairs.items()}
    assert max(gaps.values()) < 1e-4, f"the sides do not compute the same vectors: {gaps}"
    largest = float(np.abs(np.load(vectors_file(folder, "turncoder"))).max())
    return {
        "largest_value": float(f"{largest:.3g}"),
        "turncoder_from_sentence-transformers": float(f"{max(gaps[name] for name in (DEFAULT, *BATCH_SIZES)):.2g}"),
        "turncoder_in_llm2vec_mode_from_llm2vec": float(f"{gaps['llm2vec']:.2g}"),
    }


# ---------------------------------------------------------------- memory


def measure_memory(options: argparse.Namespace, folder: Path) -> dict:
    """Encode many texts through the command line, whole and killed twice."""
    count = min(options.texts, MOST_TEXTS["memory"])
    size = min(SHARD_TEXTS, -(-count // 20))  # fewer texts still make 20 shards, so that there is something to kill
    shards = -(-count // size)
    few, many = folder / "few.txt", folder / "many.txt"
    write_texts(few, min(count, BASE_TEXTS))
    write_texts(many, count)
    _, base = run_command(encode_command(few, folder / "few", size), folder, options.threads)
    seconds, peak = run_command(encode_command(many, folder / "whole", size), folder, options.threads)
    command, killed_at = encode_command(many, folder / "killed", size), []
    for share in KILLS:
        there = kill_on_the_way(command, folder, options.threads, folder / "killed", share * shards)
        if there is not None:
            killed_at.append(there)
    run_command(command, folder, options.threads)
    return {
        "model": TINY.name,
        "texts": count,
        "megabytes": round(many.stat().st_size / 1e6, 1),
        "shards": shards,
        "shard_texts": size,
        "threads": options.threads,
        "seconds": round(seconds, 1),
        "texts_per_second": round(count / seconds, 1),  # of the whole command: imports, model and reading included
        "peak_mb": round(peak, 1),
        "peak_mb_on_100_texts": round(base, 1),
        "peak_above_model_mb": round(peak - base, 1),
        "killed_with_so_many_shards": killed_at,
        "identical_after_kills": same_bytes(folder / "whole", folder / "killed", shards),
    }


def write_texts(path: Path, count: int) -> None:
    """Write made-up sentences of a few words, each with its own number."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as stream:
        for number in range(count):
            stream.write(f"{' '.join(draw.choices(WORDS, k=draw.randint(2, 10)))} {number}.\n")


def encode_command(texts: Path, out: Path, shard_texts: int) -> list[str]:
    turncoder = Path(sys.executable).with_name("turncoder")
    return [*map(str, (turncoder, "encode", TINY, texts, "--output", out, "--shard_texts", shard_texts))]


def start(command: list[str], folder: Path, threads: int) -> subprocess.Popen:
    """Start it in a session of its own, so that a kill takes its children along."""
    with (folder / "log.txt").open("wb") as log:
        return subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment(threads), start_new_session=True
        )


def kill(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_command(command: list[str], folder: Path, threads: int) -> tuple[float, float]:
    """Run it to its end; seconds, and the peak memory in MB of its largest process."""
    begin = time.perf_counter()
    process = start(command, folder, threads)
    try:
        _, status, usage = os.wait4(process.pid, 0)  # unlike RUSAGE_CHILDREN, of this child and its own alone
    except BaseException:
        kill(process)
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command}: ended with code {process.returncode}\n{(folder / 'log.txt').read_text()[-4000:]}")
    return time.perf_counter() - begin, usage.ru_maxrss * 1024 / 1e6


def kill_on_the_way(command: list[str], folder: Path, threads: int, out: Path, shards: float) -> int | None:
    """Kill it when so many shards are there; return how many there were, None if it came to its end before."""
    process = start(command, folder, threads)
    try:
        while process.poll() is None:
            there = len(list(out.glob("vectors-*.npy")))
            if there >= shards:
                return there
            time.sleep(0.005)
    finally:
        if process.poll() is None:
            kill(process)
    if process.returncode:
        raise SystemExit(f"{command}: ended with code {process.returncode}\n{(folder / 'log.txt').read_text()[-4000:]}")
    return None


def same_bytes(one: Path, other: Path, shards: int) -> bool:
    """Whether two folders have the same files but for metrics.jsonl, all shards among them, with the same content."""
    names, others = ({path.name for path in folder.iterdir()} - {"metrics.jsonl"} for folder in (one, other))
    if names != others or len(names) != shards + 1:
        return False
    return all(filecmp.cmp(one / name, other / name, shallow=False) for name in names)


# ---------------------------------------------------------------- precision


def measure_lanes(options: argparse.Namespace, folder: Path) -> dict:
    """Encode the same paragraphs in both ways, and say how many times as fast side by side is."""
    paragraphs = [line for line in WIKI.read_text(encoding="utf-8").split("\n") if line.strip()]
    texts = random.Random(0).sample(paragraphs, min(options.texts, MOST_TEXTS["lanes"], len(paragraphs)))
    (folder / "texts.json").write_text(json.dumps(texts))
    ask("make_model", options.threads, folder=str(folder / "model"))
    setting = {"model": str(folder / "model"), "texts": str(folder / "texts.json"), "rounds": options.rounds}
    rates = ask("lanes", options.threads, **setting)
    middle = {way: statistics.median(several) for way, several in rates.items()}
    return {
        "texts": len(texts),
        "tokens_per_second": {way: [round(one) for one in several] for way, several in rates.items()},
        "times_as_fast_side_by_side": round(middle["side by side"] / middle["in turn"], 2),
    }


def measure_precision(options: argparse.Namespace, folder: Path) -> dict:
    """Compare vectors of turncoder: with random weights of the speed part's shape, and with a small trained model."""
    texts, file = sample_texts(min(options.texts, MOST_TEXTS["precision"]), folder)
    ask("make_model", options.threads, folder=str(folder / "model"))
    models = {"random weights": folder / "model", TINY.name: TINY}
    rows = {
        name: ask("precision", options.threads, model=str(model), texts=str(file)) for name, model in models.items()
    }
    return {"texts": len(texts), "alone": min(ALONE, len(texts)), "models": rows}


# ---------------------------------------------------------------- in a process of its own


def work(setting: dict) -> None:
    """Do one task and print its answer as the last line."""
    import torch

    torch.set_num_threads(setting["threads"])
    answer = TASKS[setting["task"]](setting)
    print(json.dumps(answer), flush=True)


def make_model(setting: dict) -> dict:
    """Write a random bidirectional Llama and a tokenizer that transformers 4.44 and 5 both open."""
    import shutil

    import torch
    from transformers import LlamaConfig, LlamaModel

    folder = Path(setting["folder"])
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=POSITIONS,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        use_cache=False,
    )
    config.is_causal = False
    model = LlamaModel(config)
    model.save_pretrained(folder)
    shutil.copyfile(TOKENIZER / "tokenizer.json", folder / "tokenizer.json")
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    shape = {"padding_side": "right", "model_max_length": LENGTH, "clean_up_tokenization_spaces": False}
    # Else the tokenizer of 4.44 gives token types, which its Llama refuses
    inputs = {"model_input_names": ["input_ids", "attention_mask"]}
    known = {"tokenizer_class": "PreTrainedTokenizerFast", **tokens, **shape, **inputs}
    (folder / "tokenizer_config.json").write_text(json.dumps(known, indent=1) + "\n")
    embedded = model.get_input_embeddings().weight.numel()
    return {"non_embedding_parameters": sum(weight.numel() for weight in model.parameters()) - embedded}


def measure_matmul(setting: dict) -> dict:
    """FLOP/s of float32 products: what the machine can do now."""
    import torch

    rates = {}
    for name, (rows, inner, columns) in PRODUCTS.items():
        one, other = torch.randn(rows, inner), torch.randn(inner, columns)
        seconds = []
        for _ in range(33):
            begin = time.perf_counter()
            torch.mm(one, other)
            seconds.append(time.perf_counter() - begin)
        rates[name] = 2 * rows * inner * columns / min(seconds[3:])  # the first ones warm up
    return rates


def peak_mb() -> float:
    """Peak memory of this process; Linux carries the parent's over into it, but the parent never loads as much."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def time_encoding(setting: dict, model: Any, encode: Callable[[list[str]], Any], packages: tuple[str, ...]) -> dict:
    """Warm up, time one call, and count what went through the transformer: real tokens and positions."""
    import importlib.metadata

    import numpy as np

    texts = json.loads(Path(setting["texts"]).read_text())
    encode(texts[:16])
    counted: list[list[int]] = []
    positions: list[int] = []

    forward = model.forward

    @functools.wraps(forward)
    def count_and_run(*arguments: Any, **named: Any) -> Any:
        mask_BL = named["attention_mask"]
        positions.append(mask_BL.numel())
        counted.append(mask_BL.sum(-1).tolist())
        return forward(*arguments, **named)

    model.forward = count_and_run  # sentence-transformers calls it by this name, past all hooks
    loaded = peak_mb()
    begin, busy = time.perf_counter(), time.process_time()
    vectors_ND = encode(texts)
    spent = {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - busy}
    peak = peak_mb()
    np.save(setting["vectors"], vectors_ND)
    lengths = [length for batch in counted for length in batch]
    return {
        **spent,
        "tokens": sum(lengths),
        "squared_lengths": sum(length * length for length in lengths),
        "positions": sum(positions),
        "batches": len(positions),
        "peak_mb": peak,
        "loaded_mb": loaded,
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", *packages)},
    }


def run_turncoder(setting: dict) -> dict:
    from turncoder import load_encoder
    from turncoder.encode.texts import BatchEncoder, Counts

    encoder = load_encoder(setting["model"], device="cpu")
    latest = Counts()

    def encode(texts: list[str]) -> Any:
        nonlocal latest
        vectors_ND, latest = BatchEncoder(encoder).encode(texts)  # set up within the clock, as by `encode_texts`
        return vectors_ND

    answer = time_encoding(setting, encoder.transformers_model, encode, ("sentence-transformers",))
    filled = answer["positions"] - latest.padded  # rows that fill batches of few tokens, at most one or two of each
    assert 0 <= answer["tokens"] - latest.tokens <= filled <= 256 * answer["batches"], (latest, answer)
    return {**answer, "tokens": latest.tokens, "truncated": latest.truncated}


def run_lanes(setting: dict) -> dict:
    from turncoder import load_encoder
    from turncoder.encode import texts as module

    texts = json.loads(Path(setting["texts"]).read_text())
    batches = module.BatchEncoder(load_encoder(setting["model"], device="cpu"))
    counts = {"side by side": module.count_lanes, "in turn": lambda *_: 1}
    rates: dict[str, list[float]] = {way: [] for way in counts}
    batches.encode(texts)  # to warm up
    for _ in range(setting["rounds"]):
        for way, count in counts.items():
            module.count_lanes = count
            begin = time.perf_counter()
            _, told = batches.encode(texts)
            rates[way].append(told.tokens / (time.perf_counter() - begin))
    return rates


def run_sentence_transformers(setting: dict) -> dict:
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(setting["model"], device="cpu")
    assert encoder.max_seq_length == LENGTH, encoder.max_seq_length
    size = setting["batch_size"]

    def encode(texts: list[str]) -> Any:
        return encoder.encode(texts, batch_size=size, show_progress_bar=False)

    return time_encoding(setting, encoder.transformers_model, encode, ("sentence-transformers",))


def run_llm2vec(setting: dict) -> dict:
    import torch
    from llm2vec import LLM2Vec

    encoder = LLM2Vec.from_pretrained(
        setting["model"], pooling_mode="mean", max_length=LENGTH, torch_dtype=torch.float32
    )

    def encode(texts: list[str]) -> Any:
        return encoder.encode(texts, show_progress_bar=False, device="cpu").numpy()

    return time_encoding(setting, encoder.model, encode, ("llm2vec",))


def run_llm2vec_mode(setting: dict) -> dict:
    """Encode as llm2vec does, to check that llm2vec had the same weights and that nothing else differs; not timed."""
    import numpy as np

    from turncoder import encode_texts, load_encoder

    encoder = load_encoder(setting["model"], device="cpu", llm2vec=True)
    np.save(setting["vectors"], encode_texts(encoder, json.loads(Path(setting["texts"]).read_text())))
    return {}


def compare_precision(setting: dict) -> dict:
    import numpy as np

    from turncoder import encode_texts, load_encoder

    texts = json.loads(Path(setting["texts"]).read_text())

    def encode(**options: str) -> np.ndarray:
        return encode_texts(load_encoder(setting["model"], device="cpu", **options), texts)

    full_ND = encode()
    lengths_N = np.linalg.norm(full_ND, axis=1)
    answer: dict[str, Any] = {}
    for dtype in ("bfloat16", "float16"):
        half_ND = encode(dtype=dtype)
        cosine_N = (full_ND * half_ND).sum(1) / (lengths_N * np.linalg.norm(half_ND, axis=1))
        off_N = np.linalg.norm(full_ND - half_ND, axis=1) / lengths_N
        answer[dtype] = {
            "lowest_cosine": round(float(cosine_N.min()), 7),
            "mean_cosine": round(float(cosine_N.mean()), 7),
            "largest_difference_in_lengths": float(f"{off_N.max():.3g}"),
        }
    encoder = load_encoder(setting["model"], device="cpu")
    alone_ND = np.concatenate([encode_texts(encoder, [text]) for text in texts[:ALONE]])
    gaps = {
        "sdpa_and_eager": np.abs(full_ND - encode(attn_implementation="eager")).max(),
        "alone_and_in_batch": np.abs(full_ND[:ALONE] - alone_ND).max(),
    }
    answer["largest_absolute_difference"] = {name: float(f"{gap:.2g}") for name, gap in gaps.items()}
    answer["largest_value"] = float(f"{np.abs(full_ND).max():.3g}")
    return answer


TASKS: dict[str, Callable[[dict], dict]] = {
    "make_model": make_model,
    "matmul": measure_matmul,
    "turncoder": run_turncoder,
    DEFAULT: run_sentence_transformers,
    "llm2vec": run_llm2vec,
    "llm2vec_mode": run_llm2vec_mode,
    "precision": compare_precision,
    "lanes": run_lanes,
}

if __name__ == "__main__":
    main()
