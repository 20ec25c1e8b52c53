"""What the task files and flags of headless-lm mean here, and what is done otherwise.

A run of headless-lm is a JSON file and flags that belong together: how many rows a step has stands in flags, how long
they are in the file. `translate` gives both their names of today. ``docs/migrate.md`` shows the tables in prose; a test
holds the two together.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from turncoder.errors import UserError
from turncoder.legacy import Difference

__all__ = ["DIFFERENCES", "IGNORED", "NAMES", "RENAMED", "is_headless", "translate"]

Told = Mapping[str, Any]

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

IMPLEMENTATIONS = {"hf": "sdpa", "xformers": "sdpa", "flash_attention": "flash_attention_2"}
SCHEDULES = {"cosine": "cosine", "constant": "constant_with_warmup"}
PRECISIONS = {
    name: {"fp16": name.startswith("16"), "bf16": name.startswith("bf16")}
    for name in ("16-mixed", "16", "bf16-mixed", "bf16", "32-true", "32")
}
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

LENGTHS = {"mlm": 128, "clm": 2048}
SAVE_STEPS = {"pretraining": 10_000, "fine-tuning": 2500}

DIFFERENCES = (
    Difference(
        "labels from the clean text",
        "Baselines by masked cross-entropy learn labels of which 10 % are random tokens.",
        "Labels are the tokens of the text.",
        "A baseline that is to be beaten has to be sound.",
        "no way back: it was a fault",
    ),
    Difference(
        "random tokens among the predicted ones alone",
        "10 % of all tokens turn random, special ones too.",
        "80/10/10 within the 15 % that are predicted; special and padding tokens stay.",
        "Noise where nothing is predicted only spoils the text.",
        "no way back: it was a fault",
    ),
    Difference(
        "the tokenizer's mask token",
        "Token 1 masks, whatever it is: an ordinary token of most tokenizers.",
        "The tokenizer's mask token, or one that it keeps in reserve (of GPT-NeoX token 1), or `mask_token_type`.",
        "A mask that texts hold means two things.",
        "`mask_token_type`",
    ),
    Difference(
        "padding masked",
        "No attention mask is passed: padding is read like text.",
        "Padding is neither read nor predicted.",
        "Vectors must not depend on the length of the batch.",
        "no way back: it was a fault",
    ),
    Difference(
        "documents ended",
        "Documents are glued without a mark between them.",
        "The end-of-text token stands after each, where the tokenizer puts nothing around a text.",
        "Where a text ends is to be learnt.",
        "`append_eos = false`",
    ),
    Difference(
        "no text lost in packing",
        "What does not fill a row is dropped every 100,000 documents; all of them where nothing is left over.",
        "floor(N / L) rows of the whole text.",
        "Text is not thrown away by how it was batched.",
        "no way back: it was a fault",
    ),
    Difference(
        "order by seed",
        "Rows are shuffled without a seed, once.",
        "Every epoch has an order of its own, drawn by `seed`.",
        "A run can be repeated, and resumed exactly.",
        "no way back: only the order differs",
    ),
    Difference(
        "decay of matrices alone",
        "Biases and norms decay too: both with MLM, norms with GPT-NeoX.",
        "Biases and norms do not decay.",
        "A norm is no matrix to be kept small.",
        "no way back: it was a fault",
    ),
    Difference(
        "stable loss",
        "Logits over 88.7 overflow; logits under -20 drown in the 1e-9 that is added.",
        "The same loss by log-sum-exp in float32, over the unique tokens of the pool.",
        "Equal tokens are equal columns: counted, they cost once.",
        "no way back: values and gradients are the same where theirs are finite",
    ),
    Difference(
        "batches as asked",
        "global_bs is rounded down to what gpu_bs and the GPUs divide.",
        "It is exact, or refused with the nearest that is.",
        "Another batch is another run.",
        "no way back: it was a fault",
    ),
    Difference(
        "the head's own layers train",
        "BERT loses its head's transform (dense, GELU, norm); who opens the model gets a random one.",
        "The transform stays between the states and the embeddings; the saved model has all its weights.",
        "What is trained is what is opened.",
        "no way back: it was a fault",
    ),
    Difference(
        "validation in bits per byte",
        "A ten-thousandth of the rows, by the contrastive loss.",
        "`validation_split_percentage` of the documents, by cross-entropy, with the unigram prior.",
        "Losses over different pools cannot be compared.",
        "`validation_split_percentage = 0.01`",
    ),
    Difference(
        "float32 unless told",
        "`--precision` is 16-mixed where it is not given.",
        "float32; `--precision` says otherwise.",
        "float16 needs a GPU.",
        "`--precision 16-mixed`",
    ),
)
"""Every deliberate difference to headless-lm."""


def is_headless(told: Told) -> bool:
    """Say whether keys read like a file or flags of headless-lm."""
    return not NAMES.isdisjoint(told)


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
    kind = _find_kind(told)
    when = "fine-tuning" if "model_name_or_path" in given else "pretraining"
    defaults = {**_read_objective(told), **DEFAULTS[kind], "save_steps": SAVE_STEPS[when]}
    if "max_seq_length" not in given:
        defaults |= _choose_length(told)
    if {**defaults, **given}["objective"] != "cross_entropy":
        defaults["negatives"] = "micro"
    if "num_train_epochs" in given:
        del defaults["max_steps"]
    missing = {name: value for name, value in defaults.items() if name not in given}
    side.update(missing)
    notices = [f"{origin}what it does not say is headless-lm's default: {_list(missing)}"] if missing else []
    if kind == "mlm" and "gpu_bs" in told:
        notices.append(_tell_pieces(told))
    if "negatives" in missing:
        notices.append(
            "negatives = micro is the published pool, so that gpu_bs and the number of processes change the result; "
            "--negatives global makes it independent of both"
        )
    faults = ", ".join(row.what for row in DIFFERENCES)
    return [*notices, f"done otherwise than headless-lm: {faults}; docs/migrate.md says why"]


def _list(keys: Told) -> str:
    return ", ".join(f"{key} = {value}" for key, value in keys.items())


def _find_kind(told: Told) -> str:
    """Tell the task of mlm_headless.py from that of gpt_headless.py."""
    signs = {"mlm": {"mask_prob", "replace_prob", "random_token_prob"}, "clm": {"schedule_type", "adam_eps", "mode"}}
    if "kind" in told:
        return str(told["kind"])
    if {"mlm_loss_weight", "lm_loss_weight"} <= told.keys():
        raise UserError("mlm_loss_weight and lm_loss_weight are of two tasks; keep the one that is meant")
    for kind, weight in (("mlm", "mlm_loss_weight"), ("clm", "lm_loss_weight")):
        if weight in told or not signs[kind].isdisjoint(told):
            return kind
    raise UserError("the file has neither mlm_loss_weight nor lm_loss_weight: add --kind mlm or --kind clm")


def _read_objective(told: Told) -> dict[str, Any]:
    if told.get("loss_name", "cwt") != "cwt":
        raise UserError(f"loss_name = {told['loss_name']!r} cannot be honoured: headless-lm has cwt alone")
    kind = _find_kind(told)
    name = "mlm_loss_weight" if kind == "mlm" else "lm_loss_weight"
    contrast, head = (_read_number(told, weight, 1.0) for weight in ("emb_loss_weight", name))
    if min(contrast, head) < 0 or contrast == head == 0:
        raise UserError(f"emb_loss_weight = {contrast:g} and {name} = {head:g} leave nothing to learn; raise one")
    if contrast and head:
        return {"kind": kind, "objective": "both", "cwt_weight": contrast, "cross_entropy_weight": head}
    return {"kind": kind, "objective": "cwt" if contrast else "cross_entropy"}


def _read_column(told: Told) -> dict[str, Any]:
    key = told.get("text_key")
    packed = str(told.get("tokenized", False)).lower() == "true"
    return {} if key is None or (packed and key == "packed") else {"text_column": key}


def _choose_length(told: Told) -> dict[str, Any]:
    """Say how long rows are: of MLM they are cut, of GPT taken as they were packed."""
    positions = told.get("model_max_seq_len")
    overrides: dict[str, Any] = {}
    if positions is not None:
        overrides = {"config_overrides": {"max_position_embeddings": _read_count(told, "model_max_seq_len")}}
    if TASK.isdisjoint(told):
        length = told.get("max_seq_len", positions)
    elif _find_kind(told) == "mlm":
        length = told.get("max_seq_len", LENGTHS["mlm"])
    elif str(told.get("tokenized", False)).lower() == "true":
        length = _read_packed_length(told) or positions or LENGTHS["clm"]
    else:
        length = told.get("max_seq_len", positions or 512)
    return {"max_seq_length": length, **overrides}


def _read_packed_length(told: Told) -> int | None:
    """Read the length of the first row that headless-lm's preprocess.py packed; None where it is not known."""
    folder = Path(str(told.get("dataset", told.get("dataset_name", told.get("train_file"))))).expanduser()
    files = sorted(folder.glob("train/*.arrow")) or sorted(folder.glob("*.arrow"))
    if not files:
        return None
    import pyarrow as pa

    with pa.memory_map(str(files[0])) as file, pa.ipc.open_stream(file) as stream:
        if "packed" not in stream.schema.names:
            return None
        return len(stream.read_next_batch().column("packed")[0])


