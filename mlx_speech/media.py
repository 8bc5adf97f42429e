"""Media files → their sound tracks, and where on the recording's timeline each piece of a track belongs.

Decoding is PyAV's, whose wheels carry the FFmpeg libraries; no program is started. A recording is untrusted: FFmpeg
picks the format by content, and some formats (playlists, scripts of file names) are instructions to open other files
or addresses. So media is read through a file object, only from formats that hold their own samples, and FFmpeg may
open nothing by itself.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import struct
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import av
from av.error import FFmpegError
from av.format import Flags
from av.stream import Disposition

from mlx_speech.errors import AudioError, OptionError

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.packet import Packet

# Names of FFmpeg's demuxers that read sound, or pictures with sound, out of the file they are given. Left out:
# - those that open other files or addresses: concat, hls, dash, webm_dash_manifest, imf, image2, vobsub, mlv, sdp, rtp,
#   rtsp, sap (QuickTime can name a file, which is off by default);
# - scripts and devices: lavfi, sbg, ffmetadata, alsa, oss, x11grab and the like;
# - raw samples that do not say their rate, which nothing else tells: s16le and its kin, alaw, mulaw, g726, aptx, dfpwm;
# - what has no sound: pictures, subtitles, raw video.
FORMATS = ",".join(
    """
    aac ac3 ac4 aiff amr amrnb amrwb ape asf asf_o au avi caf dts dtshd eac3 flac flv live_flv loas matroska mlp mov mp3
    mpc mpc8 mpeg mpegts nistsphere nut ogg oma rm shn spdif tak truehd tta voc w64 wav wtv wv xwma
    dhav dv gxf ifv ipmovie ivr kux lmlm4 luodat lvf lxf mtv mxf mxg nsv nuv pva r3d s337m swf ty vividas vivo
    aa act aea apac avr bit bonk codec2 daud dsf dss epaf hcom iamf iff ilbc ircam laf lc3 mmf nsp osq pvf qcp qoa
    rka rso sds sdx smjpeg sol sox vqf wady wavarc wsd wve
    3dostr 4xm aax acm adp ads adx afc aix alp apc apm argo_asf argo_brp argo_cvg ast avs bethsoftvid bfi bfstm bink
    binka bmv boa brstm c93 cdxl dcstr derf dfa dsicin dxa ea film_cpk fsb fwse gdv genh hca hnm idcin iss jv kvag mca
    mm mods moflex msf mtaf musx mv mvi paf pmp pp_bnk psxstr redspark rl2 roq rpl rsd scd sdns sga siff simbiosis_imx
    smk smush svag svs thp tiertexseq tmv usm vag vmd vpk wc3movie wsaud wsvqa xa xmd xmv xvag yop
    g722 g723_1 g728 g729 gsm sbc sln
    """.split()  # those of the last line have nothing to be known by but the end of the file's name
)
RAW_NAMES = frozenset({".al", ".alaw", ".mulaw", ".pcm", ".raw", ".s16le", ".sb", ".sw", ".ub", ".ul", ".ulaw", ".uw"})
# The formats whose header states the length. For others FFmpeg estimates it from the bit rate, or from what is left.
STATES_LENGTH = ("aiff", "ape", "au", "caf", "flac", "matroska", "mov", "mp3", "tta", "w64", "wav", "wv")
# Of Matroska, the ids of the element that states the length, and of those that hold the sound.
DURATION = b"\x44\x89"
CLUSTER = b"\x1f\x43\xb6\x75"
HEAD_BYTES = 1 << 16  # mkvmerge leaves 4096 of them empty before it states anything
COMMAND_FOR_RAW = "ffmpeg -f s16le -ar RATE -ac CHANNELS -i FILE out.wav"
# Frames one behind the other and no times. FFmpeg counts them, all at the rate of the first.
RAW = "aac ac3 ac4 amr amrnb amrwb dts dtshd eac3 loas mlp mp3 s337m sbc spdif truehd".split()
UNTIMED = (*RAW, "avi")  # where pieces of sound have no times of their own; an avi's are guessed from sizes
GAPLESS = ("aiff", "ape", "au", "caf", "flac", "tta", "w64", "wav", "wv")  # their sound cannot pause
IN_ORDER = ("asf", "flv", "matroska", "nut", "ogg")  # packets fill the file, one behind the other
NEVER_ZEROS = ("opus", "tta", "vorbis")  # codings that make sound of a packet of zeros, though no encoder writes one
SKIPPED_SHARE = 0.25  # of the bytes that a pause would hold if it were sound
MISSING_BYTES = 1024  # a file this much shorter than a length in its header has been cut
RIFF_UNKNOWN = 0x7FF0_0000  # programs that write to a pipe put a length from here on
XING_SLACK = 16  # FFmpeg's: an mp3 that is longer than its header says by a 16th of it has been joined
LONGEST_PADDING = 4096  # bytes; more zeros than this are a hole
TAGS = (b"ID3", b"TAG", b"APETAGEX", b"LYRICSBEGIN", b"3DI")  # what may stand between or behind the frames of an mp3

JITTER = 0.1  # seconds that times may be off, as in FFmpeg's aresample: milliseconds of Matroska, drifting clocks
ROUNDING = 0.001  # seconds
RESTART = 1.0  # seconds that a clock may run back before it counts as another one
LONGEST_JUMP = 10.0  # seconds; where clocks may jump, a longer one needs a witness (without, FFmpeg's programs drop it)
INTERLEAVED = 5.0  # seconds that one stream's packets may stand before or behind another's of the same time
SEES_CHAINS = int(av.__version__.split(".")[0]) >= 18  # whether PyAV tells where another link of an ogg begins
MOST_TRACKS = 64
LONGEST_TITLE = 40  # characters


@dataclass(frozen=True)
class Track:
    """One sound track of a file.

    number : counted from 1, in the order of the file
    label : its number, and title and language where it has them
    """

    number: int
    stream: AudioStream
    label: str


def name_of(source: object) -> str:
    """What messages call `source`, on one line."""
    if isinstance(source, str | os.PathLike):
        name = "standard input" if source == "-" else os.fspath(source)
    else:
        name = getattr(source, "name", None)
    return " ".join(name.split("\n")) if isinstance(name, str) and name else "the given file"


@contextmanager
def seekable(source: object, name: str) -> Iterator[BinaryIO]:
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
        can_seek = not hasattr(file, "seekable") or file.seekable()
    except ValueError as error:
        raise AudioError(f"{name_of(file)}: the file object is closed") from error
    if can_seek:
        file.seek(0)
        yield file
    else:
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(file, copy)
            copy.seek(0)
            yield copy


def _refuse(url: str, *_: object) -> BinaryIO:
    raise PermissionError(f"it asks for another file ({url})")


def open_media(file: BinaryIO, name: str) -> InputContainer:
    """`file`, which stands at its start, as a container. Raises `AudioError` where it is none that is read."""
    if not file.read(1):
        raise AudioError(f"{name}: is empty: record or copy it again")
    file.seek(0)
    allowed = {"format_whitelist": FORMATS, "protocol_whitelist": ""}
    try:  # metadata: tags are often in another encoding than they should be
        return av.open(file, mode="r", container_options=allowed, metadata_errors="ignore", io_open=_refuse)
    except (FFmpegError, ValueError) as error:
        if PurePath(name).suffix.lower() in RAW_NAMES:
            problem = "raw samples, which do not say their rate, are not read here"
            raise AudioError(f"{name}: {problem}: make a wav of them ({COMMAND_FOR_RAW})") from error
        if isinstance(error, FFmpegError) and error.errno == errno.EINVAL:  # known, but not among FORMATS
            problem = "is a playlist, script, picture, subtitles or raw samples, which are not read here"
            raise AudioError(f"{name}: {problem}: give the recording itself") from error
        raise AudioError(f"{name}: is no recording of a known format, or broken: does a player open it?") from error


def tracks_of(container: InputContainer, name: str) -> list[Track]:
    """The sound tracks, at least one. Raises `AudioError` where there is none, or an absurd number."""
    streams = container.streams.audio
    if not streams:
        raise AudioError(f"{name}: has no sound in it: give a recording, or a video with a sound track")
    if len(streams) > MOST_TRACKS:
        raise AudioError(f"{name}: has {len(streams)} sound tracks: is the file damaged?")
    return [Track(number, stream, _label(number, stream)) for number, stream in enumerate(streams, 1)]


def _label(number: int, stream: AudioStream) -> str:
    title = stream.metadata.get("title", "")
    title = "".join(letter for letter in title if letter.isprintable()).strip()
    if len(title) > LONGEST_TITLE:
        title = title[:LONGEST_TITLE] + "…"
    language = stream.language or ""
    details = []
    if title:
        details.append(f'"{title}"')
    if language.isalnum() and language != "und":
        details.append(language)
    if not details:
        return str(number)
    return f"{number} ({', '.join(details)})"


def chosen_tracks(
    container: InputContainer, tracks: Sequence[Track], wanted: int | str | None, name: str
) -> list[Track]:
    """Those of `tracks` that `wanted` means: a number, "all", or None for the one a player takes.

    Raises `AudioError` where there is no such track, or it is in an unknown coding.
    """
    if wanted is None:
        best = container.streams.best("audio")
        readable = [track for track in tracks if track.stream.codec_context is not None]
        chosen = [track for track in readable if best is not None and track.stream.index == best.index]
        chosen = chosen or readable[:1]  # FFmpeg's choice may be one that it cannot decode
    elif wanted == "all":
        chosen = [track for track in tracks if track.stream.codec_context is not None]
    else:
        chosen = [track for track in tracks if track.number == wanted]
        if not chosen:
            labels = ", ".join(track.label for track in tracks)
            raise AudioError(f"{name}: has no sound track {wanted}: its tracks are {labels}")
    if not chosen or chosen[0].stream.codec_context is None:
        raise AudioError(f"{name}: its sound is in an encrypted or unknown coding: export it as wav or m4a")
    return chosen


# --- the clock -------------------------------------------------------------------------------------------------------


class Clock:
    """Tells where the frames of one track belong, in seconds from where a player begins to show the recording.

    Source: what FFmpeg's `aresample=async=1:first_pts=0` puts in, except that no sound is ever dropped for a clock that
    runs back, and that a time which the frame behind it does not bear out is taken as broken.

    Formats for broadcasts (and ogg, by its chains) let a clock start again anywhere. There a long jump is a gap if
    another stream ran on meanwhile, or if nothing of an ogg has started again; else it is another clock.

    limit : seconds; no silence reaches over it
    """

    def __init__(self, container: InputContainer, limit: float) -> None:
        streams = [stream for stream in container.streams if _runs(stream)]
        starts = [start for start in (_start(stream) for stream in streams) if start is not None]
        # What lies before zero is not shown: it is there for the decoder to start on.
        self._origin = max(0.0, min(starts)) if starts else None
        # A track that is all there is begins with its first frame, but for what was lost before.
        self._least = JITTER if len(streams) < 2 else ROUNDING
        self._limit = limit
        self._timed = _kind(container) not in UNTIMED
        # An ogg may be a chain of recordings, or all of it one link.
        self._chained = _kind(container) == "ogg" and SEES_CHAINS
        restarts = bool(container.format.flags & Flags.ts_discont.value) and not self._chained
        self._longest_jump = LONGEST_JUMP if restarts else limit
        self._indices = {stream.index for stream in streams}
        self._runs: dict[int, tuple[float, float]] = {}  # since when each has run without a break, and until when
        self._first = True
        self._end = 0.0  # of what has been placed
        self.dropped: tuple[float, float] | None = None  # the first jump that is no gap: where it is, and its length

    def see(self, packet: Packet, of_track: bool) -> None:
        """Every packet of the file before its frames are placed; `of_track` are those of this track."""
        if of_track:
            if self._chained and packet.has_sidedata("strings_metadata"):  # the head of another link
                self._longest_jump = min(self._longest_jump, LONGEST_JUMP)
        elif packet.dts is not None and packet.stream.index in self._indices:
            time = float(packet.dts * packet.time_base)
            start, end = self._runs.get(packet.stream.index, (time, time))
            if abs(time - end) <= LONGEST_JUMP:
                self._runs[packet.stream.index] = (start, max(end, time))
            else:
                self._runs[packet.stream.index] = (time, time)

    def silence_before(self, frame: AudioFrame, following: AudioFrame | None) -> float:
        """Seconds of silence that belong before `frame`, which is then placed; `following` is the one behind it."""
        duration = frame.samples / frame.sample_rate
        silence = 0.0
        if frame.time is not None:
            if self._first:
                silence = self._late_start(frame, following)
            elif self._timed:
                silence = self._gap(frame, following)
        self._first = False
        self._end += silence + duration
        return silence

    @property
    def end(self) -> float:
        """Seconds from the start of the recording to the end of what has been placed."""
        return self._end

    @property
    def end_time(self) -> float:
        """The same on the track's own clock."""
        return self._end + (self._origin or 0.0)

    def _late_start(self, frame: AudioFrame, following: AudioFrame | None) -> float:
        start = float(frame.time or 0.0)
        late = 0.0 if self._origin is None else start - self._origin
        if late > self._limit and not _returns(frame, following):
            self._drop(late)
        if not self._least < late <= self._limit or _returns(frame, following):
            late = 0.0
        self._origin = start - late
        return late

    def _gap(self, frame: AudioFrame, following: AudioFrame | None) -> float:
        start = float(frame.time or 0.0)
        if self._origin is None:
            self._origin = start - self._end
        late = start - self._origin - self._end
        if late > JITTER and not _returns(frame, following):
            borne_out = late <= self._longest_jump or self._ran_on(start - late, start)
            if borne_out and self._end + late <= self._limit:
                return late
            self._drop(late)
            self._origin = start - self._end  # another clock from here on
        elif late < -RESTART and not _goes_on(following, self._origin + self._end):
            self._origin = start - self._end
        return 0.0

    def _ran_on(self, start: float, end: float) -> bool:
        """Whether another stream has run from `start` to `end`."""
        runs = self._runs.values()
        return any(first - INTERLEAVED <= start and end <= last + INTERLEAVED for first, last in runs)

    def _drop(self, late: float) -> None:
        if self.dropped is None:
            self.dropped = (self._end, late)


