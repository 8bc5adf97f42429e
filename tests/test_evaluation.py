"""Scores are those of the libraries that count them; intervals are those of a bootstrap."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from typing import Any

import jiwer
import meeteval
import numpy as np
import pytest
import whisper.normalizers
from conftest import real
from hypothesis import given, settings
from hypothesis import strategies as st
from pyannote.core import Annotation, Timeline
from pyannote.core import Segment as Span
from pyannote.metrics.diarization import DiarizationErrorRate, JaccardErrorRate

from mlx_speech.errors import MissingDependency
from mlx_speech.evaluation import bootstrap, boundaries, normalisers, speaker_errors, speaker_words
from mlx_speech.evaluation.accounts import Account, Pair, account_of, read_file
from mlx_speech.evaluation.bootstrap import Median, Rate, SpeakerMean
from mlx_speech.evaluation.comparison import compare, sentence
from mlx_speech.evaluation.measures import EvaluationOptions, evaluate, summed
from mlx_speech.evaluation.speaker_errors import diarization_errors
from mlx_speech.evaluation.word_errors import aligned_segments, errors_of_characters, errors_of_words, spoken
from mlx_speech.transcript import Region, Segment, Transcript, Turn, Word

FEW = settings(max_examples=40, deadline=None, derandomize=True)
SAMPLE = Path(str(importlib.util.find_spec("pyannote.audio").origin)).parent / "sample"


def same(text: str) -> str:
    return " ".join(text.split())


# --- normalisers ------------------------------------------------------------------------------------------------------

TEXTS = [
    "Mr. O'Neill's colour cost twenty-one dollars and 50 cents; I'm gonna, uh, pay 1,000%!",
    "[noise] Well (laughs), it's the '90s: kinda cause I dunno.",
    "Ça coûte 3,50 € – n'est-ce pas ? Straße, İstanbul, naïve",
    "हिन्दी में लिखा हुआ पाठ।",
    "今日はいい天気ですね。Appleの本、２冊。",
    "",
    " … ",
]


@pytest.mark.parametrize("text", TEXTS)
def test_whispers_normaliser_is_whispers(text: str) -> None:
    """With its rules and no others: later versions of the package have some more."""
    english = whisper.normalizers.EnglishTextNormalizer()(text).strip()
    assert normalisers.normaliser("whisper", "en", characters=False)(text) == english
    for characters in (False, True):
        others = whisper.normalizers.BasicTextNormalizer(split_letters=characters)(text).strip()
        for language in (None, "de"):
            assert normalisers.normaliser("whisper", language, characters)(text) == others


@pytest.mark.parametrize(
    "text, expected",
    [
        ("“Well,” said O’Neill – 'yes'!", "well said o'neill yes"),
        ("well-known, $5", "well known 5"),
        ("ＡＢＣ Straße ÉTÉ", "abc straße été"),
        ("हिन्दी।", "हिन्दी"),  # vowel signs stay
        ("?! …", ""),
    ],
)
def test_the_plain_normaliser(text: str, expected: str) -> None:
    assert normalisers.plain(text) == expected


def test_characters_of_scripts_without_spaces() -> None:
    assert normalisers.normaliser("plain", "ja", characters=True)("今日は、 か\u3099。") == "今 日 は が"
    assert normalisers.in_characters("今日はいい天気。") and normalisers.in_characters("ภาษาไทย OK")
    assert not normalisers.in_characters("안녕하세요 여러분") and not normalisers.in_characters("Tokyo (東京) is big")
    assert not normalisers.in_characters("")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    normalisers._whisper.cache_clear()
    monkeypatch.setitem(sys.modules, "whisper_normalizer.basic", None)
    with pytest.raises(MissingDependency, match=r"pip install 'mlx-speech-toolkit\[eval\]'"):
        normalisers.normaliser("whisper", "en", characters=False)


# --- words ------------------------------------------------------------------------------------------------------------

words = st.lists(st.sampled_from(["a", "b", "cc", "one hundred", "and", "five", "uh", "the"]), max_size=12).map(
    " ".join
)
segment_texts = st.lists(words, max_size=4)


def segments_of(texts: list[str], speakers: str = "AB") -> tuple[Segment, ...]:
    found = []
    for index, text in enumerate(texts):
        found.append(Segment(2.0 * index, 2.0 * index + 1.5, text, speaker=speakers[index % len(speakers)]))
    return tuple(found)


@FEW
@given(segment_texts, segment_texts, st.sampled_from(["whisper", "plain"]))
def test_word_and_character_errors_are_jiwers(said: list[str], heard: list[str], name: Any) -> None:
    normalise = normalisers.normaliser(name, "en", characters=False)
    reference = normalise(" ".join(said))
    hypothesis = normalise(" ".join(heard))
    found = spoken(segments_of(said), normalise)
    assert " ".join(found.words) == reference and len(found.segment_of_word) == len(found.words)
    assert list(found.segment_of_word) == sorted(found.segment_of_word)
    for errors, expected in (
        (errors_of_words(found, hypothesis.split()), jiwer.process_words(reference, hypothesis)),
        (errors_of_characters(found, hypothesis.split()), jiwer.process_characters(reference, hypothesis)),
    ):
        assert errors.substitutions == expected.substitutions
        assert (errors.deletions, errors.insertions) == (expected.deletions, expected.insertions)
        assert errors.rate.errors.sum() == expected.substitutions + expected.deletions + expected.insertions
        assert errors.rate.totals.sum() == errors.total and errors.rate.units == max(1, len(said))
        if errors.total:
            rate = expected.wer if isinstance(expected, jiwer.WordOutput) else expected.cer
            assert errors.rate.value() == pytest.approx(rate, abs=1e-12)
        else:
            assert math.isnan(errors.rate.value())


def test_errors_are_given_to_the_segments_where_they_are() -> None:
    said = spoken(segments_of(["a b", "", "c d", "e"]), same)
    errors = errors_of_words(said, ["x", "a", "b", "c", "y", "e", "z"])
    assert errors.rate.errors.tolist() == [1, 0, 1, 1] and errors.rate.totals.tolist() == [2, 0, 2, 1]


def test_a_number_across_two_segments_is_one() -> None:
    """As a whole the text is what jiwer sees; its words are still of some segment."""
    normalise = normalisers.normaliser("whisper", "en", characters=False)
    found = spoken(segments_of(["it cost one hundred", "and five pounds", "then"]), normalise)
    assert " ".join(found.words) == normalise("it cost one hundred and five pounds then")
    assert found.segment_of_word[0] == 0 and found.segment_of_word[-1] == 2


def test_alignment_by_segments() -> None:
    segments = segments_of(["a b", "c d"])
    said = spoken(segments, same)
    rows = aligned_segments(segments, said, ["x", "a", "c", "e"])
    assert [(row.start, row.speaker, row.errors) for row in rows] == [(0.0, "A", 2), (2.0, "B", 1)]
    assert rows[0].words == ((None, "x"), ("a", "a"), ("b", None)) and rows[1].words == (("c", "c"), ("d", "e"))
    assert aligned_segments((), spoken((), same), ["x"])[0].words == ((None, "x"),)
    assert aligned_segments((), spoken((), same), []) == []


# --- words by speaker -------------------------------------------------------------------------------------------------


def entries(segments: tuple[Segment, ...]) -> meeteval.io.SegLST:
    rows: list[Any] = [
        {
            "session_id": "x",
            "speaker": segment.speaker,
            "start_time": segment.start,
            "end_time": segment.end,
            "words": segment.text,
        }
        for segment in segments
    ]
    return meeteval.io.SegLST(rows)


@st.composite
def conversations(draw: st.DrawFn) -> tuple[Segment, ...]:
    """Up to six segments of up to three speakers, in order, who may overlap."""
    segments = []
    start = 0.0
    for _ in range(draw(st.integers(1, 6))):
        start += draw(st.integers(0, 20)) / 4
        end = start + draw(st.integers(1, 12)) / 4
        text = " ".join(draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=5)))
        segments.append(Segment(start, end, text, speaker=draw(st.sampled_from(["Ann", "Bob", "Eve"]))))
    return tuple(segments)


@FEW
@given(conversations(), conversations(), st.sampled_from([0.5, 5.0]))
def test_word_errors_by_speaker_are_meetevals(said: Any, heard: Any, collar: float) -> None:
    reference = speaker_words.talk(said, same)
    hypothesis = speaker_words.talk(heard, same)
    expected = {
        "cp": meeteval.wer.cpwer(entries(said), entries(heard))["x"],
        "tcp": meeteval.wer.tcpwer(entries(said), entries(heard), collar=collar)["x"],
        "orc": meeteval.wer.orcwer(entries(said), entries(heard))["x"],
    }
    found = {
        "cp": speaker_words.cpwer(reference, hypothesis),
        "tcp": speaker_words.tcpwer(reference, hypothesis, collar),
        "orc": speaker_words.orcwer(reference, hypothesis),
    }
    for kind, theirs in expected.items():
        ours = found[kind]
        assert (ours.substitutions, ours.deletions, ours.insertions, ours.total) == (
            theirs.substitutions,
            theirs.deletions,
            theirs.insertions,
            theirs.length,
        )
        assert ours.rate.value() == pytest.approx(theirs.error_rate, abs=1e-12), kind
        assert ours.rate.units == len(said)


def test_overlapping_segments_of_one_speaker_are_no_matter(caplog: pytest.LogCaptureFixture) -> None:
    """meeteval would say something of it, for each speaker; the figures are its own."""
    said = (Segment(0, 4, "a b c d", speaker="Ann"), Segment(1, 2, "e", speaker="Ann"))
    talk = speaker_words.talk(said, same)
    found = speaker_words.tcpwer(talk, talk, 0.5)
    assert found.rate.value() == 0 and found.total == 5 and not caplog.records


def test_one_side_without_words() -> None:
    said = speaker_words.talk(segments_of(["a b", "c"]), same)
    nothing = speaker_words.talk((), same)
    for found in (
        speaker_words.cpwer(said, nothing),
        speaker_words.tcpwer(said, nothing, 5.0),
        speaker_words.orcwer(said, nothing),
    ):
        assert found.rate.errors.tolist() == [2, 1] and found.deletions == 3 and found.rate.value() == 1
    added = speaker_words.cpwer(nothing, said)
    assert added.insertions == 3 and added.total == 0 and added.rate.errors.tolist() == [3]


def test_a_long_search_is_greedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speaker_words, "MAX_CELLS", 1)
    said = segments_of(["a b", "c", "d e f"])
    heard = segments_of(["a b", "d", "d f"])
    found = speaker_words.orcwer(speaker_words.talk(said, same), speaker_words.talk(heard, same))
    theirs = meeteval.wer.greedy_orcwer(entries(said), entries(heard))["x"]
    assert found.rate.value() == theirs.error_rate
    pair = Pair("x", Account(heard), Account(said))
    assert "greedy" in evaluate(pair, EvaluationOptions(language="en")).notes[0]


def of_many(count: int) -> tuple[Segment, ...]:
    """Each a speaker of their own, who says a word."""
    return tuple(Segment(k, k + 1.0, "word", speaker=f"S{k}") for k in range(count))


@pytest.mark.parametrize(("said", "heard"), [(3, 11), (3, 20), (3, 21), (21, 3), (12, 2)])
def test_many_speakers(said: int, heard: int) -> None:
    """meeteval assigns at most twenty, and finds ORC-WER for at most ten who were heard."""
    found = evaluate(Pair("x", Account(of_many(heard)), Account(of_many(said))), EvaluationOptions(language="en"))
    is_assigned = max(said, heard) <= 20
    assert ("cpwer" in found.scores) == ("tcpwer" in found.scores) == is_assigned
    assert any("more than 20 speakers" in note for note in found.notes) == (not is_assigned)
    assert ("orcwer" in found.scores) == (heard <= 10)
    assert any("more than 10 speakers" in note for note in found.notes) == (heard > 10)
    assert all(found.scores[name].counts["total"] == said for name in ("cpwer", "orcwer") if name in found.scores)


# --- speakers ---------------------------------------------------------------------------------------------------------


def as_annotation(turns: list[Turn]) -> Annotation:
    found = Annotation()
    for track, turn in enumerate(turns):
        found[Span(turn.start, turn.end), track] = turn.speaker
    return found


turns = st.lists(
    st.builds(
        lambda start, length, speaker: Turn(start / 8, (start + length) / 8, speaker),
        st.integers(0, 80),
        st.integers(1, 30),
        st.sampled_from(["Ann", "Bob", "1", "2"]),
    ),
    min_size=1,
    max_size=8,
)


@FEW
@given(turns, turns, st.sampled_from([0.0, 0.25]), st.booleans(), st.booleans())
def test_diarization_errors_are_those_of_pyannote(
    said: list[Turn], heard: list[Turn], collar: float, skip_overlap: bool, is_cut: bool
) -> None:
    ends = [turn.end for turn in said + heard]
    stretches = [Region(1.0, 4.0), Region(5.5, 9.0)] if is_cut else [Region(0.0, max(ends))]
    uem = Timeline([Span(part.start, part.end) for part in stretches])
    choices: Any = {"collar": collar, "skip_overlap": skip_overlap}
    der: Any = DiarizationErrorRate(**choices)(as_annotation(said), as_annotation(heard), uem=uem, detailed=True)
    found = diarization_errors(said, heard, stretches, **choices)
    assert found.total == der["total"] and found.missed == der["missed detection"]
    assert found.false_alarm == der["false alarm"] and found.confusion == der["confusion"]
    assert found.der.totals.sum() == pytest.approx(der["total"], abs=1e-9)
    errors = der["missed detection"] + der["false alarm"] + der["confusion"]
    assert found.der.errors.sum() == pytest.approx(errors, abs=1e-9)
    if der["total"]:
        assert found.der.value() == pytest.approx(der["diarization error rate"], abs=1e-9)
        jer = JaccardErrorRate(**choices)(as_annotation(said), as_annotation(heard), uem=uem)
        assert found.jer.value() == pytest.approx(jer, abs=1e-9)
        assert found.jer.value() == pytest.approx(np.mean([one.jaccard for one in found.speakers]), abs=1e-9)


def test_without_stretches_all_from_the_first_turn_to_the_last_counts() -> None:
    said = [Turn(1.0, 2.0, "Ann")]
    heard = [Turn(0.0, 2.0, "x"), Turn(3.0, 4.0, "x")]
    found = diarization_errors(said, heard)
    assert found.false_alarm == 2 and found.total == 1 and found.speakers[0].heard_as == "x"
    assert found.speakers[0].added == pytest.approx(2) and found.speakers[0].missed == pytest.approx(0)
    assert diarization_errors(said, []).der.value() == 1 and diarization_errors(said, []).jer.value() == 1


def test_the_figures_of_dscore() -> None:
    """Its own test has both; of JER pyannote.metrics, which knows no frames, has another figure."""
    said = read_file(real("data/diar/der_check/dscore_ref.rttm"))["FILE1"].turns or ()
    heard = read_file(real("data/diar/der_check/dscore_sys.rttm"))["FILE1"].turns or ()
    found = diarization_errors(said, heard, [Region(0, 43)])
    assert round(100 * found.der.value(), 5) == 26.39309
    assert round(100 * found.framed_jer.value(), 5) == 33.24631
    uem = Timeline([Span(0, 43)])
    jer = JaccardErrorRate()(as_annotation(list(said)), as_annotation(list(heard)), uem=uem)
    assert found.jer.value() == pytest.approx(jer, abs=1e-12)


@FEW
@given(st.data())
def test_frames_of_ten_milliseconds(data: st.DataObject) -> None:
    """Beside counting frame by frame, of one speaker."""

    def drawn() -> list[Turn]:
        ends = sorted(data.draw(st.sets(st.integers(0, 1000), min_size=4, max_size=4)))
        return [Turn(ends[0] / 1000, ends[1] / 1000, "Ann"), Turn(ends[2] / 1000, ends[3] / 1000, "Ann")]

    def frames(turns: list[Turn]) -> set[int]:
        return {k for k in range(101) for turn in turns if turn.start <= 0.01 * k < turn.end}

    said = drawn()
    heard = drawn()
    ours = frames(said)
    theirs = frames(heard)
    found = diarization_errors(said, heard).framed_jer.value()
    if ours & theirs:
        assert found == pytest.approx(1 - len(ours & theirs) / len(ours | theirs), abs=1e-9)
    elif ours:
        assert found == 1
    else:
        assert math.isnan(found)


@pytest.mark.parametrize("stretches", [200, 3])
def test_ami_meetings(stretches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One meeting's turns as a hypothesis of the other's, and moved by 0.2 s, drawn from more or fewer stretches."""
    monkeypatch.setattr(speaker_errors, "MAX_STRETCHES", stretches)
    meetings = read_file(real("data/diar/ami_debug/debug.development.rttm"))
    said = list(meetings["dev00"].turns or ())
    moved = [Turn(turn.start + 0.2, turn.end + 0.2, turn.speaker[::-1]) for turn in said]
    for heard in (list(meetings["dev01"].turns or ()), moved):
        uem = Timeline([Span(0, 30)])
        expected = DiarizationErrorRate(collar=0.1)(as_annotation(said), as_annotation(heard), uem=uem)
        found = diarization_errors(said, heard, [Region(0, 30)], collar=0.1)
        assert found.der.value() == pytest.approx(expected, abs=1e-9)
        assert 1 < found.der.units == found.jer.units <= stretches + 1


