"""A coroutine that waits for news of threads."""

from __future__ import annotations

import asyncio
import threading

from patience import in_time

from mlx_speech.waker import Waker


def test_no_news_of_threads_is_missed() -> None:
    """Each thread adds to a list, and wakes; who waits has seen all of it in the end."""
    seen: list[int] = []

    async def run() -> None:
        waker = Waker()

        def work(start: int) -> None:
            for number in range(start, start + 100):
                seen.append(number)
                waker.wake()

        threads = [threading.Thread(target=work, args=(start,)) for start in (0, 100, 200)]
        for thread in threads:
            thread.start()
        while len(seen) < 300:
            await waker.wait()
        for thread in threads:
            thread.join()

    in_time(run())
    assert sorted(seen) == list(range(300))


def test_many_changes_wake_once_and_none_without_a_change() -> None:
    async def run() -> None:
        waker = Waker()
        for _ in range(3):
            waker.wake()
        await waker.wait()
        waiting = asyncio.ensure_future(waker.wait())
        for _ in range(5):
            await asyncio.sleep(0)
        assert not waiting.done()
        waker.wake()
        await asyncio.wait_for(waiting, 60)

    in_time(run())


def test_a_loop_that_was_closed_is_no_obstacle() -> None:
    async def made() -> Waker:
        return Waker()

    in_time(made()).wake()
