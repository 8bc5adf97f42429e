"""Row 3: samples → text, in chunks of 30 s, by everyone's own function for whole recordings.

Cut at the same places, by nobody's VAD, and decoded as `whisper_checks` says: 100 tokens a chunk from everyone.
"""

from __future__ import annotations

import functools
from typing import Any

from benchmarks import models
from benchmarks.rows import asr_real
from benchmarks.rows import whisper_checks as checks
from benchmarks.rows import whisper_peers as peers
from benchmarks.suite import OURS, Call, Row, Work

BATCH = 8
Files = models.Whisper


def rows(device: str, quick: bool) -> list[Row]:
    if quick:
        return [_row("tiny", 3, device, quick)]
    if models.are_at_hand():
        return asr_real.rows(device)
    return [_row(size, 20, device) for size in (("tiny",) if device == "cpu" else ("tiny", "small"))]


def _row(size: str, chunks: int, device: str, quick: bool = False) -> Row:
    files, gpu = models.whisper(size, quick), device != "cpu"
    contenders: dict[str, Any] = {OURS: ours, "mlx-whisper": mlx_whisper, "mlx-audio": mlx_audio}
    contenders |= {"faster-whisper": faster_whisper, "faster-whisper int8": faster_whisper_int8}
    targets = {"mlx-whisper": 6.0 if gpu else 1.8} | ({"faster-whisper": 1.5} if device == "cuda" else {})
    seconds = chunks * peers.WINDOW
    return Row(
        name=f"asr/{size}",
        title=f"transcribe {seconds / 60:g} min, Whisper {size}, {checks.TOKENS} tokens each 30 s",
        contenders=contenders,
        arguments={"files": files, "chunks": chunks, "device": device},
        # around the cuts each computes another spectrogram, of the whole recording or of the chunk
        agree=functools.partial(checks.agree_tokens, exact=not gpu, share=0.5, tolerance=2e-2),
        seconds=float(seconds),
        count=float(chunks * checks.TOKENS),
        work=_work(files.sizes, chunks, 2 if gpu else 4),
        targets=targets,
        most=5 if gpu else 1,
    )


def _work(dims: dict[str, int], chunks: int, size: int) -> Work:
    """In batches of `BATCH`; the spectrogram's, less than a hundredth of it, is left out."""
    batches = [min(BATCH, chunks - done) for done in range(0, chunks, BATCH)]
    parts = [checks.encoder_work(dims, rows, size) for rows in batches]
    parts += [checks.decoder_work(dims, [checks.TOKENS] * rows, size) for rows in batches]
    return Work(sum(part.operations for part in parts), sum(part.bytes for part in parts))


# --- contenders -------------------------------------------------------------------------------------------------------


def _samples(chunks: int) -> Any:
    return models.speech(chunks * peers.WINDOW)


def ours(files: Files, chunks: int, device: str) -> Call:
    peers.mlx(device, ours=True)
    import mlx_speech

    pipeline, samples = mlx_speech.Pipeline(files.ours, batch_size=BATCH), _samples(chunks)
    options: dict[str, Any] = {**checks.OPTIONS, **checks.OFF, "suppress_tokens": tuple(checks.special(files))}
    options |= {"language": "en", "temperature": 0.0, "vad": False, "word_timestamps": None}

    def call() -> list[checks.Decoded]:
        found = pipeline(samples, sample_rate=models.RATE, **options)
        return [(list(segment.tokens), segment.avg_logprob) for segment in found.segments]

    return call


def mlx_whisper(files: Files, chunks: int, device: str) -> Call:
    peers.mlx_whisper(files, device)  # which its `transcribe` finds
    from mlx_whisper import transcribe

    samples, options = _samples(chunks), _options(files) | {"fp16": device != "cpu"}

    def call() -> list[checks.Decoded]:
        found = transcribe(samples, path_or_hf_repo=str(files.mlx_whisper), **options)
        return [(segment["tokens"], segment["avg_logprob"]) for segment in found["segments"]]

    return call


def mlx_audio(files: Files, chunks: int, device: str) -> Call:
    model, samples = peers.mlx_audio(files, device), _samples(chunks)
    options = _options(files) | {"fp16": device != "cpu"}

    def call() -> list[checks.Decoded]:
        found = model.generate(samples, return_timestamps=False, **options)
        return [(segment["tokens"], segment["avg_logprob"]) for segment in found.segments]

    return call


def _options(files: Files) -> dict[str, Any]:
    """Of openai-whisper's `transcribe`, and of those who follow it."""
    found = {**checks.OPTIONS, **checks.OFF, "suppress_tokens": checks.special(files)}
    return found | {"language": "en", "temperature": (0.0,), "condition_on_previous_text": False}


def faster_whisper(files: Files, chunks: int, device: str, kind: str = "float") -> Call:
    """Its batched pipeline, told where to cut; it writes half of the tokens, with the prompt, that it is given."""
    from faster_whisper import BatchedInferencePipeline

    pipeline, samples = BatchedInferencePipeline(peers.faster_whisper(files, device, kind)), _samples(chunks)
    cuts = [{"start": k * peers.WINDOW, "end": (k + 1) * peers.WINDOW} for k in range(chunks)]
    options: dict[str, Any] = {"max_new_tokens": 2 * checks.TOKENS - checks.PROMPT, "beam_size": 1}
    options |= {"temperature": 0.0, "suppress_blank": False, "suppress_tokens": checks.special(files)}
    options |= {"language": "en", "without_timestamps": True, "batch_size": BATCH}

    def call() -> list[checks.Decoded]:
        segments, _ = pipeline.transcribe(samples, clip_timestamps=cuts, **options)
        return [(segment.tokens, segment.avg_logprob) for segment in segments]

    return call


def faster_whisper_int8(files: Files, chunks: int, device: str) -> Call:
    return faster_whisper(files, chunks, device, "int8")
