"""The package's docstrings as Markdown: `name : meaning` becomes an item of a list, a drawn tree a block of code.

An extension of griffe, which reads the package for mkdocstrings.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

NAME = r"[\w*]+(?:\.\w+)*"
ITEM = re.compile(rf"^(?P<names>{NAME}(?:, {NAME})*) : (?P<meaning>.*)$")
OWN_PARAGRAPH = ("Raises ", "Returns ", "Yields ")
TREE = "├──"


def to_markdown(docstring: str) -> str:
    """A docstring in the package's style, as Markdown that shows the same lines."""
    paragraphs = [paragraph_to_markdown(text) for text in docstring.split("\n\n")]
    return "\n\n".join(paragraphs)


def paragraph_to_markdown(paragraph: str) -> str:
    if TREE in paragraph:
        return f"```text\n{paragraph}\n```"
    lines: list[str] = []
    inside_item = False
    for line in paragraph.splitlines():
        item = ITEM.match(line)
        if item is not None:
            if lines and not inside_item:
                lines.append("")
            lines.append(f"- **{item['names']}** – {item['meaning']}")
            inside_item = True
        elif inside_item and line.startswith(" "):
            lines.append(f"    {line.strip()}")
        else:
            if inside_item or line.startswith(OWN_PARAGRAPH):
                lines.append("")
            lines.append(line)
            inside_item = False
    return "\n".join(lines)


class PlainDocstrings(griffe.Extension):
    """Turns every docstring into Markdown as soon as it is read."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)
