"""Recording → the regions in which somebody speaks, from the probabilities of Silero VAD.

`speech_timestamps` gives what `get_speech_timestamps` of the silero-vad package (6.2) gives, sample for sample. In
short: speech begins with a window at or above `threshold`; it ends where windows below `neg_threshold` last for
`min_silence_duration_ms`, and windows between the two change nothing. Speech that grows longer than
`max_speech_duration_s` is cut in a pause. What is left is widened by `speech_pad_ms` on both sides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import mlx.core as mx
import numpy as np

from mlx_speech import steps
from mlx_speech.errors import OptionError, in_range
from mlx_speech.features import one_channel
from mlx_speech.forks import check_process, computing
from mlx_speech.stages.vad_options import SileroOptions, silence_threshold
from mlx_speech.steps import Steps
from mlx_speech.transcript import Region

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from mlx_speech.models.silero_vad import Model, State
    from mlx_speech.stages.vad_options import TimestampKeywords

WINDOW_SAMPLES = {16_000: 512, 8_000: 256}  # that a probability stands for, by sampling rate
# What goes through the model between two steps: short enough for others to have a turn, and a long recording would be
# held several times over on the device.
SECONDS_PER_BLOCK = 30.0


def detect_speech(
    audio: Any,
    model: Any,
    *,
    sample_rate: int = 16_000,
    time_resolution: int | None = None,
    **options: Unpack[TimestampKeywords],
) -> list[Region]:
    """The regions of a recording in which somebody speaks.

    audio : (samples,), floats in [-1, 1]
    model : Silero VAD; `model(audio, sample_rate=...)` gives one probability a window, (windows,)
    sample_rate : of `audio`, in Hz: 8000, 16000, or a multiple of 16000, of which every n-th sample is taken without
        a filter, as the original does (`audio_from_array` resamples properly)
    time_resolution : decimals to which times are rounded, as the original rounds; None leaves them exact
    options : those of `speech_timestamps`

    Raises `OptionError` for options out of range, before the model runs, `AudioError` for audio of another shape, and
    `ForkedProcess`.
    """
    with computing():
        return steps.run(
            detect_speech_steps(audio, model, sample_rate=sample_rate, time_resolution=time_resolution, **options)
        )


def detect_speech_steps(
    audio: Any, model: Any, *, sample_rate: int = 16_000, time_resolution: int | None = None, **options: Any
) -> Steps[list[Region]]:
    """`detect_speech` in steps of at most `SECONDS_PER_BLOCK`: yields the seconds of audio done, returns the regions.

    Raises what `detect_speech` raises, at the first step.
    """
    check_process()
    if sample_rate <= 0 or (sample_rate % 16_000 and sample_rate != 8_000):
        raise OptionError(f"a sample rate of {sample_rate} Hz: speech is detected at 8000, 16000 or multiples of 16000")
    rate = min(sample_rate, 16_000)
    speech_timestamps([], num_samples=0, sampling_rate=rate, **options)  # checks them
    in_range(0, 9, time_resolution=time_resolution)
    samples = one_channel(audio, "speech is detected")[:: sample_rate // rate]
    if not samples.size:
        return []
    probabilities = yield from _probability_steps(samples, model, rate)
    timestamps = speech_timestamps(probabilities, num_samples=samples.size, sampling_rate=rate, **options)
    if time_resolution is None:
        return [Region(start / rate, end / rate) for start, end in timestamps]
    rounded = in_seconds(timestamps, num_samples=samples.size, sampling_rate=rate, time_resolution=time_resolution)
    return [Region(start, end) for start, end in rounded]


def _probability_steps(samples: np.ndarray, model: Any, rate: int) -> Steps[np.ndarray]:
    """samples (samples,) at `rate` → of every window, (windows,); yields the seconds done after each block."""
    window = WINDOW_SAMPLES[rate]
    block_count = math.ceil(samples.size / rate / SECONDS_PER_BLOCK)
    if block_count == 1:
        probabilities = np.array(model(mx.array(samples), sample_rate=rate))
        yield samples.size / rate
        return probabilities
    # blocks of one length: a short one at the end would be multiplied by another routine, which rounds otherwise
    block_size = window * math.ceil(samples.size / window / block_count)
    state = model.initial_state(1, rate)
    blocks: list[np.ndarray] = []
    for start in range(0, samples.size, block_size):
        block = samples[start : start + block_size]
        stop = start + block.size
        padded = np.pad(block, (0, -block.size % window))  # with a state, the model takes whole windows only
        probabilities, state = model(mx.array(padded[None]), sample_rate=rate, state=state)
        blocks.append(np.array(probabilities[0]))
        yield stop / rate
    return np.concatenate(blocks)


def live_speech_steps(
    samples: np.ndarray, find_model: Callable[[], Model], state: State | None = None
) -> Steps[tuple[np.ndarray, State]]:
    """Sound that is still coming in: the probability of speech in each of its next windows.

    samples : (windows · 512,) at 16 kHz, floats in [-1, 1]
    find_model : gives Silero VAD, in the thread that computes
    state : in which the sound before them left the model; None at the start

    Yields the seconds done; returns (windows,) and the next state. Raises `OptionError` for part of a window, and
    `ForkedProcess`.
    """
    check_process()
    model = find_model()
    rate = 16_000
    before = model.initial_state(1, rate) if state is None else state
    output = model(mx.array(samples[None]), sample_rate=rate, state=before)
    probabilities, after = cast("tuple[mx.array, State]", output)
    mx.eval(*after)  # or the state would hold all of the samples
    yield samples.size / rate
    return np.array(probabilities[0]), after


def speech_timestamps(
    probabilities: Sequence[float] | np.ndarray,
    *,
    num_samples: int,
    sampling_rate: int = 16_000,
    threshold: float = 0.5,
    neg_threshold: float | None = None,
    min_speech_duration_ms: float = 250,
    max_speech_duration_s: float = math.inf,
    min_silence_duration_ms: float = 100,
    speech_pad_ms: float = 30,
    min_silence_at_max_speech: float = 98,
    use_max_poss_sil_at_max_speech: bool = True,
) -> list[tuple[int, int]]:
    """Speech probabilities → (start, end) of each stretch of speech, in samples. Options and results as upstream.

    probabilities : (windows,), one for every 512 samples at 16 kHz, 256 at 8 kHz
    num_samples : length of the recording, in samples
    sampling_rate : 16000 or 8000
    threshold : speech begins at this probability
    neg_threshold : and ends below this one; by default 0.15 lower, at least 0.01
    min_speech_duration_ms : speech that is not longer is dropped, unless it was cut for being too long
    max_speech_duration_s : longer speech is cut
    min_silence_duration_ms : a pause that is shorter does not end speech
    speech_pad_ms : added on both sides, or half of the pause where two stretches would meet
    min_silence_at_max_speech : milliseconds; speech that is too long is cut in a pause longer than this, or, where it
        has none, at the window that makes it too long
    use_max_poss_sil_at_max_speech : cut in the longest of these pauses; otherwise in the last

    Raises `OptionError`, naming the option, for values out of range.
    """
    options = SileroOptions(
        threshold,
        neg_threshold,
        min_speech_duration_ms,
        min_silence_duration_ms,
        speech_pad_ms,
        min_silence_at_max_speech,
    )
    tracker = SpeechTracker.of(options, max_speech_duration_s, use_max_poss_sil_at_max_speech, sampling_rate)
    window = tracker.window
    if len(probabilities) != math.ceil(num_samples / window):
        raise OptionError(f"num_samples is {num_samples}, which does not fit {len(probabilities)} windows of {window}")
    tracker.add(probabilities)
    tracker.finish(num_samples)
    return _padded(tracker.stretches, tracker.pad, num_samples)


def in_seconds(
    timestamps: Sequence[tuple[int, int]], *, num_samples: int, sampling_rate: int = 16_000, time_resolution: int = 1
) -> list[tuple[float, float]]:
    """`timestamps` in seconds, rounded to `time_resolution` decimals as the original's `return_seconds` does: no end
    is rounded past the end of the recording, which has `num_samples`."""
    duration = num_samples / sampling_rate
    seconds: list[tuple[float, float]] = []
    for start, end in timestamps:
        rounded_start = round(start / sampling_rate, time_resolution)
        rounded_end = round(end / sampling_rate, time_resolution)
        seconds.append((rounded_start, min(rounded_end, duration)))
    return seconds


@dataclass
class SpeechTracker:
    """The state machine of silero-vad's `get_speech_timestamps`: fed window by window, it collects stretches of speech.

    Everything is in samples.
    threshold : probability from which on a window is speech
    neg_threshold : and below which it is silence; between the two it is neither
    window : samples that a probability stands for
    pad : that a stretch is widened by, on both sides
    min_speech : a stretch that is not longer is dropped
    max_speech : a stretch that grows longer is cut
    min_silence : a shorter silence does not end a stretch
    min_pause : a stretch that is too long is cut in a pause longer than this
    cut_longest : in the longest of these pauses; otherwise in the last
    """

    threshold: float
    neg_threshold: float
    window: int
    pad: float
    min_speech: float
    max_speech: float
    min_silence: float
    min_pause: float
    cut_longest: bool

    position: int = 0  # where the next window begins
    stretches: list[tuple[int, int]] = field(default_factory=list)
    start: int | None = None  # of the open stretch
    silence: int | None = None  # since when it has been silent in the open stretch
    pauses: list[tuple[int, int]] = field(default_factory=list)  # (start, length) of those where it may be cut
    last_pause: int | None = None  # start of the last one long enough, for cutting there instead
    resumed: int | None = None  # where speech came back after `last_pause`

    @classmethod
    def of(
        cls, options: SileroOptions, max_speech_duration_s: float, cut_longest: bool = True, sampling_rate: int = 16_000
    ) -> SpeechTracker:
        """By options in seconds and milliseconds. Raises `OptionError`, naming what is out of range."""
        in_range(0, math.inf, max_speech_duration_s=max_speech_duration_s)
        if sampling_rate not in WINDOW_SAMPLES:
            raise OptionError(f"sampling_rate is {sampling_rate}: it has to be 8000 or 16000")
        neg_threshold = options.neg_threshold
        if neg_threshold is None:
            neg_threshold = silence_threshold(options.threshold)
        window = WINDOW_SAMPLES[sampling_rate]
        pad = sampling_rate * options.speech_pad_ms / 1000
        return cls(
            threshold=options.threshold,
            neg_threshold=neg_threshold,
            window=window,
            pad=pad,
            min_speech=sampling_rate * options.min_speech_duration_ms / 1000,
            max_speech=sampling_rate * max_speech_duration_s - window - 2 * pad,
            min_silence=sampling_rate * options.min_silence_duration_ms / 1000,
            min_pause=sampling_rate * options.min_silence_at_max_speech / 1000,
            cut_longest=cut_longest,
        )

    def add(self, probabilities: Sequence[float] | np.ndarray) -> None:
        """The next windows. probabilities : (windows,) of speech"""
        # Rounded to float32, which the original's model gives, but compared with the thresholds as they are: at a
        # threshold of 0.35, the float32 next to 0.35 counts as below it.
        for probability in np.asarray(probabilities, dtype=np.float32).tolist():
            self._step(self.position, speech=probability >= self.threshold, silence=probability < self.neg_threshold)
            self.position += self.window

    def _step(self, position: int, *, speech: bool, silence: bool) -> None:
        """The window that begins at `position`; neither `speech` nor `silence` between the two thresholds."""
        if speech:
            self._end_silence(position)
            if self.start is None:
                self.start = position
                return
        if self.start is not None and position - self.start > self.max_speech:
            self._cut(position)
        if silence and self.start is not None:
            self._continue_silence(self.start, position)

    @property
    def earliest_end(self) -> int:
        """The open stretch ends there, or later: where it may be cut, where it has been silent since, or here."""
        places = [self.position]
        if self.silence is not None:
            places.append(self.silence)
        if self.cut_longest and self.pauses:
            places.append(max(self.pauses, key=lambda pause: pause[1])[0])
        if not self.cut_longest and self.last_pause is not None:
            places.append(self.last_pause)
        return min(places)

    def finish(self, num_samples: int) -> None:
        """The end of the recording closes an open stretch, silent or not."""
        if self.start is not None and num_samples - self.start > self.min_speech:
            self.stretches.append((self.start, num_samples))

    def _end_silence(self, position: int) -> None:
        if self.silence is None:
            return
        length = position - self.silence
        if length > self.min_pause:
            self.pauses.append((self.silence, length))
        self.silence = None
        if self.last_pause is not None and self.resumed is None:
            self.resumed = position

    def _continue_silence(self, start: int, position: int) -> None:
        if self.silence is None:
            self.silence = position
        length = position - self.silence
        if length > self.min_pause:
            self.last_pause = self.silence
            self.resumed = None
        if length >= self.min_silence:
            if self.silence - start > self.min_speech:
                self.stretches.append((start, self.silence))
            self._open(None)

    def _cut(self, position: int) -> None:
        """End a stretch that has become too long; the next one begins behind the pause where it is cut, if there is
        speech behind it yet. Its length is not held against `min_speech`."""
        end = position
        following = None
        if self.cut_longest and self.pauses:
            end, length = max(self.pauses, key=lambda pause: pause[1])  # the first of equals
            following = end + length
        elif not self.cut_longest and self.last_pause is not None:
            end = self.last_pause
            following = self.resumed
        if self.start is not None:
            self.stretches.append((self.start, end))
        self._open(following)

    def _open(self, start: int | None) -> None:
        """A new stretch, or none; what was noted of the old one is forgotten, a silence that is going on too."""
        self.start = start
        self.silence = None
        self.last_pause = None
        self.resumed = None
        self.pauses = []


def _padded(stretches: list[tuple[int, int]], pad: float, num_samples: int) -> list[tuple[int, int]]:
    """`stretches` widened by `pad` on both sides; where two would meet, each gets half of the pause."""
    margins = [pad]  # before the first stretch, between any two, behind the last
    for before, after in pairwise(stretches):
        gap = after[0] - before[1]
        margins.append(gap // 2 if gap < 2 * pad else pad)
    margins.append(pad)
    padded: list[tuple[int, int]] = []
    for k, (start, end) in enumerate(stretches):
        padded_start = int(max(0, start - margins[k]))
        padded_end = int(min(num_samples, end + margins[k + 1]))
        padded.append((padded_start, padded_end))
    return padded
