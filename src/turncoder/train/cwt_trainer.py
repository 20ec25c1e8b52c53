"""The Trainer with contrastive weight tying as its loss, or a part of it, and its pool of negatives.

Shapes: B batch, L length, K selected rows, D width, V vocabulary, U unique ids of the pool.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from turncoder.config.pretraining import PretrainConfig, Source
from turncoder.config.stages import MntpConfig
from turncoder.data.masking import MaskedBlocks
from turncoder.objectives.alignment import select_targets
from turncoder.objectives.cwt import Pool, contrast, draw_pool, pool_targets
from turncoder.train.arguments import training_arguments
from turncoder.train.course import Course
from turncoder.train.optimizer import RowSparseAdamW, clip_norm
from turncoder.train.running import Run
from turncoder.train.text import Text
from turncoder.train.trainer import GatheredTrainer

__all__ = ["Contrast", "CwtTrainer", "build_gathered"]


@dataclass(frozen=True)
class Contrast:
    """What rows are contrasted with, and how.

    Attributes
    ----------
    source
        Whose targets the negatives are: those of the forward pass (``micro``), of the optimizer step in this process
        (``window``), or in all processes (``global``); or ``size`` draws from the unigram distribution.
    size
        Of ``unigram``.
    log_prior_V
        log p of the corpus.
    tau
        Share of it that the logits lose.
    keeps_bias
        Whether the head's own bias stands in the logits.
    weight, cross_entropy_weight
        Of the two losses.
    sparse
        The gradients of the embeddings hold only the rows in use.
    seed
        Of the draws.
    """

    source: Source
    log_prior_V: Tensor
    size: int = 0
    tau: float = 0.0
    keeps_bias: bool = False
    weight: float = 1.0
    cross_entropy_weight: float = 0.0
    sparse: bool = False
    seed: int = 42


class CwtTrainer(GatheredTrainer):
    """`GatheredTrainer` with the contrastive loss of `turncoder.objectives.cwt`.

    Parameters
    ----------
    contrast
        The pool, and the weights of the losses.
    kwargs
        As for `GatheredTrainer`.
    """

    def __init__(self, *, contrast: Contrast, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.contrast = contrast
        self.log_prior_V = contrast.log_prior_V.to(self.args.device)
        self.pool: Pool | None = None

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """Take the batches of an optimizer step, and make the pool that all of them share."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.contrast.source != "micro" and batches:
            targets_K = torch.cat([select_targets(batch["labels"], self.shift) for batch in batches]).to(device)
            self.pool = self._pool(targets_K)
        return batches, count

    def _pool(self, targets_K: Tensor) -> Pool:
        if self.contrast.source == "unigram":
            step = self.state.global_step
            return draw_pool(targets_K, self.log_prior_V, self.contrast.size, seed=self.contrast.seed, step=step)
        if self.contrast.source == "global" and self.args.world_size > 1:
            padded_K = self.accelerator.pad_across_processes(targets_K, pad_index=-1)
            gathered_K = self.accelerator.gather(padded_K)
            targets_K = gathered_K[gathered_K >= 0]
        return pool_targets(targets_K)

    def sum_losses(self, rows_KD: Tensor, targets_K: Tensor) -> Tensor:
        """Sum the contrastive losses of rows, and their cross-entropies where those count too."""
        contrast_, head = self.contrast, self.head
        pool = pool_targets(targets_K) if contrast_.source == "micro" else self.pool
        assert pool is not None
        total = contrast_.weight * contrast(
            head.features(rows_KD),
            targets_K,
            head.weight_VD,
            pool,
            bias_V=head.bias_V if contrast_.keeps_bias else None,
            log_prior_V=self.log_prior_V,
            tau=contrast_.tau,
            scale=head.scale,
            budget_bytes=self.budget_bytes,
            sparse=contrast_.sparse,
        )
        if contrast_.cross_entropy_weight:
            total = total + contrast_.cross_entropy_weight * super().sum_losses(rows_KD, targets_K)
        return total

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Make the Trainer's optimizer, or one whose embeddings change by rows."""
        if not self.contrast.sparse:
            return super().create_optimizer(model)
        if self.optimizer is None:
            assert isinstance(self.model, torch.nn.Module)
            decays = set(self.get_decay_parameter_names(self.model))
            embedding = self.head.weight_VD
            groups: list[dict[str, Any]] = [{"params": [], "weight_decay": self.args.weight_decay}]
            groups.append({"params": [], "weight_decay": 0.0})
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad and parameter is not embedding:
                    groups[name not in decays]["params"].append(parameter)
            args = self.args
            assert isinstance(embedding, torch.nn.Parameter)
            self.optimizer = RowSparseAdamW(
                groups,
                embedding,
                lr=args.learning_rate,
                betas=(args.adam_beta1, args.adam_beta2),
                eps=args.adam_epsilon,
            )
        return self.optimizer

    def _clip_grad_norm(self, model: torch.nn.Module) -> Tensor:
        if not self.contrast.sparse:
            return super()._clip_grad_norm(model)
        return clip_norm(model.parameters(), self.args.max_grad_norm)

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Tensor | None = None) -> float:
        if grad_norm is None and self.contrast.sparse:
            grad_norm = clip_norm(model.parameters(), float("inf"))
        return super()._get_grad_norm(model, grad_norm)


def build_gathered(
    config: MntpConfig | PretrainConfig,
    run: Run,
    text: Text,
    course: Course,
    contrast: Contrast | None,
    arguments: dict[str, Any],
    **others: Any,
) -> GatheredTrainer:
    """Build the trainer of a stage that predicts tokens.

    Parameters
    ----------
    config, run, text, course
        Of the training.
    contrast
        None for cross-entropy alone.
    arguments
        The Trainer's, besides those that the configuration gives.
    others
        As for `GatheredTrainer`.
    """
    epochs = math.ceil(course.scheduled * course.per_step / len(text.train))
    others |= {
        "course": course,
        "isolate": text.isolate,
        "budget_bytes": config.vocabulary_budget_mb * 10**6,
        "args": training_arguments(config, run, steps=course.scheduled, steps_per_epoch=course.per_epoch, **arguments),
        "data_collator": text.collate,
        "train_dataset": MaskedBlocks(text.train, text.masking, epochs=epochs, batch_size=course.per_step),
        "eval_dataset": MaskedBlocks(text.validation, text.eval_masking, evaluation=True),
    }
    return GatheredTrainer(**others) if contrast is None else CwtTrainer(contrast=contrast, **others)
