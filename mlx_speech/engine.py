"""One thread that owns MLX, and the requests that take turns in it.

A request is a generator of steps. The engine's thread takes a step of each request in turn, and between the turns does
a unit of the work that requests share (Whisper's running batches): so a short recording does not wait behind a long
one, and everything of MLX happens in one thread, as its streams and unevaluated arrays demand. Whoever asks gets a
`Request`, which any thread may hold, and which asyncio can await.
"""

from __future__ import annotations

from mlx_speech import backend as backend  # isort: skip  (before MLX)

import atexit
import contextlib
import queue
import re
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import mlx.core as mx

from mlx_speech import forks
from mlx_speech.errors import MLXSpeechError, OutOfMemory, PipelineClosed
from mlx_speech.request import Event, Heard, Progress, Request
from mlx_speech.steps import Steps

ENDED = "this pipeline was closed while it was at work: make another one"
SECONDS_OF_TURNS = 0.3  # between two units of shared work, at least one turn each: short steps are soon over
SECONDS_TO_END = 30.0  # that the exit of the interpreter waits for a step that is under way
_OUT_OF_MEMORY = re.compile(r"alloc|out of memory|OutOfMemory")

T = TypeVar("T")


class Waiting:
    """Yielded by a job that can do nothing until a batch or another thread has done its part."""


WAITING = Waiting()
Turn: TypeAlias = Event | Waiting | None  # None: the turn is given away, and the job can go on
Job: TypeAlias = Generator[Turn, None, T]


@dataclass(eq=False)
class _Entry:
    """A request in the engine.

    clock : is told the seconds of every turn
    """

    request: Request[Any]
    job: Job[Any]
    clock: Callable[[float], object]


class Engine:
    """The thread, which starts with the first request and ends with `close`.

    shared : does a unit of the work that requests share; gives whether there was any
    environment : a context that is entered when work begins, and left when there is none
    at_once : requests that are under way at once; others wait for them, in order
    """

    def __init__(
        self,
        shared: Callable[[], bool],
        environment: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
        at_once: int | None = None,
    ) -> None:
        self._shared = shared
        self._environment = environment
        self._at_once = at_once
        self._inbox: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()
        self._waiting: deque[_Entry] = deque()
        self._under_way: list[_Entry] = []
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._step_since: float | None = None  # when the last step ended and the next began; None while none is due

    def submit(
        self,
        job: Job[T],
        clock: Callable[[float], object] = lambda seconds: None,
        listener: Callable[[Request[T], Event | None], object] | None = None,
    ) -> Request[T]:
        """Hand over a job.

        clock : is told the seconds of every turn, in the engine's thread
        listener : is called with the request and every event, and with None at the end, in the thread where it happens
        Raises `ForkedProcess`, and `PipelineClosed` behind `close`.
        """
        forks.check_process()
        request: Request[T] = Request(listener)
        request._future.add_done_callback(lambda _: self.wake())  # so that the engine sees that it was cancelled
        with self._starting:
            if self._closed:
                raise PipelineClosed("this pipeline is closed: make another one")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="mlx_speech", daemon=True)
                self._thread.start()
                _ENGINES.add(self)
            self._inbox.put(_Entry(request, job, clock))
        return request

    def wake(self) -> None:
        """A waiting job may go on, or was cancelled. From any thread."""
        self._inbox.put(None)

    @property
    def closed(self) -> bool:
        """Whether it takes no more requests."""
        return self._closed

    @property
    def stalled_for(self) -> float:
        """Seconds that a turn, or a unit of shared work, has been under way; 0 where there is nothing to do, or all
        that there is waits for something else, as a file that comes slowly. From any thread."""
        since = self._step_since
        return 0.0 if since is None else time.monotonic() - since

    def close(self, timeout: float | None = None) -> None:
        """End the thread behind the step that is under way; what has not ended is cancelled.

        timeout : seconds to wait for that step; without end by default
        """
        with self._starting:
            self._closed = True
            thread = self._thread
        self.wake()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    # --- in the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closed:
                self._take_in(self._inbox.get())
                if self._under_way:
                    self._note_step()
                    with self._environment(), forks.computing():
                        self._work()
                    self._step_since = None
        finally:
            self._step_since = None
            self._closed = True  # also where something ended the thread that is no error of a job
            self._cancel_all()
            mx.clear_streams()  # MLX 0.32 may abort the process at its exit otherwise

    def _work(self) -> None:
        """Turns, until nothing is left to do."""
        while self._under_way and not self._closed:
            moved = self._turns()
            shared = self._shared()
            self._note_step()
            forks.give_way()
            if not shared and not moved:
                self._step_since = None
                with forks.resting():
                    self._take_in(self._inbox.get())
                self._note_step()
            while not self._inbox.empty():
                self._take_in(self._inbox.get())

    def _note_step(self) -> None:
        """A step has ended, or the first one begins."""
        self._step_since = time.monotonic()

    def _turns(self) -> bool:
        """A turn of every job, and more of those that have something to do, for a while; whether any had."""
        start = time.perf_counter()
        moved = False
        able = list(self._under_way)
        while able:
            able = [entry for entry in able if self._turn(entry)]
            moved = moved or bool(able)
            if time.perf_counter() - start > SECONDS_OF_TURNS or not self._inbox.empty():
                break  # others are waiting
            able = [entry for entry in able if entry in self._under_way]
        return moved

    def _take_in(self, entry: _Entry | None) -> None:
        if entry is not None:
            self._waiting.append(entry)
        while self._waiting and (self._at_once is None or len(self._under_way) < self._at_once):
            self._under_way.append(self._waiting.popleft())

    def _turn(self, entry: _Entry) -> bool:
        """A step of a job; whether it did something."""
        if entry.request.cancelled():
            self._leave(entry)
            return True
        start = time.perf_counter()
        turn = attempt(lambda: next(entry.job))
        self._note_step()
        forks.give_way()
        if isinstance(turn, Failure):
            self._leave(entry)
            if isinstance(turn.error, StopIteration):  # the job came to its end
                entry.request._finish(turn.error.value)
            else:
                entry.request._fail(turn.error)
            return True
        entry.clock(time.perf_counter() - start)
        if isinstance(turn, (Progress, Heard)):
            entry.request._publish(turn)
        return turn is not WAITING

    def _leave(self, entry: _Entry) -> None:
        self._under_way.remove(entry)
        entry.job.close()
        self._take_in(None)

    def _cancel_all(self) -> None:
        while not self._inbox.empty():
            self._take_in(self._inbox.get())
        for entry in [*self._under_way, *self._waiting]:
            entry.job.close()
            entry.request.cancel()


