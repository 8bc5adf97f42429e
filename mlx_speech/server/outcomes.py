"""What a piece of work gives, or how it fails: the failure of one is not that of those who wait beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from mlx_speech.errors import PipelineClosed
from mlx_speech.request import Request

T = TypeVar("T")


async def outcome_of(work: Awaitable[T]) -> T | Exception:
    """What is waited for, or the error that it raises; a cancellation is raised, as ever."""
    (outcome,) = await asyncio.gather(work, return_exceptions=True)
    if isinstance(outcome, BaseException) and not isinstance(outcome, Exception):
        raise outcome
    return outcome


async def result_of(request: Request[T]) -> T:
    """What comes out of a request in a pipeline; it is cancelled with the one who waits for it.

    Raises what the request raised, and `PipelineClosed` where something else has cancelled it.
    """
    try:
        async for _ in request:
            pass
    finally:
        request.cancel()  # nothing happens where it has ended
    if request.cancelled():
        raise PipelineClosed("this pipeline was closed: make another one")
    return request.result()
