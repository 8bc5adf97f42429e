"""The folder of a converted model: `config.json` and `model.safetensors`, strictly loaded.

Quantized layers are stated as mlx_lm states them: `quantization` (and `quantization_config`) with group_size, bits
and mode, and an entry per layer where layers differ.
"""

from __future__ import annotations

from mlx_speech import backend as backend  # isort: skip  (before MLX)

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from mlx_speech import models
from mlx_speech.errors import ConfigError, CorruptFile, OptionError, WeightsMismatch, brief, shorten
from mlx_speech.models import diarization_pipeline
from mlx_speech.models.base import BaseModel
from mlx_speech.package_data import DEMO as DEMO  # scripts import it from here
from mlx_speech.tensors import read_safetensors, reading

FORMAT_VERSION = 1
PIPELINE = "diarization_pipeline"  # model_type of a folder that holds several models
MAX_JSON = 64 * 1024 * 1024  # bytes; the largest tokenizers have 10
PARTS = ("segmentation", "embedding", "plda")
NEEDED_PARTS = ("segmentation", "embedding")
MODES = ("affine", "mxfp4", "nvfp4", "mxfp8")  # of quantization
MAX_QUANTIZATION_NUMBER = 1024  # of bits, and of weights in a group


def is_converted(folder: Path) -> bool:
    """Whether `folder` was written by this package."""
    return has(folder, "config.json") and "format_version" in read_config(folder)


def check_language(config: dict[str, Any], language: str | None) -> None:
    """Raises `OptionError` where a converted model is not that of `language`."""
    if language is not None and config.get("language") != language:
        stated = config.get("language") or "no language of its own"
        raise OptionError(f"language={language}: this converted model has {brief(stated)}: convert the original again")


def quantized_bits(folder: Path) -> int | None:
    """Bits of the quantization that config.json of `folder` states, None where there is none."""
    if not has(folder, "config.json"):
        return None
    stated = _quantization(read_config(folder))
    return stated.get("bits") if isinstance(stated, dict) else None


def _quantization(config: dict[str, Any]) -> Any:
    """The entry of quantization, which need not be a sound one; {} where there is none."""
    return config.get("quantization") or config.get("quantization_config") or {}


def has(folder: Path, name: str) -> bool:
    """Whether there is a file of that name; not where `folder` may not be looked into."""
    return os.path.isfile(folder / name)  # noqa: PTH113 - Path.is_file raises PermissionError


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of `folder`. Raises `SourceError`."""
    return read_json(folder / "config.json")


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds one JSON object. Raises `CorruptFile` or `SourceNotFound`."""
    with reading(path):
        try:
            if path.stat().st_size > MAX_JSON:
                raise CorruptFile(f"{path.stat().st_size} bytes are too many for a configuration")
            value = json.loads(path.read_text(encoding="utf-8"))
            json.dumps(value, ensure_ascii=False).encode()  # lone surrogates could not be written again
        except (ValueError, RecursionError) as error:
            raise CorruptFile(f"not valid JSON ({error}): fetch it again") from error
        if not isinstance(value, dict):
            raise CorruptFile("holds no JSON object: fetch it again")
        return value


def load_folder(folder: Path, dtype: str | None = None) -> BaseModel:
    """The model of a converted folder. Raises `SourceError`; nothing is guessed."""
    config = read_config(folder)
    with reading(folder):
        if config.get("format_version") != FORMAT_VERSION:
            stated = brief(config.get("format_version"))
            raise ConfigError(f"format_version {stated} is not {FORMAT_VERSION}: convert it again")
        if config.get("model_type") == PIPELINE:
            parts = {name: load_folder(folder / name, dtype) for name in part_names(folder)}
            model: BaseModel = diarization_pipeline.Model(config, **parts)
        else:
            model = finish(_model(folder, config), dtype)
            model.origin = _origin(config)
    model.folder = folder
    return model