# --- words' boundaries ------------------------------------------------------------------------------------------------


def timed(*rows: tuple[str, float, float], aligned: bool = True) -> tuple[Segment, ...]:
    found = tuple(Word(start, end, text, 1.0, aligned=aligned) for text, start, end in rows)
    return (Segment(rows[0][1], rows[-1][2], " ".join(row[0] for row in rows), found),)


def test_boundaries_of_recognised_words() -> None:
    said = timed(("So", 0.0, 0.4), ("it's", 0.5, 0.9), ("fine.", 1.0, 1.5))
    heard = timed(("so,", 0.02, 0.5), ("its", 0.5, 0.9), ("“Fine", 1.2, 1.6))
    found = boundaries.boundary_errors(said, heard)
    assert found is not None and found.words == 2
    assert sorted(found.distances.values) == pytest.approx([0.02, 0.1, 0.1, 0.2])
    assert found.distances.value() == pytest.approx(0.1) and found.late_starts.value() == 0.5
    assert boundaries.boundary_errors(said, timed(("so", 0, 1), aligned=False)) is None
    assert boundaries.boundary_errors((Segment(0, 1, "so"),), heard) is None


# --- bootstrap --------------------------------------------------------------------------------------------------------


@FEW
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), min_size=2, max_size=30))
def test_an_interval_is_the_same_every_time_and_holds_the_figure(units: list[tuple[int, int]]) -> None:
    rate = Rate(*np.array(units, dtype=float).T)
    found = bootstrap.interval(rate)
    bootstrap._weights.cache_clear()
    assert found is not None and found == bootstrap.interval(rate)
    assert found.low <= rate.value() <= found.high
    assert bootstrap.paired_interval(rate, rate) == (0, 0)


