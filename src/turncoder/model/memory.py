"""What was found about an architecture, kept on disk until anything that it depends on changes."""

import contextlib
import functools
import hashlib
import importlib.metadata
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from turncoder.disk import default_cache, write_atomically
from turncoder.model.conversion import causal_config
from turncoder.model.influence import backbone_of

__all__ = ["remember"]

SOURCES = ("twin", "influence", "conversion", "proof", "isolation")


def remember(model: PreTrainedModel, topic: str, compute: Callable[[], Any]) -> Any:
    """Return what ``compute`` finds about a model's architecture, from the cache if it has been found before.

    The key is the class with its source, the small configuration, the attention implementation, the versions of torch
    and transformers, and our own sources.
    """
    path = default_cache() / "proofs" / f"{topic}-{fingerprint(model)}.json"
    with contextlib.suppress(OSError, ValueError):
        return json.loads(path.read_text(encoding="utf8"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads cost more than they bring at a twin's size
    try:
        with torch.autocast(model.device.type, enabled=False):  # a trainer's autocast would blur what is exact
            found = json.loads(json.dumps(compute()))
    finally:
        torch.set_num_threads(threads)
    with contextlib.suppress(OSError):  # a read-only home costs the time of the proof, not the run
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(found))
    return found


def fingerprint(model: PreTrainedModel) -> str:
    """Return the digest of everything that the findings depend on."""
    backbone = backbone_of(model)
    config = causal_config(backbone.config).to_dict()
    config.pop("_name_or_path", None)
    parts = [
        type(backbone).__module__,
        type(backbone).__qualname__,
        Path(inspect.getfile(type(backbone))).read_bytes().hex(),
        json.dumps(config, sort_keys=True, default=str),
        str(backbone.config._attn_implementation),
        *(importlib.metadata.version(name) for name in ("torch", "transformers")),
        own_sources(),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


@functools.cache
def own_sources() -> str:
    """Return the sources of the modules that make the proof."""
    folder = Path(__file__).parent
    return "".join((folder / f"{name}.py").read_text() for name in SOURCES)
