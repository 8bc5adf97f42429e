"""All that can be asked of a transcription, by stage. A keyword of `Pipeline` is a field here, and a flag there.

`Options.of(**keywords)` sorts flat keywords into the stages; `TranscribeOptions` tells type checkers what they are. The
meaning of an option, its range and its choices stand with its field. Importing this imports no MLX: help is made of it.
"""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from mlx_speech.errors import OptionError, brief
from mlx_speech.fields import Option, check, option, options_of
from mlx_speech.languages import to_language_code
from mlx_speech.stages.vad_options import PyannetKeywords, PyannetOptions, SileroKeywords, SileroOptions
from mlx_speech.stages.whisper.options import DecodingOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

VadMethod = Literal["silero", "pyannote"]
WordMethod = Literal["ctc", "attention"]
Task = Literal["transcribe", "translate"]
Interpolation = Literal["nearest", "linear", "ignore"]
Resolution = Literal["sentence", "chunk"]
Dtype = Literal["float16", "bfloat16", "float32"]
AudioTrack = int | Literal["all"] | None

DETECTORS: dict[VadMethod, type[SileroOptions] | type[PyannetOptions]] = {
    "silero": SileroOptions,
    "pyannote": PyannetOptions,
}
# WhisperX's names of a detector's thresholds → the detector's own
WHISPERX_THRESHOLDS: dict[str, dict[VadMethod, str]] = {
    "vad_onset": {"silero": "threshold", "pyannote": "onset"},
    "vad_offset": {"silero": "neg_threshold", "pyannote": "offset"},
}
# WhisperX's compute_type, of CTranslate2, and "int4" → dtype, and bits of quantized weights
COMPUTE_TYPES: dict[str, tuple[Dtype | None, int | None]] = {
    "default": (None, None),
    "auto": (None, None),
    "int16": (None, None),
    "float16": ("float16", None),
    "bfloat16": ("bfloat16", None),
    "float32": ("float32", None),
    "int8": (None, 8),
    "int8_float16": ("float16", 8),
    "int8_bfloat16": ("bfloat16", 8),
    "int8_float32": ("float32", 8),
    "int4": (None, 4),
}
CLIPS_ADVICE = "give seconds: start, end, start, end …"
SPEAKERS_ADVICE = "it has to be a whole number from 1"
NEEDING_SEQUENTIAL = ("condition_on_previous_text", "carry_initial_prompt", "clip_timestamps")
# of openai-whisper and its kin: which marks belong to a word; here it is always the usual ones
PUNCTUATIONS = ("prepend_punctuations", "append_punctuations")


def _language_code(name: str, value: Any) -> Any:
    return to_language_code(value) if isinstance(value, str) else value


def _language_codes(name: str, value: Any) -> Any:
    """Codes with commas between them, of codes or names, in text or in a sequence."""
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, Sequence):
        return value
    codes: list[str] = []
    for language in value:
        if not isinstance(language, str):
            raise OptionError(f"{name} is {brief(value)}: give codes of languages, such as de,en")
        codes.append(to_language_code(language.strip()))
    return ",".join(codes) or None


def _clips(name: str, value: Any) -> Any:
    """Numbers of text with commas between them, as openai/whisper and WhisperX have it; None is no clips."""
    if value is None:
        return ()
    if not isinstance(value, str):
        return value
    try:
        return [float(number) for number in value.split(",") if number.strip()]
    except ValueError as error:
        raise OptionError(f"{name} is {brief(value)}: {CLIPS_ADVICE}") from error


def _word_method(name: str, value: Any) -> Any:
    """True, False and "none" as openai/whisper and the command line say them."""
    if isinstance(value, bool):
        return "ctc" if value else None
    if isinstance(value, str) and value == "none":
        return None
    return value


@dataclass(frozen=True)
class DetectionOptions:
    """Recording → regions of speech → chunks. `silero` and `pyannote` hold what was asked of the one or other detector.

    Raises `OptionError`, naming the option, or the two that conflict.
    """

    vad: bool = option(True, "cut at silences that the detector finds; otherwise wherever a chunk is full")
    vad_method: VadMethod = option("silero", "detector of speech")
    chunk_size: float | None = option(
        None, "longest chunk in seconds, at most the model's window", unset="the window, 30 in OpenAI's", low=1
    )
    max_pause: float | None = option(
        None, "longest pause inside a chunk, in seconds", unset="any, where there is room", low=0
    )
    silero: SileroOptions | None = None
    pyannote: PyannetOptions | None = None

    def __post_init__(self) -> None:
        check(self)
        for method in DETECTORS:
            if method != self.vad_method and getattr(self, method) is not None:
                raise OptionError(
                    f"options of {method} and vad_method {self.vad_method!r} conflict: leave one of them out"
                )
        if not self.vad and self.has_vad_options:
            raise _conflict("vad=False", "vad_options")
        if not self.vad and self.max_pause is not None:
            raise _conflict("vad=False", "max_pause")

    @property
    def has_vad_options(self) -> bool:
        """Whether anything was asked of the detector itself."""
        return self.silero is not None or self.pyannote is not None

    @property
    def detector(self) -> SileroOptions | PyannetOptions:
        """The options of the detector that is chosen."""
        return getattr(self, self.vad_method) or DETECTORS[self.vad_method]()

    @property
    def detector_options(self) -> dict[str, Any]:
        """The same as keywords of its function (`stages.vad`)."""
        return dict(vars(self.detector))


