"""Whether `sequential` gives what openai-whisper's `transcribe` gives, with real weights, on every real recording.

    python tests/long_form.py            # Whisper base, every recording of the test data and three of 2 min
    python tests/long_form.py jfk 120    # those whose name begins so

Compared are the text, start and end of every segment and of every word, to a hundredth of a second: at temperature 0
with the thresholds of `transcribe` and without any. With temperatures in turn, as is the default, both sides draw other
samples; then the windows that fell back are named.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hearing
import numpy as np
import originals
import real_weights
import whisper

from mlx_speech import backend as backend  # before anything imports MLX
from mlx_speech import checkpoint, load_audio
from mlx_speech.convert import convert
from mlx_speech.stages.whisper.decode import DecodingOptions
from mlx_speech.stages.whisper.longform import transcribe_sequential
from mlx_speech.stages.whisper.tokenizer import Tokenizer
from mlx_speech.transcript import Segment

RATE = hearing.RATE
LONG = 120  # seconds of what is joined
NOISES = (0.0, 0.001, 0.005)  # of what is joined, root mean square
SOUNDS = (".wav", ".flac", ".mp3")
THRESHOLDS = ("no_speech_threshold", "logprob_threshold", "compression_ratio_threshold")
MODES: dict[str, dict[str, Any]] = {
    "thresholds": {"temperature": 0.0},
    "no thresholds": {"temperature": 0.0, **dict.fromkeys(THRESHOLDS)},
}


Timed = tuple[str, float, float]  # a segment or a word: its text without space around it, start and end in seconds


@dataclass(frozen=True)
class Heard:
    """What one side makes of a recording; temperatures : of its segments."""

    segments: list[Timed]
    words: list[Timed]
    temperatures: list[float]


@dataclass(frozen=True)
class Pair:
    """The original and our model of the same weights."""

    theirs: Any
    ours: Any
    tokenizer: Tokenizer


def load_pair(name: str = "base") -> Pair:
    folder = real_weights.folder() / f"whisper-{name}"
    theirs = originals.whisper_from_ctranslate2(folder / "model.bin")
    theirs.set_alignment_heads(whisper._ALIGNMENT_HEADS[name])
    with TemporaryDirectory() as temporary:
        path = Path(temporary) / "mlx"
        convert(str(folder), path)
        ours = checkpoint.load_folder(path, dtype="float32")
        tokenizer = Tokenizer.find(path, ours.args.n_vocab)
    return Pair(theirs, ours, tokenizer)


# --- recordings -------------------------------------------------------------------------------------------------------


@cache
def recordings() -> dict[str, np.ndarray]:
    """Every recording of the test data, (samples,), and three that last `LONG`."""
    files = [path for path in sorted((hearing.DATA / "data").rglob("*")) if path.suffix in SOUNDS]
    found = {path.name: load_audio(path) for path in files}
    joined = [hearing.in_turn(LONG, loudness, seed) for seed, loudness in enumerate(NOISES)]
    return found | {sample.name: sample.audio for sample in joined}


# --- both sides -------------------------------------------------------------------------------------------------------


def hear_theirs(pair: Pair, audio: np.ndarray, **options: Any) -> Heard:
    result = whisper.transcribe(pair.theirs, audio, fp16=False, verbose=None, word_timestamps=True, **options)
    said = [segment for segment in result["segments"] if segment["text"].strip()]
    return heard(
        [(segment["text"], segment["start"], segment["end"]) for segment in said],
        [[(word["word"], word["start"], word["end"]) for word in segment["words"]] for segment in said],
        [segment["temperature"] for segment in said],
        audio.size / RATE,
    )


def hear_ours(pair: Pair, audio: np.ndarray, **options: Any) -> Heard:
    segments: Iterable[Segment] = transcribe_sequential(
        audio, pair.ours, pair.tokenizer, DecodingOptions(**options), language=None, word_timestamps=True
    )
    return heard(
        [(segment.text, segment.start, segment.end) for segment in segments],
        [[(word.text, word.start, word.end) for word in segment.words] for segment in segments],
        [segment.temperature for segment in segments],
        audio.size / RATE,
    )


def heard(segments: list[tuple], words: list[list[tuple]], temperatures: list[float], duration: float) -> Heard:
    """Where ours differs by design, both sides get ours: nothing ends behind the recording, and a word begins with its
    segment, not before it."""
    placed = []
    for (_, start, _), said in zip(segments, words, strict=True):
        placed += [timed(text, max(begin, start), end, duration) for text, begin, end in said]
    return Heard([timed(*segment, duration) for segment in segments], placed, temperatures)


def timed(text: str, start: float, end: float, duration: float) -> Timed:
    return text.strip(), round(float(min(start, duration)), 2), round(float(min(end, duration)), 2)


def differences(theirs: Heard, ours: Heard) -> list[str]:
    """What is not the same, in words; empty if nothing is."""
    found = []
    for kind in ("segments", "words"):
        one, other = getattr(theirs, kind), getattr(ours, kind)
        if len(one) != len(other):
            found.append(f"{len(one)} {kind}, ours {len(other)}")
        found += [f"{a}, ours {b}" for a, b in zip(one, other, strict=False) if a != b]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python tests/long_form.py", description=__doc__.split("\n")[0])
    parser.add_argument("name", nargs="*", help="recordings whose name begins so (default: all)")
    wanted = tuple(parser.parse_args().name)
    warnings.simplefilter("ignore")
    pair = load_pair()
    for name, audio in recordings().items():
        if wanted and not name.startswith(wanted):
            continue
        for mode, options in MODES.items():
            theirs, ours = hear_theirs(pair, audio, **options), hear_ours(pair, audio, **options)
            apart = differences(theirs, ours)
            counts = f"{len(theirs.segments)} segments, {len(theirs.words)} words"
            print(
                f"{name}, {audio.size / RATE:.0f} s, {mode}: {counts}: {'; '.join(apart[:3]) or 'the same'}", flush=True
            )
        theirs, ours = hear_theirs(pair, audio), hear_ours(pair, audio)
        for side, result in (("openai-whisper", theirs), ("ours", ours)):
            hot = [
                f"{segment.text!r} at {t:g}"
                for segment, t in zip(result.segments, result.temperatures, strict=True)
                if t
            ]
            if hot:
                print(f"{name}: {side} falls back: {'; '.join(hot)}", flush=True)


if __name__ == "__main__":
    main()
