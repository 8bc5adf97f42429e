"""Open a source: find the weights in a folder or file, and what lies beside them. Nothing is run, nothing copied."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from mlx_speech.checkpoint import read_json
from mlx_speech.convert.formats.ctranslate2 import is_ctranslate2, read_ctranslate2
from mlx_speech.convert.formats.pytorch import read_npz, read_torch, state_dict
from mlx_speech.errors import CorruptFile, SourceError, SourceNotFound, brief, shorten
from mlx_speech.hub import WEIGHTS
from mlx_speech.tensors import Tensor, read_safetensors, reading

TORCH = (".pt", ".pth", ".bin", ".ckpt", ".jit")

PLDA = ("plda.npz", "xvec_transform.npz")
# What training puts around a module, which then stands in the names of its tensors, at any depth: data parallelism
# (also DeepSpeed's), torch.compile, sharding, recomputed activations, Lightning Fabric.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
ATTRIBUTE = "model"  # what the model is called in a Lightning module, and in transformers; only in front
STATES = ("state_dict", "model_state_dict", "model")  # keys of a checkpoint that may hold the tensors
Contents = tuple[dict[str, Tensor], dict[str, Any], list[Path]]  # tensors, what else there is, the files


@dataclass
class Source:
    """Weights, unread, and everything known about them.

    path : the folder or file that was given
    name : a short name for the result
    tensors : as the files spell them, without what wrapped the model in training
    config : config.json, where it belongs to the weights
    extra : what a torch checkpoint holds beside weights (dims, hyper_parameters, pyannote.audio …)
    files : the weight files
    """

    path: Path
    name: str
    tensors: dict[str, Tensor]
    files: list[Path]
    config: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    repo: str | None = None
    revision: str | None = None
    licence: str | None = None

    @property
    def folder(self) -> Path:
        return self.path if self.path.is_dir() else self.path.parent

    def beside(self, name: str) -> Path | None:
        """A file that lies beside the weights and belongs to them, or None.

        What happens to lie beside a lone checkpoint (large-v3.pt among downloads) does not belong to it, nor does a
        link that leads out of the folder; the hub's cache, whose files are links into its blobs, excepted.
        """
        path = self.folder / name
        if not path.is_file() or not (self.path.is_dir() or self.path.name in (*WEIGHTS, *PLDA)):
            return None
        places = [self.folder.resolve(), self.folder.resolve().parent.parent / "blobs"]
        if not any(path.resolve().is_relative_to(place) for place in places):
            raise CorruptFile(f"{path}: a link that leads out of its folder: refused; put the file itself there")
        return path

    def matching(self, pattern: str) -> list[Path]:
        """The files beside the weights that belong to them and whose names match `pattern` (as "*.tiktoken")."""
        found = [self.beside(path.name) for path in sorted(self.folder.glob(pattern))]
        return [path for path in found if path is not None]

    def json(self, name: str) -> dict[str, Any]:
        """A JSON object that lies beside the weights; {} where there is none."""
        path = self.beside(name)
        return read_json(path) if path else {}

    def seen(self) -> str:
        """What the source looks like, in a few words, for messages."""
        said = [f"{key}={brief(self.config[key])}" for key in ("model_type", "architectures") if key in self.config]
        return "; ".join([*said, f"{len(self.tensors)} tensors: {shorten(sorted(self.tensors), 4)}"])


def open_source(path: Path) -> Source:
    """The source at `path`, a folder or a file. Raises `SourceError` naming the file and what is wrong with it."""
    with reading(path):
        if not path.is_dir() and not path.is_file():
            raise SourceNotFound("no such file or folder (a hub repository is written owner/name)")
        weights = _find(path) if path.is_dir() else path
        tensors, extra, files = _read(weights)
    source = Source(path, path.name, tensors, files, extra=extra)
    if path.is_dir() or weights.suffix in (".npz", ".json", ".safetensors") or weights.name in WEIGHTS:
        source.config = source.json("config.json")
    if source.config.get("format_version") is None:  # ours are spelled as they are meant
        with reading(path):
            source.tensors = unwrapped(tensors)
    return source


def unwrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names that they have in the bare model: "module.model._orig_mod.conv1.weight" is conv1's.

    Raises `CorruptFile` where two tensors would then have one name.
    """
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        parts = [part for part in name.split(".") if part not in WRAPPERS]
        while parts[:1] == [ATTRIBUTE]:
            parts = parts[1:]
        bare = ".".join(parts)
        if bare in result:
            raise CorruptFile(f"two tensors are named {bare[:200]}, one of them {name[:200]}: save it without one")
        result[bare] = tensor
    return result


