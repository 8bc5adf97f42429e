"""safetensors: a header in JSON, preceded by its length in 8 bytes, and then the values."""

from __future__ import annotations

from pathlib import Path

from mlx_speech.convert.formats.contents import Contents, head_of
from mlx_speech.tensors import MAX_HEADER, read_safetensors

TITLE = "safetensors (.safetensors)"


def recognises(path: Path) -> bool:
    """Whether the file begins with a length that a header can have, and a JSON object after it."""
    head = head_of(path)
    length = int.from_bytes(head[:8], "little")
    return length <= MAX_HEADER and head[8:9] == b"{"


def read(path: Path) -> Contents:
    """The tensors of one file."""
    return Contents(read_safetensors(path), [path])
