"""Recording → who said what, when: voice activity detection, Whisper in batches, word times, speakers.

Read from `Pipeline._steps` down, this is the whole system. The chunks of all recordings go through Whisper together;
what follows runs recording by recording, as soon as its last chunk is there.
"""

from __future__ import annotations

import math
import os
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from numbers import Integral, Real
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_speech.audio import MAX_DURATION, audio_from_array, load_audio, load_tracks, louder, mix
from mlx_speech.blas import check_process
from mlx_speech.errors import AudioError, MLXSpeechError, OptionError, OutOfMemory, brief
from mlx_speech.loading import Models, Recogniser
from mlx_speech.options import Options
from mlx_speech.package_data import DEMO
from mlx_speech.samples import SAMPLE_RATE
from mlx_speech.stages.align import align
from mlx_speech.stages.assign import assign_speakers
from mlx_speech.stages.cluster import speaker_bounds
from mlx_speech.stages.diarize import diarize
from mlx_speech.stages.sentences import split_sentences
from mlx_speech.stages.tracks import speakers_apart, speaking, turns_of_tracks
from mlx_speech.stages.vad import (
    cut_chunks,
    detect_speech,
    detect_speech_pyannet,
    fixed_chunks,
    warn_if_silent,
    widened,
)
from mlx_speech.stages.whisper import batched, decode
from mlx_speech.stages.whisper.longform import transcribe_sequential
from mlx_speech.transcript import Chunk, Diarization, Region, Segment, Transcript, space_between

ALIGN_BATCH = 8
CHUNK_PAD = 0.3  # seconds that are heard before and behind the speech of a chunk
MIN_SAMPLES = 1_600  # 0.1 s: nothing shorter is listened to

# stage, seconds of audio done, seconds in all, the recording
Progress = Callable[[str, float, float, Any], None]
Results = Iterator[tuple[Any, Transcript | Exception]]


