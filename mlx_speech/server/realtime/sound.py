"""Bytes of sound, block after block → samples at 16 kHz, as if all had come in one block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mlx_speech.resampling import Resampler
from mlx_speech.samples import as_float
from mlx_speech.server.realtime import g711

Coding = Literal["audio/pcm", "audio/pcmu", "audio/pcma"]
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

    The resampler looks ahead: the last milliseconds come with `end`.
    """

    def __init__(self, sound: Format) -> None:
        self.format = sound
        self._rest = b""  # the beginning of a sample whose other bytes are still to come
        self._resampler = Resampler(sound.rate)
        self._table: np.ndarray | None = None
        if sound.coding in TABLES:
            self._table = TABLES[sound.coding]()

    def decode(self, data: bytes) -> np.ndarray:
        """(samples,) float32 in [-1, 1] at 16 kHz: what is known of the sound with the next bytes."""
        data = self._rest + data
        whole = len(data) - len(data) % self.format.bytes_per_frame
        self._rest = data[whole:]
        return self._resampler.add(self._mono(data[:whole]))

    def end(self) -> np.ndarray:
        """(samples,) that were held back; what comes now is another piece of sound."""
        self._rest = b""
        return self._resampler.end()

    def _mono(self, data: bytes) -> np.ndarray:
        """Whole frames → (samples,) at the rate that they have."""
        if self._table is not None:
            samples = self._table[np.frombuffer(data, np.uint8)]
        else:
            samples = as_float(np.frombuffer(data, "<i2"))
        if self.format.channels == 1:
            return samples
        return samples.reshape(-1, self.format.channels).mean(axis=1, dtype=np.float32)
