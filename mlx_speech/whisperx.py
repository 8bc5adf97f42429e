"""WhisperX's functions on this package: a script runs after changing its import.

    from mlx_speech import whisperx
    from mlx_speech.whisperx import DiarizationPipeline

Arguments, their order and results are those of m-bain/whisperX 3.8, with three differences: diarization gives a list
of dicts where WhisperX gives a pandas.DataFrame (`pandas.DataFrame(turns)` makes one), `device` is not looked at, since
MLX has its own, and speech is detected by Silero VAD unless `vad_method` says otherwise.
"""

from __future__ import annotations

from mlx_speech import backend as backend  # isort: skip  (before MLX)

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_speech import audio as _audio
from mlx_speech import names, writers
from mlx_speech.errors import OptionError, SourceError, brief
from mlx_speech.forks import check_process, computing
from mlx_speech.loading import load
from mlx_speech.models import pyannet, silero_vad, wav2vec2
from mlx_speech.options import (
    COMPUTE_TYPES,
    DETECTORS,
    WHISPERX_THRESHOLDS,
    Interpolation,
    Options,
    Task,
    VadMethod,
    checked_batch_size,
)
from mlx_speech.pipeline import Pipeline
from mlx_speech.stages import align as _align
from mlx_speech.stages.assign import assign_speakers
from mlx_speech.stages.sentences import split_sentences
from mlx_speech.transcript import Diarization, Segment, Transcript, Turn, Word

Dicts = list[dict[str, Any]]
Callback = Callable[[float], Any]
WINDOW = 30  # seconds, of OpenAI's models
RENAMED = {"temperatures": "temperature", "log_prob_threshold": "logprob_threshold", "max_new_tokens": "sample_len"}
# of faster-whisper, with the value that means what happens here; another one would give another text
FIXED: dict[str, Any] = {
    "repetition_penalty": 1,
    "no_repeat_ngram_size": 0,
    "condition_on_previous_text": False,
    "prompt_reset_on_temperature": 0.5,
}
# these change nothing in WhisperX either: the language is the recording's, and `align` gives words their times
WITHOUT_EFFECT = ("multilingual", "word_timestamps")


def _without_meaning(name: str, given: bool, instead: str) -> None:
    """Tell the user of an argument that is not looked at."""
    if given:
        warnings.warn(f"{name} has no meaning here: {instead}", stacklevel=3)


def load_audio(file: str, sr: int = 16_000) -> np.ndarray:
    """(samples,) float32 in [-1, 1] at `sr` Hz. Raises `AudioError`."""
    return _audio.load_audio(file, sample_rate=sr)


def load_model(
    whisper_arch: Any,
    device: str | None = None,
    device_index: int = 0,
    compute_type: str = "default",
    asr_options: Mapping[str, Any] | None = None,
    language: str | None = None,
    vad_model: Any = None,
    vad_method: VadMethod = "silero",
    vad_options: Mapping[str, float] | None = None,
    model: Any = None,
    task: Task = "transcribe",
    download_root: str | None = None,
    local_files_only: bool = False,
    threads: int = 4,
    use_auth_token: str | bool | None = None,
) -> Recogniser:
    """Whisper with speech detection: `load_model(...).transcribe(audio)`.

    whisper_arch : what `Pipeline` takes as its model; model : a loaded one, which is taken instead
    compute_type : "float16" and "float32" say how a GPU computes; "int8" and "int4" quantize
    asr_options : by faster-whisper's names
    vad_model : what `Pipeline` takes as its vad_model; it decides about the vad_method
    vad_options : chunk_size, vad_onset, vad_offset, or the detector's own (`stages.vad_options`)
    use_auth_token : of the hub

    What says where and by how many threads has no meaning here; a warning says so once.
    Raises `SourceError`, `OptionError`.
    """
    _without_meaning("device_index", bool(device_index), "MLX has one GPU")
    _without_meaning("download_root", download_root is not None, "set HF_HUB_CACHE")
    _without_meaning("local_files_only", local_files_only, "set HF_HUB_OFFLINE=1")
    _without_meaning("threads", threads != 4, "set OPENBLAS_NUM_THREADS")
    if isinstance(use_auth_token, str):
        os.environ["HF_TOKEN"] = use_auth_token
    if compute_type not in COMPUTE_TYPES:
        raise OptionError(f"compute_type is {compute_type!r}: choose from {', '.join(COMPUTE_TYPES)}")
    dtype, bits = COMPUTE_TYPES[compute_type]
    on_gpu = mx.default_device().type == mx.DeviceType.gpu
    source = whisper_arch if model is None else model
    pipeline = Pipeline(source, vad_model=vad_model, dtype=dtype if on_gpu else None, q_bits=bits)
    if vad_model is not None:
        vad_method = _method_of(vad_model)
    options: dict[str, Any] = {"beam_size": 5, "language": language, "task": task, "vad_method": vad_method}
    options.update(_asr_options(asr_options or {}))
    options.update(_vad_options(vad_options or {}, vad_method))
    Options.of(**options)  # checks them before a recording is read
    return Recogniser(pipeline, options)


