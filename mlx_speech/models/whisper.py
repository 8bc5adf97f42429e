"""Whisper (Radford et al. 2022): audio encoder and text decoder of every size, turbo and distil included.

Source: openai/whisper `model.py`; parameters are named as there, with mlp.0 and mlp.2 as mlp1 and mlp2 (mlx-whisper's
names). What the decoder keeps between its steps is in `whisper_cache`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_speech.errors import OptionError
from mlx_speech.models.base import BaseModel, BaseModelArgs, layers, positive
from mlx_speech.models.layers import LayerNorm
from mlx_speech.models.whisper_cache import DecoderCache
from mlx_speech.ops import decoder_step, encoder_layers, few_rows
from mlx_speech.ops.attention import attention
from mlx_speech.ops.cpu import suits_numpy
from mlx_speech.ops.gelu import gelu

LARGEST_PACKED = 1 << 30  # bytes of an encoder, or a decoder, that are kept twice, for a CPU
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

    def keys_values_of_audio(self, x: mx.array) -> tuple[mx.array, mx.array]:
        """x (rows, steps, width) → as `keys_values`

        In float32 on a CPU they are views of (rows, heads, width of a head, steps), which a step of the decoder in
        NumPy reads half as fast again; a product gives them in either order.
        """
        rows, steps, _ = x.shape
        is_plain = isinstance(self.key, nn.Linear) and isinstance(self.value, nn.Linear)
        if not is_plain or not suits_numpy(x, self.key.weight):
            return self.keys_values(x.flatten(0, 1), rows)
        columns = x.swapaxes(1, 2)
        keys = self.key.weight @ columns
        values = self.value.weight @ columns + self.value.bias[:, None]
        shape = (rows, self._heads, -1, steps)
        return keys.reshape(shape).swapaxes(2, 3), values.reshape(shape).swapaxes(2, 3)

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
        """Whether none is quantized of the linear layers that the encoder, or a step of the decoder, needs."""
        attn = self.attn
        linear = [attn.query, attn.key, attn.value, attn.out, self.mlp1, self.mlp2]
        if "cross_attn" in self:
            linear += [self.cross_attn.query, self.cross_attn.out]
        return all(isinstance(layer, nn.Linear) for layer in linear)

    def encoder_weights(self) -> encoder_layers.Weights:
        """Of a layer of the encoder, with `has_plain_weights`."""
        attn = self.attn
        return encoder_layers.Weights(
            *(self.attn_ln.weight, self.attn_ln.bias),
            *(attn.query.weight, attn.query.bias),
            *(attn.key.weight, attn.value.weight, attn.value.bias),
            *(attn.out.weight, attn.out.bias),
            *(self.mlp_ln.weight, self.mlp_ln.bias),
            *(self.mlp1.weight, self.mlp1.bias, self.mlp2.weight, self.mlp2.bias),
        )

    def decoder_weights(self) -> decoder_step.Weights:
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
        self._layers_in_numpy = encoder_layers.EncoderLayers(args.n_audio_head)

    def __call__(self, mel: mx.array) -> mx.array:
        """mel (batch, 3000, n_mels) → (batch, 1500, width). Raises `OptionError` for another number of frames."""
        expected = 2 * self.positional_embedding.shape[0]
        if mel.shape[1] != expected:
            raise OptionError(f"{mel.shape[1]} frames: this encoder takes {expected}")
        x = gelu(self.conv1(mel.astype(self.conv1.weight.dtype)))
        x = gelu(self.conv2(x))
        x = x + self.positional_embedding
        weights = self._plain_weights(x)
        if weights is not None:
            return self.ln_post(self._layers_in_numpy(x, weights))
        self._layers_in_numpy.forget()
        shape = x.shape
        x = x.flatten(0, 1)
        for block in self.blocks:
            y = block.attn_ln(x)
            keys, values = block.attn.keys_values(y, shape[0])
            x = block.mlp(x + block.attn(y, keys, values))
        return self.ln_post(x).reshape(shape)

    def _plain_weights(self, x: mx.array) -> list[encoder_layers.Weights] | None:
        """Of all layers; None where some are quantized, not for NumPy, as x may be, or too large to be packed."""
        if not all(block.has_plain_weights() for block in self.blocks):
            return None
        weights = [block.encoder_weights() for block in self.blocks]
        arrays = [array for of_layer in weights for array in of_layer]
        if not suits_numpy(x, *arrays) or sum(array.nbytes for array in arrays) > LARGEST_PACKED:
            return None
        return weights


class TextDecoder(nn.Module):
    """Text as tokens, one after the other, given the encoded audio (openai/whisper `TextDecoder`).

    Whole texts by calling it; a running batch by `new_cache`, `prefill` and `step`, or `step_in_numpy`.
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
        self._packed: decoder_step.HostWeights | None = None  # made once, as long as the weights are the same

    def __call__(self, tokens: mx.array, encoded: mx.array) -> mx.array:
        """tokens (batch, n), encoded (batch, 1500, width) → logits (batch, n, vocabulary) in float32.

        Raises `OptionError` beyond n_text_ctx (448) tokens.
        """
        states, _ = self.cross_attention(tokens, self.read_audio(encoded), [])
        return self._logits(states)

    def read_audio(self, encoded: mx.array) -> Iterator[tuple[mx.array, mx.array]]:
        """What each layer attends to of encoded audio, one layer after the other.

        encoded (batch, 1500, width) → keys and values, each (batch, heads, 1500, width of a head)
        """
        for block in self.blocks:
            yield block.cross_attn.keys_values_of_audio(encoded)

    def _logits(self, states: mx.array) -> mx.array:
        """(…, width) → (…, vocabulary) in float32: the embedding is the output layer too"""
        if isinstance(self.token_embedding, nn.Embedding):
            return few_rows.linear(states, self.token_embedding.weight).astype(mx.float32)
        return self.token_embedding.as_linear(states).astype(mx.float32)

    def cross_attention(
        self, tokens: mx.array, audio: Iterable[tuple[mx.array, mx.array]], heads: Sequence[tuple[int, int]]
    ) -> tuple[mx.array, list[mx.array]]:
        """One pass over whole texts that shows where the decoder looks (openai/whisper: hooks on `cross_attn`).

        tokens (batch, n), audio : as of `read_audio`, heads : (layer, head) pairs, sorted

        Returns the states (batch, n, width) of which `token_embedding.as_linear` makes logits, and the scores of
        `heads` before the softmax, for each layer that has some, (batch, heads, n, 1500) in float32. Raises
        `OptionError` beyond n_text_ctx tokens.
        """
        x, scores = self._read(tokens, audio, heads)
        return self.ln(x).reshape(*tokens.shape, -1), scores

    def cross_attention_scores(
        self, tokens: mx.array, audio: Iterable[tuple[mx.array, mx.array]], heads: Sequence[tuple[int, int]]
    ) -> list[mx.array]:
        """What `cross_attention` returns beside the states, without the work that only these need.

        tokens (batch, n), audio : as of `read_audio`, heads : (layer, head) pairs, at least one

        Returns for each layer that has heads (batch, heads, n, 1500). Raises as `cross_attention`.
        """
        _, scores = self._read(tokens, audio, heads, until=max(layer for layer, _ in heads))
        return scores

    def _read(
        self,
        tokens: mx.array,
        audio: Iterable[tuple[mx.array, mx.array]],
        heads: Sequence[tuple[int, int]],
        until: int | None = None,
    ) -> tuple[mx.array, list[mx.array]]:
        """As `cross_attention`, but the states (batch·n, width) are not normed.

        until : a layer of whose work nothing but the scores is wanted, and that is the last; None: all of all layers
        """
        if tokens.shape[1] > self._context:
            raise OptionError(f"{tokens.shape[1]} tokens: this decoder takes {self._context}")
        rows = tokens.shape[0]
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        x = x.flatten(0, 1)
        scores = []
        for layer, (block, (keys, values)) in enumerate(zip(self.blocks, audio, strict=True)):
            y = block.attn_ln(x)
            x = x + block.attn(y, *block.attn.keys_values(y, rows), "causal")
            y = block.cross_attn_ln(x)
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
        module: Any = mx if host is None else np
        dtype = self.ln.weight.dtype if host is None else np.float32
        keys = []
        values = []
        audio = []
        for _ in self.blocks:
            keys.append(module.zeros((rows, self._heads, 0, width), dtype))
            values.append(module.zeros((rows, self._heads, 0, width), dtype))
            audio.append((self._no_audio(rows, host), self._no_audio(rows, host)))
        visible = module.zeros((rows, group, 0, group), module.bool_)
        itself = module.eye(group).astype(module.bool_)
        if host is None:
            mx.async_eval(itself)
        return DecoderCache(keys, values, audio, visible, itself, lengths=[0] * rows, host=host)

    def _no_audio(self, rows: int, host: decoder_step.HostWeights | None) -> Any:
        """Keys, or values, of rows that nobody has entered."""
        if host is not None:
            return [None] * rows
        width = self.ln.weight.size // self._heads
        return mx.zeros((rows, self._heads, self._audio_context, width), self.ln.weight.dtype)

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
        for layer, (block, audio) in enumerate(zip(self.blocks, self.read_audio(encoded), strict=True)):
            y = block.attn_ln(x)
            keys, values = block.attn.keys_values(y, entering)
            if not cache.is_in_numpy:  # else they are copied anyway
                audio = (mx.contiguous(audio[0]), mx.contiguous(audio[1]))  # every step reads them
            x = x + block.attn(y, keys, values, mask[:, None])
            x = block.mlp(x + block.cross_attn(block.cross_attn_ln(x), *audio))
            cache.enter(layer, rows, keys, values, audio)
        cache.show(rows, [len(prompt) for prompt in prompts])
        x = x.reshape(entering, longest, -1)
        asked = x[mx.arange(entering), mx.array(padding) + mx.array(positions)]
        states = mx.concatenate([x[:, -1], asked])
        if cache.host is not None:
            logits = mx.array(decoder_step.logits(np.array(states), cache.host))
        else:
            logits = self._logits(self.ln(states))
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
        """The weights as steps in NumPy read them; None where some are quantized, or not for NumPy."""
        weights = self._plain_weights()
        if weights is None:
            self._packed = None
            return None
        if weights.nbytes > LARGEST_PACKED:
            self._packed = None
            return decoder_step.HostWeights.of(weights, in_panels=False)
        packed = self._packed
        if packed is None or not packed.is_of(weights):
            packed = self._packed = None  # its memory is free for the next
            packed = decoder_step.HostWeights.of(weights, in_panels=True)
            self._packed = packed
        return packed

    def _plain_weights(self) -> decoder_step.DecoderWeights | None:
        """None where some are quantized, or not for NumPy."""
        if not isinstance(self.token_embedding, nn.Embedding):
            return None
        if not all(block.has_plain_weights() for block in self.blocks):
            return None
        weights = decoder_step.DecoderWeights(
            layers=[block.decoder_weights() for block in self.blocks],
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
