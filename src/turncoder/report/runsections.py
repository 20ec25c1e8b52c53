"""How runs went and what they were, as sections of a page: curves, speed and memory, and how to run them again."""

import datetime
import shlex
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from turncoder.report.boards import Named, group_runs
from turncoder.report.curves import LINES, Line, draw_lines, name_one
from turncoder.report.page import Code, Fold, Lines, Part, Picture, Section, Table
from turncoder.report.runrows import INNER, PROGRAMS, SCORES, is_finite

__all__ = ["build_course", "build_records"]

CURVES = {"loss": "training loss"} | {
    f"eval_{name}": f"held-out {SCORES[name]}"
    for name in ("loss", "accuracy", "bits_per_byte", "sts_spearman", "mrr@10")
}


def list_trainings(runs: Sequence[Named]) -> list[Named]:
    """List what was trained step by step: runs themselves, and those that a turn consists of."""
    found = []
    for run in runs:
        inner = {name: one for name, one in run.files.inner.items() if name in INNER}
        found += [Named(f"{run.name}/{name}" if len(runs) > 1 else name, one) for name, one in inner.items()]
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
            rows = [row for row in run.files.logged if is_finite(row.get(key)) and is_finite(row.get("step"))]
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
        caption = f"{stage}: {label}{name_one(lines)}"
        if key == "loss" and len(lines) > 1:
            caption += ", of each run's own objective"
        drawn.append(Picture(draw_lines(f"{name}-{number}", lines, "step", label), alt, caption))
    return drawn


def _tell_effort(run: Named) -> list[str]:
    record = run.files.record
    speeds = [row["tokens_per_second"] for row in run.files.logged if is_finite(row.get("tokens_per_second"))]
    seconds, tokens = record.get("wall_time_s") or 0, record.get("tokens") or 0
    weights, memory = record.get("parameters") or {}, record.get("memory") or {}
    steps = (record.get("trained") or {}).get("steps")
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


def build_records(runs: Sequence[Named]) -> Section:
    """Build the section on what was run: status, data, ancestry, versions, and how to run it again."""
    rows = []
    parts: list[Part] = []
    for run in _unfold(runs):
        record = run.files.record
        chain = [str(one.get("name")) for one in record.get("parents") or [] if isinstance(one, dict)]
        base = record["config"].get("model_name_or_path")
        trained = run.files.inner.get("mntp", run.files)  # a turn's data are those of its parts
        data = (trained.record.get("data") or {}).get("fingerprint") or run.files.results.get("fingerprint")
        prints = [part[:12] for part in str(data).split()[:2]] if data else _list_files(run.files.results)
        seeds = record["config"].get("seeds") or [record["config"].get("seed", "")]
        rows.append(
            [
                run.title,
                run.files.stage,
                str(record.get("started", "")).replace("T", " ").removesuffix("+00:00"),
                " from ".join(chain or [str(base or "nothing")]),
                ", ".join(prints) or "not recorded",
                ", ".join(map(str, seeds)),
            ]
        )
        parts.append(_show_record(run, within=run not in runs))
    table = Table(
        "runs and what they come from", ["run", "stage", "started (UTC)", "made from", "data", "seed"], rows, False
    )
    return Section("What was run, and how to run it again", [table, *parts])


def _list_files(results: dict[str, Any]) -> list[str]:
    """Name the files that a run was scored on, each with the beginning of its fingerprint."""
    told = [one for one in results.get("tasks", {}).values() if isinstance(one, dict) and one.get("file")]
    return [f"{Path(str(one['file'])).name} {str(one.get('fingerprint'))[:12]}" for one in told]


def _unfold(runs: Iterable[Named]) -> list[Named]:
    """List runs, each turn followed by the runs that it consists of."""
    return [
        one
        for run in runs
        for one in [
            run,
            *(Named(f"{run.name}/{name}", one) for name, one in run.files.inner.items() if name in INNER),
        ]
    ]


def _tell_command(given: dict[str, Any]) -> str:
    where = f"cd {shlex.quote(str(given['cwd']))}\n" if given.get("cwd") else ""
    return where + shlex.join(["turncoder", *map(str, given["command"][1:])])


def _show_record(run: Named, *, within: bool) -> Fold:
    """Show how to run again what was run, be it ``within`` a turn or by itself."""
    record, folder = run.files.record, run.files.folder
    inner: list[Part] = []
    told = [f"Folder: {folder.resolve()}", f"Status: {run.files.status}"]
    told += [f"It said: {record['error']}"] if record.get("error") else []
    told += [f"git: {record['git']}"] if record.get("git") else []
    command = [str(word) for word in record.get("command") or []]
    typed = command != [] and Path(command[0]).name in PROGRAMS
    told += [f"Started by a script: {shlex.join(command)}"] if command and not typed else []
    inner.append(Lines(told, "list"))
    if typed and not within:
        given = [record, *(record.get("added") or [])]
        said = "The command, as it was given:" if len(given) == 1 else "The commands, as they were given, one by one:"
        inner += [Lines([said]), Code("\n".join(map(_tell_command, given)))]
    config = folder / "config.toml"
    if config.exists():
        words = ["evaluate"] * (run.files.stage in ("glue", "language", "sentences")) + [run.files.stage]
        if command[1:3] == ["head", "finetune"]:
            words = command[1:3]
        again = shlex.join(["turncoder", *words, str(config), "--output", "AGAIN"])
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
