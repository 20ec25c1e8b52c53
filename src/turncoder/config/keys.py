"""Keys that several stages share, in groups: which data, which encoder, how it is trained.

Importing this module imports neither torch nor transformers.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from turncoder.config.values import set_types
from turncoder.errors import UserError

__all__ = [
    "HUB_KEYS",
    "MOST_SEED",
    "ContrastKeys",
    "CorpusKeys",
    "DataKeys",
    "FitKeys",
    "OpenKeys",
    "TrainKeys",
    "check_distinct",
    "check_ranges",
    "locate_model",
]

MOST_SEED = 2**32 - 1
"""NumPy's global generator takes no more."""


HUB_KEYS = ("push_to_hub", "hub_model_id", "hub_private_repo", "hub_revision")
"""Fields of TrainingArguments that `turncoder publish` honours when a run is done, and the Trainer never sees."""


def check_ranges(
    config: Any,
    *names: str,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> None:
    """Refuse, with a UserError, numbers out of range, also within a list; None is none."""
    for name in names:
        values = getattr(config, name)
        for value in values if isinstance(values, tuple) else (values,):
            if value is None:
                continue
            wants = [
                text
                for text, bound, holds in (
                    (f"at least {least}", least, least is None or value >= least),
                    (f"above {above}", above, above is None or value > above),
                    (f"at most {most}", most, most is None or value <= most),
                    (f"below {below}", below, below is None or value < below),
                )
                if bound is not None and not holds
            ]
            if wants:
                raise UserError(f"{name} = {value} must be {' and '.join(wants)}")


def check_distinct(config: Any, *names: str, some: bool = False) -> None:
    """Refuse, with a UserError, lists that name something twice, or, where there have to be ``some``, nothing."""
    for name in names:
        values = getattr(config, name)
        if len(set(values)) < len(values) or (some and not values):
            raise UserError(f"{name} = {list(values)} must name {'at least one, and ' * some}each once")


def locate_model(config: Any) -> dict[str, Any]:
    """Give what transformers needs besides a name to find the model of a configuration."""
    return {
        "revision": config.model_revision,
        "cache_dir": config.cache_dir,
        "trust_remote_code": config.trust_remote_code,
    }


@dataclass(frozen=True, kw_only=True)
class DataKeys:
    """Which model is taken, and which data: shared by training and ``prepare``."""

    model_name_or_path: str
    """Model to start from: a folder, a run, or a hub id."""
    model_revision: str = "main"
    """Branch, tag or commit of a hub id."""
    cache_dir: str | None = None
    """Where downloads from the hub are kept."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
    dataset_name: str | None = None
    """Hub id of the data, or a folder that datasets.save_to_disk wrote."""
    dataset_config_name: str | None = None
    """Configuration of the hub data set."""
    train_file: str | None = None
    """File to train on, or a folder of those."""
    validation_file: str | None = None
    """Held-out data, same shapes; without it a share of the data is held out."""
    validation_split_percentage: float = 5
    """Share held out when no validation set is given, in percent; of sentences and pairs it may be 0."""
    as_llm2vec: bool = False
    """Do it LLM2Vec's way in everything that docs/migrate.md lists."""

    def __post_init__(self) -> None:
        """Check what can be checked without opening anything.

        Raises
        ------
        UserError
            One line that names the keys, the value and the remedy.
        """
        set_types(self)
        self.check_model()
        if self.dataset_name and self.train_file:
            raise UserError(
                f"dataset_name = {self.dataset_name!r} and train_file = {self.train_file!r} are both set; keep one"
            )
        if not (self.dataset_name or self.train_file):
            raise UserError("no corpus: give train_file (a file or folder of text) or dataset_name (a hub id)")
        if self.dataset_config_name and not self.dataset_name:
            raise UserError(f"dataset_config_name = {self.dataset_config_name!r} needs dataset_name")
        check_ranges(self, "validation_split_percentage", least=0, below=100)

    def check_model(self) -> None:
        """Refuse a configuration that names no model."""
        if not self.model_name_or_path:
            raise UserError("model_name_or_path is empty; give a model folder or a hub id")


@dataclass(frozen=True, kw_only=True)
class CorpusKeys(DataKeys):
    """Which text is read, by which tokenizer, and how it is cut into blocks."""

    tokenizer_name: str | None = None
    """Tokenizer, if it is not the model's own."""
    text_column: str | None = None
    """Column that holds the text; default: "text", else the first."""
    max_seq_length: int | None = None
    """Tokens in a block; default: as a model of pretrain was trained, else what the tokenizer says, at most 1024."""
    line_by_line: bool = False
    """One document per row instead of packed blocks."""
    pad_to_max_length: bool = False
    """With line_by_line: pad every row to max_seq_length rather than to the longest of its batch."""
    preprocessing_num_workers: int | None = None
    """Processes that tokenise; default: one per core."""

    def __post_init__(self) -> None:
        """Check values; see `DataKeys`."""
        super().__post_init__()
        check_ranges(self, "validation_split_percentage", above=0)
        check_ranges(self, "max_seq_length", least=2)
        check_ranges(self, "preprocessing_num_workers", least=1)


@dataclass(frozen=True, kw_only=True)
class FitKeys:
    """How weights are fitted: shared by every stage, with LLM2Vec's names and defaults."""

    # model
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    """Precision of the frozen weights; default: float32. What trains is always float32."""
    attn_implementation: str = "sdpa"
    """sdpa, eager or flash_attention_2; where the last cannot run the first that loads and passes the proof."""

    # data
    max_train_samples: int | None = None
    """Train on this many rows only."""
    max_eval_samples: int | None = None
    """Evaluate on this many rows only; default: all (contrastive stages: at most 2,000 over all sets)."""

    # steps
    output_dir: str | None = None
    """Run folder (--output). The same command again resumes."""
    num_train_epochs: float = 3
    """Passes over the corpus, unless max_steps is set."""
    max_steps: int = -1
    """Optimizer steps; overrides num_train_epochs."""
    stop_after_n_steps: int | None = 10000
    """Stop here at the latest; none for no limit."""
    per_device_train_batch_size: int = 8
    """Rows per device and forward pass."""
    per_device_eval_batch_size: int = 8
    """Rows per device and forward pass in evaluation."""
    gradient_accumulation_steps: int = 1
    """Forward passes per optimizer step."""

    # optimisation
    learning_rate: float = 5e-5
    """Highest learning rate of the schedule."""
    lr_scheduler_type: str = "linear"
    """Shape of the schedule: linear, cosine, constant, constant_with_warmup, ..."""
    warmup_steps: float = 0
    """Steps of warm-up; below 1: their share of all steps."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    bf16: bool = False
    """Compute in bfloat16 under autocast."""
    fp16: bool = False
    """Compute in float16 under autocast, with loss scaling; needs a GPU."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    seed: int = 42
    """Seed of masks, order, adapter initialisation and dropout."""
    dataloader_num_workers: int = 0
    """Processes that build batches."""

    # evaluation, saving, logging
    do_train: bool = True
    """Train; off: only evaluate."""
    do_eval: bool = True
    """Evaluate at the end, and as eval_strategy says."""
    eval_strategy: Literal["no", "steps", "epoch"] = "no"
    """When to evaluate during training."""
    eval_steps: float | None = None
    """Steps between evaluations; below 1: a share of all steps; default: logging_steps."""
    evaluate_step_zero: bool = True
    """Evaluate the untrained model first, so that the table shows what training gave."""
    early_stopping_patience: int | None = None
    """Stop after this many evaluations without a lower loss."""
    save_strategy: Literal["no", "steps", "epoch", "best"] = "steps"
    """When to write a checkpoint."""
    save_steps: float = 500
    """Steps between checkpoints; below 1: a share of all steps."""
    save_total_limit: int | None = None
    """Keep only this many checkpoints; default: all."""
    logging_steps: float = 500
    """Steps between rows of metrics.jsonl; below 1: a share of all steps."""
    report_to: str = "none"
    """Trackers besides metrics.jsonl, separated by commas: tensorboard, wandb, trackio, ..."""

    # what to do
    overwrite: bool = False
    """Delete what --output holds and start anew."""
    dry_run: bool = False
    """Show the plan; write nothing."""

    training: dict[str, Any] = field(default_factory=dict)
    """Any other field of transformers' TrainingArguments: --training.NAME VALUE."""

    def check_training(self) -> None:
        """Check values."""
        check_ranges(self, "per_device_train_batch_size", "per_device_eval_batch_size", least=1)
        check_ranges(self, "gradient_accumulation_steps", "stop_after_n_steps", "save_total_limit", least=1)
        check_ranges(self, "max_train_samples", "max_eval_samples", "early_stopping_patience", least=1)
        check_ranges(self, "eval_steps", "save_steps", "logging_steps", "num_train_epochs", "max_grad_norm", above=0)
        check_ranges(self, "learning_rate", "warmup_steps", "weight_decay", "dataloader_num_workers", least=0)
        check_ranges(self, "seed", least=0, most=MOST_SEED)
        if self.max_steps == 0 or self.max_steps < -1:
            raise UserError(f"max_steps = {self.max_steps} must be at least 1, or -1 to count epochs")
        if self.bf16 and self.fp16:
            raise UserError("bf16 and fp16 are both on; keep one")
        if self.early_stopping_patience is not None and self.eval_strategy == "no":
            raise UserError(f"early_stopping_patience = {self.early_stopping_patience} needs eval_strategy = 'steps'")
        if self.save_strategy == "best" and self.eval_strategy == "no":
            raise UserError("save_strategy = 'best' needs eval_strategy = 'steps'")
        if self.training.get("push_to_hub") and not self.training.get("hub_model_id"):
            raise UserError(
                "push_to_hub needs a repository: hub_model_id = 'OWNER/NAME', which turncoder publish writes to"
            )
        if not (self.do_train or self.do_eval):
            raise UserError("do_train and do_eval are both off; nothing would be done")


@dataclass(frozen=True, kw_only=True)
class TrainKeys(FitKeys):
    """How a model that exists is trained further: with an adapter, or whole."""

    adapters: tuple[str, ...] = ()
    """Adapters to load and merge, in this order, before training: folders, runs, hub ids, or id@revision."""
    allow_partial: bool = False
    """Accept a model of which only some layers can look ahead."""
    train_mode: Literal["lora", "full"] = "lora"
    """Train an adapter or every weight."""
    lora_r: int = 8
    """Rank of the adapter."""
    lora_alpha: int | None = None
    """Scale of the adapter; default: twice lora_r."""
    lora_dropout: float = 0.05
    """Dropout before the adapter."""
    lora_target_modules: tuple[str, ...] | None = None
    """Linear layers that get an adapter, by name; default: all of attention and feed-forward."""
    save_merged: Literal["auto", "always", "never"] = "auto"
    """Write model/ with the adapter merged in; auto: unless it is large."""

    def check_training(self) -> None:
        """Check values; see `FitKeys`."""
        super().check_training()
        check_ranges(self, "lora_dropout", least=0, below=1)
        check_ranges(self, "lora_r", "lora_alpha", least=1)
        if self.train_mode == "full" and self.lora_target_modules is not None:
            raise UserError("lora_target_modules needs train_mode = 'lora', and train_mode = 'full' is set")


Pooling = Literal["mean", "weighted_mean", "eos_token", "last_token", "bos_token", "cls"]


@dataclass(frozen=True, kw_only=True)
class OpenKeys:
    """Which encoder is opened, and how: shared by ``encode`` and ``merge``."""

    model_name_or_path: str | None = None
    """MODEL: a run or model folder, a decoder, an encoder, an adapter, or a hub id."""
    adapters: tuple[str, ...] = ()
    """Adapters to put on the model, in this order: folders, runs, hub ids, or id@revision."""
    pooling: Pooling | None = None
    """How tokens become one vector; default: what the folder says, else mean."""
    bidirectional: bool | None = None
    """Convert a decoder; off leaves it causal; default: what the folder says, else on."""
    allow_partial: bool = False
    """Accept a model of which only some layers can look ahead."""
    max_seq_length: int | None = None
    """Tokens of a text that are read; default: what the folder says, else 512."""
    chat_template: bool = False
    """Put texts through the tokenizer's chat template, as user messages."""
    llm2vec: bool | None = None
    """LLM2Vec's semantics; default: on where there is an llm2vec_config.json."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    """Precision of the model; default: float32."""
    attn_implementation: str = "sdpa"
    """sdpa, eager or flash_attention_2; where the last cannot run the first that loads and passes the proof."""
    model_revision: str = "main"
    """Branch, tag or commit of a hub id."""
    cache_dir: str | None = None
    """Where downloads from the hub are kept."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""


@dataclass(frozen=True, kw_only=True)
class ContrastKeys(TrainKeys, DataKeys):
    """How an encoder is trained to tell texts apart: shared by ``simcse`` and ``supervised``."""

    pooling: Pooling | None = None
    """How tokens become one vector (LLM2Vec: pooling_mode); default: what the model's folder says, else mean."""
    bidirectional: bool | None = None
    """Let attention look both ways; default: what the model's folder says, else on (off in LLM2Vec's files)."""
    max_seq_length: int | None = None
    """Tokens of a text that are read; default: what the model's folder says, else 512."""
    chat_template: bool = False
    """Put texts through the tokenizer's chat template, as user messages."""
    loss_scale: float | None = None
    """Factor of the cosine similarities before the softmax; default: 20 (50 in LLM2Vec's files)."""
    temperature: float | None = None
    """The same as 1 / loss_scale."""
    symmetric: bool = False
    """Add the loss in the other direction: from each positive to its anchor."""
    mini_batch_num_tokens: int | None = None
    """Tokens that go through the model at once, with cached gradients (GradCache), for large batches; default: only if
    the batch would not fit."""
    matryoshka_dims: tuple[int, ...] = ()
    """Also train the first N dimensions of the vectors, for each N given."""
    LLM2VEC_DEFAULTS: ClassVar[dict[str, Any]] = {"bidirectional": False, "loss_scale": 50.0}
    """What LLM2Vec's files mean where they say nothing."""

    sts_file: str | None = None
    """Sentence pairs with a score (CSV, TSV, JSONL, Parquet), to evaluate on during training (Spearman correlation)."""

    def __post_init__(self) -> None:
        """Check values; see `DataKeys`."""
        super().__post_init__()
        self.check_training()
        check_ranges(self, "max_seq_length", "mini_batch_num_tokens", least=1)
        check_ranges(self, "loss_scale", "temperature", above=0)
        if self.loss_scale is not None and self.temperature is not None:
            raise UserError(
                f"loss_scale = {self.loss_scale:g} and temperature = {self.temperature:g} are both set; keep one"
            )
        if self.per_device_train_batch_size < 2 and self.do_train:
            raise UserError(
                f"per_device_train_batch_size = {self.per_device_train_batch_size} leaves a text nothing to be told "
                "apart from: the other texts of its batch are the negatives; give at least 2, better 64 or more"
            )
        if any(number < 1 for number in self.matryoshka_dims):
            raise UserError(f"matryoshka_dims = {list(self.matryoshka_dims)} must be at least 1 each")
