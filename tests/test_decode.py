"""Decoding beside openai/whisper's: on scripted logits, which vary, and on random models, for the real decoder."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import originals as make
import pytest
import scripted
import torch
import whisper
from scripted import Script, ScriptedModel
from whisper.decoding import DecodingTask

from mlx_speech.errors import OptionError
from mlx_speech.models.whisper import Model, ModelArgs
from mlx_speech.ops.log_sum_exp import log_sum_exp
from mlx_speech.stages.whisper import decode, search
from mlx_speech.stages.whisper import rules as rules_module
from mlx_speech.stages.whisper.decode import DecodingOptions, DecodingResult, Job, detect_language
from mlx_speech.stages.whisper.fallback import decode_with_fallback
from mlx_speech.stages.whisper.rules import Rules, State, suppressed_tokens, top
from mlx_speech.stages.whisper.tokenizer import Tokenizer
from mlx_speech.stages.whisper.workload import Workload

TOKENIZERS: dict[bool, Tokenizer] = {}


def tokenizer(multilingual: bool = True) -> Tokenizer:
    if multilingual not in TOKENIZERS:
        TOKENIZERS[multilingual] = Tokenizer.find(None, 51865 if multilingual else 51864)
    return TOKENIZERS[multilingual]


def openai_options(options: DecodingOptions, **more: Any) -> whisper.DecodingOptions:
    names = ("task", "sample_len", "beam_size", "patience", "length_penalty", "suppress_blank", "without_timestamps")
    names += ("max_initial_timestamp", "suppress_tokens", "prefix")
    chosen: dict[str, Any] = {name: getattr(options, name) for name in names}
    if not isinstance(options.suppress_tokens, str):
        chosen["suppress_tokens"] = list(options.suppress_tokens)
    return whisper.DecodingOptions(**{**chosen, "fp16": False, "prompt": options.initial_prompt, **more})


def same(ours: DecodingResult, theirs: Any) -> None:
    """theirs : openai/whisper's result"""
    assert list(ours.tokens) == theirs.tokens
    assert ours.text == re.sub(r"<\|[^|]*\|>", "", theirs.text)  # special tokens, if allowed, are text in the original
    assert (ours.language, ours.temperature) == (theirs.language, theirs.temperature)
    assert ours.avg_logprob == pytest.approx(theirs.avg_logprob, abs=1e-4)
    assert ours.no_speech_prob == pytest.approx(theirs.no_speech_prob, abs=1e-5)
    assert ours.compression_ratio == theirs.compression_ratio or "<|" in theirs.text


def compare(script: Script, options: DecodingOptions, monkeypatch: Any, windows: int = 3, **job: Any) -> list:
    """Decode a few windows of the script on both sides, ours with steps of MLX and of NumPy; what was found."""
    theirs = scripted.openai_model(script, monkeypatch)
    encoded = [script.encoded(window) for window in range(windows)]
    more: dict[str, Any] = {"language": job.get("language", "en"), "temperature": options.temperature[0]}
    more |= {name: list(job[name]) for name in ("prompt", "prefix") if name in job}
    more |= {"best_of": options.best_of} if options.temperature[0] else {}
    jobs = [Job(mx.array(row), **{"language": "en", **job}, key=key) for key, row in enumerate(encoded)]
    words, temperature = tokenizer(script.multilingual), options.temperature[0]
    found = []
    for in_numpy in (True, False):
        model = ScriptedModel(script, in_numpy)
        results = decode.decode(jobs, model, words, options, temperature=temperature, batch_size=2)
        ours = {job.key: result for job, result in results}
        assert sorted(ours) == list(range(windows))
        found.append([ours[key] for key in range(windows)])
    for key, row in enumerate(encoded):
        try:
            expected = whisper.decode(theirs, torch.from_numpy(row), openai_options(options, **more))
        except ZeroDivisionError:  # it cannot rank an empty text
            assert not any(results[key].tokens for results in found) and not options.suppress_blank
        else:
            for results in found:
                same(results[key], expected)
    return found[0]


def check_logprobs(result: DecodingResult, task: DecodingTask, logits: Any, initial: list[int]) -> None:
    """The log-probability of every token is that of openai/whisper's rules on its logits, the tokens before given.

    logits : tokens so far, (1, n) → (1, vocabulary)
    """
    expected = []
    for length in range(len(result.tokens) + 1):
        tokens = torch.tensor([[*initial, *result.tokens[:length]]])
        step = logits(tokens).clone()
        for rule in task.logit_filters:
            rule.apply(step, tokens)
        expected.append(step[0].log_softmax(dim=-1))
    found = [row[token].item() for row, token in zip(expected, result.tokens, strict=False)]
    assert len(result.token_logprobs) == len(result.tokens)
    assert result.token_logprobs == pytest.approx(found, abs=2e-4)
    total = result.avg_logprob * (len(result.tokens) + 1)
    end = expected[-1][task.tokenizer.eot].item()
    ended = sum(found) + end, sum(found)  # or there was no room for the end of text
    assert any(total == pytest.approx(value, abs=1e-3) for value in ended)


