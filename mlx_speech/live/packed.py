"""Segments that are only wanted at the end of a session, small until then."""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Iterable

from mlx_speech.transcript import Segment

SEGMENTS_PER_BLOCK = 64  # packed together: what they have in common is then held once


class PackedSegments:
    """In the order in which they were added. A word takes 30 bytes instead of 600 as soon as its block is full."""

    def __init__(self) -> None:
        self._blocks: list[bytes] = []
        self._loose: list[Segment] = []

    def add(self, segments: Iterable[Segment]) -> None:
        """Behind those that are there."""
        self._loose += segments
        while len(self._loose) >= SEGMENTS_PER_BLOCK:
            block = self._loose[:SEGMENTS_PER_BLOCK]
            self._blocks.append(zlib.compress(pickle.dumps(block)))
            self._loose = self._loose[SEGMENTS_PER_BLOCK:]

    def all(self) -> list[Segment]:
        """As they were added."""
        segments: list[Segment] = []
        for block in self._blocks:
            segments += pickle.loads(zlib.decompress(block))  # made here, of this process alone
        return segments + self._loose
