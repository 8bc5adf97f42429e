"""Chunks to segments: openai/whisper's decoding chunk by chunk, beside ours in batches; scripted and real models."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import islice, pairwise, product
from typing import Any

import mlx.core as mx
import numpy as np
import originals as make
import pytest
import whisper
import whisper.audio
import whisper.decoding
from scripted import Script, ScriptedModel, answer_at_once, openai_model

from mlx_speech.errors import OptionError
from mlx_speech.models.whisper import Model, ModelArgs
from mlx_speech.stages.whisper import batched, decode
from mlx_speech.stages.whisper.batched import Task
from mlx_speech.stages.whisper.decode import DecodingOptions
from mlx_speech.stages.whisper.segments import believed, split_at_timestamps
from mlx_speech.stages.whisper.tokenizer import Tokenizer
from mlx_speech.transcript import Chunk, Segment, Word

OFF = {"compression_ratio_threshold": None, "logprob_threshold": None, "no_speech_threshold": None}
GREEDY = DecodingOptions(temperature=(0.0,), sample_len=30, **OFF)
FALLBACK = DecodingOptions(temperature=(0.0, 0.8), best_of=2, sample_len=16)
RECORDING = make.babble(120).numpy()
BOUNDS = ((0.5, 8.13), (8.5, 38.5), (40.0, 41.004), (45.25, 52.0), (52.0, 60.7), (60.7, 89.9), (90.0, 90.4), (95, 120))
SMALL = {"n_mels": 80, "n_audio_ctx": 1500, "n_audio_state": 64, "n_audio_head": 1, "n_audio_layer": 1}
SMALL |= {"n_vocab": 51865, "n_text_ctx": 448, "n_text_state": 64, "n_text_head": 1, "n_text_layer": 2}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.find(None, 51865)


@pytest.fixture(scope="module")
def english() -> Tokenizer:
    return Tokenizer.find(None, 51864)


def task(start: float, end: float, language: str | None = "en", **options: Any) -> Task:
    audio = RECORDING[int(start * 16000) : int(end * 16000)]
    return Task((start, end), Chunk(start, end), audio, language, **options)


def tasks(**options: Any) -> list[Task]:
    return [task(start, end, **options) for start, end in BOUNDS]


def run(given: list[Task], model: Any, tokenizer: Tokenizer, options: DecodingOptions, **more: Any) -> dict:
    """Segments by key; every task comes once."""
    found = [(done.key, segments) for done, segments in batched.transcribe(given, model, tokenizer, options, **more)]
    assert sorted(key for key, _ in found) == sorted(one.key for one in given)
    return dict(found)


def small(seed: int, **dims: int) -> Model:
    """A random model whose text has some variety, and whose attention depends on the audio."""
    mx.random.seed(seed)
    model, rng = Model(ModelArgs(**{**SMALL, **dims})), np.random.default_rng(seed)
    shapes = {"decoder.positional_embedding": (448, 64), "decoder.token_embedding.weight": (51865, 64)}
    model.load_weights(
        [(n, mx.array(rng.normal(0, 0.5, s).astype(np.float32))) for n, s in shapes.items()], strict=False
    )
    for block in model.decoder.blocks:
        block.cross_attn.query.weight = block.cross_attn.query.weight * 6
    return model.eval()


# --- the same as openai/whisper, chunk by chunk ----------------------------------------------------------------------


def pieces(tokens: list[int], begin: int) -> list[tuple[float, float | None, list[int]]]:
    """By pattern: text between two timestamps, wherever two timestamps meet."""
    kinds = "".join("t" if token >= begin else "x" for token in tokens)
    cuts = [0, *(match.start() + 1 for match in re.finditer("(?=tt)", kinds)), len(tokens)]
    times = [(token - begin) * 0.02 for token in tokens]
    if len(cuts) == 2:
        last = next((time for time, kind in zip(times[::-1], kinds[::-1], strict=True) if kind == "t"), 0.0)
        return [(0.0, last or None, tokens)]
    spans = list(pairwise(cuts))
    whole = [(times[i], times[j - 1], tokens[i:j]) for i, j in spans[:-1]]
    i, j = spans[-1]
    return [*whole, (times[i], times[j - 1] if kinds.endswith("xt") else None, tokens[i:j])]


@pytest.mark.parametrize(("seed", "batch_size"), list(enumerate([1, 3, 8, 5])))
def test_text_and_times_are_those_of_openai(
    seed: int, batch_size: int, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script(seed, length=(6, 14)[seed % 2])
    original = openai_model(script, monkeypatch)
    found = run(tasks(), ScriptedModel(script), tokenizer, GREEDY, batch_size=batch_size)
    for one in tasks():
        mel = make.window_mel(one.audio)
        (result,) = original.decode(mel[None], whisper.DecodingOptions(language="en", fp16=False, sample_len=30))
        expected = []
        for start, end, tokens in pieces(result.tokens, tokenizer.timestamp_begin):
            text = tokenizer.decode(tokens).strip()
            low = min(one.chunk.start + start, one.chunk.end)
            high = one.chunk.end if end is None else min(one.chunk.start + end, one.chunk.end)
            if text and low < high:
                expected.append((pytest.approx(low), pytest.approx(high), text, tuple(tokens)))
        assert [(s.start, s.end, s.text, s.tokens) for s in found[one.key]] == expected
        for segment in found[one.key]:
            assert segment.avg_logprob == pytest.approx(result.avg_logprob, rel=1e-4)
            assert segment.no_speech_prob == pytest.approx(result.no_speech_prob, rel=1e-3, abs=1e-6)


def test_without_timestamps_a_chunk_is_a_segment(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(3)
    original = openai_model(script, monkeypatch)
    options = DecodingOptions(temperature=(0.0,), without_timestamps=True, **OFF)
    found = run(tasks(), ScriptedModel(script), tokenizer, options)
    for one in tasks():
        mel = make.window_mel(one.audio)
        asked = whisper.DecodingOptions(language="en", fp16=False, without_timestamps=True)
        (result,) = original.decode(mel[None], asked)
        tokens = [token for token in result.tokens if token < tokenizer.eot]
        expected = [(*one.key, tokenizer.decode(tokens).strip(), tuple(tokens))] if result.text else []
        assert [(s.start, s.end, s.text, s.tokens) for s in found[one.key]] == expected


def test_every_short_text_is_cut_like_the_pattern() -> None:
    """All texts of up to six tokens: words, and the timestamps 0.00, 0.02 and 0.04."""
    begin, checked = 100, 0
    for length in range(1, 7):
        for tokens in product((7, 100, 101, 102), repeat=length):
            if tokens[0] < begin and any(token >= begin for token in tokens):
                continue  # where it begins with a word, it has no timestamps
            found, used = split_at_timestamps(tokens, begin, 9.0)
            expected = pieces(list(tokens), begin)
            if used is not None:
                assert [*tokens[used:]] == expected[-1][2]
                assert expected.pop()[1] is None
            assert [(start, end, list(part)) for start, end, part in found] == [
                (start, 9.0 if end is None else end, part) for start, end, part in expected
            ]
            checked += 1
    assert checked > 4000


def test_a_text_without_an_end_lasts_to_the_end_of_the_chunk(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = tokenizer.timestamp_begin
    tokens = (begin, 2425, begin + 50, begin + 60, 1002)
    result = decode.DecodingResult(tokens, "", "en", -0.1, 0.0, 0.0, 1.0)
    answer_at_once(lambda jobs, **_: ((job, result) for job in jobs), monkeypatch)
    (found,) = run([task(40.0, 43.0)], ScriptedModel(Script(0)), tokenizer, GREEDY).values()
    assert [(s.start, s.end, s.tokens) for s in found] == [(40.0, 41.0, tokens[:3]), (41.2, 43.0, tokens[3:])]


# --- what always holds -----------------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def alone(seed: int) -> dict:
    """Chunk by chunk."""
    return run(tasks(), ScriptedModel(Script(seed)), Tokenizer.find(None, 51865), FALLBACK, batch_size=1)


@pytest.mark.parametrize("seed", range(4))
def test_segments_are_in_order_and_inside_and_the_same_in_any_batch(seed: int, tokenizer: Tokenizer) -> None:
    for one in tasks():
        times = [time for segment in alone(seed)[one.key] for time in (segment.start, segment.end)]
        assert times == sorted(times)
        assert not times or one.chunk.start <= times[0] <= times[-1] <= one.chunk.end
        assert all(segment.text == segment.text.strip() != "" for segment in alone(seed)[one.key])
    batch = run(tasks(), ScriptedModel(Script(seed)), tokenizer, FALLBACK, batch_size=2 + seed)
    for key, segments in alone(seed).items():
        assert brief(batch[key]) == brief(segments)


def brief(segments: tuple[Segment, ...]) -> list:
    return [(s.start, s.end, s.text, s.tokens, s.language, s.temperature) for s in segments]


def test_all_temperatures_occur() -> None:
    """That the test above tries retries and silence."""
    found = [segments for seed in range(4) for segments in alone(seed).values()]
    assert {segment.temperature for segments in found for segment in segments} == {0.0, 0.8}
    assert () in found


@pytest.mark.parametrize("words", [False, True])
def test_tasks_are_pulled_as_they_are_needed(words: bool, tokenizer: Tokenizer) -> None:
    pulled, ahead = 0, []

    def endless() -> Iterator[Task]:
        nonlocal pulled
        while True:
            start = 3.0 * (pulled % 35)
            pulled += 1
            yield task(start, start + 2.5, words=words)

    model = small(1) if words else ScriptedModel(Script(4))
    options = DecodingOptions(temperature=(0.0,), sample_len=8, **OFF) if words else FALLBACK
    results = batched.transcribe(endless(), model, tokenizer, options, batch_size=3)
    for done, _ in enumerate(islice(results, 24)):
        ahead.append(pulled - done)
    assert max(ahead) <= 4 * 3


@pytest.mark.parametrize("sure", [True, False])
def test_silence_has_no_segments_unless_the_text_is_sure(
    sure: bool, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = decode.DecodingResult((2425,), "x", "en", -0.5 if sure else -1.5, 0.7, 0.0, 1.0)
    answer_at_once(lambda jobs, **_: ((job, results) for job in jobs), monkeypatch)
    model, chunk = ScriptedModel(Script(0)), [task(40.0, 43.0)]
    for options, silent in (
        (DecodingOptions(), not sure),
        (DecodingOptions(logprob_threshold=None), True),
        (DecodingOptions(no_speech_threshold=None), False),
        (DecodingOptions(no_speech_threshold=0.8), False),
    ):
        (found,) = run(chunk, model, tokenizer, options).values()
        assert (found == ()) == silent, options


@pytest.mark.parametrize("samples", [0, 1, 319])
def test_a_chunk_without_sound_has_no_segments(samples: int, tokenizer: Tokenizer) -> None:
    empty = Task("empty", Chunk(3.0, 3.0), RECORDING[:samples], None)
    model = ScriptedModel(Script(1))
    assert list(batched.transcribe([], model, tokenizer, GREEDY)) == []
    assert list(batched.transcribe([empty, empty], model, tokenizer, GREEDY, batch_size=1)) == [(empty, ())] * 2
    found = dict(batched.transcribe([empty, task(0, 30), empty, task(40, 50)], model, tokenizer, GREEDY, batch_size=2))
    assert len(found) == 3


def test_chunks_fit_the_window_of_the_model(tokenizer: Tokenizer) -> None:
    model = small(0, n_audio_ctx=300)
    assert batched.samples_per_window(model) == 96_000
    options = DecodingOptions(temperature=(0.0,), sample_len=8, **OFF)
    found = run([task(3.0, 9.0, words=True), task(50.0, 52.0)], model, tokenizer, options)
    assert all(3.0 <= segment.start <= segment.end <= 9.0 for segment in found[3.0, 9.0])
    with pytest.raises(OptionError, match="chunk_size"):
        run([task(0.0, 6.1)], model, tokenizer, options)
    with pytest.raises(OptionError, match="batch_size"):
        run([], model, tokenizer, options, batch_size=0)


# --- words -----------------------------------------------------------------------------------------------------------


class Counted:
    """A model that counts the rows it encodes."""

    def __init__(self, model: Model):
        self.args, self.decoder, self.model, self.rows = model.args, model.decoder, model, 0

    def encoder(self, mel: mx.array) -> mx.array:
        self.rows += mel.shape[0]
        return self.model.encoder(mel)


@pytest.mark.parametrize("without_timestamps", [False, True])
def test_words_are_inside_their_segments_and_the_same_in_any_batch(
    without_timestamps: bool, tokenizer: Tokenizer
) -> None:
    options = DecodingOptions(temperature=(0.0,), sample_len=16, without_timestamps=without_timestamps, **OFF)
    given = [task(start, end, words=end != 8.13) for start, end in BOUNDS[:6]]
    model = Counted(small(3))
    batch = run(given, model, tokenizer, options, batch_size=4)
    assert model.rows == len(given)  # not again for the words
    single = run(given, model, tokenizer, options, batch_size=1)
    assert sum(len(segment.words) for segments in batch.values() for segment in segments) > 20
    for one in given:
        check_words(one, batch[one.key])
        assert brief(batch[one.key]) == brief(single[one.key])
        words = [[(w.text, w.start, w.end) for s in found[one.key] for w in s.words] for found in (batch, single)]
        assert words[0] == words[1]


def check_words(one: Task, segments: tuple[Segment, ...]) -> None:
    last = one.chunk.start
    for segment in segments:
        assert last <= segment.start <= segment.end <= one.chunk.end
        times = [segment.start, *(t for word in segment.words for t in (word.start, word.end)), segment.end]
        assert times == sorted(times)
        assert one.words or not segment.words
        last = segment.end
    if one.words:  # one that runs on from a segment into the next belongs to the first
        said = "".join(word.text for segment in segments for word in segment.words)
        assert said == "".join("".join(segment.text for segment in segments).split())


# --- languages -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("multilingual", [False, True])
def test_languages(multilingual: bool, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """As openai/whisper detects them in each chunk, where they are asked for or not given."""
    script = Script(11, mood="sure")
    original = openai_model(script, monkeypatch)
    given = [task(start, end, language="de" if end < 60 else None) for start, end in BOUNDS]
    found = run(given, ScriptedModel(script), tokenizer, GREEDY, multilingual=multilingual, batch_size=3)
    seen = set()
    for one in given:
        mel = make.window_mel(one.audio)
        _, (probabilities,) = whisper.decoding.detect_language(original, original.encoder(mel[None]))
        detected = max(probabilities, key=probabilities.get)
        expected = detected if multilingual or one.language is None else one.language
        assert {segment.language for segment in found[one.key]} <= {expected}
        seen.update(segment.language for segment in found[one.key])
    assert len(seen) > 2


def test_english_only(english: Tokenizer) -> None:
    model = ScriptedModel(Script(0, multilingual=False))
    found = run(tasks(language=None), model, english, GREEDY, multilingual=True)
    assert {segment.language for segments in found.values() for segment in segments} == {"en"}
    assert batched.detect_language(RECORDING, [], model, english) == ("en", 1.0)


def test_several_chunks_vote_on_the_language(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[np.ndarray] = []
    votes = [{"en": 0.5, "de": 0.5, "fr": 0.0}, {"en": 0.1, "de": 0.2, "fr": 0.7}, {"en": 0.6, "de": 0.2, "fr": 0.2}]
    encode = batched.encode
    monkeypatch.setattr(batched, "encode", lambda audios, model: heard.extend(audios) or encode(audios, model))
    monkeypatch.setattr(decode, "detect_language", lambda encoded, *_: votes[: encoded.shape[0]])
    chunks = [Chunk(start, end) for start, end in BOUNDS]
    model = ScriptedModel(Script(0))
    code, probability = batched.detect_language(RECORDING, chunks, model, tokenizer, max_chunks=3)
    assert (code, probability) == ("fr", pytest.approx(0.3)) or (code, probability) == ("en", pytest.approx(0.4))
    assert code == "en"
    # the longest of the first two, the next three and the last three
    assert [audio.size for audio in heard] == [480_000, 16_000 * 8.7, 16_000 * 29.2]
    heard.clear()
    assert batched.detect_language(RECORDING, [], model, tokenizer)[0] in ("en", "de")
    np.testing.assert_array_equal(heard[0], RECORDING[:480_000])
    with pytest.raises(OptionError, match="max_chunks"):
        batched.detect_language(RECORDING, chunks, model, tokenizer, max_chunks=0)


def test_language_of_one_chunk_is_that_of_openai(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(5)
    original = openai_model(script, monkeypatch)
    found = batched.detect_language(RECORDING, [Chunk(8.5, 38.5)], ScriptedModel(script), tokenizer)
    mel = make.window_mel(RECORDING[8 * 16000 + 8000 :][:480_000])
    _, (probabilities,) = whisper.decoding.detect_language(original, original.encoder(mel[None]))
    best = max(probabilities, key=probabilities.get)
    assert found == (best, pytest.approx(probabilities[best], rel=1e-4))


def test_what_the_language_was_detected_on_is_not_encoded_again(tokenizer: Tokenizer) -> None:
    model, kept = Counted(small(3)), {}
    chunks = [Chunk(start, end) for start, end in BOUNDS]
    batched.detect_language(RECORDING, chunks, model, tokenizer, max_chunks=3, keep=kept)
    assert len(kept) == model.rows == 3
    options = DecodingOptions(temperature=(0.0,), sample_len=8, **OFF)
    given = tasks()
    again = [replace(one, encoded=kept.get(one.chunk)) for one in given]
    found = run(again, model, tokenizer, options, batch_size=4)
    assert model.rows == len(given)
    expected = run(given, model, tokenizer, options, batch_size=4)
    assert {key: brief(segments) for key, segments in found.items()} == {
        key: brief(segments) for key, segments in expected.items()
    }


def test_what_looks_made_up_between_silences_is_left_out() -> None:
    def said(start: float, end: float, score: float) -> Segment:
        half = (start + end) / 2
        return Segment(start, end, "x y", (Word(start, half, " x", score), Word(half, end, " y", score)))

    sure, unsure = 0.9, 0.05
    chunk = Chunk(10.0, 40.0)
    cases = [  # segments, what is left for silences of 1 s
        ([said(15, 16, unsure), said(20, 21, sure)], [20]),  # silence before and after
        ([said(15, 16, unsure), said(16.5, 17, sure)], [15, 16.5]),  # none after
        ([said(12.5, 15, sure), said(15.5, 16, unsure), said(20, 21, sure)], [12.5, 15.5, 20]),  # none before
        ([said(10.5, 11, unsure), said(20, 21, sure)], [20]),  # at the start of the chunk
        ([said(15, 16, sure), said(30, 31, unsure), said(31.1, 32, unsure), said(39, 39.9, sure)], [15, 31.1, 39]),
        ([said(15, 16, sure), said(38, 39, unsure)], [15]),  # at its end
        ([said(11, 39, sure)], []),  # words of 14 s are no words
        ([], []),
    ]
    for segments, left in cases:
        assert [segment.start for segment in believed(segments, chunk, 1.0)] == left
    # an improbable text that stands next to sure ones on both sides is never touched, whatever the silence
    close = [said(15, 16, sure), said(16.1, 17, unsure), said(17.1, 18, sure)]
    assert believed(close, chunk, 0.5) == close


@pytest.mark.parametrize("threshold", [None, 0.0, 100.0])
def test_the_threshold_only_leaves_out_what_looks_made_up(threshold: float | None, tokenizer: Tokenizer) -> None:
    model, given = small(3), tasks(words=True)
    plain = run(given, model, tokenizer, GREEDY, batch_size=3)
    found = run(given, model, tokenizer, GREEDY, batch_size=3, hallucination_silence_threshold=threshold)
    for key, segments in found.items():
        assert {segment.text for segment in segments} <= {segment.text for segment in plain[key]}
        assert threshold is not None or segments == plain[key]
