"""From decoder to encoder in one command: check, prepare, MNTP and its control, SimCSE, pairs, and a table of it all.

Each rung is a run folder inside the output folder, so a stopped turn goes on where it was; sizes are derived from model
and text, and said.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from rich.console import Console

from turncoder import settings
from turncoder.config import MntpConfig, SimcseConfig, SupervisedConfig, TurnConfig, to_toml
from turncoder.data.corpus import Corpus, open_corpus
from turncoder.data.pairs import open_texts
from turncoder.data.store import is_held_out
from turncoder.data.tokenizer import load_tokenizer
from turncoder.errors import UserError
from turncoder.evaluate.sentences import read_sts
from turncoder.model.attention import make_bidirectional
from turncoder.model.backbone import load_backbone, resolve_model
from turncoder.rungs import Rung, Trial, build_table, explain, open_trial, read_masked, score_rung, score_words
from turncoder.train.rows import open_rows
from turncoder.train.running import Run, write_atomically
from turncoder.train.stage import perform
from turncoder.train.text import open_blocks

__all__ = ["Sizes", "derive_sizes", "plan_turn", "turn"]

logger = logging.getLogger("turncoder")

HELD_OUT = 5.0  # percent of the documents
MOST_STEPS = 1000  # LLM2Vec's, of every stage
EPOCHS = 3
MOST_SIMCSE_RATE = 3e-4  # at ten times that a small decoder loses on STS; see docs/decisions.md
MOST_PAIRS_RATE = 1e-3
CONTROL = "causal, more steps"


@dataclass
class Sizes:
    """What is derived: the keys of each stage, and the reasons, one line each."""

    mntp: dict[str, Any] = field(default_factory=dict)
    simcse: dict[str, Any] = field(default_factory=dict)
    supervised: dict[str, Any] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)


def turn(config: TurnConfig) -> Path:
    """Turn a decoder into an encoder; the same call again goes on where it stopped.

    Parameters
    ----------
    config
        See `turncoder.config.TurnConfig`.

    Returns
    -------
    Path
        The folder: ``control/``, ``mntp/``, ``simcse/`` (and ``supervised/``) are runs, ``model`` is the last one's
        model, ``results.json`` and ``report.md`` say what each gave.

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
    """Print the configuration and the sizes that are derived; write nothing but the cache of tokens."""
    sizes = _derive(config)[0]
    console.print(to_toml(config), highlight=False, markup=False)
    for reason in sizes.reasons:
        console.print(reason, highlight=False, markup=False)
    for stage in ("mntp", "simcse", *(["supervised"] if config.pairs else [])):
        console.print(f"{stage}: {json.dumps(getattr(sizes, stage))}", highlight=False, markup=False)


def _turn(config: TurnConfig, run: Run) -> None:
    clock = _Clock(6 if config.pairs else 5)
    sizes, held_out = clock.run("check and prepare", lambda: _derive(config))
    for reason in sizes.reasons:
        logger.info("      %s", reason)
    if "sizes" in run.record:  # as it was begun, on another machine perhaps
        sizes = Sizes(**run.record["sizes"])
    run.update(sizes={name: value for name, value in asdict(sizes).items() if name != "reasons"})
    stages = _configure(config, sizes)
    pairs = []
    if config.pairs:
        tokenizer = load_tokenizer(config.model_name_or_path, **_where(config))
        pairs = [rows for _, rows in open_rows(stages["supervised"], tokenizer, stages["supervised"].max_seq_length)]
    trial = open_trial(held_out, read_sts(config.sts) if config.sts else None, pairs, config.eval_documents)
    told = {
        "control": "the control: causal training on the same tokens",
        "mntp": "masked next token prediction (MNTP), bidirectional",
        "simcse": "SimCSE on the sentences",
        "supervised": "contrastive training on the pairs",
    }
    import turncoder

    for name, stage in stages.items():
        clock.run(told[name], lambda stage=stage: turncoder.train(stage))  # type: ignore[misc]
    if not PartialState().is_main_process:
        return
    rows = clock.run("scores of every rung", lambda: _score(config, sizes, stages, trial, Path(run.folder)))
    last = list(stages)[-1]
    _link(Path(run.folder) / "model", Path(last) / "model")
    _report(config, rows, trial, Path(run.folder), clock.seconds)
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


