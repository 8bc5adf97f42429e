"""What becomes of calls, models and the process where a pipeline is closed, cancelled, fails, or is not alone."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_speech import load_audio
from mlx_speech.audio import open_audio
from mlx_speech.environment import Environment
from mlx_speech.errors import AudioError, HubError, PipelineClosed, SourceNotFound
from mlx_speech.loading import HUB_SECONDS, Models
from mlx_speech.package_data import DEMO
from mlx_speech.pipeline import Pipeline
from mlx_speech.recording import Recording

OPTIONS: dict[str, Any] = {"word_timestamps": None, "temperature": 0.0}
SECONDS = 60.0  # that a thread has to end


@pytest.fixture(autouse=True)
def _cache(shared_cache: None) -> None:
    """The demo's models are converted once."""


@pytest.fixture
def sound() -> np.ndarray:
    return load_audio(DEMO / "conversation.flac")


def raised_by(call: Any) -> tuple[threading.Thread, list[BaseException]]:
    """A call in a thread of its own, and what it raises."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, errors


@pytest.mark.parametrize("what", ["call", "transcribe", "diarize"])
def test_a_call_that_is_under_way_when_its_pipeline_is_closed(what: str, sound: np.ndarray) -> None:
    pipe = Pipeline.demo()
    begun = threading.Event()
    calls = {
        "call": lambda: pipe(sound, on_progress=lambda *_: begun.set(), **OPTIONS),
        "transcribe": lambda: list(pipe.transcribe([sound] * 3, on_progress=lambda *_: begun.set(), **OPTIONS)),
        "diarize": lambda: pipe.diarize(sound, on_progress=lambda *_: begun.set()),
    }
    thread, errors = raised_by(calls[what])
    assert begun.wait(SECONDS)
    pipe.close()
    thread.join(SECONDS)
    (error,) = errors
    assert isinstance(error, PipelineClosed) and "make another one" in str(error)


def test_what_is_half_read_when_its_pipeline_is_closed_loads_nothing(sound: np.ndarray) -> None:
    pipe = Pipeline.demo(batch_size=1)
    results = pipe.transcribe([sound[:32_000], sound, sound], **OPTIONS)
    next(results)
    pipe.close()
    with pytest.raises(PipelineClosed):
        list(results)
    assert not pipe.models.loaded()


def test_little_memory_is_kept_to_where_something_fails(sound: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipeline.demo(low_memory=True)
    with pytest.raises(AudioError):
        pipe("missing.wav", **OPTIONS)
    assert not pipe.models.loaded()

    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no")

    monkeypatch.setattr("mlx_speech.pipeline.align_words", fails)
    with pytest.raises(RuntimeError):
        pipe(sound[:64_000], temperature=0.0)
    assert not pipe.models.loaded()


def test_a_request_that_is_cancelled_reads_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, ended = threading.Event(), threading.Event()

    def endless(self: Recording, max_duration: float) -> None:
        reading.set()
        while self.wanted:
            time.sleep(0.01)
        ended.set()

    monkeypatch.setattr(Recording, "open", endless)
    with Pipeline.demo() as pipe:
        request = pipe.submit("talk.wav", **OPTIONS)
        assert reading.wait(SECONDS)
        request.cancel()
        assert ended.wait(SECONDS)


def test_reading_ends_where_nobody_waits() -> None:
    asked: list[bool] = []

    def is_wanted() -> bool:
        asked.append(True)
        return len(asked) < 3

    with pytest.raises(AudioError, match="nobody waits for it any more"):
        open_audio(DEMO / "conversation.flac", is_wanted=is_wanted)
    assert len(asked) == 3


def test_limits_of_several_pipelines_end_with_the_last() -> None:
    """Whichever ends first: the strictest holds as long as it is wanted."""
    before = mx.get_memory_limit()
    one, other = Environment(None, 2.0), Environment(None, 4.0)
    first, second = one.entered(), other.entered()
    with first:
        assert mx.get_memory_limit() == 2_000_000_000
        second.__enter__()
        assert mx.get_memory_limit() == 2_000_000_000
    assert mx.get_memory_limit() == 4_000_000_000
    second.__exit__(None, None, None)
    assert mx.get_memory_limit() == before


def test_the_device_of_several_pipelines_is_as_before_behind_the_last() -> None:
    before = mx.default_device()
    first, second = Environment("cpu", None).device(), Environment("cpu", None).device()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert mx.default_device() == mx.Device(mx.cpu)
    second.__exit__(None, None, None)
    assert mx.default_device() == before


@pytest.mark.parametrize(("error", "asked"), [(HubError, 2), (SourceNotFound, 1)])
def test_a_hub_that_could_not_be_reached_is_asked_again(
    error: type[Exception], asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while; what is not there at all is not looked for again."""
    times: list[float] = []

    def find(source: Any) -> Any:
        times.append(now)
        raise error(f"{source}: no")

    now = 1000.0
    models = Models()
    monkeypatch.setattr(models._aligner, "find", find)
    monkeypatch.setattr("mlx_speech.loading.time.monotonic", lambda: now)
    with pytest.warns(UserWarning, match="no alignment model for 'de'"):
        assert models.aligner("de") is None
    now += HUB_SECONDS / 2
    assert models.aligner("de") is None and len(times) == 1
    now += HUB_SECONDS
    if asked == 2:
        with pytest.warns(UserWarning, match="no alignment model for 'de'"):
            assert models.aligner("de") is None
    else:
        assert models.aligner("de") is None
    assert len(times) == asked


def test_progress_names_what_the_caller_gave(sound: np.ndarray) -> None:
    seen: list[Any] = []
    with Pipeline.demo() as pipe:
        samples = sound[:32_000]
        pipe(samples, sample_rate=16_000, on_progress=lambda *told: seen.append(told[3]), **OPTIONS)
    assert seen and all(one is samples for one in seen)


def test_aligning_keeps_what_is_known(sound: np.ndarray, tmp_path: Path) -> None:
    from dataclasses import replace

    from mlx_speech.transcript import Region

    with Pipeline.demo() as pipe:
        samples = sound[:96_000]
        first = pipe(samples, temperature=0.0)
        known = replace(first, silences=(Region(1.0, 2.0),))
        again = pipe.align(known, samples)
    assert again.silences == known.silences
    assert again.models["whisper"] == first.models["whisper"] and again.models["vad"] == first.models["vad"]


def test_a_text_as_long_as_the_decoder_allows_has_words(sound: np.ndarray) -> None:
    """Where it never ends by itself, it still fits when the times of its words are found."""
    with Pipeline.demo() as pipe:
        whisper = pipe.models.whisper()
        options = {"suppress_tokens": [whisper.tokenizer.eot], "without_timestamps": True, "temperature": 0.0}
        longest = whisper.model.args.n_text_ctx
        result = pipe(sound[:48_000], sample_len=longest, word_timestamps="attention", **options)
    assert len(result.words) > 20
