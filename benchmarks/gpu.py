"""One script for one accelerator, under 8 minutes, one JSON out (``benchmarks/results/gpu.json``).

    python benchmarks/gpu.py            # on a GPU: the shape of Sheared-LLaMA-1.3B, random weights, 32 x 512, bf16
    python benchmarks/gpu.py --tiny     # anywhere: the same code at a toy shape, nothing committed

Measured: the layer map under every attention implementation present; MNTP tokens/s, share of the measured
matrix-product rate and peak memory (LoRA 16, mask rate 0.2); encoding, of full rows and of texts; agreement with the
CPU in fp32.
"""

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, TrainingArguments, set_seed

from machine import describe_machine, write_results
from turncoder.data.masking import Masking, collate
from turncoder.data.vocabulary import train_tokenizer
from turncoder.encode.encoder import load_encoder
from turncoder.encode.texts import BatchEncoder
from turncoder.model.adapters import attach_lora
from turncoder.model.attention import attention_map, make_bidirectional
from turncoder.model.heads import take_backbone, take_head
from turncoder.train.trainer import GatheredTrainer

SHEARED = {"hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 24, "num_attention_heads": 16}
TINY = {"hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 2, "num_attention_heads": 4}
IMPLEMENTATIONS = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3")
BUDGET = 512 * 10**6


def build(shape: dict, device: str, dtype: torch.dtype, implementation: str = "sdpa") -> LlamaForCausalLM:
    """Build a causal Llama with random weights."""
    set_seed(0)
    config = LlamaConfig(vocab_size=32000, max_position_embeddings=4096, **shape)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=implementation)
    return model.eval()


def clock(work: Callable[[], object], device: str, repeats: int) -> list[float]:
    """Seconds of each of ``repeats`` calls, after one that is not counted."""
    seconds = []
    for _ in range(repeats + 1):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def matmul_rate(device: str, dtype: torch.dtype, size: int) -> float:
    """FLOP/s of a square matrix product: the rate that shares are of."""
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / statistics.median(clock(lambda: left @ right, device, 10))


def map_layers(shape: dict, device: str, dtype: torch.dtype) -> dict:
    """Take the layer map under every implementation that loads here."""
    found = {}
    for implementation in IMPLEMENTATIONS:
        try:
            backbone = take_backbone(build({**shape, "num_hidden_layers": 2}, device, dtype, implementation))
            make_bidirectional(backbone)
            layers = attention_map(backbone)
            found[implementation] = [bool(layer.looks_ahead and layer.looks_back) for layer in layers]
        except Exception as error:
            found[implementation] = f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
        print(f"layer map, {implementation}: {found[implementation]}", flush=True)
    return found


def make_batch(rows: int, length: int, vocabulary: int, documents: int) -> dict[str, torch.Tensor]:
    """Random tokens, masked at 0.2; ``documents`` per row."""
    masking = Masking(mlm_probability=0.2, mask_token_id=5, vocab_size=vocabulary)
    draw = np.random.default_rng(0)
    features = []
    for row in range(rows):
        input_ids, labels = masking.corrupt(draw.integers(10, vocabulary, length), 0, row)
        document_ids = np.arange(length) * documents // length
        features.append({"input_ids": input_ids, "labels": labels, "document_ids": document_ids})
    return collate(features, pad_token_id=0)


def flops_per_step(model: LlamaForCausalLM, rows: int, length: int, masked: int) -> float:
    """Products of one step: the frozen backbone forward and backward to its inputs, the head on the masked rows."""
    config = model.config
    weights = sum(p.numel() for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name)
    weights -= config.vocab_size * config.hidden_size
    attention = 4 * config.hidden_size * length * config.num_hidden_layers  # per token, scores and mix
    tokens = rows * length
    return 2 * tokens * (2 * weights + attention * 1.5) + 4 * masked * config.vocab_size * config.hidden_size


def train(shape: dict, device: str, dtype: torch.dtype, rows: int, length: int, documents: int, repeats: int) -> dict:
    """MNTP steps through the real trainer."""
    model = build(shape, device, dtype)
    head, backbone = take_head(model), take_backbone(model)
    make_bidirectional(backbone)
    peft = attach_lora(backbone, r=16, alpha=32, dropout=0.05, targets=None)
    batch = make_batch(rows, length, model.config.vocab_size, documents)
    masked = int((batch["labels"] != -100).sum())
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder, bf16=dtype == torch.bfloat16, use_cpu=device == "cpu", report_to=[], max_steps=repeats
        )
        trainer = GatheredTrainer(
            head=head, isolate=documents > 1, budget_bytes=BUDGET, model=peft, args=args, train_dataset=[batch]
        )
        trainer.create_optimizer_and_scheduler(repeats + 1)
        trainer.model_wrapped = trainer.accelerator.prepare(peft)

        def step() -> None:
            trainer.training_step(trainer.model_wrapped, dict(batch), torch.tensor(masked))
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()

        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = statistics.median(clock(step, device, repeats))
    peak = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None
    flops = flops_per_step(model, rows, length, masked)
    return {
        "rows": rows,
        "length": length,
        "documents_per_row": documents,
        "masked_tokens": masked,
        "tokens_per_second": round(rows * length / seconds),
        "seconds_per_step": seconds,
        "flops_per_step": flops,
        "flops_per_second": flops / seconds,
        "peak_memory_gb": peak,
    }


