"""PyTorch files and NumPy archives, read without PyTorch and without running anything they ask for.

A PyTorch file holds a pickle, which is a small program: it may name any function of any module and call it. Here a name
is never looked up. The unpickler's stack only ever holds plain values, tensors and `Stub`s; a call of one of the few
names in `KNOWN` (containers, tensors) is carried out by this module, any other call makes another `Stub`.
"""

from __future__ import annotations

import io
import math
import mmap
import pickle
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mlx_speech.errors import CorruptFile
from mlx_speech.tensors import Tensor, itemsize, reading, stored

MAX_PICKLE = 64 * 1024 * 1024  # bytes; Whisper large has 0.2 MB
MAX_STEPS = 4_000_000  # reads and copied items: one byte of a pickle can cost 200 bytes of memory
MAX_RATIO = 20  # to which an archive or a tensor may unfold, above MAX_PICKLE
Read = Callable[[], np.ndarray]  # gives bytes, in uint8
LEGACY = (0x1950A86A20F9469CFC6C, 1001)  # magic number and version, the start of what torch.save wrote before 1.6
# fmt: off
STORAGES = {  # torch.FloatStorage and so on; ours
    "Float": "float32", "Double": "float64", "Half": "float16", "BFloat16": "bfloat16", "Bool": "bool",
    "Long": "int64", "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Untyped": "uint8",
}
DTYPES = {f"torch.{name}": name for name in (*STORAGES.values(), "uint16", "uint32", "uint64")}
# All that reading malformed bytes raises, here, in pickle, zipfile, zlib and NumPy. RuntimeError stands also for
# endless recursion and for what zipfile lacks, ValueError for text that is no UTF-8.
MALFORMED = (
    pickle.UnpicklingError, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error, EOFError, IndexError,
    KeyError, TypeError, ValueError, AttributeError, OverflowError, MemoryError, RuntimeError, SyntaxError,
)
# fmt: on


@dataclass(frozen=True, eq=False, repr=False)
class Stub:
    """A class, a function, or what calling one gave: all that the file says of it, inert. Equals only itself.

    name : "pyannote.audio.core.task.Specifications"; "()" where what was called is no name but the first of the args
    args : what it was called with, none for the name itself; keyword arguments come last, as a dict
    state : what was set on it as a whole: mostly the dict of its attributes
    items, entries : what was appended to it, or stored in it by key, where its class is like a list or a dict
    """

    name: str
    args: tuple = ()
    state: Any = None
    items: list = field(default_factory=list)
    entries: dict = field(default_factory=dict)


@dataclass(frozen=True, eq=False, repr=False)
class _Storage(Stub):
    """Where values of tensors lie: `nbytes` bytes, which `read` gives."""

    dtype: str = ""
    nbytes: int = 0
    read: Read = lambda: np.empty(0, np.uint8)


def read_torch(path: Path) -> object:
    """What `torch.save` or `torch.jit.save` wrote: plain containers, numbers, strings, unread `Tensor`s and `Stub`s.

    Both formats are read: the zip archives of PyTorch 1.6 and later, TorchScript's among them, and what came before.
    OrderedDict and defaultdict come as dict, torch.Size as tuple, a parameter as its tensor. A tensor's values are a
    read-only view of the mapped file unless the archive is compressed. Raises `SourceNotFound`, and `CorruptFile` where
    the file is cut, malformed, big-endian or out of proportion, or has tensors that are quantized, sparse or complex.
    The formats: torch/serialization.py and torch/csrc/jit/serialization of PyTorch.
    """
    with _mapped(path) as mapped:
        return _read_zip(path, mapped) if mapped[:4] == b"PK\x03\x04" else _read_legacy(mapped)


