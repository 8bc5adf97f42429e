"""A whole recording, window after window, each decoded with the text before it as its prompt.

Source: openai/whisper `transcribe.py`; the same segments. A window begins where the last one's finished segments end;
so no speech is cut in two and every window knows its context, but windows cannot be decoded side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_speech.errors import OptionError
from mlx_speech.features import SAMPLE_RATE, log10_mel
from mlx_speech.models.whisper import Model, ModelArgs
from mlx_speech.stages.whisper import batched, decode, word_times
from mlx_speech.stages.whisper.batched import HOP_LENGTH, INPUT_STRIDE
from mlx_speech.stages.whisper.decode import DecodingOptions, DecodingResult, Job
from mlx_speech.stages.whisper.tokenizer import Tokenizer
from mlx_speech.transcript import Segment

FRAMES_PER_SECOND = SAMPLE_RATE // HOP_LENGTH
PIECE = 6000  # frames that are computed at once when the loudest is looked for


def transcribe_sequential(
    audio: np.ndarray,
    model: Model,
    tokenizer: Tokenizer,
    options: DecodingOptions,
    *,
    language: str | None,
    condition_on_previous_text: bool = True,
    carry_initial_prompt: bool = False,
    word_timestamps: bool = False,
    hallucination_silence_threshold: float | None = None,
    clip_timestamps: Sequence[float] = (),
    on_progress: Callable[[float], None] | None = None,
) -> tuple[Segment, ...]:
    """The segments of a recording, in seconds; options and results as of openai/whisper's `transcribe`.

    audio : (samples,)
    language : a code; None for that of the first window
    condition_on_previous_text : the prompt is the text so far, until some is decoded at a temperature above 0.5
    carry_initial_prompt : `options.initial_prompt` stays in the prompt of every window, before the text so far
    word_timestamps : words with times, from cross-attention; a window then begins where the last word ends
    hallucination_silence_threshold : seconds; improbable words between silences longer than this are dropped, and
        the silence is skipped; needs `word_timestamps`
    clip_timestamps : start, end, start, end, … in seconds of what is transcribed; the last end may be left out
    on_progress : called with the seconds of the recording done so far, after each window

    As in the original, segments with words may overlap; unlike there, none ends after the recording does, all last,
    and those without text are left out. Raises `OptionError`.
    """
    if hallucination_silence_threshold is not None and not (word_timestamps and hallucination_silence_threshold >= 0):
        raise OptionError("hallucination_silence_threshold takes seconds from 0, and needs word_timestamps=True")
    mel = _LogMel(np.asarray(audio, np.float32), model.args)
    clips = _clips(clip_timestamps, mel.frames)
    if not clips:
        return ()
    initial = tokenizer.encode(" " + options.initial_prompt.strip()) if options.initial_prompt is not None else []
    history = _History(initial, model.args.n_text_ctx // 2 - 1 - len(initial) if carry_initial_prompt else None)
    kept = {f.name: getattr(options, f.name) for f in fields(DecodingOptions)}  # they may be more than that
    options = DecodingOptions(**{**kept, "initial_prompt": None})
    if not tokenizer.multilingual:
        language = "en"
    elif language is None:
        probabilities = decode.detect_language(model.encoder(mel.window(0, mel.size)[None]), model, tokenizer)[0]
        language = max(probabilities, key=lambda code: probabilities[code])
    steps = _Steps(mel, model, tokenizer, options, language, word_timestamps, hallucination_silence_threshold)

    found: list[Segment] = []
    for seek, end in clips:
        while seek < end:
            window = _Window(seek, min(mel.size, end - seek), mel.size)
            result, segments, ahead = steps.decode(window, history.prompt())
            # the original would go on forever
            seek = ahead if ahead > seek else window.stop
            if segments is not None:
                found += segments
                history.add(segments, condition_on_previous_text and result.temperature <= 0.5)
            if on_progress is not None:
                on_progress(min(seek, mel.frames) / FRAMES_PER_SECOND)
    duration = mel.samples / SAMPLE_RATE
    return tuple(_within(segment, duration) for segment in found)


def _within(segment: Segment, duration: float) -> Segment:
    """The segment and its words inside the recording. The last window is filled up with silence, and Whisper's
    timestamps may lie there; where a whole segment does, it gets the last moment of the recording."""
    start = max(segment.start, 0.0)
    end = min(segment.end, duration)
    if start >= duration:
        start = max(0.0, duration - word_times.SHORTEST)
    if end <= start:
        end = min(start + word_times.SHORTEST, duration)
    return replace(segment, start=start, end=end, words=word_times.tidy(segment.words, start, end))


def _clips(clip_timestamps: Sequence[float], frames: int) -> list[tuple[int, int]]:
    """(start, end) of what is transcribed, in frames."""
    if not all(0 <= second < math.inf for second in clip_timestamps):
        raise OptionError(f"clip_timestamps are {list(clip_timestamps)}: they have to be seconds, at least 0")
    points = [round(second * FRAMES_PER_SECOND) for second in clip_timestamps] or [0]
    if len(points) % 2:
        points.append(max(frames, points[-1]))
    clips = list(zip(points[::2], points[1::2], strict=True))
    if any(start > end for start, end in clips):
        raise OptionError(f"clip_timestamps are {list(clip_timestamps)}: an end is before its start")
    return [(start, min(end, frames)) for start, end in clips if start < min(end, frames)]


class _LogMel:
    """The spectrogram of a recording, of which only what is asked for is in memory; the loudest frame of all sets the
    floor, as in openai/whisper, where a recording has one spectrogram.

    samples, frames : of the recording; size : of the model's window, in frames
    """

    def __init__(self, audio: np.ndarray, args: ModelArgs) -> None:
        self._audio, self._n_mels = audio, args.n_mels
        self.samples = audio.size
        self.frames, self.size = audio.size // HOP_LENGTH, args.n_audio_ctx * INPUT_STRIDE
        self._floor = mx.array(-math.inf)
        reach = self.frames + 3  # these hear the recording's last samples
        for start in range(0, reach, PIECE):
            self._floor = mx.maximum(self._floor, self._log10(start, min(start + PIECE, reach)).max() - 8.0)
            mx.eval(self._floor)

    def window(self, start: int, size: int) -> mx.array:
        """The `size` frames from `start` on, and zeros after them → (frames of a window, n_mels)."""
        mel = (mx.maximum(self._log10(start, start + size), self._floor) + 4.0) / 4.0
        return mx.pad(mel, [(0, self.size - size), (0, 0)])

    def _log10(self, start: int, stop: int) -> mx.array:
        """Frames `start` to `stop`: the recording is mirrored at its start, and followed by silence."""
        low, high = start * HOP_LENGTH - 200, (stop - 1) * HOP_LENGTH + 200
        before = self._audio[1 : max(1 - low, 1)][::-1]
        inside = self._audio[max(low, 0) : high]
        samples = np.zeros(high - low, np.float32)
        samples[max(-low, 0) - before.size :][: before.size] = before
        samples[max(-low, 0) :][: inside.size] = inside
        return log10_mel(mx.array(samples)[None], self._n_mels)[0]


@dataclass
class _History:
    """The text so far, as the prompt of the next window.

    initial : tokens of the initial prompt
    room : how many more tokens go into the prompt of a window, where the initial prompt is in all of them
    """

    initial: list[int]
    room: int | None
    tokens: list[int] = field(default_factory=list)  # since the last reset
    reset: bool = False

    def prompt(self) -> tuple[int, ...]:
        if self.room is not None:
            return (*self.initial, *self.tokens[-self.room :])
        return (*([] if self.reset else self.initial), *self.tokens)

    def add(self, segments: Sequence[Segment], keep: bool) -> None:
        """`keep` : whether the text so far, these segments included, is worth being a prompt"""
        self.tokens += [token for segment in segments for token in segment.tokens]
        if not keep:
            self.tokens, self.reset = [], True


@dataclass(frozen=True)
class _Window:
    """`size` frames of the recording from `seek` on; the model hears silence after them, up to `frames`."""

    seek: int
    size: int
    frames: int

    @property
    def stop(self) -> int:
        return self.seek + self.size

    @property
    def start(self) -> float:
        """Seconds, as `duration` and `end`."""
        return self.seek * HOP_LENGTH / SAMPLE_RATE

    @property
    def duration(self) -> float:
        return self.size * HOP_LENGTH / SAMPLE_RATE

    @property
    def end(self) -> float:
        """Of all that the model hears."""
        return (self.seek + self.frames) * HOP_LENGTH / SAMPLE_RATE


@dataclass
class _Steps:
    """From window to window."""

    mel: _LogMel
    model: Model
    tokenizer: Tokenizer
    options: DecodingOptions
    language: str
    word_timestamps: bool
    threshold: float | None
    last_speech: float = 0.0  # where the last word ended

    def decode(self, window: _Window, prompt: tuple[int, ...]) -> tuple[DecodingResult, list[Segment] | None, int]:
        """What was decoded, its segments, and the frame where the next window begins; no segments, not even an empty
        list, where the window was skipped."""
        encoded = self.model.encoder(self.mel.window(window.seek, window.size)[None])
        job = Job(encoded[0], self.language, prompt, seed=window.seek)
        ((_, result),) = decode.decode_with_fallback([job], self.model, self.tokenizer, self.options, batch_size=1)
        if batched.is_silence(result, self.options):
            return result, None, window.stop
        begin = self.tokenizer.timestamp_begin
        pieces, used = batched.split_at_timestamps(result.tokens, begin, window.duration)
        ahead = window.stop if used is None else window.seek + (result.tokens[used - 1] - begin) * INPUT_STRIDE
        placed = [(window.start + start, window.start + end, tokens) for start, end, tokens in pieces]
        segments: list[Segment] | None = [batched.as_segment(*piece, result, self.tokenizer) for piece in placed]
        if self.word_timestamps:
            segments = self._with_words(window, segments, encoded)
            single = batched.ends_with_single_timestamp(result.tokens, begin)
            segments, ahead = self._after_words(window, segments, ahead, single)
        if segments is not None:
            segments = [segment for segment in segments if segment.text and segment.start != segment.end]
        return result, segments, ahead

    def _with_words(self, window: _Window, segments: Sequence[Segment], encoded: mx.array) -> list[Segment]:
        text = [token for segment in segments for token in segment.tokens if token < self.tokenizer.eot]
        how: dict[str, Any] = {"languages": [self.language], "task": self.options.task, "num_frames": [window.size]}
        (timings,) = word_times.find_alignment(encoded, [text], self.model, self.tokenizer, **how)
        where: dict[str, Any] = {"offset": window.start, "last_speech": self.last_speech}
        return word_times.place_words(segments, timings, tokenizer=self.tokenizer, **where)

    def _after_words(
        self, window: _Window, segments: list[Segment], ahead: int, single: bool
    ) -> tuple[list[Segment] | None, int]:
        """The segments that stay, and the frame where the next window begins, by the times of their words.

        single : whether the window ends with a single timestamp, after which nobody speaks
        """
        spoken = word_times.get_end(segments)
        if not single and spoken is not None and spoken > window.start:
            ahead = round(spoken * FRAMES_PER_SECOND)
            if self.threshold is not None and window.end - spoken <= self.threshold:
                ahead = window.stop
        if self.threshold is not None:
            first = word_times.next_words_segment(segments)
            gap = 0.0 if first is None else first.start - window.start
            silent = round(gap * FRAMES_PER_SECOND)
            if word_times.is_anomalous(first) and gap > self.threshold and silent > 0:
                return None, window.seek + silent
            segments, ahead = self._without_hallucinations(window, segments, ahead, self.threshold)
        spoken = word_times.get_end(segments)
        self.last_speech = self.last_speech if spoken is None else spoken
        return segments, ahead

    def _without_hallucinations(
        self, window: _Window, segments: list[Segment], ahead: int, threshold: float
    ) -> tuple[list[Segment], int]:
        """Up to the first segment that may be a hallucination and has silence, or another such segment, around it;
        what comes after is decoded again."""
        before = self.last_speech
        for k, segment in enumerate(segments):
            if word_times.is_anomalous(segment):
                following = word_times.next_words_segment(segments[k + 1 :])
                after = window.start + window.duration if following is None else following.words[0].start
                silence_before = segment.start - before > threshold or segment.start < threshold
                silence_after = after - segment.end > threshold or word_times.is_anomalous(following)
                near_start, near_end = segment.start - window.start < 2.0, window.end - segment.end < 2.0
                if (silence_before or near_start) and (silence_after or near_end):
                    recording = self.mel.frames * HOP_LENGTH / SAMPLE_RATE
                    ahead = round(max(window.start + 1, segment.start) * FRAMES_PER_SECOND)
                    return segments[:k], self.mel.frames if recording - segment.end < threshold else ahead
            if segment.words:
                before = segment.end
        return segments, ahead
