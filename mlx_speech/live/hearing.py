"""The work of one live session, in the engine's thread: sound → regions → chunks → words → speakers, as it comes in.

Finals are made by the stages of a recording from chunks that are complete, so they are what a recording of the same
sound gives. Partials are made between them, at every step of the sound: where they fall does not depend on the blocks
that it comes in.
"""

from __future__ import annotations

from mlx_speech import backend as backend  # isort: skip  (before MLX)

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from mlx_speech.batches import Batches
from mlx_speech.checks import chunk_size
from mlx_speech.engine import WAITING, Job, silently, untold
from mlx_speech.live.defaults import CHUNK_SIZE, MAX_PAUSE
from mlx_speech.live.early import EarlyFinal
from mlx_speech.live.events import Block, Ended, Final, Gap, Lag, LiveEvent, Partial, Silence, Speech
from mlx_speech.live.intake import Intake, Resampled
from mlx_speech.live.language import Guess
from mlx_speech.live.packed import PackedSegments
from mlx_speech.live.rounds import Rounds
from mlx_speech.live.settings import LiveSettings
from mlx_speech.live.speakers import LiveSpeakers
from mlx_speech.live.told import Told
from mlx_speech.loading import Models
from mlx_speech.options import Options
from mlx_speech.recording import MIN_SAMPLES, Recording, in_order
from mlx_speech.samples import SAMPLE_RATE
from mlx_speech.sound_buffer import SoundBuffer
from mlx_speech.stages.assign import assign_speakers
from mlx_speech.stages.chunks import speech_and_pad
from mlx_speech.stages.chunks_online import OnlineChunks
from mlx_speech.stages.sentences import split_sentences
from mlx_speech.stages.vad import WINDOW_SAMPLES, SpeechTracker, live_speech_steps
from mlx_speech.stages.vad_online import OnlineRegions
from mlx_speech.stages.vad_options import SileroOptions
from mlx_speech.stages.whisper import batched, partials
from mlx_speech.stages.whisper.agreement import Agreement
from mlx_speech.stages.whisper.options import DecodingOptions
from mlx_speech.stages.whisper.partials import Round
from mlx_speech.stages.whisper.word_times import WordTiming
from mlx_speech.timing import align_words, choose_word_times
from mlx_speech.transcript import Chunk, Diarization, Region, Segment, Transcript, Word
from mlx_speech.voices.naming import Namer

if TYPE_CHECKING:
    from mlx_speech.models.silero_vad import State

WINDOW = WINDOW_SAMPLES[SAMPLE_RATE]
WINDOWS_AT_ONCE = 900  # 29 s: others have a turn between two of them
SPARE = 16  # samples around a chunk: not all round its edges alike
MARGIN = 1.0  # seconds of sound that are held beyond what is needed
LEAST_SOUND = 0.6  # seconds of a chunk, before it is heard for the first time
CHUNKS_AHEAD = 2  # times those that Whisper reads at once: as many may wait for it
FAR_BEHIND = 2.0  # seconds of sound that wait, from which on the session lags
CAUGHT_UP = 0.5


@dataclass(frozen=True)
class Stage:
    """What a pipeline lends its sessions."""

    models: Models
    batches: Batches
    rounds: Rounds
    namer: Namer
    batch_size: Callable[[], int]
    check: Callable[[Options], Job[None]]


