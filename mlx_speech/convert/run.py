"""A conversion from end to end: find the source, plan, write beside the target, verify, put in place, upload.

`convert` is the command; `locate` and `resolve` are what `load` needs.
"""

from __future__ import annotations

from mlx_speech import backend as backend  # isort: skip  (before MLX)

import dataclasses
import hashlib
import json
import shlex
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import mlx.core as mx
import numpy as np
from filelock import FileLock
from tqdm import tqdm

from mlx_speech import checkpoint, folders, hub, names
from mlx_speech.checkpoint import PIPELINE
from mlx_speech.convert.card import card, provenance
from mlx_speech.convert.formats.npz import PLDA_PAIR
from mlx_speech.convert.parity import measures as parity
from mlx_speech.convert.pipeline import is_pipeline, read_pipeline
from mlx_speech.convert.port import Plan, plan
from mlx_speech.convert.quantize import Dtype, MixedRecipe, Mode, Options
from mlx_speech.convert.read import USUAL_NAMES, open_source
from mlx_speech.errors import OptionError, OutputError, ParityError, SourceNotFound
from mlx_speech.models.base import BaseModel
from mlx_speech.package_data import BUNDLED
from mlx_speech.tensors import reading, write_safetensors
from mlx_speech.version import __version__

MODELS_FOLDER = Path("mlx_models")

Config: TypeAlias = dict[str, Any] | None  # of a pipeline; None where there is a single model
Plans: TypeAlias = dict[str, Plan]  # part ("" for a single model) → its plan


class Origin(hub.Snapshot):
    """Where a source lies on this machine, and what the hub says of it, if it comes from there."""

    @property
    def name(self) -> str:
        """A short name for the result."""
        if self.repo:
            return self.repo.rpartition("/")[2]
        path = self.path.resolve()
        if path.is_dir():
            return path.name
        return path.parent.name if path.name in USUAL_NAMES else path.stem

    @property
    def hub_entries(self) -> dict[str, str | None]:
        """What is kept of where it comes from."""
        return {"repo": self.repo, "revision": self.revision, "licence": self.licence}


@dataclass(frozen=True)
class Report:
    """What a conversion did.

    path : the folder written; None after a dry run
    family : one of `models.FAMILIES`, or of a pipeline its model_type
    parameters : how many weights there are; a quantized one counts as one
    bytes_before, bytes_after : of the source's files, and of the arrays written
    tables : part ("" for a single model) → its parity table, where verified
    lines : what the user should know; after a dry run also where every tensor goes
    """

    path: Path | None
    family: str
    parameters: int
    bytes_before: int
    bytes_after: int
    tables: dict[str, str]
    lines: list[str]

    @property
    def bits_per_weight(self) -> float:
        """Of the result, scales and biases of quantized layers included."""
        return 8 * self.bytes_after / max(1, self.parameters)

    def __str__(self) -> str:
        return (
            f"{self.family} · {self.parameters / 1e6:.2f} M parameters · {self.bytes_before / 1e6:.1f} MB → "
            f"{self.bytes_after / 1e6:.1f} MB · {self.bits_per_weight:.2f} bits per weight · "
            f"{self.path or 'nothing written (dry run)'}"
        )


