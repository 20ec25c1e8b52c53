"""A page of tables, pictures and text, written as one self-contained HTML file or as Markdown.

What a page holds is plain text until it is written, so that there is one place where it is escaped.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files

__all__ = ["GENERATOR", "Cell", "Code", "Fold", "Lines", "Page", "Picture", "Section", "Table", "write_html"]
__all__ += ["write_markdown"]

GENERATOR = "turncoder report"
"""What a page names as its maker, so that it may be written anew."""


@dataclass(frozen=True)
class Cell:
    """What stands in a table: ``best`` is marked, ``share`` (0 to 1) is how strongly the ground is coloured."""

    text: str
    best: bool = False
    share: float | None = None


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    numbers: bool = True


@dataclass(frozen=True)
class Picture:
    """A drawing: SVG that is safe to stand in HTML, what it shows in a sentence, and its caption."""

    svg: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Lines:
    """Paragraphs; or, as a list or as warnings, points."""

    lines: Sequence[str]
    kind: str = "text"


@dataclass(frozen=True)
class Code:
    """Text that is shown as it is."""

    text: str


@dataclass(frozen=True)
class Fold:
    """What opens on a click."""

    title: str
    parts: Sequence["Part"]


Part = Table | Picture | Lines | Code | Fold


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it; sections in it have headings of the next level."""

    title: str
    parts: Sequence[Part] = ()
    sections: Sequence["Section"] = ()


@dataclass(frozen=True)
class Page:
    """A title, what stands below it, and the sections."""

    title: str
    parts: Sequence[Part] = ()
    sections: Sequence[Section] = field(default_factory=list)


def write_html(page: Page) -> str:
    """Write a page as HTML that asks nothing of the network."""
    style = files("turncoder.resources").joinpath("report.css").read_text(encoding="utf8")
    shown = [section for section in page.sections if section.parts or section.sections]
    links = "".join(f'<li><a href="#part-{at}">{escape(one.title)}</a></li>' for at, one in enumerate(shown, 1))
    body = [f"<h1>{escape(page.title)}</h1>", *_write_parts(page.parts)]
    body.append(f'<nav aria-label="Parts of this page"><ul>{links}</ul></nav>')
    for at, section in enumerate(shown, 1):
        body.append(f'<section aria-labelledby="part-{at}">{_write_section(section, 2, f"part-{at}")}</section>')
    inner = "\n".join(body)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="generator" content="{GENERATOR}">\n<title>{escape(page.title)}</title>\n'
        f"<style>\n{style}</style>\n</head>\n<body>\n<main>\n{inner}\n</main>\n</body>\n</html>\n"
    )


def _write_section(section: Section, level: int, name: str = "") -> str:
    opened = f'<h{level} id="{name}">' if name else f"<h{level}>"
    lines = [f"{opened}{escape(section.title)}</h{level}>", *_write_parts(section.parts)]
    lines += [_write_section(one, level + 1) for one in section.sections]
    return "\n".join(lines)


def _write_parts(parts: Iterable[Part]) -> list[str]:
    """Write parts; pictures that follow each other stand side by side where there is room."""
    lines: list[str] = []
    together: list[str] = []
    for part in [*parts, None]:
        if isinstance(part, Picture):
            together.append(_write_picture(part))
            continue
        if together:
            lines.append(f'<div class="pictures">\n{"".join(together)}</div>')
            together = []
        if part is not None:
            lines.append(_write_part(part))
    return lines


def _write_picture(picture: Picture) -> str:
    caption = f"<figcaption>{escape(picture.caption)}</figcaption>"
    return f'<figure>\n<div role="img" aria-label="{escape(picture.alt)}">{picture.svg}</div>\n{caption}\n</figure>\n'


