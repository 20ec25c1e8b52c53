"""One MNTP step on a CPU: the real llm2vec 0.2.3, transformers 5 with full logits, turncoder.

Every arm is a process of its own, so that its peak memory is its own; the steps of the arms take turns. All arms start
from the same weights and see the same batches, and their first losses must agree.

    python benchmarks/mntp.py --make-venv          # once: llm2vec 0.2.3 with its own transformers, in its own venv
    python benchmarks/mntp.py                      # writes benchmarks/results/mntp.json

Arms: ``llm2vec`` (LlamaBiForMNTP, all rows, trained head), ``full_trained`` and ``full_frozen`` (transformers 5, all
rows, head trained or frozen), ``gathered`` (masked rows only, their full logits), ``turncoder``. From one to the next:
the newer library, the head frozen, the rows gathered, and the gradients formed tile by tile in the forward pass.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ARMS = ("llm2vec", "full_trained", "full_frozen", "gathered", "turncoder")
SAVINGS = {
    "library": ("llm2vec", "full_trained"),
    "head_frozen": ("full_trained", "full_frozen"),
    "rows_gathered": ("full_frozen", "gathered"),
    "tiled_gradients": ("gathered", "turncoder"),
    "all": ("llm2vec", "turncoder"),
}
PINS = ("torch==2.13.0", "llm2vec==0.2.3", "transformers==4.44.2", "peft==0.12.0", "accelerate==0.34.2")
WIDTH, INNER, LAYERS, HEADS, BATCH, LENGTH, RANK = 256, 688, 4, 4, 8, 256, 16
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm2vec-venv", type=Path, default=Path.home() / ".cache/turncoder-bench/llm2vec")
    parser.add_argument("--make-venv", action="store_true", help="create that environment and stop")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--vocabularies", nargs="+", type=int, default=[32_000, 128_256])
    parser.add_argument("--mask-rates", nargs="+", type=float, default=[0.2, 0.8])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--name", default="mntp", help="results/NAME.json")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(json.loads(options.worker))
    elif options.make_venv:
        make_venv(options.llm2vec_venv)
    else:
        compare(options)


def make_venv(folder: Path) -> None:
    venv.create(folder, with_pip=True)
    subprocess.run([folder / "bin" / "pip", "install", *PINS], check=True)


# ---------------------------------------------------------------- both sides of the pipe


class Arm:
    """A worker process and what it measured."""

    def __init__(self, name: str, python: str, setting: dict, script: str = __file__) -> None:
        self.name, self.seconds, self.cpu_seconds, self.losses = name, [], [], []
        command = [python, script, "--worker", json.dumps({"arm": name, **setting})]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ready = self.read()

    def read(self) -> dict:
        """Wait for the worker's next answer."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"the {self.name} worker ended with code {self.process.wait()}")

    def step(self) -> dict:
        """Make one step."""
        assert self.process.stdin is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        return self.read()

    def close(self) -> None:
        """End the worker."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def compare(options: argparse.Namespace) -> None:
    from machine import write_results

    pythons = {"llm2vec": str(options.llm2vec_venv / "bin" / "python")}
    if "llm2vec" in options.arms and not Path(pythons["llm2vec"]).exists():
        raise SystemExit(f"no llm2vec in {options.llm2vec_venv}: run with --make-venv first")
    settings = []
    for vocabulary in options.vocabularies:
        for mask_rate in options.mask_rates:
            setting = {"vocabulary": vocabulary, "mask_rate": mask_rate, "threads": options.threads}
            arms = [Arm(name, pythons.get(name, sys.executable), setting) for name in options.arms]
            rates = []
            for turn in range(options.rounds + 2):
                rates.append(matmul_rate(options.threads))
                for arm in arms:
                    answer = arm.step()
                    arm.losses.append(answer["loss"])
                    if turn > 1:  # the first two steps warm up
                        arm.seconds.append(answer["seconds"])
                        arm.cpu_seconds.append(answer["cpu_seconds"])
                    arm.last = answer
            for arm in arms:
                arm.close()
            settings.append(summarise(setting, arms, statistics.median(rates)))
            show(settings[-1])
    shape = {"width": WIDTH, "inner": INNER, "layers": LAYERS, "batch": BATCH, "length": LENGTH, "lora_r": RANK}
    path = write_results(options.name, {"shape": shape, "rounds": options.rounds, "settings": settings})
    print(f"\n{path}")


def summarise(setting: dict, arms: list[Arm], rate: float) -> dict:
    first = [arm.losses[0] for arm in arms]
    assert max(first) - min(first) < 1e-4 * max(first), f"the arms do not compute the same loss: {first}"
    rows = {}
    for arm in arms:
        seconds = statistics.median(arm.seconds)
        flops = count_flops(arm.name, setting["vocabulary"], arm.ready["selected"])
        rows[arm.name] = {
            "tokens_per_second": round(BATCH * LENGTH / seconds, 1),
            "seconds": round(seconds, 4),
            "fastest": round(min(arm.seconds), 4),
            "slowest": round(max(arm.seconds), 4),
            "cpu_seconds": round(statistics.median(arm.cpu_seconds), 4),
            "peak_gb": round(arm.last["peak_bytes"] / 1e9, 3),
            "loaded_gb": round(arm.ready["peak_bytes"] / 1e9, 3),
            "gflop": round(flops / 1e9, 1),
            "share_of_matmul_rate": round(flops / seconds / rate, 3),
            "first_loss": arm.losses[0],
            "last_loss": arm.losses[-1],
            "versions": arm.ready["versions"],
        }
    savings = {
        name: {
            "speed": round(rows[after]["tokens_per_second"] / rows[before]["tokens_per_second"], 2),
            "peak_memory": round(rows[after]["peak_gb"] / rows[before]["peak_gb"], 3),
        }
        for name, (before, after) in SAVINGS.items()
        if before in rows and after in rows
    }
    return {**setting, "matmul_gflops": round(rate / 1e9, 1), "arms": rows, "savings": savings}


def show(setting: dict) -> None:
    print(
        f"\nvocabulary {setting['vocabulary']:,}, mask rate {setting['mask_rate']}, {setting['matmul_gflops']} GFLOP/s"
    )
    print(f"{'arm':14}{'tokens/s':>10}{'peak GB':>10}{'GFLOP':>10}{'of matmul':>10}")
    for name, row in setting["arms"].items():
        print(
            f"{name:14}{row['tokens_per_second']:10.0f}{row['peak_gb']:10.2f}{row['gflop']:10.0f}"
            f"{row['share_of_matmul_rate']:10.2f}"
        )
    for name, saving in setting["savings"].items():
        print(f"  {name:16} {saving['speed']:5.2f} x tokens/s  {saving['peak_memory']:5.2f} x peak memory")


def count_flops(arm: str, vocabulary: int, selected: int) -> float:
    """Multiply-adds count two; a frozen matrix costs forward and the gradient of its input, a trained one both."""
    tokens = BATCH * LENGTH
    weights = LAYERS * (4 * WIDTH * WIDTH + 3 * WIDTH * INNER)
    adapter = LAYERS * RANK * (4 * 2 * WIDTH + 3 * (WIDTH + INNER))
    attention = LAYERS * 2 * 2 * tokens * LENGTH * WIDTH * 3
    rows, passes = (tokens, 3 if arm in ("llm2vec", "full_trained") else 2)
    if arm in ("gathered", "turncoder"):
        rows = selected
    return 4 * weights * tokens + 6 * adapter * tokens + attention + 2 * passes * rows * vocabulary * WIDTH


def matmul_rate(threads: int) -> float:
    """FLOP/s of a square fp32 product: what the machine can do now."""
    import torch

    torch.set_num_threads(threads)
    one = torch.randn(1536, 1536)
    torch.mm(one, one)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        torch.mm(one, one)
        seconds.append(time.perf_counter() - start)
    return 2 * 1536**3 / min(seconds)


# ---------------------------------------------------------------- a worker


def work(setting: dict) -> None:
    """Build the arm, say so, and make a step for every line on stdin."""
    import importlib.metadata

    import torch

    torch.set_num_threads(setting["threads"])
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        trainer = BUILDERS[setting["arm"]](setting["vocabulary"], folder)
        trainer.create_optimizer_and_scheduler(num_training_steps=1000)
        batch = make_batch(0, setting)
        versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft", "accelerate")}
        selected = int((batch["labels"][:, 1:] != -100).sum())
        report({"selected": selected, "peak_bytes": peak_bytes(), "versions": versions})
        for number, _ in enumerate(sys.stdin):
            batch = make_batch(number, setting)
            start, busy = time.perf_counter(), time.process_time()
            loss = train_step(trainer, batch)
            spent = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - busy}
            report({**spent, "loss": loss, "peak_bytes": peak_bytes()})


def report(answer: dict) -> None:
    print(json.dumps(answer), flush=True)


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this benchmark reads /proc/self/status: run it on Linux")


def make_batch(number: int, setting: dict) -> dict:
    """Random tokens, corrupted 80/10/10 as LLM2Vec's default collator does."""
    import torch

    generator = torch.Generator().manual_seed(number)
    tokens_BL = torch.randint(10, setting["vocabulary"], (BATCH, LENGTH), generator=generator)
    selected_BL = torch.rand(BATCH, LENGTH, generator=generator) < setting["mask_rate"]
    fate_BL = torch.rand(BATCH, LENGTH, generator=generator)
    random_BL = torch.randint(10, setting["vocabulary"], (BATCH, LENGTH), generator=generator)
    input_BL = torch.where(selected_BL & (fate_BL < 0.8), 5, tokens_BL)
    input_BL = torch.where(selected_BL & (fate_BL >= 0.9), random_BL, input_BL)
    labels_BL = torch.where(selected_BL, tokens_BL, -100)
    labels_BL[:, 0] = -100  # no state comes before it
    batch = {"input_ids": input_BL, "attention_mask": torch.ones_like(input_BL), "labels": labels_BL}
    if setting["arm"] in ("gathered", "turncoder"):
        batch["document_ids"] = torch.zeros_like(input_BL)
    return batch


