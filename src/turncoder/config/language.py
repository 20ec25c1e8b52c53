"""What an evaluation of a language model is: which model, which tasks of lm-eval or of files, how much of them.

Importing this module imports neither torch nor transformers.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from turncoder.config.keys import MOST_SEED, check_distinct, check_ranges
from turncoder.config.values import set_types
from turncoder.errors import UserError

__all__ = ["LanguageConfig"]


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """LM Evaluation Harness on a causal language model: its tasks by name, and tasks from your own files.

    The same command again, with more tasks or without, scores those that are missing.
    """

    STAGE: ClassVar[str] = "language"
    MAY_CHANGE: ClassVar[frozenset[str]] = frozenset({"tasks", "task_file", "batch_size", "device"})
    """Keys that may differ where a run is taken up again, which then scores what is missing."""

    model_name_or_path: str | None = None
    """MODEL: a causal language model: a folder, a run, or a hub id."""
    model_revision: str = "main"
    """Branch, tag or commit of a hub id."""
    cache_dir: str | None = None
    """Where downloads from the hub are kept."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    """Precision of the model; default: float32."""
    attn_implementation: str = "sdpa"
    """sdpa, eager or flash_attention_2; where the last cannot run the first that loads."""

    tasks: tuple[str, ...] = ()
    """Names of lm-eval (lambada_openai, wikitext, blimp, ...), or headless: the zero-shot ones of Godey et al. 2024."""
    task_file: tuple[str, ...] = ()
    """Tasks of your own: last_word=FILE, perplexity=FILE, multiple_choice=FILE (question, choices, answer),
    minimal_pairs=FILE (good, bad)."""
    num_fewshot: int | None = None
    """Solved examples before each question; default: what the task says, else 0."""
    limit: float | None = None
    """Score at most this many texts of each task, for a first look; below 1: a share of them."""
    max_seq_length: int | None = None
    """Tokens that are read at once, context included; default: what the model's config.json says."""

    batch_size: int | None = None
    """Batch size; default: as many texts as have at most 1 GiB of logits, at most 32."""
    device: str | None = None
    """cpu, cuda, cuda:1, mps, ...; default: a GPU where there is one."""
    seed: int = 1234
    """Seed for drawing few-shot examples; the default is lm-eval's."""

    output_dir: str | None = None
    """Run folder (--output)."""
    overwrite: bool = False
    """Delete what --output holds and start anew."""
    dry_run: bool = False
    """Show the plan; write nothing."""

    def __post_init__(self) -> None:
        """Check what can be checked without opening anything.

        Raises
        ------
        UserError
            One line that names the keys, the value and the remedy.
        """
        set_types(self)
        if not self.model_name_or_path:
            raise UserError("model_name_or_path is missing: evaluate language MODEL --tasks NAME --output RUN")
        if not (self.tasks or self.task_file):
            raise UserError(
                "nothing to score: --tasks NAME (of lm-eval, such as lambada_openai) or --task_file KIND=FILE"
            )
        check_distinct(self, "tasks", "task_file")
        check_ranges(self, "batch_size", "max_seq_length", least=1)
        check_ranges(self, "num_fewshot", "seed", least=0)
        check_ranges(self, "seed", most=MOST_SEED)
        check_ranges(self, "limit", above=0)
        if self.limit is not None and self.limit > 1 and self.limit % 1:
            raise UserError(f"limit = {self.limit:g} is neither a number of texts nor, below 1, a share of them")
