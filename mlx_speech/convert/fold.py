"""Arithmetic that conversion does once so that the models need not: folds of several tensors into one, all lazy.

Every function takes the source's tensors, removes what it folds and adds the result under the name given. Where what
is to be folded is not there, or does not go together, it raises `WeightsMismatch`.
"""

from __future__ import annotations

from functools import partial
from typing import TypeAlias

import numpy as np

from mlx_speech.errors import WeightsMismatch, shorten
from mlx_speech.tensors import FLOATS, Tensor, combine

Tensors: TypeAlias = dict[str, Tensor]

# Of torch's weight norm: names of g and v, as the older function spells them, and as the newer one does.
WEIGHT_NORM_SPELLINGS = (
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)
MIN_HZ = 50  # the lowest frequency of a sinc filter, and its narrowest band


def take(tensors: Tensors, *names: str) -> list[Tensor]:
    """Remove `names` from `tensors`; raises `WeightsMismatch` listing those that are not there, or are no floats."""
    missing = [name for name in names if name not in tensors]
    if missing:
        raise WeightsMismatch(f"tensors missing: {shorten(missing)}")
    mistyped = [f"{name} {tensors[name].dtype}" for name in names if tensors[name].dtype not in FLOATS]
    if mistyped:
        raise WeightsMismatch(f"tensors of the wrong type: {shorten(mistyped)}")
    return [tensors.pop(name) for name in names]


def numbered(tensors: Tensors, name: str) -> list[Tensor]:
    """The tensors called `name` with 0, 1, 2 … for its {}, up to the first that is not there."""
    series = []
    while name.format(len(series)) in tensors:
        series.append(tensors[name.format(len(series))])
    return series


def split(tensors: Tensors, name: str, *parts: str) -> None:
    """A tensor that several were stacked into, as `name`/`part` for each of `parts`, which have equally many rows."""
    (stack,) = take(tensors, name)
    if not stack.shape or stack.shape[0] % len(parts):
        raise WeightsMismatch(f"{name}: {list(stack.shape)} is not {len(parts)} of equal size")
    present = [f"{name}/{part}" for part in parts if f"{name}/{part}" in tensors]
    if present:
        raise WeightsMismatch(f"tensors that should not be there: {shorten(present)}")
    rows = stack.shape[0] // len(parts)
    for place, part in enumerate(parts):
        kept = slice(place * rows, (place + 1) * rows)
        tensors[f"{name}/{part}"] = stack.map(partial(_rows, kept=kept), (rows, *stack.shape[1:]))


def _rows(array: np.ndarray, kept: slice) -> np.ndarray:
    return array[kept]


# --- weight norm -----------------------------------------------------------------------------------------------------


def weight_norm(tensors: Tensors, path: str) -> None:
    """`path`.weight = g · v / ‖v‖, for torch's weight norm over the last axis (dim=2) of a Conv1d; both spellings.

    Source: torch.nn.utils.weight_norm (weight_g, weight_v) and parametrizations.weight_norm (original0, original1).
    """
    for g_name, v_name in WEIGHT_NORM_SPELLINGS:
        if f"{path}.{g_name}" not in tensors and f"{path}.{v_name}" not in tensors:
            continue
        g, v = take(tensors, f"{path}.{g_name}", f"{path}.{v_name}")
        if len(v.shape) != 3 or g.shape != (1, 1, v.shape[-1]):
            raise WeightsMismatch(f"{path}: a weight norm of shapes {g.shape} and {v.shape}")
        tensors[f"{path}.weight"] = combine([g, v], _weight_norm, v.shape, v.dtype)


def _weight_norm(g: np.ndarray, v: np.ndarray) -> np.ndarray:
    v = v.astype(np.float64)
    norm = np.sqrt((v**2).sum(axis=(0, 1), keepdims=True))
    return (g.astype(np.float64).reshape(1, 1, -1) * v / norm).astype(np.float32)


# --- LSTM ------------------------------------------------------------------------------------------------------------


def lstm(tensors: Tensors, weights: list[str], target: str) -> None:
    """One layer of a torch LSTM, in one or two directions, as `target`.Wx, .Wh and .bias, directions stacked.

    weights : for each direction, the name of `weight_ih` (weight_hh and the biases are spelled alike)
    """
    for leaf, kinds in (
        ("Wx", ["weight_ih"]),
        ("Wh", ["weight_hh"]),
        ("bias", ["bias_ih", "bias_hh"]),
    ):
        names = []
        for kind in kinds:
            names += [name.replace("weight_ih", kind) for name in weights]
        parts = take(tensors, *names)
        shape = parts[0].shape
        if any(part.shape != shape for part in parts):
            raise WeightsMismatch(f"{target}.{leaf}: the two directions have shapes {[part.shape for part in parts]}")
        stack = partial(_stacked, directions=len(weights))
        tensors[f"{target}.{leaf}"] = combine(parts, stack, (len(weights), *shape), parts[0].dtype)


def _stacked(*arrays: np.ndarray, directions: int) -> np.ndarray:
    """One for each direction, or two, which are added."""
    stack = np.stack(arrays[:directions])
    if len(arrays) == directions:
        return stack
    return stack + np.stack(arrays[directions:])


# --- batch norm ------------------------------------------------------------------------------------------------------


STATISTICS = ("weight", "bias", "running_mean", "running_var")
STATISTICS_NOT_LEARNED = ("running_mean", "running_var")  # of a norm without weight and bias


