"""The sound's own clock, sound tracks, formats, and what counts as damage."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from fractions import Fraction
from types import SimpleNamespace
from typing import Any, cast

import av
import numpy as np
import pytest
from av.filter import Graph
from test_audio import SCRIPTS, decode, encode, lag, pcm, rms, same_in_blocks, tone

from mlx_speech.audio import load_audio, load_tracks
from mlx_speech.errors import AudioError, OptionError
from mlx_speech.media import FORMATS, SEES_CHAINS, Clock
from mlx_speech.server.sounds import stated_duration

RATE = 16_000
SEGMENT = b"\x18\x53\x80\x67"  # of Matroska: the id of the element that holds all others


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.3, 0.3, round(seconds * RATE)).astype(np.float32)


def film(
    kind: str,
    codec: str,
    *tracks: list[tuple[float, np.ndarray]],
    picture: float = 0.0,
    picture_start: float = 0.0,
    titles: tuple[dict[str, str], ...] = (),
    **options: str,
) -> bytes:
    """A file of sound tracks, each of them sounds and the seconds at which they begin, beside so many seconds of
    picture. options : FFmpeg's, for writing that kind"""
    file = io.BytesIO()
    with av.open(file, "w", format=kind, options=options) as container:
        if picture:
            screen: Any = container.add_stream("flv1" if kind == "flv" else "mpeg2video", rate=25)
            screen.width = screen.height = 64
            screen.pix_fmt = "yuv420p"
        voices: list[Any] = [container.add_stream(codec, rate=RATE, layout="mono") for _ in tracks]
        for voice, metadata in zip(voices, titles, strict=False):
            voice.metadata.update(metadata)
        packets: list[Any] = []
        if picture:
            for number in range(round(25 * picture)):
                image = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))
                image.pts = round(25 * picture_start) + number
                image.time_base = Fraction(1, 25)
                packets += screen.encode(image)
            packets += screen.encode(None)
        for voice, pieces in zip(voices, tracks, strict=True):
            voice.codec_context.open()
            size = voice.codec_context.frame_size or 1024
            for start, sound in pieces:
                for place in range(0, sound.size, size):
                    part = np.zeros(size, np.float32)
                    part[: sound[place : place + size].size] = sound[place : place + size]
                    frame = av.AudioFrame.from_ndarray(part[None], format="fltp", layout="mono")
                    frame.sample_rate = RATE
                    frame.pts = round(start * RATE) + place
                    frame.time_base = Fraction(1, RATE)
                    resampler = av.AudioResampler(voice.codec_context.format, "mono", RATE)
                    for ready in resampler.resample(frame):
                        ready.pts = frame.pts
                        packets += voice.encode(ready)
            packets += voice.encode(None)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)
    return file.getvalue()


def by_aresample(data: bytes) -> np.ndarray:
    """What FFmpeg's own filter makes of the sound, its clock counted from the start of the file."""
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.audio[0]
        assert container.start_time is not None and stream.time_base is not None
        origin = round(container.start_time / 1e6 / stream.time_base)
        graph = Graph()
        source = graph.add_abuffer(template=stream)
        clock = graph.add("aresample", "async=1:first_pts=0")
        form = graph.add("aformat", "sample_fmts=flt:channel_layouts=mono")
        sink = graph.add("abuffersink")
        source.link_to(clock)
        clock.link_to(form)
        form.link_to(sink)
        graph.configure()
        parts = []

        def drain() -> None:
            while True:
                try:
                    parts.append(graph.pull().to_ndarray().ravel())
                except (av.error.BlockingIOError, av.error.EOFError):
                    return

        for frame in container.decode(stream):
            frame.pts -= origin
            graph.push(frame)
            drain()
        graph.push(None)
        drain()
    return np.concatenate(parts)


LATE = [("matroska", "pcm_s16le"), ("mov", "pcm_s16le"), ("mp4", "aac"), ("mpegts", "aac"), ("matroska", "flac")]


GAPS = [("matroska", "pcm_s16le"), ("mp4", "flac"), *LATE[2:]]  # a mov's PCM has no room for gaps
GAPS += [("flv", "aac"), ("asf", "libmp3lame"), ("nut", "aac")]


