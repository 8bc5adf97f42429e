"""Weights in several files, and the index that says which tensor lies in which, as transformers writes them."""

from __future__ import annotations

import mmap
from pathlib import Path

from mlx_speech.checkpoint import read_json
from mlx_speech.convert.formats import pytorch, safetensors
from mlx_speech.convert.formats.contents import Contents, Format, head_of
from mlx_speech.errors import CorruptFile, SourceNotFound, shorten
from mlx_speech.folders import inside
from mlx_speech.tensors import Tensor, reading

TITLE = "an index of shards (.index.json)"
SHARD_FORMATS: tuple[Format, ...] = (safetensors, pytorch)  # an index is none of them


def recognises(path: Path) -> bool:
    """Whether the file is JSON, not safetensors, and speaks of a weight_map."""
    head = head_of(path)
    if b"\0" in head or not head.lstrip().startswith(b"{"):
        return False
    with (
        reading(path),
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        return content.find(b'"weight_map"') >= 0


def read(path: Path) -> Contents:
    """The tensors of all shards that an index names; they must lie in its own folder.

    Raises `CorruptFile` where a shard lies elsewhere, or a tensor is in none, and `SourceNotFound` for a missing one.
    """
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CorruptFile(f"{path}: no index of shards (weight_map is missing): fetch it again")
    # All names are looked at before the first file is.
    files = {name: inside(path.parent, name, path) for name in sorted(set(weight_map.values()))}
    tensors: dict[str, Tensor] = {}
    for name, file in files.items():
        if not file.is_file():
            raise SourceNotFound(f"{file}: shard missing ({path.name} names {name}): fetch it again")
        tensors.update(_read_shard(file, path))
    missing = sorted(set(weight_map) - set(tensors))
    if missing:
        raise CorruptFile(f"{path}: names tensors that no shard has: {shorten(missing)}")
    return Contents(tensors, list(files.values()))


def _read_shard(file: Path, index: Path) -> dict[str, Tensor]:
    for known in SHARD_FORMATS:
        if known.recognises(file):
            return known.read(file).tensors
    raise CorruptFile(f"{file}: {index.name} names it as a shard, which it is not: fetch it again")
