"""One frozen dataclass per stage: what a run is, from a TOML or JSON file and flags that win over it.

Names are those of LLM2Vec and of ``transformers.TrainingArguments`` wherever one exists, and a key that LLM2Vec has
keeps LLM2Vec's default. Importing this module imports neither torch nor transformers.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from turncoder import settings
from turncoder.errors import UserError

__all__ = [
    "MAY_CHANGE",
    "CorpusKeys",
    "EncodeConfig",
    "MergeConfig",
    "MntpConfig",
    "OpenKeys",
    "PrepareConfig",
    "differences",
    "load_config",
    "to_dict",
    "to_toml",
]

Config = TypeVar("Config")

ACTIONS = frozenset({"overwrite", "dry_run"})
"""What to do with a run, not what the run is: in no record and in no config.toml."""

MAY_CHANGE = ACTIONS | frozenset(
    {
        "cache_dir",
        "dataloader_num_workers",
        "do_eval",
        "early_stopping_patience",
        "eval_steps",
        "eval_strategy",
        "evaluate_step_zero",
        "logging_steps",
        "output_dir",
        "per_device_eval_batch_size",
        "preprocessing_num_workers",
        "report_to",
        "save_merged",
        "save_steps",
        "save_strategy",
        "save_total_limit",
        "vocabulary_budget_mb",
    }
)
"""Keys that may differ when a run is resumed. The number of steps may too, where the schedule allows it."""


@dataclass(frozen=True, kw_only=True)
class CorpusKeys:
    """Which text is read, by which tokenizer, and how it is cut: shared by training and ``prepare``."""

    model_name_or_path: str
    """Decoder to start from: a folder or a hub id."""
    tokenizer_name: str | None = None
    """Tokenizer, if it is not the model's own."""
    model_revision: str = "main"
    """Branch, tag or commit of a hub id."""
    cache_dir: str | None = None
    """Where downloads from the hub are kept."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
    dataset_name: str | None = None
    """Hub id of the corpus, or a folder that datasets.save_to_disk wrote."""
    dataset_config_name: str | None = None
    """Configuration of the hub data set."""
    train_file: str | None = None
    """Corpus: .txt (a text a line), .jsonl, .json, .csv, .parquet, gzipped or not, or a folder of those."""
    validation_file: str | None = None
    """Held-out text, same shapes; without it a share of the corpus is held out."""
    text_column: str | None = None
    """Column that holds the text; default: "text", else the first."""
    validation_split_percentage: float = 5
    """Share of documents held out when no validation set is given, in percent."""
    max_seq_length: int | None = None
    """Tokens in a block; default: what the tokenizer says, at most 1024."""
    line_by_line: bool = False
    """One document per row instead of packed blocks."""
    pad_to_max_length: bool = False
    """With line_by_line: pad every row to max_seq_length rather than to the longest of its batch."""
    preprocessing_num_workers: int | None = None
    """Processes that tokenise; default: one per core."""
    as_llm2vec: bool = False
    """Do it LLM2Vec's way in everything that docs/migrate.md lists."""

    def __post_init__(self) -> None:
        """Check what can be checked without opening anything.

        Raises
        ------
        UserError
            One line that names the keys, the value and the remedy.
        """
        settings.set_types(self)
        if not self.model_name_or_path:
            raise UserError("model_name_or_path is empty; give a model folder or a hub id")
        if self.dataset_name and self.train_file:
            raise UserError(
                f"dataset_name = {self.dataset_name!r} and train_file = {self.train_file!r} are both set; keep one"
            )
        if not (self.dataset_name or self.train_file):
            raise UserError("no corpus: give train_file (a file or folder of text) or dataset_name (a hub id)")
        if self.dataset_config_name and not self.dataset_name:
            raise UserError(f"dataset_config_name = {self.dataset_config_name!r} needs dataset_name")
        self._check_range("validation_split_percentage", above=0, below=100)
        self._check_range("max_seq_length", least=2)
        self._check_range("preprocessing_num_workers", least=1)

    def _check_range(
        self,
        name: str,
        *,
        least: float | None = None,
        most: float | None = None,
        above: float | None = None,
        below: float | None = None,
    ) -> None:
        value = getattr(self, name)
        if value is None:
            return
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


