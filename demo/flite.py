"""Flite's recorded voices awb and rms through its library (Debian: flite). Training never hears them.

Word times come from the segments: a word starts where the segment before it ends and ends with its own last segment.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import POINTER, Structure, c_char_p, c_float, c_int, c_short, c_void_p

import numpy as np

from demo.corpus import Utterance
from demo.festival import resample, utterance

VOICES = ("awb", "rms")
_START = b"R:SylStructure.daughter1.daughter1.R:Segment.p.end"
_END = b"R:SylStructure.daughtern.daughtern.R:Segment.end"


class _Wave(Structure):
    """flite's cst_wave."""

    _fields_ = [
        ("type", c_char_p),
        ("rate", c_int),
        ("size", c_int),
        ("channels", c_int),
        ("samples", POINTER(c_short)),
    ]


@functools.cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libflite.so.1", ctypes.RTLD_GLOBAL)
        for part in ("usenglish", "cmulex"):
            ctypes.CDLL(f"libflite_{part}.so.1", ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise RuntimeError("flite is not installed: apt-get install flite") from error
    for name, result, arguments in (
        ("flite_init", c_int, ()),
        ("flite_synth_text", c_void_p, (c_char_p, c_void_p)),
        ("utt_wave", POINTER(_Wave), (c_void_p,)),
        ("utt_relation", c_void_p, (c_void_p, c_char_p)),
        ("relation_head", c_void_p, (c_void_p,)),
        ("item_next", c_void_p, (c_void_p,)),
        ("ffeature_string", c_char_p, (c_void_p, c_char_p)),
        ("ffeature_float", c_float, (c_void_p, c_char_p)),
        ("delete_utterance", None, (c_void_p,)),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    library.flite_init()
    return library


@functools.cache
def _voice(name: str) -> int:
    if name not in VOICES:
        raise ValueError(f"flite's voices are {VOICES}, not {name!r}")
    _library()
    register = getattr(ctypes.CDLL(f"libflite_cmu_us_{name}.so.1"), f"register_cmu_us_{name}")
    register.restype, register.argtypes = c_void_p, (c_char_p,)
    return register(None)


def speak(words: list[str], voice: str) -> Utterance:
    """One sentence of lower-case words said by `voice`, with flite's own word times."""
    library, address = _library(), _voice(voice)
    spoken = library.flite_synth_text(f"{' '.join(words)}.".encode(), address)
    try:
        wave = library.utt_wave(spoken).contents
        samples = np.ctypeslib.as_array(wave.samples, (wave.size,)).astype(np.float32) / 32768
        rate = wave.rate
        found, times = [], []
        item = library.relation_head(library.utt_relation(spoken, b"Word"))
        while item:
            found.append(library.ffeature_string(item, b"R:Token.parent.name").decode())
            times.append((library.ffeature_float(item, _START), library.ffeature_float(item, _END)))
            item = library.item_next(item)
    finally:
        library.delete_utterance(spoken)
    if found != words:
        raise ValueError(f"flite reads {words} as {found}")
    return utterance(words, np.array(times), resample(samples, rate), f"flite {voice}")
