"""What a file of weights holds, and what a format has to say of itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mlx_speech.tensors import Tensor, reading

HEAD_BYTES = 1024  # of a file's beginning, which tell its format


@dataclass(frozen=True)
class Contents:
    """What was read, its tensors unread.

    tensors : by the names that the file has for them
    files : all files that were read
    extra : what a checkpoint holds beside weights (dims, hyper_parameters, pyannote.audio …)
    """

    tensors: dict[str, Tensor]
    files: list[Path]
    extra: dict[str, Any] = field(default_factory=dict)


class Format(Protocol):
    """What the file of a format in this folder has; a module is one."""

    @property
    def TITLE(self) -> str:
        """What it is, for messages, with the usual endings of its files: "PyTorch (.pt, .bin)"."""
        ...

    def recognises(self, path: Path) -> bool:
        """Whether the file at `path` is of this format, told by its content; no two formats may say so of one file.

        It need not be sound: what is wrong with it is for `read` to say.
        """
        ...

    def read(self, path: Path) -> Contents:
        """The contents. Raises `CorruptFile` or another `SourceError` naming the file and what is wrong with it."""
        ...


def head_of(path: Path) -> bytes:
    """The first bytes of a file, as many as tell its format."""
    with reading(path), path.open("rb") as file:
        return file.read(HEAD_BYTES)
