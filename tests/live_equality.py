"""Every recording of the test data, live and as a recording: `python tests/live_equality.py MODEL [--diarize]`.

MODEL is a folder of Whisper's weights. Each recording is fed in blocks of 1 … 48000 samples, and must end with the
text, the word times and the turns that the pipeline gives for all of it with the same options; then eight of them at
once, and all of them one behind the other. Prints what differs; exits with 1 where anything does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from conftest import DATA

import mlx_speech
from mlx_speech import Pipeline
from mlx_speech.live.events import Ended, Partial
from mlx_speech.samples import SAMPLE_RATE
from mlx_speech.transcript import Transcript

SOUNDS = (".wav", ".flac", ".mp3")
LANGUAGES = {"ja": "ja", "sv": "sv", "zh": "zh"}  # by folder; English otherwise
SIZES = (1, 160, 511, 512, 4_000, 48_000)
AT_ONCE = 8
LONGEST_DIFFERENCE = 1e-6  # seconds, of a word's time


def recordings() -> Iterator[tuple[str, np.ndarray, str]]:
    """Name, (samples,), language."""
    for path in sorted((DATA / "data").rglob("*")):
        if path.suffix in SOUNDS:
            yield path.name, mlx_speech.load_audio(path), LANGUAGES.get(path.parent.name, "en")


def blocks(sound: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    generator = np.random.default_rng(seed)
    start = 0
    while start < sound.size:
        size = int(generator.choice(SIZES))
        yield sound[start : start + size]
        start += size


def differences(live: Transcript, offline: Transcript) -> list[str]:
    """What is not the same; empty where all is."""
    found: list[str] = []
    if live.text != offline.text:
        found.append(f"text: {live.text!r}, and {offline.text!r}")
    ours = [word for segment in live.segments for word in segment.words]
    theirs = [word for segment in offline.segments for word in segment.words]
    if [word.text for word in ours] != [word.text for word in theirs]:
        found.append("words")
        return found
    for word, other in zip(ours, theirs, strict=True):
        if max(abs(word.start - other.start), abs(word.end - other.end)) > LONGEST_DIFFERENCE:
            found.append(f"time of {word}, and {other}")
        if word.speaker != other.speaker and live.diarization is None:
            found.append(f"speaker of {word}, and {other}")
    if [(s.start, s.end) for s in live.segments] != [(s.start, s.end) for s in offline.segments]:
        found.append("segments")
    if live.diarization is not None and offline.diarization is not None:
        found += _renamed(live, offline)
    return found


def _renamed(live: Transcript, offline: Transcript) -> list[str]:
    """Differences of the turns, up to one renaming of the speakers."""
    assert live.diarization is not None and offline.diarization is not None
    ours = live.diarization.exclusive
    theirs = offline.diarization.exclusive
    names: dict[str, str] = {}
    if len(ours) != len(theirs):
        return [f"{len(ours)} turns, and {len(theirs)}"]
    for turn, other in zip(ours, theirs, strict=True):
        if (turn.start, turn.end) != (other.start, other.end):
            return [f"{turn}, and {other}"]
        if names.setdefault(turn.speaker, other.speaker) != other.speaker:
            return [f"{turn} is {names[turn.speaker]}'s elsewhere, and {other}"]
    return []


def main() -> None:
    summary, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(description=summary, epilog=more)
    parser.add_argument("model", type=Path)
    parser.add_argument("--diarize", action="store_true")
    parser.add_argument("--partials", action="store_true", help="and make partials, which take long")
    arguments = parser.parse_args()
    options: dict[str, Any] = {"word_timestamps": "attention", "diarize": arguments.diarize or None}
    failed = 0
    with Pipeline(arguments.model) as pipeline:
        multilingual = pipeline.models.whisper().tokenizer.multilingual
        sounds = [sound for sound in recordings() if multilingual or sound[2] == "en"]
        for number, (name, sound, language) in enumerate(sounds):
            own = {**options, "language": language}
            offline = pipeline(sound, max_pause=0.6, chunk_size=15.0, **own)
            events = list(pipeline.live(blocks(sound, number), partials=arguments.partials, step=1.0, **own))
            last = events[-1]
            assert isinstance(last, Ended)
            found = differences(last.transcript, offline)
            count = sum(isinstance(event, Partial) for event in events)
            print(f"{name}: {sound.size / SAMPLE_RATE:.0f} s, {count} partials: {found or 'equal'}", flush=True)
            failed += bool(found)
        failed += at_once(pipeline, [sound for _, sound, language in sounds if language == "en"], options)
    sys.exit(1 if failed else 0)


def at_once(pipeline: Pipeline, sounds: list[np.ndarray], options: dict[str, Any]) -> int:
    """Eight sessions, of eight orders of the recordings; how many of them differ."""
    failed = 0
    orders = [np.concatenate([*sounds[k:], *sounds[:k]])[: 60 * SAMPLE_RATE] for k in range(AT_ONCE)]
    own = {**options, "language": "en"}
    sessions = [pipeline.session(partials=False, **own) for _ in orders]
    for session, sound in zip(sessions, orders, strict=True):
        for block in blocks(sound, 7):
            session.feed(block)
        session.end()
    for number, (session, sound) in enumerate(zip(sessions, orders, strict=True)):
        found = differences(session.result(), pipeline(sound, max_pause=0.6, chunk_size=15.0, **own))
        print(f"session {number} of {AT_ONCE}: {sound.size / SAMPLE_RATE:.0f} s: {found or 'equal'}", flush=True)
        failed += bool(found)
    return failed


if __name__ == "__main__":
    main()
