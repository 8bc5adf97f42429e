"""The model beside its original."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from mlx_speech.convert.parity.measures import Inputs, Row, largest_difference, refuse_degenerate
from mlx_speech.convert.parity.torch_weights import load_wanted, torch_state
from mlx_speech.convert.port import Plan

ORIGINALS = {"torch": ("torch",)}


def network(channels: int, kernel: int, num_tones: int) -> Any:
    """The original: waveform, (batch, samples) → scores, (batch, frames, tones)."""
    import torch

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = torch.nn.ModuleDict({"conv": torch.nn.Conv1d(1, channels, kernel, stride=kernel)})
            self.classifier = torch.nn.Linear(channels, num_tones)
            self.register_buffer("steps", torch.tensor(1000))

        def forward(self, waveform: torch.Tensor) -> torch.Tensor:
            hidden = torch.relu(self.encoder["conv"](waveform[:, None]))
            return self.classifier(hidden.transpose(1, 2))

    return Network().eval()


def build(plan: Plan) -> Any:
    """The original with the source's weights."""
    config = plan.config
    model = network(config["channels"], config["kernel"], config["num_tones"])
    load_wanted(model, torch_state(plan.source.tensors))
    return model


def measure(original: Any, model: Any, inputs: Inputs) -> list[Row]:
    """Scores of one recording."""
    import torch

    expected = original(torch.from_numpy(inputs.audio)[None]).numpy()
    scores = np.array(model(mx.array(inputs.audio)[None]))
    refuse_degenerate("tones", expected.argmax(-1), 3, inputs.varied)
    return [Row("scores, max difference", largest_difference(expected, scores), 1e-4)]
