"""CAM++ of 3D-Speaker: the plain state dict, whatever its file is called (`campplus_cn_common.bin`,
`campplus_cn_en_common.pt`, `campplus_voxceleb.bin` … there and on ModelScope), or one inside a checkpoint.

Widths and numbers of layers are read off the tensors. Batch norms are folded, kernels of one frame become matrices,
and the columns of the first layer over time are put in the order (frequency, channel) in which channels-last features
come.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from mlx_speech.convert import fold
from mlx_speech.convert.read import Source
from mlx_speech.convert.recipe import Drop, Recipe, Table, same
from mlx_speech.errors import ConfigError, WeightsMismatch
from mlx_speech.models.campplus import ModelArgs
from mlx_speech.tensors import Tensor

PIPELINE_TAG = None
TAGS = ("speaker-embedding", "speaker-recognition", "campplus", "3d-speaker")
COMPANIONS = ()
TAKES_LANGUAGE = False

BLOCKS = (1, 2, 3)
LAYERS_OF_HEAD = (1, 2)
DENSE_LAYER = "xvector.block{}.tdnnd{}"
FIRST_LAYER = "xvector.tdnn"
COUNTER = Drop("a counter of training")
TABLE: Table = {
    **same("conv{}", "layer{}.{}.conv{}", "layer{}.{}.shortcut", path="head."),
    **same("tdnn", "transit{}.nonlinear", "transit{}.linear", "out_nonlinear", "dense", path="xvector."),
    **same("nonlinear1", "linear1", path=f"{DENSE_LAYER}."),
    **same("linear_local", "linear{}", path=f"{DENSE_LAYER}.cam_layer."),
    "head.bn{}.num_batches_tracked": COUNTER,
    "head.layer{}.{}.bn{}.num_batches_tracked": COUNTER,
    "head.layer{}.{}.shortcut.{}.num_batches_tracked": COUNTER,
    f"{DENSE_LAYER}.nonlinear{{}}.batchnorm.num_batches_tracked": COUNTER,
    "xvector.transit{}.nonlinear.batchnorm.num_batches_tracked": COUNTER,
    "xvector.out_nonlinear.batchnorm.num_batches_tracked": COUNTER,
    "xvector.tdnn.nonlinear.batchnorm.num_batches_tracked": COUNTER,
    "xvector.dense.nonlinear.batchnorm.num_batches_tracked": COUNTER,
}


def recognise(source: Source) -> bool:
    """The convolutions in front and the context masks, which together no other family has."""
    context_mask = "xvector.block1.tdnnd1.cam_layer.linear_local.weight"
    return {"head.conv1.weight", "xvector.dense.linear.weight", context_mask} <= source.tensors.keys()


def recipe(source: Source, language: str | None = None) -> Recipe:
    """Batch norms folded, matrices made of kernels of one frame, and the first layer's columns reordered.

    Raises `ConfigError` for a model with another head or a classifier, `WeightsMismatch` for odd sizes.
    """
    tensors = dict(source.tensors)
    if "xvector.dense.nonlinear.batchnorm.weight" in tensors:
        raise ConfigError("a CAM++ whose embedding has a learned batch norm, which is not supported")
    config = _sizes(tensors)
    _fold_head(tensors, config)
    fold.batch_norm(tensors, f"{FIRST_LAYER}.linear", f"{FIRST_LAYER}.nonlinear.batchnorm", FIRST_LAYER)
    first = tensors[f"{FIRST_LAYER}.weight"]
    order = partial(_frequency_major, channels=config["head_channels"])
    tensors[f"{FIRST_LAYER}.weight"] = first.map(order)
    for block, count in zip(BLOCKS, config["num_layers"], strict=True):
        for layer in range(1, count + 1):
            _fold_dense_layer(tensors, DENSE_LAYER.format(block, layer))
        transit = f"xvector.transit{block}"
        fold.affine(tensors, f"{transit}.nonlinear.batchnorm", f"{transit}.nonlinear")
        _as_matrix(tensors, f"{transit}.linear.weight")
    fold.affine(tensors, "xvector.out_nonlinear.batchnorm", "xvector.out_nonlinear")
    dense = "xvector.dense"
    fold.batch_norm(tensors, f"{dense}.linear", f"{dense}.nonlinear.batchnorm", dense, learned=False)
    _as_matrix(tensors, f"{dense}.weight")
    return Recipe(config, tensors, TABLE, "speakerlab")


def _fold_head(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Every batch norm of the head into the convolution before it."""
    for number in (1, 2):
        fold.batch_norm(tensors, f"head.conv{number}", f"head.bn{number}", f"head.conv{number}")
    for layer, count in zip(LAYERS_OF_HEAD, config["head_blocks"], strict=True):
        for index in range(count):
            path = f"head.layer{layer}.{index}"
            for number in (1, 2):
                fold.batch_norm(tensors, f"{path}.conv{number}", f"{path}.bn{number}", f"{path}.conv{number}")
            if index == 0:  # the one that halves
                fold.batch_norm(tensors, f"{path}.shortcut.0", f"{path}.shortcut.1", f"{path}.shortcut")


