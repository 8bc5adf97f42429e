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

CPU_BATCH = 8  # windows; there, more of them at once only take memory
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

    args : the model's arguments. Behind the SincNet filters, three poolings by 3 with convolutions of 5 in between
    make 75 of their outputs a frame, and 27 of them a step.
    """
    stride = args.sincnet_stride
    return Windows((251 + 74 * stride) / args.sample_rate, 27 * stride / args.sample_rate)


def starts(num_samples: int, size: int, step: int) -> list[int]:
    """The first sample of every window of `size` samples; one that reaches over the end covers the rest, if any."""
    complete = (num_samples - size) // step + 1 if num_samples >= size else 0
    rest = num_samples < size or (num_samples - size) % step > 0
    return [k * step for k in range(complete + rest)]


def slide(
    audio: np.ndarray, first: list[int], size: int, compute: Callable[[mx.array, slice], mx.array], batch_size: int
) -> Iterator[np.ndarray]:
    """What `compute` gives for the windows, a batch at a time.

    audio : (samples,); only the windows of a batch are copied from it, with zeros behind its end
    first : the windows' first samples; size : samples of a window
    compute : takes (batch, size) and which windows they are; the last batch may have rows of zeros at its end, so
        that there are at most four sizes of batches. It runs while the batch before is brought to the host.
    """
    pending: mx.array | None = None
    batch_size = min(batch_size, CPU_BATCH) if on_cpu() else batch_size
    quantum = max(1, batch_size // 4)
    for begin in range(0, len(first), batch_size):
        rows = slice(begin, min(begin + batch_size, len(first)))
        count = rows.stop - begin
        waveforms = np.zeros((min(batch_size, -(-count // quantum) * quantum), size), dtype=np.float32)
        for row, start in zip(waveforms, first[rows], strict=False):
            part = audio[start : start + size]
            row[: len(part)] = part
        output = compute(mx.array(waveforms), rows)[:count]
        mx.async_eval(output)
        if pending is not None:
            yield np.array(pending)
        pending = output
    if pending is not None:
        yield np.array(pending)


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
    total = frames.closest(windows.duration + (count - 1) * windows.step + 0.5 * frames.duration) + 1
    result = weights = seen = profile = np.zeros((total, 0), dtype=np.float32)
    for k, score in enumerate(scores):
        size, classes = score.shape
        if k == 0:
            result, weights, seen = (np.zeros((total, classes), dtype=np.float32) for _ in range(3))
            profile = np.hamming(size)[:, None] if hamming else np.ones((size, 1))
            left, right = (round(seconds / windows.duration * size) for seconds in warm_up)
            profile[:left] *= EPSILON
            profile[max(left, size - right) :] *= EPSILON
        begin = frames.closest(k * windows.step + 0.5 * frames.duration)
        place = slice(begin, min(begin + size, total))
        known = ~np.isnan(score)
        result[place] += (np.where(known, score, 0.0) * profile)[: place.stop - begin]
        weights[place] += (known * profile)[: place.stop - begin]
        seen[place] = np.maximum(seen[place], known[: place.stop - begin])
    mean = result if skip_average else result / np.maximum(weights, EPSILON)
    return np.where(seen > 0, mean, np.float32(missing))


def binarize(scores: np.ndarray, onset: float, offset: float | None = None) -> np.ndarray:
    """Hysteresis: where a score has last been above `onset` rather than below `offset` (default: `onset`); bool.

    scores : (..., frames, classes); before either has happened, the state is off
    """
    on = scores > onset
    known = on | (scores < (onset if offset is None else offset))
    last = np.maximum.accumulate(np.where(known, np.arange(scores.shape[-2])[:, None], -1), axis=-2)
    return np.take_along_axis(on, np.maximum(last, 0), axis=-2) & (last >= 0)


def runs(active: np.ndarray) -> list[tuple[int, int]]:
    """active (frames,) bool → (first frame, first frame that is off again) of every stretch, which lasts from the
    middle of the one to that of the other; at the end, the last frame. A stretch of the last frame alone is none."""
    changes = np.flatnonzero(np.diff(active, prepend=False, append=False)).tolist()
    stretches = [(a, min(b, len(active) - 1)) for a, b in zip(changes[::2], changes[1::2], strict=True)]
    return [(a, b) for a, b in stretches if b > a]


def cut(scores: np.ndarray, stretch: tuple[int, int], max_frames: float) -> list[tuple[int, int]]:
    """A stretch of `runs` in pieces of at most `max_frames`: one that grows longer ends at the lowest of the scores
    (frames,) in the second half of what it has by then (Bain et al. 2023, WhisperX's `Binarize`)."""
    start, end = stretch
    pieces, searched = [], start
    while end - start > max_frames:
        beyond = start + int(max_frames) + 1
        half = searched + (beyond - searched) // 2
        lowest = half + int(scores[half:beyond].argmin())
        pieces.append((start, lowest))
        start, searched = lowest, lowest + 1
    return [*pieces, (start, end)]


def fill(
    stretches: list[tuple[float, float]], min_duration_off: float, max_duration: float = math.inf
) -> list[tuple[float, float]]:
    """(start, end) in seconds: those with a gap shorter than `min_duration_off` become one that has at most
    `max_duration`; what touches has been cut on purpose and stays."""
    merged: list[tuple[float, float]] = []
    for start, end in stretches:
        if merged and 0 < start - merged[-1][1] < min_duration_off and end - merged[-1][0] <= max_duration:
            merged[-1] = merged[-1][0], end
        else:
            merged.append((start, end))
    return merged
