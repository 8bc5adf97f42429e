"""WeSpeaker ResNets: pyannote's Lightning checkpoints, with or without hyper-parameters, and WeSpeaker's own `.pt`.

Depth and widths are read off the tensors. Batch norms are folded; the columns of the last layer are put in the order
(frequency, channel) in which channels-last features come.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import numpy as np

from mlx_speech.convert import fold
from mlx_speech.convert.families.lightning import hyper_parameters
from mlx_speech.convert.read import Source
from mlx_speech.convert.recipe import Drop, Recipe, Table, require, same
from mlx_speech.errors import ConfigError, WeightsMismatch
from mlx_speech.tensors import Tensor

PIPELINE_TAG = None
TAGS = ("speaker-embedding", "speaker-recognition", "wespeaker", "pyannote")
COMPANIONS = ()
TAKES_LANGUAGE = False

PREFIX = "resnet."  # pyannote's, before WeSpeaker's own names
STAGES = (1, 2, 3, 4)
TABLE: Table = {
    **same("conv1", "seg_1", "layer{}.{}.conv{}", "layer{}.{}.shortcut"),
    "bn1.num_batches_tracked": Drop("a counter of training"),
    "layer{}.{}.bn{}.num_batches_tracked": Drop("a counter of training"),
    "layer{}.{}.shortcut.1.num_batches_tracked": Drop("a counter of training"),
    "projection": Drop("training classifier"),
}


def recognise(source: Source) -> bool:
    """A ResNet of four stages whose embedding is `seg_1`."""
    names = {name.removeprefix(PREFIX) for name in source.tensors}
    return {"seg_1.weight", "bn1.running_mean", "layer4.0.conv1.weight"} <= names


def recipe(source: Source, language: str | None = None) -> Recipe:
    """Batch norms folded, and the last layer's columns reordered.

    Raises `ConfigError` for a second embedding layer or another filterbank, `WeightsMismatch` for odd sizes.
    """
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in source.tensors.items()}
    if any(name.startswith(("seg_2", "seg_bn_1")) for name in tensors):
        raise ConfigError("a WeSpeaker model with two embedding layers (seg_2), which is not supported")
    config = {**_sizes(tensors), **_front_end(hyper_parameters(source))}
    _fold_norms(tensors)
    weight = tensors["seg_1.weight"]
    order = _channels_last_order(weight.shape[1] // 2, frequencies=config["num_mel_bins"] // 8)
    tensors["seg_1.weight"] = weight.map(partial(_take_columns, order=order))
    return Recipe(config, tensors, TABLE, "pyannote.audio")


def _channels_last_order(features: int, frequencies: int) -> np.ndarray:
    """Where in torch's order, (channel, frequency), the columns of ours, (frequency, channel), are.

    Of the means, (features,), and of the deviations that follow them, (2·features,) in all.
    """
    means = np.arange(features).reshape(-1, frequencies).T.reshape(-1)
    return np.concatenate([means, features + means])


def _take_columns(weight: np.ndarray, order: np.ndarray) -> np.ndarray:
    return weight[:, order]


def _fold_norms(tensors: dict[str, Tensor]) -> None:
    """Every batch norm into the convolution before it: bn2 into conv2, shortcut.1 into shortcut.0."""
    for norm in sorted({name.rpartition(".")[0] for name in tensors if name.endswith(".running_mean")}):
        conv = re.sub(r"\bbn(\d)$", r"conv\1", norm)
        path = norm.rpartition(".")[0]
        if conv != norm:
            fold.batch_norm(tensors, conv, norm, conv)
        elif path.endswith(".shortcut"):
            fold.batch_norm(tensors, f"{path}.0", norm, path)


def _sizes(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Depth and widths, as the tensors show them."""
    blocks = [len(fold.numbered(tensors, f"layer{stage}.{{}}.conv1.weight")) for stage in STAGES]
    if "conv1.weight" not in tensors or len(tensors["seg_1.weight"].shape) != 2 or not tensors["conv1.weight"].shape:
        raise WeightsMismatch("no conv1.weight, or one without channels, or a seg_1.weight that is no matrix")
    bottleneck = "layer1.0.conv3.weight" in tensors
    base_channels = tensors["conv1.weight"].shape[0]
    embedding_size, features = tensors["seg_1.weight"].shape
    channels = base_channels * 8 * (4 if bottleneck else 1)  # of the last stage
    if not base_channels or features % (2 * channels):
        raise WeightsMismatch(f"seg_1.weight of {features} columns does not fit {channels} channels")
    return {
        "num_blocks": blocks,
        "bottleneck": bottleneck,
        "base_channels": base_channels,
        "embedding_size": embedding_size,
        "num_mel_bins": features // (2 * channels) * 8,  # three stages halve them
    }


def _front_end(parameters: dict[str, Any]) -> dict[str, Any]:
    """The filterbank's settings, where the checkpoint states them; raises `ConfigError` for settings not ported."""
    require(
        parameters,
        "a filterbank",
        window_type="hamming",
        use_energy=False,
        snip_edges=True,
        round_to_power_of_two=True,
        dither=0.0,
    )
    keys = ("sample_rate", "frame_length", "frame_shift", "fbank_centering_span")
    return {key: parameters[key] for key in keys if key in parameters}
