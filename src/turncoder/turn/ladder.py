"""From decoder to encoder in one command: check, prepare, MNTP and its control, SimCSE, pairs, and a table of it all.

Each rung is a run folder inside the output folder, so a stopped turn goes on where it was; sizes are derived from model
and text, and said.
"""

import json
import logging
import math
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from rich.console import Console

from turncoder.config.files import write_toml
from turncoder.config.keys import locate_model
from turncoder.config.stages import MntpConfig, TurnConfig, to_dict
from turncoder.config.words import WordsConfig
from turncoder.data.corpus import Corpus, check_column, is_held_out, open_corpus
from turncoder.data.files import names_file
from turncoder.data.pairs import Rows
from turncoder.data.tokenizer import load_tokenizer
from turncoder.disk import write_atomically
from turncoder.encode.encoder import MAX_SEQ_LENGTH
from turncoder.errors import UserError
from turncoder.evaluate.sentences import read_sts
from turncoder.model.attention import make_bidirectional, settle_implementation
from turncoder.model.backbone import load_backbone, load_model_config, resolve_model
from turncoder.model.proof import build_small
from turncoder.plan import Plan, show
from turncoder.preview import cache_in, quiet, take_first, weigh
from turncoder.prompts import check_prompt
from turncoder.skeleton import build_unstored
from turncoder.train.planning import plan_training
from turncoder.train.rows import open_rows
from turncoder.train.running import Run
from turncoder.train.stage import perform
from turncoder.train.text import open_blocks
from turncoder.train.wordplan import plan_words
from turncoder.turn.rungs import (
    USUAL_TAG,
    Rung,
    Trial,
    build_table,
    choose_sentences,
    explain,
    open_trial,
    read_masked,
    score_rung,
    score_words,
)
from turncoder.turn.rungwords import (
    compare_probes,
    configure_probes,
    open_tagged,
    read_probe,
    score_usual,
    train_probes,
)
from turncoder.turn.sizes import Sizes, configure_stages, derive_sizes, has_bf16

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
        opened = _open_all(config, weigh_model=False)
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
    opened = clock.run("check and prepare", lambda: _open_all(config))
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


@dataclass
class _Opened:
    """What was given, opened: what rungs are measured on, and the sizes that follow."""

    sizes: Sizes
    positions: int
    trial: Trial


def _open_all(config: TurnConfig, *, weigh_model: bool = True) -> _Opened:
    """Open everything that is given, so that what is wrong is said now, and derive the sizes.

    Parameters
    ----------
    config
        Of the turn.
    weigh_model
        Prove the conversion on the model with its weights; else on its small twin alone.
    """
    given = Sizes(mntp={"max_seq_length": config.max_seq_length} if config.max_seq_length else {})
    stages = configure_stages(config, given)
    sts = read_sts(config.sts) if config.sts else None
    tagged, told_words = open_tagged(config) if config.words else ({}, [])
    check_column(config.text_column, config.text, config.validation_text)
    corpus = _open_text(config, config.text)
    told, parameters, positions = _check_model(config, stages["mntp"], weigh_model=weigh_model)
    tokenizer = load_tokenizer(
        stages["mntp"].tokenizer_name or resolve_model(config.model_name_or_path), **locate_model(config)
    )
    percent = min(stages[name].validation_split_percentage for name in ("mntp", "simcse"))
    held_out = list(_take_held_out(config, corpus, percent))
    if not (held_out or config.validation_text):
        raise UserError(
            f"--text: of {config.text} no document is held out to measure on, for it has few or no different ones; "
            "bring more text, one document a row, or give --validation_text"
        )
    length = stages["mntp"].max_seq_length or _choose_length(corpus, tokenizer, positions)
    shortened = {"max_seq_length": length}
    stages = configure_stages(config, Sizes(shortened, {**shortened, "split_sentences": True}, shortened))
    state = PartialState(cpu=not torch.accelerator.is_available())
    simcse, supervised = stages["simcse"], stages.get("supervised")
    with state.main_process_first():
        pairs = []
        if supervised:  # before the text, which may take an hour to pack
            template = simcse.chat_template or supervised.chat_template
            pairs = open_rows(supervised, tokenizer, length, "--pairs", template=template)
        trial = open_trial(held_out, sts, [rows for _, rows in pairs], config.eval_documents)
        _check_prompts(simcse.prompt, [rows for rows, _ in pairs], trial, tokenizer)
        tokens = open_blocks(stages["mntp"], tokenizer, length)[0].num_tokens
        texts = open_rows(simcse, tokenizer, length, template=simcse.chat_template)
    sentences = sum(len(rows) for rows, _ in texts)
    count = sum(len(rows) for rows, _ in pairs)
    sizes = Sizes(reasons=[f"{told}; {parameters / 1e6:,.1f} M parameters, {positions:,} positions"])
    sizes = derive_sizes(config, sizes, parameters, tokens, length, sentences, count)
    sizes.words = tagged
    sizes.reasons += told_words
    return _Opened(sizes, positions, trial)