def test_an_interval_is_as_wide_as_theory_says() -> None:
    """Of 400 words in 400 segments, of which every fourth is wrong: binomial."""
    errors = np.tile([1.0, 0, 0, 0], 100)
    found = bootstrap.interval(Rate(errors, np.ones(400)))
    spread = 1.96 * math.sqrt(0.25 * 0.75 / 400)
    assert found is not None and found == pytest.approx((0.25 - spread, 0.25 + spread), abs=0.006)


def test_no_interval_of_one_unit_or_of_nothing() -> None:
    assert bootstrap.interval(Rate(np.array([1.0]), np.array([2.0]))) is None
    nothing = Rate(np.zeros(3), np.zeros(3))
    assert math.isnan(nothing.value()) and bootstrap.interval(nothing) is None
    with pytest.raises(ValueError, match="cannot be paired"):
        bootstrap.paired_interval(nothing, Rate(np.zeros(2), np.ones(2)))


def test_a_paired_interval_is_narrower_than_chance_alone() -> None:
    """One error less in each third segment: far less than segments differ among each other, and still no chance."""
    dice = np.random.default_rng(0)
    errors = dice.integers(1, 9, 60).astype(float)
    fewer = errors - np.tile([1.0, 0, 0], 20)
    first = Rate(errors, np.full(60, 10.0))
    second = Rate(fewer, np.full(60, 10.0))
    found = bootstrap.paired_interval(first, second)
    alone = bootstrap.interval(first)
    assert found is not None and alone is not None
    assert found.low < second.value() - first.value() < found.high < 0
    assert found.high - found.low < (alone.high - alone.low) / 2


