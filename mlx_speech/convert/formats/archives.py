"""Zip archives, mapped: their members as views of the file, measured before anything is unpacked."""

from __future__ import annotations

import mmap
import pickle
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from mlx_speech.convert.formats.storage import Read, unfolded_limit
from mlx_speech.errors import CorruptFile
from mlx_speech.tensors import reading

MAGIC = b"PK\x03\x04"
ENCRYPTED = 0x41  # the two flags of a member that say so: encrypted, strongly encrypted
# The part of a member's header before its name: signature, and the lengths of name and extra field at the end.
LOCAL_HEADER = struct.Struct("<4s22xHH")
RAW_DEFLATE = -15  # zlib's word for deflate without a header of its own

# All that reading malformed bytes raises, in this package, in pickle, zipfile, zlib and NumPy. RuntimeError stands
# also for endless recursion and for what zipfile lacks, ValueError for text that is no UTF-8.
MALFORMED = (
    pickle.UnpicklingError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    OverflowError,
    MemoryError,
    RuntimeError,
    SyntaxError,
)


@dataclass(frozen=True)
class Member:
    """A file in an archive: how many bytes it has, unpacked, and what reads them."""

    nbytes: int
    read: Read


@contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    """The file, mapped. What goes wrong meanwhile becomes one of our errors, naming `path`."""
    with reading(path), path.open("rb") as file:
        try:
            yield mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except MALFORMED as error:
            raise CorruptFile(f"truncated or malformed ({type(error).__name__}): fetch it again") from error


def first_member(head: bytes) -> str | None:
    """The name of the first file in an archive that begins with `head`; None where that is no archive's beginning."""
    if head[:4] != MAGIC or len(head) < LOCAL_HEADER.size:
        return None
    _, name_length, _ = LOCAL_HEADER.unpack_from(head)
    return head[LOCAL_HEADER.size : LOCAL_HEADER.size + name_length].decode("utf-8", errors="replace")


def members(path: Path, content: mmap.mmap) -> dict[str, Member]:
    """The files in the zip archive `path`, which is mapped as `content`, by their names.

    Nothing is unpacked yet. Raises `CorruptFile` for an archive that would unpack to far more than it has, is
    encrypted, or is compressed by another method than deflate, and `BadZipFile` for a malformed one.
    """
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
    if sum(info.file_size for info in infos) > unfolded_limit(len(content)):
        raise CorruptFile("unpacks to far more than a checkpoint of its size would: fetch it again")
    found: dict[str, Member] = {}
    for info in infos:
        if info.flag_bits & ENCRYPTED or info.compress_type not in (
            zipfile.ZIP_STORED,
            zipfile.ZIP_DEFLATED,
        ):
            raise CorruptFile("encrypted, or compressed by another method than deflate: save it again without")
        start = _start_of_data(content, info)
        if info.filename in found:
            raise zipfile.BadZipFile
        found[info.filename] = Member(info.file_size, partial(_unpack, path, content, start, info))
    return found


def _start_of_data(content: mmap.mmap, info: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin, once it is certain that they lie inside the archive.

    The name and the extra field before them can be longer than in the archive's directory.
    """
    signature, name_length, extra_length = LOCAL_HEADER.unpack_from(content, info.header_offset)
    start = info.header_offset + LOCAL_HEADER.size + name_length + extra_length
    if signature != MAGIC or info.header_offset < 0 or start + info.compress_size > len(content):
        raise zipfile.BadZipFile
    if info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size:
        raise zipfile.BadZipFile
    return start


def _unpack(path: Path, content: mmap.mmap, start: int, info: zipfile.ZipInfo) -> np.ndarray:
    """The bytes of a member, in uint8; a view of the mapped archive unless they are compressed."""
    packed = memoryview(content)[start : start + info.compress_size]
    if info.compress_type == zipfile.ZIP_STORED:
        return np.frombuffer(packed, np.uint8)
    try:
        # One byte more than it should have, so that a member that goes on is noticed, and no more than that unpacked.
        data = zlib.decompressobj(RAW_DEFLATE).decompress(packed, info.file_size + 1)
    except zlib.error:
        data = b""
    if len(data) != info.file_size or zlib.crc32(data) != info.CRC:
        raise CorruptFile(f"{path}: a compressed part of it is damaged: fetch it again")
    return np.frombuffer(data, np.uint8)