def _divide_batch(told: Told) -> dict[str, Any]:
    """Give the rows of a forward pass, and how many passes a step has."""
    nodes, processes = _read_count(told, "num_nodes", 1), int(os.environ.get("WORLD_SIZE", "1"))
    if nodes > 1 and "WORLD_SIZE" not in os.environ:
        raise UserError(
            f"--num_nodes {nodes}: one process was started on one machine. Start it on each of the {nodes} by "
            f"`torchrun --nnodes={nodes} --nproc-per-node=gpu --rdzv-backend=c10d --rdzv-endpoint=HOST:29500 -m "
            "turncoder.cli pretrain CONFIG ...` with the same words, or as a SLURM job by `turncoder submit pretrain "
            "CONFIG ...`"
        )
    if "gpu_bs" not in told:
        if "global_bs" in told:
            raise UserError("--global_bs needs --gpu_bs: the rows of one forward pass on one device")
        return {}
    rows = _read_count(told, "gpu_bs")
    whole = _read_count(told, "global_bs", rows * processes)
    passes, rest = divmod(whole, rows * processes)
    if rest or not passes:
        near = [count * rows * processes for count in (passes, passes + 1) if count]
        fits = [one for one in range(rows, 0, -1) if whole % (one * processes) == 0]
        raise UserError(
            f"--global_bs {whole} is not a multiple of --gpu_bs {rows} x {processes} process"
            f"{'es' if processes > 1 else ''}: give --global_bs {' or '.join(map(str, near))}"
            + (f", or --gpu_bs {fits[0]}" if fits else "")
        )
    pieces = _count_pieces(told) if not TASK.isdisjoint(told) and _find_kind(told) == "mlm" else None
    return {"per_device_train_batch_size": rows * (pieces or 1), "gradient_accumulation_steps": passes}


