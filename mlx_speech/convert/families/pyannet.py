"""PyanNet: Lightning checkpoints of pyannote.audio (multilabel of 2022, powerset since 3.0).

Sizes are read off the tensors; strides, chunk length, classes and powerset from what the checkpoint says of itself.
"""

from __future__ import annotations

from math import comb
from typing import Any

from mlx_speech.convert import fold
from mlx_speech.convert.families.lightning import hyper_parameters, specifications
from mlx_speech.convert.read import Source
from mlx_speech.convert.recipe import Drop, Recipe, Table, same
from mlx_speech.errors import ConfigError, WeightsMismatch, brief, shorten
from mlx_speech.tensors import Tensor

PIPELINE_TAG = "voice-activity-detection"
TAGS = ("speaker-segmentation", "speaker-diarization", "pyannote")
COMPANIONS = ()
TAKES_LANGUAGE = False

MAX_CLASSES = 100  # speakers of a chunk; the powerset of more would not be built
MONO_LABEL = 1  # pyannote.audio.core.task.Problem
MULTI_LABEL = 2
DEFAULT_STRIDE = 10  # pyannote's own, of the first convolution
DEFAULT_SAMPLE_RATE = 16000

FILTERBANK = "sincnet.conv1d.0.filterbank"
CLASSIFIER = "classifier.weight"
FIRST_LINEAR = "linear.0.weight"

TABLE: Table = {
    **same("lstm.{}", "linear.{}", "classifier", "sincnet.conv0"),
    "sincnet.wav_norm1d": "sincnet.wav_norm",
    "sincnet.conv1d.{}": "sincnet.conv{}",
    "sincnet.norm1d.{}": "sincnet.norm{}",
    "loss_func": Drop("training loss"),
}


def recognise(source: Source) -> bool:
    """The learned filters of SincNet."""
    return f"{FILTERBANK}.low_hz_" in source.tensors


def recipe(source: Source, language: str | None = None) -> Recipe:
    """The filters made, the LSTMs' layers folded.

    Raises `ConfigError` for a task other than diarization's, `WeightsMismatch` for tensors that are no PyanNet's.
    """
    tensors = dict(source.tensors)
    parameters = hyper_parameters(source)
    config = {**_sizes(tensors), **_task(specifications(source), tensors)}
    sincnet = parameters.get("sincnet")
    config["sincnet_stride"] = DEFAULT_STRIDE
    if isinstance(sincnet, dict):
        config["sincnet_stride"] = sincnet.get("stride", DEFAULT_STRIDE)
    config["sample_rate"] = parameters.get("sample_rate", DEFAULT_SAMPLE_RATE)
    fold.sinc(tensors, FILTERBANK, "sincnet.conv0.weight", config["sample_rate"])
    for layer in range(config["lstm_num_layers"]):
        forward = _lstm_name(tensors, layer)
        directions = [forward]
        if config["lstm_bidirectional"]:
            directions.append(f"{forward}_reverse")
        fold.lstm(tensors, directions, f"lstm.{layer}")
    return Recipe(config, tensors, TABLE, "pyannote.audio")


def _lstm_name(tensors: dict[str, Tensor], layer: int) -> str:
    """One module for all layers ("monolithic"), or a module per layer."""
    monolithic = f"lstm.weight_ih_l{layer}"
    return monolithic if monolithic in tensors else f"lstm.{layer}.weight_ih_l0"


def _sizes(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Widths and numbers of layers, as the tensors show them."""
    layers = fold.numbered(tensors, "lstm.weight_ih_l{}") or fold.numbered(tensors, "lstm.{}.weight_ih_l0")
    if not layers or CLASSIFIER not in tensors:
        raise ConfigError("no LSTM or no classifier among the tensors of this PyanNet")
    first_lstm = _lstm_name(tensors, 0)
    matrices = [CLASSIFIER, first_lstm]
    if FIRST_LINEAR in tensors:
        matrices.append(FIRST_LINEAR)
    misshapen = [name for name in matrices if len(tensors[name].shape) != 2]
    if misshapen:
        raise WeightsMismatch(f"no matrices: {', '.join(misshapen)}")
    linear_layers = [name for name in tensors if name.startswith("linear.") and name.endswith(".weight")]
    return {
        "num_classes": tensors[CLASSIFIER].shape[0],
        "lstm_hidden_size": tensors[first_lstm].shape[0] // 4,  # four gates
        "lstm_num_layers": len(layers),
        "lstm_bidirectional": f"{first_lstm}_reverse" in tensors,
        "linear_hidden_size": tensors[FIRST_LINEAR].shape[0] if FIRST_LINEAR in tensors else 1,
        "linear_num_layers": len(linear_layers),
    }


def _task(specs: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Chunk length, speakers and powerset, checked against the classifier. specs : of the checkpoint"""
    classes = specs.get("classes")
    largest = specs.get("powerset_max_classes")
    if not isinstance(classes, list) or "duration" not in specs:
        raise ConfigError(f"specifications without classes or duration (saw {shorten(sorted(map(str, specs)))})")
    expected_problem = MULTI_LABEL if largest is None else MONO_LABEL
    problem = specs.get("problem", expected_problem)
    if problem != expected_problem:
        raise ConfigError(f"problem {brief(problem)} with powerset_max_classes={brief(largest)} is not supported")
    count = len(classes)
    sound = largest is None or (type(largest) is int and 0 < largest < 100)
    if count > MAX_CLASSES or not sound:
        raise ConfigError(f"powerset_max_classes is {brief(largest)} and there are {count} classes")
    outputs = tensors[CLASSIFIER].shape[0]
    expected = count
    if largest is not None:
        expected = sum(comb(count, speakers) for speakers in range(largest + 1))
    if outputs != expected:
        raise ConfigError(f"{outputs} outputs, but {count} classes with powerset_max_classes={largest} make {expected}")
    warm_up = specs.get("warm_up")
    return {
        "num_speakers": count,
        "powerset_max_classes": largest,
        "duration": specs["duration"],
        "warm_up": warm_up if isinstance(warm_up, list) else None,
    }
