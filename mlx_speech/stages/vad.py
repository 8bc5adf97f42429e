"""Recording → the regions in which somebody speaks, from the probabilities of Silero VAD.

`speech_timestamps` gives what `get_speech_timestamps` of the silero-vad package (6.2) gives, sample for sample. In
short: speech begins with a window at or above `threshold`; it ends where windows below `neg_threshold` last for
`min_silence_duration_ms`, and windows between the two change nothing. Speech that grows longer than
`max_speech_duration_s` is cut in a pause. What is left is widened by `speech_pad_ms` on both sides.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from mlx_speech.blas import check_process
from mlx_speech.errors import OptionError, in_range
from mlx_speech.features import one_channel
from mlx_speech.stages import windows
from mlx_speech.transcript import Chunk, Region

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from mlx_speech.stages.vad_options import TimestampKeywords

WINDOWS = {16_000: 512, 8_000: 256}  # samples a probability stands for, by sampling rate
BLOCK = 1 << 22  # samples
LOUD = 0.01  # RMS: -40 dBFS
LITTLE_SPEECH = 0.1  # of a recording


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
    check_process()
    if sample_rate <= 0 or (sample_rate % 16_000 and sample_rate != 8_000):
        raise OptionError(f"a sample rate of {sample_rate} Hz: speech is detected at 8000, 16000 or multiples of 16000")
    rate = min(sample_rate, 16_000)
    speech_timestamps([], num_samples=0, sampling_rate=rate, **options)  # checks them
    in_range(0, 9, time_resolution=time_resolution)
    samples = one_channel(audio, "speech is detected")[:: sample_rate // rate]
    if not samples.size:
        return []
    about: dict[str, Any] = {"num_samples": samples.size, "sampling_rate": rate}
    found = speech_timestamps(_probabilities(samples, model, rate), **about, **options)
    if time_resolution is None:
        return [Region(start / rate, end / rate) for start, end in found]
    return [Region(*seconds) for seconds in in_seconds(found, **about, time_resolution=time_resolution)]


def _probabilities(samples: np.ndarray, model: Any, rate: int) -> np.ndarray:
    """Of every window. A long recording goes to the device block by block: there it would be held several times."""
    if samples.size <= BLOCK:
        return np.array(model(mx.array(samples), sample_rate=rate))
    found, state = [], model.initial_state(1, rate)
    for start in range(0, samples.size, BLOCK):
        block = samples[start : start + BLOCK]
        block = np.pad(block, (0, -block.size % WINDOWS[rate]))[None]
        probabilities, state = model(mx.array(block), sample_rate=rate, state=state)
        found.append(np.array(probabilities[0]))
    return np.concatenate(found)


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
    in_range(0, 1, threshold=threshold)
    in_range(0, 1e9, min_speech_duration_ms=min_speech_duration_ms, min_silence_duration_ms=min_silence_duration_ms)
    in_range(0, 1e9, min_silence_at_max_speech=min_silence_at_max_speech, speech_pad_ms=speech_pad_ms)
    in_range(0, math.inf, max_speech_duration_s=max_speech_duration_s)
    in_range(0, threshold, neg_threshold=neg_threshold)
    neg_threshold = max(threshold - 0.15, 0.01) if neg_threshold is None else neg_threshold
    if sampling_rate not in WINDOWS:
        raise OptionError(f"sampling_rate is {sampling_rate}: it has to be 8000 or 16000")
    window = WINDOWS[sampling_rate]
    if len(probabilities) != -(-num_samples // window):
        raise OptionError(f"num_samples is {num_samples}, which does not fit {len(probabilities)} windows of {window}")

    durations = speech_pad_ms, min_speech_duration_ms, min_silence_duration_ms, min_silence_at_max_speech
    pad, min_speech, min_silence, min_cut = (sampling_rate * duration / 1000 for duration in durations)
    max_speech = sampling_rate * max_speech_duration_s - window - 2 * pad
    tracker = _Tracker(min_speech, max_speech, min_silence, min_cut, longest=use_max_poss_sil_at_max_speech)
    # Rounded to float32, which the original's model gives, but compared with the thresholds as they are: at a
    # threshold of 0.35, the float32 next to 0.35 counts as below it.
    for index, probability in enumerate(np.asarray(probabilities, dtype=np.float32).tolist()):
        tracker.step(window * index, speech=probability >= threshold, silence=probability < neg_threshold)
    tracker.finish(num_samples)
    return _padded(tracker.segments, pad, num_samples)


def in_seconds(
    timestamps: Sequence[tuple[int, int]], *, num_samples: int, sampling_rate: int = 16_000, time_resolution: int = 1
) -> list[tuple[float, float]]:
    """`timestamps` in seconds, rounded to `time_resolution` decimals as the original's `return_seconds` does: no end
    is rounded past the end of the recording, which has `num_samples`."""
    length = num_samples / sampling_rate
    rounded = [[round(place / sampling_rate, time_resolution) for place in stretch] for stretch in timestamps]
    return [(start, min(end, length)) for start, end in rounded]


@dataclass
class _Tracker:
    """The state machine: fed window by window, it collects segments. Everything is in samples."""

    min_speech: float
    max_speech: float
    min_silence: float
    min_cut: float
    longest: bool

    segments: list[tuple[int, int]] = field(default_factory=list)
    start: int | None = None  # of the open segment
    silence: int | None = None  # since when it has been silent in the open segment
    pauses: list[tuple[int, int]] = field(default_factory=list)  # (start, length) of those where it may be cut
    last_pause: int | None = None  # start of the last one long enough, for cutting there instead
    resumed: int | None = None  # where speech came back after `last_pause`

    def step(self, position: int, *, speech: bool, silence: bool) -> None:
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

    def finish(self, num_samples: int) -> None:
        """The end of the recording closes an open segment, silent or not."""
        if self.start is not None and num_samples - self.start > self.min_speech:
            self.segments.append((self.start, num_samples))

    def _end_silence(self, position: int) -> None:
        if self.silence is None:
            return
        if position - self.silence > self.min_cut:
            self.pauses.append((self.silence, position - self.silence))
        self.silence = None
        if self.last_pause is not None and self.resumed is None:
            self.resumed = position

    def _continue_silence(self, start: int, position: int) -> None:
        if self.silence is None:
            self.silence = position
        length = position - self.silence
        if length > self.min_cut:
            self.last_pause, self.resumed = self.silence, None
        if length >= self.min_silence:
            if self.silence - start > self.min_speech:
                self.segments.append((start, self.silence))
            self._open(None)

    def _cut(self, position: int) -> None:
        """End a segment that has become too long; the next one begins behind the pause where it is cut, if there is
        speech behind it yet. Its length is not held against `min_speech`."""
        end, following = position, None
        if self.longest:
            if self.pauses:
                end, length = max(self.pauses, key=lambda pause: pause[1])  # the first of equals
                following = end + length
        elif self.last_pause is not None:
            end, following = self.last_pause, self.resumed
        if self.start is not None:
            self.segments.append((self.start, end))
        self._open(following)

    def _open(self, start: int | None) -> None:
        """A new segment, or none; what was noted of the old one is forgotten, a silence that is going on too."""
        self.start, self.silence, self.last_pause, self.resumed, self.pauses = start, None, None, None, []


def _padded(segments: list[tuple[int, int]], pad: float, num_samples: int) -> list[tuple[int, int]]:
    """`segments` widened by `pad` on both sides; where two would meet, each gets half of the pause."""
    gaps = [math.inf, *(after[0] - before[1] for before, after in pairwise(segments)), math.inf]
    shares = [gap // 2 if gap < 2 * pad else pad for gap in gaps]
    padded = zip(segments, shares, shares[1:], strict=False)
    return [(int(max(0, start - before)), int(min(num_samples, end + after))) for (start, end), before, after in padded]


# --- regions → chunks -------------------------------------------------------------------------------------------------


def cut_chunks(regions: Sequence[Region], *, duration: float, chunk_size: float = 30.0) -> list[Chunk]:
    """Slices of the recording for recognition, cut at pauses: in order, apart, and together holding all regions.

    regions : of speech; what lies outside the recording, or overlaps the region before, is left out
    duration : of the recording, in seconds
    chunk_size : longest slice, in seconds; a region that is longer is divided evenly

    As whisperx.vads.vad.Vad.merge_chunks: regions join the chunk, pauses and all, for as long as it stays short enough.
    Raises `OptionError` for a chunk_size below a second.
    """
    in_range(1, math.inf, chunk_size=chunk_size)
    groups: list[list[Region]] = []
    end = 0.0
    for region in sorted(regions, key=lambda region: (region.start, region.end)):
        start, end = max(region.start, end), max(end, min(region.end, duration))
        for piece in _divided(start, end, chunk_size):
            if not groups or piece.end - groups[-1][0].start > chunk_size:
                groups.append([])
            groups[-1].append(piece)
    return [Chunk(group[0].start, group[-1].end, tuple(group)) for group in groups]


def widened(chunks: Sequence[Chunk], *, pad: float, duration: float) -> list[Chunk]:
    """Chunks that also hold what is heard before and behind their speech; their regions stay as they are.

    pad : seconds on both sides; where two chunks would meet, each gets half of the pause between them
    duration : of the recording, in seconds

    Raises `OptionError` for a pad below zero.
    """
    in_range(0, math.inf, pad=pad)
    result = []
    for k, chunk in enumerate(chunks):
        before = 0.0 if k == 0 else (chunks[k - 1].end + chunk.start) / 2
        behind = duration if k + 1 == len(chunks) else (chunk.end + chunks[k + 1].start) / 2
        start = max(chunk.start - pad, before)
        end = min(chunk.end + pad, behind)
        result.append(Chunk(start, end, chunk.regions))
    return result


def fixed_chunks(duration: float, chunk_size: float = 30.0) -> list[Chunk]:
    """The whole recording in the fewest equal slices of at most `chunk_size` seconds, wherever that cuts."""
    return cut_chunks([Region(0.0, duration)], duration=duration, chunk_size=chunk_size)


def _divided(start: float, end: float, size: float) -> list[Region]:
    """In equal parts; none longer than `size`, but for a rounding error, which is no reason to cut. None if empty."""
    count = max(1, math.ceil((end - start) / size - 1e-9))
    edges = [start + (end - start) * k / count for k in range(count)] + [end]
    return [Region(*part) for part in pairwise(edges)] if end > start else []


def warn_if_silent(audio: np.ndarray, regions: Sequence[Region], name: str = "the recording") -> bool:
    """Warn, and give True, where less than a tenth of a loud recording counts as speech: some may have been missed.

    audio : (samples,) at 16 kHz; loud is an RMS above -40 dBFS
    """
    if not audio.size or math.sqrt(float(np.dot(audio, audio)) / audio.size) <= LOUD:
        return False
    share = min(1.0, 16_000 * sum(region.duration for region in regions) / audio.size)
    if share < LITTLE_SPEECH:
        advice = "if more is missing, lower the threshold of the voice activity detection or do without it"
        warnings.warn(f"{name}: it is loud, yet only {share:.1%} counts as speech: {advice}", stacklevel=2)
    return share < LITTLE_SPEECH


def detect_speech_pyannet(
    audio: Any,
    model: Any,
    *,
    onset: float = 0.5,
    offset: float = 0.363,
    min_duration_on: float = 0.0,
    min_duration_off: float = 0.0,
    max_duration: float = math.inf,
    batch_size: int = 32,
) -> list[Region]:
    """The regions in which somebody speaks, by PyanNet (pyannote.audio `VoiceActivityDetection`, WhisperX's cuts).

    audio : (samples,) at 16 kHz, floats in [-1, 1]
    model : a PyanNet; of a powerset model, a window's most probable class says whether anybody speaks
    onset, offset : speech begins above the one and ends below the other
    min_duration_on, min_duration_off : seconds; shorter speech is dropped, after shorter pauses have been filled
    max_duration : seconds; longer speech is cut where speech is least likely
    batch_size : windows that go through the model at once

    Other than in WhisperX, no region reaches over the end of the recording, speech that ends in the very frame in
    which it becomes too long ends there, and pauses may be filled under a `max_duration`, by which they are left.
    Raises `OptionError` for options out of range, and `AudioError` for audio of another shape.
    """
    in_range(0, 1, onset=onset)
    in_range(0, onset, offset=offset)
    in_range(0, 1e9, min_duration_on=min_duration_on, min_duration_off=min_duration_off)
    in_range(1, math.inf, max_duration=max_duration)
    in_range(1, 1e6, batch_size=batch_size)
    samples = one_channel(audio, "speech is detected")
    if not samples.size:
        return []
    frames, scores = windows.frames_of(model.args), speech_scores(samples, model, batch_size)
    stretches = windows.runs(windows.binarize(scores[:, None], onset, offset)[:, 0])
    pieces = [piece for stretch in stretches for piece in windows.cut(scores, stretch, max_duration / frames.step)]
    filled = windows.fill([(frames.middle(a), frames.middle(b)) for a, b in pieces], min_duration_off, max_duration)
    length = samples.size / model.args.sample_rate
    return [Region(start, min(end, length)) for start, end in filled if end - start >= min_duration_on]


def speech_scores(audio: np.ndarray, model: Any, batch_size: int = 32) -> np.ndarray:
    """How sure PyanNet is of speech, (frames,) 0..1: the highest of a window's speakers, overlapping windows averaged
    (pyannote.audio `Inference`). audio : (samples,), at least one"""
    args = model.args
    left, right = args.warm_up or (0.0, 0.0)
    span = windows.Windows(args.duration, left or 0.1 * args.duration)
    size, step = round(span.duration * args.sample_rate), round(span.step * args.sample_rate)
    starts = windows.starts(audio.size, size, step)

    def compute(waveforms: mx.array, rows: slice) -> mx.array:
        scores = model(waveforms)
        best = scores.max(axis=-1) if args.powerset_max_classes is None else scores.argmax(axis=-1) > 0
        return best[..., None].astype(mx.float32)

    found = (row for batch in windows.slide(audio, starts, size, compute, batch_size) for row in batch)
    frames = windows.frames_of(args)
    scores = windows.aggregate(found, len(starts), span, frames, warm_up=(left, right), hamming=True)[:, 0]
    padded = starts[-1] + size > audio.size
    return scores[: math.floor(audio.size / args.sample_rate / frames.step) + 1] if padded else scores
