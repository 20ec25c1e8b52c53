"""The site holds every page, every command and every key, and asks nothing of another host."""

import dataclasses
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import turncoder
from turncoder.commands import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs" / "reference"


def list_nav(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    return [page for part in (entry.values() if isinstance(entry, dict) else entry) for page in list_nav(part)]


def test_every_page_is_in_the_navigation_once() -> None:
    nav = list_nav(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf8"))["nav"])
    pages = [str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")]
    assert sorted(nav) == sorted([*pages, "index.md", "changelog.md"])


def test_the_reference_has_every_command() -> None:
    found = re.findall(r'^::: (\S+)\n    options: \{heading: "(.*?)"', (REFERENCE / "commands.md").read_text(), re.M)
    found = [(name, heading) for name, heading in found if not name.endswith(".SlurmConfig")]  # a table of submit's
    wanted = [
        (f"{command.flags.__module__}.{command.flags.__qualname__}", f"{name} {command.takes}".strip())
        for name, command in COMMANDS.items()
    ]
    assert sorted(found) == sorted(wanted)


def test_the_reference_has_all_that_turncoder_offers() -> None:
    page = (REFERENCE / "python.md").read_text(encoding="utf8")
    for name in set(turncoder.__all__) - {"__version__"}:
        offered = getattr(turncoder, name)
        home = f"{inspect.unwrap(offered).__module__}.{name}" if name != "train" else "turncoder.train._Train.__call__"
        assert f"::: {home}\n" in page or f"][{home}]" in page, name
    assert "`turncoder.__version__`" in page


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as ``make site`` builds it; a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.slow
def test_every_key_is_shown(site: Path) -> None:
    page = (site / "reference" / "commands.html").read_text(encoding="utf8")
    for command in COMMANDS.values():
        home = f"{command.flags.__module__}.{command.flags.__qualname__}"
        missing = [field.name for field in dataclasses.fields(command.flags) if f'id="{home}.{field.name}"' not in page]
        assert missing == [], home


@pytest.mark.slow
def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    """Links are there to be followed; what a page loads by itself lies beside it."""
    loads = r"<(?:script|link|img|iframe|source)[^>]*?(?:src|href)=[\"']?((?:https?:)?//[^\"' >]+)"
    for page in site.rglob("*.html"):
        assert re.findall(loads, page.read_text(encoding="utf8")) == [], page.name
    for sheet in site.rglob("*.css"):
        assert re.findall(r"url\([\"']?(?:https?:)?//|@import", sheet.read_text(encoding="utf8")) == [], sheet.name


@pytest.mark.slow
def test_links_out_of_the_pages_are_paths(site: Path) -> None:
    home = (site / "index.html").read_text(encoding="utf8")
    assert 'href="how-to/turn.html"' in home and "<code>benchmarks/rungs.py</code>" in home
    tutorial = (site / "tutorials" / "headless.html").read_text(encoding="utf8")
    assert 'href="../index.html"' in tutorial and "<code>recipes/headless</code>" in tutorial
