"""Window after window: openai/whisper's own `transcribe`, run side by side with ours on the same scripts and models."""

from __future__ import annotations

import math
import sys
import zlib
from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby
from typing import Any

import mlx.core as mx
import numpy as np
import originals as make
import pytest
import torch
import whisper.audio
import whisper.timing
import whisper.tokenizer
from scripted import Script, ScriptedModel, openai_model

from mlx_speech.errors import OptionError
from mlx_speech.models.whisper import Model, ModelArgs
from mlx_speech.options import Options
from mlx_speech.stages.whisper import longform, word_times
from mlx_speech.stages.whisper.decode import DecodingOptions, DecodingResult, Job
from mlx_speech.stages.whisper.longform import transcribe_sequential
from mlx_speech.stages.whisper.tokenizer import Tokenizer
from mlx_speech.stages.whisper.word_times import WordTiming
from mlx_speech.transcript import Segment

openai = sys.modules["whisper.transcribe"]  # the name in the package is that of the function
OFF = {"compression_ratio_threshold": None, "logprob_threshold": None, "no_speech_threshold": None}
GREEDY = {"temperature": (0.0,), "sample_len": 16, **OFF}
FALLBACK = {"temperature": (0.0, 0.4, 0.8), "best_of": 2, "sample_len": 16}
LENGTHS = (61.21, 35.0, 41.777, 33.005)


@lru_cache(maxsize=len(LENGTHS))
def recording(seconds: float) -> np.ndarray:
    return make.babble(seconds).numpy()


@lru_cache(maxsize=len(LENGTHS))
def spectrogram(seconds: float) -> torch.Tensor:
    return whisper.audio.log_mel_spectrogram(recording(seconds), 80, padding=480_000)


@lru_cache(maxsize=2)
def tokenizer(multilingual: bool = True) -> Tokenizer:
    return Tokenizer.find(None, 51865 if multilingual else 51864)


class Recorded:
    """A scripted model that remembers which windows it has heard."""

    def __init__(self, model: Any):
        self.model, self.heard, encode = model, [], model.encoder

        def encoder(mel: Any) -> Any:
            encoded = encode(mel)
            self.heard.append(round(float(encoded[0, 0, 0])))
            return encoded

        model.encoder = encoder

    @property
    def windows(self) -> list[int]:
        """Without retries."""
        return [window for window, _ in groupby(self.heard)]


def compare(
    script: Script,
    seconds: float,
    monkeypatch: pytest.MonkeyPatch,
    *,
    language: str | None = "en",
    initial_prompt: str | None = None,
    **options: Any,
) -> tuple[Segment, ...]:
    """Both on the same script; the segments, which are the same."""
    monkeypatch.setattr(openai, "log_mel_spectrogram", lambda *_, **__: spectrogram(seconds))
    _ = script.ids.all_language_codes  # upstream keeps what it decodes here, of which the next line would leave nothing
    # upstream writes the names of special tokens into the text whose compression it measures
    monkeypatch.setattr(whisper.tokenizer.Tokenizer, "decode", _text)
    decoding = {k: options.pop(k) for k in list(options) if k in DecodingOptions.__dataclass_fields__}
    theirs, ours = Recorded(openai_model(script, monkeypatch)), Recorded(ScriptedModel(script))
    audio = recording(seconds)
    expected = openai.transcribe(
        theirs.model, audio, language=language, initial_prompt=initial_prompt, fp16=False, **decoding, **options
    )
    options["clip_timestamps"] = options.get("clip_timestamps", ())
    monkeypatch.setattr(word_times, "tidy", lambda words, start, end: tuple(words))  # as upstream leaves them
    found = transcribe_sequential(
        audio,
        ours.model,
        tokenizer(script.multilingual),
        DecodingOptions(**decoding, initial_prompt=initial_prompt),
        language=language,
        **options,
    )
    assert ours.windows == theirs.windows
    assert ours.windows
    same(found, [segment for segment in expected["segments"] if segment["tokens"]], audio.size / 16_000)
    assert all(segment.language == expected["language"] for segment in found)
    return found


