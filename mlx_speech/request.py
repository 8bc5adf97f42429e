"""What a caller holds of work that is under way: its result, how far it is, and the means to end it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

from mlx_speech.transcript import Chunk, Region, Segment
from mlx_speech.waker import Waker

T = TypeVar("T")
# stage, seconds of audio done, seconds in all, the recording
ProgressCallback: TypeAlias = Callable[[str, float, float, Any], object]


@dataclass(frozen=True)
class Progress:
    """How far a recording is.

    stage : "vad", "transcribe", "align" or "diarize"
    done, total : seconds of audio
    """

    stage: str
    done: float
    total: float


@dataclass(frozen=True)
class Heard:
    """Text of one chunk as soon as it is recognised: before the times of its words, and out of order.

    segments : in seconds of the recording
    place : of the chunk among those of the recording, from 0
    chunk : which one it is
    silences : speech in it in which Whisper heard none
    """

    segments: tuple[Segment, ...]
    place: int
    chunk: Chunk
    silences: tuple[Region, ...] = ()


Event: TypeAlias = Progress | Heard


class Request(Generic[T]):
    """Work that was handed to the engine. It may be used from any thread.

    `result()` waits for what comes out; `await request` does so under asyncio. `events()` tells how far it is, from the
    first event on, whenever it is asked; `async for event in request` likewise.
    """

    def __init__(self, listener: Callable[[Request[T], Event | None], object] | None = None) -> None:
        self._future: Future[T] = Future()
        self._events: list[Event] = []
        self._changed = threading.Condition()
        self._wakers: list[Waker] = []
        self._listener = listener
        self._future.add_done_callback(lambda _: self._notify(None))

    def result(self, timeout: float | None = None) -> T:
        """What came out, once it is there.

        timeout : seconds to wait, without end by default
        Raises what the work raised, `concurrent.futures.CancelledError` where it was cancelled, and `TimeoutError`.
        """
        return self._future.result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the work raised, once it has ended; None where it has a result. Raises as `result` for the rest."""
        return self._future.exception(timeout)

    def done(self) -> bool:
        """Whether it has ended: with a result, with an error, or cancelled."""
        return self._future.done()

    def cancel(self) -> bool:
        """End it, at its next step; False where it has ended otherwise."""
        return self._future.cancel()

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self._future.cancelled()

    def when_done(self, call: Callable[[], object]) -> None:
        """Call something at its end, in the thread where that happens; at once where it has ended."""
        self._future.add_done_callback(lambda _: call())

    def events_so_far(self) -> list[Event]:
        """What has happened up to now."""
        return list(self._events)

    def events(self) -> Iterator[Event]:
        """What happens, as it happens, until the end; what has happened before is told first."""
        place = 0
        while True:
            with self._changed:
                while place == len(self._events) and not self._future.done():
                    self._changed.wait()
                news = self._events[place:]
            if not news:
                return
            place += len(news)
            yield from news

    def __await__(self) -> Generator[Any, None, T]:
        return asyncio.wrap_future(self._future).__await__()

    async def __aiter__(self) -> AsyncIterator[Event]:
        waker = Waker()
        self._wakers.append(waker)
        place = 0
        try:
            while True:
                ended = self._future.done()  # looked at first: what is published afterwards is seen in the next round
                news = self._events[place:]
                for event in news:
                    yield event
                place += len(news)
                if ended:
                    return
                await waker.wait()
        finally:
            self._wakers.remove(waker)

    def _publish(self, event: Event) -> None:
        with self._changed:
            self._events.append(event)
        self._notify(event)

    def _notify(self, event: Event | None) -> None:
        """Tell all who wait: of an event, or, without one, of the end."""
        with self._changed:
            self._changed.notify_all()
        for waker in list(self._wakers):
            waker.wake()
        if self._listener is not None:
            self._listener(self, event)

    def _finish(self, result: T) -> None:
        with contextlib.suppress(InvalidStateError):  # cancelled at the last moment
            self._future.set_result(result)

    def _fail(self, error: BaseException) -> None:
        with contextlib.suppress(InvalidStateError):
            self._future.set_exception(error)


def naming(audio: Any, report: ProgressCallback) -> ProgressCallback:
    """A callback of progress that is told of what the caller gave, and not of what was made of it."""
    return lambda stage, done, total, _: report(stage, done, total, audio)
