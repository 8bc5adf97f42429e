"""A tensor that is not in memory yet, and safetensors files read and written one tensor at a time.

A 3 GB checkpoint is converted in the memory of its largest tensor: files are mapped, tensors are read when asked for,
folded or cast, written, and forgotten. (safetensors' own NumPy reader has no bfloat16, MLX's has no float64, and
neither writes without holding the whole model.)
"""

from __future__ import annotations

from mlx_speech import backend as backend  # isort: skip  (before MLX)

import json
import math
import mmap
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import mlx.core as mx
import numpy as np

from mlx_speech.errors import CorruptFile, MLXSpeechError, SourceError, SourceNotFound, shorten

# safetensors' code → our name of a dtype (NumPy's, and bfloat16)
CODES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "BOOL": "bool",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
}
NAMES = {name: code for code, name in CODES.items()}
FLOATS = ("float16", "bfloat16", "float32", "float64")
MAX_RANK = 8  # dimensions of a tensor
MAX_HEADER = 100 * 1024 * 1024  # bytes; the limit of the format's own reader
MAX_NUMBER = 1 << 62  # of a header; nothing that is multiplied by an item's size overflows below it
LENGTH_BYTES = 8  # of the header's length, in front of it
ALIGNMENT = 8  # of the first value
Layout: TypeAlias = dict[str, tuple[tuple[int, ...], str]]  # name → shape and dtype


def stored(dtype: str) -> np.dtype:
    """NumPy's type for values of `dtype` (a NumPy name, or bfloat16) in a file; bfloat16 are bits, in uint16."""
    return np.dtype("uint16" if dtype == "bfloat16" else dtype)


def itemsize(dtype: str) -> int:
    """Bytes of one element of `dtype` (a NumPy name, or bfloat16)."""
    return stored(dtype).itemsize


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What goes wrong inside is one of our errors and begins with the name of `path`, or of something in it."""
    try:
        yield
    except MLXSpeechError as error:
        if str(error).startswith(str(path)):
            raise
        raise type(error)(f"{path}: {error}") from error
    except FileNotFoundError as error:
        raise SourceNotFound(f"{path}: missing, there is no such file: check the name, or fetch it again") from error
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error}): check who may read it") from error


@dataclass(frozen=True)
class Tensor:
    """A named array of a source, read when asked for.

    shape : as `raw` will give it
    dtype : a NumPy name, or "bfloat16"
    raw : reads it; bfloat16 comes as its bits, in uint16
    sources : the names of the tensors it is made of, as the file spells them
    """

    shape: tuple[int, ...]
    dtype: str
    raw: Callable[[], np.ndarray]
    sources: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    def numpy(self) -> np.ndarray:
        """The values; bfloat16 as float32, which loses nothing."""
        array = self.raw()
        if self.dtype == "bfloat16":  # the upper half of a float32
            return (array.astype(np.uint32) << 16).view(np.float32)
        return array

    def mlx(self) -> mx.array:
        """The values as an evaluated MLX array of the same dtype."""
        array = np.asarray(self.raw(), order="C")
        name = "bool_" if self.dtype == "bool" else array.dtype.name
        result = mx.array(array, dtype=getattr(mx, name))
        if self.dtype == "bfloat16":
            result = result.view(mx.bfloat16)
        mx.eval(result)
        return result

    def map(self, function: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...] | None = None) -> Tensor:
        """The tensor that `function` makes of this one's values, of the same dtype.

        shape : of the result, if it is another
        """
        return combine([self], function, self.shape if shape is None else shape, self.dtype)


def combine(parts: list[Tensor], function: Callable[..., np.ndarray], shape: tuple[int, ...], dtype: str) -> Tensor:
    """The tensor of `shape` and `dtype` that `function` makes of the values of `parts`."""

    def raw() -> np.ndarray:
        array = np.asarray(function(*(part.numpy() for part in parts)), order="C")
        if dtype != "bfloat16":
            return array.astype(dtype, copy=False)
        return np.array(mx.array(array.astype(np.float32)).astype(mx.bfloat16).view(mx.uint16))

    sources = tuple(name for part in parts for name in part.sources)
    return Tensor(tuple(shape), dtype, raw, sources)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, unread.

    The format: https://github.com/huggingface/safetensors#format. Raises `CorruptFile` where the header, a dtype,
    a shape or an offset does not fit the file.
    """
    with reading(path), path.open("rb") as file:
        size = file.seek(0, 2)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        length = int.from_bytes(mapped[:LENGTH_BYTES], "little")
        if not 0 < length <= min(size - LENGTH_BYTES, MAX_HEADER):
            raise CorruptFile(f"not a complete safetensors file (header of {length} bytes in {size}): fetch it again")
        return _tensors(mapped, size, length)


