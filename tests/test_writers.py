"""Every format parsed back strictly, subtitles within their limits, and whisperx's writers beside ours."""

from __future__ import annotations

import io
import json
import re
import string
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import absent
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlx_speech import writers
from mlx_speech.errors import OptionError
from mlx_speech.transcript import Char, Diarization, Segment, Transcript, Turn, Word
from mlx_speech.writers import FORMATS, as_dict, cues, to_srt, to_vtt
from mlx_speech.writers.cues import Layout, columns

QUICK = settings(max_examples=100, deadline=None, derandomize=True)

# --- transcripts, the odder the better --------------------------------------------------------------------------------

ODD = [
    "-->",
    "--->",
    "--",
    ">",
    "<i>",
    "</u>",
    "&amp;",
    "&",
    "\n",
    "\r\n\r\n",
    "\t",
    "\x85",
    "\u2028",
    "\0",
    "\x1d",
    " ",
]
ODD += [
    "[SPEAKER_00]:",
    "7",
    "00:00:01,000 --> 00:00:02,000",
    "WEBVTT",
    "NOTE",
    "e\u0301" * 30,
    "\u200d",
    "👩‍👩‍👧",
    "”",
    "。",
]
LONG = st.sampled_from(["x" * 43, "Donau" * 60, "电" * 90, "क्षि" * 40, "\u0301" * 100])
pieces = st.one_of(
    st.text(string.ascii_letters + ",.!?'", min_size=1, max_size=12), st.sampled_from(ODD), LONG, st.text(max_size=6),
    st.text("电影院。，、はいใช่", min_size=1, max_size=6),
)  # fmt: skip
texts = st.lists(pieces, max_size=30).flatmap(lambda parts: st.sampled_from([" ".join(parts), "".join(parts)]))
names = st.sampled_from([None, "SPEAKER_00", "SPEAKER_01", "Ann <a> & Bob", "电" * 40])
languages = st.sampled_from([None, "en", "de", "zh", "ja", "th"])
steps = st.sampled_from([0.0, 0.0001, 0.05, 0.2, 0.31, 0.8, 1.6, 4.0, 9.0])


@st.composite
def transcripts(draw: st.DrawFn, *, ordered: bool = False) -> Transcript:
    """With and without words and speakers; unless `ordered`, segments and words may overlap and run backwards."""
    now, segments = draw(steps) * 500, []
    for _ in range(draw(st.integers(0, 4))):
        start, words, name = now, [], draw(names)
        for text in draw(st.lists(pieces, max_size=25)):
            begin = now + draw(steps) * draw(st.sampled_from([0, 0, 1]))
            now = begin + draw(steps)
            words.append(Word(begin, now, text, draw(st.floats(0, 1)), name, draw(st.booleans())))
        if not words:
            now += draw(steps) * 10
        text = draw(texts) if not words else " ".join(word.text for word in words)
        segments.append(Segment(start, now, text, tuple(words), name, draw(languages), avg_logprob=-0.5))
        now = max(0.0, now + draw(steps) * (1 if ordered else draw(st.sampled_from([1, -1]))))
    return Transcript(tuple(segments), draw(languages), duration=now)


# --- strict parsers ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parsed:
    start: int
    end: int
    lines: list[str]


def lines_of(text: str) -> list[str]:
    """The lines of a file that ends with a line break and has no other kind of break than one."""
    assert not text or text.endswith("\n")
    assert text.splitlines() == text.split("\n")[:-1] and "\0" not in text
    text.encode("utf-8")
    return text.split("\n")[:-1]


def moment(groups: tuple[str | None, ...]) -> int:
    hours, minutes, seconds, rest = (int(group or 0) for group in groups)
    return ((hours * 60 + minutes) * 60 + seconds) * 1000 + rest


def blocks_of(lines: list[str]) -> list[list[str]]:
    """Groups of lines, each closed by exactly one blank line."""
    blocks: list[list[str]] = [[]]
    for line in lines:
        if line:
            blocks[-1].append(line)
        else:
            assert blocks[-1], "two blank lines"
            blocks.append([])
    assert blocks.pop() == [], "the last block is not closed"
    return blocks


def in_order(parsed: list[Parsed]) -> list[Parsed]:
    previous = 0
    for cue in parsed:
        assert previous <= cue.start < cue.end and cue.lines and all(line.strip() for line in cue.lines)
        assert not any("-->" in line for line in cue.lines)
        previous = cue.end
    return parsed


