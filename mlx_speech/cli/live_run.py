"""A live session under way on the command line: one thread feeds it, one hears what it tells, the main one shows it."""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType, TracebackType
from typing import Any, Protocol

from mlx_speech.errors import MLXSpeechError
from mlx_speech.live.events import Block, Ended, LiveEvent
from mlx_speech.live.saved import SavedSound
from mlx_speech.live.sources import Source

MAX_WAITING = 30.0  # seconds of sound that may wait to be heard
PAUSE = 0.05  # seconds between two looks at how much waits
TICK = 0.05  # seconds between two looks at the screen
ENDED = "the sound came to its end"


class Session(Protocol):
    """What is used of a live session."""

    @property
    def waiting(self) -> float: ...

    def feed(self, sound: Block) -> None: ...

    def end(self, reason: str = ...) -> None: ...

    def events(self) -> Iterator[LiveEvent]: ...

    def cancel(self) -> Any: ...

    def __enter__(self) -> Session: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None: ...


class Feeding:
    """Gives a source's blocks to a session, and to the file that keeps them, until one of them ends.

    drops : whether more than `MAX_WAITING` seconds that wait are a gap, as for a microphone, which cannot wait itself.
        The gap lasts until half of them are heard: one long gap and not a short one at every block
    offset : seconds of sound in `saved` before the session
    """

    def __init__(
        self, source: Source, session: Session, *, saved: SavedSound | None, drops: bool, offset: float
    ) -> None:
        self._source = source
        self._session = session
        self._saved = saved
        self._drops = drops
        self._offset = offset
        self._stopped = threading.Event()
        self._position = 0.0  # seconds from the first sample to the next one
        self._dropped = False  # whether what came last was

    def run(self) -> None:
        """To the end, in a thread of its own; the session is told that no more comes. Raises what the source raises."""
        reason = ENDED
        try:
            for block in self._source:
                self._feed(block)
                if self._stopped.is_set():
                    break
            reason = getattr(self._source, "reason", "") or ENDED
            if self._stopped.is_set():
                reason = "it was interrupted"
        except MLXSpeechError as error:
            reason = str(error)
            raise
        finally:
            self._session.end(reason)

    def stop(self) -> None:
        """No more blocks, from any thread."""
        self._stopped.set()
        self._source.close()

    def _feed(self, block: Block) -> None:
        start = self._position if block.start is None else block.start
        self._position = start + block.samples.shape[-1] / block.sample_rate
        if self._saved is not None:
            moved = None if block.start is None else block.start + self._offset
            self._saved.add(replace(block, start=moved))
        limit = MAX_WAITING
        if self._dropped:
            limit = MAX_WAITING / 2
        while self._session.waiting > limit and not self._stopped.is_set():
            if self._drops:
                self._dropped = True
                return
            self._stopped.wait(PAUSE)
        if self._dropped:
            block = replace(block, start=start)
            self._dropped = False
        self._session.feed(block)


@contextmanager
def interrupts(on_first: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C, or request to terminate, calls `on_first`; the second raises `KeyboardInterrupt`."""
    if threading.current_thread() is not threading.main_thread():  # no other may handle signals
        yield
        return
    count = 0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal count
        count += 1
        if count > 1:
            raise KeyboardInterrupt
        on_first()

    before = {kind: signal.signal(kind, handle) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


@dataclass(frozen=True)
class Outcome:
    """How a session ended.

    ended : its last event; None where the source failed before there was a session to speak of
    error : what the source raised; what was heard until then is whole
    """

    ended: Ended | None
    error: BaseException | None


def follow(
    session: Session,
    feeding: Feeding,
    *,
    take: Callable[[LiveEvent], None],
    tick: Callable[[], None],
    say_interrupted: Callable[[], None],
) -> Outcome:
    """Run a session to its end. `take` and the others are called in this thread.

    take : every event
    tick : now and then
    say_interrupted : after the first Ctrl-C

    Raises what the session raises, and `KeyboardInterrupt` at the second Ctrl-C; the session is then cancelled.
    """
    events: queue.SimpleQueue[LiveEvent | None] = queue.SimpleQueue()
    interrupted = threading.Event()

    def tell() -> None:
        try:
            for event in session.events():
                events.put(event)
        finally:
            events.put(None)

    def stop() -> None:
        interrupted.set()
        feeding.stop()

    ended: Ended | None = None
    has_ended = False
    with ThreadPoolExecutor(2, "live") as threads:
        telling = threads.submit(tell)
        fed = threads.submit(feeding.run)
        try:
            with interrupts(stop):
                while not has_ended:
                    if interrupted.is_set():
                        interrupted.clear()
                        say_interrupted()
                    tick()
                    try:
                        event = events.get(timeout=TICK)
                    except queue.Empty:
                        continue
                    has_ended = event is None
                    if event is not None:
                        take(event)
                    if isinstance(event, Ended):
                        ended = event
        finally:
            feeding.stop()
            if not has_ended:
                session.cancel()
    error = telling.exception()
    if error is not None:
        raise error
    return Outcome(ended, fed.exception())