def state_dict(tree: object) -> dict[str, Tensor]:
    """The tensors of a tree that `read_torch` gave, under their keys and attribute names joined by dots.

    Follows dicts and the attributes of stubs, which is how TorchScript keeps modules. PyTorch's function of this name
    leaves out attributes that were not registered as buffers; this one gives them too. Raises `CorruptFile` where two
    tensors would have one name, or where names go on without end.
    """
    found: dict[str, Tensor] = {}
    pending: list[tuple[str, Any]] = [("", tree)]
    budget = MAX_PICKLE  # in characters of names; ends the walk through a tree that contains itself
    while pending:
        prefix, node = pending.pop()
        if isinstance(node, Tensor):
            if prefix in found:
                raise CorruptFile(f"two tensors of the checkpoint are named {prefix[:200]!r}: save it without one")
            found[prefix] = replace(node, sources=(prefix,))
            continue
        attributes = (node.state or node.entries) if isinstance(node, Stub) else node
        for key, value in reversed(attributes.items()) if isinstance(attributes, dict) else ():
            if type(key) in (str, int) and isinstance(value, (Tensor, Stub, dict)):
                pending.append((f"{prefix}.{key}" if prefix else str(key), value))
                budget -= len(pending[-1][0])
            budget -= 1
            if budget < 0:
                raise CorruptFile("the names in the checkpoint go on without end: fetch it again")
    return found


def read_npz(path: Path) -> dict[str, Tensor]:
    """The arrays of a .npz archive, unread: plain numbers, and bfloat16 as MLX writes it (two opaque bytes).

    Raises `SourceNotFound`, and `CorruptFile` where the archive is cut or malformed, or holds objects, text or anything
    else that is no tensor. The format: numpy.lib.format.
    """
    with _mapped(path) as mapped:
        return {name.removesuffix(".npy"): _array(name, *part) for name, part in _members(path, mapped).items()}


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    """The file, mapped. What goes wrong meanwhile becomes one of our errors."""
    with reading(path), path.open("rb") as file:
        try:
            yield mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except MALFORMED as error:
            raise CorruptFile(f"truncated or malformed ({type(error).__name__}): fetch it again") from error


def _unpack(path: Path, mapped: mmap.mmap, start: int, info: zipfile.ZipInfo) -> np.ndarray:
    """The bytes of a file in an archive; a view of the mapped archive unless they are compressed."""
    packed = memoryview(mapped)[start : start + info.compress_size]
    if info.compress_type == zipfile.ZIP_STORED:
        return np.frombuffer(packed, np.uint8)
    try:
        data = zlib.decompressobj(-15).decompress(packed, info.file_size + 1)
    except zlib.error:
        data = b""
    if len(data) != info.file_size or zlib.crc32(data) != info.CRC:
        raise CorruptFile(f"{path}: a compressed part of it is damaged: fetch it again")
    return np.frombuffer(data, np.uint8)


def _members(path: Path, mapped: mmap.mmap) -> dict[str, tuple[int, Read]]:
    """The files in a zip archive: how many bytes each has, and what reads them."""
    members: dict[str, tuple[int, Read]] = {}
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
    if sum(info.file_size for info in infos) > max(MAX_PICKLE, MAX_RATIO * len(mapped)):
        raise CorruptFile("unpacks to far more than a checkpoint of its size would: fetch it again")
    for info in infos:
        stored = info.compress_type == zipfile.ZIP_STORED
        if info.flag_bits & 0x41 or not (stored or info.compress_type == zipfile.ZIP_DEFLATED):
            raise CorruptFile("encrypted, or compressed by another method than deflate: save it again without")
        # The name and the extra field before the data can be longer than in the archive's directory.
        signature, name, extra = struct.unpack_from("<4s22xHH", mapped, info.header_offset)
        start, packed = info.header_offset + 30 + name + extra, info.compress_size
        fits = info.header_offset >= 0 and start + packed <= len(mapped) and (packed == info.file_size or not stored)
        if not fits or signature != b"PK\x03\x04" or info.filename in members:
            raise zipfile.BadZipFile
        members[info.filename] = info.file_size, partial(_unpack, path, mapped, start, info)
    return members


def _array(name: str, size: int, read: Read) -> Tensor:
    file = io.BytesIO(read()[: 16 * 1024].tobytes())  # NumPy reads headers up to 10 000 bytes
    version, npy = np.lib.format.read_magic(file), np.lib.format
    shape, fortran, kind = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(file)
    if kind.name not in (*DTYPES.values(), "void16") or kind.names or not kind.isnative:
        raise CorruptFile(f"{name[:200]!r} in it holds {str(kind)[:40]!r}, which is no tensor: save it without")
    dtype, header = "bfloat16" if kind.kind == "V" else kind.name, file.tell()
    strides = [math.prod(shape[:i] if fortran else shape[i + 1 :]) for i in range(len(shape))]
    storage = _Storage(name, (), None, [], {}, dtype, size - header, lambda: read()[header:])
    return replace(_tensor(storage, dtype, 0, shape, strides), sources=(name.removesuffix(".npy"),))


