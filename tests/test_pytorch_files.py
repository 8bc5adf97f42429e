"""Checkpoints read as PyTorch and NumPy read them, to the bit; and files that try to do harm do none."""

from __future__ import annotations

import collections
import copyreg
import importlib.util
import io
import math
import pickle
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import absent
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_speech.convert.formats import pytorch, unpickler
from mlx_speech.convert.formats.npz import read_npz
from mlx_speech.convert.formats.pytorch import read_torch, state_dict
from mlx_speech.convert.formats.unpickler import Stub
from mlx_speech.errors import CorruptFile, SourceError, SourceNotFound
from mlx_speech.tensors import Tensor

torch.set_num_threads(1)

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.uint16,
    torch.uint32,
    torch.uint64,
]
FORMATS = {
    "zip": {},
    "zip, protocol 4": {"pickle_protocol": 4},
    "legacy": {"_use_new_zipfile_serialization": False},
}


def same(ours: object, theirs: object) -> None:
    """Equal in structure, types, shapes, dtypes and every bit."""
    if isinstance(theirs, torch.Tensor):
        assert isinstance(ours, Tensor)
        assert ours.shape == tuple(theirs.shape)
        assert f"torch.{ours.dtype}" == str(theirs.dtype)
        theirs = theirs.detach()
        bits = theirs.view(torch.int16).numpy().view(np.uint16) if theirs.dtype == torch.bfloat16 else theirs.numpy()
        raw = ours.raw()
        assert raw.dtype == bits.dtype and raw.shape == bits.shape
        assert np.ascontiguousarray(raw).tobytes() == np.ascontiguousarray(bits).tobytes()
        values = theirs.float() if theirs.dtype == torch.bfloat16 else theirs
        np.testing.assert_array_equal(ours.numpy(), values.numpy())
    elif isinstance(theirs, dict):
        assert type(ours) is dict and list(ours) == list(theirs)
        for key in theirs:
            same(ours[key], theirs[key])
    elif isinstance(theirs, (list, tuple)):
        assert type(ours) is (list if isinstance(theirs, list) else tuple) and len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            same(one, other)
    else:
        assert type(ours) is type(theirs) and ours == theirs


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.Sequential(torch.nn.Conv1d(3, 4, 5), torch.nn.BatchNorm1d(4))
        self.lstm = torch.nn.LSTM(4, 6, bidirectional=True)
        self.register_buffer("window", torch.hann_window(7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(self.blocks(x).transpose(1, 2))[0]


def tree() -> dict:
    torch.manual_seed(0)
    base = torch.randn(4, 6)
    kinds = {str(dtype): (torch.randn(3, 5) * 40).abs().to(dtype) for dtype in DTYPES}
    return {
        "kinds": kinds,
        "views": [base, base[1:, 2:5], base.T, base[:, ::2], base.view(-1)[3:], torch.ones(1).expand(7, 2)],
        "edges": (torch.tensor(2.5), torch.zeros(0), torch.zeros(3, 0, 2), torch.randn(1, 1), torch.randn(2, 1).T),
        "parameter": torch.nn.Parameter(torch.randn(2, 3)),
        "ordered": collections.OrderedDict(b=torch.randn(3), a=torch.ones(2, dtype=torch.int64)),
        "default": collections.defaultdict(list, {"x": [1]}),
        "numbers": [
            1,
            -1,
            2**40,
            -(2**70),
            1.5,
            math.inf,
            True,
            None,
            "ü\n",
            b"\x00\xff",
        ],
        "sets": [set(), {1, "a"}, frozenset({(1, 2)})],
        "empty": [{}, [], (), b"", ""],
        ("a", 1): {3: torch.Size([2, 3])},
    }


@pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS.keys())
def test_reads_what_torch_reads(tmp_path: Path, options: dict) -> None:
    path = tmp_path / "x.pt"
    saved = tree()
    if "_use_new_zipfile_serialization" in options:  # torch writes these in the old format, but fails to read them
        for kind in ("torch.uint16", "torch.uint32", "torch.uint64"):
            del saved["kinds"][kind]
    torch.save(saved, path, **options)
    same(read_torch(path), torch.load(path, weights_only=False))


@pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS.keys())
def test_state_dict_of_a_module(tmp_path: Path, options: dict) -> None:
    path = tmp_path / "x.bin"
    torch.save({"epoch": 3, "model": Net().state_dict()}, path, **options)
    found = state_dict(read_torch(path))
    theirs = torch.load(path, weights_only=False)["model"]
    same({name.removeprefix("model."): tensor for name, tensor in found.items()}, theirs)
    assert all(tensor.sources == (name,) for name, tensor in found.items())


