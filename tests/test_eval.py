"""`eval` and `compare`: what they read, how both sides are paired, and what a user sees."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import real
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_speech import cli, writers
from mlx_speech.errors import CorruptFile, OptionError, SourceError
from mlx_speech.evaluation import report
from mlx_speech.evaluation.accounts import (
    Account,
    account_of,
    files_of,
    paired,
    read_accounts,
    read_file,
    read_stretches,
    unpaired,
)
from mlx_speech.evaluation.references import read_ctm, read_uem
from mlx_speech.evaluation.subtitles import read_subtitles, read_text
from mlx_speech.evaluation.word_errors import AlignedSegment
from mlx_speech.transcript import Diarization, Region, Segment, Transcript, Turn, Word
from mlx_speech.writers.pieces import columns

QUICK = settings(max_examples=100, deadline=None, derandomize=True)
SAMPLE = Path(str(importlib.util.find_spec("pyannote.audio").origin)).parent / "sample"
WORDS = (Word(0.5, 0.9, "Hello", 0.9, "Ann"), Word(1.0, 1.5, "there.", 0.8, "Ann"))
MORE_WORDS = (Word(2.0, 2.4, "Yes,", 0.9, "Bob"), Word(2.5, 3.0, "AT&T", 0.9, "Bob"))
SEGMENTS = (
    Segment(0.5, 1.5, "Hello there.", WORDS, speaker="Ann"),
    Segment(2.0, 3.0, "Yes, AT&T", MORE_WORDS, speaker="Bob"),
)
TURNS = (Turn(0.5, 1.5, "Ann"), Turn(2.0, 3.0, "Bob"))
MEETING = Transcript(SEGMENTS, "en", duration=4.0, diarization=Diarization(TURNS, TURNS))


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


# --- readers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["json", "srt", "vtt", "txt", "ctm", "rttm"])
def test_what_transcribe_writes_is_read(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"meeting.{kind}"
    path.write_text(writers.FORMATS[kind](MEETING, uri="meeting"), encoding="utf-8")
    account = read_file(path)["meeting"]
    if kind != "rttm":
        assert account.text == "Hello there. Yes, AT&T"
        assert account.is_timed == (kind != "txt")
        assert account.names_speakers == (kind != "ctm")
    assert account.turns == (None if kind in ("txt", "ctm") else TURNS)
    assert account.language == ("en" if kind == "json" else None)


@pytest.mark.parametrize("kind", ["srt", "vtt"])
def test_cues_that_underline_words_are_one(kind: str) -> None:
    """Repeated cues are one, but of what is said twice."""
    twice = (*SEGMENTS[:1], Segment(2.0, 3.0, "No.", speaker="Bob"), Segment(3.0, 4.0, "No.", speaker="Bob"))
    text = writers.FORMATS[kind](Transcript(twice, duration=4.0), highlight_words=True)
    if kind == "srt":
        assert "<u>" in text
    plain = writers.FORMATS[kind](Transcript(twice, duration=4.0))
    assert [segment.text for segment in read_subtitles(plain).segments] == ["Hello there.", "No.", "No."]
    assert read_subtitles(text).segments[0] == Segment(0.5, 1.5, "Hello there.", speaker="Ann")


def test_subtitles_of_others() -> None:
    vtt = (
        "\ufeffWEBVTT - a title\n\nSTYLE\n::cue { color: red }\n\nNOTE it is\nso\n\nfirst\n"
        "01:02.500 --> 01:03.000 align:start position:0%\n"
        "<v.loud Ann Lee>It <i>is</i>\n<00:01:02.700>so &amp; so</v>\n\n"
        "100:00:00.000 --> 100:00:01.000\n- No.\n"
    )
    assert read_subtitles(vtt).segments == (
        Segment(62.5, 63.0, "It is so & so", speaker="Ann Lee"),
        Segment(360_000.0, 360_001.0, "- No."),
    )
    srt = "1\r\n00:00:00,000 --> 00:00:01,000\r\n{\\an8}[SPEAKER_00]: so\r\n\r\n"
    srt += "2\r\n00:00:01,000 --> 00:00:02,000\r\n\r\n"
    assert read_subtitles(srt).segments == (Segment(0.0, 1.0, "so", speaker="SPEAKER_00"),)
    assert read_subtitles("").segments == read_subtitles("WEBVTT\n").segments == ()


def test_each_voice_of_a_cue_has_its_words() -> None:
    vtt = "WEBVTT\n\n00:00.000 --> 00:02.000\n<v Ann>Hello</v>\n<v Bob>Bye,\nthen\n\n"
    vtt += "00:02.000 --> 00:03.000\n<v Ann>So.\n"
    assert read_subtitles(vtt).segments == (
        Segment(0.0, 2.0, "Hello", speaker="Ann"),
        Segment(0.0, 2.0, "Bye, then", speaker="Bob"),
        Segment(2.0, 3.0, "So.", speaker="Ann"),
    )


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path: Path) -> None:
    files = {
        "a.rttm": "SPEAKER a 1 0.0 2.0 <NA> <NA> Ann <NA> <NA>\n",
        "b.stm": ";; a comment\nb 1 Ann 0.0 2.0 so it is\n",
        "c.ctm": "c 1 0.5 0.25 so 0.9\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(f"\ufeff{text}", encoding="utf-8")
    read = {name: read_file(tmp_path / name) for name in files}
    assert [list(accounts) for accounts in read.values()] == [["a"], ["b"], ["c"]]
    assert read["a.rttm"]["a"].turns == (Turn(0.0, 2.0, "Ann"),)
    (tmp_path / "d.uem").write_text("\ufeffa 1 0 1\n", encoding="utf-8")
    assert read_stretches(str(tmp_path / "d.uem"), ["a"])["a"] == (Region(0, 1),)


@pytest.mark.parametrize(
    "text, message",
    [
        ("1\n00:00:01,000 --> later\nso\n", "line 2: '00:00:01,000 --> later': expected two times"),
        ("00:00:02,000 --> 00:00:01,000\nso\n", "line 1: it ends before it starts"),
        ("so it is\n", "no subtitles: no line has -->"),
    ],
)
def test_what_is_wrong_in_subtitles(text: str, message: str) -> None:
    with pytest.raises(CorruptFile, match=re.escape(message)):
        read_subtitles(text)


@QUICK
@given(st.data())
def test_damaged_subtitles_are_an_error_or_others(data: st.DataObject) -> None:
    text = writers.to_srt(MEETING)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(text)))
        put = data.draw(st.sampled_from(["", "-->", ":", "9", "\n", "<u>", "[", "{\\"]))
        text = text[:place] + put + text[place + data.draw(st.integers(0, 6)) :]
    try:
        found = read_subtitles(text)
    except CorruptFile as error:
        assert "\n" not in str(error)
        return
    assert all(0 <= segment.start <= segment.end and segment.text for segment in found.segments)


def test_plain_text() -> None:
    assert read_text("[Ann]: so it is\n\n  and on  \n[a note]\n").segments == (
        Segment(0, 0, "so it is", speaker="Ann"),
        Segment(0, 0, "and on"),
        Segment(0, 0, "[a note]"),
    )


def test_ctm_and_uem() -> None:
    read = read_ctm(";; a comment\nx 1 0.5 0.25 so 0.9\nx 1 0.75 0.25 it NA\nx 1 1.6 0.1 is\ny A 0 1 no\n")
    assert [segment.text for segment in read["x"].segments] == ["so it", "is"]  # parted by a pause
    assert read["x"].words[0] == Word(0.5, 0.75, "so", 0.9) and read["y"].duration == 1.0
    assert read_uem(";; so\nx 1 0 10.5\nx 1 20 30\ny NA 1 2\n") == {
        "x": (Region(0, 10.5), Region(20, 30)),
        "y": (Region(1, 2),),
    }


@pytest.mark.parametrize(
    "read, text, message",
    [
        (read_ctm, "x 1 0.5 so\n", "line 1: 4 fields: expected 5, as CTM has"),
        (read_ctm, "x 1 0.5 half so\n", "line 1: 'half': expected seconds"),
        (read_uem, "x 1 0\n", "line 1: 3 fields: expected 4, as UEM has"),
        (read_uem, "x 1 2 1\n", "line 1: it ends before it starts"),
    ],
)
def test_what_is_wrong_in_ctm_and_uem(read: Any, text: str, message: str) -> None:
    with pytest.raises(CorruptFile, match=re.escape(message)):
        read(text)


def textgrid(*tiers: tuple[str, list[tuple[float, float, str]]]) -> str:
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "0", "9", "<exists>", str(len(tiers))]
    for name, intervals in tiers:
        lines += ['"IntervalTier"', f'"{name}"', "0", "9", str(len(intervals))]
        for start, end, text in intervals:
            lines += [str(start), str(end), f'"{text}"']
    return "\n".join(lines) + "\n"


def test_textgrids(tmp_path: Path) -> None:
    path = tmp_path / "x.TextGrid"
    path.write_text(
        textgrid(
            ("Ann - words", [(0.0, 0.5, "so"), (0.5, 1.0, "it"), (2.0, 3.0, "is")]),
            ("Ann - phones", [(0.0, 0.2, "S")]),
            ("Bob - words", [(0.6, 0.9, "no")]),
        )
    )
    account = read_file(path)["x"]
    spoken = [(segment.speaker, segment.text) for segment in account.segments or ()]
    assert spoken == [("Ann", "so it"), ("Bob", "no"), ("Ann", "is")]
    assert account.turns == (Turn(0.0, 1.0, "Ann"), Turn(0.6, 0.9, "Bob"), Turn(2.0, 3.0, "Ann"))
    path.write_text(textgrid(("Bob", [(1.0, 2.0, "no, no")]), ("Ann", [(0.0, 1.5, "so it is")])))
    path.write_bytes(path.read_text().encode("utf-16"))  # as Praat may write it
    segments = read_file(path)["x"].segments
    assert segments == (Segment(0.0, 1.5, "so it is", speaker="Ann"), Segment(1.0, 2.0, "no, no", speaker="Bob"))


def test_a_segment_is_parted_where_the_speaker_of_its_words_changes(tmp_path: Path) -> None:
    words = (Word(0, 1, "So", 1, "Ann"), Word(1, 2, "it", 1), Word(2, 3, "is,", 1, "Bob"), Word(3, 4, "no.", 1, "Bob"))
    segment = Segment(0, 4, "So it is, no.", words, speaker="Ann")
    path = tmp_path / "x.json"
    path.write_text(writers.to_json(Transcript((segment,), duration=4.0)))
    account = read_file(path)["x"]
    assert [(part.speaker, part.text) for part in account.utterances] == [("Ann", "So it"), ("Bob", "is, no.")]
    assert account.turns == (Turn(0, 2, "Ann"), Turn(2, 4, "Bob"))
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "speaker_embeddings": {"Ann": [1.0]}}))  # as WhisperX's
    assert read_file(path)["x"].turns == account.turns


# --- files and pairs --------------------------------------------------------------------------------------------------


def saved(folder: Path, *names: str, transcript: Transcript = MEETING) -> Path:
    """A folder with a transcript in files of these names, the format by the extension."""
    folder.mkdir(exist_ok=True)
    for name in names:
        path = folder / name
        text = writers.FORMATS[path.suffix[1:]](transcript, uri=path.stem)
        path.write_text(text, encoding="utf-8")
    return folder


def test_a_folder_of_all_formats_is_one_recording_each(tmp_path: Path) -> None:
    folder = saved(tmp_path / "out", "a.json", "a.srt", "a.txt", "b.txt", "b.rttm")
    (folder / ".hidden.txt").write_text("no")
    (folder / "a.wav").write_bytes(b"")
    accounts = read_accounts(files_of(folder))
    assert list(accounts) == ["a", "b"]
    assert accounts["a"].language == "en" and accounts["a"].turns == TURNS
    assert not accounts["b"].is_timed and accounts["b"].turns == TURNS  # of the rttm


def test_pairs() -> None:
    heard = {"a": read_account("so"), "b": read_account("no"), "c": read_account("oh")}
    said = {"b": read_account("no"), "d": read_account("so")}
    assert [pair.name for pair in paired(heard, said)] == ["b"]
    assert unpaired(heard, said) == "without a reference: a, c; without a hypothesis: d"
    one = {"x": heard["a"]}
    assert paired(one, {"y": said["d"]})[0].name == "y" and unpaired(one, {"y": said["d"]}) == ""
    with pytest.raises(SourceError, match="no recording in common: rename them"):
        paired(heard, {"x": said["b"], "y": said["d"]})


def read_account(text: str) -> Account:
    return account_of(read_text(text))


def test_stretches(tmp_path: Path) -> None:
    assert read_stretches("0:43", ["x", "y"]) == {"x": (Region(0, 43),), "y": (Region(0, 43),)}
    uem = tmp_path / "x.uem"
    uem.write_text("x 1 0 10\n")
    assert read_stretches(str(uem), ["other"]) == {"other": (Region(0, 10),)}
    with pytest.raises(OptionError, match="it has no stretch of y: add them"):
        read_stretches(str(uem), ["x", "y"])
    with pytest.raises(OptionError, match="the end has to be behind the start"):
        read_stretches("43:0", ["x"])
    with pytest.raises(SourceError, match="give one of UEM, or START:END in seconds"):
        read_stretches("0-43", ["x"])


# --- for reading ------------------------------------------------------------------------------------------------------


def test_an_alignment_of_two_scripts() -> None:
    segments = [
        AlignedSegment(61.25, 62.0, "Ann", (("so", "so"), ("it's", None), (None, "well"), ("fine", "find"))),
        AlignedSegment(63.0, 64.0, "Ann", (("yes", "yes"),)),
        AlignedSegment(0.0, 0.0, None, (("今", "今"), ("日", "目"), ("は", "は"))),
    ]
    assert report.alignment(segments) == (
        "01:01.2 to 01:02.0, Ann\n"
        "said   so it's **** fine\n"
        "heard  so **** well find\n"
        "          D    I    S\n"
        "\n"
        "said   今 日 は\n"
        "heard  今 目 は\n"
        "          S\n"
        "\n"
        "1 segment without an error. S: heard otherwise; D: not heard; I: heard, though not said.\n"
    )


@QUICK
@given(st.lists(st.sampled_from([("a", "a"), ("long", None), (None, "word"), ("今日", "a")]), min_size=1, max_size=60))
def test_an_alignment_is_no_wider_than_it_may_be(words: list[Any]) -> None:
    text = report.alignment([AlignedSegment(0.0, 1.0, "Ann", tuple(words))], width=40)
    lines = text.splitlines()[1:-2]
    assert all(columns(line) <= 40 for line in lines)
    said = " ".join(line[7:] for line in lines if line.startswith("said"))
    heard = " ".join(line[7:] for line in lines if line.startswith("heard"))
    if any(pair[0] != pair[1] for pair in words):
        assert [word for word in said.split() if "*" not in word] == [pair[0] for pair in words if pair[0]]
        assert [word for word in heard.split() if "*" not in word] == [pair[1] for pair in words if pair[1]]


# --- the commands -----------------------------------------------------------------------------------------------------


def test_the_figures_of_dscore(capsys: pytest.CaptureFixture) -> None:
    folder = real("data/diar/der_check")
    files = (folder / "dscore_sys.rttm", folder / "dscore_ref.rttm", "--uem", "0:43")
    assert run("eval", *files, "--json") == 0
    scores = json.loads(capsys.readouterr().out)["all"]
    assert round(100 * scores["der"]["value"], 5) == 26.39309
    assert round(100 * scores["jer_framed"]["value"], 5) == 33.24631
    assert run("eval", *files, "--per-speaker") == 0
    printed = capsys.readouterr()
    assert re.search(r"^DER +26\.4 % +\d+\.\d to \d+\.\d  of 31\.0 s: ", printed.out, re.MULTILINE)
    assert re.search(r"^speaker2 +speaker2 +20\.7 s", printed.out, re.MULTILINE) and not printed.err


def test_one_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    heard = saved(tmp_path / "heard", "meeting.json") / "meeting.json"
    reference = tmp_path / "truth.stm"
    reference.write_text("m 1 A 0.5 1.5 Hello here\nm 1 B 2.0 3.0 yes A T and T\n")
    assert run("eval", heard, reference, "--alignment") == 0
    out = capsys.readouterr().out
    assert "WER" in out and "tcpWER" in out and "DER" in out and "Intervals: bootstrap over reference segments" in out
    assert "said   hello here\nheard  hello there\n             S\n" in out
    assert max(map(len, out.splitlines())) <= 100
    assert run("eval", heard, reference, "--json", "--alignment", "--normaliser", "plain") == 0
    found = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in found["recordings"]] == ["truth"]
    assert found["all"] == found["recordings"][0]["scores"] and found["recordings"][0]["alignment"]
    wer = found["all"]["wer_plain"]
    assert wer["value"] == (wer["substitutions"] + wer["deletions"] + wer["insertions"]) / wer["total"]
    assert wer["interval"][0] <= wer["value"] <= wer["interval"][1]


def test_folders(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Each recording and all of them; what is on one side only is named in a line."""
    heard = saved(tmp_path / "heard", "a.json", "b.json", "only.json")
    said = saved(tmp_path / "said", "a.txt", "b.txt", "other.txt")
    assert run("eval", heard, said) == 0
    printed = capsys.readouterr()
    assert printed.err == f"mlx_speech: {heard}: without a reference: only; without a hypothesis: other\n"
    rows = [line.split()[0] for line in printed.out.splitlines()[1:] if line.startswith("  ")]
    assert rows == ["a", "b"] * 6 and "\nall 2 recordings" in printed.out
    many = saved(tmp_path / "many", *(f"{letter}.txt" for letter in "abcdef"))
    assert run("eval", many, many, "--language", "en") == 0
    assert "over 6 recordings" in capsys.readouterr().out


