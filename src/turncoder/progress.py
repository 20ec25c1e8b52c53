"""One bar with speed and time left on a terminal; nothing elsewhere, where lines are logged instead."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["NOTICE_SECONDS", "open_bar"]

NOTICE_SECONDS = 30.0
"""How often a line is logged where there is no terminal."""


def open_bar() -> "Progress":
    """Open a bar on stderr; each task has a field ``speed``."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    name = TextColumn("{task.description}", markup=False)
    columns = (name, BarColumn(), TextColumn("{task.fields[speed]}"), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