def _tensors(mapped: mmap.mmap | bytes, size: int, length: int) -> dict[str, Tensor]:
    """The tensors of a file of `size` bytes, whose header has `length`."""
    start = LENGTH_BYTES + length
    tensors: dict[str, Tensor] = {}
    wrong: list[str] = []
    places: list[tuple[int, int, str]] = []  # begin, end, name
    try:
        header = json.loads(mapped[LENGTH_BYTES:start])
        header.pop("__metadata__", None)
    except (ValueError, RecursionError, AttributeError, TypeError) as error:
        raise CorruptFile("not a safetensors file (its header is no JSON object): fetch it again") from error
    for name, entry in header.items():
        try:
            dtype, shape, begin, end = _entry(entry, size - start)
        except (KeyError, TypeError, ValueError):
            wrong.append(name)
            continue
        view = partial(np.ndarray, shape, stored(dtype), mapped, start + begin)
        tensors[name] = Tensor(shape, dtype, view, (name,))
        places.append((begin, end, name))
    places.sort()
    for (_, previous_end, _), (begin, _, name) in pairwise(places):
        if begin < previous_end:
            wrong.append(name)
    if wrong:
        raise CorruptFile(f"truncated, or tensors that do not fit their place: {shorten(wrong)}: fetch it again")
    return tensors


def _entry(entry: Any, nbytes: int) -> tuple[str, tuple[int, ...], int, int]:
    """Dtype, shape, begin and end of a tensor that a header describes.

    nbytes : that follow the header
    Raises `KeyError`, `TypeError` or `ValueError` where the entry is malformed or the tensor would not fit.
    """
    dtype = CODES[entry["dtype"]]
    shape = tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    if len(shape) > MAX_RANK or not all(type(n) is int and 0 <= n < MAX_NUMBER for n in (*shape, begin, end)):
        raise ValueError
    if end > nbytes or math.prod(n or 1 for n in shape) >= MAX_NUMBER:
        raise ValueError
    if math.prod(shape) * itemsize(dtype) != end - begin:
        raise ValueError
    return dtype, shape, begin, end


def write_safetensors(path: Path, layout: Layout, arrays: Iterable[tuple[str, mx.array | np.ndarray]]) -> None:
    """Write a safetensors file, each array being dropped as soon as it is on disk.

    layout : known beforehand; written in this order
    arrays : the same names, in any order
    Raises `ValueError` for an array that is not as announced, or that never comes.
    """
    header: dict[str, object] = {"__metadata__": {"format": "mlx"}}
    places: dict[str, int] = {}
    offset = 0
    for name, (shape, dtype) in layout.items():
        end = offset + math.prod(shape) * itemsize(dtype)
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        places[name] = offset
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(LENGTH_BYTES, "little") + text)
        start = file.tell()
        for name, array in arrays:
            shape, dtype = layout[name]
            given_dtype = str(array.dtype).rpartition(".")[2].rstrip("_")
            if tuple(array.shape) != tuple(shape) or given_dtype != dtype:
                raise ValueError(f"{tuple(array.shape)} {given_dtype} where {tuple(shape)} {dtype} was announced")
            file.seek(start + places.pop(name))
            file.write(_bytes(array))
    if places:
        raise ValueError(f"never given: {shorten(list(places))}")


def _bytes(array: mx.array | np.ndarray) -> memoryview:
    """The values as they stand in a file; NumPy has no bfloat16, so that its bits are taken."""
    if isinstance(array, mx.array) and array.dtype == mx.bfloat16:
        array = array.view(mx.uint16)
    return np.asarray(array, order="C").reshape(-1).view(np.uint8).data
