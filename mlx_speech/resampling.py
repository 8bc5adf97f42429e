"""Samples of any rate that come in blocks → 16 kHz, without seams."""

from __future__ import annotations

import numpy as np

from mlx_speech.samples import SAMPLE_RATE

SAMPLES_AT_ONCE = 1 << 16  # that go to the resampler


class Resampler:
    """libswresample, as of `audio`, with its state kept from block to block. It looks ahead: the last milliseconds come
    with `end`.

    rate : of the samples that it takes, in Hz
    """

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self._resampler: object | None = None

    def add(self, samples: np.ndarray) -> np.ndarray:
        """(samples,) float32 in [-1, 1] → (samples,) at 16 kHz: what is known of the sound with the next ones."""
        if self.rate == SAMPLE_RATE:
            return samples
        import av  # heavy, and not needed at 16 kHz

        if not isinstance(self._resampler, av.AudioResampler):
            self._resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
        pieces: list[np.ndarray] = []
        for start in range(0, samples.size, SAMPLES_AT_ONCE):
            block = samples[None, start : start + SAMPLES_AT_ONCE]
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="mono")
            frame.sample_rate = self.rate
            for piece in self._resampler.resample(frame):
                pieces.append(piece.to_ndarray()[0])
        return _joined(pieces)

    def end(self) -> np.ndarray:
        """(samples,) that were held back; what comes now is another piece of sound."""
        import av

        if not isinstance(self._resampler, av.AudioResampler):
            return np.zeros(0, np.float32)
        pieces = self._resampler.resample(None)
        self._resampler = None
        return _joined([piece.to_ndarray()[0] for piece in pieces])


def _joined(pieces: list[np.ndarray]) -> np.ndarray:
    """(samples,) of all pieces, none of none; a filter may leave [-1, 1]."""
    if not pieces:
        return np.zeros(0, np.float32)
    return np.clip(np.concatenate(pieces), -1, 1)
