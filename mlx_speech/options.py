"""All that can be asked of a transcription, in one place: a keyword of `Pipeline` is a field here, and a flag there."""

from __future__ import annotations

import difflib
import math
import typing
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

import numpy as np

from mlx_speech.audio import check_track
from mlx_speech.errors import OptionError, brief, in_range
from mlx_speech.languages import to_language_code
from mlx_speech.stages.cluster import speaker_bounds
from mlx_speech.stages.whisper.decode import DecodingOptions
from mlx_speech.stages.whisper.word_times import APPEND_PUNCTUATIONS, PREPEND_PUNCTUATIONS

# fmt: off
VAD_OPTIONS = {  # per detector, what its function takes (`stages.vad`)
    "silero": ("threshold", "neg_threshold", "min_speech_duration_ms", "min_silence_duration_ms", "speech_pad_ms",
               "min_silence_at_max_speech"),
    "pyannote": ("onset", "offset", "min_duration_on", "min_duration_off"),
}
CHOICES = {
    "vad_method": tuple(VAD_OPTIONS), "word_timestamps": ("ctc", "attention", None),
    "segment_resolution": ("sentence", "chunk"), "interpolate_method": ("nearest", "linear", "ignore"),
}
# fmt: on
OPTIONAL = ("neg_threshold",)  # of a detector: where it is None it follows from another one
# of openai-whisper and its kin: which marks belong to a word; here it is always these
PUNCTUATIONS = {"prepend_punctuations": PREPEND_PUNCTUATIONS, "append_punctuations": APPEND_PUNCTUATIONS}


@dataclass(frozen=True)
class Options(DecodingOptions):
    """What `DecodingOptions` has, and:

    language : code or name; detected where None
    multilingual : detect the language of every chunk, for recordings in several
    audio_track : which sound track of a file, counted from 1, or "all", mixed; by default the one that a player takes
    vad : cut at silences found by `vad_method`; otherwise every `chunk_size` seconds
    vad_options : of the detector, by its own names (`VAD_OPTIONS`)
    chunk_size : longest chunk in seconds; by default, and at most, the window of the model, which is 30 s in OpenAI's
    sequential : window after window, as openai/whisper reads long recordings, instead of chunks in batches
    condition_on_previous_text, carry_initial_prompt, clip_timestamps : of `sequential`, by openai/whisper's names; the
        first is on by default, as there
    hallucination_silence_threshold : seconds; text that looks made up, between silences longer than that, is left out
    word_timestamps : "ctc" (forced alignment by the language's wav2vec2), "attention" (Whisper's cross-attention) or
        None (True means "ctc"; False and "none" mean None). Translations have no CTC alignment.
    interpolate_method : time of words that could not be aligned: "nearest", "linear", or "ignore" (left out)
    return_char_alignments : characters with times in every aligned word
    segment_resolution : "sentence" or "chunk"
    diarize : find the speakers; on by itself where a number of them is given
    num_speakers, min_speakers, max_speakers : how many there are, if known

    Raises `OptionError` naming the option, or the two that conflict.
    """

    language: str | None = None
    multilingual: bool = False
    audio_track: int | str | None = None
    vad: bool = True
    vad_method: str = "silero"
    vad_options: Mapping[str, Any] = field(default_factory=dict)
    chunk_size: float | None = None
    sequential: bool = False
    condition_on_previous_text: bool | None = None
    carry_initial_prompt: bool = False
    clip_timestamps: tuple[float, ...] = ()
    hallucination_silence_threshold: float | None = None
    word_timestamps: str | bool | None = "ctc"
    interpolate_method: str = "nearest"
    return_char_alignments: bool = False
    segment_resolution: str = "sentence"
    diarize: bool | None = None
    num_speakers: int | None = None
    min_speakers: int | None = None
    max_speakers: int | None = None

    @classmethod
    def of(cls, **given: Any) -> Options:
        """Options from keywords, in every spelling that they may have.

        `temperature` may be one number, `clip_timestamps` text ("0,2.5") or None as in openai/whisper and WhisperX, and
        a language's name stands for its code. NumPy's numbers are numbers; text is none.
        Raises `OptionError` for unknown names and for values of another type or out of range.
        """
        for name, usual in PUNCTUATIONS.items():
            if given.pop(name, usual) != usual:
                warnings.warn(f"{name} has no meaning here: words take the usual marks with them", stacklevel=3)
        hints = typing.get_type_hints(cls)
        for name in given:
            if name not in hints:
                near = difflib.get_close_matches(name, hints, 1)
                advice = f"did you mean {near[0]}?" if near else "mlx_speech.options.Options has all of them"
                raise OptionError(f"there is no option {name!r}: {advice}")
        values = {name: _read(name, value, hints[name]) for name, value in given.items()}
        if values.get("word_timestamps") in (True, False, "none"):
            values["word_timestamps"] = "ctc" if values["word_timestamps"] is True else None
        if values.get("language") is not None:
            values["language"] = to_language_code(values["language"])
        if values.get("clip_timestamps") == (0.0,):  # all of the recording: openai/whisper's default
            values["clip_timestamps"] = ()
        return cls(**values)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                said = ", ".join(str(choice) for choice in choices)
                raise OptionError(f"{name} is {brief(getattr(self, name))}: choose from {said}")
        in_range(1, math.inf, chunk_size=self.chunk_size)
        in_range(0, math.inf, hallucination_silence_threshold=self.hallucination_silence_threshold)
        method, own = self.vad_method, VAD_OPTIONS[self.vad_method]
        for name, value in self.vad_options.items():
            if name not in own:
                raise OptionError(f"{name} is no option of vad_method {method!r}, whose are {', '.join(own)}")
            if not isinstance(value, Real) and not (value is None and name in OPTIONAL):
                raise OptionError(f"{name} is {brief(value)}: give a number")
        clips = self.clip_timestamps
        if list(clips) != sorted(clips) or not all(0 <= number < math.inf for number in clips):
            raise OptionError(f"clip_timestamps is {clips}: give seconds in order: start, end, start, end …")
        speaker_bounds(**self.speakers)
        check_track(self.audio_track)
        self._check_conflicts()

    def _check_conflicts(self) -> None:
        if not self.sequential:
            for name in ("condition_on_previous_text", "carry_initial_prompt", "clip_timestamps"):
                if getattr(self, name):
                    raise OptionError(f"{name} needs sequential: chunks in batches do not see each other's text")
        if self.carry_initial_prompt and self.initial_prompt is None:
            raise OptionError("carry_initial_prompt needs initial_prompt: give both or neither")
        conflicts = (
            ("diarize=False", self.diarize is False, "a number of speakers", self.wants_speakers),
            ("multilingual", self.multilingual, "language", self.language is not None),
            ("multilingual", self.multilingual, "sequential", self.sequential),
            ("sequential", self.sequential, "without_timestamps", self.without_timestamps),
            ("sequential", self.sequential, "prefix", self.prefix is not None),
            ("sequential", self.sequential, "vad_options", bool(self.vad_options)),
            ("sequential", self.sequential, "chunk_size", self.chunk_size is not None),
            ("translate", self.task == "translate", "return_char_alignments", self.return_char_alignments),
            ("vad=False", not self.vad, "vad_options", bool(self.vad_options)),
            ("return_char_alignments", self.return_char_alignments, "word_timestamps", self.word_timestamps != "ctc"),
        )
        for name, given, other, also in conflicts:
            if given and also:
                raise OptionError(f"{name} and {other} conflict: leave one of them out")

    def only(self, *names: str) -> dict[str, Any]:
        """These options, by name."""
        return {name: getattr(self, name) for name in names}

    @property
    def speakers(self) -> dict[str, Any]:
        """How many there are, by option."""
        return self.only("num_speakers", "min_speakers", "max_speakers")

    @property
    def wants_speakers(self) -> bool:
        """Whether diarization is asked for, by itself or by a number of speakers."""
        return bool(self.diarize) or any(number is not None for number in self.speakers.values())

    @property
    def words(self) -> str | None:
        """How words get their times; a translation's are not in the sound."""
        return None if self.task == "translate" and self.word_timestamps == "ctc" else self.word_timestamps or None  # type: ignore[return-value]


