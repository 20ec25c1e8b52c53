"""Files of words with labels, a sentence at a time: CoNLL-U, IOB2 with numbered words, and plain columns."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice
from pathlib import Path
from typing import Literal

from turncoder.data.labels import TagSight
from turncoder.data.records import decode, split_lines
from turncoder.errors import UserError

__all__ = ["OURS", "Layout", "Sentence", "find_layout", "name_columns", "read_sentences"]

OURS = ("text", "starts", "ends", "words")  # columns of what is read, which no labels may have
DOCSTART = "-DOCSTART-"
CONLLU_WIDTH = 10
NUMBERED_WIDTH = 3
MISC = 9
FEATS = 5
SNIFFED_LINES = 1000
MIXED = "lines with tabs and spaces mixed"
CHUNKS = frozenset(["NP", "VP", "PP", "ADJP", "ADVP", "SBAR", "PRT", "CONJP", "INTJ", "LST", "UCP"])  # of CoNLL-2000

COMMENT = re.compile(r"#\s*(?:[\w.:-]+\s*=|newdoc\b|newpar\b)")
GLOBAL_COLUMNS = re.compile(r"#\s*global\.columns\s*=\s*(.*)")
TEXT = re.compile(r"#\s*text\s*=\s?(.*)")
RANGE = re.compile(r"([0-9]+)-([0-9]+)")
EMPTY_NODE = re.compile(r"[0-9]+\.[0-9]+")


@dataclass
class Sentence:
    """Words of one sentence, as they stand in the file.

    Attributes
    ----------
    words
        Forms.
    labels
        A list for each column, a string for each word; "" where it has none.
    text
        As the file gives it.
    surfaces
        What the text is made of: (form, how many words it is, whether a space follows); empty: of the words.
    """

    words: list[str] = field(default_factory=list)
    labels: list[list[str]] = field(default_factory=list)
    text: str | None = None
    surfaces: list[tuple[str, int, bool]] = field(default_factory=list)

    def place(self) -> tuple[str, list[int], list[int], bool]:
        """Find the text, where in it (code points) each word starts and ends, and whether it is the file's own text.

        It is where the words, in their order, are all of it but white space; else they are joined. The words of a
        multiword token lie in it one after the other if that is how it is written; else each has the whole of it.
        """
        surfaces = self.surfaces or [(word, 1, True) for word in self.words]
        begins = None if self.text is None else _find(self.text, surfaces)
        text = self.text or ""
        if begins is None:
            forms = [f"{form} " if space else form for form, _, space in surfaces]
            text = "".join(forms).removesuffix(" " if surfaces[-1][2] else "")
            begins = list(accumulate(map(len, forms[:-1]), initial=0))
        starts: list[int] = []
        ends: list[int] = []
        for (form, count, _), at in zip(surfaces, begins, strict=True):
            inside = self.words[len(starts) : len(starts) + count]
            if "".join(inside) != form:
                starts += [at] * count
                ends += [at + len(form)] * count
                continue
            for word in inside:
                starts.append(at)
                at += len(word)
                ends.append(at)
        return text, starts, ends, self.text in (None, text)


def _find(text: str, surfaces: Sequence[tuple[str, int, bool]]) -> list[int] | None:
    """Find where the forms begin in a text that holds nothing else but white space; None where it does."""
    begins, at = [], 0
    for form, _, _ in surfaces:
        while not text.startswith(form, at):
            if not text[at : at + 1].isspace():
                return None
            at += 1
        begins.append(at)
        at += len(form)
    return None if text[at:].strip() else begins


@dataclass(frozen=True)
class Layout:
    """How a file is laid out.

    Attributes
    ----------
    kind
        "conllu"; "numbered": number, word, label, and whatever an annotator left; or "columns".
    tabs
        A tab separates, and words may hold spaces; else spaces and tabs do.
    width
        Fields of a line; of a numbered one, the fewest.
    word, labels
        Which fields hold the word and its labels.
    names, named
        Of the labels; whether the file says them, or they are numbers.
    """

    kind: Literal["conllu", "numbered", "columns"]
    tabs: bool
    width: int
    word: int
    labels: tuple[int, ...]
    names: tuple[str, ...]
    named: bool = True

    def fits(self, fields: Sequence[str]) -> bool:
        """Say whether a line has as many fields as it must."""
        return len(fields) == self.width or (self.kind == "numbered" and len(fields) > self.width)


def find_layout(path: Path) -> Layout:
    """Find out by the first sentence how a file is laid out.

    Raises
    ------
    UserError
        No words, or nothing beside them; a header that does not fit.
    """
    header: list[str] = []
    rows: list[str] = []
    for line in islice(split_lines(decode(path)), SNIFFED_LINES):
        if not line.strip(" \t"):
            if rows:
                break
        elif line.startswith("#") and not rows and (COMMENT.match(line) or ("\t" not in line and " " in line)):
            header.append(line)
        elif not line.startswith(DOCSTART):
            rows.append(line)
    if not rows:
        raise UserError(f"{path}: no words in it")
    tabs = "\t" in rows[0]
    width = len(_split(rows[0], tabs))
    counted = _counts(_split(row, False)[0] for row in rows)
    named = next((match[1].lower().split() for match in map(GLOBAL_COLUMNS.match, header) if match), None)
    if path.name.lower().removesuffix(".gz").endswith(".conllu") or (counted and width == CONLLU_WIDTH):
        return Layout("conllu", tabs, CONLLU_WIDTH, 1, (3, 4, FEATS), ("upos", "xpos", "feats"))
    if width == 1:
        raise UserError(f"{path}: {rows[0][:40]!r} is all that stands in a line; it needs a word and its labels")
    if named is not None:
        return _name_layout(path, tabs, width, named)
    if counted and width >= NUMBERED_WIDTH:
        return Layout("numbered", tabs, NUMBERED_WIDTH, 1, (2,), ("column_3",), named=False)
    places = tuple(range(1, width))
    return Layout("columns", tabs, width, 0, places, tuple(f"column_{place + 1}" for place in places), named=False)


def _counts(ids: Iterator[str]) -> bool:
    """Say whether the first fields of a sentence are the numbers of its words."""
    numbers = [one for one in ids if not RANGE.fullmatch(one) and not EMPTY_NODE.fullmatch(one)]
    return numbers == [str(number + 1) for number in range(len(numbers))]


def _name_layout(path: Path, tabs: bool, width: int, names: list[str]) -> Layout:
    labels = [name for name in names if name not in ("form", "id")]
    if taken := [name for name in labels if name in OURS or labels.count(name) > 1]:
        raise UserError(f"{path}: global.columns: {taken[0].upper()} is taken; give each column of labels its own name")
    if len(names) != width or "form" not in names:
        raise UserError(
            f"{path}: global.columns = {' '.join(names).upper()} does not fit; it names the {width} columns of the "
            "first line, and FORM is the word"
        )
    return Layout("columns", tabs, width, names.index("form"), tuple(map(names.index, labels)), tuple(labels))


def name_columns(sights: Sequence[TagSight], numbered: Sequence[str]) -> tuple[str, ...]:
    """Name the columns of labels by what is in them.

    As in CoNLL-2003: spans in the last one are ``ner`` and in the one before ``chunk`` (a single one is ``chunk`` where
    its types are those of CoNLL-2000); what stands before spans is ``pos``, and before that ``lemma``. A column alone
    that marks no spans is ``tags``; any other keeps its name, the number of its field from one on.
    """
    spans = 0
    while spans < len(sights) and sights[-1 - spans].marks_spans:
        spans += 1
    names = list(numbered)
    if len(sights) == 1 and not spans:
        return ("tags",)
    chunks = spans == 1 and bool(sights[-1].types) and sights[-1].types <= CHUNKS
    known = ("lemma", "pos", "chunk") if chunks else ("lemma", "pos", *("chunk", "ner")[-spans:])
    if 0 < spans < 3:
        kept = min(len(known), len(names))
        names[-kept:] = known[-kept:]
    return tuple(names)


def read_sentences(path: Path, layout: Layout, counts: Counter[str]) -> Iterator[Sentence]:
    """Yield the sentences of a file, gzipped or not; count what is skipped.

    Raises
    ------
    UserError
        A line that does not fit, named by its number; bytes that are not UTF-8.
    """
    parse = _parse_columns if layout.kind == "columns" else _parse_numbered
    block: list[str] = []
    number = 0
    for number, line in enumerate(split_lines(decode(path)), 1):
        if line.strip(" \t"):
            block.append(line)
        elif block:
            yield from parse(path, number - len(block), block, layout, counts)
            block = []
    if block:
        yield from parse(path, number + 1 - len(block), block, layout, counts)


def _parse_columns(
    path: Path, first: int, block: list[str], layout: Layout, counts: Counter[str]
) -> Iterator[Sentence]:
    text = None
    rows: list[list[str]] = []
    for number, line in enumerate(block, first):
        if line.startswith(DOCSTART):
            counts["documents"] += 1
        elif not rows and line[0] == "#" and _is_comment(line, layout):
            text = match[1] if (match := TEXT.match(line)) else text
        else:
            rows.append(_split_row(path, number, line, layout, counts))
    if rows:
        columns = list(zip(*rows, strict=True))
        yield Sentence(list(columns[layout.word]), [list(columns[place]) for place in layout.labels], text)


def _parse_numbered(
    path: Path, first: int, block: list[str], layout: Layout, counts: Counter[str]
) -> Iterator[Sentence]:
    sentence = Sentence(labels=[[] for _ in layout.labels])
    words, surfaces, labels = sentence.words, sentence.surfaces, sentence.labels
    conllu = layout.kind == "conllu"
    covered = 0
    for number, line in enumerate(block, first):
        if line[0] == "#":
            sentence.text = match[1] if (match := TEXT.match(line)) else sentence.text
            continue
        fields = _split_row(path, number, line, layout, counts)
        space = not (conllu and fields[MISC] != "_" and "SpaceAfter=No" in fields[MISC].split("|"))
        if fields[0] != str(len(words) + 1):
            if EMPTY_NODE.fullmatch(fields[0]):
                counts["empty nodes"] += 1
                continue
            span = RANGE.fullmatch(fields[0])
            if span is None or int(span[1]) != max(len(words), covered) + 1 or int(span[2]) < int(span[1]):
                raise UserError(
                    f"{path}, line {number}: {fields[0][:40]!r} stands where word {len(words) + 1} is due; words are "
                    "numbered from 1 in every sentence, with a blank line between sentences"
                )
            covered = int(span[2])
            counts["ranges"] += 1
            surfaces.append((fields[layout.word], covered - len(words), space))
            continue
        words.append(fields[layout.word])
        if len(words) > covered:
            surfaces.append((fields[layout.word], 1, space))
        for place, column in zip(layout.labels, labels, strict=True):
            label = fields[place]
            column.append("" if label == "_" and place != FEATS else label)
    if covered > len(words):
        raise UserError(f"{path}, line {first}: a multiword token here ends at word {covered} of {len(words)}")
    if words:
        yield sentence


def _is_comment(line: str, layout: Layout) -> bool:
    """Tell a comment from a word that begins with #, at the beginning of a sentence."""
    return COMMENT.match(line) is not None or not layout.fits(_split(line, layout.tabs))


def _split(line: str, tabs: bool) -> list[str]:
    """Split at tabs, or at spaces and tabs and nothing else: a word may be a control character."""
    return line.rstrip(" ").split("\t") if tabs else [part for part in line.replace("\t", " ").split(" ") if part]


def _split_row(path: Path, number: int, line: str, layout: Layout, counts: Counter[str]) -> list[str]:
    fields = _split(line, layout.tabs)
    if not layout.tabs:
        counts[MIXED] += "\t" in line
    elif not layout.fits(fields) and layout.fits(mixed := _split(line, False)):
        counts[MIXED] += 1
        return mixed
    if not layout.fits(fields):
        due = f"{'at least ' if layout.kind == 'numbered' else ''}{layout.width}"
        raise UserError(
            f"{path}, line {number}: expected {due} fields separated by {'tabs' if layout.tabs else 'spaces'}, found "
            f"{len(fields)} ({line[:40]!r})"
        )
    return fields
