"""The files that scores of word labels leave: predictions, and which labels are taken for which."""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from turncoder.disk import write_atomically
from turncoder.errors import UserError
from turncoder.evaluate.words import Tally

__all__ = ["find_confusions", "read_predictions", "write_confusion", "write_predictions"]

CONFUSIONS = 20
ESCAPES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}
PLAIN = {escaped: plain for plain, escaped in ESCAPES.items()}


def find_confusions(counted: Tally) -> list[tuple[str, str, int]]:
    """Give the most frequent mistakes: gold label, predicted label, words."""
    wrong = [(right, said, count) for (right, said), count in counted.confusion.items() if right != said]
    return sorted(wrong, key=lambda one: (-one[2], one[:2]))[:CONFUSIONS]


def write_confusion(counted: Tally, folder: Path) -> list[tuple[str, str, int]]:
    """Write ``confusion.csv`` (all labels; gold in rows) and ``confusion.png``, and give `find_confusions`."""
    from turncoder.report.plots import draw_confusion

    often: Counter[str] = Counter()
    for pair, count in counted.confusion.items():
        often.update(dict.fromkeys(pair, count))
    names = sorted(often, key=lambda name: (-often[name], name))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["gold", *names])
    writer.writerows([right, *(counted.confusion[right, said] for said in names)] for right in names)
    write_atomically(folder / "confusion.csv", text.getvalue())
    draw_confusion(names, counted.confusion, folder / "confusion.png")
    return find_confusions(counted)


def write_predictions(
    path: Path,
    words: Iterable[Sequence[str]],
    gold: Iterable[Sequence[str]],
    predicted: Iterable[Sequence[str]],
) -> None:
    r"""Write a line for each word (word, gold label, predicted label, tabs between), and an empty one after a sentence.

    Tab, line end and backslash in a word become ``\t``, ``\n``, ``\r`` and ``\\``.
    """
    table = str.maketrans(ESCAPES)
    lines: list[str] = []
    for columns in zip(words, gold, predicted, strict=True):
        lines += ["\t".join(cell.translate(table) for cell in cells) for cells in zip(*columns, strict=True)]
        lines.append("")
    write_atomically(path, "".join(line + "\n" for line in lines))


def read_predictions(path: Path) -> tuple[list[list[str]], list[list[str]], list[list[str]]]:
    """Read what `write_predictions` wrote: words, gold labels and predicted labels of each sentence.

    Raises
    ------
    UserError
        A line without three columns.
    """
    whole: tuple[list[list[str]], ...] = ([], [], [])
    sentence: tuple[list[str], ...] = ([], [], [])
    with path.open(encoding="utf8", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            cells = line.removesuffix("\n").split("\t")
            if cells == [""]:
                for column, part in zip(whole, sentence, strict=True):
                    column.append(part)
                sentence = ([], [], [])
            elif len(cells) == 3:
                for part, cell in zip(sentence, cells, strict=True):
                    part.append(re.sub(r"\\.", lambda found: PLAIN.get(found.group(), found.group()), cell))
            else:
                raise UserError(f"{path} line {number} has {len(cells)} columns, not word, gold and predicted label")
    if sentence[0]:
        raise UserError(f"{path} does not end with an empty line: it was cut off; run it again")
    return whole[0], whole[1], whole[2]
