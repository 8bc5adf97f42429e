"""Samples in memory: mono float32 in [-1, 1] at one rate is what all of the package computes with."""

from __future__ import annotations

import math

import numpy as np

from mlx_speech.errors import AudioError
from mlx_speech.sample_file import pieces_of

SAMPLE_RATE = 16_000  # Hz; what every model here was trained on
HIGHEST_PEAK = 8.0  # 18 dB over full scale; floats beyond are no samples in [-1, 1]


def peak_of(samples: np.ndarray) -> float:
    """The largest absolute value of samples of any shape; NaN does not count, and of none it is 0."""
    if not samples.size:
        return 0.0
    peaks: list[float] = []
    for piece in pieces_of(samples):
        highest = np.fmax.reduce(piece, axis=None)
        lowest = np.fmin.reduce(piece, axis=None)
        peaks.append(float(np.fmax(highest, -lowest)))
    return float(np.fmax.reduce(peaks))


def has_nan(samples: np.ndarray) -> bool:
    """Whether one of the samples, of any shape, is NaN."""
    return math.isnan(samples.sum(dtype=np.float64))


def check_scale(samples: np.ndarray) -> None:
    """Raises `AudioError` for samples that would be clipped to a square wave, or be next to silent.

    samples : of any shape; floats in [-1, 1], or integers that use more than the lower half of their type's bits
    """
    if not samples.size:
        return
    if samples.dtype.kind == "f":
        peak = peak_of(samples)
        if peak > HIGHEST_PEAK:
            advice = "divide 16-bit samples by 32768, or give them as an int16 array"
            raise AudioError(f"floating-point samples reach {peak:g}, and full scale is 1: {advice}")
        return
    bits = 8 * samples.dtype.itemsize
    if bits < 32:
        return
    highest = max(int(samples.max()), -int(samples.min()))
    value_bits = bits // 2 - 1 if samples.dtype.kind == "i" else bits // 2
    if 0 < highest <= 2**value_bits:
        problem = f"{samples.dtype} samples reach only {highest}, which is next to silence in {bits} bits"
        raise AudioError(f"{problem}: give 16-bit samples as an int16 array, others as floats in [-1, 1]")


def as_float(samples: np.ndarray) -> np.ndarray:
    """Samples of any shape in float32; integers are scaled to [-1, 1], unsigned ones with silence in the middle."""
    if samples.dtype.kind == "f":
        return samples.astype(np.float32, copy=False)
    half = 2.0 ** (8 * samples.dtype.itemsize - 1)
    silence = half if samples.dtype.kind == "u" else 0.0
    # float64 for the steps in between: a 32-bit integer has more digits than float32
    return ((samples.astype(np.float64) - silence) / half).astype(np.float32)
