"""Which layers are quantized, and how: mlx_lm's options and defaults, and mixed recipes made for speech models."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from mlx_speech.errors import OptionError, shorten
from mlx_speech.models.base import BaseModel

# mode → (group size, bits), as in mlx_lm
MODES = {"affine": (64, 4), "mxfp4": (32, 4), "nvfp4": (16, 4), "mxfp8": (32, 8)}
BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
DTYPES = ("float16", "bfloat16", "float32")

# name → bits of the robust layers, bits of the sensitive ones. Robust are the feed-forward layers; sensitive are
# attention and Whisper's embedding, which is its output layer too. (On Whisper base and tiny.en, where the original's
# probabilities are the measure, 4 bits in the decoder's blocks cost more than 4 bits in all feed-forward layers.)
RECIPES = {"mixed_3_6": (3, 6), "mixed_4_6": (4, 6), "mixed_4_8": (4, 8)}


def _check(option: str, value: object, choices: Collection[object]) -> None:
    if value is not None and value not in choices:
        raise OptionError(f"{option} {value}: choose from {', '.join(map(str, choices))}")


@dataclass(frozen=True)
class Options:
    """How a model is written; the names, meanings and defaults are those of mlx_lm.convert."""

    quantize: bool = False
    q_group_size: int | None = None
    q_bits: int | None = None
    q_mode: str = "affine"
    quant_predicate: str | None = None
    dtype: str | None = None
    dequantize: bool = False

    def __post_init__(self) -> None:
        if self.quantize and self.dequantize:
            raise OptionError("quantize=True and dequantize=True conflict: leave one of them out")
        _check("q_mode", self.q_mode, MODES)
        _check("dtype", self.dtype, DTYPES)
        given = (self.q_bits, self.q_group_size, self.quant_predicate)
        if not self.quantize and (any(value is not None for value in given) or self.q_mode != "affine"):
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
    def defaults(self) -> dict[str, Any]:
        """The parameters of a layer that no recipe speaks of."""
        group_size, bits = MODES[self.q_mode]
        return {"group_size": self.q_group_size or group_size, "bits": self.q_bits or bits, "mode": self.q_mode}

    @property
    def suffix(self) -> str:
        """What is appended to the name of the output folder."""
        how = self.quant_predicate or f"{self.defaults['bits']}bit"
        return f"-{how}" if self.quantize else ""


def choose(model: BaseModel, options: Options) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The layers of `model` to be quantized, each with its parameters, and the entry for config.json.

    Raises `OptionError` where the group size does not divide the width of a layer.
    """
    able = [(path, module) for path, module in model.named_modules() if hasattr(module, "to_quantized")]
    candidates = {path: module for path, module in able if model.quant_predicate(path, module)}
    group_size = options.defaults["group_size"]
    odd = sorted(path for path, module in candidates.items() if module.weight.shape[-1] % group_size)
    if odd:
        width = candidates[odd[0]].weight.shape[-1]
        fit = [size for size in GROUP_SIZES if not any(m.weight.shape[-1] % size for m in candidates.values())]
        able = fit and options.q_mode == "affine"
        advice = f"use q_group_size={fit[-1]}" if able else "this model cannot be quantized so"
        raise OptionError(f"groups of {group_size} do not divide the width {width} of {shorten(odd, 2)}: {advice}")
    if options.quant_predicate is None:
        return dict.fromkeys(candidates, options.defaults), options.defaults
    bits: dict[str, int] = dict(zip(("low", "high"), RECIPES[options.quant_predicate], strict=True))
    chosen = {path: {**options.defaults, "bits": bits[model.quant_recipe(path)]} for path in candidates}
    return chosen, {**options.defaults, "bits": bits["low"], **chosen}