def _tensor(storage: _Storage, dtype: str, offset: Any, shape: Any, strides: Any) -> Tensor:
    """The view of `storage` that these numbers of elements describe, once it is certain that it stays inside."""
    shape, strides, width = tuple(shape), tuple(strides), itemsize(dtype)
    numbers = (offset, *shape, *strides) if len(shape) == len(strides) <= 32 else (None,)
    most = max(MAX_PICKLE, MAX_RATIO * storage.nbytes)  # a stride of 0 makes many values of one
    if not all(type(n) is int and 0 <= n < 2**63 for n in numbers) or math.prod(n or 1 for n in shape) * width > most:
        raise CorruptFile("has a tensor of an impossible shape: fetch it again")
    if 0 in shape:
        offset, strides = 0, (0,) * len(shape)  # nothing is read, whatever they are
    elif (offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) + 1) * width > storage.nbytes:
        raise CorruptFile("has a tensor that reaches outside its storage: fetch it again")
    # The stride of a dimension of one means nothing, and can be too large for NumPy.
    steps = tuple(step * width if n > 1 else 0 for n, step in zip(shape, strides, strict=True))
    return Tensor(shape, dtype, lambda: np.ndarray(shape, stored(dtype), storage.read(), offset * width, steps))


def _read_zip(path: Path, mapped: mmap.mmap) -> object:
    members = _members(path, mapped)
    tops = [name.removesuffix("data.pkl") for name in members if re.fullmatch(r"[^/]+/data\.pkl", name)]
    if len(tops) != 1:
        raise CorruptFile("a zip archive, but not one of PyTorch (no data.pkl in its folder): check what it is")
    if tops[0] + "byteorder" in members and members[tops[0] + "byteorder"][1]()[:16].tobytes() != b"little":
        raise CorruptFile("written on a big-endian machine: save it again on another")
    size, pickled = members[tops[0] + "data.pkl"]
    if size > MAX_PICKLE:
        raise CorruptFile(f"its pickle has {size} bytes, too many for a checkpoint: fetch it again")

    def place(key: str, dtype: str, nbytes: int) -> Read:
        size, read = members[f"{tops[0]}data/{key}"]
        if size < nbytes:
            raise CorruptFile("the values of a tensor are missing: fetch it again")
        return read

    return _Unpickler(_Metered(pickled().tobytes()), place).load()


def _read_legacy(mapped: mmap.mmap) -> object:
    """Pickles of magic number, version, machine, object and keys; then a count and the values for every key."""
    stored: dict[str, tuple[str, int]] = {}
    places: dict[str, int] = {}

    def place(key: str, dtype: str, nbytes: int) -> Read:
        if stored.setdefault(key, (dtype, nbytes)) != (dtype, nbytes):
            raise CorruptFile("its tensors disagree about the place of their values: fetch it again")
        return lambda: np.frombuffer(mapped, np.uint8, nbytes, places[key])

    if mapped[:2] != b"\x80\x02":
        raise CorruptFile("not a PyTorch file: check what it is, or fetch it again")
    file = _Metered(mapped[:MAX_PICKLE])
    magic, version, machine, tree, keys = (_Unpickler(file, place).load() for _ in range(5))
    if (magic, version, machine["little_endian"]) != (*LEGACY, True):
        raise CorruptFile("not of a little-endian PyTorch: check what it is, or save it again on another machine")
    at = file.tell()
    for key in keys:
        (dtype, nbytes), count = stored[key], struct.unpack_from("<q", mapped, at)[0]
        places[key], at = at + 8, at + 8 + nbytes
        if count * itemsize(dtype) != nbytes or at > len(mapped):
            raise EOFError
    if len(places) != len(stored):
        raise EOFError
    return tree


