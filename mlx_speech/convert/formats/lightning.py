"""What pyannote's Lightning checkpoints hold beside weights: hyper-parameters and specifications, as inert data."""

from __future__ import annotations

from typing import Any

from mlx_speech.convert.formats.pytorch import Stub
from mlx_speech.convert.read import Source
from mlx_speech.errors import ConfigError

MAX_DEPTH, MAX_ITEMS = 50, 200_000  # a few bytes of a pickle can stand for a structure without end


def plain(value: Any) -> Any:
    """`value` with every stub replaced by what it stands for: its items, its attributes, or its argument.

    Raises `ConfigError` for a structure that is deeper or larger than a checkpoint's, or that contains itself.
    """
    left = MAX_ITEMS

    def walk(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > MAX_DEPTH:
            raise ConfigError("what the checkpoint says of itself goes on without end: fetch it again")
        if isinstance(value, Stub):
            argument = value.args[0] if len(value.args) == 1 else value.args
            return walk(value.entries or value.items or value.state or argument, depth + 1)
        if isinstance(value, dict):
            return {key: walk(item, depth + 1) for key, item in value.items() if isinstance(key, (str, int))}
        return [walk(item, depth + 1) for item in value] if isinstance(value, (list, tuple)) else value

    return walk(value, 0)


def hyper_parameters(source: Source) -> dict[str, Any]:
    """The constructor's arguments; {} where the file has none."""
    found = plain(source.extra.get("hyper_parameters", {}))
    return found if isinstance(found, dict) else {}


def specifications(source: Source) -> dict[str, Any]:
    """What the model was trained for (`pyannote.audio.core.task.Specifications`): problem, duration, classes …"""
    header = plain(source.extra.get("pyannote.audio", {}))
    found = header.get("specifications") if isinstance(header, dict) else None
    if not isinstance(found, dict):
        raise ConfigError("no specifications in this checkpoint: it was not written by pyannote.audio")
    return found
