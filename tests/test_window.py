"""A Whisper whose window is 10 s (`n_audio_ctx` 500): chunks, timestamps and windows are those of the model."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import originals as make
import pytest
import tiny
import whisper.decoding
import whisper.timing
from conftest import real
from test_longform import GREEDY, SMALL, converted, openai, recording, same, tokenizer

from mlx_speech import whisperx
from mlx_speech.convert import convert
from mlx_speech.errors import OptionError
from mlx_speech.pipeline import Pipeline
from mlx_speech.stages.whisper import word_times
from mlx_speech.stages.whisper.batched import samples_per_window
from mlx_speech.stages.whisper.decode import DecodingOptions
from mlx_speech.stages.whisper.longform import transcribe_sequential
from mlx_speech.stages.whisper.rules import Rules
from mlx_speech.transcript import Segment

OPTIONS = {"language": "en", "temperature": 0.0, "word_timestamps": None}
LATE = ((0.0, 4.0, " Hello there."), (4.0, 25.0, " That is beyond the window."))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A planted Whisper that hears 10 s and speaks of 25."""
    place = tmp_path_factory.mktemp("window")
    original = tiny.planted_whisper(LATE, n_audio_ctx=500)
    convert(str(make.save_openai(original, place / "short.pt")), place / "whisper")
    return place / "whisper"


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Pipeline:
    return Pipeline(folder)


def inside(segments: tuple[Segment, ...], duration: float) -> None:
    assert segments and all(0 < segment.duration <= 10 + 1e-6 and segment.end <= duration for segment in segments)
    assert all(before.end <= after.start + 1e-6 for before, after in pairwise(segments))


@pytest.mark.parametrize("more", [{}, {"vad": False}, {"chunk_size": 4}])
def test_chunks_fit_the_window(pipe: Pipeline, more: dict) -> None:
    result = pipe(real("data/diar/ami_debug/dev00.wav"), segment_resolution="chunk", **OPTIONS, **more)
    inside(result.segments, result.duration)
    longest = max(segment.duration for segment in result.segments)
    assert longest <= more.get("chunk_size", 10) + 1e-6 and longest > (3 if more.get("chunk_size") else 6)


def test_timestamps_stay_in_their_chunk(pipe: Pipeline) -> None:
    result = pipe(real("data/diar/ami_debug/dev00.wav"), vad=False, **OPTIONS)
    inside(result.segments, result.duration)
    edge = result.duration / 4  # four equal slices, as three would be too long by a few samples
    ends = [value for k in range(4) for value in (k * edge + 4.0, (k + 1) * edge)]
    assert [segment.end for segment in result.segments] == pytest.approx(ends)


def test_the_language_is_heard_in_the_window(pipe: Pipeline) -> None:
    for more in ({}, {"sequential": True}, {"multilingual": True}):
        result = pipe(real("data/audio/en/jfk.flac"), **{**OPTIONS, "language": None}, **more)
        assert result.language in pipe.models.whisper().tokenizer.languages


@pytest.mark.parametrize(("size", "window"), [(10.5, 10), (30, 10), (31, 30)])
def test_longer_chunks_than_the_window_are_refused(pipe: Pipeline, size: float, window: int) -> None:
    heard = pipe if window == 10 else Pipeline(tiny.folder() / "whisper")
    with pytest.raises(OptionError, match=rf"chunk_size is {size:g}, and the model's window {window} seconds"):
        heard(np.zeros(16000, np.float32), chunk_size=size, **OPTIONS)


def test_whisperx_has_the_window_of_the_model(folder: Path) -> None:
    found = whisperx.load_model(str(folder), language="en").transcribe(str(real("data/diar/ami_debug/dev00.wav")))
    assert max(segment["end"] - segment["start"] for segment in found["segments"]) <= 10 + 1e-6


@pytest.mark.parametrize("positions", [1500, 500])
def test_the_first_timestamp_is_limited_in_seconds(positions: int) -> None:
    args = converted(make.whisper_openai({**SMALL, "n_audio_ctx": positions})).args
    assert Rules(tokenizer(), DecodingOptions(), args).last_first == tokenizer().timestamp_begin + 50


@pytest.mark.parametrize("words", [False, True])
def test_windows_are_those_of_openai(words: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its constants, which say 30 s, brought to 10."""
    monkeypatch.setattr(openai, "N_FRAMES", 1000)
    monkeypatch.setattr(openai, "N_SAMPLES", 160_000)
    monkeypatch.setattr(whisper.decoding, "CHUNK_LENGTH", 10)
    monkeypatch.setattr(word_times, "tidy", lambda words, start, end: tuple(words))
    monkeypatch.setattr(whisper.timing, "dtw", lambda x: np.stack(word_times.dtw([x.numpy()])[0]))
    unfinished = {**GREEDY, "sample_len": 8}  # after its first timestamps, so that windows begin every 4 s
    cases = [
        (make.whisper_openai({**SMALL, "n_audio_ctx": 500}, seed), {**GREEDY, "sample_len": 24}) for seed in (1, 2)
    ]
    cases.append((tiny.planted_whisper(LATE, n_audio_ctx=500), {**unfinished, "condition_on_previous_text": False}))
    starts = set()
    for original, options in cases:
        make.scale(original.decoder.blocks[1].cross_attn.query.weight, 4.0)
        ours, audio = converted(original), recording(33.005)
        assert samples_per_window(ours) == 160_000
        how = {"language": None if options["sample_len"] == 24 else "en", "word_timestamps": words}
        expected = openai.transcribe(original, audio, fp16=False, **how, **options)
        condition = options.pop("condition_on_previous_text", True)
        found = transcribe_sequential(
            audio, ours, tokenizer(), DecodingOptions(**options), condition_on_previous_text=condition, **how
        )
        same(found, [segment for segment in expected["segments"] if segment["tokens"]], 33.005)
        assert all(segment.language == expected["language"] for segment in found)
        starts |= {segment.start for segment in found}
    assert len(starts) > 8 and max(starts) > 20