rates_of_recordings = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), min_size=1, max_size=5).map(
    lambda units: Rate(*np.array(units, dtype=float).T)
)


@FEW
@given(st.lists(rates_of_recordings, min_size=1, max_size=7))
def test_rates_together_are_all_errors_by_all_words(rates: list[Rate]) -> None:
    found = bootstrap.together(rates)
    assert found.value() == sum(rate.errors.sum() for rate in rates) / sum(rate.totals.sum() for rate in rates)
    recordings = bootstrap.draws_recordings(len(rates))
    assert found.units == (len(rates) if recordings else sum(rate.units for rate in rates))


@pytest.mark.parametrize("count", [2, 6])
def test_means_and_medians_together(count: int) -> None:
    """With few recordings segments are drawn, with more recordings; the figure is the same."""
    dice = np.random.default_rng(count)
    means = []
    medians = []
    for index in range(count):
        totals = dice.uniform(1, 2, (4, 1 + index % 3))
        means.append(SpeakerMean(totals * dice.uniform(0, 1, totals.shape), totals))
        medians.append(Median(dice.uniform(0, 1, 9), np.arange(9) % 4, 4))
    rates = np.concatenate([mean.errors.sum(axis=0) / mean.totals.sum(axis=0) for mean in means])
    together = bootstrap.together(means)
    assert together.value() == pytest.approx(np.mean(rates))
    median = bootstrap.together(medians)
    assert median.value() == np.median([median.values for median in medians])
    for figure in (together, median):
        assert figure.units == (count if count > 4 else 4 * count)
        found = bootstrap.interval(figure)
        assert found is not None and found.low < figure.value() < found.high
    weights = np.ones((1, together.units))
    assert together.resampled(weights)[0] == pytest.approx(together.value())
    with pytest.raises(TypeError, match="cannot be joined"):
        means[0].joined(medians)