@dataclass(frozen=True)
class LongformOptions:
    """Window after window, as openai/whisper reads long recordings, instead of chunks in batches; its names.

    Raises `OptionError`, naming the option.
    """

    sequential: bool = option(False, "window after window, as openai/whisper, instead of chunks in batches")
    condition_on_previous_text: bool | None = option(
        None, "with `sequential`: the text so far is the prompt", unset="on"
    )
    carry_initial_prompt: bool = option(False, "with `sequential`: put the initial prompt before every window")
    clip_timestamps: tuple[float, ...] = option(
        (),
        "with `sequential`: start,end,start,end … in seconds",
        unset="all of the recording",
        advice=CLIPS_ADVICE,
        read=_clips,
        accepts=str | Sequence[float] | None,
    )

    def __post_init__(self) -> None:
        check(self)
        if self.clip_timestamps == (0.0,):  # all of the recording: openai/whisper's default
            object.__setattr__(self, "clip_timestamps", ())
        clips = self.clip_timestamps
        if list(clips) != sorted(clips) or not all(0 <= number < math.inf for number in clips):
            raise OptionError(f"clip_timestamps is {clips}: give seconds in order: start, end, start, end …")
        if self.sequential:
            return
        for name in NEEDING_SEQUENTIAL:
            if getattr(self, name):
                raise OptionError(f"{name} needs sequential: chunks in batches do not see each other's text")

    @property
    def keywords(self) -> dict[str, Any]:
        """As keywords of `stages.whisper.longform.transcribe_sequential`."""
        return {
            "condition_on_previous_text": self.condition_on_previous_text is not False,
            "carry_initial_prompt": self.carry_initial_prompt,
            "clip_timestamps": self.clip_timestamps,
        }


@dataclass(frozen=True)
class WordOptions:
    """Segments → words with times, and what is made of them. Translations have no CTC alignment.

    Raises `OptionError`, naming the option, or the two that conflict.
    """

    word_timestamps: WordMethod | None = option(
        "ctc",
        "ctc: forced alignment by the language's wav2vec2; attention: Whisper's own; none: no times",
        read=_word_method,
        accepts=Literal["ctc", "attention", "none"] | bool | None,
    )
    interpolate_method: Interpolation = option("nearest", "time of words that cannot be aligned; ignore: left out")
    return_char_alignments: bool = option(False, "characters with times, in the json")
    segment_resolution: Resolution = option("sentence", "what becomes a segment")
    hallucination_silence_threshold: float | None = option(
        None, "leave out text that looks made up, between longer silences, in seconds", low=0
    )

    def __post_init__(self) -> None:
        check(self)
        if self.return_char_alignments and self.word_timestamps != "ctc":
            raise _conflict("return_char_alignments", "word_timestamps")

    @property
    def alignment(self) -> dict[str, Any]:
        """Those of `stages.align.align`, as its keywords."""
        return {
            "interpolate_method": self.interpolate_method,
            "return_char_alignments": self.return_char_alignments,
        }


@dataclass(frozen=True)
class SpeakerOptions:
    """Who speaks. A number of speakers asks for them, too.

    Raises `OptionError`, naming the option, or the two that conflict.
    """

    diarize: bool | None = option(None, "find the speakers", unset="if a number of them is given")
    num_speakers: int | None = option(None, "exactly so many", low=1, advice=SPEAKERS_ADVICE)
    min_speakers: int | None = option(None, "at least so many", low=1, advice=SPEAKERS_ADVICE)
    max_speakers: int | None = option(None, "at most so many", low=1, advice=SPEAKERS_ADVICE)

    def __post_init__(self) -> None:
        check(self)
        if not self.has_numbers:
            return
        from mlx_speech.stages.cluster import speaker_bounds  # it imports MLX

        speaker_bounds(**self.numbers)
        if self.diarize is False:
            raise _conflict("diarize=False", "a number of speakers")

    @property
    def numbers(self) -> SpeakerKeywords:
        """How many there are, by option."""
        return {
            "num_speakers": self.num_speakers,
            "min_speakers": self.min_speakers,
            "max_speakers": self.max_speakers,
        }

    @property
    def has_numbers(self) -> bool:
        """Whether a number of speakers was given."""
        return any(number is not None for number in self.numbers.values())

    @property
    def wanted(self) -> bool:
        """Whether diarization is asked for, by itself or by a number of speakers."""
        return bool(self.diarize) or self.has_numbers


