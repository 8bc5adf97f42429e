"""The models of a pyannote diarization pipeline, together: segmentation, speaker embedding and, where used, PLDA."""

from __future__ import annotations

from typing import Any

from mlx_speech.errors import ConfigError, brief
from mlx_speech.models.base import BaseModel


class Model(BaseModel):
    """`segmentation`, `embedding` and `plda` (or None) are models of their families; `params` are the pipeline's.

    `segmentation_step` is the part of a window by which the next one is later; with `embedding_exclude_overlap`, a
    voice's embedding is made from where it is alone.
    """

    def __init__(
        self, config: dict[str, Any], segmentation: BaseModel, embedding: BaseModel, plda: BaseModel | None = None
    ):
        super().__init__()
        self.segmentation, self.embedding, self.plda = segmentation, embedding, plda
        self.clustering: str = config.get("clustering") or "VBxClustering"
        self.embedding_exclude_overlap: bool = bool(config.get("embedding_exclude_overlap", False))
        self.segmentation_step: float = config.get("segmentation_step", 0.1)
        self.params: dict[str, Any] = config.get("params", {})
        if type(self.segmentation_step) not in (int, float) or not 0.01 <= self.segmentation_step <= 1:
            raise ConfigError(f"segmentation_step is {brief(self.segmentation_step)}: it has to be from 0.01 to 1")
