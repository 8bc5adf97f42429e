"""A request in a pipeline, from its first event to its result: how long it waits, and how long its sound is."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any, Generic, TypeVar

from mlx_speech.request import Event, Heard, Progress
from mlx_speech.request import Request as Task
from mlx_speech.server.admission import too_long
from mlx_speech.server.outcomes import result_of
from mlx_speech.server.service import Service

T = TypeVar("T")


class Hearing(Generic[T]):
    """task : that was handed over just now; it is cancelled where its sound is longer than may be, as some files do not
    say

    sound : seconds of it, as far as they are known
    """

    def __init__(self, service: Service, task: Task[T]) -> None:
        self.sound = 0.0
        self._service = service
        self._task = task
        self._start = time.monotonic()
        self._has_begun = False

    @property
    def seconds(self) -> float:
        """Since it was handed over."""
        return time.monotonic() - self._start

    async def events(self) -> AsyncIterator[Event]:
        """What it tells, until its end, or until its sound turns out to be too long."""
        async for news in self._task:
            self._see(news)
            if self._is_too_long:
                self._task.cancel()
                return
            yield news

    async def result(self) -> T:
        """What comes out. Raises as `result_of`, and `ApiError` 413 where the sound is too long."""
        async for _ in self.events():
            pass
        if self._is_too_long:
            raise too_long(self._service.settings.max_duration)
        return await result_of(self._task)

    @property
    def _is_too_long(self) -> bool:
        return self.sound > self._service.settings.max_duration

    def _see(self, news: Event) -> None:
        if not self._has_begun:
            self._has_begun = True
            self._service.metrics.see_wait("request", self.seconds)
        if isinstance(news, Progress):
            self.sound = max(self.sound, news.total)


def heard_by(task: Task[Any]) -> list[Heard]:
    """The chunks that a request in a pipeline has told of so far."""
    return [event for event in task.events_so_far() if isinstance(event, Heard)]