@pytest.mark.parametrize(("kind", "codec"), LATE)
def test_sound_that_begins_behind_the_picture(kind, codec):
    sound = noise(2.048)
    data = film(kind, codec, [(3.2, sound)], picture=6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = decode(data)
    expected = by_aresample(data)
    assert abs(found.size - expected.size) <= 1
    common = min(found.size, expected.size)
    assert np.abs(found[:common] - expected[:common]).max() < 1e-3
    assert not found[: round(3.1 * RATE)].any() and rms(found[round(3.3 * RATE) : round(5.1 * RATE)]) > 0.1
    if codec != "aac":
        assert abs(lag(found, sound) - round(3.2 * RATE)) <= 16  # Matroska rounds to milliseconds


@pytest.mark.parametrize(("kind", "codec"), GAPS)
@pytest.mark.parametrize("picture", [0, 8])
def test_a_gap_in_the_sound_is_silence_and_no_damage(kind, codec, picture):
    first = noise(2.048, 1)
    second = noise(1.024, 2)
    data = film(kind, codec, [(0, first), (3.5, second)], picture=picture)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = decode(data)
    expected = by_aresample(data)
    assert abs(found.size - expected.size) <= 16
    assert abs(lag(found[: expected.size], expected)) <= 1
    assert abs(lag(found, second) - round(3.5 * RATE)) <= (16 if codec in ("pcm_s16le", "flac") else 1110)
    assert not found[round(2.3 * RATE) : round(3.3 * RATE)].any()


@pytest.mark.parametrize(("kind", "codec"), GAPS)
def test_blocks_have_the_same_silence(kind, codec):
    """Sound that begins late and has a gap, and one of several tracks."""
    late = [(1.2, noise(2.048, 1)), (4.5, noise(1.024, 2))]
    same_in_blocks(film(kind, codec, late, picture=8), 0.7)
    if kind not in ("flv", "asf"):
        for number in (None, 2):
            same_in_blocks(film(kind, codec, [(0, noise(1.024))], late), 0.7, audio_track=number)


def test_blocks_follow_a_clock_that_jumps():
    same_in_blocks(later("mpegts", "aac", 0) + later("mpegts", "aac", 5000), 0.7)


@pytest.mark.parametrize("rate", [8000, 48_000])
def test_a_gap_at_another_rate(rate):
    found = decode(
        film("matroska", "pcm_s16le", [(0, noise(1.024)), (4, noise(1.024, 2))], picture=6), sample_rate=rate
    )
    assert found.size == pytest.approx(5.024 * rate, abs=2)
    assert not found[round(1.1 * rate) : round(3.9 * rate)].any()
    assert rms(found[round(4.1 * rate) :]) > 0.1


PRIMED = [
    *[("mp3", "libmp3lame"), ("ogg", "libopus"), ("webm", "libopus"), ("ipod", "aac"), ("adts", "aac")],
    *[("mpegts", "aac"), ("flac", "flac"), ("wav", "pcm_s16le"), ("avi", "libmp3lame"), ("flv", "aac")],
]


@pytest.mark.parametrize(("kind", "codec"), PRIMED)
@pytest.mark.parametrize("picture", [False, True])
def test_what_an_encoder_puts_before_the_sound_is_no_late_start(kind, codec, picture):
    """Every sample that the decoder gives, and nothing before it."""
    if picture and kind not in ("mpegts", "avi"):
        kind = "mp4" if codec == "aac" else "matroska"
    sound = noise(2.048)
    data = film(kind, codec, [(0, sound)], picture=3) if picture else encode(kind, codec, RATE, sound)
    with av.open(io.BytesIO(data)) as container:
        frames = list(container.decode(audio=0))
    decoded = sum(frame.samples / frame.sample_rate for frame in frames)
    assert decode(data).size == pytest.approx(decoded * RATE, abs=1)


def test_the_cover_of_an_album_is_no_picture_that_runs():
    """The cover stands at zero, the sound of an mp3 some milliseconds later."""
    sound = noise(2)
    file = io.BytesIO()
    with av.open(file, "w", format="mp3") as container:
        voice: Any = container.add_stream("libmp3lame", rate=RATE, layout="mono")
        cover: Any = container.add_stream("png", rate=1)
        cover.width = cover.height = 16
        cover.pix_fmt = "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8))))
        container.mux(cover.encode(None))
        for place in range(0, sound.size - 575, 576):
            frame = av.AudioFrame.from_ndarray(sound[None, place : place + 576], format="fltp", layout="mono")
            frame.sample_rate = RATE
            frame.pts = place
            frame.time_base = Fraction(1, RATE)
            container.mux(voice.encode(frame))
        container.mux(voice.encode(None))
    data = file.getvalue()
    with av.open(io.BytesIO(data)) as container:
        assert len(container.streams.video) == 1
        decoded = sum(frame.samples for frame in container.decode(audio=0))
    assert decode(data).size == decoded


# --- the clock by itself ---------------------------------------------------------------------------------------------


def placed(
    times: list[float | None],
    *,
    duration: float = 0.02,
    starts: tuple[float | None, ...] = (0.0, 0.0),
    limit: float = 3600.0,
    kind: str = "matroska,webm",
    restarts: bool = False,
    picture: Sequence[float] = (),
    dropped: tuple[float, float] | None = None,
) -> list[float]:
    """The silence before each of the frames that bear these times; `starts` are those of the file's streams, and
    `picture` are the times of the second one."""
    streams = []
    for index, start in enumerate(starts):
        ticks = None if start is None else round(1000 * start)
        base, none = Fraction(1, 1000), av.stream.Disposition(0)
        streams.append(SimpleNamespace(type="audio", index=index, start_time=ticks, time_base=base, disposition=none))
    flags = av.format.Flags.ts_discont.value if restarts else 0
    container: Any = SimpleNamespace(streams=streams, format=SimpleNamespace(name=kind, flags=flags))
    clock = Clock(container, limit)
    for time in picture:
        dts = round(1000 * time)
        clock.see(cast(Any, SimpleNamespace(dts=dts, time_base=Fraction(1, 1000), stream=streams[1])), of_track=False)
    count = round(duration * 100_000)
    frames: list[Any] = [SimpleNamespace(samples=count, sample_rate=100_000, time=time) for time in times]
    found = [
        clock.silence_before(frame, following) for frame, following in zip(frames, [*frames[1:], None], strict=True)
    ]
    assert clock.end == pytest.approx(sum(found) + duration * len(frames))
    assert clock.dropped == (None if dropped is None else pytest.approx(dropped))
    return [round(seconds, 3) for seconds in found]


STEADY = [0.02 * k for k in range(10)]


def test_a_steady_clock():
    assert placed(STEADY) == [0] * 10
    assert placed([1.4 + time for time in STEADY], starts=(1.4, 1.5)) == [0] * 10
    assert placed([3 + time for time in STEADY], starts=(0, 3)) == [3] + [0] * 9
    assert placed([0.03 + time for time in STEADY], starts=(0, 0.03)) == [0.03] + [0] * 9
    assert placed([None] * 10) == [0] * 10
    assert placed(STEADY, starts=(None,)) == [0] * 10


def test_times_that_are_rounded_or_jitter():
    dice = np.random.default_rng(0)
    assert placed([round(time, 3) for time in np.arange(500) * 0.0213], duration=0.0213) == [0] * 500
    assert placed([0, *(0.02 * k + dice.uniform(-0.04, 0.04) for k in range(1, 500))]) == [0] * 500


def test_a_gap_and_many():
    assert placed([0, 0.02, 2.02, 2.04]) == [0, 0, 1.98, 0]
    sparse = [0.4 * k for k in range(20)]  # silence is not sent
    assert placed(sparse) == [0] + [0.38] * 19


def test_a_clock_that_drifts_is_followed():
    """A second in a thousand: silence is put in whenever a tenth of a second has come together."""
    found = placed([0.02002 * k for k in range(20_000)])
    assert sum(found) == pytest.approx(0.4, abs=0.11)
    assert placed([0.01998 * k for k in range(20_000)]) == [0] * 20_000


def test_a_time_that_the_next_one_does_not_bear_out_is_broken():
    for broken in (500.0, -500.0, 3.0):
        times: list[float | None] = [0.02 * k for k in range(10)]
        times[5] = broken
        assert placed(times) == [0] * 10
    assert placed([500.0, *STEADY[1:]], starts=(0, 0)) == [0] * 10


def test_a_clock_that_starts_again_goes_on():
    assert placed([*STEADY, *STEADY, *STEADY]) == [0] * 30
    assert placed([*(100 + time for time in STEADY), *STEADY], starts=(100, 100)) == [0] * 20
    assert placed([*STEADY, *(50 + time for time in STEADY)], restarts=True, dropped=(0.2, 49.8)) == [0] * 20
    assert sum(placed([*STEADY, *(50 + time for time in STEADY)])) == pytest.approx(49.8)
    assert sum(placed([*STEADY, *(9 + time for time in STEADY)], restarts=True)) == pytest.approx(8.8)


@pytest.mark.parametrize("jump", [10.5, 18, 4000])
def test_a_long_jump_is_a_gap_where_another_stream_runs_on(jump):
    times: list[float | None] = [*STEADY, *(jump + time for time in STEADY)]
    gap = [0.0] * 10 + [jump - 0.2] + [0.0] * 9
    dropped = (0.2, jump - 0.2)
    until = np.arange(0, jump, 0.5)
    assert placed(times, restarts=True, limit=1e5, picture=until) == pytest.approx(gap)
    for picture in ([*STEADY, jump, jump + 1], until + jump, [], [0, jump]):  # it jumps too, or is not there
        assert placed(times, restarts=True, picture=picture, dropped=dropped) == [0] * 20
    if SEES_CHAINS:
        assert placed(times, restarts=True, kind="ogg", limit=1e5) == pytest.approx(gap)


def test_sound_that_overlaps_is_kept_and_made_up_for_in_the_next_gap():
    times = [0, 0.5, 1.0, 1.2, 1.7, 5.0]  # half a second each; the fourth begins 0.3 s too early
    assert placed(times, duration=0.5) == [0, 0, 0, 0, 0, 2.5]


def test_no_silence_beyond_the_limit():
    assert placed([0, 0.02, 100, 100.02], limit=60, dropped=(0.04, 99.96)) == [0] * 4
    assert placed([100, 100.02], starts=(0, 100), limit=60, dropped=(0, 100)) == [0, 0]
    assert placed([0, 0.02, 50, 50.02, 100], limit=60, dropped=(50.04, 49.96)) == [0, 0, 49.96, 0, 0]


def test_a_format_without_times():
    assert placed([0.1 * k for k in range(10)], kind="avi") == [0] * 10
    assert placed([2 + 0.1 * k for k in range(10)], kind="avi", starts=(0, 0)) == [2] + [0] * 9


def test_a_broken_time_in_a_file_makes_no_day_of_silence():
    data = film("matroska", "pcm_s16le", [(0, noise(1.024)), (80_000, noise(1.024, 2))])
    with pytest.warns(UserWarning, match=r"clock of its sound jumps by 79999 s at 1\.0 s") as caught:
        assert decode(data, max_duration=600).size == pytest.approx(2.048 * RATE, abs=2)
    assert len(caught) == 1


LONG = [(0, noise(2.048, 1)), (20, noise(2.048, 2))]


@pytest.mark.parametrize(
    ("kind", "codec", "picture"),
    [
        *[("mpegts", "aac", 24), ("mpegts", "libmp3lame", 24), ("mpeg", "mp2", 24), ("ogg", "flac", 0)],
        *[("ogg", "libopus", 0), ("matroska", "pcm_s16le", 0), ("flv", "aac", 24), ("mp4", "aac", 0)],
    ],
)
def test_a_long_gap_in_a_file(kind, codec, picture):
    """What comes behind it is where a player has it."""
    if kind == "ogg" and not SEES_CHAINS:
        pytest.skip("an older PyAV")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = decode(film(kind, codec, LONG, picture=picture))
    assert found.size == pytest.approx(22.048 * RATE, abs=0.1 * RATE)
    assert not found[round(2.5 * RATE) : round(19.8 * RATE)].any()
    assert rms(found[round(20.3 * RATE) : round(21.9 * RATE)]) > 0.1


def later(kind: str, codec: str, start: float, picture: float = 0) -> bytes:
    """Two seconds of sound and of picture on a clock that begins at `start`."""
    return film(kind, codec, [(start, noise(2.048, 3))], picture=picture, picture_start=start)


@pytest.mark.parametrize(("kind", "codec", "picture"), [("mpegts", "aac", 2), ("mpegts", "aac", 0), ("ogg", "flac", 0)])
@pytest.mark.parametrize("start", [0, 30, 5000])
def test_another_clock_is_no_gap(kind, codec, picture, start):
    """Joined recordings, whose clocks have nothing to do with each other."""
    one = later(kind, codec, 0, picture)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = decode(one + later(kind, codec, start, picture))
    assert found.size == pytest.approx(4.1 * RATE, abs=0.2 * RATE)
    said = [str(warning.message) for warning in caught]
    assert [line for line in said if "the clock of its sound jumps" in line] == said
    assert bool(said) == (start > 0)


@pytest.mark.parametrize("rates", [(16_000, 44_100), (44_100, 16_000), (24_000, 48_000)])
@pytest.mark.parametrize(("kind", "codec"), [("adts", "aac"), ("mp3", "libmp3lame"), ("latm", "aac"), ("ac3", "ac3")])
def test_raw_streams_of_two_rates(kind, codec, rates):
    """Their times are counted at the rate of the first."""
    if kind == "ac3":
        rates = tuple({16_000: 32_000, 24_000: 32_000}.get(rate, rate) for rate in rates)
    sounds = [np.random.default_rng(rate).uniform(-0.3, 0.3, 5 * rate).astype(np.float32) for rate in rates]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = decode(b"".join(encode(kind, codec, rate, sound) for rate, sound in zip(rates, sounds, strict=True)))
    assert found.size == pytest.approx(10 * RATE, abs=0.25 * RATE)
    loud = np.abs(found[: found.size // 1600 * 1600]).reshape(-1, 1600).max(axis=1) > 0.01
    assert loud[2:-2].mean() > 0.98


# --- tracks ----------------------------------------------------------------------------------------------------------

TITLES = ({"title": "Mic", "language": "eng"}, {"title": "The\nother side"}, {})


def three_tracks() -> bytes:
    tracks = [[(0.0, noise(1.024, 1))], [(1.0, noise(1.024, 2))], [(0.0, noise(0.512, 3))]]
    return film("matroska", "pcm_s16le", *tracks, titles=TITLES)


def test_which_track_is_read_is_said():
    data = three_tracks()
    with pytest.warns(UserWarning, match="has 3 sound tracks") as caught:
        found = decode(data)
    said = str(caught[0].message)
    assert len(caught) == 1 and "\n" not in said
    assert '1 ("Mic", eng), 2 ("Theother side"), 3: track 1 is read' in said and "audio_track" in said
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(decode(data, audio_track=1), found)
        assert np.abs(found[:16_000] - noise(1.024, 1)[:16_000]).max() < 1e-4


def test_a_track_by_its_number():
    data = three_tracks()
    assert lag(decode(data, audio_track=2), noise(1.024, 2)) == 16_000
    assert lag(decode(data, audio_track=np.int64(3)), noise(0.512, 3)) == 0
    with pytest.raises(AudioError, match=r'has no sound track 4: its tracks are 1 \("Mic", eng\), 2'):
        decode(data, audio_track=4)
    with pytest.raises(AudioError, match="has no sound track 2"):
        decode(pcm(np.zeros(100)), audio_track=2)
    for wrong in (0, -1, 1.5, "2", "both", True, [1]):
        with pytest.raises(OptionError, match="audio_track"):
            decode(data, audio_track=wrong)


def test_all_tracks_are_added_up_on_one_timeline():
    data = three_tracks()
    expected = np.zeros(round(2.024 * RATE), np.float32)
    for start, sound in ((0, noise(1.024, 1)), (RATE, noise(1.024, 2)), (0, noise(0.512, 3))):
        expected[start : start + sound.size] += sound
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = decode(data, audio_track="all")
        tracks = load_tracks(io.BytesIO(data))
    assert np.abs(found[: expected.size] - expected).max() < 1e-3
    assert len(tracks) == 3
    assert lag(tracks[1], noise(1.024, 2)) == RATE
    one = decode(pcm(np.arange(1000)), audio_track="all")
    assert np.array_equal(one, decode(pcm(np.arange(1000))))


@pytest.mark.parametrize("unknown", [1, 2, 3])
def test_a_track_in_an_unknown_coding_is_left_out_with_a_word(unknown):
    parts = three_tracks().split(b"A_PCM/INT/LIT")
    names = [b"A_PCX/INT/LIT" if number == unknown else b"A_PCM/INT/LIT" for number in (1, 2, 3)]
    data = b"".join(part + name for part, name in zip(parts, [*names, b""], strict=True))
    labels = ['1 ("Mic", eng)', '2 ("Theother side")', "3"]
    for load in (lambda: load_tracks(io.BytesIO(data)), lambda: [decode(data, audio_track="all")] * 2):
        with pytest.warns(UserWarning, match="unknown coding") as caught:
            assert len(load()) == 2
        assert [str(warning.message) for warning in caught] == [
            f"the given file: leaves out what is in an encrypted or unknown coding: sound track {labels[unknown - 1]}"
        ]
    with pytest.raises(AudioError, match="encrypted or unknown coding"):
        decode(data, audio_track=unknown)


@pytest.mark.parametrize(
    ("kind", "codec", "name", "unknown"),
    [
        ("matroska", "aac", b"A_AAC", b"A_XAC"),
        ("mov", "pcm_s16le", b"sowt", b"soXt"),
        ("mp4", "flac", b"fLaC", b"fLXC"),
    ],
)
def test_by_default_a_track_that_can_be_decoded_is_taken(kind, codec, name, unknown):
    """Though FFmpeg would take the first one, whatever it is coded in."""
    whole = film(kind, codec, [(0, noise(1.024, 1))], [(0, noise(1.024, 2))])
    data = whole.replace(name, unknown, 1)
    with av.open(io.BytesIO(data)) as container:
        best = container.streams.best("audio")
        assert best is container.streams.audio[0] and best.codec_context is None
    with pytest.warns(UserWarning, match="has 2 sound tracks, 1, 2: track 2 is read"):
        found = decode(data)
    assert np.array_equal(found, decode(whole, audio_track=2))
    with pytest.raises(AudioError, match="encrypted or unknown coding"):
        decode(whole.replace(name, unknown))


def test_two_channels_with_a_pause():
    """Silence that is put in is counted into the seconds by which channels are chosen."""
    sound = tone(300, 48_000, 12)
    data = encode("flac", "flac", 48_000, np.stack([sound, -sound]), "stereo")
    third = len(data) // 3
    with pytest.warns(UserWarning) as caught:
        found = decode(data[:third] + bytes(third) + data[2 * third :])
    assert any("opposite phase" in str(warning.message) for warning in caught)
    assert found.size == pytest.approx(12 * RATE, abs=RATE / 2) and rms(found[:RATE]) > 0.2 < rms(found[-RATE:])


def test_loud_tracks_together_stay_within_the_range():
    loud = np.full(16_384, 0.8, np.float32)
    found = decode(film("matroska", "pcm_s16le", [(0, loud)], [(0, loud)]), audio_track="all")
    assert found.max() == pytest.approx(1, abs=1e-6)


# --- formats ---------------------------------------------------------------------------------------------------------

SOUND_ONLY = [
    *[("nut", "pcm_s16le"), ("sox", "pcm_s32le"), ("tta", "tta"), ("w64", "pcm_s16le"), ("asf", "libmp3lame")],
    *[("mp2", "mp2"), ("ircam", "pcm_s16le"), ("voc", "pcm_s16le"), ("spdif", "ac3"), ("rso", "pcm_u8")],
    *[("amr", "libopencore_amrnb"), ("wtv", "mp2"), ("rm", "ac3"), ("latm", "aac"), ("g722", "g722")],
]
RATES = {"spdif": 48_000, "rm": 44_100, "amr": 8000}


@pytest.mark.parametrize(("kind", "codec"), SOUND_ONLY)
def test_more_kinds_of_sound(tmp_path, kind, codec):
    rate = RATES.get(kind, RATE)
    stereo = kind == "spdif"
    sound = np.tile(tone(400, rate), (2 if stereo else 1, 1))
    data = encode(kind, codec, rate, sound, "stereo" if stereo else "mono")
    path = tmp_path / f"a.{kind}"  # raw g722 is known by its name
    path.write_bytes(data)
    found = load_audio(path)
    assert found.size == pytest.approx(2 * RATE, rel=0.1)
    spectrum = np.abs(np.fft.rfft(found[4000:20_000]))
    assert spectrum.argmax() == pytest.approx(400, abs=2)


@pytest.mark.parametrize("kind", ["mxf", "dv"])
def test_tapes_of_cameras_and_broadcasters(kind):
    file = io.BytesIO()
    with av.open(file, "w", format=kind) as container:
        screen: Any = container.add_stream("mpeg2video" if kind == "mxf" else "dvvideo", rate=25)
        screen.width, screen.height = (720, 576)
        screen.pix_fmt = "yuv420p"
        voice: Any = container.add_stream("pcm_s16le", rate=48_000, layout="stereo")
        sound = (32_767 * np.tile(tone(400, 48_000), (2, 1))).astype(np.int16)
        for number in range(50):
            container.mux(screen.encode(av.VideoFrame.from_ndarray(np.zeros((576, 720, 3), np.uint8))))
            part = sound[:, 1920 * number : 1920 * (number + 1)].T.reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(part), format="s16", layout="stereo")
            frame.sample_rate = 48_000
            frame.pts = 1920 * number
            frame.time_base = Fraction(1, 48_000)
            container.mux(voice.encode(frame))
        container.mux(screen.encode(None))
        container.mux(voice.encode(None))
    found = decode(file.getvalue())
    assert found.size == pytest.approx(2 * RATE, rel=0.05)
    assert np.abs(np.fft.rfft(found[4000:20_000])).argmax() == pytest.approx(400, abs=1)


NOT_READ = (
    *(
        "concat",
        "hls",
        "dash",
        "webm_dash_manifest",
        "imf",
        "image2",
        "image2pipe",
        "vobsub",
        "mlv",
        "sdp",
        "rtp",
        "rtsp",
    ),
    *(
        "sap",
        "lavfi",
        "sbg",
        "ffmetadata",
        "alsa",
        "oss",
        "x11grab",
        "fbdev",
        "kmsgrab",
        "video4linux2",
        "avfoundation",
    ),
    *(
        "s16le",
        "s16be",
        "f32le",
        "u8",
        "alaw",
        "mulaw",
        "g726",
        "rawvideo",
        "data",
        "libcdio",
        "avisynth",
        "vapoursynth",
    ),
)


def test_formats_that_open_others_are_left_out():
    assert not set(FORMATS.split(",")) & set(NOT_READ)


NAMES = {
    "list": "file 'secret.wav'\nfile:secret.wav\nsecret.wav\n",
    "url": "http://127.0.0.1:9/secret.wav\n",
    "ref": "[Reference]\nRef1=http://127.0.0.1:9/secret.wav\n",
    "imf": '<?xml version="1.0"?><CompositionPlaylist xmlns="http://www.smpte-ra.org/schemas/2067-3/2016">secret.wav',
    "smil": '<smil><body><audio src="secret.wav"/></body></smil>',
    "sbg": "-SE -m secret.wav\nallon: pink/40\nNOW allon\n",
}


@pytest.mark.parametrize("name", FORMATS.split(","))
def test_no_format_that_is_read_asks_for_another_file(name):
    """Each is made to read texts that name files, and media files: whatever it makes of them, it opens none."""
    try:
        av.format.ContainerFormat(name, "r")
    except ValueError:
        pytest.skip(f"this PyAV has no {name}")
    asked: list[str] = []

    def opened(url: str, *_: object) -> io.BytesIO:
        asked.append(url)
        raise PermissionError(url)

    texts = [text.encode() for text in (*SCRIPTS.values(), *NAMES.values())]
    for data in (*texts, pcm(np.arange(2000)), film("matroska", "pcm_s16le", [(0, noise(0.1))])):
        file = io.BytesIO(data + bytes(4096))
        try:
            with av.open(file, format=name, io_open=opened, container_options={"protocol_whitelist": ""}) as container:
                for count, _ in enumerate(container.demux()):
                    if count > 20:
                        break
        except (av.error.FFmpegError, ValueError, OSError, IndexError):
            continue
    assert not asked


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.png", b"\x89PNG\r\n\x1a\n" + bytes(200), "not read here"),
        ("a.srt", b"1\n00:00:01,000 --> 00:00:02,000\nHello\n\n" * 20, "not read here"),
        ("a.raw", bytes(range(1, 200)) * 50, "raw samples.*not read here: make a wav"),
        ("a.s16le", bytes(range(1, 200)) * 50, "raw samples.*not read here: make a wav"),
        ("a.ul", bytes(range(1, 200)) * 50, "raw samples.*not read here: make a wav"),
        ("a.ffconcat", b"ffconcat version 1.0\nfile 'secret.wav'\n", "not read here"),
        ("a.bin", bytes(range(1, 200)) * 50, "does a player open it"),
    ],
)
def test_what_is_known_and_not_read_is_said(tmp_path, name, data, says):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(AudioError, match=says) as caught:
        load_audio(path)
    assert "\n" not in str(caught.value)


