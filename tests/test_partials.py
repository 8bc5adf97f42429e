"""Words of a chunk that grows: which are firm, and what is made of the hypotheses."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_speech import Pipeline
from mlx_speech.errors import AudioError
from mlx_speech.samples import SAMPLE_RATE
from mlx_speech.stages.whisper import partials
from mlx_speech.stages.whisper.agreement import Agreement, Policy, normalised
from mlx_speech.stages.whisper.decode import DecodingResult, Job, initial_tokens
from mlx_speech.stages.whisper.options import DecodingOptions
from mlx_speech.stages.whisper.partials import Round
from mlx_speech.stages.whisper.word_times import WordTiming


def timings(text: str, seconds: float = 0.5) -> list[WordTiming]:
    """Words of half a second each, with a token each."""
    words = text.split()
    return [WordTiming(f" {word}", (100 + k,), seconds * k, seconds * (k + 1), 0.9) for k, word in enumerate(words)]


def shown(words: list[WordTiming]) -> str:
    return "".join(word.word for word in words).strip()


def test_two_in_a_row_have_to_agree() -> None:
    agreement = Agreement()
    agreement.update(timings("ask not what"), 3.0)
    assert (shown(agreement.firm), shown(agreement.loose)) == ("", "ask not what")
    agreement.update(timings("Ask not, that you"), 3.0)
    assert (shown(agreement.firm), shown(agreement.loose)) == ("Ask not,", "that you")
    assert agreement.tokens == (100, 101)


def test_what_ends_too_near_the_end_is_not_firm() -> None:
    agreement = Agreement()
    for _ in range(2):
        agreement.update(timings("one two three"), 1.6)
    assert (shown(agreement.firm), shown(agreement.loose)) == ("one two", "three")


@pytest.mark.parametrize(
    ("policy", "firm"),
    [
        (Policy(rounds=1, guard=-1.0), "one two three"),
        (Policy(rounds=1, guard=0.5), "one two"),
        (Policy(rounds=2, guard=-1.0), ""),
    ],
)
def test_policies(policy: Policy, firm: str) -> None:
    agreement = Agreement(policy)
    agreement.update(timings("one two three"), 1.6)
    assert shown(agreement.firm) == firm


@given(
    st.lists(st.lists(st.sampled_from(["a", "b", "B,", "c."]), max_size=6), max_size=8),
    st.floats(0, 3),
)
def test_firm_words_only_grow(hypotheses: list[list[str]], end: float) -> None:
    agreement = Agreement()
    before: list[WordTiming] = []
    loose_before: list[str] = []
    for words in hypotheses:
        heard = timings(" ".join(words))
        agreement.update(heard, end)
        new = agreement.firm[len(before) :]
        assert agreement.firm[: len(before)] == before
        assert new + agreement.loose == heard
        assert [normalised(word.word) for word in new] == loose_before[: len(new)], "agreed in both"
        assert all(word.end < end - agreement.policy.guard for word in new)
        before = list(agreement.firm)
        loose_before = [normalised(word.word) for word in agreement.loose]


def test_words_are_compared_without_case_and_marks() -> None:
    assert normalised(" Don’t,") == normalised("don't") == "dont"
    assert normalised(" …") == "…" and normalised(" —") != normalised(" …")
    assert normalised(" Straße") == "strasse"


# --- hypotheses -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo_sound() -> tuple[Pipeline, np.ndarray]:
    import mlx_speech
    from mlx_speech.package_data import DEMO

    return Pipeline.demo(), mlx_speech.load_audio(DEMO / "conversation.flac")[: 4 * SAMPLE_RATE]


def test_rounds_of_a_batch_are_those_alone(demo_sound: tuple[Pipeline, np.ndarray]) -> None:
    pipeline, sound = demo_sound
    whisper = pipeline.models.whisper()
    options = partials.partial_options(DecodingOptions())
    first = partials.hear([Round(sound, "en")], whisper.model, whisper.tokenizer, options)[0]
    assert first
    firm = tuple(token for word in first[:3] for token in word.tokens)
    rounds = [Round(sound, "en"), Round(sound[:20_000], "en"), Round(sound, "en", firm), Round(sound[:0], "en")]
    together = partials.hear(rounds, whisper.model, whisper.tokenizer, options)
    for one, heard in zip(rounds, together, strict=True):
        alone = partials.hear([one], whisper.model, whisper.tokenizer, options)[0]
        assert (alone is None) == (heard is None)
        assert [word.word for word in alone or []] == [word.word for word in heard or []]
    forced = together[2]
    assert forced is not None
    assert [word.word for word in forced] == [word.word for word in first[3:]], "behind what is firm"


@pytest.mark.parametrize("seconds", [1.0, 11.0, 12.5, 14.2, 14.9])
def test_all_that_is_firm_is_forced(demo_sound: tuple[Pipeline, np.ndarray], seconds: float) -> None:
    """However many tokens may follow; openai/whisper cuts a prefix of the options by that."""
    tokenizer = demo_sound[0].models.whisper().tokenizer
    firm = tuple(range(10, 60))
    one = Round(np.zeros(round(seconds * SAMPLE_RATE), np.float32), "en", firm)
    options = replace(partials.partial_options(DecodingOptions()), sample_len=partials._most_tokens(one))
    job = Job(mx.zeros((0, 0)), "en", prefix=one.firm)
    assert initial_tokens(job, "en", tokenizer, options, context=448)[-50:] == list(firm)


def test_what_says_nothing() -> None:
    one = Round(np.zeros(SAMPLE_RATE, np.float32), "en", firm=tuple(range(10)))
    good = DecodingResult((1, 2, 3), "one two three", "en", -0.3, 0.1, 0.0, 1.1)
    assert not partials._has_failed(good, one, context=448)
    assert partials._has_failed(replace(good, compression_ratio=2.5), one, context=448)
    assert partials._has_failed(replace(good, tokens=(1,) * 25), one, context=448), "25 tokens in a second"
    assert partials._has_failed(good, one, context=20), "attention would have no room"
    assert partials._has_failed(replace(good, no_speech_prob=0.7, avg_logprob=-1.1), one, context=448)
    assert not partials._has_failed(replace(good, no_speech_prob=0.7), one, context=448)


def test_handed_over_to_a_pipeline(demo_sound: tuple[Pipeline, np.ndarray]) -> None:
    pipeline, sound = demo_sound
    words = pipeline.submit_partial(sound).result(60)
    assert words and len(words) > 3
    firm = tuple(token for word in words[:2] for token in word.tokens)
    rest = pipeline.submit_partial(sound, firm).result(60)
    assert [word.word for word in rest or []] == [word.word for word in words[2:]]
    with pytest.raises(AudioError, match="at most 7 s"):
        pipeline.submit_partial(np.zeros(7 * SAMPLE_RATE + 1, np.float32)).result(60)


def test_a_word_that_goes_on_behind_a_firm_one_is_one_of_its_own() -> None:
    tokenizer = Pipeline.demo().models.whisper().tokenizer
    tokens = tuple(tokenizer.encode(" playing"))
    assert len(tokens) > 1
    words = [WordTiming(" playing", tokens, 0.0, 1.0, 0.9), WordTiming(" on", (5,), 1.0, 2.0, 0.9)]
    behind = partials._behind(words, 1, tokenizer)
    assert [word.word for word in behind] == [tokenizer.decode(tokens[1:]), " on"]
    assert [word.word for word in partials._behind(words, 0, tokenizer)] == [" playing", " on"]
    torn = [WordTiming(" wh", (1,), 0.0, 1.0, 0.9), WordTiming(" \ufffd", (2,), 1.0, 2.0, 0.9)]
    assert [word.word for word in partials._behind(torn, 0, tokenizer)] == [" wh"]
