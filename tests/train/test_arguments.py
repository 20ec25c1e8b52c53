"""A configuration as the arguments of transformers' Trainer."""

import logging
from pathlib import Path

import pytest
import torch

from turncoder.config.stages import MntpConfig
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
