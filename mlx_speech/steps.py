"""Work in steps: a generator that yields how far it is and returns what it made, so that others may have a turn."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeAlias, TypeVar

Result = TypeVar("Result")
# yields seconds of audio done, or a share of 1; its docstring says which
Steps: TypeAlias = Generator[float, None, Result]


def run(steps: Steps[Result], on_progress: Callable[[float], object] | None = None) -> Result:
    """Run all the steps at once; returns their result. on_progress : hears what they yield"""
    while True:
        try:
            done = next(steps)
        except StopIteration as stopped:
            return stopped.value
        if on_progress is not None:
            on_progress(done)
