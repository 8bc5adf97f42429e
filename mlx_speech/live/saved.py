"""The sound of a live session as a WAV file that can be read whenever the process ends, also where it is killed."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.audio.resampler import AudioResampler

from mlx_speech.errors import OutputError
from mlx_speech.live.events import Block
from mlx_speech.samples import SAMPLE_RATE, as_float

SAMPLE_BYTES = 2
UNKNOWN_SIZE = 0xFFFF_FFFF  # what readers take for "to the end of the file"
HEADER = struct.Struct("<4sI4s4sIHHIIHH4sI")
SIZES = (4, HEADER.size - 4)  # where in the header they stand: of the file behind them, and of the sound
SILENCE_AT_ONCE = 1 << 20  # samples


class SavedSound:
    """A WAV file of 16-bit mono samples at 16 kHz, whose sizes are unknown until it is closed.

    path : is not there yet, unless the session goes on: then sound is added to what is there
    goes_on : whether it does

    Raises `OutputError` where it cannot be written.
    """

    def __init__(self, path: Path, *, goes_on: bool = False) -> None:
        self.path = path
        self._resampler: AudioResampler | None = None
        self._input_rate: int | None = None
        try:
            self._file: BinaryIO = path.open("r+b" if goes_on and path.exists() else "x+b", buffering=0)
        except FileExistsError as error:
            raise OutputError(f"{path}: is there already: choose another save_audio") from error
        except OSError as error:
            raise self._unwritable(error) from error
        self._samples = self._begin()

    @property
    def seconds(self) -> float:
        """Of sound that are in the file."""
        return self._samples / SAMPLE_RATE

    def add(self, block: Block) -> None:
        """The next sound; where it begins later than what is there ends, there is silence. Raises `OutputError`.

        block.start : in seconds of this file
        """
        if block.sample_rate != self._input_rate:
            self._flush()
            self._resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
            self._input_rate = block.sample_rate
        if block.start is not None:
            self.fill(block.start)
        samples = as_float(block.samples)
        if samples.ndim == 2:
            samples = samples.mean(axis=0, dtype=np.float32)
        if self._resampler is None or not samples.size:
            return
        sound = np.ascontiguousarray(samples.clip(-1, 1), np.float32)
        frame = av.AudioFrame.from_ndarray(sound[np.newaxis], format="fltp", layout="mono")
        frame.sample_rate = block.sample_rate
        self._write_frames(self._resampler.resample(frame))

    def fill(self, seconds: float) -> None:
        """Silence up to `seconds` from the beginning of the file. Raises `OutputError`."""
        self._flush()
        missing = round(seconds * SAMPLE_RATE) - self._samples
        while missing > 0:
            count = min(missing, SILENCE_AT_ONCE)
            self._write(np.zeros(count, np.int16))
            missing -= count

    def cut(self, seconds: float) -> None:
        """Drop what lies behind `seconds`, before the first sound is added. Raises `OutputError`."""
        samples = round(seconds * SAMPLE_RATE)
        if samples >= self._samples:
            return
        end = HEADER.size + samples * SAMPLE_BYTES
        try:
            self._file.truncate(end)
            self._file.seek(end)
        except OSError as error:
            raise self._unwritable(error) from error
        self._samples = samples

    def close(self) -> None:
        """Write the sizes. Raises `OutputError`."""
        if self._file.closed:
            return
        try:
            self._flush()
            size = self._samples * SAMPLE_BYTES
            if HEADER.size + size < UNKNOWN_SIZE:  # 37 hours
                self._write_header(size)
        finally:
            self._close_file()

    def _close_file(self) -> None:
        try:
            self._file.close()
        except OSError as error:  # some file systems say only now that the disk is full
            raise self._unwritable(error) from error

    def _begin(self) -> int:
        """Make the file ready for the next sample; returns how many are there."""
        try:
            size = os.fstat(self._file.fileno()).st_size
            head = self._file.read(HEADER.size)
            if size and not _is_ours(head):
                raise OutputError(f"{self.path}: was not saved by a live session: choose another save_audio")
            samples = max(0, size - HEADER.size) // SAMPLE_BYTES
            self._write_header(None)
            self._file.seek(HEADER.size + samples * SAMPLE_BYTES)
        except OSError as error:
            self._file.close()
            if isinstance(error, OutputError):
                raise
            raise self._unwritable(error) from error
        return samples

    def _write_header(self, size: int | None) -> None:
        """size : of the sound in bytes; None where it is not known yet"""
        try:
            self._file.seek(0)
            self._file.write(_header(size))
        except OSError as error:
            raise self._unwritable(error) from error

    def _flush(self) -> None:
        """Write what the resampler holds back. It begins anew with the next sound."""
        if self._resampler is not None:
            self._write_frames(self._resampler.resample(None))
        self._resampler = None
        if self._input_rate is not None:
            self._resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)

    def _write_frames(self, frames: list[av.AudioFrame]) -> None:
        for frame in frames:
            self._write(frame.to_ndarray().reshape(-1))

    def _write(self, samples: np.ndarray) -> None:
        """samples : (samples,) int16. The file is not buffered: what is written outlives the process."""
        data = samples.astype("<i2", copy=False).tobytes()
        try:
            written = self._file.write(data)
        except OSError as error:
            raise self._unwritable(error) from error
        if written != len(data):
            raise OutputError(f"{self.path}: cannot be written (the disk is full): make room there")
        self._samples += samples.size

    def _unwritable(self, error: OSError) -> OutputError:
        return OutputError(f"{self.path}: cannot be written ({error.strerror}): choose another save_audio")


def _header(size: int | None) -> bytes:
    """size : of the sound in bytes; None where it is not known yet"""
    of_sound = UNKNOWN_SIZE if size is None else size
    of_file = UNKNOWN_SIZE if size is None else HEADER.size - 8 + size
    rate = SAMPLE_RATE * SAMPLE_BYTES
    form = (16, 1, 1, SAMPLE_RATE, rate, SAMPLE_BYTES, 8 * SAMPLE_BYTES)  # a chunk of 16 bytes: PCM, one channel …
    return HEADER.pack(b"RIFF", of_file, b"WAVE", b"fmt ", *form, b"data", of_sound)


def _is_ours(head: bytes) -> bool:
    """Whether a header is one of `_header`, whatever the sizes."""
    if len(head) < HEADER.size:
        return False
    ours = bytearray(_header(None))
    theirs = bytearray(head)
    for place in SIZES:
        ours[place : place + 4] = bytes(4)
        theirs[place : place + 4] = bytes(4)
    return ours == theirs
