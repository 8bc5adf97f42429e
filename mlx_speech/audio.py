"""Any recording → mono float32 samples in [-1, 1] at one rate.

`media` decodes. Sample n of the result is what a player plays n / rate seconds after it begins to show the recording:
where the sound begins later than the picture, or something of it is missing, there is silence.

Resampling is libswresample's with its defaults (Kaiser window of beta 9 over 32 taps at the lower of the two rates,
cutoff 0.97 of half that rate), which is what `ffmpeg -ar 16000` does and so what openai/whisper hears: the level is
kept within 0.5 dB up to 7 kHz, and what lies above 9 kHz is 60 dB down. It adds no delay. `channels` makes
one of several by libswresample's weights too, those of `ffmpeg -ac 1`.
"""

from __future__ import annotations

import inspect
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, cast

import av
import numpy as np
from av.error import FFmpegError

from mlx_speech import channels, media
from mlx_speech.errors import AudioError, OptionError
from mlx_speech.samples import HIGHEST_PEAK, SAMPLE_RATE, as_float, check_scale, has_nan, peak_of

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.resampler import AudioResampler
    from av.container import InputContainer
    from av.packet import Packet

MAX_DURATION = 24 * 3600.0  # seconds; 5.5 GB of samples
RATES = range(2_000, 768_001)  # Hz; a lower rate would let a small file swell into hours
MAX_CHANNELS = 64
SAMPLES_AT_ONCE = 1 << 16  # of an array that are resampled, or of silence that are put in
BYTES_PER_SAMPLE = 4

MISSING_SECONDS = 0.5  # sound that ends this much before the stated end, or of which this much is damaged, is not whole
QUIET_PEAK = 0.01  # peak: -40 dBFS; speech that is softer is overheard
RAISED_PEAK = 0.3  # peak: -10 dBFS; at this level it is heard as if it were loud
ROUNDING_PEAK = 3e-4  # peak: -70 dBFS; what is softer is rounding


Source: TypeAlias = str | os.PathLike[str] | BinaryIO


@dataclass(frozen=True)
class _Options:
    """How a recording is read; `load_audio` says what each means."""

    sample_rate: int
    max_duration: float
    audio_track: int | str | None


def load_audio(
    source: Source,
    *,
    sample_rate: int = SAMPLE_RATE,
    max_duration: float = MAX_DURATION,
    audio_track: int | str | None = None,
) -> np.ndarray:
    """Decode a recording, or the sound of a video, into mono samples.

    source : a path, "-" for standard input, or a binary file object (read from its start where it can be sought)
    sample_rate : of the result, in Hz
    max_duration : the longest recording that is read, in seconds
    audio_track : which sound track of several, counted from 1; "all" adds them up, and a warning names those in
        an unknown coding. By default the one that a player takes, and a warning names them all

    Returns (samples,) float32 in [-1, 1], with silence where the sound begins late or has gaps; none for a recording
    without samples. Stereo is averaged, surround weighed as `ffmpeg -ac 1` does, channels of unknown places are
    averaged. 16-bit samples at `sample_rate` come as exactly n / 32768. Of a file that breaks off or has holes, what
    could be decoded is returned and a warning is given. So it is where two channels cancel each other, and one is taken
    instead, and where the file's clock jumps further than is believed to be a gap.

    Raises `AudioError` where there is nothing to decode, or no such track, and `OptionError` for options out of range.
    """
    return mix(_load(source, _Options(sample_rate, max_duration, audio_track)))


def load_tracks(
    source: Source, *, sample_rate: int = SAMPLE_RATE, max_duration: float = MAX_DURATION
) -> list[np.ndarray]:
    """Every sound track of a recording for itself, on one timeline.

    Returns a list of what `load_audio` gives, which warns and raises so too. They may differ in length. `mix` makes one
    of them.
    """
    return _load(source, _Options(sample_rate, max_duration, "all"))