def _fold_dense_layer(tensors: dict[str, Tensor], path: str) -> None:
    fold.affine(tensors, f"{path}.nonlinear1.batchnorm", f"{path}.nonlinear1")
    fold.batch_norm(tensors, f"{path}.linear1", f"{path}.nonlinear2.batchnorm", f"{path}.linear1")
    _as_matrix(tensors, f"{path}.linear1.weight")
    for number in (1, 2):
        _as_matrix(tensors, f"{path}.cam_layer.linear{number}.weight")


def _as_matrix(tensors: dict[str, Tensor], name: str) -> None:
    """A kernel (outputs, inputs, 1) as the matrix (outputs, inputs) that it is."""
    kernel = tensors.get(name)
    if kernel is None or len(kernel.shape) != 3 or kernel.shape[2] != 1:
        shape = None if kernel is None else list(kernel.shape)
        raise WeightsMismatch(f"{name}: {shape}, where a kernel of one frame is expected")
    tensors[name] = kernel.map(_first_tap, kernel.shape[:2])


def _first_tap(kernel: np.ndarray) -> np.ndarray:
    return kernel[:, :, 0]


def _frequency_major(kernel: np.ndarray, channels: int) -> np.ndarray:
    """kernel (outputs, channels·frequencies, taps), in torch's order (channel, frequency) → (frequency, channel)"""
    outputs, size, taps = kernel.shape
    by_channel = kernel.reshape(outputs, channels, size // channels, taps)
    return by_channel.swapaxes(1, 2).reshape(outputs, size, taps)


def _sizes(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Widths and numbers of layers, as the tensors show them. Raises `WeightsMismatch`."""
    head = _shape(tensors, "head.conv1.weight", 4)
    first = _shape(tensors, f"{FIRST_LAYER}.linear.weight", 3)
    local = _shape(tensors, "xvector.block1.tdnnd1.cam_layer.linear_local.weight", 3)
    context = _shape(tensors, "xvector.block1.tdnnd1.cam_layer.linear1.weight", 3)
    dense = _shape(tensors, "xvector.dense.linear.weight", 3)
    channels = head[0]
    if not channels or first[1] % channels:
        raise WeightsMismatch(f"{FIRST_LAYER}.linear.weight of {first[1]} columns does not fit {channels} channels")
    num_layers = []
    for block in BLOCKS:
        layers = [
            name for name in tensors if name.startswith(f"xvector.block{block}.") and name.endswith(".linear1.weight")
        ]
        num_layers.append(sum(".cam_layer." not in name for name in layers))
    head_blocks = [len(fold.numbered(tensors, f"head.layer{layer}.{{}}.conv1.weight")) for layer in LAYERS_OF_HEAD]
    return {
        "head_blocks": head_blocks,
        "head_channels": channels,
        "init_channels": first[0],
        "growth_rate": local[0],
        "bottleneck_channels": local[1],
        "context_channels": context[0],
        "num_layers": num_layers,
        "kernel_size": local[2],
        "dilations": ModelArgs().dilations,  # which no tensor shows; all published ones have these
        "num_mel_bins": first[1] // channels * 8,  # halved three times
        "embedding_size": dense[0],
    }


def _shape(tensors: dict[str, Tensor], name: str, rank: int) -> tuple[int, ...]:
    """The shape of a tensor of that many dimensions."""
    if name not in tensors or len(tensors[name].shape) != rank:
        raise WeightsMismatch(f"{name}: missing, or not of {rank} dimensions")
    return tensors[name].shape
