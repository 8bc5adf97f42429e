"""The sound of telephones: 8 bits a sample, on a scale that is finer for soft sounds. Source: ITU-T G.711."""

from __future__ import annotations

import numpy as np

RATE = 8_000  # Hz
CODES = np.arange(256)
MU_BIAS = 33  # of 14 bits: the first step of every segment is twice as high as those of the one before
FULL_SCALE = 32_768


def mu_law() -> np.ndarray:
    """(256,) float32 in [-1, 1]: what each byte of µ-law stands for."""
    code = 255 - CODES  # all bits are turned over on the line
    segment = code >> 4 & 7
    step = code & 15
    magnitude = ((2 * step + MU_BIAS) << segment) - MU_BIAS
    return _signed(magnitude * 4, negative=code >= 128)


def a_law() -> np.ndarray:
    """(256,) float32 in [-1, 1]: what each byte of A-law stands for."""
    code = CODES ^ 0x55  # every other bit is turned over on the line
    segment = code >> 4 & 7
    step = code & 15
    first = 2 * step + 1  # the two lowest segments have steps of one height
    others = (2 * step + 33) << np.maximum(segment - 1, 0)
    magnitude = np.where(segment == 0, first, others)
    return _signed(magnitude * 8, negative=code < 128)


def _signed(magnitude: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """magnitude : (256,) on the scale of 16 bits"""
    return (np.where(negative, -magnitude, magnitude) / FULL_SCALE).astype(np.float32)
