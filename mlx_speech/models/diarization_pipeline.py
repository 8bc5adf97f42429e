"""The models of a pyannote diarization pipeline, together: segmentation, speaker embedding and, where used, PLDA."""

from __future__ import annotations

from typing import Any

from mlx_speech.models.base import BaseModel


class Model(BaseModel):
    """`segmentation`, `embedding` and `plda` (or None) are models of their families; `params` are the pipeline's."""

    def __init__(
        self, config: dict[str, Any], segmentation: BaseModel, embedding: BaseModel, plda: BaseModel | None = None
    ):
        super().__init__()
        self.segmentation, self.embedding, self.plda = segmentation, embedding, plda
        self.clustering: str = config.get("clustering", "")
        self.params: dict[str, Any] = config.get("params", {})