def test_a_tensor_with_attributes_of_its_own(tmp_path: Path) -> None:
    tensor, parameter = torch.randn(3), torch.nn.Parameter(torch.randn(2))
    tensor.origin, parameter.origin = "x", "y"
    torch.save([tensor, parameter], tmp_path / "x.pt")
    same(read_torch(tmp_path / "x.pt"), [tensor, parameter])


def test_whole_modules_come_as_stubs(tmp_path: Path) -> None:
    for options in FORMATS.values():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's word on pickling classes
            torch.save(Net(), tmp_path / "x.pt", **options)
        found = read_torch(tmp_path / "x.pt")
        assert isinstance(found, Stub) and found.name.endswith("test_pytorch_files.Net")
        assert found.state["_buffers"]["window"].shape == (7,)


def test_torchscript(tmp_path: Path) -> None:
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.script(Net()).save(str(tmp_path / "net.jit"))
        theirs = torch.jit.load(str(tmp_path / "net.jit")).state_dict()
    found = state_dict(read_torch(tmp_path / "net.jit"))
    assert set(found) >= set(theirs)
    same({name: found[name] for name in theirs}, dict(theirs))


def test_the_silero_archive() -> None:
    path = Path(importlib.util.find_spec("silero_vad").submodule_search_locations[0]) / "data" / "silero_vad.jit"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = torch.jit.load(str(path)).state_dict()
    found = state_dict(read_torch(path))
    same({name: found[name] for name in theirs}, dict(theirs))
    assert "_model.encoder.0.reparam_conv.weight" in theirs
    # attributes that are no buffers: what the model remembers between calls
    assert {name.rpartition(".")[2] for name in set(found) - set(theirs)} <= {"_state", "_context", "state", "context"}


def test_a_lightning_checkpoint_of_pyannote() -> None:
    spec = importlib.util.find_spec("whisperx")
    if spec is None:
        absent("whisperx, whose package holds this checkpoint, is not installed")
    path = Path(spec.submodule_search_locations[0]) / "assets" / "pytorch_model.bin"
    found = read_torch(path)
    theirs = torch.load(path, weights_only=False, pickle_module=stubbing, map_location="cpu")
    assert len(found["state_dict"]) == 54
    same(found["state_dict"], dict(theirs["state_dict"]))
    optimizer = found["optimizer_states"][0]["state"]
    same(state_dict(optimizer), state_dict_of_torch(theirs["optimizer_states"][0]["state"]))
    assert found["hyper_parameters"]["sample_rate"] == 16000
    assert found["hyper_parameters"]["lstm"]["num_layers"] == 4
    specifications = found["pyannote.audio"]["specifications"]
    assert specifications.name == "pyannote.audio.core.task.Specifications"
    assert specifications.state["duration"] == 5.0
    assert len(specifications.state["classes"]) == 3
    problem = specifications.state["problem"]
    assert (problem.name, problem.args) == ("pyannote.audio.core.task.Problem", (2,))


class Anything:
    """Takes the place of classes that are not installed."""

    def __init__(self, *args: object) -> None: ...
    def __setstate__(self, state: object) -> None: ...
    def __setitem__(self, key: object, value: object) -> None: ...


class stubbing:  # what torch.load wants to find in a pickle module
    class Unpickler(pickle._Unpickler):
        def find_class(self, module: str, name: str) -> object:
            if module.startswith(("omegaconf", "pyannote")):
                return Anything
            return super().find_class(module, name)