def _returns(frame: AudioFrame, following: AudioFrame | None) -> bool:
    """Whether the frame behind `frame` is earlier: then the time of `frame` is broken."""
    if following is None or following.time is None or frame.time is None:
        return False
    return following.time < frame.time + frame.samples / frame.sample_rate - JITTER


def _goes_on(following: AudioFrame | None, end: float) -> bool:
    """Whether the next frame is where the old clock has it."""
    return following is not None and following.time is not None and following.time >= end - JITTER


def _runs(stream: Any) -> bool:
    """Whether it is sound, or pictures that move; the cover of an album has no place in time."""
    still = stream.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails)
    return stream.type in ("audio", "video") and not still


def _start(stream: Any) -> float | None:
    """Seconds on the clock of the file."""
    if stream.start_time is None or stream.time_base is None:
        return None
    return float(stream.start_time * stream.time_base)


# --- is it whole? ----------------------------------------------------------------------------------------------------


def is_tag(container: InputContainer, packet: Packet) -> bool:
    """Whether a packet that does not decode is a tag or padding, so that nothing is lost with it. Only raw streams have
    such packets: a container's tags have their own places, and what it calls sound is sound."""
    if _kind(container) not in RAW:
        return False
    data = bytes(packet)
    content = data.lstrip(b"\0")
    if not content:
        return len(data) <= LONGEST_PADDING
    return content.startswith(TAGS)


