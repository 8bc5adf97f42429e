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
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from numbers import Integral
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, cast

import av
import numpy as np
from av.error import FFmpegError

from mlx_speech import channels, media
from mlx_speech.errors import AudioError, OptionError
from mlx_speech.sample_file import SAMPLES_PER_PIECE, Collected, collected, in_file, let_go, pieces_of
from mlx_speech.samples import HIGHEST_PEAK, SAMPLE_RATE, as_float, check_scale, has_nan, peak_of
from mlx_speech.sink import MAX_CHANNELS, RATES, SAMPLES_AT_ONCE, Sink

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.container import InputContainer
    from av.packet import Packet

MAX_DURATION = 24 * 3600.0  # seconds; 5.5 GB of samples
LONGEST_IN_MEMORY = 1800.0  # seconds; of what is longer `open_audio` has the samples in a file: 115 MB and more

MISSING_SECONDS = 0.5  # sound that ends this much before the stated end, or of which this much is damaged, is not whole
QUIET_PEAK = 0.01  # peak: -40 dBFS; speech that is softer is overheard
RAISED_PEAK = 0.3  # peak: -10 dBFS; at this level it is heard as if it were loud
ROUNDING_PEAK = 3e-4  # peak: -70 dBFS; what is softer is rounding


Source: TypeAlias = str | os.PathLike[str] | BinaryIO


@dataclass(frozen=True)
class _Options:
    """How a recording is read; `load_audio` says what each means.

    longest_in_memory : seconds; what is longer goes to a file
    """

    sample_rate: int
    max_duration: float
    audio_track: int | str | None
    longest_in_memory: float = math.inf
    is_wanted: Callable[[], bool] = lambda: True


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


def open_audio(
    source: Source,
    *,
    sample_rate: int = SAMPLE_RATE,
    max_duration: float = MAX_DURATION,
    audio_track: int | str | None = None,
    longest_in_memory: float = LONGEST_IN_MEMORY,
    is_wanted: Callable[[], bool] = lambda: True,
) -> np.ndarray:
    """`load_audio` for recordings of any length: the samples of a long one lie in a temporary file, and are read as
    they are looked at.

    source, sample_rate, max_duration, audio_track : as of `load_audio`
    longest_in_memory : seconds of sound; the samples of more are in a file
    is_wanted : is asked again and again; where it is not, reading ends with an `AudioError`

    Returns what `load_audio` gives, which may not be written to where it is in a file; `sample_file.let_go` takes what
    was looked at out of memory again. Raises `AudioError` where the temporary folder has no room, too.
    """
    return mix(_load(source, _Options(sample_rate, max_duration, audio_track, longest_in_memory, is_wanted)))


def open_tracks(
    source: Source,
    *,
    max_duration: float = MAX_DURATION,
    longest_in_memory: float = LONGEST_IN_MEMORY,
    is_wanted: Callable[[], bool] = lambda: True,
) -> list[np.ndarray]:
    """`load_tracks` at 16 kHz for recordings of any length, as `open_audio`."""
    return _load(source, _Options(SAMPLE_RATE, max_duration, "all", longest_in_memory, is_wanted))


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
        for _ in chain(recording.packets(), recording.rest()):
            while reader.sink.ready >= size:
                block = reader.take(size)
                reader.check_samples()
                yield start / sample_rate, block
                start += block.size
        reader.sink.finish()
        recording.check_decoded(reader)
        while reader.sink.ready:
            block = reader.take(size)
            reader.check_samples()
            yield start / sample_rate, block
            start += block.size
        recording.warn_of_losses(reader)


def mix(tracks: Sequence[np.ndarray]) -> np.ndarray:
    """Tracks of one timeline added up, and made softer where they would leave [-1, 1]. tracks : (samples,) each, in
    memory or in files, where the result is then, too"""
    if len(tracks) == 1:
        return tracks[0]
    most_in_memory = 0.0 if any(in_file(track) for track in tracks) else math.inf
    peak = max((peak_of(total) for total in _sums(tracks)), default=0.0)
    divisor = np.float32(max(1.0, peak))
    return collected((total / divisor for total in _sums(tracks)), "the mix of its sound tracks", most_in_memory)


