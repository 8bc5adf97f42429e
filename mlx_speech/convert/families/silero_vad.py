"""Silero VAD: the TorchScript archive `silero_vad.jit`, which holds the 16 kHz and the 8 kHz network.

The `.safetensors` file that lies beside it in the silero-vad package has other weights, and is not taken for it.
"""

from __future__ import annotations

from mlx_speech.convert import fold
from mlx_speech.convert.port import Drop, Recipe, Table
from mlx_speech.convert.read import Source

PIPELINE_TAG = "voice-activity-detection"
TAGS = ["voice-activity-detection", "vad", "silero"]

# prefix in the archive → sampling rate
RATES = {"_model": 16000, "_model_8k": 8000}

_STATE = Drop("what its last call left behind")
TABLE: Table = {"_state": _STATE, "_context": _STATE}
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
    tensors = dict(source.tensors)
    rates = [rate for prefix, rate in RATES.items() if any(name.startswith(f"{prefix}.") for name in tensors)]
    for prefix, rate in RATES.items():
        if rate in rates:
            fold.lstm(tensors, [f"{prefix}.decoder.rnn.weight_ih"], f"vad_{rate // 1000}k.lstm")
    hidden = tensors[f"vad_{rates[0] // 1000}k.lstm.Wh"].shape[-1]
    return Recipe({"sample_rates": rates, "hidden_size": hidden}, tensors, TABLE, "silero-vad")
