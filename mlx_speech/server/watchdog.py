"""Looks after the work: where a step of it does not end, the log gets what every thread is doing."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mlx_speech.server.service import Service

LONGEST_STEP = 120.0  # seconds; /ready complains before
INTERVAL = 5.0  # seconds between two looks

log = logging.getLogger("mlx_speech.server")


@asynccontextmanager
async def watched(service: Service, longest: float = LONGEST_STEP, interval: float = INTERVAL) -> AsyncIterator[None]:
    """Meanwhile a step that takes longer is told of in the log, once. longest, interval : seconds"""
    watching = asyncio.create_task(_watch(service, longest, interval))
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def _watch(service: Service, longest: float, interval: float) -> None:
    has_told = False
    while True:
        await asyncio.sleep(interval)
        seconds = service.stalled_for
        if seconds <= longest:
            has_told = False
        elif not has_told:
            has_told = True
            problem = f"a step of the work has been under way for {seconds:.0f} s"
            log.error("%s, and this is what the threads are doing:\n%s", problem, stacks())


def stacks() -> str:
    """Where every thread of Python's is, the latest call last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts: list[str] = []
    for identity, frame in sys._current_frames().items():
        calls = "".join(traceback.format_stack(frame))
        parts.append(f"thread {names.get(identity, identity)}:\n{calls}")
    return "\n".join(parts)
