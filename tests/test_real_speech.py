"""Whisper base with its real weights on real recordings: no sentence is lost, none is made up, and the words are as
right as those of the originals, whose figures `hearing.py` keeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import hearing
import numpy as np
import pytest
from conftest import real, real_weights

from mlx_speech import Pipeline, detect_speech, load, load_audio
from mlx_speech.convert import convert
from mlx_speech.transcript import Transcript

PEERS = ("openai-whisper", "faster-whisper, batched")
KEPT = 0.97  # of the words
UNHEARD = 1.0  # seconds of speech that may be without words
SENTENCE = "it was my reports from the north which chiefly induced people to buy"


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(real_weights("whisper-base"), batch_size=8)


def test_the_figures_are_of_these_recordings() -> None:
    real("data/manifest.json")
    figures = hearing.read_figures()
    counted = hearing.by_language(hearing.recordings(), [sample.text for sample in hearing.recordings()])
    for name in ("ours", *PEERS):
        kept = {code: errors.words for code, errors in figures[name].errors["recordings"].items()}
        assert kept == {code: errors.words for code, errors in counted.items()}


def test_words_of_single_recordings_are_as_right_as_those_of_faster_whisper(pipeline: Pipeline) -> None:
    real("data/manifest.json")
    samples = hearing.recordings()
    found = hearing.by_language(samples, hearing.texts(pipeline, samples))
    theirs = hearing.read_figures()["faster-whisper, batched"].errors["recordings"]
    for code, errors in found.items():
        assert errors.total <= theirs[code].total, (code, errors)


def test_words_of_joined_recordings_are_kept(pipeline: Pipeline) -> None:
    real("data/manifest.json")
    samples = hearing.joined()
    found = hearing.total(hearing.by_language(samples, hearing.texts(pipeline, samples)))
    figures = hearing.read_figures()
    assert found.kept >= KEPT
    assert found.total <= min(hearing.total(figures[name].errors["joined"]).total for name in PEERS)


def speech_without_words(audio: np.ndarray, transcript: Transcript) -> list[tuple[float, float]]:
    """Regions longer than `UNHEARD` in which no word stands."""
    regions = [region for region in detect_speech(audio, load("silero_vad")) if region.duration > UNHEARD]
    return [
        (region.start, region.end)
        for region in regions
        if not any(word.start < region.end and region.start < word.end for word in transcript.words)
    ]


def test_a_lecture_has_all_its_sentences(pipeline: Pipeline) -> None:
    audio = load_audio(real("data/audio/vad/silero_test.wav"))
    transcript = pipeline(audio, word_timestamps="attention")
    assert "good luck with that" in transcript.text.lower()
    assert speech_without_words(audio, transcript) == []


# --- nothing made up --------------------------------------------------------------------------------------------------

RATE = hearing.RATE


def hiss(dice: np.random.Generator, seconds: int) -> np.ndarray:
    return dice.standard_normal(seconds * RATE) * 0.02


def music(dice: np.random.Generator, seconds: int) -> np.ndarray:
    """Plucked notes of seven harmonics, four a second."""
    length = RATE // 4
    time = np.arange(length) / RATE
    notes = []
    for _ in range(4 * seconds):
        pitch = 110 * 2 ** (dice.integers(0, 36) / 12)
        harmonics = [np.sin(2 * np.pi * pitch * k * time + 6 * dice.random()) / k for k in range(1, 8)]
        notes.append(sum(harmonics) * np.exp(-3 * time))
    tune = np.concatenate(notes)
    return 0.3 * tune / np.abs(tune).max()


def fan(dice: np.random.Generator, seconds: int) -> np.ndarray:
    """A hum that swells, in low noise."""
    time = np.arange(seconds * RATE) / RATE
    rumble = np.cumsum(dice.standard_normal(time.size))
    rumble -= np.linspace(rumble[0], rumble[-1], time.size)
    hum = np.sin(2 * np.pi * 120 * time) * (1 + 0.3 * np.sin(2 * np.pi * 3 * time))
    return 0.05 * rumble / np.abs(rumble).max() + 0.02 * hum


def test_tiny_in_four_bits_hears_both_sentences(tmp_path: Path) -> None:
    """It ends its text at the pause, and takes the second sentence by itself for silence, with a likely text."""
    convert(str(real_weights("whisper-tiny.en")), mlx_path=tmp_path / "tiny.en", quantize=True)
    with Pipeline(tmp_path / "tiny.en") as tiny:
        transcript = tiny(real("data/audio/en/jfk.flac"), word_timestamps="attention")
    assert transcript.text.endswith("ask what you can do for your country.")


def test_no_text_is_made_up_in_silence(pipeline: Pipeline) -> None:
    assert pipeline(np.zeros(60 * RATE, np.float32), word_timestamps="attention").text == ""


@pytest.mark.parametrize("sound", [hiss, music, fan])
def test_no_text_is_made_up(sound: Callable[[np.random.Generator, int], np.ndarray], pipeline: Pipeline) -> None:
    audio = sound(np.random.default_rng(0), 60).astype(np.float32)
    with pytest.warns(UserWarning, match="it is loud, yet only 0.0% counts as speech"):
        transcript = pipeline(audio, word_timestamps="attention")
    assert transcript.text == ""


def test_ten_minutes_of_near_silence_hold_one_sentence(pipeline: Pipeline) -> None:
    sentence = load_audio(real("data/audio/en/arctic_a0024.wav"))
    audio = np.random.default_rng(0).standard_normal(600 * RATE).astype(np.float32) * 1e-4
    place = 200 * RATE
    audio[place : place + sentence.size] += sentence
    transcript = pipeline(audio, word_timestamps="attention")
    assert hearing.normaliser("en")(transcript.text).strip() == SENTENCE
    first, last = transcript.words[0], transcript.words[-1]
    assert abs(first.start - 200) < 0.3  # the chunk begins that much before its speech
    assert first.start < last.end <= 200 + sentence.size / RATE + 0.3
