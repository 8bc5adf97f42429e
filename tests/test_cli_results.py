"""Commands on results that are there already: `write` gives them other formats, `align` times their words anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from conftest import real

from mlx_speech import cli, writers
from mlx_speech.transcript import Diarization, Segment, Transcript, Turn, Word

WORDS = (Word(0.5, 0.9, "Hello", 0.9, "SPEAKER_00"), Word(1.0, 1.5, "there.", 0.8, "SPEAKER_00"))
SEGMENTS = (
    Segment(0.5, 1.5, "Hello there.", WORDS, speaker="SPEAKER_00"),
    Segment(2.0, 3.0, "Good morning to you."),
)
TURNS = (Turn(0.5, 1.5, "SPEAKER_00"),)


def saved(path: Path, **fields: Any) -> str:
    """A file as `transcribe` writes it."""
    transcript = Transcript(SEGMENTS, language="en", duration=4.0, **fields)
    path.write_text(writers.to_json(transcript), encoding="utf-8")
    return str(path)


def test_every_format_is_that_of_the_transcript(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = saved(tmp_path / "meeting.json", diarization=Diarization(TURNS, TURNS))
    out = tmp_path / "out"
    formats = ",".join(writers.FORMATS)
    assert cli.main(["write", source, "-f", formats, "-o", str(out), "--max-line-width", "10"]) == 0
    transcript = writers.read_json(Path(source).read_text(encoding="utf-8"))
    for kind, to in writers.FORMATS.items():
        expected = to(transcript, uri="meeting", max_line_width=10)
        assert (out / f"meeting.{kind}").read_text(encoding="utf-8") == expected
    assert "Good" in (out / "meeting.srt").read_text(encoding="utf-8")
    said = capsys.readouterr()
    assert said.out == f"mlx_speech: {out / 'meeting'}.{{{formats}}}\n" and not said.err


def test_a_bad_file_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    good, bad, binary = saved(tmp_path / "good.json"), tmp_path / "bad.json", tmp_path / "binary.json"
    bad.write_text('{"segments": 3}')
    binary.write_bytes(b"\xff\xfe\x00")
    out = tmp_path / "out"
    sources = [str(bad), good, str(binary), str(tmp_path / "none.json"), good]
    assert cli.main(["write", *sources, "-f", "srt,vtt", "-o", str(out)]) == 1
    assert {path.name for path in out.iterdir()} == {"good.srt", "good.vtt"}
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(line.startswith("mlx_speech: ") for line in lines)
    for name, line in zip(("bad.json", "binary.json", "none.json"), lines, strict=True):
        assert name in line


@pytest.mark.parametrize(
    "flags, said",
    [
        (["-f", "docx"], "'docx' is not one of"),
        (["-f", "rttm"], "has none: leave rttm out"),
        (["-f", "srt", "--max-line-count", "2"], "--max-line-count needs --max-line-width"),
        (["-f", "srt", "--max-cue-duration", "0"], "--max-cue-duration is 0"),
        (["-f", "json"], "meeting.json: is the transcript itself: choose another --output-dir"),
    ],
)
def test_mistakes_take_one_line(flags: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = saved(tmp_path / "meeting.json")
    before = Path(source).read_bytes()
    assert cli.main(["write", source, "-o", str(tmp_path), *flags]) in (1, 2)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and said in lines[0]
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["meeting.json"]
    assert Path(source).read_bytes() == before


def test_without_speakers_all_formats_are_those_without(tmp_path: Path) -> None:
    source, out = saved(tmp_path / "meeting.json"), tmp_path / "out"
    assert cli.main(["write", source, "-f", "all", "-o", str(out)]) == 0
    assert {path.suffix for path in out.iterdir()} == {".txt", ".srt", ".vtt", ".tsv", ".json"}


def test_words_get_times_again(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    recording = str(real("data/audio/en/jfk.flac"))
    place, first, second = tiny.folder(), tmp_path / "first", tmp_path / "second"
    flags = ["--language", "en", "--temperature", "0", "--no-align", "-f", "json", "--quiet"]
    model = ["--model", str(place / "whisper")]
    assert cli.main(["transcribe", recording, *model, *flags, "-o", str(first)]) == 0
    source = first / "jfk.json"
    plain = json.loads(source.read_text(encoding="utf-8"))
    assert plain["segments"] and not plain["word_segments"]
    aligner = ["--align-model", str(place / "wav2vec2")]
    assert cli.main(["align", str(source), recording, *aligner, "-f", "json,srt", "-o", str(second)]) == 0
    assert {path.name for path in second.iterdir()} == {"jfk.json", "jfk.srt"}
    found = json.loads((second / "jfk.json").read_text(encoding="utf-8"))
    assert found["language"] == "en" and found["word_segments"]
    assert "".join(word["word"] for word in found["word_segments"]) == "".join(
        "".join(segment["text"].split()) for segment in plain["segments"]
    )
    assert all(0 <= word["start"] <= word["end"] <= plain["duration"] for word in found["word_segments"])
    capsys.readouterr()
    assert cli.main(["align", str(source), recording, *aligner, "-f", "json", "-o", str(first)]) == 2
    assert "jfk.json: is the transcript itself" in capsys.readouterr().err
