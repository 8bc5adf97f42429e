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
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest

from mlx_speech.audio import audio_from_array, load_audio
from mlx_speech.errors import AudioError, OptionError

LOSSLESS = [("wav", "pcm_f32le"), ("wav", "pcm_f64le"), ("wav", "pcm_s24le"), ("flac", "flac"), ("aiff", "pcm_s16be")]
LOSSY = [("mp3", "libmp3lame"), ("ipod", "aac"), ("mov", "aac"), ("ogg", "libopus"), ("webm", "libopus")]
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


@pytest.mark.parametrize("layout", ["mono", "stereo", "2.1", "quad", "5.1"])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_channels_are_averaged(layout, rate):
    channels = av.AudioLayout(layout).nb_channels
    sound = np.stack([tone(300 + 200 * index, rate) for index in range(channels)])
    expected = np.mean([tone(300 + 200 * index, 16_000) for index in range(channels)], axis=0)
    for found in (decode(encode("wav", "pcm_f32le", rate, sound, layout)), audio_from_array(sound, rate)):
        assert np.abs(found - expected)[500:-500].max() < 1e-4


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
    "silent.wav": pcm(np.zeros(0)),
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
            assert sound.size and np.abs(sound).max() <= 1
