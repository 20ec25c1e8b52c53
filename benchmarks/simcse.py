"""A SimCSE step on a CPU: llm2vec 0.2.3's way, sentence-transformers' trainer at its defaults, turncoder.

    python benchmarks/mntp.py --make-venv          # once: llm2vec 0.2.3 with its own transformers, in its own venv
    python benchmarks/simcse.py                    # writes benchmarks/results/simcse.json
    python benchmarks/simcse.py --part memory      # that part anew

``speed``: sentences of Wikipedia and of MASC, 128 a batch, at most 128 tokens, a random-weight bidirectional Llama with
LoRA 16 and dropout 0.1 of its attention weights. Every arm is a trainer in a process of its own, all see the same
batches in the same order, and their steps take turns: from one optimizer step to the next, tokenisation included. First
losses agree only nearly, for every arm draws its own dropout. ``llm2vec`` is its package's model and loss under HF's
Trainer: two forward passes, each padded to the longest text; what its loss pools (padding too) is its own affair.
``cached`` is turncoder with gradients cached over 2,048 tokens.

``memory``: the peak of a step of 128 rows, and of one of 4,096 with gradients cached.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from encode import SHARED, WIKI, environment, make_model
from mntp import TARGETS, Arm, matmul_rate, peak_bytes, report

MASC = SHARED / "data/masc_tagged/masc.tsv"
ARMS = ("llm2vec", "sentence-transformers", "turncoder", "cached")
WIDTH, INNER, LAYERS, RANK, BATCH, LENGTH, DROPOUT, SCALE = 256, 688, 4, 16, 128, 128, 0.1, 20.0
CACHED_TOKENS = 2048
LARGE_BATCH = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm2vec-venv", type=Path, default=Path.home() / ".cache/turncoder-bench/llm2vec")
    parser.add_argument("--part", choices=("speed", "memory"), action="append", help="default: both")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(json.loads(options.worker))
        return
    if not (options.llm2vec_venv / "bin" / "python").exists():
        raise SystemExit(f"no llm2vec in {options.llm2vec_venv}: run benchmarks/mntp.py --make-venv first")
    from machine import RESULTS, write_results

    path = RESULTS / "simcse.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    with tempfile.TemporaryDirectory(prefix="simcse-") as name:
        folder = Path(name)
        make_model({"folder": folder / "model"})
        (folder / "sentences.json").write_text(json.dumps(sample_sentences(LARGE_BATCH + BATCH * (options.rounds + 4))))
        setting = {"folder": name, "threads": options.threads}
        if "speed" in (options.part or ["speed"]):
            known["speed"] = measure_speed(options, setting)
        if "memory" in (options.part or ["memory"]):
            known["memory"] = measure_memory(setting)
    shape = {"width": WIDTH, "layers": LAYERS, "batch": BATCH, "length": LENGTH, "lora_r": RANK, "dropout": DROPOUT}
    print(
        write_results(
            "simcse", {"shape": shape, **{part: known[part] for part in ("speed", "memory") if part in known}}
        )
    )


def sample_sentences(count: int) -> list[str]:
    """Draw different sentences, half from each corpus."""
    from turncoder.data.sentences import split_sentences

    wiki = [sentence for line in WIKI.read_text(encoding="utf8").splitlines() for sentence in split_sentences(line)]
    blocks = MASC.read_text(encoding="utf8").split("\n\n")
    masc = [" ".join(line.split("\t")[0] for line in block.splitlines()) for block in blocks]
    draw = random.Random(0)
    half = count // 2 + 1
    chosen = [draw.sample(sorted({text for text in part if text.strip()}), half) for part in (wiki, masc)]
    sentences = chosen[0] + chosen[1]
    draw.shuffle(sentences)
    return sentences[:count]


def measure_speed(options: argparse.Namespace, setting: dict) -> dict:
    """Let the arms take turns."""
    theirs = str(options.llm2vec_venv / "bin" / "python")
    arms = [
        Arm(name, theirs if name == "llm2vec" else sys.executable, setting, script=__file__) for name in options.arms
    ]
    answers: dict[str, list[dict]] = {arm.name: [] for arm in arms}
    rates = []
    for _ in range(options.rounds + 2):
        rates.append(matmul_rate(options.threads))
        for arm in arms:
            answers[arm.name].append(arm.step())
    for arm in arms:
        arm.close()
    rate = statistics.median(rates)
    rows = {arm.name: summarise(answers[arm.name][2:], answers[arm.name][1], arm.ready, rate) for arm in arms}
    ratios = {
        name: round(rows["turncoder"]["sentences_per_second"] / row["sentences_per_second"], 2)
        for name, row in rows.items()
        if name != "turncoder"
    }
    print(json.dumps({"arms": rows, "turncoder_against": ratios}, indent=1))
    return {"rounds": options.rounds, "matmul_gflops": round(rate / 1e9, 1), "arms": rows, "turncoder_against": ratios}


def summarise(answers: list[dict], first: dict, ready: dict, rate: float) -> dict:
    """Give the medians of an arm, and the first loss, which is told with the second step.

    FLOPs are those of real tokens: two views, forward and the gradient of inputs.
    """
    seconds = statistics.median(answer["seconds"] for answer in answers)
    tokens = statistics.median(answer["tokens"] for answer in answers)
    weights = LAYERS * (4 * WIDTH * WIDTH + 3 * WIDTH * INNER)
    adapter = LAYERS * RANK * (4 * 2 * WIDTH + 3 * (WIDTH + INNER))
    return {
        "sentences_per_second": round(BATCH / seconds, 1),
        "tokens_per_second": round(tokens / seconds, 1),
        "seconds": round(seconds, 3),
        "fastest": round(min(answer["seconds"] for answer in answers), 3),
        "slowest": round(max(answer["seconds"] for answer in answers), 3),
        "cpu_seconds": round(statistics.median(answer["cpu_seconds"] for answer in answers), 3),
        "padding": round(1 - sum(one["tokens"] for one in answers) / sum(one["positions"] for one in answers), 3),
        "peak_gb": round(answers[-1]["peak_bytes"] / 1e9, 3),
        "share_of_matmul_rate": round(tokens * (4 * weights + 6 * adapter) / seconds / rate, 3),
        "first_loss": round(first["loss"], 4),
        "versions": ready["versions"],
    }


def measure_memory(setting: dict) -> dict:
    """Compare the peaks of processes that make a step each."""
    peaks = {}
    for name, batch in (("turncoder", BATCH), ("cached", BATCH), ("cached", LARGE_BATCH)):
        arm = Arm(name, sys.executable, {**setting, "batch": batch}, script=__file__)
        answer = arm.step()
        peaks[f"{name}_{batch}"] = {"loaded_gb": arm.ready["peak_bytes"] / 1e9, "peak_gb": answer["peak_bytes"] / 1e9}
        arm.close()
    print(json.dumps(peaks, indent=1))
    return {name: {key: round(value, 3) for key, value in row.items()} for name, row in peaks.items()}


# ---------------------------------------------------------------- a worker


def work(setting: dict) -> None:
    """Build the arm, say so, and let its trainer make a step for every line on stdin."""
    import os

    os.environ.update(environment(setting["threads"]))
    import torch
    from transformers.trainer_callback import PrinterCallback

    torch.set_num_threads(setting["threads"])
    torch.manual_seed(0)
    sentences = json.loads((Path(setting["folder"]) / "sentences.json").read_text())
    batch = setting.get("batch", BATCH)
    with tempfile.TemporaryDirectory() as folder:
        trainer = BUILDERS[setting["arm"]](str(Path(setting["folder"]) / "model"), folder, sentences, batch)
        trainer.remove_callback(PrinterCallback)  # its lines would be taken for answers
        trainer.add_callback(make_gate(trainer, setting["arm"]))
        trainer.train()


def make_gate(trainer: Any, arm: str) -> Any:
    """Hold the trainer after every step until a line comes; count what goes through the model."""
    from transformers import TrainerCallback

    seen = {"tokens": 0, "positions": 0, "loss": 0.0}
    inner = trainer.model[0] if arm != "llm2vec" else trainer.model.model
    passes = 2 if arm == "cached" else 1  # each text goes through the model twice, once without gradients

    def count(module: Any, arguments: tuple, named: dict) -> None:
        mask_BL = (arguments[0] if arguments else named)["attention_mask"]
        seen["tokens"] += int(mask_BL.sum()) / passes
        seen["positions"] += mask_BL.numel() / passes

    inner.register_forward_pre_hook(count, with_kwargs=True)
    names = ("torch", "transformers", "peft", "accelerate", "sentence-transformers" if arm != "llm2vec" else "llm2vec")
    report({"peak_bytes": peak_bytes(), "versions": {name: importlib.metadata.version(name) for name in names}})

    class Gate(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.wait(control)

        def wait(self, control: Any) -> None:
            control.should_training_stop = not sys.stdin.readline()
            seen.update(tokens=0, positions=0)
            self.begin, self.busy = time.perf_counter(), time.process_time()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            seen["loss"] = (logs or {}).get("loss", seen["loss"])

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            seconds, cpu_seconds = time.perf_counter() - self.begin, time.process_time() - self.busy
            report({"seconds": seconds, "cpu_seconds": cpu_seconds, **seen, "peak_bytes": peak_bytes()})
            self.wait(control)

    return Gate()


def list_arguments(folder: str, batch: int) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "per_device_train_batch_size": batch,
        "report_to": [],
        "use_cpu": True,
        "max_steps": 1000,
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "learning_rate": 3e-5,
    }


def lora_config(**kwargs: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=RANK, lora_alpha=2 * RANK, lora_dropout=0.05, target_modules=list(TARGETS), bias="none", **kwargs
    )


def build_llm2vec(model: str, folder: str, sentences: list[str], batch: int) -> Any:
    """LLM2Vec's package, as its run_simcse.py uses it: two forward passes and HardNegativeNLLLoss."""
    import torch
    from llm2vec import LLM2Vec
    from llm2vec.loss.HardNegativeNLLLoss import HardNegativeNLLLoss
    from peft import get_peft_model
    from torch.utils.data import SequentialSampler
    from transformers import Trainer, TrainingArguments

    encoder = LLM2Vec.from_pretrained(
        model, pooling_mode="mean", max_length=LENGTH, torch_dtype=torch.float32, attention_dropout=DROPOUT
    )
    encoder.model = get_peft_model(encoder.model, lora_config(task_type=None))
    loss = HardNegativeNLLLoss(scale=SCALE)

    class SimcseTrainer(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False) -> Any:
            return loss(*(model(features) for features in inputs["views"]))

        def _get_train_sampler(self) -> Any:
            return SequentialSampler(self.train_dataset)

        def _prepare_inputs(self, inputs: Any) -> Any:
            return inputs

    return SimcseTrainer(
        model=encoder,
        args=TrainingArguments(**list_arguments(folder, batch), remove_unused_columns=False),
        train_dataset=sentences,
        data_collator=lambda texts: {"views": [encoder.tokenize(texts) for _ in range(2)]},
    )


