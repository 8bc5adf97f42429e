"""Where live sound comes from: pipes and growing files in pieces of any size, microphones that misbehave."""

from __future__ import annotations

import io
import os
import struct
import threading
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_speech.errors import AudioError, DeviceLost, MissingDependency, OptionError
from mlx_speech.live import defaults
from mlx_speech.live import microphone as microphones
from mlx_speech.live.events import Block
from mlx_speech.live.microphone import list_devices, microphone, table
from mlx_speech.live.pcm import CODINGS, Decoder, Form
from mlx_speech.live.sources import growing_file, pipe

RNG = np.random.default_rng(7)
UNKNOWN = 0xFFFFFFFF


def joined(blocks: Sequence[Block]) -> np.ndarray:
    return np.concatenate([np.atleast_2d(block.samples) for block in blocks], axis=1)


def wav(content: bytes, *, rate: int, channels: int, coding: str, size: int, extra: bytes = b"", wide: bool = False):
    """A WAV file. size : of the sound, as it is stated; extra : chunks before it; wide : an extensible header"""
    bits = 8 * CODINGS[coding].itemsize
    tag = {"s16le": 1, "f32le": 3}[coding]
    frame = channels * bits // 8
    form = struct.pack("<HHIIHH", 0xFFFE if wide else tag, channels, rate, rate * frame, frame, bits)
    if wide:
        form += struct.pack("<HHI", 22, bits, 0) + struct.pack("<H", tag) + bytes(14)
    head = b"WAVEfmt " + struct.pack("<I", len(form)) + form + extra + b"data" + struct.pack("<I", size)
    return b"RIFF" + struct.pack("<I", min(UNKNOWN, len(head) + size)) + head + content


class Torn(io.RawIOBase):
    """Gives bytes in pieces of given sizes, over and over."""

    def __init__(self, content: bytes, sizes: Sequence[int]) -> None:
        self._pieces = []
        place = 0
        while place < len(content):
            size = sizes[len(self._pieces) % len(sizes)]
            self._pieces.append(content[place : place + size])
            place += size

    def read(self, size: int = -1) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""


# --- bytes -----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 70), min_size=1, max_size=6),
    coding=st.sampled_from(sorted(CODINGS)),
    channels=st.integers(1, 3),
    header=st.sampled_from(["none", "known", "unknown", "zero", "extensible", "with a list"]),
)
def test_samples_are_the_same_however_bytes_are_cut(sizes: list[int], coding: Any, channels: int, header: str) -> None:
    frames = RNG.uniform(-1, 1, (57, channels)).astype(np.float32)
    if coding == "s16le":
        frames = np.round(frames * 32767)
    content = frames.astype(CODINGS[coding]).tobytes()
    expected = frames / 32768 if coding == "s16le" else frames
    data = content
    if header != "none":
        size = {"unknown": UNKNOWN, "zero": 0}.get(header, len(content))
        extra = b"LIST" + struct.pack("<I", 5) + b"words\0" if header == "with a list" else b""
        wide = header == "extensible"
        data = wav(content, rate=8000, channels=channels, coding=coding, size=size, extra=extra, wide=wide)
    if header in ("known", "extensible", "with a list"):
        data += b"LIST" + struct.pack("<I", 4) + b"more"  # behind the sound: it is not heard
    form = (16000, channels) if header == "none" else (44100, 7)  # a header says it better
    blocks = list(pipe(Torn(data, sizes), *form, coding=coding if header == "none" else "f32le"))
    np.testing.assert_array_equal(joined(blocks), expected.T.astype(np.float32))
    assert {block.sample_rate for block in blocks} == {16000 if header == "none" else 8000}


def test_half_a_frame_at_the_end_is_dropped_and_few_bytes_are_samples() -> None:
    assert joined(list(pipe(Torn(b"\x00\x40\x01", [1])))).tolist() == [[0.5]]
    assert joined(list(pipe(Torn(b"RIFF", [1])))).shape == (1, 2)  # it only looked like a header
    assert list(pipe(Torn(b"", [1]))) == []