def convert(
    model: str,
    mlx_path: str | Path | None = None,
    *,
    quantize: bool = False,
    q_group_size: int | None = None,
    q_bits: int | None = None,
    q_mode: Mode = "affine",
    quant_predicate: MixedRecipe | None = None,
    dtype: Dtype | None = None,
    dequantize: bool = False,
    upload_repo: str | None = None,
    revision: str | None = None,
    language: str | None = None,
    dry_run: bool = False,
    verify: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> Report:
    """Convert a model into a folder of MLX safetensors; names, meanings and defaults of the options are mlx_lm's.

    model : a local folder or file, a hub repository, or a short name that `Pipeline` takes ("tiny", "turbo"), which
        here means the original's repository; "silero_vad" is the model that comes with the package
    mlx_path : the folder to write, which appears complete or not at all; by default mlx_models/<name>[-4bit]
    quantize : store the layers that their family has for it in fewer bits
    q_group_size : weights that share a scale; by default 64, or what q_mode has
    q_bits : bits a weight, 2 to 8; by default 4, or what q_mode has
    q_mode : how a group is stored: "affine" (whole numbers, a scale and an offset), "mxfp4", "nvfp4", "mxfp8"
    quant_predicate : a recipe of two precisions, as "mixed_3_6": 3 bits for robust layers, 6 for sensitive ones
    dtype : of the weights that are not quantized; by default the source's. Some stay in float32, as a family says
    dequantize : bring a quantized model back to plain weights
    upload_repo : put the result into this repository of the hub (owner/name), too
    revision : branch, tag or commit of a hub repository
    language : of an MMS model, the adapter to put in (ISO 639-3); of a torchaudio file, whose labels it has
    dry_run : only plan; the report's lines say where every tensor goes
    verify : run the original too, and write the parity figures into config.json and the card
    overwrite : replace a converted model that is at mlx_path already
    progress : show bars on the terminal

    Raises `SourceError`, `OptionError`, `OutputError`, `MissingDependency`, `ParityError`; nothing is left behind then.
    """
    options = Options(quantize, q_group_size, q_bits, q_mode, quant_predicate, dtype, dequantize)
    model = _expand_name(model)
    target = folders.expand(mlx_path) if mlx_path is not None else None
    if target is not None and not dry_run:
        folders.check_target(target, overwrite)
    if upload_repo is not None and not hub.is_repo_id(upload_repo):
        raise OptionError(f"upload_repo={upload_repo}: not a repository's name (owner/name)")
    if target is None and not dry_run and hub.is_repo_id(model):  # before a download; most often that is its name
        folders.check_target(MODELS_FOLDER / f"{model.rpartition('/')[2]}{options.suffix}", overwrite)
    origin = locate(model, revision, language)
    config, plans = _plans(origin, options, language)
    if verify:
        for part in plans.values():
            parity.check_installed(part)
    lines = []
    for name, part in plans.items():
        lines += _lines(name, part, dry_run)
    if dry_run:
        return _report(None, config, plans, lines)
    if target is None:
        quantized = any(part.quantized for part in plans.values())
        target = MODELS_FOLDER / f"{origin.name}{options.suffix if quantized else ''}"
    command = _command(origin, options, language, verify)
    report = _report(target, config, plans, lines)
    with folders.staged(target, overwrite) as stage:
        tables = _write_all(stage, target, config, plans, command, verify=verify, progress=progress)
        report.tables.update(tables)
    if upload_repo is not None:
        report.lines.append(f"uploaded to {hub.upload(target, upload_repo)}")
    return report


def _expand_name(model: str) -> str:
    """What a short name stands for: a repository, or the folder of a model that comes with the package.

    Whatever exists on this machine is a path, and stays one.
    """
    if names.exists(model):
        return model
    if model in BUNDLED:
        return str(BUNDLED[model])
    return names.original(model)


def locate(model: str, revision: str | None = None, language: str | None = None) -> Origin:
    """A local path as it is; a hub repository fetched. Raises `SourceNotFound` or `HubError`."""
    path = folders.expand(model)
    with reading(path):  # a name that is too long, a folder that may not be looked into
        exists = path.exists()
    if exists:
        if revision is not None:
            raise OptionError(f"revision={revision}: {model} is a local path, which has no revisions")
        return Origin(path)
    if not hub.is_repo_id(model):
        raise SourceNotFound(f"{model}: no such file or folder, nor a hub repository's name (owner/name)")
    return Origin(**vars(hub.fetch(model, revision, language=language)))


def resolve(origin: Origin, language: str | None = None, q_bits: int | None = None) -> Path | BaseModel:
    """What `load` gets of an original: its converted folder in the cache, or the model itself.

    The folder is made if it is not there, by one process while others wait. Weights that have MLX's layout already
    (mlx-community) are not written a second time: the model is built in memory.

    language : as for `convert`
    q_bits : quantize to so many bits what has not as many already
    Raises what `convert` raises.
    """
    options = Options()
    if q_bits is not None and checkpoint.quantized_bits(origin.path) != q_bits:
        options = Options(quantize=True, q_bits=q_bits)
    folder = folders.cache_folder() / f"{origin.name}{options.suffix}-{_fingerprint(origin, language)}"
    if folder.is_dir():
        return folder
    config, plans = _plans(origin, options, language)
    if config is None and plans[""].recipe.mlx_layout:
        model = plans[""].build()
        model.folder = plans[""].source.folder
        return model
    with folders.writing(folder, "set MLX_SPEECH_CACHE to another folder"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():  # another process may have made it meanwhile
                command = _command(origin, options, language, verify=False)
                with folders.staged(folder) as stage:
                    _write_all(stage, folder, config, plans, command, verify=False, progress=False)
    return folder


# --- planning --------------------------------------------------------------------------------------------------------


def plan_source(origin: Origin, options: Options, language: str | None = None) -> Plan:
    """Open, recognise and plan one model. Raises `SourceError` or `OptionError`, naming the source."""
    with reading(origin.path):
        source = replace(open_source(origin.path), name=origin.name, **origin.hub_entries)
        return plan(source, options, language)


def _plans(origin: Origin, options: Options, language: str | None) -> tuple[Config, Plans]:
    """One plan, or the configuration of a pipeline and a plan for each of its parts."""
    config = checkpoint.read_config(origin.path) if checkpoint.is_converted(origin.path) else {}
    if config.get("model_type") == PIPELINE:
        plans: Plans = {}
        for name in checkpoint.part_names(origin.path):
            plans[name] = plan_source(replace(origin, path=origin.path / name), options)
        return config, plans
    if is_pipeline(origin.path):
        return _plans_of_pipeline(origin, options, language)
    return None, {"": plan_source(origin, options, language)}


def _plans_of_pipeline(origin: Origin, options: Options, language: str | None) -> tuple[Config, Plans]:
    """Of a pipeline of pyannote's, whose parts lie inside its folder or in repositories of their own."""
    config, parts = read_pipeline(origin.path, hub.is_repo_id)
    origin = replace(origin, licence=origin.licence or hub.readme_licence(origin.path / "README.md"))
    config["source"] = origin.hub_entries
    plans: Plans = {}
    for name, place in parts.items():
        if isinstance(place, Path):
            licence = hub.readme_licence(place / "README.md") or origin.licence
            part = replace(origin, path=place, licence=licence)
        else:
            repo, _, revision = place.partition("@")
            part = locate(repo, revision or None)
        plans[name] = plan_source(part, options, language)
    return config, plans


def _lines(name: str, part: Plan, dry_run: bool) -> list[str]:
    """What the user should know of a plan; each line begins with the part's name, where there are several."""
    lines = list(part.notes)
    if dry_run:
        lines = [*part.describe().splitlines(), *lines]
    return [f"{name}: {line}" if name else line for line in lines]


def _report(path: Path | None, config: Config, plans: Plans, lines: list[str]) -> Report:
    parts = list(plans.values())
    return Report(
        path,
        family=PIPELINE if config is not None else parts[0].family,
        parameters=sum(part.parameters() for part in parts),
        bytes_before=sum(file.stat().st_size for part in parts for file in part.source.files),
        bytes_after=sum(part.nbytes() for part in parts),
        tables={},
        lines=lines,
    )


def _fingerprint(origin: Origin, language: str | None) -> str:
    """What decides whether a conversion in the cache is still that of `origin`: its revision, or its files' state."""
    facts: list[Any] = [
        __version__,
        checkpoint.FORMAT_VERSION,
        language,
        origin.repo,
        origin.revision,
    ]
    if origin.repo is None:
        path = origin.path.resolve()
        given = path if path.is_dir() else origin.path.parent.resolve() / origin.path.name  # which may be a link
        states = []
        for file in _local_files(given):
            if file.exists():
                states.append((str(file), file.stat().st_size, file.stat().st_mtime_ns))
        facts += [str(path), states]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _local_files(path: Path) -> list[Path]:
    """The files that a conversion of `path` may read."""
    if path.name in PLDA_PAIR:
        return [path.parent / name for name in PLDA_PAIR]
    if path.name in USUAL_NAMES:  # what lies beside it belongs to it
        path = path.parent
    if not path.is_dir():
        return [path]
    files: list[Path] = []
    for folder in (path, *(path / name for name in checkpoint.PARTS)):
        files += [file for file in folder.glob("*") if file.is_file()]
    return sorted(files) or [path]


def _command(origin: Origin, options: Options, language: str | None, verify: bool) -> str:
    """The command that makes this conversion again; a local source by its name alone."""
    words = [
        "python",
        "-m",
        "mlx_speech.convert",
        "--model",
        origin.repo or origin.path.resolve().name,
    ]
    values = {
        "revision": origin.revision or None,
        **dataclasses.asdict(options),
        "language": language,
    }
    switches = {"-q": values.pop("quantize"), "-d": values.pop("dequantize"), "--verify": verify}
    for name, value in values.items():
        if value is not None and value != "affine":  # q_mode's default
            words += [f"--{name.replace('_', '-')}", str(value)]
    for switch, on in switches.items():
        if on:
            words.append(switch)
    return shlex.join(words)


# --- writing ---------------------------------------------------------------------------------------------------------


def _write_all(
    stage: Path,
    target: Path,
    config: Config,
    plans: Plans,
    command: str,
    *,
    verify: bool,
    progress: bool,
) -> dict[str, str]:
    """Write every part into `stage`, which becomes `target`; returns the parity tables, where verified."""
    needed = sum(part.nbytes() for part in plans.values()) / 1e6
    free = shutil.disk_usage(stage).free / 1e6
    if free < needed:
        raise OutputError(f"{target}: needs {needed:.0f} MB and {free:.0f} MB are free: choose another mlx_path")
    tables = {}
    for name, part in plans.items():
        title = str(Path(target.name, name))
        table = write(part, stage / name, title, command, verify=verify, progress=progress)
        if table:
            tables[name] = table
    if config is not None:
        own_config = {**config, "format_version": checkpoint.FORMAT_VERSION}
        _write_json(stage / "config.json", own_config)
        _write_card(stage, target.name, own_config, command, None)
    return tables


def write(
    part: Plan,
    folder: Path,
    title: str,
    command: str,
    *,
    verify: bool = False,
    progress: bool = False,
) -> str:
    """Write one planned model into `folder` (made if missing): weights, configuration, companions, card.

    title : of the card
    command : that makes the conversion again
    Returns the parity table, or "" unless verified. Raises `ParityError` where a float32 model does not meet the bars.
    """
    folder.mkdir(parents=True, exist_ok=True)
    hashes: dict[str, str] = {}
    # the files are hashed while they are converted; by no pool, which begins nothing more at the interpreter's exit
    hashing = threading.Thread(target=_hash_ahead, args=(part.source.files, hashes), daemon=True)
    hashing.start()
    write_safetensors(folder / "model.safetensors", part.layout(), _counted(part, progress))
    hashing.join()
    _hash(part.source.files, hashes)  # what could not be read there is an error here
    config: dict[str, Any] = {**part.config, "source": provenance(part, hashes)}
    documents = part.recipe.documents
    for pattern in part.recipe.companions:
        for companion in part.source.matching(pattern):
            if companion.name not in documents:
                shutil.copyfile(companion, folder / companion.name)
    for name, content in documents.items():
        _write_json(folder / name, content)
    _write_json(folder / "config.json", config)
    table = ""
    if verify:
        rows = _verify(part, folder, config["dtype"])
        table = parity.table(rows, bars=not part.changed())
        config["source"]["verified"] = {row.measure: row.value for row in rows}
        _write_json(folder / "config.json", config)
    _write_card(folder, title, config, command, table)
    return table


def _verify(part: Plan, folder: Path, dtype: str) -> list[parity.Row]:
    """Parity of what was written with its original.

    Weights that were not changed must give what the original gives, computed in float32 on both sides; raises
    `ParityError` where they do not. Others are measured in their `dtype`, without bars.
    """
    if part.changed():
        return parity.verified(part, folder, dtype, judged=False)
    rows = parity.verified(part, folder, "float32")
    for row in rows:
        if not row.ok:
            raise ParityError(f"{part.source.path}: differs from its original: {row.measure} {row.value:.3g}")
    return rows


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_card(folder: Path, title: str, config: dict[str, Any], command: str, table: str | None) -> None:
    (folder / "README.md").write_text(card(title, config, command, table), encoding="utf-8")


def _bar(description: str, nbytes: int, progress: bool) -> tqdm:
    return tqdm(total=nbytes, unit="B", unit_scale=True, desc=description, disable=not progress, leave=False)


def _hash_ahead(paths: Iterable[Path], hashes: dict[str, str]) -> None:
    """`_hash`, as far as files can be read."""
    with suppress(OSError):
        _hash(paths, hashes)


def _hash(paths: Iterable[Path], hashes: dict[str, str]) -> None:
    """Add the hashes of files that are not there yet, by their names."""
    for path in paths:
        if path.name not in hashes:
            hashes[path.name] = hub.sha256(path)


def _counted(part: Plan, progress: bool) -> Iterator[tuple[str, mx.array | np.ndarray]]:
    """The arrays of a plan, with a bar that counts the bytes converted and written."""
    with _bar("converting, writing", part.nbytes(), progress) as bar:
        for name, array in part.arrays():
            yield name, array
            bar.update(array.nbytes)
            mx.clear_cache()  # freed buffers go back at once: a conversion seldom needs the same size twice