def _text(self: whisper.tokenizer.Tokenizer, tokens: list[int]) -> str:
    return self.encoding.decode([token for token in tokens if token < self.eot])


def same(found: tuple[Segment, ...], expected: list[dict], duration: float) -> None:
    """The same, but that the original's segments may lie beyond the end of the recording, and may last no time."""

    def exact(segment: Segment) -> tuple:
        words = [(word.text, word.start, word.end) for word in segment.words]
        return segment.start, segment.end, segment.text, segment.tokens, segment.temperature, words

    def theirs(segment: dict) -> tuple:
        words = [(word["word"], word["start"], word["end"]) for word in segment.get("words", [])]
        start, end = segment["start"], min(segment["end"], duration)
        if start >= duration:
            start = duration - 0.02
        if end <= start:
            end = min(start + 0.02, duration)
        return start, end, segment["text"].strip(), tuple(segment["tokens"]), segment["temperature"], words

    assert [exact(segment) for segment in found] == [theirs(segment) for segment in expected]
    for name in ("avg_logprob", "no_speech_prob", "compression_ratio"):
        values = [getattr(segment, name) for segment in found], [float(segment[name]) for segment in expected]
        np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-5)


PROMPT = "Glossary: Aldebaran, Betelgeuse"
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "plain": (33, GREEDY),
    "unconditioned": (16, {**GREEDY, "condition_on_previous_text": False}),
    "prompt": (16, {**GREEDY, "initial_prompt": PROMPT}),
    "prompt, unconditioned": (12, {**GREEDY, "initial_prompt": PROMPT, "condition_on_previous_text": False}),
    "prompt in every window": (12, {**GREEDY, "initial_prompt": PROMPT, "carry_initial_prompt": True}),
    "long prompt": (10, {**GREEDY, "initial_prompt": PROMPT * 14, "carry_initial_prompt": True}),
    "clip": (12, {**GREEDY, "clip_timestamps": [3.217]}),
    "clips": (14, {**GREEDY, "clip_timestamps": [1.0, 8.5, 5.03, 31.0, 31.0, 31.0, 33.333]}),
    "thresholds": (14, FALLBACK),
    "thresholds, prompt": (8, {**FALLBACK, "initial_prompt": PROMPT, "carry_initial_prompt": True}),
    "thresholds, unconditioned": (6, {**FALLBACK, "condition_on_previous_text": False}),
    "silence only": (14, {**GREEDY, "no_speech_threshold": 0.6}),
    "without timestamps": (10, {**GREEDY, "without_timestamps": True}),
    "any start": (8, {**GREEDY, "max_initial_timestamp": None, "suppress_tokens": ""}),
    "beams": (4, {**GREEDY, "beam_size": 2}),
    "detected": (6, {**GREEDY, "language": None}),
    "translated": (6, {**GREEDY, "task": "translate", "language": "de"}),
}


