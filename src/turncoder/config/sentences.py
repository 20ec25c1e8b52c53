"""What an evaluation of sentence vectors is: which encoder, which tasks of mteb or of files, which prompts.

Importing this module imports neither torch nor transformers.
"""

from dataclasses import dataclass
from typing import ClassVar

from turncoder.config.keys import MOST_SEED, OpenKeys, check_distinct, check_ranges
from turncoder.config.values import set_types
from turncoder.errors import UserError

__all__ = ["SentencesConfig"]


@dataclass(frozen=True, kw_only=True)
class SentencesConfig(OpenKeys):
    """mteb on any encoder: its tasks by name, tasks from your own files, and lexical baselines.

    The same command again, with more tasks or without, scores those that are missing.
    """

    STAGE: ClassVar[str] = "sentences"
    MAY_CHANGE: ClassVar[frozenset[str]] = frozenset({"tasks", "task_file", "batch_tokens", "device"})
    """Keys that may differ where a run is taken up again, which then scores what is missing."""

    tasks: tuple[str, ...] = ()
    """Names of mteb (STSBenchmark, SciFact, ...), or sets of them: smoke (minutes), lite (LLM2Vec's 15), full
    (MTEB(eng, v1)), llm2vec (its 67 with instructions), bg2vec (its nine)."""
    task_file: tuple[str, ...] = ()
    """Tasks of your own: sts=FILE, retrieval=FOLDER (BEIR), classification=FILE or TRAIN,TEST, clustering=FILE,
    pair_classification=FILE, bitext=FILE,FILE, triplets=FILE."""
    languages: tuple[str, ...] = ()
    """Languages of mteb's tasks, like bul; without tasks: all that mteb has in them, of bul Bg2Vec's nine."""
    prompt_file: str | None = None
    """JSON of prompts by task or type of task; llm2vec: LLM2Vec's instructions; default: the model's own prompts."""
    baselines: bool = True
    """Also score BM25, TF-IDF and the mean of the model's own input embeddings on the same data."""

    batch_tokens: int | None = None
    """Tokens of a batch, padding included; default: derived from the free memory."""
    device: str | None = None
    """cpu, cuda, cuda:1, mps, ...; default: a GPU where there is one."""
    seed: int = 42
    """Seed of the training examples of classifiers and of clustering; the default is mteb's."""

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
            raise UserError("model_name_or_path is missing: evaluate sentences MODEL --tasks NAME --output RUN")
        if not (self.tasks or self.task_file or self.languages):
            raise UserError(
                "nothing to score: --tasks NAME (of mteb, such as STSBenchmark), --languages CODE, or "
                "--task_file KIND=FILE"
            )
        check_distinct(self, "tasks", "task_file", "languages")
        check_ranges(self, "batch_tokens", "max_seq_length", least=1)
        check_ranges(self, "seed", least=0, most=MOST_SEED)