def parse_srt(text: str) -> list[Parsed]:
    clock = r"(\d{2,}):([0-5]\d):([0-5]\d),(\d{3})"
    parsed = []
    for number, block in enumerate(blocks_of(lines_of(text)), start=1):
        times = re.fullmatch(f"{clock} --> {clock}", block[1])
        assert block[0] == str(number) and times
        parsed.append(Parsed(moment(times.groups()[:4]), moment(times.groups()[4:]), block[2:]))
    return in_order(parsed)


def parse_vtt(text: str) -> list[Parsed]:
    clock = r"(?:(\d{2,}):)?([0-5]\d):([0-5]\d)\.(\d{3})"
    header, *blocks = blocks_of(lines_of(text))
    assert header == ["WEBVTT"]
    parsed = []
    for block in blocks:
        times = re.fullmatch(f"{clock} --> {clock}", block[0])
        assert times
        for line in block[1:]:
            assert re.fullmatch(r"(?:[^&<]|&amp;|&lt;|</?u>)*", line), line
        lines = [re.sub(r"</?u>", "", line).replace("&lt;", "<").replace("&amp;", "&") for line in block[1:]]
        parsed.append(Parsed(moment(times.groups()[:4]), moment(times.groups()[4:]), lines))
    return in_order(parsed)


# --- subtitles --------------------------------------------------------------------------------------------------------


@QUICK
@given(transcripts())
def test_no_cue_is_longer_than_7_s_or_two_lines_of_42(transcript: Transcript) -> None:
    srt, vtt = parse_srt(to_srt(transcript)), parse_vtt(to_vtt(transcript))
    assert srt == vtt
    for cue in srt:
        assert cue.end - cue.start <= 7000
        assert len(cue.lines) <= 2 and all(len(line) <= columns(line) <= 42 for line in cue.lines)


def letters(text: str) -> str:
    """What must survive: all but white space, and but the arrow that is shortened."""
    return re.sub(r"[\s>-]", "", text.replace("\0", "\ufffd"))


@QUICK
@given(
    transcripts(ordered=True),
    st.sampled_from([{}, {"max_line_width": 20}, {"max_line_width": 30, "max_line_count": 1}]),
)
def test_no_text_is_lost_and_none_is_said_twice(transcript: Transcript, layout: dict[str, Any]) -> None:
    transcript = replace(transcript, segments=tuple(replace(s, speaker=None) for s in transcript.segments))
    nameless = [replace(s, words=tuple(replace(w, speaker=None) for w in s.words)) for s in transcript.segments]
    transcript = replace(transcript, segments=tuple(nameless))
    said = "".join(line for cue in parse_vtt(to_vtt(transcript, **layout)) for line in cue.lines)
    assert letters(said) == "".join(
        letters("".join(word.text for word in segment.words) if segment.words else segment.text)
        for segment in transcript.segments
    )


@QUICK
@given(transcripts(), st.booleans(), st.sampled_from([None, 1, 20, 42]), st.sampled_from([None, 1, 2]))
def test_every_layout_is_valid(transcript: Transcript, highlight: bool, width: int | None, count: int | None) -> None:
    layout: dict[str, Any] = {"max_line_width": width, "max_line_count": count, "highlight_words": highlight}
    srt, vtt = parse_srt(to_srt(transcript, **layout)), parse_vtt(to_vtt(transcript, **layout))
    assert [(cue.start, cue.end) for cue in srt] == [(cue.start, cue.end) for cue in vtt]
    if count is not None and width is not None:
        assert all(len(cue.lines) <= count for cue in srt)


def spoken(text: str, *, start: float = 0.0, pace: float = 0.06, speaker: str | None = None) -> Segment:
    """Words at an even pace, a character a `pace`."""
    words, now = [], start
    for word in text.split():
        words.append(Word(now, now + pace * len(word), word, speaker=speaker))
        now += pace * (len(word) + 1)
    return Segment(start, now, text, tuple(words), speaker)


TEXT = (
    "What we wanted to do, when we started the project in two thousand and nine, was to understand how people listen "
    "to each other. They interrupt, they laugh, and they change the subject before anybody has finished a sentence."
)


