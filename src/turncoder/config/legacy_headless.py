"""What the task files and flags of headless-lm mean here, and what is done otherwise.

A run of headless-lm is a JSON file and flags that belong together: how many rows a step has stands in flags, how long
they are in the file. `translate` gives both their names of today. ``docs/migrate.md`` shows the tables in prose; a test
holds the two together.
"""

from typing import Any

from turncoder.config.legacy_values import READERS, TASK, Told, choose_length, find_kind, read_objective, tell_pieces
from turncoder.errors import UserError

__all__ = ["DIFFERENCES", "IGNORED", "NAMES", "OF_TEXT", "RENAMED", "is_headless", "list_names", "translate"]


RENAMED = {
    "mask_prob": "mlm_probability",
    "replace_prob": "mask_share",
    "random_token_prob": "random_share",
    "total_nb_steps": "max_steps",
    "adam_eps": "adam_epsilon",
    "contrastive_temperature": "temperature",
    "dataset_config": "dataset_config_name",
    "hf_path": "config_name",
    "hf_tokenizer": "tokenizer_name",
    "ckpt_every": "save_steps",
}
"""Name there -> name here, with the same values."""

IGNORED = {
    "num_tokens": "as many embeddings as the tokenizer has tokens",
    "pad_token_id": "padding is the tokenizer's",
    "mask_ignore_token_ids": "the tokenizer's special tokens are never predicted",
}
"""Name there -> why it has nothing to say here."""

DEFAULTS: dict[str, dict[str, Any]] = {
    "mlm": {
        "learning_rate": 1e-4, "weight_decay": 1e-2, "warmup_steps": 1e4, "max_steps": 10**6,
        "lr_scheduler_type": "linear",
    },
    "clm": {
        "learning_rate": 6e-4, "weight_decay": 0.1, "warmup_steps": 1430, "max_steps": 10**6,
        "lr_scheduler_type": "cosine", "adam_beta1": 0.9, "adam_beta2": 0.95,
    },
}  # fmt: skip
"""What a task file means where it says nothing and our own default is another."""

SAVE_STEPS = {"pretraining": 10_000, "fine-tuning": 2500}

DIFFERENCES = (
    "labels from the clean text",
    "random tokens among the predicted ones alone",
    "the tokenizer's mask token",
    "padding masked",
    "documents ended",
    "no text lost in packing",
    "order by seed",
    "decay of matrices alone",
    "stable loss",
    "each token drawn by itself",
    "a head that stays tied",
    "batches as asked",
    "the head's own layers train",
    "validation in bits per byte",
    "float32 unless told",
)
"""What is done otherwise, as ``docs/migrate.md`` calls it, which says why."""

NAMES = frozenset({*RENAMED, *IGNORED, *(name for names in READERS for name in names)}) - {"run_name"}
"""All names of headless-lm that are none of ours."""
OF_TEXT = frozenset(
    {
        *("text_key", "tokenized", "max_seq_len", "model_max_seq_len", "dataset", "dataset_config"),
        *("hf_tokenizer", "hf_path"),
    }
)
"""Those of them that say which text is read, and how."""


def is_headless(told: Told) -> bool:
    """Say whether keys read like a file or flags of headless-lm."""
    return not NAMES.isdisjoint(told)


def list_names(stage: str) -> frozenset[str]:
    """List the names that a stage understands."""
    return OF_TEXT if stage == "prepare" else NAMES


def translate(
    stage: str, table: dict[str, Any], flags: dict[str, Any], origin: str
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Give the keys of headless-lm their names of today; other keys are left as they are.

    Parameters
    ----------
    stage
        ``pretrain`` or ``prepare``, which only wants to know of the text.
    table, flags
        Keys of the file and of the command line; they are read together, and flags win.
    origin
        How to name a key of the file in a message: ``"mlm.json: "``.

    Returns
    -------
    tuple of dict, dict and list of str
        The keys of file and command line, and one line for each of both, for what is filled in and what is ignored.

    Raises
    ------
    UserError
        A value that cannot be honoured, or a key given under both of its names.
    """
    told = {**table, **flags}
    trains = stage != "prepare"
    if not trains:  # the text alone
        if "hf_tokenizer" in table and "output" in table:  # of preprocess.py, where it is no run folder
            flags = {"output_dir": table["output"], **flags}
        table = {name: value for name, value in table.items() if name not in NAMES - OF_TEXT and name != "output"}
    notices: list[str] = []
    sides = {origin: dict(table), "--": dict(flags)}
    for where, side in sides.items():
        renamed = {name: {RENAMED[name]: side.pop(name)} for name in RENAMED if name in side}
        for names, read in READERS.items():
            given = [name for name in names if name in side]
            last = where == "--" or not any(name in flags for name in names)
            if given and given != ["run_name"] and (trains or not OF_TEXT.isdisjoint(given)):
                for name in given:
                    del side[name]
                if last:
                    renamed[", ".join(name for name in names if name in told)] = read(told)
        for name in IGNORED:
            if side.pop(name, None) not in (None, "", []):
                notices.append(f"{where}{name} is ignored: {IGNORED[name]}")
        notices += _put(side, {name: keys for name, keys in renamed.items() if keys}, where)
    if "ckpt_path" in told and "model_name_or_path" not in sides["--"]:
        notices.append("ckpt_path is ignored: the same run folder resumes by itself")
    if trains and not TASK.isdisjoint(told):
        notices += _fill_in(sides[origin], {**sides[origin], **sides["--"]}, told, origin)
    return sides[origin], sides["--"], notices


def _put(side: dict[str, Any], renamed: dict[str, dict[str, Any]], where: str) -> list[str]:
    """Put translated keys to the others, in place; say what they are called now."""
    said = []
    for name, keys in renamed.items():
        if double := [key for key in keys if key in side and key != "config_overrides"]:
            raise UserError(f"{where}{name} and {where}{double[0]} are the same key; keep {double[0]}")
        if "config_overrides" in keys:
            keys = {**keys, "config_overrides": {**keys["config_overrides"], **side.get("config_overrides", {})}}
        side.update(keys)
        said.append(f"{name}: {_list(keys)}")
    place = where.rstrip("-: ") or "flags"
    return [f"{place}: names of headless-lm, and what they are now: {'; '.join(said)}"] if said else []


def _fill_in(side: dict[str, Any], given: Told, told: Told, origin: str) -> list[str]:
    """Put in what a task file means where it says nothing, in place; say so, and what is done otherwise."""
    kind = find_kind(told)
    when = "fine-tuning" if "model_name_or_path" in given else "pretraining"
    defaults = {**read_objective(told), **DEFAULTS[kind], "save_steps": SAVE_STEPS[when]}
    if "max_seq_length" not in given:
        defaults |= choose_length(told)
    if {**defaults, **given}["objective"] != "cross_entropy":
        defaults["negatives"] = "micro"
    if "num_train_epochs" in given:
        del defaults["max_steps"]
    missing = {name: value for name, value in defaults.items() if name not in given}
    side.update(missing)
    notices = [f"{origin}what it does not say is headless-lm's default: {_list(missing)}"] if missing else []
    if kind == "mlm" and "gpu_bs" in told:
        notices.append(tell_pieces(told))
    if "negatives" in missing:
        notices.append(
            "negatives = micro is the published pool, so that gpu_bs and the number of processes change the result; "
            "--negatives global makes it independent of both"
        )
    faults = ", ".join(DIFFERENCES)
    return [*notices, f"done otherwise than headless-lm: {faults}; docs/migrate.md says why"]


def _list(keys: Told) -> str:
    return ", ".join(f"{key} = {value}" for key, value in keys.items())