def test_a_language_that_nobody_knows_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = saved(tmp_path / "x", "a.txt")
    assert run("eval", folder, folder) == 0
    assert capsys.readouterr().err.startswith("mlx_speech: --language is not known")


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["none.json", "a.txt"], "none.json: there is no such file or folder"),
        (["a.txt", "a.wav"], "a.wav: is no transcript: give json"),
        (["bad.srt", "a.txt"], "bad.srt: no subtitles: no line has -->"),
        (["binary.txt", "a.txt"], "binary.txt: is no text in UTF-8"),
        (["a.txt", "a.txt", "--uem", "9:1"], "--uem is 9:1: the end has to be behind the start"),
        (["a.txt", "a.txt", "--collar", "-1"], "--collar is -1.0: it has to be from 0"),
        (["a.txt", "a.txt", "--language", "Klingon"], "Klingon"),
        (["a.rttm", "a.txt"], "neither text nor speakers in common"),
        (["empty", "a.txt"], "an empty folder"),
    ],
)
def test_mistakes_take_one_line(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(saved(tmp_path / "x", "a.txt", "a.rttm"))
    Path("a.wav").write_bytes(b"RIFF")
    Path("bad.srt").write_text("so it is\n")
    Path("binary.txt").write_bytes(b"\xff\xfe\x00")
    Path("empty").mkdir()
    assert run("eval", *arguments) == 2
    printed = capsys.readouterr()
    assert len(printed.err.splitlines()) == 1 and said in printed.err and not printed.out


def test_a_missing_package_takes_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path / "x", "a.json")
    monkeypatch.setitem(sys.modules, "meeteval.wer.wer.cp", None)
    assert run("eval", folder, folder) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "pip install 'mlx-speech-toolkit[eval]'" in line


