"""What a pretraining is: which architecture or weights, which tokenizer, which loss.

Importing this module imports neither torch nor transformers.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, cast

from turncoder.config.keys import CorpusKeys, FitKeys, check_ranges
from turncoder.errors import UserError

__all__ = ["PretrainConfig", "Source", "VocabularyKeys", "split_negatives"]

Source = Literal["micro", "window", "global", "unigram"]

SMALLEST_VOCABULARY = 300


def split_negatives(negatives: str) -> tuple[Source, int]:
    """Split ``unigram:4096`` into its two parts; the others have no number. Raises UserError."""
    source, _, number = negatives.partition(":")
    if source == "unigram" and number.isdecimal() and int(number) > 0:
        return "unigram", int(number)
    for known in ("micro", "window", "global"):
        if negatives == known:
            return cast(Source, known), 0
    raise UserError(f"negatives = {negatives!r} must be micro, window, global, or unigram:N, such as unigram:4096")


@dataclass(frozen=True, kw_only=True)
class VocabularyKeys(CorpusKeys):
    """Which model is pretrained, and into which tokens its text is cut: shared by ``pretrain`` and ``prepare``."""

    kind: Literal["mlm", "clm"] | None = None
    """Of pretraining: clm or mlm; without it, the text for a model_name_or_path is for MNTP."""
    model_name_or_path: str | None = None  # type: ignore[assignment]
    """Weights to start from: a folder, a run, or a hub id."""
    config_name: str | None = None
    """Architecture to start from with random weights: a config.json, a folder, a hub id, or a model type (llama)."""
    train_tokenizer: Literal["bpe", "unigram"] | None = None
    """Train a tokenizer on the text: byte-level BPE, or a unigram model."""
    vocab_size: int | None = None
    """Tokens of the tokenizer that is trained; default: 16384."""
    append_eos: bool | None = None
    """Put the end-of-text token after each document; default: where the tokenizer puts nothing around a text."""

    def __post_init__(self) -> None:
        """Check values; see `CorpusKeys`."""
        super().__post_init__()
        check_ranges(self, "vocab_size", least=SMALLEST_VOCABULARY)
        if self.train_tokenizer and self.tokenizer_name:
            raise UserError(
                f"train_tokenizer = {self.train_tokenizer!r} and tokenizer_name = {self.tokenizer_name!r} are both "
                "set; keep one"
            )
        if self.vocab_size and not self.train_tokenizer:
            raise UserError(
                f"vocab_size = {self.vocab_size} is for a tokenizer that is trained: add --train_tokenizer bpe"
            )


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(FitKeys, VocabularyKeys):
    """Pretraining, masked or causal, headless (contrastive weight tying) or by cross-entropy.

    From a config (random weights) or from weights. Any other field of transformers' TrainingArguments:
    --training.NAME VALUE, or a key of the file.
    """

    STAGE: ClassVar[str] = "pretrain"
    OF_HEADLESS: ClassVar[str] = "pretrain"
    """What `turncoder.config.legacy_headless` takes files and flags of headless-lm for."""

    # what is trained
    kind: Literal["mlm", "clm"] = "clm"
    """clm: a decoder predicts the next token; mlm: an encoder predicts masked ones."""
    objective: Literal["cwt", "cross_entropy", "both"] = "cwt"
    """cwt: contrast with the embeddings of other targets (headless); cross_entropy: over the whole vocabulary."""
    config_overrides: dict[str, Any] = field(default_factory=dict)
    """Keys of the architecture's config to change: --config_overrides.hidden_size 256."""
    trains: Literal["all", "head", "embeddings"] = "all"
    """Which weights train: all, the vocabulary head alone, or the embeddings alone (after a change of vocabulary)."""

    # tokenizer
    swap_vocabulary: bool = False
    """Keep the body of model_name_or_path and give it the tokenizer's vocabulary, with new embeddings."""

    # the loss
    negatives: str = "global"
    """With cwt: whose targets a row is contrasted with: micro (of its forward pass), window (of the optimizer step),
    global (also of the other processes), or unigram:N (N draws from the corpus)."""
    temperature: float = 1.0
    """With cwt: temperature that logits are divided by."""
    tau: float | None = None
    """With cwt: share of log p that is subtracted from the logits in training; 1 is sampled softmax. Default: 0, as
    published; 1 from weights that were trained otherwise, since their logits hold log p already."""
    cwt_weight: float = 1.0
    """With both: weight of the contrast."""
    cross_entropy_weight: float = 1.0
    """With both: weight of the cross-entropy."""
    head_prior: bool = False
    """With cross_entropy: log p of the corpus is a fixed bias of the logits."""
    sparse_embeddings: bool = False
    """With cwt, on CPUs: the optimizer touches only the embeddings in use; a step costs the same at any size."""
    vocabulary_budget_mb: int = 256
    """Largest tile of logits, in MB."""

    # text
    mlm_probability: float = 0.15
    """With mlm: share of tokens that are predicted."""
    mask_share: float = 0.8
    """Of those that are predicted: share that the mask token stands for."""
    random_share: float = 0.1
    """Of those that are predicted: share that a random token stands for; the rest stays as it is."""
    mask_token_type: str = "mask"
    """With mlm: mask (the tokenizer's own), blank ("_"), eos, or a token of the vocabulary."""
    isolate_documents: bool = False
    """Documents in one block do not attend to each other."""

    # other defaults than those of LLM2Vec, which starts from trained weights
    learning_rate: float = 1e-3
    """Highest learning rate of the schedule."""
    lr_scheduler_type: str = "cosine"
    """Shape of the schedule: linear, cosine, constant, constant_with_warmup, warmup_stable_decay, ..."""
    warmup_steps: float = 0.02
    """Steps of warm-up; below 1: their share of all steps."""
    weight_decay: float = 0.1
    """AdamW's weight decay; none on biases and norms."""
    num_train_epochs: float = 1
    """Passes over the corpus, unless max_steps is set."""
    stop_after_n_steps: int | None = None
    """Stop here at the latest; none for no limit."""
    per_device_train_batch_size: int = 32
    """Rows per device and forward pass."""
    per_device_eval_batch_size: int = 32
    """Rows per device and forward pass in evaluation."""

    def __post_init__(self) -> None:
        """Check values; see `CorpusKeys`."""
        super().__post_init__()
        self.check_training()
        check_ranges(self, "mlm_probability", above=0, most=1)
        check_ranges(self, "vocabulary_budget_mb", least=1)
        check_ranges(self, "temperature", "cwt_weight", "cross_entropy_weight", above=0)
        check_ranges(self, "tau", least=0, most=1)
        check_ranges(self, "mask_share", "random_share", least=0, most=1)
        if self.mask_share + self.random_share > 1:
            raise UserError(
                f"mask_share = {self.mask_share:g} and random_share = {self.random_share:g} are more than 1 together"
            )
        if self.as_llm2vec:
            raise UserError("as_llm2vec: LLM2Vec does not pretrain, so there is no way of its own; drop the key")
        split_negatives(self.negatives)
        self._check_tokenizer()
        self._check_objective()

    def check_model(self) -> None:
        """Refuse what names no model, or two."""
        if self.model_name_or_path and self.config_name:
            raise UserError(
                f"model_name_or_path = {self.model_name_or_path!r} and config_name = {self.config_name!r} are both "
                "set: keep the first to go on with its weights, the second for random ones"
            )
        if not (self.model_name_or_path or self.config_name):
            raise UserError(
                "no model: give config_name (an architecture, with random weights) or model_name_or_path (weights)"
            )

    def _check_tokenizer(self) -> None:
        if self.swap_vocabulary and not self.model_name_or_path:
            raise UserError("swap_vocabulary keeps the body of trained weights: give model_name_or_path")
        if self.swap_vocabulary and not (self.tokenizer_name or self.train_tokenizer):
            raise UserError("swap_vocabulary needs the new tokenizer: give tokenizer_name, or train_tokenizer")
        if self.train_tokenizer and self.model_name_or_path and not self.swap_vocabulary:
            raise UserError(
                f"train_tokenizer: the weights of {self.model_name_or_path} know their own tokens; add "
                "--swap_vocabulary to keep the body and give it new embeddings"
            )

    def _check_objective(self) -> None:
        if self.sparse_embeddings and self.objective != "cwt":
            raise UserError(
                f"sparse_embeddings: objective = {self.objective!r} moves every embedding at every step; use cwt "
                "alone, or drop sparse_embeddings"
            )
        if self.sparse_embeddings and "optim" in self.training:
            raise UserError(
                f"sparse_embeddings has its own optimizer, and optim = {self.training['optim']!r} is set; keep one"
            )
        if self.sparse_embeddings and (self.bf16 or self.fp16):
            raise UserError("sparse_embeddings is for CPUs in float32; drop bf16 and fp16, or sparse_embeddings")
        if self.head_prior and self.objective != "cross_entropy":
            raise UserError(f"head_prior: objective = {self.objective!r} has its prior anyway; drop the key")
        if self.trains == "head" and self.objective == "cwt":
            raise UserError("trains = 'head' fits a head by cross-entropy: set objective = 'cross_entropy'")
