"""Bytes of sound as they come, in pieces of any size → samples. Raw PCM, or a WAV file that is still being written."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mlx_speech.errors import AudioError, OptionError
from mlx_speech.samples import SAMPLE_RATE, as_float

Coding = Literal["s16le", "f32le"]

CODINGS: dict[Coding, np.dtype] = {"s16le": np.dtype("<i2"), "f32le": np.dtype("<f4")}
RATES = range(2_000, 768_001)  # Hz; as of recordings
MAX_CHANNELS = 64
ADVICE = "what can be followed are WAV files of 16-bit or 32-bit floating-point samples"

MAGIC = (b"RIFF", b"RF64")  # RF64 is RIFF whose sizes stand elsewhere
RIFF_BYTES = 12  # before the first chunk: magic, size, "WAVE"
CHUNK_BYTES = 8  # before the content of a chunk: name, size
LONGEST_HEADER = 1 << 20  # bytes; a file whose sound begins later is no sound that is being recorded
UNKNOWN_SIZE = 0x7FF0_0000  # programs that write to a pipe put a size from here on; others put 0
PCM_TAG = 1
FLOAT_TAG = 3
EXTENSIBLE_TAG = 0xFFFE  # the tag stands further behind
TAGS: dict[tuple[int, int], Coding] = {(PCM_TAG, 16): "s16le", (FLOAT_TAG, 32): "f32le"}  # tag, bits → coding


@dataclass(frozen=True)
class Form:
    """How samples are written.

    sample_rate : in Hz
    channels : interleaved

    Raises `OptionError`, naming the option.
    """

    sample_rate: int = SAMPLE_RATE
    channels: int = 1
    coding: Coding = "s16le"

    def __post_init__(self) -> None:
        if self.sample_rate not in RATES:
            raise OptionError(f"sample_rate is {self.sample_rate}: give Hz, from {RATES[0]} to {RATES[-1]}")
        if not 1 <= self.channels <= MAX_CHANNELS:
            raise OptionError(f"channels is {self.channels}: give a number from 1 to {MAX_CHANNELS}")
        if self.coding not in CODINGS:
            raise OptionError(f"coding is {self.coding!r}: choose from {', '.join(CODINGS)}")

    @property
    def frame_bytes(self) -> int:
        """Bytes of one sample of every channel."""
        return CODINGS[self.coding].itemsize * self.channels


class Decoder:
    """Bytes → samples. Bytes that make no whole frame yet wait for more.

    name : of the source, for messages
    form : of raw samples; None where there has to be a header
    heed_sizes : whether the sound ends where the header says; it never does where the header does not know
    """

    def __init__(self, name: str, form: Form | None, heed_sizes: bool) -> None:
        self.name = name
        self.form = form
        self._needs_header = form is None
        self._heed_sizes = heed_sizes
        self._in_header = True
        self._rest = b""
        self._left: int | None = None  # bytes of sound that are still to come, where the header knows

    def samples(self, data: bytes) -> np.ndarray:
        """The next bytes → (channels, samples) float32, possibly none. Raises `AudioError` for another kind of file."""
        self._rest += data
        if self._in_header:
            self._read_header(ended=False)
        return self._take()

    def end(self) -> np.ndarray:
        """What has waited for more: (channels, samples). Less than a frame is dropped."""
        if self._in_header:
            self._read_header(ended=True)
        return self._take()

    def _take(self) -> np.ndarray:
        if self._in_header or self.form is None:
            return np.zeros((1, 0), np.float32)
        available = len(self._rest)
        if self._left is not None:
            available = min(available, self._left)
        size = available - available % self.form.frame_bytes
        sound = np.frombuffer(self._rest[:size], CODINGS[self.form.coding])
        self._rest = self._rest[size:]
        if self._left is not None:
            self._left -= size
            if self._left < self.form.frame_bytes:  # what follows the sound is not heard
                self._left = 0
                self._rest = b""
        # a copy: what `frombuffer` gives cannot be written to
        return np.array(as_float(sound.reshape(-1, self.form.channels).T), order="C")

    def _read_header(self, ended: bool) -> None:
        """Leave in `_rest` what follows the header, once all of it is there. ended : no more bytes come"""
        magic = self._rest[:4]
        may_be_header = any(name.startswith(magic) for name in MAGIC)
        if len(self._rest) >= RIFF_BYTES and self._rest[8:RIFF_BYTES] != b"WAVE":
            may_be_header = False
        if not may_be_header or (ended and len(self._rest) < RIFF_BYTES):
            if self._needs_header and self._rest:
                raise AudioError(f"{self.name}: is no WAV file: {ADVICE}")
            self._in_header = False
            return
        if len(self._rest) < RIFF_BYTES:
            return
        place = RIFF_BYTES
        while len(self._rest) >= place + CHUNK_BYTES:
            kind = self._rest[place : place + 4]
            size = struct.unpack_from("<I", self._rest, place + 4)[0]
            place += CHUNK_BYTES
            if kind == b"data":
                self._begin_sound(place, size)
                return
            if kind == b"fmt ":
                if len(self._rest) < place + size:
                    break
                self.form = self._form_of(self._rest[place : place + size])
                self._needs_header = False
            place += size + size % 2  # chunks begin at even places
        if ended or place > LONGEST_HEADER:
            raise AudioError(f"{self.name}: its header has no sound behind it: {ADVICE}")

    def _begin_sound(self, place: int, size: int) -> None:
        """place : of the first sample; size : in bytes, as stated"""
        if self._needs_header or self.form is None:
            raise AudioError(f"{self.name}: its header does not say how samples are written: {ADVICE}")
        self._rest = self._rest[place:]
        self._in_header = False
        if self._heed_sizes and 0 < size < UNKNOWN_SIZE:
            self._left = size

    def _form_of(self, content: bytes) -> Form:
        """content : of the chunk "fmt " """
        if len(content) < 16:
            raise AudioError(f"{self.name}: its header is too short: {ADVICE}")
        tag, channels, sample_rate, _, _, bits = struct.unpack_from("<HHIIHH", content)
        if tag == EXTENSIBLE_TAG and len(content) >= 26:
            tag = struct.unpack_from("<H", content, 24)[0]
        coding = TAGS.get((tag, bits))
        if coding is None:
            raise AudioError(f"{self.name}: its samples have {bits} bits in coding {tag}: {ADVICE}")
        if sample_rate not in RATES or not 1 <= channels <= MAX_CHANNELS:
            raise AudioError(f"{self.name}: {channels} channels at {sample_rate} Hz: is the file damaged?")
        return Form(sample_rate, channels, coding)