def test_compare(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    lines = [f"[Ann]: now we say the words of line {index}" for index in range(20)]
    (tmp_path / "truth.txt").write_text("\n".join(lines))
    (tmp_path / "small.txt").write_text("\n".join(lines).replace("say the", "said a"))
    (tmp_path / "large.txt").write_text("\n".join(lines).replace("words", "word"))
    files = (tmp_path / "small.txt", tmp_path / "large.txt", "--reference", tmp_path / "truth.txt", "--language", "en")
    assert run("compare", *files) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1].startswith("large.txt is better than small.txt: its WER is ")
    assert max(map(len, out.splitlines())) <= 110
    assert run("compare", *files, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    wer = found["scores"]["wer"]
    assert wer["difference"] == wer["second"] - wer["first"] and wer["verdict"] == "better"
    assert wer["interval"][0] <= wer["difference"] <= wer["interval"][1]
    assert run("compare", files[0], files[0], *files[2:]) == 0
    assert "cannot be told apart on these data" in capsys.readouterr().out


def test_compare_leaves_out_what_one_lacks(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    said = saved(tmp_path / "said", "a.txt", "b.txt")
    first = saved(tmp_path / "first", "a.txt", "b.txt")
    second = saved(tmp_path / "second", "b.txt", "c.txt")
    assert run("compare", first, second, "--reference", said, "--language", "en") == 0
    assert capsys.readouterr().err == f"mlx_speech: {second}: without a reference: c; without a hypothesis: a\n"
    third = saved(tmp_path / "third", "c.txt", "a.txt")
    assert run("compare", second, third, "--reference", said, "--language", "en") == 2
    assert "have no recording in common" in capsys.readouterr().err


def test_a_recording_is_transcribed(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a pipeline that gives what is known: which recordings it gets, and with which options."""
    asked: list[Any] = []

    class Scripted:
        def transcribe(self, sources: list[str], on_progress: Any, **options: Any) -> Any:
            asked.append((sources, options))
            for source in sources:
                yield source, MEETING

    monkeypatch.setattr("mlx_speech.cli.eval.make_pipeline", scripted(Scripted()))
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    for name in ("a.wav", "b.m4a", "alone.mp3"):
        (recordings / name).write_bytes(b"")
    said = saved(tmp_path / "said", "a.txt", "b.txt")
    assert run("eval", recordings / "a.wav", said / "a.txt", "--language", "en", "--num-speakers", "2") == 0
    assert run("eval", recordings, said, "--json") == 0
    assert asked == [
        ([str(recordings / "a.wav")], {"language": "en", "num_speakers": 2}),
        ([str(recordings / "a.wav"), str(recordings / "b.m4a")], {"language": None}),
    ]
    out = capsys.readouterr().out
    assert json.loads(out[out.index("{") :])["all"]["wer"]["value"] == 0


def scripted(pipeline: Any) -> Any:
    """Stands for `make_pipeline`, which takes its own keywords out of what is given."""

    def make(given: dict[str, Any], say: Any) -> Any:
        for name in ("device", "model_dir", "model_cache_only", "hf_token"):
            del given[name]
        return pipeline

    return make


def test_the_demo_beside_its_truth(capsys: pytest.CaptureFixture) -> None:
    """What was spoken, as the demo's corpus has it, beside itself: nothing is wrong in it."""
    truth = Path(__file__).parent / "data" / "demo" / "espeak-00.json"
    assert run("eval", truth, truth, "--language", "en", "--json") == 0
    scores = json.loads(capsys.readouterr().out)["all"]
    assert {"wer", "cpwer", "tcpwer", "orcwer", "der", "jer", "boundary"} <= set(scores)
    assert all(score["value"] < 1e-9 for score in scores.values())
