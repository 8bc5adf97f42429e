"""What a file is, is told by what is in it, whatever it is called; and a new format is one entry in the registry."""

from __future__ import annotations

import json
import shutil
import types
from pathlib import Path

import ctranslate2_file
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from test_convert import Shelf, contents, same, weights
from test_convert import shelf as shelf
from test_fold import from_array

from mlx_speech import checkpoint
from mlx_speech.convert import convert, formats
from mlx_speech.convert.formats import ctranslate2, npz, pytorch, safetensors, shards
from mlx_speech.convert.formats.contents import Contents
from mlx_speech.errors import CorruptFile, SourceError, SourceNotFound

ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float32)}


def write(folder: Path, kind: str) -> Path:
    """A file of that kind whose name says nothing."""
    path = folder / "weights-of-something.dat"
    state = {name: torch.from_numpy(array) for name, array in ARRAYS.items()}
    if kind == "safetensors":
        save_file(ARRAYS, path)
    elif kind == "shards":
        save_file(ARRAYS, folder / "1.part")
        path.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(ARRAYS, "1.part")}))
    elif kind == "zip":
        torch.save(state, path)
    elif kind == "legacy":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    elif kind == "npz":
        with path.open("wb") as file:
            np.savez(file, **ARRAYS)
    else:
        path.write_bytes(ctranslate2_file.serialized(state, aliases={}))
    return path


KINDS = {
    "safetensors": safetensors,
    "shards": shards,
    "zip": pytorch,
    "legacy": pytorch,
    "npz": npz,
    "ctranslate2": ctranslate2,
}


@pytest.mark.parametrize("kind", KINDS)
def test_one_format_recognises_a_file_by_its_content(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path, kind)
    assert [known for known in formats.FORMATS if known.recognises(path)] == [KINDS[kind]]
    found = formats.read(path)
    assert {name: tensor.numpy().tolist() for name, tensor in found.tensors.items()} == {
        name: array.tolist() for name, array in ARRAYS.items()
    }
    assert found.files == [tmp_path / "1.part"] if kind == "shards" else [path]


@pytest.mark.parametrize("kind", KINDS)
def test_a_format_is_recognised_from_its_beginning(kind: str, tmp_path: Path) -> None:
    """A file that was cut is said to be cut, and not to be of no known format."""
    path = write(tmp_path, kind)
    content = path.read_bytes()
    path.write_bytes(content[: -1 if kind == "shards" else len(content) * 2 // 3])
    with pytest.raises(CorruptFile, match=r"weights-of-something\.dat: "):
        formats.read(path)


OTHERS = {
    "empty": (b"", "is empty"),
    "text": (b"version https://git-lfs.github.com/spec/v1\n", "begins with b'version https://'"),
    "page": (b"<!doctype html>", "begins with b'<!doctype html>'"),
    "zeros": (bytes(4096), "begins with"),
    "other JSON": (b'{"model_type": "whisper"}', "begins with"),
    "another pickle": (b"\x80\x04}.", "begins with"),
    "onnx": (b"\x08\x08\x12\x07pytorch", "begins with"),
    "gguf": (b"GGUF\x03\0\0\0", "begins with b'GGUF"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_other_content_is_one_clear_error(what: str, tmp_path: Path) -> None:
    content, seen = OTHERS[what]
    for name in ("x.pt", "x.safetensors", "x"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SourceError) as caught:
            convert(str(tmp_path / name), tmp_path / "out")
        message = str(caught.value)
        assert message.startswith(f"{tmp_path / name}: {seen}") and "\n" not in message
        assert all(known.TITLE in message for known in formats.FORMATS)


@pytest.mark.parametrize("name", ["whisper pt", "silero", "wespeaker", "whisper safetensors", "whisper ctranslate2"])
def test_a_wrong_ending_does_not_matter(shelf: Shelf, name: str, tmp_path: Path) -> None:
    original = shelf[name]
    if original.is_dir():
        original = next(file for file in sorted(original.iterdir()) if file.suffix in (".safetensors", ".bin"))
    for ending in ("", ".onnx", ".npz", ".safetensors", ".pt"):
        path = tmp_path / f"model{ending}.x" if ending == ".safetensors" else tmp_path / f"it{ending}"
        shutil.copy(original, path)
        if name.startswith("whisper") and not name.endswith("pt"):
            assert formats.read(path).tensors.keys() == formats.read(original).tensors.keys()
        else:
            convert(str(path), tmp_path / f"out{ending}")
            assert same(weights(tmp_path / f"out{ending}"), weights(shelf.converted(name)))


@pytest.mark.parametrize("given", [0, 1])
def test_either_half_of_a_plda_under_another_name(shelf: Shelf, given: int, tmp_path: Path) -> None:
    halves = [shelf["plda"] / name for name in npz.PLDA_PAIR]
    path = tmp_path / "mine.dat"
    shutil.copy(halves[given], path)
    other = tmp_path / npz.PLDA_PAIR[1 - given]
    with pytest.raises(SourceNotFound, match=other.name):
        convert(str(path), tmp_path / "out")
    shutil.copy(halves[1 - given], other)
    convert(str(path), tmp_path / "out")
    assert same(weights(tmp_path / "out"), weights(shelf.converted("plda")))


def test_a_whole_plda_in_one_file(shelf: Shelf, tmp_path: Path) -> None:
    arrays = {}
    for name in npz.PLDA_PAIR:
        arrays.update(np.load(shelf["plda"] / name))
    np.savez(tmp_path / "all.npz", **arrays)
    convert(str(tmp_path / "all.npz"), tmp_path / "out")
    assert same(weights(tmp_path / "out"), weights(shelf.converted("plda")))


def test_an_index_is_no_shard(tmp_path: Path) -> None:
    path = write(tmp_path, "shards")
    path.write_text(json.dumps({"weight_map": {"a": "1.part", "b": "2.part"}}))
    shutil.copy(path, tmp_path / "2.part")
    with pytest.raises(CorruptFile, match=r"2\.part: .* names it as a shard, which it is not"):
        formats.read(path)


def test_a_new_format_is_one_entry(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that keeps arrays as text, under a magic word."""
    magic = b"arrays in words\n"

    def recognises(path: Path) -> bool:
        return path.read_bytes()[: len(magic)] == magic

    def read(path: Path) -> Contents:
        arrays = json.loads(path.read_bytes().removeprefix(magic))
        return Contents({name: from_array(np.array(value), name) for name, value in arrays.items()}, [path])

    arrays = {}
    for name in npz.PLDA_PAIR:
        arrays.update({key: value.tolist() for key, value in np.load(shelf["plda"] / name).items()})
    path = tmp_path / "plda.words"
    path.write_bytes(magic + json.dumps(arrays).encode())
    with pytest.raises(SourceError, match="no known kind of weights"):
        convert(str(path), tmp_path / "out")
    words = types.SimpleNamespace(TITLE="words (.words)", recognises=recognises, read=read)
    monkeypatch.setattr(formats, "FORMATS", (*formats.FORMATS, words))
    convert(str(path), tmp_path / "out")
    assert same(weights(tmp_path / "out"), weights(shelf.converted("plda")))
    assert checkpoint.read_config(tmp_path / "out")["source"]["files"].keys() == {"plda.words"}
    assert set(contents(tmp_path / "out")) == {"README.md", "config.json", "model.safetensors"}
