"""Bodies of requests as they come: none is longer than it may be, and none comes too slowly."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

from anyio import fail_after
from starlette.requests import Request

from mlx_speech.server.errors import NEVER_AGAIN, ApiError
from mlx_speech.server.settings import Settings


async def blocks_of(
    request: Request, settings: Settings, most: int, code: str = "file_too_large"
) -> AsyncIterator[bytes]:
    """The body, block by block. most : bytes of it; code : of the error where there are more

    Raises `ApiError` 408 where less comes than `Settings.min_upload_rate`, and 413 for more than `most`;
    `ClientDisconnect` where the client has gone.
    """
    stream = request.stream()
    window = _Window(settings)
    count = 0
    while True:
        try:
            with fail_after(settings.upload_window):
                block = await anext(stream, None)
        except TimeoutError:
            raise _too_slow(settings) from None
        if block is None:
            return
        window.see(len(block))
        count += len(block)
        if count > most:
            raise ApiError(413, code, f"the request has more than {most} bytes", headers=dict(NEVER_AGAIN))
        yield block


async def bounded_body(request: Request, settings: Settings, most: int, code: str) -> bytes:
    """All of it; arguments and errors as of `blocks_of`."""
    body = bytearray()
    async for block in blocks_of(request, settings, most, code):
        body += block
    return bytes(body)


class _Window:
    """Judges the speed of a body, a window of time after another."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._start = time.monotonic()
        self._bytes = 0

    def see(self, count: int) -> None:
        """count : bytes that have come. Raises `ApiError` 408."""
        self._bytes += count
        seconds = time.monotonic() - self._start
        if seconds < self._settings.upload_window:
            return
        if self._bytes < self._settings.min_upload_rate * seconds:
            raise _too_slow(self._settings)
        self._start = time.monotonic()
        self._bytes = 0


def _too_slow(settings: Settings) -> ApiError:
    rate = f"{settings.min_upload_rate:g} bytes a second over {settings.upload_window:g} s"
    return ApiError(
        408, "upload_too_slow", f"the request comes too slowly: send at least {rate}", headers=dict(NEVER_AGAIN)
    )
