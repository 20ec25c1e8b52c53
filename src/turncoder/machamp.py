"""MaChAmp, a baseline for word-level tasks: our words as the files that it reads, and its scores as rows of ours.

The formats are those of MaChAmp 0.4 (github.com/machamp-nlp/machamp).
"""

import copy
import json
import logging
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from turncoder.data.words import WordSet
from turncoder.disk import replace_file, write_atomically
from turncoder.errors import UserError
from turncoder.evaluate.words import score, summarise, tally

__all__ = ["export_machamp", "read_machamp"]

logger = logging.getLogger("turncoder")

UNLABELLED = "_"
BREAKS = str.maketrans("\t\n\r", "   ")
# MaChAmp's names of scores, and ours; precision and recall are of spans only beside span_f1
SCORES = {
    "accuracy": "token_accuracy",
    "f1_macro": "macro_f1",
    "precision": "span_precision",
    "recall": "span_recall",
    "span_f1": "span_f1",
}
BEST = re.compile(rf"best_dev_(.+)_({'|'.join(SCORES)})")
# MaChAmp's own defaults (configs/params.json of 0.4.2, whose code wants each of these keys)
PARAMETERS: dict[str, Any] = {
    "reset_transformer_model": False,
    "default_dec_dataset_embeds_dim": 12,
    "encoder": {"dropout": 0.2, "max_input_length": 128, "update_weights_encoder": True},
    "decoders": {
        "default_decoder": {"loss_weight": 1.0, "metric": "accuracy", "topn": 1, "layers_to_use": [-1]},
        "seq": {},
        "seq_bio": {"metric": "span_f1"},
    },
    "batching": {
        "max_tokens": 1024,
        "shuffle": True,
        "batch_size": 32,
        "sort_by_size": True,
        "diverse": False,
        "sampling_smoothing": 1.0,
    },
    "training": {
        "keep_top_n": 1,
        "learning_rate_scheduler": {
            "cut_frac": 0.3,
            "decay_factor": 0.38,
            "discriminative_fine_tuning": True,
            "gradual_unfreezing": True,
        },
        "num_epochs": 20,
        "optimizer": {"betas": [0.9, 0.99], "lr": 0.0001, "weight_decay": 0.01},
    },
}


def export_machamp(
    tasks: Mapping[str, str],
    splits: Mapping[str, WordSet],
    folder: Path,
    *,
    model: str = "bert-base-multilingual-cased",
    seeds: Sequence[int] = (8446,),
    frozen: bool = False,
) -> str:
    """Write words as MaChAmp reads them: columns (the word, then a label for each task), and its two configurations.

    Parameters
    ----------
    tasks
        The column of each task.
    splits
        ``train``, ``dev`` and ``test``; all but the first may be left out.
    folder
        Where ``NAME.train.conll`` and so on, ``dataset.json`` and ``params.json`` are written.
    model
        Hub id or folder of MaChAmp's encoder.
    seeds
        It is trained once with each; its other parameters are its own defaults.
    frozen
        Train the heads alone, in every epoch.

    Returns
    -------
    str
        The commands that train and score it, to be run in a clone of MaChAmp.

    Raises
    ------
    UserError
        ``folder`` is a file.
    """
    folder = folder.expanduser().absolute()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"export_machamp: {folder} is a file; name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    train = splits["train"]
    name = re.sub(r"[^\w.-]+", "_", Path(train.name).name.removesuffix(".gz").partition(".")[0])
    paths = {split: folder / f"{name}.{split}.conll" for split in splits}
    for split, words in splits.items():
        _write_columns(paths[split], words, tasks)
    dataset: dict[str, Any] = {"train_data_path": str(paths["train"])}
    if "dev" in paths:
        dataset["dev_data_path"] = str(paths["dev"])
    dataset["word_idx"] = 0
    dataset["tasks"] = {
        task: {"task_type": "seq_bio" if train.schemes[column] else "seq", "column_idx": place}
        for place, (task, column) in enumerate(tasks.items(), 1)
    }
    if Path(model).expanduser().is_dir():  # the commands are run somewhere else
        model = str(Path(model).expanduser().absolute())
    parameters = {"transformer_model": model, "random_seed": seeds[0], **copy.deepcopy(PARAMETERS)}
    if frozen:
        parameters["encoder"]["update_weights_encoder"] = False
        # the schedule would unfreeze the encoder after the first epoch, whatever the key above says
        parameters["training"]["learning_rate_scheduler"]["gradual_unfreezing"] = False
    write_atomically(folder / "dataset.json", json.dumps({name: dataset}, indent=2) + "\n")
    write_atomically(folder / "params.json", json.dumps(parameters, indent=2) + "\n")
    given = [f"--dataset_configs {shlex.quote(str(folder / 'dataset.json'))}"]
    given += [f"--parameters_config {shlex.quote(str(folder / 'params.json'))} --name {name}"]
    # it stores whole models, which PyTorch 2.6 and later refuse to open by themselves
    commands = ["export TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1"]
    commands += [f"python3 train.py {' '.join(given)} --seed {seed}" for seed in seeds]
    if "test" in paths:
        logs = f"logs/{name}/DATE"
        commands.append(f"python3 predict.py {logs}/model.pt {shlex.quote(str(paths['test']))} {logs}/test.out")
    return "\n".join(commands)