def _derive(config: TurnConfig) -> tuple[Sizes, list[str]]:
    """Open everything that is given, so that what is wrong is said now, and derive the sizes."""
    if config.sts:
        read_sts(config.sts)
    where = _where(config)
    corpus = _open_text(config, config.text)
    backbone = load_backbone(resolve_model(config.model_name_or_path), **where)
    report = make_bidirectional(backbone)
    parameters = sum(parameter.numel() for parameter in backbone.parameters())
    positions = getattr(backbone.config.get_text_config(), "max_position_embeddings", None) or 512
    del backbone
    tokenizer = load_tokenizer(config.model_name_or_path, **where)
    held_out = list(_take_held_out(config, corpus))
    sizes = Sizes(reasons=[f"{report.summary}; {parameters / 1e6:,.1f} M parameters, {positions:,} positions"])
    length = config.max_seq_length or min(positions, 512)
    mntp = _configure_one(MntpConfig, {**_shared(config), "output_dir": "mntp", "max_seq_length": length}, config.mntp)
    blocks, _ = open_blocks(mntp, tokenizer, mntp.max_seq_length or length)
    tokens = blocks.num_tokens
    if config.max_seq_length is None and "max_seq_length" not in config.mntp:
        length = min(length, 512 if tokens >= 5e6 else 256 if tokens >= 1e6 else 128)
    sentences, _ = open_texts(corpus, split=True, share=0.0 if config.validation_text else HELD_OUT)
    return derive_sizes(config, sizes, parameters, tokens, length, len(sentences)), held_out


def _where(config: TurnConfig) -> dict[str, Any]:
    return {
        "revision": config.model_revision,
        "cache_dir": config.cache_dir,
        "trust_remote_code": config.trust_remote_code,
    }


