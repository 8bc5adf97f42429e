"""How often the host waits for the device while a minute of speech is heard, stage by stage: counted without a GPU.

The package's small models do the work on what is here, in float32, in the ways and batches that a GPU is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_speech import backend as backend  # isort: skip  (before MLX)
import numpy as np

from benchmarks import counting
from mlx_speech import Pipeline, detect_speech, load, load_audio
from mlx_speech.blas import as_on_gpu
from mlx_speech.package_data import DEMO
from mlx_speech.samples import SAMPLE_RATE
from mlx_speech.stages import align, diarize, vad
from mlx_speech.stages.whisper import batched, decode, word_times
from mlx_speech.transcript import Segment

BATCH = 8  # chunks at once
WINDOWS = 32  # at once, as `mlx_speech.stages.diarize` has them on a GPU
FRAME = 160  # samples


@dataclass(frozen=True)
class Stage:
    """waits : of the host, for `count` of `units`"""

    what: str
    count: int
    units: str
    waits: int


class Minute:
    """The demo's conversation, in as many chunks as its Whisper needs and in the windows of its diarization.

    seconds : of it, at most
    """

    def __init__(self, seconds: float) -> None:
        self.audio = load_audio(DEMO / "conversation.flac")[: round(seconds * SAMPLE_RATE)]
        with Pipeline.demo(dtype="float32") as pipeline:
            recogniser = pipeline.models.whisper()
        self.whisper, self.tokenizer = recogniser.model, recogniser.tokenizer
        self.silero = load("silero_vad")
        self.aligner: Any = load(DEMO / "wav2vec2", dtype="float32")
        self.speakers: Any = load(DEMO / "diarization", dtype="float32")
        size = batched.samples_per_window(self.whisper)
        self.chunks = [self.audio[start : start + size] for start in range(0, self.audio.size, size)]
        self.size, step = diarize.window_sizes(self.speakers)
        self.starts = list(range(0, self.audio.size - self.size + 1, step))

    def decoded(self, encoded: Any) -> list[Any]:
        """encoded : (chunks, positions, width). A `DecodingResult` of each chunk"""
        jobs = [decode.Job(row, "en", key=number) for number, row in enumerate(encoded)]
        options = decode.DecodingOptions()
        found = decode.decode(jobs, self.whisper, self.tokenizer, options, batch_size=BATCH)
        results = {job.key: result for job, result in found}
        return [results[number] for number in range(len(self.chunks))]

    def words(self, encoded: Any, results: Sequence[Any]) -> Any:
        """Their times, from the cross-attention."""
        texts = [[token for token in result.tokens if token < self.tokenizer.eot] for result in results]
        return word_times.find_alignment(
            encoded,
            texts,
            self.whisper,
            self.tokenizer,
            languages=["en"] * len(texts),
            num_frames=[chunk.size // FRAME for chunk in self.chunks],
        )

    def aligned(self, results: Sequence[Any]) -> Any:
        """The same, by forced alignment."""
        segments = []
        start = 0.0
        for chunk, result in zip(self.chunks, results, strict=True):
            end = start + chunk.size / SAMPLE_RATE
            segments.append(Segment(start, end, result.text))
            start = end
        return align.align(segments, self.audio, self.aligner, language="en", batch_size=BATCH)

    def segmented(self) -> np.ndarray:
        """(windows, frames, speakers)"""
        model = self.speakers.segmentation
        return np.concatenate(list(diarize.segment(self.audio, model, self.starts, self.size, WINDOWS)))

    def embedded(self, segmented: np.ndarray) -> np.ndarray:
        """(windows, speakers, dimension)"""
        masks = diarize.voice_masks(segmented, self.size, exclude_overlap=True)
        return np.concatenate(list(diarize.embed_voices(self.audio, self.speakers, self.starts, masks, WINDOWS)))


def stages(seconds: float = 60.0) -> list[Stage]:
    """What is counted, in the order in which a recording goes through it. seconds : as of `Minute`"""
    minute = Minute(seconds)
    found: list[Stage] = []

    def counted(what: str, count: int, units: str, work: Callable[[], Any]) -> Any:
        with counting.waits() as waits:
            result = work()
        found.append(Stage(what, count, units, waits.waits))
        return result

    chunks, windows = len(minute.chunks), len(minute.starts)
    blocks = math.ceil(minute.audio.size / SAMPLE_RATE / vad.SECONDS_PER_BLOCK)
    with as_on_gpu():
        counted("speech detection", blocks, "blocks", lambda: detect_speech(minute.audio, minute.silero))
        encoded = counted("encoder", chunks, "chunks", lambda: batched.encode(minute.chunks, minute.whisper))
        with counting.waits() as waits:
            results = minute.decoded(encoded)
        tokens = sum(len(result.tokens) + 1 for result in results)
        found.append(Stage("decoder", tokens, f"tokens, {BATCH} chunks at once", waits.waits))
        counted("words from the cross-attention", chunks, "chunks", lambda: minute.words(encoded, results))
        counted("forced alignment", chunks, f"chunks, {BATCH} at once", lambda: minute.aligned(results))
        segmented = counted("segmentation", windows, f"windows, {WINDOWS} at once", minute.segmented)
        counted("embedding", windows, f"windows, {WINDOWS} at once", lambda: minute.embedded(segmented))
    return found


def table(found: Sequence[Stage]) -> str:
    """Markdown."""
    lines = ["| stage | of | waits |", "|---|---|---|"]
    lines += [f"| {stage.what} | {stage.count} {stage.units} | {stage.waits} |" for stage in found]
    return "\n".join(lines)