def _method_of(vad_model: Any) -> VadMethod:
    """The method that a model of speech detection is of. Raises `SourceError` for other models."""
    loaded = vad_model
    if isinstance(vad_model, (str, os.PathLike)):
        loaded = load(vad_model)
    if isinstance(loaded, silero_vad.Model):
        return "silero"
    if isinstance(loaded, pyannet.Model):
        return "pyannote"
    raise SourceError(f"vad_model={brief(vad_model)}: is no Silero VAD and no PyanNet of this package")


def _asr_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """WhisperX's options of recognition, by the names of `Options`. Raises `OptionError`."""
    options: dict[str, Any] = {}
    _without_meaning("word_timestamps", bool(given.get("word_timestamps")), "whisperx.align gives words their times")
    for name, value in given.items():
        if name in WITHOUT_EFFECT:
            continue
        if name not in FIXED:
            options[RENAMED.get(name, name)] = tuple(value) if isinstance(value, list) else value
        elif value != FIXED[name]:
            raise OptionError(f"{name}={value!r} has no meaning here: leave it out")
    return options


def _vad_options(given: Mapping[str, float], method: VadMethod) -> dict[str, Any]:
    """WhisperX's options of speech detection, by the names of `Options`. Raises `OptionError`."""
    if method not in DETECTORS:
        raise OptionError(f"vad_method is {method!r}: choose from {', '.join(DETECTORS)}")
    own: dict[str, Any] = {}
    for name, value in given.items():
        if name == "chunk_size":
            continue
        if method == "silero" and name == "vad_offset":
            continue  # speech ends where Silero's own rule says, there and here
        if name in WHISPERX_THRESHOLDS:
            name = WHISPERX_THRESHOLDS[name][method]
        own[name] = value  # `Options` refuses a name that is nobody's
    return {"chunk_size": given.get("chunk_size"), "vad_options": own}


class Recogniser:
    """What `load_model` gives."""

    def __init__(self, pipeline: Pipeline, options: Mapping[str, Any]) -> None:
        self._pipeline = pipeline
        self._options = dict(options)

    def transcribe(
        self,
        audio: str | np.ndarray,
        batch_size: int | None = None,
        num_workers: int = 0,
        language: str | None = None,
        task: Task | None = None,
        chunk_size: int = WINDOW,
        print_progress: bool = False,
        combined_progress: bool = False,
        verbose: bool = False,
        progress_callback: Callback | None = None,
    ) -> dict[str, Any]:
        """{"segments": [{"text", "start", "end", "avg_logprob"}], "language"}: one segment a chunk, without words."""
        _without_meaning("num_workers", bool(num_workers), "nothing is loaded by workers")
        options: dict[str, Any] = {"without_timestamps": True}
        options.update(self._options)
        options["word_timestamps"] = None
        size = min(chunk_size, options["chunk_size"] or WINDOW)
        options["chunk_size"] = None if size == WINDOW else size  # the model's own, which may be shorter
        if language is not None:
            options["language"] = language
        if task is not None:
            options["task"] = task
        share = (0, 50) if combined_progress else (0, 100)
        report = _percent("transcribe", progress_callback, print_progress, share)
        before = self._pipeline.batch_size
        self._pipeline.batch_size = checked_batch_size(batch_size) if batch_size else before
        try:
            result = self._pipeline(audio, on_progress=report, **options)
        finally:
            self._pipeline.batch_size = before
        keys = ("text", "start", "end", "avg_logprob")
        segments = [{key: segment[key] for key in keys} for segment in writers.as_dict(result)["segments"]]
        if verbose:
            for segment in segments:
                print(f"Transcript: [{segment['start']} --> {segment['end']}] {segment['text']}")
        return {"segments": segments, "language": result.language}


def load_align_model(
    language_code: str,
    device: str | None = None,
    model_name: Any = None,
    model_dir: str | None = None,
    model_cache_only: bool = False,
) -> tuple[wav2vec2.Model, dict[str, Any]]:
    """The wav2vec2 of a language, and what is known of it. Raises `SourceError`."""
    _without_meaning("model_dir", model_dir is not None, "set HF_HUB_CACHE")
    _without_meaning("model_cache_only", model_cache_only, "set HF_HUB_OFFLINE=1")
    source = model_name or names.align_source(language_code)
    if source is None:
        raise SourceError(f"no alignment model is known for {language_code!r}: give one as model_name")
    model: Any = source if isinstance(source, wav2vec2.Model) else load(source)
    if not isinstance(model, wav2vec2.Model):
        raise SourceError(f"{source}: is no wav2vec2 model with a CTC head: give another model_name")
    labels = {label.lower(): index for index, label in enumerate(model.args.vocab or [])}
    return model, {"language": language_code, "dictionary": labels, "type": "mlx"}


