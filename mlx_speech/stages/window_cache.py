"""What the models said of every window of a recording, packed: 0.4 kB of classes a window, and a vector for each voice.

Of a multilabel model the scores are kept too, of those voices that speak: no other's are looked at.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mlx_speech.models.diarization_pipeline import Model
from mlx_speech.stages.windows import frames_alone

ROWS_PER_BLOCK = 1024  # of a cache, which never copies what it has; and windows that are unpacked at once


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


@dataclass(frozen=True)
class Heard:
    """What the models said of some windows: pieces of rows that do not change any more.

    classes : bits, who speaks in which frame; a row for each window
    scores : a row of frames for each voice that speaks, window after window; None where they are the classes
    vectors : a row for each of these voices, NaN where it has none
    shape : frames and speakers of a window
    """

    classes: list[np.ndarray]
    scores: list[np.ndarray] | None
    vectors: list[np.ndarray]
    shape: tuple[int, int]

    @classmethod
    def of(cls, classes: np.ndarray, vectors: np.ndarray, scores: np.ndarray | None = None) -> Heard:
        """classes, scores : (windows, frames, speakers), classes 0 or 1; vectors : (windows, speakers, dimension)"""
        speaking = _speaking(classes)
        of_voices = None if scores is None else [_rows_of_voices(scores, speaking)]
        return cls([_packed(classes)], of_voices, [vectors[speaking]], classes.shape[1:])

    def __len__(self) -> int:
        return sum(map(len, self.classes))

    def blocks(self) -> Iterator[np.ndarray]:
        """The classes of some windows at a time, (windows, frames, speakers) int8, 0 or 1."""
        for piece in self.classes:
            for start in range(0, len(piece), ROWS_PER_BLOCK):
                yield _unpacked(piece[start : start + ROWS_PER_BLOCK], self.shape)

    def windows(self) -> Iterator[np.ndarray]:
        """The scores of each window, (frames, speakers): those of voices that do not speak are 0."""
        rows = None if self.scores is None else (row for piece in self.scores for row in piece)
        for block in self.blocks():
            for classes in block:
                yield classes if rows is None else _scores_of_window(classes, rows)

    def flat_vectors(self) -> np.ndarray:
        """(voices, dimension) of those that speak, window after window."""
        return np.concatenate(self.vectors)

    def speaking(self) -> np.ndarray:
        """Who speaks at all, (windows, speakers) bool."""
        found = [np.zeros((0, self.shape[1]), dtype=bool)]
        found += [_speaking(block) for block in self.blocks()]
        return np.concatenate(found)

    def alone(self) -> np.ndarray:
        """In how many frames each speaks while no other does, (windows, speakers)."""
        counts = [np.zeros((0, self.shape[1]), dtype=int)]
        for block in self.blocks():
            counts.append(frames_alone(block))
        return np.concatenate(counts)

    def vectors_of_windows(self) -> np.ndarray:
        """(windows, speakers, dimension), NaN for who does not speak."""
        speaking = self.speaking()
        flat = self.flat_vectors()
        vectors = np.full((*speaking.shape, flat.shape[1]), np.nan, dtype=np.float32)
        vectors[speaking] = flat
        return vectors


class Cache:
    """What the models said of every window, once each.

    classes : bits, who speaks in which frame
    scores : of the voices that speak, window after window, as far as they are not the classes
    vectors : of these voices, as far as they were heard
    offsets : the first voice of every window, and behind the last
    """

    def __init__(self, model: Model) -> None:
        self.shape = (0, 0)  # frames and speakers of a window, once there is one
        self.has_scores = model.segmentation.args.powerset_max_classes is None
        self.classes = Rows(0, np.uint8)
        self.scores = Rows(0, np.float32)
        self.vectors = Rows(model.embedding.args.embedding_size, np.float32)
        self.offsets = [0]

    @property
    def whole(self) -> int:
        """Windows from the first on whose voices all have their vectors."""
        return bisect_right(self.offsets, len(self.vectors)) - 1

    def append(self, classes: np.ndarray, scores: np.ndarray) -> None:
        """Of the next windows, (windows, frames, speakers)."""
        packed = _packed(classes)
        if not len(self.classes):
            self.shape = classes.shape[1:]
            self.classes = Rows(packed.shape[1], np.uint8)
            self.scores = Rows(self.shape[0], np.float32)
        self.classes.append(packed)
        speaking = _speaking(classes)
        if self.has_scores:
            self.scores.append(_rows_of_voices(scores, speaking))
        for voices in speaking.sum(axis=1).tolist():
            self.offsets.append(self.offsets[-1] + voices)

    def append_vectors(self, vectors: np.ndarray) -> None:
        """Of the next voices that have none yet, (voices, dimension)."""
        self.vectors.append(vectors)

    def classes_of(self, first: int, last: int) -> np.ndarray:
        """Of windows `first` to before `last`, (windows, frames, speakers) int8."""
        return _unpacked(np.concatenate(self.classes.rows(first, last)), self.shape)

    def heard(self, first: int, last: int, loose: list[np.ndarray]) -> Heard:
        """Of windows `first` to before `last`. loose : vectors of those that have none here"""
        whole = self.whole
        vectors = self.vectors.rows(self.offsets[min(first, whole)], self.offsets[min(last, whole)])
        scores = None
        if self.has_scores:
            scores = self.scores.rows(self.offsets[first], self.offsets[last])
        return Heard(self.classes.rows(first, last), scores, vectors + loose, self.shape)


def _speaking(classes: np.ndarray) -> np.ndarray:
    """(windows, frames, speakers) → (windows, speakers) bool"""
    return np.asarray(classes.any(axis=1))


def _packed(classes: np.ndarray) -> np.ndarray:
    """(windows, frames, speakers) of 0 and 1 → (windows, bytes)"""
    return np.packbits(classes.reshape(len(classes), math.prod(classes.shape[1:])) != 0, axis=1)


def _unpacked(rows: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(windows, bytes) → (windows, frames, speakers) int8"""
    bits = np.unpackbits(rows, axis=1, count=shape[0] * shape[1])
    return bits.view(np.int8).reshape(-1, *shape)


def _rows_of_voices(scores: np.ndarray, speaking: np.ndarray) -> np.ndarray:
    """scores (windows, frames, speakers), speaking (windows, speakers) → (voices, frames)"""
    return scores.transpose(0, 2, 1)[speaking]


def _scores_of_window(classes: np.ndarray, rows: Iterator[np.ndarray]) -> np.ndarray:
    """(frames, speakers). classes : of the window, (frames, speakers); rows : of the voices from its first on"""
    scores = np.zeros(classes.shape, dtype=np.float32)
    for speaker in np.flatnonzero(classes.any(axis=0)):
        scores[:, speaker] = next(rows)
    return scores
