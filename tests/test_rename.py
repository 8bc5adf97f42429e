"""Other names for speakers: everywhere at once, and never two people under one name by mistake."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_speech.errors import OptionError
from mlx_speech.transcript import Diarization, Match, Segment, Transcript, Turn, Word

QUICK = settings(max_examples=100, deadline=None, derandomize=True)
LABELS = ("SPEAKER_00", "SPEAKER_01", "SPEAKER_02")
NAMES = (*LABELS, "Ann", "Bob", "Carl")

labels = st.sampled_from(LABELS)
seconds = st.integers(0, 40).map(lambda tenths: tenths / 10)


@st.composite
def stretches(draw: st.DrawFn, kind: Any, *before: st.SearchStrategy[Any]) -> Any:
    start = draw(seconds)
    return kind(start, start + draw(seconds), *(draw(strategy) for strategy in before))


turns = st.lists(stretches(Turn, labels), max_size=6).map(lambda found: tuple(sorted(found, key=lambda t: t.start)))
vectors = st.tuples(st.floats(-1, 1), st.floats(-1, 1))
diarizations = st.builds(
    Diarization,
    turns=turns,
    exclusive=turns,
    embeddings=st.dictionaries(labels, vectors),
    embedding_model=st.just("family:0"),
    matches=st.dictionaries(labels, st.builds(Match, st.sampled_from(("Ann", "Bob")), st.floats(0, 1))),
)
words = st.builds(Word, st.just(0.0), st.just(1.0), st.just("word"), speaker=st.none() | labels)
segments = st.builds(
    Segment,
    st.just(0.0),
    st.just(1.0),
    st.just("word"),
    words=st.lists(words, max_size=3).map(tuple),
    speaker=st.none() | labels,
)
transcripts = st.builds(
    Transcript, segments=st.lists(segments, max_size=3).map(tuple), diarization=st.none() | diarizations
)


def mapping(transcript: Transcript, names: Iterable[str]) -> dict[str, str]:
    return dict(zip(transcript.speakers, names, strict=False))


@QUICK
@given(transcripts, st.permutations(NAMES))
def test_there_and_back_is_where_it_was(transcript: Transcript, names: list[str]) -> None:
    there = mapping(transcript, names)
    renamed = transcript.rename(there)
    assert set(renamed.speakers) == set(there.values())
    assert renamed.rename({new: old for old, new in there.items()}) == transcript


@QUICK
@given(transcripts, st.permutations(NAMES))
def test_every_label_is_replaced_and_nothing_else(transcript: Transcript, names: list[str]) -> None:
    there = mapping(transcript, names)
    content, renamed = transcript.to_dict(), transcript.rename(there).to_dict()

    def replaced(value: Any, key: str = "") -> Any:
        """By the rules of the format: labels are values of "speaker", and keys of two tables."""
        if isinstance(value, dict):
            is_table = key in ("embeddings", "matches")
            return {there.get(k, k) if is_table else k: replaced(entry, k) for k, entry in value.items()}
        if isinstance(value, list):
            return [replaced(entry, key) for entry in value]
        return there.get(value, value) if key == "speaker" else value

    assert renamed == replaced(content)


@QUICK
@given(transcripts)
def test_all_may_become_one_if_that_is_said(transcript: Transcript) -> None:
    there = dict.fromkeys(transcript.speakers, "Ann")
    if len(there) > 1:
        with pytest.raises(OptionError, match="would both be 'Ann': pass merge=True"):
            transcript.rename(there)
    merged = transcript.rename(there, merge=True)
    assert set(merged.speakers) <= {"Ann"}
    if transcript.diarization is None or merged.diarization is None:
        return
    for before, after in (
        (transcript.diarization.turns, merged.diarization.turns),
        (transcript.diarization.exclusive, merged.diarization.exclusive),
    ):
        if len({turn.speaker for turn in before}) > 1:  # and no two turns of the one who is left overlap
            assert all(one.end < other.start for one, other in itertools.pairwise(after))
        for tenths in range(90):
            time = tenths / 10 + 0.05
            spoken = any(turn.start <= time < turn.end for turn in before)
            assert spoken == any(turn.start <= time < turn.end for turn in after)


def test_the_mean_of_two_counts_their_seconds() -> None:
    turns = (Turn(0.0, 3.0, "A"), Turn(4.0, 5.0, "B"))
    diarization = Diarization(turns, turns, {"A": (1.0, 0.0), "B": (0.0, 1.0)})
    assert diarization.rename({"B": "A"}, merge=True).embeddings == {"A": (0.75, 0.25)}
    silent = Diarization(embeddings={"A": (1.0, 0.0), "B": (0.0, 1.0)})
    assert silent.rename({"B": "A"}, merge=True).embeddings == {"A": (0.5, 0.5)}


def test_the_better_match_stays() -> None:
    matches = {"A": Match("Ann", 0.5, True), "B": Match("Ann", 0.75), "C": Match("Bob", 0.6)}
    turns = (Turn(0.0, 3.0, "A"), Turn(4.0, 5.0, "B"), Turn(6.0, 7.0, "C"))
    merged = Diarization(turns, turns, matches=matches).rename({"A": "Ann", "B": "Ann"}, merge=True)
    assert merged.matches == {"Ann": Match("Ann", 0.75), "C": Match("Bob", 0.6)}


@pytest.mark.parametrize(
    "names, said",
    [
        ({"SPEAKER_09": "Ann"}, "nobody here is called 'SPEAKER_09': the speakers are SPEAKER_00, SPEAKER_01"),
        ({"SPEAKER_00": " "}, "the new name of SPEAKER_00 is empty"),
        ({"SPEAKER_00": "SPEAKER_01"}, "SPEAKER_00 and SPEAKER_01 would both be 'SPEAKER_01'"),
    ],
)
def test_mistakes(names: dict[str, str], said: str) -> None:
    turns = (Turn(0.0, 3.0, "SPEAKER_00"), Turn(4.0, 5.0, "SPEAKER_01"))
    transcript = Transcript(diarization=Diarization(turns, turns))
    with pytest.raises(OptionError) as raised:
        transcript.rename(names)
    assert said in str(raised.value) and "\n" not in str(raised.value)
