"""A pickle read without running anything it asks for.

A pickle is a small program: it may name any function of any module and call it. Here a name is never looked up. The
unpickler's stack only ever holds plain values, tensors and `Stub`s; a call of one of the few names in `KNOWN`
(containers, tensors) is carried out by this module, any other call makes another `Stub`.
"""

from __future__ import annotations

import io
import pickle
import re
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, NoReturn

import numpy as np

from mlx_speech.convert.formats.storage import Read, Storage, strided
from mlx_speech.errors import CorruptFile
from mlx_speech.tensors import Tensor, itemsize

MAX_STEPS = 4_000_000  # reads and copied items: one byte of a pickle can cost 200 bytes of memory
MAX_KEY_BITS = 64  # of a number that is a key
MAX_KEY_PARTS = 16  # of a tuple that is a key
MAX_KEY_DEPTH = 2  # tuples in tuples in a key
MAX_NAME_SHOWN = 40  # characters of a name in a message

# torch.FloatStorage and so on → ours
STORAGES = {
    "Float": "float32",
    "Double": "float64",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Bool": "bool",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Untyped": "uint8",
}
DTYPES = {f"torch.{name}": name for name in (*STORAGES.values(), "uint16", "uint32", "uint64")}
STORAGE_NAME = re.compile(r"torch\.(?:cuda\.|storage\.)?(\w{1,40})Storage")

# Key, dtype and number of bytes of a storage → what reads it.
Place = Callable[[str, str, int], Read]


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
class StorageStub(Stub):
    """What stands for torch's storages: the bytes that tensors are views of."""

    storage: Storage = field(default_factory=lambda: Storage("uint8", 0, _no_bytes))


def _no_bytes() -> np.ndarray:
    return np.empty(0, np.uint8)


class MeteredPickle(io.BytesIO):
    """The bytes of a pickle, for as many reads and copies as a checkpoint can need."""

    left = MAX_STEPS

    def spend(self, count: int) -> None:
        """Take `count` steps. Raises `CorruptFile` where none are left."""
        self.left -= count
        if self.left < 0:
            raise CorruptFile("its pickle has too many steps for a checkpoint: fetch it again")

    def read(self, size: int | None = -1, /) -> bytes:  # readline is called only after a read
        self.spend(1)
        return super().read(size)


