"""Sound of a microphone, by sounddevice and PortAudio, which the extra `live` brings.

What goes wrong with devices is dealt with here: samples that were lost and sleep of the machine become gaps
(`Block.start`), and a device that is gone is waited for. PortAudio has no word for the latter: a device that sends
nothing for a second is gone.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import numpy as np

from mlx_speech.errors import AudioError, DeviceLost, MissingDependency, OptionError, install
from mlx_speech.live.events import Block
from mlx_speech.live.sources import Clock, Soundness, SystemClock

OnLoss = Literal["wait", "stop"]

BLOCKS_PER_SECOND = 20
MAX_CHANNELS = 2  # more are inputs of an interface that nobody speaks into
LOST_SECONDS = 1.0  # without a block behind which the device is gone
RETRY_SECONDS = 1.0  # between two tries to open the default device
MAX_RETRY_SECONDS = 60.0  # behind which nobody waits for it any more
SLEEP_SECONDS = 2.0  # that passed without sound: the machine has slept
SILENT_SECONDS = 10.0  # of nothing but zeros at the start: no microphone is that quiet

INSTALL = install("live")
PORTAUDIO = {
    "linux": "apt-get install libportaudio2",
    "darwin": "brew install portaudio",
}
PRIVACY = {
    "darwin": "or System Settings, Privacy & Security, Microphone does not allow it to your terminal",
}


class Stream(Protocol):
    """An open device (`sounddevice.InputStream`)."""

    def start(self) -> None: ...

    def close(self, ignore_errors: bool = True) -> None: ...


class Devices(Protocol):
    """What is used of the module sounddevice."""

    PortAudioError: type[Exception]

    def query_devices(self, device: int | str | None = None, kind: str | None = None) -> Any: ...

    def InputStream(self, **keywords: Any) -> Stream: ...

    def _initialize(self) -> None: ...

    def _terminate(self) -> None: ...


@dataclass(frozen=True)
class Device:
    """A device that sound can be taken from.

    index : PortAudio's
    sample_rate : its own, in Hz
    is_default : whether it is taken where none is named
    """

    index: int
    name: str
    sample_rate: int
    channels: int
    is_default: bool = False


@dataclass(frozen=True)
class _Arrived:
    """What a callback was given.

    samples : (channels, samples)
    lost : whether samples before them were lost
    adc : the device's own time of the first of them, in seconds; 0 where it has none
    now : the clock's time
    """

    samples: np.ndarray
    lost: bool
    adc: float
    now: float


def list_devices(devices: Devices | None = None) -> list[Device]:
    """All devices that sound can be taken from. devices : the module sounddevice

    Raises `MissingDependency`, and `AudioError` where PortAudio fails.
    """
    module = devices or _sounddevice()
    try:
        found = [cast(Mapping[str, Any], entry) for entry in module.query_devices()]
    except module.PortAudioError as error:
        raise AudioError(f"the devices cannot be listed: {_first_line(error)}") from error
    try:
        default = int(module.query_devices(None, "input")["index"])
    except (ValueError, module.PortAudioError):  # there is none
        default = -1
    listed: list[Device] = []
    for index, entry in enumerate(found):
        if entry["max_input_channels"] > 0:
            listed.append(_device(entry, index, index == default))
    return listed


def microphone(
    device: int | str | None = None,
    *,
    on_loss: OnLoss = "wait",
    clock: Clock | None = None,
    devices: Devices | None = None,
) -> Microphone:
    """The sound of a microphone, at its own rate, without end.

    device : an index, or a part of a name, as `list_devices` has them; None is the system's
    on_loss : what is done where it is gone: "wait" a minute for the default device, or "stop"
    clock, devices : for tests: what the time is, and what stands for the module sounddevice

    It is opened here. Raises `MissingDependency`, `OptionError` where there is no such device, `AudioError` where it
    cannot be opened, and while it is read `DeviceLost`.
    """
    if on_loss not in ("wait", "stop"):
        raise OptionError(f"on_loss is {on_loss!r}: choose wait or stop")
    return Microphone(device, on_loss, clock or SystemClock(), devices or _sounddevice())


class Microphone:
    """What `microphone` gives. device : the one that is heard"""

    def __init__(self, device: int | str | None, on_loss: OnLoss, clock: Clock, devices: Devices) -> None:
        self._on_loss = on_loss
        self._clock = clock
        self._devices = devices
        self._changed = threading.Condition()
        self._arrived: deque[_Arrived] = deque()
        self._closed = False
        self._stream: Stream | None = None
        self._position = 0.0  # seconds from the first sample to the next one
        self._last: _Arrived | None = None  # of the device that is open
        self._last_now: float | None = None  # when sound last came, of whichever device
        self._gone_since: float | None = None  # while the device is gone
        self._silent = True  # whether there was nothing but zeros
        self._warned = False
        self.device = self._find(device)
        self._soundness = Soundness(self.device.name)
        try:
            self._open(self.device)
        except devices.PortAudioError as error:
            raise AudioError(f"{self.device.name}: cannot be opened: {_first_line(error)}: is it in use?") from error

    def __iter__(self) -> Microphone:
        return self

    def __next__(self) -> Block:
        arrived = self._wait(LOST_SECONDS)
        if arrived is not None:
            return self._block(arrived)
        if self._closed:
            self._close_stream()
            raise StopIteration
        if self._gone_since is not None:
            return self._retry(self._gone_since)
        return self._lose()

    def close(self) -> None:
        """As of `Source`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _wait(self, seconds: float) -> _Arrived | None:
        """What has arrived, within so many seconds; None where nothing did, or the source was closed."""
        end = self._clock.awake() + seconds
        with self._changed:
            while not self._closed and not self._arrived:
                left = end - self._clock.awake()
                if left <= 0:
                    return None
                self._clock.wait(self._changed, left)
            if self._closed:
                return None
            return self._arrived.popleft()

    def _block(self, arrived: _Arrived) -> Block:
        """What has arrived, and where it begins if something is missing before it."""
        sample_rate = self.device.sample_rate
        seconds = arrived.samples.shape[1] / sample_rate
        missing = self._missing(arrived, seconds)
        self._last = arrived
        self._last_now = arrived.now
        self._gone_since = None
        start = None
        if missing > 0:
            self._position += missing
            start = self._position
        self._position += seconds
        self._watch_silence(arrived.samples)
        return self._soundness.checked(Block(arrived.samples, sample_rate, start))

    def _missing(self, arrived: _Arrived, seconds: float) -> float:
        """Seconds of sound that are missing before what has arrived, which lasts `seconds`."""
        if self._last_now is None:
            return 0.0
        elapsed = arrived.now - self._last_now - seconds
        if self._last is None or elapsed > SLEEP_SECONDS:  # another device, or the machine has slept
            return max(0.0, elapsed)
        if not arrived.lost:
            return 0.0
        if arrived.adc > 0 and self._last.adc > 0:
            last_seconds = self._last.samples.shape[1] / self.device.sample_rate
            return max(0.0, arrived.adc - self._last.adc - last_seconds)
        return max(0.0, elapsed)

    def _watch_silence(self, samples: np.ndarray) -> None:
        if self._silent and samples.any():
            self._silent = False
        if self._silent and not self._warned and self._position >= SILENT_SECONDS:
            self._warned = True
            causes = "it may be muted"
            if sys.platform in PRIVACY:
                causes = f"{causes}, {PRIVACY[sys.platform]}"
            warnings.warn(f"{self.device.name}: {SILENT_SECONDS:g} s of nothing but silence: {causes}", stacklevel=2)

    # --- devices -----------------------------------------------------------------------------------------------------

    def _find(self, device: int | str | None) -> Device:
        try:
            entry = self._devices.query_devices(device, "input")
        except ValueError as error:
            advice = "list_devices shows what there is"
            raise OptionError(f"input is {device!r}: {_first_line(error)}: {advice}") from error
        except self._devices.PortAudioError as error:
            raise AudioError(f"there is no microphone: {_first_line(error)}: connect one") from error
        return _device(entry, int(entry["index"]), device is None)

    def _open(self, device: Device) -> None:
        """Raises PortAudio's error."""
        self._stream = self._devices.InputStream(
            device=device.index,
            samplerate=device.sample_rate,
            channels=min(device.channels, MAX_CHANNELS),
            dtype="float32",
            blocksize=device.sample_rate // BLOCKS_PER_SECOND,
            latency="high",  # nothing is lost while this process is kept from running
            callback=self._callback,
        )
        self._stream.start()

    def _callback(self, sound: np.ndarray, frames: int, time: Any, status: Any) -> None:
        """Called in PortAudio's thread, whose memory `sound` is. sound : (samples, channels)"""
        lost = bool(status.input_overflow)
        adc = float(getattr(time, "inputBufferAdcTime", 0.0))
        arrived = _Arrived(np.array(sound.T, np.float32, order="C"), lost, adc, self._clock.now())
        with self._changed:
            self._arrived.append(arrived)
            self._changed.notify_all()

    def _close_stream(self) -> None:
        if self._stream is not None:
            self._stream.close(ignore_errors=True)
            self._stream = None

    def _lose(self) -> Block:
        """The device is gone: silence until now, so that what was said is not left waiting."""
        name = self.device.name
        if self._last_now is None:
            self._close_stream()
            raise AudioError(f"{name}: sends nothing: choose another microphone")
        if self._on_loss == "stop":
            self._close_stream()
            raise DeviceLost(f"{name}: the microphone is gone")
        warnings.warn(f"{name}: the microphone is gone: waiting for the default one", stacklevel=3)
        now = self._clock.now()
        self._position += max(0.0, now - self._last_now)
        self._gone_since = self._clock.awake()
        self._last_now = now
        self._last = None
        return Block(np.zeros(0, np.float32), self.device.sample_rate, self._position)

    def _retry(self, gone_since: float) -> Block:
        """Open the default device, again and again, until it is heard. Raises `DeviceLost`.

        gone_since : by the clock, awake
        """
        while True:
            self._close_stream()
            if self._clock.awake() - gone_since >= MAX_RETRY_SECONDS:
                raise DeviceLost(f"{self.device.name}: the microphone is gone, and none came in its place")
            try:
                # PortAudio makes its list of devices when it starts
                with suppress(self._devices.PortAudioError):  # it is not running where it last failed to start
                    self._devices._terminate()
                self._devices._initialize()
                device = self._find(None)
                self._open(device)
                self.device = device
            except (self._devices.PortAudioError, AudioError):
                pass  # there is none yet
            arrived = self._wait(RETRY_SECONDS)
            if arrived is not None:
                return self._block(arrived)
            if self._closed:
                self._close_stream()
                raise StopIteration


def _device(entry: Mapping[str, Any], index: int, is_default: bool) -> Device:
    return Device(
        index=index,
        name=" ".join(str(entry["name"]).split()),
        sample_rate=round(entry["default_samplerate"]),
        channels=int(entry["max_input_channels"]),
        is_default=is_default,
    )


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0].rstrip(":. ") if lines else type(error).__name__


def _sounddevice() -> Devices:
    """The module, or `MissingDependency` that says what to install."""
    try:
        import sounddevice  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingDependency(f"sounddevice is missing, which hears microphones: {INSTALL}") from error
    except OSError as error:  # it does not find its library
        advice = PORTAUDIO.get(sys.platform, "install PortAudio")
        raise MissingDependency(f"PortAudio is missing, which sounddevice needs: {advice}") from error
    return cast(Devices, sounddevice)


def table(devices: Sequence[Device]) -> str:
    """Devices for a screen, a line each: the default one has a star."""
    if not devices:
        return "no microphone\n"
    lines: list[str] = []
    for device in devices:
        star = "*" if device.is_default else " "
        lines.append(f"{star}{device.index:>3}  {device.name}  ({device.sample_rate} Hz, {device.channels} channels)\n")
    return "".join(lines)
