"""Idempotency-Key: a request that is sent again under the key of an earlier one gets what that one got.

Source: IETF draft-ietf-httpapi-idempotency-key-header. Jobs keep their keys with them; what is answered at once is kept
here, in memory.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeAlias

from starlette.requests import Request
from starlette.responses import Response

from mlx_speech.server.errors import NEVER_AGAIN, ApiError
from mlx_speech.server.forms import Fields

HEADER = "Idempotency-Key"
MAX_KEY = 255  # characters
KEEP_KEYS = 24 * 3600.0  # seconds that a key is known
MOST_KEPT = 64 << 20  # bytes of answers; the oldest go first
OVERHEAD = 1024  # bytes of an answer beside its text

Make: TypeAlias = Callable[[], Coroutine[Any, Any, Response]]


def key_of(request: Request) -> str | None:
    """The key that a request brings. Raises `ApiError` 400 for one that is empty, or too long."""
    key = request.headers.get(HEADER)
    if key is not None and not 0 < len(key) <= MAX_KEY:
        raise ApiError(400, "invalid_value", f"{HEADER} has {len(key)} characters: give 1 to {MAX_KEY}", HEADER)
    return key


def conflict() -> ApiError:
    """Of a key that came with something else before."""
    problem = f"this {HEADER} came with another recording, or other options"
    return ApiError(409, "idempotency_conflict", f"{problem}: take a new one", headers=dict(NEVER_AGAIN))


def fingerprint_of(path: str, fields: Fields, sha256: str) -> bytes:
    """32 bytes that stand for a form. path : where it was sent; sha256 : of its recording"""
    content = [path, sha256, sorted(fields.items())]
    return hashlib.sha256(json.dumps(content).encode()).digest()


@dataclass
class _Kept:
    """An answer, or the work that makes it.

    size : bytes, once it is there
    timer : that forgets it, and holds it until then or until it is cancelled
    """

    fingerprint: bytes
    making: asyncio.Task[Response]
    size: int = 0
    timer: asyncio.TimerHandle | None = None


class Answers:
    """Answers by the keys of their requests. Everything happens in the event loop.

    keep : seconds that an answer is kept
    most : bytes of all of them
    """

    def __init__(self, keep: float = KEEP_KEYS, most: int = MOST_KEPT) -> None:
        self._keep = keep
        self._most = most
        self._kept: dict[tuple[str, str], _Kept] = {}  # from the oldest

    async def once(self, owner: str, key: str, fingerprint: bytes, make: Make) -> Response:
        """The answer that was made for this key, or is being made; or that of `make`, which goes on where nobody waits
        for it any more: whoever has lost the connection comes again. What fails is not kept.

        owner : whose key it is
        Raises `ApiError` 409 where the key came with something else, and what `make` raises.
        """
        place = (owner, key)
        kept = self._kept.get(place)
        if kept is None:
            kept = _Kept(fingerprint, asyncio.create_task(make()))
            self._kept[place] = kept
            kept.making.add_done_callback(lambda _: self._made(place, kept))
        elif kept.fingerprint != fingerprint:
            raise conflict()
        answer = await asyncio.shield(kept.making)
        return Response(answer.body, answer.status_code, media_type=answer.media_type)

    async def close(self) -> None:
        """End what is under way, and forget all."""
        making = [kept.making for kept in self._kept.values()]
        for one in making:
            one.cancel()
        await asyncio.gather(*making, return_exceptions=True)
        for place, kept in list(self._kept.items()):
            self._forget(place, kept)

    def _made(self, place: tuple[str, str], kept: _Kept) -> None:
        """The work has ended."""
        if kept.making.cancelled() or kept.making.exception() is not None:
            self._forget(place, kept)
            return
        kept.size = len(kept.making.result().body) + OVERHEAD
        kept.timer = asyncio.get_running_loop().call_later(self._keep, self._forget, place, kept)
        made = [(place, one) for place, one in self._kept.items() if one.size]
        excess = sum(one.size for _, one in made) - self._most
        for oldest, one in made:
            if excess <= 0:
                return
            self._forget(oldest, one)
            excess -= one.size

    def _forget(self, place: tuple[str, str], kept: _Kept) -> None:
        if kept.timer is not None:
            kept.timer.cancel()
        if self._kept.get(place) is kept:
            del self._kept[place]
