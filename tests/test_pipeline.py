"""The whole chain with tiny models: what comes out of it, in which order, and what it says when it cannot."""

from __future__ import annotations

import json
import shutil
import threading
import warnings
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import tiny
from conftest import real

import mlx_speech
from mlx_speech import writers
from mlx_speech.audio import load_audio
from mlx_speech.errors import AudioError, OptionError, OutOfMemory, SourceError
from mlx_speech.loading import DIARIZATION
from mlx_speech.options import Options
from mlx_speech.pipeline import Pipeline
from mlx_speech.transcript import Transcript

GREEDY = {"language": "en", "temperature": 0.0}
SAID = "Hello there, Dr. Smith. How are you? I owe you $42."


def pipeline(**keywords: Any) -> Pipeline:
    place = tiny.folder()
    models = {"align_model": place / "wav2vec2", "diarize_model": place / "diarization"}
    return Pipeline(place / "whisper", **{**models, **keywords})


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return pipeline()


def check(result: Transcript) -> None:
    """What holds for every transcript."""
    last = 0.0
    for segment in result.segments:
        assert 0 <= segment.start <= segment.end <= result.duration + 0.02
        assert segment.text == segment.text.strip() != ""
        before = segment.start
        for word in segment.words:
            assert before <= word.start <= word.end <= segment.end
            assert 0 <= word.score <= 1 and word.text == word.text.strip() != ""
            before = word.end
        assert segment.start >= last - 1e-6
        last = segment.start


def timed(result: Transcript) -> list[Any]:
    """What has to be the same in any batch; scores differ in their last digits."""
    return [(s.start, s.end, s.text, [(w.start, w.end, w.text) for w in s.words]) for s in result.segments]


# --- what comes out --------------------------------------------------------------------------------------------------


def test_words_and_speakers_of_a_real_recording(pipe: Pipeline) -> None:
    result = pipe(real("data/diar/ami_debug/dev00.wav"), diarize=True, **GREEDY)
    check(result)
    words = [word for segment in result.segments for word in segment.words]
    assert words and " ".join(word.text for word in words).startswith(SAID)
    assert sum(word.aligned for word in words) > 0.9 * len(words)
    assert result.language == "en" and result.duration == pytest.approx(30.0, abs=0.1)
    speakers = {turn.speaker for turn in result.diarization.turns}
    assert len(speakers) >= 2 and set(result.diarization.embeddings) == speakers
    assert {segment.speaker for segment in result.segments} & speakers
    assert all(word.speaker == segment.speaker for segment in result.segments for word in segment.words)
    assert set(result.models) == {"whisper", "vad", "align", "diarization"}
    assert set(result.seconds) == {"audio", "vad", "transcribe", "align", "diarize"}


def test_sentences_chunks_and_no_words(pipe: Pipeline) -> None:
    recording = real(
        "data/audio/en/jfk.flac"
    )  # without regions of speech nothing is heard again: the model says the same
    sentences = pipe(recording, vad=False, **GREEDY)
    assert [segment.text for segment in sentences.segments][:3] == [
        "Hello there, Dr. Smith.",
        "How are you?",
        "I owe you $42.",
    ]
    chunks = pipe(recording, segment_resolution="chunk", vad=False, **GREEDY)
    assert {segment.text for segment in chunks.segments} == {SAID}
    assert [word.text for word in chunks.words] == [word.text for word in sentences.words]
    bare = pipe(recording, word_timestamps=None, vad=False, **GREEDY)
    assert not bare.words
    assert [segment.text for segment in bare.segments][:2] == ["Hello there, Dr. Smith.", "How are you? I owe you $42."]
    chars = pipe(recording, return_char_alignments=True, vad=False, **GREEDY)
    assert [c.text for c in chars.words[0].chars] == list("Hello")


def test_words_by_attention(pipe: Pipeline) -> None:
    result = pipe(real("data/audio/en/jfk.flac"), word_timestamps="attention", vad=False, **GREEDY)
    check(result)
    assert " ".join(word.text for word in result.words).startswith(SAID)


def test_a_language_without_an_alignment_model_takes_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(UserWarning, match="no alignment model for 'cy'.*align_model"):
        result = pipeline(align_model=None)(real("data/audio/en/jfk.flac"), language="Welsh", temperature=0.0)
    check(result)
    assert result.words and result.language == "cy"


