"""Samples of long recordings in a temporary file: the same to the last bit, out of memory, and nothing left behind."""

from __future__ import annotations

import gc
import io
import resource
import sys
import tempfile
import tracemalloc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_audio import encode, pcm, tone
from test_media import film

from mlx_speech import sample_file
from mlx_speech.audio import load_audio, load_tracks, louder, mix, open_audio, open_tracks
from mlx_speech.cli import sound as page
from mlx_speech.errors import AudioError
from mlx_speech.options import Options, TranscribeOptions
from mlx_speech.package_data import DEMO
from mlx_speech.pipeline import Pipeline
from mlx_speech.recording import Recording
from mlx_speech.sample_file import Collected, collected, in_file, let_go, pieces_of
from mlx_speech.samples import peak_of
from mlx_speech.stages.chunks import warn_if_silent
from mlx_speech.stages.tracks import likeness

RATE = 16_000
NOISE = np.random.default_rng(3).uniform(-0.5, 0.5, 200_000).astype(np.float32)
TURNED = np.where(np.arange(NOISE.size) < 100_000, -NOISE, NOISE)  # cancels NOISE in its first half
needs_proc = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not show its mappings")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder, which is empty."""
    here = tmp_path / "temporary"
    here.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(here))
    return here


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def in_a_file(samples: np.ndarray) -> np.ndarray:
    mapped = collected(iter(np.array_split(samples, 7)), "x", 0)
    assert in_file(mapped)
    return mapped


