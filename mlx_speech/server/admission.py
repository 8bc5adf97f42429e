"""How much a server takes on: requests that wait, their sound, uploads at once. Who is too many shall come later."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from anyio import fail_after

from mlx_speech.server.errors import NEVER_AGAIN, ApiError
from mlx_speech.server.settings import Settings

SPEED_AT_FIRST = 5.0  # seconds of sound a second, until some were measured
NEWEST = 0.2  # weight of a measurement in the mean
LONGEST_WAIT = 120  # seconds that a client is told to wait


@dataclass
class Admission:
    """Counts what is under way. Everything happens in the event loop's thread.

    waiting : requests between their first byte and their answer
    seconds : of their sound, where it is known
    uploads : requests that send their form, by owner
    """

    settings: Settings
    waiting: int = 0
    seconds: float = 0.0
    uploads: Counter[str] = field(default_factory=Counter)
    _speed: float = SPEED_AT_FIRST
    _upload_ended: asyncio.Event = field(default_factory=asyncio.Event)  # the next one

    @contextmanager
    def request(self) -> Iterator[None]:
        """A request, from its beginning to its answer. Raises `ApiError` 429 where there are too many."""
        if self.waiting >= self.settings.max_queue:
            raise self._full(f"{self.waiting} requests are waiting")
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1

    @asynccontextmanager
    async def upload(self, owner: str) -> AsyncIterator[None]:
        """A form that is being sent. Where too many are, of this owner or of all, it waits, and nothing of it is read.
        Raises `ApiError` 429 where none of them ends in time."""
        try:
            with fail_after(self.settings.upload_patience):
                while self._has_enough(owner):
                    await self._upload_ended.wait()
        except TimeoutError:
            raise self._full("too many uploads are under way") from None
        self.uploads[owner] += 1
        try:
            yield
        finally:
            self.uploads[owner] -= 1
            if not self.uploads[owner]:
                del self.uploads[owner]
            self._upload_ended.set()
            self._upload_ended = asyncio.Event()

    def _has_enough(self, owner: str) -> bool:
        """Whether no more uploads may be under way now."""
        if self.uploads.total() >= self.settings.max_uploads:
            return True
        return bool(owner) and self.uploads[owner] >= self.settings.max_uploads_per_key

    @contextmanager
    def sound(self, seconds: float) -> Iterator[None]:
        """Sound that is to be heard. Raises `ApiError` 413 for too long a recording, 429 where too much waits."""
        if seconds > self.settings.max_duration:
            raise too_long(self.settings.max_duration)
        if self.seconds and self.seconds + seconds > self.settings.max_waiting_seconds:
            raise self._full(f"{self.seconds:.0f} s of sound are waiting")
        self.seconds += seconds
        try:
            yield
        finally:
            self.seconds -= seconds

    def measure(self, sound: float, seconds: float) -> None:
        """Take in how long so many seconds of sound took."""
        if sound > 0 and seconds > 0:
            self._speed += NEWEST * (sound / seconds - self._speed)

    def _full(self, reason: str) -> ApiError:
        wait = min(LONGEST_WAIT, max(1, math.ceil(self.seconds / self._speed)))
        return ApiError(429, "queue_full", f"{reason}: try again in {wait} s", headers={"Retry-After": str(wait)})


def too_long(limit: float, *, is_job: bool = False) -> ApiError:
    """A recording that is longer than the limit, in seconds."""
    advice = "cut it" if is_job else "cut it, or send it as a job"
    return ApiError(
        413,
        "audio_too_long",
        f"the recording is longer than {limit / 3600:g} h: {advice}",
        "file",
        headers=dict(NEVER_AGAIN),
    )
