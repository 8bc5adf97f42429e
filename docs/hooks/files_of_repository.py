"""Links to files of the repository, which are no pages, lose their link and keep their name: a hook of mkdocs.

The guides include parts of README.md and CONTRIBUTING.md, whose links are meant for the repository. A link that leads
to no file at all is left as it is: the build finds it, and stops.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from markdown import Extension, Markdown
from markdown.treeprocessors import Treeprocessor

ROOT = Path(__file__).parents[2]
BEHIND_INLINE = 10  # its priority: links are elements by then, and mkdocs, with 0, has not checked them yet


class _Unlink(Treeprocessor):
    def run(self, root: Element) -> None:
        for link in root.iter("a"):
            path = link.get("href", "").partition("#")[0]
            if path and (ROOT / path).exists():
                link.tag = "span"
                del link.attrib["href"]


class _OfRepository(Extension):
    def extendMarkdown(self, md: Markdown) -> None:
        md.treeprocessors.register(_Unlink(md), "files_of_repository", BEHIND_INLINE)


def on_config(config: Any) -> Any:
    """Add it to what makes HTML of Markdown."""
    config.markdown_extensions.append(_OfRepository())
    return config
