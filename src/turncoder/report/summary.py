"""Run folders to tables: on the terminal, and as a page in HTML or Markdown."""

import datetime
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from turncoder.config.stages import differences
from turncoder.config.values import expand_home
from turncoder.data.files import refuse_file
from turncoder.disk import write_atomically
from turncoder.errors import UserError, first_line
from turncoder.report.boards import Named
from turncoder.report.page import GENERATOR, Lines, Page, Part, Section, write_html, write_markdown
from turncoder.report.page import Table as Grid
from turncoder.report.runrows import HEADINGS, list_rows, open_files, read_baseline, read_run, read_runs, tell_score

__all__ = ["check_output", "leave_report", "read_baseline", "read_run", "read_runs", "show", "table"]
__all__ += ["write_report"]

logger = logging.getLogger("turncoder")

SIDE_BY_SIDE = 12  # configurations in a table
FOLDED = 16  # letters of a run's name, before it takes another line


def table(runs: list[dict[str, Any]], columns: Sequence[str] | None = None) -> Table:
    """Put rows of runs into one table, under the name of each run, with some columns or all; long names are folded."""
    grid = Table(show_edge=False, pad_edge=False, collapse_padding=True)
    columns = ["model", *(_list_columns(runs) if columns is None else columns)]
    for name in columns:
        if name == "model":
            grid.add_column(HEADINGS[name], overflow="fold")
        else:
            grid.add_column(HEADINGS.get(name, name), justify="right", no_wrap=True)
    for run in runs:
        grid.add_row(run["name"], style="bold")
        rows = run["rows"] or [{"model": f"no evaluation yet ({run['status']})"}]
        for number, row in enumerate(rows, 1):
            cells = [tell_score(name, row.get(name), row.get("std", {}).get(name)) for name in columns]
            grid.add_row(*cells, end_section=number == len(rows))
    return grid


def _list_columns(runs: list[dict[str, Any]]) -> list[str]:
    """List the scores that some row has."""
    filled = {name for run in runs for row in run["rows"] for name, value in row.items() if value is not None}
    rows = [row for run in runs if run["stage"] == "language" for row in run["rows"]]
    more = dict.fromkeys(name for row in rows for name in row["std"] if name not in HEADINGS)  # lm-eval has many
    return [name for name in HEADINGS if name != "model" and name in filled] + list(more)


def show(runs: list[dict[str, Any]], console: Console, *, as_json: bool = False) -> None:
    """Print the table, and what was not measured on the same data.

    Of two runs, also the keys in which their configs differ, and how sure differing scores are. Where the console is
    too narrow for one table, runs on words have their own, and then each run, and then some of its columns.
    """
    if as_json:
        console.print_json(data=runs)
        return
    from turncoder.report.scoresections import find_differing

    labelled = [run for run in runs if any("task" in row for row in run["rows"])]
    others = [run for run in runs if run not in labelled]
    for group in [runs] if _fits(runs, console) else [group for group in (others, labelled) if group]:
        for part in [group] if _fits(group, console) else [[run] for run in group]:
            for columns in _split_columns(part, console):
                console.print(table(part, columns))
    named = [Named(run["name"], open_files(Path(run["name"]))) for run in runs if run["stage"] != "machamp"]
    for warning in find_differing(named):
        console.print(f"warning: {warning}", highlight=False, markup=False)
    if len(runs) == 2 and all(run["config"] for run in runs):
        lines = differences(runs[0]["config"], runs[1]["config"], ignore=frozenset({"output_dir"}))
        console.print("configs: " + ("the same" if not lines else ""), highlight=False)
        for line in lines:
            console.print(f"  {line}", highlight=False, markup=False)
        compared = list(_compare_tasks(*runs))
        if compared:
            over = "best seed of each, paired bootstrap over sentences"
            told = over if runs[0]["stage"] == "words" else "paired bootstrap over items"
            console.print(f"second minus first, {told}:", highlight=False)
        for line in compared:
            console.print(f"  {line}", highlight=False, markup=False)


def _compare_tasks(first: dict[str, Any], second: dict[str, Any]) -> Iterator[str]:
    """Say for each task of two runs how sure the difference is, where both scored the same items."""
    from turncoder.report.comparison import compare_runs

    files = [open_files(Path(run["name"])) for run in (first, second)]
    for found in compare_runs(files[0], files[1]):
        yield found.tell()


def _split_columns(runs: list[dict[str, Any]], console: Console) -> Iterator[list[str]]:
    """Split the columns so that names are broken at spaces alone."""
    if not _fits(runs, console):
        runs = [
            {**run, "rows": [{**row, "model": max(str(row["model"]).split(), key=len)} for row in run["rows"]]}
            for run in runs
        ]
    columns = _list_columns(runs)
    while True:
        count = next((count for count in range(len(columns), 1, -1) if _fits(runs, console, columns[:count])), 1)
        yield columns[:count]
        if not (columns := columns[count:]):
            return


