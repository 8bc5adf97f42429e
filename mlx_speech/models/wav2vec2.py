"""wav2vec2 with a CTC head (Baevski et al. 2020): logits over characters every 20 ms.

Source: transformers `models.wav2vec2.modeling_wav2vec2.Wav2Vec2ForCTC`. Two kinds: "base" (group norm in the first
convolution, post-norm encoder) and "large", XLSR, XLS-R and MMS (layer norm in every convolution, pre-norm encoder).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

import mlx.core as mx
import mlx.nn as nn

from mlx_speech.errors import OptionError, brief
from mlx_speech.models.base import BaseModel, BaseModelArgs, above_zero, layers, positive
from mlx_speech.models.layers import LayerNorm, TimeNorm
from mlx_speech.ops import waveform_conv
from mlx_speech.ops.attention import attention
from mlx_speech.ops.gelu import gelu
from mlx_speech.ops.grouped_conv import grouped_conv
from mlx_speech.ops.waveform_conv import Kind

CONV_LIMITS = {"min": 1, "max": 65536, "length": 32}  # of widths, kernels and strides, and of the number of layers

Count = TypeVar("Count", int, mx.array)


@dataclass
class ModelArgs(BaseModelArgs):
    vocab_size: int = positive()
    hidden_size: int = positive(768)
    num_hidden_layers: int = layers(12)
    num_attention_heads: int = positive(12)
    intermediate_size: int = positive(3072)
    conv_dim: list[int] = field(default_factory=lambda: [512] * 7, metadata=CONV_LIMITS)
    conv_kernel: list[int] = field(default_factory=lambda: [10, 3, 3, 3, 3, 2, 2], metadata=CONV_LIMITS)
    conv_stride: list[int] = field(default_factory=lambda: [5, 2, 2, 2, 2, 2, 2], metadata=CONV_LIMITS)
    conv_bias: bool = False
    feat_extract_norm: str = "group"
    do_stable_layer_norm: bool = False
    num_conv_pos_embeddings: int = positive(128)
    num_conv_pos_embedding_groups: int = positive(16)
    layer_norm_eps: float = above_zero(1e-5)
    adapter_attn_dim: int | None = positive(None)
    do_normalize: bool = False  # whether the model was trained on waveforms of zero mean and unit variance
    vocab: list[str] | None = None  # labels in the order of the logits
    blank_id: int = 0
    word_delimiter: str | None = "|"
    language: str | None = None  # whose adapter an MMS model has
    sample_rate: int = positive(16000)

    def conflicts(self) -> list[str]:
        """What is wrong with the sizes beside each other."""
        problems = []
        lengths = {len(self.conv_dim), len(self.conv_kernel), len(self.conv_stride)}
        if len(lengths) > 1 or 0 in lengths:
            problems.append("conv_dim, conv_kernel and conv_stride have different lengths, or none")
        for name in ("num_attention_heads", "num_conv_pos_embedding_groups"):
            divisor = getattr(self, name)
            if self.hidden_size % divisor:
                problems.append(f"{name} is {divisor}, which does not divide hidden_size, {self.hidden_size}")
        if self.feat_extract_norm not in ("group", "layer"):
            problems.append(f"feat_extract_norm is {brief(self.feat_extract_norm)}, neither group nor layer")
        if self.blank_id >= self.vocab_size:
            problems.append(f"blank_id is {self.blank_id}, and there are {self.vocab_size} outputs")
        return problems


class ConvLayer(nn.Module):
    """A convolution, its norm and an exact GELU (transformers `Wav2Vec2GroupNormConvLayer` and its kin)."""

    def __init__(self, args: ModelArgs, index: int):
        super().__init__()
        inputs = args.conv_dim[index - 1] if index else 1
        outputs = args.conv_dim[index]
        self.conv = nn.Conv1d(inputs, outputs, args.conv_kernel[index], args.conv_stride[index], bias=args.conv_bias)
        if args.feat_extract_norm != "group":
            self.layer_norm = LayerNorm(outputs)
        elif index == 0:
            self.layer_norm = TimeNorm(outputs)

    @property
    def layer(self) -> waveform_conv.Layer:
        """As the operation wants it."""
        stride = self.conv.stride
        bias = self.conv.bias if "bias" in self.conv else None
        if "layer_norm" not in self:
            return waveform_conv.Layer(Kind(stride, bias is not None), self.conv.weight, bias)
        norm = self.layer_norm
        axis = "time" if isinstance(norm, TimeNorm) else "channels"
        kind = Kind(stride, bias is not None, axis, norm.eps)
        return waveform_conv.Layer(kind, self.conv.weight, bias, norm.weight, norm.bias)


class FeatureExtractor(nn.Module):
    """The convolutions over the waveform."""

    def __init__(self, args: ModelArgs):
        super().__init__()
        self.conv_layers = [ConvLayer(args, index) for index in range(len(args.conv_dim))]

    def __call__(self, waveform: mx.array, lengths: mx.array | None) -> mx.array:
        """waveform (batch, samples) → (batch, frames, width)

        lengths : (batch,) steps of each row behind the first convolution that its norm counts; all, where None
        """
        return waveform_conv.frames_of(waveform, [layer.layer for layer in self.conv_layers], lengths)


class FeatureProjection(nn.Module):
    """From the width of the convolutions to that of the encoder (transformers `Wav2Vec2FeatureProjection`)."""

    def __init__(self, args: ModelArgs):
        super().__init__()
        self.layer_norm = LayerNorm(args.conv_dim[-1], eps=args.layer_norm_eps)
        self.projection = nn.Linear(args.conv_dim[-1], args.hidden_size)

    def __call__(self, x: mx.array) -> mx.array:
        """x (batch, frames, last of conv_dim) → (batch, frames, hidden)"""
        return self.projection(self.layer_norm(x))


class PositionalConv(nn.Module):
    """A grouped convolution over 128 frames, which stands for positions (transformers
    `Wav2Vec2PositionalConvEmbedding`). Its weight norm is folded at conversion."""

    def __init__(self, args: ModelArgs):
        super().__init__()
        width = args.hidden_size
        kernel = args.num_conv_pos_embeddings
        groups = args.num_conv_pos_embedding_groups
        self.conv = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=groups)
        self._groups = groups
        self._surplus = 1 - kernel % 2  # an even kernel gives one frame too many

    def __call__(self, x: mx.array) -> mx.array:
        """x (batch, frames, hidden) → (batch, frames, hidden)"""
        conv = self.conv
        y = grouped_conv(x, conv.weight, conv.bias, groups=self._groups, padding=conv.padding)
        return gelu(y[:, : y.shape[1] - self._surplus])


class Attention(nn.Module):
    """Multi-head self-attention (transformers `Wav2Vec2Attention`)."""

    def __init__(self, args: ModelArgs):
        super().__init__()
        width = args.hidden_size
        self._heads = args.num_attention_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def split(self, x: mx.array) -> mx.array:
        """(batch, frames, hidden) → (batch, heads, frames, width of a head)"""
        return x.reshape(*x.shape[:2], self._heads, -1).transpose(0, 2, 1, 3)

    def __call__(self, x: mx.array, mask: mx.array | None) -> mx.array:
        """x (batch, frames, hidden) → (batch, frames, hidden)

        mask : True where a frame is seen, (batch, 1, 1, frames); all are, where None
        """
        queries = self.split(self.q_proj(x))
        keys = self.split(self.k_proj(x))
        values = self.split(self.v_proj(x))
        y = attention(queries, keys, values, scale=queries.shape[-1] ** -0.5, mask=mask)
        return self.out_proj(y.transpose(0, 2, 1, 3).reshape(x.shape))


class FeedForward(nn.Module):
    """Two linear layers (transformers `Wav2Vec2FeedForward`)."""

    def __init__(self, args: ModelArgs):
        super().__init__()
        self.intermediate_dense = nn.Linear(args.hidden_size, args.intermediate_size)
        self.output_dense = nn.Linear(args.intermediate_size, args.hidden_size)

    def __call__(self, x: mx.array) -> mx.array:
        """x (batch, frames, hidden) → (batch, frames, hidden)"""
        return self.output_dense(gelu(self.intermediate_dense(x)))


class Adapter(nn.Module):
    """The per-language layer of MMS (Pratap et al. 2023)."""

    def __init__(self, args: ModelArgs):
        super().__init__()
        width = args.hidden_size
        inner = args.adapter_attn_dim or 0
        self.norm = LayerNorm(width)
        self.linear_1 = nn.Linear(width, inner)
        self.linear_2 = nn.Linear(inner, width)

    def __call__(self, x: mx.array) -> mx.array:
        """x (batch, frames, hidden) → (batch, frames, hidden)"""
        return self.linear_2(nn.relu(self.linear_1(self.norm(x))))


class EncoderLayer(nn.Module):
    """Attention and feed-forward, with norms behind ("base", transformers `Wav2Vec2EncoderLayer`) or before them
    ("large", `Wav2Vec2EncoderLayerStableLayerNorm`)."""

    def __init__(self, args: ModelArgs):
        super().__init__()
        self._pre_norm = args.do_stable_layer_norm
        self.attention = Attention(args)
        self.layer_norm = LayerNorm(args.hidden_size, eps=args.layer_norm_eps)
        self.feed_forward = FeedForward(args)
        self.final_layer_norm = LayerNorm(args.hidden_size, eps=args.layer_norm_eps)
        if args.adapter_attn_dim is not None and args.do_stable_layer_norm:
            self.adapter_layer = Adapter(args)

    def __call__(self, x: mx.array, mask: mx.array | None) -> mx.array:
        """x (batch, frames, hidden), mask (batch, 1, 1, frames) → (batch, frames, hidden)"""
        if not self._pre_norm:
            x = self.layer_norm(x + self.attention(x, mask))
            return self.final_layer_norm(x + self.feed_forward(x))
        x = x + self.attention(self.layer_norm(x), mask)
        x = x + self.feed_forward(self.final_layer_norm(x))
        if "adapter_layer" in self:
            x = x + self.adapter_layer(x)
        return x


class Encoder(nn.Module):
    """Positions and the layers (transformers `Wav2Vec2Encoder` and `Wav2Vec2EncoderStableLayerNorm`)."""

    def __init__(self, args: ModelArgs):
        super().__init__()
        self._pre_norm = args.do_stable_layer_norm
        self.pos_conv_embed = PositionalConv(args)
        self.layer_norm = LayerNorm(args.hidden_size, eps=args.layer_norm_eps)
        self.layers = [EncoderLayer(args) for _ in range(args.num_hidden_layers)]

    def __call__(self, x: mx.array, lengths: mx.array | None) -> mx.array:
        """x (batch, frames, hidden) → (batch, frames, hidden)

        lengths : (batch,) frames of each row that are its own; all, where None
        """
        mask = None
        if lengths is not None:
            valid = mx.arange(x.shape[1]) < lengths[:, None]
            x = mx.where(valid[..., None], x, 0)  # what a row alone would see past its end: zeros
            mask = valid[:, None, None]
        x = x + self.pos_conv_embed(x)
        if not self._pre_norm:
            x = self.layer_norm(x)
        for layer in self.layers:
            x = layer(x, mask)
        if self._pre_norm:
            x = self.layer_norm(x)
        return x


class Wav2Vec2(nn.Module):
    """All but the CTC head, as the original's parameters are named; `Model` calls its parts."""

    def __init__(self, args: ModelArgs):
        super().__init__()
        self.feature_extractor = FeatureExtractor(args)
        self.feature_projection = FeatureProjection(args)
        self.encoder = Encoder(args)


