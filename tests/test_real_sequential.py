"""`sequential` with Whisper base's real weights gives the segments and words of openai-whisper's `transcribe`."""

from __future__ import annotations

import long_form
import pytest
import torch
from conftest import real, real_weights

from mlx_speech.samples import SAMPLE_RATE

# `python tests/long_form.py` compares every recording, in every mode
HEARD = {
    "jfk.flac": ("thresholds", "no thresholds"),
    "common_voice_ja_24511055.mp3": ("thresholds",),
    "silero_test.wav": ("thresholds",),
}
LONGEST = 70  # seconds of a recording: three windows


@pytest.fixture(scope="module")
def pair() -> long_form.Pair:
    real("data/manifest.json")
    real_weights("whisper-base")
    with torch.no_grad():
        return long_form.load_pair()


@pytest.mark.parametrize(("name", "mode"), [(name, mode) for name, modes in HEARD.items() for mode in modes])
def test_segments_and_words_are_those_of_openai(name: str, mode: str, pair: long_form.Pair) -> None:
    audio = long_form.recordings()[name][: LONGEST * SAMPLE_RATE]
    options = long_form.MODES[mode]
    theirs = long_form.hear_theirs(pair, audio, **options)
    ours = long_form.hear_ours(pair, audio, **options)
    assert theirs.words
    assert long_form.differences(theirs, ours) == []


def test_what_differs_is_found() -> None:
    word = ("one", 0.0, 0.5)
    later = ("one", 0.02, 0.5)
    heard = long_form.Heard([word], [word], [0.0])
    assert long_form.differences(heard, heard) == []
    assert len(long_form.differences(heard, long_form.Heard([word], [later], [0.0]))) == 1
    assert len(long_form.differences(heard, long_form.Heard([], [], []))) == 2
