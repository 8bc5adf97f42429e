"""One enrolment: a name, and a vector that was made of so many seconds of its voice on some day."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from datetime import date, datetime, timezone

import numpy as np

from mlx_speech.errors import OptionError, brief
from mlx_speech.stages.voiceprints import Voiceprint

MAX_NAME = 100  # characters
MAX_DIMENSION = 1 << 14  # of a vector; those of today have 192 to 512
_UNNAMED = re.compile(r"SPEAKER_\d+")


@dataclass(frozen=True)
class Enrolment:
    """What is stored of a voice.

    name : of the person; it is kept without surrounding spaces, and composed (NFC)
    vector : (dimension,) float32, with a direction
    seconds : of speech that it was made of, above 0
    model : the embedding model that made it (`BaseModel.identity`)
    day : on which it was enrolled
    audio : 16-bit little-endian samples at 16 kHz, where they are kept

    Raises `OptionError` for a name, a vector or a number of seconds that cannot be.
    """

    name: str
    vector: np.ndarray
    seconds: float
    model: str
    day: date
    audio: bytes | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", checked_name(self.name))
        with np.errstate(over="ignore"):
            vector = np.asarray(self.vector, dtype="<f4")
        object.__setattr__(self, "vector", vector)
        if vector.ndim != 1 or not 1 <= vector.size <= MAX_DIMENSION:
            raise OptionError(f"the vector of {brief(self.name)} is of shape {vector.shape}: give a list of numbers")
        if not np.isfinite(vector).all() or not vector.any():
            raise OptionError(f"the vector of {brief(self.name)} has no direction: enrol another stretch of speech")
        if not 0 < self.seconds < float("inf"):
            raise OptionError(f"seconds is {self.seconds} of {brief(self.name)}: give a number above 0")
        if not self.model:
            raise OptionError(f"the vector of {brief(self.name)} says no embedding model: it cannot be compared")

    @classmethod
    def of(cls, name: str, voiceprint: Voiceprint, *, audio: bytes | None = None) -> Enrolment:
        """Of today."""
        vector = np.array(voiceprint.vector)
        return cls(name, vector, voiceprint.seconds, voiceprint.model, today(), audio)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Enrolment):
            return NotImplemented
        return self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[object, ...]:
        return (self.name, self.vector.tobytes(), self.seconds, self.model, self.day, self.audio)


def checked_name(name: str) -> str:
    """A name as it is stored. Raises `OptionError` for one that is empty, too long, of several lines, or a label."""
    plain = unicodedata.normalize("NFC", name).strip()
    if not plain:
        raise OptionError("the name is empty: give one")
    if len(plain) > MAX_NAME or not plain.isprintable():
        raise OptionError(f"{brief(name)} cannot be a name: give one line of at most {MAX_NAME} characters")
    if is_unnamed(plain):
        raise OptionError(f"{plain} is what a speaker without a name is called: give a name")
    return plain


def is_unnamed(label: str) -> bool:
    """Whether it is a label of the diarization's rather than a name."""
    return _UNNAMED.fullmatch(label) is not None


def pcm(samples: np.ndarray) -> bytes:
    """Sound as it is kept: 16-bit little-endian. samples : (samples,), in [-1, 1]"""
    return np.round(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()


def samples_of(audio: bytes) -> np.ndarray:
    """Kept sound → (samples,) at 16 kHz, float32 in [-1, 1]."""
    return np.frombuffer(audio, dtype="<i2").astype(np.float32) / 32767


def today() -> date:
    """The day in Greenwich: that of the user says where they are."""
    return datetime.now(timezone.utc).date()