@pytest.mark.parametrize("name", CASES)
def test_segments_are_those_of_openai(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    count, options = CASES[name]
    found = []
    for k in range(count):
        script = Script(seed=zlib.crc32(name.encode()) + k, length=(4, 8, 3)[k % 3])
        found += compare(script, LENGTHS[k % len(LENGTHS)], monkeypatch, **dict(options))
    assert len(found) >= 2 * count, "too few segments to tell"
    if options["temperature"] != (0.0,):
        assert {segment.temperature for segment in found} >= {0.0, 0.8}


def test_there_are_enough_cases() -> None:
    assert sum(count for count, _ in CASES.values()) >= 200


def test_english_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(3):
        assert compare(Script(seed, multilingual=False), 35.0, monkeypatch, **GREEDY)


def test_moods(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loops, doubt and silence in every window: every threshold, and the prompt's reset, decides."""
    temperatures = {}
    for mood in ("loop", "unsure", "silent", "sure"):
        found = compare(Script(5, mood=mood), 35.0, monkeypatch, **{**FALLBACK, "sample_len": 30})
        temperatures[mood] = {segment.temperature for segment in found}
    assert temperatures["sure"] == {0.0}
    assert max(temperatures["loop"]) > 0.5
    assert temperatures["silent"] == set()


# --- words -----------------------------------------------------------------------------------------------------------


def scripted_alignment(tokens: list[int], words: list[str], word_tokens: list[list[int]], num_frames: int) -> list:
    """(word, tokens, start, end, probability), of every kind: short, long, after pauses, improbable."""
    rng = np.random.default_rng(zlib.crc32(np.array([num_frames, *tokens]).tobytes()))
    kind = rng.integers(4)
    scale = rng.choice([3, 10, 25, 60])
    lengths = np.ceil(rng.exponential(scale, len(words))) * (rng.random(len(words)) > 0.1)
    pauses = rng.choice([0, 0, 0, 40, 150, 400], len(words)) * (kind != 0)
    sure = rng.uniform(0, 0.2, len(words)) if kind == 1 else rng.uniform(0.1, 1, len(words))
    if kind == 3:  # some segments improbable, some not
        lengths, sure = lengths + 8, np.where(np.sin(np.arange(len(words)) + rng.uniform(0, 6)) > 0, 0.9, 0.05)
    last = num_frames // 2
    if rng.random() < 0.5:  # up to 4 s before the end
        factor = max(last - rng.integers(200), 50) / (lengths + pauses).sum().clip(1)
        lengths, pauses = np.floor(lengths * factor), np.floor(pauses * factor)
    ends = np.cumsum(lengths + pauses)
    high = np.minimum(ends, last) / 50
    low = np.minimum(ends - lengths, last) / 50
    rows = zip(words[:-1], word_tokens[:-1], low.tolist(), high.tolist(), sure.tolist(), strict=False)
    found = list(rows) if len(words) > 1 else []
    return found[: rng.integers(len(found) + 1)] if kind == 2 else found  # segments at the end without words


@pytest.fixture
def _words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alignments are scripted."""

    def theirs(model: Any, tokenizer: Any, text_tokens: list[int], mel: Any, num_frames: int) -> list:
        if not text_tokens:
            return []
        split = tokenizer.split_to_word_tokens([*text_tokens, tokenizer.eot])
        rows = scripted_alignment(text_tokens, *split, num_frames)
        return [whisper.timing.WordTiming(*row) for row in rows]

    def ours(
        encoded: Any,
        texts: list,
        model: Any,
        tokenizer: Tokenizer,
        *,
        languages: list,
        task: str,
        num_frames: list,
        audio: Any,
    ) -> list:
        (text,), (frames,) = texts, num_frames
        split = tokenizer.split_to_word_tokens([*text, tokenizer.eot], languages[0])
        rows = scripted_alignment(list(text), *split, frames) if text else []
        return [[WordTiming(row[0], tuple(row[1]), *row[2:]) for row in rows]]

    monkeypatch.setattr(whisper.timing, "find_alignment", theirs)
    monkeypatch.setattr(word_times, "find_alignment", ours)


def scripted_result(script: Script, window: int, prompt: tuple[int, ...]) -> dict[str, Any]:
    """What is decoded, at once: quicker than token by token. Segments of a few words, with every kind of end."""
    rng = np.random.default_rng([script.seed, window, zlib.crc32(np.array(prompt, dtype=np.int64).tobytes())])
    begin, time, tokens = script.ids.timestamp_begin, int(rng.integers(0, 50)), []
    for _ in range(rng.integers(0, 5)):
        words = rng.choice(script.words, rng.integers(1, 6)).tolist()
        spoken = rng.integers(1, 300)
        tokens += [begin + time, *words, begin + time + spoken]
        time = min(time + spoken + int(rng.choice([0, 0, 30, 250])), 1490)
        if time + 300 > 1500:
            break
    tokens += [[], [begin + time], [begin + time, *rng.choice(script.words, 3).tolist()]][rng.integers(3)]
    if rng.random() < 0.1:
        tokens = [token for token in tokens if token < begin]
    return {
        "tokens": tokens,
        "text": "",
        "language": "en",
        "avg_logprob": float(rng.choice([-0.5, -0.5, -1.5])),
        "no_speech_prob": float(rng.choice([0.1, 0.1, 0.9])),
        "temperature": float(rng.choice([0.0, 0.0, 0.8])),
        "compression_ratio": 1.0,
    }


@pytest.fixture
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results are scripted, and spectrograms are kept."""

    def theirs(model: Any, mel: torch.Tensor, options: whisper.DecodingOptions) -> whisper.DecodingResult:
        encoded = model.encoder(mel[None])
        result = scripted_result(model.script, int(encoded[0, 0, 0]), tuple(options.prompt))
        return whisper.DecodingResult(encoded, **result)

    def ours(jobs: list[Job], model: Any, *_: Any, **__: Any) -> Iterator[tuple[Job, DecodingResult]]:
        for job in jobs:
            result = scripted_result(model.script, int(job.encoded[0, 0].item()), job.prompt)
            yield job, DecodingResult(**{**result, "tokens": tuple(result["tokens"])})

    mel = lru_cache(maxsize=len(LENGTHS))(lambda seconds: LogMel(recording(seconds), Script(0).args))
    seconds = {recording(length).size: length for length in LENGTHS}
    monkeypatch.setattr(whisper.decoding, "decode", theirs)
    monkeypatch.setattr(longform.fallback, "decode_with_fallback", ours)
    monkeypatch.setattr(longform, "_LogMel", lambda audio, args: mel(seconds[audio.size]))


LogMel = longform._LogMel
WORDS = {"temperature": (0.0,), "word_timestamps": True}


@pytest.mark.usefixtures("_words", "_at_once")
@pytest.mark.parametrize("threshold", [None, 0.1, 0.5, 2.0, 4.0])
def test_words_and_what_is_skipped_are_those_of_openai(
    threshold: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for seed in range(279, 309):
        options = {**WORDS, "hallucination_silence_threshold": threshold}
        if seed % 4 == 2:
            options |= {"initial_prompt": PROMPT, "condition_on_previous_text": False}
        if seed % 4 == 3:
            options["clip_timestamps"] = [2.0, 20.0, 21.5]
        found += compare(Script(seed), LENGTHS[seed % len(LENGTHS)], monkeypatch, **options)
    assert len(found) > 80 and sum(len(segment.words) for segment in found) > 200


@pytest.mark.usefixtures("_words", "_at_once")
def test_a_threshold_of_nothing_comes_to_an_end() -> None:
    """The original hangs where the first word begins with its window, but for rounding."""
    found = [
        run(recording(35.0), 37, word_timestamps=True, hallucination_silence_threshold=threshold)
        for threshold in (0.0, 0.001)
    ]
    assert found[0] == found[1]


@pytest.mark.usefixtures("_at_once")
@pytest.mark.parametrize("condition", [True, False])
def test_prompts_are_those_of_openai(condition: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over silence, results of high temperatures and clips."""
    for seed in range(24):
        options = {"temperature": (0.0,), "condition_on_previous_text": condition}
        options |= {"initial_prompt": PROMPT if seed % 4 else None, "carry_initial_prompt": seed % 4 == 3}
        if seed % 5 == 4:
            options["clip_timestamps"] = [2.0, 9.0, 4.35, 31.0]
        compare(Script(seed), LENGTHS[seed % len(LENGTHS)], monkeypatch, **options)


@pytest.mark.usefixtures("_words", "_at_once")
def test_words_are_given_out_tidily() -> None:
    for seed in range(10):
        found = run(recording(35.0), seed, word_timestamps=True)
        for segment in found:
            assert 0 <= segment.start < segment.end <= 35.0
            times = [time for word in segment.words for time in (word.start, word.end)]
            assert times == sorted(times)
            assert not times or segment.start <= times[0] <= times[-1] <= segment.end
            assert all(word.text and word.text == word.text.strip() for word in segment.words)


@pytest.mark.usefixtures("_words", "_at_once")
@pytest.mark.parametrize("words", [False, True])
def test_nothing_lies_beyond_the_end_of_the_recording(words: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last window is filled up with silence; what is said to be there has the recording's last moment."""
    begin = tokenizer().timestamp_begin
    text = tokenizer().encode(" hello there you")
    tokens = [begin, *text, begin + 400, begin + 400, *text, begin + 1450, begin + 1450, *text, begin + 1500]
    result = {"text": "", "language": "en", "avg_logprob": -0.5, "no_speech_prob": 0.1, "temperature": 0.0}

    def decoded(jobs: list[Job], *_: Any, **__: Any) -> Iterator[tuple[Job, DecodingResult]]:
        for job in jobs:
            yield job, DecodingResult(**result, tokens=tuple(tokens), compression_ratio=1.0)

    monkeypatch.setattr(longform.fallback, "decode_with_fallback", decoded)
    monkeypatch.setattr(longform, "_LogMel", LogMel)
    heard: list[Segment] = []
    for seconds in (0.01, 0.5, 7.995, 8.003, 28.9, 29.0, 30.0):
        samples = round(seconds * 16_000)
        found = run(recording(35.0)[:samples], word_timestamps=words)
        heard += found  # segments whose words all last no time are left out, as in the original
        assert all(0 <= segment.start < segment.end <= samples / 16_000 for segment in found)
        if not words:  # the times of words decide where segments are
            assert [segment.text for segment in found][:3] == ["hello there you"] * 3
        for segment in found:
            edges = [segment.start, *(time for w in segment.words for time in (w.start, w.end)), segment.end]
            assert edges == sorted(edges)
    assert len(heard) > 8


# --- one real model, random but the same -----------------------------------------------------------------------------

SMALL = {"n_mels": 80, "n_audio_ctx": 1500, "n_audio_state": 64, "n_audio_head": 1, "n_audio_layer": 1}
SMALL |= {"n_vocab": 51865, "n_text_ctx": 448, "n_text_state": 64, "n_text_head": 1, "n_text_layer": 2}


def converted(original: Any) -> Model:
    model, weights = Model(ModelArgs(**vars(original.dims))), {}
    for name, tensor in original.state_dict().items():
        if name != "encoder.positional_embedding":
            value = mx.array(tensor.numpy())
            weights[name.replace("mlp.0", "mlp1").replace("mlp.2", "mlp2")] = (
                value.swapaxes(1, 2) if value.ndim == 3 else value
            )
    model.load_weights(list(weights.items()), strict=False)
    model.encoder.positional_embedding = mx.array(original.encoder.positional_embedding.numpy())
    return model


@pytest.mark.parametrize("words", [False, True])
def test_a_real_model_gives_the_same(words: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_times, "tidy", lambda words, start, end: tuple(words))
    # the original's takes seconds to compile, and is compared in test_word_times
    monkeypatch.setattr(whisper.timing, "dtw", lambda x: np.stack(word_times.dtw([x.numpy()])[0]))
    audio, options = recording(35.0), {**GREEDY, "sample_len": 24}
    tokens = set()
    for seed in (1, 2):
        original = make.whisper_openai(SMALL, seed)
        make.scale(original.decoder.blocks[1].cross_attn.query.weight, 4.0)
        expected = openai.transcribe(original, audio, language="en", word_timestamps=words, fp16=False, **options)
        found = transcribe_sequential(
            audio,
            converted(original),
            tokenizer(),
            DecodingOptions(**options),
            language="en",
            word_timestamps=words,
        )
        same(found, [segment for segment in expected["segments"] if segment["tokens"]], audio.size / 16_000)
        tokens.update(token for segment in found for token in segment.tokens)
        assert not words or any(segment.words for segment in found)
    assert len(tokens) > 5


# --- by itself -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [161, 200, 201, 399, 16_000, 16_000 * 35 + 77])
def test_windows_are_cut_from_the_spectrogram_of_the_whole(samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its loudest frame, here near the end, sets the floor everywhere; of a piece only its own frames are computed."""
    monkeypatch.setattr(longform, "FRAMES_PER_PIECE", 700)
    rng = np.random.default_rng(samples)
    audio = (rng.normal(size=samples) * np.geomspace(1e-6, 1, samples)).astype(np.float32)
    expected = whisper.audio.log_mel_spectrogram(audio, 80, padding=480_000).numpy().T
    mel = longform._LogMel(audio, ScriptedModel(Script(0)).args)
    assert mel.frames == len(expected) - 3000
    for start in range(0, mel.frames, 1234):
        size = min(mel.frames - start, 3000)
        window = np.array(mel.window(start, size))
        assert window.shape == (3000, 80)
        np.testing.assert_allclose(window[:size], expected[start : start + size], atol=2e-5)
        assert not window[size:].any()


def test_a_long_recording_takes_little_memory() -> None:
    audio = np.ones(16_000 * 60 * 20, np.float32)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mel = longform._LogMel(audio, ScriptedModel(Script(0)).args)
    mx.eval(mel.window(60_000, 3000))
    assert mel.frames == 120_000
    assert mx.get_peak_memory() - before < audio.nbytes


@pytest.mark.parametrize("samples", [0, 1, 159])
def test_less_than_a_frame_has_no_segments(samples: int) -> None:
    assert run(np.zeros(samples, np.float32)) == ()


def run(audio: np.ndarray, seed: int = 0, **options: Any) -> tuple[Segment, ...]:
    options = {"language": "en", "options": DecodingOptions(**GREEDY), **options}
    return transcribe_sequential(audio, ScriptedModel(Script(seed)), tokenizer(), **options)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"clip_timestamps": (-1.0,)}, "clip_timestamps"),
        ({"clip_timestamps": (math.nan, 3.0)}, "clip_timestamps"),
        ({"clip_timestamps": (5.0, 4.0)}, "clip_timestamps"),
        ({"hallucination_silence_threshold": 2.0}, "word_timestamps"),
        ({"hallucination_silence_threshold": -1.0, "word_timestamps": True}, "hallucination_silence_threshold"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], named: str) -> None:
    with pytest.raises(OptionError, match=named):
        run(recording(35.0), **options)


def test_clips_end_with_the_recording() -> None:
    """Where the original would never come to an end."""
    whole = run(recording(35.0), clip_timestamps=(3.0,))
    assert run(recording(35.0), clip_timestamps=(3.0, 1000.0, 2000.0, 3000.0)) == whole
    assert run(recording(35.0), clip_timestamps=(40.0,)) == ()


def test_it_comes_to_an_end_whatever_the_model_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two timestamps at 0.00 would move the window by nothing."""
    monkeypatch.setattr(longform, "split_at_timestamps", lambda tokens, begin, duration: ([], 1))
    monkeypatch.setattr(longform, "is_silence", lambda *_: False)
    monkeypatch.setattr(Script, "mood_of", lambda self, window: "sure")
    done: list[float] = []
    options = DecodingOptions(**GREEDY, max_initial_timestamp=0.001)  # the first token is always 0.00
    run(recording(61.21), options=options, on_progress=done.append)
    assert done == [30.0, 60.0, 61.21]


def test_progress_is_in_seconds_and_ends_with_the_recording() -> None:
    done: list[float] = []
    run(recording(50.005), seed=3, on_progress=done.append)
    assert done == sorted(done)
    assert done[-1] == 50.0
    assert len(done) > 1


def test_windows_are_decoded_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two of them others may have a turn; and it may be left there."""
    decoded: list[float] = []
    decode = longform._WindowDecoder.decode

    def counted(self: Any, window: Any, prompt: Any) -> Any:
        decoded.append(window.start)
        return decode(self, window, prompt)

    monkeypatch.setattr(longform._WindowDecoder, "decode", counted)
    audio, model, options = recording(61.21), ScriptedModel(Script(3)), DecodingOptions(**GREEDY)
    steps = longform.transcribe_steps(audio, model, tokenizer(), options, language="en")
    done = [next(steps)]
    assert len(decoded) == 1 and 0 < done[0] <= 30.0
    with pytest.raises(StopIteration) as stopped:
        while True:
            done.append(next(steps))
            assert len(decoded) == len(done)
    assert tuple(stopped.value.value) == run(audio, seed=3)
    assert done == sorted(done)


def test_options_of_the_pipeline_are_taken() -> None:
    options = Options.of(**GREEDY, sequential=True, initial_prompt=PROMPT, carry_initial_prompt=True)
    plain = DecodingOptions(**GREEDY, initial_prompt=PROMPT)
    found = run(recording(35.0), options=options.decoding, carry_initial_prompt=True)
    assert found == run(recording(35.0), options=plain, carry_initial_prompt=True)
    assert found != run(recording(35.0))
