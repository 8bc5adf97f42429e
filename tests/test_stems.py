"""The names that results are written under."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_speech.writers import unique_stems


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        (["a/meeting.mp3", "b/talk.wav", "-"], ["meeting", "talk", "stdin"]),
        (["meeting.mp3", "meeting.wav"], ["meeting-mp3", "meeting-wav"]),
        (["Meeting.mp3", "meeting.wav"], ["Meeting-mp3", "meeting-wav"]),
        (["a/x.mp3", "b/x.mp3", "c/X.MP3"], ["x-mp3", "x-mp3-2", "X-MP3-3"]),
        (["x.mp3", "x.wav", "x-mp3.ogg"], ["x-mp3-2", "x-wav", "x-mp3"]),
        (["-", "stdin.wav"], ["stdin", "stdin-wav"]),
        (["v1.2.mp3", ".wav", "x"], ["v1.2", ".wav", "x"]),
        (["Cafe\u0301.mp3", "Caf\u00e9.wav"], ["Cafe\u0301-mp3", "Caf\u00e9-wav"]),
        (["-", "-"], ["stdin", "stdin-2"]),
        ([], []),
    ],
)
def test_names_of_results(sources: list[str], expected: list[str]) -> None:
    assert unique_stems(sources) == expected
    assert unique_stems([Path(source) if source != "-" else source for source in sources]) == expected


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(
        st.from_regex(r"(a/|b/)?[xX]{1,2}(-mp3|-2|\u00df|SS){0,2}(\.mp3|\.Mp3|\.wav)?", fullmatch=True), max_size=12
    )
)
def test_no_two_names_are_alike(sources: list[str]) -> None:
    folded = [unicodedata.normalize("NFC", name).casefold() for name in unique_stems(sources)]
    assert len(set(folded)) == len(sources)
    stems = [Path(source).stem.casefold() for source in sources]
    for source, name in zip(sources, unique_stems(sources), strict=True):
        stem = Path(source).stem
        assert name == stem if stems.count(stem.casefold()) == 1 else name.startswith(stem)