def state_dict_of_torch(tree: dict, prefix: str = "") -> dict:
    found = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found.update(state_dict_of_torch(value, f"{prefix}{key}."))
        elif isinstance(value, torch.Tensor):
            found[f"{prefix}{key}"] = value
    return found


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path: Path, save) -> None:
    rng = np.random.default_rng(0)
    kinds = ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "b1"]
    arrays = {kind: (rng.normal(size=(3, 5)) * 9).astype(kind) for kind in kinds}
    arrays |= {
        "a.b/c": np.asfortranarray(rng.normal(size=(4, 3, 2))),
        "scalar": np.array(3.0),
        "none": np.zeros((0, 2)),
    }
    arrays |= {"big": rng.normal(size=(300, 500))}
    save(tmp_path / "x.npz", **arrays)
    found = read_npz(tmp_path / "x.npz")
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        raw = found[name].raw()
        assert found[name].sources == (name,)
        assert found[name].dtype == raw.dtype.name == array.dtype.name and raw.shape == array.shape
        np.testing.assert_array_equal(raw, array, strict=True)


def test_npz_of_mlx(tmp_path: Path) -> None:
    import mlx.core as mx

    arrays = {"half": mx.random.normal((3, 4)).astype(mx.bfloat16), "full": mx.random.normal((2, 3)).T}
    mx.savez(str(tmp_path / "x.npz"), **arrays)
    found = read_npz(tmp_path / "x.npz")
    assert found["half"].dtype == "bfloat16"
    for name, array in arrays.items():
        assert mx.array_equal(found[name].mlx(), array) and found[name].mlx().dtype == array.dtype


def test_npz_of_other_things_is_refused(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "proof",)

    arrays = {"objects": np.array([Harm()]), "text": np.array(["x"]), "complex": np.ones(2, np.complex64)}
    arrays |= {"big-endian": np.ones(3, ">f4"), "records": np.zeros(2, [("a", "f4")]), "void": np.zeros(2, "V4")}
    for name, array in arrays.items():
        np.savez(tmp_path / "x.npz", **{name: array})
        refused(read_npz, tmp_path / "x.npz", name)
    assert not (tmp_path / "proof").exists()
    np.savez(tmp_path / "x.npz", objects=arrays["objects"])
    np.load(tmp_path / "x.npz", allow_pickle=True)["objects"]
    assert (tmp_path / "proof").exists()  # it was no empty threat


# --- files made by hand ---------------------------------------------------------------------------------------------


class Ref:
    """A global in a pickle, by its name alone."""

    def __init__(self, name: str) -> None:
        self.module, _, self.name = name.rpartition(".")


class Call:
    """A call in a pickle: of a Ref, or of the result of another Call."""

    def __init__(self, callee: object, *args: object) -> None:
        self.callee, self.args = Ref(callee) if isinstance(callee, str) else callee, args


class Built(Call):
    """A call whose result has its state set."""

    def __init__(self, callee: object, *args: object, state: object) -> None:
        super().__init__(callee, *args)
        self.state = state


class Storage(tuple):
    """A persistent id."""


class Writer(pickle._Pickler):
    def persistent_id(self, obj: object) -> object:
        return tuple(obj) if isinstance(obj, Storage) else None

    def save(self, obj: object, save_persistent_id: bool = True) -> None:
        if isinstance(obj, Ref):
            self.write(b"c" + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Call):
            self.save(obj.callee)
            self.save(obj.args)
            self.write(pickle.REDUCE)
            if isinstance(obj, Built):
                self.save(obj.state)
                self.write(pickle.BUILD)
        else:
            super().save(obj, save_persistent_id)


def dumps(obj: object) -> bytes:
    file = io.BytesIO()
    Writer(file, 2).dump(obj)
    return file.getvalue()


def archive(
    path: Path, pickled: bytes, values: bytes = bytes(64), method: int = zipfile.ZIP_STORED, **more: bytes
) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in {"data.pkl": pickled, "data/0": values, "byteorder": b"little", **more}.items():
            file.writestr(f"any name/{name}", data)
    return path


