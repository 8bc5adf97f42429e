"""Where live sound comes from: `pipe`s and `growing_file`s. Microphones are in `live.microphone`.

A source is an iterator of `Block`s, and may be closed from any thread; it then ends. Nothing here uses MLX.
"""

from __future__ import annotations

import io
import os
import select
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from mlx_speech.errors import AudioError, OptionError
from mlx_speech.live.events import Block
from mlx_speech.live.pcm import Coding, Decoder, Form
from mlx_speech.samples import SAMPLE_RATE

READ_BYTES = 1 << 15  # at once: a second of 16-bit mono samples
POLL_SECONDS = 0.1  # between two looks at a file, or at whether the source was closed
IDLE = 10.0  # seconds without growth behind which a file is whole
MAX_BROKEN_SECONDS = 1.0  # of blocks with NaN or infinity in a row, that are taken for silence


class Source(Protocol):
    """Blocks of sound that come in time."""

    def __iter__(self) -> Iterator[Block]: ...

    def __next__(self) -> Block: ...

    def close(self) -> None:
        """End it, from any thread: who waits for a block is told that there are no more."""
        ...


class Clock(Protocol):
    """The time, and waiting; another one stands in for it in tests."""

    def now(self) -> float:
        """Seconds, also those in which the machine sleeps."""
        ...

    def awake(self) -> float:
        """Seconds in which the machine does not sleep."""
        ...

    def wait(self, changed: threading.Condition, seconds: float) -> None:
        """Wait for a change, at most so many seconds. `changed` is held."""
        ...


class SystemClock:
    """The machine's."""

    # Linux stops CLOCK_MONOTONIC while it sleeps, macOS does not and has no CLOCK_BOOTTIME.
    _KIND = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

    def now(self) -> float:
        """As of `Clock`."""
        return time.clock_gettime(self._KIND)

    def awake(self) -> float:
        """As of `Clock`."""
        return time.monotonic()

    def wait(self, changed: threading.Condition, seconds: float) -> None:
        """As of `Clock`."""
        changed.wait(seconds)


class Soundness:
    """Blocks with NaN or infinity become silence, with a warning; a second of them in a row is an error.

    name : of the source, for messages
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._broken = 0.0  # seconds in a row

    def checked(self, block: Block) -> Block:
        """The block, or silence as long as it. Raises `AudioError`."""
        samples = block.samples
        if np.isfinite(samples).all():
            self._broken = 0.0
            return block
        if not self._broken:
            message = "some of its samples are no numbers (NaN, or infinite): silence stands for them"
            warnings.warn(f"{self._name}: {message}", stacklevel=2)
        self._broken += samples.shape[-1] / block.sample_rate
        if self._broken >= MAX_BROKEN_SECONDS:
            raise AudioError(f"{self._name}: its samples are no numbers (NaN, or infinite): check what sends them")
        return Block(np.zeros_like(samples), block.sample_rate, block.start)


def pipe(
    file: BinaryIO,
    sample_rate: int = SAMPLE_RATE,
    channels: int = 1,
    coding: Coding = "s16le",
    *,
    name: str = "standard input",
) -> Pipe:
    """Samples out of a pipe, until it ends. A WAV header says how they are written, and its size where it knows it.

    file : opened for bytes; what its buffer has read already is lost where it has a descriptor
    sample_rate, channels, coding : of raw samples, interleaved

    Time is counted in samples: what a recorder upstream has lost, nobody knows here.
    Raises `OptionError` for values out of range, and while it is read `AudioError`.
    """
    return Pipe(file, Form(sample_rate, channels, coding), name)


class Pipe:
    """What `pipe` gives."""

    def __init__(self, file: BinaryIO, form: Form, name: str) -> None:
        self._decoder = Decoder(name, form, heed_sizes=True)
        self._soundness = Soundness(name)
        self._name = name
        self._file = file
        self._closed = threading.Event()
        self._ended = False
        try:
            self._descriptor: int | None = file.fileno()
        except io.UnsupportedOperation:
            self._descriptor = None

    def __iter__(self) -> Pipe:
        return self

    def __next__(self) -> Block:
        while not self._ended:
            data = self._read()
            if data is None:
                break
            if data:
                samples = self._decoder.samples(data)
            else:
                self._ended = True
                samples = self._decoder.end()
            if samples.shape[1] and self._decoder.form is not None:
                return self._soundness.checked(Block(samples, self._decoder.form.sample_rate))
        raise StopIteration

    def close(self) -> None:
        """As of `Source`. The file is its opener's to close."""
        self._closed.set()

    def _read(self) -> bytes | None:
        """What is there, b"" at the end, None where the source was closed. Raises `AudioError`."""
        try:
            while not self._closed.is_set():
                if self._descriptor is None:
                    return self._file.read(READ_BYTES)
                readable, _, _ = select.select([self._descriptor], [], [], POLL_SECONDS)
                if readable:
                    return os.read(self._descriptor, READ_BYTES)
        except (OSError, ValueError) as error:  # the file was closed
            raise AudioError(f"{self._name}: cannot be read: {error}") from error
        return None


