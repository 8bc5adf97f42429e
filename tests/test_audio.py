"""Decoding: what comes out of every kind of file, and what is refused."""

from __future__ import annotations

import io
import os
import random
import struct
import threading
import tracemalloc
import warnings
import wave
from collections.abc import Callable
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest

from mlx_speech.audio import audio_from_array, blocks, load_audio, louder
from mlx_speech.errors import AudioError, OptionError

LOSSLESS = [("wav", "pcm_f32le"), ("wav", "pcm_f64le"), ("wav", "pcm_s24le"), ("flac", "flac"), ("aiff", "pcm_s16be")]
LOSSY = [("mp3", "libmp3lame"), ("ipod", "aac"), ("mov", "aac"), ("ogg", "libopus"), ("webm", "libopus")]
EMPTY_KINDS = [("wav", "pcm_f32le"), ("flac", "flac"), ("caf", "pcm_s16le"), ("aiff", "pcm_s16be"), ("flv", "aac")]
MORE = [("matroska", "aac"), ("adts", "aac"), ("mpegts", "aac"), ("caf", "pcm_s16le"), ("au", "pcm_s16be")]


def encode(kind: str, codec: str, rate: int, sound: np.ndarray, layout: str = "mono") -> bytes:
    """`sound`, (channels, samples) or (samples,), as a file."""
    file = io.BytesIO()
    with av.open(file, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        stream.codec_context.open()
        frame = av.AudioFrame.from_ndarray(np.atleast_2d(sound).astype(np.float32), format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        context = stream.codec_context
        resampler = av.AudioResampler(context.format, layout, rate, frame_size=context.frame_size or None)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    return file.getvalue()


def pcm(samples: np.ndarray, rate: int = 16_000, channels: int = 1) -> bytes:
    """int16 samples as the wave module writes them."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((channels, 2, rate, 0, "NONE", ""))
        out.writeframes(samples.astype("<i2").tobytes())
    return file.getvalue()


def tone(frequency: float, rate: int, seconds: float = 2.0, level: float = 0.5) -> np.ndarray:
    return level * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


def click(rate: int) -> np.ndarray:
    """A short 1.5 kHz burst in the middle of two seconds."""
    time = np.arange(2 * rate) / rate - 1
    return 0.9 * np.exp(-((time / 0.002) ** 2)) * np.cos(2 * np.pi * 1500 * time)


def rms(sound: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(sound, dtype=np.float64))))


def lag(sound: np.ndarray, reference: np.ndarray) -> int:
    """Samples by which `sound` is late."""
    size = 1 << 17
    spectrum = np.fft.rfft(sound, size) * np.conj(np.fft.rfft(reference, size))
    best = int(np.fft.irfft(spectrum).argmax())
    return best if best < size // 2 else best - size


def decode(data: bytes, **options) -> np.ndarray:
    return load_audio(io.BytesIO(data), **options)


def test_pcm16_is_exact(tmp_path):
    samples = np.concatenate([np.arange(-32768, 32768), np.random.default_rng(0).integers(-32768, 32768, 50_001)])
    path = tmp_path / "a.wav"
    path.write_bytes(pcm(samples))
    with wave.open(str(path)) as file:
        expected = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
    for source in (path, str(path), io.BytesIO(path.read_bytes())):
        sound = load_audio(source)
        assert sound.dtype == np.float32 and sound.ndim == 1
        assert np.array_equal(sound, expected)
    assert np.array_equal(audio_from_array(samples.astype(np.int16), 16_000), expected)


@pytest.mark.parametrize(
    ("codec", "bits"), [("pcm_u8", 8), ("pcm_s16le", 16), ("pcm_s24le", 24), ("pcm_s32le", 32), ("pcm_s64le", 32)]
)
def test_every_integer_depth(codec, bits):
    values = np.random.default_rng(1).integers(-(2 ** (min(bits, 24) - 1)), 2 ** (min(bits, 24) - 1), 20_000)
    sound = (values / 2 ** (min(bits, 24) - 1)).astype(np.float32)
    assert np.abs(decode(encode("wav", codec, 16_000, sound)) - sound).max() <= 2.0**-24


@pytest.mark.parametrize("codec", ["pcm_f32le", "pcm_f64le"])
def test_float_wav_is_clipped_to_the_range(codec):
    sound = np.random.default_rng(2).standard_normal(20_000).astype(np.float32)
    assert np.array_equal(decode(encode("wav", codec, 16_000, sound)), np.clip(sound, -1, 1))


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 44_100, 48_000, 96_000, 192_000])
def test_resampling_keeps_level_and_time(rate):
    middle = slice(1000, -1000)
    for load in (
        lambda sound: decode(encode("wav", "pcm_f32le", rate, sound)),
        lambda sound: audio_from_array(sound, rate),
    ):
        sound = load(tone(1000, rate))
        assert len(sound) == 32_000
        assert np.abs(sound - tone(1000, 16_000))[middle].max() < 1e-4
        assert lag(load(click(rate)), click(16_000)) == 0
        if rate > 24_000:
            assert rms(load(tone(12_000, rate))[middle]) < 1e-4 * rms(tone(12_000, rate))


def test_a_tone_that_16_khz_cannot_hold_vanishes():
    folded = decode(encode("wav", "pcm_s16le", 48_000, tone(12_000, 48_000)))[1000:-1000]
    assert 20 * np.log10(rms(folded) / rms(tone(12_000, 48_000))) < -60


def test_blocks_of_an_array_join_without_a_seam():
    noise = np.random.default_rng(3).uniform(-0.5, 0.5, 300_000).astype(np.float32)
    assert np.allclose(audio_from_array(noise, 44_100), decode(encode("wav", "pcm_f32le", 44_100, noise)), atol=1e-6)


@pytest.mark.parametrize(("kind", "codec"), LOSSLESS + LOSSY + MORE)
def test_kinds_of_files(kind, codec):
    """Level and time of every kind. Raw AAC has no place to say by how much its encoder delays: 1024 samples."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sound = decode(encode(kind, codec, 48_000, click(48_000)))
    late = lag(sound, click(16_000))
    assert 0 <= late <= 342 if kind in ("adts", "mpegts") else abs(late) <= 1
    assert np.abs(sound).max() == pytest.approx(0.9, abs=0.05 if (kind, codec) in LOSSLESS + MORE[3:] else 0.2)


@pytest.mark.parametrize("layout", ["mono", "stereo"])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_two_channels_are_averaged(layout, rate):
    channels = av.AudioLayout(layout).nb_channels
    sound = np.stack([tone(300 + 200 * index, rate) for index in range(channels)])
    expected = np.mean([tone(300 + 200 * index, 16_000) for index in range(channels)], axis=0)
    for found in (decode(encode("wav", "pcm_f32le", rate, sound, layout)), audio_from_array(sound, rate)):
        assert np.abs(found - expected)[500:-500].max() < 1e-4


@pytest.mark.parametrize("channels", [3, 6, 8])
def test_channels_of_an_array_are_averaged(channels):
    sound = np.random.default_rng(7).uniform(-1, 1, (channels, 5000)).astype(np.float32)
    assert np.abs(audio_from_array(sound, 16_000) - sound.mean(axis=0)).max() < 1e-6


def test_a_rate_may_be_a_float():
    """As other packages tell it, if it is a whole number."""
    sound = np.random.default_rng(9).uniform(-1, 1, (2, 44_100)).astype(np.float32)
    expected = audio_from_array(sound, 44_100, sample_rate=22_050)
    for kind in (float, np.float32, np.float64):
        assert np.array_equal(audio_from_array(sound, kind(44_100), sample_rate=kind(22_050)), expected)
    assert np.array_equal(audio_from_array(sound, 16_000.0), sound.mean(axis=0))
    with pytest.raises(OptionError, match=r"a sample rate of 44100\.5 Hz: give a whole number"):
        audio_from_array(sound, 44_100.5)


SURROUND = [
    *["2.1", "3.0", "3.0(back)", "4.0", "quad", "quad(side)", "3.1", "5.0", "5.0(side)", "4.1", "5.1", "5.1(side)"],
    *["6.0", "6.0(front)", "hexagonal", "6.1", "6.1(back)", "6.1(front)", "7.0", "7.0(front)", "7.1", "7.1(wide)"],
    *["7.1(wide-side)", "octagonal", "5.1.2", "7.1.4"],
]


def surround(sound: np.ndarray, layout: str) -> bytes:
    """A wav of (channels, samples), of however many channels."""
    file = io.BytesIO()
    with av.open(file, "w", format="wav") as container:
        stream = container.add_stream("pcm_f32le", rate=16_000, layout=layout)
        interleaved = np.ascontiguousarray(sound.T, np.float32).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(interleaved, format="flt", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = 16_000, 0, Fraction(1, 16_000)
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return file.getvalue()


@pytest.mark.parametrize("layout", SURROUND)
def test_surround_is_mixed_as_ffmpeg_does(layout):
    """The same as libswresample's mix of the same sound as 32-bit integers, which it keeps within their range."""
    channels = av.AudioLayout(layout).nb_channels
    sound = np.random.default_rng(8).uniform(-0.9, 0.9, (channels, 5000)).astype(np.float32)
    integers = np.ascontiguousarray((sound.T * 2.0**31).astype(np.int32)).reshape(1, -1)
    frame = av.AudioFrame.from_ndarray(integers, format="s32", layout=layout)
    frame.sample_rate = 16_000
    mixer = av.AudioResampler(format="s32", layout="mono", rate=16_000)
    mixed = [part.to_ndarray().ravel() for part in [*mixer.resample(frame), *mixer.resample(None)]]
    expected = np.concatenate(mixed) / 2.0**31
    assert np.abs(decode(surround(sound, layout)) - expected).max() < 1e-6


def test_dialogue_in_the_centre_outweighs_the_rest():
    sound = np.stack([tone(300 + 100 * index, 16_000, level=0.6) for index in range(6)])
    found = decode(encode("wav", "pcm_s16le", 16_000, sound, "5.1"))
    levels = np.abs(np.fft.rfft(found))[[2 * (300 + 100 * index) for index in range(6)]]
    assert levels / levels[2] == pytest.approx([0.7071, 0.7071, 1, 0, 0.5, 0.5], abs=1e-3)
    assert np.abs(found).max() <= 0.6


@pytest.mark.parametrize("channels", [3, 9, 16, 64])
def test_channels_without_a_layout(channels):
    frames = np.random.default_rng(4).integers(-32768, 32768, (5000, channels))
    sound = decode(pcm(frames, channels=channels))
    assert np.abs(sound - frames.mean(axis=1) / 32768).max() < 1e-6


def test_the_sound_of_a_video_and_of_a_file_with_tags_in_latin_1():
    data = pcm(np.full(16_000, 1000))
    tag = b"INFOINAM" + struct.pack("<I", 4) + b"caf\xe9"
    data += b"LIST" + struct.pack("<I", len(tag)) + tag
    data = data[:4] + struct.pack("<I", len(data) - 8) + data[8:]
    assert len(decode(data)) == 16_000
    assert len(decode(video(sound=tone(500, 48_000)))) == pytest.approx(32_000, abs=1100)


def video(sound: np.ndarray | None = None) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        picture = container.add_stream("mpeg4", rate=25)
        picture.width = picture.height = 64
        picture.pix_fmt = "yuv420p"
        voice = None if sound is None else container.add_stream("aac", rate=48_000, layout="mono")
        for _ in range(50):
            image = np.zeros((64, 64, 3), np.uint8)
            container.mux(picture.encode(av.VideoFrame.from_ndarray(image)))
        container.mux(picture.encode(None))
        if voice is not None and sound is not None:
            for start in range(0, sound.size - 1023, 1024):
                piece = sound[None, start : start + 1024].astype(np.float32)
                frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout="mono")
                frame.sample_rate, frame.pts, frame.time_base = 48_000, start, Fraction(1, 48_000)
                container.mux(voice.encode(frame))
            container.mux(voice.encode(None))
    return file.getvalue()


@pytest.mark.parametrize(("kind", "codec"), [("ipod", "aac"), ("wav", "pcm_s16le"), ("mp3", "libmp3lame")])
def test_standard_input(monkeypatch, tmp_path, kind, codec):
    """Through a pipe, and redirected from a file; an m4a has its index at the end."""
    path = tmp_path / "sound"
    path.write_bytes(encode(kind, codec, 48_000, click(48_000)))
    expected = load_audio(path)
    with path.open("rb") as file:
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=file))
        assert np.array_equal(load_audio("-"), expected)
    reading, writing = os.pipe()

    def feed():
        with open(writing, "wb") as pipe:  # noqa: PTH123 (a descriptor)
            pipe.write(path.read_bytes())

    feeder = threading.Thread(target=feed)
    feeder.start()
    with open(reading, "rb") as pipe:  # noqa: PTH123
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=pipe))
        assert np.array_equal(load_audio("-"), expected)
    feeder.join()


