"""WeSpeaker ResNets: pyannote's Lightning checkpoints, with or without hyper-parameters, and WeSpeaker's own `.pt`.

Depth and widths are read off the tensors. Batch norms are folded; the columns of the last layer are put in the order
(frequency, channel) in which channels-last features come.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from mlx_speech.convert import fold
from mlx_speech.convert.formats.lightning import hyper_parameters
from mlx_speech.convert.port import Drop, Recipe, Table, require, same
from mlx_speech.convert.read import Source
from mlx_speech.errors import ConfigError, WeightsMismatch
from mlx_speech.tensors import Tensor

PIPELINE_TAG = None
TAGS = ["speaker-embedding", "speaker-recognition", "wespeaker", "pyannote"]

NORMS = ("bn1", "layer{}.{}.bn{}", "layer{}.{}.shortcut.1")
TABLE: Table = {
    **same("conv1", "seg_1", "layer{}.{}.conv{}", "layer{}.{}.shortcut"),
    **{f"{norm}.num_batches_tracked": Drop("a counter of training") for norm in NORMS},
    "projection": Drop("training classifier"),
}


def recognise(source: Source) -> bool:
    names = {name.removeprefix("resnet.") for name in source.tensors}
    return {"seg_1.weight", "bn1.running_mean", "layer4.0.conv1.weight"} <= names


def recipe(source: Source, language: str | None = None) -> Recipe:
    tensors = {name.removeprefix("resnet."): tensor for name, tensor in source.tensors.items()}
    if any(name.startswith(("seg_2", "seg_bn_1")) for name in tensors):
        raise ConfigError("a WeSpeaker model with two embedding layers (seg_2), which is not supported")
    config = {**_sizes(tensors), **_front_end(hyper_parameters(source))}
    _fold_norms(tensors)
    features = tensors["seg_1.weight"].shape[1] // 2
    frequencies = config["num_mel_bins"] // 8
    order = np.arange(features).reshape(-1, frequencies).T.reshape(-1)  # (channel, frequency) → (frequency, channel)
    order = np.concatenate([order, features + order])  # means, then deviations
    tensors["seg_1.weight"] = tensors["seg_1.weight"].map(lambda array: array[:, order])
    return Recipe(config, tensors, TABLE, "pyannote.audio")


def _fold_norms(tensors: dict[str, Tensor]) -> None:
    for norm in sorted({name.rpartition(".")[0] for name in tensors if name.endswith(".running_mean")}):
        conv, path = re.sub(r"\bbn(\d)$", r"conv\1", norm), norm.rpartition(".")[0]
        if conv != norm:
            fold.batch_norm(tensors, conv, norm, conv)
        elif path.endswith(".shortcut"):
            fold.batch_norm(tensors, f"{path}.0", norm, path)


def _sizes(tensors: dict[str, Tensor]) -> dict[str, Any]:
    blocks = [len(fold.numbered(tensors, f"layer{stage}.{{}}.conv1.weight")) for stage in (1, 2, 3, 4)]
    if "conv1.weight" not in tensors or len(tensors["seg_1.weight"].shape) != 2 or not tensors["conv1.weight"].shape:
        raise WeightsMismatch("no conv1.weight, or one without channels, or a seg_1.weight that is no matrix")
    bottleneck, base = "layer1.0.conv3.weight" in tensors, tensors["conv1.weight"].shape[0]
    embedding, features = tensors["seg_1.weight"].shape
    channels = base * 8 * (4 if bottleneck else 1)
    if not base or features % (2 * channels):
        raise WeightsMismatch(f"seg_1.weight of {features} columns does not fit {channels} channels")
    sizes = {"base_channels": base, "embedding_size": embedding, "num_mel_bins": features // (2 * channels) * 8}
    return {"num_blocks": blocks, "bottleneck": bottleneck, **sizes}


def _front_end(parameters: dict[str, Any]) -> dict[str, Any]:
    """The filterbank's settings, where the checkpoint states them; raises `ConfigError` for settings not ported."""
    ported = {"window_type": "hamming", "use_energy": False, "snip_edges": True, "round_to_power_of_two": True}
    require(parameters, "a filterbank", **ported, dither=0.0)
    keys = ("sample_rate", "frame_length", "frame_shift", "fbank_centering_span")
    return {key: parameters[key] for key in keys if key in parameters}
