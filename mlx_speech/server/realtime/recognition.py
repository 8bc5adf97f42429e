"""What hears a live session, seen from the socket: sound and wishes go in, happenings come out.

Everything takes effect in the order in which it was handed over, so that what comes out depends on the sound alone, and
not on the blocks that it came in, or on how busy the server is. The one exception is the text of a turn that is open: a
server that is busy tells less of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np

from mlx_speech.pipeline import Pipeline
from mlx_speech.server.errors import ApiError
from mlx_speech.server.realtime.finder import TurnDetection


@dataclass(frozen=True)
class RecognitionSettings:
    """How a session is heard.

    options : `TranscribeOptions` of the client: language, prompt, words to expect
    detection : how turns are found; None where the client says what a turn is
    step : seconds between two looks at what a turn says while it is spoken; None for none
    """

    pipeline: Pipeline
    options: dict[str, Any] = field(default_factory=dict)
    detection: TurnDetection | None = field(default_factory=TurnDetection)
    step: float | None = None


@dataclass(frozen=True)
class SpeechStarted:
    """A turn was found. at : seconds from the start of the session"""

    item: str
    at: float


@dataclass(frozen=True)
class SpeechStopped:
    """It is over. at : seconds from the start of the session"""

    item: str
    at: float


@dataclass(frozen=True)
class Committed:
    """A turn is going to be recognised. previous : the one before it"""

    item: str
    previous: str | None


@dataclass(frozen=True)
class Text:
    """What is said next in a turn; it is not taken back. While the turn is open, what is firm; then what is left."""

    item: str
    text: str


@dataclass(frozen=True)
class Completed:
    """All that is said in a turn, where need be in other words than were told before. seconds : of sound"""

    item: str
    text: str
    seconds: float
    previous: str | None


@dataclass(frozen=True)
class Failed:
    """A turn that could not be recognised."""

    item: str
    error: ApiError
    previous: str | None


@dataclass(frozen=True)
class Cleared:
    """What had not been committed is forgotten."""


@dataclass(frozen=True)
class Refused:
    """Something could not be done. event_id : of the client's message, where it was one"""

    error: ApiError
    event_id: str | None = None


@dataclass(frozen=True)
class Broken:
    """Nothing more will be heard."""

    error: ApiError


Happening: TypeAlias = (
    SpeechStarted | SpeechStopped | Committed | Text | Completed | Failed | Cleared | Refused | Broken
)
Tell: TypeAlias = Callable[[Happening], None]


class Recogniser(Protocol):
    """Hears one session. Everything is called in the thread of asyncio's loop, and so is what it tells by."""

    async def run(self) -> None:
        """Hear, until it is cancelled."""

    def feed(self, samples: np.ndarray) -> None:
        """The next sound. samples : (samples,) float32 in [-1, 1] at 16 kHz"""

    def commit(self, event_id: str | None) -> None:
        """What was fed and not committed is a turn."""

    def clear(self) -> None:
        """What was fed and not committed is forgotten."""

    def configure(self, settings: RecognitionSettings) -> None:
        """Hear otherwise from now on. A turn that is open ends here."""

    @property
    def lag(self) -> float:
        """Seconds of sound that came no faster than it was said, and wait to be heard. From any thread."""
        ...

    def close(self) -> None:
        """Compute nothing more."""
