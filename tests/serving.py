"""What tests of the server share: a pipeline that needs no models, and an application in front of it."""

from __future__ import annotations

import io
import socket
import threading
import time
import wave
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from starlette.applications import Starlette

from mlx_speech.errors import AudioError
from mlx_speech.options import Options
from mlx_speech.pipeline import Pipeline
from mlx_speech.request import Heard, Progress, Request
from mlx_speech.samples import SAMPLE_RATE
from mlx_speech.server.app import create_app
from mlx_speech.server.settings import Settings
from mlx_speech.stages.whisper.workload import Workload
from mlx_speech.transcript import Chunk, Diarization, Segment, Transcript, Turn, Word


def said(*texts: str, speakers: tuple[str, ...] = ()) -> Transcript:
    """A second a text, a word a space."""
    segments: list[Segment] = []
    turns: list[Turn] = []
    for number, text in enumerate(texts):
        speaker = speakers[number] if speakers else None
        words = tuple(Word(number, number + 1.0, word, 0.9, speaker) for word in text.split())
        segments.append(Segment(number, number + 1.0, text, words, speaker, "en"))
        if speaker is not None:
            turns.append(Turn(number, number + 1.0, speaker))
    diarization = Diarization(tuple(turns), tuple(turns)) if speakers else None
    return Transcript(tuple(segments), "en", 1.0, float(len(texts)), diarization)


class Tokenizer:
    """Bytes."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: Any) -> str:
        return bytes(tokens).decode("utf-8", "replace")


class Scripted:
    """Stands for a pipeline. A recording that begins with "bad" is broken; others are heard as `transcript`.

    holds : requests do not end until it is set; they can be cancelled
    stalled_for : seconds
    asked : the options of every request; known : the chunks that each brought
    workload : of no decoder
    """

    def __init__(self, transcript: Transcript | None = None) -> None:
        self.transcript = transcript or said("Hello there.", "Who is it?")
        self.holds: threading.Event | None = None
        self.stalled_for = 0.0
        self.asked: list[dict[str, Any]] = []
        self.known: list[list[Heard]] = []
        self.requests: list[Request[Any]] = []
        self.heard: list[bytes] = []
        self.cancelled = 0
        self.closed = False
        self.models: Any = self
        self.tokenizer = Tokenizer()
        self.names: dict[str, str] = {}
        self.whisper_source = "scripted"
        self.workload = Workload()

    def whisper(self) -> Scripted:
        return self

    def keep_aligner(self, language: str) -> None:
        pass

    def submit(self, audio: Any, *, known: Iterable[Heard] = (), **options: Any) -> Request[Transcript]:
        self.known.append(list(known))
        return self._submit(audio, self.transcript, options)

    def submit_diarization(self, audio: Any, **numbers: Any) -> Request[Diarization]:
        return self._submit(audio, self.transcript.diarization or Diarization(), {**numbers, "diarize": True})

    def _submit(self, audio: Any, result: Any, options: dict[str, Any]) -> Request[Any]:
        Options.of(**options)
        request: Request[Any] = Request()
        self.asked.append(options)
        self.requests.append(request)
        holds = self.holds
        sound = audio.read() if hasattr(audio, "read") else b""  # now: whoever asks may close it at any moment

        def work() -> None:
            self.heard.append(sound)
            if sound.startswith(b"bad"):
                request._fail(AudioError(f"{audio.name}: is no recording of a known format, or broken"))
                return
            segments = getattr(result, "segments", ())
            for place in reversed(range(len(segments))):
                segment = segments[place]
                request._publish(Heard((segment,), place, Chunk(segment.start, segment.end)))
            request._publish(Progress("transcribe", 1.0, 2.0))
            while holds is not None and not holds.wait(0.005):
                if request.cancelled():
                    self.cancelled += 1
                    return
            request._finish(result)

        threading.Thread(target=work, daemon=True).start()
        return request

    def close(self) -> None:
        self.closed = True


def app_of(pipeline: Any, folder: Path, **settings: Any) -> Starlette:
    """An application with one model, "scripted"."""
    settings.setdefault("disk_reserve", 0)
    return create_app({"scripted": pipeline}, Settings(data_dir=folder, **settings), {"other": "scripted"})


def wav(samples: np.ndarray) -> bytes:
    """(samples,) at 16 kHz as a file of 16 bits."""
    sound = io.BytesIO()
    with wave.open(sound, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return sound.getvalue()


@contextmanager
def demo_pipeline(folder: Path) -> Iterator[Pipeline]:
    """The demo's models, converted into a folder of their own, and used once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLX_SPEECH_CACHE", str(folder))
        with Pipeline.demo() as pipeline:
            pipeline(np.zeros(SAMPLE_RATE, np.float32))
            yield pipeline


@contextmanager
def running(app: Any) -> Iterator[str]:
    """An app on a free port of this machine, in a thread, with its start and its end. Gives its origin."""
    place = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    place.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [place]}, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{place.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        place.close()
        assert not thread.is_alive()
