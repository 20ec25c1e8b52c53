"""What the site does to pages that are written for the repository: README.md becomes its home page, links follow.

There is no public address to link to, so a link to a file outside of docs/ becomes its path, as code.
"""

import logging
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md"}
"""Files of the repository that the site shows, and their names there."""
LINK = re.compile(
    r"(?P<code>^```.*?^```|`+[^`\n]+`+)|!?\[(?P<said>[^\]]*)\]\((?P<path>[^)\s#]*)(?P<place>#[^)\s]*)?\)", re.M | re.S
)

logger = logging.getLogger(f"mkdocs.hooks.{Path(__file__).stem}")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that do not lie in docs/."""
    for source, target in PAGES.items():
        files.append(File.generated(config, target, abs_src_path=str(find_root(config) / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links to where their files are in the site."""
    shown = {target: source for source, target in PAGES.items()}
    source = shown.get(page.file.src_uri) or f"docs/{page.file.src_uri}"

    def follow(link: re.Match[str]) -> str:
        said, path = link["said"], link["path"]
        if link["code"] or not path or re.match(r"[a-z]+:", path):
            return link[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if not (find_root(config) / target).exists():
            logger.warning("%s links to %s, which is not there", source, target)
        if place := PAGES.get(target) or target.removeprefix("docs/") * target.startswith("docs/"):
            here = posixpath.dirname(page.file.src_uri) or "."
            return f"[{said}]({posixpath.relpath(place, here)}{link['place'] or ''})"
        return f"`{target}`" if said.strip("`/") == target else f"{said} (`{target}`)"

    return LINK.sub(follow, markdown)


def find_root(config: MkDocsConfig) -> Path:
    """Give the folder of the repository."""
    return Path(config.docs_dir).parent