# --- damage ----------------------------------------------------------------------------------------------------------

TAG = b"TAG" + b"A title".ljust(125, b"\0")
ID3 = b"ID3\x03\0\0\0\0\x08\0" + b"TIT2" + bytes(range(250)) * 4 + bytes(20)


def quiet_then_loud(**options: str) -> bytes:
    """An mp3 of changing bit rate, whose first frames say nothing of the rest."""
    sound = np.concatenate([np.zeros(80_000, np.float32), noise(10)])
    file = io.BytesIO()
    with av.open(file, "w", format="mp3", options=options) as container:
        voice: Any = container.add_stream(
            "libmp3lame", rate=RATE, layout="mono", options={"flags": "+qscale", "global_quality": "236"}
        )
        for place in range(0, sound.size - 575, 576):
            frame = av.AudioFrame.from_ndarray(sound[None, place : place + 576], format="fltp", layout="mono")
            frame.sample_rate = RATE
            frame.pts = place
            frame.time_base = Fraction(1, RATE)
            container.mux(voice.encode(frame))
        container.mux(voice.encode(None))
    return file.getvalue()


@pytest.mark.parametrize("joint", [b"", TAG, ID3, TAG + ID3, bytes(3000)])
@pytest.mark.parametrize("header", ["0", "1"])
def test_joined_mp3_files_are_whole(joint, header):
    one = quiet_then_loud(write_xing=header)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alone = decode(one).size
        joined = decode(one + joint + one + TAG).size
        decode(one + joint + encode("mp3", "libmp3lame", RATE, noise(1)))
    assert joined == pytest.approx(2 * alone, abs=3500)


