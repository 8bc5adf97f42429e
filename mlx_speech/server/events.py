"""Server-sent events (WHATWG HTML, 9.2): how they are written, and that a silent stream shows a sign of life."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress

from starlette.responses import StreamingResponse

HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # the latter is for nginx
SECONDS_OF_SILENCE = 15.0
SIGN_OF_LIFE = ": still here\n\n"


def event(data: object) -> str:
    """One event of OpenAI's, which have no names and no numbers."""
    return event_of(json.dumps(data, ensure_ascii=False, allow_nan=False))


def event_of(text: str, name: str | None = None, number: int | None = None) -> str:
    """One event. text : its data, in one line"""
    lines: list[str] = []
    if number is not None:
        lines.append(f"id: {number}")
    if name is not None:
        lines.append(f"event: {name}")
    lines.append(f"data: {text}")
    return "\n".join(lines) + "\n\n"


def event_stream(events: AsyncIterator[str]) -> StreamingResponse:
    """The answer that sends them; it is closed, and `events` with it, where the client goes."""
    return StreamingResponse(alive(events), media_type="text/event-stream", headers=HEADERS)


async def alive(events: AsyncIterator[str], seconds: float = SECONDS_OF_SILENCE) -> AsyncIterator[str]:
    """The same, with a comment wherever nothing came for so many seconds."""
    following: asyncio.Future[str] | None = None
    try:
        while True:
            following = asyncio.ensure_future(anext(events))
            while not following.done():
                await asyncio.wait([following], timeout=seconds)
                if not following.done():
                    yield SIGN_OF_LIFE
            try:
                text = following.result()
            except StopAsyncIteration:
                return
            yield text
    finally:
        if following is not None and not following.done():
            following.cancel()
            with suppress(asyncio.CancelledError, StopAsyncIteration):
                await following
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()