def _count_pieces(told: Told) -> int | None:
    """Count the rows that MLM cuts a packed one into; None where it is not known."""
    packed = _read_packed_length(told)
    return -(-packed // _read_count(told, "max_seq_len", LENGTHS["mlm"])) if packed else None


def _tell_pieces(told: Told) -> str:
    length, pieces = _read_count(told, "max_seq_len", LENGTHS["mlm"]), _count_pieces(told)
    if pieces is None:
        return (
            f"gpu_bs and global_bs count rows of {length} tokens here, and packed ones in headless-lm: one of 2048 "
            f"tokens is {-(-2048 // length)} rows"
        )
    return f"gpu_bs and global_bs count packed rows, and each is {pieces} of up to {length} tokens here"


def _find_corpus(told: Told) -> dict[str, Any]:
    name = str(told["dataset"])
    return {"train_file" if Path(name).expanduser().exists() else "dataset_name": name}


def _name_folder(told: Told) -> dict[str, Any]:
    """Name the run folder; without --saved_ckpt_path, --run_name is what trackers call the run."""
    if "saved_ckpt_path" not in told:
        return {"run_name": told["run_name"]}
    return {"output_dir": str(Path(str(told["saved_ckpt_path"]), str(told.get("run_name", ""))))}


def _find_start(told: Told) -> dict[str, Any]:
    """Say which weights a fine-tuning starts from; a pretraining is resumed by its folder."""
    path, mode = told.get("ckpt_path"), told.get("mode", "ft")
    if mode not in ("ft", "probe"):
        raise UserError(f"--mode {mode} is none of ft (the whole model), probe (the head alone)")
    trains = "head" if mode == "probe" else "all"
    if path is None and "model_name_or_path" in told:
        return {"trains": trains}
    if path is None and "mode" in told:
        raise UserError(f"--mode {mode} goes on from a pretrained model: give --ckpt_path RUN")
    if path is None:
        return {}
    if str(path).endswith(".ckpt"):
        raise UserError(
            f"--ckpt_path {path}: a checkpoint of Lightning is a pickle of headless-lm's own classes, and to open one "
            "runs the code in it; give a run folder of turncoder, or the folder that its hf_publisher.py made"
        )
    if "mode" in told or not ({"hf_path", "config_name"} & told.keys()):
        objective = {} if {"emb_loss_weight", "objective"} & told.keys() else {"objective": "cross_entropy"}
        return {"model_name_or_path": path, "trains": trains, **objective}
    folder = Path(str(told.get("output_dir") or _name_folder({"run_name": "", **told}).get("output_dir", "")))
    if folder.resolve() not in (Path(path).resolve(), *Path(path).resolve().parents):
        raise UserError(
            f"--ckpt_path {path} is not in the run folder {folder}: the same --output (or --saved_ckpt_path and "
            f"--run_name) resumes by itself; --model_name_or_path {path}, without --hf_path, goes on with its weights"
        )
    return {}


def _choose(name: str, table: Mapping[str, Any]) -> Callable[[Told], dict[str, Any]]:
    """Make the reader of a key whose values have other names here."""

    def read(told: Told) -> dict[str, Any]:
        value = table.get(str(told[name]))
        if value is None:
            raise UserError(f"{name} = {told[name]!r} cannot be honoured; one of {', '.join(table)} can")
        return value

    return read


def _read_betas(told: Told) -> dict[str, Any]:
    betas = told["adam_betas"]
    if not isinstance(betas, list) or len(betas) != 2:
        raise UserError(f"adam_betas = {betas!r} must be two numbers, such as [0.9, 0.95]")
    return {"adam_beta1": betas[0], "adam_beta2": betas[1]}


def _refuse_mask(told: Told) -> dict[str, Any]:
    raise UserError(
        f"mask_token_id = {told['mask_token_id']!r} cannot be honoured: name the token itself by mask_token_type"
    )


def _read_number(told: Told, name: str, default: float) -> float:
    try:
        return float(told.get(name, default))
    except (TypeError, ValueError):
        raise UserError(f"{name} = {told[name]!r} is not a number") from None


def _read_count(told: Told, name: str, default: int = 1) -> int:
    number = _read_number(told, name, default)
    if number < 1 or number != int(number):
        raise UserError(f"{name} = {told[name]!r} is not a whole number of at least 1")
    return int(number)


READERS: dict[tuple[str, ...], Callable[[Told], dict[str, Any]]] = {
    ("mlm_loss_weight", "lm_loss_weight", "emb_loss_weight", "loss_name"): _read_objective,
    ("text_key", "tokenized"): _read_column,
    ("max_seq_len", "model_max_seq_len"): _choose_length,
    ("adam_betas",): _read_betas,
    ("schedule_type",): _choose("schedule_type", {k: {"lr_scheduler_type": v} for k, v in SCHEDULES.items()}),
    ("mask_token_id",): _refuse_mask,
    ("dataset",): _find_corpus,
    ("global_bs", "gpu_bs", "num_nodes"): _divide_batch,
    ("accelerator",): _choose("accelerator", {k: {"attn_implementation": v} for k, v in IMPLEMENTATIONS.items()}),
    ("precision",): _choose("precision", PRECISIONS),
    ("saved_ckpt_path", "run_name"): _name_folder,
    ("ckpt_path", "mode"): _find_start,
}
"""Names there, which are read together -> what gives the keys of today."""

TASK = frozenset(
    {
        *("mask_prob", "replace_prob", "random_token_prob", "total_nb_steps", "adam_eps", "contrastive_temperature"),
        *("mlm_loss_weight", "lm_loss_weight", "emb_loss_weight", "loss_name", "adam_betas", "schedule_type"),
        *("text_key", "tokenized"),
    }
)
"""Names that a task file has, and the file of preprocess.py has not."""
NAMES = frozenset({*RENAMED, *IGNORED, *(name for names in READERS for name in names)}) - {"run_name"}
"""All names of headless-lm that are none of ours."""
OF_TEXT = frozenset(
    {
        *("text_key", "tokenized", "max_seq_len", "model_max_seq_len", "dataset", "dataset_config"),
        *("hf_tokenizer", "hf_path"),
    }
)
"""Those of them that say which text is read, and how."""