@pytest.mark.parametrize(
    "data",
    [
        b"RIFF\0\0\0\0WAVE" + b"data" + bytes(20),
        b"RIFF\0\0\0\0WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 24000, 3, 24) + b"data" + bytes(20),
        b"RIFF\0\0\0\0WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 0, 8000, 0, 0, 16) + b"data" + bytes(20),
        b"RIFF\0\0\0\0WAVEfmt " + struct.pack("<I", 4) + bytes(40),
        b"RIFF\0\0\0\0WAVEjunk" + struct.pack("<I", 0x7FFFFFFF) + bytes(40),
        b"RIFF\0\0\0\0WAVE",
    ],
    ids=["no form", "24 bits", "no channel", "short form", "no sound for long", "header only"],
)
def test_headers_that_lead_nowhere(data: bytes) -> None:
    decoder = Decoder("a.wav", None, heed_sizes=True)
    with pytest.raises(AudioError, match=r"^a\.wav: [^\n]+$"):
        decoder.samples(data)
        decoder.end()


@pytest.mark.parametrize("options", [{"sample_rate": 7}, {"channels": 0}, {"coding": "mp3"}])
def test_forms_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        Form(**options)


# --- pipes -----------------------------------------------------------------------------------------------------------


def test_a_pipe_is_heard_as_it_comes_and_can_be_closed_by_another_thread() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as file, os.fdopen(writing, "wb", buffering=0) as writer:
        source = pipe(file)
        writer.write(b"\x00\x40" * 3)
        assert next(source).samples.tolist() == [[0.5, 0.5, 0.5]]
        got: list[object] = []
        thread = threading.Thread(target=lambda: got.append(next(source, "over")))
        thread.start()
        source.close()
        thread.join(timeout=30)
        assert got == ["over"] and next(source, "over") == "over"


def test_what_is_no_number_is_silence_for_a_while() -> None:
    second = np.zeros(16000, "<f4")
    broken = second.copy()
    broken[5] = np.nan
    sound = np.concatenate([broken[:8000], second + 0.5, broken[:8000], broken])
    source = pipe(Torn(sound.tobytes(), [4 * 8000]), coding="f32le")
    with pytest.warns(UserWarning, match="no numbers") as warned:
        heard = [next(source) for _ in range(4)]
    assert [float(block.samples[0, 7]) for block in heard] == [0, 0.5, 0.5, 0] and len(warned) == 2
    with pytest.raises(AudioError, match="standard input: its samples are no numbers"):
        next(source)


# --- growing files ---------------------------------------------------------------------------------------------------


class FakeClock:
    """Time passes only while somebody waits; what is scheduled happens then. asleep : seconds that `awake` lacks"""

    def __init__(self) -> None:
        self.time = 1000.0
        self.asleep = 0.0
        self.schedule: list[tuple[float, Callable[[], object]]] = []

    def now(self) -> float:
        return self.time

    def awake(self) -> float:
        return self.time - self.asleep

    def at(self, seconds: float, action: Callable[[], object]) -> None:
        self.schedule.append((1000.0 + seconds, action))
        self.schedule.sort(key=lambda entry: entry[0])

    def wait(self, changed: threading.Condition, seconds: float) -> None:
        assert 0 < seconds <= 1.0
        end = self.time + seconds
        if self.schedule and self.schedule[0][0] <= end:
            moment, action = self.schedule.pop(0)
            self.time = max(self.time, moment)
            action()
        else:
            self.time = end


@pytest.fixture
def growing(tmp_path: Path) -> tuple[Path, FakeClock, bytes]:
    """A file with a header and two samples, that states another size; a clock; what is appended later."""
    path = tmp_path / "talk.wav"
    samples = np.arange(1, 9, dtype="<i2").tobytes()
    path.write_bytes(wav(samples[:3], rate=8000, channels=1, coding="s16le", size=2))
    return path, FakeClock(), samples


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def counted(blocks: Sequence[Block]) -> list[int]:
    return np.round(joined(blocks)[0] * 32768).astype(int).tolist()


def test_a_growing_file_is_heard_once_and_ends_when_it_does_not_grow(growing: tuple[Path, FakeClock, bytes]) -> None:
    path, clock, samples = growing
    clock.at(1.0, lambda: append(path, samples[3:4]))
    clock.at(9.0, lambda: append(path, samples[4:15]))
    clock.at(18.9, lambda: append(path, samples[15:]))
    source = growing_file(path, 10, clock=clock)
    assert counted(list(source)) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert clock.time == pytest.approx(1028.9, abs=0.21) and "has not grown for 10 s" in source.reason
    assert next(source, None) is None


