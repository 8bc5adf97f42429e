"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import secrets
from functools import partial
from pathlib import Path

PRIVATE = 0o600
AS_FILES_ARE_MADE = 0o666  # less what the user's mask takes


def write_whole(path: Path, data: bytes, *, private: bool = False, workshop: Path | None = None) -> None:
    """Write a file under another name, and give it its own when it is whole. Raises `OSError`.

    private : only the user may read it
    workshop : a folder on the same disk, where the unfinished file lies; by default beside `path`
    """
    folder = path.parent if workshop is None else workshop
    unfinished = folder / f".{secrets.token_hex(8)}.part"
    opener = partial(os.open, mode=PRIVATE if private else AS_FILES_ARE_MADE)
    try:  # its name is known before it is there: an interruption leaves none behind at any moment
        with open(unfinished, "xb", opener=opener) as file:
            file.write(data)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
