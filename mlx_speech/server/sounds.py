"""Recordings on the server's disk: how long they say they are, and how they are opened under the client's name."""

from __future__ import annotations

import io
import math
from pathlib import Path

from mlx_speech import media
from mlx_speech.errors import AudioError


def stated_duration(path: Path) -> float:
    """Seconds of sound as a file says itself; 0 where it does not, or is none. Nothing is decoded."""
    try:
        with path.open("rb") as file, media.open_media(file, "the recording") as container:
            tracks = media.tracks_of(container, "the recording")
            ends = [media.stated_end(container, track.stream, file) for track in tracks]
            return max((end for end in ends if end is not None and math.isfinite(end)), default=0.0)
    except (AudioError, OSError):
        return 0.0  # whoever decodes it says what is wrong


def opened(path: Path, filename: str) -> io.FileIO:
    """A recording whose name in messages is the client's. It can be read on where the file is deleted meanwhile.

    Raises `FileNotFoundError`.
    """
    sound = io.FileIO(path, "rb")
    sound.name = filename  # pyright: ignore[reportAttributeAccessIssue]
    return sound