def is_hole(packet: Packet) -> bool:
    """Whether a packet was never written: preallocated and broken downloads hold zeros."""
    coding = packet.stream.codec_context.codec.canonical_name
    return coding in NEVER_ZEROS and packet.size > 0 and not any(bytes(packet))


class Losses:
    """What is lost of a track: packets that do not decode, and the silence that stands for packets that are not there.

    Silence is no loss by itself, since sound may pause. It is one where a packet before it did not decode, where the
    file has bytes in its place that are no packet's, and in formats whose sound cannot pause.
    """

    def __init__(self, container: InputContainer) -> None:
        self.failed = 0  # packets
        self._gapless = _kind(container) in GAPLESS
        self._in_order = _kind(container) in IN_ORDER
        self._in_packets = 0.0  # seconds that the failed packets say they hold
        self._silence = 0.0  # seconds of silence for what is lost
        self._failed_since = False  # the last frame
        self._passed: int | None = None  # bytes of the file up to the last packet that were in no packet
        self._skipped_before = 0  # of those, before the last frame
        self._skipped_since = 0
        self._read = 0  # bytes in packets
        self._read_of_track = 0  # of these, bytes of the track

    @property
    def seconds(self) -> float:
        """Of lost sound, as far as is known."""
        return max(self._in_packets, self._silence)

    def see(self, packet: Packet, of_track: bool) -> None:
        """Every packet of the file; `of_track` are those of this track."""
        if self._in_order and packet.pos is not None and packet.pos >= 0:
            # An ogg has many packets at one place, so that only a new highest number tells of bytes in between.
            passed = packet.pos - self._read
            if self._passed is None:
                self._passed = passed
            self._skipped_since += max(0, passed - self._passed)
            self._passed = max(self._passed, passed)
            self._read += packet.size
        if of_track:
            self._read_of_track += packet.size

    def fail(self, packet: Packet) -> None:
        """A packet of the track did not decode, and is no tag."""
        self.failed += 1
        self._failed_since = True
        self._in_packets += float((packet.duration or 0) * (packet.time_base or 0))

    def before_frame(self) -> Hole:
        """What was noticed since the last frame."""
        # In an ogg the packet before a hole already bears the place of the page behind it.
        hole = Hole(self._gapless or self._failed_since, self._skipped_before + self._skipped_since)
        self._failed_since = False
        self._skipped_before = self._skipped_since
        self._skipped_since = 0
        return hole

    def silence(self, seconds: float, hole: Hole, decoded: float) -> None:
        """So much was put in before a frame; `decoded` seconds are there before it."""
        expected = seconds * self._read_of_track / decoded if decoded else 0.0
        bytes_there = hole.skipped > max(MISSING_BYTES, SKIPPED_SHARE * expected)
        if hole.certain or bytes_there:
            self._silence += seconds


