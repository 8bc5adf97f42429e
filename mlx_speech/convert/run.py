"""A conversion from end to end: find the source, plan, write beside the target, verify, put in place, upload.

`convert` is the command; `locate` and `resolve` are what `load` needs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
from filelock import FileLock
from tqdm import tqdm

from mlx_speech import checkpoint, folders, hub
from mlx_speech.checkpoint import PIPELINE
from mlx_speech.convert.card import card, provenance
from mlx_speech.convert.parity import measures as parity
from mlx_speech.convert.pipeline import is_pipeline, read_pipeline
from mlx_speech.convert.port import Plan, plan
from mlx_speech.convert.quantize import Options
from mlx_speech.convert.read import PLDA, WEIGHTS, open_source
from mlx_speech.errors import OptionError, OutputError, ParityError, SourceNotFound
from mlx_speech.models.base import BaseModel
from mlx_speech.tensors import reading, write_safetensors
from mlx_speech.version import __version__

Config = dict[str, Any] | None  # of a pipeline; None where there is a single model
Plans = dict[str, Plan]  # part ("" for a single model) → its plan


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
        return path.parent.name if path.name in (*WEIGHTS, *PLDA) else path.stem

    @property
    def said(self) -> dict[str, Any]:
        """What is kept of it."""
        return {"repo": self.repo, "revision": self.revision, "licence": self.licence}


@dataclass(frozen=True)
class Report:
    """What a conversion did."""

    path: Path | None  # None after a dry run
    family: str
    parameters: int
    bytes_before: int
    bytes_after: int
    tables: dict[str, str]  # part ("" for a single model) → its parity table, where verified
    lines: list[str]

    @property
    def bits_per_weight(self) -> float:
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
    q_mode: str = "affine",
    quant_predicate: str | None = None,
    dtype: str | None = None,
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

    model : a hub repository, a local folder, or a file
    mlx_path : the folder to write, which appears complete or not at all; by default mlx_models/<name>[-4bit]
    language : of an MMS model, the adapter to put in; of a torchaudio file, whose labels it has
    dry_run : only plan; the report's lines say where every tensor goes
    verify : run the original too, and write the parity figures into config.json and the card

    Raises `SourceError`, `OptionError`, `OutputError`, `MissingDependency`, `ParityError`; nothing is left behind then.
    """
    options = Options(quantize, q_group_size, q_bits, q_mode, quant_predicate, dtype, dequantize)
    target = folders.expand(mlx_path) if mlx_path is not None else None
    if target is not None and not dry_run:
        folders.check_target(target, overwrite)
    if upload_repo is not None and not hub.is_repo_id(upload_repo):
        raise OptionError(f"upload_repo={upload_repo}: not a repository's name (owner/name)")
    if target is None and not dry_run and hub.is_repo_id(model):  # before a download; most often that is its name
        folders.check_target(Path("mlx_models") / f"{model.rpartition('/')[2]}{options.suffix}", overwrite)
    origin = locate(model, revision, language)
    config, plans = _plans(origin, options, language)
    for part in plans.values() if verify else ():
        parity.check_installed(part.recipe.original)
    lines = [line for name, part in plans.items() for line in _said(name, part, dry_run)]
    if dry_run:
        return _report(None, config, plans, lines)
    suffix = options.suffix if any(part.quantized for part in plans.values()) else ""
    target = target or Path("mlx_models") / f"{origin.name}{suffix}"
    command = _command(origin, options, language, verify)
    report = _report(target, config, plans, lines)
    with folders.staged(target, overwrite) as stage:
        report.tables.update(_write_all(stage, target, config, plans, command, verify=verify, progress=progress))
    if upload_repo is not None:
        report.lines.append(f"uploaded to {hub.upload(target, upload_repo)}")
    return report


def _write_all(stage: Path, target: Path, config: Config, plans: Plans, command: str, **how: bool) -> dict[str, str]:
    """Write every part into `stage`, which becomes `target`; the parity tables, where verified. how : as for `write`"""
    needed, free = sum(part.nbytes() for part in plans.values()) / 1e6, shutil.disk_usage(stage).free / 1e6
    if free < needed:
        raise OutputError(f"{target}: needs {needed:.0f} MB and {free:.0f} MB are free: choose another mlx_path")
    tables = {}
    for name, part in plans.items():
        tables[name] = write(part, stage / name, str(Path(target.name, name)), command, **how)
    if config is not None:
        whole = {**config, "format_version": checkpoint.FORMAT_VERSION}
        _write_json(stage / "config.json", whole)
        (stage / "README.md").write_text(card(target.name, whole, command, None), encoding="utf-8")
    return {name: table for name, table in tables.items() if table}


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


def plan_source(origin: Origin, options: Options, language: str | None = None) -> Plan:
    """Open, recognise and plan one model. Raises `SourceError` or `OptionError`, naming the source."""
    with reading(origin.path):
        return plan(replace(open_source(origin.path), name=origin.name, **origin.said), options, language)


def _plans(origin: Origin, options: Options, language: str | None) -> tuple[Config, Plans]:
    """One plan, or the configuration of a pipeline and a plan for each of its parts."""
    config = checkpoint.read_config(origin.path) if checkpoint.is_converted(origin.path) else {}
    if config.get("model_type") == PIPELINE:
        names = checkpoint.part_names(origin.path)
        return config, {name: plan_source(replace(origin, path=origin.path / name), options) for name in names}
    if not is_pipeline(origin.path):
        return None, {"": plan_source(origin, options, language)}
    config, parts = read_pipeline(origin.path, hub.is_repo_id)
    origin = replace(origin, licence=origin.licence or hub.readme_licence(origin.path / "README.md"))
    config["source"] = origin.said
    plans = {}
    for name, place in parts.items():
        if isinstance(place, Path):
            found = replace(origin, path=place, licence=hub.readme_licence(place / "README.md") or origin.licence)
        else:
            repo, _, revision = place.partition("@")
            found = locate(repo, revision or None)
        plans[name] = plan_source(found, options, language)
    return config, plans


