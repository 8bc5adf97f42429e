"""Samples that are too many for the memory: in a temporary file that nobody sees, mapped into an ordinary array.

The array is read as any other, and holds no more memory than what was looked at since `let_go`. The file has no name
where the system allows that, and goes when the last array of it goes, or the process, whichever way it ends.
"""

from __future__ import annotations

import math
import mmap
import tempfile
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np

from mlx_speech.errors import AudioError

if TYPE_CHECKING:
    from typing_extensions import Self

SAMPLES_PER_PIECE = 1 << 20  # that are looked at between two times of letting go, 4 MB


class Collected:
    """Samples that come piece by piece: in memory while they are few, in a temporary file from then on.

    name : what messages call the recording
    most_in_memory : samples

    The end of a `with` block closes what `samples` has not taken.
    """

    def __init__(self, name: str, most_in_memory: float = math.inf) -> None:
        self._name = name
        self._most_in_memory = most_in_memory
        self._buffer = bytearray()  # grows by an eighth, in place: an hour needs little more than its samples
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()

    def append(self, samples: np.ndarray) -> None:
        """samples : (samples,) float32. Raises `AudioError` where the temporary folder has no room for them."""
        data = np.ascontiguousarray(samples).data.cast("B")
        if self._file is not None:
            self._write(self._file, data)
            return
        self._buffer += data
        if len(self._buffer) > self._most_in_memory * np.float32().nbytes:
            self._file = self._opened()
            self._write(self._file, memoryview(self._buffer))
            self._buffer = bytearray()

    def samples(self) -> np.ndarray:
        """All of them, (samples,) float32, which ends the collecting. Raises as `append`."""
        if self._file is None:
            return np.frombuffer(self._buffer, np.float32)
        try:
            with self._file as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise self._no_room(error) from error
        return np.ndarray(len(mapped) // np.float32().nbytes, np.float32, mapped)

    def _opened(self) -> BinaryIO:
        try:
            return cast(BinaryIO, tempfile.TemporaryFile(buffering=0))
        except OSError as error:
            raise self._no_room(error) from error

    def _write(self, file: BinaryIO, data: memoryview) -> None:
        """A full disk may take part of it first."""
        try:
            while data:
                data = data[file.write(data) :]
        except OSError as error:
            raise self._no_room(error) from error

    def _no_room(self, error: OSError) -> AudioError:
        problem = f"{self._name}: the temporary folder does not take its samples ({error.strerror or error})"
        return AudioError(f"{problem}: make room there, or name another folder as TMPDIR")


def collected(pieces: Iterable[np.ndarray], name: str, most_in_memory: float) -> np.ndarray:
    """Samples (samples,) that come piece by piece, as of `Collected`, whose errors it raises."""
    with Collected(name, most_in_memory) as whole:
        for piece in pieces:
            whole.append(piece)
        return whole.samples()


def in_file(samples: np.ndarray) -> bool:
    """Whether samples, or those that they are part of, are in a file."""
    return _mapping(samples) is not None


def let_go(samples: np.ndarray) -> None:
    """Take samples in a file out of memory until they are looked at again; nothing happens to others.

    Where the system cannot be told (Windows), it does so by itself when memory is short.
    """
    mapping = _mapping(samples)
    if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)


def pieces_of(samples: np.ndarray) -> Iterator[np.ndarray]:
    """Samples (samples,) or (channels, samples) one piece after the other, each of which is let go of behind it."""
    for start in range(0, samples.shape[-1], SAMPLES_PER_PIECE):
        yield samples[..., start : start + SAMPLES_PER_PIECE]
        let_go(samples)


def _mapping(samples: np.ndarray) -> mmap.mmap | None:
    """The file that an array is a view of."""
    base: object = samples
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, mmap.mmap) else None
