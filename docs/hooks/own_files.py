"""No page loads anything from another host: a hook of mkdocs, which stops the build where one would."""

from __future__ import annotations

import re
from typing import Any

from mkdocs.exceptions import PluginError

LOADS = re.compile(
    r'<(?:script|img|iframe|source)\b[^>]*\bsrc="https?:|<link\b[^>]*rel="(?:stylesheet|preconnect)"[^>]*https?:'
)


def on_post_page(output: str, *, page: Any, config: Any) -> str:
    """Look through a finished page. Raises `PluginError` where it loads something."""
    found = LOADS.search(output)
    if found is not None:
        raise PluginError(f"{page.file.src_uri} loads a file from elsewhere: {found.group()}…")
    return output
