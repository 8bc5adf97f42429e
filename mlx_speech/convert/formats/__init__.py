"""Files of weights, as their frameworks write them: one reader each, chosen by what is in the file.

A new format is a file here that has what `contents.Format` says, and an entry in `FORMATS`.
"""

from __future__ import annotations

from pathlib import Path

from mlx_speech.convert.formats import ctranslate2, npz, pytorch, safetensors, shards
from mlx_speech.convert.formats.contents import Contents, Format, head_of
from mlx_speech.errors import SourceError, brief

FORMATS: tuple[Format, ...] = (safetensors, shards, pytorch, npz, ctranslate2)


def read(path: Path) -> Contents:
    """What the file of weights at `path` holds, its tensors unread. Its name and ending do not matter.

    Raises `SourceError` where its content is that of no known format, and what the format's reader raises.
    """
    for known in FORMATS:
        if known.recognises(path):
            return known.read(path)
    titles = ", ".join(known.TITLE for known in FORMATS)
    raise SourceError(f"{path}: {_seen(path)}, which no known kind of weights does; known are {titles}")


def _seen(path: Path) -> str:
    """What the beginning of a file looks like, in a few words."""
    head = head_of(path)[:16]
    return f"begins with {brief(head)}" if head else "is empty"