def _read(name: str, value: Any, hint: Any) -> Any:
    """`value` as the field `name` of type `hint` holds it. Raises `OptionError` where it is of another type."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if name == "temperature":
        numbers = [value] if isinstance(value, Real) else value
        return _numbers(name, numbers, "give a number, or several to be tried in turn")
    if name == "clip_timestamps":
        advice = "give seconds: start, end, start, end …"
        return () if value is None else _numbers(name, _split(name, value, advice), advice)
    if name == "suppress_tokens":  # `DecodingOptions` reads it
        return () if value is None else value
    if name == "vad_options":
        if not isinstance(value, Mapping):
            raise OptionError(f"vad_options is {brief(value)}: give a dict")
        return value
    kinds = typing.get_args(hint) or (hint,)
    if value is None and type(None) in kinds:
        return None
    if isinstance(value, (bool, np.bool_)):  # Python takes True for 1
        if bool in kinds:
            return bool(value)
    elif int in kinds and isinstance(value, Integral):
        return int(value)
    elif float in kinds and isinstance(value, Real):
        return float(value)
    elif str in kinds and isinstance(value, str):
        return value
    words = {int: "a whole number", float: "a number", str: "text", bool: "True or False", type(None): "None"}
    raise OptionError(f"{name} is {brief(value)}: give {' or '.join(words[kind] for kind in kinds)}")


def _split(name: str, value: Any, advice: str) -> Any:
    """Numbers of text with commas between them; what is no text stays."""
    if not isinstance(value, str):
        return value
    try:
        return [float(part) for part in value.split(",") if part.strip()]
    except ValueError as error:
        raise OptionError(f"{name} is {brief(value)}: {advice}") from error


def _numbers(name: str, values: Any, advice: str) -> tuple[float, ...]:
    several = isinstance(values, Iterable) and not isinstance(values, (str, Mapping))
    given: list[Any] = list(values) if several else [values]
    if any(isinstance(number, bool) or not isinstance(number, Real) for number in given):
        raise OptionError(f"{name} is {brief(values)}: {advice}")
    return tuple(float(number) for number in given)