def align(
    transcript: Sequence[dict[str, Any]],
    model: wav2vec2.Model,
    align_model_metadata: Mapping[str, Any],
    audio: str | np.ndarray,
    device: str | None = None,
    interpolate_method: Interpolation = "nearest",
    return_char_alignments: bool = False,
    print_progress: bool = False,
    combined_progress: bool = False,
    progress_callback: Callback | None = None,
) -> dict[str, Any]:
    """{"segments": sentences with "words", "word_segments": all words}"""
    check_process()
    language = align_model_metadata["language"]
    segments = [_segment(entry, language) for entry in transcript]
    share = (50, 100) if combined_progress else (0, 100)
    report = _percent("align", progress_callback, print_progress, share)
    total = sum(segment.duration for segment in segments)
    samples = load_audio(audio) if isinstance(audio, str) else np.asarray(audio, np.float32)
    with computing():
        words = _align.align(
            segments,
            samples,
            model,
            language=language,
            interpolate_method=interpolate_method,
            return_char_alignments=return_char_alignments,
            on_progress=lambda done: report("align", done, total, None),
        )
    result = writers.as_dict(Transcript(split_sentences(words, language), language=language))
    # the words of the segments themselves, as there: a speaker that is assigned to them is in both
    words_of_all = [word for segment in result["segments"] for word in segment.get("words", [])]
    return {"segments": result["segments"], "word_segments": words_of_all}


class DiarizationPipeline:
    """pyannote's speaker diarization. model_name : what `Pipeline` takes as its diarize_model; token : of the hub"""

    def __init__(
        self, model_name: Any = None, token: str | None = None, device: str | None = None, cache_dir: str | None = None
    ) -> None:
        _without_meaning("cache_dir", cache_dir is not None, "set HF_HUB_CACHE")
        if token is not None:
            os.environ["HF_TOKEN"] = token
        self._pipeline = Pipeline(diarize_model=model_name)
        self._pipeline.models.diarization()

    def __call__(
        self,
        audio: str | np.ndarray,
        num_speakers: int | None = None,
        min_speakers: int | None = None,
        max_speakers: int | None = None,
        return_embeddings: bool = False,
        progress_callback: Callback | None = None,
    ) -> Dicts | tuple[Dicts, dict[str, list[float]]]:
        """[{"label", "speaker", "start", "end"}], and with `return_embeddings` one vector per speaker."""
        diarization = self._pipeline.diarize(
            audio,
            on_progress=_percent("diarize", progress_callback),
            num_speakers=num_speakers,
            min_speakers=min_speakers,
            max_speakers=max_speakers,
        )
        turns: Dicts = []
        for index, turn in enumerate(diarization.turns):
            letter = chr(ord("A") + index % 26)
            turns.append({"label": letter, "speaker": turn.speaker, "start": turn.start, "end": turn.end})
        if not return_embeddings:
            return turns
        return turns, {speaker: list(vector) for speaker, vector in diarization.embeddings.items()}


def assign_word_speakers(
    diarize_df: Any,
    transcript_result: dict[str, Any],
    speaker_embeddings: Mapping[str, list[float]] | None = None,
    fill_nearest: bool = False,
) -> dict[str, Any]:
    """`transcript_result` with "speaker" in the segments and words that overlap a turn; changed in place, as there.

    diarize_df : what `DiarizationPipeline` gives, here or there
    """
    rows = diarize_df.to_dict("records") if hasattr(diarize_df, "to_dict") else diarize_df
    turns = tuple(Turn(row["start"], row["end"], row["speaker"]) for row in rows)
    entries = transcript_result["segments"]
    segments = [_segment(entry) for entry in entries]
    assigned = assign_speakers(segments, Diarization(turns, turns), fill_nearest=fill_nearest, split=False)
    for entry, segment in zip(entries, assigned, strict=True):
        timed = [word for word in entry.get("words", []) if "start" in word]
        for target, source in zip([entry, *timed], [segment, *segment.words], strict=True):
            if source.speaker is not None:
                target["speaker"] = source.speaker
    if speaker_embeddings is not None:
        transcript_result["speaker_embeddings"] = dict(speaker_embeddings)
    return transcript_result


def _segment(entry: Mapping[str, Any], language: str | None = None) -> Segment:
    """A segment of WhisperX's as one of ours; its words without a time are left out."""
    words: list[Word] = []
    for word in entry.get("words", []):
        if "start" in word:
            words.append(Word(word["start"], word.get("end", word["start"]), word["word"], word.get("score", 0.0)))
    return Segment(
        entry.get("start", 0.0),
        entry.get("end", 0.0),
        entry.get("text", "").strip(),
        tuple(words),
        language=language,
        avg_logprob=entry.get("avg_logprob", 0.0),
    )


def _percent(
    stage: str, callback: Callback | None, shown: bool = False, printed: tuple[float, float] = (0, 100)
) -> Callable[[str, float, float, Any], None]:
    """Tells how far a stage is, in per cent, and prints it if it is to be `shown`: from the one to the other number of
    `printed`, where several functions share the hundred."""
    first, last = printed

    def report(name: str, done: float, total: float, _: Any) -> None:
        if name != stage:
            return
        percent = 100 * done / total if total else 100.0
        if shown:
            print(f"Progress: {first + percent * (last - first) / 100:.2f}%...")
        if callback is not None:
            callback(percent)

    return report