# --- all of it --------------------------------------------------------------------------------------------------------


def test_a_conversation_of_pyannote_beside_itself_with_errors() -> None:
    """Every figure of two files beside what the libraries make of them, read by themselves."""
    said = read_file(SAMPLE / "sample.stm")["sample"]
    heard = []
    for index, segment in enumerate(said.segments or ()):
        text = segment.text.replace("you", "they") if index % 3 else segment.text
        speaker = "S1" if segment.speaker == "Diane" or index == 4 else "S2"
        heard.append(Segment(segment.start + 0.3, segment.end, text, speaker=speaker))
    pair = Pair("sample", account_of(Transcript(tuple(heard))), said)
    found = evaluate(pair, EvaluationOptions(language="en", collar=0.2))
    assert list(found.scores) == ("wer wer_plain cer cer_plain cpwer tcpwer orcwer der jer jer_framed".split())
    english = whisper.normalizers.EnglishTextNormalizer()
    reference = meeteval.io.load(SAMPLE / "sample.stm", parse_float=float).to_seglst()
    rows: Any = entries(tuple(heard)).map(lambda row: {**row, "session_id": "sample", "words": english(row["words"])})
    truth: Any = reference.map(lambda row: {**row, "words": english(row["words"])})
    texts = [english(" ".join(row["words"] for row in source)) for source in (reference, entries(tuple(heard)))]
    expected = {
        "wer": jiwer.wer(*texts),
        "cer": jiwer.cer(*[text.strip() for text in texts]),
        "cpwer": meeteval.wer.cpwer(truth, rows)["sample"].error_rate,
        "tcpwer": meeteval.wer.tcpwer(truth, rows, collar=5)["sample"].error_rate,
        "orcwer": meeteval.wer.orcwer(truth, rows)["sample"].error_rate,
    }
    ours = as_annotation(list(pair.heard.turns or ()))
    theirs = as_annotation(list(said.turns or ()))
    extent = Timeline([theirs.get_timeline().extent() | ours.get_timeline().extent()])
    expected["der"] = DiarizationErrorRate(collar=0.2)(theirs, ours, uem=extent)
    expected["jer"] = JaccardErrorRate(collar=0.2)(theirs, ours, uem=extent)
    for key, value in expected.items():
        assert found.scores[key].value == pytest.approx(value, abs=1e-9), key
        assert value > 0
    assert sum(row.errors for row in found.alignment) == found.scores["wer"].figure.errors.sum()


