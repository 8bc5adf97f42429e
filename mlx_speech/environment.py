"""What a pipeline asks of MLX as a whole: which device computes, and how much memory is used."""

from __future__ import annotations

from mlx_speech import backend as backend  # isort: skip  (before MLX)

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import mlx.core as mx

from mlx_speech.errors import OptionError, brief

T = TypeVar("T")


class Environment:
    """MLX's device and memory limits: they are the whole process's, so they hold while a pipeline works and not after.

    device : "cpu", "gpu", or None for MLX's default; memory_limit : gigabytes, None for MLX's own
    Raises `OptionError`.
    """

    def __init__(self, device: str | None, memory_limit: float | None) -> None:
        self._device = _device_of(device)
        self.memory_limit = None
        if memory_limit is not None and memory_limit != math.inf:
            self.memory_limit = int(memory_limit * 1e9)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Within both."""
        with self.device():
            if self.memory_limit is None:
                yield
                return
            with _LIMITS.asked((self.memory_limit, self.memory_limit // 4)):
                yield

    @contextmanager
    def device(self) -> Iterator[None]:
        """With the device alone."""
        if self._device is None:
            yield
            return
        with _DEVICES.asked(self._device):
            yield


class _Shared(Generic[T]):
    """Something of the whole process that several pipelines may want changed at the same time.

    now, change : tell it, and set it; choose : what is set where several are wanted
    What was there before the first comes back behind the last.
    """

    def __init__(self, now: Callable[[], T], change: Callable[[T], object], choose: Callable[[list[T]], T]) -> None:
        self._now = now
        self._change = change
        self._choose = choose
        self._lock = threading.Lock()
        self._wanted: list[T] = []
        self._before: list[T] = []  # one, while any is wanted

    @contextmanager
    def asked(self, value: T) -> Iterator[None]:
        """Within it, unless another one counts more."""
        with self._lock:
            if not self._wanted:
                self._before = [self._now()]
            self._wanted.append(value)
            self._change(self._choose(self._wanted))
        try:
            yield
        finally:
            with self._lock:
                self._wanted.remove(value)
                self._change(self._choose(self._wanted or self._before))


def _limits() -> tuple[int, int]:
    """Of memory and of the cache, in bytes; MLX tells the latter only as it is changed."""
    cache = mx.set_cache_limit(0)
    mx.set_cache_limit(cache)
    return mx.get_memory_limit(), cache


def _set_limits(limits: tuple[int, int]) -> None:
    mx.set_memory_limit(limits[0])
    mx.set_cache_limit(limits[1])


def _last(devices: list[mx.Device]) -> mx.Device:
    return devices[-1]


_LIMITS = _Shared(_limits, _set_limits, min)
_DEVICES = _Shared(mx.default_device, mx.set_default_device, _last)


def _device_of(name: str | None) -> mx.Device | None:
    if name is None:
        return None
    if name not in ("cpu", "gpu"):
        raise OptionError(f'device is {brief(name)}: choose "cpu" or "gpu"')
    if name == "gpu" and not (mx.metal.is_available() or mx.cuda.is_available()):
        raise OptionError('device is "gpu", and MLX finds none here: leave it out')
    return mx.Device(mx.gpu if name == "gpu" else mx.cpu)
