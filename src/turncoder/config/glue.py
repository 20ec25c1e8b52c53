"""What an evaluation on GLUE is: which model, which tasks, and how it is trained on them: two recipes by name.

Importing this module imports neither torch nor transformers.
"""

import math
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

from turncoder.config.keys import MOST_SEED, Pooling, TrainKeys, check_distinct, check_ranges
from turncoder.config.values import set_types
from turncoder.errors import UserError
from turncoder.evaluate.gluetasks import GLUE, TASKS, name_task

__all__ = ["RECIPES", "GlueConfig", "count_epochs", "settle"]

Choice = Literal["best_epoch", "last"]

SEEDS = 3
RECIPES: dict[str, dict[str, Any]] = {
    "default": {
        "per_device_train_batch_size": 32,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0.06,
        "weight_decay": 0.01,
        "classifier_dropout": 0.1,
        "class_balanced": False,
        "choose": "last",
    },
    "headless": {
        "learning_rate": 1e-5,
        "per_device_train_batch_size": 32,
        "lr_scheduler_type": "constant_with_warmup",
        "weight_decay": 0.01,
        "classifier_dropout": 0.1,
        "class_balanced": True,
        "choose": "best_epoch",
        "pooling": "cls",
        "max_seq_length": 128,
    },
}
"""``default``: what papers on encoders do today. ``headless``: what Godey et al. 2024, arXiv 2309.08351, did."""

LEARNING_RATES = {"full": 2e-5, "lora": 2e-4}
EPOCHS = ((10_000, 10.0), (100_000, 5.0))
MANY_ROWS_EPOCHS = 3.0
"""default: 10 epochs below 10,000 training rows, 5 below 100,000, else 3."""

HEADLESS = {
    "rte": (20.0, 160),
    "sst2": (20.0, 4200),
    "cola": (20.0, 530),
    "stsb": (20.0, 360),
    "mrpc": (20.0, 230),
    "qqp": (10.0, 3400),
    "qnli": (10.0, 980),
    "mnli": (10.0, 80),
}
"""headless: epochs and steps of warm-up."""
OTHERS = (10.0, 0.06)
"""Those of the tasks that it says nothing of: ours."""


