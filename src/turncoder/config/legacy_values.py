"""What values of headless-lm mean here: those that have another name, and those that are read together."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from turncoder.errors import UserError

__all__ = ["READERS", "TASK", "Told", "choose_length", "find_kind", "read_objective", "tell_pieces"]

Told = Mapping[str, Any]

IMPLEMENTATIONS = {"hf": "sdpa", "xformers": "sdpa", "flash_attention": "flash_attention_2"}
SCHEDULES = {"cosine": "cosine", "constant": "constant_with_warmup"}
PRECISIONS = {
    name: {"fp16": name.startswith("16"), "bf16": name.startswith("bf16")}
    for name in ("16-mixed", "16", "bf16-mixed", "bf16", "32-true", "32")
}
LENGTHS = {"mlm": 128, "clm": 2048}

TASK = frozenset(
    {
        *("mask_prob", "replace_prob", "random_token_prob", "total_nb_steps", "adam_eps", "contrastive_temperature"),
        *("mlm_loss_weight", "lm_loss_weight", "emb_loss_weight", "loss_name", "adam_betas", "schedule_type"),
        *("text_key", "tokenized"),
    }
)
"""Names that a task file has, and the file of preprocess.py has not."""


def find_kind(told: Told) -> str:
    """Tell the task of mlm_headless.py from that of gpt_headless.py."""
    signs = {"mlm": {"mask_prob", "replace_prob", "random_token_prob"}, "clm": {"schedule_type", "adam_eps", "mode"}}
    if told.get("kind") in signs:
        return str(told["kind"])
    if "kind" in told:
        raise UserError(f"kind = {told['kind']!r} is none of mlm, clm")
    if {"mlm_loss_weight", "lm_loss_weight"} <= told.keys():
        raise UserError("mlm_loss_weight and lm_loss_weight are of two tasks; keep the one that is meant")
    for kind, weight in (("mlm", "mlm_loss_weight"), ("clm", "lm_loss_weight")):
        if weight in told or not signs[kind].isdisjoint(told):
            return kind
    raise UserError("the file has neither mlm_loss_weight nor lm_loss_weight: add --kind mlm or --kind clm")


def read_objective(told: Told) -> dict[str, Any]:
    """Tell the objective from the weights of the two losses."""
    if told.get("loss_name", "cwt") != "cwt":
        raise UserError(f"loss_name = {told['loss_name']!r} cannot be honoured: headless-lm has cwt alone")
    kind = find_kind(told)
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


def choose_length(told: Told) -> dict[str, Any]:
    """Say how long rows are: of MLM they are cut, of GPT taken as they were packed."""
    positions = told.get("model_max_seq_len")
    overrides: dict[str, Any] = {}
    if positions is not None:
        overrides = {"config_overrides": {"max_position_embeddings": _read_count(told, "model_max_seq_len")}}
    if TASK.isdisjoint(told):
        length = told.get("max_seq_len", positions)
    elif find_kind(told) == "mlm":
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
    pieces = _count_pieces(told) if not TASK.isdisjoint(told) and find_kind(told) == "mlm" else None
    return {"per_device_train_batch_size": rows * (pieces or 1), "gradient_accumulation_steps": passes}


def _count_pieces(told: Told) -> int | None:
    """Count the rows that MLM cuts a packed one into; None where it is not known."""
    packed = _read_packed_length(told)
    return -(-packed // _read_count(told, "max_seq_len", LENGTHS["mlm"])) if packed else None


def tell_pieces(told: Told) -> str:
    """Say what a row is that gpu_bs and global_bs count."""
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


PUBLISHER = {
    "mlm": "turncoder head add RUN --output OUT, then turncoder publish OUT --to OWNER/NAME",
    "add_head": "turncoder head add RUN --untied --output OUT, then turncoder publish OUT --to OWNER/NAME",
    "lm": "turncoder publish RUN --to OWNER/NAME",
}
"""Its modes, and what does the same here."""


def _find_start(told: Told) -> dict[str, Any]:
    """Say which weights a fine-tuning starts from; a pretraining is resumed by its folder."""
    path, mode = told.get("ckpt_path"), told.get("mode", "ft")
    if mode in PUBLISHER:
        raise UserError(f"--mode {mode} is hf_publisher.py's: {PUBLISHER[mode]}")
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
    ("mlm_loss_weight", "lm_loss_weight", "emb_loss_weight", "loss_name"): read_objective,
    ("text_key", "tokenized"): _read_column,
    ("max_seq_len", "model_max_seq_len"): choose_length,
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
