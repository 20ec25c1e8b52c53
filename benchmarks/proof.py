"""What the proof of bidirectionality adds to loading a 1.3B-shape model on CPU.

    python benchmarks/proof.py [--repeats 5] [--tiny]

A Llama of the Sheared-LLaMA-1.3B shape with random weights is written to a temporary folder once. Then, in turns:
load it; convert and prove it with an empty cache (the twin is built and measured) and with a full one. Medians go to
benchmarks/results/proof.json. The bar of the project is 2 s.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, LlamaConfig, LlamaModel
from transformers.initialization import no_init_weights

from machine import write_results
from turncoder.model.attention import make_bidirectional

SHAPE = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5504,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "max_position_embeddings": 4096,
}
TINY = {"vocab_size": 1000, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}


def write_model(folder: Path, shape: dict[str, int]) -> int:
    """Write a random model in bf16; return its number of parameters."""
    torch.set_default_dtype(torch.bfloat16)
    with no_init_weights():
        model = LlamaModel(LlamaConfig(**shape))
    torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, parameter.shape[-1] ** -0.5)
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def time_once(folder: Path, dtype: torch.dtype, cache: Path) -> dict[str, float]:
    """Load, prove with an empty cache, prove with a full one; return the seconds of each."""
    started = time.perf_counter()
    model = AutoModel.from_pretrained(folder, dtype=dtype)
    loaded = time.perf_counter()
    shutil.rmtree(cache, ignore_errors=True)
    make_bidirectional(model)
    first = time.perf_counter()
    make_bidirectional(model)
    return {"load": loaded - started, "proof_first": first - loaded, "proof_cached": time.perf_counter() - first}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="a small shape, to see that it runs; nothing is written")
    flags = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        cache = Path(temporary) / "cache"
        os.environ["TURNCODER_CACHE"] = str(cache)
        folder = Path(temporary) / "model"
        shape = TINY if flags.tiny else SHAPE
        results |= {"parameters": write_model(folder, shape), "shape": shape, "repeats": flags.repeats}
        time_once(folder, torch.bfloat16, cache)  # warms the page cache and the imports
        runs: dict[str, list[dict[str, float]]] = {"float32": [], "bfloat16": []}
        for _ in range(flags.repeats):
            for name, timings in runs.items():
                timings.append(time_once(folder, getattr(torch, name), cache))
    for name, timings in runs.items():
        results[name] = {
            f"{part}_seconds": round(statistics.median(timing[part] for timing in timings), 3) for part in timings[0]
        }
        print(name, results[name])
    if not flags.tiny:
        print(write_results("proof", results))


if __name__ == "__main__":
    main()
