"""What a word-level task is: which backbone, which labels, which weights train.

Importing this module imports neither torch nor transformers.
"""

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from turncoder.config.keys import MOST_SEED, TrainKeys, check_distinct, check_ranges
from turncoder.config.values import set_types
from turncoder.errors import UserError

__all__ = ["PROBE_SCHEDULES", "Alignment", "WordsConfig"]

Alignment = Literal["auto", "same_token", "previous_token"]

LEARNING_RATES = {"probe": (1e-3, 3e-3, 1e-2, 3e-2), "lora": (3e-4,), "full": (3e-5,)}
PROBE_SEEDS = 5
PROBE_SCHEDULES = (
    "linear", "cosine", "constant", "constant_with_warmup", "cosine_with_restarts", "polynomial", "inverse_sqrt",
)  # fmt: skip
"""Those of transformers that need nothing but the steps."""


@dataclass(frozen=True, kw_only=True)
class WordsConfig(TrainKeys):
    """A word-level task: NER, part of speech, chunks, or any column of labels, on any backbone.

    Trains on train_file, chooses on validation_file, scores test_file once. Any other field of transformers'
    TrainingArguments: --training.NAME VALUE, or a key of the file (lora and full).
    """

    STAGE: ClassVar[str] = "words"

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

    dataset_name: str | None = None
    """Hub id of tagged words, such as conll2003 or universal_dependencies."""
    dataset_config_name: str | None = None
    """Configuration of the hub data set, such as en_ewt."""
    train_file: str | None = None
    """Tagged words to train on: CoNLL columns, CoNLL-U, JSONL."""
    validation_file: str | None = None
    """Tagged words to choose learning rate, alignment, layer and step on; default: a share of the sentences."""
    test_file: str | None = None
    """Tagged words to score at the end; default: the hub set's test split, else the validation words."""
    validation_split_percentage: float = 10
    """Share of the sentences to validate on if there is no validation file, in percent."""
    test_split_percentage: float = 0
    """Share of the sentences to test on if there are no test words, in percent."""
    task: tuple[str, ...] = ("pos_tags",)
    """Column of labels: ner_tags, pos_tags, chunk_tags, upos, xpos, a feature, or any other; several train together."""

    train_mode: Literal["probe", "lora", "full"] = "probe"  # type: ignore[assignment]
    """probe: a head on the frozen backbone's states, computed once; lora: an adapter too; full: every weight."""
    seeds: tuple[int, ...] = ()
    """Scores are a mean over these; default: five from seed on (probe), or seed alone."""
    learning_rate: tuple[float, ...] = ()  # type: ignore[assignment]
    """Highest learning rates to choose from, by the validation score; default: 1e-3 to 3e-2 (probe), 3e-4 (lora),
    3e-5 (full)."""
    classifier_dropout: float = 0.1
    """Dropout before the head, in training."""
    alignment: Alignment | None = None
    """State that a word is read from: at its own tokens, or one before each (as MNTP predicts); auto: the better one
    (probe); default: auto for probes, else same_token."""
    merge_subwords: bool = True
    """A word is the mean of its tokens; off: its first."""
    layer: str = "-1"
    """Layer whose states are used: -1 (the last, normalised), a number from 0 (the embeddings), all (a probe for each),
    or mix (a learnt average of all)."""
    max_seq_length: int | None = None
    """Tokens that are read at once, at most 512 by default; longer sentences go through in windows that overlap."""
    probe_batch_words: int | None = None
    """Words per training step of a probe; default: as many as make 200 steps per epoch, at most 1,024."""

    eval_strategy: Literal["no", "steps", "epoch"] = "epoch"
    """When to evaluate during training."""
    early_stopping_patience: int | None = 3
    """Stop after this many evaluations without a better score."""
    save_strategy: Literal["no", "steps", "epoch", "best"] = "epoch"
    """When to write a checkpoint (lora and full)."""
    save_total_limit: int | None = 1
    """Keep only this many checkpoints, besides the best."""
    as_llm2vec: bool = False
    """Lay the learning rate's schedule out as LLM2Vec does."""

    LLM2VEC_DEFAULTS: ClassVar[dict[str, Any]] = {"bidirectional": True, "alignment": "previous_token"}
    """What LLM2Vec's files mean where they say nothing."""
    IGNORED: ClassVar[dict[str, str]] = {
        "load_best_model_at_end": "the best step is kept where early_stopping_patience is set",
        "metric_for_best_model": "token accuracy decides, or F1 over chunks where labels mark some",
        "greater_is_better": "it is",
    }
    """Keys of TrainingArguments that are decided here."""

    OF_TRAINER: ClassVar[frozenset[str]] = frozenset(
        {
            "as_llm2vec", "bf16", "dataloader_num_workers", "eval_steps", "fp16", "gradient_accumulation_steps",
            "gradient_checkpointing", "logging_steps", "lora_alpha", "lora_dropout", "lora_r", "lora_target_modules",
            "max_grad_norm", "per_device_train_batch_size", "report_to", "save_merged", "save_steps", "save_strategy",
            "save_total_limit", "training",
        }
    )  # fmt: skip
    """Keys that say something to lora and full alone."""
    OF_OTHERS: ClassVar[frozenset[str]] = frozenset({"do_eval", "evaluate_step_zero", "per_device_eval_batch_size"})
    """Keys that say something to other stages alone: what is chosen by is always measured, in batches that fit."""

    evaluate: str | None = None
    """Score this trained RUN on test_file instead of training."""
    grid: str | None = None
    """Run every combination of this TOML file, and put them into one table."""
    cell: int | None = None
    """Of the grid: run this one alone, counted from 0, as a task of a job array does."""
    export_machamp: str | None = None
    """Write the data as MaChAmp reads it into this folder, instead of training."""

    def __post_init__(self) -> None:
        """Check values and fill in those that follow from others.

        Raises
        ------
        UserError
            One line that names the keys, the value and the remedy.
        """
        set_types(self)
        if not self.learning_rate:
            object.__setattr__(self, "learning_rate", LEARNING_RATES[self.train_mode])
        if not self.seeds:
            count = PROBE_SEEDS if self.train_mode == "probe" else 1
            object.__setattr__(self, "seeds", tuple(range(self.seed, self.seed + count)))
        if self.alignment is None:
            object.__setattr__(self, "alignment", "auto" if self.train_mode == "probe" else "same_token")
        if self.eval_strategy == "no":
            object.__setattr__(self, "early_stopping_patience", None)
        self.check_training()
        check_ranges(self, "seeds", least=0, most=MOST_SEED)
        check_ranges(self, "max_seq_length", least=8)
        check_ranges(self, "probe_batch_words", least=1)
        check_ranges(self, "classifier_dropout", least=0, below=1)
        check_ranges(self, "validation_split_percentage", above=0, below=100)
        check_ranges(self, "test_split_percentage", least=0, below=100 - self.validation_split_percentage)
        self._check_data()
        self._check_choices()

    def list_idle(self) -> list[str]:
        """List the keys that are set, and say nothing to this train_mode."""
        names = self.OF_OTHERS | (self.OF_TRAINER if self.train_mode == "probe" else {"probe_batch_words"})
        default = {field.name: field.default for field in fields(self)}
        set_ = [name for name in sorted(names - {"training"}) if getattr(self, name) != default[name]]
        return set_ + (sorted(self.training) if "training" in names else [])

    def _check_data(self) -> None:
        check_ranges(self, "cell", least=0)
        if self.cell is not None and not self.grid:
            raise UserError(f"cell = {self.cell} is a run of a grid: give --grid FILE")
        if self.grid:
            return
        if not (self.evaluate or self.export_machamp or self.model_name_or_path):
            raise UserError("model_name_or_path is missing: name a model folder, a run, or a hub id")
        given = self.train_file or self.validation_file or self.test_file
        if self.dataset_name and given:
            raise UserError(f"dataset_name = {self.dataset_name!r} and a file ({given!r}) are both set; keep one")
        if self.test_split_percentage and self.test_file:
            raise UserError(f"test_split_percentage = {self.test_split_percentage:g} and {self.test_file!r}: keep one")
        if self.evaluate and not (self.test_file or self.dataset_name):
            raise UserError(f"evaluate = {self.evaluate!r} needs words to score: --test_file FILE, or dataset_name")
        if not self.evaluate and not (self.train_file or self.dataset_name):
            raise UserError("no words: give train_file (CoNLL columns, CoNLL-U, JSONL) or dataset_name (a hub id)")
        if self.dataset_config_name and not self.dataset_name:
            raise UserError(f"dataset_config_name = {self.dataset_config_name!r} needs dataset_name")

    def _check_choices(self) -> None:
        check_distinct(self, "task", "seeds", some=True)
        if not (self.do_train or self.evaluate):
            raise UserError("do_train = False: give what was trained, --evaluate RUN")
        if self.layer not in ("all", "mix") and not self.layer.removeprefix("-").isdigit():
            raise UserError(f"layer = {self.layer!r} is no layer; give -1, a number from 0 on, all, or mix")
        if self.train_mode == "probe":
            if self.lr_scheduler_type not in PROBE_SCHEDULES:
                said = f"lr_scheduler_type = {self.lr_scheduler_type!r} is no schedule of probes"
                raise UserError(f"{said}; give {', '.join(PROBE_SCHEDULES[:-1])} or {PROBE_SCHEDULES[-1]}")
            return
        if self.alignment == "auto":
            raise UserError(
                f"alignment = 'auto' with train_mode = {self.train_mode!r}: only probes read both; choose same_token "
                "or previous_token"
            )
        if self.layer in ("all", "mix"):
            raise UserError(f"layer = {self.layer!r} is for train_mode = 'probe'; choose a number, or -1")