def _write_columns(path: Path, words: WordSet, tasks: Mapping[str, str]) -> None:
    """Write a line for each word, and an empty one after each sentence."""
    without = dict.fromkeys(tasks, 0)
    columns = [words.labels(column) for column in tasks.values()]
    with replace_file(path) as partial, partial.open("w", encoding="utf8", newline="\n") as file:
        for forms, *labels in zip(words.forms(), *columns, strict=True):
            for task, tags in zip(tasks, labels, strict=True):
                without[task] += tags.count("")
            for form, *tags in zip(forms, *labels, strict=True):
                file.write("\t".join([form.translate(BREAKS), *(tag or UNLABELLED for tag in tags)]) + "\n")
            file.write("\n")
    for task, count in without.items():
        if count:
            logger.warning(
                "%s: %s words have no label for %s; we leave them out, and MaChAmp learns and scores them as %r",
                words.where, f"{count:,}", task, UNLABELLED,
            )  # fmt: skip


def read_machamp(logdir: Path) -> list[dict[str, Any]]:
    """Read MaChAmp's scores.

    Parameters
    ----------
    logdir
        ``logs/NAME/DATE`` of one run, or ``logs/NAME``, whose runs are seeds of the same.

    Returns
    -------
    list of dict
        Rows for a report, one for each task on the development words in the best epoch, and on each file that
        ``predict.py`` scored (``FILE.eval`` in the folder): ``model`` (which says the words), ``task``, ``seeds``, mean
        scores under our names, in [0, 1], and in ``std`` their standard deviations; ``seconds`` of a run's training.
        Where the exported files are still in their place the predictions beside the scores are scored as ours are.

    Raises
    ------
    UserError
        No log of a finished run; a file of it that is broken.
    """
    runs = [folder for folder in (logdir, *sorted(logdir.glob("*/"))) if (folder / "metrics.json").is_file()]
    if not runs:
        raise UserError(f"machamp: {logdir} has no metrics.json, which MaChAmp writes after the last epoch")
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for run in runs:
        for words, task, scores in _read_run(run):
            found.setdefault((words, task), []).append(scores)
    rows = []
    for (words, task), seeds in sorted(found.items(), key=lambda item: (item[0][0] != "dev", item[0])):
        both = summarise(seeds)
        rows.append(
            {"model": f"MaChAmp {task}, {words}", "task": task, "seeds": len(seeds), **both["mean"], "std": both["std"]}
        )
    return rows


def _read_run(folder: Path) -> Iterator[tuple[str, str, dict[str, float]]]:
    """Yield words, task and scores."""
    metrics = _read_json(folder / "metrics.json")
    dev: dict[str, dict[str, float]] = {}
    for key, value in metrics.items():
        if match := BEST.fullmatch(key):
            dev.setdefault(match[1], {})[match[2]] = value
    if not dev:
        raise UserError(f"machamp: {folder / 'metrics.json'} has no best_dev_TASK_METRIC; was there a dev_data_path?")
    known = folder / "dataset-configs.json"
    datasets = _read_json(known) if known.exists() else {}
    outputs = {f"{name}.out": "dev" for name in datasets}
    dataset = next(iter(datasets.values())) if len(datasets) == 1 else {}
    counted = _count_again(folder / next(iter(outputs), ""), dataset)
    for task, scores in dev.items():
        yield "dev", task, (counted.get(task) or _rename(scores, folder, task)) | _read_time(metrics)
    for path in sorted(folder.glob("*.eval")):
        if path.stem in outputs:  # the development words once more
            continue
        counted = _count_again(path.with_suffix(""), dataset)
        for task, parts in _read_json(path).items():
            if isinstance(parts, dict):
                scores = {k: v for part in parts.values() if isinstance(part, dict) for k, v in part.items()}
                yield path.stem, task, counted.get(task) or _rename(scores, path, task)


def _count_again(path: Path, dataset: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Score predictions as ours are, by the exported file that holds their words; none where there is no such file."""
    exported = Path(dataset.get("train_data_path", ""))
    if not (path.is_file() and exported.is_file()):
        return {}
    said, place = _read_columns(path), dataset["word_idx"]
    for gold_path in sorted(exported.parent.glob("*.conll")):
        gold = _read_columns(gold_path)
        if [[(len(row), row[place]) for row in rows] for rows in gold] == [
            [(len(row), row[place]) for row in rows] for rows in said
        ]:
            break
    else:
        return {}
    found = {}
    for task, told in dataset["tasks"].items():
        right, guess = ([[row[told["column_idx"]] for row in rows] for rows in side] for side in (gold, said))
        labelled = [["" if tag == UNLABELLED else tag for tag in tags] for tags in right]
        scores = score(tally(labelled, guess, told["task_type"] == "seq_bio"))
        found[task] = {name: scores[name] for name in SCORES.values() if name in scores}
    return found


def _read_columns(path: Path) -> list[list[list[str]]]:
    """Read sentences as rows of columns."""
    blocks = path.read_text(encoding="utf8").split("\n\n")
    return [[line.split("\t") for line in block.strip("\n").split("\n")] for block in blocks if block.strip("\n")]


def _rename(scores: Mapping[str, Any], place: Path, task: str) -> dict[str, float]:
    """Take MaChAmp's own scores."""
    spans = "span_f1" in scores
    if spans:
        logger.warning(
            "%s: span F1 of %s as MaChAmp counts it, not conlleval; its predictions or the exported words are gone",
            place, task,
        )  # fmt: skip
    return {
        ours: float(scores[theirs])
        for theirs, ours in SCORES.items()
        if theirs in scores and (spans or not ours.startswith("span"))
    }


def _read_time(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Read how long training took, as Python writes it: ``1 day, 2:03:04``; nothing where it is not told."""
    match = re.fullmatch(r"(?:(\d+) days?, )?(\d+):(\d+):(\d+)", str(metrics.get("time_total", "")))
    if match is None:
        return {}
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return {"seconds": ((24 * days + hours) * 60 + minutes) * 60 + seconds}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf8"))
        if not isinstance(content, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise UserError(f"machamp: {path} is broken ({error}); run MaChAmp again") from None
    return content