@dataclass(frozen=True)
class Failure:
    """What a piece of work raised."""

    error: Exception


def attempt(work: Callable[[], T]) -> T | Failure:
    """What work gives, or its failure: that of one recording must not stop the others."""
    try:
        return work()
    except Exception as error:
        return Failure(explained(error))


def elsewhere(work: Callable[[], T], wake: Callable[[], object]) -> Future[T]:
    """Do something that needs no MLX in a thread of its own, as reading a file. wake : is called when it is done"""
    future: Future[T] = Future()

    def run() -> None:
        try:
            outcome = attempt(work)
            if isinstance(outcome, Failure):
                future.set_exception(outcome.error)
            else:
                future.set_result(outcome)
        finally:
            future.cancel()  # nothing happens where it is done
            wake()

    # no pool: at the interpreter's exit those are waited for, and a pipe may never come to its end
    threading.Thread(target=run, name="mlx_speech reader", daemon=True).start()
    return future


def result_of(future: Future[T]) -> Job[T]:
    """Wait, as a job does, for what is done in another thread. Raises what was raised there."""
    while not future.done():
        yield WAITING
    return future.result()


def told(stage: str, total: float, steps: Steps[T]) -> Job[T]:
    """Steps of a stage, which yield seconds of audio done, as progress out of `total`; returns their result."""
    yield Progress(stage, 0.0, total)
    while True:
        try:
            done = next(steps)
        except StopIteration as stopped:
            yield Progress(stage, total, total)
            return stopped.value
        yield Progress(stage, min(done, total), total)  # edges of chunks are rounded


def silently(steps: Steps[T]) -> Job[T]:
    """Steps of a stage whose progress is not told; returns their result."""
    while True:
        try:
            next(steps)
        except StopIteration as stopped:
            return stopped.value
        yield


def untold(job: Job[T]) -> Job[T]:
    """A job whose events nobody is told of; returns its result."""
    while True:
        try:
            turn = next(job)
        except StopIteration as stopped:
            return stopped.value
        yield turn if turn is WAITING else None


def explained(error: Exception) -> Exception:
    """MLX's word for too little memory as an error that says what helps; others as they are."""
    if isinstance(error, MLXSpeechError) or not isinstance(error, (MemoryError, RuntimeError)):
        return error
    if isinstance(error, RuntimeError) and not _OUT_OF_MEMORY.search(str(error)):
        return error
    advice = "lower batch_size, pass low_memory=True, or choose a smaller model (small-q4)"
    better = OutOfMemory(f"out of memory: {advice}")
    better.__cause__ = error
    return better


_ENGINES: weakref.WeakSet[Engine] = weakref.WeakSet()  # those whose thread has started


@atexit.register
def _close_all() -> None:
    """At the interpreter's exit: MLX must not be torn down under a thread that computes."""
    for engine in list(_ENGINES):
        engine.close(SECONDS_TO_END)
