"""What a GPU is given to do, counted exactly and without one: primitives, launches, bytes, and waits of the host.

A graph of MLX is built as for a GPU (`mlx_speech.blas.as_on_gpu`) and never evaluated. MLX on a CPU takes its fused
operations apart while a graph is built: layer norm and attention are stand-ins here, of one primitive each with all
that they read, which is what Metal and CUDA have for them.

The same graph is looked at twice. `mx.export_to_dot` draws it as it is evaluated, with and without what `mx.compile`
fuses: that gives the numbers of primitives. `mx.export_function` tells each primitive's arrays, with nothing fused and
what is computed twice once: that gives the bytes.
"""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np

from mlx_speech import backend as backend  # isort: skip  (before MLX)
import mlx.core as mx

Build = Callable[[], Sequence[mx.array]]

# Primitives that only say how memory is read; a reshape may have to copy.
VIEWS = {"AsStrided", "Broadcast", "BroadcastAxes", "ExpandDims", "Flatten", "Reshape", "Slice", "Split", "Squeeze"}
VIEWS |= {"Transpose", "Unflatten", "StopGradient", "View"}
RESHAPES = {"Flatten", "Reshape", "Unflatten"}
STAND_IN = "Depends"


@dataclass
class Bytes:
    """Read and written by a graph, with nothing fused; inputs that are read twice count twice."""

    weights: int = 0
    kept: int = 0  # of keys and values, read or written
    activations: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.kept + self.activations


@dataclass(frozen=True)
class Counted:
    """Of a graph.

    primitives : with nothing fused
    compiled : the same where a subgraph that `mx.compile` fuses is one
    launches : of `compiled` those that are no mere views, one for each array that is concatenated,
        and reshapes that have to copy
    names : how often each primitive of `primitives` occurs
    shapes : of what each primitive, views apart, reads and writes: (name, shapes of inputs, shapes of outputs)
    """

    primitives: int
    compiled: int
    launches: int
    bytes: Bytes
    names: Counter[str]
    shapes: list[tuple[str, list[tuple[int, ...]], list[tuple[int, ...]]]]


def count(build: Build, weights: Sequence[mx.array] = (), kept: Sequence[mx.array] = ()) -> Counted:
    """Count the graph that `build` makes, anew at each call, from arrays that are evaluated.

    weights, kept : evaluated arrays among those that it reads, by which the bytes are told apart
    """
    plain = _drawn(build, compiled=False)
    fused = _drawn(build, compiled=True)
    traced = _Traced(weights, kept)
    with _on_gpu(), _without_compile():
        mx.export_function(traced.take, lambda: list(build()))
    launches = traced.copies
    for name, inputs in fused:
        if name not in VIEWS:
            launches += inputs if name == "Concatenate" else 1  # a copy of each
    names = Counter(name for name, _ in plain)
    return Counted(len(plain), len(fused), launches, traced.bytes, names, traced.shapes)


def _drawn(build: Build, compiled: bool) -> list[tuple[str, int]]:
    """Of each primitive of a graph, its name and how many arrays it reads."""
    with ExitStack() as stack:
        stack.enter_context(_on_gpu())
        if not compiled:
            stack.enter_context(_without_compile())
        outputs = list(build())
        drawing = io.StringIO()
        mx.export_to_dot(drawing, *outputs)
    text = drawing.getvalue()
    read = Counter(re.findall(r'^"\w+" -> (\d+)$', text, re.MULTILINE))
    return [(name, read[number]) for number, name in re.findall(r'^{ (\d+) \[label ="(\w+)"', text, re.MULTILINE)]


@contextmanager
def _without_compile() -> Iterator[None]:
    mx.disable_compile()
    try:
        yield
    finally:
        mx.enable_compile()


