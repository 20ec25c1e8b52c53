"""One frozen dataclass per stage: what a run is, from a TOML or JSON file and flags that win over it.

Names are those of LLM2Vec and of ``transformers.TrainingArguments`` wherever one exists, and a key that LLM2Vec has
keeps LLM2Vec's default. Importing this module imports neither torch nor transformers.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from turncoder.config import settings
from turncoder.config.files import write_toml
from turncoder.config.flags import read_flags
from turncoder.config.keys import ContrastKeys, CorpusKeys, TrainKeys, check_ranges
from turncoder.config.pretraining import PretrainConfig, VocabularyKeys, split_negatives
from turncoder.config.values import set_types
from turncoder.errors import UserError

__all__ = [
    "MAY_CHANGE",
    "MntpConfig",
    "PrepareConfig",
    "SimcseConfig",
    "SupervisedConfig",
    "TurnConfig",
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
class MntpConfig(TrainKeys, CorpusKeys):
    """Masked next token prediction: the training that makes a bidirectional decoder useful.

    Any other field of transformers' TrainingArguments: --training.NAME VALUE, or a key of the file.
    """

    STAGE: ClassVar[str] = "mntp"

    bidirectional: bool = True
    """Let attention look both ways; off only for a causal control run."""
    isolate_documents: bool = True
    """Documents in one block do not attend to each other."""

    mlm_probability: float = 0.15
    """Share of tokens that are predicted."""
    mask_token_type: str = "blank"
    """blank ("_"), eos, mask (the tokenizer's own), or a token of the vocabulary."""
    data_collator_type: Literal["default", "all_mask", "unmasked"] = "default"
    """default: 80 % mask, 10 % random, 10 % kept; all_mask: always the mask; unmasked: next token prediction on
    clean text, only with --no-bidirectional."""

    objective: Literal["cross_entropy", "cwt"] = "cross_entropy"
    """cross_entropy: over the whole vocabulary, exactly; cwt: over the rows of the head that are labels, weighted
    so as to stand for all (sampled softmax)."""
    negatives: str = "global"
    """With cwt: whose tokens those are: micro (of the forward pass), window (of the optimizer step), global (of all
    processes), or unigram:N (N draws from the corpus)."""
    train_head: bool = False
    """Also train the vocabulary head, which is not kept in the encoder."""
    vocabulary_budget_mb: int = 256
    """Largest tile of logits, in MB."""

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
        self.check_training()
        check_ranges(self, "mlm_probability", above=0, most=1)
        check_ranges(self, "vocabulary_budget_mb", least=1)
        split_negatives(self.negatives)
        if self.objective == "cwt" and self.train_head:
            raise UserError("objective = 'cwt' keeps the head as it is, and train_head is on; keep one of the two")
        if self.data_collator_type == "unmasked" and self.bidirectional:
            raise UserError(
                "data_collator_type = 'unmasked' lets a bidirectional model read its answers; add --no-bidirectional"
            )


@dataclass(frozen=True, kw_only=True)
class SimcseConfig(ContrastKeys):
    """Unsupervised SimCSE: a text is encoded twice under different dropout; other texts are the negatives.

    Any other field of transformers' TrainingArguments: --training.NAME VALUE, or a key of the file.
    """

    STAGE: ClassVar[str] = "simcse"

    text_column: str | None = None
    """Column that holds the text; default: "text", else the first."""
    split_sentences: bool = False
    """Cut documents into sentences; each becomes a row."""
    simcse_dropout: float = 0.1
    """Dropout of attention weights, where the architecture has it: what makes the two views differ, beside LoRA's."""
    prompt: str | None = None
    """Put before each text, not pooled, and stored in the model as its default prompt."""

    def __post_init__(self) -> None:
        """Check values; see `ContrastKeys`."""
        super().__post_init__()
        check_ranges(self, "simcse_dropout", least=0, below=1)


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig(ContrastKeys):
    """Supervised contrastive training on pairs, with in-batch and hard negatives.

    Any other field of transformers' TrainingArguments: --training.NAME VALUE, or a key of the file.
    """

    STAGE: ClassVar[str] = "supervised"

    columns: tuple[str, ...] = ()
    """Columns that hold anchor, positive and negatives, in this order; default: by their names (anchor or query,
    positive, negative, negative_1, ...)."""
    query_prompt: str | None = None
    """Put before each anchor; stored in the model as its prompt "query"."""
    document_prompt: str | None = None
    """Put before each positive and negative; stored in the model as its prompt "document"."""
    prompts_file: str | None = None
    """JSON: {"SET": {"query": "...", "document": "..."}}, for a folder of sets."""
    multi_dataset_batch_sampler: Literal["proportional", "round_robin"] = "proportional"
    """How sets are sampled: in proportion to their size, or equally until the smallest is used up."""
    teacher_name_or_path: str | None = None
    """Encoder whose similarities within a batch are distilled; it uses its own prompts."""
    distillation_weight: float = 1.0
    """Weight of the distillation loss."""

    def __post_init__(self) -> None:
        """Check values; see `ContrastKeys`."""
        super().__post_init__()
        check_ranges(self, "distillation_weight", above=0)
        if self.distillation_weight != 1 and not self.teacher_name_or_path:
            raise UserError(
                f"distillation_weight = {self.distillation_weight:g} weighs a teacher: give --teacher_name_or_path"
            )
        if len(self.columns) == 1:
            raise UserError(f"columns = {list(self.columns)} must name at least two: anchor and positive")


@dataclass(frozen=True, kw_only=True)
class TurnConfig:
    """Decoder to encoder in one command: MNTP, SimCSE, training on pairs if there are any, and scores of each stage.

    Sizes are derived from model and text, and printed. A key of a stage: --mntp.NAME VALUE, --simcse.NAME VALUE,
    --supervised.NAME VALUE, or a table of that name in the file.
    """

    STAGE: ClassVar[str] = "turn"
    TABLES: ClassVar[dict[str, type]] = {"mntp": MntpConfig, "simcse": SimcseConfig, "supervised": SupervisedConfig}
    """Whose keys the fields of these names hold."""

    model_name_or_path: str
    """MODEL: a decoder, as a folder or a hub id."""
    text: str
    """Text to train on: a file, a folder of files, or a hub id."""
    dataset_config_name: str | None = None
    """Configuration of the hub data set that --text names."""
    text_column: str | None = None
    """Column that holds the text; default: "text", else the first."""
    validation_text: str | None = None
    """Held-out text; default: 5 % of the documents of --text."""
    pairs: str | None = None
    """Pairs for supervised training: a file, or a folder of sets."""
    sts: str | None = None
    """Scored sentence pairs (sentence1, sentence2, score) to evaluate every stage on."""
    words: str | None = None
    """Tagged words for a probe on every stage: a file, a folder of files NAME-train, -dev, -test, or a hub id."""
    words_config_name: str | None = None
    """Configuration of the hub data set that --words names."""
    words_task: tuple[str, ...] = ()
    """Columns of labels; default: the first of xpos, upos, ner, pos, chunk that there is, or the only one."""
    output_dir: str | None = None
    """Folder for everything (--output). The same command again resumes."""
    steps_mntp: int | None = None
    """Optimizer steps of MNTP, and of its causal control; default: derived."""
    steps_simcse: int | None = None
    """Optimizer steps of SimCSE; default: derived."""
    steps_supervised: int | None = None
    """Optimizer steps on the pairs; default: derived."""
    max_seq_length: int | None = None
    """Tokens of a block of text; default: derived."""
    eval_documents: int = 1000
    """Held-out documents in the retrieval test (first sentence to rest), at most."""
    model_revision: str = "main"
    """Branch, tag or commit of a hub id."""
    cache_dir: str | None = None
    """Where downloads from the hub are kept."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
    seed: int = 42
    """Seed of every random choice."""
    mntp: dict[str, Any] = field(default_factory=dict)
    """Keys of the MNTP stage: --mntp.NAME VALUE."""
    simcse: dict[str, Any] = field(default_factory=dict)
    """Keys of the SimCSE stage: --simcse.NAME VALUE."""
    supervised: dict[str, Any] = field(default_factory=dict)
    """Keys of the supervised stage: --supervised.NAME VALUE."""
    overwrite: bool = False
    """Delete what --output holds and start anew."""
    dry_run: bool = False
    """Show the plan of every stage; write nothing."""

    def __post_init__(self) -> None:
        """Check what can be checked without opening anything; raises UserError."""
        set_types(self)
        check_ranges(self, "steps_mntp", "steps_simcse", "steps_supervised", least=1)
        check_ranges(self, "eval_documents", least=10)  # fewer show nothing
        check_ranges(self, "max_seq_length", least=8)
        if self.words_task and not self.words:
            raise UserError(f"words_task = {list(self.words_task)} needs tagged words: --words FILE")
        if self.words_config_name and not self.words:
            raise UserError(f"words_config_name = {self.words_config_name!r} needs tagged words: --words NAME")
        if self.steps_supervised and not self.pairs:
            raise UserError(f"steps_supervised = {self.steps_supervised} needs pairs to train on: --pairs FILE")


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(VocabularyKeys):
    """Corpus to packed blocks on disk, where training with the same keys finds them.

    A training config works here too: its other keys are ignored.
    """

    OF_HEADLESS: ClassVar[str] = "prepare"
    """What `turncoder.config.legacy_headless` takes files and flags of headless-lm for."""

    output_dir: str | None = None
    """Folder for the blocks (--output); default: the cache that training looks into."""

    PASSED_OVER: ClassVar[frozenset[str]] = frozenset(
        f.name for f in (*fields(MntpConfig), *fields(PretrainConfig))
    ) - {f.name for f in fields(VocabularyKeys)}
    """Keys of a training config that say nothing here, its run folder among them."""

    @property
    def pretrains(self) -> bool:
        """Whether the text is for pretraining, where documents end as ``append_eos`` says."""
        return self.kind is not None or self.append_eos is not None or not self.model_name_or_path

    def check_model(self) -> None:
        """Refuse what names no tokenizer."""
        if not (self.tokenizer_name or self.train_tokenizer or self.model_name_or_path or self.config_name):
            raise UserError("no tokenizer: give tokenizer_name, or the model_name_or_path that it belongs to")


def load_config(cls: type[Config], path: str | Path | None = None, flags: list[str] | None = None) -> Config:
    """Read a config file and flags into a checked config; flags win, old names are translated with a notice each.

    Parameters
    ----------
    cls
        The stage's dataclass, such as `MntpConfig`.
    path
        TOML or JSON file; JSON may hold ``//`` comments and trailing commas.
    flags
        As typed: ``["--learning_rate", "1e-4", "--no-do-eval", "--training.optim", "adafactor"]``.

    Raises
    ------
    UserError
        A file that cannot be read, an unknown key (with the nearest name), a value of the wrong type or out of range.
    """
    keys, others = read_flags(cls, flags or [])
    if others:
        raise UserError(f"unexpected {others[0]!r}; flags look like --name value")
    return settings.load(cls, Path(path) if path is not None else None, keys)


def to_dict(config: Any) -> dict[str, Any]:
    """Give the resolved config as plain JSON types, without the actions ``overwrite`` and ``dry_run``."""
    values = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in ACTIONS}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def to_toml(config: Any) -> str:
    """Write the resolved config as TOML that `load_config` reads back to an equal one."""
    return write_toml(type(config), to_dict(config))


def differences(old: dict[str, Any], new: dict[str, Any], ignore: frozenset[str] = frozenset()) -> list[str]:
    """Name the keys in which two `to_dict` results differ, as ``"key: old -> new"``; keys in ``ignore`` are skipped."""
    names = [name for name in {**old, **new} if name not in ignore]
    missing = "(not set)"
    return [
        f"{name}: {old.get(name, missing)!r} -> {new.get(name, missing)!r}"
        for name in names
        if old.get(name, missing) != new.get(name, missing)
    ]
