"""Forks of the process: they wait for threads that compute, and the child is told that it cannot use what was loaded.

Before a fork OpenBLAS ends its threads, in the midst of a product too. Whoever waits for that product then waits for
ever, or the fork waits for a thread that does not end.
"""

from __future__ import annotations

from mlx_speech import backend as backend  # isort: skip  (before MLX)

# These two take locks of their own before a fork, which threads that compute need as well. What is registered last
# comes first: they have to be there when this module registers its wait.
import concurrent.futures.thread  # noqa: F401
import logging  # noqa: F401
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import mlx.core as mx

from mlx_speech.errors import ForkedProcess

FORKED = "models were loaded before this process was forked off, and MLX does not outlive a fork: start it with "
FORKED += 'multiprocessing\'s "spawn", or load the models in the child only'
SECONDS_TO_WAIT = 60.0  # of a fork, for a unit of work: where that waits for the forking thread, neither would go on

_USED_IN: dict[str, int] = {}  # "process": the id of the one that has loaded models


class _Gate:
    """computing : the threads that do
    forks : how many are waiting or happening
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.computing: set[int] = set()
        self.forks = 0

    def enter(self) -> None:
        """Begin to compute, when no fork is waiting."""
        with self.changed:
            self.changed.wait_for(lambda: not self.forks)
            self.computing.add(threading.get_ident())

    def leave(self) -> None:
        """End, when MLX has computed what it was asked for."""
        with suppress(RuntimeError):  # of something that failed: whoever looks at it is told
            mx.synchronize()
        with self.changed:
            self.computing.discard(threading.get_ident())
            self.changed.notify_all()

    def before_fork(self) -> None:
        """Wait for all threads that compute but this one, which may fork in the midst of it."""
        this = threading.get_ident()
        with self.changed:
            self.forks += 1
            self.changed.wait_for(lambda: self.computing <= {this}, SECONDS_TO_WAIT)

    def after_fork(self) -> None:
        with self.changed:
            self.forks -= 1
            self.changed.notify_all()


_GATES = [_Gate()]  # the process's own


def _begin_anew() -> None:
    """In a child, which has none of the threads, and perhaps a lock that one of them held."""
    _GATES[:] = [_Gate()]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=lambda: _GATES[0].before_fork(),
        after_in_parent=lambda: _GATES[0].after_fork(),
        after_in_child=_begin_anew,
    )


def check_process() -> None:
    """Raises `ForkedProcess` in a process that was forked off one that had called this; MLX would wait there for ever.

    It is called wherever models are loaded and used.
    """
    if _USED_IN.setdefault("process", os.getpid()) != os.getpid():
        raise ForkedProcess(FORKED)


@contextmanager
def computing() -> Iterator[None]:
    """This thread computes; a fork waits until it has left, or gives way. It may be entered again.

    Raises `ForkedProcess`.
    """
    check_process()
    if threading.get_ident() in _GATES[0].computing:
        yield
        return
    _GATES[0].enter()
    try:
        yield
    finally:
        _GATES[0].leave()


@contextmanager
def resting() -> Iterator[None]:
    """Inside `computing`: nothing is computed for a while."""
    _GATES[0].leave()
    try:
        yield
    finally:
        _GATES[0].enter()


def give_way() -> None:
    """Inside `computing`, between two units of work: let a fork happen that is waiting."""
    if _GATES[0].forks:
        with resting():
            pass