def resident(name: str) -> int:
    """kB of this process, by the kind that the system counts."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


# --- collecting ------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3000), max_size=8), st.integers(0, 9000))
def test_pieces_join(sizes: list[int], most_in_memory: int) -> None:
    pieces = [np.random.default_rng(size).normal(size=size).astype(np.float32) for size in sizes]
    whole = collected(iter(pieces), "x", most_in_memory)
    assert whole.dtype == np.float32 and whole.ndim == 1
    assert whole.tobytes() == b"".join(piece.tobytes() for piece in pieces)
    assert in_file(whole) == in_file(whole[1:][::2]) == (sum(sizes) > most_in_memory)


def test_strided_samples_and_those_that_a_bytearray_would_not_take() -> None:
    both = np.stack([NOISE, TURNED], axis=1)
    for most_in_memory in (0, 1e9):
        assert np.array_equal(collected([both[:, 1]], "x", most_in_memory), TURNED)


def test_samples_in_a_file_may_not_be_written_to() -> None:
    with pytest.raises(ValueError, match="read-only"):
        in_a_file(NOISE)[0] = 1


def test_pieces_are_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_file, "SAMPLES_PER_PIECE", 777)
    for samples in (NOISE[:5000], in_a_file(NOISE[:5000])):
        assert np.array_equal(np.concatenate(list(pieces_of(samples))), NOISE[:5000])
        assert peak_of(samples) == np.abs(NOISE[:5000]).max()
    channels = np.stack([NOISE[:5000], TURNED[:5000]])
    assert np.array_equal(np.concatenate(list(pieces_of(channels)), axis=1), channels)
    assert peak_of(channels) == np.abs(channels).max() and not list(pieces_of(NOISE[:0]))


@needs_proc
def test_what_was_looked_at_leaves_the_memory() -> None:
    quiet = np.full(1 << 20, 1e-4, np.float32)
    samples = collected((quiet for _ in range(64)), "x", 0)  # 256 MB
    before = resident("RssFile")
    assert peak_of(samples) == np.float32(1e-4) and not warn_if_silent(samples, [])
    assert resident("RssFile") - before < 20_000
    assert samples[::1024].sum() > 6  # looks at every page
    assert resident("RssFile") - before > 200_000
    let_go(samples[5:10])
    assert resident("RssFile") - before < 20_000
    let_go(quiet)
    assert samples[12345] == quiet[0]


# --- nothing is left behind ------------------------------------------------------------------------------------------


@needs_proc
def test_the_file_has_no_name_and_goes_with_the_samples(folder: Path) -> None:
    samples = in_a_file(NOISE)
    part = samples[10:20]
    del samples
    assert not any(folder.iterdir()) and str(folder) in Path("/proc/self/maps").read_text()
    assert np.array_equal(part, NOISE[10:20])
    del part
    gc.collect()
    assert str(folder) not in Path("/proc/self/maps").read_text()


@needs_proc
def test_what_is_not_taken_goes_too(folder: Path) -> None:
    def open_files() -> list[str]:
        return [str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]

    with pytest.raises(ZeroDivisionError), Collected("x", 0) as whole:
        whole.append(NOISE)
        assert any(str(folder) in name for name in open_files())
        raise ZeroDivisionError
    assert not any(folder.iterdir()) and not any(str(folder) in name for name in open_files())


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
@pytest.mark.parametrize("room", [0, 100_000, 4 * NOISE.size - 4])
def test_a_full_disk(folder: Path, room: int, tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    path.write_bytes(pcm((32767 * NOISE).astype(np.int16)))
    with largest_file(room), pytest.raises(AudioError) as caught:
        open_audio(path, longest_in_memory=1)
    assert "long.wav: the temporary folder does not take its samples (File too large): make room" in str(caught.value)
    assert "\n" not in str(caught.value) and not any(folder.iterdir())
    with largest_file(room):
        assert load_audio(path).size == NOISE.size
        assert open_audio(path, longest_in_memory=13).size == NOISE.size  # it has 12.5 s
    assert not any(folder.iterdir())


def test_a_temporary_folder_that_there_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(AudioError, match=r"^x: the temporary folder does not take its samples \(No such file"):
        in_a_file(NOISE)


# --- the same as in memory -------------------------------------------------------------------------------------------


def said_of(samples: np.ndarray, caught: list[warnings.WarningMessage]) -> tuple[bytes, list[str]]:
    return samples.tobytes(), [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    ("kind", "codec"), [("wav", "pcm_f32le"), ("flac", "flac"), ("ipod", "aac"), ("ogg", "libopus")]
)
def test_a_file_is_read_to_the_same_bits(kind: str, codec: str) -> None:
    """Also with channels that cancel, at another rate, louder than full scale, and broken off."""
    loud = 3 * NOISE if codec == "pcm_f32le" else NOISE
    files = [encode(kind, codec, 48_000, loud), encode(kind, codec, 48_000, np.stack([NOISE, TURNED]), "stereo")]
    files.append(files[0][: len(files[0]) * 2 // 3])
    for data in files:
        for rate in (RATE, 8_000):
            results: list[tuple[bytes, list[str]] | str] = []
            for read, options in ((load_audio, {}), (open_audio, {"longest_in_memory": 0.5}), (open_audio, {})):
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    try:
                        samples = read(io.BytesIO(data), sample_rate=rate, **options)
                    except AudioError as error:  # an m4a that breaks off
                        results.append(str(error))
                        continue
                assert in_file(samples) == (options != {})
                results.append(said_of(samples, caught))
            assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("value", [20.0, np.nan])
def test_a_file_on_another_scale_is_refused_in_the_same_words(value: float, folder: Path) -> None:
    sound = tone(300, RATE, 12)
    sound[5 * RATE] = 12.0
    sound[7 * RATE] = value
    data = encode("wav", "pcm_f32le", RATE, sound)
    messages: list[str] = []
    for read in (lambda: load_audio(io.BytesIO(data)), lambda: open_audio(io.BytesIO(data), longest_in_memory=1)):
        with pytest.raises(AudioError) as caught:
            read()
        messages.append(str(caught.value))
    peak = "20" if value == 20 else "12"
    assert messages[0] == messages[1] and f"its samples reach {peak}, " in messages[0]
    assert not any(folder.iterdir())


@pytest.mark.parametrize("level", [0.3, 5e-3, 1e-4])
def test_a_quiet_recording_is_made_as_loud(level: float) -> None:
    samples = level * NOISE
    mapped = in_a_file(samples)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        expected = louder(samples, "x")
        found = louder(mapped, "x")
    assert in_file(found) and found.tobytes() == expected.tobytes()
    assert (found is mapped) == (expected is samples) == (level != 5e-3)
    said = [str(warning.message) for warning in caught]
    assert len(said) == (0 if level == 0.3 else 2) and said[:1] == said[1:]


def test_tracks_are_mixed_to_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    data = film("matroska", "pcm_f32le", [(0.0, NOISE)], [(0.0, 1.8 * TURNED[:150_000])])
    expected = load_tracks(io.BytesIO(data))
    found = open_tracks(io.BytesIO(data), longest_in_memory=1)
    assert all(in_file(track) for track in found) and len(found) == 2
    for one, other in zip(expected, found, strict=True):
        assert one.tobytes() == other.tobytes()
    assert likeness(*found) == likeness(*expected)
    total = np.zeros(expected[0].size, np.float32)
    for track in expected:
        total[: track.size] += track
    loud = total / np.float32(np.abs(total).max())
    for size in (1 << 20, 999):
        monkeypatch.setattr("mlx_speech.audio.SAMPLES_PER_PIECE", size)
        assert not in_file(mix(expected)) and in_file(mix(found))
        assert mix(expected).tobytes() == mix(found).tobytes() == loud.tobytes()
    assert mix(found[:1]) is found[0] and not mix([NOISE[:0], NOISE[:0]]).size


def test_the_peaks_of_a_page() -> None:
    assert page.peaks_of(in_a_file(NOISE)) == page.peaks_of(NOISE)
    assert page.data_url(in_a_file(NOISE)) == page.data_url(NOISE)


def test_memory_of_a_long_recording_is_not_that_of_its_samples(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    path.write_bytes(pcm(np.zeros(RATE * 600)))  # 38 MB as floats
    tracemalloc.start()
    try:
        samples = open_audio(path, longest_in_memory=30)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert samples.size == RATE * 600 and peak < 8e6


def test_hours_of_silence_between_two_sounds_are_not_in_memory() -> None:
    sound = NOISE[: 190 * 1024]  # whole frames
    data = film("matroska", "pcm_f32le", [(0.0, sound), (3600.0, sound)])
    tracemalloc.start()
    try:
        samples = open_audio(io.BytesIO(data), longest_in_memory=30)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert samples.size == 3600 * RATE + sound.size and peak < 10e6
    assert np.array_equal(samples[-sound.size :], sound) and not samples[sound.size : -sound.size : 100].any()


@pytest.mark.parametrize("options", [{"diarize": True}, {"sequential": True, "word_timestamps": None}])
def test_a_transcript_from_a_file_is_that_from_memory(
    options: TranscribeOptions, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "short.wav"
    path.write_bytes(pcm((32767 * load_audio(DEMO / "conversation.flac")[: 11 * RATE]).astype(np.int16)))
    with Pipeline.demo() as pipeline:
        expected = pipeline(path, **options)
        opened: list[bool] = []

        def open_it(*arguments: Any, **keywords: Any) -> np.ndarray:
            samples = open_audio(*arguments, **keywords, longest_in_memory=2)
            opened.append(in_file(samples))
            return samples

        monkeypatch.setattr("mlx_speech.recording.open_audio", open_it)
        found = pipeline(path, **options)
    assert opened == [True] and found.segments and replace(found, seconds=expected.seconds) == expected
    gc.collect()
    maps = Path("/proc/self/maps")
    assert not any(folder.iterdir()) and not (maps.exists() and str(folder) in maps.read_text())


def test_a_recording_opens_by_what_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half an hour decides, here two seconds."""
    monkeypatch.setattr("mlx_speech.recording.open_audio", partial(open_audio, longest_in_memory=2))
    recording = Recording(DEMO / "pauses.flac", Options())
    recording.open(1e6)
    assert in_file(recording.audio) and recording.audio.tobytes() == load_audio(DEMO / "pauses.flac").tobytes()
    given = Recording(np.zeros(10 * RATE, np.float32), Options())
    given.open(1e6)
    assert not in_file(given.audio)
    recording.clock(1.0)
    given.clock(1.0)