@dataclass(frozen=True)
class Hole:
    """What speaks for a hole before a frame.

    certain : silence there is lost sound
    skipped : bytes that belong to no packet
    """

    certain: bool = False
    skipped: int = 0


def stated_end(container: InputContainer, stream: AudioStream, file: BinaryIO) -> float | None:
    """Where the header says that the sound ends, on the stream's own clock; None where it does not say."""
    kind = _kind(container)
    if kind not in STATES_LENGTH or (kind == "mp3" and not _mp3_states_length(stream, file)):
        return None
    if kind == "mov" and not stream.frames:  # its table of samples is empty; FFmpeg gives it the length of the others
        return None
    length_is_of_track = kind != "matroska"  # which states one length for all
    if length_is_of_track and stream.duration is not None and stream.time_base is not None:
        return float((stream.duration + (stream.start_time or 0)) * stream.time_base)
    is_pcm = stream.codec_context is not None and stream.codec_context.name.startswith("pcm_")  # None: unknown coding
    if kind == "matroska" and is_pcm and DURATION not in _head_of_matroska(file):
        return None  # FFmpeg guesses from the size of the file
    if container.duration is not None and len(container.streams) == 1:
        return container.duration / av.time_base
    return None


def _head_of_matroska(file: BinaryIO) -> bytes:
    """What stands before the sound."""
    file.seek(0)
    return file.read(HEAD_BYTES).partition(CLUSTER)[0]


