"""Every causal architecture of the installed transformers, converted and checked on tiny random weights."""

import dataclasses
import importlib.metadata
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from turncoder.disk import write_atomically
from turncoder.errors import ConversionError
from turncoder.model.attention import inspect_attention
from turncoder.model.conversion import REPAIRS, convert
from turncoder.model.isolation import can_isolate
from turncoder.model.proof import describe_error, prove
from turncoder.model.twin import causal_architectures, tiny_model
from turncoder.model.views import AttentionReport

__all__ = ["ArchitectureRow", "architectures_markdown", "check_all", "check_architecture", "write_docs"]

IMPLEMENTATIONS = ("sdpa", "eager")


@dataclasses.dataclass(frozen=True)
class ArchitectureRow:
    """What becomes of one architecture."""

    name: str
    verdict: str
    """"bidirectional", "partial", "causal", "padding leaks", or "not built" (it does not stand alone)."""
    how: str
    implementations: tuple[str, ...]
    """The attention implementations in which it is so."""
    left_padding: str
    isolates: str
    """"yes", or why several documents cannot share a row."""
    reopens: str
    reason: str
    remedy: str

    def to_dict(self) -> dict[str, Any]:
        """Return the row as JSON can hold it."""
        return dataclasses.asdict(self)


def check_all(progress: Callable[[int, int, str], None] | None = None) -> list[ArchitectureRow]:
    """Check every causal architecture, in eager and in sdpa; a few minutes at first, seconds from the cache.

    Parameters
    ----------
    progress
        Called before each architecture with how many are done, how many there are, and its name.
    """
    names = causal_architectures()
    rows = []
    for done, name in enumerate(names):
        if progress is not None:
            progress(done, len(names), name)
        rows.append(check_architecture(name))
    return rows


def check_architecture(name: str) -> ArchitectureRow:
    """Convert an architecture in each implementation that it has, and report on the best."""
    reports: dict[str, AttentionReport] = {}
    error, isolates = "", ""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    for implementation in IMPLEMENTATIONS:
        try:
            model = tiny_model(name, implementation)
            proof = prove(model)
            convert(model, REPAIRS if proof.error else proof.repairs)
            reports[implementation] = inspect_attention(model)
        except Exception as raised:  # what a class raises that does not stand alone, or lacks the implementation
            error = str(raised) if isinstance(raised, ConversionError) else describe_error(raised)
            continue
        if not isolates and reports[implementation].verdict == "bidirectional":
            answer = can_isolate(model)
            isolates = "yes" if answer is True else str(answer)
    if not reports:
        return ArchitectureRow(name, "not built", "", (), "", "", "fails", error, "none exists")
    order = ("bidirectional", "partial", "padding leaks", "causal")
    verdict = min((report.verdict for report in reports.values()), key=order.index)
    reports = {key: report for key, report in reports.items() if report.verdict == verdict}
    best = next(iter(reports.values()))
    how = "; ".join(best.how)
    for implementation, report in reports.items():
        more = [step for step in report.how if step not in best.how]
        how += f" ({implementation}: {'; '.join(more)})" if more else ""
    return ArchitectureRow(
        name, verdict, how, tuple(reports), best.left_padding, isolates, best.reopens, best.reason, best.remedy
    )


def architectures_markdown(rows: list[ArchitectureRow]) -> str:
    """Write the rows as the page docs/architectures.md."""
    version = importlib.metadata.version("transformers")
    counts = {
        verdict: sum(row.verdict == verdict for row in rows) for verdict in dict.fromkeys(r.verdict for r in rows)
    }
    lines = [
        "# Architectures",
        "",
        "<!-- written by turncoder.model.architectures.write_docs; a test compares it -->",
        "",
        f"Every causal architecture of transformers {version}, converted and checked on tiny random weights by",
        "`turncoder check --all-architectures`: "
        + ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items(), key=lambda pair: -pair[1]))
        + ".",
        "",
        "* **bidirectional**: every layer that mixes tokens looks both ways, bare and padded; right padding is exact.",
        "* **partial**: some layers, or parts of layers, look back only. Refused, unless `--allow-partial` is given.",
        "* **causal**, **padding leaks**: refused; there is no remedy. **not built**: it does not stand alone.",
        "* *left padding*: exact, or exact where `position_ids` are given, or impossible. We pad on the right.",
        "* *packing*: whether several documents can share a row without seeing each other; else one document per row.",
        "* *AutoModel*: how plain `AutoModel.from_pretrained` opens a saved copy. Where it is not bidirectional, open",
        "  it with turncoder. *disagrees*: padded and bare, or short and long texts get different attention.",
        "",
        "| architecture | verdict | how | in | left padding | packing | AutoModel | what looks back only | remedy |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = (
            row.name,
            row.verdict,
            f"`{row.how}`" if row.how else "as it is" if row.verdict == "bidirectional" else "",
            ", ".join(row.implementations),
            row.left_padding,
            "yes" if row.isolates == "yes" else "no" if row.isolates else "",
            row.reopens if row.verdict in ("bidirectional", "partial") else "",
            row.reason,
            row.remedy,
        )
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def write_docs(path: Path, rows: list[ArchitectureRow] | None = None) -> None:
    """Write docs/architectures.md, atomically."""
    write_atomically(path, architectures_markdown(check_all() if rows is None else rows))
