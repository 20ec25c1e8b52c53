"""What opens a trained encoder: vectors of texts and words, adapters merged into one folder, hard negatives."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from turncoder.config.keys import OpenKeys, check_ranges
from turncoder.config.values import set_types
from turncoder.errors import UserError

__all__ = ["EncodeConfig", "MergeConfig", "MineConfig"]

OF_TEXTS = ("pooling", "prompt", "prompt_name", "chat_template", "llm2vec", "id_column", "processes")
OF_WORDS = ("layer", "alignment", "merge_subwords")


@dataclass(frozen=True, kw_only=True)
class EncodeConfig(OpenKeys):
    """Vectors for files of texts: OUT.npy, OUT.parquet, or a folder of shards, which can be resumed."""

    input_file: str | None = None
    """INPUT: a file of texts, a folder of those, a saved data set, or a hub id; for --words also a file of words."""
    dataset_config_name: str | None = None
    """Configuration of the hub data set."""
    split: str | None = None
    """Split of a data set; default: train."""
    output_dir: str | None = None
    """Output (--output): OUT.npy, OUT.parquet, or a folder."""
    text_column: str | None = None
    """Column that holds the text; default: "text", else the first."""
    id_column: str | None = None
    """Column of ids to keep beside the vectors, in .parquet or a folder."""
    prompt: str | None = None
    """Put before each text, and not pooled."""
    prompt_name: str | None = None
    """Name of a prompt that is stored in the encoder."""
    normalize: bool = False
    """Normalise vectors to length 1."""
    words: bool = False
    """One vector per word, with its characters, to OUT.parquet."""
    layer: int = -1
    """With --words: which states; 0 is the embeddings, -1 the last."""
    alignment: Literal["same_token", "previous_token"] = "same_token"
    """With --words: a word's own tokens, or those before them, which predict it in LLM2Vec's models."""
    merge_subwords: bool = True
    """With --words: the mean of the tokens of a word; off: the first of them."""
    batch_tokens: int | None = None
    """Tokens of a batch, padding included; default: found from the free memory."""
    shard_texts: int | None = None
    """Texts that are read, deduplicated, sorted and written together; default: 16384, fewer for many processes."""
    processes: int | None = None
    """Processes, each with its own copy of the model; default: one per GPU, or one."""
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
        set_types(self)
        check_ranges(self, "max_seq_length", "batch_tokens", "shard_texts", "processes", least=1)
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
        self._check_words()

    def _check_words(self) -> None:
        """Refuse what goes with texts only, or with words only."""
        default = {field.name: field.default for field in fields(EncodeConfig)}
        names = OF_TEXTS if self.words else OF_WORDS
        set_ = [name for name in names if getattr(self, name) != default[name]]
        if set_:
            remedy = (
                "it says how a text becomes one vector; leave it out" if self.words else "it goes with --words only"
            )
            raise UserError(f"{set_[0]} = {getattr(self, set_[0])!r}: {remedy}")
        if self.words and Path(str(self.output_dir)).suffix != ".parquet":
            raise UserError(f"--output {self.output_dir}: vectors of words go into one file; give OUT.parquet")


@dataclass(frozen=True, kw_only=True)
class MergeConfig(OpenKeys):
    """Merge a base model and adapters into one folder that sentence-transformers opens without turncoder."""

    output_dir: str | None = None
    """Output (--output)."""
    overwrite: bool = False
    """Replace what --output names."""
    dry_run: bool = False
    """Show the plan; write nothing."""

    def __post_init__(self) -> None:
        """Check what can be checked without opening anything; raises UserError."""
        set_types(self)
        if not self.output_dir:
            raise UserError("--output is missing: the folder that the merged model goes to")
        if not self.model_name_or_path:
            raise UserError(
                "merge needs MODEL: a folder or a hub id, with --adapters to put on it, or model_name_or_path in a "
                "config file"
            )


@dataclass(frozen=True, kw_only=True)
class MineConfig(OpenKeys):
    """Hard negatives for a file of pairs: texts that an encoder finds close to an anchor and that are not its positive.

    The options of sentence-transformers' mine_hard_negatives have its names.
    """

    pairs_file: str | None = None
    """PAIRS: a file of anchors and positives, or a hub id; its negatives become candidates."""
    dataset_config_name: str | None = None
    """Configuration of the hub data set."""
    columns: tuple[str, ...] = ()
    """Columns that hold anchor, positive and negatives, in this order; default: by their names."""
    corpus_file: str | None = None
    """Further candidates: a file of texts, a folder of those, a saved data set, or a hub id."""
    output_dir: str | None = None
    """Output (--output): OUT.jsonl or OUT.parquet."""
    query_prompt: str | None = None
    """Put before each anchor; default: the encoder's prompt "query"."""
    document_prompt: str | None = None
    """Put before each candidate; default: the encoder's prompt "document"."""
    num_negatives: int = 3
    """Negatives per row; a row that does not get all of them is left out."""
    range_min: int = 0
    """Skip this many of the nearest candidates."""
    range_max: int | None = None
    """Choose among this many of the nearest candidates; default: sentence-transformers' choice."""
    max_score: float | None = None
    """Skip candidates with a higher similarity than this."""
    min_score: float | None = None
    """Skip candidates with a lower similarity than this."""
    absolute_margin: float | None = None
    """Smallest difference between the similarities of positive and negative."""
    relative_margin: float | None = None
    """The same as a share of the positive's similarity."""
    sampling_strategy: Literal["top", "random"] = "top"
    """Take the nearest candidates, or draw from among them."""
    use_faiss: bool = False
    """Search with faiss, which must be installed."""
    batch_tokens: int | None = None
    """Tokens of a batch, padding included; default: found from the free memory."""
    device: str | None = None
    """cpu, cuda, cuda:1, mps, ...; default: a GPU where there is one."""
    seed: int = 42
    """Seed for sampling_strategy = random."""
    overwrite: bool = False
    """Replace what --output names."""
    dry_run: bool = False
    """Show the plan; write nothing."""

    def __post_init__(self) -> None:
        """Check what can be checked without opening anything; raises UserError."""
        set_types(self)
        if not self.pairs_file or not self.model_name_or_path:
            raise UserError("mine needs PAIRS and a model: mine PAIRS --model_name_or_path MODEL --output OUT.jsonl")
        if not self.output_dir or Path(self.output_dir).suffix not in (".jsonl", ".parquet"):
            raise UserError(f"--output {self.output_dir or 'is missing'}: give OUT.jsonl or OUT.parquet")
        if len(self.columns) == 1:
            raise UserError(f"columns = {list(self.columns)} must name at least two: anchor and positive")
        check_ranges(self, "num_negatives", "max_seq_length", "batch_tokens", least=1)
        check_ranges(self, "range_min", "seed", "absolute_margin", "relative_margin", least=0)
        check_ranges(self, "relative_margin", below=1)
        if self.range_max is not None and self.range_max < self.range_min + self.num_negatives:
            raise UserError(
                f"range_max = {self.range_max} must be at least {self.range_min + self.num_negatives}, range_min and "
                "num_negatives together"
            )
        if self.min_score is not None and self.max_score is not None and self.min_score >= self.max_score:
            raise UserError(f"min_score = {self.min_score:g} must be below max_score = {self.max_score:g}")
