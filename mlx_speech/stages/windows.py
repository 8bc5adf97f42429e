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
FRAMES_PER_BLOCK = 1 << 16  # of a recording that are laid over each other at once, 18 minutes of PyanNet's
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
    blocks = aggregate_in_blocks(
        scores,
        count,
        windows,
        frames,
        warm_up=warm_up,
        hamming=hamming,
        missing=missing,
        skip_average=skip_average,
    )
    return np.concatenate(list(blocks))


def aggregate_in_blocks(
    scores: Iterable[np.ndarray],
    count: int,
    windows: Windows,
    frames: Windows,
    *,
    warm_up: tuple[float, float] = (0.0, 0.0),
    hamming: bool = False,
    missing: float = 0.0,
    skip_average: bool = False,
    frames_at_once: int | None = None,
) -> Iterator[np.ndarray]:
    """`aggregate` piece by piece, as windows come: (frames, classes) of the next frames at a time.

    frames_at_once : that a piece has at least, but the last; by default `FRAMES_PER_BLOCK`
    The others as of `aggregate`.
    """
    at_once = frames_at_once or FRAMES_PER_BLOCK
    total = frame_count(count, windows, frames)
    sums = _Sums(0, 0, 0)  # without windows there are no classes
    profile = np.ones((0, 1))
    for k, score in enumerate(scores):
        size, classes = score.shape
        if k == 0:
            sums = _Sums(0, min(at_once, total) + size, classes)
            profile = _profile(size, windows.duration, warm_up, hamming)
        begin = frames.closest(k * windows.step + 0.5 * frames.duration)
        if begin - sums.first >= at_once:
            yield sums.means(begin - sums.first, missing, skip_average)
            sums = sums.behind(begin)
        sums.add(begin, score[: total - begin], profile[: total - begin])
    yield sums.means(total - sums.first, missing, skip_average)


def frame_count(count: int, windows: Windows, frames: Windows) -> int:
    """How many frames `count` windows reach over."""
    end = windows.duration + (count - 1) * windows.step
    return frames.closest(end + 0.5 * frames.duration) + 1


class _Sums:
    """Of frames from `first` on: the sums of their scores, of the weights of those, and whether they have any."""

    def __init__(self, first: int, rows: int, classes: int) -> None:
        self.first = first
        self._scores = np.zeros((rows, classes), dtype=np.float32)
        self._weights = np.zeros((rows, classes), dtype=np.float32)
        self._seen = np.zeros((rows, classes), dtype=np.float32)

    def add(self, begin: int, score: np.ndarray, profile: np.ndarray) -> None:
        """A window's scores (frames, classes) from frame `begin` on. profile : (frames, 1)"""
        place = slice(begin - self.first, begin - self.first + len(score))
        known = ~np.isnan(score)
        self._scores[place] += np.where(known, score, 0.0) * profile
        self._weights[place] += known * profile
        self._seen[place] = np.maximum(self._seen[place], known)

    def means(self, count: int, missing: float, skip_average: bool) -> np.ndarray:
        """The scores of the first `count` frames, (count, classes), or their sums; `missing` where there is no row."""
        result = self._scores[:count]
        if not skip_average:
            result = result / np.maximum(self._weights[:count], EPSILON)
        result = np.where(self._seen[:count] > 0, result, np.float32(missing))
        return np.pad(result, ((0, count - len(result)), (0, 0)), constant_values=missing)

    def behind(self, frame: int) -> _Sums:
        """What there is of the frames from a frame on."""
        rest = _Sums(frame, *self._scores.shape)
        for mine, theirs in zip(self._arrays(), rest._arrays(), strict=True):
            left = mine[frame - self.first :]
            theirs[: len(left)] = left
        return rest

    def _arrays(self) -> tuple[np.ndarray, ...]:
        return self._scores, self._weights, self._seen


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


def frames_alone(segmentations: np.ndarray) -> np.ndarray:
    """In how many frames each speaks while no other does.

    (windows, frames, speakers) of 0 and 1 → (windows, speakers)
    """
    # voice by voice: along an axis of three numbers NumPy takes eight times as long
    voices = [segmentations[..., speaker] != 0 for speaker in range(segmentations.shape[2])]
    count = np.zeros(segmentations.shape[:2], np.int8)
    for voice in voices:
        count += voice
    single = count == 1
    return np.stack([np.count_nonzero(voice & single, axis=1) for voice in voices], axis=1)
