"""Row 3 with Whisper's real weights: ten minutes of real speech → text, by everyone's own function for recordings.

Each finds the speech, cuts, decodes greedily and falls back as it does by itself; batches of 8 where it has batches.
What comes out is held to what was said.
"""

from __future__ import annotations

import functools
from typing import Any

from benchmarks import models, word_errors
from benchmarks.rows import whisper_peers as peers
from benchmarks.suite import OURS, Call, Row

BATCH = 8
FASTER, CPP = "faster-whisper", "whisper.cpp, float16 weights"
Files = models.Whisper


def rows(device: str) -> list[Row]:
    gpu = device != "cpu"
    contenders: dict[str, Any] = {OURS: ours, FASTER: faster_whisper, "faster-whisper int8": faster_whisper_int8}
    contenders |= {"openai-whisper": openai_whisper, "mlx-whisper": mlx_whisper}
    contenders |= {"mlx-audio": mlx_audio} if gpu else {}  # on a CPU it takes four minutes
    contenders |= {CPP: whisper_cpp}
    return [
        Row(
            name="asr/base",
            title=f"transcribe {peers.SPOKEN / 60:g} min of real speech, Whisper base with its real weights",
            contenders=contenders,
            arguments={"files": models.real_whisper("base"), "device": device},
            agree=functools.partial(agree, beside=FASTER),
            seconds=float(peers.SPOKEN),
            targets={FASTER: 1.5 if gpu else 1.0, "mlx-whisper": 6.0 if gpu else 1.8},
            most=5 if gpu else 3,
            once=() if gpu else ("openai-whisper", "mlx-whisper", CPP),
        )
    ]


# --- contenders -------------------------------------------------------------------------------------------------------


def ours(files: Files, device: str) -> Call:
    peers.mlx(device, ours=True)
    import mlx_speech

    pipeline, samples = mlx_speech.Pipeline(files.ours, batch_size=BATCH), _samples()
    return lambda: pipeline(samples, language="en", word_timestamps=None).text


def faster_whisper(files: Files, device: str, kind: str = "float") -> Call:
    from faster_whisper import BatchedInferencePipeline

    pipeline, samples = BatchedInferencePipeline(peers.faster_whisper(files, device, kind)), _samples()

    def call() -> str:
        segments, _ = pipeline.transcribe(samples, language="en", batch_size=BATCH, beam_size=1)
        return " ".join(segment.text for segment in segments)

    return call


def faster_whisper_int8(files: Files, device: str) -> Call:
    return faster_whisper(files, device, "int8")


def openai_whisper(files: Files, device: str) -> Call:
    model, samples = peers.openai(files, device), _samples()
    fp16 = model.device.type != "cpu"
    return lambda: model.transcribe(samples, language="en", fp16=fp16)["text"]


def mlx_whisper(files: Files, device: str) -> Call:
    peers.mlx_whisper(files, device)  # which its `transcribe` finds
    from mlx_whisper import transcribe

    samples, options = _samples(), {"language": "en", "fp16": device != "cpu"}
    return lambda: transcribe(samples, path_or_hf_repo=str(files.mlx_whisper), **options)["text"]


def mlx_audio(files: Files, device: str) -> Call:
    model, samples = peers.mlx_audio(files, device), _samples()
    return lambda: model.generate(samples, language="en", fp16=device != "cpu").text


def whisper_cpp(files: Files, device: str) -> Call:
    model, samples = peers.whisper_cpp(files), _samples()
    return lambda: " ".join(segment.text for segment in model.transcribe(samples, language="en"))


def _samples() -> Any:
    return models.spoken(peers.SPOKEN).samples


# --- agreement --------------------------------------------------------------------------------------------------------


def agree(outputs: dict[str, str], beside: str) -> str:
    """Word errors of all; ours are no more than those of `beside`."""
    errors = word_errors.count(outputs, peers.SPOKEN)
    said = ", ".join(f"{name} {errors[name]}" for name in outputs)
    assert beside not in errors or errors[OURS].wrong <= errors[beside].wrong, said
    return said