@contextmanager
def _on_gpu() -> Iterator[None]:
    """Graphs are built as on a GPU, and nothing is evaluated."""
    from mlx_speech.blas import as_on_gpu

    with (
        as_on_gpu(),
        mock.patch.object(mx.fast, "layer_norm", _layer_norm),
        mock.patch.object(mx.fast, "scaled_dot_product_attention", _attention),
        mock.patch.object(mx, "async_eval", lambda *arrays: None),
        # of arrays that are in order, for which it does nothing; it cannot be exported
        mock.patch.object(mx, "contiguous", lambda array: array),
    ):
        yield


def _layer_norm(x: mx.array, weight: mx.array | None, bias: mx.array | None, eps: float) -> mx.array:
    """One primitive that reads what a layer norm reads, and writes what it writes."""
    return mx.depends(x, [array for array in (weight, bias) if array is not None])


def _attention(
    queries: mx.array, keys: mx.array, values: mx.array, *, scale: float, mask: mx.array | str | None = None
) -> mx.array:
    """One primitive that reads what an attention reads, and writes what it writes."""
    masks = [mask] if isinstance(mask, mx.array) else []
    return mx.depends(queries, [keys, values, *masks])


class _Traced:
    """What `mx.export_function` tells of a graph, as it comes.

    An array is known by its memory: `_layouts` has a NumPy array of its shape and strides, never touched, of which
    what is reached through views is a view, too.
    """

    def __init__(self, weights: Sequence[mx.array], kept: Sequence[mx.array]) -> None:
        self.bytes = Bytes()
        self.copies = 0
        self.shapes: list[tuple[str, list[tuple[int, ...]], list[tuple[int, ...]]]] = []
        self._kinds = {_address(array): "weights" for array in weights}
        self._kinds |= {_address(array): "kept" for array in kept}
        self._kind_of: dict[str, str] = {}
        self._sizes: dict[str, int] = {}  # bytes behind an array, where it is a view the fewest on the way
        self._layouts: dict[str, np.ndarray] = {}

    def take(self, event: dict[str, Any]) -> None:
        """One event of the export."""
        if event["type"] == "constants":
            for name, array in event["constants"]:
                self._kind_of[name] = self._kinds.get(_address(array), "activations")
                self._sizes[name] = array.nbytes
                self._layouts[name] = np.empty(array.shape, np.int8)
        elif event["type"] == "primitive":
            self._take_primitive(event["name"], event["inputs"], event["outputs"], event["arguments"])

    def _take_primitive(self, name: str, inputs: list[Any], outputs: list[Any], arguments: list[Any]) -> None:
        is_cast_to_itself = name == "AsType" and inputs[0][2] == outputs[0][2]
        if name in VIEWS or is_cast_to_itself:
            source = inputs[0][0]
            layout = _viewed(name, self._layouts[source], outputs[0][1], arguments)
            if layout is not None:
                for output, shape, dtype in outputs:
                    self._kind_of[output] = self._kind_of[source]
                    self._sizes[output] = min(self._sizes[source], math.prod(shape) * dtype.size)
                    self._layouts[output] = layout
                return
            self.copies += 1
        written = [math.prod(shape) * dtype.size for _, shape, dtype in outputs]
        read = [(self._kind_of[source], self._sizes[source]) for source, _, _ in inputs]
        kind = "activations"
        if name == "SliceUpdate":  # in place: the rest of the array stays where it is
            kind = self._kind_of[inputs[0][0]]
            read = read[1:]
            written = [math.prod(inputs[1][1]) * inputs[1][2].size]
        elif name in ("Gather", "GatherAxis"):  # reads what it writes, and the places
            read[0] = (read[0][0], min(read[0][1], written[0]))
        for source_kind, size in [*read, *((kind, size) for size in written)]:
            setattr(self.bytes, source_kind, getattr(self.bytes, source_kind) + size)
        for output, shape, dtype in outputs:
            self._kind_of[output] = kind
            self._sizes[output] = math.prod(shape) * dtype.size
            self._layouts[output] = np.empty(shape, np.int8)
        self.shapes.append((name, [shape for _, shape, _ in inputs], [shape for _, shape, _ in outputs]))


