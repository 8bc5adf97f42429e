"""CTranslate2's `model.bin`, which faster-whisper runs, read without CTranslate2.

Everything is little-endian and lies one behind the other: the version of the format, the name and the revision of the
specification that says which variables there are, the number of variables, then each variable's name, number of
dimensions, dimensions, type, number of bytes and values, and at last the aliases, other names for a variable. A string
is preceded by its length, in which the zero byte at its end counts.

Source: OpenNMT/CTranslate2, python/ctranslate2/specs/model_spec.py (`ModelSpec._serialize`).
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from mlx_speech.convert.formats.contents import Contents, head_of
from mlx_speech.errors import CorruptFile, UnknownFamily, WeightsMismatch, brief
from mlx_speech.tensors import MAX_RANK, Tensor, combine, itemsize, reading, stored

TITLE = "CTranslate2 (model.bin)"

VERSION = 6
REVISIONS = {"WhisperSpec": 3}  # specification → the revision whose variables are known
DTYPES = (
    "float32",
    "int8",
    "int16",
    "int32",
    "float16",
    "bfloat16",
)  # in the order of their numbers
MAX_VERSION = 1000  # a file that begins with a larger number is something else
MAX_NAME = 512  # bytes of a variable's name; Whisper's longest has 49
MAX_VARIABLES = 100_000  # Whisper large has 1200
HEADER = struct.Struct("<IH")  # version, and the length of the specification's name
SPECIFICATION = re.compile(rb"\w{1,200}Spec\0", re.ASCII)


def recognises(path: Path) -> bool:
    """Whether the file begins as CTranslate2's do: a small version, and the name of a specification."""
    head = head_of(path)
    if len(head) < HEADER.size:
        return False
    version, length = HEADER.unpack_from(head)
    if not 0 < version <= MAX_VERSION or length > MAX_NAME:
        return False
    return SPECIFICATION.fullmatch(head[HEADER.size : HEADER.size + length]) is not None


def read(path: Path) -> Contents:
    """The variables of a model."""
    return Contents(read_ctranslate2(path), [path])


