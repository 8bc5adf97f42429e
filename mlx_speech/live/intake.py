"""Blocks of any rate and number of channels, from any thread → samples at 16 kHz, in the engine's thread."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

import numpy as np

from mlx_speech.errors import AudioError, PipelineClosed
from mlx_speech.live.events import Block
from mlx_speech.resampling import Resampler
from mlx_speech.samples import SAMPLE_RATE, as_float, check_scale

SMALLEST_GAP = 0.02  # seconds; less is how exactly clocks are read
MOST_CHANNELS = 64


class Intake:
    """Where sound waits to be heard.

    wake : is called when some has come, or no more will
    """

    def __init__(self, wake: Callable[[], object]) -> None:
        self._wake = wake
        self._changed = threading.Condition()
        self._blocks: deque[Block] = deque()
        self._seconds = 0.0  # that wait
        self._reason: str | None = None  # why no more comes
        self._is_idle = False

    @property
    def seconds(self) -> float:
        """Of sound that waits here."""
        with self._changed:
            return self._seconds

    @property
    def has_blocks(self) -> bool:
        """Whether some wait here, be they without samples."""
        return bool(self._blocks)

    @property
    def reason(self) -> str | None:
        """Why no more sound comes, once that is so."""
        return self._reason

    def put(self, sound: np.ndarray | Block) -> None:
        """The next sound. Raises `AudioError` for what is none, and `PipelineClosed` behind the end."""
        block = sound if isinstance(sound, Block) else Block(sound)
        mono = _mono(block.samples)
        if block.sample_rate < 1:
            raise AudioError(f"sample_rate is {block.sample_rate}: it is in Hz")
        with self._changed:
            if self._reason is not None:
                raise PipelineClosed("this session has ended: begin another one")
            self._blocks.append(Block(mono, block.sample_rate, block.start))
            seconds = mono.size / block.sample_rate
            self._seconds += seconds
            self._is_idle = False
        self._wake()

    def end(self, reason: str) -> None:
        """No more comes."""
        with self._changed:
            if self._reason is None:
                self._reason = reason
            self._is_idle = False
            self._changed.notify_all()
        self._wake()

    def take(self) -> Block | None:
        """The next block, of one channel; None where none waits."""
        with self._changed:
            if not self._blocks:
                return None
            block = self._blocks.popleft()
            self._seconds -= block.samples.size / block.sample_rate
            if not self._blocks:
                self._seconds = 0.0
            return block

    def put_back(self, block: Block) -> None:
        """What was taken is to be taken again."""
        with self._changed:
            self._blocks.appendleft(block)
            self._seconds += block.samples.size / block.sample_rate

    def rest(self) -> None:
        """Say that all that has come was heard."""
        with self._changed:
            if not self._blocks and self._reason is None:
                self._is_idle = True
                self._changed.notify_all()

    def wait_until_heard(self, is_over: Callable[[], bool]) -> None:
        """Wait until all that has come was heard. is_over : whether nothing will be heard any more"""
        with self._changed:
            while not self._is_idle and self._reason is None and not is_over():
                self._changed.wait(0.5)

    def close(self) -> None:
        """Nothing is heard any more: let those go who wait."""
        with self._changed:
            self._reason = self._reason or "it was cancelled"
            self._blocks.clear()
            self._seconds = 0.0
            self._changed.notify_all()


class Resampled:
    """Blocks → samples at 16 kHz, one behind the other."""

    def __init__(self) -> None:
        self.count = 0  # samples so far
        self._resampler = Resampler(SAMPLE_RATE)

    def before(self, block: Block) -> tuple[np.ndarray, int]:
        """What comes before a block: (samples,) that were held back, where it is of another rate or there is a gap, and
        how many samples are missing then."""
        held_back = np.zeros(0, np.float32)
        starts = None if block.start is None else round(block.start * SAMPLE_RATE)
        has_gap = starts is not None and starts - self.count > SMALLEST_GAP * SAMPLE_RATE
        if has_gap or block.sample_rate != self._resampler.rate:
            held_back = self.end()
            self._resampler = Resampler(block.sample_rate)
        missing = 0
        if has_gap and starts is not None:
            missing = max(0, starts - self.count)
            self.count += missing
        return held_back, missing

    def add(self, block: Block) -> np.ndarray:
        """(samples,) of a block, behind `before`."""
        samples = self._resampler.add(block.samples)
        self.count += samples.size
        return samples

    def end(self) -> np.ndarray:
        """(samples,) that the resampler held back."""
        samples = self._resampler.end()
        self.count += samples.size
        return samples


def _mono(samples: np.ndarray) -> np.ndarray:
    """(samples,) float32, a copy. Raises `AudioError` for another shape, type or scale, and for NaN."""
    array = np.asarray(samples)
    if array.ndim not in (1, 2) or (array.ndim == 2 and not 1 <= len(array) <= MOST_CHANNELS):
        raise AudioError(f"samples of shape {array.shape}: give (samples,) or (channels, samples)")
    if array.dtype.kind not in "iuf":
        raise AudioError(f"samples of type {array.dtype}: give floats in [-1, 1] or integers")
    if array.dtype.kind == "f":  # of a short block of integers nobody knows the scale
        check_scale(array)
    floats = as_float(array)
    mono = floats.copy() if floats.ndim == 1 else floats.mean(axis=0, dtype=np.float32)
    if not np.isfinite(mono).all():
        raise AudioError("some of the samples are no numbers (NaN or infinite): replace them, say by numpy.nan_to_num")
    return np.clip(mono, -1, 1)