def test_what_does_not_apply_is_left_out() -> None:
    plain = Account((Segment(0, 0, "so it is"),))
    named = Account((Segment(0, 0, "so it is", speaker="Ann"),))
    turns_only = Account(turns=(Turn(0, 1, "Ann"),))
    text = ["wer", "wer_plain", "cer", "cer_plain"]
    assert list(evaluate(Pair("x", plain, plain)).scores) == text
    assert list(evaluate(Pair("x", plain, named)).scores) == text
    assert list(evaluate(Pair("x", named, named)).scores) == [*text, "cpwer", "orcwer"]
    assert list(evaluate(Pair("x", turns_only, turns_only)).scores) == ["der", "jer", "jer_framed"]
    assert not evaluate(Pair("x", turns_only, plain)).scores
    japanese = Account((Segment(0, 0, "今日はいい天気。"),))
    found = evaluate(Pair("x", Account((Segment(0, 0, "今日は、いい天"),)), japanese))
    assert list(found.scores) == ["cer", "cer_plain"] and found.scores["cer"].value == 1 / 7
    assert found.counts_characters


def test_nothing_heard_and_nothing_said() -> None:
    said = account_of(Transcript(segments_of(["so it is"]), language="en"))
    nothing = account_of(Transcript(language="en"))
    silent = evaluate(Pair("x", nothing, said))
    assert silent.scores["wer"].value == silent.scores["cpwer"].value == silent.scores["tcpwer"].value == 1
    invented = evaluate(Pair("x", said, nothing))
    assert math.isnan(invented.scores["wer"].value) and invented.scores["wer"].counts["insertions"] == 3
    turns = (Turn(0, 2, "Ann"), Turn(3, 4, "Bob"))
    noise = evaluate(Pair("x", Account(turns=turns), Account(turns=())))
    assert math.isnan(noise.scores["der"].value) and math.isnan(noise.scores["jer"].value)
    meeting = evaluate(Pair("x", Account(turns=turns), Account(turns=turns)))
    assert summed([noise, meeting])["der"].value == 1 and summed([noise, meeting])["jer"].value == 0
    both = summed([silent, invented])
    assert both["wer"].value == 2  # what was invented counts where something was said elsewhere


