"""Regions of speech that come one after the other → the chunks that `cut_chunks` and `widened` make of all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mlx_speech.stages.chunks import cut_chunks, widened
from mlx_speech.transcript import Chunk, Region


class OnlineChunks:
    """Given regions, and what is known of the next one, it gives every chunk once, as soon as nothing can join it.

    chunk_size, max_pause : as of `cut_chunks`; pad : as of `widened`. All in seconds
    """

    def __init__(self, *, chunk_size: float, max_pause: float | None, pad: float) -> None:
        self._chunk_size = chunk_size
        self._max_pause = math.inf if max_pause is None else max_pause
        self._pad = pad
        self._regions: list[Region] = []  # of chunks that were not given
        self._before: Chunk | None = None  # the last chunk that was given, without its margins

    @property
    def start(self) -> float | None:
        """Where the chunk begins, with its margin, that the next regions may join; None where there is none."""
        if not self._regions:
            return None
        return self.start_with(0.0)

    def start_with(self, next_start: float) -> float:
        """The same, where the next region begins at `next_start` and is the first of its chunk if there is none."""
        if self._regions:
            return self._margins(self._groups()[:1], None, math.inf)[0].start
        return self._margins([Chunk(next_start, next_start)], None, math.inf)[0].start

    def add(self, regions: Sequence[Region], next_start: float, next_end: float | None) -> list[Chunk]:
        """The chunks that are complete.

        regions : the next ones, in order
        next_start : the region behind them begins there, or later
        next_end : and ends there, or later; None where it is not certain that there is one
        """
        self._regions += regions
        groups = self._groups()
        if not groups:
            return []
        last = groups[-1]
        is_certain = next_end is not None
        # how wide the margin of the last one is depends on where the next region begins
        has_room = is_certain or next_start - last.end >= 2 * self._pad
        if self._is_closed(last, next_start, next_end) and has_room:
            return self._give(groups, [], next_start, math.inf)
        return self._give(groups[:-1], groups[-1:], last.start, math.inf)

    def expected(self, next_start: float, next_end: float | None) -> Chunk | None:
        """The chunk that comes next if the pause behind its last region lasts; None where none is begun, or somebody
        speaks again. next_start, next_end : as of `add`"""
        groups = self._groups()
        if not groups or next_end is not None:
            return None
        chunk = self._margins(groups[-1:], None, math.inf)[0]
        return chunk if next_start >= chunk.end else None

    def finish(self, regions: Sequence[Region], duration: float) -> list[Chunk]:
        """The chunks that are left, at the end of the sound. duration : of all of it, in seconds"""
        self._regions += regions
        groups = cut_chunks(self._regions, duration=duration, chunk_size=self._chunk_size, max_pause=self._max_pause)
        return self._give(groups, [], None, duration)

    def _groups(self) -> list[Chunk]:
        return cut_chunks(self._regions, duration=math.inf, chunk_size=self._chunk_size, max_pause=self._max_pause)

    def _is_closed(self, group: Chunk, next_start: float, next_end: float | None) -> bool:
        """Whether no region can join it any more."""
        if next_start - group.end > self._max_pause:
            return True
        return next_end is not None and next_end - group.start > self._chunk_size

    def _give(self, groups: list[Chunk], left: list[Chunk], following: float | None, duration: float) -> list[Chunk]:
        """The chunks of the first groups. left : those that wait; following : where the first of them begins"""
        if not groups:
            return []
        chunks = self._margins(groups, following, duration)
        self._before = groups[-1]
        self._regions = [region for group in left for region in group.regions]
        return chunks

    def _margins(self, groups: list[Chunk], following: float | None, duration: float) -> list[Chunk]:
        """Chunks with their margins, which their neighbours limit. following : where the next one begins"""
        around = list(groups)
        if self._before is not None:
            around.insert(0, self._before)
        if following is not None:
            around.append(Chunk(following, following))
        chunks = widened(around, pad=self._pad, duration=duration)
        first = 0 if self._before is None else 1
        return chunks[first : first + len(groups)]
