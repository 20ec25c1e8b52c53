"""How a headless model gets its head: what `head add` and `head finetune` need to know.

Importing this module imports neither torch nor transformers.
"""

from dataclasses import dataclass
from typing import Literal

from turncoder.config.keys import check_ranges
from turncoder.config.pretraining import PretrainConfig
from turncoder.config.values import set_types
from turncoder.errors import UserError

__all__ = ["FinetuneConfig", "HeadConfig"]


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Give a headless model an ordinary head, with temperature and unigram prior in its weights.

    Exact where the output embedding has a bias or the last norm is a LayerNorm; under RMSNorm a head of its own is
    fitted to text.
    """

    model_name_or_path: str | None = None
    """MODEL: a run of pretrain, its model folder, or a hub id."""
    output_dir: str | None = None
    """Folder for the model (--output)."""
    untied: bool = False
    """The head becomes a weight of its own, even where it can stay the input embeddings."""
    prior: bool = True
    """Add the unigram prior; off (--no-prior): the embeddings alone, as the method was published."""
    train_file: str | None = None
    """Text that a head under RMSNorm is fitted to: a file or a folder; default: what the run was trained on."""
    dataset_name: str | None = None
    """The same from the hub, or a folder that datasets.save_to_disk wrote."""
    dataset_config_name: str | None = None
    """Configuration of the hub data set."""
    text_column: str | None = None
    """Column that holds the text; default: "text", else the first."""
    fit_steps: int = 100
    """Steps of that fit, of 2,048 tokens each; 0: only its least-squares start."""
    seed: int = 42
    """Seed of that fit."""
    model_revision: str = "main"
    """Branch, tag or commit of a hub id."""
    cache_dir: str | None = None
    """Where downloads from the hub are kept."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
    overwrite: bool = False
    """Replace what --output names."""
    dry_run: bool = False
    """Show the plan; write nothing."""

    def __post_init__(self) -> None:
        """Check what can be checked without opening anything; raises UserError."""
        set_types(self)
        if not self.model_name_or_path:
            raise UserError("head add needs a MODEL: head add RUN --output DIR")
        if not self.output_dir:
            raise UserError("--output is missing: name the folder that the model should be written to")
        if self.dataset_name and self.train_file:
            raise UserError(
                f"dataset_name = {self.dataset_name!r} and train_file = {self.train_file!r} are both set; keep one"
            )
        check_ranges(self, "fit_steps", "seed", least=0)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(PretrainConfig):
    """Train a headless model, or one that has its head, by cross-entropy: all of it, or its head alone (--probe).

    It is pretrain from weights with objective = cross_entropy and other defaults. Any other field of transformers'
    TrainingArguments: --training.NAME VALUE, or a key of the file.
    """

    probe: bool = False
    """Train the head alone, which must be untied (head add --untied)."""
    objective: Literal["cwt", "cross_entropy", "both"] = "cross_entropy"
    """cross_entropy; the others are pretrain's."""
    kind: Literal["mlm", "clm"] | None = None  # type: ignore[assignment]
    """clm: a decoder predicts the next token; mlm: an encoder predicts masked ones; default: what the model does."""
    learning_rate: float = 1e-4
    """Highest learning rate of the schedule."""

    def __post_init__(self) -> None:
        """Check values; see `turncoder.config.pretraining.PretrainConfig`."""
        if self.probe and self.trains == "embeddings":
            raise UserError("probe trains the head alone, and trains = 'embeddings' those alone: keep one")
        if self.probe:
            object.__setattr__(self, "trains", "head")
        super().__post_init__()

    def check_model(self) -> None:
        """Refuse what is not trained from weights, by cross-entropy."""
        if self.objective != "cross_entropy" or self.config_name:
            raise UserError(
                "head finetune trains weights by cross-entropy: give MODEL, drop objective and config_name; all else "
                "is turncoder pretrain"
            )
        if not self.model_name_or_path:
            raise UserError("head finetune needs a MODEL: head finetune RUN --train_file FILE --output DIR")
