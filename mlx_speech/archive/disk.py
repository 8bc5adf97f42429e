"""What is said where the folder of an archive cannot be written."""

from __future__ import annotations

from pathlib import Path

from mlx_speech.errors import OutputError

ADVICE = "make room there, or choose another folder"


def unwritable(path: Path, error: OSError) -> OutputError:
    """The system's word as an error for the user."""
    return OutputError(f"{path}: cannot be written ({error.strerror}): {ADVICE}")
