"""A whole pyannote pipeline: config.yaml names its models, in sub-folders, in other repositories, or beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from mlx_speech.checkpoint import PARTS, PIPELINE
from mlx_speech.convert.read import MAX_JSON, inside
from mlx_speech.errors import ConfigError, CorruptFile, SourceNotFound

CONFIG = "config.yaml"


def is_pipeline(path: Path) -> bool:
    """Whether `path` is the folder of a pyannote pipeline."""
    return path.is_dir() and (path / CONFIG).is_file() and not (path / "config.json").is_file()


def read_pipeline(folder: Path, is_repo_id: Callable[[str], bool]) -> tuple[dict[str, Any], dict[str, Path | str]]:
    """The pipeline's own config.json, and for each part its folder or the repository that has it.

    An entry is `$model/name` or a relative path inside the folder, or a repository (owner/name, with @revision) where
    there is no such path; anything that points outside raises `CorruptFile`.
    """
    path = folder / CONFIG
    try:
        if path.stat().st_size > MAX_JSON:
            raise CorruptFile(f"{path}: too large for a configuration")
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptFile(f"{path}: not valid YAML: fetch it again") from error
    pipeline = content.get("pipeline") if isinstance(content, dict) else None
    settings = pipeline.get("params") if isinstance(pipeline, dict) else None
    if not isinstance(settings, dict) or "segmentation" not in settings:
        raise ConfigError(f"{path}: not a speaker diarization pipeline (no pipeline.params.segmentation)")
    parts: dict[str, Path | str] = {}
    for name in PARTS:
        entry = settings.get(name)
        if entry is None:
            continue
        if isinstance(entry, dict):  # {checkpoint: …, subfolder: …}
            entry = f"{entry.get('checkpoint', '')}/{entry.get('subfolder', '')}".rstrip("/")
        if not isinstance(entry, str):
            raise ConfigError(f"{path}: {name} is {entry!r}")
        parts[name] = _locate(folder, entry, path, is_repo_id)
    if "embedding" not in parts:
        raise ConfigError(f"{path}: names no embedding")
    config = {
        "model_type": PIPELINE,
        **{name: name for name in parts},
        "clustering": str(settings.get("clustering", "")),
        "embedding_exclude_overlap": bool(settings.get("embedding_exclude_overlap", False)),
        "params": content.get("params") if isinstance(content.get("params"), dict) else {},
    }
    return config, parts


def _locate(folder: Path, entry: str, file: Path, is_repo_id: Callable[[str], bool]) -> Path | str:
    relative = entry.removeprefix("$model/")
    path = inside(folder, relative, file)
    if path.exists():
        return path
    if relative == entry and is_repo_id(entry.split("@")[0]):
        return entry
    raise SourceNotFound(f"{path}: missing, though {file.name} names it: fetch the whole pipeline")
