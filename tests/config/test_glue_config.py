"""Keys of ``evaluate glue``: recipes, what wins over them, what is refused."""

import logging
from pathlib import Path
from typing import Any

import pytest

from turncoder.config.glue import GlueConfig, count_epochs, settle
from turncoder.config.stages import load_config, to_toml
from turncoder.errors import UserError
from turncoder.evaluate.gluetasks import GLUE

PAPER = {  # epochs and steps of warm-up, in the order in which headless-lm has its tasks
    "rte": (20, 160), "sst2": (20, 4200), "cola": (20, 530), "stsb": (20, 360), "mrpc": (20, 230), "qqp": (10, 3400),
    "qnli": (10, 980), "mnli": (10, 80),
}  # fmt: skip


def make(**keys: Any) -> GlueConfig:
    return GlueConfig(model_name_or_path="m", **keys)


def test_nine_tasks_and_three_seeds() -> None:
    assert make().tasks == GLUE and len(GLUE) == 9
    assert make().seeds == (42, 43, 44) and make(seed=7).seeds == (7, 8, 9) and make(seeds=(5,)).seeds == (5,)
    assert make(tasks=("SST-2", "STS-B", "MNLI")).tasks == ("sst2", "stsb", "mnli")


@pytest.mark.parametrize("task", PAPER)
def test_the_headless_recipe(task: str) -> None:
    config = settle(make(recipe="headless"), task, rows=1000)
    assert (config.num_train_epochs, config.warmup_steps) == PAPER[task]
    assert (config.learning_rate, config.weight_decay, config.per_device_train_batch_size) == (1e-5, 0.01, 32)
    assert (config.lr_scheduler_type, config.choose, config.class_balanced) == (
        "constant_with_warmup", "best_epoch", True,
    )  # fmt: skip
    assert (config.pooling, config.max_seq_length, config.classifier_dropout) == ("cls", 128, 0.1)


@pytest.mark.parametrize(("rows", "epochs"), [(634, 10), (9_999, 10), (10_000, 5), (67_349, 5), (392_702, 3)])
def test_the_default_recipe(rows: int, epochs: int) -> None:
    config = settle(make(), "rte", rows=rows)
    assert (config.num_train_epochs, config.warmup_steps, config.lr_scheduler_type) == (epochs, 0.06, "linear")
    assert (config.learning_rate, config.choose, config.class_balanced, config.pooling) == (2e-5, "last", False, None)
    assert settle(make(train_mode="lora"), "rte", rows=rows).learning_rate == 2e-4


def test_keys_win_over_the_recipe(tmp_path: Path) -> None:
    keys = {"num_train_epochs": 3.0, "warmup_steps": 0.0, "class_balanced": False, "pooling": "mean",
            "classifier_dropout": 0.0, "weight_decay": 0.0, "choose": "last", "learning_rate": 1e-3}  # fmt: skip
    settled = settle(make(recipe="headless", **keys), "cola", rows=1000)
    assert {name: getattr(settled, name) for name in keys} == keys
    assert settled.max_seq_length == 128
    (tmp_path / "own.toml").write_text('model_name_or_path = "m"\nrecipe = "headless"\nlearning_rate = 3e-5\n')
    config = load_config(GlueConfig, tmp_path / "own.toml", ["--num_train_epochs", "2", "--no-class_balanced"])
    settled = settle(config, "cola", rows=1000)
    assert (settled.learning_rate, settled.num_train_epochs, settled.class_balanced) == (3e-5, 2, False)


def test_a_config_file_comes_back(tmp_path: Path) -> None:
    for config in (make(recipe="headless", tasks=("rte",)), settle(make(tasks=("rte",)), "rte", rows=10)):
        (tmp_path / "config.toml").write_text(to_toml(config))
        assert load_config(GlueConfig, tmp_path / "config.toml") == config


def test_keys_of_no_use_are_known(caplog: pytest.LogCaptureFixture) -> None:
    assert make().list_idle() == []
    assert make(do_eval=False, save_merged="always", lora_r=4).list_idle() == ["do_eval", "save_merged"]
    logging.getLogger("turncoder").propagate = True
    flags = ["--model_name_or_path", "m", "--training.greater_is_better", "false", "--load_best_model_at_end"]
    assert load_config(GlueConfig, None, flags).training == {}
    assert "load_best_model_at_end is ignored: choose says whether the best epoch" in caplog.text


def test_epochs_end_in_a_step() -> None:
    config = settle(make(num_train_epochs=3, per_device_train_batch_size=32), "rte", rows=100)
    assert count_epochs(config, 100).max_steps == 12
    assert count_epochs(config, 100, processes=2).max_steps == 6
    assert count_epochs(settle(make(max_steps=5), "rte", rows=100), 100).max_steps == 5
    assert count_epochs(settle(make(num_train_epochs=0.1), "rte", rows=100), 100).max_steps == 1


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"tasks": ("cool",)}, r"tasks: no task 'cool'; did you mean cola\?; there are cola, sst2"),
        ({"tasks": ("rte", "RTE")}, r"tasks = \['rte', 'rte'\] must name at least one, and each once"),
        ({"tasks": ()}, r"tasks = \[\] must name at least one"),
        ({"seeds": (1, 1)}, r"seeds = \[1, 1\]"),
        ({"recipe": "best"}, r"recipe = 'best' is not one of default, headless"),
        ({"languages": ("bg",)}, r"languages = \['bg'\] is for xnli and pawsx"),
        ({"translate_train": True}, r"translate_train is for xnli and pawsx"),
        ({"tasks": ("xnli",), "languages": ("ko",)}, r"languages: xnli has no 'ko'; it has ar, bg"),
        ({"choose": "best_epoch", "eval_strategy": "no"}, r"evaluates and saves each epoch, and eval_strategy = 'no'"),
        ({"recipe": "headless", "save_strategy": "no"}, r"and eval_strategy = 'epoch', save_strategy = 'no'"),
        ({"early_stopping_patience": 2}, r"keeps the best epoch, and choose = 'last'"),
        ({"max_seq_length": 4}, r"max_seq_length = 4 must be at least 8"),
        ({"classifier_dropout": 1.0}, r"classifier_dropout = 1\.0 must be below 1"),
        ({"train_mode": "probe"}, r"train_mode = 'probe' is not one of full, lora"),
        ({"learning_rate": "fast"}, r"learning_rate = 'fast' is not a number"),
    ],
    ids=str,
)
def test_what_is_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make(**keys)
    with pytest.raises(UserError, match="needs MODEL"):
        GlueConfig()
