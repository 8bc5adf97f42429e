"""What the detectors of speech can be told. Importing it imports no MLX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from mlx_speech.errors import in_range
from mlx_speech.fields import check, option

HYSTERESIS = 0.15  # between the threshold of speech and that of silence
LOWEST = 0.01  # threshold of silence
LONGEST = 1e9  # milliseconds or seconds; more would be a mistake


@dataclass(frozen=True)
class SileroOptions:
    """Of Silero VAD, by the names of `get_speech_timestamps` of the silero-vad package.

    Raises `OptionError`, naming the option, for values of another type or out of range.
    """

    threshold: float = option(0.5, "speech from this probability on", low=0, high=1)
    neg_threshold: float | None = option(
        None, "silence below this one, at most the other", unset=f"{HYSTERESIS:g} lower, at least {LOWEST:g}"
    )
    min_speech_duration_ms: float = option(250.0, "shorter speech is dropped", low=0, high=LONGEST)
    min_silence_duration_ms: float = option(100.0, "silence that ends speech", low=0, high=LONGEST)
    speech_pad_ms: float = option(30.0, "added on both sides", low=0, high=LONGEST)
    min_silence_at_max_speech: float = option(98.0, "silence in ms that long speech may be cut at", low=0, high=LONGEST)

    def __post_init__(self) -> None:
        check(self)
        in_range(0, self.threshold, neg_threshold=self.neg_threshold)


def silence_threshold(threshold: float) -> float:
    """The probability of speech below which it is silent, by default, where speech is from `threshold` on."""
    return max(threshold - HYSTERESIS, LOWEST)


class SileroKeywords(TypedDict, total=False):
    """The fields of `SileroOptions` as keywords."""

    threshold: float
    neg_threshold: float | None
    min_speech_duration_ms: float
    min_silence_duration_ms: float
    speech_pad_ms: float
    min_silence_at_max_speech: float


class TimestampKeywords(SileroKeywords, total=False):
    """And those of `stages.vad.speech_timestamps` that say where long speech is cut."""

    max_speech_duration_s: float
    use_max_poss_sil_at_max_speech: bool


@dataclass(frozen=True)
class PyannetOptions:
    """Of PyanNet, by the names of pyannote.audio's `VoiceActivityDetection`.

    Raises `OptionError`, naming the option, for values of another type or out of range.
    """

    onset: float = option(0.5, "speech from this probability on", low=0, high=1)
    offset: float = option(0.363, "silence below this one, at most the other")
    min_duration_on: float = option(0.0, "shorter speech is dropped, in seconds", low=0, high=LONGEST)
    min_duration_off: float = option(0.0, "shorter silence is filled, in seconds", low=0, high=LONGEST)

    def __post_init__(self) -> None:
        check(self)
        in_range(0, self.onset, offset=self.offset)


class PyannetKeywords(TypedDict, total=False):
    """The fields of `PyannetOptions` as keywords."""

    onset: float
    offset: float
    min_duration_on: float
    min_duration_off: float
