"""Recording → who said what, when: voice activity detection, Whisper in batches, word times, speakers.

Read from `Pipeline._transcribe` down, this is the whole system. Every recording goes through its five steps on its own,
a turn after the other in the engine's thread; the chunks of all of them share Whisper's running batches.
"""

from __future__ import annotations

import os
import queue
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from mlx_speech import backend as backend  # before all that imports MLX
from mlx_speech.audio import MAX_DURATION
from mlx_speech.batches import Batches
from mlx_speech.checks import check_whisper, chunk_size
from mlx_speech.detection import chunks_of, compare_tracks, detect_language, regions_steps
from mlx_speech.engine import ENDED, WAITING, Engine, Job, elsewhere, result_of, silently, told
from mlx_speech.environment import Environment
from mlx_speech.errors import AudioError, OptionError, PipelineClosed
from mlx_speech.forks import check_process
from mlx_speech.live.events import LiveEvent
from mlx_speech.live.hearing import Stage
from mlx_speech.live.rounds import Rounds
from mlx_speech.live.session import AsyncBlocks, Blocks, LiveSession, heard, heard_async, prepared
from mlx_speech.live.settings import LiveSettings
from mlx_speech.loading import Models
from mlx_speech.options import (
    AudioTrack,
    Dtype,
    Interpolation,
    Options,
    SpeakerKeywords,
    TranscribeOptions,
    check_positive,
    checked_batch_size,
)
from mlx_speech.package_data import DEMO
from mlx_speech.recording import MIN_SAMPLES, Recording, in_order, with_rate, with_speaker, without_mlx
from mlx_speech.request import Event, Heard, Progress, ProgressCallback, Request, naming
from mlx_speech.samples import SAMPLE_RATE
from mlx_speech.sequential import recognise_in_order
from mlx_speech.stages.assign import assign_speakers
from mlx_speech.stages.diarize import diarize_steps
from mlx_speech.stages.sentences import split_sentences
from mlx_speech.stages.vad import live_speech_steps
from mlx_speech.stages.whisper import batched
from mlx_speech.stages.whisper.agreement import Policy
from mlx_speech.stages.whisper.options import DecodingOptions
from mlx_speech.stages.whisper.partials import Round, partial_options
from mlx_speech.stages.whisper.word_times import WordTiming
from mlx_speech.stages.whisper.workload import Workload
from mlx_speech.steps import run
from mlx_speech.timing import align_words, choose_word_times
from mlx_speech.transcript import Diarization, Transcript
from mlx_speech.voices.naming import Namer, Speakers

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from mlx_speech.models.silero_vad import State

BATCHES_AHEAD = 2  # batches of chunks that are kept ready before more recordings are opened

T = TypeVar("T")
Results = Iterator[tuple[Any, "Transcript | Exception"]]


