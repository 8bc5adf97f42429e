"""Which layers are quantized, and how: mlx_lm's options and defaults, and mixed recipes made for speech models."""

from __future__ import annotations

from mlx_speech import backend as backend  # isort: skip  (before MLX)

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import mlx.nn as nn

from mlx_speech.errors import OptionError, shorten
from mlx_speech.models.base import BaseModel

Mode: TypeAlias = Literal["affine", "mxfp4", "nvfp4", "mxfp8"]
MixedRecipe: TypeAlias = Literal["mixed_3_6", "mixed_4_6", "mixed_4_8"]
Dtype: TypeAlias = Literal["float16", "bfloat16", "float32"]

# mode → (group size, bits), as in mlx_lm
MODES: dict[Mode, tuple[int, int]] = {
    "affine": (64, 4),
    "mxfp4": (32, 4),
    "nvfp4": (16, 4),
    "mxfp8": (32, 8),
}
BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
DTYPES: tuple[Dtype, ...] = ("float16", "bfloat16", "float32")

# name → bits of the robust layers, bits of the sensitive ones. Robust are the feed-forward layers; sensitive are
# attention and Whisper's embedding, which is its output layer too. (On Whisper base and tiny.en, where the original's
# probabilities are the measure, 4 bits in the decoder's blocks cost more than 4 bits in all feed-forward layers.)
RECIPES: dict[MixedRecipe, tuple[int, int]] = {
    "mixed_3_6": (3, 6),
    "mixed_4_6": (4, 6),
    "mixed_4_8": (4, 8),
}


# The parameters of a quantized layer, as `mx.quantize` takes them: group_size, bits and mode.
LayerQuantization: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """How a model is written; the names, meanings and defaults are those of mlx_lm.convert.

    Raises `OptionError` for a wrong value, and for values that conflict.
    """

    quantize: bool = False
    q_group_size: int | None = None
    q_bits: int | None = None
    q_mode: Mode = "affine"
    quant_predicate: MixedRecipe | None = None
    dtype: Dtype | None = None
    dequantize: bool = False

    def __post_init__(self) -> None:
        if self.quantize and self.dequantize:
            raise OptionError("quantize=True and dequantize=True conflict: leave one of them out")
        _check("q_mode", self.q_mode, MODES)
        _check("dtype", self.dtype, DTYPES)
        details = (self.q_bits, self.q_group_size, self.quant_predicate)
        detailed = self.q_mode != "affine" or any(value is not None for value in details)
        if detailed and not self.quantize:
            raise OptionError("q_bits, q_group_size, q_mode and quant_predicate need quantize=True")
        group_size, bits = MODES[self.q_mode]
        if self.q_mode == "affine":
            _check("q_bits", self.q_bits, BITS)
            _check("q_group_size", self.q_group_size, GROUP_SIZES)
        elif self.q_bits not in (None, bits) or self.q_group_size not in (None, group_size):
            raise OptionError(f"q_mode={self.q_mode} is always {bits} bits in groups of {group_size}")
        _check("quant_predicate", self.quant_predicate, RECIPES)
        if self.quant_predicate is not None and (self.q_mode != "affine" or self.q_bits is not None):
            raise OptionError("quant_predicate sets the bits itself: leave out q_bits and q_mode")

    @property
    def defaults(self) -> LayerQuantization:
        """The parameters of a layer that no recipe speaks of."""
        group_size, bits = MODES[self.q_mode]
        return {
            "group_size": self.q_group_size or group_size,
            "bits": self.q_bits or bits,
            "mode": self.q_mode,
        }

    @property
    def suffix(self) -> str:
        """What is appended to the name of the output folder."""
        if not self.quantize:
            return ""
        if self.quant_predicate is not None:
            return f"-{self.quant_predicate}"
        return f"-{self.defaults['bits']}bit"


def _check(option: str, value: object, choices: Collection[object]) -> None:
    if value is not None and value not in choices:
        raise OptionError(f"{option} {value}: choose from {', '.join(map(str, choices))}")


def choose(model: BaseModel, options: Options) -> tuple[dict[str, LayerQuantization], dict[str, Any]]:
    """The layers of `model` to be quantized, each with its parameters, and the entry for config.json.

    Raises `OptionError` where the group size does not divide the width of a layer.
    """
    candidates: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        if hasattr(module, "to_quantized") and model.quant_predicate(path, module):
            candidates[path] = module
    widths = {path: module["weight"].shape[-1] for path, module in candidates.items()}
    _check_widths(widths, options)
    defaults = options.defaults
    if options.quant_predicate is None:
        return dict.fromkeys(candidates, defaults), {**defaults}
    low, high = RECIPES[options.quant_predicate]
    chosen: dict[str, LayerQuantization] = {}
    for path in candidates:
        bits = low if model.quant_recipe(path) == "low" else high
        chosen[path] = {
            "group_size": defaults["group_size"],
            "bits": bits,
            "mode": defaults["mode"],
        }
    return chosen, {**defaults, "bits": low, **chosen}


def _check_widths(widths: dict[str, int], options: Options) -> None:
    """Raises `OptionError` where the group size does not divide a layer's width. widths : path → inputs of a layer"""
    group_size = options.defaults["group_size"]
    undivided = sorted(path for path, width in widths.items() if width % group_size)
    if not undivided:
        return
    advice = "this model cannot be quantized so"
    dividing = [size for size in GROUP_SIZES if all(width % size == 0 for width in widths.values())]
    if dividing and options.q_mode == "affine":
        advice = f"use q_group_size={dividing[-1]}"
    width = widths[undivided[0]]
    raise OptionError(f"groups of {group_size} do not divide the width {width} of {shorten(undivided, 2)}: {advice}")
