"""Whisper (Radford et al. 2022): audio encoder and text decoder of every size, turbo and distil included.

Source: openai/whisper `model.py`; parameters are named as there, with mlp.0 and mlp.2 as mlp1 and mlp2 (mlx-whisper's
names). The decoder keeps its keys and values in buffers of fixed size, and those of the cross-attention once per chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_speech.errors import OptionError
from mlx_speech.models.base import BaseModel, BaseModelArgs, layers, positive
from mlx_speech.ops.attention import attention
from mlx_speech.ops.gelu import gelu

SLOTS = 64  # the size of a window is a multiple: shapes change rarely
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
        said = []
        for side in ("audio", "text"):
            width, heads = getattr(self, f"n_{side}_state"), getattr(self, f"n_{side}_head")
            if width % heads:
                said.append(f"n_{side}_head is {heads}, which does not divide n_{side}_state, {width}")
        if self.n_audio_state != self.n_text_state or self.n_audio_state % 2 or self.n_audio_state < 4:
            said.append(f"n_audio_state and n_text_state are {self.n_audio_state} and {self.n_text_state}")
        if self.n_audio_ctx * self.n_audio_state > MAX_POSITIONS:
            said.append(f"n_audio_ctx is {self.n_audio_ctx}, too many positions")
        return said


def sinusoids(length: int, channels: int) -> np.ndarray:
    """The encoder's positions, (length, channels): sines, then cosines, wavelengths from 2π to 10 000·2π."""
    increment = np.log(10000) / (channels // 2 - 1)
    angles = np.arange(length)[:, None] * np.exp(-increment * np.arange(channels // 2))
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self._heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def split(self, x: mx.array) -> mx.array:
        """(batch, steps, width) → (batch, heads, steps, width of a head)"""
        return x.reshape(x.shape[0], x.shape[1], self._heads, -1).transpose(0, 2, 1, 3)

    def keys_values(self, x: mx.array) -> tuple[mx.array, mx.array]:
        return self.split(self.key(x)), self.split(self.value(x))

    def __call__(self, x: mx.array, keys: mx.array, values: mx.array, mask: mx.array | str | None = None) -> mx.array:
        q = self.split(self.query(x))
        y = attention(q, keys, values, scale=q.shape[-1] ** -0.5, mask=mask)
        return self.out(y.transpose(0, 2, 1, 3).reshape(x.shape))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, cross: bool):
        super().__init__()
        self.attn = Attention(width, heads)
        self.attn_ln = nn.LayerNorm(width)
        if cross:
            self.cross_attn = Attention(width, heads)
            self.cross_attn_ln = nn.LayerNorm(width)
        self.mlp1 = nn.Linear(width, 4 * width)
        self.mlp2 = nn.Linear(4 * width, width)
        self.mlp_ln = nn.LayerNorm(width)

    def mlp(self, x: mx.array) -> mx.array:
        return x + self.mlp2(gelu(self.mlp1(self.mlp_ln(x))))

    def decode(self, layer: int, x: mx.array, window: Window, mask: mx.array | str | None) -> mx.array:
        """As layer `layer` of a decoder, whose keys and values are added to the window."""
        y = self.attn_ln(x)
        x = x + self.attn(y, *window.append(layer, *self.attn.keys_values(y)), mask)
        return self.mlp(x + self.cross_attn(self.cross_attn_ln(x), *window.audio[layer]))


class AudioEncoder(nn.Module):
    def __init__(self, args: ModelArgs):
        super().__init__()
        width = args.n_audio_state
        self.conv1 = nn.Conv1d(args.n_mels, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.positional_embedding = mx.zeros((args.n_audio_ctx, width))
        self.blocks = [Block(width, args.n_audio_head, cross=False) for _ in range(args.n_audio_layer)]
        self.ln_post = nn.LayerNorm(width)

    def __call__(self, mel: mx.array) -> mx.array:
        """mel (batch, 3000, n_mels) → (batch, 1500, width). Raises `OptionError` for another number of frames."""
        if mel.shape[1] != 2 * self.positional_embedding.shape[0]:
            raise OptionError(f"{mel.shape[1]} frames: this encoder takes {2 * self.positional_embedding.shape[0]}")
        x = gelu(self.conv1(mel.astype(self.conv1.weight.dtype)))
        x = gelu(self.conv2(x))
        x = x + self.positional_embedding
        for block in self.blocks:
            y = block.attn_ln(x)
            x = block.mlp(x + block.attn(y, *block.attn.keys_values(y)))
        return self.ln_post(x)


@dataclass
class Window:
    """What the decoder remembers of a running batch: jobs (chunks of audio) that come and go, each with a `group` of
    hypotheses. At every step all of them write to the same slot; once in a while what is too old is cut off.

    Whisper adds positions to its input, so keys may lie anywhere, and a hypothesis is told by `visible` which entries
    are its past: reordering beams moves no keys, and a prompt is kept once for the whole group.

    keys, values : per layer, (jobs, heads, slots, group, width of a head)
    audio : per layer, the keys and values of the encoded audio, (jobs, heads, 1500, width of a head)
    visible : (jobs, group, slots, group), True where a hypothesis sees the entry of a slot that another one wrote
    lengths : the tokens of each job so far, 0 where there is none
    position : the slot that is written next
    """

    keys: list[mx.array]
    values: list[mx.array]
    audio: list[tuple[mx.array, mx.array]]
    visible: mx.array
    lengths: list[int]
    position: int = 0

    def append(self, layer: int, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Put in a step, (jobs, heads, group, width); returns all entries, (jobs, heads, slots·group, width)."""
        self.keys[layer][:, :, self.position], self.values[layer][:, :, self.position] = keys, values
        return self.keys[layer].flatten(2, 3), self.values[layer].flatten(2, 3)

    def enter(self, layer: int, jobs: list[int], keys: mx.array, values: mx.array, audio: tuple) -> None:
        """Put in prompts, (len(jobs), heads, steps, width), which end before `position`, and the audio."""
        start = self.position - keys.shape[2]
        for row, job in enumerate(jobs):
            self.keys[layer][job, :, start : self.position, 0] = keys[row]
            self.values[layer][job, :, start : self.position, 0] = values[row]
            for buffer, new in zip(self.audio[layer], audio, strict=True):
                buffer[job] = new[row]

    def show(self, jobs: list[int], lengths: list[int]) -> None:
        """Of the jobs that entered, only the prompts are seen, by the whole group."""
        slots, group = self.visible.shape[2:]
        visible = np.zeros((len(jobs), group, slots, group), dtype=bool)
        for row, (job, length) in enumerate(zip(jobs, lengths, strict=True)):
            visible[row, :, self.position - length : self.position, 0] = True
            self.lengths[job] = length
        self.visible[mx.array(jobs)] = mx.array(visible)

    def leave(self, job: int) -> None:
        """The job is done: nothing of it is kept."""
        self.lengths[job] = 0

    def reorder(self, sources: mx.array) -> None:
        """Every hypothesis continues that of its job in `sources`, (jobs, group)."""
        self.visible = mx.take_along_axis(self.visible, sources[:, :, None, None], axis=1)

    def keep(self, jobs: list[int]) -> None:
        """Only these jobs stay, in this order."""
        index = mx.array(jobs)
        self.keys, self.values = ([buffer[index] for buffer in buffers] for buffers in (self.keys, self.values))
        self.audio = [(keys[index], values[index]) for keys, values in self.audio]
        self.visible, self.lengths = self.visible[index], [self.lengths[job] for job in jobs]

    def make_room(self, before: int, after: int) -> None:
        """Have as many slots before `position`, and behind it; slots that no job needs any more are given up."""
        if before <= self.position <= self.visible.shape[2] - after:
            return
        kept = min(self.position, max(self.lengths))
        front = max(0, before - kept)
        slots = -(-(front + kept + max(after, SLOTS // 2)) // SLOTS) * SLOTS

        def moved(buffer: mx.array) -> mx.array:
            pad = [(0, 0), (0, 0), (front, slots - front - kept), *[(0, 0)] * (buffer.ndim - 3)]
            return mx.pad(buffer[:, :, self.position - kept : self.position], pad)

        self.keys, self.values = ([moved(buffer) for buffer in buffers] for buffers in (self.keys, self.values))
        self.visible = moved(self.visible)
        self.position = front + kept


class TextDecoder(nn.Module):
    def __init__(self, args: ModelArgs):
        super().__init__()
        width = args.n_text_state
        self._context, self._audio_context, self._heads = args.n_text_ctx, args.n_audio_ctx, args.n_text_head
        self.token_embedding = nn.Embedding(args.n_vocab, width)
        self.positional_embedding = mx.zeros((args.n_text_ctx, width))
        self.blocks = [Block(width, args.n_text_head, cross=True) for _ in range(args.n_text_layer)]
        self.ln = nn.LayerNorm(width)

    def __call__(self, tokens: mx.array, encoded: mx.array) -> mx.array:
        """tokens (batch, n), encoded (batch, 1500, width) → logits (batch, n, vocabulary) in float32.

        Raises `OptionError` beyond n_text_ctx (448) tokens.
        """
        states, _ = self.cross_attention(tokens, encoded, [])
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
        if tokens.shape[1] > self._context:
            raise OptionError(f"{tokens.shape[1]} tokens: this decoder takes {self._context}")
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        scores = []
        for layer, block in enumerate(self.blocks):
            y = block.attn_ln(x)
            x = x + block.attn(y, *block.attn.keys_values(y), "causal")
            y = block.cross_attn_ln(x)
            keys, values = block.cross_attn.keys_values(encoded)
            chosen = mx.array([head for at, head in heads if at == layer], mx.int32)
            if chosen.size:
                query = block.cross_attn.split(block.cross_attn.query(y))[:, chosen].astype(mx.float32)
                key = keys[:, chosen].astype(mx.float32)
                scores.append(query * key.shape[-1] ** -0.5 @ key.swapaxes(-1, -2))
            x = block.mlp(x + block.cross_attn(y, keys, values))
        return self.ln(x), scores

    def new_window(self, jobs: int, group: int) -> Window:
        """An empty window for a running batch."""
        width, heads, dtype = self.ln.weight.size, self._heads, self.ln.weight.dtype

        def empty(*shape: int) -> mx.array:
            return mx.zeros((jobs, heads, *shape, width // heads), dtype)

        audio = [(empty(self._audio_context), empty(self._audio_context)) for _ in self.blocks]
        keys, values = ([empty(0, group) for _ in self.blocks] for _ in range(2))
        return Window(keys, values, audio, mx.zeros((jobs, group, 0, group), mx.bool_), [0] * jobs)

    def prefill(
        self, window: Window, jobs: list[int], encoded: mx.array, prompts: list[list[int]], at: list[int]
    ) -> tuple[mx.array, mx.array]:
        """Jobs enter the window: their audio, (len(jobs), 1500, width), and their prompts, of any lengths.

        Returns the logits after each prompt, and those after its token with the index in `at`, (len(jobs), vocabulary)
        """
        longest = max(map(len, prompts))
        pads = [longest - len(prompt) for prompt in prompts]
        tokens = mx.array([[0] * pad + list(prompt) for pad, prompt in zip(pads, prompts, strict=True)])
        index, first = mx.arange(longest), mx.array(pads)[:, None]
        x = self.token_embedding(tokens) + self.positional_embedding[mx.maximum(index - first, 0)]
        # padding sees itself: with nothing to see it would become NaN
        mask = ((index <= index[:, None]) & (index >= first)[:, None]) | (index == index[:, None])
        window.make_room(longest, 1)
        for layer, block in enumerate(self.blocks):
            y = block.attn_ln(x)
            keys, values = block.attn.keys_values(y)
            audio = block.cross_attn.keys_values(encoded)
            x = x + block.attn(y, keys, values, mask[:, None])
            x = block.mlp(x + block.cross_attn(block.cross_attn_ln(x), *audio))
            window.enter(layer, jobs, keys, values, audio)
        window.show(jobs, [len(prompt) for prompt in prompts])
        x = mx.stack([x[:, -1], x[mx.arange(len(jobs)), mx.array(pads) + mx.array(at)]])
        last, asked = self.token_embedding.as_linear(self.ln(x)).astype(mx.float32)
        return last, asked

    def step(self, window: Window, tokens: mx.array) -> mx.array:
        """One more token for every hypothesis, (jobs, group) → logits (jobs, group, vocabulary) in float32."""
        jobs, group = tokens.shape
        # a job that is done may go on beyond the context until it leaves; nobody looks at it
        positions = mx.array([min(length, self._context - 1) for length in window.lengths])
        x = self.token_embedding(tokens) + self.positional_embedding[positions][:, None]
        window.make_room(0, 1)
        window.visible[:, :, window.position] = mx.eye(group).astype(mx.bool_)
        mask = window.visible.reshape(jobs, 1, group, -1)
        for layer, block in enumerate(self.blocks):
            x = block.decode(layer, x, window, mask)
        window.lengths = [length + 1 if length else 0 for length in window.lengths]
        window.position += 1
        return self.token_embedding.as_linear(self.ln(x)).astype(mx.float32)


class Model(BaseModel):
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
