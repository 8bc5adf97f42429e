"""Open a source: find the weights in a folder or file, and what lies beside them. Nothing is run, nothing copied."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_speech.checkpoint import read_json
from mlx_speech.convert import formats
from mlx_speech.convert.formats.npz import PLDA_PAIR, check_pair
from mlx_speech.errors import CorruptFile, SourceError, SourceNotFound, brief, shorten
from mlx_speech.hub import LOOSE, WEIGHTS
from mlx_speech.tensors import Tensor, reading

# Names of weights that say nothing of the model; what lies in a file's folder belongs to it where it has one of them.
USUAL_NAMES = (*WEIGHTS, *PLDA_PAIR)
# Endings of what a folder's weights may be called otherwise. What is in such a file is for `formats` to tell.
LOOSE_ENDINGS = (*LOOSE, ".bin")

# What training puts around a module, which then stands in the names of its tensors, at any depth: data parallelism
# (also DeepSpeed's), torch.compile, sharding, recomputed activations, Lightning Fabric.
WRAPPERS = {
    "module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
}
ATTRIBUTE = "model"  # what the model is called in a Lightning module, and in transformers; only in front


@dataclass
class Source:
    """Weights, unread, and everything known about them.

    path : the folder or file that was given
    name : a short name for the result
    tensors : as the files spell them, without what wrapped the model in training
    files : the weight files
    config : config.json, where it belongs to the weights
    extra : what a checkpoint holds beside weights (dims, hyper_parameters, pyannote.audio …)
    repo, revision, licence : of the hub's repository that it comes from, as far as there is one
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
        """The folder given, or that of the file given."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def converted(self) -> bool:
        """Whether this package wrote it."""
        return self.config.get("format_version") is not None

    def beside(self, name: str) -> Path | None:
        """A file that lies beside the weights and belongs to them, or None.

        What happens to lie beside a lone checkpoint (large-v3.pt among downloads) does not belong to it, nor does a
        link that leads out of the folder; the hub's cache, whose files are links into its blobs, excepted.
        """
        path = self.folder / name
        if not path.is_file() or not (self.path.is_dir() or self.path.name in USUAL_NAMES):
            return None
        folder = self.folder.resolve()
        places = [folder]
        for ancestor in folder.parents:  # of a file of the hub's cache: snapshots/COMMIT, and maybe a part's folder
            if ancestor.name == "snapshots":
                places.append(ancestor.parent / "blobs")
        if not any(path.resolve().is_relative_to(place) for place in places):
            raise CorruptFile(f"{path}: a link that leads out of its folder: refused; put the file itself there")
        return path

    def matching(self, pattern: str) -> list[Path]:
        """The files beside the weights that belong to them and whose names match `pattern` (as "*.tiktoken")."""
        paths = [self.beside(path.name) for path in sorted(self.folder.glob(pattern))]
        return [path for path in paths if path is not None]

    def json(self, name: str) -> dict[str, Any]:
        """A JSON object that lies beside the weights; {} where there is none. Raises `CorruptFile`."""
        path = self.beside(name)
        return read_json(path) if path is not None else {}

    def seen(self) -> str:
        """What the source looks like, in a few words, for messages."""
        words = []
        for key in ("model_type", "architectures"):
            if key in self.config:
                words.append(f"{key}={brief(self.config[key])}")
        words.append(f"{len(self.tensors)} tensors: {shorten(sorted(self.tensors), 4)}")
        return "; ".join(words)


def open_source(path: Path) -> Source:
    """The source at `path`, a folder or a file. Raises `SourceError` naming the file and what is wrong with it."""
    with reading(path):
        if not path.is_dir() and not path.is_file():
            raise SourceNotFound("no such file or folder (a hub repository is written owner/name)")
        weights = find_weights(path) if path.is_dir() else path
        contents = formats.read(weights)
    source = Source(path, path.name, contents.tensors, contents.files, extra=contents.extra)
    source.config = source.json("config.json")
    if not source.converted:  # ours are spelled as they are meant
        with reading(path):
            source.tensors = unwrapped(contents.tensors)
    return source


def find_weights(folder: Path) -> Path:
    """The file that a folder's weights are read from. Raises `SourceError` where there is none, or not a single one."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    pair = [folder / name for name in PLDA_PAIR]
    if any(file.is_file() for file in pair):
        check_pair(pair)
        return pair[0]
    checkpoints = sorted(path for path in folder.iterdir() if path.suffix in LOOSE_ENDINGS and path.is_file())
    if len(checkpoints) == 1:
        return checkpoints[0]
    if checkpoints:
        names = shorten([path.name for path in checkpoints])
        raise SourceError(f"{folder}: several checkpoints ({names}): name one of them")
    raise SourceNotFound(f"{folder}: no weights in this folder (looked for {shorten(list(WEIGHTS))} and *.pt, *.jit …)")


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