def _sums(tracks: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """Tracks added up, piece by piece, (samples,) each."""
    longest = max((track.size for track in tracks), default=0)
    for start in range(0, longest, SAMPLES_PER_PIECE):
        total = np.zeros(min(SAMPLES_PER_PIECE, longest - start), np.float32)
        for track in tracks:
            part = track[start : start + SAMPLES_PER_PIECE]
            total[: part.size] += part
            let_go(track)
        yield total


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
    sample_rate = _checked_rate(sample_rate)
    rate = _checked_rate(rate)
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
        sink = Sink("samples", sample_rate, math.inf)
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
    rounding (below -70). The copy of samples in a file is in a file; raises `AudioError` where there is no room for it.
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
    gain = np.float32(RAISED_PEAK / peak)
    if in_file(samples):
        return collected((piece * gain for piece in pieces_of(samples)), name or "the recording", 0)
    return samples * gain


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


def _checked_rate(rate: float) -> int:
    """As a whole number, which 44100.0 is, too. Raises `OptionError`."""
    if rate not in RATES:
        raise OptionError(f"a sample rate of {rate} Hz: give a whole number from {RATES[0]} to {RATES[-1]}")
    return int(rate)


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
    _checked_rate(options.sample_rate)
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
        name = media.name_of(source)
        recording = _Recording(file, container, name, options)
        most_in_memory = options.longest_in_memory * options.sample_rate
        with ExitStack() as opened:
            sounds = [opened.enter_context(Collected(name, most_in_memory)) for _ in recording.readers]
            for _ in chain(recording.packets(), recording.rest()):
                if not options.is_wanted():
                    raise AudioError(f"{name}: nobody waits for it any more")
                for reader, sound in zip(recording.readers, sounds, strict=True):
                    if reader.sink.ready >= SAMPLES_AT_ONCE:
                        sound.append(reader.take(reader.sink.ready))
            for reader, sound in zip(recording.readers, sounds, strict=True):
                reader.sink.finish()
                sound.append(reader.take(reader.sink.ready))
                recording.check_decoded(reader)
                reader.check_samples()
                recording.warn_of_losses(reader)
            return [sound.samples() for sound in sounds]


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
            sink = Sink(name, options.sample_rate, options.max_duration)
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
        """Decode the file packet by packet, with a pause behind each, and in silence that is put in."""
        try:
            for (
                packet
            ) in self._container.demux():  # other streams tell whether time runs on, and which bytes are theirs
                for reader in self.readers:
                    yield from reader.read(packet)
                yield
        except FFmpegError:
            for reader in self.readers:
                reader.broken = True
        except IndexError:
            # A broadcast may announce another stream (subtitles, say) on its way. PyAV stumbles over it, but only
            # behind the last packet, where it asks the decoders for what they hold back, which is nothing for these
            # codings.
            return

    def rest(self) -> Iterator[None]:
        """Behind the last packet: put in what the readers hold back, with pauses, and see how long the file should have
        been."""
        for reader in self.readers:
            yield from reader.rest()
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

    def __init__(self, container: InputContainer, track: media.Track, sink: Sink) -> None:
        self.track = track
        self.sink = sink
        self.clock = media.Clock(container, sink.max_duration)
        self.packets = 0
        self.broken = False  # the file could not be read to its end
        self.decoded = 0.0  # seconds
        self.stated_end: float | None = None  # on the track's own clock
        self._peak = 0.0  # of the samples that were taken, before they were clipped
        self._has_nan = False
        self._container = container
        self._losses = media.Losses(container)
        self._waiting: tuple[AudioFrame, media.Hole] | None = None  # its time is believed when the next one is known

    def read(self, packet: Packet) -> Iterator[None]:
        """Note a packet of the file and decode it, if it is the track's; the last one, which is empty, brings what the
        decoder holds back. With pauses in silence."""
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
            yield from self._place(cast("AudioFrame", frame))

    def rest(self) -> Iterator[None]:
        """Behind the last packet."""
        yield from self._place(None)

    def take(self, count: int) -> np.ndarray:
        """The first `count` samples that are ready, or fewer, clipped to [-1, 1], (samples,); they are gone then."""
        samples = self.sink.take(count)
        if self._holds_floats():
            self._peak = max(self._peak, peak_of(samples))
        np.clip(samples, -1, 1, out=samples)
        self._has_nan = self._has_nan or has_nan(samples)
        return samples

    def check_samples(self) -> None:
        """Raises `AudioError` where some that were taken are on another scale, or NaN."""
        if self._peak > HIGHEST_PEAK:
            advice = "divide 16-bit samples by 32768 before they are saved as floats"
            raise AudioError(f"{self.sink.name}: its samples reach {self._peak:g}, and full scale is 1: {advice}")
        if self._has_nan:
            raise AudioError(f"{self.sink.name}: some of its samples are no numbers (NaN): export it again")

    def lost_sound(self) -> bool:
        """Whether some of what the file had, or says that it has, could not be decoded. A gap is no loss."""
        if self.broken or self._losses.seconds >= MISSING_SECONDS:
            return True
        if self.stated_end is None:
            return self._losses.failed > 0
        # A packet or two that do not decode are no loss while the length is right.
        return self.clock.end_time <= self.stated_end - MISSING_SECONDS

    def _holds_floats(self) -> bool:
        """Whether the track is of floating-point samples, which may be on any scale."""
        return self.track.stream.codec_context.name.startswith("pcm_f")

    def _place(self, frame: AudioFrame | None) -> Iterator[None]:
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
            yield from self.sink.fill(self.clock.end - ready.samples / ready.sample_rate)
        self.sink.add(ready)
        self.decoded += ready.samples / ready.sample_rate