def write(part: Plan, folder: Path, title: str, command: str, *, verify: bool = False, progress: bool = False) -> str:
    """Write one planned model into `folder` (made if missing): weights, configuration, companions, card.

    Returns the parity table, or "" unless verified. Raises `ParityError` where a float32 model does not meet the bars.
    """
    folder.mkdir(parents=True, exist_ok=True)
    hashes = {path.name: _hash(path, progress) for path in part.source.files}
    write_safetensors(folder / "model.safetensors", part.layout(), _counted(part, progress))
    config: dict[str, Any] = {**part.config, "source": provenance(part, hashes)}
    for pattern in part.recipe.companions:
        for companion in part.source.matching(pattern):
            if companion.name not in part.recipe.documents:
                shutil.copyfile(companion, folder / companion.name)
    for name, content in {**part.recipe.documents, "config.json": config}.items():
        _write_json(folder / name, content)
    table = ""
    if verify:
        # weights that were not changed must give what the original gives, computed in float32 on both sides
        barred = not part.changed()
        rows = parity.verified(part, folder, "float32" if barred else config["dtype"])
        failed = [f"{row.measure} {row.value:.3g}" for row in rows if not row.ok]
        if barred and failed:
            raise ParityError(f"{part.source.path}: differs from its original: {failed[0]}")
        table = parity.table(rows, bars=barred)
        config["source"]["verified"] = {row.measure: row.value for row in rows}
        _write_json(folder / "config.json", config)
    (folder / "README.md").write_text(card(title, config, command, table), encoding="utf-8")
    return table


def resolve(origin: Origin, language: str | None = None, q_bits: int | None = None) -> Path | BaseModel:
    """What `load` gets of an original: its converted folder in the cache, or the model itself.

    The folder is made if it is not there, by one process while others wait. Weights that have MLX's layout already
    (mlx-community) are not written a second time: the model is built in memory.

    q_bits : quantize to so many bits what has not as many already
    """
    done = q_bits is None or checkpoint.quantized_bits(origin.path) == q_bits
    options = Options() if done else Options(quantize=True, q_bits=q_bits)
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
            if not folder.is_dir():
                with folders.staged(folder) as stage:
                    _write_all(stage, folder, config, plans, _command(origin, options, language, False))
    return folder


def _fingerprint(origin: Origin, language: str | None) -> str:
    """What decides whether a conversion in the cache is still that of `origin`: its revision, or its files' state."""
    said: list[Any] = [__version__, checkpoint.FORMAT_VERSION, language, origin.repo, origin.revision]
    if origin.repo is None:
        path = origin.path.resolve()
        folders = [path, *(path / name for name in checkpoint.PARTS)] if path.is_dir() else []
        files = sorted(file for folder in folders for file in folder.glob("*") if file.is_file()) or [path]
        if path.name in PLDA:
            files = [path.parent / name for name in PLDA]
        stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.exists()]
        said += [str(path), stats]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def _bar(what: str, nbytes: int, progress: bool) -> tqdm:
    return tqdm(total=nbytes, unit="B", unit_scale=True, desc=what, disable=not progress, leave=False)


def _hash(path: Path, progress: bool) -> str:
    with _bar(f"checking {path.name}", path.stat().st_size, progress) as bar:
        return hub.sha256(path, bar.update)


def _counted(part: Plan, progress: bool) -> Iterator[tuple[str, Any]]:
    """The arrays of a plan, with a bar that counts the bytes converted and written."""
    with _bar("converting, writing", part.nbytes(), progress) as bar:
        for name, array in part.arrays():
            yield name, array
            bar.update(array.nbytes)
            mx.clear_cache()  # freed buffers go back at once: a conversion seldom needs the same size twice


def _command(origin: Origin, options: Options, language: str | None, verify: bool) -> str:
    """The command that makes this conversion again; a local source by its name alone."""
    words = ["python", "-m", "mlx_speech.convert", "--model", origin.repo or origin.path.resolve().name]
    given = {"revision": origin.revision or None, **dataclasses.asdict(options), "language": language}
    flags = {"-q": given.pop("quantize"), "-d": given.pop("dequantize"), "--verify": verify}
    for name, value in given.items():
        words += [f"--{name.replace('_', '-')}", str(value)] if value not in (None, "affine") else []
    return shlex.join([*words, *(flag for flag, on in flags.items() if on)])


def _said(name: str, part: Plan, dry_run: bool) -> list[str]:
    lines = [*(part.describe().splitlines() if dry_run else ()), *part.notes]
    return [f"{name}: {line}" if name else line for line in lines]


def _report(path: Path | None, config: Config, plans: Plans, lines: list[str]) -> Report:
    parts = list(plans.values())
    family = PIPELINE if config is not None else parts[0].family
    parameters, after = sum(part.parameters() for part in parts), sum(part.nbytes() for part in parts)
    before = sum(file.stat().st_size for part in parts for file in part.source.files)
    return Report(path, family, parameters, before, after, {}, lines)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