def legacy(path: Path, pickled: bytes, values: bytes = bytes(64)) -> Path:
    machine = {"protocol_version": 1001, "little_endian": True}
    keys = ["0"] if b"FloatStorage" in pickled else []
    data = [pickle.dumps(x, 2) for x in (pytorch.LEGACY_MAGIC, 1001, machine)] + [pickled, pickle.dumps(keys, 2)]
    path.write_bytes(b"".join(data) + (struct.pack("<q", len(values) // 4) + values if keys else b""))
    return path


def rebuilt(
    offset: object = 0, shape: object = (2, 3), strides: object = (3, 1), count: object = 16, kind: str = "Float"
) -> Call:
    storage = Storage(("storage", Ref(f"torch.{kind}Storage"), "0", "cpu", count))
    return Call("torch._utils._rebuild_tensor_v2", storage, offset, shape, strides, False, {})


def refused(read, path: Path, *words: str) -> str:
    with pytest.raises(SourceError) as caught:
        found = read(path)
        for tensor in state_dict(found).values():
            tensor.raw()
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and len(message) < 400
    assert all(word in message for word in words), message
    return message


def g(name: str) -> bytes:
    module, _, last = name.rpartition(".")
    return b"c" + f"{module}\n{last}\n".encode()


def t(text: str | Path) -> bytes:
    data = str(text).encode()
    return b"X" + struct.pack("<I", len(data)) + data


def attacks(proof: Path) -> dict[str, tuple[bytes, str]]:
    """Pickles without their end that create the file `proof` when loaded, and the name that the stub must have."""
    touch, python = f"touch {proof}", f"open({str(proof)!r}, 'w').close()"
    run = g("os.system") + t(touch) + b"\x85R"
    module = g("builtins.__import__") + t("os") + b"\x85R"
    lazy = g("builtins.map") + g("os.system") + b"]" + t(touch) + b"a\x86"  # runs when somebody iterates over it
    return {
        "os.system": (run, "os.system"),
        "posix": (g("posix.system") + t(touch) + b"\x85R", "posix.system"),
        "Popen": (g("subprocess.Popen") + b"]" + t("touch") + b"a" + t(proof) + b"a\x85R", "subprocess.Popen"),
        "eval": (g("builtins.eval") + t(python) + b"\x85R", "builtins.eval"),
        "exec": (g("builtins.exec") + t(python) + b"\x85R", "builtins.exec"),
        "old name": (g("__builtin__.eval") + t(python) + b"\x85R", "builtins.eval"),
        "call of a call": (g("builtins.getattr") + module + t("system") + b"\x86R" + t(touch) + b"\x85R", "()"),
        "nested pickle": (
            g("pickle.loads") + b"B" + struct.pack("<I", len(run) + 1) + run + b".\x85R",
            "pickle.loads",
        ),
        "INST": (b"(" + t(touch) + b"ios\nsystem\n", "os.system"),
        "OBJ": (b"(" + g("os.system") + t(touch) + b"o", "os.system"),
        "dotted": (
            t("pathlib") + t("Path.touch") + b"\x93" + g("pathlib.Path") + t(proof) + b"\x85R\x85R",
            "pathlib.Path.touch",
        ),
        "NEWOBJ": (g("builtins.bytes") + lazy + b"\x81\x85\x81", ""),
        "NEWOBJ_EX": (g("builtins.bytes") + lazy + b"}\x92\x85}\x92", ""),
        "list of a map": (g("builtins.list") + lazy + b"R\x85R", ""),
        "dict of a map": (g("collections.OrderedDict") + lazy + b"R\x85R", ""),
        "set of a map": (g("builtins.set") + lazy + b"R\x85R", ""),
        "__setstate__": (
            g("functools.partial") + g("builtins.print") + b"\x85R(" + g("os.system") + t(touch) + b"\x85}Ntb)R",
            "()",
        ),
        "extension": (b"\x82\xf0" + t(touch) + b"\x85R", ""),
    }


@pytest.mark.parametrize("write", [archive, legacy])
@pytest.mark.parametrize("which", attacks(Path("x")))
def test_nothing_runs(tmp_path: Path, which: str, write) -> None:
    proof = tmp_path / "proof"
    body, stub = attacks(proof)[which]
    # pickle knows Python 2's names up to protocol 2, dotted ones from 4 on
    pickled = (b"\x80\x02}" if which == "old name" else b"\x80\x04}") + t("weight") + body + b"s."
    copyreg.add_extension("os", "system", 0xF0)
    try:
        path = write(tmp_path / "x.pt", pickled)
        if stub:
            found = read_torch(path)["weight"]
            assert isinstance(found, Stub) and found.name == stub
            assert state_dict(read_torch(path)) == {}
        else:
            refused(read_torch, path)
        assert not proof.exists()
        # the control: the same bytes do their harm in pickle
        try:
            result = pickle.loads(pickled)["weight"]
            if isinstance(result, subprocess.Popen):
                result.wait()
        except TypeError:  # after the harm, as OrderedDict finds that numbers are no pairs
            pass
        assert proof.exists()
    finally:
        copyreg.remove_extension("os", "system", 0xF0)
        copyreg._extension_cache.pop(0xF0, None)


def test_no_module_is_imported(tmp_path: Path) -> None:
    assert "this" not in sys.modules
    found = read_torch(archive(tmp_path / "x.pt", dumps([Ref("this.s"), Call("this.d", 1)])))
    assert [stub.name for stub in found] == ["this.s", "this.d"] and "this" not in sys.modules


def test_nothing_of_this_process_can_be_changed(tmp_path: Path) -> None:
    """BUILD on what stands for a known name must not reach the function behind it, nor one file another."""
    name = "torch._utils._rebuild_tensor_v2"
    path = archive(tmp_path / "x.pt", dumps([Built("torch.Size", (), state=(None, {"x": 1}))]))
    before = dict(unpickler.KNOWN)
    refused(read_torch, path) if not isinstance(read_torch(path), list) else None
    pickled = b"\x80\x02" + g(name) + b"}" + t("__defaults__") + b"Nsb0" + dumps(rebuilt())[2:]
    same(read_torch(archive(tmp_path / "y.pt", pickled)), torch.zeros(2, 3))
    assert before == unpickler.KNOWN
    tensor = read_torch(archive(tmp_path / "z.pt", dumps(rebuilt())[:-1] + b"}" + t("raw") + b"Nsb."))
    same(tensor, torch.zeros(2, 3))


def test_stubs_keep_what_the_file_says(tmp_path: Path) -> None:
    like_a_list = dumps(Call("a.List"))[:-1] + b"(K\x01K\x02eK\x03a."
    like_a_dict = dumps(Call("a.Dict"))[:-1] + b"(" + t("x") + b"K\x01uK\x05K\x06s."
    with_words = b"\x80\x04" + g("a.B") + b"(K\x01t}" + t("k") + b"K\x02s\x92."
    assert read_torch(archive(tmp_path / "x.pt", like_a_list)).items == [1, 2, 3]
    assert read_torch(archive(tmp_path / "x.pt", like_a_dict)).entries == {"x": 1, 5: 6}
    assert read_torch(archive(tmp_path / "x.pt", with_words)).args == (1, {"k": 2})
    of_itself = b"\x80\x02" + g("a.B") + b")Rq\x00}" + t("me") + b"h\x00sb."
    found = read_torch(archive(tmp_path / "x.pt", of_itself))
    assert found.state["me"] is found and len(repr(found)) < 100
    keyed = read_torch(archive(tmp_path / "x.pt", b"\x80\x02}" + dumps(Call("a.Enum", [1]))[2:-1] + b"K\x07s."))
    assert [(key.name, value) for key, value in keyed.items()] == [("a.Enum", 7)]


HUGE = 2**62
OUTSIDE = {
    "offset": {"offset": 11},
    "shape": {"shape": (5, 5)},
    "strides": {"strides": (14, 1)},
    "negative offset": {"offset": -1},
    "negative shape": {"shape": (-2, -3)},
    "negative stride": {"offset": 8, "strides": (-3, 1)},
    "huge offset": {"offset": 2**80},
    "huge stride": {"strides": (2**64, 1)},
    "overflow": {"shape": (2**32, 2**32), "strides": (0, 0)},
    "overflow to nothing": {"shape": (0, HUGE, HUGE), "strides": (1, 1, 1)},
    "expanded": {"shape": (2**40,), "strides": (0,)},
    "float": {"offset": 1.0},
    "true": {"offset": True},
    "stub for a number": {"offset": Call("a.b")},
    "stub for a shape": {"shape": Call("a.b")},
    "stub in a shape": {"shape": (2, Ref("a.b"))},
    "text": {"shape": "ab"},
    "none": {"strides": None},
    "different lengths": {"strides": (1,)},
    "dimensions": {"shape": (1,) * 33, "strides": (1,) * 33},
    "negative storage": {"count": -16},
    "huge storage": {"count": HUGE},
    "storage beyond its bytes": {"count": 17},
    "storage of text": {"count": "16"},
    "wider type": {"kind": "Double"},
}


@pytest.mark.parametrize("write", [archive, legacy])
@pytest.mark.parametrize("wrong", OUTSIDE.values(), ids=OUTSIDE.keys())
def test_tensors_stay_inside_their_storage(tmp_path: Path, wrong: dict, write) -> None:
    same(read_torch(write(tmp_path / "x.pt", dumps(rebuilt()))), torch.zeros(2, 3))  # without the wrong value it is one
    path = write(tmp_path / "x.pt", dumps({"w": rebuilt(**wrong)}))
    with pytest.raises(CorruptFile):
        read_torch(path)  # before anybody asks for the values


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    offset=st.integers(0, 20),
    dims=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 8)), max_size=4),
)
def test_views_are_those_of_torch(tmp_path: Path, offset: int, dims: list[tuple[int, int]]) -> None:
    values = torch.arange(16, dtype=torch.float32)
    shape, strides = tuple(n for n, _ in dims), tuple(s for _, s in dims)
    path = archive(tmp_path / "x.pt", dumps({"w": rebuilt(offset, shape, strides)}), values.numpy().tobytes())
    inside = 0 in shape or offset + sum((n - 1) * s for n, s in dims) < 16
    if not inside:
        refused(read_torch, path, "outside its storage")
    else:
        start = 0 if 0 in shape else offset
        same(read_torch(path)["w"], torch.as_strided(values, shape, strides, start))


