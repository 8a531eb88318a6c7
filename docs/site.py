"""Adds the documents outside docs/ to the site, as pages of their own.

MkDocs calls these functions (`hooks` in mkdocs.yml). Documents link to each other by their paths in the repository, so that the
links work there, too; here they are rewritten for the site.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parents[1]

PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "bench/RESULTS.md": "results.md",
    "examples/README.md": "examples.md",
}
"""Path in the repository → page of the site."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    from mkdocs.structure.files import File

    for document, page in PAGES.items():
        text = (ROOT / document).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=with_site_links(text)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    return with_site_links(markdown)


def with_site_links(text: str) -> str:
    """`text` with links to the documents in PAGES rewritten to links to their pages."""
    for document, page in PAGES.items():
        for written in (document, f"../{document}"):
            text = text.replace(f"]({written}", f"]({page}")
    return text.replace("](docs/", "](").replace("](../docs/", "](")
