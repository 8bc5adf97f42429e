"""Transcripts read from JSON: ours, exact and rounded, whisperx's, and what is neither."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_transcript import full
from test_writers import transcripts

from mlx_speech.errors import CorruptFile
from mlx_speech.package_data import DEMO
from mlx_speech.pipeline import Pipeline
from mlx_speech.transcript import Char, Diarization, Segment, Transcript, Word
from mlx_speech.writers import FORMATS, read_json, to_json, to_screen, to_srt

QUICK = settings(max_examples=100, deadline=None, derandomize=True)

# --- ours -------------------------------------------------------------------------------------------------------------


def with_aligned_words(transcript: Transcript) -> Transcript:
    """Only words whose times are found in the sound have characters."""
    segments: list[Segment] = []
    for segment in transcript.segments:
        segments.append(replace(segment, words=tuple(replace(word, aligned=True) for word in segment.words)))
    return replace(transcript, segments=tuple(segments))


def stripped(transcript: Transcript) -> Transcript:
    """Texts without surrounding spaces, as all of the pipeline are."""
    segments: list[Segment] = []
    for segment in transcript.segments:
        words = [replace(word, text=word.text.strip()) for word in segment.words]
        segments.append(replace(segment, text=segment.text.strip(), words=tuple(words)))
    return replace(transcript, segments=tuple(segments))


@QUICK
@given(transcripts().map(stripped))
@example(Transcript())
@example(with_aligned_words(full()))
def test_what_is_read_is_written_the_same(transcript: Transcript) -> None:
    text = to_json(transcript, speaker_embeddings=True)
    read = read_json(text)
    assert to_json(read, speaker_embeddings=True) == text
    for ours, theirs in zip(read.words, transcript.words, strict=True):
        assert (ours.text, ours.speaker, ours.aligned) == (theirs.text, theirs.speaker, theirs.aligned)
        assert abs(ours.start - theirs.start) <= 6e-4 and abs(ours.end - theirs.end) <= 6e-4


@pytest.mark.parametrize("diarize", [True, False])
def test_the_pipelines_results(diarize: bool) -> None:
    """Times are in whole milliseconds but for segments and turns."""
    result = Pipeline.demo()(DEMO / "pauses.flac", diarize=diarize, return_char_alignments=True)
    text = to_json(result, speaker_embeddings=True)
    read = read_json(text)
    assert any(word.chars for word in read.words) and to_json(read, speaker_embeddings=True) == text
    for ours, theirs in zip(read.segments, result.segments, strict=True):
        assert (ours.text, ours.speaker, ours.language) == (theirs.text, theirs.speaker, theirs.language)
        for word, original in zip(ours.words, theirs.words, strict=True):
            assert "".join(char.text for char in word.chars) == "".join(char.text for char in original.chars)
    for name in ("txt", "tsv", "rttm", "srt", "vtt"):
        assert FORMATS[name](read, uri="x") == FORMATS[name](result, uri="x")
    assert read_json(json.dumps(result.to_dict())) == result


@QUICK
@given(transcripts())
def test_the_exact_form_is_read_exactly(transcript: Transcript) -> None:
    assert read_json(json.dumps(transcript.to_dict())) == transcript


def test_of_everything_only_the_decodings_figures_are_lost() -> None:
    transcript = with_aligned_words(full())
    read = read_json("\ufeff" + to_json(transcript, speaker_embeddings=True))
    kept = Segment(0.1, 0.5, "hi", transcript.words, "A", "de", avg_logprob=-0.3)
    diarization = replace(transcript.diarization or Diarization(), exclusive=())
    assert diarization.embeddings and diarization.embedding_model and diarization.matches
    assert read == replace(transcript, segments=(kept,), diarization=diarization, silences=())


# --- whisperx's -------------------------------------------------------------------------------------------------------


def test_a_result_of_whisperx() -> None:
    """As its `align` and `assign_word_speakers` give it: a word without a time, one without a score, no duration."""
    words = [
        {"word": "In", "start": 0.5, "end": 0.6, "score": 0.9, "speaker": "SPEAKER_00"},
        {"word": "2024"},
        {"word": "ab"},
        {"word": "we", "start": 1.2, "end": 1.3, "score": 0.8},
        {"word": "won.", "start": 1.4, "end": 1.6},
    ]
    letters: list[dict[str, Any]] = [
        {"char": "I", "start": 0.5, "end": 0.55, "score": 0.9},
        {"char": "n", "start": 0.55, "end": 0.6, "score": 0.9},
        {"char": " "},
        *({"char": char} for char in "2024 ab "),
        {"char": "w", "start": 1.2, "end": 1.25, "score": 0.7},
        {"char": "e", "start": 1.25, "end": 1.3, "score": 0.9},
    ]
    segment = {"start": 0.5, "end": 1.6, "text": " In 2024 ab we won.", "words": words, "chars": letters}
    failed = {"start": 2.0, "end": 3.0, "text": "♪", "words": [], "chars": None, "avg_logprob": -0.5}
    content = {
        "segments": [{**segment, "speaker": "SPEAKER_00"}, failed],
        "word_segments": words,
        "language": "en",
        "speaker_embeddings": {"SPEAKER_00": [0.5, 1]},
    }
    read = read_json(json.dumps(content))
    first, second = read.segments
    assert (read.language, read.duration, read.language_probability) == ("en", 3.0, 1.0)
    assert read.diarization == Diarization(embeddings={"SPEAKER_00": (0.5, 1.0)})
    assert second == Segment(2.0, 3.0, "♪", language="en", avg_logprob=-0.5)
    assert (first.text, first.spaced, first.speaker) == ("In 2024 ab we won.", True, "SPEAKER_00")
    one, year, other, we, won = first.words
    assert one == Word(0.5, 0.6, "In", 0.9, "SPEAKER_00", chars=(Char(0.5, 0.55, "I", 0.9), Char(0.55, 0.6, "n", 0.9)))
    assert (year.start, year.end, other.end) == pytest.approx((0.6, 1.0, 1.2)) and other.start == year.end
    assert not year.aligned and not other.aligned and not year.score and not year.chars
    assert we.aligned and [char.text for char in we.chars] == ["w", "e"]
    assert won == Word(1.4, 1.6, "won.", 0.0, aligned=False)


def test_a_result_of_whisperx_without_words() -> None:
    content = {"segments": [{"text": " Hello.", "start": 0.009, "end": 2.5, "avg_logprob": -0.2}], "language": "en"}
    assert read_json(json.dumps(content)) == Transcript(
        (Segment(0.009, 2.5, "Hello.", language="en", avg_logprob=-0.2, spaced=True),), "en", duration=2.5
    )
    content["segments"] = [{**content["segments"][0], "words": [{"word": "Hello."}]}]
    (word,) = read_json(json.dumps(content)).words
    assert word == Word(0.009, 2.5, "Hello.", aligned=False)


def test_nan_is_nothing() -> None:
    word = {"word": "x", "start": float("nan"), "end": float("nan"), "score": float("nan")}
    content = {"segments": [{"text": "x", "start": 1, "end": 2, "words": [word], "avg_logprob": float("nan")}]}
    (segment,) = read_json(json.dumps(content)).segments
    assert segment == Segment(1.0, 2.0, "x", (Word(1.0, 2.0, "x", aligned=False),))


# --- neither ----------------------------------------------------------------------------------------------------------


def document(**changes: Any) -> str:
    return json.dumps({"segments": [{"text": "x", "start": 0, "end": 1, **changes}]})


WRONG = {
    "nothing": "",
    "no JSON": "1\n00:00:01,000 --> 00:00:02,000\nHello.\n",
    "half": '{"segments": [',
    "a list": "[]",
    "a number": "3",
    "truth": '{"utterances": [], "words": []}',
    "segments": '{"segments": 3}',
    "deep": "[" * 200_000,
    "deep objects": '{"segments":' * 100_000,
    "digits": '{"segments": [], "duration": ' + "9" * 100_000 + "}",
    "large": '{"segments": [], "duration": 1e999}',
    "long": '{"segments": [], "duration": 1e300}',
    "negative": '{"segments": [], "duration": -1}',
    "surrogate": '{"segments": [], "language": "\\ud800"}',
    "raw surrogate": '{"segments": [], "language": "\ud800"}',
    "backwards": document(start=2),
    "before": document(start=-1),
    "late": document(end=1e12),
    "no text": document(text=None),
    "no end": document(end=None),
    "word": document(words=[{"word": 3}]),
    "word, backwards": document(words=[{"word": "x", "start": 3, "end": 2}]),
    "char": document(words=[{"word": "x", "start": 0, "end": 1}], chars=[{"char": "x", "start": "0", "end": 1}]),
    "turn": '{"segments": [], "turns": [{"start": 1, "end": 0, "speaker": "A"}]}',
    "version": '{"format_version": 99, "segments": []}',
    "exact, late": '{"format_version": 1, "silences": [{"start": 1, "end": 1e99}]}',
}


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG.keys())
def test_what_is_no_transcript_is_an_error_of_one_line(text: str) -> None:
    with pytest.raises(CorruptFile) as raised:
        read_json(text)
    message = str(raised.value)
    assert message.startswith("no transcript of mlx_speech or whisperx (") and len(message) < 400
    assert "\n" not in message


def test_a_document_may_not_be_endless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlx_speech.writers.whisperx_json.MAX_CHARACTERS", 20)
    assert read_json('{"segments": []}') == Transcript()
    with pytest.raises(CorruptFile, match="30 characters"):
        read_json('{"segments": []}' + " " * 14)


KEYS = "segments words chars char word text start end score speaker language turns speaker_embeddings duration models"
KEYS += " seconds aligned avg_logprob format_version tokens diarization silences embeddings"
keys = st.sampled_from(KEYS.split())
leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(0, 3), st.floats(), st.floats(0, 9), st.text(max_size=4)
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys | st.text(max_size=3), inner, max_size=6),
    max_leaves=30,
)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every list and object of a document with each of its indices or keys."""
    if isinstance(value, dict):
        for key in value:
            yield value, key
            yield from places(value[key])
    elif isinstance(value, list):
        for index in range(len(value)):
            yield value, index
            yield from places(value[index])


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """A transcript in which some values are others, or JSON of the same keys, or a piece of a document."""
    content: Any
    if draw(st.booleans()):
        content = draw(st.dictionaries(keys, values))
    else:
        exact = draw(st.booleans())
        content = full().to_dict() if exact else json.loads(to_json(full(), speaker_embeddings=True))
        for _ in range(draw(st.integers(1, 3))):
            inside, key = draw(st.sampled_from(list(places(content))))
            inside[key] = draw(values)
    text = json.dumps(content)
    if draw(st.integers(0, 9)) == 0:
        return text[: draw(st.integers(0, len(text)))]
    return text