def growing_file(path: str | os.PathLike[str], idle: float = IDLE, *, clock: Clock | None = None) -> GrowingFile:
    """The samples of a WAV file that is still being written, until it does not grow any more.

    path : of 16-bit or 32-bit floating-point samples. The sizes in its header are not looked at: a recorder knows them
        at the end only. Other formats keep what is needed to read them for their end, and raise `AudioError`.
    idle : seconds without growth behind which it is whole. So it is when it is renamed, replaced or made shorter,
        once what is there has been read

    Raises `OptionError`, and while it is read `AudioError`, also where there is no such file.
    """
    if not idle > 0:
        raise OptionError(f"idle is {idle}: give a number of seconds above 0")
    return GrowingFile(Path(path), idle, clock or SystemClock())


class GrowingFile:
    """What `growing_file` gives. reason : why it ended, in words"""

    def __init__(self, path: Path, idle: float, clock: Clock) -> None:
        self.reason = ""
        self._path = path
        self._idle = idle
        self._clock = clock
        self._changed = threading.Condition()
        self._closed = False
        self._file: BinaryIO | None = None
        self._decoder = Decoder(str(path), None, heed_sizes=False)
        self._soundness = Soundness(str(path))
        self._grown = 0.0  # when it last grew
        self._skip = 0.0  # seconds
        self._left_out: int | None = None  # samples that are still to be skipped; None before the first

    def skip(self, seconds: float) -> None:
        """Leave out so much of the beginning, before the first block is asked for."""
        self._skip = seconds

    def __iter__(self) -> GrowingFile:
        return self

    def __next__(self) -> Block:
        if self._file is None and not self.reason:
            self._file = self._open()
            self._grown = self._clock.awake()
        while self._file is not None:
            # before it is read, so that nothing is missed of what was written until then
            over = self._over(self._file)
            data = self._read(self._file)
            if data:
                self._grown = self._clock.awake()
                samples = self._decoder.samples(data)
                if self._decoder.form is not None:
                    sample_rate = self._decoder.form.sample_rate
                    samples = self._behind_skipped(samples, sample_rate)
                    if samples.shape[1]:
                        return self._soundness.checked(Block(samples, sample_rate))
                if not self._closed:
                    continue
            if over:
                self._end(over)
                break
            with self._changed:
                if not self._closed:
                    self._clock.wait(self._changed, POLL_SECONDS)
        raise StopIteration

    def close(self) -> None:
        """As of `Source`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _behind_skipped(self, samples: np.ndarray, sample_rate: int) -> np.ndarray:
        """As much of (channels, samples) as is not to be left out."""
        if self._left_out is None:
            self._left_out = round(self._skip * sample_rate)
        count = min(self._left_out, samples.shape[1])
        self._left_out -= count
        return samples[:, count:]

    def _open(self) -> BinaryIO:
        try:
            return self._path.open("rb", buffering=0)
        except OSError as error:
            raise AudioError(f"{self._path}: cannot be read: {error.strerror}: is the path right?") from error

    def _read(self, file: BinaryIO) -> bytes:
        try:
            return file.read(READ_BYTES)
        except OSError as error:
            raise AudioError(f"{self._path}: cannot be read: {error.strerror}") from error

    def _over(self, file: BinaryIO) -> str:
        """Why the file does not grow any more, in words; "" while it may."""
        if self._closed:
            return "it was closed"
        here = os.fstat(file.fileno())
        if here.st_size < file.tell():
            return f"{self._path} was made shorter"
        try:
            there = self._path.stat()
        except OSError:
            return f"{self._path} was renamed or removed"
        if (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino):
            return f"{self._path} was replaced"
        if self._clock.awake() - self._grown >= self._idle:
            return f"{self._path} has not grown for {self._idle:g} s"
        return ""

    def _end(self, reason: str) -> None:
        self.reason = reason
        if self._file is not None:
            self._file.close()
            self._file = None
        if not self._closed:
            self._decoder.end()  # raises where the header never came
