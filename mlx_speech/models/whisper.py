"""Whisper (Radford et al. 2022): audio encoder and text decoder of every size, turbo and distil included.

Source: openai/whisper `model.py`; parameters are named as there, with mlp.0 and mlp.2 as mlp1 and mlp2 (mlx-whisper's
names). The decoder keeps its keys and values in buffers of fixed size, and those of the cross-attention once per chunk.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_speech.errors import OptionError
from mlx_speech.models.base import BaseModel, BaseModelArgs, layers, positive
from mlx_speech.models.layers import LayerNorm
from mlx_speech.ops import decoder_step, few_rows
from mlx_speech.ops.attention import attention
from mlx_speech.ops.cpu import Array, in_parallel, module_of, numpy_views, suits_numpy
from mlx_speech.ops.gelu import gelu

SLOT_MULTIPLE = 64  # a cache has so many slots, or twice as many, and so on: shapes change rarely
LARGEST_PACKED = 1 << 30  # bytes of a decoder that are kept twice, for its steps on a CPU
MAX_POSITIONS = 1 << 24  # of the encoder, times its width: they are computed as soon as a model is built


@dataclass
class ModelArgs(BaseModelArgs):
    n_mels: int = positive()
    n_audio_ctx: int = positive()
    n_audio_state: int = positive()
    n_audio_head: int = positive()
    n_audio_layer: int = layers()
    n_vocab: int = positive()
    n_text_ctx: int = positive()
    n_text_state: int = positive()
    n_text_head: int = positive()
    n_text_layer: int = layers()
    alignment_heads: list[list[int]] | None = None  # (layer, head) whose cross-attention follows the audio
    silent_padding: bool = False  # trained with digital silence behind a recording, not with zeros in its spectrogram

    def conflicts(self) -> list[str]:
        """What is wrong with the sizes beside each other."""
        problems = []
        sides = [
            ("audio", self.n_audio_state, self.n_audio_head),
            ("text", self.n_text_state, self.n_text_head),
        ]
        for side, width, heads in sides:
            if width % heads:
                problems.append(f"n_{side}_head is {heads}, which does not divide n_{side}_state, {width}")
        if self.n_audio_state != self.n_text_state or self.n_audio_state % 2 or self.n_audio_state < 4:
            problems.append(f"n_audio_state and n_text_state are {self.n_audio_state} and {self.n_text_state}")
        if self.n_audio_ctx * self.n_audio_state > MAX_POSITIONS:
            problems.append(f"n_audio_ctx is {self.n_audio_ctx}, too many positions")
        return problems


def sinusoids(length: int, channels: int) -> np.ndarray:
    """The encoder's positions, (length, channels): sines, then cosines, wavelengths from 2π to 10 000·2π."""
    increment = np.log(10000) / (channels // 2 - 1)
    angles = np.arange(length)[:, None] * np.exp(-increment * np.arange(channels // 2))
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


class Attention(nn.Module):
    """Multi-head attention, to the same sequence or to another one (openai/whisper `MultiHeadAttention`).

    Steps of all rows lie one behind the other, (rows·steps, width): MLX would bring three axes to two, and back, in
    every linear layer.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self._heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def split(self, x: mx.array, rows: int) -> mx.array:
        """(rows·steps, width) → (rows, heads, steps, width of a head)"""
        if x.shape[0] == rows:
            return x.reshape(rows, self._heads, 1, -1)
        return x.reshape(rows, -1, self._heads, x.shape[1] // self._heads).transpose(0, 2, 1, 3)

    def keys_values(self, x: mx.array, rows: int) -> tuple[mx.array, mx.array]:
        """x (rows·steps, width) → keys and values, each (rows, heads, steps, width of a head)"""
        return self.split(self.key(x), rows), self.split(self.value(x), rows)

    def __call__(self, x: mx.array, keys: mx.array, values: mx.array, mask: mx.array | str | None = None) -> mx.array:
        """Attention of every step of x to the keys of its row.

        x (rows·steps, width), keys and values (rows, heads, m, width of a head) → (rows·steps, width)
        mask : "causal", or True where a step sees a key, of a shape that broadcasts to (rows, heads, steps, m)
        """
        queries = self.split(self.query(x), keys.shape[0])
        y = attention(queries, keys, values, scale=queries.shape[-1] ** -0.5, mask=mask)
        if y.shape[2] > 1:
            y = y.transpose(0, 2, 1, 3)
        return self.out(y.reshape(x.shape))


class Block(nn.Module):
    """A layer of the encoder, or with `cross` of the decoder (openai/whisper `ResidualAttentionBlock`).

    It has no `__call__`: encoder and decoder put its parts together, each in its way.
    """

    def __init__(self, width: int, heads: int, cross: bool):
        super().__init__()
        self.attn = Attention(width, heads)
        self.attn_ln = LayerNorm(width)
        if cross:
            self.cross_attn = Attention(width, heads)
            self.cross_attn_ln = LayerNorm(width)
        self.mlp1 = nn.Linear(width, 4 * width)
        self.mlp2 = nn.Linear(4 * width, width)
        self.mlp_ln = LayerNorm(width)

    def mlp(self, x: mx.array) -> mx.array:
        """The feed-forward layers and their residual, (n, width) → (n, width)."""
        return x + self.mlp2(gelu(self.mlp1(self.mlp_ln(x))))

    def decode(self, layer: int, x: mx.array, cache: DecoderCache, mask: mx.array) -> mx.array:
        """A step as layer `layer` of a decoder, whose keys and values are added to the cache.

        x (rows·group, width), mask (rows, 1, group, slots·group) → (rows·group, width)
        """
        y = self.attn_ln(x)
        keys, values = cache.append(layer, *self.attn.keys_values(y, mask.shape[0]))
        x = x + self.attn(y, keys, values, mask)
        audio_keys, audio_values = cache.audio[layer]
        x = x + self.cross_attn(self.cross_attn_ln(x), audio_keys, audio_values)
        return self.mlp(x)

    def has_plain_weights(self) -> bool:
        """Whether no layer that takes part in a step of the decoder is quantized."""
        attn = self.attn
        cross = self.cross_attn
        linear = [attn.query, attn.key, attn.value, attn.out, cross.query, cross.out, self.mlp1, self.mlp2]
        return all(isinstance(layer, nn.Linear) for layer in linear)

    def weights(self) -> decoder_step.Weights:
        """Of a layer of the decoder, with `has_plain_weights`."""
        attn = self.attn
        cross = self.cross_attn
        return decoder_step.Weights(
            *(self.attn_ln.weight, self.attn_ln.bias),
            *(attn.query.weight, attn.query.bias),
            *(attn.key.weight, attn.value.weight, attn.value.bias),
            *(attn.out.weight, attn.out.bias),
            *(self.cross_attn_ln.weight, self.cross_attn_ln.bias),
            *(cross.query.weight, cross.query.bias, cross.out.weight, cross.out.bias),
            *(self.mlp_ln.weight, self.mlp_ln.bias),
            *(self.mlp1.weight, self.mlp1.bias, self.mlp2.weight, self.mlp2.bias),
        )


class AudioEncoder(nn.Module):
    """Two convolutions, positions, and layers of self-attention (openai/whisper `AudioEncoder`)."""

    def __init__(self, args: ModelArgs):
        super().__init__()
        width = args.n_audio_state
        self.conv1 = nn.Conv1d(args.n_mels, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.positional_embedding = mx.zeros((args.n_audio_ctx, width))
        self.blocks = [Block(width, args.n_audio_head, cross=False) for _ in range(args.n_audio_layer)]
        self.ln_post = LayerNorm(width)

    def __call__(self, mel: mx.array) -> mx.array:
        """mel (batch, 3000, n_mels) → (batch, 1500, width). Raises `OptionError` for another number of frames."""
        expected = 2 * self.positional_embedding.shape[0]
        if mel.shape[1] != expected:
            raise OptionError(f"{mel.shape[1]} frames: this encoder takes {expected}")
        x = gelu(self.conv1(mel.astype(self.conv1.weight.dtype)))
        x = gelu(self.conv2(x))
        x = x + self.positional_embedding
        shape = x.shape
        x = x.flatten(0, 1)
        for block in self.blocks:
            y = block.attn_ln(x)
            keys, values = block.attn.keys_values(y, shape[0])
            x = block.mlp(x + block.attn(y, keys, values))
        return self.ln_post(x).reshape(shape)


@dataclass
class DecoderCache:
    """Keys and values of a running batch, whose rows (chunks of audio) come and go.

    Each row has a `group` of hypotheses. At every step all hypotheses of all rows write to the same slot; once in a
    while the slots that no row needs any more are given up. Whisper adds positions to its input, so keys may lie
    anywhere, and `visible` tells which entries are a hypothesis's past: reordering beams moves no keys, and a prompt is
    kept once for the whole group.

    Its arrays are MLX's, or NumPy's where steps are computed in NumPy.

    keys, values : per layer, (rows, heads, slots·group, width of a head)
    audio : per layer, keys and values of the encoded audio, each (rows, heads, 1500, width of a head)
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
        own_keys: Any = keys
        own_values: Any = values
        if self.is_in_numpy:
            mx.eval(keys, values)
            own_keys, own_values = numpy_views([keys, values])
        for index, row in enumerate(rows):
            self.keys[layer][row, :, prompt] = own_keys[index]
            self.values[layer][row, :, prompt] = own_values[index]
        self._enter_audio(layer, rows, audio)

    def _enter_audio(self, layer: int, rows: list[int], audio: tuple[mx.array, mx.array]) -> None:
        """Part of `enter`."""
        if self.is_in_numpy:
            mx.eval(audio)
            buffers = zip(self.audio[layer], numpy_views(audio), strict=True)
            in_parallel(_copy_row, itertools.product(buffers, enumerate(rows)))
        elif rows == list(range(len(self.lengths))):  # nothing of the audio stays
            self.audio[layer] = audio
        else:
            for kept, new in zip(self.audio[layer], audio, strict=True):
                for index, row in enumerate(rows):
                    kept[row] = new[index]

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
        arrays = module_of(self.visible)
        self.visible[arrays.array(rows)] = arrays.array(visible)

    def leave(self, row: int) -> None:
        """The row is done and free: nothing of it is needed any more."""
        self.lengths[row] = 0

    def reorder(self, sources: Sequence[Sequence[int]]) -> None:
        """Every hypothesis continues that of its row whose number is in `sources`, (rows, group)."""
        arrays = module_of(self.visible)
        self.visible = arrays.take_along_axis(self.visible, arrays.array(sources)[:, :, None, None], axis=1)

    def keep(self, rows: list[int]) -> None:
        """Only these rows stay, in this order; `rows` (kept,) are their numbers."""
        index = module_of(self.visible).array(rows)
        self.keys = [keys[index] for keys in self.keys]
        self.values = [values[index] for values in self.values]
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
        arrays = module_of(self.visible)

        def moved(buffer: Any, entries: int) -> Any:
            """(rows, …, slots·entries, …) → the same with other slots, which are the third axis"""
            padding = [(0, 0)] * buffer.ndim
            padding[2] = (front * entries, back * entries)
            kept = slice((self.position - needed) * entries, self.position * entries)
            return arrays.pad(buffer[:, :, kept], padding)

        group = len(self.itself)
        self.keys = [moved(keys, group) for keys in self.keys]
        self.values = [moved(values, group) for values in self.values]
        self.visible = moved(self.visible, 1)
        self.position = front + needed


def _copy_row(part: tuple[tuple[np.ndarray, np.ndarray], tuple[int, int]]) -> None:
    """part : the buffer, and what enters it; the number of a row in the latter and in the buffer"""
    (kept, new), (index, row) = part
    kept[row] = new[index]


class TextDecoder(nn.Module):
    """Text as tokens, one after the other, given the encoded audio (openai/whisper `TextDecoder`).

    Whole texts by calling it; a running batch by `new_cache`, `prefill` and `step`.
    """

    def __init__(self, args: ModelArgs):
        super().__init__()
        width = args.n_text_state
        self._context = args.n_text_ctx
        self._audio_context = args.n_audio_ctx
        self._heads = args.n_text_head
        self.token_embedding = nn.Embedding(args.n_vocab, width)
        self.positional_embedding = mx.zeros((args.n_text_ctx, width))
        self.blocks = [Block(width, args.n_text_head, cross=True) for _ in range(args.n_text_layer)]
        self.ln = LayerNorm(width)
        self._host_weights: decoder_step.HostWeights | None = None

    def __call__(self, tokens: mx.array, encoded: mx.array) -> mx.array:
        """tokens (batch, n), encoded (batch, 1500, width) → logits (batch, n, vocabulary) in float32.

        Raises `OptionError` beyond n_text_ctx (448) tokens.
        """
        states, _ = self.cross_attention(tokens, encoded, [])
        return self._logits(states)

    def _logits(self, states: mx.array) -> mx.array:
        """(…, width) → (…, vocabulary) in float32: the embedding is the output layer too"""
        if isinstance(self.token_embedding, nn.Embedding):
            return few_rows.linear(states, self.token_embedding.weight).astype(mx.float32)
        return self.token_embedding.as_linear(states).astype(mx.float32)

    def cross_attention(
        self, tokens: mx.array, encoded: mx.array, heads: Sequence[tuple[int, int]]
    ) -> tuple[mx.array, list[mx.array]]:
        """One pass over whole texts that shows where the decoder looks (openai/whisper: hooks on `cross_attn`).

        tokens (batch, n), encoded (batch, 1500, width), heads : (layer, head) pairs, sorted

        Returns the states (batch, n, width) of which `token_embedding.as_linear` makes logits, and the scores of
        `heads` before the softmax, for each layer that has some, (batch, heads, n, 1500) in float32. Raises
        `OptionError` beyond n_text_ctx tokens.
        """
        x, scores = self._read(tokens, encoded, heads)
        return self.ln(x).reshape(*tokens.shape, -1), scores

    def cross_attention_scores(
        self, tokens: mx.array, encoded: mx.array, heads: Sequence[tuple[int, int]]
    ) -> list[mx.array]:
        """What `cross_attention` returns beside the states, without the work that only these need.

        tokens (batch, n), encoded (batch, 1500, width), heads : (layer, head) pairs, at least one

        Returns for each layer that has heads (batch, heads, n, 1500). Raises as `cross_attention`.
        """
        _, scores = self._read(tokens, encoded, heads, until=max(layer for layer, _ in heads))
        return scores

    def _read(
        self, tokens: mx.array, encoded: mx.array, heads: Sequence[tuple[int, int]], until: int | None = None
    ) -> tuple[mx.array, list[mx.array]]:
        """As `cross_attention`, but the states (batch·n, width) are not normed.

        until : a layer of whose work nothing but the scores is wanted, and that is the last; None: all of all layers
        """
        if tokens.shape[1] > self._context:
            raise OptionError(f"{tokens.shape[1]} tokens: this decoder takes {self._context}")
        rows = tokens.shape[0]
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        x = x.flatten(0, 1)
        encoded = encoded.flatten(0, 1)
        scores = []
        for layer, block in enumerate(self.blocks):
            y = block.attn_ln(x)
            x = x + block.attn(y, *block.attn.keys_values(y, rows), "causal")
            y = block.cross_attn_ln(x)
            keys, values = block.cross_attn.keys_values(encoded, rows)
            chosen = mx.array([head for its_layer, head in heads if its_layer == layer], mx.int32)
            if chosen.size:
                query = block.cross_attn.split(block.cross_attn.query(y), rows)[:, chosen].astype(mx.float32)
                key = keys[:, chosen].astype(mx.float32)
                scores.append(query * key.shape[-1] ** -0.5 @ key.swapaxes(-1, -2))
            if layer == until:
                break
            x = block.mlp(x + block.cross_attn(y, keys, values))
        return x, scores

    def new_cache(self, rows: int, group: int) -> DecoderCache:
        """An empty cache for a running batch of `rows` chunks of audio, with `group` hypotheses each."""
        host = self._weights_for_numpy()
        width = self.ln.weight.size // self._heads
        arrays: Any = mx if host is None else np
        dtype = self.ln.weight.dtype if host is None else np.float32
        keys = []
        values = []
        audio = []
        for _ in self.blocks:
            keys.append(arrays.zeros((rows, self._heads, 0, width), dtype))
            values.append(arrays.zeros((rows, self._heads, 0, width), dtype))
            audio_keys = arrays.zeros((rows, self._heads, self._audio_context, width), dtype)
            audio_values = arrays.zeros((rows, self._heads, self._audio_context, width), dtype)
            audio.append((audio_keys, audio_values))
        visible = arrays.zeros((rows, group, 0, group), arrays.bool_)
        itself = arrays.eye(group).astype(arrays.bool_)
        if host is None:
            mx.async_eval(itself)
        return DecoderCache(keys, values, audio, visible, itself, lengths=[0] * rows, host=host)

    def prefill(
        self, cache: DecoderCache, rows: list[int], encoded: mx.array, prompts: list[list[int]], positions: list[int]
    ) -> tuple[mx.array, mx.array]:
        """Chunks of audio enter rows of the cache, with their prompts.

        rows : numbers of free rows, (entering,)
        encoded : their audio, (entering, 1500, width)
        prompts : their tokens, of any lengths from 1
        positions : a place in each prompt, (entering,)

        Returns the logits after each prompt, and those after its token at the position, each (entering, vocabulary) in
        float32.
        """
        longest = max(len(prompt) for prompt in prompts)
        padding = [longest - len(prompt) for prompt in prompts]
        padded = [[0] * count + list(prompt) for count, prompt in zip(padding, prompts, strict=True)]
        index = mx.arange(longest)
        first = mx.array(padding)[:, None]
        x = self.token_embedding(mx.array(padded)) + self.positional_embedding[mx.maximum(index - first, 0)]
        past = (index <= index[:, None]) & (index >= first)[:, None]
        itself = index == index[:, None]
        mask = past | itself  # padding sees itself: with nothing to see it would become NaN
        cache.make_room(longest, 1)
        entering = len(rows)
        x = x.flatten(0, 1)
        encoded = encoded.flatten(0, 1)
        for layer, block in enumerate(self.blocks):
            y = block.attn_ln(x)
            keys, values = block.attn.keys_values(y, entering)
            audio = block.cross_attn.keys_values(encoded, entering)
            if not cache.is_in_numpy:  # else they are copied anyway
                audio = (mx.contiguous(audio[0]), mx.contiguous(audio[1]))  # every step reads them
            x = x + block.attn(y, keys, values, mask[:, None])
            x = block.mlp(x + block.cross_attn(block.cross_attn_ln(x), *audio))
            cache.enter(layer, rows, keys, values, audio)
        cache.show(rows, [len(prompt) for prompt in prompts])
        x = x.reshape(entering, longest, -1)
        asked = x[mx.arange(entering), mx.array(padding) + mx.array(positions)]
        states = mx.concatenate([x[:, -1], asked])
        if cache.host is None:
            logits = self._logits(self.ln(states))
        else:
            logits = mx.array(decoder_step.logits(np.array(states), cache.host))
        return logits[:entering], logits[entering:]

    def step(self, cache: DecoderCache, tokens: mx.array) -> mx.array:
        """One more token for every hypothesis: tokens (rows, group) → logits (rows, group, vocabulary) in float32."""
        if cache.is_in_numpy:
            return mx.array(self.step_in_numpy(cache, np.array(tokens)))
        rows, group = tokens.shape
        x = self.token_embedding(tokens.flatten()) + self.positional_embedding[mx.array(self._positions(cache))]
        cache.make_room(0, 1)
        mask = cache.see()
        for layer, block in enumerate(self.blocks):
            x = block.decode(layer, x, cache, mask)
        self._advance(cache)
        return self._logits(self.ln(x)).reshape(rows, group, -1)

    def step_in_numpy(self, cache: DecoderCache, tokens: np.ndarray) -> np.ndarray:
        """As `step`, where the cache is in NumPy."""
        weights = cache.host
        if weights is None:
            raise ValueError("the cache is MLX's: take step")
        rows, group = tokens.shape
        x = weights.embedding[tokens.ravel()] + weights.positions[self._positions(cache)]
        cache.make_room(0, 1)
        past, visible = cache.past()
        used = [row for row, length in enumerate(cache.lengths) if length]
        made = decoder_step.step(x, visible, weights, past, used)
        for layer, (keys, values) in enumerate(zip(made.keys, made.values, strict=True)):
            cache.append(layer, keys, values)
        cache.see()
        self._advance(cache)
        return made.logits.reshape(rows, group, -1)

    def _positions(self, cache: DecoderCache) -> np.ndarray:
        """Of the next token of every hypothesis, (rows·group,)."""
        # a row that is done may go on beyond the context until it leaves; nobody looks at it
        return np.repeat(np.minimum(cache.lengths, self._context - 1), len(cache.itself))

    def _advance(self, cache: DecoderCache) -> None:
        """A token has been added to every row that is in use."""
        cache.lengths = [length + 1 if length else 0 for length in cache.lengths]
        cache.position += 1

    def _weights_for_numpy(self) -> decoder_step.HostWeights | None:
        """The weights as steps in NumPy read them, made once; None where some are quantized, or not for NumPy."""
        weights = self._plain_weights()
        if weights is None:
            self._host_weights = None
        elif self._host_weights is None or not self._host_weights.is_of(weights):
            self._host_weights = None  # its memory is free for the next
            in_panels = weights.nbytes <= LARGEST_PACKED
            self._host_weights = decoder_step.HostWeights.of(weights, in_panels=in_panels)
        return self._host_weights

    def _plain_weights(self) -> decoder_step.DecoderWeights | None:
        """None where some are quantized, or not for NumPy."""
        if not isinstance(self.token_embedding, nn.Embedding):
            return None
        if not all(block.has_plain_weights() for block in self.blocks):
            return None
        weights = decoder_step.DecoderWeights(
            layers=[block.weights() for block in self.blocks],
            embedding=self.token_embedding.weight,
            positions=self.positional_embedding,
            norm=self.ln.weight,
            norm_bias=self.ln.bias,
        )
        return weights if suits_numpy(*weights.arrays) else None


class Model(BaseModel):
    """Whisper of any size: `encoder` and `decoder`, or both by calling it."""

    quantizable = True

    def __init__(self, args: ModelArgs):
        super().__init__()
        self.args = args
        self.encoder = AudioEncoder(args)
        self.decoder = TextDecoder(args)

    def quant_predicate(self, path: str, module: nn.Module) -> bool:
        """All linear layers of the blocks, and the token embedding, which is the output layer too."""
        return ".blocks." in path or path == "decoder.token_embedding"

    def quant_recipe(self, path: str) -> str:
        """Feed-forward layers bear fewer bits best; the embedding, weight for weight, bears them worst."""
        return "low" if ".mlp" in path else "high"

    def __call__(self, mel: mx.array, tokens: mx.array) -> mx.array:
        """mel (batch, 3000, n_mels), tokens (batch, n) → logits (batch, n, vocabulary)"""
        return self.decoder(tokens, self.encoder(mel))
