"""What requests had heard when their clients went. OpenAI's client sends again, and its work goes on from there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mlx_speech.request import Heard

KEEP = 30.0  # seconds; the official client comes back within two
MOST_REQUESTS = 64
MOST_BYTES = 64 << 20  # of all of them; the oldest go first
BYTES_OF_CHUNK = 1024  # beside what is said in it
BYTES_OF_CHARACTER = 4
BYTES_OF_WORD = 512
BYTES_OF_TOKEN = 96  # with its probability


@dataclass(frozen=True)
class _Kept:
    """size : in bytes; until : on the clock"""

    heard: list[Heard]
    size: int
    until: float


class Interrupted:
    """Chunks by owner and fingerprint of their request. Everything happens in the event loop.

    keep : seconds; most_requests, most_bytes : of all that is kept; clock : seconds
    """

    def __init__(
        self,
        keep: float = KEEP,
        most_requests: int = MOST_REQUESTS,
        most_bytes: int = MOST_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds = keep
        self._most_requests = most_requests
        self._most_bytes = most_bytes
        self._clock = clock
        self._kept: dict[tuple[str, bytes], _Kept] = {}  # from the oldest

    def keep(self, owner: str, fingerprint: bytes, heard: Sequence[Heard]) -> None:
        """Keep what a request has heard, instead of what one like it had."""
        place = (owner, fingerprint)
        self._kept.pop(place, None)
        if not heard:
            return
        size = sum(size_of(one) for one in heard)
        self._kept[place] = _Kept(list(heard), size, self._clock() + self._seconds)
        self._make_room()
        asyncio.get_running_loop().call_later(self._seconds, self._forget_old)

    def take(self, owner: str, fingerprint: bytes) -> list[Heard]:
        """What a request like this one had heard; nothing where that is too long ago. It is kept no longer."""
        self._forget_old()
        kept = self._kept.pop((owner, fingerprint), None)
        return [] if kept is None else kept.heard

    def forget_all(self) -> None:
        """Keep nothing."""
        self._kept.clear()

    def _forget_old(self) -> None:
        now = self._clock()
        for place, kept in list(self._kept.items()):
            if kept.until <= now:
                del self._kept[place]

    def _make_room(self) -> None:
        size = sum(kept.size for kept in self._kept.values())
        while size > self._most_bytes or len(self._kept) > self._most_requests:
            oldest = next(iter(self._kept))
            size -= self._kept.pop(oldest).size


def size_of(heard: Heard) -> int:
    """Bytes of memory that a chunk takes, about."""
    size = BYTES_OF_CHUNK
    for segment in heard.segments:
        size += BYTES_OF_CHUNK + BYTES_OF_CHARACTER * len(segment.text)
        size += BYTES_OF_WORD * len(segment.words) + BYTES_OF_TOKEN * len(segment.tokens)
    return size
