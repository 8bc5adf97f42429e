"""What `stages.growing` keeps of every window: what the models said of it, packed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mlx_speech.models.diarization_pipeline import Model

ROWS_PER_BLOCK = 1024  # of a cache, which never copies what it has


class Rows:
    """Rows of one shape, in blocks that stay where they are: what was taken from it holds while more come."""

    def __init__(self, width: int, dtype: type[np.generic]) -> None:
        self.width = width
        self.dtype = dtype
        self.count = 0
        self._blocks: list[np.ndarray] = []

    def __len__(self) -> int:
        return self.count

    def append(self, rows: np.ndarray) -> None:
        done = 0
        while done < len(rows):
            place = self.count % ROWS_PER_BLOCK
            if place == 0:
                self._blocks.append(np.empty((ROWS_PER_BLOCK, self.width), dtype=self.dtype))
            some = min(len(rows) - done, ROWS_PER_BLOCK - place)
            self._blocks[-1][place : place + some] = rows[done : done + some]
            self.count += some
            done += some

    def rows(self, first: int, last: int) -> list[np.ndarray]:
        """Rows `first` to before `last`, in pieces."""
        pieces = [np.empty((0, self.width), dtype=self.dtype)]
        while first < last:
            place = first % ROWS_PER_BLOCK
            some = min(last - first, ROWS_PER_BLOCK - place)
            pieces.append(self._blocks[first // ROWS_PER_BLOCK][place : place + some])
            first += some
        return pieces


class Found(NamedTuple):
    """Of some windows, as `stages.diarize.from_stages` takes it. vectors : NaN for who is silent; scores : None where
    they are the classes"""

    classes: np.ndarray
    scores: np.ndarray | None
    vectors: np.ndarray


@dataclass(frozen=True)
class Heard:
    """The same, packed: pieces of rows that do not change any more."""

    classes: list[np.ndarray]
    scores: list[np.ndarray] | None
    vectors: list[np.ndarray]
    shape: tuple[int, int]  # frames, speakers

    def unpacked(self) -> Found:
        classes = _unpacked(self.classes, self.shape)
        active = classes.any(axis=1)
        flat = np.concatenate(self.vectors)
        vectors = np.full((*active.shape, flat.shape[1]), np.nan, dtype=np.float32)
        vectors[active] = flat
        scores = None
        if self.scores is not None:
            scores = np.concatenate(self.scores).reshape(classes.shape)
        return Found(classes, scores, vectors)


class Cache:
    """What the models said of every window, once each.

    classes : bits, who speaks in which frame; vectors : of the voices that speak, window after window
    offsets : the first vector of every window that has its own, and where the next one's begin
    """

    def __init__(self, model: Model) -> None:
        self.shape = (0, 0)  # frames and speakers of a window, once there is one
        self.has_scores = model.segmentation.args.powerset_max_classes is None
        self.classes = Rows(0, np.uint8)
        self.scores = Rows(0, np.float32)
        self.vectors = Rows(model.embedding.args.embedding_size, np.float32)
        self.offsets = [0]

    def append(self, classes: np.ndarray, scores: np.ndarray) -> None:
        """Of the next windows, (windows, frames, speakers)."""
        packed = np.packbits(classes.reshape(len(classes), -1), axis=1)
        if not len(self.classes):
            self.shape = classes.shape[1:]
            self.classes = Rows(packed.shape[1], np.uint8)
            self.scores = Rows(self.shape[0] * self.shape[1], np.float32)
        self.classes.append(packed)
        if self.has_scores:
            self.scores.append(scores.reshape(len(scores), -1))

    def append_vectors(self, classes: np.ndarray, vectors: np.ndarray) -> None:
        """Of the next windows that have none yet. classes : theirs; vectors : (voices, dimension)"""
        self.vectors.append(vectors)
        for voices in classes.any(axis=1).sum(axis=1).tolist():
            self.offsets.append(self.offsets[-1] + voices)

    def classes_of(self, first: int, last: int) -> np.ndarray:
        """Of windows `first` to before `last`, (windows, frames, speakers) int8."""
        return _unpacked(self.classes.rows(first, last), self.shape)

    def heard(self, first: int, last: int, loose: list[np.ndarray]) -> Heard:
        """Of windows `first` to before `last`. loose : vectors of those that have none here"""
        whole = len(self.offsets) - 1
        vectors = self.vectors.rows(self.offsets[min(first, whole)], self.offsets[min(last, whole)])
        scores = self.scores.rows(first, last) if self.has_scores else None
        return Heard(self.classes.rows(first, last), scores, vectors + loose, self.shape)


def _unpacked(rows: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    bits = np.unpackbits(np.concatenate(rows), axis=1, count=shape[0] * shape[1])
    return bits.view(np.int8).reshape(-1, *shape)