@dataclass(frozen=True, kw_only=True)
class MntpConfig(CorpusKeys):
    """Masked next token prediction: the training that makes a bidirectional decoder useful.

    Any other field of transformers' TrainingArguments: --training.NAME VALUE, or a key of the file.
    """

    # model
    adapters: tuple[str, ...] = ()
    """Adapters to load and merge, in this order, before training."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    """Precision of the frozen weights; default: float32. What trains is always float32."""
    attn_implementation: str = "sdpa"
    """sdpa, eager or flash_attention_2; where the last cannot run the first that loads and passes the proof."""
    bidirectional: bool = True
    """Let attention look both ways; off only for a causal control run."""
    allow_partial: bool = False
    """Accept a model of which only some layers can look ahead."""

    # data
    max_train_samples: int | None = None
    """Train on this many blocks only."""
    max_eval_samples: int | None = None
    """Evaluate on this many blocks only."""
    isolate_documents: bool = True
    """Documents in one block do not see each other."""

    # masking
    mlm_probability: float = 0.15
    """Share of tokens that are predicted."""
    mask_token_type: str = "blank"
    """blank ("_"), eos, mask (the tokenizer's own), or a token of the vocabulary."""
    data_collator_type: Literal["default", "all_mask", "unmasked"] = "default"
    """default: 80 % mask, 10 % random, 10 % kept; all_mask: always the mask; unmasked: next token prediction on
    clean text, only with --no-bidirectional."""

    # adapter
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
    train_head: bool = False
    """Also train the vocabulary head, which is not kept in the encoder."""

    # steps
    output_dir: str | None = None
    """Run folder (--output). The same command again resumes."""
    num_train_epochs: float = 3
    """Passes over the corpus, unless max_steps is set."""
    max_steps: int = -1
    """Optimiser steps; overrides num_train_epochs."""
    stop_after_n_steps: int | None = 10000
    """Stop here at the latest; none for no limit."""
    per_device_train_batch_size: int = 8
    """Rows per device and forward pass."""
    per_device_eval_batch_size: int = 8
    """Rows per device and forward pass in evaluation."""
    gradient_accumulation_steps: int = 1
    """Forward passes per optimiser step."""

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
    vocabulary_budget_mb: int = 256
    """Largest piece of logits that ever exists, in MB."""
    seed: int = 42
    """Masks, order, adapter initialisation and dropout follow from it."""
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
    """Evaluate the causal and the untrained bidirectional model first, so that the table shows what training gave."""
    early_stopping_patience: int | None = None
    """Stop after so many evaluations without a lower loss."""
    save_strategy: Literal["no", "steps", "epoch", "best"] = "steps"
    """When to write a checkpoint."""
    save_steps: float = 500
    """Steps between checkpoints; below 1: a share of all steps."""
    save_total_limit: int | None = None
    """Keep only so many checkpoints; default: all."""
    save_merged: Literal["auto", "always", "never"] = "auto"
    """Write model/ with the adapter merged in; auto: unless it is large."""
    logging_steps: float = 500
    """Steps between rows of metrics.jsonl; below 1: a share of all steps."""
    report_to: str = "none"
    """Trackers beside metrics.jsonl, by commas: tensorboard, wandb, trackio, ..."""

    # what to do
    overwrite: bool = False
    """Delete what --output holds and start anew."""
    dry_run: bool = False
    """Show the plan; write nothing."""

    training: dict[str, Any] = field(default_factory=dict)
    """Any other field of transformers' TrainingArguments: --training.NAME VALUE."""

    LLM2VEC_WAYS: ClassVar[dict[str, Any]] = {
        "isolate_documents": False,
        "train_head": True,
        "evaluate_step_zero": False,
    }
    """What as_llm2vec sets among our own keys."""

    def __post_init__(self) -> None:
        """Check values and apply ``as_llm2vec``; see `CorpusKeys`."""
        super().__post_init__()
        if self.as_llm2vec:
            for name, value in self.LLM2VEC_WAYS.items():
                object.__setattr__(self, name, value)
        self._check_range("mlm_probability", above=0, most=1)
        self._check_range("lora_dropout", least=0, below=1)
        for name in ("lora_r", "lora_alpha", "per_device_train_batch_size", "per_device_eval_batch_size"):
            self._check_range(name, least=1)
        for name in ("gradient_accumulation_steps", "vocabulary_budget_mb", "stop_after_n_steps", "save_total_limit"):
            self._check_range(name, least=1)
        for name in ("max_train_samples", "max_eval_samples", "early_stopping_patience"):
            self._check_range(name, least=1)
        for name in ("eval_steps", "save_steps", "logging_steps", "num_train_epochs", "max_grad_norm"):
            self._check_range(name, above=0)
        for name in ("learning_rate", "warmup_steps", "weight_decay", "dataloader_num_workers", "seed"):
            self._check_range(name, least=0)
        self._check_together()

    def _check_together(self) -> None:
        if self.max_steps == 0 or self.max_steps < -1:
            raise UserError(f"max_steps = {self.max_steps} must be at least 1, or -1 to count epochs")
        if self.bf16 and self.fp16:
            raise UserError("bf16 and fp16 are both on; keep one")
        if self.data_collator_type == "unmasked" and self.bidirectional:
            raise UserError(
                "data_collator_type = 'unmasked' lets a bidirectional model read its answers; add --no-bidirectional"
            )
        if self.early_stopping_patience is not None and self.eval_strategy == "no":
            raise UserError(f"early_stopping_patience = {self.early_stopping_patience} needs eval_strategy = 'steps'")
        if self.train_mode == "full" and self.lora_target_modules is not None:
            raise UserError("lora_target_modules needs train_mode = 'lora', and train_mode = 'full' is set")
        if not (self.do_train or self.do_eval):
            raise UserError("do_train and do_eval are both off; nothing would be done")


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(CorpusKeys):
    """Corpus to packed blocks on disk, where training with the same keys finds them.

    A training config works here too: its other keys are passed over.
    """

    output_dir: str | None = None
    """Folder for the blocks (--output); default: the cache that training looks into."""

    PASSED_OVER: ClassVar[frozenset[str]] = frozenset(f.name for f in fields(MntpConfig)) - {
        f.name for f in fields(CorpusKeys)
    }
    """Keys of a training config that say nothing here, its run folder among them."""


@dataclass(frozen=True, kw_only=True)
class OpenKeys:
    """Which encoder is opened, and how: shared by ``encode`` and ``merge``."""

    model_name_or_path: str | None = None
    """MODEL: a run or model folder, a decoder, an encoder, an adapter, or a hub id."""
    adapters: tuple[str, ...] = ()
    """Adapters to put on the model, in this order: folders, runs, hub ids, or id@revision."""
    pooling: Literal["mean", "weighted_mean", "eos_token", "last_token", "bos_token", "cls"] | None = None
    """How tokens become one vector; default: what the folder says, else mean."""
    bidirectional: bool | None = None
    """Convert a decoder; off leaves it causal; default: what the folder says, else on."""
    allow_partial: bool = False
    """Accept a model of which only some layers can look ahead."""
    max_seq_length: int | None = None
    """Tokens of a text that are read; default: what the folder says, else 512."""
    chat_template: bool = False
    """Put texts through the tokenizer's chat template, as the words of a user."""
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
class EncodeConfig(OpenKeys):
    """Vectors for files of texts: OUT.npy, OUT.parquet, or a folder of shards that an interrupted job goes on with."""

    input_file: str | None = None
    """INPUT: a file of texts, a folder of those, a saved data set, or a hub id."""
    dataset_config_name: str | None = None
    """Configuration of the hub data set."""
    split: str | None = None
    """Split of a data set; default: train."""
    output_dir: str | None = None
    """Where to (--output): OUT.npy, OUT.parquet, or a folder."""
    text_column: str | None = None
    """Column that holds the text; default: "text", else the first."""
    id_column: str | None = None
    """Column of ids to keep beside the vectors, in .parquet or a folder."""
    prompt: str | None = None
    """Stands before each text, and is left out of the pooling."""
    prompt_name: str | None = None
    """One of the prompts that the encoder keeps."""
    normalize: bool = False
    """Give vectors the length 1."""
    batch_tokens: int | None = None
    """Tokens of a batch, padding included; default: found from the free memory."""
    shard_texts: int | None = None
    """Texts that are read, made distinct, sorted and written together; default: 16384, fewer to keep processes busy."""
    processes: int | None = None
    """Processes with a model each; default: one per GPU, or one."""
    device: str | None = None
    """cpu, cuda, cuda:1, mps, ...; default: a GPU where there is one."""
    overwrite: bool = False
    """Replace what --output names."""
    dry_run: bool = False
    """Show the plan; write nothing."""

    def __post_init__(self) -> None:
        """Check what can be checked without opening anything.

        Raises
        ------
        UserError
            One line that names the flag, the value and the remedy.
        """
        settings.set_types(self)
        for name in ("max_seq_length", "batch_tokens", "shard_texts", "processes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} = {value} must be at least 1")
        if self.prompt is not None and self.prompt_name is not None:
            raise UserError(f"prompt = {self.prompt!r} and prompt_name = {self.prompt_name!r} are both set; keep one")
        if not self.output_dir:
            raise UserError(
                "--output is missing: OUT.npy, OUT.parquet, or a folder, which an interrupted job goes on in"
            )
        if not self.model_name_or_path or not self.input_file:
            raise UserError(
                "encode needs MODEL and INPUT: turncoder encode MODEL INPUT --output OUT.npy, or model_name_or_path "
                "and input_file in a config file"
            )
        if self.id_column and Path(self.output_dir).suffix == ".npy":
            raise UserError("id_column: an .npy file holds vectors only; give --output OUT.parquet or a folder")


@dataclass(frozen=True, kw_only=True)
class MergeConfig(OpenKeys):
    """Base model and adapters to one folder that sentence-transformers opens without turncoder."""

    output_dir: str | None = None
    """Where to (--output)."""
    overwrite: bool = False
    """Replace what --output names."""
    dry_run: bool = False
    """Show the plan; write nothing."""

    def __post_init__(self) -> None:
        """Check what can be checked without opening anything; raises UserError."""
        settings.set_types(self)
        if not self.output_dir:
            raise UserError("--output is missing: the folder that the merged model goes to")
        if not self.model_name_or_path:
            raise UserError(
                "merge needs MODEL: a folder or a hub id, with --adapters to put on it, or model_name_or_path in a "
                "config file"
            )


def load_config(cls: type[Config], path: str | Path | None = None, flags: list[str] | None = None) -> Config:
    """Read a config file and flags into a checked config; flags win, old names are translated with a notice each.

    Parameters
    ----------
    cls
        The stage's dataclass: `MntpConfig`, `PrepareConfig`, `EncodeConfig`, `MergeConfig`.
    path
        TOML or JSON file; JSON may hold ``//`` comments and trailing commas.
    flags
        As typed: ``["--learning_rate", "1e-4", "--no-do-eval", "--training.optim", "adafactor"]``.

    Raises
    ------
    UserError
        A file that cannot be read, an unknown key (with the nearest name), a value of the wrong type or out of range.
    """
    keys, others = settings.read_flags(cls, flags or [])
    if others:
        raise UserError(f"unexpected {others[0]!r}; flags look like --name value")
    return settings.load(cls, Path(path) if path is not None else None, keys)


def to_dict(config: Any) -> dict[str, Any]:
    """Give the resolved config as plain JSON types, without the actions ``overwrite`` and ``dry_run``."""
    values = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in ACTIONS}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def to_toml(config: Any) -> str:
    """Write the resolved config as TOML that `load_config` reads back to an equal one."""
    return settings.write_toml(type(config), to_dict(config))


def differences(old: dict[str, Any], new: dict[str, Any], ignore: frozenset[str] = frozenset()) -> list[str]:
    """Name the keys in which two `to_dict` results differ, as ``"key: old -> new"``; keys in ``ignore`` are skipped."""
    names = [name for name in {**old, **new} if name not in ignore]
    missing = "(not set)"
    return [
        f"{name}: {old.get(name, missing)!r} -> {new.get(name, missing)!r}"
        for name in names
        if old.get(name, missing) != new.get(name, missing)
    ]
