"""wav2vec2 with a CTC head (Baevski et al. 2020): logits over characters every 20 ms.

Source: transformers `models.wav2vec2.modeling_wav2vec2.Wav2Vec2ForCTC`. Two kinds: "base" (group norm in the first
convolution, post-norm encoder) and "large", XLSR, XLS-R and MMS (layer norm in every convolution, pre-norm encoder).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_speech.errors import OptionError, brief
from mlx_speech.models.base import BaseModel, BaseModelArgs, above_zero, layers, positive
from mlx_speech.models.layers import TimeNorm
from mlx_speech.ops.attention import attention
from mlx_speech.ops.gelu import gelu

_SIZES = {"min": 1, "max": 65536, "length": 32}


@dataclass
class ModelArgs(BaseModelArgs):
    vocab_size: int = positive()
    hidden_size: int = positive(768)
    num_hidden_layers: int = layers(12)
    num_attention_heads: int = positive(12)
    intermediate_size: int = positive(3072)
    conv_dim: list[int] = field(default_factory=lambda: [512] * 7, metadata=_SIZES)
    conv_kernel: list[int] = field(default_factory=lambda: [10, 3, 3, 3, 3, 2, 2], metadata=_SIZES)
    conv_stride: list[int] = field(default_factory=lambda: [5, 2, 2, 2, 2, 2, 2], metadata=_SIZES)
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
        said, width = [], self.hidden_size
        lengths = {len(self.conv_dim), len(self.conv_kernel), len(self.conv_stride)}
        if len(lengths) > 1 or 0 in lengths:
            said.append("conv_dim, conv_kernel and conv_stride have different lengths, or none")
        for name in ("num_attention_heads", "num_conv_pos_embedding_groups"):
            if width % getattr(self, name):
                said.append(f"{name} is {getattr(self, name)}, which does not divide hidden_size, {width}")
        if self.feat_extract_norm not in ("group", "layer"):
            said.append(f"feat_extract_norm is {brief(self.feat_extract_norm)}, neither group nor layer")
        if self.blank_id >= self.vocab_size:
            said.append(f"blank_id is {self.blank_id}, and there are {self.vocab_size} outputs")
        return said


class ConvLayer(nn.Module):
    """A convolution, its norm and an exact GELU. Frames past a row's own length never reach the statistics."""

    def __init__(self, args: ModelArgs, index: int):
        super().__init__()
        inputs, outputs = args.conv_dim[index - 1] if index else 1, args.conv_dim[index]
        self.conv = nn.Conv1d(inputs, outputs, args.conv_kernel[index], args.conv_stride[index], bias=args.conv_bias)
        if args.feat_extract_norm != "group":
            self.layer_norm = nn.LayerNorm(outputs)
        elif index == 0:
            self.layer_norm = TimeNorm(outputs)

    def __call__(self, x: mx.array, lengths: mx.array | None) -> mx.array:
        x = self.conv(x)
        if "layer_norm" in self:
            norm = self.layer_norm
            x = norm(x, lengths) if isinstance(norm, TimeNorm) else norm(x)
        return gelu(x)


class FeatureExtractor(nn.Module):
    def __init__(self, args: ModelArgs):
        super().__init__()
        self.conv_layers = [ConvLayer(args, index) for index in range(len(args.conv_dim))]


class FeatureProjection(nn.Module):
    def __init__(self, args: ModelArgs):
        super().__init__()
        self.layer_norm = nn.LayerNorm(args.conv_dim[-1], eps=args.layer_norm_eps)
        self.projection = nn.Linear(args.conv_dim[-1], args.hidden_size)

    def __call__(self, x: mx.array) -> mx.array:
        return self.projection(self.layer_norm(x))


