"""Any recording → mono float32 samples in [-1, 1] at one rate.

Decoding is PyAV's, whose wheels carry the FFmpeg libraries; no program is started. A recording is untrusted: FFmpeg
picks the format by content, and some formats (playlists, scripts of file names) are instructions to open other files
or addresses. So media is read through a file object, only from formats that hold their own samples, and FFmpeg may
open nothing by itself.

Resampling is libswresample's with its defaults (Kaiser window of beta 9 over 32 taps at the lower of the two rates,
cutoff 0.97 of half that rate), which is what `ffmpeg -ar 16000` does and so what openai/whisper hears: the level is
kept within 0.5 dB up to 7 kHz, and what lies above 9 kHz is 60 dB down. It adds no delay.
"""

from __future__ import annotations

import io
import math
import os
import shutil
import struct
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import av
import numpy as np
from av.error import FFmpegError

from mlx_speech.errors import AudioError, OptionError

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.resampler import AudioResampler
    from av.audio.stream import AudioStream
    from av.container import InputContainer

SAMPLE_RATE = 16_000  # Hz; what every model here was trained on
MAX_DURATION = 24 * 3600.0  # seconds; 5.5 GB of samples
RATES = range(2_000, 768_001)  # Hz; a lower rate would let a small file swell into hours
MAX_CHANNELS = 64
BLOCK = 1 << 16  # samples of an array that are resampled at once

# Names of FFmpeg's demuxers. None of these opens a second file (QuickTime can name one, which is off by default).
FORMATS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dts,eac3,flac,flv,matroska,mov,mp3,mpeg,mpegts,nistsphere,ogg,"
    "tta,voc,w64,wav,wv"
)
# The ones whose header states the length. For others FFmpeg estimates it from the bit rate, or from what is left.
STATES_LENGTH = ("aiff", "ape", "au", "caf", "flac", "matroska", "mov", "mp3", "tta", "w64", "wav", "wv")
MISSING_SECONDS = 0.5  # a decoded length this much below the stated one: the file breaks off
MISSING_BYTES = 1024  # the same for the length in a RIFF header
RIFF_UNKNOWN = 0x7FF0_0000  # programs that write to a pipe put a length from here on


def load_audio(
    source: str | os.PathLike[str] | BinaryIO, *, sample_rate: int = SAMPLE_RATE, max_duration: float = MAX_DURATION
) -> np.ndarray:
    """Decode a recording, or the sound of a video, into mono samples.

    source : a path, "-" for standard input, or a binary file object (read from its start where it can be sought)
    sample_rate : of the result, in Hz
    max_duration : the longest recording that is read, in seconds

    Returns (samples,) float32 in [-1, 1]; channels are averaged. 16-bit samples at `sample_rate` come as exactly
    n / 32768. Of a file that breaks off, what could be decoded is returned and a warning is given.

    Raises `AudioError` where there is nothing to decode, and `OptionError` for options out of range.
    """
    _check_rate(sample_rate)
    if not max_duration > 0:
        raise OptionError(f"max_duration is {max_duration}: give a number of seconds above 0")
    name = _name(source)
    try:
        with _seekable(source, name) as file:
            sink = _Sink(name, sample_rate, max_duration)
            broken = not _decode(file, sink) or _cut_short(file)
    except OSError as error:
        raise AudioError(f"{name}: cannot be read: {error.strerror or error}") from error
    samples = sink.samples()
    if not samples.size:
        raise AudioError(f"{name}: no sound could be decoded: it is damaged, or holds no samples")
    np.clip(samples, -1, 1, out=samples)
    if math.isnan(samples.sum(dtype=np.float64)):
        raise AudioError(f"{name}: some of its samples are no numbers (NaN): export it again")
    if broken:
        decoded = samples.size / sample_rate
        warnings.warn(f"{name}: breaks off or is damaged: {decoded:.1f} s of it could be decoded", stacklevel=2)
    return samples