def batch_norm(tensors: Tensors, conv: str, norm: str, target: str, eps: float = 1e-5, learned: bool = True) -> None:
    """A bias-free convolution followed by an evaluated BatchNorm as one convolution with bias, `target`.

    conv, norm : their paths
    learned : whether the norm has weight and bias (torch's affine=True)
    """
    if learned:
        kernel, *statistics = take(tensors, f"{conv}.weight", *(f"{norm}.{leaf}" for leaf in STATISTICS))
    else:
        kernel, *running = take(tensors, f"{conv}.weight", *(f"{norm}.{leaf}" for leaf in STATISTICS_NOT_LEARNED))
        statistics = [running[0].map(np.ones_like), running[0].map(np.zeros_like), *running]
    if any(part.shape != kernel.shape[:1] for part in statistics):
        raise WeightsMismatch(f"{norm}: {[part.shape for part in statistics]} does not fit {conv} {kernel.shape}")
    weight = partial(_normed_weight, eps=eps)
    bias = partial(_normed_bias, eps=eps)
    tensors[f"{target}.weight"] = combine([kernel, *statistics], weight, kernel.shape, kernel.dtype)
    tensors[f"{target}.bias"] = combine(statistics, bias, statistics[0].shape, kernel.dtype)


def affine(tensors: Tensors, norm: str, target: str, eps: float = 1e-5) -> None:
    """An evaluated BatchNorm as a scale and a shift, `target`.weight and `target`.bias, each (channels,)."""
    statistics = take(tensors, *(f"{norm}.{leaf}" for leaf in STATISTICS))
    shape = statistics[0].shape
    if len(shape) != 1 or any(part.shape != shape for part in statistics):
        raise WeightsMismatch(f"{norm}: {[part.shape for part in statistics]} is no batch norm")
    tensors[f"{target}.weight"] = combine(statistics, partial(_norm_weight, eps=eps), shape, statistics[0].dtype)
    tensors[f"{target}.bias"] = combine(statistics, partial(_normed_bias, eps=eps), shape, statistics[0].dtype)


def _norm_weight(gamma: np.ndarray, beta: np.ndarray, mean: np.ndarray, variance: np.ndarray, eps: float) -> np.ndarray:
    return _norm_scale(gamma, variance, eps).astype(np.float32)


def _norm_scale(gamma: np.ndarray, variance: np.ndarray, eps: float) -> np.ndarray:
    return gamma.astype(np.float64) / np.sqrt(variance.astype(np.float64) + eps)


def _normed_weight(
    kernel: np.ndarray,
    gamma: np.ndarray,
    beta: np.ndarray,
    mean: np.ndarray,
    variance: np.ndarray,
    eps: float,
) -> np.ndarray:
    scale = _norm_scale(gamma, variance, eps).reshape(-1, *[1] * (kernel.ndim - 1))
    return (kernel * scale).astype(np.float32)


def _normed_bias(gamma: np.ndarray, beta: np.ndarray, mean: np.ndarray, variance: np.ndarray, eps: float) -> np.ndarray:
    return (beta - mean * _norm_scale(gamma, variance, eps)).astype(np.float32)


# --- sinc filters ----------------------------------------------------------------------------------------------------


def sinc(tensors: Tensors, filterbank: str, target: str, sample_rate: int) -> None:
    """The band-pass filters of SincNet as a plain kernel, (2·filters, 1, kernel): cosine filters, then sine filters.

    filterbank : the path that has low_hz_, band_hz_ (filters, 1), n_ (1, half a kernel) and window_ (half a kernel)
    Source: Ravanelli & Bengio 2018; asteroid_filterbanks.ParamSincFB.
    """
    parts = take(tensors, *(f"{filterbank}.{name}" for name in ("low_hz_", "band_hz_", "n_", "window_")))
    low, band, time, window = parts
    fitting = low.shape == band.shape and low.shape[1:] == (1,)
    fitting = fitting and len(window.shape) == 1 and time.shape == (1, window.size)
    if not fitting:
        raise WeightsMismatch(f"{filterbank}: shapes {[part.shape for part in parts]}")
    shape = (2 * low.size, 1, 2 * window.size + 1)
    tensors[target] = combine(parts, partial(sinc_filters, sample_rate=sample_rate), shape, low.dtype)


def sinc_filters(
    low_hz: np.ndarray, band_hz: np.ndarray, n: np.ndarray, window: np.ndarray, sample_rate: int
) -> np.ndarray:
    """The filters, (2·filters, 1, kernel), rounded where the original rounds.

    low_hz, band_hz : (filters, 1), as they were learned; their signs do not count
    n, window : (1, half a kernel) and (half a kernel), time and window up to the middle

    The angles reach 400 radians, so that rounding them to float32 moves a filter by 3e-6. A filter that hears next to
    nothing is normalised afterwards, and what is left of it then depends on exactly that rounding: with better filters
    than the original's, probabilities on a meeting differ by 1e-2.
    """
    low_hz, band_hz, n, window = (array.astype(np.float32) for array in (low_hz, band_hz, n, window))
    lowest = np.float32(MIN_HZ)
    highest = np.float32(sample_rate / 2)
    low = lowest + np.abs(low_hz)
    high = np.clip(low + lowest + np.abs(band_hz), lowest, highest)
    # The angles are rounded, their sines good to the last digit.
    low_angle = (low * n).astype(np.float64)
    high_angle = (high * n).astype(np.float64)
    cosine = np.sin(high_angle).astype(np.float32) - np.sin(low_angle).astype(np.float32)
    sine = np.cos(low_angle).astype(np.float32) - np.cos(high_angle).astype(np.float32)
    half_n = n / np.float32(2)
    cosine = cosine / half_n * window
    sine = sine / half_n * window
    band = high - low
    even = np.concatenate([cosine, 2 * band, cosine[:, ::-1]], axis=1) / (2 * band)
    odd = np.concatenate([sine, np.zeros_like(band), -sine[:, ::-1]], axis=1) / (2 * band)
    return np.concatenate([even, odd])[:, None]