def _fits(runs: list[dict[str, Any]], console: Console, columns: Sequence[str] | None = None) -> bool:
    endless = console.options.update(max_width=sys.maxsize)
    folded = [{**run, "name": run["name"][:FOLDED]} for run in runs]
    return console.measure(table(folded, columns), options=endless).maximum <= console.width


def check_output(output: str | None) -> Path | None:
    """Check where a report is to be written; raises UserError."""
    if output is None:
        return None
    path = Path(expand_home(output))
    if path.suffix not in WRITERS:
        raise UserError(f"--output {output}: give REPORT.html or REPORT.md; without --output the tables are printed")
    if not path.exists():
        refuse_file(path)
    if path.is_dir() or (path.exists() and GENERATOR.encode() not in path.read_bytes()[:1000]):
        raise UserError(f"--output {output} exists and is no report of turncoder; name another file")
    return path


def write_report(folders: Sequence[Path], output: Path) -> None:
    """Write runs as one page, with pictures (.html) or for GitHub (.md).

    Parameters
    ----------
    folders
        Run folders.
    output
        The file; a report that is there is replaced.

    Raises
    ------
    UserError
        A folder is no run, a record is broken, or the output is something else.
    """
    check_output(str(output))
    text = WRITERS[output.suffix](build_page(folders))
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, text)


def leave_report(folder: Path) -> None:
    """Write ``report.html`` into a run folder; a run that is done is not undone by what goes wrong here."""
    try:
        write_report([folder], folder / "report.html")
    except Exception as error:
        logger.warning("%s is not written: %s", folder / "report.html", first_line(error))


def build_page(folders: Sequence[Path]) -> Page:
    """Build the page of some run folders; raises UserError where one is none."""
    from turncoder import __version__
    from turncoder.report.insidesections import build_inside
    from turncoder.report.runsections import build_course, build_records
    from turncoder.report.scoresections import build_scores, find_differing

    distinct: dict[Path, Path] = {}
    for folder in folders:
        distinct.setdefault(folder.resolve(), folder)
    kept = list(distinct.values())
    warnings = ["A folder is named more than once; it is shown once."] if len(kept) < len(folders) else []
    runs = [Named(name, open_files(folder)) for name, folder in zip(name_folders(kept), kept, strict=True)]
    for run in runs:
        list_rows(run.files)  # what is broken is said before anything is drawn
    warnings += [
        f"{run.name} is not done ({run.files.status}): its scores are those of its last evaluation, if it has any."
        for run in runs
        if run.files.status != "done"
    ]
    warnings += find_differing(runs)
    versions = {str((run.files.record.get("versions") or {}).get("turncoder", "unknown")) for run in runs}
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    made = f"Written by turncoder {__version__} on {now}; runs made by turncoder {', '.join(sorted(versions))}."
    parts: list[Part] = [Lines([made]), *([Lines(warnings, "warning")] if warnings else [])]
    title = (
        "Report: " + runs[0].name
        if len(runs) == 1
        else f"Report: {len(runs)} runs: {', '.join(run.name for run in runs[:4])}"
    )
    sections = [*build_scores(runs), build_course(runs), *build_inside(runs), *_differ(runs), build_records(runs)]
    return Page(title + (", ..." if len(runs) > 4 else ""), parts, sections)


def _differ(runs: Sequence[Named]) -> list[Section]:
    """Show for each stage the keys in which the configurations of its runs differ."""
    stages: dict[str, list[Named]] = {}
    for run in runs:
        stages.setdefault(run.files.stage, []).append(run)
    tables = []
    for stage, own in stages.items():
        configs = [run.files.config for run in own]
        keys = [key for key in dict.fromkeys(key for config in configs for key in config) if key != "output_dir"]
        rows = [
            [key, *(str(config.get(key, "(not set)")) for config in configs)]
            for key in keys
            if any(config.get(key) != configs[0].get(key) for config in configs)
        ]
        if rows and len(own) <= SIDE_BY_SIDE:
            title = f"{stage}: keys that are not the same"
            tables.append(Grid(title, ["key", *(run.name for run in own)], rows, False))
    return [Section("How the configurations differ", tables)]


def name_folders(folders: Sequence[Path]) -> list[str]:
    """Name folders by as many of the last parts of their paths as tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for count in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(one[-count:]) for one in parts]
        if len({*names}) == len(names):
            return names
    return [str(folder) for folder in folders]


WRITERS = {".html": write_html, ".md": write_markdown}