def test_the_language_is_detected_by_file_and_by_chunk(pipe: Pipeline) -> None:
    recording = real("data/audio/sv/se10x016-08071999-1334_u0016002.wav")
    result = pipe(recording, temperature=0.0)
    assert result.language == "en" and 0.5 < result.language_probability <= 1  # what is planted
    each = pipe(recording, temperature=0.0, multilingual=True)
    assert each.language == "en" and {segment.language for segment in each.segments} == {"en"}
    assert each.text == result.text


def test_batch_size_changes_nothing(pipe: Pipeline) -> None:
    recording = load_audio(real("data/audio/vad/silero_test.wav"))
    alone = pipeline(batch_size=1)(recording, **GREEDY)
    batched = pipeline(batch_size=3)(recording, **GREEDY)
    assert len(alone.segments) > 3
    assert timed(alone) == timed(batched)


def test_low_memory_changes_nothing(pipe: Pipeline) -> None:
    recording = real("data/diar/ami_debug/dev01.wav")
    usual = pipe(recording, diarize=True, **GREEDY)
    small = pipeline(low_memory=True)
    found = small(recording, diarize=True, **GREEDY)
    assert found.segments == usual.segments and found.diarization == usual.diarization
    assert not small.models.loaded()  # all of them were let go


def test_low_memory_has_words_without_an_alignment_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """That it cannot be had is seen when Whisper has gone."""
    monkeypatch.setattr("mlx_speech.names.align_source", lambda language: "org/not-here")
    with pytest.warns(UserWarning, match="no alignment model for 'en'"):
        result = pipeline(align_model=None, low_memory=True)(real("data/audio/en/jfk.flac"), vad=False, **GREEDY)
    check(result)
    assert " ".join(word.text for word in result.words).startswith(SAID)


def test_sequential_reads_window_after_window(pipe: Pipeline) -> None:
    result = pipe(real("data/audio/en/jfk.flac"), sequential=True, word_timestamps="attention", **GREEDY)
    check(result)
    assert result.segments[0].text == "Hello there, Dr. Smith."


def test_pyannote_finds_speech_too(pipe: Pipeline) -> None:
    recording = real("data/diar/ami_debug/dev00.wav")
    result = pipe(recording, vad_method="pyannote", vad_options={"onset": 0.6}, **GREEDY)
    check(result)
    assert result.segments
    with pytest.raises(OptionError, match="threshold is no option of vad_method 'pyannote'"):
        pipe(recording, vad_method="pyannote", vad_options={"threshold": 0.6})


def test_without_speech_detection_there_are_fixed_windows(pipe: Pipeline) -> None:
    recording = np.random.default_rng(0).normal(0, 0.1, 25 * 16_000).astype(np.float32)
    result = pipe(recording, vad=False, chunk_size=10, segment_resolution="chunk", **GREEDY)
    check(result)
    assert [segment.start for segment in result.segments] == pytest.approx([0, 25 / 3, 50 / 3])


def test_translations_have_no_words_but_speakers(pipe: Pipeline) -> None:
    result = pipe(
        real("data/diar/ami_debug/dev00.wav"), task="translate", language="de", temperature=0.0, num_speakers=2
    )
    assert result.segments and not result.words
    assert {turn.speaker for turn in result.diarization.turns} == {"SPEAKER_00", "SPEAKER_01"}
    assert any(segment.speaker for segment in result.segments)


# --- recordings ------------------------------------------------------------------------------------------------------


def test_arrays_files_and_their_rates(pipe: Pipeline) -> None:
    path = real("data/audio/en/jfk.flac")
    expected = pipe(path, **GREEDY)
    samples = load_audio(path)
    with path.open("rb") as file:
        for given in (samples, mx.array(samples), file):
            assert pipe(given, **GREEDY).segments == expected.segments
    half = load_audio(path, sample_rate=8000)
    assert pipe(half, sample_rate=8000, **GREEDY).duration == pytest.approx(expected.duration, abs=0.01)
    assert pipe(mx.array(samples).astype(mx.bfloat16), **GREEDY).segments
    with pytest.raises(AudioError, match="dict is no recording"):
        pipe({})
    with pytest.raises(OptionError, match="give a list"):
        pipe.transcribe("talk.wav")
    with pytest.raises(OptionError, match="sample_rate is for samples"):
        pipe(path, sample_rate=8000)
    with pytest.raises(OptionError, match="beam_size: speakers alone"):
        pipe.diarize(samples, beam_size=5)


