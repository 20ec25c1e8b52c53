"""Labels of words that raw text gives for free: how a word is written, and which mark follows it.

Words are written lower-cased and without the marks, so that a model has to tell both from the words alone.
"""
# ruff: noqa: RUF001

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from turncoder.disk import write_atomically
from turncoder.quickstart.prose import Prose

__all__ = ["COLUMNS", "label_words", "write_tagged"]

COLUMNS = ("case", "punct")
WORD = re.compile(r"\w+(?:[-'’.]\w+)*")
MARK = re.compile(r"[.,;:?!…؟،؛।۔。，、；：？！]")
PASSAGE = 24  # words


def label_words(text: str) -> list[tuple[str, str, str]]:
    """Take a text apart into words with their labels.

    Returns
    -------
    list of tuple
        The word, lower-cased; ``lower``, ``Capitalised`` (a capital alone too), ``UPPER`` or ``mixed``; the first mark
        between it and the next word, or ``none``.
    """
    words = [match.span() for match in WORD.finditer(text)]
    begins = [start for start, _ in words][1:] + [len(text)] * bool(words)
    rows = []
    for (start, end), following in zip(words, begins, strict=True):
        mark = MARK.search(text, end, following)
        rows.append((text[start:end].lower(), _name_case(text[start:end]), mark[0] if mark else "none"))
    return rows


def _name_case(word: str) -> str:
    if word == word.lower():
        return "lower"
    if word[1:] == word[1:].lower():
        return "Capitalised"
    return "UPPER" if word == word.upper() else "mixed"


def write_tagged(prose: Prose, folder: Path, passages: int) -> None:
    """Write passages as CoNLL columns to ``train.conll``, ``dev.conll`` and ``test.conll``, unless they are there.

    Parameters
    ----------
    prose
        Probes train on what was trained on; held-out texts, in turn, are chosen on and scored.
    folder
        Of the three files.
    passages
        To train on, of 24 words; a third as many are chosen on, and half as many scored.
    """
    if (folder / "test.conll").exists():  # written last
        return
    folder.mkdir(parents=True, exist_ok=True)
    held_out = [text for text in prose.held_out if len(label_words(text)) > 1]
    for name, texts, count in (
        ("train", prose.train, passages),
        ("dev", held_out[::2], passages // 3),
        ("test", held_out[1::2], passages // 2),
    ):
        found = list(_cut(texts))
        chosen = found[:: max(1, len(found) // max(1, count))][:count]
        lines = [f"# global.columns = {' '.join(('FORM', *COLUMNS))}"]
        lines += ["\n".join(["\t".join(row) for row in passage] + [""]) for passage in chosen]
        write_atomically(folder / f"{name}.conll", "\n".join(lines) + "\n")


def _cut(texts: Iterable[str]) -> Iterator[list[tuple[str, str, str]]]:
    """Cut texts into passages wherever they are long enough, so that their end says nothing of a full stop.

    For the same reason the last word of a text is left out.
    """
    for text in texts:
        rows = label_words(text)[:-1]
        yield from (rows[start : start + PASSAGE] for start in range(0, len(rows), PASSAGE))