class Model(BaseModel):
    """wav2vec2 with a CTC head (transformers `Wav2Vec2ForCTC`)."""

    quantizable = True

    def __init__(self, args: ModelArgs):
        super().__init__()
        self.args = args
        self.wav2vec2 = Wav2Vec2(args)
        self.lm_head = nn.Linear(args.hidden_size, args.vocab_size)

    def quant_predicate(self, path: str, module: nn.Module) -> bool:
        """The encoder's attention and feed-forward layers; what decides times stays in full precision."""
        return ".attention." in path or ".feed_forward." in path

    def quant_recipe(self, path: str) -> str:
        """Feed-forward layers bear fewer bits best."""
        return "high" if ".attention." in path else "low"

    def num_frames(self, samples: Count) -> Count:
        """How many frames `samples` give: 400 → 1, 16 000 → 49, 480 000 → 1 499; a number, or (batch,) of them."""
        for kernel, stride in zip(self.args.conv_kernel, self.args.conv_stride, strict=True):
            samples = (samples - kernel) // stride + 1
        return samples

    def __call__(self, waveform: mx.array, lengths: mx.array | None = None) -> mx.array:
        """waveform (batch, samples) → logits (batch, frames, vocabulary)

        A model with `args.do_normalize` was trained on `features.normalize(waveform)`; it is for the caller to apply.
        lengths : (batch,) samples of each row that are its own; the rest is padding, which changes nothing: a row's
        first `num_frames(length)` logits are those it has alone (also in the group-norm kind, whose statistics run
        over time).

        Raises `OptionError` where the samples are too few for a frame, 400 at the usual kernels: the caller has to pad
        them.
        """
        samples = waveform.shape[1]
        if self.num_frames(samples) < 1:
            raise OptionError(f"{samples} samples are too few for wav2vec2: pad them with zeros to 400 or more")
        waveform = waveform.astype(self.wav2vec2.feature_extractor.conv_layers[0].conv.weight.dtype)
        first_lengths = None
        if lengths is not None:
            first_lengths = (lengths - self.args.conv_kernel[0]) // self.args.conv_stride[0] + 1
            lengths = self.num_frames(lengths)
        x = self.wav2vec2.feature_extractor(waveform, first_lengths)
        x = self.wav2vec2.feature_projection(x)
        x = self.wav2vec2.encoder(x, lengths)
        return self.lm_head(x)
