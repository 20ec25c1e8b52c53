"""How runs went and what they were, as sections of a page: curves, layers, confusions, maps, and how to run them again."""

import csv
import datetime
import math
import shlex
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from turncoder.boards import Named, group_runs
from turncoder.comparison import find_predictions
from turncoder.curves import LINES, Line, draw_lines, draw_map
from turncoder.errors import UserError
from turncoder.page import Cell, Code, Fold, Lines, Part, Picture, Section, Table
from turncoder.runrows import SCORES, RunFiles

__all__ = ["build_course", "build_inside", "build_records"]

CURVES = {"loss": "training loss"} | {
    f"eval_{name}": f"held-out {SCORES[name]}"
    for name in ("loss", "accuracy", "bits_per_byte", "sts_spearman", "mrr@10")
}
LABELS = 10
"""Labels of a confusion matrix."""
MATRICES = 8
MAPS = 6
POINTS = 150


def list_trainings(runs: Iterable[Named]) -> list[Named]:
    """List what was trained step by step: runs themselves, and those that a turn consists of."""
    found = []
    several = len(list(runs := list(runs))) > 1
    for run in runs:
        inner = {name: one for name, one in run.files.inner.items() if not name.startswith("words/")}
        found += [Named(f"{run.name}/{name}" if several else name, one) for name, one in inner.items()]
        if run.files.logged:
            found.append(run)
    return found


def build_course(runs: Sequence[Named]) -> Section:
    """Build the section on how trainings went: curves, speed and memory."""
    trainings = list_trainings(runs)
    pictures: list[Part] = []
    left: list[str] = []
    stages: dict[str, list[Named]] = {}
    for run in trainings:
        stages.setdefault(run.files.stage, []).append(run)
    for stage, own in stages.items():
        for number, group in enumerate(group_runs(own)):
            left += [run.name for run in group[LINES:]]
            pictures += _draw_curves(stage, group, f"course-{stage}-{number}")
    rows = [_tell_effort(run) for run in trainings or runs]
    title = "speed and memory; the memory is the most that the process ever held, of a turn all stages before included"
    columns = ["run", "steps", "tokens", "tokens/s", "time", "trained", "weights", "memory", "GPU memory", "processes"]
    kept = [at for at in range(len(columns)) if at == 0 or any(row[at] for row in rows)]
    table = Table(title, [columns[at] for at in kept], [[row[at] for at in kept] for row in rows])
    notes: list[Part] = [Lines([f"Drawn are {LINES} curves at most; left out: {', '.join(left)}."])] if left else []
    return Section("Training", [*pictures, *notes, *([table] if len(kept) > 1 else [])])


def _draw_curves(stage: str, runs: Sequence[Named], name: str) -> list[Part]:
    drawn: list[Part] = []
    for number, (key, told) in enumerate(CURVES.items()):
        scale = 100 if key == "eval_accuracy" else 1
        lines = []
        for run in runs[:LINES]:
            rows = [row for row in run.files.logged if _is_finite(row.get(key)) and _is_finite(row.get("step"))]
            own = [row for row in rows if row.get("model") in (None, "bidirectional", "untrained")]
            if own:
                x, y = ([row[one] for row in own] for one in ("step", key))
                lines.append(Line(run.title, x, [scale * value for value in y]))
        if not any(len(line.x) > 1 for line in lines):
            continue
        label = told + (" (%)" if scale == 100 else "")
        alt = f"{label} by step: " + "; ".join(
            f"{line.name} from {line.y[0]:.3g} at step {line.x[0]:,} to {line.y[-1]:.3g} at step {line.x[-1]:,}"
            for line in lines
        )
        drawn.append(Picture(draw_lines(f"{name}-{number}", lines, "step", label), alt, f"{stage}: {label}"))
    return drawn


def _tell_effort(run: Named) -> list[str]:
    record = run.files.record
    speeds = [row["tokens_per_second"] for row in run.files.logged if _is_finite(row.get("tokens_per_second"))]
    seconds, tokens = record.get("wall_time_s") or 0, record.get("tokens") or 0
    weights, memory = record.get("parameters") or {}, record.get("memory") or {}
    steps = (record.get("trained") or {}).get("steps") or max(
        (row.get("step", 0) for row in run.files.logged), default=0
    )
    speed = statistics.median(speeds) if speeds else tokens / seconds if seconds else 0
    return [
        run.title,
        f"{steps:,}" if steps else "",
        f"{tokens:,}" if tokens else "",
        f"{speed:,.0f}" if speed else "",
        str(datetime.timedelta(seconds=round(seconds))) if seconds else "",
        f"{weights['trainable']:,}" if "trainable" in weights else "",
        f"{weights['total']:,}" if "total" in weights else "",
        *(f"{memory[name] / 1e9:.2f} GB" if memory.get(name) else "" for name in ("process", "gpu")),
        str(record["processes"]) if record.get("processes", 1) > 1 else "",
    ]