@pytest.mark.parametrize("kind", ["quantized", "sparse", "complex", "negated", "float8", "meta"])
def test_other_tensors_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantization is deprecated
        tensors = {
            "quantized": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
            "sparse": lambda: torch.eye(3).to_sparse(),
            "complex": lambda: torch.ones(3, dtype=torch.complex64),
            "negated": lambda: torch.ones(3, dtype=torch.complex64).conj().imag,
            "float8": lambda: torch.ones(3).to(torch.float8_e4m3fn),
            "meta": lambda: torch.ones(3, device="meta"),
        }
        torch.save({"w": tensors[kind]()}, tmp_path / "x.pt")
    message = refused(read_torch, tmp_path / "x.pt")
    assert kind in message.lower().replace("qint8", "quantized") or (kind == "quantized" and "QInt8" in message)


def test_archives_are_measured_before_they_are_unpacked(tmp_path: Path) -> None:
    zeros, path = bytes(65 << 20), tmp_path / "x.pt"
    tracemalloc.start()
    try:
        for extra in ({"data/1": zeros}, {"code/a.py": zeros}):
            archive(path, dumps(rebuilt()), method=zipfile.ZIP_DEFLATED, **extra)
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            refused(read_torch, path, "unpacks")
            assert tracemalloc.get_traced_memory()[1] - before < 1 << 20
    finally:
        tracemalloc.stop()
    noise = np.random.default_rng(0).bytes(4 << 20)  # makes the file big enough for what follows to be in proportion
    refused(read_torch, archive(path, zeros, noise, zipfile.ZIP_DEFLATED), "pickle")
    np.savez_compressed(tmp_path / "x.npz", a=np.zeros(9 << 20))
    refused(read_npz, tmp_path / "x.npz", "unpacks")


