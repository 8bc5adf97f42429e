"""How a thread tells a coroutine that something has changed."""

from __future__ import annotations

import asyncio
import contextlib


class Waker:
    """Made in the event loop, by the coroutine that waits; whoever has news for it may be in any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()

    def wake(self) -> None:
        """Something has changed. From any thread; nothing happens where the loop was closed meanwhile."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._changed.set)

    async def wait(self) -> None:
        """Until something has changed since this was waited for the last time."""
        await self._changed.wait()
        self._changed.clear()
