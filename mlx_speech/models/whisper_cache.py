"""What Whisper's decoder keeps between its steps, for a running batch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import mlx.core as mx
import numpy as np

from mlx_speech.ops import decoder_step
from mlx_speech.ops.cpu import Array, in_parallel, module_of, numpy_views

# What each layer attends to of the audio of one row: keys and values, each (heads, width of a head, 1500).
Audio: TypeAlias = list[tuple[np.ndarray, np.ndarray]]

SLOT_MULTIPLE = 64  # a cache has so many slots, or twice as many, and so on: shapes change rarely


@dataclass
class DecoderCache:
    """Keys and values of a running batch, whose rows (chunks of audio) come and go.

    Each row has a `group` of hypotheses. At every step all hypotheses of all rows write to the same slot; once in a
    while the slots that no row needs any more are given up. Whisper adds positions to its input, so keys may lie
    anywhere, and `visible` tells which entries are a hypothesis's past: reordering beams moves no keys, and a prompt is
    kept once for the whole group.

    Its arrays are MLX's, or NumPy's where steps are computed in NumPy.

    keys, values : per layer, (rows, heads, slots·group, width of a head)
    audio : per layer, keys and values of the encoded audio, each (rows, heads, 1500, width of a head); in NumPy each is
        a list with the (heads, width of a head, 1500) of every row, None where it is free: rows move without a copy
    visible : (rows, group, slots, group), True where a hypothesis sees the entry that another one wrote to a slot
    itself : (group, group), True where a hypothesis sees what it writes
    lengths : tokens of each row so far, (rows,); 0 where it is free
    host : the weights when the batch began, for steps in NumPy; None: they are computed by MLX
    position : the slot that is written next
    """

    keys: list[Any]
    values: list[Any]
    audio: list[tuple[Any, Any]]
    visible: Any
    itself: Any
    lengths: list[int]
    host: decoder_step.HostWeights | None = None
    position: int = 0

    @property
    def is_in_numpy(self) -> bool:
        return self.host is not None

    def append(self, layer: int, keys: Array, values: Array) -> tuple[Any, Any]:
        """Write a step of a layer to the slot at `position`.

        keys and values (rows, heads, group, width of a head) → those of all slots, each (rows, heads, slots·group,
        width of a head)
        """
        group = keys.shape[2]
        entries = slice(self.position * group, (self.position + 1) * group)
        self.keys[layer][:, :, entries] = keys
        self.values[layer][:, :, entries] = values
        return self.keys[layer], self.values[layer]

    def see(self) -> Any:
        """Every hypothesis sees what it writes to the slot at `position`. Returns the mask of the step, (rows, 1,
        group, slots·group)."""
        self.visible[:, :, self.position] = self.itself
        rows, group, _, _ = self.visible.shape
        return self.visible.reshape(rows, 1, group, -1)

    def past(self) -> tuple[list[decoder_step.Past], np.ndarray]:
        """What a step in NumPy attends to, of each layer, and the mask of that, (rows, 1, group, m)."""
        rows, group, _, _ = self.visible.shape
        entries = self.position * group
        past = []
        for keys, values, audio in zip(self.keys, self.values, self.audio, strict=True):
            past.append(decoder_step.Past(keys[:, :, :entries], values[:, :, :entries], *audio))
        return past, self.visible[:, :, : self.position].reshape(rows, 1, group, entries)

    def audio_of(self, row: int) -> Audio | None:
        """What a row attends to of its audio; None where MLX's device has it."""
        if not self.is_in_numpy:
            return None
        return [(keys[row], values[row]) for keys, values in self.audio]

    def enter(
        self, layer: int, rows: list[int], keys: mx.array, values: mx.array, audio: tuple[mx.array, mx.array]
    ) -> None:
        """Write the prompts of rows that enter, which end before `position`, and their audio, for a layer.

        rows : their numbers, (entering,)
        keys, values : of the prompts, (entering, heads, steps, width of a head); a shorter one is padded in front
        audio : keys and values, each (entering, heads, 1500, width of a head)
        """
        # the first hypothesis has the prompt for the whole group
        group = len(self.itself)
        first = (self.position - keys.shape[2]) * group
        prompt = slice(first, self.position * group, group)
        if self.is_in_numpy:
            self._copy(layer, rows, prompt, keys, values, audio)
            return
        for index, row in enumerate(rows):
            self.keys[layer][row, :, prompt] = keys[index]
            self.values[layer][row, :, prompt] = values[index]
        if rows == list(range(len(self.lengths))):  # nothing of the audio stays
            self.audio[layer] = audio
            return
        for kept, new in zip(self.audio[layer], audio, strict=True):
            for index, row in enumerate(rows):
                kept[row] = new[index]

    def _copy(
        self,
        layer: int,
        rows: list[int],
        prompt: slice,
        keys: mx.array,
        values: mx.array,
        audio: tuple[mx.array, mx.array],
    ) -> None:
        """`enter` in NumPy, on all cores. prompt : the slots"""
        mx.eval(keys, values, audio)
        prompts = numpy_views([keys, values])
        for kept, new in zip((self.keys[layer], self.values[layer]), prompts, strict=True):
            kept[rows, :, prompt] = new
        heard = numpy_views(audio)

        def copy(part: tuple[int, int]) -> None:
            which, index = part  # keys or values, and of the rows
            by_width = heard[which][index].swapaxes(1, 2)
            # each row has memory of its own, which goes when it leaves
            is_shared = len(rows) > 1
            self.audio[layer][which][rows[index]] = np.array(by_width, order="C", copy=is_shared or None)

        in_parallel(copy, itertools.product(range(len(heard)), range(len(rows))))

    def show(self, rows: list[int], lengths: list[int]) -> None:
        """Of the rows that entered, every hypothesis sees the prompt and nothing else.

        rows : their numbers, (entering,)
        lengths : of their prompts, (entering,)
        """
        _, _, slots, group = self.visible.shape
        visible = np.zeros((len(rows), group, slots, group), dtype=bool)
        for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            visible[index, :, self.position - length : self.position, 0] = True
            self.lengths[row] = length
        module = module_of(self.visible)
        self.visible[module.array(rows)] = module.array(visible)

    def leave(self, row: int) -> None:
        """The row is done and free: nothing of it is needed any more."""
        self.lengths[row] = 0
        if self.is_in_numpy:
            for keys, values in self.audio:
                keys[row] = values[row] = None

    def reorder(self, sources: Sequence[Sequence[int]]) -> None:
        """Every hypothesis continues that of its row whose number is in `sources`, (rows, group)."""
        module = module_of(self.visible)
        self.visible = module.take_along_axis(self.visible, module.array(sources)[:, :, None, None], axis=1)

    def keep(self, rows: list[int]) -> None:
        """Only these rows stay, in this order; `rows` (kept,) are their numbers."""
        index = module_of(self.visible).array(rows)
        self.keys = [keys[index] for keys in self.keys]
        self.values = [values[index] for values in self.values]
        if self.is_in_numpy:
            self.audio = [([keys[row] for row in rows], [values[row] for row in rows]) for keys, values in self.audio]
        else:
            self.audio = [(keys[index], values[index]) for keys, values in self.audio]
        self.visible = self.visible[index]
        self.lengths = [self.lengths[row] for row in rows]

    def make_room(self, before: int, after: int) -> None:
        """Have at least `before` slots before `position`, and `after` from it on; where slots are added, those that no
        row needs any more are given up."""
        slots = self.visible.shape[2]
        if before <= self.position <= slots - after:
            return
        needed = min(self.position, max(self.lengths))
        front = max(0, before - needed)
        # half a multiple more than is asked for, so that the next steps find room
        wanted = front + needed + max(after, SLOT_MULTIPLE // 2)
        back = -(-wanted // SLOT_MULTIPLE) * SLOT_MULTIPLE - front - needed
        module = module_of(self.visible)

        def moved(buffer: Any, entries: int) -> Any:
            """(rows, …, slots·entries, …) → the same with other slots, which are the third axis"""
            padding = [(0, 0)] * buffer.ndim
            padding[2] = (front * entries, back * entries)
            kept = slice((self.position - needed) * entries, self.position * entries)
            return module.pad(buffer[:, :, kept], padding)

        group = len(self.itself)
        self.keys = [moved(keys, group) for keys in self.keys]
        self.values = [moved(values, group) for values in self.values]
        self.visible = moved(self.visible, 1)
        self.position = front + needed