def _write_part(part: Part) -> str:
    if isinstance(part, Table):
        return _write_table(part)
    if isinstance(part, Fold):
        inner = "\n".join(_write_parts(part.parts))
        return f"<details>\n<summary>{escape(part.title)}</summary>\n{inner}\n</details>"
    if isinstance(part, Code):
        return f'<pre tabindex="0"><code>{escape(part.text)}</code></pre>'
    assert isinstance(part, Lines)
    if part.kind == "text":
        return "\n".join(f"<p>{escape(line)}</p>" for line in part.lines)
    points = "".join(f"<li>{escape(line)}</li>" for line in part.lines)
    return f"<ul>{points}</ul>" if part.kind == "list" else f'<div class="warning" role="note"><ul>{points}</ul></div>'


def _write_table(table: Table) -> str:
    kind = "" if table.numbers else ' class="words"'
    title = escape(table.title)
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.columns)
    lines = [
        f'<p class="caption">{title}</p>',  # a <caption> would be as wide as the table, and scroll away with it
        f'<div class="table" role="region" tabindex="0" aria-label="{title}"><table{kind} aria-label="{title}">',
        f"<thead><tr>{head}</tr></thead>",
        "<tbody>",
    ]
    for row in table.rows:
        first, *others = (cell if isinstance(cell, Cell) else Cell(cell) for cell in row)
        cells = "".join(_write_cell(cell) for cell in others)
        lines.append(f'<tr><th scope="row">{escape(first.text)}</th>{cells}</tr>')
    return "\n".join([*lines, "</tbody></table></div>"])


def _write_cell(cell: Cell) -> str:
    style = "" if cell.share is None else f' style="--share:{100 * cell.share:.0f}%"'
    kind = "" if cell.share is None else ' class="strong share"' if cell.share > 0.6 else ' class="share"'
    text = f"<strong>{escape(cell.text)}</strong>" if cell.best else escape(cell.text)
    return f"<td{kind}{style}>{text}</td>"


def write_markdown(page: Page) -> str:
    """Write a page as GitHub's Markdown, without its pictures."""
    lines = [f"<!-- {GENERATOR} -->", f"# {_plain(page.title)}", ""]
    for part in page.parts:
        lines += _tell_part(part)
    for section in page.sections:
        lines += _tell_section(section, 2)
    return "\n".join(lines).rstrip("\n") + "\n"


def _tell_section(section: Section, level: int) -> list[str]:
    lines = [line for part in section.parts for line in _tell_part(part)]
    lines += [line for one in section.sections for line in _tell_section(one, level + 1)]
    return [f"{'#' * level} {_plain(section.title)}", "", *lines] if lines else []


def _tell_part(part: Part) -> list[str]:
    if isinstance(part, Table):
        rows = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in part.rows]
        rule = "|---|" + ("---:|" if part.numbers else "---|") * (len(part.columns) - 1)
        cells = [[f"**{_plain(cell.text)}**" if cell.best else _plain(cell.text) for cell in row] for row in rows]
        table = ["| " + " | ".join(row) + " |" for row in ([_plain(name) for name in part.columns], *cells)]
        return [f"{_plain(part.title)}:", "", table[0], rule, *table[1:], ""]
    if isinstance(part, Lines):
        mark = "" if part.kind == "text" else "- "
        told = [f"{mark}{_plain(line)}" for line in part.lines]
        return [*told, ""] if mark else [line for one in told for line in (one, "")]
    if isinstance(part, Code):
        fence = "`" * max(3, 1 + max((len(one) for one in re.findall("`+", part.text)), default=0))
        return [fence, part.text.rstrip("\n"), fence, ""]
    if isinstance(part, Fold):
        inner = [line for one in part.parts for line in _tell_part(one)]
        return ["<details>", f"<summary>{escape(part.title)}</summary>", "", *inner, "</details>", ""]
    return []


def _plain(text: str) -> str:
    """Keep text from being taken for markup."""
    return re.sub(r"([\\`*_|\[\]~#$])", r"\\\1", escape(" ".join(text.split()), quote=False))