# --- on scripted logits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(16))
def test_greedy_is_that_of_openai(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    options = DecodingOptions(
        sample_len=(30, None)[seed % 8 == 0],
        without_timestamps=seed % 4 == 3,
        suppress_blank=seed % 5 != 4,
        suppress_tokens=("-1", "", (11, 13, 50257 - 1), "-1,11,13")[seed % 4 if seed > 4 else 0],
        max_initial_timestamp=(1.0, None, 0.4, 0.0)[seed // 2 % 4],
        task=("transcribe", "translate")[seed % 2],
    )
    compare(Script(seed, multilingual=seed % 6 != 5), options, monkeypatch, language=("en", "fr", "en")[seed % 3])


@pytest.mark.parametrize("seed", range(18))
def test_beams_are_those_of_openai(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    options = DecodingOptions(
        beam_size=(2, 5)[seed % 2],
        patience=(None, 1.0, 2.0, 1.5, 0.6)[seed % 5],
        length_penalty=(None, 0.0, 0.6, 1.0)[seed // 2 % 4],
        sample_len=(24, 6)[seed % 7 == 0],
        without_timestamps=seed % 6 == 5,
        max_initial_timestamp=(1.0, 0.04)[seed % 5 == 4],  # fewer choices than beams: impossible ones go on
    )
    compare(Script(seed, length=8), options, monkeypatch)


@pytest.mark.parametrize("seed", range(8))
def test_the_best_sample_is_that_of_openai(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    options = DecodingOptions(
        temperature=((0.2, 1.0)[seed % 2],),
        best_of=(5, None, 2, 3)[seed % 4],
        length_penalty=(None, 0.0, 1.0)[seed % 3],
        sample_len=20,
        without_timestamps=seed % 4 == 3,
    )
    compare(Script(seed, length=8, mood="plain"), options, monkeypatch, windows=2)


@pytest.mark.parametrize(
    "options",
    [
        DecodingOptions(sample_len=24),
        DecodingOptions(sample_len=16, without_timestamps=True),
        DecodingOptions(sample_len=16, beam_size=3),
        DecodingOptions(sample_len=12, beam_size=2, patience=2.0, length_penalty=0.4),
        DecodingOptions(sample_len=16, temperature=(0.7,), best_of=3),
    ],
)
def test_tokens_have_their_logprobs(options: DecodingOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    script, (temperature,) = Script(3, length=8), options.temperature[:1]
    theirs = scripted.openai_model(script, monkeypatch)
    jobs = [Job(mx.array(script.encoded(window)), "en", prompt=(7, 8)[:window], key=window) for window in range(3)]
    words, model = tokenizer(), ScriptedModel(script)
    found = list(decode.decode(jobs, model, words, options, temperature=temperature, batch_size=2))
    task = DecodingTask(theirs, openai_options(options, language="en"))
    ends = set()
    for job, result in found:
        initial = decode.initial_tokens(job, "en", words, options, 448)

        def logits(tokens: torch.Tensor, window: int = job.key) -> torch.Tensor:
            return torch.from_numpy(script.logits(window, tokens[0].tolist()))[None]

        task.sample_begin = len(initial)
        for rule in task.logit_filters:
            if hasattr(rule, "sample_begin"):
                rule.sample_begin = len(initial)
        check_logprobs(result, task, logits, initial)
        ends.add(len(result.tokens) < options.sample_len)
    assert True in ends and len(found) == 3


def test_scripts_say_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the cases above rest on: varied texts with timestamps, ends, ties, and tempting tokens."""
    script = Script(1, length=150, mood="plain")
    (found,) = compare(script, DecodingOptions(sample_len=100), monkeypatch, windows=1)
    assert len(found.tokens) == 100 and len(set(found.tokens)) >= 30
    assert sum(token >= script.ids.timestamp_begin for token in found.tokens) >= 10
    ties, forbidden, start = 0, 0, list(script.ids.sot_sequence)
    for length in range(100):
        logits = script.logits(0, start + list(found.tokens[:length]))
        ties += (logits == logits.max()).sum() > 1
        forbidden += int(logits.argmax()) in script.annoying
    assert ties >= 5 and forbidden >= 5
    short = [result for seed in range(3) for result in compare(Script(seed), DecodingOptions(), monkeypatch)]
    assert {0 < len(result.tokens) < 40 for result in short} == {True, False}


@pytest.mark.parametrize("context", [48, 60])
@pytest.mark.parametrize("beam_size", [None, 2])
def test_nothing_is_decoded_beyond_the_context(
    context: int, beam_size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script(5, length=100, mood="plain", context=context)
    prompt = tuple(range(2000, 2100))
    options = DecodingOptions(sample_len=context, beam_size=beam_size)
    found = compare(script, options, monkeypatch, windows=2, prompt=prompt)
    initial = context // 2 + 3
    assert {len(result.tokens) for result in found} == {context + 1 - initial}


@pytest.mark.parametrize("language", ["de", None])
@pytest.mark.parametrize("prompt", [(), (1, 2, 3), tuple(range(1000, 1300))])
@pytest.mark.parametrize("prefix", [(), (400, 500)])
def test_prompts_prefixes_and_languages(
    language: str | None, prompt: tuple, prefix: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = DecodingOptions(sample_len=None if prefix else 16)
    found = compare(Script(11, length=6), options, monkeypatch, language=language, prompt=prompt, prefix=prefix)
    if language is None:
        assert len({result.language for result in found}) > 1


def test_text_of_the_options_stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    options = DecodingOptions(initial_prompt=" A meeting. ", prefix="Well,", sample_len=220, without_timestamps=True)
    theirs = scripted.openai_model(Script(0), monkeypatch)
    words, more = tokenizer(), {"language": "de", "temperature": 0.0}
    task = DecodingTask(theirs, openai_options(options, **more))
    job = Job(mx.zeros((1, 1)), "de")
    assert tuple(decode.initial_tokens(job, "de", words, options, 448)) == task.initial_tokens
    own = replace(job, prompt=(7, 8), prefix=(9,))
    task = DecodingTask(theirs, openai_options(options, **more, prompt=[7, 8], prefix=[9]))
    assert tuple(decode.initial_tokens(own, "de", words, options, 448)) == task.initial_tokens


def test_hotwords_come_before_the_prompt() -> None:
    words, job = tokenizer(), Job(mx.zeros((1, 1)), "en", prompt=tuple(range(300)))
    hot = words.encode(" MLX Whisper")
    options = DecodingOptions(hotwords="MLX Whisper")
    tokens = decode.initial_tokens(job, "en", words, options, 448)
    sequence = list(words.sot_sequence("en", "transcribe"))
    assert tokens == [words.sot_prev, *hot, *range(300)[-(223 - len(hot)) :], *sequence]
    tokens = decode.initial_tokens(replace(job, prompt=()), "en", words, options, 448)
    assert tokens == [words.sot_prev, *hot, *sequence]
    tokens = decode.initial_tokens(replace(job, prompt=(), prefix=(5,)), "en", words, options, 448)
    assert tokens == [*sequence, 5]  # a prefix leaves them out
    tokens = decode.initial_tokens(job, "en", words, replace(options, hotwords="many " * 400), 448)
    assert len(tokens) == 1 + 223 + len(sequence) and 299 not in tokens


def test_a_prefix_has_to_fit() -> None:
    job = Job(mx.zeros((1, 1)), "en", prefix=tuple(range(600)))
    with pytest.raises(OptionError, match="prefix is 600 tokens long: 445 fit"):
        decode.initial_tokens(job, "en", tokenizer(), DecodingOptions(), 448)


@pytest.mark.parametrize("seed", range(12))
def test_fallback_is_that_of_openai(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    options = DecodingOptions(
        temperature=((0.0, 0.4, 0.8), (0.0, 0.2, 0.4, 0.6, 0.8, 1.0), (0.5, 1.0))[seed % 3],
        best_of=(2, None)[seed % 2],
        beam_size=(None, 2)[seed % 4 == 1],
        patience=(None, 2.0)[seed % 8 == 1],
        compression_ratio_threshold=(2.4, None, 1.2)[seed // 2 % 3],
        logprob_threshold=(-1.0, -0.6, None)[seed // 3 % 3],
        no_speech_threshold=(0.6, None)[seed // 4 % 2],
        sample_len=24,
    )
    script, windows = Script(seed), 5
    theirs = scripted.openai_model(script, monkeypatch)
    names = ("temperature", "best_of", "beam_size", "patience", "sample_len")
    names += ("compression_ratio_threshold", "logprob_threshold", "no_speech_threshold")
    chosen = {name: getattr(options, name) for name in names}
    expected = [_first_window(theirs, window, chosen) for window in range(windows)]
    jobs = [Job(mx.array(script.encoded(window)), "en", key=window) for window in range(windows)]
    ours = dict(decode_with_fallback(jobs, ScriptedModel(script), tokenizer(), options, batch_size=2))
    for job, result in ours.items():
        same(result, expected[job.key])
    assert len(ours) == windows


def _first_window(theirs: Any, window: int, options: dict[str, Any]) -> Any:
    """What `whisper.transcribe` takes as the result of its first window."""
    calls: list = []

    def record(*args: Any) -> Any:
        calls.append(whisper.decode(theirs, *args))
        return calls[-1]

    theirs.decode, theirs.script.windows.number = record, lambda mel: window
    whisper.transcribe(theirs, np.zeros(1600, dtype=np.float32), language="en", fp16=False, **options)
    again = [n for n, call in enumerate(calls) if n and call.temperature == options["temperature"][0]]
    return calls[again[0] - 1 if again else -1]


def test_fallback_is_needed_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(1)
    scripted.openai_model(script, monkeypatch)
    jobs = (Job(mx.array(script.encoded(window)), "en", key=window) for window in range(14))
    options = DecodingOptions(sample_len=30, best_of=2)
    found = list(decode_with_fallback(jobs, ScriptedModel(script), tokenizer(), options, batch_size=4))
    assert sorted(job.key for job, _ in found) == list(range(14))
    assert len({result.temperature for _, result in found}) >= 3


def test_unlikely_text_is_not_tried_again_where_nobody_wants_it() -> None:
    """Repetitive text is, as always."""
    script = Script(1)
    options = DecodingOptions(sample_len=30, best_of=2)

    def heard(temperature: tuple[float, ...]) -> dict[int, DecodingResult]:
        jobs = [Job(mx.array(script.encoded(window)), "en", key=window, tries_unlikely=False) for window in range(14)]
        own = replace(options, temperature=temperature)
        found = decode_with_fallback(jobs, ScriptedModel(script), tokenizer(), own, batch_size=4)
        return {job.key: result for job, result in found}

    first, found = heard((0.0,)), heard(options.temperature)
    repetitive = {window for window, result in first.items() if result.compression_ratio > 2.4}
    unlikely = {window for window, result in first.items() if result.avg_logprob < -1 and result.no_speech_prob < 0.6}
    assert repetitive and unlikely - repetitive
    assert {window for window, result in found.items() if result.temperature > 0} == repetitive
    assert all(found[window] == first[window] for window in first.keys() - repetitive)


@pytest.mark.parametrize("multilingual", [True, False])
def test_languages_are_those_of_openai(multilingual: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(2, multilingual)
    theirs, ours = scripted.openai_model(script, monkeypatch), ScriptedModel(script)
    encoded = np.stack([script.encoded(window) for window in range(3)])
    if not multilingual:
        with pytest.raises(OptionError, match="English only"):
            detect_language(mx.array(encoded), ours, tokenizer(False))
        return
    _, expected = theirs.detect_language(torch.from_numpy(encoded))
    found = detect_language(mx.array(encoded), ours, tokenizer())
    for row, other in zip(found, expected, strict=True):
        assert row == pytest.approx(other, abs=1e-6) and max(row, key=row.get) == max(other, key=other.get)


# --- the rules -------------------------------------------------------------------------------------------------------


OWN = [pytest.param(mx.array, id="MLX"), pytest.param(np.array, id="NumPy")]  # makes an array of a module's own


@pytest.mark.parametrize("own, in_numpy", [(mx.array, True), (mx.array, False), (np.array, True)])
@pytest.mark.parametrize("multilingual", [True, False])
@pytest.mark.parametrize("without_timestamps", [True, False])
def test_rules_are_those_of_openai(
    own: Callable[[Any], Any],
    in_numpy: bool,
    multilingual: bool,
    without_timestamps: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All filters of openai/whisper on random sequences and logits, row by row."""
    monkeypatch.setattr(rules_module, "suits_numpy", lambda *_: in_numpy)
    rng, words, script = np.random.default_rng(1), tokenizer(multilingual), Script(0, multilingual)
    options = DecodingOptions(without_timestamps=without_timestamps, suppress_tokens="-1,7,8")
    task = DecodingTask(scripted.openai_model(script, monkeypatch), openai_options(options, language="en"))
    rules, begin = Rules(words, options, script.args), words.timestamp_begin
    sequences = [[]]
    for _ in range(40):
        kinds = rng.integers(0, 3, rng.integers(1, 7))
        picked = [rng.integers(0, words.eot), begin + rng.integers(0, 1501), begin + rng.integers(700, 800)]
        sequences.append([int(picked[kind]) for kind in kinds])
    logits = rng.normal(0, 3, (len(sequences), script.vocab)).astype(np.float32)
    logits[::3, begin:] += 6
    state = State(*map(own, State.of([sequences], begin).arrays))
    ours, total = rules(own(logits)[None], state)
    best, best_logprobs = rules.limits.best(own(logits)[None], state)
    assert {type(array) for array in (ours, total, best, best_logprobs)} == {type(own(logits))}
    for row, sequence in enumerate(sequences):
        expected = torch.from_numpy(logits[row : row + 1].copy())
        tokens = torch.tensor([[*task.initial_tokens, *sequence]])
        for rule in task.logit_filters:
            rule.apply(expected, tokens)
        np.testing.assert_array_equal(np.array(ours[0, row]), expected[0].numpy(), err_msg=str(sequence))
        assert total[0, row, 0].item() == pytest.approx(expected[0].logsumexp(dim=0).item(), abs=1e-5)
        logprobs = expected[0].log_softmax(dim=0)
        assert best[0, row].item() == logprobs.argmax()
        assert best_logprobs[0, row].item() == pytest.approx(logprobs.max().item(), abs=1e-5)


@pytest.mark.parametrize("without_timestamps", [True, False])
def test_the_best_of_odd_logits(without_timestamps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of equals the first; where nothing may be said, something is all the same, without a warning."""
    options = DecodingOptions(without_timestamps=without_timestamps, suppress_tokens="")
    rules = Rules(tokenizer(), options, Script(0).args)
    logits = np.full((4, 2, rules.vocab), -np.inf, np.float32)
    logits[0] = 0
    logits[1, :, [9, 11]] = 3
    logits[2, :, rules.begin + 5 :] = 1
    state = State.of([[[], [9]]] * 4, rules.begin)
    found = []
    for in_numpy in (True, False):
        monkeypatch.setattr(rules_module, "suits_numpy", lambda *_, answer=in_numpy: answer)
        tokens, logprobs = rules.limits.best(mx.array(logits), state)
        found.append((np.array(tokens), np.array(logprobs)))
    found.append(rules.limits.best(logits, State(*map(np.array, state.arrays))))
    for tokens, logprobs in found[1:]:
        assert np.array_equal(found[0][0], tokens)
        np.testing.assert_allclose(found[0][1], logprobs, atol=1e-5)
    assert found[0][0][1, 1] == 9


@pytest.mark.parametrize("temperature", [None, 0.4, 1e-37])
def test_the_choice_in_numpy_is_that_of_mlx(temperature: float | None) -> None:
    """Also of odd logits, without a warning, and in numbers of the same kind."""
    rng = np.random.default_rng(4)
    rules = Rules(tokenizer(), DecodingOptions(), Script(0).args)
    logits = rng.normal(0, 3, (4, 3, rules.vocab)).astype(np.float32)
    logits[1, :, : rules.eot] = -np.inf
    logits[2] = -np.inf
    state = State.of([[[], [9], [9, rules.eot]]] * 4, rules.begin)
    limits, keys = mx.array([[1, 1, 9]] * 4), mx.array(rng.integers(0, 2**32, (4, 3), np.uint32))
    before = search.Hypotheses(state, mx.array(rng.normal(size=(4, 3)).astype(np.float32)), limits, keys)
    divisor = None if temperature is None else mx.array(temperature)
    expected, expected_logprobs = search.choose(mx.array(logits), before, rules.limits, divisor)
    own_divisor = None if temperature is None else np.array(temperature, np.float32)
    found, logprobs = search.choose(logits, before.as_numpy(), rules.limits, own_divisor)
    for ours, wanted in zip([logprobs, *found.arrays], [expected_logprobs, *expected.arrays], strict=True):
        assert isinstance(ours, np.ndarray) and ours.dtype == np.array(wanted).dtype
        np.testing.assert_allclose(ours, np.array(wanted), atol=1e-5)


@pytest.mark.parametrize("own", OWN)
def test_the_state_is_the_same_step_by_step(own: Callable[[Any], Any]) -> None:
    rng, begin = np.random.default_rng(2), 50
    sequences = rng.integers(0, 100, (3, 4, 12))
    state = State(*map(own, State.of([[[]] * 4] * 3, begin).arrays))
    for length in range(12):
        state = state.after(own(sequences[:, :, length]), begin)
        expected = State.of(sequences[:, :, : length + 1].tolist(), begin)
        for name, value in vars(state).items():
            assert np.array_equal(np.array(value), np.array(getattr(expected, name))), name


@pytest.mark.parametrize("suppress_tokens", ["-1", "", (), "5,6", (-1, 5), (5,)])
def test_suppressed_tokens_are_those_of_openai(suppress_tokens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    options, words, script = DecodingOptions(suppress_tokens=suppress_tokens), tokenizer(), Script(0)
    task = DecodingTask(scripted.openai_model(script, monkeypatch), openai_options(options, language="en"))
    expected = task._get_suppress_tokens() if suppress_tokens else ()  # without any there is no filter
    assert tuple(sorted(set(suppressed_tokens(words, options)))) == expected
    with_numerals = suppressed_tokens(words, replace(options, suppress_numerals=True))
    assert set(with_numerals) >= {*expected, *words.numeral_tokens, words.sot}
    assert words.encode("7")[0] in with_numerals


def test_sums_and_tops_of_whole_vocabularies() -> None:
    rng = np.random.default_rng(3)
    values = np.concatenate([rng.normal(-13, 0.5, (2, 3, 51000)), rng.normal(3, 1, (2, 3, 865))], axis=-1)
    expected = torch.from_numpy(values).logsumexp(dim=-1).numpy()
    assert np.abs(np.array(log_sum_exp(mx.array(values.astype(np.float32))))[..., 0] - expected).max() < 1e-5
    assert log_sum_exp(mx.full((1, 300), -mx.inf)).item() == -np.inf
    for vocab in (7, 300, 2000):
        ties = rng.integers(0, 40, (5, 2, vocab)).astype(np.float32)
        ties[0, 0, 3:] = ties[1] = -np.inf  # too few candidates, or none
        best, index = top(mx.array(ties), 6)
        order = np.argsort(-ties, axis=-1, kind="stable")[..., :6]
        assert np.array_equal(np.array(index), order)
        assert np.array_equal(np.array(best), np.take_along_axis(ties, order, axis=-1))


# --- sampling --------------------------------------------------------------------------------------------------------


def test_samples_do_not_depend_on_the_batch() -> None:
    script, words = Script(9, mood="plain"), tokenizer()
    options = DecodingOptions(best_of=2, sample_len=10)

    def run(windows: range, batch_size: int, seed: int = 0) -> dict[int, DecodingResult]:
        jobs = [Job(mx.array(script.encoded(w % 3)), "en", key=w, seed=w) for w in windows]
        chosen = replace(options, seed=seed)
        found = decode.decode(jobs, ScriptedModel(script), words, chosen, temperature=1.0, batch_size=batch_size)
        return {job.key: result for job, result in found}

    together = run(range(6), 4)
    for window in (0, 3, 5):
        assert run(range(window, window + 1), 1)[window].tokens == together[window].tokens
    assert together[0].tokens != together[3].tokens  # another seed for the same audio
    assert run(range(6), 4, seed=1)[0].tokens != together[0].tokens


def test_samples_follow_the_softmax() -> None:
    logits = mx.array([0.0, 1.0, 2.0, -1.0, -mx.inf])
    keys = mx.arange(20000, dtype=mx.uint32).reshape(200, 100)
    noise = search.gumbel(keys, mx.full(keys.shape, 3), 5)
    counts = np.bincount(np.array(mx.argmax(logits + noise, axis=-1)).ravel(), minlength=5)
    expected = np.array(mx.softmax(logits)) * 20000
    assert counts[4] == 0
    assert ((counts - expected)[:4] ** 2 / expected[:4]).sum() < 16.3  # chi-squared, 3 degrees of freedom, p = 0.001
    other = search.gumbel(keys, mx.full(keys.shape, 4), 5)
    assert abs(np.corrcoef(np.array(noise).ravel(), np.array(other).ravel())[0, 1]) < 0.02


# --- on random models ------------------------------------------------------------------------------------------------

DIMS = {**make.NARROW, "n_vocab": 51865}


@pytest.fixture(scope="module", params=[DIMS, {**DIMS, "n_text_layer": 1, "n_vocab": 51864}], ids=["two layers", "en"])
def pair(request: pytest.FixtureRequest) -> SimpleNamespace:
    """A random model in openai/whisper and in ours: the decoders; and some encoded audio."""
    theirs = make.whisper_openai(request.param)
    ours = Model(ModelArgs(**request.param))
    names = {"mlp.0": "mlp1", "mlp.2": "mlp2"}
    weights = []
    for name, tensor in theirs.decoder.state_dict().items():
        for old, new in names.items():
            name = name.replace(old, new)
        weights.append((name, mx.array(tensor.numpy())))
    ours.decoder.load_weights(weights)
    ours.eval()
    rng = np.random.default_rng(0)
    encoded = rng.normal(0, 1, (5, request.param["n_audio_ctx"], request.param["n_audio_state"])).astype(np.float32)
    return SimpleNamespace(theirs=theirs, ours=ours, encoded=encoded, words=tokenizer(theirs.is_multilingual))


@pytest.mark.parametrize(
    "options",
    [
        DecodingOptions(sample_len=24),
        DecodingOptions(sample_len=12, without_timestamps=True),
        DecodingOptions(sample_len=10, beam_size=5),
        DecodingOptions(sample_len=10, beam_size=2, patience=2.0, without_timestamps=True),
    ],
)
def test_random_models_decode_as_openai_does(
    pair: SimpleNamespace, options: DecodingOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows with prompts of different lengths, in batches of 1 and of 3, which they enter and leave."""
    monkeypatch.setattr(whisper.decoding, "CHUNK_LENGTH", 0.02 * pair.encoded.shape[1])  # seconds of this window
    rng = np.random.default_rng(4)
    prompts = [tuple(rng.integers(0, 50000, n).tolist()) for n in (0, 5, 300, 60, 1)]
    jobs = [
        Job(mx.array(row), "en", prompt=prompt, key=key)
        for key, (row, prompt) in enumerate(zip(pair.encoded, prompts, strict=True))
    ]
    found = {
        size: {job.key: r for job, r in decode.decode(jobs, pair.ours, pair.words, options, batch_size=size)}
        for size in (1, 3)
    }
    with torch.no_grad():
        for key, (row, prompt) in enumerate(zip(pair.encoded, prompts, strict=True)):
            more = {"language": "en", "temperature": 0.0, "prompt": list(prompt)}
            expected = whisper.decode(pair.theirs, torch.from_numpy(row), openai_options(options, **more))
            same(found[1][key], expected)
            task = DecodingTask(pair.theirs, openai_options(options, **more))
            encoded = torch.from_numpy(row)[None]
            check_logprobs(
                found[3][key],
                task,
                lambda tokens, encoded=encoded: pair.theirs.logits(tokens, encoded)[:, -1],
                list(task.initial_tokens),
            )
            assert found[3][key].tokens == found[1][key].tokens
            assert found[3][key].avg_logprob == pytest.approx(found[1][key].avg_logprob, abs=1e-5)


@pytest.mark.parametrize("group", [1, 3])
def test_a_window_is_the_whole_sequence(pair: SimpleNamespace, group: int) -> None:
    """Jobs come and go, beams are reordered, rooms made: always the logits of each sequence decoded as a whole."""
    rng, decoder = np.random.default_rng(5), pair.ours.decoder
    window = decoder.new_cache(3, group)
    sequences: list[list[list[int]]] = [[[0]] * group for _ in range(3)]
    audio = [0, 0, 0]

    def check(logits: np.ndarray, rows: list[int]) -> None:
        for row, hypotheses in zip(logits, rows, strict=True):
            for beam, got in enumerate(row):
                tokens = mx.array([sequences[hypotheses][beam]])
                expected = decoder(tokens, mx.array(pair.encoded[audio[hypotheses]])[None])[0, -1]
                assert np.abs(np.array(expected) - got).max() < 1e-3 * float(mx.std(expected))

    def enter(jobs: list[int], lengths: list[int]) -> None:
        for job, length in zip(jobs, lengths, strict=True):
            audio[job] = int(rng.integers(0, 5))
            sequences[job] = [rng.integers(0, 50000, length).tolist()] * group
        encoded = mx.array(pair.encoded[[audio[job] for job in jobs]])
        prompts, at = [sequences[job][0] for job in jobs], [length // 2 for length in lengths]
        last, asked = decoder.prefill(window, jobs, encoded, prompts, at)
        check(np.array(last)[:, None], jobs)
        for job, index, got in zip(jobs, at, np.array(asked), strict=True):
            expected = decoder(mx.array([sequences[job][0]]), mx.array(pair.encoded[audio[job]])[None])[0, index]
            assert np.abs(np.array(expected) - got).max() < 1e-3 * float(mx.std(expected))

    enter([0, 2], [4, 31])
    for step in range(140):
        if step == 20:
            enter([1], [100])
        if step == 90:
            window.leave(0)
            enter([0], [1])
        if step == 120:
            window.leave(2)
            window.keep([1, 0])
            sequences, audio = [sequences[1], sequences[0]], [audio[1], audio[0]]
        if step % 3 == 1:
            sources = rng.integers(0, group, (len(sequences), group))
            window.reorder(sources.tolist())
            sequences = [[hyp[s] for s in chosen] for hyp, chosen in zip(sequences, sources, strict=True)]
        new = rng.integers(0, 50000, (len(sequences), group))
        sequences = [
            [[*tokens, int(token)] for tokens, token in zip(hyp, row, strict=True)]
            for hyp, row in zip(sequences, new, strict=True)
        ]
        logits = decoder.step(window, mx.array(new))
        if step in (0, 19, 20, 62, 90, 120, 139):
            live = [job for job, length in enumerate(window.lengths) if length]
            check(np.array(logits)[live], live)
    assert window.visible.shape[2] <= 320  # 241 tokens, and what was not needed any more has been given up


@pytest.mark.parametrize("in_numpy", [True, False])
def test_a_row_beyond_the_context_goes_on_until_it_leaves(
    in_numpy: bool, pair: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody looks at it, and the other row's logits are what they are."""
    monkeypatch.setattr("mlx_speech.models.whisper.suits_numpy", lambda *_: in_numpy)
    decoder = pair.ours.decoder
    window = decoder.new_cache(2, 1)
    assert window.is_in_numpy == in_numpy
    rng = np.random.default_rng(6)
    most = pair.ours.args.n_text_ctx
    longest, other = rng.integers(0, 50000, most - 1).tolist(), rng.integers(0, 50000, 3).tolist()
    decoder.prefill(window, [0, 1], mx.array(pair.encoded[:2]), [longest, other], [0, 0])
    for token in (5, 6, 7):
        other.append(token)
        logits = np.array(decoder.step(window, mx.array([[9], [token]])))
    assert window.lengths == [most + 2, len(other)]
    expected = decoder(mx.array([other]), mx.array(pair.encoded[1:2]))[0, -1]
    assert np.abs(np.array(expected) - logits[1, 0]).max() < 1e-3 * float(mx.std(expected))


def test_in_numpy_no_step_is_taken_that_nobody_needs() -> None:
    script, words, workload = Script(3, length=8), tokenizer(), Workload()
    options = DecodingOptions(sample_len=40)
    model = ScriptedModel(script)
    decoder = decode.TemperatureDecoder(model, words, options, temperature=0, batch_size=3, workload=workload)
    decoder.enter([Job(mx.array(script.encoded(window)), "en", key=window) for window in range(3)])
    found: list[DecodingResult] = []
    while len(found) < 3:
        found += [result for _, result in decoder.advance()]
    # the first token comes with the prompt, and the end of text is a token
    assert workload.steps == max(len(result.tokens) for result in found) < 39


def test_jobs_are_pulled_when_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(4)
    out = [0]

    def source(most: int) -> Iterator[Job]:
        for window in range(11):
            out[0] += 1
            assert out[0] <= most
            yield Job(mx.array(script.encoded(window)), "en", key=window)

    for run, most in ((decode.decode, 3), (decode_with_fallback, 6)):
        out[0], seen = 0, []
        options = DecodingOptions(temperature=(0.0, 0.5), best_of=1, sample_len=20)
        for job, _ in run(source(most), ScriptedModel(script), tokenizer(), options, batch_size=3):
            out[0] -= 1
            seen.append(job.key)
        assert sorted(seen) == list(range(11)) and seen != sorted(seen)
    assert list(decode.decode([], ScriptedModel(script), tokenizer(), DecodingOptions())) == []


def test_half_precision_gives_whole_results(pair: SimpleNamespace) -> None:
    model = Model(pair.ours.args)
    weights = [(name, value.astype(mx.float16)) for name, value in pair.ours.arrays().items()]
    model.load_weights(weights)
    encoded = mx.array(pair.encoded[:2]).astype(mx.float16)
    jobs = [Job(row, "en") for row in encoded]
    found = list(decode.decode(jobs, model, pair.words, DecodingOptions(sample_len=4), batch_size=2))
    window = model.decoder.new_cache(1, 1)
    logits, _ = model.decoder.prefill(window, [0], encoded[:1], [[1, 2]], [0])
    assert logits.dtype == mx.float32 and window.keys[0].dtype == mx.float16
    assert all(np.isfinite(result.avg_logprob) for _, result in found)


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"task": "sing"}, "task is 'sing'"),
        ({"temperature": ()}, "temperature is empty"),
        ({"temperature": (0.0, -1.0)}, "temperature is -1"),
        ({"temperature": (float("nan"),)}, "temperature is nan"),
        ({"sample_len": 0}, "sample_len is 0"),
        ({"best_of": 0}, "best_of is 0"),
        ({"beam_size": 0}, "beam_size is 0"),
        ({"patience": 1.0}, "patience needs beam_size"),
        ({"patience": 0.1, "beam_size": 2}, "leaves no candidates"),
        ({"length_penalty": 1.1}, "length_penalty is 1.1"),
        ({"max_initial_timestamp": -1.0}, "max_initial_timestamp is -1"),
        ({"suppress_tokens": "1,x"}, "suppress_tokens is '1,x'"),
    ],
)
def test_wrong_options_are_named(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        DecodingOptions(**wrong)


def test_wrong_sizes_are_named() -> None:
    jobs, model = [Job(mx.zeros((1500, 4)), "en")], ScriptedModel(Script(0))
    with pytest.raises(OptionError, match="batch_size is 0"):
        list(decode.decode(jobs, model, tokenizer(), DecodingOptions(), batch_size=0))
    assert DecodingOptions(temperature=0.5).temperature == (0.5,)  # type: ignore[arg-type]


def test_compression_ratio_is_that_of_openai() -> None:
    for text in ("", "yes", "yes " * 90, "ö" * 40):
        assert decode.compression_ratio(text) == whisper.utils.compression_ratio(text)
