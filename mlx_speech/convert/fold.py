"""Arithmetic that conversion does once so that the models need not: folds of several tensors into one, all lazy.

Every function takes the source's tensors, removes what it folds and adds the result under the name given.
"""

from __future__ import annotations

from functools import partial
from itertools import count, takewhile

import numpy as np

from mlx_speech.errors import WeightsMismatch, shorten
from mlx_speech.tensors import FLOATS, Tensor, combine

Tensors = dict[str, Tensor]


def take(tensors: Tensors, *names: str) -> list[Tensor]:
    """Remove `names` from `tensors`; raises `WeightsMismatch` listing those that are not there."""
    missing = [name for name in names if name not in tensors]
    if missing:
        raise WeightsMismatch(f"tensors missing: {shorten(missing)}")
    odd = [f"{name} {tensors[name].dtype}" for name in names if tensors[name].dtype not in FLOATS]
    if odd:
        raise WeightsMismatch(f"tensors of the wrong type: {shorten(odd)}")
    return [tensors.pop(name) for name in names]


def numbered(tensors: Tensors, name: str) -> list[Tensor]:
    """The tensors called `name` with 0, 1, 2 … for its {}, up to the first that is not there."""
    return [tensors[name] for name in takewhile(tensors.__contains__, map(name.format, count()))]


def split(tensors: Tensors, name: str, *parts: str) -> None:
    """A tensor that several were stacked into, as `name`/`part` for each of `parts`, which have equally many rows."""
    (whole,) = take(tensors, name)
    if not whole.shape or whole.shape[0] % len(parts):
        raise WeightsMismatch(f"{name}: {list(whole.shape)} is not {len(parts)} of equal size")
    taken = [f"{name}/{part}" for part in parts if f"{name}/{part}" in tensors]
    if taken:
        raise WeightsMismatch(f"tensors that should not be there: {shorten(taken)}")
    rows = whole.shape[0] // len(parts)
    for place, part in enumerate(parts):
        kept = slice(place * rows, (place + 1) * rows)
        tensors[f"{name}/{part}"] = whole.map(partial(_rows, kept=kept), (rows, *whole.shape[1:]))


def _rows(array: np.ndarray, kept: slice) -> np.ndarray:
    return array[kept]


def weight_norm(tensors: Tensors, path: str) -> None:
    """`path`.weight = g · v / ‖v‖, for torch's weight norm over the last axis (dim=2) of a Conv1d; both spellings.

    Source: torch.nn.utils.weight_norm (weight_g, weight_v) and parametrizations.weight_norm (original0, original1).
    """
    for g, v in (("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1")):
        if f"{path}.{g}" in tensors or f"{path}.{v}" in tensors:
            parts = take(tensors, f"{path}.{g}", f"{path}.{v}")
            if len(parts[1].shape) != 3 or parts[0].shape != (1, 1, parts[1].shape[-1]):
                raise WeightsMismatch(f"{path}: a weight norm of shapes {parts[0].shape} and {parts[1].shape}")
            tensors[f"{path}.weight"] = combine(parts, _weight_norm, parts[1].shape, parts[1].dtype)


def _weight_norm(g: np.ndarray, v: np.ndarray) -> np.ndarray:
    v64 = v.astype(np.float64)
    norm = np.sqrt((v64**2).sum(axis=(0, 1), keepdims=True))
    return (g.astype(np.float64).reshape(1, 1, -1) * v64 / norm).astype(np.float32)


def lstm(tensors: Tensors, weights: list[str], target: str) -> None:
    """One layer of a torch LSTM, in one or two directions, as `target`.Wx, .Wh and .bias, directions stacked.

    weights : for each direction, the name of `weight_ih` (weight_hh and the biases are spelled alike)
    """
    for leaf, kinds in (("Wx", ["weight_ih"]), ("Wh", ["weight_hh"]), ("bias", ["bias_ih", "bias_hh"])):
        parts = take(tensors, *(name.replace("weight_ih", kind) for kind in kinds for name in weights))
        shape, dtype = parts[0].shape, parts[0].dtype
        if any(part.shape != shape for part in parts):
            raise WeightsMismatch(f"{target}.{leaf}: the two directions have shapes {[part.shape for part in parts]}")
        n = len(weights)
        tensors[f"{target}.{leaf}"] = combine(parts, partial(_stacked, directions=n), (n, *shape), dtype)


