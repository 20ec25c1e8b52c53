"""What an evaluation found: ``results.json``, and a score as it is shown."""

import json
from pathlib import Path
from typing import Any

from turncoder.disk import write_atomically
from turncoder.train.running import Run

__all__ = ["read_results", "show_score", "write_results"]


def write_results(run: Run, results: dict[str, Any]) -> None:
    """Write ``results.json``, and the means into the record."""
    write_atomically(run.folder / "results.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    means = {task: told["mean"] for task, told in results["tasks"].items()}
    run.update(results=next(iter(means.values())) if len(means) == 1 else means)


def read_results(run: Path) -> dict[str, Any]:
    """Read what a run found."""
    return json.loads((run / "results.json").read_text(encoding="utf8"))


def show_score(mean: float | None, std: float | None) -> str:
    """Write a score in percent, with its deviation where there are several seeds; a dash for none."""
    if mean is None:
        return "-"
    return f"{100 * mean:.2f}" + (f" ± {100 * std:.2f}" if std is not None else "")