def test_cues_end_where_the_sentence_does() -> None:
    parsed = parse_srt(to_srt(Transcript((spoken(TEXT),), "en")))
    ends = [cue.lines[-1][-1] for cue in parsed]
    assert len(parsed) <= 4 and ends[-1] == "." and set(ends) <= {".", ","}
    for cue in parsed:
        if len(cue.lines) == 2:  # about equally long
            assert abs(len(cue.lines[0]) - len(cue.lines[1])) <= 14


def test_a_full_stop_is_a_better_place_than_the_middle() -> None:
    one = "I met the man with the yellow hat there."
    other = "He had a monkey and a boat and a house on the hill and a long story to tell"
    parsed = parse_srt(to_srt(Transcript((spoken(f"{one} {other}", pace=0.05),), "en")))
    assert [" ".join(cue.lines) for cue in parsed] == [one, other]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (
            "The quick brown fox jumps over the lazy dog of Ann",
            [["The quick brown fox jumps", "over the lazy dog of Ann"]],
        ),
        (
            "He told me about it, but nobody in the house heard",
            [["He told me about it,", "but nobody in the house heard"]],
        ),
        ("short and then " + "x" * 50, [["short and then"], ["x" * 42, "x" * 8]]),
    ],
)
def test_lines_are_cut_in_the_middle_or_at_a_comma_and_cues_not_in_words(text: str, lines: list[list[str]]) -> None:
    parsed = parse_srt(to_srt(Transcript((Segment(0.0, 6.0, text),), "en")))
    assert [cue.lines for cue in parsed] == lines


@pytest.mark.parametrize("count", range(11, 60, 3))
def test_no_line_begins_with_a_mark(count: int) -> None:
    marked = "电" * count + "。" + "影" * 30 + "，"
    words = tuple(Word(k * 0.1, k * 0.1 + 0.1, char) for k, char in enumerate(marked))
    accents, even = "x" + "e\u0301" * count, "电" * (count % 10 + 11)
    for segment in (Segment(0, 20, marked + accents), Segment(0, 20, "", words), Segment(0, 6, f"{even}ー{even}")):
        lines = [line for cue in parse_srt(to_srt(Transcript((segment,), "zh"))) for line in cue.lines]
        assert len(lines) > 1 and not any(line[0] in "。，ー\u0301" for line in lines)


def test_a_sentence_that_fits_stays_in_one_cue_and_one_line() -> None:
    (cue,) = parse_srt(to_srt(Transcript((spoken("Yes, of course. I think so too, Ann."),), "en")))
    assert cue.lines == ["Yes, of course. I think so too, Ann."]


def test_cues_are_cut_at_pauses_and_speaker_changes() -> None:
    words = [Word(k * 0.3, k * 0.3 + 0.2, text, speaker="A") for k, text in enumerate(["one", "two", "three", "four"])]
    later = [replace(word, start=word.start + 5, end=word.end + 5) for word in words]
    other = [replace(word, start=word.start + 7, end=word.end + 7, speaker="B") for word in words]
    segment = Segment(0, 10, "", (*words, *later, *other), "A")
    parsed = parse_srt(to_srt(Transcript((segment,), "en")))
    assert [(cue.start, cue.end, cue.lines) for cue in parsed] == [
        (0, 1100, ["[A]: one two three four"]),
        (5000, 6100, ["[A]: one two three four"]),
        (7000, 8100, ["[B]: one two three four"]),
    ]


def test_a_short_pause_is_a_better_place_than_none() -> None:
    segment = spoken("alpha beta gamma delta " * 6)
    words = list(segment.words)
    moved = [replace(w, start=w.start + 0.4 * (k > 9), end=w.end + 0.4 * (k > 9)) for k, w in enumerate(words)]
    parsed = parse_srt(to_srt(Transcript((replace(segment, words=tuple(moved)),), "en")))
    counts = [len(" ".join(cue.lines).split()) for cue in parsed]
    assert counts[0] == 10 and sum(counts) == 24


def test_a_segment_without_words_is_divided_by_characters() -> None:
    segment = Segment(10.0, 40.0, TEXT)
    parsed = parse_srt(to_srt(Transcript((segment,), "en")))
    assert parsed[0].start == 10_000 and parsed[-1].end == 40_000
    assert all(before.end == after.start for before, after in pairwise(parsed))
    paces = [(cue.end - cue.start) / len("".join(cue.lines)) for cue in parsed]
    assert max(paces) < 1.1 * min(paces)
    (cue,) = parse_srt(to_srt(Transcript((Segment(10.0, 40.0, "Hm."),), "en")))
    assert (cue.start, cue.end) == (10_000, 17_000)


