"""What every stage does around its training: open the run, take it up again, name its parents, save what came of it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from turncoder.artifact import save_encoder
from turncoder.config.keys import TrainKeys
from turncoder.data.files import refuse_file
from turncoder.disk import lock_output, replace_folder
from turncoder.encode.pooling import name_pooling
from turncoder.errors import UnfinishedError, UserError, first_line
from turncoder.info import measure_memory
from turncoder.model.adapters import attach_lora, merge_adapter
from turncoder.model.conversion import is_converted
from turncoder.model.heads import Head
from turncoder.publish.cardparts import count_held_out
from turncoder.train.course import Course
from turncoder.train.recording import RunCallback, take_scores
from turncoder.train.running import Run, checkpoint_step, open_run

__all__ = [
    "check_data",
    "choose_trainables",
    "fit",
    "perform",
    "register_head",
    "save_result",
    "score_end",
    "score_untrained",
    "tell_parameters",
    "tell_parents",
    "unregister_head",
    "will_merge",
]

logger = logging.getLogger("turncoder")

TOLD = (
    "learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "max_seq_length", "lora_r",
    "lora_alpha", "lora_dropout", "mlm_probability", "simcse_dropout", "loss_scale", "temperature", "seed",
)  # fmt: skip
"""Keys that a model card shows."""
ENDING_S = 15  # processes that read for one that was killed notice it and leave
HEAD_PREFIX = "vocabulary_head_"
MERGED_BYTES = 10 * 2**30  # save_merged=auto keeps merged models up to this size


class StageTrainer(Protocol):
    """What stages need of a trainer, which is one of transformers'."""

    course: Course | None
    state: Any
    args: Any

    def train(self, resume_from_checkpoint: str | None = None) -> Any:
        """Train."""

    def evaluate(self) -> dict[str, float]:
        """Evaluate."""

    def _load_from_checkpoint(self, checkpoint: str, /) -> None: ...


def perform(config: Any, stage: str, work: Callable[[Any, Run], None]) -> Path:
    """Open the run folder of a stage and do its work; what goes wrong is recorded.

    Parameters
    ----------
    config
        The resolved configuration; the same again resumes.
    stage
        The command.
    work
        Called with the configuration and the opened run.

    Returns
    -------
    Path
        The run folder.
    """
    with _lock_run(config.output_dir):
        run = open_run(config, stage)
        if run.finished:
            logger.warning("%s is done already; --overwrite starts anew", run.folder)
        else:
            _work(config, run, work)
    return run.folder


@contextmanager
def _lock_run(folder: str | None) -> Iterator[None]:
    """Keep other commands out of a run folder: the main process does, for all of them."""
    state = PartialState(cpu=not torch.accelerator.is_available())  # without this, torchrun on CPUs is not seen
    refused: list[str | None] = [None]
    with ExitStack() as held:
        if folder and state.is_main_process:
            try:
                refuse_file(Path(folder))
                held.enter_context(lock_output(Path(folder), ENDING_S))
            except UserError as error:
                refused = [str(error)]
        broadcast_object_list(refused)
        if refused[0]:
            raise UserError(refused[0])
        yield


def _work(config: Any, run: Run, work: Callable[[Any, Run], None]) -> None:
    try:
        work(config, run)
    except KeyboardInterrupt:
        run.update(status="interrupted")
        run.discard()
        raise
    except Exception as error:
        run.update(status="failed", error=first_line(error))
        if isinstance(error, UnfinishedError):
            run.settle()
            _leave_report(run)
        elif isinstance(error, UserError):
            run.discard()
        raise
    run.settle()
    run.record.pop("error", None)
    run.update(status="done", memory=measure_memory())
    _leave_report(run)


def _leave_report(run: Run) -> None:
    if PartialState().is_main_process:
        from turncoder.report.summary import leave_report

        leave_report(run.folder)


def tell_parents(name: str) -> list[dict[str, Any]]:
    """Return the chain of artifacts that a model comes from, the nearest first."""
    path = Path(name) / "run.json"
    if not path.exists():
        return [{"name": name}]
    record = json.loads(path.read_text(encoding="utf8"))
    told = {key: record[key] for key in ("stage", "started", "tokens") if key in record}
    return [{"name": name, **told}, *record.get("parents", [])]


def check_data(run: Run, fingerprint: str) -> None:
    """Refuse to resume on other data than what the checkpoint saw."""
    before = run.record.get("data", {}).get("fingerprint", fingerprint)
    if run.resume_from and before != fingerprint:
        raise UserError(
            f"--output {run.folder} was trained on another text (the data, the tokenizer or its version changed): "
            "restore it to resume, or use --overwrite to start anew"
        )


def choose_trainables(config: TrainKeys, backbone: PreTrainedModel) -> PreTrainedModel | PeftModel:
    """Make the weights trainable that the configuration says, in float32: all, or those of a new adapter."""
    if config.gradient_checkpointing:
        backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        backbone.enable_input_require_grads()
    if config.train_mode == "full":
        backbone.float().requires_grad_(True)  # trainable weights are fp32; bf16 is autocast's business
        return backbone
    return attach_lora(
        backbone,
        r=config.lora_r,
        alpha=config.lora_alpha,
        dropout=config.lora_dropout,
        targets=config.lora_target_modules,
    )


def register_head(model: torch.nn.Module, head: Head) -> None:
    """Put what is the head's alone into the tree of the model, so that the Trainer optimizes, clips and saves it."""
    weights = {
        id(weight): (name, weight) for name, weight in head.named_parameters().items()
    }  # BERT's bias has two names
    for name, weight in weights.values():
        model.register_parameter(HEAD_PREFIX + name.replace(".", "_"), weight)