class Hearing:
    """One session. Its `job` is for the engine; `intake` and `told` are for any thread.

    wake : wakes the engine
    """

    def __init__(self, options: Options, settings: LiveSettings, stage: Stage, wake: Callable[[], object]) -> None:
        self.intake = Intake(wake)
        self.told = Told()
        self._settings = settings
        self._stage = stage
        self._wake = wake
        self._recording = Recording(None, options)
        self._sound = Resampled()
        self._buffer = SoundBuffer()
        self._gap = 0  # samples of silence that are still to come for sound that is missing
        self._state: State | None = None  # of the detector
        self._position = 0  # samples in which speech was looked for
        self._speaking = False
        self._speech_told = -1.0  # where the last region begins that was told of, in seconds
        self._heard = 0  # chunks that are final
        self._added = 0  # chunks that Whisper was given
        self._sounds: dict[int, SoundBuffer] = {}  # of chunks that are not final, by their place
        self._early = EarlyFinal(stage.models, stage.batches)
        self._recognised: dict[int, tuple[Segment, ...]] = {}  # chunks that wait for their words' times, or their turn
        self._segments = PackedSegments()  # of those that are final, before sentences are made of them
        self._agreement = Agreement(settings.policy)
        self._agreement_start = 0.0  # of the chunk that it is of, in seconds
        self._has_partial = False  # whether one was told of the chunk that is not complete
        self._next_round = round(settings.step * SAMPLE_RATE) if settings.partials else math.inf
        self._news_since_round = False  # whether somebody has spoken
        self._lags = False
        self._is_over = False
        self._speakers: LiveSpeakers | None = None
        self._language = Guess(stage.models, options.languages)
        self._regions: OnlineRegions
        self._chunks: OnlineChunks

    @property
    def seconds_waiting(self) -> float:
        """Of sound that was not heard yet; none once nothing will be heard any more."""
        if self._is_over:
            return 0.0
        return self.intake.seconds + max(0, self._buffer.end - self._position) / SAMPLE_RATE

    def clock(self, seconds: float) -> None:
        """Count seconds of work for the stage that is under way."""
        self._recording.clock(seconds)

    def job(self) -> Job[Transcript]:
        """Hear until the end; returns the transcript of all of it."""
        try:
            yield from self._prepare()
            while self.intake.reason is None or self.intake.has_blocks:
                yield from self._hear()
                yield from self._finish_chunks(until_sound_comes=True)
                if self.intake.reason is None and not self.intake.has_blocks:
                    if not self._is_busy:
                        self.intake.rest()
                    yield WAITING
            return (yield from self._finish())
        finally:
            self.close()
            self._early.drop()
            self._stage.batches.cancel(self._recording)

    def close(self) -> None:
        """Nothing will be heard any more. From any thread."""
        self._is_over = True
        self.intake.close()
        self.told.close()

    # --- from sound to chunks ----------------------------------------------------------------------------------------

    def _prepare(self) -> Job[None]:
        """Check what was asked for, and load what is needed."""
        options = self._recording.options
        self._recording.stage = "vad"
        yield from self._stage.check(options)
        size = chunk_size(options, self._stage.models)
        max_pause = options.detection.max_pause
        if self._settings.finals == "pause":
            if options.detection.chunk_size is None:
                size = min(size, CHUNK_SIZE)
            if max_pause is None:
                max_pause = MAX_PAUSE
        longest, pad = speech_and_pad(size)
        detector = options.detection.silero or SileroOptions()
        self._regions = OnlineRegions(SpeechTracker.of(detector, longest))
        self._max_pause = math.inf if max_pause is None else max_pause
        self._chunks = OnlineChunks(chunk_size=longest, max_pause=max_pause, pad=pad)
        self._window = batched.samples_per_window(self._stage.models.whisper().model)
        if options.wants_speakers:
            self._speakers = LiveSpeakers(
                self._stage.models.diarization(),
                options.speakers.numbers,
                waits=self._settings.every_partial,
                tell=self._tell,
                wake=self._wake,
            )
            self._recording.models["diarization"] = self._stage.models.names["diarization"]
        self._recording.language = options.language
        self._recording.models["whisper"] = self._stage.models.names["whisper"]

    @property
    def _pending(self) -> int:
        """Chunks that are complete, and not final."""
        return len(self._recording.chunks) - self._heard

    @property
    def _is_busy(self) -> bool:
        """Whether something will be told without more sound."""
        is_clustering = self._speakers is not None and self._speakers.is_clustering
        return self._heard < self._added or is_clustering

    def _hear(self) -> Job[None]:
        """All the sound that there is."""
        while True:
            self._take_in()
            before = self._position
            if self._next_round <= self._buffer.end:
                yield from self._detect(int(self._next_round))
                self._expect_final()
                if self._is_pausing():
                    self._next_round += WINDOW  # until it is known whether somebody goes on
                    continue
                if not self._is_late():
                    yield from self._round()
                self._next_round += round(self._settings.step * SAMPLE_RATE)
            else:
                yield from self._detect(self._buffer.end)
                self._expect_final()
                if self._position == before and not self.intake.has_blocks and not self._gap:
                    return

    def _wait_for_whisper(self) -> Job[None]:
        """Tell what is final, and wait where too many chunks are not: the sound of them is held."""
        yield from self._deliver()
        while self._added - self._heard > CHUNKS_AHEAD * self._stage.batch_size():
            yield WAITING
            yield from self._deliver()

    def _take_in(self) -> None:
        """What has come; of a gap no more silence at once than the detector hears at once."""
        if self._gap:
            at_once = WINDOWS_AT_ONCE * WINDOW
            if self._buffer.end - self._position < at_once:
                silence = min(self._gap, at_once)
                self._buffer.add(np.zeros(silence, np.float32))
                self._gap -= silence
            return
        block = self.intake.take()
        while block is not None and not self._gap:
            held_back, missing = self._sound.before(block)
            self._buffer.add(held_back)
            if missing:
                start = self._buffer.end / SAMPLE_RATE
                self._tell(Gap(self._at, start, start + missing / SAMPLE_RATE, reason="sound is missing"))
                self._gap = missing
                self.intake.put_back(Block(block.samples, block.sample_rate))
                return
            self._buffer.add(self._sound.add(block))
            block = self.intake.take()
        self._tell_lag()

    def _tell_lag(self) -> None:
        """Say where the session falls behind, and where it has caught up."""
        if self._settings.every_partial:
            return
        behind = self.seconds_waiting
        if not self._lags and behind > FAR_BEHIND:
            self._lags = True
            self._tell(Lag(self._buffer.end / SAMPLE_RATE, behind, None))
        elif self._lags and behind < CAUGHT_UP:
            self._lags = False
            step = self._settings.step if self._settings.partials else None
            self._tell(Lag(self._buffer.end / SAMPLE_RATE, behind, step))

    def _detect(self, until: int) -> Job[None]:
        """Look for speech in the whole windows before a sample."""
        while until - self._position >= WINDOW:
            yield from self._wait_for_whisper()
            count = min(WINDOWS_AT_ONCE, (until - self._position) // WINDOW)
            samples = self._buffer.between(self._position, self._position + count * WINDOW)
            yield from self._look_for_speech(samples)
            yield from self._recognise()
            yield from self._tell_apart(samples)
            self._let_go()

    def _look_for_speech(self, samples: np.ndarray) -> Job[None]:
        """In whole windows, (windows · 512,)."""
        probabilities = yield from self._probabilities(samples)
        for probability in probabilities:
            regions = _in_seconds(self._regions.add(probability[None]))
            ahead = self._regions.ahead()
            self._speaking = self._regions.open
            self._news_since_round = self._news_since_round or self._speaking
            self._tell_silences(regions)
            if ahead.end is not None:
                self._tell_speech(ahead.start / SAMPLE_RATE)
            next_end = None if ahead.end is None else ahead.end / SAMPLE_RATE
            for chunk in self._chunks.add(regions, ahead.start / SAMPLE_RATE, next_end):
                self._close(chunk)

    def _probabilities(self, samples: np.ndarray) -> Job[np.ndarray]:
        """Of speech in whole windows, (windows · 512,) → (windows,)."""
        steps = live_speech_steps(samples, self._stage.models.silero, self._state)
        probabilities, self._state = yield from silently(steps)
        self._position += samples.size
        self._recording.models["vad"] = self._stage.models.names["vad"]
        return probabilities

    def _tell_speech(self, start: float) -> None:
        """A region begins at `start`, in seconds; this is told once."""
        if start > self._speech_told:
            self._speech_told = start
            self._tell(Speech(self._regions.position / SAMPLE_RATE, start))

    def _tell_silences(self, regions: list[Region]) -> None:
        """These regions are over."""
        for region in regions:
            self._tell_speech(region.start)
            self._tell(Silence(self._regions.position / SAMPLE_RATE, region.start, region.end))

    def _tell_apart(self, samples: np.ndarray) -> Job[None]:
        """Look for speakers in (samples,)."""
        if self._speakers is not None:
            self._recording.stage = "diarize"
            yield from self._speakers.hear(samples)

    def _close(self, chunk: Chunk) -> None:
        """A chunk is complete."""
        start, end = _places(chunk)
        self._sounds[len(self._recording.chunks)] = self._buffer.copy(start - SPARE, end + SPARE)
        self._recording.chunks.append(chunk)
        self._has_partial = False
        self._agreement = Agreement(self._settings.policy)

    # --- from chunks to finals ---------------------------------------------------------------------------------------

    def _recognise(self, at_end: bool = False) -> Job[None]:
        """Give Whisper the chunks that it has not, as soon as their language is known."""
        recording = self._recording
        if self._added == len(recording.chunks) or not self._knows_language(at_end):
            return
        recording.stage = "transcribe"
        choose_word_times(recording, self._stage.models)
        for place in range(self._added, len(recording.chunks)):
            if self._early.take(recording.chunks[place]):
                continue
            samples = self._samples_of(place)
            self._stage.batches.add_chunk(recording, place, samples, self._stage.batch_size())
        self._added = len(recording.chunks)
        yield

    def _expect_final(self) -> None:
        """Begin to hear a chunk that is complete if the pause behind it lasts, as soon as half of that is over."""
        ahead = self._regions.ahead()
        next_start = ahead.start / SAMPLE_RATE
        next_end = None if ahead.end is None else ahead.end / SAMPLE_RATE
        chunk = self._chunks.expected(next_start, next_end)
        if self._early.chunk is not None and self._early.chunk != chunk:
            self._early.drop()  # somebody goes on
        if chunk is None or self._early.chunk is not None or not self._may_begin_early():
            return
        start, end = _places(chunk)
        if end <= self._position and next_start - chunk.regions[-1].end >= self._max_pause / 2:
            samples = self._buffer.between(start, end)
            self._early.begin(self._recording, chunk, samples, self._stage.batch_size())

    def _may_begin_early(self) -> bool:
        """Whether a pause ends a chunk, and nothing else is to be heard."""
        recording = self._recording
        is_free = self._heard == len(recording.chunks) and self.intake.seconds <= CAUGHT_UP
        knows_language = recording.language is not None or recording.options.multilingual
        return self._max_pause < math.inf and is_free and knows_language

    def _is_pausing(self) -> bool:
        """Whether a final may be begun soon, which a partial would hold up."""
        if self._settings.every_partial or self._speaking or self._early.chunk is not None:
            return False
        return self._chunks.start is not None and self._may_begin_early()

    def _samples_of(self, place: int) -> np.ndarray:
        """(samples,) of a chunk that is not final, as of a recording."""
        sound = self._sounds[place]
        start, end = _places(self._recording.chunks[place])
        return sound.between(start, min(end, sound.end))

    def _knows_language(self, at_end: bool) -> bool:
        """Whether the language is known, or need not be; looks at the chunks that wait, which are all."""
        recording = self._recording
        if recording.options.multilingual or recording.language is not None:
            return True
        recording.stage = "language"
        chunks = recording.chunks
        self._language.hear(chunks, [self._samples_of(place) for place in range(len(chunks))])
        if not at_end and not self._language.is_certain(self._position / SAMPLE_RATE - chunks[0].end):
            return False
        recording.language = self._language.code
        recording.language_probability = self._language.probability
        recording.encoded = {chunks[place]: encoded for place, encoded in self._language.encoded.items()}
        return True

    def _finish_chunks(self, until_sound_comes: bool = False) -> Job[None]:
        """Wait for the finals of all chunks that are complete, and were given to Whisper."""
        while True:
            yield from self._deliver()
            if self._speakers is not None:
                yield from self._speakers.advance()
            if self._heard == self._added:
                return
            if until_sound_comes and (self.intake.seconds or self.intake.reason is not None):
                return
            yield WAITING

    def _deliver(self) -> Job[None]:
        """Make finals of what Whisper has given back, in order."""
        recording = self._recording
        self._early.give(recording)
        if recording.error is not None:
            raise recording.error
        while recording.news:
            heard = recording.news.popleft()
            self._recognised[heard.place] = heard.segments
        recording.segments = ()  # they are held here
        while self._heard in self._recognised:
            chunk = recording.chunks[self._heard]
            segments = yield from self._timed(in_order(self._recognised.pop(self._heard)))
            del self._sounds[self._heard]
            self._segments.add(segments)
            self._heard += 1
            sentences = self._sentences(segments)
            if self._speakers is not None:
                sentences = self._speakers.assigned(sentences)
            self._tell(Final(self._at, self._heard - 1, chunk.start, chunk.end, sentences))

    def _timed(self, segments: tuple[Segment, ...]) -> Job[tuple[Segment, ...]]:
        """The segments of the next chunk with the times of their words."""
        recording = self._recording
        recording.stage = "align"
        options = recording.options
        if options.word_method is None:
            return tuple(replace(segment, words=()) for segment in segments)
        if options.word_method == "ctc" and segments:
            sound = self._sounds[self._heard]
            samples = sound.between(sound.start, sound.end)
            steps = align_words(recording, segments, samples, self._stage.models, audio_start=sound.start)
            return (yield from untold(steps))
        return segments

    def _sentences(self, segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
        options = self._recording.options
        if options.word_method is None or options.words.segment_resolution != "sentence":
            return segments
        return split_sentences(segments, self._recording.language or "en")

    def _let_go(self) -> None:
        """Of the sound that nobody needs any more."""
        # a region that is over may not have been given yet: where the next one begins is known of it, too
        start = self._chunks.start_with(self._regions.ahead().start / SAMPLE_RATE)
        self._buffer.drop_before(max(0, int((start - MARGIN) * SAMPLE_RATE)))

    # --- partials ----------------------------------------------------------------------------------------------------

    def _is_late(self) -> bool:
        """Whether newer sound makes a partial of the present one worthless, or the end of it does."""
        if self._settings.every_partial:
            return False
        if self.intake.reason is not None:
            return True
        behind = self._buffer.end / SAMPLE_RATE + self.intake.seconds - self._next_round / SAMPLE_RATE
        return behind >= self._settings.step

    def _start_of_chunk(self) -> float | None:
        """Where the chunk begins that is not complete, in seconds; None while nobody speaks."""
        ahead = self._regions.ahead()
        if not self._regions.open and ahead.end is None and self._chunks.start is None:
            return None
        return self._chunks.start_with(ahead.start / SAMPLE_RATE)

    def _round(self) -> Job[None]:
        """Hear the chunk that is not complete as far as it goes."""
        if self._early.chunk is not None and not self._settings.every_partial:
            return  # its final is under way
        start = self._start_of_chunk()
        if start != self._agreement_start:
            self._forget_partial()
        if start is None or not self._news_since_round:
            return
        yield from self._finish_chunks()  # so that no partial of a chunk comes before the final of the one before
        if self._heard < self._added or self._pending:
            return
        audio = self._buffer.between(round(start * SAMPLE_RATE), self._position)
        if not LEAST_SOUND * SAMPLE_RATE <= audio.size <= self._window:
            return
        self._news_since_round = self._speaking
        self._recording.stage = "transcribe"
        decoding = partials.partial_options(self._recording.options.decoding)
        one = Round(audio, self._recording.language, self._agreement.tokens)
        words = yield from self._heard_in_round(one, decoding)
        if words is not None:
            self._agreement_start = start
            self._agreement.update(words, audio.size / SAMPLE_RATE)
            self._tell_partial(start)

    def _heard_in_round(self, one: Round, decoding: DecodingOptions) -> Job[list[WordTiming] | None]:
        """What a round says; None where it says nothing, or fails: partials are only shown, and the finals go on."""
        asked = self._stage.rounds.ask(one, decoding)
        try:
            while not asked.done:
                yield WAITING
        finally:
            self._stage.rounds.forget(asked)
        if asked.error is not None:
            warnings.warn(f"there are no partials any more: {asked.error}", stacklevel=2)
            self._next_round = math.inf
        return asked.words

    def _forget_partial(self) -> None:
        """What was told of speech that turned out too short to count."""
        self._agreement = Agreement(self._settings.policy)
        if self._has_partial:
            self._has_partial = False
            at = self._position / SAMPLE_RATE
            self._tell(Partial(at, chunk=len(self._recording.chunks), words=(), firm=0, text="", firm_text=""))

    def _tell_partial(self, start: float) -> None:
        """start : of the chunk, in seconds"""
        self._has_partial = True
        agreement = self._agreement
        decode = self._stage.models.whisper().tokenizer.decode
        tokens = [token for word in agreement.loose for token in word.tokens]
        words = tuple(_word(timing, start) for timing in [*agreement.firm, *agreement.loose])
        self._tell(
            Partial(
                self._position / SAMPLE_RATE,
                chunk=len(self._recording.chunks),
                words=words,
                firm=len(agreement.firm),
                text=decode([*agreement.tokens, *tokens]).strip(),
                firm_text=decode(agreement.tokens).strip(),
            )
        )

    # --- the end -----------------------------------------------------------------------------------------------------

    def _finish(self) -> Job[Transcript]:
        """What is left, and all together."""
        self._buffer.add(self._sound.end())
        total = self._buffer.end
        self._next_round = math.inf
        yield from self._hear()
        rest = self._buffer.between(self._position, total)  # a part of a window
        probabilities = np.zeros(0, np.float32)
        if rest.size:
            probabilities = yield from self._probabilities(np.pad(rest, (0, WINDOW - rest.size)))
            yield from self._tell_apart(rest)
        if total >= MIN_SAMPLES:
            regions = _in_seconds(self._regions.finish(total, probabilities))
            self._tell_silences(regions)
            for chunk in self._chunks.finish(regions, total / SAMPLE_RATE):
                self._close(chunk)
        self._forget_partial()
        yield from self._recognise(at_end=True)
        yield from self._finish_chunks()
        transcript = yield from self._transcript(total)
        self._tell(Ended(total / SAMPLE_RATE, transcript, self.intake.reason or ""))
        return transcript

    def _transcript(self, total: int) -> Job[Transcript]:
        """total : samples of sound"""
        recording = self._recording
        recording.segments = self._sentences(in_order(self._segments.all()))
        if self._speakers is not None:
            recording.stage = "diarize"
            recording.diarization = Diarization()
            if total >= MIN_SAMPLES:
                diarization = yield from self._speakers.finish()
                recording.diarization = self._stage.namer.name(diarization)
            recording.segments = assign_speakers(recording.segments, recording.diarization)
        return replace(recording.transcript(), duration=total / SAMPLE_RATE)

    @property
    def _at(self) -> float:
        """Seconds of sound that have come."""
        return self._buffer.end / SAMPLE_RATE

    def _tell(self, event: LiveEvent) -> None:
        self.told.put(event)


def _places(chunk: Chunk) -> tuple[int, int]:
    """Its first sample, and the one behind its last, as of a recording."""
    return round(chunk.start * SAMPLE_RATE), round(chunk.end * SAMPLE_RATE)


def _in_seconds(regions: list[tuple[int, int]]) -> list[Region]:
    return [Region(start / SAMPLE_RATE, end / SAMPLE_RATE) for start, end in regions]


def _word(timing: WordTiming, start: float) -> Word:
    """A word of a hypothesis. start : of its chunk, in seconds"""
    return Word(start + timing.start, start + timing.end, timing.word.strip(), score=timing.probability)
