"""How long a live session lets its client wait, and what it hears, for /metrics."""

from __future__ import annotations

import time

from mlx_speech.server.metrics import Metrics
from mlx_speech.server.realtime.recognition import Committed, Completed, Failed, Happening, Refused, SpeechStarted, Text
from mlx_speech.server.realtime.turns import OVERFLOW


class Stopwatch:
    """Is shown all that happens in one session."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._speaking: tuple[str, float] | None = None  # the item that has no words yet, and since when it is there
        self._committed: dict[str, float] = {}  # items that are being recognised, since when

    def see(self, happening: Happening) -> None:
        """Count it."""
        now = time.monotonic()
        if isinstance(happening, SpeechStarted):
            self._speaking = (happening.item, now)
        elif isinstance(happening, Text):
            if happening.item not in self._committed:
                self._metrics.see_partial()
            if self._speaking is not None and self._speaking[0] == happening.item:
                self._metrics.see_first_partial(now - self._speaking[1])
                self._speaking = None
        elif isinstance(happening, Committed):
            self._committed[happening.item] = now
        elif isinstance(happening, Completed):
            self._metrics.see_sound("live", happening.seconds)
            self._metrics.see_final(now - self._committed.pop(happening.item, now))
        elif isinstance(happening, Failed):
            self._committed.pop(happening.item, None)
        elif isinstance(happening, Refused) and happening.error.code == OVERFLOW:
            self._metrics.see_overflow()
