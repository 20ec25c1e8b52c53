"""What a bug report needs: versions, devices, and which attention kernels can run here."""

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console

__all__ = ["describe_machine", "find_versions", "gather", "measure_memory", "show"]

PACKAGES = (
    "turncoder",
    "torch",
    "transformers",
    "tokenizers",
    "sentence-transformers",
    "peft",
    "accelerate",
    "datasets",
    "safetensors",
    "pyarrow",
    "numpy",
    "mteb",
    "lm_eval",
    "submitit",
    "huggingface-hub",
    "flash-attn",
    "kernels",
    "liger-kernel",
    "deepspeed",
)
VARIABLES = ("HF_HOME", "HF_HUB_OFFLINE", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "TURNCODER_CACHE")


def gather() -> dict[str, dict[str, Any]]:
    """Collect versions, machine, devices, attention kernels and the environment variables that matter."""
    absent = dict.fromkeys(PACKAGES, "not installed")
    return {
        "versions": {"python": platform.python_version(), **absent, **find_versions(PACKAGES)},
        "machine": {"platform": platform.platform(), **_describe_processor(), "executable": sys.executable},
        "devices": _devices(),
        "attention": _attention(),
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def find_versions(packages: Iterable[str]) -> dict[str, str]:
    """Give the versions of those packages that are installed."""
    found = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def describe_machine() -> dict[str, Any]:
    """Say in a few words what a run had: processor, cores, memory and accelerators."""
    return {**_describe_processor(), **{name: told for name, told in _devices().items() if name != "cuda"}}


def measure_memory() -> dict[str, int]:
    """Give the most bytes that this ``process`` ever held, and, where there is one, its ``gpu``."""
    import torch

    found = {}
    if sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        found["process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.max_memory_allocated()
    return found


def _describe_processor() -> dict[str, Any]:
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": _memory(),
    }


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    except (ValueError, OSError, AttributeError):
        return "not known"


def _devices() -> dict[str, str]:
    import torch

    devices = {"cpu": f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"}
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        devices[f"cuda:{index}"] = (
            f"{about.name}, {about.total_memory / 2**30:.0f} GiB, capability {about.major}.{about.minor}"
        )
    if devices.keys() != {"cpu"}:
        devices["cuda"] = f"{torch.version.cuda}, bfloat16 {'yes' if torch.cuda.is_bf16_supported() else 'no'}"
    if torch.backends.mps.is_available():
        devices["mps"] = "available"
    return devices


def _attention() -> dict[str, str]:
    """Say which implementations can run; whether a model passes the proof in one is what ``check`` says."""
    import torch

    cuda = torch.cuda.is_available()
    flash = cuda and any(importlib.util.find_spec(name) is not None for name in ("flash_attn", "kernels"))
    return {
        "eager": "yes",
        "sdpa": "yes",
        "flex_attention": "yes" if cuda else "CPU only",
        "flash_attention_2": "yes" if flash else "no (needs a CUDA device and flash-attn or kernels)",
    }


def show(facts: dict[str, dict[str, Any]], console: Console, *, as_json: bool = False) -> None:
    """Print the facts, for people or as JSON."""
    if as_json:
        console.print_json(data=facts)
        return
    for title, entries in facts.items():
        console.print(title, style="bold")
        for name, value in entries.items():
            console.print(f"  {name:22} {value}", highlight=False, markup=False)
