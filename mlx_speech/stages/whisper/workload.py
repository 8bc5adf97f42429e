"""How busy the decoder is: counts that whoever decodes adds to, and anybody may read."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

FILLS = (0.125, 0.25, 0.5, 0.75, 1.0, 2.0)  # bounds of how full a batch is; an owner without a row gets one too many


@dataclass
class Workload:
    """Counted by one thread, and read by others: every number by itself is right at any time.

    rows : chunks that are being decoded now
    steps : of the decoder, each a token more for all rows of a batch
    fallbacks : chunks that were to be decoded again, at a higher temperature
    turns : few steps of a batch each, by the first of `FILLS` that is not below how full it was; the last is of those
        above all of them
    turn_fills : the sum of how full it was in all turns
    """

    rows: int = 0
    steps: int = 0
    fallbacks: int = 0
    turns: list[int] = field(default_factory=lambda: [0] * (len(FILLS) + 1))
    turn_fills: float = 0.0

    def see_turn(self, rows: int, size: int, steps: int) -> None:
        """Count a turn of a batch. rows : in use; size : rows that it is meant to have; steps : that it took"""
        fill = rows / size
        self.steps += steps
        self.turns[bisect_left(FILLS, fill)] += 1
        self.turn_fills += fill