def _kind(container: InputContainer) -> str:
    return container.format.name.split(",")[0]


def _mp3_states_length(stream: AudioStream, file: BinaryIO) -> bool:
    """Whether an mp3 states its length, and states it of all of the file. Where files were joined, it is the first
    one's, and FFmpeg guesses from the bit rate instead."""
    if not stream.start_time:  # only such a header tells how many samples precede the sound
        return False
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(10)
    tag = 0
    if head[:3] == b"ID3" and len(head) == 10:
        for byte in head[6:10]:
            tag = 128 * tag + (byte & 127)
        tag += 10
    file.seek(tag)
    frame = file.read(4096)
    place = max(frame.find(b"Xing"), frame.find(b"Info"))
    if place < 0 or len(frame) < place + 16:
        return False
    flags, _, stated = struct.unpack(">III", frame[place + 4 : place + 16])
    if not flags & 1:
        return False
    if flags & 3 != 3:  # it says the number of frames only
        return True
    return size - tag <= stated + stated // XING_SLACK


def cut_short(file: BinaryIO) -> bool:
    """Whether a RIFF file (wav) is shorter than its header says. FFmpeg tells the length that is left."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(8)
    if len(head) < 8 or head[:4] != b"RIFF":
        return False
    stated = struct.unpack("<I", head[4:])[0]
    return stated < RIFF_UNKNOWN and stated + 8 - size > MISSING_BYTES