def test_a_header_that_is_still_being_written(tmp_path: Path) -> None:
    path, clock = tmp_path / "a.wav", FakeClock()
    data = wav(b"\1\0\2\0", rate=8000, channels=1, coding="s16le", size=UNKNOWN)
    path.write_bytes(b"")
    for place in range(len(data)):
        clock.at(0.15 * place, lambda place=place: append(path, data[place : place + 1]))
    assert counted(list(growing_file(path, 2, clock=clock))) == [1, 2]


@pytest.mark.parametrize("change", ["renamed", "replaced", "removed", "shorter"])
def test_a_growing_file_that_is_taken_away(growing: tuple[Path, FakeClock, bytes], change: str) -> None:
    path, clock, samples = growing
    other = path.with_name("other.wav")

    def take_away() -> None:
        if change == "shorter":
            path.write_bytes(b"RIFF")
            return
        append(path, samples[3:10])  # just before, and it is heard
        if change == "removed":
            path.unlink()
        else:
            path.rename(other)
        if change == "replaced":
            path.write_bytes(b"something else")

    clock.at(3.0, take_away)
    source = growing_file(path, 10, clock=clock)
    assert counted(list(source)) == ([1] if change == "shorter" else [1, 2, 3, 4, 5])
    assert clock.time < 1004 and str(path) in source.reason and "grown" not in source.reason


@pytest.mark.parametrize("skipped", range(10))
def test_the_beginning_of_a_growing_file_is_skipped(growing: tuple[Path, FakeClock, bytes], skipped: int) -> None:
    path, clock, samples = growing
    clock.at(1.0, lambda: append(path, samples[3:8]))
    clock.at(2.0, lambda: append(path, samples[8:]))
    source = growing_file(path, 10, clock=clock)
    source.skip(skipped / 8000)
    heard: list[int] = []
    for block in source:
        heard += counted([block])
    assert heard == list(range(skipped + 1, 9))


def test_a_growing_file_that_is_none(tmp_path: Path) -> None:
    clock = FakeClock()
    path = tmp_path / "talk.mp3"
    with pytest.raises(AudioError, match="is the path right"):
        next(growing_file(path, clock=clock))
    path.write_bytes(b"ID3" + bytes(100))
    with pytest.raises(AudioError, match="is no WAV file: what can be followed are WAV files of 16-bit or 32-bit"):
        next(growing_file(path, clock=clock))
    with pytest.raises(OptionError, match="idle is 0"):
        growing_file(path, 0)


def test_a_growing_file_is_closed_by_another_thread(growing: tuple[Path, FakeClock, bytes]) -> None:
    source = growing_file(growing[0], 600)
    assert counted([next(source)]) == [1]
    got: list[object] = []
    thread = threading.Thread(target=lambda: got.append(next(source, "over")))
    thread.start()
    source.close()
    thread.join(timeout=30)
    assert got == ["over"]


# --- microphones -----------------------------------------------------------------------------------------------------


class PortAudioError(Exception):
    pass


class FakeDevices:
    """Stands for sounddevice. Blocks come when the clock says so, to the stream that is open then."""

    PortAudioError = PortAudioError

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.callback: Callable[..., None] | None = None
        self.opened: list[dict[str, Any]] = []
        self.broken = False  # whether opening fails
        self.entries = [
            {"name": "Speaker", "index": 0, "max_input_channels": 0, "default_samplerate": 48000.0},
            {"name": "Desk\nmicrophone", "index": 1, "max_input_channels": 1, "default_samplerate": 100.0},
            {"name": "Interface", "index": 2, "max_input_channels": 8, "default_samplerate": 200.0},
        ]
        self.default: int | None = 1
        self.restarts = 0
        self.failing_starts = 0  # how many of the next ones fail
        self.runs = True

    def query_devices(self, device: int | str | None = None, kind: str | None = None) -> Any:
        if kind is None:
            return self.entries
        if device is None:
            if self.default is None:
                raise PortAudioError("Error querying device -1")
            return self.entries[self.default]
        for entry in self.entries:
            if device == entry["index"] or (isinstance(device, str) and device in entry["name"]):
                return entry
        raise ValueError(f"No input device matching {device!r}")

    def InputStream(self, **keywords: Any) -> FakeDevices:
        if self.broken:
            raise PortAudioError("Device unavailable [PaErrorCode -9985]")
        self.opened.append(keywords)
        self.callback = keywords["callback"]
        return self

    def start(self) -> None:
        pass

    def close(self, ignore_errors: bool = True) -> None:
        self.callback = None

    def _terminate(self) -> None:
        if not self.runs:
            raise PortAudioError("PortAudio not initialized [PaErrorCode -10000]")
        self.runs = False

    def _initialize(self) -> None:
        if self.failing_starts:
            self.failing_starts -= 1
            raise PortAudioError("Unanticipated host error [PaErrorCode -9999]")
        self.runs = True
        self.restarts += 1

    def send(self, value: float, samples: int = 50, *, overflow: bool = False, adc: float = 0.0) -> None:
        if self.callback is None:
            return
        channels = self.opened[-1]["channels"]
        memory = np.full((samples, channels), value, np.float32)
        status = types.SimpleNamespace(input_overflow=overflow)
        self.callback(memory, samples, types.SimpleNamespace(inputBufferAdcTime=adc), status)
        memory[:] = -9  # the memory is PortAudio's, which uses it again