def test_a_member_that_unpacks_to_another_size(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.pt", dumps({"w": rebuilt()}), method=zipfile.ZIP_DEFLATED)
    data = path.read_bytes()
    for size in (63, 65):
        path.write_bytes(data.replace(struct.pack("<I", 64), struct.pack("<I", size)))
        refused(read_torch, path)


def test_archives_with_something_odd(tmp_path: Path) -> None:
    path, pickled = tmp_path / "x.pt", dumps({"w": rebuilt()})
    data = bytearray(archive(path, pickled).read_bytes())
    for at in (i for i in range(len(data)) if data[i : i + 4] == b"PK\x01\x02"):
        data[at + 8] |= 1
    path.write_bytes(data)
    refused(read_torch, path, "encrypted")
    with warnings.catch_warnings(), zipfile.ZipFile(archive(path, pickled), "a") as file:
        warnings.simplefilter("ignore")
        file.writestr("any name/data.pkl", pickled)
    refused(read_torch, path, "BadZipFile")  # two files of one name
    refused(read_torch, archive(path, pickled, method=zipfile.ZIP_BZIP2), "deflate")
    refused(read_torch, archive(path, pickled, byteorder=b"big"), "big-endian")
    refused(read_torch, archive(path, dumps([])[:-1]), "fetch it again")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("data.txt", "x")
    refused(read_torch, path, "not one of PyTorch")
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
        file.writestr("a.npy", b"no array")
    refused(read_npz, tmp_path / "x.npz")


def test_compressed_archives(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=16).astype(np.float32)
    path = archive(tmp_path / "x.pt", dumps(rebuilt()), values.tobytes(), zipfile.ZIP_DEFLATED)
    same(read_torch(path), torch.tensor(values)[:6].view(2, 3))


def test_values_are_not_copied(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1 << 22)}, tmp_path / "x.pt")
    np.savez(tmp_path / "x.npz", w=np.zeros(1 << 21))
    tracemalloc.start()
    try:
        for tensors in (read_torch(tmp_path / "x.pt"), read_npz(tmp_path / "x.npz")):
            array = tensors["w"].raw()
            assert array.nbytes == 1 << 24 and not array.flags.owndata and not array.flags.writeable
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_small_pickle_takes_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.pt"
    tracemalloc.start()
    try:
        assert read_torch(archive(path, b"\x80\x02]r\xff\xff\xff\xff.")) == []  # the memo's index
        refused(read_torch, archive(path, b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x."))  # a bytearray
        refused(read_torch, archive(path, b"\x80\x05\x96" + struct.pack("<Q", 2**63) + b"x."))
        refused(read_torch, archive(path, dumps(Call("builtins.bytearray", 2**36))))
        refused(read_torch, archive(path, dumps(Call("builtins.bytes", 2**36))))
        refused(read_torch, archive(path, dumps(Call("_codecs.encode", "x", "zlib"))))
        monkeypatch.setattr(unpickler.MeteredPickle, "left", 5000)
        refused(read_torch, archive(path, b"\x80\x04" + b"\x8f" * 9000 + b"."), "steps")  # sets of 200 bytes each
        framed = b"\x80\x04\x95" + struct.pack("<Q", 9001) + b"\x8f" * 9000 + b"."
        refused(read_torch, archive(path, framed), "steps")
        copies = b"\x80\x02](" + b"K\x01" * 1000 + b"eq\x00" + (g("builtins.list") + b"h\x00\x85R") * 100 + b"."
        refused(read_torch, archive(path, copies), "steps")
        assert tracemalloc.get_traced_memory()[1] < 5 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "key",
    [
        b"]",
        b"}",
        b"\x8f",
        b"]\x85",
        b"))\x86" + b"q\x00h\x00h\x00\x86" * 60,
        dumps(2**500)[2:-1],
        dumps(rebuilt())[2:-1],
    ],
    ids=["list", "dict", "set", "tuple of a list", "tuples that take for ever", "huge", "tensor"],
)
def test_keys_are_plain(tmp_path: Path, key: bytes) -> None:
    refused(read_torch, archive(tmp_path / "x.pt", b"\x80\x04}" + key + b"K\x01s."), "fetch it again")
    refused(read_torch, archive(tmp_path / "x.pt", b"\x80\x04\x8f(" + key + b"\x90."), "fetch it again")
    refused(read_torch, archive(tmp_path / "x.pt", b"\x80\x04(" + key + b"\x91."), "fetch it again")
    refused(read_torch, archive(tmp_path / "x.pt", b"\x80\x04(" + key + b"K\x01d."), "fetch it again")


def test_deep_pickles(tmp_path: Path) -> None:
    deep = archive(tmp_path / "x.pt", b"\x80\x02]" + b"\x85" * 100_000 + b".")
    assert isinstance(read_torch(deep), tuple)
    calls = archive(tmp_path / "y.pt", b"\x80\x02" + g("a.b") + b")R" * 100_000 + b".")
    assert read_torch(calls).name == "()"


def test_names_of_a_tree_that_contains_itself() -> None:
    tensor = Tensor((), "float32", lambda: np.zeros((), np.float32))
    endless: dict = {"w": tensor}
    endless["again"] = endless
    many: dict = {"w": tensor}
    for _ in range(60):
        many = {"a": many, "b": many}
    for tree in (endless, many, {"a.b": tensor, "a": {"b": tensor}}):
        with pytest.raises(CorruptFile):
            state_dict(tree)
    assert list(state_dict({"b": {0: tensor}, "a": tensor, None: tensor, "n": 3})) == ["b.0", "a"]


def test_paths_that_are_no_checkpoint(tmp_path: Path) -> None:
    for read in (read_torch, read_npz):
        with pytest.raises(SourceNotFound, match="no such file"):
            read(tmp_path / "none.pt")
        refused(read, tmp_path, "cannot be read")
        for data in (
            b"",
            b"P",
            b"version https://git-lfs.github.com/spec/v1\n",
            b"<html>",
            b"\x80\x02.",
            b"PK\x03\x04",
            b"\0" * 99,
        ):
            (tmp_path / "x").write_bytes(data)
            refused(read, tmp_path / "x")
    (tmp_path / "x").write_bytes(pickle.dumps({"a": 1}, 2))
    refused(read_torch, tmp_path / "x")


# --- damaged files --------------------------------------------------------------------------------------------------


def seeds(folder: Path) -> dict[str, bytes]:
    """A small file of every kind; those with a pickle would do harm."""
    proof = folder / "proof"
    tree = {
        "w": rebuilt(),
        "harm": Call("os.system", f"touch {proof}"),
        "call": Call(Call("builtins.getattr", Call("builtins.__import__", "os"), "system"), f"touch {proof}"),
        "list": Built("a.b", [1, 2.5, (None, True)], state={"x": {1}}),
        "names": Call("collections.OrderedDict", [["a", b"b"], ["c", 2**70]]),
    }
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.ones(4, np.int8)}
    packed, plain = io.BytesIO(), io.BytesIO()
    np.savez(plain, **arrays)
    np.savez_compressed(packed, **arrays)
    values = bytes(range(64))
    return {
        "zip": archive(folder / "seed", dumps(tree), values).read_bytes(),
        "deflated zip": archive(folder / "seed", dumps(tree), values, zipfile.ZIP_DEFLATED).read_bytes(),
        "legacy": legacy(folder / "seed", dumps(tree), values).read_bytes(),
        "npz": plain.getvalue(),
        "deflated npz": packed.getvalue(),
    }


