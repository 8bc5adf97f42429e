"""PyTorch files, read without PyTorch: what `torch.save` and `torch.jit.save` write, in both formats.

Since PyTorch 1.6 a file is a zip archive of a pickle and the values; before, it was several pickles and the values one
behind the other. The pickles are read by `unpickler`, which runs nothing.

Source: torch/serialization.py and torch/csrc/jit/serialization of PyTorch.
"""

from __future__ import annotations

import mmap
import re
import struct
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mlx_speech.convert.formats.archives import first_member, mapped, members
from mlx_speech.convert.formats.contents import Contents, head_of
from mlx_speech.convert.formats.storage import MAX_PICKLE_BYTES, Read
from mlx_speech.convert.formats.unpickler import MeteredPickle, Stub, Unpickler
from mlx_speech.errors import CorruptFile, SourceError
from mlx_speech.tensors import Tensor, itemsize

TITLE = "PyTorch (.pt, .pth, .bin, .ckpt, .jit)"

STATE_KEYS = (
    "state_dict",
    "model_state_dict",
    "model",
)  # of a checkpoint that may hold the tensors
LEGACY_PICKLE = b"\x80\x02"  # protocol 2, in which the older format is written
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_VERSION = 1001
MAX_NAME_CHARACTERS = MAX_PICKLE_BYTES  # of all names of tensors; ends the walk through a tree that contains itself


def recognises(path: Path) -> bool:
    """Whether the file is a zip archive, but not of arrays, or begins with a pickle as old files do."""
    head = head_of(path)
    name = first_member(head)
    if name is not None:
        return not name.endswith(".npy")
    return head.startswith(LEGACY_PICKLE)


def read(path: Path) -> Contents:
    """The state dict, where the file says that it has one, and the rest; else all tensors there are."""
    tree = read_torch(path)
    if isinstance(tree, dict):
        for key in STATE_KEYS:
            if _is_state(tree.get(key)):
                rest = {name: value for name, value in tree.items() if name != key and isinstance(name, str)}
                return Contents(state_dict(tree[key]), [path], rest)
    tensors = state_dict(tree)
    if not tensors:
        raise SourceError(f"{path}: no tensors in this file")
    return Contents(tensors, [path])


def _is_state(value: object) -> bool:
    """Whether it is a state dict: tensors by their names."""
    return isinstance(value, dict) and any(isinstance(item, Tensor) for item in value.values())


def read_torch(path: Path) -> object:
    """What `torch.save` or `torch.jit.save` wrote: plain containers, numbers, strings, unread `Tensor`s and `Stub`s.

    OrderedDict and defaultdict come as dict, torch.Size as tuple, a parameter as its tensor. A tensor's values are a
    read-only view of the mapped file unless the archive is compressed. Raises `SourceNotFound`, and `CorruptFile` where
    the file is cut, malformed, big-endian or out of proportion, or has tensors that are quantized, sparse or complex.
    """
    with mapped(path) as content:
        if content[:4] == b"PK\x03\x04":
            return _read_zip(path, content)
        return _read_legacy(content)


def state_dict(tree: object) -> dict[str, Tensor]:
    """The tensors of a tree that `read_torch` gave, under their keys and attribute names joined by dots.

    Follows dicts and the attributes of stubs, which is how TorchScript keeps modules. PyTorch's function of this name
    leaves out attributes that were not registered as buffers; this one gives them too. Raises `CorruptFile` where two
    tensors would have one name, or where names go on without end.
    """
    tensors: dict[str, Tensor] = {}
    pending: list[tuple[str, Any]] = [("", tree)]
    left = MAX_NAME_CHARACTERS
    while pending:
        name, node = pending.pop()
        if isinstance(node, Tensor):
            if name in tensors:
                raise CorruptFile(f"two tensors of the checkpoint are named {name[:200]!r}: save it without one")
            tensors[name] = replace(node, sources=(name,))
            continue
        if isinstance(node, Stub):
            node = node.state or node.entries
        if not isinstance(node, dict):
            continue
        for key, value in reversed(node.items()):  # what is pushed first is taken last
            if type(key) in (str, int) and isinstance(value, (Tensor, Stub, dict)):
                full_name = f"{name}.{key}" if name else str(key)
                pending.append((full_name, value))
                left -= len(full_name)
            left -= 1
            if left < 0:
                raise CorruptFile("the names in the checkpoint go on without end: fetch it again")
    return tensors


def _read_zip(path: Path, content: mmap.mmap) -> object:
    """The object in a zip archive, whose only folder has data.pkl, the values in data/, and byteorder."""
    files = members(path, content)
    folders = [name.removesuffix("data.pkl") for name in files if re.fullmatch(r"[^/]+/data\.pkl", name)]
    if len(folders) != 1:
        raise CorruptFile("a zip archive, but not one of PyTorch (no data.pkl in its folder): check what it is")
    folder = folders[0]
    byte_order = files.get(f"{folder}byteorder")
    if byte_order is not None and byte_order.read()[:16].tobytes() != b"little":
        raise CorruptFile("written on a big-endian machine: save it again on another")
    pickled = files[f"{folder}data.pkl"]
    if pickled.nbytes > MAX_PICKLE_BYTES:
        raise CorruptFile(f"its pickle has {pickled.nbytes} bytes, too many for a checkpoint: fetch it again")

    def place(key: str, dtype: str, nbytes: int) -> Read:
        values = files[f"{folder}data/{key}"]
        if values.nbytes < nbytes:
            raise CorruptFile("the values of a tensor are missing: fetch it again")
        return values.read

    return Unpickler(MeteredPickle(pickled.read().tobytes()), place).load()


def _read_legacy(content: mmap.mmap) -> object:
    """Pickles of magic number, version, machine, object and keys; then a count and the values for every key."""
    storages: dict[str, tuple[str, int]] = {}  # key → dtype and bytes, as the tensors say
    starts: dict[str, int] = {}  # key → where its values begin, known at the end

    def values(key: str, nbytes: int) -> np.ndarray:
        return np.frombuffer(content, np.uint8, nbytes, starts[key])

    def place(key: str, dtype: str, nbytes: int) -> Read:
        if storages.setdefault(key, (dtype, nbytes)) != (dtype, nbytes):
            raise CorruptFile("its tensors disagree about the place of their values: fetch it again")
        return partial(values, key, nbytes)

    if content[:2] != LEGACY_PICKLE:
        raise CorruptFile("not a PyTorch file: check what it is, or fetch it again")
    file = MeteredPickle(content[:MAX_PICKLE_BYTES])
    magic, version, machine, tree, keys = (Unpickler(file, place).load() for _ in range(5))
    if (magic, version, machine["little_endian"]) != (LEGACY_MAGIC, LEGACY_VERSION, True):
        raise CorruptFile("not of a little-endian PyTorch: check what it is, or save it again on another machine")
    position = file.tell()
    for key in keys:
        dtype, nbytes = storages[key]
        (count,) = struct.unpack_from("<q", content, position)
        starts[key] = position + 8
        position += 8 + nbytes
        if count * itemsize(dtype) != nbytes or position > len(content):
            raise EOFError
    if len(starts) != len(storages):
        raise EOFError
    return tree