def train_step(trainer, batch: dict) -> float:
    """Do what the Trainer's own loop does between two batches."""
    model = trainer.model_wrapped
    model.train()
    arguments = [(batch["labels"] != -100).sum()] if trainer.args.counted else []
    loss = trainer.training_step(model, batch, *arguments)
    trainer.accelerator.clip_grad_norm_(model.parameters(), trainer.args.max_grad_norm)
    trainer.optimizer.step()
    trainer.lr_scheduler.step()
    model.zero_grad()
    return float(loss)


def llama_config(vocabulary: int):
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=False,
    )


def fill(model) -> None:
    """Give the same weights to every arm, by name."""
    import torch

    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            weight.fill_(1) if "norm" in name else weight.normal_(std=0.05, generator=generator)


def arguments_in(folder: str, counted: bool):
    from transformers import TrainingArguments

    arguments = TrainingArguments(
        output_dir=folder, per_device_train_batch_size=BATCH, report_to=[], use_cpu=True, max_steps=1000
    )
    arguments.counted = counted
    return arguments


def lora_config(**kwargs):
    from peft import LoraConfig

    return LoraConfig(
        r=RANK, lora_alpha=2 * RANK, lora_dropout=0.05, target_modules=list(TARGETS), bias="none", **kwargs
    )