@pytest.mark.parametrize("seconds", [0.01, 0.2, 3.0])
def test_silence_and_very_short_recordings_give_nothing(pipe: Pipeline, seconds: float) -> None:
    result = pipe(np.zeros(int(seconds * 16_000), np.float32), diarize=True)
    assert result.segments == () and result.duration == seconds
    for kind, write in writers.FORMATS.items():
        assert isinstance(write(result, uri="x"), str), kind


@pytest.mark.parametrize("seconds", [0.01, 0.2])
def test_short_recordings_without_speech_detection(pipe: Pipeline, seconds: float) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, int(seconds * 16_000)).astype(np.float32)
    check(pipe(noise, vad=False, diarize=True, **GREEDY))
    check(pipe(noise, sequential=True, **GREEDY))


def test_a_loud_file_that_counts_as_silence_is_reported(pipe: Pipeline) -> None:
    hum = (0.3 * np.sin(np.arange(10 * 16_000) * 0.05)).astype(np.float32)
    with pytest.warns(UserWarning, match="speech"):
        assert pipe(hum, **GREEDY).segments == ()


def test_many_recordings_one_of_them_broken(pipe: Pipeline, tmp_path: Path) -> None:
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF but nothing else")
    good = [real("data/audio/en/jfk.flac"), real("data/diar/ami_debug/dev00.wav")]
    found = dict(pipe.transcribe([good[0], broken, good[1], tmp_path / "none.mp3"], **GREEDY))
    assert set(found) == {*good, broken, tmp_path / "none.mp3"}
    assert isinstance(found[broken], AudioError) and isinstance(found[tmp_path / "none.mp3"], AudioError)
    for path in good:
        assert timed(found[path]) == timed(pipe(path, **GREEDY))


def test_recordings_are_taken_as_they_are_needed() -> None:
    taken: list[int] = []

    def recordings():
        for k in range(6):
            taken.append(k)
            yield load_audio(real("data/audio/en/jfk.flac"))

    run = pipeline(batch_size=1).transcribe(recordings(), **GREEDY)
    next(run)
    assert len(taken) <= 3


