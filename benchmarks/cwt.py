"""Contrastive weight tying on a CPU: the loss layer by four arms, and a whole training step at two vocabularies.

    python benchmarks/cwt.py                       # writes benchmarks/results/cwt.json

Every arm is a process of its own, so that its peak memory is its own; the steps of the arms take turns.

``layer``: forward and backward of the loss alone, to the states and to the embeddings, for 4,096 targets of English
paragraphs (tokens of GPT-2; at 250,000 ids the same tokens, spread over the larger vocabulary). Arms: ``dense``
(logits of the whole vocabulary, torch's cross-entropy), ``chunked`` (turncoder's exact cross-entropy, tile by tile),
``published`` (contrastive weight tying as the paper has it, a column for every target, by autograd), ``turncoder``
(a column for every unique target; the gradient of the embeddings is row-sparse). What the gradient's form is worth
alone: ``published, sparse`` and ``turncoder, dense``. Physical limit: 6 K C D FLOPs for C columns.

``step``: forward, backward, clipping and optimizer of a Llama (width 256, 4 layers), with as many unique ids in the
batch at either size of the vocabulary, row-sparse and dense. ``real``: the same with tokenizers of both sizes that are
trained on the text of ../shared in all its languages, each with its own tokens of the same paragraphs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

from mntp import Arm

SHARED = Path(__file__).resolve().parents[2] / "shared"
TEXT = SHARED / "data/wiki_paragraphs_en/wiki_en.txt"
TOKENIZER = SHARED / "tokenizers/gpt2"
LAYER_ARMS = ("dense", "chunked", "published", "published, sparse", "turncoder, dense", "turncoder")
STEP_ARMS = ("sparse 32,000", "sparse 256,000", "dense 32,000", "dense 256,000")
CORPORA = (
    "wiki_paragraphs_en/wiki_en.txt",
    "wiki_paragraphs_ko/wiki_ko.txt",
    "wikitext2/wiki.valid.tokens",
    "wikitext2/wiki.test.tokens",
    "nltk_state_union/state_union.txt",
    "bulgarian_text/bg_sentences.tsv",
    "movie_reviews/movie_reviews.tsv",
    "scifact_beir/corpus.jsonl",
    "masc_tagged/masc.tsv",
    *(f"ntrex/newstest2019.{code}.txt" for code in ("bul", "deu", "eng", "fra", "kor", "rus", "tur")),
)
ROWS, WIDTH, LAYERS, HEADS, BATCH, LENGTH = 4096, 256, 4, 4, 16, 256
BUDGET = 256 * 10**6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("layer", "step", "real"), action="append")
    parser.add_argument("--vocabularies", nargs="+", type=int, default=[50_257, 250_000])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(json.loads(options.worker))
        return
    from machine import write_results

    results: dict = {"rounds": options.rounds, "threads": options.threads}
    parts = options.part or ["layer", "step", "real"]
    if "layer" in parts:
        results["layer"] = [compare_layer(vocabulary, options) for vocabulary in options.vocabularies]
    if "step" in parts:
        results["step"] = compare_steps(options)
    if "real" in parts:
        results["real"] = compare_real(options)
    print(write_results("cwt" if len(parts) == 3 else f"cwt-{'-'.join(parts)}", results))


def run_arms(names: tuple[str, ...], setting: dict, rounds: int) -> dict[str, dict]:
    arms = [Arm(name, sys.executable, setting, __file__) for name in names]
    for turn in range(rounds + 1):
        for arm in arms:
            answer = arm.step()
            arm.losses.append(answer["loss"])
            if turn:  # the first one warms up
                arm.seconds.append(answer["seconds"])
                arm.cpu_seconds.append(answer["cpu_seconds"])
            arm.last = answer
    for arm in arms:
        arm.close()
    return {
        arm.name: {
            "seconds": round(statistics.median(arm.seconds), 4),
            "fastest": round(min(arm.seconds), 4),
            "slowest": round(max(arm.seconds), 4),
            "processor_seconds": round(statistics.median(arm.cpu_seconds), 4),
            "peak_mb": arm.last["peak_mb"],
            "loss": arm.losses[0],
            **arm.ready,
        }
        for arm in arms
    }


def compare_layer(vocabulary: int, options: argparse.Namespace) -> dict:
    rows = run_arms(LAYER_ARMS, {"part": "layer", "vocabulary": vocabulary, "threads": options.threads}, options.rounds)
    assert abs(rows["dense"]["loss"] / rows["chunked"]["loss"] - 1) < 1e-4
    assert abs(rows["published"]["loss"] / rows["turncoder"]["loss"] - 1) < 1e-4
    ours = rows["turncoder"]
    print(f"\nloss layer, {vocabulary:,} ids, {ROWS} rows of {ours['unique']} ids, width {WIDTH}")
    for name, row in rows.items():
        row["times_ours"] = round(row["seconds"] / ours["seconds"], 2)
        row["gflops_per_second"] = round(6 * ROWS * row["columns"] * WIDTH / row["seconds"] / 1e9, 1)
        row["memory_times_ours"] = round(row["peak_mb"] / ours["peak_mb"], 2)
        print(
            f"{name:10} {row['seconds'] * 1e3:8.1f} ms  x{row['times_ours']:<7} {row['peak_mb']:8.1f} MB  "
            f"x{row['memory_times_ours']:<6} {row['gflops_per_second']} GFLOP/s of the matrix products"
        )
    return {"vocabulary": vocabulary, "arms": rows}


def compare_steps(options: argparse.Namespace) -> dict:
    rows = run_arms(STEP_ARMS, {"part": "step", "threads": options.threads}, options.rounds)
    print(f"\nstep, width {WIDTH}, {LAYERS} layers, {BATCH} x {LENGTH} tokens, {rows['sparse 32,000']['unique']} ids")
    for name, row in rows.items():
        print(f"{name:15} {row['seconds'] * 1e3:8.1f} ms  {row['peak_mb']:8.1f} MB")
    ratios = {
        kind: round(rows[f"{kind} 256,000"]["seconds"] / rows[f"{kind} 32,000"]["seconds"], 3)
        for kind in ("sparse", "dense")
    }
    print(f"256,000 ids against 32,000: {ratios}")
    return {"arms": rows, "ratio": ratios}


def compare_real(options: argparse.Namespace) -> dict:
    """Compare steps on the tokens of two tokenizers, which are trained once and kept until the machine is clean."""
    import tempfile

    from turncoder.data.vocabulary import train_tokenizer

    lines = [line for name in CORPORA for line in (SHARED / "data" / name).read_text("utf8").splitlines()]
    sizes, folder = {}, Path(tempfile.gettempdir()) / "turncoder-cwt"
    for vocabulary in (32_000, 256_000):
        if not (folder / str(vocabulary)).exists():
            train_tokenizer(lines, vocabulary).save_pretrained(folder / str(vocabulary))
        sizes[f"{vocabulary:,}"] = str(folder / str(vocabulary))
    setting = {"part": "step", "threads": options.threads, "tokenizers": sizes}
    rows = run_arms(STEP_ARMS[:2], setting, options.rounds)
    small, large = (rows[name]["seconds"] for name in STEP_ARMS[:2])
    for name, row in rows.items():
        print(f"{name:15} {row['seconds'] * 1e3:8.1f} ms, {row['unique']:,} of {row['vocabulary']:,} ids in the batch")
    print(f"real tokenizers, row-sparse: {large / small:.3f}")
    return {"arms": rows, "ratio": round(large / small, 3)}


# ---------------------------------------------------------------- workers


def work(setting: dict) -> None:
    import torch

    torch.set_num_threads(setting["threads"])
    step = layer_step(setting, torch) if setting["part"] == "layer" else model_step(setting, torch)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far, of loading, is forgotten
    before = read_memory("VmRSS")
    for _ in sys.stdin:
        started, busy = time.perf_counter(), time.process_time()
        loss = step()
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - busy
        peak_mb = round(read_memory("VmHWM") - before, 1)
        answer = {"loss": loss, "seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": peak_mb}
        print(json.dumps(answer), flush=True)


def read_memory(name: str) -> float:
    """Memory of this process in MB: VmRSS now, VmHWM at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(name))


