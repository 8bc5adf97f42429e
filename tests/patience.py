"""Waiting that ends: what a test waits for comes soon, or the test fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

PATIENCE = 60.0  # seconds for anything that is waited for; a busy machine needs some


def until(look: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """What `look` gives as soon as that is something."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = look()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError(f"waited {seconds:g} s for {what}")


def in_time(work: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine gives, in an event loop of its own."""
    return asyncio.run(asyncio.wait_for(work, PATIENCE))
