"""From decoder to encoder in one command: check, prepare, MNTP and its control, SimCSE, pairs, and a table of it all.

Each rung is a run folder inside the output folder, so a stopped turn goes on where it was; sizes are derived from model
and text, and said.
"""

import json
import logging
import shlex
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from rich.console import Console

from turncoder.config.files import write_toml
from turncoder.config.stages import TurnConfig, to_dict
from turncoder.config.words import WordsConfig
from turncoder.disk import write_atomically
from turncoder.encode.encoder import MAX_SEQ_LENGTH
from turncoder.plan import Plan, show
from turncoder.preview import cache_in, quiet
from turncoder.train.planning import plan_training
from turncoder.train.running import Run
from turncoder.train.stage import perform
from turncoder.train.wordplan import plan_words
from turncoder.turn.opening import open_all
from turncoder.turn.rungs import (
    USUAL_TAG,
    Rung,
    Trial,
    build_table,
    choose_sentences,
    explain,
    read_masked,
    score_rung,
    score_words,
)
from turncoder.turn.rungwords import (
    compare_probes,
    configure_probes,
    read_probe,
    score_usual,
    train_probes,
)
from turncoder.turn.sizes import Sizes, configure_stages

__all__ = ["plan_turn", "tell_opening", "turn"]

logger = logging.getLogger("turncoder")

CONTROL = "causal, more steps"
TOLD = {
    "control": "the control: causal training on the same tokens",
    "mntp": "masked next token prediction (MNTP), bidirectional",
    "simcse": "SimCSE on the sentences",
    "supervised": "contrastive training on the pairs",
    "words": "labels of words, read from every rung",
}


def turn(config: TurnConfig) -> Path:
    """Turn a decoder into an encoder; the same call again goes on where it stopped.

    Parameters
    ----------
    config
        See `turncoder.config.stages.TurnConfig`.

    Returns
    -------
    Path
        The folder: ``control/``, ``mntp/``, ``simcse/`` (and ``supervised/``) are runs, ``model`` is the last one's
        model, ``results.json`` and ``report.html`` say what each gave.

    Raises
    ------
    UserError
        The input is wrong; the message names the key, the value and the remedy.
    ConversionError
        The architecture does not become fully bidirectional.
    """
    folder = perform(config, "turn", _turn)
    if PartialState().is_main_process:
        _show(folder)
    return folder


def plan_turn(config: TurnConfig, console: Console) -> None:
    """Print the plan of every stage, with the sizes that are derived; load no weights, write nothing."""
    with tempfile.TemporaryDirectory() as folder, cache_in(Path(folder)), quiet(logging.WARNING):
        opened = open_all(config, weigh_model=False)
    for reason in opened.sizes.reasons:
        console.print(reason, highlight=False, markup=False)
    for name, stage in configure_stages(config, opened.sizes).items():
        console.print(f"\n{TOLD[name]}", style="bold", highlight=False, markup=False)
        if name == "control":
            console.print("as the next stage, but causal and on clean text", highlight=False, markup=False)
            continue
        base = {"model_name_or_path": config.model_name_or_path, "model_revision": config.model_revision}
        plan = plan_training(replace(stage, **base))  # what it starts from does not exist yet, and is of the same size
        _show_plan(plan, stage, console)
    if config.words:
        console.print(
            f"\n{TOLD['words']}; one of {5 + bool(config.pairs)}", style="bold", highlight=False, markup=False
        )
        rung = Rung("bidirectional", config.model_name_or_path, {"bidirectional": True}, place="bidirectional")
        probe = configure_probes(config, opened.sizes.words, [rung], Path(config.output_dir or "RUN"))[rung.name]
        _show_plan(plan_words(probe), probe, console)
    for file in ("run.json", "config.toml", "results.json", "report.html", "model"):
        console.print(f"would write: {Path(config.output_dir or 'RUN') / file}", highlight=False, markup=False)


def _show_plan(plan: Plan, stage: Any, console: Console) -> None:
    """Print a plan, and of its keys those that are not as they would be without a word."""
    plain = {one.name: one.default for one in fields(stage)}
    told = {key: value for key, value in to_dict(stage).items() if value not in (plain[key], {}, [])}
    plan.config = write_toml(type(stage), told)
    show(plan, console)


def _turn(config: TurnConfig, run: Run) -> None:
    clock = _Clock(5 + bool(config.pairs) + bool(config.words))
    opened = clock.run("check and prepare", lambda: open_all(config))
    sizes = opened.sizes
    if "sizes" in run.record:  # as it was begun, on another machine perhaps
        sizes = Sizes(**run.record["sizes"])
    for reason in sizes.reasons:
        logger.info("      %s", reason)
    run.update(sizes=asdict(sizes))
    stages = configure_stages(config, sizes)
    import turncoder

    for name, stage in stages.items():
        clock.run(TOLD[name], lambda stage=stage: turncoder.train(stage))  # type: ignore[misc]
    PartialState().wait_for_everyone()  # what the main process wrote is there
    folder = Path(run.folder)
    length = _read_length(folder / list(stages)[-1], opened.positions)
    rungs = _list_rungs(config, stages, folder, length)
    probes = configure_probes(config, sizes.words, rungs, folder)
    if probes:
        clock.run(TOLD["words"], lambda: train_probes(probes))
    if not PartialState().is_main_process:
        return
    rows = clock.run("scores of every rung", lambda: _score(rungs, probes, opened.trial, folder))
    _link(folder / "model", Path(list(stages)[-1]) / "model")
    lines = explain(rows, CONTROL) + (compare_probes(probes, CONTROL, "+ MNTP") if probes else [])
    lines.append(f"Every model reads {length:,} tokens of a text at most, as the final one does.")
    _report(rows, lines, opened.trial, folder, clock.seconds, length)
    run.update(results={"rows": [_drop(row) for row in rows]}, wall_time_s=sum(clock.seconds.values()))