def test_file_objects_are_read_from_their_start_and_left_open():
    file = io.BytesIO(pcm(np.arange(1000)))
    file.seek(0, io.SEEK_END)
    assert len(load_audio(file)) == len(load_audio(file)) == 1000
    assert not file.closed


def test_an_unnamed_temporary_file(tmp_path):
    with (tmp_path / "a").open("w+b", buffering=0) as file:
        file.write(pcm(np.arange(1000)))
        assert len(load_audio(file)) == 1000


BROKEN = {
    "empty.wav": b"",
    "one.wav": b"R",
    "text.wav": b"This is not a recording at all.\n" * 100,
    "zeros.mp3": bytes(100_000),
    "riff.wav": b"RIFF\0\0\0\0WAVE",
    "cut.wav": pcm(np.arange(100_000))[:44],
    "cut.aiff": encode("aiff", "pcm_s16be", 16_000, np.zeros(50_000))[:54],
    "silent.mp4": video(),
    "cut.m4a": encode("ipod", "aac", 48_000, tone(500, 48_000))[:8000],
    "cut.flac": encode("flac", "flac", 16_000, tone(500, 16_000))[:60],
    "nan.wav": encode("wav", "pcm_f32le", 16_000, np.full(1000, np.nan)),
    "slow.wav": pcm(np.arange(1000), rate=3),
    "wide.wav": pcm(np.zeros((10, 300)), channels=300),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_decoded(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(BROKEN[name])
    with pytest.raises(AudioError) as caught:
        load_audio(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message


def empty(kind: str, codec: str, picture: bool = False) -> bytes:
    """A sound track without a sample, alone or beside a picture."""
    file = io.BytesIO()
    with av.open(file, "w", format=kind) as container:
        container.add_stream(codec, rate=16_000, layout="mono")
        if picture:
            screen = container.add_stream("mpeg4", rate=25)
            screen.width = screen.height = 64
            screen.pix_fmt = "yuv420p"
            for _ in range(10):
                container.mux(screen.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))))
            container.mux(screen.encode(None))
        container.start_encoding()
    return file.getvalue()


