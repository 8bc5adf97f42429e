"""The sound that may still be needed, of all that has come in."""

from __future__ import annotations

import numpy as np

LARGEST_SPARE = 1 << 21  # samples that a buffer may hold in vain


class SoundBuffer:
    """Samples at the places that they have in all of the sound: `start` is that of the first one that is held."""

    def __init__(self) -> None:
        self.start = 0
        self._buffer = np.empty(0, dtype=np.float32)
        self._first = 0  # of those that are held, in the buffer
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def end(self) -> int:
        """The place of the next sample."""
        return self.start + self._count

    @property
    def samples(self) -> np.ndarray:
        """(samples,) float32: all that are held. They are not copied, and change with the next call."""
        return self._buffer[self._first : self._first + self._count]

    def add(self, samples: np.ndarray) -> None:
        """samples : (samples,) float32"""
        needed = self._count + len(samples)
        if self._first + needed > len(self._buffer):
            self._move(2 * needed)
        self._buffer[self._first + self._count : self._first + needed] = samples
        self._count = needed

    def between(self, start: int, end: int) -> np.ndarray:
        """(samples,) float32, a copy of what is held between two places. Raises `IndexError` for what was let go of."""
        if start < self.start:
            raise IndexError(f"sample {start} is not held any more: the first that is has number {self.start}")
        return self.samples[start - self.start : max(0, end - self.start)].copy()

    def copy(self, start: int, end: int) -> SoundBuffer:
        """What is held of the sound between two places."""
        part = SoundBuffer()
        part.start = max(start, self.start)
        part.add(self.between(part.start, min(end, self.end)))
        return part

    def drop_before(self, place: int) -> None:
        """Let go of what lies before a place."""
        gone = min(max(0, place - self.start), self._count)
        self.start += gone
        self._first += gone
        self._count -= gone
        if len(self._buffer) - 2 * self._count > LARGEST_SPARE:
            self._move(2 * self._count)

    def skip(self, count: int) -> None:
        """So many samples are missing."""
        self.start += count

    def _move(self, size: int) -> None:
        """To a new buffer of that many samples."""
        buffer = np.empty(size, dtype=np.float32)
        buffer[: self._count] = self.samples
        self._buffer = buffer
        self._first = 0