def open_encoder(model: str) -> Any:
    from turncoder import load_encoder
    from turncoder.model.dropout import set_attention_dropout

    encoder = load_encoder(model, device="cpu", max_seq_length=LENGTH)
    assert set_attention_dropout(encoder.transformers_model, DROPOUT) == LAYERS
    return encoder


def build_sentence_transformers(model: str, folder: str, sentences: list[str], batch: int) -> Any:
    """sentence-transformers as its documentation trains SimCSE: its trainer, its loss, a LoRA of peft."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.losses import MultipleNegativesRankingLoss
    from sentence_transformers.sampler import DefaultBatchSampler
    from torch.utils.data import SequentialSampler

    class InOrder(DefaultBatchSampler):
        def __init__(self, dataset: Any, **options: Any) -> None:
            super().__init__(SequentialSampler(dataset), **options)

    encoder = open_encoder(model)
    encoder.add_adapter(lora_config(task_type="FEATURE_EXTRACTION"))
    return SentenceTransformerTrainer(
        model=encoder,
        args=SentenceTransformerTrainingArguments(**list_arguments(folder, batch), batch_sampler=InOrder),
        train_dataset=Dataset.from_dict({"anchor": sentences, "positive": sentences}),
        loss=MultipleNegativesRankingLoss(encoder, scale=SCALE),
    )


def build_turncoder(model: str, folder: str, sentences: list[str], batch: int, cached: bool = False) -> Any:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainingArguments

    from turncoder.budget import CPU_TOKENS, keep_freed_memory
    from turncoder.data.pairs import Rows
    from turncoder.model.adapters import attach_lora
    from turncoder.objectives.contrast import build_loss
    from turncoder.train.contrast_trainer import Collator, ContrastTrainer, SetRows

    keep_freed_memory()
    encoder = open_encoder(model)
    trained = attach_lora(encoder.transformers_model, r=RANK, alpha=None, dropout=0.05, targets=None)
    rows = [Rows("texts", Dataset.from_dict({"text": sentences}))]
    return ContrastTrainer(
        trained=trained,
        batches=[list(range(start, start + batch)) for start in range(0, len(sentences) - batch + 1, batch)],
        model=encoder,
        args=SentenceTransformerTrainingArguments(**list_arguments(folder, batch)),
        train_dataset=SetRows(rows),
        data_collator=Collator(encoder, rows),
        loss=build_loss(
            encoder,
            scale=SCALE,
            batch_tokens=CPU_TOKENS,
            mini_batch_num_tokens=CACHED_TOKENS if cached else None,
        ),
    )


def build_cached(model: str, folder: str, sentences: list[str], batch: int) -> Any:
    return build_turncoder(model, folder, sentences, batch, cached=True)


BUILDERS = {
    "llm2vec": build_llm2vec,
    "sentence-transformers": build_sentence_transformers,
    "turncoder": build_turncoder,
    "cached": build_cached,
}


if __name__ == "__main__":
    main()
