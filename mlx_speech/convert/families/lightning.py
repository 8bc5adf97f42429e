"""What pyannote's Lightning checkpoints hold beside weights: hyper-parameters and specifications, as inert data."""

from __future__ import annotations

from typing import Any

from mlx_speech.convert.formats.unpickler import Stub
from mlx_speech.convert.read import Source
from mlx_speech.errors import ConfigError

# A few bytes of a pickle can stand for a structure without end.
MAX_DEPTH = 50
MAX_ITEMS = 200_000


def plain(value: Any) -> Any:
    """`value` with every stub replaced by what it stands for: its items, its attributes, or its argument.

    Raises `ConfigError` for a structure that is deeper or larger than a checkpoint's, or that contains itself.
    """
    left = MAX_ITEMS

    def walk(node: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > MAX_DEPTH:
            raise ConfigError("what the checkpoint says of itself goes on without end: fetch it again")
        if isinstance(node, Stub):
            argument = node.args[0] if len(node.args) == 1 else node.args
            return walk(node.entries or node.items or node.state or argument, depth + 1)
        if isinstance(node, dict):
            return {key: walk(item, depth + 1) for key, item in node.items() if isinstance(key, (str, int))}
        if isinstance(node, (list, tuple)):
            return [walk(item, depth + 1) for item in node]
        return node

    return walk(value, 0)


def hyper_parameters(source: Source) -> dict[str, Any]:
    """The constructor's arguments; {} where the file has none."""
    parameters = plain(source.extra.get("hyper_parameters", {}))
    return parameters if isinstance(parameters, dict) else {}


def specifications(source: Source) -> dict[str, Any]:
    """What the model was trained for (`pyannote.audio.core.task.Specifications`): problem, duration, classes …

    Raises `ConfigError` where the file has none.
    """
    header = plain(source.extra.get("pyannote.audio", {}))
    stated = header.get("specifications") if isinstance(header, dict) else None
    if not isinstance(stated, dict):
        raise ConfigError("no specifications in this checkpoint: it was not written by pyannote.audio")
    return stated
