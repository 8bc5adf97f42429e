"""The sound that may still be needed, of all that has come in."""

from __future__ import annotations

import numpy as np

BYTES_PER_SAMPLE = 4


class SoundBuffer:
    """Samples at the places that they have in the session: `start` is that of the first one that is held."""

    def __init__(self) -> None:
        self.start = 0
        self._bytes = bytearray()

    def __len__(self) -> int:
        return len(self._bytes) // BYTES_PER_SAMPLE

    @property
    def end(self) -> int:
        """The place of the next sample."""
        return self.start + len(self)

    def add(self, samples: np.ndarray) -> None:
        """samples : (samples,) float32"""
        self._bytes += samples.astype(np.float32, copy=False).tobytes()

    def between(self, start: int, end: int) -> np.ndarray:
        """(samples,) float32, a copy of what is held between two places."""
        if start < self.start:
            raise IndexError(f"sample {start} is not held any more: the first that is has number {self.start}")
        first = (start - self.start) * BYTES_PER_SAMPLE
        last = (end - self.start) * BYTES_PER_SAMPLE
        return np.frombuffer(self._bytes[first:last], np.float32)

    def copy(self, start: int, end: int) -> SoundBuffer:
        """What is held of the sound between two places."""
        part = SoundBuffer()
        part.start = max(start, self.start)
        part.add(self.between(part.start, min(end, self.end)))
        return part

    def drop_before(self, place: int) -> None:
        """Let go of what lies before a place."""
        count = min(place - self.start, len(self))
        if count > 0:
            del self._bytes[: count * BYTES_PER_SAMPLE]
            self.start += count

    def skip(self, count: int) -> None:
        """So many samples are missing."""
        self.start += count
