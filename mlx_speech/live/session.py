"""What the caller of a live session holds: sound goes in, events come out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from mlx_speech.live.events import Block, LiveEvent
from mlx_speech.live.hearing import Hearing
from mlx_speech.request import Request
from mlx_speech.transcript import Transcript

if TYPE_CHECKING:
    from typing_extensions import Self

MOST_WAITING = 30.0  # seconds of sound that `heard_async` lets wait
SECONDS_BETWEEN_LOOKS = 0.05

Blocks: TypeAlias = "Iterable[np.ndarray | Block]"
AsyncBlocks: TypeAlias = "AsyncIterable[np.ndarray | Block] | Blocks"


class LiveSession:
    """A session under way. Any thread may use it; one listens to its events.

    The end of a `with` block cancels it where it has not come to its end.
    """

    def __init__(self, hearing: Hearing, request: Request[Transcript]) -> None:
        self._intake = hearing.intake
        self._told = hearing.told
        self._hearing = hearing
        self._request = request
        request.when_done(self._close)

    def feed(self, sound: np.ndarray | Block) -> None:
        """Hand over the next sound, and go on.

        sound : (samples,) or (channels, samples) at 16 kHz, floats in [-1, 1] or integers; or a `Block`
        Raises `AudioError` for what is none, and `PipelineClosed` where the session has ended.
        """
        self._intake.put(sound)

    @property
    def waiting(self) -> float:
        """Seconds of sound that were fed and not heard yet."""
        return self._hearing.seconds_waiting

    def end(self, reason: str = "the sound came to its end") -> None:
        """No more sound comes. What was fed is heard, and `Ended` follows. reason : in words, for `Ended`"""
        self._intake.end(reason)

    def wait_until_heard(self) -> None:
        """Wait until all that was fed was heard, and its finals were told. Raises what went wrong."""
        self._intake.wait_until_heard(self._request.done)
        if self._request.done() and not self._request.cancelled():
            self._request.result()

    def events(self) -> Iterator[LiveEvent]:
        """What happens, as it happens, until the end; each once. Raises what went wrong.

        Where nobody listens for long, partials are left out that newer ones replace.
        """
        yield from self._told
        if not self._request.cancelled():
            self._request.result()

    def told(self) -> list[LiveEvent]:
        """The events that have come, without waiting."""
        return self._told.take()

    async def __aiter__(self) -> AsyncIterator[LiveEvent]:
        async for event in self._told:
            yield event
        if not self._request.cancelled():
            self._request.result()

    def result(self, timeout: float | None = None) -> Transcript:
        """The transcript of all of the sound, behind its end. timeout : seconds to wait. Raises as `Request.result`"""
        return self._request.result(timeout)

    def cancel(self) -> None:
        """Hear nothing more; there is no transcript."""
        self._request.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.cancel()

    def _close(self) -> None:
        self._intake.close()
        self._told.close()


def heard(session: LiveSession, blocks: Blocks) -> Iterator[LiveEvent]:
    """The events of all blocks; those of a block before the next one is taken. The session ends with them, and where
    the iterator is closed."""
    with session:
        for block in blocks:
            session.feed(block)
            session.wait_until_heard()
            yield from session.told()
        session.end()
        yield from session.events()


async def heard_async(session: LiveSession, blocks: AsyncBlocks) -> AsyncIterator[LiveEvent]:
    """The events of all blocks, as they happen; blocks are taken meanwhile."""
    feeding = asyncio.create_task(_feed(session, blocks))
    try:
        async for event in session:
            yield event
        await feeding
    finally:
        feeding.cancel()
        session.cancel()


async def _feed(session: LiveSession, blocks: AsyncBlocks) -> None:
    has_ended = False
    try:
        async for block in _taken(blocks):
            session.feed(block)
            while session.waiting > MOST_WAITING:
                await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
        session.end()
        has_ended = True
    finally:
        if not has_ended:  # whoever listens would wait without end
            session.cancel()


async def _taken(blocks: AsyncBlocks) -> AsyncIterator[np.ndarray | Block]:
    """Blocks of either kind; one that is waited for does not stop the loop."""
    if isinstance(blocks, AsyncIterable):
        async for block in blocks:
            yield block
        return
    iterator = iter(blocks)
    while True:
        block = await asyncio.to_thread(next, iterator, None)
        if block is None:
            return
        yield block
