"""Whether the hub is needed, and out of reach. Nothing here imports transformers, which is too late to go offline."""

import importlib.util
import json
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = [
    "find_run",
    "is_hub_id",
    "is_local",
    "is_model_type",
    "list_parents",
    "locate_parent",
    "look_for_hub",
    "may_be_hub_id",
]

logger = logging.getLogger("turncoder")

HUB_SECONDS = 5


def look_for_hub(*names: str | None) -> None:
    """Go offline at once where a hub id is asked for and the hub is out of reach, instead of after minutes of retries.

    What is in the hub's cache on this machine is still found. Must come before transformers is imported.

    Parameters
    ----------
    *names
        Hub ids, and paths: a run that keeps only an adapter, and an adapter, need what they were made from.
    """
    if os.environ.get("HF_HUB_OFFLINE") or not any(_find_ids(names)):
        return
    import ssl
    import urllib.error
    import urllib.request

    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=HUB_SECONDS).close()
    except urllib.error.HTTPError:  # it answers
        return
    except (OSError, ValueError) as error:
        if isinstance(getattr(error, "reason", None), ssl.SSLCertVerificationError):
            return  # so it does, and huggingface_hub brings certificates that this Python may lack
        os.environ["HF_HUB_OFFLINE"] = "1"
        logger.warning("%s cannot be reached: only what is on this machine is used", endpoint)


def is_model_type(name: str) -> bool:
    """Say whether a name is one of transformers' architectures, by their folders: importing it would import torch."""
    spec = importlib.util.find_spec("transformers")
    assert spec is not None and spec.origin is not None
    return (
        bool(re.fullmatch(r"[\w-]+", name))
        and (Path(spec.origin).parent / "models" / name.replace("-", "_") / "__init__.py").exists()
    )


def is_local(name: str) -> bool:
    """Say whether a name is that of a file or folder: one is there, or it begins like a path."""
    return Path(name).exists() or name.startswith((".", "/", "~"))


def _find_ids(names: Iterable[str | None]) -> list[str]:
    """List the hub ids among names, and among what local ones were made from."""
    ids: list[str] = []
    seen: set[str] = set()
    queue = [name for name in names if name]
    while queue:
        name = queue.pop()
        if name in seen:
            continue
        seen.add(name)
        if Path(name).exists():
            queue += [] if (Path(name) / "model").is_dir() else list_parents(Path(name))
        elif not is_local(name):
            ids.append(name)
    return ids


def is_hub_id(name: str) -> bool:
    """Say whether a name is that of a repository with its owner, and of no folder here."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name)) and not Path(name).exists()


def may_be_hub_id(name: str, kind: str = "model") -> bool:
    """Say whether a name can be that of a repository, and is that of no folder here.

    The oldest have no owner (gpt2), nor has a folder that was here once: what came from the hub is in its cache.

    Parameters
    ----------
    name
        Of something that was opened once.
    kind
        model or dataset.
    """
    from huggingface_hub import constants

    if "/" in name or not re.fullmatch(r"\w[\w.-]*", name):
        return is_hub_id(name)
    return not Path(name).exists() and (Path(constants.HF_HUB_CACHE) / f"{kind}s--{name}").is_dir()


def list_parents(folder: Path) -> list[str]:
    """List the model and the adapters that a run, or an adapter, was trained on; of another folder nothing."""
    record, adapter = (_read(folder / name) for name in ("run.json", "adapter_config.json"))
    config = record.get("config", {})
    names = [config.get("model_name_or_path"), *(config.get("adapters") or ()), adapter.get("base_model_name_or_path")]
    return [locate_parent(name, record) for name in names if name]


def locate_parent(name: str, record: dict[str, Any]) -> str:
    """Find a model or adapter that a run's record names from where the run was started; what is not there stays."""
    there = Path(record.get("cwd", ".")) / Path(name).expanduser()
    return str(there) if there.exists() else name


def find_run(name: str) -> Path | None:
    """Find the run that a checkpoint belongs to (RUN, RUN/500, RUN/checkpoints/checkpoint-500); None where none is."""
    place = Path(name)
    return next((one for one in (place, *place.parents[:2]) if (one / "run.json").exists()), None)


def _read(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError):  # that it is broken is said where it is needed
        return {}
    return table if isinstance(table, dict) else {}
