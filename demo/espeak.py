"""Speech of espeak-ng with the exact time of every word and phoneme, from the library's own events.

speak_lib.h of espeak-ng 1.51: synchronous mode, phoneme events. A word starts with its first phoneme and ends where
the next word or pause does start.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from fractions import Fraction
from functools import cache

import numpy as np
from scipy.signal import resample_poly

from demo import RATE
from demo.corpus import Utterance, finished
from demo.voices import Voice

SYNCHRONOUS, PHONEME_EVENTS = 2, 1
WORD, END, PHONEME = 1, 5, 7
PARAMETERS = {"rate": 1, "pitch": 3, "range": 4, "gap": 7}
MARGIN = 0.05  # seconds kept around the speech


class _Id(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique", ctypes.c_uint),
        ("text_position", ctypes.c_int),  # of a word: characters from 1
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user", ctypes.c_void_p),
        ("id", _Id),
    )


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))
_sound: list[np.ndarray] = []
_events: list[tuple[int, int, int, str]] = []  # type, sample, text position, phoneme


def _receive(wave: ctypes._Pointer, count: int, events: ctypes._Pointer) -> int:
    if wave and count > 0:
        _sound.append(np.ctypeslib.as_array(wave, (count,)).copy())
    i = 0
    while events[i].type:
        event = events[i]
        name = bytes(event.id.string).split(b"\0")[0].decode() if event.type == PHONEME else ""
        _events.append((event.type, event.sample, event.text_position, name))
        i += 1
    return 0


_callback = _CALLBACK(_receive)  # kept alive: the library calls it


@cache
def _library() -> tuple[ctypes.CDLL, int]:
    """The library and its sample rate. Raises `OSError` where it is not installed."""
    name = ctypes.util.find_library("espeak-ng") or "libespeak-ng.so.1"
    try:
        library = ctypes.CDLL(name)
    except OSError as error:
        raise OSError(f"{error}: install espeak-ng (Debian: apt-get install espeak-ng)") from error
    rate = library.espeak_Initialize(SYNCHRONOUS, 0, None, PHONEME_EVENTS)
    library.espeak_SetSynthCallback(_callback)
    return library, rate


def speak(words: list[str], voice: Voice) -> Utterance:
    """Raises `ValueError` where the library speaks no such voice."""
    library, rate = _library()
    name = f"{voice.accent}+{voice.variant}"
    if library.espeak_SetVoiceByName(name.encode()):
        raise ValueError(f"espeak-ng has no voice {name}")
    for parameter, number in PARAMETERS.items():
        library.espeak_SetParameter(number, getattr(voice, parameter), 0)
    _sound.clear()
    _events.clear()
    text = " ".join(words).encode() + b"\0"
    library.espeak_Synth(text, len(text), 0, 1, 0, 1, None, None)
    ratio = Fraction(RATE / rate / voice.factor).limit_denominator(160)
    samples = resample_poly(np.concatenate(_sound).astype(np.float32) / 32768, ratio.numerator, ratio.denominator)
    scale = 1 / (rate * voice.factor)
    starts, ends, exact, phones = _times(words, scale)
    return finished(samples, words, starts, ends, exact, phones, voice.name)


def _times(words: list[str], scale: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[tuple[float, str]]]:
    """Start, end and exactness of every word, and (start, name) of every phoneme, in seconds."""
    positions = np.cumsum([1] + [len(word) + 1 for word in words])  # where words begin in the text
    starts, ends = np.full(len(words), np.nan), np.full(len(words), np.nan)
    exact = np.zeros(len(words), bool)
    phones: list[tuple[float, str]] = []
    opened: int | None = None  # the word whose first phoneme is awaited, then whose end is
    waiting = False
    for kind, sample, position, name in _events:
        time = sample * scale
        if kind == WORD and position > 0:
            if opened is not None and np.isnan(ends[opened]):
                ends[opened] = time
            opened, waiting = int(np.searchsorted(positions, position, side="right")) - 1, True
        elif kind in (PHONEME, END):
            silent = kind == END or not name or name.startswith("_")
            if opened is not None and silent and not waiting and np.isnan(ends[opened]):
                ends[opened] = time
            if opened is not None and not silent and waiting:
                starts[opened], exact[opened], waiting = time, True, False
            if kind == PHONEME:
                phones.append((time, "_" if silent else name))
    return *_divided(words, starts, ends, exact), phones


def _divided(
    words: list[str], starts: np.ndarray, ends: np.ndarray, exact: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Words that share one event ("of the") get its time by their letters, and are marked inexact."""
    i = 0
    while i < len(words):
        j = i + 1
        while j < len(words) and np.isnan(starts[j]):
            j += 1
        if j > i + 1:
            start, end = starts[i], ends[i]
            letters = np.cumsum([0] + [len(word) for word in words[i:j]]) / sum(len(word) for word in words[i:j])
            edges = start + (end - start) * letters
            starts[i:j], ends[i:j], exact[i:j] = edges[:-1], edges[1:], False
        i = j
    return starts, ends, exact