class Pipeline:
    """VAD → Whisper → word times → speakers, on MLX's default device. Models load when they are first used.

    model : Whisper by name ("large-v3-turbo", "small-q4" …), hub repository, folder, file, or loaded; by default
        large-v3-turbo in float16 on a GPU, small in float32 on a CPU
    align_model : wav2vec2 for word times; by default the one of the language
    vad_model : by default Silero's, which comes with the package, or, for vad_method="pyannote", the diarization's
    diarize_model : a pyannote pipeline; by default pyannote/speaker-diarization-community-1
    dtype : of Whisper: "float16", "bfloat16", "float32"; q_bits : quantize it to so many bits
    batch_size : chunks that Whisper reads at once; "auto" fits model and memory
    low_memory : hold one stage's models at a time, and read one recording at a time
    memory_limit : gigabytes that MLX should stay within
    max_duration : longest recording that is read, in seconds

    One pipeline may be used from several threads; they take turns. In a child forked after models were loaded, its use
    raises `ForkedProcess`. (A thread that ends just before the process does should call `mx.clear_streams()` last: MLX
    0.32 may abort the process at exit otherwise.)
    """

    def __init__(
        self,
        model: Any = None,
        *,
        align_model: Any = None,
        vad_model: Any = None,
        diarize_model: Any = None,
        dtype: str | None = None,
        q_bits: int | None = None,
        batch_size: int | str = "auto",
        low_memory: bool = False,
        memory_limit: float | None = None,
        max_duration: float = MAX_DURATION,
    ) -> None:
        for name, number in (("memory_limit", memory_limit), ("max_duration", max_duration)):
            if number is not None and not (isinstance(number, Real) and number > 0):
                unit = "gigabytes" if name == "memory_limit" else "seconds"
                raise OptionError(f"{name} is {brief(number)}: give {unit}, above 0")
        if isinstance(q_bits, Integral):
            q_bits = int(q_bits)  # NumPy's cannot be written into a configuration
        self.models = Models(model, align_model, vad_model, diarize_model, dtype, q_bits)
        self.batch_size: int | str = checked_batch_size(batch_size)
        self._low_memory = low_memory
        self._max_duration = max_duration
        self._limit = None if memory_limit in (None, math.inf) else int(memory_limit * 1e9)
        self._lock = threading.RLock()
        self._defaults: dict[str, Any] = {}  # options of every call

    @classmethod
    def demo(cls, **keywords: Any) -> Pipeline:
        """With the small models that come with the package, for a first look and for tests: they know synthetic voices,
        English, and some 300 words. keywords : as of the class; models that are given stand for those of the package
        """
        models = {"model": "whisper", "align_model": "wav2vec2", "diarize_model": "diarization"}
        pipeline = cls(**{**{role: DEMO / folder for role, folder in models.items()}, **keywords})
        pipeline._defaults["language"] = "en"
        return pipeline

    def __call__(
        self, audio: Any, *, sample_rate: int | None = None, on_progress: Progress | None = None, **options: Any
    ) -> Transcript:
        """Transcribe one recording.

        audio : a path, "-" for standard input, a binary file, or samples (samples,) or (channels, samples)
        sample_rate : of samples, in Hz
        on_progress : called with (stage, seconds done, seconds in all, audio)
        options : fields of `Options`

        Raises `AudioError`, `OptionError`, `SourceError`, `OutOfMemory`, `ForkedProcess`.
        """
        (_, result), *_ = self.transcribe([_with_rate(audio, sample_rate)], on_progress=on_progress, **options)
        if isinstance(result, Exception):
            raise result
        return result

    def transcribe(self, recordings: Iterable[Any], *, on_progress: Progress | None = None, **options: Any) -> Results:
        """Transcribe many recordings; each is given, with its transcript, as soon as it is done.

        recordings : what `__call__` takes as audio, or (samples, sample_rate); taken as they are needed
        A recording that fails is given with its exception, and the others go on. What `on_progress` raises ends all.
        """
        if isinstance(recordings, (str, os.PathLike)):
            said = repr(os.fspath(recordings))
            raise OptionError(f"recordings is {said}: give a list of recordings, or call the pipeline")
        defaults = dict(self._defaults)
        if options.get("multilingual"):  # the language is then a chunk's, unless the caller names one as well
            defaults.pop("language", None)
        return self._run(recordings, Options.of(**{**defaults, **options}), _Report(on_progress))

    def diarize(
        self,
        audio: Any,
        *,
        sample_rate: int | None = None,
        on_progress: Progress | None = None,
        audio_track: int | str | None = None,
        **numbers: int | None,
    ) -> Diarization:
        """Only the speakers of one recording. audio_track : as of `Options`; numbers : num_speakers, min_speakers,
        max_speakers. Raises as a call."""
        unknown = numbers.keys() - {"num_speakers", "min_speakers", "max_speakers"}
        if unknown:
            raise OptionError(f"{', '.join(sorted(unknown))}: speakers alone have no such option")
        options = Options.of(**numbers, audio_track=audio_track, diarize=True)
        file = _File(_with_rate(audio, sample_rate))
        check_process()
        with self._lock, self._limited(), _explained():
            try:
                self.models.diarization()
                self._open(file, options)
                return self._speakers(file, options, _Report(on_progress))
            finally:
                self._release("vad", "diarization")

    def _run(self, recordings: Iterable[Any], options: Options, report: _Report) -> Results:
        """`_steps`, of which one at a time runs, whichever thread asks for it."""
        steps = self._steps(recordings, options, report)
        while True:
            check_process()  # before the lock, which a thread that did not come along may hold
            with self._lock, self._limited(), _explained():
                found = next(steps, None)
            if found is None:
                return
            yield found

    def _steps(self, recordings: Iterable[Any], options: Options, progress: _Report) -> Results:
        self._prepare(options)
        alone = options.sequential or self._low_memory
        waiting = iter(recordings)
        for first in waiting:  # again only after a failure, and where each recording goes alone
            recogniser = self.models.whisper()
            files: list[_File] = []
            group = [first] if alone else chain([first], waiting)
            listening = (self._listen(files, recording, recogniser, options, progress) for recording in group)
            if options.sequential:
                for file in listening:
                    self._recognise_in_order(file, recogniser, options, progress)
            else:
                with _guarded(files, progress, unfinished=True):
                    for _ in self._recognise(files, listening, recogniser, options, progress):
                        if not self._low_memory:
                            yield from self._finished(files, options, progress)
            del recogniser, listening
            self._release("whisper")
            yield from self._finished(files, options, progress)

    def _prepare(self, options: Options) -> None:
        """What can fail for want of a model, or by its options, fails here, before anything is transcribed."""
        if options.wants_speakers:
            self.models.diarization()
            self._release("diarization")
        if options.words == "ctc" and self.models.align_is_given:
            self.models.aligner(options.language or "en")
            self._release("align")
        tokenizer = self.models.whisper().tokenizer
        known = tokenizer.languages or ["en"]
        if options.language is not None and options.language not in known:
            raise OptionError(f"language {options.language!r} conflicts with the model, which knows {', '.join(known)}")
        if options.task == "translate" and not tokenizer.multilingual:
            raise OptionError('task "translate" conflicts with the model, which knows English only: choose another')
        if options.task == "translate" and "turbo" in self.models.names["whisper"]:
            warnings.warn("turbo was not trained to translate: choose another model, such as medium", stacklevel=2)
        decode.check_tokens(options, tokenizer, self.models.whisper().model.args.n_text_ctx)
        size = self._chunk_size(options)
        if options.vad and not options.sequential:  # its options are checked where they are used
            self._regions(np.zeros(0, np.float32), options, size)
        if options.words == "ctc" and options.language is not None and not self._low_memory:
            self.models.aligner(options.language)

    def _listen(
        self, files: list[_File], recording: Any, recogniser: Recogniser, options: Options, progress: _Report
    ) -> _File:
        """Read a recording, find its speech, cut it into chunks, and tell its language."""
        file = _File(recording)
        with _guarded([file], progress):
            self._hear(file, recogniser, options, progress)
            file.pending = len(file.chunks)
        files.append(file)
        return file

    def _hear(self, file: _File, recogniser: Recogniser, options: Options, progress: _Report) -> None:
        with file.timed("audio"):
            self._open(file, options)
        with file.timed("vad"):
            file.chunks = self._chunks(file, options, progress)
        file.language = options.language
        heard = file.chunks
        if options.sequential and options.language is None and file.audio.size:  # the first window tells, as upstream
            heard = [Chunk(0.0, file.duration)]
        if options.language is None and not options.multilingual and heard:
            with file.timed("language"):
                model, tokenizer = recogniser.model, recogniser.tokenizer
                found = batched.detect_language(file.audio, heard, model, tokenizer, keep=file.encoded)
                file.language, file.probability = found
        if options.words == "ctc" and not options.multilingual and file.language and heard:
            # with little memory it is loaded when Whisper has gone, and may turn out not to be had
            known = self.models.has_aligner if self._low_memory else self.models.aligner
            file.ctc = known(file.language) not in (None, False)
        suspicious = options.hallucination_silence_threshold is not None  # words tell where the silences are
        file.attention = suspicious or (options.words is not None and (self._low_memory or not file.ctc))
        self._release("vad", "diarization")

    def _chunk_size(self, options: Options) -> float:
        """Seconds: as asked for, or the model's window. Raises `OptionError` where that is shorter."""
        window = batched.samples_per_window(self.models.whisper().model) / SAMPLE_RATE
        if options.chunk_size is not None and options.chunk_size > window:
            said = f"chunk_size is {options.chunk_size:g}, and the model's window {window:g} seconds"
            raise OptionError(f"{said}: give at most that, or leave chunk_size out")
        return options.chunk_size or window

    def _chunks(self, file: _File, options: Options, progress: _Report) -> list[Chunk]:
        size = self._chunk_size(options)
        if options.sequential or file.audio.size < MIN_SAMPLES:
            return []
        if not options.vad:
            # nobody has said where speech is, so none can be missing
            return [replace(chunk, regions=()) for chunk in fixed_chunks(file.duration, size)]
        report = progress.of("vad", file.duration, file)
        report(0)
        longest = max(1.0, size - 2 * CHUNK_PAD)
        regions = self._regions(file.audio, options, longest)
        file.uses("vad", self.models)
        if not file.raised:
            warn_if_silent(file.audio, regions, _name(file.recording))
        report(file.duration)
        chunks = cut_chunks(regions, duration=file.duration, chunk_size=longest)
        return widened(chunks, pad=min(CHUNK_PAD, (size - longest) / 2), duration=file.duration)

    def _regions(self, audio: np.ndarray, options: Options, longest: float) -> list[Region]:
        model = self.models.vad(options.vad_method)
        if options.vad_method == "silero":
            return detect_speech(audio, model, max_speech_duration_s=longest, **options.vad_options)
        return detect_speech_pyannet(audio, model, max_duration=longest, **options.vad_options)

    def _recognise(
        self, files: list[_File], listening: Iterable[_File], recogniser: Recogniser, options: Options, report: _Report
    ) -> Iterator[None]:
        """Send the chunks of all recordings through Whisper; a pause wherever a result has come in."""
        size = self.batch_size if isinstance(self.batch_size, int) else self.models.batch_size(self._limit)

        def tasks() -> Iterator[batched.Task]:
            nonlocal before
            start = time.perf_counter()
            for file in listening:
                before += time.perf_counter() - start  # listening has times of its own
                if file.chunks:
                    file.uses("whisper", self.models)
                    report.of("transcribe", file.spoken, file)(0)
                for k, chunk in enumerate(file.chunks):
                    samples, encoded = batched.samples_of(file.audio, chunk), file.encoded.pop(chunk, None)
                    yield batched.Task(file, chunk, samples, file.language, file.attention, encoded, seed=k)
                start = time.perf_counter()

        def note_silence(task: batched.Task, region: Region) -> None:
            task.key.silences.append(region)

        before = time.perf_counter()
        how = options.only("multilingual", "hallucination_silence_threshold")
        how |= {"batch_size": size, "on_silence": note_silence}
        for task, segments in batched.transcribe(tasks(), recogniser.model, recogniser.tokenizer, options, **how):
            file = task.key
            if options.segment_resolution == "chunk" or file.ctc:
                segments = _joined(task.chunk, segments)  # Whisper's own times are too coarse to hold words to
            file.segments += segments
            waiting = [other for other in files for _ in range(other.pending)]
            spent = (time.perf_counter() - before) / len(waiting)
            for other in waiting:  # chunks of several recordings were in the batch
                other.seconds["transcribe"] = other.seconds.get("transcribe", 0.0) + spent
            file.pending -= 1
            report.of("transcribe", file.spoken, file)(file.spoken * (1 - file.pending / len(file.chunks)))
            yield
            before = time.perf_counter()

    def _recognise_in_order(self, file: _File, recogniser: Recogniser, options: Options, progress: _Report) -> None:
        if file.error is not None or file.audio.size < MIN_SAMPLES:
            return
        file.uses("whisper", self.models)
        condition = options.condition_on_previous_text
        with _guarded([file], progress), file.timed("transcribe"):
            how = options.only("carry_initial_prompt", "hallucination_silence_threshold", "clip_timestamps")
            how |= {"language": file.language, "word_timestamps": file.attention}
            how["condition_on_previous_text"] = condition is None or condition
            how["on_progress"] = progress.of("transcribe", file.duration, file)
            file.segments += transcribe_sequential(file.audio, recogniser.model, recogniser.tokenizer, options, **how)

    def _finished(self, files: list[_File], options: Options, progress: _Report) -> Results:
        """Take out the recordings whose chunks are all there, and finish them."""
        for file in [file for file in files if not file.pending]:
            files.remove(file)
            with _guarded([file], progress):
                self._finish(file, options, progress)
            yield file.recording, file.error or file.transcript

    def _finish(self, file: _File, options: Options, progress: _Report) -> None:
        if file.error is not None:
            return
        segments = tuple(sorted(file.segments, key=lambda segment: (segment.start, segment.end)))
        if options.words is None:
            segments = tuple(replace(segment, words=()) for segment in segments)
        if options.words == "ctc" and segments:
            with file.timed("align"):
                segments = self._align(file, segments, options, progress)
            self._release("align")
        if options.words and options.segment_resolution == "sentence":
            segments = split_sentences(segments, file.language or "en")
        diarization = None
        if options.wants_speakers:
            with file.timed("diarize"):
                diarization = self._speakers(file, options, progress)
            segments = assign_speakers(segments, diarization)
            self._release("diarization")
        language = file.language or _most_spoken(segments)
        file.transcript = Transcript(
            segments,
            language,
            file.probability,
            file.duration,
            diarization,
            models=dict(file.models),
            seconds=dict(file.seconds),
            silences=tuple(sorted(file.silences, key=lambda region: region.start)),
        )

    def _align(
        self, file: _File, segments: tuple[Segment, ...], options: Options, progress: _Report
    ) -> tuple[Segment, ...]:
        """Words by forced alignment; those of a language without a model keep their times from the attention."""
        aligned: list[Segment] = []
        for language, group in _by_language(segments, file.language):
            model = self.models.aligner(language)
            if model is not None:
                file.uses("align", self.models)
                report = progress.of("align", sum(segment.duration for segment in group), file)
                report(0)
                how = {**options.only("return_char_alignments", "interpolate_method"), "batch_size": ALIGN_BATCH}
                group = align(group, file.audio, model, language=language, on_progress=report, **how)
            aligned += group
        return tuple(sorted(aligned, key=lambda segment: (segment.start, segment.end)))

    def _speakers(self, file: _File, options: Options, progress: _Report) -> Diarization:
        if file.audio.size < MIN_SAMPLES:
            return Diarization()
        if file.turns is not None:
            return file.turns
        model = self.models.diarization()
        file.uses("diarization", self.models)
        report = progress.of("diarize", file.duration, file)
        report(0)
        return diarize(file.audio, model, on_progress=lambda part: report(part * file.duration), **options.speakers)

    def _open(self, file: _File, options: Options) -> None:
        """Read a recording. Where all of its sound tracks are asked for, and the speakers, the tracks may tell them."""
        recording = file.recording
        name = _name(recording)
        if options.audio_track == "all" and options.wants_speakers and _is_file(recording):
            tracks = load_tracks(recording, max_duration=self._max_duration)
            samples = mix(tracks)
            if len(tracks) > 1:
                file.turns = self._turns_of_tracks(tracks, options, name)
        else:
            samples = self._read(recording, options.audio_track)
        file.audio = louder(samples, name)
        file.raised = file.audio is not samples

    def _turns_of_tracks(self, tracks: list[np.ndarray], options: Options, name: str) -> Diarization | None:
        """The speakers where each has a track of its own; says whether that is so."""
        tracks = [louder(track) for track in tracks]
        regions = [self._regions(track, options, math.inf) for track in tracks]
        count = len(speaking(regions))
        bounds = speaker_bounds(**options.speakers)
        if bounds.low <= count <= bounds.high and speakers_apart(tracks, regions):
            said = f"{name}: {count} of its sound tracks hold a speaker each"
            warnings.warn(f"{said}: the tracks tell who speaks", stacklevel=2)
            return turns_of_tracks(tracks, regions)
        warnings.warn(f"{name}: its sound tracks hold no speaker each: their mix tells who speaks", stacklevel=2)
        return None

    def _read(self, recording: Any, audio_track: int | str | None) -> np.ndarray:
        if audio_track is not None and not _is_file(recording):
            raise OptionError("audio_track is for files: samples have no tracks, so leave it out")
        if isinstance(recording, tuple):
            return audio_from_array(*recording)
        if isinstance(recording, mx.array) and mx.issubdtype(recording.dtype, mx.floating):
            recording = np.array(recording.astype(mx.float32))  # NumPy has no bfloat16
        if isinstance(recording, (np.ndarray, mx.array)):
            return audio_from_array(recording, SAMPLE_RATE)
        if isinstance(recording, (list, set, dict)) or recording is None:
            raise AudioError(f"a {type(recording).__name__} is no recording: give a path, a file or samples")
        return load_audio(recording, max_duration=self._max_duration, audio_track=audio_track)

    def _release(self, *stages: str) -> None:
        """Let go of the models of these stages, with little memory."""
        if self._low_memory:
            self.models.release(*stages)

    @contextmanager
    def _limited(self) -> Iterator[None]:
        """MLX within the memory limit; it holds for the whole process, so it is taken back."""
        if self._limit is None:
            yield
            return
        before = mx.set_memory_limit(self._limit), mx.set_cache_limit(self._limit // 4)
        try:
            yield
        finally:
            mx.set_memory_limit(before[0])
            mx.set_cache_limit(before[1])


class _Report:
    """Tells the caller how far it is, and knows whether an exception is the caller's."""

    def __init__(self, report: Progress | None) -> None:
        self._report, self.failed = report, False

    def of(self, stage: str, total: float, file: _File) -> Callable[[float], None]:
        """What tells how many of the `total` seconds of a recording have been through a stage."""

        def report(done: float) -> None:
            if self._report is not None:
                self.failed = True
                self._report(stage, min(done, total), total, file.recording)  # edges of chunks are rounded
                self.failed = False

        return report


@contextmanager
def _guarded(files: list[_File], progress: _Report, unfinished: bool = False) -> Iterator[None]:
    """A bad recording must not stop the others: what goes wrong becomes the error of `files`, or of those of them that
    are `unfinished`. What the caller's own function raises goes to the caller."""
    try:
        with _explained():
            yield
    except Exception as error:
        if progress.failed:
            raise
        for file in files:
            if file.pending or not unfinished:
                file.error, file.pending, file.chunks = error, 0, []


@dataclass(eq=False)
class _File:
    """A recording on its way through the stages."""

    recording: Any
    audio: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    raised: bool = False  # it was so quiet that it was made louder
    turns: Diarization | None = None  # where its sound tracks tell the speakers
    chunks: list[Chunk] = field(default_factory=list)
    pending: int = 0  # chunks that Whisper has not given back
    language: str | None = None
    probability: float = 1.0
    encoded: dict[Chunk, mx.array] = field(default_factory=dict)  # the chunks that told the language
    ctc: bool = False  # whether there is a model to align it by
    attention: bool = False  # whether words get their times from Whisper's attention
    segments: list[Segment] = field(default_factory=list)
    silences: list[Region] = field(default_factory=list)  # speech in which Whisper heard none
    seconds: dict[str, float] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)
    transcript: Transcript = field(default_factory=Transcript)
    error: Exception | None = None

    @property
    def duration(self) -> float:
        return self.audio.size / SAMPLE_RATE

    @property
    def spoken(self) -> float:
        return sum(chunk.duration for chunk in self.chunks)

    def uses(self, stage: str, models: Models) -> None:
        self.models[stage] = models.names[stage]

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