@pytest.fixture
def devices() -> FakeDevices:
    return FakeDevices(FakeClock())


def opened(devices: FakeDevices, device: int | str | None = None, on_loss: Any = "wait") -> microphones.Microphone:
    return microphone(device, on_loss=on_loss, clock=devices.clock, devices=devices)


def at(devices: FakeDevices, *moments: float, **keywords: Any) -> None:
    """Half a second of sound (at 100 Hz) arrives at each of these moments."""
    for moment in moments:
        devices.clock.at(moment, lambda: devices.send(0.25, **keywords))


def test_a_microphone_is_heard_at_its_own_rate(devices: FakeDevices) -> None:
    at(devices, 0.5, 1.0)
    source = opened(devices)
    first, second = next(source), next(source)
    assert first.sample_rate == 100 and first.start is None and second.start is None
    assert first.samples.shape == (1, 50) and (first.samples == 0.25).all()
    assert source.device.name == "Desk microphone" and source.device.is_default
    assert devices.opened[0]["device"] == 1 and devices.opened[0]["blocksize"] == 5
    source.close()
    assert next(source, None) is None and devices.callback is None


def test_devices_are_found_by_name_and_index_and_listed(devices: FakeDevices) -> None:
    assert opened(devices, "Inter").device.index == opened(devices, 2).device.index == 2
    assert devices.opened[-1]["channels"] == 2  # more are not spoken into
    listed = list_devices(devices)
    assert [device.index for device in listed] == [1, 2] and [device.is_default for device in listed] == [True, False]
    assert table(listed).splitlines()[0] == "*  1  Desk microphone  (100 Hz, 1 channels)"
    devices.default = None
    assert not any(device.is_default for device in list_devices(devices)) and table([]) == "no microphone\n"
    with pytest.raises(AudioError, match="there is no microphone"):
        opened(devices)
    with pytest.raises(OptionError, match="input is 'radio': No input device"):
        opened(devices, "radio")
    with pytest.raises(OptionError, match="on_loss"):
        opened(devices, 1, "retry")


def test_a_microphone_that_cannot_be_opened_or_sends_nothing(devices: FakeDevices) -> None:
    source = opened(devices)
    with pytest.raises(AudioError, match="sends nothing"):
        next(source)
    devices.broken = True
    with pytest.raises(AudioError, match="Desk microphone: cannot be opened: Device unavailable"):
        opened(devices)


@pytest.mark.parametrize(("adc", "missing"), [((7.0, 7.8), 0.3), ((0.0, 0.0), 0.4)], ids=["device", "clock"])
def test_lost_samples_are_a_gap(devices: FakeDevices, adc: tuple[float, float], missing: float) -> None:
    at(devices, 0.5, adc=adc[0])
    at(devices, 1.4, overflow=True, adc=adc[1])
    at(devices, 1.9)
    source = opened(devices)
    starts = [next(source).start for _ in range(3)]
    assert starts == [None, pytest.approx(0.5 + missing), None]


def test_late_blocks_are_none(devices: FakeDevices) -> None:
    at(devices, 0.5, 1.4, 1.5, 2.45)
    source = opened(devices)
    assert [next(source).start for _ in range(4)] == [None] * 4