@dataclass(frozen=True, kw_only=True)
class GlueConfig(TrainKeys):
    """GLUE, XNLI and PAWS-X: the model is fine-tuned on each task, by every seed, and scored on its development set.

    What a recipe says is the default of a key. Any other field of transformers' TrainingArguments: --training.NAME
    VALUE, or a key of the file.
    """

    STAGE: ClassVar[str] = "glue"
    as_llm2vec: ClassVar[bool] = False
    chat_template: ClassVar[bool] = False

    model_name_or_path: str | None = None
    """MODEL: a run or model folder, a decoder, an encoder, an adapter, or a hub id."""
    model_revision: str = "main"
    """Branch, tag or commit of a hub id."""
    cache_dir: str | None = None
    """Where downloads from the hub are kept."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
    bidirectional: bool | None = None
    """Let attention look both ways; default: what the model's folder says, else on."""
    pooling: Pooling | None = None
    """How tokens become one vector; default: cls (recipe headless), else what the model's folder says, else mean."""
    prompt: str | None = None
    """Stands before each text, or pair; default: the model's own default prompt."""

    tasks: tuple[str, ...] = GLUE
    """cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte, wnli; in many languages: xnli, pawsx."""
    data: str | None = None
    """Folder with a folder for each task: TASK/train.tsv, TASK/dev.tsv (.csv, .jsonl, .parquet too); default: the
    hub."""
    languages: tuple[str, ...] = ()
    """Of xnli and pawsx: those that are scored; default: all."""
    translate_train: bool = False
    """Of xnli and pawsx: train on each language's own training set, machine-translated; off: zero-shot, on English."""

    recipe: Literal["default", "headless"] = "default"
    """default: AdamW, linear decay, 3 to 10 epochs by size; headless: headless-lm's epochs, warm-up and choice."""
    seeds: tuple[int, ...] = ()
    """Scores are a mean over these; default: three from seed on."""
    choose: Choice | None = None
    """best_epoch: the one that is best on the development set, which flatters where that is scored; last: the last;
    default: last, or best_epoch (recipe headless)."""
    class_balanced: bool | None = None
    """Weigh each class by rows / (classes x its rows); default: off, or on (recipe headless)."""
    classifier_dropout: float | None = None
    """Dropout before the head, in training; default: 0.1."""
    max_seq_length: int | None = None
    """Tokens of a text, or pair, that are read; default: 128 (recipe headless), else what the model's folder says, else
    512."""

    train_mode: Literal["full", "lora"] = "full"
    """Train every weight or an adapter."""
    num_train_epochs: float | None = None  # type: ignore[assignment]
    """Passes over the training rows; default: as the recipe says for the task."""
    stop_after_n_steps: int | None = None
    """Stop here at the latest; none for no limit."""
    per_device_train_batch_size: int | None = None  # type: ignore[assignment]
    """Rows per device and forward pass; default: 32."""
    per_device_eval_batch_size: int = 64
    """Rows per device and forward pass in evaluation."""
    learning_rate: float | None = None  # type: ignore[assignment]
    """Highest learning rate of the schedule; default: 2e-5 (full), 2e-4 (lora), 1e-5 (recipe headless)."""
    lr_scheduler_type: str | None = None  # type: ignore[assignment]
    """Shape of the schedule; default: linear, or constant_with_warmup (recipe headless)."""
    warmup_steps: float | None = None  # type: ignore[assignment]
    """Steps of warm-up; below 1: their share of all steps; default: 0.06, or those of the task (recipe headless)."""
    weight_decay: float | None = None  # type: ignore[assignment]
    """AdamW's weight decay; default: 0.01."""
    eval_strategy: Literal["no", "steps", "epoch"] = "epoch"
    """When to evaluate during training."""
    save_strategy: Literal["no", "steps", "epoch", "best"] = "epoch"
    """When to write a checkpoint; those of a task and seed that are done are deleted."""
    save_total_limit: int | None = 1
    """Keep only so many checkpoints, beside the best."""

    IGNORED: ClassVar[dict[str, str]] = {
        "load_best_model_at_end": "choose says whether the best epoch or the last is scored",
        "metric_for_best_model": "the first metric of the task decides",
        "greater_is_better": "it is",
    }
    """Keys of TrainingArguments that are decided here."""
    OF_OTHERS: ClassVar[tuple[str, ...]] = ("do_eval", "do_train", "evaluate_step_zero", "save_merged")
    """Keys that say something to other stages alone: models are not kept."""

    def __post_init__(self) -> None:
        """Check what can be checked without opening anything.

        Raises
        ------
        UserError
            One line that names the keys, the value and the remedy.
        """
        set_types(self)
        object.__setattr__(self, "tasks", tuple(name_task(name) for name in self.tasks))
        if not self.seeds:
            object.__setattr__(self, "seeds", tuple(range(self.seed, self.seed + SEEDS)))
        self.check_training()
        check_ranges(self, "seeds", least=0, most=MOST_SEED)
        check_ranges(self, "max_seq_length", least=8)
        check_ranges(self, "classifier_dropout", least=0, below=1)
        if not self.model_name_or_path:
            raise UserError(
                "evaluate glue needs MODEL: a folder, a run, or a hub id, or model_name_or_path in a config"
            )
        check_distinct(self, "tasks", "seeds", some=True)
        self._check_languages()
        self._check_choice()

    def list_idle(self) -> list[str]:
        """List the keys that are set, and say nothing here."""
        default = {field.name: field.default for field in fields(self)}
        return [name for name in self.OF_OTHERS if getattr(self, name) != default[name]]

    def _check_languages(self) -> None:
        many = [name for name in self.tasks if TASKS[name].languages]
        if (self.languages or self.translate_train) and not many:
            key = f"languages = {list(self.languages)}" if self.languages else "translate_train"
            raise UserError(f"{key} is for xnli and pawsx; tasks = {list(self.tasks)}")
        check_distinct(self, "languages")
        for task in many:
            for one in self.languages:
                if one not in TASKS[task].languages and not self.data:
                    raise UserError(f"languages: {task} has no {one!r}; it has {', '.join(TASKS[task].languages)}")

    def _check_choice(self) -> None:
        choice = self.choose or RECIPES[self.recipe]["choose"]
        if choice == "best_epoch" and (self.eval_strategy != "epoch" or self.save_strategy != "epoch"):
            said = f"eval_strategy = {self.eval_strategy!r}, save_strategy = {self.save_strategy!r}"
            raise UserError(f"choose = 'best_epoch' evaluates and saves each epoch, and {said}; leave these away")
        if choice == "last" and self.early_stopping_patience is not None:
            raise UserError(
                f"early_stopping_patience = {self.early_stopping_patience} keeps the best epoch, and choose = 'last'; "
                "give choose = 'best_epoch'"
            )


def settle(config: GlueConfig, task: str, rows: int) -> GlueConfig:
    """Fill in what the recipe says for a task with so many training rows, where the configuration says nothing."""
    values = dict(RECIPES[config.recipe])
    if config.recipe == "headless":
        values["num_train_epochs"], values["warmup_steps"] = HEADLESS.get(task, OTHERS)
    else:
        values["learning_rate"] = LEARNING_RATES[config.train_mode]
        values["num_train_epochs"] = next((epochs for most, epochs in EPOCHS if rows < most), MANY_ROWS_EPOCHS)
    return replace(config, **{name: value for name, value in values.items() if getattr(config, name) is None})


def count_epochs(config: GlueConfig, rows: int, processes: int = 1) -> GlueConfig:
    """Give a settled configuration the steps of its epochs, so that each ends in a step and can be evaluated."""
    assert config.per_device_train_batch_size and config.num_train_epochs
    if config.max_steps > 0:
        return config
    per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps * processes
    return replace(config, max_steps=max(1, round(math.ceil(rows / per_step) * config.num_train_epochs)))
