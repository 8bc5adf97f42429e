"""How much each token of a text looks at each frame of the audio, from a decoder's cross-attention.

Source: openai/whisper `timing.py`, `find_alignment` and `median_filter`.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from mlx_speech.ops.cpu import in_numpy, in_parallel, suits_numpy

MEDIAN_WIDTH = 7  # neighbours, openai/whisper's `medfilt_width`


def alignment_matrix(scores: mx.array) -> mx.array:
    """scores (heads, tokens, frames), before the softmax → (tokens, frames)

    In NumPy for float32 on a CPU, else as a graph of MLX.
    """
    if scores.size and suits_numpy(scores):
        return in_numpy(alignment_matrix_numpy, alignment_matrix_graph, scores)
    return alignment_matrix_graph(scores)


def alignment_matrix_graph(scores: mx.array) -> mx.array:
    """The same as a graph of MLX."""
    return _filtered(mx.softmax(scores, axis=-1), mx).mean(axis=0)


def alignment_matrix_numpy(scores: np.ndarray) -> np.ndarray:
    """The same in NumPy, a head on every core."""
    filtered = np.empty_like(scores)

    def compute(head: int) -> None:
        # a single token is its own mean; and no token may look at a frame
        with np.errstate(invalid="ignore", divide="ignore"):
            weights = np.exp(scores[head] - scores[head].max(axis=-1, keepdims=True))
            weights /= weights.sum(axis=-1, keepdims=True)
            filtered[head] = _filtered(weights, np)

    in_parallel(compute, range(len(scores)))
    with np.errstate(invalid="ignore"):
        return filtered.mean(axis=0)


def _filtered(weights: Any, xp: Any) -> Any:
    """weights (…, tokens, frames), each token's sum 1 → the same shape: at every frame by how many deviations of it
    the token is above the mean of all, without outliers

    xp : the library whose arrays these are, MLX or NumPy
    """
    weights = weights - weights.mean(axis=-2, keepdims=True)
    weights = weights / xp.sqrt(xp.square(weights).mean(axis=-2, keepdims=True))
    return median_filter(weights, xp)


def median_filter(x: Any, xp: Any) -> Any:
    """The median of every 7 neighbours along the last axis, reflected at the ends; three or fewer stay as they are.

    Equal to openai/whisper's `median_filter`, which sorts: the middle of seven is their centre, clamped between the
    third and the fourth of the other six, and those follow from two sorted triples. NaN counts as the greatest.

    xp : as of `_filtered`
    """
    length = x.shape[-1]
    reach = MEDIAN_WIDTH // 2
    if length <= reach:
        return x
    x = xp.where(xp.isnan(x), xp.inf, x)
    x = xp.concatenate([x[..., reach:0:-1], x, x[..., -2 : -2 - reach : -1]], axis=-1)
    lowest, middle, highest = _sorted_triples(x, xp)
    # the three before the centre and the three behind it
    low_a = lowest[..., :length]
    middle_a = middle[..., :length]
    high_a = highest[..., :length]
    low_b = lowest[..., reach + 1 :]
    middle_b = middle[..., reach + 1 :]
    high_b = highest[..., reach + 1 :]
    third = xp.minimum(high_a, high_b)
    third = xp.minimum(third, xp.maximum(low_a, middle_b))
    third = xp.minimum(third, xp.maximum(middle_a, low_b))
    fourth = xp.maximum(low_a, low_b)
    fourth = xp.maximum(fourth, xp.minimum(middle_a, high_b))
    fourth = xp.maximum(fourth, xp.minimum(high_a, middle_b))
    centre = x[..., reach : reach + length]
    median = xp.minimum(xp.maximum(centre, third), fourth)
    return xp.where(xp.isinf(median), xp.nan, median)


def _sorted_triples(x: Any, xp: Any) -> tuple[Any, Any, Any]:
    """The lowest, the middle and the highest of every three neighbours along the last axis."""
    first = x[..., :-2]
    second = x[..., 1:-1]
    last = x[..., 2:]
    low = xp.minimum(first, second)
    high = xp.maximum(first, second)
    return xp.minimum(low, last), xp.maximum(low, xp.minimum(high, last)), xp.maximum(high, last)
