"""Silero VAD: the TorchScript archive `silero_vad.jit`, which holds the 16 kHz and the 8 kHz network.

The `.safetensors` file that lies beside it in the silero-vad package has other weights, and is not taken for it.
"""

from __future__ import annotations

from mlx_speech.convert import fold
from mlx_speech.convert.read import Source
from mlx_speech.convert.recipe import Drop, Recipe, Table

PIPELINE_TAG = "voice-activity-detection"
TAGS = ("voice-activity-detection", "vad", "silero")
COMPANIONS = ()
TAKES_LANGUAGE = False

# prefix in the archive → sampling rate
RATES = {"_model": 16000, "_model_8k": 8000}

_STATE = Drop("what its last call left behind")
TABLE: Table = {
    "_state": _STATE,
    "_context": _STATE,
    "_model.stft.forward_basis_buffer": "vad_16k.stft.weight",
    "_model.encoder.{}.reparam_conv": "vad_16k.encoder.{}",
    "vad_16k.lstm": "vad_16k.lstm",
    "_model.decoder.decoder.2": "vad_16k.head",
    "_model_8k.stft.forward_basis_buffer": "vad_8k.stft.weight",
    "_model_8k.encoder.{}.reparam_conv": "vad_8k.encoder.{}",
    "vad_8k.lstm": "vad_8k.lstm",
    "_model_8k.decoder.decoder.2": "vad_8k.head",
}


def recognise(source: Source) -> bool:
    """The Fourier basis of the 16 kHz network."""
    return "_model.stft.forward_basis_buffer" in source.tensors


def recipe(source: Source, language: str | None = None) -> Recipe:
    """Both networks, as far as the archive has them, with their LSTMs folded."""
    tensors = dict(source.tensors)
    rates = []
    for prefix, rate in RATES.items():
        if any(name.startswith(f"{prefix}.") for name in source.tensors):
            rates.append(rate)
            fold.lstm(tensors, [f"{prefix}.decoder.rnn.weight_ih"], f"vad_{rate // 1000}k.lstm")
    hidden_size = tensors[f"vad_{rates[0] // 1000}k.lstm.Wh"].shape[-1]
    return Recipe({"sample_rates": rates, "hidden_size": hidden_size}, tensors, TABLE, "silero-vad")