def _viewed(name: str, layout: np.ndarray, shape: tuple[int, ...], arguments: list[Any]) -> np.ndarray | None:
    """A view of a memory layout; None where numbers have to be moved for it."""
    if name == "Transpose":
        return layout.transpose(arguments[0])
    if name in RESHAPES or name in ("ExpandDims", "Squeeze"):
        try:
            return np.reshape(layout, shape, copy=False)
        except ValueError:
            return None
    if name == "Broadcast":
        return np.broadcast_to(layout, shape)
    if name == "Slice":
        starts, stops, steps = arguments
        places = tuple(slice(*place) for place in zip(starts, stops, steps, strict=True))
        if all(step > 0 for step in steps):
            return layout[places]
    return np.empty(shape, np.int8)


def _address(array: mx.array) -> int:
    """Where an evaluated array lies in memory."""
    if array.dtype == mx.bfloat16:
        array = array.view(mx.uint16)
    return np.array(array, copy=False).__array_interface__["data"][0]


# --- waits ------------------------------------------------------------------------------------------------------------


@dataclass
class Waits:
    """How often the host has waited for the device, and how often it has given it something to do.

    waits : looks at an array that was not known to be computed: one look at the newest of several answers for all
        that was handed over before it
    handed_over : calls of `mx.async_eval`, which waits for nothing
    """

    waits: int = 0
    handed_over: int = 0
    _numbers: dict[int, int] = field(default_factory=dict)  # id of an array → which hand-over it came with
    _arrays: list[mx.array] = field(default_factory=list)  # so that no id is given twice
    _known: int = 0  # the last hand-over that is known to be done

    def hand_over(self, arrays: Any) -> None:
        """Arrays, or trees of them, that the device is to compute."""
        self.handed_over += 1
        for array in _leaves(arrays):
            self._numbers.setdefault(id(array), self.handed_over)
            self._arrays.append(array)

    def look(self, arrays: Any) -> None:
        """At arrays, or trees of them, as the host does it, all at once."""
        numbers = [self._numbers.get(id(array)) for array in _leaves(arrays)]
        new = [number for number in numbers if number is None or number > self._known]
        if not new:
            return
        self.waits += 1
        if None in new:  # not handed over before: all that was is done, too, and so is this
            self.hand_over(arrays)
            self.handed_over -= 1
            self._known = self.handed_over
            for array in _leaves(arrays):
                self._numbers[id(array)] = self.handed_over
        else:
            self._known = max(number for number in new if number is not None)


def _leaves(arrays: Any) -> list[mx.array]:
    if isinstance(arrays, mx.array):
        return [arrays]
    if isinstance(arrays, dict):
        arrays = list(arrays.values())
    if isinstance(arrays, (list, tuple)):
        return [leaf for one in arrays for leaf in _leaves(one)]
    return []


@contextmanager
def waits() -> Iterator[Waits]:
    """Count what happens inside: `mx.eval`, `np.array` and `np.asarray` of MLX's arrays, `item`, `tolist`, `bool`,
    `int` and `float` of them. The work itself is done."""
    counted = Waits()
    evaluate, evaluate_later = mx.eval, mx.async_eval

    def waiting(*arrays: Any) -> None:
        counted.look(arrays)
        evaluate(*arrays)

    def later(*arrays: Any) -> None:
        counted.hand_over(arrays)
        evaluate_later(*arrays)

    def looking(function: Callable[..., Any]) -> Callable[..., Any]:
        def look(array: Any, *arguments: Any, **keywords: Any) -> Any:
            if isinstance(array, mx.array):
                counted.look(array)
            return function(array, *arguments, **keywords)

        return look

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(mx, "eval", waiting))
        stack.enter_context(mock.patch.object(mx, "async_eval", later))
        for place, names in [
            (np, ("array", "asarray")),
            (mx.array, ("item", "tolist", "__bool__", "__int__", "__float__")),
        ]:
            for name in names:
                patched = looking(getattr(place, name))
                stack.enter_context(mock.patch.object(place, name, patched))
        yield counted