class Unpickler(pickle._Unpickler):
    """Every opcode that could reach a method of an object, or take memory before its bytes are there, is replaced.

    The pure-Python unpickler, on purpose: its memo is a dict. The compiled one's is an array as long as the largest
    index in the file, so that five hostile bytes take 16 GB; and single opcodes of it cannot be replaced.
    """

    # The base class has these, and says nothing of them to type checkers.
    stack: list[Any]
    pop_mark: Callable[[], list[Any]]
    read: Callable[[int], bytes]
    dispatch: ClassVar[dict[int, Callable[[Any], object]]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: MeteredPickle, place: Place) -> None:
        super().__init__(file, encoding="utf-8")
        self.spend = file.spend
        self.place = place
        self.names: dict[str, Stub] = {}

    # --- names and calls ---------------------------------------------------------------------------------------------

    def find_class(self, module: str, name: str) -> Stub:
        """The stub that stands for a name. Nothing is imported and nothing looked up."""
        if module == "__builtin__":  # Python 2's
            module = "builtins"
        full_name = f"{module}.{name}"
        if full_name not in self.names:
            self.spend(len(full_name))
            self.names[full_name] = Stub(full_name)
        return self.names[full_name]

    def persistent_load(self, pid: Any) -> Stub:
        """("storage", type, key, device, length[, view]), or ("module", class, file, source) around a whole module."""
        if pid[0] == "module" and isinstance(pid[1], Stub):
            return pid[1]
        word, kind, key, _, count, *view = pid
        match = STORAGE_NAME.fullmatch(kind.name)
        if word != "storage" or match is None or type(key) is not str:
            raise pickle.UnpicklingError
        if type(count) is not int or not 0 <= count < 2**63:
            raise pickle.UnpicklingError
        if match[1] not in STORAGES:
            _refuse_tensor(match[1])
        if view not in ([], [None]):  # of PyTorch before 0.4
            _refuse_tensor("storage view")
        dtype = STORAGES[match[1]]
        nbytes = count * itemsize(dtype)
        storage = Storage(dtype, nbytes, self.place(key, dtype, nbytes))
        return StorageStub(kind.name, (key,), storage=storage)

    def call(self, callee: Any, args: Any, kwargs: Any = None) -> object:
        """What the call of a stub gives. Every call that a file asks for ends here."""
        if not isinstance(callee, Stub):
            raise pickle.UnpicklingError
        arguments = tuple(self.copied(args))
        if kwargs:
            arguments = (*arguments, kwargs)
        # Only a name itself may be known. What a call gave may have any name, but is not what the name stands for.
        if self.names.get(callee.name) is not callee:
            return Stub("()", (callee, *arguments))
        if callee.name in KNOWN:
            return KNOWN[callee.name](self, *arguments)
        if callee.name.startswith("torch._utils._rebuild_"):
            kind = callee.name.removeprefix("torch._utils._rebuild_")
            _refuse_tensor(kind.replace("qtensor", "quantized"))
        return Stub(callee.name, arguments)

    def copied(self, items: Any = ()) -> list:
        """The items of a container (of a dict: pairs), paid for: a short pickle can ask for many."""
        if type(items) not in (list, tuple, set, frozenset, dict):
            raise pickle.UnpicklingError
        self.spend(len(items))
        return list(items.items() if type(items) is dict else items)

    # --- containers and stubs on the stack ---------------------------------------------------------------------------

    def extend(self, items: list) -> None:
        """Put `items` into the list or set on top of the stack, or among the items of the stub there."""
        target: Any = self.stack[-1]
        if isinstance(target, Stub):
            target = target.items
        # The types' own methods: what lies there can have no other, and everything else is refused by them.
        if type(target) is list:
            list.extend(target, items)
        else:
            set.update(target, _keys(items))

    def put(self, pairs: list) -> None:
        """Put keys and values, which alternate in `pairs`, into the dict or the stub on top of the stack."""
        target = self.stack[-1]
        if isinstance(target, Stub):
            target = target.entries
        entries = [(_key(pairs[i]), pairs[i + 1]) for i in range(0, len(pairs), 2)]
        dict.update(target, entries)

    # --- opcodes -----------------------------------------------------------------------------------------------------

    def _instantiate(self, klass: Any, args: Any) -> None:
        """What the opcodes INST and OBJ call a class with; theirs would run it."""
        self.stack.append(self.call(klass, args))

    def load_reduce(self) -> None:
        """Call a function with a tuple of arguments; pickle's own would run it."""
        args = self.stack.pop()
        callee = self.stack.pop()
        self.stack.append(self.call(callee, args))

    dispatch[pickle.REDUCE[0]] = load_reduce
    # `cls.__new__(cls, *args)` is a call, too.
    dispatch[pickle.NEWOBJ[0]] = load_reduce

    def load_newobj_ex(self) -> None:
        """The same with keyword arguments."""
        kwargs = self.stack.pop()
        args = self.stack.pop()
        callee = self.stack.pop()
        self.stack.append(self.call(callee, args, kwargs))

    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex

    def load_build(self) -> None:
        """Set an object's state; pickle's own would call its `__setstate__`, or update its `__dict__`.

        Only stubs keep theirs: of containers and tensors, attributes are dropped.
        """
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Stub):
            object.__setattr__(target, "state", state)  # frozen, but it may be part of its own state

    dispatch[pickle.BUILD[0]] = load_build

    def load_append(self) -> None:
        """Append one item; pickle's own would call the object's `append`."""
        self.extend([self.stack.pop()])

    dispatch[pickle.APPEND[0]] = load_append

    def load_appends(self) -> None:
        """Append or add many items; pickle's own would call the object's `extend` or `add`."""
        self.extend(self.pop_mark())

    dispatch[pickle.APPENDS[0]] = load_appends
    dispatch[pickle.ADDITEMS[0]] = load_appends

    def load_setitem(self) -> None:
        """Store one value by its key; pickle's own would call the object's `__setitem__`, and hash any key."""
        value = self.stack.pop()
        key = self.stack.pop()
        self.put([key, value])

    dispatch[pickle.SETITEM[0]] = load_setitem

    def load_setitems(self) -> None:
        """The same for many."""
        self.put(self.pop_mark())

    dispatch[pickle.SETITEMS[0]] = load_setitems

    def load_dict(self) -> None:
        """Make a dict; pickle's own would hash any key."""
        pairs = self.pop_mark()
        self.stack.append({})
        self.put(pairs)

    dispatch[pickle.DICT[0]] = load_dict

    def load_frozenset(self) -> None:
        """Make a frozenset; pickle's own would hash any item."""
        items = self.pop_mark()
        self.stack.append(frozenset(_keys(items)))

    dispatch[pickle.FROZENSET[0]] = load_frozenset

    def load_bytearray8(self) -> None:
        """Read a bytearray; pickle's own would take its memory before it knows that the bytes are there."""
        (length,) = struct.unpack("<Q", self.read(8))
        self.stack.append(bytearray(self.read(length)))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

    def load_frame(self) -> None:
        """Skip a frame's length: it only says how much to read ahead, and that would not be counted."""
        self.read(8)

    dispatch[pickle.FRAME[0]] = load_frame

    # Names registered in this process, and bytes from outside the file: there are none here.
    del dispatch[pickle.EXT1[0]]
    del dispatch[pickle.EXT2[0]]
    del dispatch[pickle.EXT4[0]]
    del dispatch[pickle.NEXT_BUFFER[0]]
    del dispatch[pickle.READONLY_BUFFER[0]]