@dataclass(frozen=True)
class Options:
    """All of a transcription: what concerns the whole of it, and the options of its stages.

    Raises `OptionError` naming the option, or the two that conflict.
    """

    language: str | None = option(None, "code or name", unset="detected", read=_language_code)
    languages: str | None = option(
        None,
        "detect among these alone: codes with commas between them",
        unset="all that the model knows",
        read=_language_codes,
        accepts=str | Sequence[str] | None,
    )
    multilingual: bool = option(False, "detect the language of every chunk, for recordings in several")
    audio_track: AudioTrack = option(
        None,
        "which sound track of several, from 1, or all of them, mixed",
        unset="the one that a player takes",
        low=1,
        advice='give a number from 1, or "all"',
    )
    decoding: DecodingOptions = field(default_factory=DecodingOptions)
    detection: DetectionOptions = field(default_factory=DetectionOptions)
    longform: LongformOptions = field(default_factory=LongformOptions)
    words: WordOptions = field(default_factory=WordOptions)
    speakers: SpeakerOptions = field(default_factory=SpeakerOptions)

    @classmethod
    def of(cls, **keywords: Unpack[TranscribeOptions]) -> Options:
        """Options of flat keywords, in every spelling that they may have.

        `temperature` may be one number, `clip_timestamps` text ("0,2.5") or None as in openai/whisper and WhisperX, and
        a language's name stands for its code. NumPy's numbers are numbers; text is none.
        Raises `OptionError` for unknown names and for values of another type or out of range.
        """
        values: dict[str, Any] = dict(keywords)
        _leave_out_punctuations(values)
        known = flat_options()
        for name in values:
            if name not in known and name != "vad_options":
                raise _unknown(name, [*known, "vad_options"])
        vad_options = values.pop("vad_options", {})
        groups: dict[str, dict[str, Any]] = {group: {} for group in GROUPS}
        own: dict[str, Any] = {}
        for name, value in values.items():
            group = _group_of(name)
            target = own if group is None else groups[group]
            target[name] = value
        groups["detection"].update(_detector(values.get("vad_method", "silero"), vad_options))
        stages = {group: GROUPS[group](**groups[group]) for group in GROUPS}
        return cls(**own, **stages)

    def __post_init__(self) -> None:
        check(self)
        if self.longform.carry_initial_prompt and self.decoding.initial_prompt is None:
            raise OptionError("carry_initial_prompt needs initial_prompt: give both or neither")
        sequential = self.longform.sequential
        translating = self.decoding.task == "translate"
        conflicts = (
            ("multilingual", self.multilingual, "language", self.language is not None),
            ("multilingual", self.multilingual, "sequential", sequential),
            ("languages", self.languages is not None, "language", self.language is not None),
            ("languages", self.languages is not None, "multilingual", self.multilingual),
            ("sequential", sequential, "without_timestamps", self.decoding.without_timestamps),
            ("sequential", sequential, "prefix", self.decoding.prefix is not None),
            ("sequential", sequential, "vad_options", self.detection.has_vad_options),
            ("sequential", sequential, "chunk_size", self.detection.chunk_size is not None),
            ("sequential", sequential, "max_pause", self.detection.max_pause is not None),
            ("translate", translating, "return_char_alignments", self.words.return_char_alignments),
        )
        for name, is_given, other, other_is_given in conflicts:
            if is_given and other_is_given:
                raise _conflict(name, other)

    def check_languages(self, known: Collection[str]) -> None:
        """Raises `OptionError` for a language that the model does not know. known : codes"""
        asked = [self.language] if self.language is not None else []
        if self.languages is not None:
            asked += self.languages.split(",")
        for code in asked:
            if code not in known:
                raise OptionError(f"language {code!r} conflicts with the model, which knows {', '.join(known)}")

    @property
    def wants_speakers(self) -> bool:
        """Whether diarization is asked for, by itself or by a number of speakers."""
        return self.speakers.wanted

    @property
    def word_method(self) -> WordMethod | None:
        """How words get their times; a translation's are not in the sound."""
        if self.decoding.task == "translate" and self.words.word_timestamps == "ctc":
            return None
        return self.words.word_timestamps


