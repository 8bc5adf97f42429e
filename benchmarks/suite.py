"""How contenders are timed: each in a process of its own, in turns, so that drift of the machine meets all alike.

A row has some contenders that do the same work on the same input. Each gets ready (imports, weights, a first call whose
output is compared with the others'); then all are called in turn. What counts is the ratio of one contender's time to
another's within a turn: the median over the turns, and the range.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

OURS = "mlx_speech"
REPEATS = ((10.0, 5), (240.0, 3), (float("inf"), 1))  # so many turns where one takes up to so many seconds
WARM = 10.0  # seconds from which the first turn, whose outputs are compared, counts as one of them

Call = Callable[[], Any]


@dataclass(frozen=True)
class Work:
    """What a call of ours has to do at least: floating-point operations, and bytes read from or written to memory."""

    operations: float
    bytes: float


@dataclass(frozen=True)
class Row:
    """One line of the table for each contender.

    name : e.g. "vad"; with a slash for the parts of one row: "whisper/encoder"
    title : what is done, with shapes
    contenders : name → a function of `arguments`, at the top level of a module, that gets ready and returns the call to
        time; `OURS` is ours. ImportError: the peer is not installed
    arguments : what all of them get; picklable
    agree : outputs by contender → a sentence on how far they agree; raises AssertionError where they do not
    seconds : of audio that a call goes through, for "× real time"; None: not meaningful
    count : of what a call makes (tokens), for a rate, or how to count it in our output; None: nothing to count
    work : see `Work`, or how it follows from our output
    targets : contender → how many times as fast as it ours should be on two CPU cores
    most : turns, where `REPEATS` has more: all rows together shall take 40 minutes
    once : contenders that take many times as long as ours, and so only the first turn
    """

    name: str
    title: str
    contenders: Mapping[str, Callable[..., Call]]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    agree: Callable[[dict[str, Any]], str] | None = None
    seconds: float | None = None
    count: float | Callable[[Any], float] | None = None
    work: Work | Callable[[Any], Work] | None = None
    targets: Mapping[str, float] = field(default_factory=dict)
    most: int = 5
    once: Collection[str] = ()


def peak_memory() -> int:
    """Bytes of this process's largest resident set so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _serve(pipe: Connection, ready: Callable[..., Call], arguments: Mapping[str, Any]) -> None:
    """In a contender's process: get ready, then answer every message with (seconds, peak memory, output)."""
    try:
        call = ready(**arguments)
        pipe.send(None)
        while pipe.recv():
            start = time.perf_counter()
            output = call()
            pipe.send((time.perf_counter() - start, peak_memory(), output))
    except EOFError:
        pass
    except ImportError as error:
        pipe.send(f"not installed: {error}")
    except Exception as error:
        traceback.print_exc()
        pipe.send(f"failed: {type(error).__name__}: {error}")


class _Contender:
    def __init__(self, ready: Callable[..., Call], arguments: Mapping[str, Any], once: bool) -> None:
        self._once = once
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, ready, arguments), daemon=True)
        self.process.start()
        other.close()
        self.problem: str | None = None
        self.times: list[float] = []
        self.peak = 0

    def get_ready(self) -> None:
        self.problem = self._receive()

    def _receive(self) -> Any:
        try:
            return self.pipe.recv()
        except EOFError:
            return f"failed: ended with exit code {self.process.exitcode}"

    def call(self) -> Any:
        """The output, or None and a problem."""
        self.pipe.send(True)
        answer = self._receive()
        if isinstance(answer, str):
            self.problem = answer
            return None
        seconds, self.peak, output = answer
        self.times.append(seconds)
        return output

    def take_turn(self) -> None:
        """Be timed, unless one turn was enough, or it has ended."""
        if self.problem is None and not (self._once and self.times):
            self.call()

    def close(self) -> None:
        self.pipe.close()
        self.process.join(10)
        if self.process.is_alive():
            self.process.kill()


def measure(row: Row) -> dict[str, Any]:
    """A row as JSON: {"title", "agree", "contenders": {name: {"times", "peak"} or {"problem"}}, ...}."""
    start = time.perf_counter()
    contenders = {name: _Contender(ready, row.arguments, name in row.once) for name, ready in row.contenders.items()}
    try:
        for one in contenders.values():
            one.get_ready()
        outputs = {name: one.call() for name, one in contenders.items() if one.problem is None}
        outputs = {name: output for name, output in outputs.items() if contenders[name].problem is None}
        agreed = row.agree(outputs) if row.agree is not None and OURS in outputs else ""
        running = [one for one in contenders.values() if one.problem is None]
        often = [one for name, one in contenders.items() if one.problem is None and name not in row.once]
        first = sum(one.times[0] for one in often)
        turns = min(row.most, next(turns for limit, turns in REPEATS if first <= limit))
        if first < WARM:
            for one in running:
                one.times.clear()
        for turn in range(turns - (first >= WARM)):  # who begins changes
            for one in running if turn % 2 else reversed(running):
                one.take_turn()
        found = {
            name: {"problem": one.problem} if one.problem else {"times": one.times, "peak": one.peak}
            for name, one in contenders.items()
        }
    finally:
        for one in contenders.values():
            one.close()
    mine = outputs.get(OURS)
    count = row.count(mine) if callable(row.count) and OURS in outputs else row.count
    work = row.work(mine) if callable(row.work) and OURS in outputs else row.work
    result = {"title": row.title, "agree": agreed, "contenders": found, "seconds": row.seconds}
    result["count"] = None if callable(count) else count
    if isinstance(work, Work):
        result["work"] = {"operations": work.operations, "bytes": work.bytes}
    took = time.perf_counter() - start
    return {**result, "targets": dict(row.targets), "load": os.getloadavg()[0], "took": took}


def ratios(measured: Mapping[str, Any], other: str) -> tuple[float, float, float] | None:
    """How many times as fast as `other` ours was: median, least, most of the turns that both took; None where one did
    not run."""
    ours, theirs = (measured["contenders"].get(name, {}).get("times") for name in (OURS, other))
    if not ours or not theirs:
        return None
    found = [b / a for a, b in zip(ours, theirs, strict=False)]
    return statistics.median(found), min(found), max(found)
