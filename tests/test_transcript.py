"""A transcript as a dictionary, and back, without loss."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_speech.errors import CorruptFile
from mlx_speech.transcript import Char, Diarization, Match, Region, Segment, Transcript, Turn, Word

QUICK = settings(max_examples=100, deadline=None, derandomize=True)

# --- every value of every field ---------------------------------------------------------------------------------------

numbers = st.one_of(st.floats(allow_nan=False), st.integers(-5, 5).map(float))
texts = st.text(max_size=5)
optional_texts = st.none() | texts


def few(values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(values, max_size=3).map(tuple)


chars = st.builds(Char, numbers, numbers, texts, numbers)
words = st.builds(Word, numbers, numbers, texts, numbers, optional_texts, st.booleans(), few(chars))
segments = st.builds(
    Segment,
    start=numbers,
    end=numbers,
    text=texts,
    words=few(words),
    speaker=optional_texts,
    language=optional_texts,
    tokens=few(st.integers(0, 51_865)),
    temperature=numbers,
    avg_logprob=numbers,
    compression_ratio=numbers,
    no_speech_prob=numbers,
    spaced=st.booleans(),
    token_logprobs=few(numbers),
)
turns = st.builds(Turn, numbers, numbers, texts)
diarizations = st.builds(
    Diarization,
    turns=few(turns),
    exclusive=few(turns),
    embeddings=st.dictionaries(texts, few(numbers), max_size=3),
    embedding_model=optional_texts,
    matches=st.dictionaries(texts, st.builds(Match, texts, numbers, st.booleans()), max_size=3),
)
transcripts = st.builds(
    Transcript,
    segments=few(segments),
    language=optional_texts,
    language_probability=numbers,
    duration=numbers,
    diarization=st.none() | diarizations,
    models=st.dictionaries(texts, texts, max_size=3),
    seconds=st.dictionaries(texts, numbers, max_size=3),
    silences=few(st.builds(Region, numbers, numbers)),
)


def is_plain(value: object) -> bool:
    """Whether it consists of JSON's types alone, and not of classes that are derived from them."""
    if type(value) is dict:
        return all(type(name) is str and is_plain(entry) for name, entry in value.items())
    if type(value) is list:
        return all(is_plain(entry) for entry in value)
    return value is None or type(value) in (str, bool, int, float)


@QUICK
@given(transcripts)
def test_nothing_is_lost(transcript: Transcript) -> None:
    content = transcript.to_dict()
    assert is_plain(content)
    assert Transcript.from_dict(content) == transcript
    read = Transcript.from_dict(json.loads(json.dumps(content)))
    assert read == transcript and repr(read) == repr(transcript)


def full() -> Transcript:
    """No field has its default."""
    letters = (Char(0.1, 0.2, "h", 0.9), Char(0.2, 0.3, "i", 0.8))
    word = Word(0.1, 0.3, "hi", 0.85, "A", False, letters)
    segment = Segment(0.1, 0.5, "hi", (word,), "A", "de", (1, 2), 0.2, -0.3, 1.1, 0.01, True, (-0.1, -0.5))
    turn = Turn(0.0, 0.5, "A")
    return Transcript(
        (segment,),
        "en",
        0.75,
        12.5,
        Diarization((turn,), (turn, turn), {"A": (0.25, -0.5)}, "family:0123", {"A": Match("Ann", 0.5, True)}),
        {"asr": "tiny"},
        {"asr": 1.5},
        (Region(3.0, 4.0),),
    )


def test_all_fields_are_there_by_their_names() -> None:
    content = full().to_dict()
    assert set(content) == {"format_version", *vars(full())}
    assert set(content["segments"][0]) == set(vars(full().segments[0]))
    assert set(content["segments"][0]["words"][0]) == set(vars(full().words[0]))
    assert content["diarization"]["embeddings"] == {"A": [0.25, -0.5]}
    assert content["diarization"]["matches"] == {"A": {"name": "Ann", "score": 0.5, "doubtful": True}}
    assert Transcript.from_dict(content) == full()


def test_numbers_of_numpy_become_plain() -> None:
    np = pytest.importorskip("numpy")
    segment = Segment(np.float32(0.5), np.float64(1.0), "x", tokens=(np.int64(3),), avg_logprob=np.float32(-0.25))
    content = Transcript((segment,)).to_dict()
    assert is_plain(content) and Transcript.from_dict(content).segments[0] == segment


def test_what_is_missing_has_its_default_and_what_is_unknown_is_not_looked_at() -> None:
    assert Transcript.from_dict({"format_version": 1}) == Transcript()
    content = {"format_version": 1, "segments": [{"start": 0, "end": 1, "text": "x", "mood": "good"}], "more": [1]}
    assert Transcript.from_dict(content) == Transcript((Segment(0.0, 1.0, "x"),))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "format_version is missing"),
        ({"format_version": 2}, "update mlx_speech"),
        ([], "the document is"),
        ({"format_version": 1, "segments": {}}, "segments is {}: expected a list"),
        ({"format_version": 1, "segments": [3]}, r"segments\[0\] is 3: expected a JSON object"),
        ({"format_version": 1, "segments": [{"start": 0, "end": 1}]}, r"segments\[0\].text is missing"),
        ({"format_version": 1, "duration": "long"}, "duration is 'long': expected a number"),
        ({"format_version": 1, "duration": True}, "duration is True: expected a number"),
        ({"format_version": 1, "duration": 10**400}, "too large a number"),
        ({"format_version": 1, "language": 3}, "language is 3: expected text"),
        ({"format_version": 1, "models": {"asr": 1}}, "models.asr is 1: expected text"),
        ({"format_version": 1, "models": {1: "tiny"}}, r"models has the key 1: expected text"),
        ({"format_version": 1, "models": {"x\n" * 999: 1}}, "models.'x.{3,90} is 1: expected text"),
        ({"format_version": 1, "silences": [{"start": 0, "end": None}]}, r"silences\[0\].end is missing"),
        ({"format_version": 1, "diarization": {"embeddings": {"A": [1, "x"]}}}, "diarization.embeddings.A is 'x'"),
        ({"format_version": 1, "diarization": {"matches": {"A": {"name": "x"}}}}, "matches.A.score is missing"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_a_line(content: Any, message: str) -> None:
    with pytest.raises(CorruptFile, match=message) as raised:
        Transcript.from_dict(content)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 300


@pytest.mark.parametrize("field", ["tokens", "spaced", "words", "token_logprobs", "speaker"])
def test_every_field_of_a_segment_is_checked(field: str) -> None:
    segment: Mapping[str, Any] = {"start": 0, "end": 1, "text": "x"}
    for wrong in ("abc", 1.5, [None], {"a": 1}, [math.inf, "b"]):
        if field == "speaker" and wrong == "abc":
            continue
        with pytest.raises(CorruptFile, match=rf"segments\[0\]\.{field}"):
            Transcript.from_dict({"format_version": 1, "segments": [{**segment, field: wrong}]})
