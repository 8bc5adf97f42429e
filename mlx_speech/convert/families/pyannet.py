"""PyanNet: Lightning checkpoints of pyannote.audio (multilabel of 2022, powerset since 3.0).

Sizes are read off the tensors; strides, chunk length, classes and powerset from what the checkpoint says of itself.
"""

from __future__ import annotations

from math import comb
from typing import Any

from mlx_speech.convert import fold
from mlx_speech.convert.formats.lightning import hyper_parameters, specifications
from mlx_speech.convert.port import Drop, Recipe, Table, same
from mlx_speech.convert.read import Source
from mlx_speech.errors import ConfigError, WeightsMismatch, brief, shorten
from mlx_speech.tensors import Tensor

PIPELINE_TAG = "voice-activity-detection"
TAGS = ["speaker-segmentation", "speaker-diarization", "pyannote"]

MAX_CLASSES = 100
MONO_LABEL, MULTI_LABEL = 1, 2  # pyannote.audio.core.task.Problem

FILTERBANK = "sincnet.conv1d.0.filterbank"

TABLE: Table = {
    **same("lstm.{}", "linear.{}", "classifier", "sincnet.conv0"),
    "sincnet.wav_norm1d": "sincnet.wav_norm",
    "sincnet.conv1d.{}": "sincnet.conv{}",
    "sincnet.norm1d.{}": "sincnet.norm{}",
    "loss_func": Drop("training loss"),
}


def recognise(source: Source) -> bool:
    return f"{FILTERBANK}.low_hz_" in source.tensors


def recipe(source: Source, language: str | None = None) -> Recipe:
    tensors = dict(source.tensors)
    parameters, specs = hyper_parameters(source), specifications(source)
    config = {**_sizes(tensors), **_task(specs, tensors)}
    sincnet = parameters.get("sincnet")
    config["sincnet_stride"] = sincnet.get("stride", 10) if isinstance(sincnet, dict) else 10
    config["sample_rate"] = parameters.get("sample_rate", 16000)
    fold.sinc(tensors, FILTERBANK, "sincnet.conv0.weight", config["sample_rate"])
    for layer in range(config["lstm_num_layers"]):
        names = [_lstm_name(tensors, layer) + direction for direction in ("", "_reverse")]
        fold.lstm(tensors, names if config["lstm_bidirectional"] else names[:1], f"lstm.{layer}")
    return Recipe(config, tensors, TABLE, "pyannote.audio")


def _lstm_name(tensors: dict[str, Tensor], layer: int) -> str:
    """One module for all layers ("monolithic"), or a module per layer."""
    monolithic = f"lstm.weight_ih_l{layer}"
    return monolithic if monolithic in tensors else f"lstm.{layer}.weight_ih_l0"


def _sizes(tensors: dict[str, Tensor]) -> dict[str, Any]:
    layers = len(fold.numbered(tensors, "lstm.weight_ih_l{}") or fold.numbered(tensors, "lstm.{}.weight_ih_l0"))
    if not layers or "classifier.weight" not in tensors:
        raise ConfigError("no LSTM or no classifier among the tensors of this PyanNet")
    read = ["classifier.weight", _lstm_name(tensors, 0), *(["linear.0.weight"] if "linear.0.weight" in tensors else [])]
    wrong = [name for name in read if len(tensors[name].shape) != 2]
    if wrong:
        raise WeightsMismatch(f"no matrices: {', '.join(wrong)}")
    linear = [name for name in tensors if name.startswith("linear.") and name.endswith(".weight")]
    first = _lstm_name(tensors, 0)
    width = tensors["linear.0.weight"].shape[0] if "linear.0.weight" in tensors else 1
    sizes = {"num_classes": tensors["classifier.weight"].shape[0], "lstm_hidden_size": tensors[first].shape[0] // 4}
    sizes |= {"lstm_num_layers": layers, "lstm_bidirectional": f"{first}_reverse" in tensors}
    return {**sizes, "linear_hidden_size": width, "linear_num_layers": len(linear)}


def _task(specs: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Chunk length, speakers and powerset, checked against the classifier."""
    classes, largest = specs.get("classes"), specs.get("powerset_max_classes")
    if not isinstance(classes, list) or "duration" not in specs:
        raise ConfigError(f"specifications without classes or duration (saw {shorten(sorted(map(str, specs)))})")
    problem = specs.get("problem", MULTI_LABEL if largest is None else MONO_LABEL)
    if problem != (MULTI_LABEL if largest is None else MONO_LABEL):
        raise ConfigError(f"problem {brief(problem)} with powerset_max_classes={brief(largest)} is not supported")
    outputs, count = tensors["classifier.weight"].shape[0], len(classes)
    if count > MAX_CLASSES or (largest is not None and (type(largest) is not int or not 0 < largest < 100)):
        raise ConfigError(f"powerset_max_classes is {brief(largest)} and there are {count} classes")
    expected = count if largest is None else sum(comb(count, k) for k in range(largest + 1))
    if outputs != expected:
        raise ConfigError(f"{outputs} outputs, but {count} classes with powerset_max_classes={largest} make {expected}")
    warm_up = specs["warm_up"] if isinstance(specs.get("warm_up"), list) else None
    return {"num_speakers": count, "powerset_max_classes": largest, "duration": specs["duration"], "warm_up": warm_up}