def _key(key: Any, depth: int = MAX_KEY_DEPTH) -> Any:
    """`key`, if its hash is cheap; that of tuples of tuples of tuples can take for ever."""
    if type(key) is tuple and depth > 0 and len(key) <= MAX_KEY_PARTS:
        return tuple(_key(part, depth - 1) for part in key)
    if key is None or isinstance(key, (str, bytes, float, Stub)):
        return key
    if isinstance(key, int) and key.bit_length() <= MAX_KEY_BITS:
        return key
    raise pickle.UnpicklingError


def _keys(items: Iterable[Any]) -> list[Any]:
    return [_key(item) for item in items]


# --- what is carried out ---------------------------------------------------------------------------------------------


def _make_list(reader: Unpickler, items: Any = ()) -> list:
    return reader.copied(items)


def _make_tuple(reader: Unpickler, items: Any = ()) -> tuple:
    return tuple(reader.copied(items))


def _make_set(reader: Unpickler, items: Any = ()) -> set:
    return set(_keys(reader.copied(items)))


def _make_frozenset(reader: Unpickler, items: Any = ()) -> frozenset:
    return frozenset(_keys(reader.copied(items)))


def _make_dict(reader: Unpickler, pairs: Any = ()) -> dict:
    return {_key(key): value for key, value in reader.copied(pairs)}


def _make_defaultdict(reader: Unpickler, factory: Any = None, pairs: Any = ()) -> dict:
    """As a plain dict: what makes its defaults is a function."""
    return _make_dict(reader, pairs)


def _make_bytes(reader: Unpickler, text: Any = b"", encoding: Any = "latin1") -> bytes:
    """Bytes as old protocols spell them, in latin1; other codecs could unpack, or take for ever."""
    if type(text) not in (str, bytes) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError
    reader.spend(len(text))
    return text.encode("latin1") if isinstance(text, str) else text


def _make_bytearray(reader: Unpickler, text: Any = b"", encoding: Any = "latin1") -> bytearray:
    return bytearray(_make_bytes(reader, text, encoding))


def _rebuild_tensor(reader: Unpickler, storage: Any, offset: Any, shape: Any, strides: Any) -> Tensor:
    return _view(storage, offset, shape, strides, dtype=None)


def _rebuild_tensor_v2(
    reader: Unpickler,
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    requires_grad: Any = None,
    hooks: Any = None,
    metadata: Any = None,
) -> Tensor:
    if metadata:
        _refuse_tensor("negated or conjugated")
    return _view(storage, offset, shape, strides, dtype=None)


def _rebuild_tensor_v3(
    reader: Unpickler,
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    requires_grad: Any = None,
    hooks: Any = None,
    dtype: Any = None,
    metadata: Any = None,
) -> Tensor:
    if metadata:
        _refuse_tensor("negated or conjugated")
    return _view(storage, offset, shape, strides, dtype)


def _view(storage: Any, offset: Any, shape: Any, strides: Any, dtype: Any) -> Tensor:
    """The tensor that a file describes. dtype : the stub of torch's; None for the storage's own"""
    if dtype and dtype.name not in DTYPES:
        _refuse_tensor(dtype.name)
    if not isinstance(storage, StorageStub):
        raise pickle.UnpicklingError
    name = DTYPES[dtype.name] if dtype else storage.storage.dtype
    return strided(storage.storage, name, offset, shape, strides)


def _rebuild_parameter(reader: Unpickler, tensor: Any, *gradient_hooks_and_state: Any) -> Any:
    return tensor


def _rebuild_from_type(reader: Unpickler, function: Any, kind: Any, args: Any, state: Any) -> object:
    """A tensor with attributes of its own, which are dropped."""
    return reader.call(function, args)


def _restore_type_tag(reader: Unpickler, value: Any, kind: Any) -> Any:
    """TorchScript's word on the types of a container's items."""
    return value


def _refuse_tensor(kind: str) -> NoReturn:
    """Raises `CorruptFile` for a kind of tensor that has no plain values."""
    short = kind.removeprefix("torch.").removesuffix("_tensor")
    plain = re.sub(r"\W+", " ", short)[:MAX_NAME_SHOWN]
    raise CorruptFile(f"has a {plain} tensor, which cannot be converted: save it as a plain one")


KNOWN: dict[str, Callable[..., object]] = {
    "builtins.list": _make_list,
    "builtins.tuple": _make_tuple,
    "torch.Size": _make_tuple,
    "builtins.set": _make_set,
    "builtins.frozenset": _make_frozenset,
    "builtins.bytes": _make_bytes,
    "_codecs.encode": _make_bytes,
    "builtins.bytearray": _make_bytearray,
    "builtins.dict": _make_dict,
    "collections.OrderedDict": _make_dict,
    "collections.defaultdict": _make_defaultdict,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.jit._pickle.restore_type_tag": _restore_type_tag,
    "torch.jit._pickle.build_intlist": _make_list,
    "torch.jit._pickle.build_doublelist": _make_list,
    "torch.jit._pickle.build_boollist": _make_list,
    "torch.jit._pickle.build_tensorlist": _make_list,
}
