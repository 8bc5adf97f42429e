"""Silero VAD: recording → regions of speech, in samples, as each package's own function gives them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import models
from benchmarks.suite import OURS, Call, Row, Work

WINDOW = 512
LAYERS = [(4, 256, 258), (4, 3 * 129, 128), (2, 3 * 128, 64), (1, 3 * 64, 64), (1, 3 * 64, 128), (1, 256, 512)]
Regions = list[tuple[int, int]]


def rows(device: str, quick: bool) -> list[Row]:
    seconds = 20.0 if quick else 600.0
    windows = seconds * models.RATE / WINDOW
    # of a window: positions × inputs × outputs of every layer, and the head; read: samples and weights
    operations = 2 * windows * (sum(a * b * c for a, b, c in LAYERS) + 128)
    weights = sum(b * c for _, b, c in LAYERS)
    return [
        Row(
            "vad",
            f"Silero VAD of {seconds:g} s: samples to regions of speech",
            {OURS: ours, "silero-vad JIT": jit, "silero-vad ONNX": onnx, "silero-vad sequence ONNX": sequence},
            {"device": device, "seconds": seconds},
            agree,
            seconds=seconds,
            work=Work(operations, 4 * (seconds * models.RATE + windows + weights)),
            targets={"silero-vad sequence ONNX": 1.0, "silero-vad JIT": 4.0}
            if device == "cpu"
            else {"silero-vad sequence ONNX": 3.0},
        )
    ]


def ours(device: str, seconds: float) -> Call:
    models.use_mlx(device)
    import mlx_speech

    model = mlx_speech.load("silero_vad")
    samples = models.speech(seconds)

    def call() -> Regions:
        regions = mlx_speech.detect_speech(samples, model)
        return [(round(one.start * models.RATE), round(one.end * models.RATE)) for one in regions]

    return call


def _theirs(device: str, seconds: float, convert: Callable[[Any], Any], sequence: bool, **options: bool) -> Call:
    import silero_vad

    model = silero_vad.load_silero_vad(sequence=sequence, **options)
    if sequence:
        from silero_vad.sequence_vad import get_speech_timestamps_sequence as find
    else:
        find = silero_vad.get_speech_timestamps
    samples = convert(models.speech(seconds))
    return lambda: [(one["start"], one["end"]) for one in find(samples, model)]


def jit(device: str, seconds: float) -> Call:
    import torch

    return _theirs(device, seconds, torch.from_numpy, sequence=False)


def onnx(device: str, seconds: float) -> Call:
    import torch

    return _theirs(device, seconds, torch.from_numpy, sequence=False, onnx=True)


def sequence(device: str, seconds: float) -> Call:
    return _theirs(device, seconds, lambda samples: samples, sequence=True)


def agree(outputs: dict[str, Regions]) -> str:
    """A window at the threshold may fall to either side: it moves an edge by its 32 ms or, rarely, a region."""
    mine = outputs[OURS]
    said = []
    for name, theirs in outputs.items():
        if name == OURS:
            continue
        differing = _length(mine) + _length(theirs) - 2 * _common(mine, theirs)
        assert differing <= 0.001 * _length(theirs), f"{name}: {differing} samples of {_length(theirs)} differ"
        said.append(f"{name} {'equal' if mine == theirs else f'differs in {differing} samples'}")
    return f"{len(mine)} regions, {_length(mine) / models.RATE:.1f} s of speech; {', '.join(said)}."


def _length(regions: Regions) -> int:
    return sum(end - start for start, end in regions)


def _common(some: Regions, others: Regions) -> int:
    return sum(max(0, min(b, d) - max(a, c)) for a, b in some for c, d in others)
