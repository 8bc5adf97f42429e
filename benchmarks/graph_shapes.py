"""Which shapes compiled functions are given while an hour of speech is transcribed: each is compiled once.

`mx.compile` traces a function, and fuses its kernels, for every shape of its arguments. Recordings of a folder are cut
by the pipeline's own voice activity detection and chunks; then they go through the running batches that a GPU has, with
a narrow Whisper of random weights, which writes as many tokens into a chunk as its length has, and through the windows
of the diarization, whose model is left out: only the sizes of its batches are wanted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from mlx_speech import backend as backend  # isort: skip  (before MLX)
import mlx.core as mx
from mlx.utils import tree_flatten

RATE = 16_000
HOUR = 3600.0
MINUTES = (1, 3, 7, 12, 2, 20, 5, 10)  # of the recordings that an hour is made of, in turn
CHUNK = 30.0  # seconds at most
TOKENS_PER_SECOND = 2
WINDOW = 10 * RATE  # samples of a window of the diarization, and a tenth of it from one to the next
BATCH_OF_WINDOWS = 32
TEMPERATURES = (0.0, 0.4)  # the second where the first fails, as all random weights do


@dataclass
class Shapes:
    """Of the arguments of compiled functions.

    given : function → shapes of its arguments → how often they came
    traced : function → how often it was traced
    """

    given: dict[str, Counter[tuple[Any, ...]]] = field(default_factory=dict)
    traced: Counter[str] = field(default_factory=Counter)

    def note(self, function: str, arguments: Any) -> None:
        """One call."""
        arrays = [array for _, array in tree_flatten(arguments) if isinstance(array, mx.array)]
        shapes = tuple((array.shape, str(array.dtype)) for array in arrays)
        self.given.setdefault(function, Counter())[shapes] += 1


@contextmanager
def shapes() -> Iterator[Shapes]:
    """Note the shapes that compiled functions are given inside, which are compiled anew, and go a GPU's ways."""
    from mlx_speech.blas import as_on_gpu
    from mlx_speech.ops import lstm
    from mlx_speech.stages.whisper import search

    noted = Shapes()
    with (
        as_on_gpu(),
        mock.patch.multiple(search, _compiled_choose=mock.DEFAULT),
        mock.patch.object(lstm, "_cell") as cell,
    ):
        for name, place, function in [
            ("choice of tokens", search._compiled_choose, search.choose_from_arrays),
            ("step of an LSTM", cell, lstm.cell),
        ]:
            place.side_effect = _compiled(noted, name, function)
        yield noted


def _compiled(noted: Shapes, name: str, function: Any) -> Any:
    """A function as MLX compiles it, whose calls and traces are noted."""

    def traced(*arguments: Any) -> Any:
        noted.traced[name] += 1
        return function(*arguments)

    compiled = mx.compile(traced)

    def call(*arguments: Any) -> Any:
        noted.note(name, arguments)
        return compiled(*arguments)

    return call


def recordings(folder: Path, seconds: float = HOUR, minutes: Sequence[float] = MINUTES) -> list[np.ndarray]:
    """Recordings of `seconds` in all, (samples,) each: the folder's, joined in the order of their names, over and
    over, and cut to so many minutes each. Raises `AudioError` where one cannot be read."""
    from mlx_speech import load_audio

    kinds = {".wav", ".flac", ".mp3", ".ogg", ".m4a"}
    files = sorted(file for file in folder.rglob("*") if file.suffix in kinds)
    joined = np.concatenate([load_audio(file) for file in files])
    joined = np.resize(joined, round(seconds * RATE))
    result: list[np.ndarray] = []
    start = 0
    while start < joined.size:
        stop = start + round(60 * minutes[len(result) % len(minutes)] * RATE)
        result.append(joined[start:stop])
        start = stop
    return result


def count(sounds: Sequence[np.ndarray], whisper: Any, batch_size: int) -> Shapes:
    """The shapes of `sounds`, whose chunks share batches as those of recordings that are given at once do."""
    import mlx_speech
    from mlx_speech.ops.lstm import lstm
    from mlx_speech.options import Options
    from mlx_speech.stages import windows
    from mlx_speech.stages.chunks import cut_chunks, speech_and_pad, widened
    from mlx_speech.stages.vad import detect_speech
    from mlx_speech.stages.whisper import fallback
    from mlx_speech.stages.whisper.decode import DecodingOptions, Job
    from mlx_speech.stages.whisper.tokenizer import Tokenizer

    vad = mlx_speech.load("silero_vad")
    detector = Options.of().detection.detector_options
    longest, pad = speech_and_pad(CHUNK)
    lengths: list[float] = []
    for sound in sounds:
        duration = sound.size / RATE
        regions = detect_speech(sound, vad, max_speech_duration_s=longest, **detector)
        chunks = cut_chunks(regions, duration=duration, chunk_size=longest)
        lengths += [chunk.duration for chunk in widened(chunks, pad=pad, duration=duration)]
    tokenizer = Tokenizer.find(None, whisper.args.n_vocab)
    options = DecodingOptions(temperature=TEMPERATURES, best_of=2)
    encoded = mx.zeros((whisper.args.n_audio_ctx, whisper.args.n_audio_state), mx.float16)
    jobs = []
    for place, length in enumerate(lengths):
        own = replace(options, sample_len=max(1, round(TOKENS_PER_SECOND * length)))
        jobs.append(Job(encoded, "en", key=place, options=own))
    with shapes() as noted:
        for _ in fallback.decode_with_fallback(jobs, whisper, tokenizer, options, batch_size=batch_size):
            pass
        weights = mx.zeros((2, 8, 2)), mx.zeros((2, 8, 2)), mx.zeros((2, 8))

        def compute(batch: windows.Batch, rows: slice) -> mx.array:
            """A narrow LSTM over four steps: what it is given has the batch's size, as that of PyanNet."""
            count = len(batch.starts)
            states = mx.zeros((2, count, 2))
            return lstm(mx.zeros((count, 4, 2)), *weights, (states, states))[0]

        for sound in sounds:
            starts = windows.starts(sound.size, WINDOW, WINDOW // 10)
            for _ in windows.slide(sound, starts, WINDOW, compute, BATCH_OF_WINDOWS):
                pass
    return noted


def report(folder: Path) -> str:
    """A section of `graph.md`, of an hour of the folder's recordings."""
    from benchmarks import graph

    sounds = recordings(folder)
    noted = count(sounds, graph.our_whisper(graph.NARROW), graph.BATCH)
    rows = ["| function | calls | shapes | compiled |", "|---|---|---|---|"]
    for name, given in noted.given.items():
        rows.append(f"| {name} | {given.total()} | {len(given)} | {noted.traced[name]} |")
    introduction = (
        f"{len(sounds)} recordings of {min(MINUTES)} to {max(MINUTES)} minutes, an hour in all, cut into chunks by the "
        f"pipeline's voice\nactivity detection; batches of {graph.BATCH} chunks and {BATCH_OF_WINDOWS} windows. "
        "GELU and other activations are compiled once\nfor all shapes."
    )
    return "\n\n".join([graph.HOUR, introduction, "\n".join(rows)])
