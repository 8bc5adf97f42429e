"""Models that hear a few seconds at a time, slid over a recording: windows, overlap-add, hysteresis.

Source: pyannote.audio `core.inference.Inference` (slide, aggregate) and `utils.signal` (binarize, Binarize), which
give the same figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_speech.blas import on_cpu

MAX_BATCH_ON_CPU = 32  # windows; there, more of them at once only take memory
EPSILON = 1e-12  # weight of a frame within the warm-up, which counts only where no other window has that frame


@dataclass(frozen=True)
class Windows:
    """Where the windows of a sliding model lie, or the frames that it gives: one every `step`, each of `duration`
    seconds, from the start of the recording."""

    duration: float
    step: float

    def middle(self, index: int) -> float:
        """Seconds from the start of the recording to the middle of a window."""
        start = index * self.step
        return 0.5 * (start + (start + self.duration))

    def closest(self, time: float) -> int:
        """The window whose middle is closest to `time`; half-way, the even one."""
        return int(np.rint((time - 0.5 * self.duration) / self.step))


def frames_of(args: Any) -> Windows:
    """The frames of a PyanNet, by its receptive field (pyannote.audio `Model.receptive_field`).

    args : the model's arguments. Behind the SincNet filters of 251 samples, three poolings by 3 with convolutions of 5
    in between make 75 of their outputs a frame, and 27 of them a step.
    """
    samples = 251 + 74 * args.sincnet_stride
    step = 27 * args.sincnet_stride
    return Windows(samples / args.sample_rate, step / args.sample_rate)


def starts(num_samples: int, size: int, step: int) -> list[int]:
    """The first sample of every window of `size` samples; one that reaches over the end covers the rest, if any."""
    if num_samples < size:
        return [0]
    count = math.ceil((num_samples - size) / step) + 1
    return [k * step for k in range(count)]


@dataclass(frozen=True)
class Batch:
    """Windows that are heard at once: those of `size` samples at `starts`, with zeros behind the end of the audio."""

    audio: np.ndarray
    starts: list[int]
    size: int

    def waveforms(self) -> mx.array:
        """(windows, size)"""
        rows = np.zeros((len(self.starts), self.size), dtype=np.float32)
        for row, start in zip(rows, self.starts, strict=True):
            samples = self.audio[start : start + self.size]
            row[: len(samples)] = samples
        return mx.array(rows)

    def stretch(self) -> tuple[mx.array, list[int]]:
        """What the windows reach over, (samples,), and where in it each begins."""
        begin = self.starts[0]
        samples = self.audio[begin : self.starts[-1] + self.size]
        missing = self.starts[-1] + self.size - begin - len(samples)
        return mx.array(np.pad(samples, (0, missing))), [start - begin for start in self.starts]


def slide(
    audio: np.ndarray, first: list[int], size: int, compute: Callable[[Batch, slice], mx.array], batch_size: int
) -> Iterator[np.ndarray]:
    """What `compute` gives for the windows, a batch at a time.

    audio : (samples,); only the windows of a batch are copied from it
    first : the windows' first samples; size : samples of a window
    compute : takes a batch and which windows it is of; the last batch may have its last window several times, so that
        there are at most four sizes of batches, on a CPU two. It runs while the batch before is brought to the host.
    """
    pending: mx.array | None = None
    quantum = max(1, batch_size // 4)  # batches have a multiple of it in rows
    if on_cpu():  # no shape costs anything there, but a small last batch takes as many steps as a large one
        count = max(1, math.ceil(len(first) / min(batch_size, MAX_BATCH_ON_CPU)))
        batch_size = max(1, math.ceil(len(first) / count))
        quantum = 1
    for begin in range(0, len(first), batch_size):
        rows = slice(begin, min(begin + batch_size, len(first)))
        count = rows.stop - begin
        row_count = min(batch_size, math.ceil(count / quantum) * quantum)
        surplus = [first[rows.stop - 1]] * (row_count - count)
        output = compute(Batch(audio, first[rows] + surplus, size), rows)[:count]
        mx.async_eval(output)
        if pending is not None:
            yield np.array(pending)
        pending = output
    if pending is not None:
        yield np.array(pending)


def stretches(starts: list[int], size: int, longest: int) -> Iterator[tuple[int, int]]:
    """Groups of windows, (first, behind the last), that reach over at most `longest` samples, or over one window.

    starts : the windows' first samples, in order; size : samples of a window
    """
    first = 0
    for window, start in enumerate(starts):
        if window > first and start + size - starts[first] > longest:
            yield first, window
            first = window
    if starts:
        yield first, len(starts)


def aggregate(
    scores: Iterable[np.ndarray],
    count: int,
    windows: Windows,
    frames: Windows,
    *,
    warm_up: tuple[float, float] = (0.0, 0.0),
    hamming: bool = False,
    missing: float = 0.0,
    skip_average: bool = False,
) -> np.ndarray:
    """Overlap-add: the scores of `count` overlapping windows → those of the recording, (frames, classes) float32.

    scores : of each window in turn, (window_frames, classes); NaN does not count
    warm_up : seconds at both ends of a window that count only where nothing else does
    hamming : weigh the frames of a window so
    missing : for frames that no window has
    skip_average : the sum instead of the mean
    """
    end = windows.duration + (count - 1) * windows.step
    total = frames.closest(end + 0.5 * frames.duration) + 1
    result = np.zeros((total, 0), dtype=np.float32)  # without windows there are no classes
    weights = result
    seen = result
    profile = result
    for k, score in enumerate(scores):
        size, classes = score.shape
        if k == 0:
            result = np.zeros((total, classes), dtype=np.float32)
            weights = np.zeros_like(result)
            seen = np.zeros_like(result)
            profile = _profile(size, windows.duration, warm_up, hamming)
        begin = frames.closest(k * windows.step + 0.5 * frames.duration)
        inside = slice(begin, min(begin + size, total))
        length = inside.stop - begin
        known = ~np.isnan(score)
        result[inside] += (np.where(known, score, 0.0) * profile)[:length]
        weights[inside] += (known * profile)[:length]
        seen[inside] = np.maximum(seen[inside], known[:length])
    if not skip_average:
        result = result / np.maximum(weights, EPSILON)
    return np.where(seen > 0, result, np.float32(missing))


def _profile(size: int, duration: float, warm_up: tuple[float, float], hamming: bool) -> np.ndarray:
    """The weights of the frames of a window, (size, 1), as `aggregate` describes them."""
    profile = np.hamming(size)[:, None] if hamming else np.ones((size, 1))
    left = round(warm_up[0] / duration * size)
    right = round(warm_up[1] / duration * size)
    profile[:left] *= EPSILON
    profile[max(left, size - right) :] *= EPSILON
    return profile


def binarize(scores: np.ndarray, onset: float, offset: float | None = None) -> np.ndarray:
    """Hysteresis: where a score has last been above `onset` rather than below `offset` (default: `onset`); bool.

    scores : (..., frames, classes); before either has happened, the state is off
    """
    if offset is None:
        offset = onset
    on = scores > onset
    decided = on | (scores < offset)
    frames = np.arange(scores.shape[-2])[:, None]
    last_decided = np.maximum.accumulate(np.where(decided, frames, -1), axis=-2)
    return np.take_along_axis(on, np.maximum(last_decided, 0), axis=-2) & (last_decided >= 0)


def runs(active: np.ndarray) -> list[tuple[int, int]]:
    """active (frames,) bool → (first frame, first frame that is off again) of every stretch, which lasts from the
    middle of the one to that of the other; at the end, the last frame. A stretch of the last frame alone is none."""
    changes = np.flatnonzero(np.diff(active, prepend=False, append=False)).tolist()
    stretches: list[tuple[int, int]] = []
    for first, off in zip(changes[::2], changes[1::2], strict=True):
        last = min(off, len(active) - 1)
        if last > first:
            stretches.append((first, last))
    return stretches


def cut(scores: np.ndarray, stretch: tuple[int, int], max_frames: float) -> list[tuple[int, int]]:
    """A stretch of `runs` in pieces of at most `max_frames`: one that grows longer ends at the lowest of the scores
    (frames,) in the second half of what it has by then (Bain et al. 2023, WhisperX's `Binarize`)."""
    start, end = stretch
    pieces: list[tuple[int, int]] = []
    searched = start  # where the frames begin that have not been looked at
    while end - start > max_frames:
        beyond = start + int(max_frames) + 1
        half = searched + (beyond - searched) // 2
        lowest = half + int(scores[half:beyond].argmin())
        pieces.append((start, lowest))
        start = lowest
        searched = lowest + 1
    pieces.append((start, end))
    return pieces


def fill(
    stretches: list[tuple[float, float]], min_duration_off: float, max_duration: float = math.inf
) -> list[tuple[float, float]]:
    """(start, end) in seconds: those with a gap shorter than `min_duration_off` become one that has at most
    `max_duration`; what touches has been cut on purpose and stays."""
    merged: list[tuple[float, float]] = []
    for start, end in stretches:
        if merged:
            last_start, last_end = merged[-1]
            is_short_gap = 0 < start - last_end < min_duration_off
            if is_short_gap and end - last_start <= max_duration:
                merged[-1] = (last_start, end)
                continue
        merged.append((start, end))
    return merged