def build_inside(runs: Sequence[Named]) -> list[Section]:
    """Build the sections on layers, confusions and vectors."""
    layers = _draw_layers(runs)
    anisotropy = [
        Line(run.title, list(range(len(found))), found)
        for run in runs
        if (found := run.files.record.get("anisotropy")) and all(map(_is_finite, found))
    ]
    if anisotropy:
        alt = "mean cosine by layer: " + "; ".join(
            f"{one.name} {one.y[0]:.2f} to {one.y[-1]:.2f}" for one in anisotropy
        )
        caption = "anisotropy: mean cosine between tokens of held-out text at every layer, 0 the embeddings"
        layers.append(Picture(draw_lines("anisotropy", anisotropy, "layer", "mean cosine"), alt, caption))
    return [
        Section("By layer", layers),
        Section("Confusions", _show_confusions(runs)),
        Section("Map of sentence vectors", _draw_maps(runs)),
    ]


def _draw_layers(runs: Sequence[Named]) -> list[Part]:
    """Draw the scores of words by layer: a picture for each task and test file."""
    found: dict[tuple[str, str, str], list[Line]] = {}
    for run in runs:
        results = run.files.results
        for task, told in results.get("tasks", {}).items() if run.files.stage == "words" else ():
            layers = told.get("layers") or {}
            last = len(layers) - 1
            rows = sorted(
                (last if layer == "last" else int(layer), at["mean"][told["metric"]], at["std"][told["metric"]])
                for layer, at in layers.items()
            )
            if rows:
                error = None if rows[0][2] is None else [100 * one[2] for one in rows]
                line = Line(run.title, [one[0] for one in rows], [100 * one[1] for one in rows], error)
                found.setdefault((task, told["metric"], str(results.get("fingerprint"))), []).append(line)
    drawn: list[Part] = []
    for number, ((task, metric, _), lines) in enumerate(found.items()):
        label = f"{task}: {SCORES[metric]}"
        alt = f"{label} by layer: " + "; ".join(
            f"{line.name} best {max(line.y):.1f} at layer {line.x[line.y.index(max(line.y))]}" for line in lines
        )
        bars = "; bars: standard deviation over seeds" if any(line.error for line in lines) else ""
        svg = draw_lines(f"layers-{number}", lines, "layer", label)
        drawn.append(Picture(svg, alt, f"{label} by layer, 0 the embeddings{bars}"))
    return drawn


def _show_confusions(runs: Sequence[Named]) -> list[Part]:
    """Show for each run on words how its labels are taken for each other."""
    words = [run for run in runs if run.files.stage == "words"]
    for run in runs:
        probes = [
            Named(f"{run.name}/{name}", one) for name, one in run.files.inner.items() if name.startswith("words/")
        ]
        words += [max(probes, key=lambda one: str(one.files.record.get("started")))] if probes else []
    tables: list[Part] = []
    for run in words:
        for task in run.files.results.get("tasks", {}):
            place = find_predictions(run.files, task)
            path = place.with_name("confusion.csv") if place is not None else None
            if path is not None and path.exists() and len(tables) < MATRICES:
                tables.append(_tabulate_confusion(f"{run.title}: {task}", path))
    return tables


def _tabulate_confusion(title: str, path: Path) -> Table:
    with path.open(encoding="utf8", newline="") as file:
        head, *body = csv.reader(file)
    try:
        names, counts = head[1:], [[int(cell) for cell in row[1:]] for row in body]
        picked = range(min(LABELS, len(names)))
        rows: list[list[Cell | str]] = []
        for row in picked:
            whole = sum(counts[row]) or 1
            cells = [Cell(f"{counts[row][column]:,}", share=counts[row][column] / whole) for column in picked]
            rest = whole - sum(counts[row][column] for column in picked) if sum(counts[row]) else 0
            rows.append([names[row], *cells, *([Cell(f"{rest:,}", share=rest / whole)] if len(names) > LABELS else [])])
    except (ValueError, IndexError) as error:
        raise UserError(f"{path} is broken ({type(error).__name__}: {error}); run it again") from None
    more = ["others"] if len(names) > LABELS else []
    shown = f"the {LABELS} most frequent of {len(names)} labels; " if more else ""
    told = f"{title}: {shown}gold in rows, predicted in columns, words; coloured by the share of the row"
    return Table(told, ["gold", *names[:LABELS], *more], rows)