def _origin(config: dict[str, Any]) -> str | None:
    """A digest of the sha256 of all files that a model was converted from; None where config.json does not say them."""
    source = config.get("source")
    files = source.get("files") if isinstance(source, dict) else None
    if not isinstance(files, dict) or not files:
        return None
    hashes = sorted(str(digest) for digest in files.values())
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _model(folder: Path, config: dict[str, Any]) -> BaseModel:
    """The model of a folder that holds a single one, as it was saved."""
    family = config.get("model_type")
    if str(family) not in models.FAMILIES:
        raise ConfigError(f"model_type {brief(family)} is not one of {', '.join(models.FAMILIES)}")
    architecture = models.module(str(family))
    model = architecture.Model(architecture.ModelArgs.from_dict(config))
    tensors = read_safetensors(folder / "model.safetensors")
    quantize_layers(model, config, set(tensors))
    expected = {name: tuple(array.shape) for name, array in model.arrays().items()}
    saved = {name: tensor.shape for name, tensor in tensors.items()}
    differing = sorted(name for name in expected.keys() | saved.keys() if expected.get(name) != saved.get(name))
    if differing:
        names = shorten(differing)
        raise WeightsMismatch(f"model.safetensors does not fit config.json: {names}: convert the model again")
    model.load_weights([(name, tensor.mlx()) for name, tensor in tensors.items()])
    return model


def part_names(folder: Path) -> list[str]:
    """The parts that a converted pipeline has. Raises `SourceNotFound` where one that it needs is missing."""
    for name in NEEDED_PARTS:
        read_config(folder / name)
    return [name for name in PARTS if (folder / name).is_dir()]


def finish(model: BaseModel, dtype: str | None) -> BaseModel:
    """Bring a loaded model to the dtype asked for, or to what its device computes well, and evaluate all of it."""
    if dtype is None and mx.default_device().type == mx.DeviceType.cpu:
        dequantize_layers(model)
        dtype = "float32"
    if dtype is not None:
        arrays = model.arrays()
        for name, array in arrays.items():
            is_float = array.dtype in (mx.float16, mx.bfloat16, mx.float32)
            if is_float and (dtype == "float32" or model.cast_predicate(name)):
                arrays[name] = array.astype(getattr(mx, dtype))
        model.load_weights(list(arrays.items()))
    model.eval()
    return model.materialise()


def quantized_layers(config: dict[str, Any], names: set[str]) -> dict[str, dict[str, Any]]:
    """The layers that have scales among `names`, each with group_size, bits and mode. Raises `ConfigError`."""
    paths = sorted(name.removesuffix(".scales") for name in names if name.endswith(".scales"))
    stated = _quantization(config)
    if paths and not isinstance(stated, dict):
        raise ConfigError(f"config.json: quantization is {brief(stated)}")
    layers: dict[str, dict[str, Any]] = {}
    for path in paths:
        own = stated.get(path)
        entry = {**stated, **own} if isinstance(own, dict) else stated
        layer = {
            "group_size": entry.get("group_size"),
            "bits": entry.get("bits"),
            "mode": entry.get("mode", "affine"),  # mlx-community's repositories state no mode
        }
        numbers = (layer["group_size"], layer["bits"])
        sound = all(type(number) is int and 0 < number <= MAX_QUANTIZATION_NUMBER for number in numbers)
        if not sound or layer["mode"] not in MODES:
            raise ConfigError(f"config.json: {path} is quantized, but quantization says {brief(layer)}")
        layers[path] = layer
    return layers


def quantize_layers(model: nn.Module, config: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """Make the layers quantized that have scales among `names`; the quantization entry of `config`, or {}."""
    layers = quantized_layers(config, names)
    if not layers:
        return {}
    try:
        nn.quantize(model, class_predicate=lambda path, _: layers.get(path, False))
    except ValueError as error:
        raise ConfigError(f"config.json: quantization does not fit the layers ({error})") from error
    # what the configuration leaves open is as in the first of the layers
    return {**next(iter(layers.values())), **_quantization(config)}


def dequantize_layers(model: nn.Module) -> None:
    """Turn quantized layers into plain ones, in place."""
    plain: list[tuple[str, nn.Module]] = []
    for path, layer in model.named_modules():
        if isinstance(layer, (nn.QuantizedLinear, nn.QuantizedEmbedding)):
            plain.append((path, _dequantized(layer)))
    model.update_modules(tree_unflatten(plain))


def _dequantized(layer: nn.QuantizedLinear | nn.QuantizedEmbedding) -> nn.Module:
    """The plain layer of the same weights, rounded as they are."""
    if isinstance(layer, nn.QuantizedEmbedding):
        plain: nn.Linear | nn.Embedding = nn.Embedding(1, 1)
    else:
        plain = nn.Linear(1, 1, bias="bias" in layer)
    plain.weight = mx.dequantize(
        layer.weight,
        layer.scales,
        layer.get("biases"),
        group_size=layer.group_size,
        bits=layer.bits,
        mode=layer.mode,
    )
    if "bias" in layer:
        plain.update({"bias": layer.bias})
    return plain