KINDS = ["zip", "deflated zip", "legacy", "npz", "deflated npz"]


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_files(tmp_path: Path, kind: str) -> None:
    data, path = seeds(tmp_path)[kind], tmp_path / "cut"
    read = read_npz if "npz" in kind else read_torch
    path.write_bytes(data)
    assert state_dict(read(path))
    for cut in range(0, len(data), 1 if kind == "legacy" else 3):
        path.write_bytes(data[:cut])
        with pytest.raises(CorruptFile, match=r"cut: .*(fetch|check)"):
            read(path)
    assert not (tmp_path / "proof").exists()


def mutations(size: int) -> st.SearchStrategy:
    """Replacements of up to 4 stretches of bytes by others."""
    piece = st.one_of(
        st.binary(max_size=4),
        st.sampled_from([b"\xff\xff\xff\xff", b"R", b"\x81", b"b", b"(", b"h\x00", b"u", b"\x92"]),
    )
    return st.lists(st.tuples(st.integers(0, size - 1), st.integers(0, 4), piece), min_size=1, max_size=4)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(choice=st.data())
def test_damaged_files(tmp_path: Path, kind: str, choice: st.DataObject) -> None:
    data, path = seeds(tmp_path)[kind], tmp_path / "damaged"
    for at, length, piece in choice.draw(mutations(len(data))):
        data = data[:at] + piece + data[at + length :]
    path.write_bytes(data)
    try:
        found = read_npz(path) if "npz" in kind else read_torch(path)
        for tensor in state_dict(found).values():
            assert tensor.raw().shape == tensor.shape
    except SourceError as error:
        assert "\n" not in str(error)
    assert not (tmp_path / "proof").exists()


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(choice=st.data())
def test_damaged_pickles(tmp_path: Path, choice: st.DataObject) -> None:
    """Damage inside the pickle alone, so that every example gets past the archive."""
    pickled = dumps({"w": rebuilt(), "harm": Call("os.system", f"touch {tmp_path / 'proof'}"), "l": [1, {2}, (3, "x")]})
    for at, length, piece in choice.draw(mutations(len(pickled))):
        pickled = pickled[:at] + piece + pickled[at + length :]
    try:
        for tensor in state_dict(read_torch(archive(tmp_path / "x.pt", pickled))).values():
            assert tensor.raw().shape == tensor.shape
    except SourceError as error:
        assert "\n" not in str(error)
    assert not (tmp_path / "proof").exists()
