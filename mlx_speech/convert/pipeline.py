"""A whole pyannote pipeline: config.yaml names its models, in sub-folders, in other repositories, or beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from mlx_speech.checkpoint import PARTS, PIPELINE, has
from mlx_speech.errors import ConfigError, CorruptFile, SourceError, SourceNotFound, brief
from mlx_speech.folders import inside
from mlx_speech.hub import WEIGHTS

CONFIG = "config.yaml"
MAX_YAML_BYTES = 256 * 1024  # PyYAML reads less than a megabyte a second
# What its safe loader raises for malformed dates, numbers and truth values comes as it is.
NOT_YAML = (
    yaml.YAMLError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    OverflowError,
    RecursionError,
)


def is_pipeline(path: Path) -> bool:
    """Whether `path` is the folder of a pyannote pipeline; a single model's folder has a config.yaml too."""
    return has(path, CONFIG) and not any(has(path, name) for name in ("config.json", *WEIGHTS))


def read_pipeline(folder: Path, is_repo_id: Callable[[str], bool]) -> tuple[dict[str, Any], dict[str, Path | str]]:
    """The pipeline's own config.json, and for each part its folder or the repository that has it.

    An entry is `$model/name` or a relative path inside the folder, or a repository (owner/name, with @revision) where
    there is no such path; anything that points outside raises `CorruptFile`. Raises `ConfigError` for what is no
    diarization pipeline, or could not be written in JSON.
    """
    path = folder / CONFIG
    content = _read_yaml(path)
    pipeline = content.get("pipeline") if isinstance(content, dict) else None
    settings = pipeline.get("params") if isinstance(pipeline, dict) else None
    if not isinstance(content, dict) or not isinstance(settings, dict) or "segmentation" not in settings:
        raise ConfigError(f"{path}: not a speaker diarization pipeline (no pipeline.params.segmentation)")
    parts: dict[str, Path | str] = {}
    for name in PARTS:
        if settings.get(name) is not None:
            parts[name] = _locate(folder, _entry(settings[name], name, path), path, is_repo_id)
    if "embedding" not in parts:
        raise ConfigError(f"{path}: names no embedding")
    parameters = content.get("params")
    config: dict[str, Any] = {
        "model_type": PIPELINE,
        **{name: name for name in parts},
        "clustering": str(settings.get("clustering", "")),
        "embedding_exclude_overlap": bool(settings.get("embedding_exclude_overlap", False)),
        "segmentation_step": settings.get("segmentation_step", 0.1),
        "params": parameters if isinstance(parameters, dict) else {},
    }
    try:
        json.dumps(config, sort_keys=True, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path}: params hold what JSON cannot ({error}): only numbers, text and lists") from error
    return config, parts


def _read_yaml(path: Path) -> Any:
    """The content of a YAML file, of plain values only. Raises `CorruptFile` or `SourceError`."""
    try:
        nbytes = path.stat().st_size
        if nbytes > MAX_YAML_BYTES:
            raise CorruptFile(f"{path}: {nbytes} bytes are too many for a pipeline: fetch it again")
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
        # An alias shares what it names, so that loading is cheap; but writing unfolds it, and it may nest.
        if "&" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            raise CorruptFile(f"{path}: has aliases, which can unfold without end: write it without")
    except NOT_YAML as error:
        raise CorruptFile(f"{path}: not valid YAML: fetch it again") from error
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from error
    return content


def _entry(value: Any, name: str, file: Path) -> str:
    """What `file` names as its part `name`: text, or {checkpoint: …, subfolder: …}."""
    if isinstance(value, dict):
        value = f"{value.get('checkpoint', '')}/{value.get('subfolder', '')}".rstrip("/")
    if not isinstance(value, str):
        raise ConfigError(f"{file}: {name} is {brief(value)}")
    return value


def _locate(folder: Path, entry: str, file: Path, is_repo_id: Callable[[str], bool]) -> Path | str:
    """The path inside `folder` that an entry means, or the repository."""
    relative = entry.removeprefix("$model/")
    path = inside(folder, relative, file)
    if path.exists():
        return path
    if relative == entry and is_repo_id(entry.split("@")[0]):
        return entry
    raise SourceNotFound(f"{path}: missing, though {file.name} names it: fetch the whole pipeline")
