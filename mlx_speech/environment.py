"""What a pipeline asks of MLX as a whole: which device computes, and how much memory is used."""

from __future__ import annotations

from mlx_speech import backend as backend  # isort: skip  (before MLX)

import math
from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx

from mlx_speech.errors import OptionError, brief


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
            memory_before = mx.set_memory_limit(self.memory_limit)
            cache_before = mx.set_cache_limit(self.memory_limit // 4)
            try:
                yield
            finally:
                mx.set_memory_limit(memory_before)
                mx.set_cache_limit(cache_before)

    @contextmanager
    def device(self) -> Iterator[None]:
        """With the device alone."""
        before = mx.default_device()
        if self._device is None or self._device == before:
            yield
            return
        mx.set_default_device(self._device)
        try:
            yield
        finally:
            mx.set_default_device(before)


def _device_of(name: str | None) -> mx.Device | None:
    if name is None:
        return None
    if name not in ("cpu", "gpu"):
        raise OptionError(f'device is {brief(name)}: choose "cpu" or "gpu"')
    if name == "gpu" and not (mx.metal.is_available() or mx.cuda.is_available()):
        raise OptionError('device is "gpu", and MLX finds none here: leave it out')
    return mx.Device(mx.gpu if name == "gpu" else mx.cpu)
