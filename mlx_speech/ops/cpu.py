"""What the NumPy versions of the operations share: when they can run, their threads, cutting into parts.

MLX's CPU back end computes elementwise operations and sums number by number, on one thread. NumPy works in blocks that
stay in a core's cache, and, by the parts of `in_parallel`, on all cores.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast

import mlx.core as mx
import numpy as np
from threadpoolctl import ThreadpoolController

from mlx_speech.blas import on_cpu

LARGEST_UNPACKED = 1_000_000  # multiplications of a product that OpenBLAS computes without packing its factors

Part = TypeVar("Part")
Array: TypeAlias = mx.array | np.ndarray
OneOrMore: TypeAlias = mx.array | tuple[mx.array, ...] | list[mx.array]  # MLX hands over a single array as it is

# How many threads a matrix product has is one setting of the process: only one operation at a time may change it.
_BLAS_SETTING = threading.Lock()


class Threads(NamedTuple):
    """blas : limits the threads of NumPy's matrix products
    count : how many those have
    helpers : one thread less, as the one that asks computes too
    """

    blas: ThreadpoolController
    count: int
    helpers: ThreadPoolExecutor


def suits_numpy(*arrays: mx.array) -> bool:
    """Whether NumPy can compute with these arrays where they are: in float32, on the CPU."""
    return on_cpu() and all(array.dtype == mx.float32 for array in arrays)


def in_numpy(compute: Callable[..., np.ndarray], graph: Callable[..., mx.array], *arrays: mx.array) -> mx.array:
    """`compute`, of views of the arrays.

    compute : takes NumPy arrays of the shapes of `arrays`, and returns a new one
    graph : the same as a graph of MLX. It gives the derivatives, which do not see through NumPy, and takes over inside
        mx.compile and mx.vmap, where arrays have no values
    arrays : float32, of any shapes
    """

    def compute_or_trace(*arrays: mx.array) -> mx.array:
        try:
            mx.eval(arrays)
        except ValueError:  # inside mx.compile and mx.vmap
            return graph(*arrays)
        with one_core_per_product():
            return mx.array(compute(*numpy_views(arrays)))

    def vjp(primals: OneOrMore, cotangent: mx.array, _: mx.array) -> tuple[mx.array, ...]:
        return tuple(mx.vjp(graph, _as_list(primals), [cotangent])[1])

    def jvp(primals: OneOrMore, tangents: OneOrMore) -> mx.array:
        return mx.jvp(graph, _as_list(primals), _as_list(tangents))[1][0]

    function = mx.custom_function(compute_or_trace)
    function.vjp(vjp)
    function.jvp(jvp)
    return cast(mx.array, function(*arrays))


@contextmanager
def one_core_per_product() -> Iterator[None]:
    """NumPy's matrix products take one core each, since their parts run on all of them; threads that another library's
    products keep waiting would take the cores from them.

    Whoever is inside must not enter it again: the thread would wait for itself.
    """
    with _BLAS_SETTING, threads().blas.limit(limits=1):
        yield


def numpy_views(arrays: Iterable[mx.array]) -> list[np.ndarray]:
    """The arrays, which are evaluated, as NumPy sees them, without a copy."""
    return [np.array(array, copy=False) for array in arrays]


def same_memory(arrays: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> bool:
    """Whether each array begins where the other one does, and there are as many.

    MLX changes no array that somebody else holds: while the others are held, what has been changed lies elsewhere.
    """
    return [array.ctypes.data for array in arrays] == [array.ctypes.data for array in others]


def module_of(array: Array) -> Any:
    """Whose array it is, `numpy` or `mlx.core`: for functions that compute with those of both."""
    return np if isinstance(array, np.ndarray) else mx


def in_parallel(compute: Callable[[Part], None], parts: Iterable[Part]) -> None:
    """Call `compute` with every part, on all cores: NumPy lets go of Python's lock while it computes.

    The calling thread takes parts as well, so that nobody waits for a helper that has not woken up yet. Raises what a
    part raised.
    """
    waiting = deque(parts)

    def work() -> None:
        while True:
            try:
                part = waiting.popleft()
            except IndexError:  # another thread took the last one
                return
            compute(part)

    helpers = []
    for _ in range(min(threads().count, len(waiting)) - 1):
        helpers.append(threads().helpers.submit(work))
    try:
        work()
    finally:
        waiting.clear()
        begun = [helper for helper in helpers if not helper.cancel()]
        wait(begun)
    for helper in begun:
        helper.result()


def slices(length: int, size: int) -> list[slice]:
    """Cut 0 to `length` into slices of `size`, the last of which may reach beyond the end."""
    return [slice(start, start + size) for start in range(0, length, size)]


def parts_of(count: int, length: int, size: int) -> list[tuple[int, slice]]:
    """Each of `count` rows cut into slices of `size`: the row, and the slice."""
    parts: list[tuple[int, slice]] = []
    for row in range(count):
        parts += [(row, piece) for piece in slices(length, size)]
    return parts


@lru_cache
def threads() -> Threads:
    """The threads that the operations compute on, made once."""
    blas = ThreadpoolController().select(user_api="blas")
    count = max((library["num_threads"] for library in blas.info()), default=os.cpu_count() or 1)
    return Threads(blas, count, ThreadPoolExecutor(max(1, count - 1)))


def _as_list(arrays: OneOrMore) -> list[mx.array]:
    if isinstance(arrays, mx.array):
        return [arrays]
    return list(arrays)
