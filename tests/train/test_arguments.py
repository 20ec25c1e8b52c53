"""A configuration as the arguments of transformers' Trainer."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from turncoder.config.stages import MntpConfig
from turncoder.errors import UserError
from turncoder.train.arguments import training_arguments
from turncoder.train.running import Run


def test_one_process_trains_on_one_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The Trainer would divide batches over all that it sees, each of the configured size: three times the rows."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(logging.getLogger("turncoder"), "propagate", True)
    config = MntpConfig(model_name_or_path="m", train_file="t", per_device_train_batch_size=8)
    arguments = training_arguments(config, Run(tmp_path, {}), steps=1, steps_per_epoch=1)
    assert (arguments.n_gpu, arguments.train_batch_size, arguments.eval_batch_size) == (1, 8, 8)
    assert "3 GPUs" in caplog.text and "torchrun" in caplog.text


@pytest.mark.parametrize(
    ("given", "metric", "greater"),
    [
        ({}, "eval_loss", False),
        ({"metric_for_best_model": "accuracy"}, "accuracy", True),
        ({"metric_for_best_model": "eval_sts_spearman"}, "eval_sts_spearman", True),
        ({"metric_for_best_model": "eval_bits_per_byte"}, "eval_bits_per_byte", False),
        ({"metric_for_best_model": "perplexity"}, "perplexity", False),
        ({"metric_for_best_model": "eval_loss", "greater_is_better": True}, "eval_loss", True),
    ],
)
def test_the_best_step_is_the_best_by_the_metric_that_is_named(
    tmp_path: Path, given: dict[str, Any], metric: str, greater: bool
) -> None:
    keys: dict[str, Any] = {"model_name_or_path": "m", "train_file": "t", "eval_strategy": "steps"}
    for way in ({"early_stopping_patience": 2}, {"save_strategy": "best"}):
        config = MntpConfig(**keys, **way, training=given)
        arguments = training_arguments(config, Run(tmp_path, {}), steps=1, steps_per_epoch=1)
        assert (arguments.metric_for_best_model, arguments.greater_is_better) == (metric, greater)


def test_labels_that_would_not_be_smoothed_are_refused(tmp_path: Path) -> None:
    config = MntpConfig(model_name_or_path="m", train_file="t", training={"label_smoothing_factor": 0.1})
    with pytest.raises(UserError, match=r"^label_smoothing_factor = 0\.1"):
        training_arguments(config, Run(tmp_path, {}), steps=1, steps_per_epoch=1)
