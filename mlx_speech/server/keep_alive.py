"""JSON that is long in coming, kept alive: white space goes ahead of it, for whoever gives up without a byte."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from mlx_speech.server.failures import left, told
from mlx_speech.server.outcomes import outcome_of

SECONDS_OF_SILENCE = 15.0
SPACE = " "


async def kept_alive(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """The answer that the work gives, if it is soon there; else one of status 200 that begins with spaces.

    work : makes an answer in JSON; what it raises is then all of the answer, in spite of its status
    Raises what the work raises, if that is soon.
    """
    working = asyncio.ensure_future(work)
    try:
        await asyncio.wait([working], timeout=SECONDS_OF_SILENCE)
    except asyncio.CancelledError:
        working.cancel()
        raise
    if working.done():
        return working.result()
    return StreamingResponse(_spaces_and_answer(request, working), media_type="application/json")


async def _spaces_and_answer(
    request: Request, working: asyncio.Future[Response]
) -> AsyncIterator[bytes | memoryview | str]:
    try:
        while not working.done():
            yield SPACE
            await asyncio.wait([working], timeout=SECONDS_OF_SILENCE)
        outcome = await outcome_of(working)
        if isinstance(outcome, ClientDisconnect):
            left(request)
        elif isinstance(outcome, Exception):
            yield json.dumps(told(request, outcome).body())
        else:
            yield outcome.body
    except (GeneratorExit, asyncio.CancelledError):
        left(request)
        raise
    finally:
        working.cancel()
