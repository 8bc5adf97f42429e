"""Events on their way from the engine's thread to whoever listens."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator

from mlx_speech.live.events import Final, LiveEvent, Partial
from mlx_speech.waker import Waker

MOST_WAITING = 256  # events; of more, partials are left out that newer ones or their finals replace


class Told:
    """A queue of events, which one listener empties."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._events: dict[int, LiveEvent] = {}  # by their numbers, in order
        self._count = 0
        self._last_partial = 0  # its number
        self._closed = False
        self._waker: Waker | None = None  # of whoever listens under asyncio

    def put(self, event: LiveEvent) -> None:
        """From the engine's thread. A partial that waits goes where a newer one, or its final, comes."""
        with self._changed:
            if isinstance(event, (Partial, Final)) and len(self._events) >= MOST_WAITING:
                self._events.pop(self._last_partial, None)
            self._count += 1
            if isinstance(event, Partial):
                self._last_partial = self._count
            self._events[self._count] = event
            self._changed.notify_all()
        self._notify()

    def close(self) -> None:
        """Nothing more comes."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._notify()

    def take(self) -> list[LiveEvent]:
        """What has come, without waiting."""
        with self._changed:
            events = list(self._events.values())
            self._events.clear()
            return events

    def __iter__(self) -> Iterator[LiveEvent]:
        """Wait for events, until the end."""
        while True:
            with self._changed:
                while not self._events and not self._closed:
                    self._changed.wait()
                if not self._events:
                    return
            yield from self.take()

    async def __aiter__(self) -> AsyncIterator[LiveEvent]:
        waker = Waker()
        self._waker = waker
        while True:
            closed = self._closed  # looked at first: what comes afterwards is seen in the next round
            for event in self.take():
                yield event
            if closed:
                return
            await waker.wait()

    def _notify(self) -> None:
        if self._waker is not None:
            self._waker.wake()
