"""Checkpoints as Lightning and pyannote.audio write them, in half precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pyannote.audio.core.model import Model


def save(model: Model, path: Path) -> None:
    """What `pyannote.audio.Model.from_pretrained` loads. Weights are stored in float16, which is exact on the way back;
    the model's own are rounded to it, so that it stays the model in the file."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(tensor.half())
    state = {name: half(tensor).cpu().clone() for name, tensor in model.state_dict().items()}
    checkpoint: dict[str, Any] = {
        "state_dict": state,
        "hyper_parameters": {name: plain(value) for name, value in model.hparams.items()},
        "pytorch-lightning_version": "2.0.0",
        "epoch": 0,
        "global_step": 0,
    }
    model.on_save_checkpoint(checkpoint)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, path)


def half(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.half() if tensor.is_floating_point() else tensor


def plain(value: Any) -> Any:
    return dict(value) if isinstance(value, dict) else value