def unregister_head(model: torch.nn.Module) -> None:
    """Undo `register_head`."""
    for name in [name for name in model._parameters if name.startswith(HEAD_PREFIX)]:
        del model._parameters[name]


def tell_parameters(run: Run, trainable: int, total: int) -> None:
    """Say and record how many weights train, of all."""
    run.update(parameters={"trainable": trainable, "total": total})
    logger.info("trainable parameters: %s of %s (%.3f %%)", f"{trainable:,}", f"{total:,}", 100 * trainable / total)


def fit(trainer: StageTrainer, run: Run) -> None:
    """Train, or resume; a run that was cut off after its last step only gets its weights back."""
    course = trainer.course
    assert course is not None
    if run.resume_from:
        step = checkpoint_step(run.resume_from)
        done = run.record.get("trained", {})
        if step >= course.steps or done == {"planned": course.steps, "steps": step}:
            _restore(trainer, run.resume_from)
            return
        logger.info("%s: resumes after step %s", run.folder, f"{step:,}")
    trainer.train(resume_from_checkpoint=str(run.resume_from) if run.resume_from else None)
    course.record.count()
    run.update(trained={"planned": course.steps, "steps": trainer.state.global_step})


def _restore(trainer: StageTrainer, checkpoint: Path) -> None:
    """Take the weights that the training which wrote a checkpoint last ended with."""
    trainer.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    best = trainer.state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
    trainer._load_from_checkpoint(str(checkpoint.with_name(Path(best).name) if best else checkpoint))


def score_untrained(trainer: Any, run: Run, model: str) -> None:
    """Log the scores of a model before its training, under a name."""
    trainer.remove_callback(RunCallback)
    row = {f"eval_{name}": score for name, score in take_scores(trainer.evaluate()).items()}
    logger.info("step 0, %s: loss %.4g, accuracy %.4g", model, row["eval_loss"], row["eval_accuracy"])
    run.log({"step": 0, "model": model, **row})


def score_end(trainer: StageTrainer) -> dict[str, float]:
    """Evaluate at the end, unless the last step has been evaluated with these very weights."""
    rows = [row for row in trainer.state.log_history if row["step"] == trainer.state.global_step and take_scores(row)]
    return take_scores(rows[-1] if rows and not trainer.args.load_best_model_at_end else trainer.evaluate())


def will_merge(config: TrainKeys, size: int) -> bool:
    """Tell whether ``model/`` is written, given the bytes of the merged model."""
    small = config.save_merged == "auto" and size <= MERGED_BYTES
    return config.train_mode == "full" or config.save_merged == "always" or small


def _tell_training(config: Any, run: Run) -> dict[str, Any]:
    """Return the numbers of a training that a model card shows."""
    data = run.record.get("data", {}).get("train", {})
    sets = [counts for counts in data.values() if isinstance(counts, dict)] or [data]
    names = [name for name in TOLD if config.train_mode == "lora" or not name.startswith("lora_")]
    told = {
        **{f"data: {name}": sum(counts.get(name, 0) for counts in sets) for name in dict.fromkeys(chain(*sets))},
        "steps": run.record.get("trained", {}).get("steps"),
        "tokens": run.record.get("tokens"),
        "processes": PartialState().num_processes,
        **{name: getattr(config, name, None) for name in names},
    }
    return {name: value for name, value in told.items() if isinstance(value, int | float)}


def save_result(
    config: TrainKeys,
    run: Run,
    model: PreTrainedModel | PeftModel,
    *,
    save_adapter: Callable[[Path], None],
    probe: torch.Tensor,
    tokenizer: PreTrainedTokenizerBase,
    tokenizer_files: list[Path] | None,
    **artifact: Any,
) -> None:
    """Write ``adapter/`` and ``model/``: the latter is the merged encoder that loads without turncoder.

    Parameters
    ----------
    config, run
        Of the stage.
    model
        The backbone, with its adapter if it has one; it is used up.
    save_adapter
        Writes the adapter to a folder.
    probe
        Token ids [1, L] of real text, for the comparison of merged and unmerged states.
    tokenizer, tokenizer_files, **artifact
        As for `turncoder.artifact.save_encoder`.
    """
    state = PartialState()
    state.wait_for_everyone()
    if not state.is_main_process:
        return
    model = model.cpu()
    told = {
        "training": _tell_training(config, run),
        "results": run.record.get("results", {}),
        "held_out": count_held_out(run.record),
    }
    artifact["record"] = {**artifact["record"], **told}
    if isinstance(model, PeftModel):
        kept: dict[str, Any] = {
            key: artifact[key] for key in ("max_seq_length", "prompts", "default_prompt_name") if key in artifact
        }
        kept["pooling"] = name_pooling(artifact.get("pooling", "mean"), tokenizer)
        kept["chat_template"] = bool(artifact.get("inputs"))
        kept["bidirectional"] = is_converted(model.config) or artifact["record"]["bidirectional"]
        with replace_folder(run.folder / "adapter") as partial:
            save_adapter(partial)
            (partial / "encoder.json").write_text(
                json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf8"
            )
        size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        if not will_merge(config, size):
            logger.warning("model/ is not written (save_merged = %s, %.1f GB)", config.save_merged, size / 1e9)
            return
        model, cosine = merge_adapter(model, {"input_ids": probe})
        run.update(merged_cosine=cosine)
    save_encoder(model, run.folder / "model", tokenizer=tokenizer, tokenizer_files=tokenizer_files, **artifact)
