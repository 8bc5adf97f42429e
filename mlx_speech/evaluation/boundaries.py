"""How far the boundaries of words are from where they are: of the words that were recognised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlx_speech.evaluation.bootstrap import Median, Rate
from mlx_speech.evaluation.normalisers import plain
from mlx_speech.evaluation.word_errors import word_edits
from mlx_speech.transcript import Segment, Word

NEAR = 0.05  # seconds by which the start of a word may be off


@dataclass(frozen=True)
class BoundaryErrors:
    """distances : of starts and ends, in seconds; late_starts : of the starts, those that are more than 50 ms off;
    words : how many were recognised and have times on both sides"""

    distances: Median
    late_starts: Rate
    words: int


def boundary_errors(said: Sequence[Segment], heard: Sequence[Segment]) -> BoundaryErrors | None:
    """None where either side has no words with times that are known. Raises `MissingDependency`."""
    reference: list[Word] = []
    unit_of_word: list[int] = []
    for unit, segment in enumerate(said):
        words = [word for word in segment.words if letters(word)]
        reference += words
        unit_of_word += [unit] * len(words)
    hypothesis = [word for segment in heard for word in segment.words if letters(word)]
    if not any(word.aligned for word in reference) or not any(word.aligned for word in hypothesis):
        return None
    distances: list[float] = []
    units: list[int] = []
    late = np.zeros(max(1, len(said)))
    starts = np.zeros(max(1, len(said)))
    for place, found in same_words(reference, hypothesis):
        theirs = reference[place]
        ours = hypothesis[found]
        if not theirs.aligned or not ours.aligned:
            continue
        unit = unit_of_word[place]
        distances += [abs(ours.start - theirs.start), abs(ours.end - theirs.end)]
        units += [unit, unit]
        starts[unit] += 1
        late[unit] += abs(ours.start - theirs.start) > NEAR
    median = Median(np.array(distances), np.array(units, dtype=np.int64), max(1, len(said)))
    return BoundaryErrors(median, Rate(late, starts), len(distances) // 2)


def same_words(said: Sequence[Word], heard: Sequence[Word]) -> list[tuple[int, int]]:
    """The places of words that were recognised, on either side. Raises `MissingDependency`."""
    reference = [letters(word) for word in said]
    hypothesis = [letters(word) for word in heard]
    pairs: list[tuple[int, int]] = []
    for edit in word_edits(reference, hypothesis):
        if edit.said is None or edit.heard is None:
            continue
        if reference[edit.said] == hypothesis[edit.heard]:
            pairs.append((edit.said, edit.heard))
    return pairs


def letters(word: Word) -> str:
    """A word as it is compared: as `plain`, in one piece; "" of punctuation."""
    return plain(word.text).replace(" ", "")
