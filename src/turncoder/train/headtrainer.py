"""transformers' Trainer for linear heads and the backbone below them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import Sampler, SequentialSampler
from transformers import Trainer
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from turncoder.train.course import Course

__all__ = ["HeadTrainer", "load_trained"]

WEIGHTS_FILE = "trained.safetensors"


class HeadTrainer(Trainer):
    """transformers' Trainer with heads on a backbone: the loss is a sum over labels, checkpoints hold what trains.

    Parameters
    ----------
    course
        Of the training; None for steps outside of a run.
    judge
        Scores the model as it is on what is held out: ``score`` is what is chosen by.
    add_losses
        Sums the losses of a batch, given what the model gives and the labels.
    **kwargs
        As for `transformers.Trainer`.
    """

    def __init__(
        self,
        *,
        course: Course | None = None,
        judge: Callable[[], dict[str, float]],
        add_losses: Callable[[Any, torch.Tensor], torch.Tensor],
        **kwargs: Any,
    ) -> None:
        super().__init__(callbacks=course.callbacks if course else None, **kwargs)
        self.course = course
        self.judge = judge
        self.add_losses = add_losses
        self.model_accepts_loss_kwargs = True  # our loss is a sum over the labels of the whole accumulation window
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)  # disable_tqdm = false, in LLM2Vec's files

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Sum the losses of all labels and divide by their true count over window and processes."""
        with self.accelerator.autocast():
            outputs = model(**inputs)
        if self.course is not None:
            self.course.record.count_tokens(inputs["attention_mask"])
        total = self.add_losses(outputs, inputs["labels"])
        assert num_items_in_batch is not None
        count = torch.as_tensor(num_items_in_batch, device=total.device).clamp(min=1)
        return total / count * self.args.world_size  # DDP averages gradients

    def evaluate(self, *arguments: Any, **named: Any) -> dict[str, float]:
        """Score what is held out, on every process alike: the scores are those of the first."""
        assert self.model is not None
        self.model.eval()
        with self.accelerator.autocast():
            told = broadcast_object_list([self.judge()])[0]  # who rounds otherwise must not stop at another step
        scores = {f"eval_{name}": value for name, value in told.items()}
        self.log(dict(scores))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, scores)
        return scores

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]  # it is in training order

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        trained = _list_trained(self.accelerator.unwrap_model(self.model))
        save_file({name: weight.detach().contiguous() for name, weight in trained.items()}, folder / WEIGHTS_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_trained(self.accelerator.unwrap_model(self.model), Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))


def load_trained(model: nn.Module, checkpoint: Path) -> None:
    """Give a model the weights of a checkpoint, which holds what trains."""
    saved = load_file(checkpoint / WEIGHTS_FILE)
    with torch.no_grad():
        for name, weight in _list_trained(model).items():
            weight.copy_(saved[name])


def _list_trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