GROUPS: dict[str, type] = {
    "decoding": DecodingOptions,
    "detection": DetectionOptions,
    "longform": LongformOptions,
    "words": WordOptions,
    "speakers": SpeakerOptions,
}


def flat_options() -> dict[str, Option]:
    """Every option that is a keyword of its own: name → option. Beside them is `vad_options`, of the detector."""
    options = options_of(Options)
    for group in GROUPS.values():
        options.update(options_of(group))
    return options


def _group_of(name: str) -> str | None:
    """The stage that an option is of; None where it concerns the whole."""
    for group, declared in GROUPS.items():
        if name in options_of(declared):
            return group
    return None


def _leave_out_punctuations(values: dict[str, Any]) -> None:
    """Take out the options of openai-whisper that have one value here; warns of another one."""
    if not any(name in values for name in PUNCTUATIONS):
        return
    from mlx_speech.stages.whisper import word_times  # it imports MLX

    usual = (word_times.PREPEND_PUNCTUATIONS, word_times.APPEND_PUNCTUATIONS)
    for name, marks in zip(PUNCTUATIONS, usual, strict=True):
        if values.pop(name, marks) != marks:
            warnings.warn(f"{name} has no meaning here: words take the usual marks with them", stacklevel=4)


def _unknown(name: str, known: list[str]) -> OptionError:
    similar = difflib.get_close_matches(name, known, 1)
    advice = f"did you mean {similar[0]}?" if similar else "mlx_speech.options.TranscribeOptions has all of them"
    return OptionError(f"there is no option {name!r}: {advice}")


def _conflict(name: str, other: str) -> OptionError:
    return OptionError(f"{name} and {other} conflict: leave one of them out")


def _detector(method: Any, vad_options: Any) -> dict[str, Any]:
    """`vad_options` as the keyword of `DetectionOptions` for the detector that is chosen."""
    if not isinstance(vad_options, Mapping):
        raise OptionError(f"vad_options is {brief(vad_options)}: give a dict")
    if not vad_options or not isinstance(method, str) or method not in DETECTORS:
        return {}  # of a method that is none, `DetectionOptions` says so
    names = options_of(DETECTORS[method])
    for name in vad_options:
        if name not in names:
            raise OptionError(f"{name} is no option of vad_method {method!r}, whose are {', '.join(names)}")
    return {method: DETECTORS[method](**vad_options)}


def check_positive(name: str, value: float | None, unit: str) -> None:
    """Raises `OptionError` for what is neither None nor a number above 0. unit : what to give, for the message"""
    if value is not None and not (isinstance(value, Real) and value > 0):
        raise OptionError(f"{name} is {brief(value)}: give {unit}, above 0")


def checked_batch_size(value: Any) -> int | str:
    """ "auto", or a number of rows. Raises `OptionError` for anything else."""
    if isinstance(value, str) and value == "auto":
        return value
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise OptionError(f'batch_size is {brief(value)}: give "auto" or a whole number of at least 1')
    return int(value)


class TranscribeOptions(TypedDict, total=False):
    """The flat keywords of a transcription (`Options.of`), for type checkers; meanings stand with the fields above."""

    language: str | None
    languages: str | Sequence[str] | None
    multilingual: bool
    audio_track: AudioTrack
    task: Task
    temperature: float | Sequence[float]
    sample_len: int | None
    best_of: int | None
    beam_size: int | None
    patience: float | None
    length_penalty: float | None
    suppress_tokens: str | Sequence[int] | None
    suppress_blank: bool
    suppress_numerals: bool
    without_timestamps: bool
    max_initial_timestamp: float | None
    compression_ratio_threshold: float | None
    logprob_threshold: float | None
    no_speech_threshold: float | None
    initial_prompt: str | None
    prefix: str | None
    hotwords: str | None
    seed: int
    vad: bool
    vad_method: VadMethod
    vad_options: SileroKeywords | PyannetKeywords
    chunk_size: float | None
    max_pause: float | None
    sequential: bool
    condition_on_previous_text: bool | None
    carry_initial_prompt: bool
    clip_timestamps: str | Sequence[float] | None
    word_timestamps: Literal["ctc", "attention", "none"] | bool | None
    interpolate_method: Interpolation
    return_char_alignments: bool
    segment_resolution: Resolution
    hallucination_silence_threshold: float | None
    diarize: bool | None
    num_speakers: int | None
    min_speakers: int | None
    max_speakers: int | None
    prepend_punctuations: str
    append_punctuations: str


class SpeakerKeywords(TypedDict, total=False):
    """How many speakers there are, if it is known: keywords of `Pipeline.diarize`, for type checkers."""

    num_speakers: int | None
    min_speakers: int | None
    max_speakers: int | None