def checked_batch_size(value: Any) -> int | str:
    """ "auto", or a number of rows. Raises `OptionError` for anything else."""
    if isinstance(value, str) and value == "auto":
        return value
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise OptionError(f'batch_size is {brief(value)}: give "auto" or a whole number of at least 1')
    return int(value)


def _by_language(segments: Iterable[Segment], default: str | None) -> list[tuple[str, tuple[Segment, ...]]]:
    groups: dict[str, list[Segment]] = {}
    for segment in segments:
        groups.setdefault(segment.language or default or "en", []).append(segment)
    return [(language, tuple(group)) for language, group in groups.items()]


def _joined(chunk: Chunk, segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
    """The segments of a chunk as one, which lasts as long as the chunk; none stay none."""
    if not segments:
        return ()
    text = ""
    for segment in segments:
        text += space_between(text, segment) + segment.text
    words = tuple(word for segment in segments for word in segment.words)
    tokens = tuple(token for segment in segments for token in segment.tokens)
    return (replace(segments[0], start=chunk.start, end=chunk.end, text=text, words=words, tokens=tokens),)


def _most_spoken(segments: Iterable[Segment]) -> str | None:
    seconds = {code: sum(segment.duration for segment in group) for code, group in _by_language(segments, None)}
    return max(seconds, key=lambda code: seconds[code], default=None)


def _name(recording: Any) -> str:
    return os.fspath(recording) if isinstance(recording, (str, os.PathLike)) else "the recording"


def _is_file(recording: Any) -> bool:
    return isinstance(recording, (str, os.PathLike)) or hasattr(recording, "read")


def _with_rate(audio: Any, sample_rate: int | None) -> Any:
    if sample_rate is None:
        return audio
    if _is_file(audio):
        raise OptionError("sample_rate is for samples: a file says its own, so leave it out")
    return audio, sample_rate


@contextmanager
def _explained() -> Iterator[None]:
    """MLX's word for too little memory, as an error that says what helps."""
    try:
        yield
    except MLXSpeechError:
        raise
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or re.search(r"alloc|out of memory|OutOfMemory", str(error)):
            advice = "lower batch_size, pass low_memory=True, or choose a smaller model (small-q4)"
            raise OutOfMemory(f"out of memory: {advice}") from error
        raise