class _Metered(io.BytesIO):
    """The bytes of a pickle, for as many reads and copies as a checkpoint can need."""

    left = MAX_STEPS

    def spend(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise CorruptFile("its pickle has too many steps for a checkpoint: fetch it again")

    def read(self, size: int | None = -1, /) -> bytes:  # readline is called only after a read
        self.spend(1)
        return super().read(size)


class _Unpickler(pickle._Unpickler):
    """Every opcode that could reach a method of an object, or take memory before its bytes are there, is replaced.

    The pure-Python unpickler, on purpose: its memo is a dict. The compiled one's is an array as long as the largest
    index in the file, so that five hostile bytes take 16 GB; and single opcodes of it cannot be replaced.
    """

    stack: list[Any]

    def __init__(self, file: _Metered, place: Callable[[str, str, int], Any]) -> None:
        super().__init__(file, encoding="utf-8")
        self.spend, self.place = file.spend, place
        self.names: dict[str, Stub] = {}

    def find_class(self, module: str, name: str) -> Stub:
        """The stub that stands for a name. Nothing is imported and nothing looked up."""
        name = f"{'builtins' if module == '__builtin__' else module}.{name}"
        self.spend(0 if name in self.names else len(name))
        return self.names.setdefault(name, Stub(name))

    def persistent_load(self, pid: Any) -> Stub:
        """("storage", type, key, device, length[, view]), or ("module", class, file, source) around a whole module."""
        if pid[0] == "module" and isinstance(pid[1], Stub):
            return pid[1]
        word, kind, key, _, count, *view = pid
        found = re.fullmatch(r"torch\.(?:cuda\.|storage\.)?(\w{1,40})Storage", kind.name)
        if word != "storage" or not found or type(key) is not str or type(count) is not int or not 0 <= count < 2**63:
            raise pickle.UnpicklingError
        if found[1] not in STORAGES or view not in ([], [None]):  # views: PyTorch before 0.4
            raise _unreadable(found[1] if found[1] not in STORAGES else "storage view")
        dtype = STORAGES[found[1]]
        nbytes = count * itemsize(dtype)
        return _Storage(kind.name, (key,), None, [], {}, dtype, nbytes, self.place(key, dtype, nbytes))

    def call(self, callee: Any, args: Any, kwargs: Any = None) -> object:
        """What the call of a stub gives. Every call that a file asks for ends here."""
        if not isinstance(callee, Stub):
            raise pickle.UnpicklingError
        args = (*self.copied(args), kwargs) if kwargs else tuple(self.copied(args))
        if self.names.get(callee.name) is not callee:
            return Stub("()", (callee, *args))
        if callee.name in KNOWN:
            return KNOWN[callee.name](self, *args)
        if callee.name.startswith("torch._utils._rebuild_"):
            raise _unreadable(callee.name.removeprefix("torch._utils._rebuild_").replace("qtensor", "quantized"))
        return Stub(callee.name, args)

    def copied(self, items: Any = ()) -> list:
        """The items of a container (of a dict: pairs), paid for: a short pickle can ask for many."""
        if type(items) not in (list, tuple, set, frozenset, dict):
            raise pickle.UnpicklingError
        self.spend(len(items))
        return list(items.items() if type(items) is dict else items)

    def _instantiate(self, klass: Any, args: Any, kwargs: Any = None) -> None:  # INST and OBJ come here by themselves
        self.stack.append(self.call(klass, args, kwargs))

    def inside(self, part: str) -> Any:
        """What items go to: the container on top of the stack, or the part of a stub that is one."""
        return getattr(self.stack[-1], part) if isinstance(self.stack[-1], Stub) else self.stack[-1]

    def extend(self, items: list) -> None:
        target = self.inside("items")
        list.extend(target, items) if type(target) is list else set.update(target, map(_key, items))

    def put(self, pairs: list) -> None:
        dict.update(self.inside("entries"), [(_key(pairs[i]), pairs[i + 1]) for i in range(0, len(pairs), 2)])

    def build(self, state: Any) -> None:
        if isinstance(self.stack[-1], Stub):  # of containers and tensors, attributes are not kept
            object.__setattr__(self.stack[-1], "state", state)  # frozen, but it may be part of its own state

    # fmt: off
    dispatch: ClassVar[dict[int, Callable[[Any], object]]] = {
        **pickle._Unpickler.dispatch,
        pickle.REDUCE[0]: lambda self: self._instantiate(self.stack.pop(-2), self.stack.pop()),
        pickle.NEWOBJ[0]: lambda self: self._instantiate(self.stack.pop(-2), self.stack.pop()),
        pickle.NEWOBJ_EX[0]: lambda self: self._instantiate(*(self.stack.pop(i) for i in (-3, -2, -1))),
        pickle.BUILD[0]: lambda self: self.build(self.stack.pop()),
        pickle.APPEND[0]: lambda self: self.extend([self.stack.pop()]),
        **dict.fromkeys((pickle.APPENDS[0], pickle.ADDITEMS[0]), lambda self: self.extend(self.pop_mark())),
        pickle.SETITEM[0]: lambda self: self.put([self.stack.pop(-2), self.stack.pop()]),
        pickle.SETITEMS[0]: lambda self: self.put(self.pop_mark()),
        pickle.DICT[0]: lambda self: (pairs := self.pop_mark(), self.append({}), self.put(pairs)),
        pickle.FROZENSET[0]: lambda self: (items := self.pop_mark(), self.append(frozenset(map(_key, items)))),
        pickle.BYTEARRAY8[0]: lambda self: self.append(bytearray(self.read(struct.unpack("<Q", self.read(8))[0]))),
        pickle.FRAME[0]: lambda self: self.read(8),  # only says how much to read ahead, which would not be counted
    }
    # fmt: on
    for _code in (pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER):
        del dispatch[_code[0]]  # names registered in the process, bytes from outside the file


def _key(key: Any, depth: int = 2) -> Any:
    """`key`, if its hash is cheap; that of tuples of tuples of tuples can take for ever."""
    if type(key) is tuple and depth and len(key) <= 16:
        return tuple(_key(part, depth - 1) for part in key)
    if key is None or isinstance(key, (str, bytes, float, Stub)) or (isinstance(key, int) and key.bit_length() <= 64):
        return key
    raise pickle.UnpicklingError


def _dict(reader: _Unpickler, pairs: Any = ()) -> dict:
    return {_key(key): value for key, value in reader.copied(pairs)}


def _bytes(reader: _Unpickler, text: Any = b"", encoding: Any = "latin1") -> bytes:
    """Bytes as old protocols spell them, in latin1; other codecs could unpack, or take for ever."""
    if type(text) not in (str, bytes) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError
    reader.spend(len(text))
    return text.encode("latin1") if isinstance(text, str) else text


def _rebuild(storage: Any, view: tuple, kind: Any = None, meta: Any = None) -> Tensor:
    if meta or (kind and kind.name not in DTYPES):
        raise _unreadable("negated or conjugated" if meta else kind.name)
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError
    return _tensor(storage, DTYPES[kind.name] if kind else storage.dtype, *view)


def _unreadable(kind: str) -> CorruptFile:
    kind = re.sub(r"\W+", " ", kind.removeprefix("torch.").removesuffix("_tensor"))[:40]
    return CorruptFile(f"has a {kind} tensor, which cannot be converted: save it as a plain one")


# fmt: off
# What is carried out. Arguments 3 and 4 after a storage, and those after a parameter, are gradients, hooks and state.
KNOWN: dict[str, Callable[..., object]] = {
    "builtins.list": _Unpickler.copied,
    **dict.fromkeys(("builtins.tuple", "torch.Size"), lambda reader, items=(): tuple(reader.copied(items))),
    "builtins.set": lambda reader, items=(): set(map(_key, reader.copied(items))),
    "builtins.frozenset": lambda reader, items=(): frozenset(map(_key, reader.copied(items))),
    **dict.fromkeys(("builtins.bytes", "_codecs.encode"), _bytes),
    "builtins.bytearray": lambda reader, *args: bytearray(_bytes(reader, *args)),
    **dict.fromkeys(("builtins.dict", "collections.OrderedDict"), _dict),
    "collections.defaultdict": lambda reader, _=None, pairs=(): _dict(reader, pairs),
    "torch._utils._rebuild_tensor": lambda reader, storage, *view: _rebuild(storage, view),
    "torch._utils._rebuild_tensor_v2": lambda reader, storage, *args: _rebuild(storage, args[:3], None, *args[5:]),
    "torch._utils._rebuild_tensor_v3": lambda reader, storage, *args: _rebuild(storage, args[:3], *args[5:]),
    **{f"torch._utils._rebuild_parameter{end}": lambda reader, tensor, *_: tensor for end in ("", "_with_state")},
    "torch._tensor._rebuild_from_type_v2": lambda reader, function, kind, args, state: reader.call(function, args),
    "torch.jit._pickle.restore_type_tag": lambda reader, value, kind: value,
    **{f"torch.jit._pickle.build_{kind}list": _Unpickler.copied for kind in ("int", "double", "bool", "tensor")},
}
