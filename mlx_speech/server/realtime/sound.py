"""Bytes of sound, block after block → samples at 16 kHz, as if all had come in one block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from mlx_speech.samples import SAMPLE_RATE, as_float
from mlx_speech.server.realtime import g711

if TYPE_CHECKING:
    from av import AudioResampler

Coding = Literal["audio/pcm", "audio/pcmu", "audio/pcma"]
SAMPLES_AT_ONCE = 1 << 16  # that are resampled
TABLES: dict[Coding, Callable[[], np.ndarray]] = {"audio/pcmu": g711.mu_law, "audio/pcma": g711.a_law}


@dataclass(frozen=True)
class Format:
    """What the bytes are.

    coding : "audio/pcm" is of 16 bits, the lower byte first
    rate : Hz
    channels : interleaved, and averaged here
    """

    coding: Coding = "audio/pcm"
    rate: int = 24_000
    channels: int = 1

    @property
    def bytes_per_frame(self) -> int:
        """Of one sample of every channel."""
        width = 1 if self.coding in TABLES else 2
        return width * self.channels


class Decoder:
    """Takes bytes, in blocks of any size, and gives samples.

    Resampling is that of `audio`, with its state kept from block to block, so that there are no seams. It looks ahead:
    the last milliseconds come with `end`.
    """

    def __init__(self, sound: Format) -> None:
        self.format = sound
        self._rest = b""  # the beginning of a sample whose other bytes are still to come
        self._resampler: AudioResampler | None = None
        self._table: np.ndarray | None = None
        if sound.coding in TABLES:
            self._table = TABLES[sound.coding]()

    def decode(self, data: bytes) -> np.ndarray:
        """(samples,) float32 in [-1, 1] at 16 kHz: what is known of the sound with the next bytes."""
        data = self._rest + data
        whole = len(data) - len(data) % self.format.bytes_per_frame
        self._rest = data[whole:]
        samples = self._mono(data[:whole])
        if self.format.rate == SAMPLE_RATE:
            return samples
        return self._resampled(samples)

    def end(self) -> np.ndarray:
        """(samples,) that were held back; what comes now is another piece of sound."""
        self._rest = b""
        if self._resampler is None:
            return np.zeros(0, np.float32)
        pieces = self._resampler.resample(None)
        self._resampler = None
        return _joined([piece.to_ndarray()[0] for piece in pieces])

    def _mono(self, data: bytes) -> np.ndarray:
        """Whole frames → (samples,) at the rate that they have."""
        if self._table is not None:
            samples = self._table[np.frombuffer(data, np.uint8)]
        else:
            samples = as_float(np.frombuffer(data, "<i2"))
        if self.format.channels == 1:
            return samples
        return samples.reshape(-1, self.format.channels).mean(axis=1, dtype=np.float32)

    def _resampled(self, samples: np.ndarray) -> np.ndarray:
        import av  # heavy, and not needed at 16 kHz

        if self._resampler is None:
            self._resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
        pieces: list[np.ndarray] = []
        for start in range(0, samples.size, SAMPLES_AT_ONCE):
            block = samples[None, start : start + SAMPLES_AT_ONCE]
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="mono")
            frame.sample_rate = self.format.rate
            for piece in self._resampler.resample(frame):
                pieces.append(piece.to_ndarray()[0])
        return _joined(pieces)


def _joined(pieces: list[np.ndarray]) -> np.ndarray:
    """(samples,) of all pieces, none of none; a filter may leave [-1, 1]."""
    if not pieces:
        return np.zeros(0, np.float32)
    return np.clip(np.concatenate(pieces), -1, 1)