def blocks(
    source: Source,
    *,
    sample_rate: int = SAMPLE_RATE,
    block_seconds: float = 30.0,
    audio_track: int | None = None,
    max_duration: float = MAX_DURATION,
) -> Iterator[tuple[float, np.ndarray]]:
    """A recording piece by piece, while it is decoded: joined, the pieces are what `load_audio` gives.

    source, sample_rate, max_duration : as of `load_audio`
    block_seconds : of each piece but the last
    audio_track : counted from 1; by default the one that a player takes. "all" is for `load_audio` alone, since how
        loud each track may be is known at the end only

    Yields (start in seconds, (samples,) float32 in [-1, 1]), nothing for a recording without samples. Where the sound
    begins late or has gaps, and which of two channels is heard, is known as it comes: blocks of a stereo recording are
    a second late. What concerns the whole recording comes at its end: the warnings of losses, of a clock that jumps and
    of channels that cancel each other. Samples on another scale and NaN raise `AudioError` in the block that has them;
    the scale is judged by the block alone. Otherwise it raises what `load_audio` raises, when the first block is asked
    for, and `OptionError` for a block of no sample.
    """
    if audio_track == "all":
        raise OptionError('audio_track is "all": blocks are of one track, so give its number')
    size = round(block_seconds * sample_rate) if 0 < block_seconds <= MAX_DURATION else 0
    if size < 1:
        raise OptionError(f"block_seconds is {block_seconds}: give a number of seconds above 0, up to {MAX_DURATION:g}")
    options = _Options(sample_rate, max_duration, audio_track)
    start = 0
    with _opened(source, options) as (file, container):
        recording = _Recording(file, container, media.name_of(source), options)
        reader = recording.readers[0]
        for _ in recording.packets():
            while reader.sink.ready >= size:
                block = reader.sink.take(size)
                _clean(block, reader)
                yield start / sample_rate, block
                start += block.size
        recording.close()
        reader.sink.finish()
        recording.check_decoded(reader)
        while reader.sink.ready:
            block = reader.sink.take(size)
            _clean(block, reader)
            yield start / sample_rate, block
            start += block.size
        recording.warn_of_losses(reader)


def mix(tracks: Sequence[np.ndarray]) -> np.ndarray:
    """Tracks of one timeline added up, and made softer where they would leave [-1, 1]. tracks : (samples,) each"""
    if len(tracks) == 1:
        return tracks[0]
    total = np.zeros(max((track.size for track in tracks), default=0), np.float32)
    for track in tracks:
        total[: track.size] += track
    peak = peak_of(total)
    if peak > 1:
        total /= peak
    return total


