"""English prose that every Python installation carries: docstrings of the standard library and installed packages.

One pass over the source files, parsed and never imported, in an order that depends on nothing but their paths. Whole
files are either trained on or held out, and a paragraph that was seen once is dropped wherever it comes again, so
nothing that is scored was read in training.
"""

import ast
import hashlib
import inspect
import logging
import os
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Prose", "gather_prose", "is_held_out", "read_paragraphs", "source_roots"]

logger = logging.getLogger(__name__)

HELD_OUT_SHARE = 0.1
SKIPPED_FOLDERS = {"test", "tests", "testing", "site-packages", "dist-packages", "__pycache__", "_vendor", "lib2to3"}
LARGEST_FILE = 2_000_000  # bytes; what is larger was generated

# A paragraph is English prose when words like these make up a share of it that tables, code and lists never reach.
COMMON_WORDS = re.compile(
    r"\b(a|an|the|of|to|in|is|are|be|was|for|on|with|as|by|at|from|this|that|these|it|its|which|when|if|not|or|and|can|"
    r"will|may|must|should|has|have|all|any|each|only|than|then|you)\b"
)
MARKUP = [
    (re.compile(r":[\w:+-]+:`~?(?:[\w.]+\.)?([^`<]+?)(?:\s*<[^>]*>)?`"), r"\1"),  # :class:`~package.Name` -> Name
    (re.compile(r"`([^`<]+?)\s*<[^>]*>`_+"), r"\1"),  # `text <address>`_ -> text
    (re.compile(r"\[([^\]\[]+)\]\([^)]*\)"), r"\1"),  # [text](address) -> text
    (re.compile(r"\[(`[^`]+`)\]"), r"\1"),
    (re.compile(r"`+([^`]*)`+_*"), r"\1"),
    (re.compile(r"\*\*([^*]+)\*\*"), r"\1"),
    (re.compile(r"\s*::$"), ":"),
    (re.compile(r"\s+"), " "),
]
HEADING_RULE = re.compile(r"([-=~^*#+])\1{2,}")
SYMBOLS = re.compile(r"[\[\]{}=<>|\\_#*/@$^~%+]")
NOT_PROSE = re.compile(r">>>|https?:|\.\. |^\W|copyright|licen[cs]e|[^\x00-\x7f]", re.IGNORECASE)


@dataclass
class Prose:
    """Texts to train on and texts held out, one string each, and how they were counted."""

    train: list[str] = field(default_factory=list)
    held_out: list[str] = field(default_factory=list)
    train_words: int = 0


def source_roots() -> list[Path]:
    """Return the folders of the standard library and of the installed packages."""
    paths = sysconfig.get_paths()
    return list(dict.fromkeys(Path(paths[name]).resolve() for name in ("stdlib", "purelib", "platlib")))


def gather_prose(roots: Iterable[Path], *, words: int) -> Prose:
    """Collect docstrings under ``roots`` until the texts to train on hold ``words`` words, or the files end.

    Parameters
    ----------
    roots
        Folders of Python source; compiled, generated and test files are left out.
    words
        How many words of training text are enough. About a tenth of all files is held out on top.

    Returns
    -------
    Prose
        De-duplicated texts; the same installation gives the same texts in the same order.
    """
    prose, seen = Prose(), set[str]()
    for key, path in sorted((_draw(name), file) for name, file in _list_sources(roots)):
        held_out = is_held_out(key)
        for docstring in _read_docstrings(path):
            paragraphs = [p for p in read_paragraphs(docstring) if _is_new(p, seen)]
            if sum(len(p.split()) for p in paragraphs) < 8:
                continue
            text = " ".join(paragraphs)
            (prose.held_out if held_out else prose.train).append(text)
            prose.train_words += 0 if held_out else len(text.split())
        if prose.train_words >= words:
            break
    return prose


def is_held_out(key: str) -> bool:
    """Say whether what ``key`` stands for is held out: a tenth of all keys, and always the same ones."""
    return int(_draw(key)[:8], 16) < HELD_OUT_SHARE * 16**8


def read_paragraphs(docstring: str) -> list[str]:
    """Return the paragraphs of a docstring that are prose, on one line each, with their markup removed.

    A paragraph is a run of lines at one indentation, so the descriptions in a table of parameters count and its names
    and types do not. Doctests, code, field lists, headings and whatever is not whole English sentences are left out.
    """
    paragraphs = []
    for lines in _split_runs(inspect.cleandoc(docstring).splitlines()):
        text = " ".join(lines)
        for pattern, replacement in MARKUP:
            text = pattern.sub(replacement, text)
        text = text.strip()
        if _is_prose(text):
            paragraphs.append(text)
    return paragraphs


def _split_runs(lines: list[str]) -> Iterator[list[str]]:
    """Yield runs of lines at one indentation, stripped; blank lines and the rules under headings end a run."""
    run: list[str] = []
    indent = 0
    for line in [*lines, ""]:
        words = line.strip()
        depth = len(line) - len(line.lstrip())
        if run and (not words or depth != indent or HEADING_RULE.fullmatch(words)):
            if not HEADING_RULE.fullmatch(words):
                yield run
            run = []
        if words and not HEADING_RULE.fullmatch(words):
            run.append(words)
            indent = depth


def _is_prose(text: str) -> bool:
    words = text.split()
    if len(words) < 4 or not text[0].isupper() or text[-1] not in ".!?" or NOT_PROSE.search(text):
        return False
    if len(SYMBOLS.findall(text)) > 0.02 * len(text):
        return False
    return len(COMMON_WORDS.findall(text.lower())) >= 0.2 * len(words)


def _is_new(paragraph: str, seen: set[str]) -> bool:
    """Say whether no paragraph with these words came before; numbers and signs do not tell two apart."""
    key = re.sub(r"[^a-z]+", " ", paragraph.lower())
    if key in seen:
        return False
    seen.add(key)
    return True


def _draw(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def _list_sources(roots: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    """Yield (path relative to its root, file): what the order is drawn from does not depend on where Python lies."""
    for root in roots:
        for folder, folders, names in os.walk(root):
            folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS]
            for name in names:
                file = Path(folder, name)
                if not name.endswith(".py") or name.startswith("test_"):
                    continue
                if file.is_file() and file.stat().st_size <= LARGEST_FILE:  # not a link that leads nowhere
                    yield file.relative_to(root).as_posix(), file


def _read_docstrings(path: Path) -> Iterator[str]:
    try:
        source = path.read_bytes()
        if b'"""' not in source and b"'''" not in source:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError) as error:
        logger.debug("%s is left out: %s", path, error)
        return
    yield from _walk_docstrings(tree)


def _walk_docstrings(node: ast.AST) -> Iterator[str]:
    """Yield the docstring of a module, class or function and of those inside it; expressions are never entered."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        docstring = ast.get_docstring(node, clean=False)
        if docstring:
            yield docstring
    for block in ("body", "orelse", "finalbody"):
        for child in getattr(node, block, ()):
            yield from _walk_docstrings(child)
