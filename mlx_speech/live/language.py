"""The language of a live session, where it is not given: told of what is heard first, as soon as it is certain."""

from __future__ import annotations

from mlx_speech import backend as backend  # isort: skip  (before MLX)

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from mlx_speech.loading import Models
from mlx_speech.samples import SAMPLE_RATE
from mlx_speech.stages.whisper import batched
from mlx_speech.transcript import Chunk

# A language is that of the session as soon as one of these holds.
CERTAIN = 0.9  # its probability
LIKELY = 0.5  # its probability, with so much speech:
SECONDS_OF_LIKELY = 3.0
SECONDS_OF_SPEECH = 15.0
SECONDS_OF_WAITING = 3.0  # since the first chunk was complete


class Guess:
    """What the first chunks seem to be in.

    among : codes with commas between them, the only languages that it may be
    encoded : what was encoded of the chunks to tell, by their place
    """

    def __init__(self, models: Models, among: str | None) -> None:
        self.code = ""
        self.probability = 0.0
        self.encoded: dict[int, mx.array] = {}
        self._models = models
        self._among = among
        self._chunks = 0  # that were heard
        self._speech = 0.0  # seconds of it in them

    def hear(self, chunks: Sequence[Chunk], sounds: Sequence[np.ndarray]) -> None:
        """All chunks so far, and (samples,) of each. Nothing is done where none is new."""
        if len(chunks) == self._chunks:
            return
        self._chunks = len(chunks)
        self._speech = sum(region.duration for chunk in chunks for region in chunk.regions)
        ends = np.cumsum([sound.size for sound in sounds]) / SAMPLE_RATE
        joined = [Chunk(end - sound.size / SAMPLE_RATE, end) for sound, end in zip(sounds, ends, strict=True)]
        encoded: dict[Chunk, mx.array] = {}
        whisper = self._models.whisper()
        self.code, self.probability = batched.detect_language(
            np.concatenate(sounds), joined, whisper.model, whisper.tokenizer, among=self._among, keep=encoded
        )
        self.encoded = {place: encoded[chunk] for place, chunk in enumerate(joined) if chunk in encoded}

    def is_certain(self, waited: float) -> bool:
        """Whether it is to be taken. waited : seconds since the first chunk was complete"""
        is_likely = self.probability >= LIKELY and self._speech >= SECONDS_OF_LIKELY
        has_heard_enough = self._speech >= SECONDS_OF_SPEECH or waited >= SECONDS_OF_WAITING
        return self.probability >= CERTAIN or is_likely or has_heard_enough