class PositionalConv(nn.Module):
    """A grouped convolution over 128 frames; its weight norm is folded at conversion."""

    def __init__(self, args: ModelArgs):
        super().__init__()
        kernel, groups = args.num_conv_pos_embeddings, args.num_conv_pos_embedding_groups
        self.conv = nn.Conv1d(args.hidden_size, args.hidden_size, kernel, padding=kernel // 2, groups=groups)
        self._surplus = 1 - kernel % 2  # an even kernel gives one frame too many

    def __call__(self, x: mx.array) -> mx.array:
        y = self.conv(x)
        return gelu(y[:, : y.shape[1] - self._surplus])


class Attention(nn.Module):
    def __init__(self, args: ModelArgs):
        super().__init__()
        width = args.hidden_size
        self._heads = args.num_attention_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def __call__(self, x: mx.array, mask: mx.array | None) -> mx.array:
        shape = (*x.shape[:2], self._heads, -1)
        q, k, v = (layer(x).reshape(shape).transpose(0, 2, 1, 3) for layer in (self.q_proj, self.k_proj, self.v_proj))
        y = attention(q, k, v, scale=q.shape[-1] ** -0.5, mask=mask)
        return self.out_proj(y.transpose(0, 2, 1, 3).reshape(x.shape))


class FeedForward(nn.Module):
    def __init__(self, args: ModelArgs):
        super().__init__()
        self.intermediate_dense = nn.Linear(args.hidden_size, args.intermediate_size)
        self.output_dense = nn.Linear(args.intermediate_size, args.hidden_size)

    def __call__(self, x: mx.array) -> mx.array:
        return self.output_dense(gelu(self.intermediate_dense(x)))


class Adapter(nn.Module):
    """The per-language layer of MMS (Pratap et al. 2023)."""

    def __init__(self, args: ModelArgs):
        super().__init__()
        width, inner = args.hidden_size, args.adapter_attn_dim or 0
        self.norm = nn.LayerNorm(width)
        self.linear_1 = nn.Linear(width, inner)
        self.linear_2 = nn.Linear(inner, width)

    def __call__(self, x: mx.array) -> mx.array:
        return self.linear_2(nn.relu(self.linear_1(self.norm(x))))


class EncoderLayer(nn.Module):
    def __init__(self, args: ModelArgs):
        super().__init__()
        self._pre_norm = args.do_stable_layer_norm
        self.attention = Attention(args)
        self.layer_norm = nn.LayerNorm(args.hidden_size, eps=args.layer_norm_eps)
        self.feed_forward = FeedForward(args)
        self.final_layer_norm = nn.LayerNorm(args.hidden_size, eps=args.layer_norm_eps)
        if args.adapter_attn_dim is not None and args.do_stable_layer_norm:
            self.adapter_layer = Adapter(args)

    def __call__(self, x: mx.array, mask: mx.array | None) -> mx.array:
        if not self._pre_norm:
            x = self.layer_norm(x + self.attention(x, mask))
            return self.final_layer_norm(x + self.feed_forward(x))
        x = x + self.attention(self.layer_norm(x), mask)
        x = x + self.feed_forward(self.final_layer_norm(x))
        return x + self.adapter_layer(x) if "adapter_layer" in self else x


class Encoder(nn.Module):
    def __init__(self, args: ModelArgs):
        super().__init__()
        self._pre_norm = args.do_stable_layer_norm
        self.pos_conv_embed = PositionalConv(args)
        self.layer_norm = nn.LayerNorm(args.hidden_size, eps=args.layer_norm_eps)
        self.layers = [EncoderLayer(args) for _ in range(args.num_hidden_layers)]

    def __call__(self, x: mx.array, lengths: mx.array | None) -> mx.array:
        mask = None
        if lengths is not None:
            valid = mx.arange(x.shape[1]) < lengths[:, None]
            x = mx.where(valid[..., None], x, 0)  # what a row alone would see past its end: zeros
            mask = valid[:, None, None]
        x = x + self.pos_conv_embed(x)
        x = x if self._pre_norm else self.layer_norm(x)
        for layer in self.layers:
            x = layer(x, mask)
        return self.layer_norm(x) if self._pre_norm else x


class Wav2Vec2(nn.Module):
    def __init__(self, args: ModelArgs):
        super().__init__()
        self.feature_extractor = FeatureExtractor(args)
        self.feature_projection = FeatureProjection(args)
        self.encoder = Encoder(args)


class Model(BaseModel):
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
        return "high" if ".attention." in path else "low"

    def num_frames(self, samples: Any) -> Any:
        """How many frames `samples` give: 400 → 1, 16 000 → 49, 480 000 → 1 499."""
        for kernel, stride in zip(self.args.conv_kernel, self.args.conv_stride, strict=True):
            samples = (samples - kernel) // stride + 1
        return samples

    def __call__(self, waveform: mx.array, lengths: mx.array | None = None) -> mx.array:
        """waveform (batch, samples) → logits (batch, frames, vocabulary)

        A model with `args.do_normalize` was trained on `features.normalize(waveform)`; it is for the caller to apply.
        lengths : (batch,) samples of each row that are its own; the rest is padding, which changes nothing: a row's
        first `num_frames(length)` logits are those it has alone (also in the group-norm kind, whose statistics run
        over time). Fewer than 400 samples (at the usual kernels) have to be padded by the caller.
        """
        samples = waveform.shape[1]
        if self.num_frames(samples) < 1:
            raise OptionError(f"{samples} samples are too few for wav2vec2: pad them with zeros to 400 or more")
        x = waveform[..., None].astype(self.wav2vec2.feature_projection.projection.weight.dtype)
        for k, layer in enumerate(self.wav2vec2.feature_extractor.conv_layers):
            if lengths is not None:
                lengths = (lengths - self.args.conv_kernel[k]) // self.args.conv_stride[k] + 1
            x = layer(x, lengths)
        x = self.wav2vec2.encoder(self.wav2vec2.feature_projection(x), lengths)
        return self.lm_head(x)
