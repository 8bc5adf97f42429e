"""Probabilities of speech that come one after the other → the regions that `speech_timestamps` finds in all of them.

Whether somebody speaks is decided without a look ahead; only the margins of a region need one, and whether it is too
short to count. So a region is known a little after it has ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlx_speech.stages.vad import SpeechTracker


@dataclass(frozen=True)
class Ahead:
    """What is known of the region behind those that are complete, in samples.

    start : it begins there, or later
    end : it ends there, or later; None where it is not certain that it begins at all
    """

    start: int
    end: int | None


class OnlineRegions:
    """Fed window by window, it gives every region once, as soon as nothing of it can change."""

    def __init__(self, tracker: SpeechTracker) -> None:
        self._tracker = tracker
        self._given = 0  # stretches that were given
        self._margin: float = tracker.pad  # before the next one

    @property
    def position(self) -> int:
        """Samples so far."""
        return self._tracker.position

    @property
    def open(self) -> bool:
        """Whether somebody speaks, as far as it can be told."""
        return self._tracker.start is not None

    def add(self, probabilities: Sequence[float] | np.ndarray) -> list[tuple[int, int]]:
        """The regions that are known behind the next windows, (start, end) in samples.

        probabilities : (windows,) of speech
        """
        self._tracker.add(probabilities)
        regions: list[tuple[int, int]] = []
        while self._given < len(self._tracker.stretches):
            _, end = self._tracker.stretches[self._given]
            margin = self._margin_behind(end)
            if margin is None:
                break
            regions.append(self._give(margin))
        return regions

    def finish(self, num_samples: int, rest: Sequence[float] | np.ndarray = ()) -> list[tuple[int, int]]:
        """The regions that are left, at the end of the sound.

        num_samples : of all of it
        rest : of speech in its last window, if that is not whole: it is longer than what is left of the sound, so that
            nothing can be told before the end is known
        """
        self._tracker.add(rest)
        self._tracker.finish(num_samples)
        regions: list[tuple[int, int]] = []
        while self._given < len(self._tracker.stretches):
            _, end = self._tracker.stretches[self._given]
            margin = self._tracker.pad
            if self._given + 1 < len(self._tracker.stretches):
                margin = self._half_of(self._tracker.stretches[self._given + 1][0] - end)
            start, end = self._give(margin)
            regions.append((start, min(num_samples, end)))
        return regions

    def ahead(self) -> Ahead:
        """What can be said of the next region."""
        tracker = self._tracker
        if self._given < len(tracker.stretches):
            start, end = tracker.stretches[self._given]
            return Ahead(self._begin(start), end)
        if tracker.start is None:
            return Ahead(self._begin(tracker.position), None)
        if not self._counts():
            return Ahead(self._begin(tracker.start), None)
        return Ahead(self._begin(tracker.start), tracker.earliest_end)

    def _begin(self, start: int) -> int:
        """Where a region begins whose stretch begins at `start`."""
        return int(max(0, start - self._margin))

    def _margin_behind(self, end: int) -> float | None:
        """Samples by which the next stretch to be given is widened behind its `end`; None while that is open."""
        tracker = self._tracker
        full = 2 * tracker.pad
        if self._given + 1 < len(tracker.stretches):
            return self._half_of(tracker.stretches[self._given + 1][0] - end)
        if tracker.start is None:
            return tracker.pad if tracker.position - end >= full else None
        if tracker.start - end >= full:
            return tracker.pad
        # what has begun so soon takes half of the pause, unless it turns out too short to count
        return self._half_of(tracker.start - end) if self._counts() else None

    def _counts(self) -> bool:
        """Whether the open stretch is long enough already to be kept."""
        tracker = self._tracker
        if tracker.start is None:
            return False
        until = tracker.position if tracker.silence is None else tracker.silence
        return until - tracker.start > tracker.min_speech

    def _half_of(self, gap: int) -> float:
        """Samples of a gap between two stretches that belong to each of them."""
        return gap // 2 if gap < 2 * self._tracker.pad else self._tracker.pad

    def _give(self, margin: float) -> tuple[int, int]:
        """The next stretch, widened. margin : samples behind it"""
        start, end = self._tracker.stretches[self._given]
        region = (self._begin(start), int(end + margin))
        self._margin = margin
        self._given += 1
        return region
