"""Options in Python: every spelling that others take, NumPy's numbers, and one clear line for what is none."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest

from mlx_speech.errors import OptionError, in_range
from mlx_speech.options import (
    GROUPS,
    PUNCTUATIONS,
    DecodingOptions,
    DetectionOptions,
    LongformOptions,
    Options,
    SpeakerOptions,
    WordOptions,
    flat_options,
)
from mlx_speech.pipeline import Pipeline
from mlx_speech.stages.vad_options import PyannetOptions, SileroOptions
from mlx_speech.stages.whisper import word_times


def test_numbers_of_numpy_are_numbers() -> None:
    found = Options.of(
        beam_size=np.int64(5), best_of=np.int16(2), seed=np.uint8(3), num_speakers=np.int64(2), patience=np.float32(2),
        temperature=np.array([0.0, 0.5]), chunk_size=np.int64(20), vad=np.bool_(True),
        suppress_tokens=np.array([-1, 5]),
    )  # fmt: skip
    decoding, numbers = found.decoding, found.speakers.num_speakers
    assert (decoding.beam_size, decoding.best_of, decoding.seed, numbers) == (5, 2, 3, 2)
    assert {type(value) for value in (decoding.beam_size, decoding.best_of, decoding.seed, numbers)} == {int}
    assert decoding.patience == 2.0 and type(decoding.patience) is float and found.detection.vad is True
    assert decoding.temperature == (0.0, 0.5) and decoding.suppressed() == [-1, 5]
    assert found.detection.chunk_size == 20.0
    assert Options.of(temperature=np.float32(0.5)).decoding.temperature == (0.5,)
    pipeline = Pipeline(
        batch_size=np.int64(4), q_bits=np.int64(8), memory_limit=np.float32(2), max_duration=np.int64(5)
    )
    assert pipeline.batch_size == 4 and type(pipeline.batch_size) is int
    assert Options.of(temperature=np.array(0.5), beam_size=np.array(3)).decoding.temperature == (0.5,)


def test_nothing_else_is_a_number() -> None:
    """Every option that is a number, with everything that is none: the message names the option and what to give."""
    for name, declared in flat_options().items():
        kinds = set(declared.kinds)
        if not kinds & {int, float} or name in ("temperature", "clip_timestamps", "suppress_tokens"):
            continue
        wrong: list[Any] = ["5", "", b"5", [5], {}, True, 5j, math.nan] + [2.5] * (int in kinds)
        for value in wrong:
            if value is True and bool in kinds:
                continue
            if value is wrong[7] and float in kinds and name.endswith("threshold"):
                continue  # nothing is above or below it: as None
            with pytest.raises(OptionError, match=f"^{name} is ") as caught:
                Options.of(**{name: value})
            assert "\n" not in str(caught.value)
    with pytest.raises(OptionError, match="beam_size is '5': give a whole number or None"):
        Options.of(beam_size="5")
    with pytest.raises(OptionError, match=r"beam_size is 2\.5: give a whole number or None"):
        Options.of(beam_size=2.5)


@pytest.mark.parametrize(
    "given",
    [
        *({"temperature": "0.2"}, {"temperature": ["0"]}, {"temperature": None}, {"temperature": {0: 1}}),
        *({"temperature": [True]}, {"clip_timestamps": "a"}, {"clip_timestamps": 3}, {"clip_timestamps": [None]}),
        *({"vad": "False"}, {"vad": 0}, {"diarize": "yes"}, {"language": 5}, {"initial_prompt": 5}, {"task": None}),
        *({"vad_options": []}, {"vad_options": {"threshold": "0.5"}}, {"suppress_tokens": 5}, {"seed": None}),
        *({"word_timestamps": "all"}, {"word_timestamps": 1.5}, {"vad_method": ["silero"]}, {"language": "en" * 500}),
    ],
    ids=str,
)
def test_values_of_another_kind_are_named(given: dict[str, Any]) -> None:
    (name,) = given
    named = "threshold" if given == {"vad_options": {"threshold": "0.5"}} else name
    with pytest.raises(OptionError, match=rf"^{named}\b") as caught:
        Options.of(**given)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "given",
    [
        *({"batch_size": "8"}, {"batch_size": 2.5}, {"batch_size": True}, {"batch_size": 0}, {"batch_size": None}),
        *({"memory_limit": "8"}, {"memory_limit": 0}, {"memory_limit": math.nan}, {"max_duration": "1"}),
        *({"max_duration": -1}, {"max_duration": math.nan}),
    ],
    ids=str,
)
def test_a_pipeline_says_so_when_it_is_made(given: dict[str, Any]) -> None:
    (name,) = given
    with pytest.raises(OptionError, match=f"^{name} is "):
        Pipeline(**given)
    assert Pipeline(memory_limit=math.inf, max_duration=math.inf)


def test_ranges_are_of_numbers() -> None:
    in_range(0, 1, a=None, b=np.float32(0.5), c=1)
    for value in ("0.5", [0.5], 2, math.nan):
        with pytest.raises(OptionError, match=r"^a is "):
            in_range(0, 1, a=value)  # type: ignore[arg-type]


# --- as others spell it ----------------------------------------------------------------------------------------------


def test_clips_of_mlx_whisper() -> None:
    for given, expected in (
        ("0,2", (0.0, 2.0)),
        ("0, 2.5 ,3,4", (0.0, 2.5, 3.0, 4.0)),
        ([0, 2], (0.0, 2.0)),
        (np.array([1, 2.5]), (1.0, 2.5)),
        (None, ()),
        ("", ()),
        ([], ()),
        ("0", ()),
    ):
        assert Options.of(sequential=True, clip_timestamps=given).longform.clip_timestamps == expected
    for everything in (None, "", "0", [0], [0.0], ()):  # the others' defaults need no `sequential`
        assert Options.of(clip_timestamps=everything).longform.clip_timestamps == ()
    with pytest.raises(OptionError, match="clip_timestamps needs sequential"):
        Options.of(clip_timestamps="0,2")


def test_word_times_of_the_command_line() -> None:
    kinds = {"none": None, None: None, False: None, True: "ctc", "ctc": "ctc", "attention": "attention"}
    for given, expected in kinds.items():
        assert Options.of(word_timestamps=given).word_method == expected


def test_marks_of_openai_whisper() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        usual = (word_times.PREPEND_PUNCTUATIONS, word_times.APPEND_PUNCTUATIONS)
        assert Options.of(**dict(zip(PUNCTUATIONS, usual, strict=True))) == Options()
        assert Options.of(suppress_tokens=None).decoding.suppressed() == []
    for name in PUNCTUATIONS:
        with pytest.warns(UserWarning, match=f"{name} has no meaning here"):
            assert Options.of(**{name: "!"}) == Options()


def test_defaults_of_mlx_whisper_pass() -> None:
    import inspect

    from mlx_whisper.transcribe import transcribe

    theirs = {name: p.default for name, p in inspect.signature(transcribe).parameters.items() if name != "audio"}
    given = {
        name: value for name, value in theirs.items() if name not in ("path_or_hf_repo", "verbose", "decode_options")
    }
    assert {*PUNCTUATIONS, "clip_timestamps", "word_timestamps", "temperature"} <= set(given)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = Options.of(**given, sequential=True)  # it goes window after window
    assert found == Options.of(sequential=True, condition_on_previous_text=True, word_timestamps=None)


def test_a_language_with_a_region_is_not_guessed_but_hinted_at() -> None:
    for given, code in (
        ("zh-CN", "zh"),
        ("pt_BR", "pt"),
        ("EN-us", "en"),
        ("chinese-simplified", "zh"),
        ("sr-Latn", "sr"),
    ):
        with pytest.raises(OptionError, match=rf"{given}.*did you mean {code}\?$"):
            Options.of(language=given)
    with pytest.raises(OptionError, match="did you mean"):
        Options.of(language="englisch")
    with pytest.raises(OptionError, match="give its name or its code"):
        Options.of(language="q-q")


# --- by stage --------------------------------------------------------------------------------------------------------


def test_keywords_go_to_their_stages() -> None:
    found = Options.of(
        beam_size=5, vad_options={"threshold": np.float32(0.25)}, sequential=False, word_timestamps=True, num_speakers=2
    )
    assert found.decoding == DecodingOptions(beam_size=5)
    assert found.detection.silero == SileroOptions(threshold=0.25) and found.detection.pyannote is None
    assert found.detection.detector_options == {**vars(SileroOptions()), "threshold": 0.25}
    assert found.words == WordOptions() and found.word_method == "ctc"
    assert found.speakers.wanted and found.wants_speakers and found.speakers.diarize is None
    assert found == Options(
        decoding=DecodingOptions(beam_size=5),
        detection=DetectionOptions(silero=SileroOptions(threshold=0.25)),
        speakers=SpeakerOptions(num_speakers=2),
    )
    assert Options.of(vad_method="pyannote").detection.detector == PyannetOptions()
    for name in GROUPS:  # a stage is no keyword
        with pytest.raises(OptionError, match=f"there is no option '{name}'"):
            Options.of(**{name: None})


def test_stages_check_their_own() -> None:
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        (SileroOptions, {"threshold": True}, "threshold is True: give a number"),
        (SileroOptions, {"threshold": 1.5}, "threshold is 1.5: it has to be from 0 to 1"),
        (SileroOptions, {"neg_threshold": 0.6}, "neg_threshold is 0.6: it has to be from 0 to 0.5"),
        (PyannetOptions, {"offset": 0.7}, "offset is 0.7: it has to be from 0 to 0.5"),
        (DecodingOptions, {"beam_size": "5"}, "beam_size is '5': give a whole number or None"),
        (DecodingOptions, {"beam_size": 101}, "beam_size is 101: it has to be from 1 to 100"),
        (DetectionOptions, {"vad_method": "webrtc"}, "vad_method is 'webrtc': choose from silero, pyannote"),
        (DetectionOptions, {"pyannote": PyannetOptions()}, "options of pyannote and vad_method 'silero' conflict"),
        (LongformOptions, {"clip_timestamps": (3, 2)}, "clip_timestamps is (3.0, 2.0): give seconds in order"),
        (WordOptions, {"interpolate_method": None}, "interpolate_method is None: choose from nearest, linear, ignore"),
        (SpeakerOptions, {"num_speakers": 2.5}, "num_speakers is 2.5: it has to be a whole number from 1"),
        (Options, {"audio_track": 0}, 'audio_track is 0: give a number from 1, or "all"'),
    ]
    for declared, given, said in wrong:
        with pytest.raises(OptionError) as caught:
            declared(**given)
        assert str(caught.value).startswith(said)


def test_values_have_the_types_of_their_fields() -> None:
    found = DecodingOptions(temperature=np.float32(0.5), suppress_tokens=np.array([1, 2]), seed=np.uint8(3))  # type: ignore[arg-type]
    assert found == DecodingOptions(temperature=(0.5,), suppress_tokens=(1, 2), seed=3)
    assert type(found.seed) is int and isinstance(hash(found), int)
