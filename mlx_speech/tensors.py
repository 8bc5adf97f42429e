"""A tensor that is not in memory yet, and safetensors files read and written one tensor at a time.

A 3 GB checkpoint is converted in the memory of its largest tensor: files are mapped, tensors are read when asked for,
folded or cast, written, and forgotten. (safetensors' own NumPy reader has no bfloat16, MLX's has no float64, and
neither writes without holding the whole model.)
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_speech.errors import CorruptFile, MLXSpeechError, SourceError, SourceNotFound, shorten

# fmt: off
CODES = {  # safetensors code → our name (NumPy's, and bfloat16)
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
}
# fmt: on
NAMES = {name: code for code, name in CODES.items()}
FLOATS = ("float16", "bfloat16", "float32", "float64")
MAX_RANK = 8  # dimensions of a tensor
MAX_HEADER = 100 * 1024 * 1024  # bytes; the limit of the format's own reader
Layout = dict[str, tuple[tuple[int, ...], str]]  # name → shape and dtype


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
        return math.prod(self.shape)

    def numpy(self) -> np.ndarray:
        """The values; bfloat16 as float32, which loses nothing."""
        array = self.raw()
        return (array.astype(np.uint32) << 16).view(np.float32) if self.dtype == "bfloat16" else array

    def mlx(self) -> mx.array:
        """The values as an evaluated MLX array of the same dtype."""
        array = np.asarray(self.raw(), order="C")
        result = mx.array(array, dtype=getattr(mx, array.dtype.name if self.dtype != "bool" else "bool_"))
        result = result.view(mx.bfloat16) if self.dtype == "bfloat16" else result
        mx.eval(result)
        return result

    def map(self, function: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...] | None = None) -> Tensor:
        """The tensor that `function` makes of this one's values; computed in and kept as its own dtype."""
        return combine([self], function, self.shape if shape is None else shape, self.dtype)


def combine(parts: list[Tensor], function: Callable[..., np.ndarray], shape: tuple[int, ...], dtype: str) -> Tensor:
    """The tensor of `shape` and `dtype` that `function` makes of the values of `parts`."""

    def raw() -> np.ndarray:
        array = np.asarray(function(*(part.numpy() for part in parts)), order="C")
        if dtype != "bfloat16":
            return array.astype(dtype, copy=False)
        return np.array(mx.array(array.astype(np.float32)).astype(mx.bfloat16).view(mx.uint16))

    return Tensor(tuple(shape), dtype, raw, tuple(name for part in parts for name in part.sources))


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, unread.

    The format: https://github.com/huggingface/safetensors#format. Raises `CorruptFile` where the header, a dtype,
    a shape or an offset does not fit the file.
    """
    with reading(path), path.open("rb") as file:
        size = file.seek(0, 2)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        length = int.from_bytes(mapped[:8], "little")
        if not 0 < length <= min(size - 8, MAX_HEADER):
            raise CorruptFile(f"not a complete safetensors file (header of {length} bytes in {size}): fetch it again")
        return _tensors(mapped, size, length)


def _tensors(mapped: mmap.mmap | bytes, size: int, length: int) -> dict[str, Tensor]:
    """The tensors of a file of `size` bytes, whose header has `length`."""
    start, tensors, wrong, places = 8 + length, {}, [], []
    try:
        header = json.loads(mapped[8:start])
        header.pop("__metadata__", None)
    except (ValueError, RecursionError, AttributeError, TypeError) as error:
        raise CorruptFile("not a safetensors file (its header is no JSON object): fetch it again") from error
    for name, entry in header.items():
        try:
            dtype, shape, (begin, end) = CODES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
            fits = len(shape) <= MAX_RANK and all(type(n) is int and 0 <= n < 1 << 62 for n in (*shape, begin, end))
            fits = fits and start + end <= size and math.prod(n or 1 for n in shape) < 1 << 62
            if not fits or math.prod(shape) * itemsize(dtype) != end - begin:
                raise ValueError
        except (KeyError, TypeError, ValueError):
            wrong.append(name)
            continue
        view = partial(np.ndarray, shape, stored(dtype), mapped, start + begin)
        tensors[name] = Tensor(shape, dtype, view, (name,))
        places.append((begin, end, name))
    places.sort()
    wrong += [name for (_, before, _), (begin, _, name) in pairwise(places) if begin < before]
    if wrong:
        raise CorruptFile(f"truncated, or tensors that do not fit their place: {shorten(wrong)}: fetch it again")
    return tensors


def write_safetensors(path: Path, layout: Layout, arrays: Iterable[tuple[str, mx.array | np.ndarray]]) -> None:
    """Write a safetensors file, each array being dropped as soon as it is on disk.

    layout : known beforehand; written in this order
    arrays : the same names, in any order
    """
    header: dict[str, object] = {"__metadata__": {"format": "mlx"}}
    offset, places = 0, {}
    for name, (shape, dtype) in layout.items():
        end = offset + math.prod(shape) * itemsize(dtype)
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        places[name], offset = offset, end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        start = file.tell()
        for name, array in arrays:
            shape, dtype = layout[name]
            found = str(array.dtype).rpartition(".")[2].rstrip("_")
            if tuple(array.shape) != tuple(shape) or found != dtype:
                raise ValueError(f"{tuple(array.shape)} {found} where {tuple(shape)} {dtype} was announced")
            bits = array.view(mx.uint16) if isinstance(array, mx.array) and dtype == "bfloat16" else array
            file.seek(start + places.pop(name))
            file.write(np.asarray(bits, order="C").reshape(-1).view(np.uint8).data)
    if places:
        raise ValueError(f"never given: {shorten(list(places))}")
