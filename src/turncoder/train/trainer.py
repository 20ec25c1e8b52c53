"""transformers' Trainer with the loss over gathered rows: the head outside the module tree, and sums for metrics.

Shapes: B batch, L length, D width, V vocabulary, K selected rows.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file, save_model
from torch.utils.data import Sampler, SequentialSampler
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    Trainer,
)
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.utils import SAFE_WEIGHTS_NAME

from turncoder.errors import UserError
from turncoder.model.heads import Head
from turncoder.model.isolation import choose_masks
from turncoder.objectives.alignment import select_batch, select_rows
from turncoder.objectives.vocabulary import cross_entropy, score_rows
from turncoder.train.course import Course

__all__ = ["GatheredTrainer", "summarise"]

HEAD_FILE = "head.safetensors"


class GatheredTrainer(Trainer):
    """transformers' Trainer with the masked rows gathered, the head outside the module tree, and sums for metrics.

    Parameters
    ----------
    course
        Of the training; None for steps outside of a run.
    head
        The model's own language-model head.
    isolate
        Whether documents in one row must not see each other.
    budget_bytes
        Size of the largest piece of logits.
    shift
        The state at ``t - shift`` predicts the token at t.
    bytes_per_token
        Of the text that is evaluated on, for the bits per byte; None leaves them out.
    kwargs
        As for `transformers.Trainer`.
    """

    def __init__(
        self,
        *,
        course: Course | None = None,
        head: Head,
        isolate: bool,
        budget_bytes: int,
        shift: int = 1,
        bytes_per_token: float | None = None,
        **kwargs: Any,
    ) -> None:
        metrics = functools.partial(summarise, bytes_per_token=bytes_per_token)
        super().__init__(compute_metrics=metrics, callbacks=course.callbacks if course else None, **kwargs)
        self.course = course
        self.head = head.to(self.args.device)
        self.isolate = isolate
        self.budget_bytes = budget_bytes
        self.shift = shift
        self.model_accepts_loss_kwargs = True  # our loss is a sum over the rows of the whole accumulation window
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)  # disable_tqdm = false, in LLM2Vec's files

    def rows(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the backbone and gather the states that predict the labels.

        Returns
        -------
        rows_KD, targets_K
            The state that predicts it and the token, for every label.
        """
        masks = choose_masks(self.accelerator.unwrap_model(model), inputs, isolate=self.isolate)
        output = model(input_ids=inputs["input_ids"], use_cache=False, **masks)
        return select_rows(output.last_hidden_state, inputs["labels"], self.shift)

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """Name what decays: no vectors, which are biases and gains, whatever the names that they are known by."""
        vectors = {name for name, weight in model.named_parameters() if weight.ndim < 2}
        return [name for name in super().get_decay_parameter_names(model) if name not in vectors]

    def sum_losses(self, rows_KD: torch.Tensor, targets_K: torch.Tensor) -> torch.Tensor:
        """Sum what is minimised over rows."""
        return cross_entropy(rows_KD, targets_K, self.head, budget_bytes=self.budget_bytes)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Sum the loss of the rows and divide by their true count over window and processes."""
        with self.accelerator.autocast():
            rows_KD, targets_K = self.rows(model, inputs)
            total = self.sum_losses(rows_KD, targets_K)
            if not len(targets_K):  # other processes wait for the gradients of the head
                total = total + sum(0 * weight.sum() for weight in self.head.parameters() if weight.requires_grad)
        if model.training and self.course is not None:
            self.course.record.count_tokens(inputs["attention_mask"])
        assert num_items_in_batch is not None
        count = torch.as_tensor(num_items_in_batch, device=total.device).clamp(min=1)
        return total / count * self.args.world_size  # DDP averages gradients; the loss is a sum over processes

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, torch.Tensor, torch.Tensor]:
        """Score one batch as sums per row: (loss, right, right among five, predicted tokens)."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.accelerator.autocast():
            rows_KD, targets_K = self.rows(model, inputs)
            scores = score_rows(rows_KD, targets_K, self.head, budget_bytes=self.budget_bytes)
        columns_K4 = torch.stack([*(score.double() for score in scores), torch.ones_like(scores[0]).double()], dim=1)
        sums_B4 = columns_K4.new_zeros(len(inputs["input_ids"]), 4).index_add_(
            0, select_batch(inputs["labels"], self.shift), columns_K4
        )
        return None, sums_B4, sums_B4[:, 3:]

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]  # the data set itself is in training order

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save what trains; no tokenizer and no pickle beside it."""
        folder = Path(output_dir or str(self.args.output_dir))
        if isinstance(self.model, PeftModel):
            self.save_adapter(folder)
            return
        assert isinstance(self.model, PreTrainedModel)
        if state_dict is not None:
            self.model.save_pretrained(folder, state_dict=state_dict)
            return
        folder.mkdir(parents=True, exist_ok=True)
        # By the names that they are loaded by: on the hub, and so in save_pretrained, experts have others
        save_model(self.model, str(folder / SAFE_WEIGHTS_NAME))

    def save_adapter(self, folder: Path) -> None:
        """Save the adapter, and the head beside it if it was trained: what was tuned together stays together."""
        assert isinstance(self.model, PeftModel)
        self.model.save_pretrained(str(folder), save_embedding_layers=False)
        if self.head.trainable and (weights := self.head.named_parameters()):
            save_file({name: weight.detach() for name, weight in weights.items()}, folder / HEAD_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        """Load what `_save` saved."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        path = Path(resume_from_checkpoint) / HEAD_FILE
        if path.exists():
            saved = load_file(path)
            with torch.no_grad():
                for name, weight in self.head.named_parameters().items():
                    weight.copy_(saved[name])

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))  # with its head


def summarise(prediction: EvalPrediction, bytes_per_token: float | None = None) -> dict[str, float]:
    """Turn sums per row (loss, right, right among five, predicted tokens) into loss, perplexity and accuracies."""
    loss, right, right5, count = np.asarray(prediction.predictions, dtype=np.float64).sum(axis=0)
    if count == 0:
        raise UserError(
            "the evaluation has no token to predict: raise mlm_probability, max_eval_samples or "
            "validation_split_percentage"
        )
    bits = {} if bytes_per_token is None else {"bits_per_byte": loss / count / math.log(2) / bytes_per_token}
    return {
        "loss": loss / count,
        **bits,
        "perplexity": math.exp(min(loss / count, 700.0)),
        "accuracy": right / count,
        "top5_accuracy": right5 / count,
        "predicted_tokens": int(count),
    }
