"""Every keyword is known to a type checker: a mistake is an error there, and one clear line at run time."""

from __future__ import annotations

import dataclasses
import inspect
import json
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mlx_speech
from mlx_speech import convert, detect_speech, load, writers
from mlx_speech.errors import OptionError
from mlx_speech.fields import options_of
from mlx_speech.options import PUNCTUATIONS, SpeakerKeywords, SpeakerOptions, TranscribeOptions, flat_options
from mlx_speech.pipeline import Pipeline
from mlx_speech.stages import vad, vad_pyannet
from mlx_speech.stages.vad_options import (
    PyannetKeywords,
    PyannetOptions,
    SileroKeywords,
    SileroOptions,
    TimestampKeywords,
)
from mlx_speech.writers.cues import Layout, LayoutKeywords

ROOT = Path(mlx_speech.__file__).parent.parent
IMPORTS = """
import numpy as np
import mlx_speech
from mlx_speech import Pipeline, convert, detect_speech, load, writers

a = np.zeros(16000, np.float32)
pipe = Pipeline()
silero = load("silero_vad")
"""
WRONG = """
pipe("x", beem_size=5)
pipe("x", word_timestamps="nonsense")
pipe("x", beam_size="5")
detect_speech(a, silero, treshold=0.5)
convert.convert("x", qq=1)
"""
RIGHT = """
pipe("x", beam_size=5, temperature=0, clip_timestamps="0,2", sequential=True, word_timestamps=False)
pipe(a, sample_rate=16000, vad_method="pyannote", vad_options={"onset": 0.6}, word_timestamps="attention")
for source, result in pipe.transcribe(["x"], language="en", suppress_tokens=[-1], vad_options={"threshold": 0.4}):
    if not isinstance(result, Exception):
        print(result.segments[0].words, writers.to_srt(result, uri="x", max_line_width=42))
pipe.diarize("x", num_speakers=2, audio_track="all")
detect_speech(a, silero, threshold=0.5, max_speech_duration_s=10, time_resolution=1)
mlx_speech.convert.convert("x", quantize=True, q_bits=4)
"""


def checked(folder: Path, snippet: str) -> list[dict[str, Any]]:
    """What basedpyright says of a file of a user's, in its mode "standard"."""
    (folder / "snippet.py").write_text(IMPORTS + snippet, encoding="utf-8")
    settings = {"include": ["snippet.py"], "typeCheckingMode": "standard", "extraPaths": [str(ROOT)]}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    return json.loads(done.stdout)["generalDiagnostics"]


def test_a_type_checker_finds_mistakes_and_nothing_else(tmp_path: Path) -> None:
    found = checked(tmp_path, WRONG + RIGHT)
    first = IMPORTS.count("\n")
    lines = [entry["range"]["start"]["line"] for entry in found]
    assert [entry["severity"] for entry in found] == ["error"] * 5, found
    assert lines == [first + k for k in range(1, 6)], found
    for entry, name in zip(found, ("beem_size", "nonsense", "beam_size", "treshold", "qq"), strict=True):
        assert name in entry["message"]


@pytest.mark.parametrize(
    "given, said",
    [
        ({"beem_size": 5}, "there is no option 'beem_size': did you mean beam_size?"),
        ({"word_timestamps": "nonsense"}, "word_timestamps is 'nonsense': choose from ctc, attention, None"),
        ({"beam_size": "5"}, "beam_size is '5': give a whole number or None"),
    ],
)
def test_the_same_mistakes_are_found_before_a_file_is_opened(
    given: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*_: Any, **__: Any) -> None:
        raise AssertionError("a file was opened")

    monkeypatch.setattr("mlx_speech.recording.open_audio", opened)
    monkeypatch.setattr("mlx_speech.loading.load", opened)
    with pytest.raises(OptionError) as caught:
        Pipeline()("x", **given)
    assert str(caught.value) == said


def test_unknown_keywords_of_functions() -> None:
    def model(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was run")

    wrong: Any = {"treshold": 0.5}
    with pytest.raises(TypeError, match="unexpected keyword argument 'treshold'"):
        detect_speech(np.zeros(16_000, np.float32), model, **wrong)
    with pytest.raises(TypeError, match="unexpected keyword argument 'qq'"):
        convert.convert("x", **{"qq": 1})


# --- the keywords and the fields are the same ------------------------------------------------------------------------


def test_keywords_of_a_transcription_are_its_options() -> None:
    keywords = typing.get_type_hints(TranscribeOptions)
    beside = {"vad_options": SileroKeywords | PyannetKeywords, **dict.fromkeys(PUNCTUATIONS, str)}
    expected = {name: option.accepts for name, option in flat_options().items()}
    assert keywords == {**expected, **beside}
    assert not TranscribeOptions.__required_keys__


@pytest.mark.parametrize(
    "keywords, declared",
    [(SileroKeywords, SileroOptions), (PyannetKeywords, PyannetOptions), (LayoutKeywords, Layout)],
)
def test_keywords_are_those_of_the_fields(keywords: Any, declared: Any) -> None:
    accepted = {name: option.accepts for name, option in options_of(declared).items()}
    assert typing.get_type_hints(keywords) == accepted and not keywords.__required_keys__
    assert list(accepted) == [field.name for field in dataclasses.fields(declared)]


def test_numbers_of_speakers() -> None:
    accepted = {name: option.accepts for name, option in options_of(SpeakerOptions).items()}
    del accepted["diarize"]
    assert typing.get_type_hints(SpeakerKeywords) == accepted == dict.fromkeys(SpeakerOptions().numbers, int | None)


def test_detectors_have_the_same_options_and_defaults() -> None:
    for function, declared in (
        (vad.speech_timestamps, SileroOptions),
        (vad_pyannet.detect_speech_pyannet, PyannetOptions),
    ):
        defaults = {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}
        for name, option in options_of(declared).items():
            assert defaults[name] == option.default, name
    known = set(inspect.signature(vad.speech_timestamps).parameters)
    assert known - set(TimestampKeywords.__annotations__) == {"probabilities", "num_samples", "sampling_rate"}


def test_defaults_pass_their_own_checks() -> None:
    for option in [*flat_options().values(), *options_of(Layout).values()]:
        assert option.checked(option.default) == option.default
        assert option.about.help and "--" not in option.about.help


def test_every_writer_takes_every_layout() -> None:
    layout: Any = vars(Layout())
    for to in writers.FORMATS.values():
        assert isinstance(to(mlx_speech.Transcript(), uri="x", **layout), str)
    assert load is mlx_speech.load
