"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_whole(path: Path, data: bytes, *, private: bool = False, workshop: Path | None = None) -> None:
    """Write a file under another name, and give it its own when it is whole. Raises `OSError`.

    private : only the user may read it
    workshop : a folder on the same disk, where the unfinished file lies; by default beside `path`
    """
    folder = path.parent if workshop is None else workshop
    with tempfile.NamedTemporaryFile("wb", dir=folder, delete=False) as file:
        try:
            file.write(data)
            file.flush()
            if not private:
                mask = os.umask(0)
                os.umask(mask)
                Path(file.name).chmod(0o666 & ~mask)  # as files are made; temporary ones are private
            Path(file.name).replace(path)
        finally:
            Path(file.name).unlink(missing_ok=True)