def test_sleep_of_the_machine_is_a_gap(devices: FakeDevices) -> None:
    def sleep() -> None:
        devices.clock.asleep = 100.0
        devices.clock.time += 100.0

    at(devices, 0.5)
    devices.clock.at(0.6, sleep)
    at(devices, 101.0, 101.5)
    source = opened(devices)
    starts = [next(source).start for _ in range(3)]
    assert starts == [None, pytest.approx(100.5), None]


def test_a_microphone_that_is_gone_is_waited_for(devices: FakeDevices) -> None:
    at(devices, 0.5)
    devices.clock.at(1.0, lambda: setattr(devices, "broken", True))
    devices.clock.at(5.0, lambda: setattr(devices, "broken", False))
    devices.clock.at(5.0, lambda: setattr(devices, "default", 2))
    at(devices, 6.0, 6.75, 7.0, samples=50)
    source = opened(devices)
    assert next(source).start is None
    with pytest.warns(UserWarning, match="the microphone is gone: waiting"):
        lost = next(source)
    # silence until now, so that what was said becomes final
    assert lost.samples.shape == (0,) and lost.start == pytest.approx(1.5)
    back = next(source)
    assert back.sample_rate == 200 and source.device.name == "Interface" and devices.restarts >= 4
    assert back.start == pytest.approx(6.0 - 0.25)  # it lasts a quarter of a second
    assert next(source).start is None


def test_a_device_comes_back_behind_portaudio_that_did_not_start(devices: FakeDevices) -> None:
    at(devices, 0.5)
    source = opened(devices)
    next(source)
    with pytest.warns(UserWarning, match="gone"):
        next(source)
    devices.failing_starts = 3
    at(devices, 8.0)
    assert next(source).start == pytest.approx(7.5) and devices.failing_starts == 0


def test_a_microphone_that_stays_away(devices: FakeDevices) -> None:
    at(devices, 0.5)
    source = opened(devices)
    next(source)
    with pytest.warns(UserWarning, match="gone"):
        next(source)
    devices.broken = True
    with pytest.raises(DeviceLost, match="none came in its place") as raised:
        next(source)
    assert devices.clock.time == pytest.approx(1000 + 1.5 + 60, abs=1.1) and raised.value.exit_code == 3


def test_a_microphone_that_is_gone_ends_it_if_so_asked(devices: FakeDevices) -> None:
    at(devices, 0.5)
    source = opened(devices, on_loss="stop")
    next(source)
    with pytest.raises(DeviceLost, match="the microphone is gone"):
        next(source)
    assert devices.callback is None


def test_a_microphone_is_closed_while_it_is_waited_for(devices: FakeDevices) -> None:
    at(devices, 0.5)
    source = opened(devices)
    next(source)
    with pytest.warns(UserWarning, match="gone"):
        next(source)
    devices.clock.at(4.0, source.close)
    assert next(source, None) is None and devices.callback is None


def test_nothing_but_zeros_is_told_once(devices: FakeDevices, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    for k in range(24):
        devices.clock.at(0.5 * (k + 1), lambda: devices.send(0.0))
    source = opened(devices)
    for _ in range(19):
        next(source)
    with pytest.warns(UserWarning, match="may be muted, or System Settings, Privacy") as warned:
        for _ in range(5):
            next(source)
    assert len(warned) == 1


def test_silence_behind_sound_is_silence(devices: FakeDevices) -> None:
    devices.clock.at(0.5, lambda: devices.send(1e-5))
    for k in range(24):
        devices.clock.at(1.0 + 0.5 * k, lambda: devices.send(0.0))
    source = opened(devices)
    assert len([next(source) for _ in range(25)]) == 25


def test_what_has_to_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sounddevice", None)
    with pytest.raises(MissingDependency, match=r"pip install 'mlx-speech-toolkit\[live\]'"):
        microphone()


@pytest.mark.parametrize(("platform", "advice"), [("linux", "apt-get install libportaudio2"), ("darwin", "brew")])
def test_what_has_to_be_installed_beside_it(
    platform: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "sounddevice", raising=False)
    monkeypatch.setattr("sys.platform", platform)
    with pytest.raises(MissingDependency, match=advice):
        list_devices()


def test_every_coding_that_can_be_asked_for_can_be_read() -> None:
    assert tuple(CODINGS) == defaults.CODINGS
