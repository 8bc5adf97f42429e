"""A whole recording, window after window, each decoded with the text before it as its prompt.

Source: openai/whisper `transcribe.py`; the same segments. A window begins where the last one's
finished segments end; so no speech is cut in two and every window knows its context, but windows
cannot be decoded side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace

import mlx.core as mx
import numpy as np

from mlx_speech import steps
from mlx_speech.errors import OptionError
from mlx_speech.features import SAMPLE_RATE, log10_mel
from mlx_speech.models.whisper import Model, ModelArgs
from mlx_speech.models.whisper_cache import Audio
from mlx_speech.sample_file import let_go
from mlx_speech.stages.whisper import decode, fallback, word_times
from mlx_speech.stages.whisper.batched import HOP_LENGTH, INPUT_STRIDE
from mlx_speech.stages.whisper.decode import DecodingOptions, DecodingResult, Job
from mlx_speech.stages.whisper.segments import (
    EDGE,
    as_segment,
    ends_with_single_timestamp,
    is_silence,
    split_at_timestamps,
)
from mlx_speech.stages.whisper.tokenizer import Tokenizer
from mlx_speech.transcript import Segment

FRAMES_PER_SECOND = SAMPLE_RATE // HOP_LENGTH
FRAMES_PER_PIECE = 6000  # that are computed at once when the loudest is looked for
HALF_FFT = 200  # samples of a frame before its middle, and behind it
MAX_PROMPT_TEMPERATURE = 0.5  # above it the text is no prompt for the next window


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
    """`transcribe_steps` at once: the segments of a recording, in seconds.

    on_progress : called with the seconds of the recording done so far, after each window
    """
    windows = transcribe_steps(
        audio,
        model,
        tokenizer,
        options,
        language=language,
        condition_on_previous_text=condition_on_previous_text,
        carry_initial_prompt=carry_initial_prompt,
        word_timestamps=word_timestamps,
        hallucination_silence_threshold=hallucination_silence_threshold,
        clip_timestamps=clip_timestamps,
    )
    return tuple(steps.run(windows, on_progress))


def transcribe_steps(
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
) -> steps.Steps[list[Segment]]:
    """The segments of a recording, as openai/whisper's `transcribe` gives them, in seconds.

    audio : (samples,)
    language : a code; None for that of the first window
    condition_on_previous_text : the prompt is the text so far, until some is decoded at a
        temperature above 0.5
    carry_initial_prompt : `options.initial_prompt` stays in the prompt of every window, before the
        text so far
    word_timestamps : words with times, from cross-attention; a window then begins where the last
        word ends
    hallucination_silence_threshold : seconds; improbable words between silences longer than this
        are dropped, and the silence is skipped; needs `word_timestamps`
    clip_timestamps : start, end, start, end, … in seconds of what is transcribed; the last end may
        be left out

    Yields the seconds of the recording done so far, after each window. As in the original, segments
    with words may overlap; unlike there, none ends after the recording does, all last, and those
    without text are left out. Raises `OptionError`.
    """
    threshold = hallucination_silence_threshold
    if threshold is not None and not (word_timestamps and threshold >= 0):
        needs = "takes seconds from 0, and needs word_timestamps=True"
        raise OptionError(f"hallucination_silence_threshold {needs}")
    mel = _LogMel(np.asarray(audio, np.float32), model.args)
    clips = _clips(clip_timestamps, mel.frames)
    if not clips:
        return []
    history = _history(options, tokenizer, model.args, carry_initial_prompt)
    if not tokenizer.multilingual:
        language = "en"
    elif language is None:
        encoded = model.encoder(mel.window(0, mel.size)[None])
        probabilities = decode.detect_language(encoded, model, tokenizer)[0]
        language = max(probabilities, key=lambda code: probabilities[code])
    decoder = _WindowDecoder(
        mel=mel,
        model=model,
        tokenizer=tokenizer,
        options=_without_prompt(options),
        language=language,
        word_timestamps=word_timestamps,
        threshold=threshold,
    )

    transcript: list[Segment] = []
    for start, end in clips:
        seek = start
        while seek < end:
            window = _Window(seek, min(mel.size, end - seek), mel.size)
            result, segments, ahead = decoder.decode(window, history.prompt())
            # the original would go on forever
            seek = ahead if ahead > seek else window.stop
            if segments is not None:
                transcript += segments
                is_sure = result.temperature <= MAX_PROMPT_TEMPERATURE
                history.add(segments, condition_on_previous_text and is_sure)
            yield min(seek, mel.frames) / FRAMES_PER_SECOND
    duration = mel.samples / SAMPLE_RATE
    return [_within(segment, duration) for segment in transcript]


def _within(segment: Segment, duration: float) -> Segment:
    """The segment and its words inside the recording. The last window is filled up with silence,
    and Whisper's timestamps may lie there; where a whole segment does, it gets the last moment of
    the recording."""
    start = max(segment.start, 0.0)
    end = min(segment.end, duration)
    if start >= duration:
        start = max(0.0, duration - word_times.SHORTEST)
    if end <= start:
        end = min(start + word_times.SHORTEST, duration)
    return replace(segment, start=start, end=end, words=word_times.tidy(segment.words, start, end))


def _clips(clip_timestamps: Sequence[float], frames: int) -> list[tuple[int, int]]:
    """(start, end) of what is transcribed, in frames. Raises `OptionError`.

    frames : of the recording
    """
    values = list(clip_timestamps)
    if not all(0 <= second < math.inf for second in values):
        raise OptionError(f"clip_timestamps are {values}: they have to be seconds, at least 0")
    points = [round(second * FRAMES_PER_SECOND) for second in values] or [0]
    if len(points) % 2:
        points.append(max(frames, points[-1]))
    clips = []
    for start, end in zip(points[::2], points[1::2], strict=True):
        if start > end:
            raise OptionError(f"clip_timestamps are {values}: an end is before its start")
        if start < min(end, frames):
            clips.append((start, min(end, frames)))
    return clips


class _LogMel:
    """The spectrogram of a recording, of which only what is asked for is in memory; the loudest
    frame of all sets the floor, as in openai/whisper, where a recording has one spectrogram.

    samples, frames : of the recording; size : of the model's window, in frames
    """

    def __init__(self, audio: np.ndarray, args: ModelArgs) -> None:
        self._audio = audio
        self._n_mels = args.n_mels
        self.samples = audio.size
        self.frames = audio.size // HOP_LENGTH
        self.size = args.n_audio_ctx * INPUT_STRIDE
        self._floor = mx.array(-math.inf)
        reach = self.frames + 3  # these hear the recording's last samples
        for start in range(0, reach, FRAMES_PER_PIECE):
            piece = self._log10(start, min(start + FRAMES_PER_PIECE, reach))
            self._floor = mx.maximum(self._floor, piece.max() - 8.0)
            mx.eval(self._floor)
            let_go(audio)

    def window(self, start: int, size: int) -> mx.array:
        """The `size` frames from `start` on, and zeros after them → (frames of a window,
        n_mels)."""
        mel = (mx.maximum(self._log10(start, start + size), self._floor) + 4.0) / 4.0
        return mx.pad(mel, [(0, self.size - size), (0, 0)])

    def _log10(self, start: int, stop: int) -> mx.array:
        """Frames `start` to `stop`: before the recording is its mirror image, behind it silence."""
        first = start * HOP_LENGTH - HALF_FFT
        end = (stop - 1) * HOP_LENGTH + HALF_FFT
        before = max(0, -first)  # samples that are missing before the start
        mirrored = self._audio[1 : before + 1][::-1]
        inside = self._audio[max(first, 0) : end]
        samples = np.zeros(end - first, np.float32)
        samples[before - mirrored.size : before] = mirrored
        samples[before : before + inside.size] = inside
        return log10_mel(mx.array(samples)[None], self._n_mels)[0]


@dataclass
class _History:
    """The text so far, as the prompt of the next window.

    initial : tokens of the initial prompt
    room : how many more tokens go into the prompt of a window, where the initial prompt is in all
        of them; else None
    tokens : of the text since the last reset
    """

    initial: list[int]
    room: int | None
    tokens: list[int] = field(default_factory=list)
    reset: bool = False

    def prompt(self) -> tuple[int, ...]:
        """The tokens before the next window."""
        if self.room is not None:
            return (*self.initial, *self.tokens[-self.room :])
        if self.reset:
            return tuple(self.tokens)
        return (*self.initial, *self.tokens)

    def add(self, segments: Sequence[Segment], is_prompt: bool) -> None:
        """is_prompt : whether the text so far, these segments included, is worth being one"""
        if is_prompt:
            self.tokens += [token for segment in segments for token in segment.tokens]
        else:
            self.tokens = []
            self.reset = True


def _without_prompt(options: DecodingOptions) -> DecodingOptions:
    """What the decoder needs of `options`: others that they have may not go without a prompt."""
    values = {item.name: getattr(options, item.name) for item in fields(DecodingOptions)}
    values["initial_prompt"] = None
    return DecodingOptions(**values)


def _history(options: DecodingOptions, tokenizer: Tokenizer, args: ModelArgs, carry_initial_prompt: bool) -> _History:
    initial: list[int] = []
    if options.initial_prompt is not None:
        initial = tokenizer.encode(" " + options.initial_prompt.strip())
    room = args.n_text_ctx // 2 - 1 - len(initial)
    return _History(initial, room if carry_initial_prompt else None)


@dataclass(frozen=True)
class _Window:
    """`size` frames of the recording from `seek` on, and silence after them, up to `frames`."""

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
class _WindowDecoder:
    """From window to window.

    threshold : seconds, of `hallucination_silence_threshold`
    last_speech : seconds; where the last word ended
    """

    mel: _LogMel
    model: Model
    tokenizer: Tokenizer
    options: DecodingOptions
    language: str
    word_timestamps: bool
    threshold: float | None
    last_speech: float = 0.0

    def decode(self, window: _Window, prompt: tuple[int, ...]) -> tuple[DecodingResult, list[Segment] | None, int]:
        """What was decoded, its segments, and the frame where the next window begins; no segments,
        not even an empty list, where the window was skipped."""
        encoded = self.model.encoder(self.mel.window(window.seek, window.size)[None])
        job = Job(encoded[0], self.language, prompt, seed=window.seek)
        ((_, result),) = fallback.decode_with_fallback([job], self.model, self.tokenizer, self.options, batch_size=1)
        if is_silence(result, self.options):
            return result, None, window.stop
        begin = self.tokenizer.timestamp_begin
        pieces, used = split_at_timestamps(result.tokens, begin, window.duration)
        ahead = window.stop
        if used is not None:
            ahead = window.seek + (result.tokens[used - 1] - begin) * INPUT_STRIDE
        segments: list[Segment] | None = []
        place = 0  # of the piece, among the tokens
        for start, end, tokens in pieces:
            logprobs = result.token_logprobs[place : place + len(tokens)]
            place += len(tokens)
            start += window.start
            end += window.start
            segments.append(as_segment(start, end, tokens, result, self.tokenizer, logprobs))
        if self.word_timestamps:
            segments = self._with_words(window, segments, encoded, result.audio)
            is_single = ends_with_single_timestamp(result.tokens, begin)
            segments, ahead = self._after_words(window, segments, ahead, is_single)
        if segments is not None:
            segments = [segment for segment in segments if segment.text and segment.start != segment.end]
        return result, segments, ahead

    def _with_words(
        self, window: _Window, segments: Sequence[Segment], encoded: mx.array, audio: Audio | None
    ) -> list[Segment]:
        """encoded (1, positions, width), audio : as of `DecodingResult`"""
        text = [token for segment in segments for token in segment.tokens if token < self.tokenizer.eot]
        (timings,) = word_times.find_alignment(
            encoded,
            [text],
            self.model,
            self.tokenizer,
            languages=[self.language],
            task=self.options.task,
            num_frames=[window.size],
            audio=[audio],
        )
        return word_times.place_words(
            segments, timings, offset=window.start, last_speech=self.last_speech, tokenizer=self.tokenizer
        )

    def _after_words(
        self, window: _Window, segments: list[Segment], ahead: int, is_single: bool
    ) -> tuple[list[Segment] | None, int]:
        """The segments that stay, and the frame where the next window begins, by their words.

        is_single : whether the window ends with a single timestamp, after which nobody speaks
        """
        last_word = word_times.get_end(segments)
        if not is_single and last_word is not None and last_word > window.start:
            ahead = round(last_word * FRAMES_PER_SECOND)
            if self.threshold is not None and window.end - last_word <= self.threshold:
                ahead = window.stop
        if self.threshold is not None:
            first = word_times.next_words_segment(segments)
            gap = 0.0 if first is None else first.start - window.start
            silent = round(gap * FRAMES_PER_SECOND)
            if word_times.is_anomalous(first) and gap > self.threshold and silent > 0:
                return None, window.seek + silent
            segments, ahead = self._without_hallucinations(window, segments, ahead, self.threshold)
        last_word = word_times.get_end(segments)
        if last_word is not None:
            self.last_speech = last_word
        return segments, ahead

    def _without_hallucinations(
        self, window: _Window, segments: list[Segment], ahead: int, threshold: float
    ) -> tuple[list[Segment], int]:
        """Up to the first segment that may be a hallucination and has silence, or another such
        segment, around it; what comes after is decoded again."""
        last_end = self.last_speech
        for k, segment in enumerate(segments):
            following = word_times.next_words_segment(segments[k + 1 :])
            if word_times.is_anomalous(segment) and self._is_between_silences(
                window, segment, last_end, following, threshold
            ):
                recording = self.mel.frames * HOP_LENGTH / SAMPLE_RATE
                if recording - segment.end < threshold:
                    return segments[:k], self.mel.frames
                return segments[:k], round(max(window.start + 1, segment.start) * FRAMES_PER_SECOND)
            if segment.words:
                last_end = segment.end
        return segments, ahead

    @staticmethod
    def _is_between_silences(
        window: _Window, segment: Segment, last_end: float, following: Segment | None, threshold: float
    ) -> bool:
        """Whether nobody speaks before a segment, nor behind it; where it is near an edge of the
        window, it is taken for granted.

        last_end : seconds; where the words before it end
        following : the segment behind it, where there is one with words
        """
        next_start = window.start + window.duration
        if following is not None:
            next_start = following.words[0].start
        silence_before = segment.start - last_end > threshold or segment.start < threshold
        silence_after = next_start - segment.end > threshold or word_times.is_anomalous(following)
        near_start = segment.start - window.start < EDGE
        near_end = window.end - segment.end < EDGE
        return (silence_before or near_start) and (silence_after or near_end)