def encode(shape: dict, device: str, dtype: torch.dtype, rows: int, length: int, repeats: int) -> dict:
    """Forward passes of the converted backbone, full rows."""
    backbone = take_backbone(build(shape, device, dtype))
    make_bidirectional(backbone)
    ids = make_batch(rows, length, 32000, 1)["input_ids"].to(device)
    with torch.no_grad():
        seconds = statistics.median(clock(lambda: backbone(ids, use_cache=False), device, repeats))
    return {"rows": rows, "length": length, "tokens_per_second": round(rows * length / seconds)}


def make_vectors(shape: dict, device: str, dtype: torch.dtype, count: int) -> dict:
    """Texts of 3 to 300 words through `load_encoder` and token-budget batches, tokenizer included."""
    draw = np.random.default_rng(0)
    words = ["".join(draw.choice(list("abcdefghijklmnop"), 6)) for _ in range(5000)]
    texts = [" ".join(draw.choice(words, length)) for length in draw.integers(3, 300, count)]
    with tempfile.TemporaryDirectory() as folder:
        take_backbone(build(shape, device, dtype)).save_pretrained(folder)
        free()
        train_tokenizer(texts[:500], 8000).save_pretrained(folder)
        encoder = load_encoder(folder, dtype=str(dtype).removeprefix("torch."), device=device)
        batches = BatchEncoder(encoder)
        batches.encode(texts[:64])
        started = time.perf_counter()
        _, counts = batches.encode(texts)
        seconds = time.perf_counter() - started
    return {
        "texts": count,
        "batch_tokens": batches.batch_tokens,
        "texts_per_second": round(count / seconds, 1),
        "tokens_per_second": round(counts.tokens / seconds),
        "padding_share": round(1 - counts.tokens / counts.padded, 4),
        "peak_memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if device == "cuda" else None,
    }


def agree(shape: dict, device: str) -> dict:
    """Run the same weights and rows on this device and on the CPU, fp32: states and the MNTP loss."""
    from turncoder.objectives.alignment import select_rows
    from turncoder.objectives.vocabulary import cross_entropy

    model = build({**shape, "num_hidden_layers": 2}, "cpu", torch.float32)
    batch = make_batch(2, 64, model.config.vocab_size, 1)
    found = []
    for where in ("cpu", device):
        model = model.to(where)
        head, backbone = take_head(model), take_backbone(model)
        make_bidirectional(backbone)
        with torch.no_grad():
            states = backbone(batch["input_ids"].to(where), use_cache=False).last_hidden_state
            rows, targets = select_rows(states, batch["labels"].to(where))
            loss = cross_entropy(rows, targets, head, budget_bytes=BUDGET)
        found.append((states.float().cpu(), loss.item()))
    (cpu_states, cpu_loss), (states, loss) = found
    return {
        "largest_state_difference": (cpu_states - states).abs().max().item(),
        "relative_loss_difference": abs(cpu_loss - loss) / cpu_loss,
    }


def free() -> None:
    """Give memory back between parts."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main() -> None:
    """Run every part and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a toy shape, anywhere; prints, commits nothing")
    parser.add_argument("--out", type=Path, help="write the JSON there instead of benchmarks/results/gpu.json")
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        raise SystemExit("error: no CUDA device; use --tiny to try the script")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = TINY if options.tiny else SHEARED
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    rows, length, repeats = (2, 32, 2) if options.tiny else (32, 512, 10)
    torch.backends.cuda.matmul.allow_tf32 = False
    results: dict = {"shape": shape, "dtype": str(dtype), "layer_map": map_layers(shape, device, dtype)}
    results["matmul_flops_per_second"] = matmul_rate(device, dtype, 512 if options.tiny else 8192)
    free()
    for name, documents in (("mntp", 1), ("mntp_isolated_documents", 4)):
        results[name] = train(shape, device, dtype, rows, length, documents, repeats)
        results[name]["share_of_matmul_rate"] = results[name]["flops_per_second"] / results["matmul_flops_per_second"]
        free()
    results["encode"] = encode(shape, device, dtype, rows, length, repeats)
    free()
    results["vectors"] = make_vectors(shape, device, dtype, 100 if options.tiny else 5000)
    free()
    results["agreement_with_cpu"] = agree(shape, device)
    if options.tiny or options.out:
        text = json.dumps({"machine": describe_machine(), **results}, indent=1)
        if options.out:
            options.out.write_text(text + "\n")
        print(text)
    else:
        print(write_results("gpu", results))


if __name__ == "__main__":
    main()