def read_ctranslate2(path: Path) -> dict[str, Tensor]:
    """The variables of a model, unread, by their names and aliases ("encoder/layer_0/ffn/linear_0/weight").

    The values are read-only views of the mapped file; quantized ones are as they are stored, with their scales beside
    them. Raises `UnknownFamily` for what is no Whisper, and `CorruptFile` where the file is cut or malformed, has
    bytes that belong to nothing, or is of another version.
    """
    with reading(path), path.open("rb") as file:
        cursor = _Cursor(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        _check_head(cursor)
        tensors = _read_variables(cursor)
        _add_aliases(cursor, tensors)
        if cursor.left:
            raise CorruptFile(f"{cursor.left} bytes follow where it should end: fetch it again")
        return tensors


def dequantized(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The variables with every pair `name` and `name_scale` as one of floats: the stored value divided by the scale.

    A scale belongs to a row (int8) or to the whole variable (int16). Where there are such pairs, everything comes in
    float32: in the float16 or bfloat16 of the other variables, the quotients would be rounded a second time, which
    moves what Whisper base's encoder gives by 0.2 and 1.0, at a deviation of 1.5. Raises `WeightsMismatch` for a pair
    that does not go together, and `CorruptFile` for scales that are no positive numbers.
    """
    quantized = [name for name in tensors if f"{name}_scale" in tensors]
    if not quantized:
        return dict(tensors)
    result = {name: _widened(tensor) for name, tensor in tensors.items()}
    for name in quantized:
        values = tensors[name]
        scale = tensors[f"{name}_scale"]
        _check_pair(name, values, scale)
        factors = scale.numpy()
        if not (np.isfinite(factors) & (factors > 0)).all():
            raise CorruptFile(f"{name}_scale: scales that are no positive numbers: fetch it again")
        result[name] = combine([values, scale], _divide, values.shape, "float32")
        del result[f"{name}_scale"]
    return result


def _check_pair(name: str, values: Tensor, scale: Tensor) -> None:
    """Raises `WeightsMismatch` where a variable and its scale are none that CTranslate2 writes."""
    quantized = values.dtype in ("int8", "int16") and len(values.shape) > 0
    fitting = scale.dtype == "float32" and scale.shape in ((), (1,), values.shape[:1])
    if not quantized or not fitting:
        seen = f"{values.dtype} {list(values.shape)} with a scale of {scale.dtype} {list(scale.shape)}"
        raise WeightsMismatch(f"{name}: no quantized variable: {seen}")


def _widened(tensor: Tensor) -> Tensor:
    """In float32 if in a smaller float."""
    if tensor.dtype in ("float16", "bfloat16"):
        return combine([tensor], np.asarray, tensor.shape, "float32")
    return tensor


def _divide(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    column = (-1, *[1] * (values.ndim - 1))
    return values.astype(np.float32) / scale.reshape(column)


class _Cursor:
    """A place in the mapped file, which never leaves it."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content = content
        self.place = 0

    @property
    def left(self) -> int:
        """Bytes up to the end of the file."""
        return len(self.content) - self.place

    def skip(self, count: int) -> int:
        """Step over `count` bytes; gives where they begin."""
        if count > self.left:
            raise CorruptFile("ends too early: fetch it again")
        start = self.place
        self.place += count
        return start

    def number(self, code: str) -> int:
        """An unsigned number; code : "B", "H" or "I", of 1, 2 or 4 bytes"""
        start = self.skip(struct.calcsize(code))
        return struct.unpack_from(f"<{code}", self.content, start)[0]

    def string(self) -> str:
        """A name: printable ASCII, without the zero byte at its end."""
        length = self.number("H")
        if not 1 < length <= MAX_NAME:
            raise CorruptFile(f"a name of {length} bytes in it: fetch it again")
        start = self.skip(length)
        text = self.content[start : self.place]
        if text[-1:] != b"\0" or not text[:-1].isascii() or not text[:-1].decode().isprintable():
            raise CorruptFile(f"{brief(text)} for a name in it: fetch it again")
        return text[:-1].decode()


def _check_head(cursor: _Cursor) -> None:
    """Raises where the file is of another version, or holds another kind of model than Whisper."""
    version = cursor.number("I")
    if version != VERSION:
        raise CorruptFile(f"version {version} of CTranslate2's format, where {VERSION} is known: convert it again")
    specification = cursor.string()
    if specification not in REVISIONS:
        known = ", ".join(REVISIONS)
        raise UnknownFamily(f"a {brief(specification)} of CTranslate2; of its models only {known} can be converted")
    revision = cursor.number("I")
    if revision != REVISIONS[specification]:
        raise CorruptFile(f"revision {revision} of {specification}, where {REVISIONS[specification]} is known")


def _read_variables(cursor: _Cursor) -> dict[str, Tensor]:
    """All variables, unread. Raises `CorruptFile` for one that is not as CTranslate2 writes it."""
    tensors: dict[str, Tensor] = {}
    for _ in range(_count(cursor)):
        name = cursor.string()
        if name in tensors:
            raise CorruptFile(f"two variables are named {name}: fetch it again")
        rank = cursor.number("B")
        if rank > MAX_RANK:
            raise CorruptFile(f"{name} has {rank} dimensions: fetch it again")
        shape = tuple(cursor.number("I") for _ in range(rank))
        kind = cursor.number("B")
        if kind >= len(DTYPES):
            raise CorruptFile(f"{name} is of the unknown type {kind}: fetch it again")
        dtype = DTYPES[kind]
        nbytes = cursor.number("I")
        if nbytes != math.prod(shape) * itemsize(dtype):
            raise CorruptFile(f"{name} has {nbytes} bytes for {dtype} {list(shape)}: fetch it again")
        start = cursor.skip(nbytes)
        tensors[name] = Tensor(shape, dtype, partial(_values, cursor.content, shape, dtype, start), (name,))
    return tensors


def _values(content: mmap.mmap, shape: tuple[int, ...], dtype: str, start: int) -> np.ndarray:
    """A variable's values, a view of the file where their address allows it."""
    values = np.frombuffer(content, stored(dtype).newbyteorder("<"), math.prod(shape), start)
    # names of any length lie between them: most begin at addresses that their type must not have
    return np.require(values, requirements=["ALIGNED"]).reshape(shape)


def _add_aliases(cursor: _Cursor, tensors: dict[str, Tensor]) -> None:
    """Put every alias among the variables. That of a quantized variable stands for its scale, too."""
    variables = dict(tensors)
    for _ in range(_count(cursor)):
        alias = cursor.string()
        name = cursor.string()
        if name not in variables or alias in tensors:
            raise CorruptFile(f"{alias} stands for {name}, which cannot be: fetch it again")
        tensors[alias] = replace(variables[name], sources=(alias,))
        if f"{name}_scale" in variables:
            tensors.setdefault(f"{alias}_scale", replace(variables[f"{name}_scale"], sources=(f"{alias}_scale",)))


def _count(cursor: _Cursor) -> int:
    """How many variables, or aliases, follow."""
    count = cursor.number("I")
    if count > MAX_VARIABLES:
        raise CorruptFile(f"claims to have {count} variables: fetch it again")
    return count