def test_an_unexpected_error_stops_one_recording_only(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_speech import timing as module

    paths = [real("data/audio/en/jfk.flac"), real("data/diar/ami_debug/dev00.wav")]
    plain, calls = module.align_steps, []

    def fails_once(*args: Any, **keywords: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("[malloc] Unable to allocate 99 bytes.")
        return plain(*args, **keywords)

    monkeypatch.setattr(module, "align_steps", fails_once)
    results = [result for _, result in pipe.transcribe(paths, **GREEDY)]
    assert [type(result) for result in results] == [OutOfMemory, Transcript]
    assert "low_memory=True" in str(results[0])


def test_an_error_in_a_batch_stops_the_recordings_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_speech.stages.whisper import batched

    plain, calls = batched.encode, []

    def fails_once(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("[malloc] Unable to allocate 99 bytes.")
        return plain(*args)

    monkeypatch.setattr(batched, "encode", fails_once)
    recordings = [load_audio(real("data/audio/en/jfk.flac")) for _ in range(4)]
    results = [result for _, result in pipeline(batch_size=1).transcribe(recordings, **GREEDY)]
    kinds = [type(result) for result in results]
    assert len(kinds) == 4 and kinds.count(OutOfMemory) in (1, 2) and kinds[-1] is Transcript


def test_models_are_those_that_this_recording_used(pipe: Pipeline) -> None:
    recording = real("data/audio/en/jfk.flac")
    assert set(pipe(recording, diarize=True, **GREEDY).models) == {"vad", "whisper", "align", "diarization"}
    assert set(pipe(recording, word_timestamps=None, **GREEDY).models) == {"vad", "whisper"}


def test_the_memory_limit_holds_while_it_works_and_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_speech import detection as module

    before = mx.set_memory_limit(8 << 30)
    mx.set_memory_limit(before)
    limits: list[int] = []
    plain = module.cut_chunks

    def look(*arguments: Any, **keywords: Any) -> Any:
        now = mx.set_memory_limit(1 << 40)
        mx.set_memory_limit(now)
        limits.append(now)
        return plain(*arguments, **keywords)

    monkeypatch.setattr(module, "cut_chunks", look)
    limited = pipeline(memory_limit=2)
    limited(real("data/audio/en/jfk.flac"), **GREEDY)
    assert limits == [2_000_000_000]
    limited.close()
    after = mx.set_memory_limit(before)
    assert after == before


def test_samples_do_not_depend_on_the_place_in_the_list(pipe: Pipeline) -> None:
    paths = [real("data/audio/en/jfk.flac"), real("data/audio/en/cards_001.wav")]
    options = {"language": "en", "temperature": 30.0, "sample_len": 12, "word_timestamps": None}
    options |= {"compression_ratio_threshold": None, "logprob_threshold": None, "no_speech_threshold": None}
    forth, back = (dict(pipe.transcribe(order, **options)) for order in (paths, paths[::-1]))
    assert {path: forth[path].text for path in paths} == {path: back[path].text for path in paths}
    assert forth[paths[0]].text != forth[paths[1]].text


# --- threads, progress -----------------------------------------------------------------------------------------------


def test_from_other_threads_and_from_two_at_once() -> None:
    shared = pipeline()
    path = real("data/audio/en/jfk.flac")
    expected = shared(path, diarize=True, **GREEDY)
    results: list[Any] = []

    def work() -> None:
        try:
            results.append(shared(path, diarize=True, **GREEDY))
        except BaseException as error:
            results.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [getattr(result, "segments", result) for result in results] == [expected.segments] * 2


def test_progress_of_every_stage(pipe: Pipeline) -> None:
    seen: dict[str, list[float]] = {}
    path = real("data/diar/ami_debug/dev00.wav")

    def report(stage: str, done: float, total: float, source: Any) -> None:
        assert source == path and 0 <= done <= total + 1e-6
        seen.setdefault(stage, []).append(done / total)

    pipe(path, diarize=True, on_progress=report, **GREEDY)
    assert set(seen) == {"vad", "transcribe", "align", "diarize"}
    for stage, shares in seen.items():
        assert shares == sorted(shares) and shares[-1] == pytest.approx(1), stage


@pytest.mark.parametrize("at", ["vad", "transcribe", "align", "diarize"])
def test_what_on_progress_raises_ends_the_run(pipe: Pipeline, at: str) -> None:
    def cancel(stage: str, done: float, *_: Any) -> None:
        if stage == at and done > 0:
            raise InterruptedError(at)

    with pytest.raises(InterruptedError, match=at):
        list(pipe.transcribe([real("data/audio/en/jfk.flac")] * 2, diarize=True, on_progress=cancel, **GREEDY))
    assert pipe(real("data/audio/en/jfk.flac"), **GREEDY).segments  # and the pipeline is as good as new


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, said",
    [
        ({"language": "klingon"}, "klingon"),
        ({"langauge": "en"}, "did you mean language"),
        ({"num_speakers": 4, "max_speakers": 3}, "num_speakers is 4, but max_speakers is 3"),
        ({"min_speakers": 3, "max_speakers": 2}, "min_speakers is 3, but max_speakers is 2"),
        ({"num_speakers": 2, "diarize": False}, "diarize=False and a number of speakers conflict"),
        ({"num_speakers": 0}, "num_speakers is 0"),
        ({"chunk_size": 0.5}, "chunk_size is 0.5"),
        ({"chunk_size": float("nan")}, "chunk_size is nan"),
        ({"word_timestamps": "dtw"}, "word_timestamps is 'dtw'"),
        ({"sequential": True, "multilingual": True}, "multilingual and sequential conflict"),
        ({"multilingual": True, "language": "en"}, "multilingual and language conflict"),
        ({"condition_on_previous_text": True}, "condition_on_previous_text needs sequential"),
        ({"vad": False, "vad_options": {"threshold": 0.5}}, "vad=False and vad_options conflict"),
        ({"return_char_alignments": True, "word_timestamps": None}, "return_char_alignments and word_timestamps"),
        ({"language": 3}, "language is 3"),
        ({"chunk_size": "10"}, "chunk_size is '10'"),
        ({"vad_options": {"threshold": "x"}}, "threshold is 'x'"),
        ({"hallucination_silence_threshold": -2}, "hallucination_silence_threshold is -2"),
        ({"segment_resolution": "word"}, "segment_resolution is 'word'"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError) as caught:
        Options.of(**options)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_options_of_the_pipeline_itself() -> None:
    for wrong in ({"batch_size": 0}, {"batch_size": "many"}, {"memory_limit": 0}):
        with pytest.raises(OptionError, match=next(iter(wrong))):
            Pipeline(**wrong)


def test_a_model_of_another_kind_is_named() -> None:
    place = tiny.folder()
    with pytest.raises(SourceError, match=r"model=.*is a wav2vec2 model, where a whisper model is needed"):
        Pipeline(place / "wav2vec2")(np.zeros(16_000, np.float32))
    with pytest.raises(SourceError, match=r"align_model=.*is a whisper model"):
        pipeline(align_model=place / "whisper")(real("data/audio/en/jfk.flac"), **GREEDY)


def test_loaded_models_serve_as_names() -> None:
    place = tiny.folder()
    model = mlx_speech.load(place / "whisper")
    found = Pipeline(model, align_model=mlx_speech.load(place / "wav2vec2"))(real("data/audio/en/jfk.flac"), **GREEDY)
    assert found.segments and found.models["whisper"] == "mlx_speech.models.whisper"


def test_without_access_to_the_speakers_nothing_is_transcribed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    refused = pipeline(diarize_model=DIARIZATION)
    with pytest.raises(SourceError) as caught:
        refused(real("data/audio/en/jfk.flac"), diarize=True, on_progress=lambda stage, *_: asked.append(stage))
    said = str(caught.value)
    assert "mlx_speech convert --model pyannote/speaker-diarization-community-1" in said and "as diarize_model" in said
    assert not asked


def test_a_converted_pipeline_in_the_cache_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_SPEECH_CACHE", str(tmp_path))
    folder = tmp_path / "speaker-diarization-community-1-0123456789abcdef"
    shutil.copytree(tiny.folder() / "diarization", folder)
    config = json.loads((folder / "config.json").read_text())
    config["source"] = {"repo": "pyannote/speaker-diarization-community-1"}
    (folder / "config.json").write_text(json.dumps(config))
    recording = real("data/diar/ami_debug/dev00.wav")
    for name in (None, DIARIZATION):
        found = pipeline(diarize_model=name).diarize(recording, num_speakers=2)
        assert {turn.speaker for turn in found.turns} == {"SPEAKER_00", "SPEAKER_01"}


def test_more_speakers_than_there_are_voices(pipe: Pipeline) -> None:
    with pytest.warns(UserWarning, match="speakers"):
        found = pipe.diarize(real("data/audio/en/jfk.flac"), num_speakers=40)
    assert 1 <= len({turn.speaker for turn in found.turns}) < 40


def test_warnings_are_for_users() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline()(real("data/audio/en/jfk.flac"), **GREEDY)


@pytest.mark.parametrize("q_bits, compute_type", [(8, "int8"), (4, "int4")])
def test_fewer_bits_of_what_is_converted_already(q_bits: int, compute_type: str) -> None:
    from mlx_speech import whisperx

    recording = load_audio(real("data/audio/en/jfk.flac"))
    model = pipeline(q_bits=q_bits)
    assert model(recording, **GREEDY).segments
    values = model.models.whisper().model.encoder.blocks[0].mlp1.weight[0, :64]
    assert len(np.unique(np.array(values))) <= 2**q_bits < 64 or q_bits == 8
    plain = pipeline().models.whisper().model.encoder.blocks[0].mlp1.weight[0, :64]
    assert 0 < mx.abs(values - plain).max().item() < mx.abs(plain).max().item()
    result = whisperx.load_model(tiny.folder() / "whisper", compute_type=compute_type, language="en").transcribe(
        recording
    )
    assert result["segments"] and result["language"] == "en"
