"""Tensors of a source as PyTorch's, for the originals."""

from __future__ import annotations

from typing import Any

from mlx_speech.tensors import Tensor

# The two parts of a weight norm: as torch's older function spells them, and as the newer one does.
WEIGHT_NORM = {
    "weight_g": "parametrizations.weight.original0",
    "weight_v": "parametrizations.weight.original1",
}


def torch_state(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """A state dict; all floats in float32."""
    import torch

    state: dict[str, Any] = {}
    for name, tensor in tensors.items():
        array = torch.from_numpy(tensor.numpy().copy())
        state[name] = array.float() if array.is_floating_point() else array
    return state


def load_wanted(model: Any, state: dict[str, Any]) -> None:
    """Load what `model` has of `state`, weight norms spelled as it spells them, which depends on versions."""
    wanted = set(model.state_dict())
    loaded = {}
    for name, value in state.items():
        spelled = _as_wanted(name, wanted)
        if spelled in wanted:
            loaded[spelled] = value
    model.load_state_dict(loaded)


def _as_wanted(name: str, wanted: set[str]) -> str:
    """`name`, or the other spelling of a weight norm where that is wanted."""
    if name in wanted:
        return name
    for old, new in WEIGHT_NORM.items():
        for one, other in ((old, new), (new, old)):
            if name.endswith(one):
                return name.removesuffix(one) + other
    return name
