"""Decoded frames of any kind → mono samples of one rate, which can be taken as they come."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import av
import numpy as np

from mlx_speech import channels
from mlx_speech.errors import AudioError

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.resampler import AudioResampler

RATES = range(2_000, 768_001)  # Hz; a lower rate would let a small file swell into hours
MAX_CHANNELS = 64
SAMPLES_AT_ONCE = 1 << 16  # of an array that are resampled, or of silence that are put in
BYTES_PER_SAMPLE = 4


class Sink:
    """Collects frames as mono samples of one rate, no more of them than `max_duration` allows.

    name : what messages call the recording
    sample_rate : of the result, in Hz; max_duration : in seconds
    """

    def __init__(self, name: str, sample_rate: int, max_duration: float) -> None:
        self.name = name
        self.sample_rate = sample_rate
        self.max_duration = max_duration
        self.pair = channels.Pair(sample_rate)
        self._taken = 0  # samples
        self._buffer = bytearray()  # grows by an eighth, in place: an hour needs little more than its samples
        self._resampler: AudioResampler | None = None
        self._input: tuple[str, str, int] | None = None  # what the resampler was made for
        self._weights: np.ndarray | None = None  # of its channels

    def add(self, frame: AudioFrame) -> None:
        """Samples behind those that are there."""
        frame_input = (frame.format.name, frame.layout.name, frame.sample_rate)
        if frame_input != self._input:  # the first frame, or a broadcast that changes on its way
            count = frame.layout.nb_channels
            if frame.sample_rate not in RATES or not 1 <= count <= MAX_CHANNELS:
                raise AudioError(f"{self.name}: {count} channels at {frame.sample_rate} Hz: is the file damaged?")
            self._flush()
            # Channels are mixed after resampling, in floats. They are asked for interleaved, since PyAV reads wild
            # memory where there are more than eight planes.
            self._resampler = av.AudioResampler(format="flt", layout=frame.layout, rate=self.sample_rate)
            self._weights = channels.weights(frame.layout)
            self._input = frame_input
        if self._resampler is not None:
            self._append(self._resampler.resample(frame))

    def fill(self, seconds: float) -> Iterator[None]:
        """Silence up to `seconds` from the start of the recording, which may be hours: with a pause behind each piece,
        in which it can be taken."""
        self._flush()
        missing = round(seconds * self.sample_rate) - self.count
        while missing > 0:
            count = min(missing, SAMPLES_AT_ONCE)
            self._add_mono(np.zeros(count, np.float32))
            self._check_length()
            missing -= count
            yield

    def samples(self) -> np.ndarray:
        """(samples,) float32, a view of what has been collected and not taken; ends the collecting."""
        self.finish()
        return np.frombuffer(self._buffer, np.float32)

    def finish(self) -> None:
        """Behind the last frame: collect what the resampler and the current second hold back."""
        self._flush()
        self._buffer += self.pair.end().tobytes()

    def take(self, count: int) -> np.ndarray:
        """Remove the first `count` samples that are ready, or fewer; returns a copy of them, (samples,) float32."""
        size = count * BYTES_PER_SAMPLE
        samples = np.frombuffer(self._buffer[:size], np.float32)
        del self._buffer[:size]
        self._taken += samples.size
        return samples

    @property
    def ready(self) -> int:
        """Samples that can be taken."""
        return len(self._buffer) // BYTES_PER_SAMPLE

    @property
    def count(self) -> int:
        """Samples that have come in all, those of the current second too."""
        return self._taken + self.ready + self.pair.waiting

    def _flush(self) -> None:
        if self._resampler is not None:
            self._append(self._resampler.resample(None))
        self._resampler = None
        self._input = None

    def _append(self, frames: list[AudioFrame]) -> None:
        for frame in frames:
            sound = frame.to_ndarray().reshape(frame.samples, -1)
            if sound.shape[1] == 2:
                self._add_pair(sound)
            elif self._weights is not None:
                self._add_mono(sound @ self._weights)
            elif sound.shape[1] == 1:
                self._add_mono(sound[:, 0])
            else:
                self._add_mono(sound.mean(axis=1, dtype=np.float32))
        self._check_length()

    def _add_pair(self, sound: np.ndarray) -> None:
        """sound : (samples, 2)"""
        for second in self.pair.add(sound):
            self._buffer += second.tobytes()

    def _add_mono(self, sound: np.ndarray) -> None:
        """sound : (samples,). Within a second of two channels it is the same in both."""
        if self.pair.waiting:
            self._add_pair(np.stack([sound, sound], axis=1))
        else:
            self._buffer += sound.tobytes()

    def _check_length(self) -> None:
        if self.count > self.max_duration * self.sample_rate:
            raise AudioError(f"{self.name}: is longer than {self.max_duration:g} s: raise max_duration to read it")