def audio_from_array(samples: Any, rate: int, *, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """Samples that are in memory already as `load_audio` would give them.

    samples : (samples,) or (channels, samples), anything NumPy takes; floats in [-1, 1], or integers, whose range is
        scaled to it (unsigned ones with silence in the middle)
    rate : of `samples`, in Hz
    sample_rate : of the result, in Hz

    Returns (samples,) float32 in [-1, 1], a copy; channels are averaged. Raises `AudioError` for another shape, for
    NaN, and for numbers that are on another scale: floats beyond 8, or integers that use less than the lower half of
    their type's bits, such as 16-bit samples in an int32 array. Raises `OptionError` for a rate out of range.
    """
    _check_rate(sample_rate)
    _check_rate(rate)
    array = np.asarray(samples)
    if array.ndim not in (1, 2) or (array.ndim == 2 and not 1 <= len(array) <= MAX_CHANNELS):
        advice = "give (samples,) or (channels, samples), so transpose (samples, channels)"
        raise AudioError(f"samples of shape {array.shape}: {advice}")
    if array.dtype.kind not in "iuf":
        raise AudioError(f"samples of type {array.dtype}: give floats in [-1, 1] or integers")
    check_scale(array)
    array = as_float(array)
    mono = array.copy() if array.ndim == 1 else _mono_array(array, rate)
    if rate != sample_rate:
        sink = _Sink("samples", sample_rate, math.inf)
        for start in range(0, mono.size, SAMPLES_AT_ONCE):
            frame = av.AudioFrame.from_ndarray(
                mono[None, start : start + SAMPLES_AT_ONCE], format="fltp", layout="mono"
            )
            frame.sample_rate = rate
            sink.add(frame)
        mono = sink.samples()
    np.clip(mono, -1, 1, out=mono)
    if has_nan(mono):
        raise AudioError("some of the samples are no numbers (NaN): replace them, say by numpy.nan_to_num")
    return mono


def louder(samples: np.ndarray, name: str | None = None) -> np.ndarray:
    """Very quiet samples at the level of ordinary speech, with a warning; others as they are.

    The models were trained on ordinary levels: of speech that peaks at -50 dBFS, voice activity detection finds next to
    nothing, and the same made louder it finds whole. Noise at that level stays noise.

    samples : (samples,), floats in [-1, 1]
    name : what the warning calls the recording; None for no warning

    Returns the same array, or a copy that peaks at -10 dBFS where it peaks below -40 dBFS, but not where it is only
    rounding (below -70).
    """
    peak = peak_of(samples)
    if not 0 < peak < QUIET_PEAK:
        return samples
    raised = peak >= ROUNDING_PEAK
    if name is not None:
        consequence = "it is made louder to be heard" if raised else "there may be nothing in it"
        decibels = 20 * math.log10(peak)
        _warn(f"{name}: is very quiet (its peak is {decibels:.0f} dBFS): {consequence}")
    if not raised:
        return samples
    return samples * np.float32(RAISED_PEAK / peak)


def check_track(audio_track: Any) -> None:
    """Raises `OptionError` where it is neither None, "all" nor a number from 1."""
    if audio_track is None or (isinstance(audio_track, str) and audio_track == "all"):
        return
    if not isinstance(audio_track, Integral) or isinstance(audio_track, bool) or audio_track < 1:
        raise OptionError(f'audio_track is {audio_track!r}: give a number from 1, or "all"')


def _warn(message: str) -> None:
    """Warn as from the line that has called this module."""
    level = 1
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
        level += 1
    warnings.warn(message, stacklevel=level)


def _check_rate(rate: int) -> None:
    if rate not in RATES:
        raise OptionError(f"a sample rate of {rate} Hz: give a whole number from {RATES[0]} to {RATES[-1]}")


def _mono_array(array: np.ndarray, rate: int) -> np.ndarray:
    """(channels, samples) → (samples,), their mean; one of two where they cancel each other."""
    if len(array) != 2:
        return array.mean(axis=0, dtype=np.float32)
    pair = channels.Pair(rate)
    seconds = []
    for start in range(0, array.shape[1], SAMPLES_AT_ONCE):
        seconds += pair.add(array[:, start : start + SAMPLES_AT_ONCE].T)
    seconds.append(pair.end())
    cancelled = pair.verdict()
    if cancelled is not None:
        _warn(f"the samples: {cancelled}")
    return np.concatenate(seconds)


# --- a file ----------------------------------------------------------------------------------------------------------


@contextmanager
def _opened(source: Source, options: _Options) -> Iterator[tuple[BinaryIO, InputContainer]]:
    """A recording as a file and as a container. Raises `AudioError` where it is none, or cannot be read."""
    _check_rate(options.sample_rate)
    check_track(options.audio_track)
    if not options.max_duration > 0:
        raise OptionError(f"max_duration is {options.max_duration}: give a number of seconds above 0")
    name = media.name_of(source)
    try:
        with media.seekable(source, name) as file:
            file.seek(0)
            with media.open_media(file, name) as container:
                yield file, container
    except OSError as error:
        raise AudioError(f"{name}: cannot be read: {error.strerror or error}") from error


def _load(source: Source, options: _Options) -> list[np.ndarray]:
    """What `load_audio` adds up: one array for every track that is asked for."""
    with _opened(source, options) as (file, container):
        recording = _Recording(file, container, media.name_of(source), options)
        for _ in recording.packets():
            pass
        recording.close()
        sounds = []
        for reader in recording.readers:
            samples = reader.sink.samples()
            recording.check_decoded(reader)
            _clean(samples, reader)
            recording.warn_of_losses(reader)
            sounds.append(samples)
        return sounds


def _clean(samples: np.ndarray, reader: _Reader) -> None:
    """Clip samples of a track to [-1, 1], in place. Raises `AudioError` where they are on another scale, or NaN."""
    name = reader.sink.name
    peak = peak_of(samples) if reader.holds_floats() else 0.0
    if peak > HIGHEST_PEAK:
        advice = "divide 16-bit samples by 32768 before they are saved as floats"
        raise AudioError(f"{name}: its samples reach {peak:g}, and full scale is 1: {advice}")
    np.clip(samples, -1, 1, out=samples)
    if has_nan(samples):
        raise AudioError(f"{name}: some of its samples are no numbers (NaN): export it again")


class _Recording:
    """An open file, and a reader for every track of it that is asked for."""

    def __init__(self, file: BinaryIO, container: InputContainer, name: str, options: _Options) -> None:
        self.name = name
        self._file = file
        self._container = container
        self._shortened = False
        tracks = media.tracks_of(container, name)
        chosen = media.chosen_tracks(container, tracks, options.audio_track, name)
        self._warn_of_tracks(tracks, chosen, options.audio_track)
        self.readers = []
        for track in chosen:
            sink = _Sink(name, options.sample_rate, options.max_duration)
            self.readers.append(_Reader(container, track, sink))

    def _warn_of_tracks(
        self, tracks: Sequence[media.Track], chosen: Sequence[media.Track], audio_track: int | str | None
    ) -> None:
        if audio_track is None and len(tracks) > 1:
            labels = ", ".join(track.label for track in tracks)
            fact = f"{self.name}: has {len(tracks)} sound tracks, {labels}: track {chosen[0].number} is read"
            _warn(f'{fact}: choose by audio_track a number, or "all"')
        if audio_track == "all" and len(chosen) < len(tracks):
            labels = ", ".join(track.label for track in tracks if track not in chosen)
            _warn(f"{self.name}: leaves out what is in an encrypted or unknown coding: sound track {labels}")

    def packets(self) -> Iterator[None]:
        """Decode the file packet by packet, with a pause behind each."""
        try:
            for (
                packet
            ) in self._container.demux():  # other streams tell whether time runs on, and which bytes are theirs
                for reader in self.readers:
                    reader.read(packet)
                yield
        except FFmpegError:
            for reader in self.readers:
                reader.broken = True
        except IndexError:
            # A broadcast may announce another stream (subtitles, say) on its way. PyAV stumbles over it, but only
            # behind the last packet, where it asks the decoders for what they hold back, which is nothing for these
            # codings.
            return

    def close(self) -> None:
        """Behind the last packet: put in what the readers hold back, and see how long the file should have been."""
        for reader in self.readers:
            reader.close()
            reader.stated_end = media.stated_end(self._container, reader.track.stream, self._file)
        self._shortened = media.cut_short(self._file)

    def check_decoded(self, reader: _Reader) -> None:
        """Raises `AudioError` where a track has sound, or says so, and nothing of it could be decoded."""
        promised = (reader.stated_end or 0.0) > media.ROUNDING
        if not reader.sink.count and (self._is_broken(reader) or promised or reader.packets):
            raise AudioError(f"{self.name}: no sound could be decoded: it is damaged")

    def warn_of_losses(self, reader: _Reader) -> None:
        """Warn where channels cancel each other, where the clock jumps, and where sound of a track is lost."""
        cancelled = reader.sink.pair.verdict()
        if cancelled is not None:
            _warn(f"{self.name}: {cancelled}")
        if reader.clock.dropped is not None:
            place, jump = reader.clock.dropped
            fact = f"{self.name}: the clock of its sound jumps by {jump:.0f} s at {place:.1f} s"
            _warn(f"{fact}, which is taken for another clock: no silence is put in")
        if self._is_broken(reader):
            _warn(f"{self.name}: breaks off or is damaged: {reader.decoded:.1f} s of it could be decoded")

    def _is_broken(self, reader: _Reader) -> bool:
        return self._shortened or reader.lost_sound()


class _Reader:
    """Decodes the packets of one track, puts the sound where it belongs, and notes what is lost."""

    def __init__(self, container: InputContainer, track: media.Track, sink: _Sink) -> None:
        self.track = track
        self.sink = sink
        self.clock = media.Clock(container, sink.max_duration)
        self.packets = 0
        self.broken = False  # the file could not be read to its end
        self.decoded = 0.0  # seconds
        self.stated_end: float | None = None  # on the track's own clock
        self._container = container
        self._losses = media.Losses(container)
        self._waiting: tuple[AudioFrame, media.Hole] | None = None  # its time is believed when the next one is known

    def read(self, packet: Packet) -> None:
        """Note a packet of the file and decode it, if it is the track's; the last one, which is empty, brings what the
        decoder holds back."""
        of_track = packet.stream.index == self.track.stream.index
        self.clock.see(packet, of_track)
        self._losses.see(packet, of_track)
        if not of_track:
            return
        if packet.size > 0:
            self.packets += 1
        if media.is_hole(packet):
            self._losses.fail(packet)
            return
        try:
            frames = packet.decode()
        except FFmpegError:
            if not media.is_tag(self._container, packet):
                self._losses.fail(packet)
            return
        for frame in frames:
            self._place(cast("AudioFrame", frame))

    def close(self) -> None:
        """Behind the last packet."""
        self._place(None)

    def lost_sound(self) -> bool:
        """Whether some of what the file had, or says that it has, could not be decoded. A gap is no loss."""
        if self.broken or self._losses.seconds >= MISSING_SECONDS:
            return True
        if self.stated_end is None:
            return self._losses.failed > 0
        # A packet or two that do not decode are no loss while the length is right.
        return self.clock.end_time <= self.stated_end - MISSING_SECONDS

    def holds_floats(self) -> bool:
        """Whether the track is of floating-point samples, which may be on any scale."""
        return self.track.stream.codec_context.name.startswith("pcm_f")

    def _place(self, frame: AudioFrame | None) -> None:
        waiting = self._waiting
        self._waiting = None
        if frame is not None:
            self._waiting = (frame, self._losses.before_frame())
        if waiting is None:
            return
        ready, hole = waiting
        silence = 0.0
        if ready.sample_rate in RATES:
            silence = self.clock.silence_before(ready, following=frame)
        if silence:
            self._losses.silence(silence, hole, self.decoded)
            self.sink.fill(self.clock.end - ready.samples / ready.sample_rate)
        self.sink.add(ready)
        self.decoded += ready.samples / ready.sample_rate


class _Sink:
    """Collects frames as mono samples of one rate, no more of them than `max_duration` allows."""

    def __init__(self, name: str, sample_rate: int, max_duration: float) -> None:
        self.name = name
        self.sample_rate = sample_rate
        self.max_duration = max_duration
        self.pair = channels.Pair(sample_rate)
        self._taken = 0  # samples
        self._buffer = bytearray()  # grows by an eighth, in place: an hour needs little more than its samples
        self._resampler: AudioResampler | None = None
        self._input: tuple[str, str, int] | None = None  # what the resampler was made for
        self._weights: np.ndarray | None = None  # of its channels

    def add(self, frame: AudioFrame) -> None:
        """Samples behind those that are there."""
        frame_input = (frame.format.name, frame.layout.name, frame.sample_rate)
        if frame_input != self._input:  # the first frame, or a broadcast that changes on its way
            count = frame.layout.nb_channels
            if frame.sample_rate not in RATES or not 1 <= count <= MAX_CHANNELS:
                raise AudioError(f"{self.name}: {count} channels at {frame.sample_rate} Hz: is the file damaged?")
            self._flush()
            # Channels are mixed after resampling, in floats. They are asked for interleaved, since PyAV reads wild
            # memory where there are more than eight planes.
            self._resampler = av.AudioResampler(format="flt", layout=frame.layout, rate=self.sample_rate)
            self._weights = channels.weights(frame.layout)
            self._input = frame_input
        if self._resampler is not None:
            self._append(self._resampler.resample(frame))

    def fill(self, seconds: float) -> None:
        """Silence up to `seconds` from the start of the recording."""
        self._flush()
        missing = round(seconds * self.sample_rate) - self.count
        while missing > 0:
            count = min(missing, SAMPLES_AT_ONCE)
            self._add_mono(np.zeros(count, np.float32))
            self._check_length()
            missing -= count

    def samples(self) -> np.ndarray:
        """(samples,) float32, a view of what has been collected and not taken; ends the collecting."""
        self.finish()
        return np.frombuffer(self._buffer, np.float32)

    def finish(self) -> None:
        """Behind the last frame: collect what the resampler and the current second hold back."""
        self._flush()
        self._buffer += self.pair.end().tobytes()

    def take(self, count: int) -> np.ndarray:
        """Remove the first `count` samples that are ready, or fewer; returns a copy of them, (samples,) float32."""
        size = count * BYTES_PER_SAMPLE
        samples = np.frombuffer(self._buffer[:size], np.float32)
        del self._buffer[:size]
        self._taken += samples.size
        return samples

    @property
    def ready(self) -> int:
        """Samples that can be taken."""
        return len(self._buffer) // BYTES_PER_SAMPLE

    @property
    def count(self) -> int:
        """Samples that have come in all, those of the current second too."""
        return self._taken + self.ready + self.pair.waiting

    def _flush(self) -> None:
        if self._resampler is not None:
            self._append(self._resampler.resample(None))
        self._resampler = None
        self._input = None

    def _append(self, frames: list[AudioFrame]) -> None:
        for frame in frames:
            sound = frame.to_ndarray().reshape(frame.samples, -1)
            if sound.shape[1] == 2:
                self._add_pair(sound)
            elif self._weights is not None:
                self._add_mono(sound @ self._weights)
            elif sound.shape[1] == 1:
                self._add_mono(sound[:, 0])
            else:
                self._add_mono(sound.mean(axis=1, dtype=np.float32))
        self._check_length()

    def _add_pair(self, sound: np.ndarray) -> None:
        """sound : (samples, 2)"""
        for second in self.pair.add(sound):
            self._buffer += second.tobytes()

    def _add_mono(self, sound: np.ndarray) -> None:
        """sound : (samples,). Within a second of two channels it is the same in both."""
        if self.pair.waiting:
            self._add_pair(np.stack([sound, sound], axis=1))
        else:
            self._buffer += sound.tobytes()

    def _check_length(self) -> None:
        if self.count > self.max_duration * self.sample_rate:
            raise AudioError(f"{self.name}: is longer than {self.max_duration:g} s: raise max_duration to read it")
