"""Labels of words on every rung: a probe reads them from the frozen states, alike for all, and says what is in them.

Each probe is a run of ``turncoder words`` inside the folder of the turn, so a stopped turn goes on with the next one.
"""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState

from turncoder.config import settings
from turncoder.config.words import WordsConfig
from turncoder.data.files import names_file
from turncoder.data.saved import is_saved
from turncoder.data.words import WordSet, find_column, open_words
from turncoder.errors import UserError
from turncoder.evaluate.results import read_results
from turncoder.evaluate.significance import bootstrap
from turncoder.evaluate.wordfiles import read_predictions
from turncoder.preview import quiet
from turncoder.train.words import train
from turncoder.train.wordtasks import open_splits, open_tasks
from turncoder.turn.rungs import MACRO, PROBED, Rung

if TYPE_CHECKING:
    from turncoder.config.stages import TurnConfig

__all__ = ["compare_probes", "configure_probes", "open_tagged", "read_probe", "score_usual", "train_probes"]

logger = logging.getLogger("turncoder")

SEEDS = 3
MOST_SENTENCES = {"max_train_samples": 3000, "max_eval_samples": 1000}  # a rung takes seconds; all that is scored is
SHARE = 10.0  # percent of the sentences, to choose on and to score, where no file is named for it
SPLITS = {
    "train_file": re.compile(r"(?<![a-z])train"),
    "validation_file": re.compile(r"(?<![a-z])(dev|valid|testa\b)"),
    "test_file": re.compile(r"(?<![a-z])test(?!a\b)"),
}
"""``testa`` is what CoNLL-2003 calls the words to choose on: eng.train, eng.testa, eng.testb."""
ENDINGS = (".conllu", ".conll", ".iob2", ".iob", ".bio", ".jsonl", ".json", ".parquet", ".tsv", ".txt")
CONLL_2003 = (".train", ".testa", ".testb")
USUAL = ("xpos", "upos", "ner", "ner_tags", "pos", "pos_tags", "chunk", "chunk_tags")
"""Columns that are measured where none is named: the first of these."""


def open_tagged(config: TurnConfig) -> tuple[dict[str, Any], list[str]]:
    """Open the tagged words of a turn.

    Parameters
    ----------
    config
        Of the turn; ``words`` is a file, a folder of files whose names say train, dev and test, or a data set: a folder
        that ``datasets`` saved, or a hub id.

    Returns
    -------
    tuple of dict and list of str
        Keys of `turncoder.config.words.WordsConfig` that are the same for every rung; and what follows, a line each.

    Raises
    ------
    UserError
        No such file, no such column, or too few sentences.
    """
    place = Path(str(config.words)).expanduser()
    if _names_files(place, str(config.words)):
        sources: dict[str, str | None] = {**_find_files(place)}
        train = {key: open_words(file=file, key="--words") for key, file in sources.items()}["train_file"]
    else:
        sources = {"dataset_name": config.words, "dataset_config_name": config.words_config_name}
        train = open_words(**sources, cache_dir=config.cache_dir, key="--words")  # type: ignore[arg-type]
    columns = [find_column(train, task, "words_task") for task in config.words_task] or [_choose_column(train)]
    keys: dict[str, Any] = {
        **sources,
        **MOST_SENTENCES,
        "task": columns,
        "seeds": [config.seed + n for n in range(SEEDS)],
    }
    keys["validation_split_percentage"] = SHARE
    if "test_file" not in sources:
        keys["test_split_percentage"] = SHARE
    where = {"model_name_or_path": config.model_name_or_path, "cache_dir": config.cache_dir}
    probe = settings.load(WordsConfig, None, {**where, **keys})
    with quiet():  # the first probe says what is to be said of these words
        splits = open_splits(probe)
        tasks = open_tasks(probe, splits)
    assert splits.test is not None
    told = ", ".join(f"{task.column} ({len(task.labels)} labels)" for task in tasks)
    return keys, [
        f"words: {told} of {config.words}: {len(splits.train):,} sentences to train probes on (of {len(train):,} in "
        f"{train.name}), {len(splits.held_out):,} to choose on, {len(splits.test):,} scored; {SEEDS} seeds x "
        f"{len(probe.learning_rate)} learning rates on each rung"
    ]


def _names_files(path: Path, name: str) -> bool:
    """Tell files, and a folder of those, from a data set."""
    known = name.lower().removesuffix(".gz").endswith(ENDINGS + CONLL_2003)
    return (known or names_file(name)) and not is_saved(path)


def _find_files(path: Path) -> dict[str, str]:
    """Find the files to train on, to choose on, and to score; only the first has to be there."""
    if not path.is_dir():
        return {"train_file": str(path)}
    names = sorted(child.name for child in path.iterdir() if child.is_file())
    for ending in (*ENDINGS, CONLL_2003):
        files: dict[str, str] = {}
        for name in names:
            said = name.lower().removesuffix(".gz")
            key = next((key for key, pattern in SPLITS.items() if pattern.search(said)), None)
            if key is None or not said.endswith(ending):
                continue
            if key in files:
                raise UserError(
                    f"--words: {path}: both {Path(files[key]).name} and {name} could be the {key}; keep one"
                )
            files[key] = str(path / name)
        if "train_file" in files:
            return files
    raise UserError(
        f"--words: {path} has no file to train on; name them with train, dev and test, as in NAME-train.conllu (or "
        f"{', '.join(ENDINGS[1:])}), or NAME{', NAME'.join(CONLL_2003)}"
    )


