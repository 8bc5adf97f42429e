"""Silero VAD: the TorchScript archive `silero_vad.jit`, which holds the 16 kHz and the 8 kHz network.

The `.safetensors` file that lies beside it in the silero-vad package has other weights, and is not taken for it.
"""

from __future__ import annotations

from mlx_speech.convert import fold
from mlx_speech.convert.port import Drop, Recipe
from mlx_speech.convert.read import Source
from mlx_speech.errors import WeightsMismatch

PIPELINE_TAG = "voice-activity-detection"
TAGS = ["voice-activity-detection", "vad", "silero"]

# prefix in the archive → sampling rate
RATES = {"_model": 16000, "_model_8k": 8000}

_STATE = Drop("what its last call left behind")
TABLE: dict[str, str | Drop] = {"_state": _STATE, "_context": _STATE}
for _prefix, _rate in RATES.items():
    _ours = f"vad_{_rate // 1000}k"
    TABLE |= {
        f"{_prefix}.stft.forward_basis_buffer": f"{_ours}.stft.weight",
        f"{_prefix}.encoder.{{}}.reparam_conv": f"{_ours}.encoder.{{}}",
        f"{_ours}.lstm": f"{_ours}.lstm",
        f"{_prefix}.decoder.decoder.2": f"{_ours}.head",
    }


def recognise(source: Source) -> bool:
    return "_model.stft.forward_basis_buffer" in source.tensors


def recipe(source: Source, language: str | None = None) -> Recipe:
    tensors, rates, hidden = dict(source.tensors), [], 0
    for prefix, rate in RATES.items():
        if not any(name.startswith(f"{prefix}.") for name in tensors):
            continue
        rates.append(rate)
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        parts = fold.take(tensors, *(f"{prefix}.decoder.rnn.{name}" for name in names))
        if any(len(part.shape) != rank for part, rank in zip(parts, (2, 2, 1, 1), strict=True)):
            raise WeightsMismatch(f"{prefix}.decoder.rnn: shapes {[part.shape for part in parts]}")
        hidden = parts[1].shape[-1]
        spelled = {f"{name}_l0": part for name, part in zip(names, parts, strict=True)}
        fold.lstm(spelled, ["weight_ih_l0"], f"vad_{rate // 1000}k.lstm")
        tensors |= spelled
    return Recipe({"sample_rates": rates, "hidden_size": hidden}, tensors, TABLE, "silero-vad")
