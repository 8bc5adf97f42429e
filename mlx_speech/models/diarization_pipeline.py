"""The models of a pyannote diarization pipeline, together: segmentation, speaker embedding and, where used, PLDA."""

from __future__ import annotations

from typing import Any

from mlx_speech.errors import ConfigError, brief
from mlx_speech.models.base import BaseModel, SpeakerEmbedding


class Model(BaseModel):
    """The models and the settings of a pipeline; it has no `__call__`, since `stages.diarize` puts them together.

    config : of the pipeline: `clustering`, `embedding_exclude_overlap` (a voice's embedding is made from where it is
        alone), `segmentation_step` (the part of a window by which the next one is later) and `params`; of ours, too,
        `embedding_stretch` (seconds of windows whose voices are embedded together; without it, each window is heard by
        itself, as pyannote.audio does) and `min_active_ratio` (see `stages.cluster.cluster`)
    segmentation, embedding, plda : models of their families; `plda` may be None

    Raises `ConfigError` for an embedding of another kind, and where a number is out of its range.
    """

    def __init__(
        self, config: dict[str, Any], segmentation: BaseModel, embedding: BaseModel, plda: BaseModel | None = None
    ):
        super().__init__()
        if not isinstance(embedding, SpeakerEmbedding):
            family = type(embedding).__module__.rpartition(".")[2]
            raise ConfigError(f"embedding is a {family} model, where one of speaker embedding is needed")
        self.segmentation = segmentation
        self.embedding = embedding
        self.plda = plda
        self.clustering: str = config.get("clustering") or "VBxClustering"
        self.embedding_exclude_overlap: bool = bool(config.get("embedding_exclude_overlap", False))
        self.segmentation_step = _number(config, "segmentation_step", 0.1, low=0.01, high=1.0)
        self.min_active_ratio = _number(config, "min_active_ratio", 0.2, low=0.0, high=1.0)
        self.embedding_stretch: float | None = None  # seconds
        if config.get("embedding_stretch") is not None:
            self.embedding_stretch = _number(config, "embedding_stretch", 0.0, low=1.0, high=600.0)
        self.params: dict[str, Any] = config.get("params", {})


def _number(config: dict[str, Any], name: str, default: float, low: float, high: float) -> float:
    """An entry of the configuration. Raises `ConfigError` where it is no number from `low` to `high`."""
    value = config.get(name, default)
    if type(value) not in (int, float) or not low <= value <= high:
        raise ConfigError(f"{name} is {brief(value)}: it has to be from {low:g} to {high:g}")
    return value