class Pipeline:
    """VAD → Whisper → word times → speakers. Models load when they are first used.

    model : Whisper by name ("large-v3-turbo", "small-q4" …), hub repository, folder, file, or loaded; by default
        large-v3-turbo in float16 on a GPU, small in float32 on a CPU
    align_model : wav2vec2 for word times; by default the one of the language
    vad_model : by default Silero's, which comes with the package, or, for vad_method="pyannote", the diarization's
    diarize_model : a pyannote pipeline; "auto" is community-1 where it can be had, else the one of the package
    speakers : known voices, whose names speakers get: a `voices.SpeakerStore` or its path, or True for the user's own
    dtype : of Whisper: "float16", "bfloat16", "float32"; q_bits : quantize it to so many bits
    device : "cpu" or "gpu"; by default MLX's default device. That is one for the whole process: with another device it
        is set while this pipeline works
    batch_size : chunks that Whisper reads at once; "auto" fits model and memory
    low_memory : hold one stage's models at a time, and transcribe one recording at a time
    memory_limit : gigabytes that MLX should stay within while this pipeline works
    max_duration : longest recording that is read, in seconds

    One thread of its own does all of MLX's work. Any thread may call the pipeline, as many at once as there are: their
    recordings take turns, chunks of several in one batch. `close`, or the end of a `with` block, ends that thread. In a
    child forked after models were loaded, its use raises `ForkedProcess`.
    """

    def __init__(
        self,
        model: Any = None,
        *,
        align_model: Any = None,
        vad_model: Any = None,
        diarize_model: Any = None,
        speakers: Speakers = None,
        dtype: Dtype | None = None,
        q_bits: int | None = None,
        device: Literal["cpu", "gpu"] | None = None,
        batch_size: int | Literal["auto"] = "auto",
        low_memory: bool = False,
        memory_limit: float | None = None,
        max_duration: float = MAX_DURATION,
    ) -> None:
        check_positive("memory_limit", memory_limit, "gigabytes")
        check_positive("max_duration", max_duration, "seconds")
        environment = Environment(device, memory_limit)
        if isinstance(q_bits, Integral):
            q_bits = int(q_bits)  # NumPy's cannot be written into a configuration
        with environment.device():
            self.models = Models(model, align_model, vad_model, diarize_model, dtype, q_bits)
        self.batch_size: int | str = checked_batch_size(batch_size)
        self._low_memory = low_memory
        self._max_duration = max_duration
        self._memory_limit = environment.memory_limit
        self._namer = Namer(speakers)
        self._defaults: dict[str, Any] = {}  # options of every call
        self._batches = Batches(self.models)
        self._rounds = Rounds(self.models, self._batches.workload)
        shared = partial(self._rounds.share, self._batches.advance)
        self._engine = Engine(shared, environment.entered, at_once=1 if low_memory else None)
        weakref.finalize(self, self._engine.close, 0)

    @classmethod
    def demo(cls, **keywords: Any) -> Pipeline:
        """With the small models that come with the package, for a first look and for tests: they know synthetic voices,
        English, and some 300 words. keywords : as of the class; models that are given stand for those of the package
        """
        models = {"model": "whisper", "align_model": "wav2vec2", "diarize_model": "diarization"}
        for keyword, folder in models.items():
            keywords.setdefault(keyword, DEMO / folder)
        pipeline = cls(**keywords)
        pipeline._defaults["language"] = "en"
        return pipeline

    # --- what can be asked ------------------------------------------------------------------------------------------

    def __call__(
        self,
        audio: Any,
        *,
        sample_rate: int | None = None,
        on_progress: ProgressCallback | None = None,
        **options: Unpack[TranscribeOptions],
    ) -> Transcript:
        """Transcribe one recording.

        audio : a path, "-" for standard input, a binary file, or samples (samples,) or (channels, samples)
        sample_rate : of samples, in Hz; 16000 by default
        on_progress : called with (stage, seconds done, seconds in all, audio), in the caller's thread
        options : `TranscribeOptions`; their meanings stand with the fields of `Options`

        Raises `AudioError`, `OptionError`, `SourceError`, `OutOfMemory`, `PipelineClosed`, `ForkedProcess`.
        """
        report = None if on_progress is None else naming(audio, on_progress)
        results = self.transcribe([with_rate(audio, sample_rate)], on_progress=report, **options)
        ((_, result),) = results
        if isinstance(result, Exception):
            raise result
        return result

    def transcribe(
        self,
        recordings: Iterable[Any],
        *,
        on_progress: ProgressCallback | None = None,
        **options: Unpack[TranscribeOptions],
    ) -> Results:
        """Transcribe many recordings; each is given, with its transcript, as soon as it is done.

        recordings : what `__call__` takes as audio, or (samples, sample_rate); taken as they are needed
        A recording that fails is given with its exception, and the others go on. What `on_progress` raises ends all of
        this call. The iterator may be advanced from any thread, by one at a time.
        """
        if isinstance(recordings, (str, os.PathLike)):
            raise OptionError(f"recordings is {os.fspath(recordings)!r}: give a list, or call the pipeline")
        return self._transcribe_all(recordings, self._options(options), on_progress)

    def submit(
        self,
        audio: Any,
        *,
        sample_rate: int | None = None,
        known: Iterable[Heard] = (),
        **options: Unpack[TranscribeOptions],
    ) -> Request[Transcript]:
        """Hand over a recording, and go on. The `Request` has `result()`, `events()`, `cancel()`, and can be awaited.

        audio, sample_rate, options : as of `__call__`
        known : chunks that an earlier request told of, for the same with the same options: they are not heard again
        Raises `OptionError`, `PipelineClosed`, `ForkedProcess`; what else `__call__` raises, the request does.
        """
        recording = Recording(without_mlx(with_rate(audio, sample_rate)), self._options(options))
        recording.known = {heard.chunk: heard for heard in known}
        return self._engine.submit(self._checked_and_transcribed(recording), recording.clock)

    def submit_speech(self, samples: np.ndarray, state: State | None = None) -> Request[tuple[np.ndarray, State]]:
        """Hand over the next windows of live sound, and go on: the request gives the probability of speech in each, and
        the state for those behind them. samples : as of `stages.vad.live_speech_steps`. Raises as `submit`."""
        return self._engine.submit(silently(live_speech_steps(samples, self.models.silero, state)))

    def submit_partial(
        self, samples: np.ndarray, firm: tuple[int, ...] = (), **options: Unpack[TranscribeOptions]
    ) -> Request[list[WordTiming] | None]:
        """Hand over a stretch of speech that still grows, and go on: the request gives the words behind the firm ones,
        None where it says nothing. `Agreement` makes firm words of them.

        samples : (samples,) at 16 kHz; firm : tokens that the text begins with
        Raises as `submit`; the request raises `AudioError` for more samples than the model hears at once.
        """
        checked = self._options(options)
        one = Round(samples, checked.language, firm)
        return self._engine.submit(self._hear_partial(one, partial_options(checked.decoding)))

    def session(
        self,
        *,
        step: float = 0.5,
        partials: bool = True,
        finals: Literal["pause", "window"] = "pause",
        every_partial: bool = False,
        policy: Policy | None = None,
        **options: Unpack[TranscribeOptions],
    ) -> LiveSession:
        """Begin to hear sound that is still coming in: `feed` the session, listen to its `events`, `end` it.

        step, partials, finals, every_partial : see `LiveSettings`; policy : what makes words firm
        options : as of `__call__`, but for those that need all of a recording
        Raises `OptionError`, `PipelineClosed`, `ForkedProcess`; what else `__call__` raises, the session does.
        """
        settings = LiveSettings(step, partials, finals, every_partial, policy or Policy())
        return self._prepared(settings, options)()

    def live(self, blocks: Blocks, *, every_partial: bool = True, **keywords: Any) -> Iterator[LiveEvent]:
        """Hear sound that is still coming in: the events of a session, those of a block before the next one is taken.

        blocks : (samples,) or (channels, samples) at 16 kHz each, or `Block`s; they may never end
        every_partial, keywords : as of `session`
        Raises as `session` and `__call__`.
        """
        settings, options = LiveSettings.taken(every_partial=every_partial, **keywords)
        return heard(self._prepared(settings, options), blocks)

    def live_async(self, blocks: AsyncBlocks, **keywords: Any) -> AsyncIterator[LiveEvent]:
        """The same for `async for`; blocks, which may come asynchronously too, are taken while others are heard."""
        settings, options = LiveSettings.taken(**keywords)
        return heard_async(self._prepared(settings, options), blocks)

    def diarize(
        self,
        audio: Any,
        *,
        sample_rate: int | None = None,
        on_progress: ProgressCallback | None = None,
        audio_track: AudioTrack = None,
        **numbers: Unpack[SpeakerKeywords],
    ) -> Diarization:
        """Only the speakers of one recording.

        audio_track : as of `Options`; numbers : num_speakers, min_speakers, max_speakers
        Raises as `__call__`.
        """
        request = self.submit_diarization(audio, sample_rate=sample_rate, audio_track=audio_track, **numbers)
        return self._result(request, audio, on_progress)

    def submit_diarization(
        self,
        audio: Any,
        *,
        sample_rate: int | None = None,
        audio_track: AudioTrack = None,
        **numbers: Unpack[SpeakerKeywords],
    ) -> Request[Diarization]:
        """Hand over a recording whose speakers are wanted, as of `diarize`, and go on, as with `submit`."""
        unknown = numbers.keys() - {"num_speakers", "min_speakers", "max_speakers"}
        if unknown:
            raise OptionError(f"{', '.join(sorted(unknown))}: speakers alone have no such option")
        options = Options.of(**numbers, audio_track=audio_track, diarize=True)
        recording = Recording(without_mlx(with_rate(audio, sample_rate)), options)
        return self._engine.submit(self._diarize(recording), recording.clock)

    def align(
        self,
        transcript: Transcript,
        audio: Any,
        *,
        sample_rate: int | None = None,
        language: str | None = None,
        on_progress: ProgressCallback | None = None,
        interpolate_method: Interpolation = "nearest",
        return_char_alignments: bool = False,
        diarize: bool | None = None,
        **numbers: Unpack[SpeakerKeywords],
    ) -> Transcript:
        """A transcript with the times of its words, found anew by forced alignment with its language's wav2vec2.

        transcript : whose segments say roughly when they are said, as read from a file
        language : of segments that do not say theirs; by default the transcript's
        diarize, numbers : as of `Options`: find the speakers, too; without it everybody keeps what was theirs
        Words of a language without an alignment model stay as they are. Raises as `__call__`.
        """
        options = Options.of(
            language=language or transcript.language,
            interpolate_method=interpolate_method,
            return_char_alignments=return_char_alignments,
            diarize=diarize,
            **numbers,
        )
        recording = Recording(without_mlx(with_rate(audio, sample_rate)), options, segments=transcript.segments)
        recording.language = options.language
        recording.language_probability = transcript.language_probability
        recording.diarization = transcript.diarization
        recording.silences = list(transcript.silences)
        recording.models = dict(transcript.models)
        request = self._engine.submit(self._align_transcript(recording), recording.clock)
        return self._result(request, audio, on_progress)

    @property
    def stalled_for(self) -> float:
        """Seconds that a step of its work has been under way; many where something hangs, 0 where idle."""
        return self._engine.stalled_for

    @property
    def workload(self) -> Workload:
        """What Whisper's decoder does and has done, in counts."""
        return self._batches.workload

    def close(self) -> None:
        """End the pipeline's thread, and let go of its models; what is under way is cancelled."""
        self._engine.close()
        self.models.release("whisper", "vad", "align", "diarization")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # --- the five steps, in the engine's thread ----------------------------------------------------------------------

    def _transcribe(self, recording: Recording) -> Job[Transcript]:
        """Sound → chunks of speech → text → words → speakers."""
        try:
            yield from self._open(recording)
            yield from self._find_chunks(recording)
            yield from self._recognise(recording)
            yield from self._time_words(recording)
            yield from self._find_speakers(recording)
            return recording.transcript()
        finally:
            self._batches.cancel(recording)
            self._release("whisper", "vad", "align", "diarization")

    def _open(self, recording: Recording) -> Job[None]:
        """Read the sound, in a thread of its own."""
        try:
            yield from result_of(elsewhere(lambda: recording.open(self._max_duration), self._engine.wake))
        finally:
            recording.wanted = False  # by the reader, also where the request was cancelled
        if len(recording.tracks) > 1:
            recording.stage = "vad"
            yield from compare_tracks(recording, self.models)
        recording.tracks = []

    def _find_chunks(self, recording: Recording) -> Job[None]:
        """Find the speech, cut it into chunks, and tell its language."""
        options = recording.options
        recording.stage = "vad"
        if not options.longform.sequential and recording.audio.size >= MIN_SAMPLES:
            recording.chunks = yield from chunks_of(recording, self.models)
        recording.stage = "language"
        recording.language = options.language
        if options.language is None and not options.multilingual:
            detect_language(recording, self.models)
            yield
        choose_word_times(recording, self.models, self._low_memory)
        self._release("vad", "diarization")
        recording.opened = True

    def _recognise(self, recording: Recording) -> Job[None]:
        """Chunks → segments of text, or the whole recording window after window."""
        recording.stage = "transcribe"
        if recording.options.longform.sequential:
            if recording.audio.size >= MIN_SAMPLES:
                self._uses("whisper", recording)
                yield from recognise_in_order(recording, self.models)
        elif recording.chunks:
            self._uses("whisper", recording)
            self._batches.add(recording, self._chunks_at_once())
            yield Progress("transcribe", 0.0, recording.seconds_of_chunks)
            while recording.pending or recording.news:
                if recording.news or recording.error is not None:
                    yield from self._tell(recording)
                else:
                    yield WAITING
        self._release("whisper")
        recording.segments = in_order(recording.segments)

    def _time_words(self, recording: Recording) -> Job[None]:
        """Segments → their words with times, and sentences."""
        options = recording.options
        recording.stage = "align"
        if options.word_method is None:
            recording.segments = tuple(replace(segment, words=()) for segment in recording.segments)
        if options.word_method == "ctc" and recording.segments:
            recording.segments = yield from align_words(recording, recording.segments, recording.audio, self.models)
            self._release("align")
        if options.word_method is not None and options.words.segment_resolution == "sentence":
            recording.segments = split_sentences(recording.segments, recording.language or "en")

    def _find_speakers(self, recording: Recording) -> Job[None]:
        """Who speaks when, and who says each word."""
        recording.stage = "diarize"
        if recording.options.wants_speakers:
            recording.diarization = yield from self._speakers(recording)
            recording.segments = assign_speakers(recording.segments, recording.diarization)
            self._release("diarization")

    # --- parts of the steps ------------------------------------------------------------------------------------------

    def _speakers(self, recording: Recording) -> Job[Diarization]:
        if recording.audio.size < MIN_SAMPLES:
            return Diarization()
        if recording.turns_of_tracks is not None:
            return self._namer.name(recording.turns_of_tracks)
        model = self.models.diarization()
        self._uses("diarization", recording)
        steps = diarize_steps(recording.audio, model, **recording.options.speakers.numbers)
        diarization = yield from told("diarize", recording.duration, steps)
        return self._namer.name(diarization)

    def _tell(self, recording: Recording) -> Job[None]:
        """What Whisper has given back since the last turn; raises what went wrong in the batch."""
        if recording.error is not None:
            raise recording.error
        while recording.news:
            yield recording.news.popleft()
            yield Progress("transcribe", recording.seconds_recognised, recording.seconds_of_chunks)

    def _uses(self, stage: str, recording: Recording) -> None:
        """Note the model that a stage of a recording computes with."""
        if stage == "whisper":
            self.models.whisper()
        recording.models[stage] = self.models.names[stage]

    # --- other jobs --------------------------------------------------------------------------------------------------

    def _checked_and_transcribed(self, recording: Recording) -> Job[Transcript]:
        yield from self._check(recording.options)
        return (yield from self._transcribe(recording))

    def _prepared(self, settings: LiveSettings, options: Any) -> Callable[[], LiveSession]:
        """What begins a session. options : `TranscribeOptions`. Raises `OptionError`"""
        if self._low_memory:
            raise OptionError("low_memory holds one stage's models, and a live session needs all: leave it out")
        stage = Stage(self.models, self._batches, self._rounds, self._namer, self._chunks_at_once, self._check)
        return prepared(self._options(options), settings, stage, self._engine)

    def _hear_partial(self, one: Round, options: DecodingOptions) -> Job[list[WordTiming] | None]:
        """Checked here, since rounds of others share its batch."""
        window = batched.samples_per_window(self.models.whisper().model)
        if one.audio.ndim != 1:
            raise AudioError(f"samples of shape {one.audio.shape}: give one channel, (samples,)")
        if one.audio.size > window:
            seconds = one.audio.size / SAMPLE_RATE
            raise AudioError(f"{seconds:.1f} s of sound: give at most {window / SAMPLE_RATE:g} s, or a live session")
        return (yield from self._rounds.heard(one, options))

    def _diarize(self, recording: Recording) -> Job[Diarization]:
        try:
            self.models.diarization()
            yield from self._open(recording)
            recording.stage = "diarize"
            return (yield from self._speakers(recording))
        finally:
            self._release("vad", "diarization")

    def _align_transcript(self, recording: Recording) -> Job[Transcript]:
        try:
            yield from self._open(recording)
            recording.stage = "align"
            if recording.segments:
                recording.segments = yield from align_words(recording, recording.segments, recording.audio, self.models)
            self._release("align")
            recording.segments = tuple(with_speaker(segment) for segment in recording.segments)
            yield from self._find_speakers(recording)
            return recording.transcript()
        finally:
            self._release("vad", "align", "diarization")

    def _check(self, options: Options) -> Job[None]:
        """What can fail for want of a model, or by its options, fails here, before anything is transcribed."""
        if options.wants_speakers:
            self._namer.check(self.models.diarization())
            self._release("diarization")
            yield
        if options.word_method == "ctc" and self.models.align_is_given:
            self.models.aligner(options.language or "en")
            self._release("align")
            yield
        check_whisper(options, self.models)
        size = chunk_size(options, self.models)
        if options.detection.vad and not options.longform.sequential:  # the detector checks its options itself
            run(regions_steps(np.zeros(0, np.float32), options, self.models, size))
        if options.word_method == "ctc" and options.language is not None and not self._low_memory:
            self.models.aligner(options.language)

    # --- in the caller's thread --------------------------------------------------------------------------------------

    def _options(self, given: TranscribeOptions) -> Options:
        keywords = {**self._defaults, **given}
        if given.get("multilingual") and "language" not in given:  # the language is then a chunk's
            keywords.pop("language", None)
        return Options.of(**keywords)

    def _transcribe_all(
        self, recordings: Iterable[Any], options: Options, on_progress: ProgressCallback | None
    ) -> Results:
        self._result(self._engine.submit(self._check(options)), None, None)
        news: queue.SimpleQueue[tuple[Request[Transcript], Event | None]] = queue.SimpleQueue()
        under_way: dict[Request[Transcript], tuple[Any, Recording]] = {}
        sources = iter(recordings)
        exhausted = False
        try:
            while True:
                check_process()
                while not exhausted and self._may_open([recording for _, recording in under_way.values()]):
                    try:
                        source = next(sources)
                    except StopIteration:
                        exhausted = True
                        break
                    recording = Recording(without_mlx(source), options)
                    job = self._transcribe(recording)
                    request = self._engine.submit(job, recording.clock, lambda *pair: news.put(pair))
                    under_way[request] = (source, recording)
                if not under_way:
                    return
                request, event = news.get()
                source, recording = under_way[request]
                if isinstance(event, Progress) and on_progress is not None:
                    on_progress(event.stage, event.done, event.total, source)
                if event is None:
                    del under_way[request]
                    if request.cancelled():
                        raise PipelineClosed(ENDED)
                    error = request.exception()
                    if error is not None and not isinstance(error, Exception):
                        raise error
                    yield source, error or request.result()
        finally:
            for request in under_way:
                request.cancel()

    def _may_open(self, under_way: list[Recording]) -> bool:
        """Whether there is room for another recording: the batches should not run dry, nor many be held in memory."""
        if not under_way:
            return True
        if self._engine.closed:  # they are cancelled, and no model is loaded for others
            return False
        if self._low_memory or under_way[0].options.longform.sequential:
            return False
        if not all(recording.opened for recording in under_way):
            return False
        return sum(recording.pending for recording in under_way) < BATCHES_AHEAD * self._chunks_at_once()

    def _result(self, request: Request[T], audio: Any, on_progress: ProgressCallback | None) -> T:
        try:
            for event in request.events():
                if isinstance(event, Progress) and on_progress is not None:
                    on_progress(event.stage, event.done, event.total, audio)
            if request.cancelled():
                raise PipelineClosed(ENDED)
            return request.result()
        finally:
            request.cancel()

    # --- the machine -------------------------------------------------------------------------------------------------

    def _chunks_at_once(self) -> int:
        if isinstance(self.batch_size, int):
            return self.batch_size
        return self.models.batch_size(self._memory_limit)

    def _release(self, *stages: str) -> None:
        """Let go of the models of these stages, with little memory."""
        if self._low_memory:
            self.models.release(*stages)
