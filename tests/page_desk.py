"""Transcripts, sound and the ways of a person for tests of the page."""

from __future__ import annotations

import io
import re
import wave
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from page_server import Fake, Job

from mlx_speech.transcript import Diarization, Segment, Transcript, Turn, Word
from mlx_speech.writers import to_json

expect = pytest.importorskip("playwright.sync_api").expect
expect.set_options(timeout=10_000)  # milliseconds; on a busy machine


def spoken(text: str, start: float, speaker: str | None, score: float = 0.9) -> Segment:
    """A segment with a word every half a second."""
    words = tuple(
        Word(start + 0.5 * k, start + 0.5 * k + 0.4, word, score, speaker) for k, word in enumerate(text.split())
    )
    return Segment(start, words[-1].end, text, words, speaker, "en")


def meeting() -> Transcript:
    """Two speakers and five sentences, with two words that may be wrong."""
    segments = [
        spoken("Good morning, everybody.", 0.0, "SPEAKER_00"),
        spoken("Good morning. Is the coffee ready?", 2.0, "SPEAKER_01"),
        spoken("It is on the table.", 5.0, "SPEAKER_00"),
        spoken("We begin with the budgett for the year.", 8.0, "SPEAKER_00"),
        spoken("That is fine.", 12.5, "SPEAKER_01"),
    ]
    for place, index in ((1, 4), (3, 4)):
        words = list(segments[place].words)
        words[index] = replace(words[index], score=0.2)
        segments[place] = replace(segments[place], words=tuple(words))
    turns = tuple(Turn(one.start, one.end, one.speaker or "") for one in segments)
    return Transcript(tuple(segments), "en", duration=14.0, diarization=Diarization(turns, turns))


def tone(seconds: float) -> bytes:
    """A wav file of a soft tone."""
    samples = (3000 * np.sin(np.arange(int(8000 * seconds)) * 0.3)).astype("<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as output:
        output.setnchannels(1)
        output.setsampwidth(2)
        output.setframerate(8000)
        output.writeframes(samples.tobytes())
    return file.getvalue()


def opened(page: Any, server: Fake, transcript: Transcript | None = None, name: str = "meeting.wav") -> Job:
    """A transcript on the desk, as a job that has succeeded."""
    transcript = transcript or meeting()
    job = server.add(name, document=to_json(transcript), sound=tone(min(transcript.duration, 20.0)))
    page.goto(f"{server.origin}/#/{job.body['id']}")
    expect(page.locator("#name")).to_have_text(name)
    return job


def texts(page: Any) -> list[str]:
    """What all segments say; not their inner text, which is empty where a browser has not laid it out yet."""
    return page.locator(".segment .text").all_text_contents()


def word(page: Any, text: str) -> Any:
    return page.locator(".word", has_text=re.compile(f"^{re.escape(text)}$")).first
