"""A chunk that is heard while the pause behind it lasts, before it is known to be complete.

If the pause lasts, its final is there at once; if somebody goes on speaking, what was heard is dropped.
"""

from __future__ import annotations

from mlx_speech import backend as backend  # isort: skip  (before MLX)

from collections import deque
from dataclasses import replace

import numpy as np

from mlx_speech.batches import Batches
from mlx_speech.loading import Models
from mlx_speech.recording import Recording
from mlx_speech.timing import choose_word_times
from mlx_speech.transcript import Chunk


class EarlyFinal:
    """At most one chunk at a time; it shares Whisper's batches with those that are complete."""

    def __init__(self, models: Models, batches: Batches) -> None:
        self._models = models
        self._batches = batches
        self._recording: Recording | None = None
        self._is_taken = False

    @property
    def chunk(self) -> Chunk | None:
        """The one that is heard, and may still grow."""
        if self._recording is None or self._is_taken:
            return None
        return self._recording.chunks[-1]

    def begin(self, recording: Recording, chunk: Chunk, samples: np.ndarray, batch_size: int) -> None:
        """Hear the chunk that comes next in a recording. samples : (samples,) of the chunk"""
        chunks = [*recording.chunks, chunk]
        # a recording of its own, so that nothing of it counts before it is taken; time is counted for both
        own = replace(recording, chunks=chunks, pending=0, encoded={}, segments=(), news=deque(), silences=[])
        choose_word_times(own, self._models)
        self._recording = own
        self._is_taken = False
        self._batches.add_chunk(own, len(chunks) - 1, samples, batch_size)

    def take(self, chunk: Chunk) -> bool:
        """Whether the chunk, which is complete, is the one that is heard; if so, `give` gives what comes of it."""
        if self.chunk is None:
            return False
        if self.chunk != chunk:
            self.drop()
            return False
        self._is_taken = True
        return True

    def give(self, recording: Recording) -> None:
        """Hand over to the recording what has come of the chunk that was taken, or what went wrong with it."""
        own = self._recording
        if own is None or not self._is_taken:
            return
        recording.error = recording.error or own.error  # which may be of another chunk
        if own.news:
            recording.news += own.news
            recording.silences += own.silences
            self._recording = None

    def drop(self) -> None:
        """It is not what was heard, or nobody wants it any more."""
        if self._recording is not None:
            self._batches.cancel(self._recording)
        self._recording = None
        self._is_taken = False