def _find(folder: Path) -> Path:
    """The file that a folder's weights are read from."""
    for name in (*WEIGHTS, PLDA[0]):
        if (folder / name).is_file():
            return folder / name
    found = sorted(path for path in folder.iterdir() if path.suffix in TORCH and path.is_file())
    if len(found) == 1:
        return found[0]
    if found:
        raise SourceError(f"{folder}: several checkpoints ({shorten([path.name for path in found])}): name one of them")
    raise SourceNotFound(f"{folder}: no weights in this folder (looked for {shorten(list(WEIGHTS))} and *.pt, *.jit …)")


def _read(path: Path) -> Contents:
    """Tensors, other contents and files of the weights at `path`."""
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    if is_ctranslate2(path):
        return read_ctranslate2(path), {}, [path]
    if path.suffix == ".safetensors":
        return read_safetensors(path), {}, [path]
    if path.name in PLDA:
        files = [path.parent / name for name in PLDA]
        for file in files:
            if not file.is_file():
                raise SourceNotFound(f"{file}: missing; the PLDA is a pair of files, {' and '.join(PLDA)}")
        return {**read_npz(files[0]), **read_npz(files[1])}, {}, files
    if path.suffix == ".npz":
        return read_npz(path), {}, [path]
    if path.suffix in TORCH:
        return _read_checkpoint(path)
    raise SourceError(f"{path}: not a kind of weights that is known (.safetensors .bin .pt .pth .ckpt .jit .npz)")


def _read_checkpoint(path: Path) -> Contents:
    """A torch file: the state dict where it says it has one, and the rest."""
    tree = read_torch(path)
    if isinstance(tree, dict):
        for key in STATES:
            if _is_state(tree.get(key)):
                rest = {name: value for name, value in tree.items() if name != key and isinstance(name, str)}
                return state_dict(tree[key]), rest, [path]
    tensors = state_dict(tree)
    if not tensors:
        raise SourceError(f"{path}: no tensors in this file")
    return tensors, {}, [path]


def _is_state(value: object) -> bool:
    """Whether it is a state dict: tensors by their names."""
    return isinstance(value, dict) and any(isinstance(item, Tensor) for item in value.values())


def _read_shards(index: Path) -> Contents:
    """The tensors of all shards that an index names; entries must lie in its own folder."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CorruptFile(f"{index}: no index of shards (weight_map is missing): fetch it again")
    files = {name: inside(index.parent, name, index) for name in sorted(set(weight_map.values()))}
    if any(name.endswith(".json") for name in files):
        raise CorruptFile(f"{index}: names an index as a shard: fetch it again")
    tensors: dict[str, Tensor] = {}
    for name, file in files.items():
        if not file.is_file():
            raise SourceNotFound(f"{file}: shard missing ({index.name} names {name}): fetch it again")
        tensors.update(_read(file)[0])
    missing = sorted(set(weight_map) - set(tensors))
    if missing:
        raise CorruptFile(f"{index}: names tensors that no shard has: {shorten(missing)}")
    return tensors, {}, list(files.values())


def inside(folder: Path, entry: str, file: Path) -> Path:
    """`entry`, a relative path that `file` names, inside `folder`; raises `CorruptFile` where it points elsewhere."""
    pure = PurePosixPath(entry.replace("\\", "/"))
    if not entry or pure.is_absolute() or ".." in pure.parts or ":" in entry or "\0" in entry:
        raise CorruptFile(f"{file}: refers to {brief(entry)}, outside its own folder: refused")
    return folder / pure