def build_llm2vec(vocabulary: int, folder: str):
    """LLM2Vec's run_mntp.py: LoRA on the inner model, the head left to train, the Trainer on the whole."""
    from llm2vec.models import LlamaBiForMNTP
    from peft import get_peft_model
    from transformers import Trainer

    model = LlamaBiForMNTP._from_config(llama_config(vocabulary), attn_implementation="sdpa")
    fill(model)
    model.set_model_for_peft(get_peft_model(model.get_model_for_peft(), lora_config(task_type=None)))
    return Trainer(model=model, args=arguments_in(folder, counted=False))


def build_full(vocabulary: int, folder: str, train_head: bool):
    """Build what transformers 5 does alone: is_causal = False, LoRA on the inner model, logits of all rows."""
    from peft import get_peft_model
    from transformers import LlamaForCausalLM, Trainer

    model = LlamaForCausalLM(llama_config(vocabulary))
    fill(model)
    model.config.is_causal = False
    model.config.use_cache = False
    model.lm_head.requires_grad_(train_head)
    model.model = get_peft_model(model.model, lora_config(task_type="FEATURE_EXTRACTION"))
    return Trainer(model=model, args=arguments_in(folder, counted=True))


def build_turncoder(vocabulary: int, folder: str, tiled: bool):
    """Build the trainer of turncoder.train.mntp; untiled, the same with the full logits of the gathered rows."""
    import torch.nn.functional as F
    from transformers import LlamaForCausalLM

    from turncoder.config.stages import MntpConfig
    from turncoder.model.adapters import attach_lora
    from turncoder.model.attention import make_bidirectional
    from turncoder.model.heads import take_backbone, take_head
    from turncoder.train import trainer as trainers

    if not tiled:
        trainers.cross_entropy = lambda rows_KD, targets_K, head, budget_bytes: F.cross_entropy(
            head(rows_KD), targets_K, reduction="sum"
        )
    model = LlamaForCausalLM(llama_config(vocabulary))
    fill(model)
    backbone, head = take_backbone(model), take_head(model)
    make_bidirectional(backbone)
    peft_model = attach_lora(backbone, r=RANK, alpha=2 * RANK, dropout=0.05, targets=TARGETS)
    return trainers.GatheredTrainer(
        head=head,
        isolate=True,
        budget_bytes=MntpConfig.vocabulary_budget_mb * 10**6,
        model=peft_model,
        args=arguments_in(folder, counted=True),
        data_collator=lambda features: features[0],
    )


BUILDERS = {
    "llm2vec": build_llm2vec,
    "full_trained": lambda vocabulary, folder: build_full(vocabulary, folder, train_head=True),
    "full_frozen": lambda vocabulary, folder: build_full(vocabulary, folder, train_head=False),
    "gathered": lambda vocabulary, folder: build_turncoder(vocabulary, folder, tiled=False),
    "turncoder": lambda vocabulary, folder: build_turncoder(vocabulary, folder, tiled=True),
}

if __name__ == "__main__":
    main()