def _check_prompts(prompt: str | None, sets: list[Rows], trial: Trial, tokenizer: Any) -> None:
    """Refuse now a prompt that does not stay apart from the texts that rungs are measured on."""
    sts = [*trial.sts.first, *trial.sts.second] if trial.sts is not None else []
    for column, texts in (("anchor", trial.documents.queries + sts), ("positive", trial.documents.documents)):
        for one in {prompt, *(rows.prompts.get(column) for rows in sets)} - {None}:
            check_prompt(tokenizer, str(one), texts, 1 << 30)


def _check_model(config: TurnConfig, mntp: MntpConfig, *, weigh_model: bool) -> tuple[str, int, int]:
    """Prove that the decoder becomes bidirectional; give what was found, its parameters and its positions."""
    name, where = resolve_model(config.model_name_or_path), locate_model(config)
    backbone: Any
    if weigh_model:
        backbone = load_backbone(name, dtype="bfloat16" if has_bf16() else None, **where)
        settle_implementation(backbone, allow_partial=mntp.allow_partial)
        told = make_bidirectional(backbone, allow_partial=mntp.allow_partial).summary
    else:
        backbone = build_unstored(load_model_config(name, **where), replace(mntp, train_mode="full")).base_model
        told = _prove_twin(backbone, mntp)
    parameters = sum(parameter.numel() for parameter in backbone.parameters())
    positions = getattr(backbone.config.get_text_config(), "max_position_embeddings", None) or MAX_SEQ_LENGTH
    return told, parameters, positions


def _prove_twin(unstored: Any, mntp: MntpConfig) -> str:
    """Prove on the small twin of a model without storage that it becomes bidirectional."""
    name = type(unstored).__name__
    try:
        twin = build_small(unstored)
    except Exception:  # whatever a class of the hub does
        return f"{name} has no small twin; whether it becomes bidirectional is seen with its weights"
    settle_implementation(twin, allow_partial=mntp.allow_partial)
    make_bidirectional(twin, allow_partial=mntp.allow_partial)
    return f"{name} becomes bidirectional, by its small twin; its weights were not loaded"


def _choose_length(corpus: Corpus, tokenizer: Any, positions: int) -> int:
    """Choose the length of a block by the tokens of the corpus, told from its first megabyte before all is packed."""
    texts, seen, whole = take_first(corpus, weigh)
    times = 1.0 if whole else corpus.size / seen if corpus.size else (corpus.rows or math.inf) / len(texts)
    tokens = times * sum(map(len, tokenizer(texts, verbose=False)["input_ids"])) if texts else 0
    return min(positions, 512 if tokens >= 5e6 else 256 if tokens >= 1e6 else 128)


def _open_text(config: TurnConfig, name: str, key: str = "--text") -> Corpus:
    options: dict[str, Any] = {"text_column": config.text_column, "cache_dir": config.cache_dir, "key": key}
    if names_file(name):
        corpus = open_corpus(file=name, **options)
    else:
        corpus = open_corpus(dataset_name=name, dataset_config_name=config.dataset_config_name, **options)
    if corpus.tokenised:
        raise UserError(f"{key} {name} holds token ids; turn needs the texts themselves")
    return corpus


def _take_held_out(config: TurnConfig, corpus: Corpus, percent: float) -> Iterator[str]:
    """Yield the documents that no stage trains on, up to a few times as many as are measured."""
    given = config.validation_text
    texts = iter(_open_text(config, given, "--validation_text") if given else corpus)
    seen: set[str] = set()
    for text in texts:
        held = given or is_held_out(text, percent)
        if held and text.strip() and text not in seen:
            seen.add(text)
            yield text.strip()
        if len(seen) >= 4 * config.eval_documents:
            return


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
