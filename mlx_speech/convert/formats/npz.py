"""NumPy's archives of arrays, as mlx-whisper wrote them; and pyannote's PLDA, which is a pair of them."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from mlx_speech.convert.formats.archives import Member, first_member, mapped, members
from mlx_speech.convert.formats.contents import Contents, head_of
from mlx_speech.convert.formats.storage import Storage, strided
from mlx_speech.convert.formats.unpickler import DTYPES
from mlx_speech.errors import CorruptFile, SourceNotFound
from mlx_speech.tensors import Tensor

TITLE = "NumPy (.npz)"

PLDA_PAIR = ("plda.npz", "xvec_transform.npz")  # by which pyannote knows them
PLDA_HALVES = ({"tr", "psi"}, {"lda"})  # arrays by which either is known
MAX_HEADER = 16 * 1024  # bytes; NumPy reads headers up to 10 000
ARRAY_SUFFIX = ".npy"


def recognises(path: Path) -> bool:
    """Whether the file is an archive whose first member is an array."""
    name = first_member(head_of(path))
    return name is not None and name.endswith(ARRAY_SUFFIX)


def read(path: Path) -> Contents:
    """The arrays of an archive; of one half of a PLDA, those of the other half, too, which has to lie beside it."""
    tensors = read_npz(path)
    halves = [arrays <= set(tensors) for arrays in PLDA_HALVES]
    if path.name not in PLDA_PAIR and sum(halves) != 1:
        return Contents(tensors, [path])
    if path.name in PLDA_PAIR:
        files = [path.with_name(name) for name in PLDA_PAIR]
    elif halves[0]:
        files = [path, path.with_name(PLDA_PAIR[1])]
    else:
        files = [path.with_name(PLDA_PAIR[0]), path]
    check_pair(files)
    return Contents({**read_npz(files[0]), **read_npz(files[1])}, files)


def check_pair(files: list[Path]) -> None:
    """Raises `SourceNotFound` where one of the files of a PLDA is missing."""
    for file in files:
        if not file.is_file():
            raise SourceNotFound(f"{file}: missing; the PLDA is a pair of files, {' and '.join(PLDA_PAIR)}")


def read_npz(path: Path) -> dict[str, Tensor]:
    """The arrays of a .npz archive, unread: plain numbers, and bfloat16 as MLX writes it (two opaque bytes).

    Raises `SourceNotFound`, and `CorruptFile` where the archive is cut or malformed, or holds objects, text or anything
    else that is no tensor. The format: numpy.lib.format.
    """
    tensors: dict[str, Tensor] = {}
    with mapped(path) as content:
        for file_name, member in members(path, content).items():
            name = file_name.removesuffix(ARRAY_SUFFIX)
            tensors[name] = replace(_array(file_name, member), sources=(name,))
    return tensors


def _array(name: str, member: Member) -> Tensor:
    """An array of an archive, whose header alone is read."""
    file = io.BytesIO(member.read()[:MAX_HEADER].tobytes())
    if np.lib.format.read_magic(file) == (1, 0):
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, fortran_order, dtype = np.lib.format.read_array_header_2_0(file)
    # No structure, nothing big-endian, no objects: numbers, truth values, or the two bytes of a bfloat16.
    if dtype.name not in (*DTYPES.values(), "void16") or dtype.names or not dtype.isnative:
        raise CorruptFile(f"{name[:200]!r} in it holds {str(dtype)[:40]!r}, which is no tensor: save it without")
    our_dtype = "bfloat16" if dtype.kind == "V" else dtype.name
    header = file.tell()

    def values() -> np.ndarray:
        return member.read()[header:]

    strides = []
    for axis in range(len(shape)):
        inner = shape[:axis] if fortran_order else shape[axis + 1 :]
        strides.append(math.prod(inner))
    return strided(Storage(our_dtype, member.nbytes - header, values), our_dtype, 0, shape, strides)