def audio_from_array(samples: Any, rate: int, *, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """Samples that are in memory already as `load_audio` would give them.

    samples : (samples,) or (channels, samples), anything NumPy takes; floats in [-1, 1], or integers, whose range is
        scaled to it (unsigned ones with silence in the middle)
    rate : of `samples`, in Hz
    sample_rate : of the result, in Hz

    Returns (samples,) float32 in [-1, 1], a copy. Raises `AudioError` for another shape or for NaN, and `OptionError`
    for a rate out of range.
    """
    _check_rate(sample_rate)
    _check_rate(rate)
    array = np.asarray(samples)
    if array.ndim not in (1, 2) or (array.ndim == 2 and not 1 <= len(array) <= MAX_CHANNELS):
        advice = "give (samples,) or (channels, samples), so transpose (samples, channels)"
        raise AudioError(f"samples of shape {array.shape}: {advice}")
    if array.dtype.kind not in "iuf":
        raise AudioError(f"samples of type {array.dtype}: give floats in [-1, 1] or integers")
    array = _as_float(array)
    mono = array.copy() if array.ndim == 1 else array.mean(axis=0, dtype=np.float32)
    if rate != sample_rate:
        sink = _Sink("samples", sample_rate, math.inf)
        for start in range(0, mono.size, BLOCK):
            frame = av.AudioFrame.from_ndarray(mono[None, start : start + BLOCK], format="fltp", layout="mono")
            frame.sample_rate = rate
            sink.add(frame)
        mono = sink.samples()
    np.clip(mono, -1, 1, out=mono)
    if math.isnan(mono.sum(dtype=np.float64)):
        raise AudioError("some of the samples are no numbers (NaN): replace them, say by numpy.nan_to_num")
    return mono


def _check_rate(rate: int) -> None:
    if rate not in RATES:
        raise OptionError(f"a sample rate of {rate} Hz: give a whole number from {RATES[0]} to {RATES[-1]}")


def _as_float(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "f":
        return array.astype(np.float32, copy=False)
    half = 2.0 ** (8 * array.dtype.itemsize - 1)
    # float64 for the steps in between: a 32-bit integer has more digits than float32
    return ((array.astype(np.float64) - (half if array.dtype.kind == "u" else 0.0)) / half).astype(np.float32)


def _name(source: object) -> str:
    """What messages call `source`, on one line."""
    if isinstance(source, str | os.PathLike):
        name = "standard input" if source == "-" else os.fspath(source)
    else:
        name = getattr(source, "name", None)
    return " ".join(name.split("\n")) if isinstance(name, str) and name else "the given file"


@contextmanager
def _seekable(source: object, name: str) -> Iterator[BinaryIO]:
    """`source` opened at its start. What comes through a pipe is copied to a temporary file first, since an m4a may
    keep its index at the end."""
    if isinstance(source, str | os.PathLike) and source != "-":
        with _open(Path(source), name) as file, _at_start(file) as start:
            yield start
        return
    file = getattr(sys.stdin, "buffer", None) if isinstance(source, str) else source
    if isinstance(file, io.TextIOBase):
        raise AudioError(f'{name}: opened as text: open it with "rb"')
    if not hasattr(file, "read"):
        raise OptionError(f'a {type(file).__name__} is no recording: give a path, "-" or a file opened with "rb"')
    with _at_start(cast(BinaryIO, file)) as start:
        yield start


def _open(path: Path, name: str) -> BinaryIO:
    try:
        if path.is_dir():
            raise AudioError(f"{name}: is a folder: name a recording in it")
        return path.open("rb")
    except FileNotFoundError as error:
        raise AudioError(f"{name}: there is no such file: check the path and its spelling") from error
    except ValueError as error:  # a null character
        raise AudioError(f"{name!r}: no file can have this name") from error


@contextmanager
def _at_start(file: BinaryIO) -> Iterator[BinaryIO]:
    try:
        seekable = not hasattr(file, "seekable") or file.seekable()
    except ValueError as error:
        raise AudioError(f"{_name(file)}: the file object is closed") from error
    if seekable:
        file.seek(0)
        yield file
    else:
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(file, copy)
            copy.seek(0)
            yield copy


def _refuse(url: str, *_: object) -> BinaryIO:
    raise PermissionError(f"it asks for another file ({url})")


def _decode(file: BinaryIO, sink: _Sink) -> bool:
    """Put the sound of `file` into `sink`; whether all of it that the file announces is there."""
    name = sink.name
    if not file.read(1):
        raise AudioError(f"{name}: is empty: record or copy it again")
    file.seek(0)
    allowed = {"format_whitelist": FORMATS, "protocol_whitelist": ""}
    try:  # metadata: tags are often in another encoding than they should be
        container = av.open(file, mode="r", container_options=allowed, metadata_errors="ignore", io_open=_refuse)
    except (FFmpegError, ValueError) as error:
        raise AudioError(f"{name}: is no recording of a known format, or broken: does a player open it?") from error
    with container:
        stream = cast("AudioStream | None", container.streams.best("audio"))
        if stream is None:
            raise AudioError(f"{name}: has no sound in it: give a recording, or a video with a sound track")
        if stream.codec_context is None:
            raise AudioError(f"{name}: its sound is in an encrypted or unknown coding: export it as wav or m4a")
        damaged = False
        for frame in _frames(container, stream):
            if frame is None:
                damaged = True
            else:
                sink.add(frame)
        stated = _stated_seconds(container, stream)
    if stated is None:
        return not damaged
    # A frame that does not decode (a tag behind an mp3, say) is no loss while the length is right.
    return sink.samples().size / sink.sample_rate > stated - MISSING_SECONDS


def _frames(container: InputContainer, stream: AudioStream) -> Iterator[AudioFrame | None]:
    """The decoded frames; None for a piece that could not be decoded."""
    try:
        for packet in container.demux(stream):
            try:
                frames: list[Any] = packet.decode()
            except FFmpegError:
                frames = [None]
            yield from frames
    except FFmpegError:
        yield None
    except IndexError:
        # A broadcast may announce another stream (subtitles, say) on its way. PyAV stumbles over it, but only behind
        # the last packet, where it asks the decoders for what they hold back, which is nothing for these codings.
        return


def _stated_seconds(container: InputContainer, stream: AudioStream) -> float | None:
    """The length that the header states, or None where it does not."""
    kind = container.format.name.split(",")[0]
    # Only an mp3 whose header states the length tells how many samples precede the sound, which is its start time.
    if kind not in STATES_LENGTH or (kind == "mp3" and not stream.start_time):
        return None
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None and len(container.streams) == 1:
        return container.duration / av.time_base
    return None


def _cut_short(file: BinaryIO) -> bool:
    """Whether a RIFF file (wav) is shorter than its header says. FFmpeg tells the length that is left."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(8)
    if len(head) < 8 or head[:4] != b"RIFF":
        return False
    stated = struct.unpack("<I", head[4:])[0]
    return stated < RIFF_UNKNOWN and stated + 8 - size > MISSING_BYTES


class _Sink:
    """Collects frames as mono samples of one rate, no more of them than `max_duration` allows."""

    def __init__(self, name: str, sample_rate: int, max_duration: float) -> None:
        self.name, self.sample_rate, self.max_duration = name, sample_rate, max_duration
        self._buffer = bytearray()  # grows by an eighth, in place: an hour needs little more than its samples
        self._resampler: AudioResampler | None = None
        self._input: tuple[str, str, int] | None = None  # what the resampler was made for

    def add(self, frame: AudioFrame) -> None:
        given = (frame.format.name, frame.layout.name, frame.sample_rate)
        if given != self._input:  # the first frame, or a broadcast that changes on its way
            channels = frame.layout.nb_channels
            if frame.sample_rate not in RATES or not 1 <= channels <= MAX_CHANNELS:
                raise AudioError(f"{self.name}: {channels} channels at {frame.sample_rate} Hz: is the file damaged?")
            self._flush()
            # Channels are averaged after resampling: libswresample's own mix to mono would weigh them. They are asked
            # for interleaved, since PyAV reads wild memory where there are more than eight planes.
            self._resampler = av.AudioResampler(format="flt", layout=frame.layout, rate=self.sample_rate)
            self._input = given
        if self._resampler is not None:
            self._append(self._resampler.resample(frame))

    def samples(self) -> np.ndarray:
        """(samples,) float32, a view of what was collected; ends the collecting."""
        self._flush()
        return np.frombuffer(self._buffer, np.float32)

    def _flush(self) -> None:
        if self._resampler is not None:
            self._append(self._resampler.resample(None))
        self._resampler = self._input = None

    def _append(self, frames: list[AudioFrame]) -> None:
        for frame in frames:
            channels = frame.to_ndarray().reshape(frame.samples, -1)
            mono = channels if channels.shape[1] == 1 else channels.mean(axis=1, dtype=np.float32)
            self._buffer += mono.tobytes()
        if len(self._buffer) > 4 * self.max_duration * self.sample_rate:
            raise AudioError(f"{self.name}: is longer than {self.max_duration:g} s: raise max_duration to read it")
