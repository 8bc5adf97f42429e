"""A live session that follows a script, for the command line and the journal: it says what it is told, when it is due.

    script = [(1.0, Speech(at=1.0, start=0.3)), (2.0, Final(...))]
    session = ScriptedSession(script)

An event is told as soon as so many seconds of sound have been fed. At the end come the events that are left, and
`Ended` with all finals as its transcript.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from mlx_speech.live.events import Block, Ended, Final, Gap, LiveEvent, Partial, Speakers
from mlx_speech.transcript import Diarization, Segment, Transcript, Word

Script = Sequence[tuple[float, LiveEvent]]


def final(chunk: int, start: float, text: str, *, speaker: str | None = None, at: float | None = None) -> Final:
    """A final of one segment, whose words take half a second each."""
    pieces = text.split()
    words: list[Word] = []
    for place, piece in enumerate(pieces):
        begin = start + place / 2
        words.append(Word(begin, begin + 0.5, piece, score=0.9, speaker=speaker))
    end = start + len(pieces) / 2
    segment = Segment(start, end, text, tuple(words), speaker=speaker, language="en")
    return Final(end if at is None else at, chunk, start, end, (segment,))


def partial(chunk: int, text: str, firm: int, *, at: float = 0.0) -> Partial:
    """A partial of which so many words are firm."""
    pieces = text.split(" ")
    words = tuple(Word(at, at, piece) for piece in pieces)
    firm_text = " ".join(pieces[:firm])
    return Partial(at, chunk, words, firm, text, firm_text)


class ScriptedSession:
    """script : seconds → event; error : what it raises at the end; waiting : a function of the session, seconds"""

    def __init__(
        self,
        script: Script = (),
        *,
        error: Exception | None = None,
        waiting: Callable[[ScriptedSession], float] | None = None,
        diarization: Diarization | None = None,
    ) -> None:
        self.fed: list[Block] = []
        self.reason: str | None = None
        self.cancelled = False
        self.heard = 0.0
        self.keywords: dict[str, Any] = {}
        self.has_sound = threading.Event()
        self._script = list(script)
        self._error = error
        self._waiting = waiting
        self._diarization = diarization
        self._segments: tuple[Segment, ...] = ()
        self._events: queue.SimpleQueue[LiveEvent | Exception | None] = queue.SimpleQueue()

    @property
    def waiting(self) -> float:
        return 0.0 if self._waiting is None else self._waiting(self)

    def feed(self, sound: np.ndarray | Block) -> None:
        block = sound if isinstance(sound, Block) else Block(sound)
        self.fed.append(block)
        if block.start is not None and block.start > self.heard:
            self._tell(Gap(block.start, self.heard, block.start, "sound is missing"))
            self.heard = block.start
        self.heard += block.samples.shape[-1] / block.sample_rate
        while self._script and self._script[0][0] <= self.heard:
            self._tell(self._script.pop(0)[1])
        self.has_sound.set()

    def end(self, reason: str = "the sound came to its end") -> None:
        if self.reason is not None:
            return
        self.reason = reason
        if self._error is not None:
            self._events.put(self._error)
            return
        for _, event in self._script:
            self._tell(event)
        transcript = Transcript(self._segments, "en", 1.0, self.heard, self._diarization)
        self._events.put(Ended(self.heard, transcript, reason))
        self._events.put(None)

    def events(self) -> Iterator[LiveEvent]:
        while True:
            event = self._events.get()
            if event is None:
                return
            if isinstance(event, Exception):
                raise event
            yield event

    def cancel(self) -> None:
        self.cancelled = True
        self._events.put(None)

    def __enter__(self) -> ScriptedSession:
        return self

    def __exit__(self, *_: object) -> None:
        if self.reason is None:
            self.cancel()

    def _tell(self, event: LiveEvent) -> None:
        if isinstance(event, Final):
            self._segments += event.segments
        self._events.put(event)


class ScriptedPipeline:
    """What `cli.live` takes of a pipeline: its session is the one that is given."""

    def __init__(self, session: ScriptedSession) -> None:
        self._session = session

    def session(self, **keywords: Any) -> ScriptedSession:
        self._session.keywords = keywords
        return self._session


def speakers(at: float, changes: Sequence[tuple[float, float, str | None, str | None]], until: float) -> Speakers:
    """A `Speakers` of plain tuples; names are those that occur, in order."""
    from mlx_speech.live.events import Relabelled

    told = tuple(Relabelled(*change) for change in changes)
    names = dict.fromkeys(change.speaker for change in told if change.speaker is not None)
    return Speakers(at, told, tuple(names), until)
