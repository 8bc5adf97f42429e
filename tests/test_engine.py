"""The thread that owns MLX: turns, results, events, cancelling, and its end."""

from __future__ import annotations

import asyncio
import concurrent.futures
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import in_time

from mlx_speech.engine import WAITING, Engine, Job, elsewhere, result_of, told
from mlx_speech.errors import OptionError, OutOfMemory, PipelineClosed
from mlx_speech.request import Progress
from mlx_speech.steps import Steps, run

LIMIT = 60  # seconds for what must not hang


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(lambda: False)
    yield engine
    engine.close(LIMIT)


def count(steps: int, before_each: Callable[[int], object] = lambda step: None) -> Job[int]:
    """A job of so many steps, which tells each of them."""
    for step in range(steps):
        before_each(step)
        yield Progress("count", float(step + 1), float(steps))
    return steps


def told_of(steps: int) -> list[Progress]:
    return [Progress("count", float(step + 1), float(steps)) for step in range(steps)]


# --- turns -----------------------------------------------------------------------------------------------------------


def test_all_of_it_happens_in_one_thread(engine: Engine) -> None:
    threads: list[str] = []

    def note(step: int) -> None:
        threads.append(threading.current_thread().name)

    requests = [engine.submit(count(5, note)) for _ in range(3)]
    assert [request.result(LIMIT) for request in requests] == [5, 5, 5]
    assert set(threads) == {"mlx_speech"}


def test_a_short_job_does_not_wait_for_a_long_one(engine: Engine) -> None:
    order: list[str] = []
    begun = threading.Event()
    may_go_on = threading.Event()

    def long(step: int) -> None:
        begun.set()
        may_go_on.wait(LIMIT)
        order.append("long")

    def short(step: int) -> None:
        order.append("short")

    first = engine.submit(count(10**6, long))
    begun.wait(LIMIT)
    second = engine.submit(count(5, short))
    may_go_on.set()
    assert second.result(LIMIT) == 5
    assert first.cancel()
    last = len(order) - order[::-1].index("short")
    assert order[:last].count("long") <= 7  # one for each of its own steps, and those under way


@given(steps=st.lists(st.integers(0, 20), min_size=1, max_size=6), at_once=st.sampled_from([None, 1, 2]))
@settings(deadline=None, max_examples=50)
def test_every_job_gets_its_result_and_its_events(steps: list[int], at_once: int | None) -> None:
    engine = Engine(lambda: False, at_once=at_once)
    requests = [engine.submit(count(number)) for number in steps]
    assert [request.result(LIMIT) for request in requests] == steps
    for request, number in zip(requests, steps, strict=True):
        assert list(request.events()) == list(request.events()) == told_of(number)
    engine.close(LIMIT)


def test_at_once_is_the_most_that_are_under_way() -> None:
    under_way: set[int] = set()
    most: list[int] = []

    def job(number: int) -> Job[None]:
        under_way.add(number)
        for _ in range(3):
            most.append(len(under_way))
            yield
        under_way.remove(number)

    engine = Engine(lambda: False, at_once=2)
    for request in [engine.submit(job(number)) for number in range(6)]:
        request.result(LIMIT)
    engine.close(LIMIT)
    assert max(most) == 2


def test_shared_work_is_done_between_the_turns() -> None:
    """A job that waits is asked again after every unit, and the thread sleeps when there is nothing at all to do."""
    left = [3]
    units: list[int] = []

    def shared() -> bool:
        if not left[0]:
            return False
        left[0] -= 1
        units.append(left[0])
        return True

    def job() -> Job[str]:
        while left[0]:
            yield WAITING
        return "done"

    engine = Engine(shared)
    assert engine.submit(job()).result(LIMIT) == "done"
    engine.close(LIMIT)
    assert units == [2, 1, 0]


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does soon."""
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline


@pytest.mark.parametrize("where", ["turn", "shared"])
def test_a_step_that_does_not_end_is_seen(where: str) -> None:
    """Its seconds go on; they are none before it, behind it, and while a job waits for another thread."""
    waits = threading.Event()
    began = threading.Event()
    ends = threading.Event()
    goes_on = threading.Event()

    def hang() -> bool:
        began.set()
        assert ends.wait(LIMIT)
        return False

    def job() -> Job[str]:
        while not goes_on.is_set():
            waits.set()
            yield WAITING
        if where == "turn":
            hang()
        yield
        return "done"

    engine = Engine(hang if where == "shared" else lambda: False)
    assert engine.stalled_for == 0
    if where == "shared":
        goes_on.set()
    request = engine.submit(job())
    if where == "turn":
        assert waits.wait(LIMIT)
        until(lambda: engine.stalled_for == 0)
        goes_on.set()
        engine.wake()
    assert began.wait(LIMIT)
    first = engine.stalled_for
    until(lambda: engine.stalled_for > first + 0.01)
    ends.set()
    assert request.result(LIMIT) == "done"
    until(lambda: engine.stalled_for == 0)
    engine.close(LIMIT)


def test_steps_that_end_are_not_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on by a second whenever a step does."""
    seen: list[float] = []
    now = [0.0]
    engine = Engine(lambda: False)

    def job() -> Job[None]:
        for _ in range(5):
            now[0] += 1.0
            seen.append(engine.stalled_for)
            yield

    with monkeypatch.context() as patch:
        patch.setattr("mlx_speech.engine.time", SimpleNamespace(monotonic=lambda: now[0], perf_counter=lambda: now[0]))
        engine.submit(job()).result(LIMIT)
        engine.close(LIMIT)
    assert seen == [1.0] * 5 and engine.stalled_for == 0


