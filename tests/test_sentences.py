"""Sentences from segments with words: punctuation of many scripts, abbreviations, borders of segments, what is kept."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_speech.stages.sentences import MAX_DURATION, split_sentences
from mlx_speech.stages.spelling import split_words
from mlx_speech.transcript import Segment, Word


def segment(text: str, language: str = "en", start: float = 0.0, pauses: float | dict[str, float] = 0.0) -> Segment:
    """A segment whose words last 0.2 s each. `pauses` : behind each word, or behind those named."""
    words, time = [], start
    for name in split_words(text):
        words.append(Word(round(time, 3), round(time + 0.2, 3), name))
        time += 0.2 + (pauses.get(name, 0.0) if isinstance(pauses, dict) else pauses)
    return Segment(start, round(time, 3), text, words=tuple(words), language=language, tokens=(1, 2))


def texts(*segments: Segment) -> list[str]:
    return [sentence.text for sentence in split_sentences(segments, "en")]


@pytest.mark.parametrize(
    ("language", "sentences"),
    [
        ("en", ["Hello there.", "How are you?", "Fine!", "And you"]),
        ("en", ["Mr. Smith met Dr. Jones at 3.5 miles.", "They talked, e.g. about cats."]),
        ("en", ["See No. 5 for that.", "No.", "It is 10 p.m. now.", "Good night."]),
        ("en", ["Well... maybe not.", "I think… so.", "Wait...", "What?"]),
        ("en", ['He said "Stop."', "Then he left.", "(It was late.)", "So."]),
        ("en", ['"Really?" he asked.', "Yahoo! is a name."]),
        ("en", ['"Where are you?" she asked.']),
        ("en", ["In 2020.", "The end.", "Is it?!", "Yes."]),
        ("de", ["Das ist z.B. Berlin.", "Hr. Müller wohnt dort.", "Am 3. Oktober auch."]),
        ("fr", ["Vraiment ?", "Oui.", "« Bonjour. »", "Et M. Dupont ?"]),
        ("es", ["¿Qué tal?", "¡Muy bien!", "El Sr. García vino."]),
        ("sv", ["Det var t.ex. kallt.", "Ja, ca. fem grader.", "Åh!"]),
        ("ru", ["Привет.", "Как дела?", "Он жил там, т.е. здесь."]),
        ("el", ["Τι κάνεις;", "Καλά."]),
        ("ar", ["مرحبا.", "كيف حالك؟", "بخير!"]),
        ("ur", ["میں ٹھیک ہوں۔", "آپ؟"]),
        ("hi", ["नमस्ते।", "आप कैसे हैं?", "मैं ठीक हूँ।"]),
        ("hy", ["Բարեւ։", "Ինչպես ես։"]),
        ("am", ["ሰላም።", "እንዴት ነህ፧"]),
    ],
)
def test_sentences_of_a_spaced_language(language: str, sentences: list[str]) -> None:
    assert texts(segment(" ".join(sentences), language)) == sentences


@pytest.mark.parametrize(
    ("language", "sentences"),
    [
        ("zh", ["你好。", "“你吃了吗？”", "我买了iPhone 15，3.5寸！", "好"]),
        ("ja", ["こんにちは。", "「元気ですか？」", "はい！", "そう…", "ね"]),
        ("my", ["မင်္ဂလာပါ။", "နေကောင်းလား။"]),
        ("km", ["សួស្តី។", "អរគុណ។"]),
    ],
)
def test_sentences_of_a_language_without_spaces(language: str, sentences: list[str]) -> None:
    assert texts(segment("".join(sentences), language)) == sentences


def test_a_pause_decides_where_a_full_stop_may_belong_to_an_abbreviation() -> None:
    for word, text in [
        ("U.S.", "In the U.S. Army they do."),
        ("J.", "It was J. Smith again."),
        ("etc.", "Cats etc. They ran."),
        ("C.", "Take vitamin C. It helps."),
    ]:
        assert texts(segment(text)) == [text]
        first, second = text.split(word)
        assert texts(segment(text, pauses={word: 0.4})) == [first + word, second.strip()]


def test_a_text_without_capitals_is_cut_all_the_same() -> None:
    assert texts(segment("hello there. how are you? fine")) == ["hello there.", "how are you?", "fine"]


def test_the_number_of_an_item_stays_with_it() -> None:
    assert texts(segment("1. Buy milk. 2. Sleep.", pauses=0.5)) == ["1. Buy milk.", "2. Sleep."]


def test_spaces_and_unknown_words_of_the_text_are_kept() -> None:
    found = segment("One  two\u00a0three. Four – five!")
    assert texts(found) == ["One  two\u00a0three.", "Four – five!"]
    without = replace(found, words=tuple(word for word in found.words if word.text != "–"))
    assert texts(without) == ["One  two\u00a0three.", "Four – five!"]
    other = replace(found, text="something else")
    assert texts(other) == ["One two three.", "Four – five!"]


@pytest.mark.parametrize("left_out", [["―"], ["♪"], ["♪", "人"]])
def test_words_that_are_left_out_change_no_text(left_out: list[str]) -> None:
    """Of a script without spaces, too, where no word stands alone."""
    for text in ("― 人が来た、人。", "♪ 人が来た、その人。 ♪", "♪ one other, another other. ♪"):
        found = segment(text, language="ja")
        some = replace(found, words=tuple(word for word in found.words if word.text not in left_out))
        said = " ".join(sentence.text for sentence in split_sentences([some], "ja"))
        assert said.split() == text.split()


# --- over the borders of segments ------------------------------------------------------------------------------------

FIRST, SECOND = "This sentence goes on", "in the next segment. Here is another."


def test_a_sentence_goes_on_in_the_next_segment() -> None:
    one = segment(FIRST)
    two = segment(SECOND, start=one.end + 0.9)
    found = split_sentences([one, two], "en")
    assert [s.text for s in found] == [f"{FIRST} in the next segment.", "Here is another."]
    assert [(s.start, s.end) for s in found] == [(0.0, two.words[3].end), (two.words[4].start, two.end)]
    assert found[0].words == one.words + two.words[:4]
    japanese = [segment("そうで", "ja"), segment("すね。", "ja", start=1.0)]
    assert texts(*japanese) == ["そうですね。"]


@pytest.mark.parametrize(
    "changed",
    [
        {"language": "de"},
        {"speaker": "SPEAKER_01"},
        {"words": ()},
        {"start": 3.0},
    ],
)
def test_but_not_after_a_long_pause_or_in_another_language_or_by_another_speaker(changed: dict) -> None:
    one = segment(FIRST)
    two = segment(SECOND, start=changed.pop("start", one.end))
    assert texts(one, two)[0] == f"{FIRST} in the next segment."[: 99 if changed else len(FIRST)]
    assert texts(one, replace(two, **changed))[0] == FIRST


def test_words_of_another_speaker_are_another_sentence() -> None:
    one, two = segment(FIRST), segment(SECOND, start=0.8)
    assert texts(one, replace(two, words=tuple(replace(word, speaker="B") for word in two.words)))[0] == FIRST


def test_segments_without_punctuation_stay_as_they_are_divided() -> None:
    parts = [segment("hello there", start=0.0), segment("how are you", start=0.4), segment("fine", start=1.0)]
    assert texts(*parts) == ["hello there", "how are you", "fine"]


def test_a_segment_without_words_stays_as_it_is() -> None:
    silent = Segment(1.0, 2.0, "No words. Here.", tokens=(5,), avg_logprob=-0.5)
    assert split_sentences([segment("One. Two."), silent], "en")[2] is silent
    assert split_sentences([], "en") == ()


def test_what_is_carried_over() -> None:
    one = replace(segment("aa bb cc", start=0.0), avg_logprob=-0.2, no_speech_prob=0.1, speaker="A", temperature=0.2)
    two = replace(segment("dd. Ee.", start=0.6), avg_logprob=-1.0, no_speech_prob=0.5, speaker="A", temperature=0.4)
    two = replace(two, words=(replace(two.words[0], end=1.2), replace(two.words[1], start=1.2, end=1.4)))
    joined, last = split_sentences([one, two], "en")  # 0.6 s of the first segment, 0.6 s of the second
    assert (joined.avg_logprob, joined.no_speech_prob) == pytest.approx((-0.6, 0.3), abs=1e-5)
    assert joined.temperature == pytest.approx(0.3, abs=1e-5) and last.avg_logprob == pytest.approx(-1.0)
    assert (joined.tokens, joined.speaker, joined.language) == ((), "A", "en")


# --- long ones -------------------------------------------------------------------------------------------------------


def test_a_long_sentence_is_cut_at_its_longest_pause() -> None:
    text = " ".join(f"w{k}" for k in range(100)) + "."
    pauses = {f"w{k}": 0.25 for k in range(100)} | {"w20": 0.7, "w80": 0.5}
    found = split_sentences([segment(text, pauses=pauses)], "en")
    assert [len(s.words) for s in found] == [21, 60, 19]
    assert all(s.end - s.start <= MAX_DURATION for s in found)


def test_an_hour_without_a_full_stop() -> None:
    found = split_sentences([segment("so " * 18000 + "ends.")], "en")
    assert all(s.end - s.start <= MAX_DURATION for s in found) and len(found) < 300
    assert sum(len(s.words) for s in found) == 18001


@settings(max_examples=100, deadline=None)
@given(
    parts=st.lists(st.text("aAb. !?…\"'»)1好。」」ñ।\n", max_size=30).map(str.strip), max_size=5),
    language=st.sampled_from(["en", "de", "zh", "hi", "xx"]),
    gaps=st.lists(st.floats(0, 3), min_size=5, max_size=5),
)
def test_nothing_is_lost(parts: list[str], language: str, gaps: list[float]) -> None:
    segments, time = [], 0.0
    for text, gap in zip(parts, gaps, strict=False):
        segments.append(segment(text, language, start=round(time, 3), pauses=gap / 5))
        time = segments[-1].end + gap
    found = split_sentences(segments, language)
    assert [w for s in found for w in s.words] == [w for s in segments for w in s.words]
    assert "".join("".join(s.text.split()) for s in found) == "".join("".join(s.text.split()) for s in segments)
    for sentence in found:
        if sentence.words:
            assert (sentence.start, sentence.end) == (sentence.words[0].start, sentence.words[-1].end)
            assert sentence.text == sentence.text.strip() != ""
    for before, after in itertools.pairwise(found):
        assert before.end <= after.start