class _Clock:
    """Says which part is at work, and keeps how long each took."""

    def __init__(self, parts: int) -> None:
        self.parts = parts
        self.seconds: dict[str, float] = {}

    def run(self, told: str, part: Callable[[], Any]) -> Any:
        logger.info("[%d/%d] %s", len(self.seconds) + 1, self.parts, told)
        started = time.perf_counter()
        result = part()
        self.seconds[told] = round(time.perf_counter() - started, 1)
        logger.info("      done in %.0f s", self.seconds[told])
        return result


def _read_length(run: Path, positions: int) -> int:
    """Read how many tokens of a text the encoder keeps that a run made."""
    path = run / "model" / "sentence_bert_config.json"
    if not path.exists():
        return min(MAX_SEQ_LENGTH, positions)
    return int(json.loads(path.read_text(encoding="utf8"))["max_seq_length"])


def _list_rungs(config: TurnConfig, stages: dict[str, Any], folder: Path, length: int) -> list[Rung]:
    """List the rungs, all opened at the length that the last one keeps."""
    options: dict[str, Any] = {
        "max_seq_length": length,
        "dtype": stages["mntp"].dtype,
        "cache_dir": config.cache_dir,
        "trust_remote_code": config.trust_remote_code,
    }
    opened = {**options, "revision": config.model_revision}
    base = config.model_name_or_path
    rungs = [
        Rung("causal", base, {**opened, "bidirectional": False}, place="causal"),
        Rung(CONTROL, str(folder / "control"), options, place="control"),
        Rung("bidirectional", base, {**opened, "bidirectional": True}, place="bidirectional"),
        Rung("+ MNTP", str(folder / "mntp"), options, place="mntp"),
        Rung("+ SimCSE", str(folder / "simcse"), options, place="simcse"),
    ]
    if "supervised" in stages:
        rungs.append(Rung("+ pairs", str(folder / "supervised"), options, place="supervised"))
    return rungs


def _score(rungs: list[Rung], probes: dict[str, WordsConfig], trial: Trial, folder: Path) -> list[dict[str, Any]]:
    """Score the rungs that have not been scored yet."""
    path = folder / "results.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf8"))["rows"] if path.exists() else []
    done = {row["name"] for row in rows}
    if not rows:
        rows = score_words(trial)
        rows += [{"name": USUAL_TAG, **score_usual(probes[rungs[0].name])}] if probes else []
    for rung in rungs:
        if rung.name in done:
            continue
        measured = _read_measured(rung, folder)
        if probes:
            measured |= read_probe(Path(str(probes[rung.name].output_dir)))
        rows.append(score_rung(replace(rung, measured=measured), trial))
        write_atomically(path, json.dumps({"rows": rows}) + "\n")
    return rows


def _read_measured(rung: Rung, folder: Path) -> dict[str, Any]:
    """Read loss and accuracy at masked places, of the rungs that have a head for them."""
    if rung.place in ("causal", "bidirectional"):
        return read_masked(folder / "mntp", rung.place)
    return read_masked(folder / rung.place) if rung.place in ("control", "mntp") else {}


def _link(place: Path, target: Path) -> None:
    """Have ``model`` name the last rung's model, where it has one and the file system has links."""
    if (place.parent / target).is_dir() and not place.is_symlink() and not place.exists():
        try:
            place.symlink_to(target)
        except OSError as error:  # a drive that is mounted, perhaps
            logger.warning("%s cannot be a link (%s): the model is %s", place, error.strerror, place.parent / target)


def tell_opening(folder: Path) -> str:
    """Say how the encoder that a turn made is opened."""
    runs = [folder / name for name in ("supervised", "simcse") if (folder / name).exists()]
    for place in (folder, *runs[:1]):
        if (place / "model").exists():
            return f"SentenceTransformer({str(place / 'model')!r})"
    last = str(runs[0])
    merge = f"turncoder merge {shlex.quote(last)} --output FOLDER"
    return f"turncoder.load_encoder({last!r}), or: {merge}   # adapters, no model/"


def _drop(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("ranks", "map", "neighbours", "anisotropy")}


def _report(
    rows: list[dict[str, Any]],
    lines: list[str],
    trial: Trial,
    folder: Path,
    seconds: dict[str, float],
    length: int,
) -> None:
    """Write the table and what it means to ``results.json``, of which the report is made."""
    documents = len(trial.documents.queries)
    title = "What each step gave" + (f" ({documents:,} documents)" if documents else "")
    results = {"title": title, "max_seq_length": length, "rows": rows, "lines": lines, "seconds": seconds}
    shown = max((len(row["neighbours"]) for row in rows if "neighbours" in row), default=0)
    queries = trial.documents.queries
    results["sentences"] = [queries[at] for at in choose_sentences(queries, shown)] if shown else []
    write_atomically(folder / "results.json", json.dumps(results, indent=1) + "\n")


def _show(folder: Path) -> None:
    """Print the table and what it means."""
    results = json.loads((folder / "results.json").read_text(encoding="utf8"))
    console = Console(markup=False)
    console.print(build_table(results["rows"], results["title"]))
    for line in results["lines"]:
        console.print(line, highlight=False, markup=False)
    console.print(f"\nReport     {folder / 'report.html'}", highlight=False, markup=False, soft_wrap=True)
    console.print(tell_opening(folder), highlight=False, markup=False, soft_wrap=True)