def _choose_column(words: WordSet) -> str:
    found = [column for column in USUAL if column in words.columns] or list(words.columns)
    if found[0] not in USUAL and len(found) > 1:
        raise UserError(
            f"--words: {words.where} has the columns {', '.join(found)}; name those that count: --words_task COLUMN"
        )
    if len(words.columns) > 1:
        others = ", ".join(column for column in words.columns if not column.startswith("feats"))
        logger.warning("--words: %s is measured, of %s; --words_task names another", found[0], others)
    return found[0]


def configure_probes(
    config: TurnConfig, keys: dict[str, Any], rungs: Sequence[Rung], folder: Path
) -> dict[str, WordsConfig]:
    """Configure the probes.

    Parameters
    ----------
    config
        Of the turn.
    keys
        Those that `open_tagged` gives.
    rungs
        Whose states are read.
    folder
        Of the turn.

    Returns
    -------
    dict
        By the rungs' names; empty without words.
    """
    if not config.words:
        return {}
    shared = {"cache_dir": config.cache_dir, "trust_remote_code": config.trust_remote_code, "seed": config.seed, **keys}
    probes = {}
    for rung in rungs:
        own = {
            key: value for key, value in rung.options.items() if key in ("bidirectional", "dtype") and value is not None
        }
        own |= {"model_name_or_path": rung.model, "output_dir": str(folder / "words" / rung.place)}
        own |= {"model_revision": rung.options.get("revision", "main")}
        probes[rung.name] = settings.load(WordsConfig, None, {**shared, **own})
    return probes


def train_probes(probes: dict[str, WordsConfig]) -> None:
    """Train the probes that have not been trained yet; what is to be said of the words is said once."""
    for number, (name, probe) in enumerate(probes.items()):
        with quiet(logging.ERROR if number else logging.WARNING):
            run = train(probe)
        if PartialState().is_main_process:
            row = read_probe(run)
            scores = (f"{column} {row[PROBED + column]:.3f}" for column in row["probes"])
            logger.info("      %s: %s", name, ", ".join(scores))


def read_probe(run: Path) -> dict[str, Any]:
    """Read what a probe scored: ``words/COLUMN`` (and `` F1``) are means over seeds, ``probes`` tells more of each."""
    results = read_results(run)
    row: dict[str, Any] = {"probes": {}}
    for column, told in results["tasks"].items():
        metric = told["metric"]
        row |= _choose_scores(column, metric, told["mean"])
        support = {label: scores["support"] for label, scores in told["per_class"].items()}
        row["probes"][column] = {
            "labels": sorted(support, key=lambda label: -support[label]),
            "metric": metric,
            "seeds": len(told["seeds"]),
            "std": told["std"][metric],
            "alignment": told["chosen"]["alignment"],
            "words": told["words_scored"],
        }
    return row


def score_usual(probe: WordsConfig) -> dict[str, Any]:
    """Score the label that a word has most often in the training words; an unknown word has the most frequent one."""
    with quiet():
        splits = open_splits(probe)
        tasks = open_tasks(probe, splits)
    assert splits.test is not None
    row: dict[str, float] = {}
    for task in tasks:
        seen: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for words, tags in zip(splits.train.forms(), splits.train.labels(task.column), strict=True):
            for word, tag in zip(words, tags, strict=True):
                seen[word][tag] += tag != ""
        usual = {word: tags.most_common(1)[0][0] for word, tags in seen.items()}
        rest = sum(seen.values(), Counter()).most_common(1)[0][0]
        guessed = ([usual.get(word) or rest for word in words] for words in splits.test.forms())
        row |= _choose_scores(task.column, task.metric, task.score(splits.test.labels(task.column), guessed))
    return row


def _choose_scores(column: str, metric: str, scores: dict[str, Any]) -> dict[str, float]:
    """Choose what the table shows: beside the share of right labels, which frequent ones decide, F1 over all."""
    more = {PROBED + column + MACRO: scores["macro_f1"]} if metric == "token_accuracy" else {}
    return {PROBED + column: scores[metric], **more}


def compare_probes(probes: dict[str, WordsConfig], first: str, second: str) -> list[str]:
    """Say for each column how sure the second rung's gain over the first is."""
    runs = [Path(str(probes[name].output_dir)) for name in (first, second)]
    tasks = read_results(runs[0])["tasks"]
    lines = []
    for column, told in tasks.items():
        place = column.replace("/", "_") if len(tasks) > 1 else "."
        (_, gold, one), (_, _, other) = (read_predictions(run / place / "predictions.tsv") for run in runs)
        found = bootstrap(gold, one, other, metric=told["metric"])
        lines.append(
            f"{column}, '{second}' against '{first}': {found['difference']:+.3f} (95 %: {found['low']:+.3f} to "
            f"{found['high']:+.3f}; best seed of each, paired bootstrap over sentences)."
        )
    return lines
