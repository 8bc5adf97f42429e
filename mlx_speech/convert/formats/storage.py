"""Bytes of a file as tensors: views that are known to stay inside, and how far anything may unfold."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from mlx_speech.errors import CorruptFile
from mlx_speech.tensors import Tensor, itemsize, stored

# Gives bytes, in uint8.
Read: TypeAlias = Callable[[], np.ndarray]

MAX_PICKLE_BYTES = 64 * 1024 * 1024  # Whisper large's pickle has 0.2 MB
MAX_UNFOLDING = 20  # times its size, to which an archive or a tensor may unfold
MAX_DIMENSIONS = 32  # NumPy's limit


@dataclass(frozen=True)
class Storage:
    """Where the values of tensors lie.

    dtype : of the values, unless the tensor says otherwise
    nbytes : how many bytes `read` gives at least
    read : gives them, when they are asked for
    """

    dtype: str
    nbytes: int
    read: Read


def unfolded_limit(nbytes: int) -> int:
    """To how many bytes `nbytes` of a file may unfold: small files may unfold further, in proportion."""
    return max(MAX_PICKLE_BYTES, MAX_UNFOLDING * nbytes)


def strided(storage: Storage, dtype: str, offset: Any, shape: Any, strides: Any) -> Tensor:
    """The view of `storage` that these numbers describe, all three in elements.

    The numbers come from a file and can be anything. Raises `CorruptFile` where the view would leave its storage,
    which NumPy itself does not check, or where it is of an impossible size.
    """
    shape = tuple(shape)
    strides = tuple(strides)
    width = itemsize(dtype)
    if not _plain_numbers(offset, shape, strides) or _unfolded(shape) * width > unfolded_limit(storage.nbytes):
        raise CorruptFile("has a tensor of an impossible shape: fetch it again")
    if 0 in shape:
        # Nothing is read, whatever the numbers say.
        offset = 0
        strides = (0,) * len(shape)
    else:
        last = offset
        for length, stride in zip(shape, strides, strict=True):
            last += (length - 1) * stride
        if (last + 1) * width > storage.nbytes:
            raise CorruptFile("has a tensor that reaches outside its storage: fetch it again")
    # The stride of a dimension of one means nothing, and can be too large for NumPy.
    steps = tuple(stride * width if length > 1 else 0 for length, stride in zip(shape, strides, strict=True))

    def raw() -> np.ndarray:
        return np.ndarray(shape, stored(dtype), storage.read(), offset * width, steps)

    return Tensor(shape, dtype, raw)


def _plain_numbers(offset: Any, shape: tuple[Any, ...], strides: tuple[Any, ...]) -> bool:
    """Whether these are whole numbers that a machine has, none of them negative; True is no number."""
    if len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS:
        return False
    return all(type(number) is int and 0 <= number < 2**63 for number in (offset, *shape, *strides))


def _unfolded(shape: tuple[int, ...]) -> int:
    """Elements of `shape`. A length of 0 counts as 1, so that it hides no other; a stride of 0 makes many of one."""
    return math.prod(length or 1 for length in shape)