def test_what_needs_no_mlx_is_done_elsewhere(engine: Engine) -> None:
    def name() -> str:
        return threading.current_thread().name

    def fails() -> str:
        raise OptionError("audio_track is 9")

    assert engine.submit(result_of(elsewhere(name, engine.wake))).result(LIMIT) == "mlx_speech reader"
    with pytest.raises(OptionError, match="audio_track is 9"):
        engine.submit(result_of(elsewhere(fails, engine.wake))).result(LIMIT)


def test_the_environment_holds_while_there_is_work() -> None:
    states: list[str] = []

    @contextmanager
    def environment() -> Iterator[None]:
        states.append("in")
        yield
        states.append("out")

    engine = Engine(lambda: False, environment)
    for _ in range(2):
        engine.submit(count(2, lambda step: states.append("work"))).result(LIMIT)
    engine.close(LIMIT)
    assert "".join(states).replace("work", "w") in ("inwwoutinwwout", "inwwwwout")


def test_steps_become_progress() -> None:
    def steps() -> Steps[str]:
        yield 1.0
        yield 2.5
        return "result"

    heard: list[float] = []
    assert run(steps(), heard.append) == "result" and heard == [1.0, 2.5]
    job = told("align", 2.0, steps())
    events: list[Any] = []
    try:
        while True:
            events.append(next(job))
    except StopIteration as stopped:
        assert stopped.value == "result"
    assert [(event.done, event.total) for event in events] == [(0.0, 2.0), (1.0, 2.0), (2.0, 2.0), (2.0, 2.0)]


# --- errors, cancelling ----------------------------------------------------------------------------------------------


def test_an_error_ends_its_own_request_alone(engine: Engine) -> None:
    def fails(step: int) -> None:
        if step == 2:
            raise RuntimeError("[malloc] Unable to allocate 99 bytes.")

    bad = engine.submit(count(5, fails))
    good = engine.submit(count(50))
    with pytest.raises(OutOfMemory, match="lower batch_size"):
        bad.result(LIMIT)
    assert isinstance(bad.exception(LIMIT), OutOfMemory)
    assert list(bad.events()) == [Progress("count", 1.0, 5.0), Progress("count", 2.0, 5.0)]
    assert good.result(LIMIT) == 50


def test_what_is_cancelled_ends_at_its_next_step(engine: Engine) -> None:
    cleaned = threading.Event()
    begun = threading.Event()

    def job() -> Job[None]:
        try:
            while True:
                begun.set()
                yield
        finally:
            cleaned.set()

    request = engine.submit(job())
    begun.wait(LIMIT)
    assert request.cancel() and request.cancelled() and request.done()
    assert cleaned.wait(LIMIT)
    assert list(request.events()) == []
    with pytest.raises(concurrent.futures.CancelledError):
        request.result(LIMIT)
    assert engine.submit(count(3)).result(LIMIT) == 3
    ended = engine.submit(count(1))
    ended.result(LIMIT)
    assert not ended.cancel()


def test_a_job_that_waits_is_cancelled_too(engine: Engine) -> None:
    cleaned = threading.Event()

    def job() -> Job[None]:
        try:
            while True:
                yield WAITING
        finally:
            cleaned.set()

    request = engine.submit(job())
    assert not cleaned.wait(0.05)
    request.cancel()
    assert cleaned.wait(LIMIT)


def test_closing_cancels_what_has_not_ended() -> None:
    engine = Engine(lambda: False)
    endless = engine.submit(count(10**9))
    engine.close(LIMIT)
    assert endless.cancelled()
    with pytest.raises(PipelineClosed, match="make another one"):
        engine.submit(count(1))
    engine.close(LIMIT)  # again: nothing happens


# --- asyncio ---------------------------------------------------------------------------------------------------------


def test_requests_can_be_awaited(engine: Engine) -> None:
    async def work() -> tuple[int, list[Any], list[int]]:
        several = [engine.submit(count(number)) for number in (3, 30, 300)]
        events = [event async for event in several[0]]
        return await several[1], events, list(await asyncio.gather(*several))

    result, events, results = in_time(work())
    assert result == 30 and results == [3, 30, 300] and events == told_of(3)


def test_a_task_that_is_cancelled_cancels_its_request(engine: Engine) -> None:
    async def work() -> bool:
        request = engine.submit(count(10**9))
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(request, 0.05)
        return request.cancelled()

    assert in_time(work())
    assert engine.submit(count(2)).result(LIMIT) == 2


# --- the end of the process ------------------------------------------------------------------------------------------

SCRIPT = """
import sys, threading, time
from mlx_speech.engine import Engine
import mlx.core as mx
engine = Engine(lambda: False)
def job():
    while True:
        mx.eval(mx.ones(100) + 1)
        yield
request = engine.submit(job())
time.sleep(0.1)
"""


@pytest.mark.parametrize(
    "end, code, said",
    [
        ("", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("raise ValueError('no')", 1, "ValueError: no"),
        ("request.cancel()", 0, ""),
        ("engine.close()", 0, ""),
        ("raise KeyboardInterrupt", -2, "KeyboardInterrupt"),
        ("del engine, request", 0, ""),
    ],
)
def test_the_interpreter_ends(end: str, code: int, said: str) -> None:
    """Whatever is under way: it neither hangs nor aborts."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT + end], capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.returncode == code or (code == -2 and done.returncode == 130)
    assert done.stderr.strip().endswith(said)
    assert not said or "Traceback" in done.stderr
    assert said or not done.stderr