def test_wide_characters_take_two_columns() -> None:
    text = "今日は天気がいいので、公園へ散歩に行きました。とても楽しかったです。iPhoneで写真も撮りました。"
    parsed = parse_srt(to_srt(Transcript((Segment(0.0, 14.0, text),), "ja")))
    lines = [line for cue in parsed for line in cue.lines]
    assert "".join(lines) == text and all(columns(line) == 2 * len(line) or "iPhone" in line for line in lines)
    assert max(columns(line) for line in lines) <= 42 and not any(line[0] in "、。ー" for line in lines)
    assert columns("e\u0301") == 2 and columns("한글") == 4


def test_the_speaker_counts_in_the_first_line() -> None:
    parsed = parse_srt(to_srt(Transcript((spoken("word " * 40, speaker="SPEAKER_00"),), "en")))
    assert all(cue.lines[0].startswith("[SPEAKER_00]: word") for cue in parsed)
    (cue,) = parse_srt(to_srt(Transcript((spoken("x" * 42, speaker="SPEAKER_00"),), "en")))
    assert cue.lines == ["[SPEAKER_00]:", "x" * 42]


def test_cues_of_overlapping_segments_give_way() -> None:
    segments = (Segment(0, 5, "one"), Segment(3, 4, "two"), Segment(3, 6, "three"), Segment(2, 2, "nothing"))
    parsed = parse_srt(to_srt(Transcript(segments, "en")))
    assert [(cue.lines[0], cue.start, cue.end) for cue in parsed] == [
        ("one", 0, 2000),
        ("nothing", 2000, 2001),
        ("two", 3000, 3001),
        ("three", 3001, 6000),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a --> b", "a -> b"), ("a ----> b", "a -> b"), ("---->-->", "->->"), ("- -> b", "- -> b"), ("->", "->")],
)
def test_arrows_are_shortened(text: str, expected: str) -> None:
    layouts: list[dict[str, Any]] = [{}, {"max_line_width": 40, "max_line_count": 2}]
    for layout in layouts:
        (cue,) = parse_srt(to_srt(Transcript((Segment(0, 1, text),), "en"), **layout))
        assert cue.lines == [expected]


def test_vtt_escapes_and_omits_hours_it_does_not_need() -> None:
    segments = (Segment(1.5, 2, "Q&A <b>"), Segment(3661.25, 3662, "x > y", speaker="A&B"))
    assert to_vtt(Transcript(segments, "en")) == (
        "WEBVTT\n\n00:01.500 --> 00:02.000\nQ&amp;A &lt;b>\n\n01:01:01.250 --> 01:01:02.000\n[A&amp;B]: x > y\n\n"
    )
    assert to_srt(Transcript(segments[:1], "en")) == "1\n00:00:01,500 --> 00:00:02,000\nQ&A <b>\n\n"
    assert "<u>Q&amp;A</u> &lt;b>" in to_vtt(Transcript(segments[:1], "en"), highlight_words=True)


def test_highlighting_keeps_the_default_limits_and_marks_each_word_once() -> None:
    text = to_srt(Transcript((spoken(TEXT),), "en"), highlight_words=True)
    plain = parse_srt(re.sub("</?u>", "", text))
    assert re.findall("<u>(.*?)</u>", text) == TEXT.split()
    assert all(len(cue.lines) <= 2 and max(map(len, cue.lines)) <= 42 for cue in plain)


def test_words_that_last_no_time_are_shown_if_not_highlighted() -> None:
    segment = Segment(1, 1, "no time", (Word(1, 1, "no"), Word(1, 1, "time")))
    (cue,) = parse_srt(to_srt(Transcript((segment,), "en"), highlight_words=True))
    assert cue == Parsed(1000, 1001, ["no time"])