def _stacked(*arrays: np.ndarray, directions: int) -> np.ndarray:
    """One for each direction, or two, which are added."""
    stack = np.stack(arrays[:directions])
    return stack + np.stack(arrays[directions:]) if len(arrays) > directions else stack


def batch_norm(tensors: Tensors, conv: str, norm: str, target: str, eps: float = 1e-5) -> None:
    """A bias-free convolution followed by an evaluated BatchNorm as one convolution with bias, `target`."""
    leaves = ("weight", "bias", "running_mean", "running_var")
    parts = take(tensors, f"{conv}.weight", *(f"{norm}.{leaf}" for leaf in leaves))
    if any(part.shape != parts[0].shape[:1] for part in parts[1:]):
        raise WeightsMismatch(f"{norm}: {[part.shape for part in parts[1:]]} does not fit {conv} {parts[0].shape}")
    dtype = parts[0].dtype

    def scale(gamma: np.ndarray, var: np.ndarray) -> np.ndarray:
        return gamma.astype(np.float64) / np.sqrt(var.astype(np.float64) + eps)

    def weight(w: np.ndarray, gamma: np.ndarray, beta: np.ndarray, mean: np.ndarray, var: np.ndarray) -> np.ndarray:
        return (w * scale(gamma, var).reshape(-1, *[1] * (w.ndim - 1))).astype(np.float32)

    def bias(gamma: np.ndarray, beta: np.ndarray, mean: np.ndarray, var: np.ndarray) -> np.ndarray:
        return (beta - mean * scale(gamma, var)).astype(np.float32)

    tensors[f"{target}.weight"] = combine(parts, weight, parts[0].shape, dtype)
    tensors[f"{target}.bias"] = combine(parts[1:], bias, parts[1].shape, dtype)


def sinc(tensors: Tensors, filterbank: str, target: str, sample_rate: int) -> None:
    """The band-pass filters of SincNet as a plain kernel, (2·filters, 1, kernel): cosine filters, then sine filters.

    filterbank : the path that has low_hz_, band_hz_ (filters, 1), n_ (1, half a kernel) and window_ (half a kernel)
    Source: Ravanelli & Bengio 2018; asteroid_filterbanks.ParamSincFB.
    """
    parts = take(tensors, *(f"{filterbank}.{name}" for name in ("low_hz_", "band_hz_", "n_", "window_")))
    low, band, time, window = parts
    if low.shape != band.shape or low.shape[1:] != (1,) or time.shape != (1, window.size) or len(window.shape) != 1:
        raise WeightsMismatch(f"{filterbank}: shapes {[part.shape for part in parts]}")
    shape = (2 * low.size, 1, 2 * window.size + 1)
    tensors[target] = combine(parts, partial(sinc_filters, sample_rate=sample_rate), shape, low.dtype)


def sinc_filters(
    low_hz: np.ndarray, band_hz: np.ndarray, n: np.ndarray, window: np.ndarray, sample_rate: int
) -> np.ndarray:
    """The filters, (2·filters, 1, kernel), rounded where the original rounds.

    The angles reach 400 radians, so that rounding them to float32 moves a filter by 3e-6. A filter that hears next to
    nothing is normalised afterwards, and what is left of it then depends on exactly that rounding: with better filters
    than the original's, probabilities on a meeting differ by 1e-2.
    """
    low_hz, band_hz, n, window = (array.astype(np.float32) for array in (low_hz, band_hz, n, window))
    low = np.float32(50) + np.abs(low_hz)
    high = np.clip(low + np.float32(50) + np.abs(band_hz), np.float32(50), np.float32(sample_rate / 2))
    # the angles rounded, their sines good to the last digit
    low_angle, high_angle = (low * n).astype(np.float64), (high * n).astype(np.float64)
    cosine = np.sin(high_angle).astype(np.float32) - np.sin(low_angle).astype(np.float32)
    sine = np.cos(low_angle).astype(np.float32) - np.cos(high_angle).astype(np.float32)
    cosine, sine = (part / (n / np.float32(2)) * window for part in (cosine, sine))
    band = high - low
    even = np.concatenate([cosine, 2 * band, cosine[:, ::-1]], axis=1) / (2 * band)
    odd = np.concatenate([sine, np.zeros_like(band), -sine[:, ::-1]], axis=1) / (2 * band)
    return np.concatenate([even, odd])[:, None]