@settings(max_examples=500, deadline=None, derandomize=True)
@given(damaged() | st.text(max_size=30))
def test_hostile_json_gives_a_transcript_that_can_be_written_or_an_error(text: str) -> None:
    try:
        transcript = read_json(text)
    except CorruptFile as error:
        assert "\n" not in str(error) and len(str(error)) < 600
        return
    for write in FORMATS.values():
        write(transcript, uri="x").encode()
    assert to_srt(transcript, max_line_width=20, highlight_words=True) is not None and to_screen(transcript)
    assert read_json(json.dumps(transcript.to_dict())) == transcript


def test_many_words_take_a_second() -> None:
    """One segment of an evening's words, half of them without times, whose characters are all of no word."""
    count = 50_000
    words: list[dict[str, Any]] = [{"word": f"w{k}"} for k in range(count)]
    for k in range(0, count, 2):
        words[k] |= {"start": k / 10, "end": k / 10 + 0.1, "score": 1.0}
    letters = [{"char": "z", "start": k / 10, "end": k / 10, "score": 0.5} for k in range(count)]
    text = document(words=words, chars=letters, end=count)
    assert len(read_json(text).words) == count


# --- the registry of formats ------------------------------------------------------------------------------------------


def test_the_names_of_formats_are_cheap_to_import() -> None:
    script = "import sys, mlx_speech.writers; print(sorted({'mlx.core', 'numpy', 'scipy', 'av'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