def test_layout_is_checked() -> None:
    wrong: list[dict[str, Any]] = [{"max_line_width": 0}, {"max_line_count": -1}, {"max_cue_duration": 0.0}]
    for layout in wrong:
        with pytest.raises(OptionError, match=next(iter(layout))):
            to_srt(Transcript(), **layout)
    with pytest.raises(OptionError, match="max_cue_duration"):
        Layout(max_cue_duration=float("nan"))
    for wrong in (
        {"max_cue_duration": "7"},
        {"max_cue_duration": None},
        {"max_line_width": 2.5},
        {"max_line_width": "42"},
        {"highlight_words": "False"},
    ):
        with pytest.raises(OptionError, match=next(iter(wrong))):
            Layout(**wrong)
    parsed = parse_srt(to_srt(Transcript((spoken(TEXT),), "en"), uri="x", **vars(Layout(max_cue_duration=2.0))))
    assert max(cue.end - cue.start for cue in parsed) <= 2000


def test_ffmpeg_reads_the_subtitles(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    transcript = Transcript((spoken(TEXT, start=2.0, speaker="A"), Segment(30, 45, "Q&A <b> --> 1\n\n2")), "en")
    for name, parse in (("srt", parse_srt), ("vtt", parse_vtt)):
        text = FORMATS[name](transcript, uri="x")
        path = tmp_path / f"x.{name}"
        path.write_text(text, encoding="utf-8")
        with av.open(str(path)) as container:
            found = [packet for packet in container.demux() if packet.size]
        assert [(round(p.pts * p.time_base * 1000), p.duration) for p in found] == [
            (cue.start, cue.end - cue.start) for cue in parse(text)
        ]


def test_three_hours_take_seconds() -> None:
    import time

    segments = tuple(spoken(TEXT, start=15.0 * k, speaker="SPEAKER_00") for k in range(720))
    start = time.perf_counter()
    assert len(parse_srt(to_srt(Transcript(segments, "en")))) > 2000
    assert time.perf_counter() - start < 15


# --- whisperx beside ours ---------------------------------------------------------------------------------------------


@st.composite
def plain_transcripts(draw: st.DrawFn) -> Transcript:
    """What both write alike: words that follow each other and last, of letters only."""
    now, segments = draw(st.integers(0, 4000)), []
    marks, language = draw(st.booleans()), draw(st.sampled_from(["en", "ja"]))
    alphabet, space = {"en": (string.ascii_letters + "äß,.电", " "), "ja": ("电影院はい", "")}[language]
    for _ in range(draw(st.integers(1, 5))):
        words, name = [], draw(st.sampled_from([None, "SPEAKER_00", "SPEAKER_01"]))
        for text in draw(st.lists(st.text(alphabet, min_size=1, max_size=9), min_size=1, max_size=15)):
            start = now + draw(st.sampled_from([0, 0, 20, 500, 2900, 3100, 6000]))
            now = start + draw(st.integers(10, 900))
            words.append(Word(start / 1000, now / 1000, text, 0.5, name if marks else None))
        text = space.join(word.text for word in words)
        segments.append(Segment(words[0].start, words[-1].end, text, tuple(words), name, spaced=bool(space)))
        now += draw(st.sampled_from([0, 10, 4000]))
    return Transcript(tuple(segments), language)


def upstream(name: str, transcript: Transcript, **options: Any) -> str:
    """What whisperx's writer makes of our dictionary."""
    try:
        from whisperx import utils
    except ImportError:
        absent("whisperx is not installed")
    file = io.StringIO()
    options = {"max_line_width": None, "max_line_count": None, "highlight_words": False, **options}
    getattr(utils, name)("").write_result(as_dict(transcript), file, options)
    return file.getvalue()


@QUICK
@given(plain_transcripts(), st.sampled_from([None, 5, 10, 42]), st.sampled_from([None, 1, 2, 3]), st.booleans())
def test_asked_for_subtitles_are_whisperx_s(
    transcript: Transcript, width: int | None, count: int | None, highlight: bool
) -> None:
    """But for the space that upstream leaves at the end of lines, and puts between words in Japanese when it marks
    them. Its default, with neither width nor count, is 1000 characters."""
    highlight = highlight and transcript.language != "ja"
    options: dict[str, Any] = {"max_line_width": width, "max_line_count": count, "highlight_words": highlight}
    ours = {**options, "max_line_width": 1000} if width is None and count is None else options
    for writer, function in (("WriteSRT", to_srt), ("WriteVTT", to_vtt)):
        assert function(transcript, **ours) == upstream(writer, transcript, **options).replace(" \n", "\n")


@QUICK
@given(plain_transcripts())
def test_other_formats_are_whisperx_s(transcript: Transcript) -> None:
    for name, writer in (("txt", "WriteTXT"), ("tsv", "WriteTSV"), ("aud", "WriteAudacity")):
        assert FORMATS[name](transcript, uri="x") == upstream(writer, transcript)
    assert json.loads(FORMATS["json"](transcript, uri="x")) == json.loads(upstream("WriteJSON", transcript))


def test_whisperx_writes_our_dictionary_of_a_transcript_without_words() -> None:
    transcript = Transcript((Segment(0, 1, "one", speaker="A"), Segment(1, 2, "two")), "en")
    assert "words" not in as_dict(transcript)["segments"][0] and as_dict(transcript)["word_segments"] == []
    assert upstream("WriteSRT", transcript) == to_srt(transcript)
    assert upstream("WriteVTT", transcript) == to_vtt(transcript)


# --- the other formats, parsed back -----------------------------------------------------------------------------------


def tidy(text: str) -> str:
    """One line, without surrounding space."""
    return " ".join(
        part for part in re.split(r"[ \t\n\v\f\r\x1c-\x1f\x85\u2028\u2029]+", text.replace("\0", "�"))
    ).strip()


@QUICK
@given(transcripts())
def test_lines_of_text_parse_back(transcript: Transcript) -> None:
    header, *rows = lines_of(FORMATS["tsv"](transcript, uri="x"))
    assert header == "start\tend\ttext"
    assert [tuple(row.split("\t")) for row in rows] == [
        (str(round(s.start * 1000)), str(round(s.end * 1000)), tidy(s.text)) for s in transcript.segments
    ]
    labels = [row.split("\t") for row in lines_of(FORMATS["aud"](transcript, uri="x"))]
    assert [(float(start), float(end), text) for start, end, text in labels] == [
        (round(s.start, 3), round(s.end, 3), (f"[[{s.speaker}]]" if s.speaker else "") + tidy(s.text))
        for s in transcript.segments
    ]
    assert lines_of(FORMATS["txt"](transcript, uri="x")) == [
        (f"[{s.speaker}]: " if s.speaker else "") + tidy(s.text) for s in transcript.segments if tidy(s.text)
    ]


@QUICK
@given(transcripts(), st.sampled_from(["meeting", "my meeting\t2", "", "\udcff.x"]))
def test_ctm_parses_back(transcript: Transcript, uri: str) -> None:
    words = [word for word in transcript.words if tidy(word.text)]
    rows = [line.split() for line in lines_of(FORMATS["ctm"](transcript, uri=uri))]
    assert len(rows) == len(words)
    for (name, channel, start, duration, text, score), word in zip(rows, words, strict=True):
        assert name == {"my meeting\t2": "my_meeting_2", "": "_", "\udcff.x": "?.x"}.get(uri, uri) and channel == "1"
        assert abs(float(start) - word.start) < 6e-4 and abs(float(duration) - word.duration) < 6e-4
        assert text == ("_".join(word.text.replace("\0", "\ufffd").split()) or "_") and float(score) == round(
            word.score, 3
        )


def test_rttm_parses_back(tmp_path: Path) -> None:
    turns = (Turn(0.5, 1.25, "SPEAKER_00"), Turn(1.0, 2.0, "Ann Lee"), Turn(70.0, 3700.5, "SPEAKER_00"))
    transcript = Transcript(diarization=Diarization(turns, turns[:1]))
    text = FORMATS["rttm"](transcript, uri="my meeting")
    rows = [line.split(" ") for line in lines_of(text)]
    assert [(r[:3], float(r[3]), float(r[3]) + float(r[4]), r[5:7], r[7], r[8:]) for r in rows] == [
        (["SPEAKER", "my_meeting", "1"], t.start, t.end, ["<NA>"] * 2, t.speaker.replace(" ", "_"), ["<NA>"] * 2)
        for t in turns
    ]
    util = pytest.importorskip("pyannote.database.util")
    path = tmp_path / "x.rttm"
    path.write_text(text)
    loaded = util.load_rttm(str(path))["my_meeting"]
    assert [(s.start, s.end, name) for s, _, name in loaded.itertracks(yield_label=True)] == [
        (t.start, t.end, t.speaker.replace(" ", "_")) for t in turns
    ]
    assert FORMATS["rttm"](Transcript(), uri="x") == ""


@QUICK
@given(transcripts())
@example(Transcript())
def test_json_parses_back(transcript: Transcript) -> None:
    text = FORMATS["json"](transcript, uri="x")
    content = json.loads(text)
    assert content == as_dict(transcript) and text.count("\n") == 1 and text.endswith("\n")
    assert [s["text"] for s in content["segments"]] == [s.text for s in transcript.segments]
    for words, found in [(transcript.words, content["word_segments"])] + [
        (s.words, d.get("words", [])) for s, d in zip(transcript.segments, content["segments"], strict=True)
    ]:
        assert len(words) == len(found)
        for word, d in zip(words, found, strict=True):
            assert (d["word"], d["start"], d["end"]) == (word.text, round(word.start, 3), round(word.end, 3))
            assert d.get("speaker") == word.speaker and d.get("aligned", True) is word.aligned


def test_the_dictionary_in_full() -> None:
    chars = (Char(0.1234567, 0.2, "h", 0.91234), Char(0.2, 0.3, "i", 1.0))
    words = (Word(0.1234567, 0.3, "hi", 0.956789, "A", chars=chars), Word(0.3, 0.5, "♪", aligned=False))
    turns = (Turn(0.0, 1.00049, "A"),)
    transcript = Transcript(
        (Segment(0.1234567, 0.5, "hi ♪", words, "A", "en", avg_logprob=-0.25), Segment(2, 3, "ja", language="de")),
        "en",
        0.98765,
        12.3456,
        Diarization(turns, turns, {"A": (0.1, 0.2)}),
        {"asr": "tiny"},
        {"asr": 1.23456},
    )
    h, i = (
        {"char": "h", "start": 0.123, "end": 0.2, "score": 0.912},
        {"char": "i", "start": 0.2, "end": 0.3, "score": 1.0},
    )
    hi = {"word": "hi", "start": 0.123, "end": 0.3, "score": 0.957, "speaker": "A"}
    note = {"word": "♪", "start": 0.3, "end": 0.5, "score": 0.0, "aligned": False}
    first = {"start": 0.123, "end": 0.5, "text": "hi ♪", "words": [hi, note], "chars": [h, i, {"char": " "}]}
    expected: dict[str, Any] = {
        "segments": [
            {**first, "speaker": "A", "avg_logprob": -0.25},
            {"start": 2, "end": 3, "text": "ja", "words": [], "language": "de", "avg_logprob": 0.0},
        ],
        "word_segments": [hi, note],
        "language": "en",
        "language_probability": 0.988,
        "duration": 12.346,
        "turns": [{"start": 0.0, "end": 1.0, "speaker": "A"}],
        "models": {"asr": "tiny"},
        "seconds": {"asr": 1.235},
    }
    assert as_dict(transcript) == expected
    assert as_dict(transcript, speaker_embeddings=True) == {**expected, "speaker_embeddings": {"A": [0.1, 0.2]}}
    assert json.loads(writers.to_json(transcript, speaker_embeddings=True))["speaker_embeddings"] == {"A": [0.1, 0.2]}


@pytest.mark.parametrize("name", FORMATS)
def test_an_empty_transcript_gives_a_valid_file(name: str) -> None:
    text = FORMATS[name](Transcript(), uri="x", **vars(Layout()))
    assert text == {"vtt": "WEBVTT\n\n", "tsv": "start\tend\ttext\n"}.get(name, text)
    if name == "json":
        assert json.loads(text)["segments"] == []
    else:
        assert name in ("vtt", "tsv", "html") or text == ""  # tests/test_html.py reads the page
    silent = Transcript((Segment(1, 2, " \n "),), "en", diarization=Diarization())
    assert name != "srt" or FORMATS[name](silent, uri="x") == ""


def test_spaces_that_do_not_break_are_kept() -> None:
    assert cues.one_line("\tQuoi\u202f?\u00a0\u3000Oui \r\n ici\n") == "Quoi\u202f?\u00a0\u3000Oui ici"


def test_what_the_screen_shows() -> None:
    transcript = Transcript((Segment(59.96, 61, "one\ntwo", speaker="A"), Segment(3661.25, 3662, "three")), "en")
    assert writers.to_screen(transcript) == "[01:00.0] A: one two\n[1:01:01.2] three\n"
    assert writers.to_screen(Transcript()) == "(no speech)\n"
