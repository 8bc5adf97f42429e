"""What the stages hand to each other: frozen dataclasses with every time in seconds from the start of the recording.

Samples and frames stay inside a stage. A result is never changed; `dataclasses.replace` makes the next one.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Region:
    """A stretch of the recording in which somebody speaks.

    start, end : seconds from the start of the recording, 0 <= start <= end
    """

    start: float
    end: float

    @property
    def duration(self) -> float:
        """Seconds from start to end."""
        return self.end - self.start