def derive_sizes(config: TurnConfig, sizes: Sizes, parameters: int, tokens: int, length: int, sentences: int) -> Sizes:
    """Derive the keys of each stage.

    Learning rates go with the inverse root of the parameters, through what is known to work: LLM2Vec's 5e-5 (MNTP),
    3e-5 (SimCSE) and 2e-4 (pairs, from there a factor of 4) at 7 B, and the quickstart's 5e-3 at 1 M.
    """
    fast = torch.accelerator.is_available()
    rows = max(4, (16384 if fast else 1024) // length)
    steps = config.steps_mntp or max(1, min(MOST_STEPS, math.ceil(EPOCHS * tokens / (rows * length))))
    rate = float(f"{min(5e-3, 5e-4 * math.sqrt(1e8 / parameters)):.1e}")
    bf16 = fast and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    common = {"bf16": True} if bf16 else {}
    sizes.mntp = {
        "max_seq_length": length, "per_device_train_batch_size": rows, "per_device_eval_batch_size": rows,
        "learning_rate": rate, "mlm_probability": 0.2, "lora_r": 16, "max_eval_samples": 128,
        "save_steps": max(1, min(200, steps // 3)), "save_total_limit": 1, **_schedule(steps), **common,
    }  # fmt: skip
    batch = max(8, min(128 if fast else 64, sentences // 8))
    steps_simcse = config.steps_simcse or max(1, min(MOST_STEPS, math.ceil(EPOCHS * sentences / batch)))
    sizes.simcse = {
        "max_seq_length": min(128, length), "per_device_train_batch_size": batch, "per_device_eval_batch_size": batch,
        "learning_rate": float(f"{min(MOST_SIMCSE_RATE, 0.6 * rate):.1e}"), "lora_r": 16, "max_eval_samples": 512,
        "split_sentences": True,
        "save_steps": max(1, min(200, steps_simcse // 3)), "save_total_limit": 1, **_schedule(steps_simcse), **common,
    }  # fmt: skip
    sizes.supervised = {
        "max_seq_length": min(256, length), "per_device_train_batch_size": batch, "per_device_eval_batch_size": batch,
        "learning_rate": float(f"{min(MOST_PAIRS_RATE, 4 * rate):.1e}"), "lora_r": 16, "num_train_epochs": EPOCHS,
        "stop_after_n_steps": config.steps_supervised or MOST_STEPS, "logging_steps": 20, "warmup_steps": 0.1,
        "save_steps": 200, "save_total_limit": 1, **common,
    }  # fmt: skip
    if config.steps_supervised:
        sizes.supervised["max_steps"] = config.steps_supervised
    sizes.reasons += [
        f"text: {tokens:,} tokens to train on, {sentences:,} different sentences",
        f"blocks of {length} tokens, {rows} a step: {steps:,} steps of MNTP (at most {EPOCHS} epochs, {MOST_STEPS})",
        f"learning rate {rate:g}, by the number of parameters",
        f"SimCSE: {batch} sentences a step, {steps_simcse:,} steps",
    ]
    return sizes


def _schedule(steps: int) -> dict[str, Any]:
    return {"max_steps": steps, "warmup_steps": max(1, steps // 15), "logging_steps": max(1, steps // 5)}


def _shared(config: TurnConfig) -> dict[str, Any]:
    """Give the keys that every stage on the text has."""
    known = _is_file(config.text)
    return {
        "model_name_or_path": config.model_name_or_path,
        "model_revision": config.model_revision,
        "cache_dir": config.cache_dir,
        "trust_remote_code": config.trust_remote_code,
        "train_file" if known else "dataset_name": config.text,
        "validation_file": config.validation_text,
        "validation_split_percentage": HELD_OUT,
        "text_column": config.text_column,
        "seed": config.seed,
    }


def _configure(config: TurnConfig, sizes: Sizes) -> dict[str, Any]:
    """Build the configuration of every stage: what is derived, and what the user says otherwise."""
    folder = Path(config.output_dir or "")
    shared = _shared(config)
    mntp = {**shared, **sizes.mntp}
    causal = {"bidirectional": False, "data_collator_type": "unmasked", "evaluate_step_zero": False}
    above = {**shared, "model_name_or_path": str(folder / "mntp"), "model_revision": "main"}
    stages: dict[str, Any] = {
        "control": _configure_one(
            MntpConfig, {**mntp, "output_dir": str(folder / "control")}, {**config.mntp, **causal}
        ),
        "mntp": _configure_one(MntpConfig, {**mntp, "output_dir": str(folder / "mntp")}, config.mntp),
        "simcse": _configure_one(
            SimcseConfig,
            {**above, **sizes.simcse, "sts_file": config.sts, "output_dir": str(folder / "simcse")},
            config.simcse,
        ),
    }
    if config.pairs:
        told = {
            name: value
            for name, value in above.items()
            if name not in ("text_column", "train_file", "dataset_name", "validation_file")
        }
        told |= {"model_name_or_path": str(folder / "simcse"), "output_dir": str(folder / "supervised")}
        told["train_file" if _is_file(config.pairs) else "dataset_name"] = config.pairs
        stages["supervised"] = _configure_one(
            SupervisedConfig, {**told, **sizes.supervised, "sts_file": config.sts}, config.supervised
        )
    return stages


def _configure_one(kind: type[Any], derived: dict[str, Any], given: dict[str, Any]) -> Any:
    return settings.load(kind, None, {**derived, **given})


def _is_file(name: str) -> bool:
    return Path(name).expanduser().exists() or bool(Path(name).suffix) or name.startswith((".", "/", "~"))


def _open_text(config: TurnConfig, name: str) -> Corpus:
    options: dict[str, Any] = {"text_column": config.text_column, "cache_dir": config.cache_dir}
    corpus = open_corpus(file=name, **options) if _is_file(name) else open_corpus(dataset_name=name, **options)
    if corpus.tokenised:
        raise UserError(f"--text {name} holds token ids; turn needs the texts themselves")
    return corpus


def _take_held_out(config: TurnConfig, corpus: Corpus) -> Iterator[str]:
    """Yield the documents that no stage trains on, up to a few times as many as are measured."""
    texts = iter(_open_text(config, config.validation_text) if config.validation_text else corpus)
    seen: set[str] = set()
    for text in texts:
        held = config.validation_text or is_held_out(text, HELD_OUT)
        if held and text.strip() and text not in seen:
            seen.add(text)
            yield text.strip()
        if len(seen) >= 4 * config.eval_documents:
            return


def _score(
    config: TurnConfig, sizes: Sizes, stages: dict[str, Any], trial: Trial, folder: Path
) -> list[dict[str, Any]]:
    """Score the rungs that have not been scored yet."""
    mntp, control = folder / "mntp", folder / "control"
    options: dict[str, Any] = {"max_seq_length": sizes.mntp["max_seq_length"]}
    opened = {**options, **_where(config)}
    base = config.model_name_or_path
    rungs = [
        Rung("causal", base, {**opened, "bidirectional": False}, read_masked(mntp, "causal")),
        Rung(CONTROL, str(control), options, read_masked(control)),
        Rung("bidirectional", base, {**opened, "bidirectional": True}, read_masked(mntp, "bidirectional")),
        Rung("+ MNTP", str(mntp), options, read_masked(mntp)),
        Rung("+ SimCSE", str(folder / "simcse"), options),
    ]
    if "supervised" in stages:
        rungs.append(Rung("+ pairs", str(folder / "supervised"), options))
    path = folder / "results.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf8"))["rows"] if path.exists() else []
    done = {row["name"] for row in rows}
    if not rows:
        rows = score_words(trial)
    for rung in rungs:
        if rung.name not in done:
            rows.append(score_rung(rung, trial))
            write_atomically(path, json.dumps({"rows": rows}) + "\n")
    return rows


def _link(place: Path, target: Path) -> None:
    """Have ``model`` name the last rung's model."""
    if not place.is_symlink() and not place.exists():
        place.symlink_to(target)


def _drop(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("ranks", "neighbours")}


def _report(
    config: TurnConfig, rows: list[dict[str, Any]], trial: Trial, folder: Path, seconds: dict[str, float]
) -> None:
    """Write the table and what it means to ``report.md`` and ``results.json``."""
    title = f"What each step gave ({len(trial.documents.queries):,} documents)"
    lines = explain(rows, CONTROL)
    results = {"title": title, "rows": rows, "lines": lines, "seconds": seconds}
    write_atomically(folder / "report.md", _write_page(config, rows, title, lines, trial))
    write_atomically(folder / "results.json", json.dumps(results, indent=1) + "\n")


def _show(folder: Path) -> None:
    """Print the table and what it means."""
    results = json.loads((folder / "results.json").read_text(encoding="utf8"))
    console = Console()
    console.print(build_table(results["rows"], results["title"]))
    for line in results["lines"]:
        console.print(line, highlight=False, markup=False)
    console.print(f"\nReport     {folder / 'report.md'}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"SentenceTransformer({str(folder / 'model')!r})", highlight=False, markup=False, soft_wrap=True)


def _write_page(config: TurnConfig, rows: list[dict[str, Any]], title: str, lines: list[str], trial: Trial) -> str:
    from turncoder.rungs import COLUMNS, choose_sentences

    columns = {key: told for key, told in COLUMNS.items() if any(key in row for row in rows)}
    page = [f"# {config.model_name_or_path}, turned", "", title, ""]
    page += ["| | " + " | ".join(columns.values()) + " |", "|---|" + "---:|" * len(columns)]
    for row in rows:
        page.append(f"| {row['name']} | " + " | ".join(f"{row[k]:.3f}" if k in row else "-" for k in columns) + " |")
    page += ["", *lines, "", "## One text of each task, as the last model reads it (what is pooled in brackets)", ""]
    page += [f"- {task}: `{shown}`" for task, shown in rows[-1].get("rendered", {}).items()]
    found = [(row["name"], row["neighbours"]) for row in rows if "neighbours" in row]
    if found:
        page += ["", "## Nearest neighbours among the first sentences", ""]
        chosen = choose_sentences(trial.documents.queries, len(found[0][1]))
        for place, sentence in enumerate(chosen):
            page.append(f"- {trial.documents.queries[sentence]}")
            page += [f"  - {name}: {others[place][0]} ({others[place][1]:.2f})" for name, others in found]
    return "\n".join(page) + "\n"
