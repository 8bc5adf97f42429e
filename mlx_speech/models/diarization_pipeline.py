"""The models of a pyannote diarization pipeline, together: segmentation, speaker embedding and, where used, PLDA."""

from __future__ import annotations

from typing import Any

from mlx_speech.errors import ConfigError, brief
from mlx_speech.models.base import BaseModel


class Model(BaseModel):
    """The models and the settings of a pipeline; it has no `__call__`, since `stages.diarize` puts them together.

    config : of the pipeline: `clustering`, `embedding_exclude_overlap` (a voice's embedding is made from where it is
        alone), `segmentation_step` (the part of a window by which the next one is later) and `params`
    segmentation, embedding, plda : models of their families; `plda` may be None

    Raises `ConfigError` where `segmentation_step` is not from 0.01 to 1.
    """

    def __init__(
        self, config: dict[str, Any], segmentation: BaseModel, embedding: BaseModel, plda: BaseModel | None = None
    ):
        super().__init__()
        self.segmentation = segmentation
        self.embedding = embedding
        self.plda = plda
        self.clustering: str = config.get("clustering") or "VBxClustering"
        self.embedding_exclude_overlap: bool = bool(config.get("embedding_exclude_overlap", False))
        self.segmentation_step: float = config.get("segmentation_step", 0.1)
        self.params: dict[str, Any] = config.get("params", {})
        is_number = type(self.segmentation_step) in (int, float)
        if not is_number or not 0.01 <= self.segmentation_step <= 1:
            raise ConfigError(f"segmentation_step is {brief(self.segmentation_step)}: it has to be from 0.01 to 1")