def test_stretches_leave_out_segments_outside() -> None:
    said = Account(segments_of(["a", "b", "c", "d"]))
    found = evaluate(Pair("x", said, said), stretches=[Region(1.7, 3.9), Region(6.5, 7.0)])
    assert found.scores["wer"].counts["total"] == 2  # b, whole, and d, in part


def test_a_comparison_says_what_is_so() -> None:
    texts = [f"a b c d e f g h {index}" for index in range(30)]
    worse = [text.replace("a b", "x y") if index % 2 else text for index, text in enumerate(texts)]
    other = [text.replace("a b", "x y") if not index % 2 else text for index, text in enumerate(texts)]

    def scored(heard: list[str]) -> list[Any]:
        return [evaluate(Pair("x", Account(segments_of(heard)), Account(segments_of(texts))))]

    found = compare(scored(texts), scored(worse))
    assert found["wer"].verdict == "worse" and found["wer"].difference > 0
    assert sentence("A", "B", found).startswith("B is worse than A: its WER is ")
    back = compare(scored(worse), scored(texts))
    assert back["wer"].verdict == "better" and back["wer"].difference == -found["wer"].difference
    assert "B is better than A" in sentence("A", "B", back)
    alike = compare(scored(worse), scored(other))
    assert alike["wer"].verdict == "same"
    assert "cannot be told apart on these data" in sentence("A", "B", alike)
    assert " points lower to " in sentence("A", "B", alike)
    equal = compare(scored(worse), scored(worse))
    assert equal["wer"].interval == (0, 0) and equal["wer"].verdict == "same"