def _draw_maps(runs: Sequence[Named]) -> list[Part]:
    """Draw the sentences of turns in two dimensions: of the first model, and of the last."""
    drawn: list[Part] = []
    turned = [run for run in runs if any("map" in row for row in run.files.results.get("rows", []))]
    for run in turned[: MAPS // 2]:
        rows = [row for row in run.files.results["rows"] if "map" in row]
        for row in [rows[0], rows[-1]] if len(rows) > 1 else rows:
            told, found = (row["name"] if len(runs) == 1 else f"{run.name}: {row['name']}"), row["map"]
            groups = {"first sentence": found["queries"], "rest of its document": found["documents"]}
            share = 100 * sum(found["shares"])
            alt = f"{told}: {len(found['queries'])} first sentences and the rests of their documents, {share:.0f} % of the variance"
            svg = draw_map(f"map-{len(drawn)}", groups, found["shares"])
            drawn.append(Picture(svg, alt, f"{told}: {share:.0f} % of the variance is in this plane"))
    if drawn:
        about = (
            "Held-out documents: unit vectors of first sentences and of what follows them, each model in the plane of its "
            "own two largest principal components. Axes of two pictures have nothing to do with each other, and what "
            "lies apart in the dimensions that are not drawn can look near."
        )
        drawn.insert(0, Lines([about]))
    return drawn


def build_records(runs: Sequence[Named]) -> Section:
    """Build the section on what was run: status, data, ancestry, versions, and how to run it again."""
    rows = []
    parts: list[Part] = []
    for run in _unfold(runs):
        record = run.files.record
        chain = [str(one.get("name")) for one in record.get("parents") or [] if isinstance(one, dict)]
        base = record["config"].get("model_name_or_path")
        data = (record.get("data") or {}).get("fingerprint") or run.files.results.get("fingerprint")
        prints = ", ".join(part[:12] for part in str(data).split()[:2]) if data else "not recorded"
        seeds = record["config"].get("seeds") or [record["config"].get("seed", "")]
        rows.append(
            [
                run.title,
                run.files.stage,
                str(record.get("started", "")).replace("T", " ").removesuffix("+00:00"),
                " from ".join(chain or [str(base or "nothing")]),
                prints,
                ", ".join(map(str, seeds)),
            ]
        )
        parts.append(_show_record(run))
    table = Table(
        "runs and what they come from", ["run", "stage", "started (UTC)", "made from", "data", "seed"], rows, False
    )
    return Section("What was run, and how to run it again", [table, *parts])


def _unfold(runs: Iterable[Named]) -> list[Named]:
    """List runs, each turn followed by the runs that it consists of."""
    return [
        one
        for run in runs
        for one in [run, *(Named(f"{run.name}/{name}", inner) for name, inner in run.files.inner.items())]
        if not one.name.startswith("words/")
    ]


def _show_record(run: Named) -> Fold:
    record, folder = run.files.record, run.files.folder
    inner: list[Part] = []
    told = [f"Folder: {folder.resolve()}", f"Status: {run.files.status}"]
    told += [f"It said: {record['error']}"] if record.get("error") else []
    told += [f"git: {record['git']}"] if record.get("git") else []
    inner.append(Lines(told, "list"))
    command = [str(word) for word in record.get("command") or []]
    if command:
        where = f"cd {shlex.quote(str(record['cwd']))}\n" if record.get("cwd") else ""
        inner += [Lines(["The command, as it was given:"]), Code(where + shlex.join(["turncoder", *command[1:]]))]
    config = folder / "config.toml"
    if config.exists():
        again = shlex.join(["turncoder", *run.files.stage.split(), str(config), "--output", "AGAIN"])
        if run.files.stage in ("glue", "language", "sentences"):
            again = again.replace("turncoder ", "turncoder evaluate ", 1)
        inner += [Lines(["With every key as it was resolved:"]), Code(f"{again}\n")]
        inner.append(Fold("config.toml", [Code(config.read_text(encoding="utf8"))]))
    for name in ("versions", "hardware", "data"):
        if found := record.get(name):
            inner.append(Lines([f"{name}: " + ", ".join(f"{key} {_tell(value)}" for key, value in found.items())]))
    return Fold(f"{run.title}: how to run it again, and with what", inner)


def _tell(value: Any) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{key} {_tell(one)}" for key, one in value.items()) + ")"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
