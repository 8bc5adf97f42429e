"""What the caller of a live session holds: sound goes in, events come out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from mlx_speech.engine import Engine, elsewhere
from mlx_speech.errors import PipelineClosed
from mlx_speech.live.events import Block, LiveEvent
from mlx_speech.live.hearing import Hearing, Stage
from mlx_speech.live.settings import LiveSettings, check_live
from mlx_speech.options import Options
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
        self._is_cancelled = False
        request.when_done(hearing.close)

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
        if self._request.done():
            self._raise_what_went_wrong()

    def events(self) -> Iterator[LiveEvent]:
        """What happens, as it happens, until the end; each once. Raises what went wrong.

        Where nobody listens for long, partials are left out that newer ones replace.
        """
        yield from self._told
        self._raise_what_went_wrong()

    def told(self) -> list[LiveEvent]:
        """The events that have come, without waiting."""
        return self._told.take()

    async def __aiter__(self) -> AsyncIterator[LiveEvent]:
        async for event in self._told:
            yield event
        self._raise_what_went_wrong()

    def result(self, timeout: float | None = None) -> Transcript:
        """The transcript of all of the sound, behind its end. timeout : seconds to wait. Raises as `Request.result`"""
        return self._request.result(timeout)

    def cancel(self) -> None:
        """Hear nothing more; there is no transcript."""
        self._is_cancelled = True
        self._request.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.cancel()

    def _raise_what_went_wrong(self) -> None:
        """Once it is over; what this session's own `cancel` ended went well."""
        if not self._request.cancelled():
            self._request.result()
        elif not self._is_cancelled:
            raise PipelineClosed("the pipeline was closed before the session had ended")


def prepared(options: Options, settings: LiveSettings, stage: Stage, engine: Engine) -> Callable[[], LiveSession]:
    """What begins a session. Raises `OptionError` for options that need all of a recording."""
    check_live(options)

    def begin() -> LiveSession:
        hearing = Hearing(options, settings, stage, engine.wake)
        return LiveSession(hearing, engine.submit(hearing.job(), hearing.clock))

    return begin


def heard(begin: Callable[[], LiveSession], blocks: Blocks) -> Iterator[LiveEvent]:
    """The events of all blocks; those of a block before the next one is taken. The session begins with the first one
    that is asked for, and ends with them, and where the iterator is closed."""
    with begin() as session:
        for block in blocks:
            session.feed(block)
            session.wait_until_heard()
            yield from session.told()
        session.end()
        yield from session.events()


async def heard_async(begin: Callable[[], LiveSession], blocks: AsyncBlocks) -> AsyncIterator[LiveEvent]:
    """The events of all blocks, as they happen; blocks are taken meanwhile."""
    session = begin()
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
        # a thread that nobody waits for at the end: a source may never give another block
        block = await asyncio.wrap_future(elsewhere(lambda: next(iterator, None), lambda: None))
        if block is None:
            return
        yield block