def emptied(film: bytes) -> bytes:
    """An mp4 whose sound track has no samples any more: the tables that list them are empty, and it lasts 0 s."""
    data = bytearray(film)
    sound = data.index(b"soun")
    length = data.rindex(b"mdhd", 0, sound) + 20
    data[length : length + 4] = bytes(4)
    for table, place in ((b"stts", 8), (b"stsc", 8), (b"stsz", 12), (b"stco", 8)):
        count = data.index(table, sound) + place
        data[count : count + 4] = bytes(4)
    return bytes(data)


EMPTY = {kind: empty(kind, codec) for kind, codec in EMPTY_KINDS}
EMPTY |= {
    "wave": pcm(np.zeros(0)),
    "film": empty("matroska", "aac", picture=True),
    "mp4": emptied(video(tone(500, 48_000))),
}


@pytest.mark.parametrize("name", EMPTY)
def test_a_valid_file_without_samples_is_empty(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sound = decode(EMPTY[name])
        assert decode(EMPTY[name], audio_track="all").shape == (0,)
    assert sound.shape == (0,) and sound.dtype == np.float32


@pytest.mark.parametrize(
    ("source", "error", "says"),
    [
        ("/nowhere/a.wav", AudioError, "/nowhere/a.wav: there is no such file"),
        ("https://example.org/a.wav", AudioError, "no such file"),
        ("a\0.wav", AudioError, "no file can have this name"),
        ("two\nlines.wav", AudioError, "two lines.wav: there is no such file"),
        (io.StringIO("x"), AudioError, "opened as text"),
        (np.zeros(16_000), OptionError, "ndarray"),
        (None, OptionError, "NoneType"),
    ],
)
def test_what_is_no_recording(source, error, says):
    with pytest.raises(error, match=says) as caught:
        load_audio(source)
    assert "\n" not in str(caught.value)


def test_folders_closed_files_and_failing_ones(tmp_path, monkeypatch):
    with pytest.raises(AudioError, match="is a folder"):
        load_audio(tmp_path)
    file = io.BytesIO(pcm(np.arange(10)))
    file.close()
    with pytest.raises(AudioError, match="closed"):
        load_audio(file)
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(OptionError):
        load_audio("-")

    class Failing(io.BytesIO):
        def read(self, size=-1):
            if self.tell() > 100_000:
                raise OSError(5, "Input/output error")
            return super().read(size)

    with pytest.raises(AudioError, match="Input/output error"):
        load_audio(Failing(pcm(np.zeros(500_000))))


SCRIPTS = {
    "ffconcat": "ffconcat version 1.0\nfile 'secret.wav'\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{folder}/secret.wav\n#EXT-X-ENDLIST\n",
    "hls relative": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nsecret.wav\n#EXT-X-ENDLIST\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
    "smil": '<smil><body><audio src="secret.wav"/></body></smil>',
    "sbg": "-SE -m secret.wav\nallon: pink/40\nNOW allon\n",
    "asf reference": "[Reference]\nRef1=secret.wav\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
    "<Representation><BaseURL>secret.wav</BaseURL></Representation></AdaptationSet></Period></MPD>\n",
}


@pytest.mark.parametrize("kind", SCRIPTS)
@pytest.mark.parametrize("name", ["x.wav", "x.m3u8"])
def test_a_file_cannot_open_another_one(tmp_path, monkeypatch, kind, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.wav").write_bytes(pcm(np.full(16_000, 12_345)))
    (tmp_path / name).write_text(SCRIPTS[kind].format(folder=tmp_path))
    if kind == "ffconcat":  # without protection FFmpeg does open it
        with av.open(name, options={"safe": "0"}) as container:
            assert next(container.decode(audio=0)).samples
    for source in (name, tmp_path / name):
        with pytest.raises(AudioError):
            load_audio(source)


@pytest.mark.parametrize(
    ("kind", "codec"), [*LOSSLESS, ("wav", "pcm_s16le"), ("mp3", "libmp3lame"), ("matroska", "aac"), ("adts", "aac")]
)
def test_a_file_that_breaks_off_gives_its_beginning(kind, codec):
    noise = np.random.default_rng(5).uniform(-0.5, 0.5, 6 * 16_000)
    data = encode(kind, codec, 16_000, noise)
    whole = decode(data)
    with pytest.warns(UserWarning, match=r"breaks off or is damaged: [23]\.. s of it could be decoded") as caught:
        part = decode(data[: len(data) // 2])
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    assert 0.3 * len(whole) < len(part) < 0.7 * len(whole)
    assert np.array_equal(part[:30_000], whole[:30_000])


def test_an_mp3_whose_length_is_a_guess_is_whole():
    """Without a header FFmpeg guesses the length from the first frames, which are small for silence."""
    sound = np.concatenate([np.zeros(160_000), np.random.default_rng(6).uniform(-0.5, 0.5, 160_000)])
    file = io.BytesIO()
    with av.open(file, "w", format="mp3", options={"write_xing": "0", "id3v2_version": "0"}) as container:
        stream = container.add_stream(
            "libmp3lame", rate=16_000, layout="mono", options={"flags": "+qscale", "global_quality": "236"}
        )
        for start in range(0, sound.size, 576):
            piece = sound[None, start : start + 576].astype(np.float32)
            frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 16_000, start, Fraction(1, 16_000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with av.open(io.BytesIO(file.getvalue())) as container:
        assert container.duration is not None and not 19 < container.duration / 1e6 < 21
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(decode(file.getvalue())) == pytest.approx(320_000, abs=2000)


@pytest.mark.parametrize("stated", [0, 0xFFFF_FFFF, 0x7FFF_F000])
def test_a_wav_written_to_a_pipe_is_whole(stated):
    data = bytearray(pcm(np.arange(16_000)))
    data[4:8] = data[40:44] = struct.pack("<I", stated)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(decode(bytes(data))) == 16_000


def test_max_duration():
    data = pcm(np.zeros(32_000))
    assert len(decode(data, max_duration=2)) == 32_000
    for longest in (1.99, 0.001):
        with pytest.raises(AudioError, match="max_duration"):
            decode(data, max_duration=longest)
    for wrong in (0, -1, float("nan")):
        with pytest.raises(OptionError, match="max_duration"):
            decode(data, max_duration=wrong)
    for rate in (0, 1, 10**7, 16_000.5):
        with pytest.raises(OptionError, match="sample rate"):
            decode(data, sample_rate=rate)


def test_other_rates():
    data = encode("flac", "flac", 44_100, tone(1000, 44_100))
    for rate in (8000, 44_100, 48_000):
        sound = decode(data, sample_rate=rate)
        assert len(sound) == 2 * rate
        assert np.abs(sound - tone(1000, rate))[2000:-2000].max() < 1e-3


def test_memory_stays_near_the_samples(tmp_path):
    path = tmp_path / "long.wav"
    path.write_bytes(pcm(np.zeros(16_000 * 300)))
    tracemalloc.start()
    try:
        sound = load_audio(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.2 * sound.nbytes


# --- two channels that cancel ----------------------------------------------------------------------------------------


def stereo(left: np.ndarray, right: np.ndarray) -> bytes:
    return encode("wav", "pcm_f32le", 16_000, np.stack([left, right]), "stereo")


def voice(seconds: float = 6.0, seed: int = 0, level: float = 0.3) -> np.ndarray:
    """Noise that comes and goes four times a second."""
    dice = np.random.default_rng(seed)
    count = round(seconds * 16_000)
    return (level * dice.uniform(-1, 1, count) * (1 + np.sin(np.arange(count) * 8 * np.pi / 16_000)) / 2).astype("f4")


def test_channels_in_opposite_phase():
    """Exactly, nearly, with noise of their own, and with the right one louder."""
    sound = voice()
    hiss = [voice(seed=seed, level=0.05) for seed in (1, 2)]
    for left, right, side in (
        (sound, -sound, "left"),
        (sound, -0.8 * sound, "left"),
        (0.7 * sound, -sound, "right"),
        (sound + hiss[0], hiss[1] - sound, None),
    ):
        for load in (lambda pair: decode(stereo(*pair)), lambda pair: audio_from_array(np.stack(pair), 16_000)):
            with pytest.warns(UserWarning, match="opposite phase") as caught:
                found = load((left, right))
            assert len(caught) == 1
            if side is not None:
                assert f"the {side} one alone" in str(caught[0].message)
                assert np.array_equal(found, np.float32(left if side == "left" else right))


def test_one_of_two_voices_in_opposite_phase():
    """Two microphones on both channels, one of them with its wires crossed: half of the talk would be lost."""
    one = voice(8, 1) * (np.arange(128_000) < 64_000)
    other = voice(8, 2) * (np.arange(128_000) >= 64_000)
    with pytest.warns(UserWarning, match="opposite phase"):
        found = decode(stereo(one + other, one - other))
    assert rms(found[64_000:]) > 0.05 and rms(found[:64_000]) > 0.05


def loads(rate: int) -> list[Callable[[np.ndarray], np.ndarray]]:
    """Ways from two channels to the sound: as an array, a wav and, resampled, a flac."""
    return [
        lambda pair: audio_from_array(pair, rate),
        lambda pair: decode(encode("wav", "pcm_f32le", rate, pair, "stereo")),
        lambda pair: decode(encode("flac", "flac", rate, pair, "stereo")),
    ]


@pytest.mark.parametrize("rate", [16_000, 48_000])
@pytest.mark.parametrize("load", range(3))
def test_a_jingle_that_cancels_before_two_people_on_a_side_each(load, rate):
    """What is chosen for the jingle takes nobody's voice away."""
    dice = np.random.default_rng(0)
    pair = np.zeros((2, 60 * rate), np.float32)
    pair[0, : 12 * rate] = dice.uniform(-0.2, 0.2, 12 * rate)
    pair[1, : 12 * rate] = -1.02 * pair[0, : 12 * rate]
    for k in range(12, 60, 4):
        pair[k // 4 % 2, k * rate : (k + 3) * rate] = dice.uniform(-0.2, 0.2, 3 * rate)
    pair[1, 59 * rate :] = -pair[0, 58 * rate : 59 * rate]
    pair[0, 59 * rate :] = -pair[1, 59 * rate :]
    with pytest.warns(UserWarning, match=r"opposite phase and cancel each other for 13 of 49 s: .* is heard there"):
        found = loads(rate)[load](pair)
    whole = rms(found[: 11 * 16_000])
    for k in range(12, 60, 4):
        assert rms(found[k * 16_000 : (k + 3) * 16_000]) == pytest.approx(whole / 2, rel=0.1)
    assert rms(found[60 * 16_000 - 15_000 :]) == pytest.approx(whole, rel=0.1)


def test_a_change_of_channels_is_no_click_and_like_ones_do_not_alternate():
    sound = tone(200, 16_000, 9)
    level = 1 + 0.1 * (-1) ** (np.arange(sound.size) // 16_000)
    pair = np.stack([level * sound, -sound]).astype(np.float32)
    pair[:, : 3 * 16_000] = sound[: 3 * 16_000]
    with pytest.warns(UserWarning, match="for 6 of 9 s: the (left|right) one alone is heard there"):
        found = audio_from_array(pair, 16_000)
    assert np.abs(np.diff(found)).max() < 1.2 * np.abs(np.diff(pair[0])).max()
    assert any(np.array_equal(found[50_000:], channel[50_000:]) for channel in pair)


@pytest.mark.parametrize("count", [1, 15, 16_000, 16_001, 40_000])
def test_of_every_length(count):
    pair = np.random.default_rng(1).uniform(-0.5, 0.5, (2, count)).astype(np.float32)
    for load in loads(16_000)[:2]:
        assert np.abs(load(pair) - pair.mean(axis=0)).max() < 1e-6


def test_a_short_burst_that_cancels_is_heard_without_a_word():
    left = voice(20, 1)
    right = np.where(np.arange(left.size) < 16_000, -left, left)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = decode(stereo(left, right))
    assert rms(found[:16_000]) > 0.05
    assert np.abs(found - left)[16_200:].max() < 1e-6


@pytest.mark.parametrize("kind", ["same", "apart", "one", "wide", "silent", "hiss", "tail"])
def test_channels_that_do_not_cancel_are_averaged(kind):
    left, right = voice(20, 1), voice(20, 2)
    if kind == "same":
        right = left
    elif kind == "one":
        right = np.zeros_like(left)
    elif kind == "wide":  # with much that differs
        left, right = left + 0.6 * right, left - 0.6 * right
    elif kind == "silent":
        left = right = np.zeros_like(left)
    elif kind == "hiss":
        left = 0.001 * left
        right = -left
    elif kind == "tail":  # too short to tell
        left, right = left[: 5 * 16_000], np.where(np.arange(5 * 16_000) < 79_000, left[: 5 * 16_000], 0)
        left = np.concatenate([left, left[:100]])
        right = np.concatenate([right, -left[-100:]]).astype("f4")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = decode(stereo(left, right))
    assert np.abs(found - (left + right) / 2).max() < 1e-6


def test_only_the_track_that_cancels_is_changed(tmp_path):
    """In a file at another rate, whose channels change on their way into the resampler."""
    sound = voice()
    data = encode("flac", "flac", 48_000, np.stack([sound, -sound]), "stereo")
    with pytest.warns(UserWarning, match="opposite phase"):
        found = decode(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alone = decode(encode("flac", "flac", 48_000, sound))
    assert np.abs(found - alone).max() < 1e-4


# --- levels and scales -----------------------------------------------------------------------------------------------


def test_very_quiet_sound_is_made_louder():
    sound = voice()
    sound /= np.abs(sound).max()
    for level, said in ((0.009, "-41 dBFS"), (0.003, "-50 dBFS"), (0.0004, "-68 dBFS")):
        with pytest.warns(UserWarning, match=rf"^a.wav: is very quiet \(its peak is {said}\): it is made louder"):
            found = louder(np.float32(level) * sound, "a.wav")
        assert np.abs(found - 0.3 * sound).max() < 1e-5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.abs(louder(np.float32(0.003) * sound)).max() == pytest.approx(0.3)
        for level in (1, 0.0101, 0):
            same = np.float32(level) * sound
            assert louder(same, "a.wav") is same
    faint = np.float32(1e-4) * sound
    with pytest.warns(UserWarning, match="there may be nothing in it"):
        assert louder(faint, "a.wav") is faint
    assert louder(np.zeros(0, np.float32), "a.wav").size == 0


@pytest.mark.parametrize(
    ("samples", "says"),
    [
        (np.array([0, 100, -25_000], np.float32), "reach 25000, and full scale is 1: divide 16-bit samples by 32768"),
        (np.array([0, 100, -25_000], np.float64), "full scale is 1"),
        (np.array([[0, 9.0], [0, 0]]), "full scale is 1"),
        (np.array([0, np.inf]), "full scale is 1"),
        (np.array([0, 100, -32_768], np.int32), "reach only 32768.*int16 array"),
        (np.array([0, 100, 32_767], np.int64), "reach only 32767.*int16 array"),
        (np.array([0, 2**31 - 1], np.int64), "next to silence in 64 bits"),
        (np.array([0, 128, 255], np.uint32), "next to silence in 32 bits"),
        ([0, 100, -25_000], "int16 array"),
    ],
)
def test_samples_on_another_scale_are_refused(samples, says):
    with pytest.raises(AudioError, match=says) as caught:
        audio_from_array(samples, 16_000)
    assert "\n" not in str(caught.value)


def test_integers_are_scaled_by_their_type():
    for kind in (np.int8, np.int16, np.int32, np.int64):
        full = 2 ** (8 * np.dtype(kind).itemsize - 1)
        assert np.array_equal(audio_from_array(np.array([-full, full // 2, 0], kind), 16_000), np.float32([-1, 0.5, 0]))
        assert not audio_from_array(np.zeros(10, kind), 16_000).any()
    for kind in (np.uint8, np.uint16, np.uint32):
        middle = 2 ** (8 * np.dtype(kind).itemsize - 1)
        values = np.array([0, middle, middle + middle // 2], kind)
        assert np.array_equal(audio_from_array(values, 16_000), np.float32([-1, 0, 0.5]))
    deep = np.array([-(2**23), 2**22], np.int32)  # 24 bits of 32: quiet, but there
    assert audio_from_array(deep, 16_000) == pytest.approx([-1 / 256, 1 / 512])


def test_a_float_file_on_another_scale_is_refused(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(encode("wav", "pcm_f32le", 16_000, 20_000 * tone(500, 16_000, level=1)))
    with pytest.raises(AudioError, match=r"a\.wav: its samples reach 20000, and full scale is 1: divide"):
        load_audio(path)
    loud = decode(encode("wav", "pcm_f32le", 16_000, 3 * tone(500, 16_000)))
    assert np.abs(loud).max() == 1


def test_arrays():
    assert np.array_equal(audio_from_array([0.5, -0.5, 2.0], 16_000), np.array([0.5, -0.5, 1], np.float32))
    assert np.array_equal(audio_from_array(np.array([0, 128, 255], np.uint8), 16_000), np.float32([-1, 0, 127 / 128]))
    assert np.array_equal(audio_from_array(np.array([-(2**31), 2**30], np.int32), 16_000), np.float32([-1, 0.5]))
    assert audio_from_array(np.zeros(0), 44_100).shape == (0,)
    original = np.full(10, 2.0, np.float32)
    audio_from_array(original, 16_000)
    assert original[0] == 2
    for wrong in (np.zeros((1000, 2)), np.zeros((2, 2, 2)), np.float32(1), np.zeros(4, complex), np.array(["a"])):
        with pytest.raises(AudioError):
            audio_from_array(wrong, 16_000)
    with pytest.raises(AudioError, match="NaN"):
        audio_from_array([np.nan], 16_000)
    with pytest.raises(OptionError):
        audio_from_array([0.0], 10)


@pytest.mark.filterwarnings("ignore:.*breaks off")
@pytest.mark.parametrize(("kind", "codec"), LOSSLESS + LOSSY + MORE)
def test_damaged_files_give_sound_or_one_error(kind, codec):
    whole = encode(kind, codec, 48_000, tone(700, 48_000, seconds=0.5))
    dice = random.Random(f"{kind} {codec}")
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(dice.choice((1, 5, 50))):
            data[dice.randrange(len(data) if dice.random() < 0.5 else 300)] = dice.randrange(256)
        try:
            sound = decode(bytes(data[: dice.choice((len(data), dice.randrange(1, len(data))))]), max_duration=600)
        except AudioError as error:
            assert "\n" not in str(error)
        else:
            assert np.abs(sound).max(initial=0) <= 1
            assert sound.size or kind == "mov"  # one byte may empty its table of samples


def heard(read: Callable[[], np.ndarray]) -> tuple[np.ndarray, list[str]]:
    """What a function reads, and its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sound = read()
    assert all(warning.filename == __file__ for warning in caught)
    return sound, [str(warning.message) for warning in caught]


def joined(data: bytes, block_seconds: float, **options) -> np.ndarray:
    """The blocks of a recording, one behind the other, after a look at their times and sizes."""
    sounds = [np.zeros(0, np.float32)]
    position = 0
    rate = options.get("sample_rate", 16_000)
    for start, sound in blocks(io.BytesIO(data), block_seconds=block_seconds, **options):
        assert start == position / rate and sound.dtype == np.float32
        sounds.append(sound)
        position += sound.size
    assert {sound.size for sound in sounds[1:-1]} <= {round(block_seconds * rate)}
    assert sounds[-1].size <= round(block_seconds * rate)
    return np.concatenate(sounds)


def same_in_blocks(data: bytes, block_seconds: float, **options) -> None:
    """The blocks are what `load_audio` gives, with its warnings, or its error."""
    try:
        expected, said = heard(lambda: load_audio(io.BytesIO(data), **options))
    except AudioError as error:  # an m4a that breaks off
        with pytest.raises(AudioError) as caught:
            joined(data, block_seconds, **options)
        assert str(caught.value) == str(error)
        return
    found, warned = heard(lambda: joined(data, block_seconds, **options))
    assert found.tobytes() == expected.tobytes() and warned == said


@pytest.mark.parametrize("block_seconds", [0.05, 1.0, 1.7, 60.0])
@pytest.mark.parametrize(("kind", "codec"), LOSSLESS + LOSSY + MORE)
def test_blocks_join_to_what_load_audio_gives(kind, codec, block_seconds):
    """To the last bit, and with the same warnings: of one channel and of two, of which one cancels the other for a
    while, at another rate, and of a file that breaks off."""
    noise = np.random.default_rng(12).uniform(-0.5, 0.5, 200_000).astype(np.float32)
    turned = np.where(np.arange(noise.size) < 100_000, -noise, noise)
    cases = [(encode(kind, codec, 48_000, noise), {}), (encode(kind, codec, 48_000, noise), {"sample_rate": 22_050})]
    cases.append((encode(kind, codec, 48_000, np.stack([noise, turned]), "stereo"), {}))
    cases.append((cases[0][0][: len(cases[0][0]) * 2 // 3], {}))
    for data, options in cases:
        same_in_blocks(data, block_seconds, **options)


def test_blocks_come_while_a_recording_is_decoded():
    """Sound on another scale in the second half does not keep the first from being heard."""
    sound = np.concatenate([tone(300, 16_000, 20), np.full(16_000, 20.0)])
    found = blocks(io.BytesIO(encode("wav", "pcm_f32le", 16_000, sound)), block_seconds=2)
    assert [next(found)[0] for _ in range(5)] == [0, 2, 4, 6, 8]
    with pytest.raises(AudioError, match="its samples reach 20"):
        list(found)
    long = blocks(io.BytesIO(pcm(np.zeros(160_000))), block_seconds=1, max_duration=5)
    assert next(long)[1].size == 16_000
    with pytest.raises(AudioError, match="longer than 5 s"):
        list(long)
    assert not list(blocks(io.BytesIO(empty("wav", "pcm_f32le"))))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"audio_track": "all"}, "blocks are of one track"),
        *(({"block_seconds": seconds}, "block_seconds is") for seconds in (0, -1, 1e-6, float("nan"), float("inf"))),
        ({"sample_rate": 7}, "a sample rate of 7 Hz"),
    ],
)
def test_blocks_of_nothing_are_refused(options, says):
    with pytest.raises(OptionError, match=says):
        next(blocks(io.BytesIO(pcm(np.zeros(1000))), **options))