def read_tokens(count: int) -> list[int]:
    from transformers import AutoTokenizer

    text = TEXT.read_text(encoding="utf8")[: count * 8]
    return AutoTokenizer.from_pretrained(TOKENIZER)(text)["input_ids"][:count]


def layer_step(setting: dict, torch):
    vocabulary, arm = setting["vocabulary"], setting["arm"]
    targets_K = torch.tensor(read_tokens(ROWS)) * (vocabulary // 50_257)
    draw = torch.Generator().manual_seed(0)
    rows_KD = torch.randn(ROWS, WIDTH, generator=draw).requires_grad_()
    weight_VD = (torch.randn(vocabulary, WIDTH, generator=draw) * 0.02).requires_grad_()
    unique = len(targets_K.unique())
    columns = {"dense": vocabulary, "chunked": vocabulary, "published": ROWS}.get(arm.split(",")[0], unique)
    from turncoder.objectives.cwt import contrast, pool_targets
    from turncoder.objectives.walk import walk_classes

    def loss_of():
        if arm == "dense":
            return torch.nn.functional.cross_entropy(rows_KD @ weight_VD.T, targets_K)
        if arm == "chunked":
            return walk_classes(rows_KD, weight_VD, None, targets_K, budget_bytes=BUDGET) / ROWS
        if arm.startswith("published"):
            sparse = arm.endswith("sparse")
            scores_KK = rows_KD @ torch.nn.functional.embedding(targets_K, weight_VD, sparse=sparse).T
            return -(scores_KK.diag().exp() / (scores_KK.exp().sum(1) + 1e-9)).log().mean()
        pool = pool_targets(targets_K)
        return (
            contrast(rows_KD, targets_K, weight_VD, pool, budget_bytes=BUDGET, sparse=not arm.endswith("dense")) / ROWS
        )

    def step() -> float:
        rows_KD.grad = weight_VD.grad = None
        loss = loss_of()
        loss.backward()
        return loss.item()

    print(json.dumps({"unique": unique, "columns": columns}), flush=True)
    return step


def model_step(setting: dict, torch):
    from transformers import LlamaConfig, LlamaModel

    from turncoder.objectives.alignment import select_rows
    from turncoder.objectives.cwt import contrast, pool_targets
    from turncoder.train.optimizer import RowSparseAdamW, clip_norm

    kind, _, size = setting["arm"].partition(" ")
    vocabulary = int(size.replace(",", ""))
    tokens = torch.tensor(read_tokens(BATCH * LENGTH)) % 32_000 * (vocabulary // 32_000)
    if "tokenizers" in setting:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(setting["tokenizers"][size])
        vocabulary, text = len(tokenizer), TEXT.read_text(encoding="utf8")[: BATCH * LENGTH * 8]
        tokens = torch.tensor(tokenizer(text)["input_ids"][: BATCH * LENGTH])
    torch.manual_seed(0)
    model = LlamaModel(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=WIDTH,
            intermediate_size=688,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
        )
    )
    weight_VD = model.get_input_embeddings().weight
    others = [parameter for parameter in model.parameters() if parameter is not weight_VD]
    if kind == "sparse":
        model.get_input_embeddings().sparse = True
        optimizer: torch.optim.Optimizer = RowSparseAdamW([{"params": others}], weight_VD, lr=1e-3)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    token_ids_BL = tokens.view(BATCH, LENGTH)
    print(json.dumps({"unique": len(tokens.unique()), "vocabulary": vocabulary}), flush=True)

    def step() -> float:
        hidden_BLD = model(input_ids=token_ids_BL, use_cache=False).last_hidden_state
        rows_KD, targets_K = select_rows(hidden_BLD, token_ids_BL)
        pool = pool_targets(targets_K)
        loss = contrast(rows_KD, targets_K, weight_VD, pool, budget_bytes=BUDGET, sparse=kind == "sparse") / len(
            rows_KD
        )
        loss.backward()
        if kind == "sparse":
            clip_norm(model.parameters(), 1.0)
        else:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


if __name__ == "__main__":
    main()