def test_an_mp3_with_a_hole_is_damaged():
    whole = encode("mp3", "libmp3lame", RATE, noise(8))
    with pytest.warns(UserWarning, match="breaks off or is damaged"):
        decode(whole[:8000] + bytes(range(256)) * 40 + whole[18_240:])


def test_a_film_with_a_hole_is_damaged():
    whole = film("matroska", "aac", [(0, noise(10))], picture=10)
    third = len(whole) // 3
    with pytest.warns(UserWarning, match=r"breaks off or is damaged: [67]\.. s of it could be decoded"):
        found = decode(whole[:third] + bytes(third) + whole[2 * third :])
    assert found.size == pytest.approx(10 * RATE, abs=3000)  # what is there is in its place


def test_pcm_of_an_unknown_length_is_whole():
    """A Matroska file that was streamed says no length, and FFmpeg's guess from its size is too long."""
    streamed = film("matroska", "pcm_s16le", [(0, noise(160))], live="1")
    with av.open(io.BytesIO(streamed)) as container:
        assert container.duration is not None and container.duration / 1e6 > 160.6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(streamed).size == 160 * RATE
    whole = film("matroska", "pcm_s16le", [(0, noise(10))])
    with pytest.warns(UserWarning, match=r"breaks off or is damaged: [45]\.. s of it could be decoded"):
        decode(whole[: len(whole) // 2])


def test_pcm_of_a_stated_length_that_breaks_off_is_damaged():
    """Where the length stands as far behind as mkvmerge puts it, which leaves room for an index first."""
    whole = film("matroska", "pcm_s16le", [(0, noise(10))])
    place = whole.index(SEGMENT) + len(SEGMENT) + 8
    size = int.from_bytes(whole[place - 7 : place], "big") + 4099
    whole = whole[: place - 7] + size.to_bytes(7, "big") + b"\xec\x50\x00" + bytes(4096) + whole[place:]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(whole).size == pytest.approx(10 * RATE, abs=1024)
    with pytest.warns(UserWarning, match="breaks off or is damaged"):
        decode(whole[: len(whole) // 2])


def test_samples_are_no_stated_length():
    """Bytes that look like one, in sound of a file that states none."""
    sound = np.full(160 * RATE, int.from_bytes(b"\x44\x89", "little", signed=True) / 32_768, np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(film("matroska", "pcm_s16le", [(0, sound)], live="1")).size == sound.size


def test_the_stated_length_of_an_unknown_coding(tmp_path):
    path = tmp_path / "a.mkv"
    path.write_bytes(film("matroska", "pcm_s16le", [(0, noise(2.048))]).replace(b"A_PCM/INT/LIT", b"A_PCX/INT/LIT"))
    assert stated_duration(path) == pytest.approx(2.048, abs=0.01)
    path.write_bytes(three_tracks().replace(b"A_PCM/INT/LIT", b"A_PCX/INT/LIT", 1))
    assert stated_duration(path) == 0


HOLES = [
    *[("mp4", "aac", 0), ("mp4", "aac", 12), ("mp4", "flac", 0), ("mp4", "libmp3lame", 0), ("mp4", "libopus", 0)],
    *[("mp4", "alac", 0), ("mp4", "ac3", 0), ("matroska", "pcm_s16le", 0), ("matroska", "pcm_s16le", 12)],
    *[("matroska", "aac", 0), ("matroska", "libopus", 0), ("matroska", "libmp3lame", 12), ("webm", "libopus", 0)],
    *[("ogg", "libopus", 0), ("ogg", "flac", 0), ("flac", "flac", 0), ("mp3", "libmp3lame", 0), ("adts", "aac", 0)],
    *[("flv", "aac", 0), ("flv", "aac", 12), ("mpegts", "aac", 12), ("asf", "libmp3lame", 0), ("nut", "aac", 0)],
    *[("caf", "alac", 0), ("wv", "wavpack", 0), ("tta", "tta", 0), ("ac3", "ac3", 0), ("latm", "aac", 0)],
]


@pytest.mark.parametrize(("kind", "codec", "picture"), HOLES)
@pytest.mark.parametrize("filling", [b"\0", b"\xa5"])
def test_a_file_with_a_hole_is_damaged(kind, codec, picture, filling):
    """A third of its bytes never came: zeros in a file that was made in its full length, or something else."""
    rate = 48_000
    sound = np.random.default_rng(4).uniform(-0.3, 0.3, 12 * rate).astype(np.float32)
    filmed = picture or codec == "pcm_s16le"  # in which `encode` makes one packet of all
    whole = film(kind, codec, [(0, noise(12))], picture=picture) if filmed else encode(kind, codec, rate, sound)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(whole).size == pytest.approx(12 * RATE, abs=0.15 * RATE)
    third = len(whole) // 3
    with pytest.warns(UserWarning, match=r"breaks off or is damaged: [3-9]\.. s of it could be decoded") as caught:
        decode(whole[:third] + filling * third + whole[2 * third :])
    assert len(caught) == 1


@pytest.mark.parametrize("size", [5000, 40_000])
@pytest.mark.parametrize("header", ["0", "1"])
def test_zeros_in_an_mp3_are_a_hole_and_not_padding(size, header):
    whole = quiet_then_loud(write_xing=header)
    with pytest.warns(UserWarning, match="breaks off or is damaged"):
        decode(whole[:20_000] + bytes(size) + whole[20_000 + size :])


@pytest.mark.parametrize(("kind", "codec"), [*GAPS, ("ogg", "flac"), ("ogg", "libopus"), ("webm", "libopus")])
@pytest.mark.parametrize("pause", [0.3, 0.7, 9.0])
@pytest.mark.parametrize("picture", [0, 14])
def test_pauses_are_no_damage(kind, codec, pause, picture):
    if picture and kind in ("ogg", "webm"):
        pytest.skip("holds no MPEG-2 picture")
    pieces = [(k * (1.024 + pause), noise(1.024, k)) for k in range(2 if pause > 1 else 5)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode(film(kind, codec, pieces, picture=picture))


def test_joined_broadcasts_are_whole():
    one = film("mpegts", "aac", [(0, noise(3))], picture=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(one + one).size == pytest.approx(2 * decode(one).size, abs=2)
