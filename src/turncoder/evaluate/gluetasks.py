"""The tasks of GLUE, and two like them in many languages: where they lie, how their rows look, what is scored.

Wang et al. 2019, GLUE, arXiv 1804.07461; Conneau et al. 2018, XNLI, arXiv 1809.05053; Yang et al. 2019, PAWS-X, arXiv
1908.11828. Importing this module imports neither torch nor transformers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from turncoder.config.settings import nearest
from turncoder.errors import UserError

__all__ = ["GLUE", "POSITIVE", "TASKS", "GlueTask", "Job", "Part", "list_jobs", "name_task", "simplify_name"]

GLUE = ("cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli")
SENTENCES = (("sentence1",), ("sentence2",))
PREMISES = (("premise", "sentence1"), ("hypothesis", "sentence2", "hypo"))
ENGLISH = "en"
POSITIVE = frozenset({"1", "equivalent", "duplicate"})
"""What the class is called that F1 is of."""


@dataclass(frozen=True)
class GlueTask:
    """A task.

    Attributes
    ----------
    texts
        For each text of a row the names that its column has: on the hub, in GLUE's own files.
    label
        The names that the column of labels has.
    metrics
        What is scored; epochs are chosen by the first.
    hub
        Where it is on the hub.
    sets
        Parts that are scored apart.
    header
        Columns of a .tsv that does not name them.
    languages
        Those of its test sets; none: it has a development set alone, in English.
    """

    texts: tuple[tuple[str, ...], ...]
    label: tuple[str, ...] = ("label",)
    metrics: tuple[str, ...] = ("accuracy",)
    hub: str = "nyu-mll/glue"
    sets: tuple[str, ...] = ("",)
    header: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()


TASKS = {
    "cola": GlueTask((("sentence",),), metrics=("matthews",), header=("source", "label", "mark", "sentence")),
    "sst2": GlueTask((("sentence",),)),
    "mrpc": GlueTask(
        (("sentence1", "#1 String"), ("sentence2", "#2 String")), ("label", "Quality"), metrics=("accuracy", "f1")
    ),
    "qqp": GlueTask((("question1",), ("question2",)), ("label", "is_duplicate"), metrics=("accuracy", "f1")),
    "stsb": GlueTask(SENTENCES, ("label", "score"), metrics=("spearman", "pearson")),
    "mnli": GlueTask(PREMISES, ("label", "gold_label"), sets=("matched", "mismatched")),
    "qnli": GlueTask((("question",), ("sentence",))),
    "rte": GlueTask(SENTENCES),
    "wnli": GlueTask(SENTENCES),
    "xnli": GlueTask(
        PREMISES,
        ("label", "gold_label"),
        hub="facebook/xnli",
        header=("premise", "hypothesis", "label"),
        languages=("ar", "bg", "de", "el", "en", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh"),
    ),
    "pawsx": GlueTask(
        SENTENCES,
        hub="google-research-datasets/paws-x",
        header=("sentence1", "sentence2", "label"),
        languages=("de", "en", "es", "fr", "ja", "ko", "zh"),
    ),
}
"""By the names that the hub's GLUE has for them."""


@dataclass(frozen=True)
class Part:
    """One file of a task, or one split of its data set.

    Attributes
    ----------
    split
        train, dev or test.
    name
        What it is called beside that: matched, a language, or nothing.
    is_language
        Whether that is a language.
    """

    split: str
    name: str = ""
    is_language: bool = False

    @property
    def stem(self) -> str:
        """The name of the file, before its ending: dev, dev_matched, dev-ko."""
        return self.split + ("-" if self.is_language else "_") * bool(self.name) + self.name

    @property
    def hub_split(self) -> str:
        """The name of the split on the hub."""
        split = "validation" if self.split == "dev" else self.split
        return split if self.is_language or not self.name else f"{split}_{self.name}"


@dataclass(frozen=True)
class Job:
    """What a model is trained for: a task, or one language of it.

    Attributes
    ----------
    name
        Of the task, with the language where each is trained on: ``cola``, ``xnli``, ``xnli-bg``.
    task
        Its name in `TASKS`.
    train
        Trained on.
    dev
        What epochs are chosen on.
    scored
        What is scored, by name.
    """

    name: str
    task: str
    train: Part
    dev: tuple[Part, ...]
    scored: tuple[Part, ...]

    @property
    def parts(self) -> list[Part]:
        """All that is read."""
        return list(dict.fromkeys([self.train, *self.dev, *self.scored]))


def simplify_name(said: str) -> str:
    """Write the name of a task as `TASKS` does: ``SST-2`` is sst2."""
    return said.lower().replace("-", "").replace("_", "")


def name_task(said: str) -> str:
    """Give the name of a task however it is written (``SST-2``); raises UserError where there is none."""
    name = simplify_name(said)
    if name not in TASKS:
        raise UserError(f"tasks: no task {said!r}{nearest(name, list(TASKS))}; there are {', '.join(TASKS)}")
    return name


def list_jobs(name: str, languages: Sequence[str], *, translate_train: bool) -> list[Job]:
    """List what models are trained for a task.

    Parameters
    ----------
    name
        In `TASKS`.
    languages
        Those that are scored, where the task has several.
    translate_train
        Train a model on each language's own training set; else one, on English.
    """
    task = TASKS[name]
    if not task.languages:
        dev = tuple(Part("dev", one) for one in task.sets)
        return [Job(name, name, Part("train"), dev, dev)]
    scored = tuple(Part("test", one, True) for one in languages)
    groups = [(f"-{part.name}", part.name, (part,)) for part in scored] if translate_train else [("", ENGLISH, scored)]
    return [
        Job(f"{name}{ending}", name, Part("train", trained, True), (Part("dev", trained, True),), parts)
        for ending, trained, parts in groups
    ]
