"""The journal of live sessions: nothing final is lost where a process is killed, and a later session goes on."""

from __future__ import annotations

import fcntl
import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_live import final, partial, speakers

from mlx_speech.audio import load_audio
from mlx_speech.errors import CorruptFile, OutputError, SourceNotFound
from mlx_speech.live.events import Block, Ended, Final, Gap, Lag, LiveEvent, Silence, Speech
from mlx_speech.live.journal import Continued, Journal, read_journal
from mlx_speech.live.saved import SavedSound
from mlx_speech.transcript import Char, Diarization, Match, Region, Segment, Transcript, Turn, Word

TESTS = Path(__file__).parent


def written(path: Path, events: Sequence[LiveEvent]) -> Continued:
    journal = Journal(path)
    continued = journal.begin({"language": "en"}, started=0.0)
    for event in events:
        journal.add(continued.event(event))
    journal.close()
    return continued


def texts(path: Path) -> list[str]:
    return [segment.text for segment in read_journal(path).transcript.segments]


# --- what is written -------------------------------------------------------------------------------------------------


def test_what_is_final_is_read_back_exactly(tmp_path: Path) -> None:
    path = tmp_path / "a.live.jsonl"
    word = Word(0.1 + 0.2, 1 / 3, "Grüße", 0.123456789, chars=(Char(0.3, 0.31, "G", 0.5),))
    segment = Segment(0.1, 2.0, "Grüße\u2028 \\", (word,), language="de", tokens=(5, 7), token_logprobs=(-0.1, -1e-9))
    event = Final(2.5, 0, 0.0, 2.25, (segment,))
    written(path, [Speech(0.2, 0.1), partial(0, "no", 0), event, Final(4.0, 1, 2.25, 4.0, ()), Lag(5.0, 1.0, None)])
    found = read_journal(path)
    assert found.transcript.segments == (segment,) and found.transcript.language == "de"
    assert (found.seconds, found.chunks, found.speakers, found.sessions) == (4.0, 2, 0, 1)
    assert found.transcript.duration == 4.0 and found.transcript.diarization is None
    lines = path.read_text(encoding="utf-8").split("\n")
    assert [json.loads(line)["type"] for line in lines[:-1]] == ["header", "final", "final"] and lines[-1] == ""
    header = json.loads(lines[0])
    assert header["started"] == "1970-01-01T00:00:00Z" and header["options"] == {"language": "en"}
    assert header["offset"] == 0 and header["version"]


def test_gaps_are_time(tmp_path: Path) -> None:
    path = tmp_path / "a.live.jsonl"
    written(path, [final(0, 0.0, "a b"), Gap(2.0, 1.0, 9.0, "sleep")])
    assert read_journal(path).seconds == 9.0


def test_speakers_are_those_that_were_told_last(tmp_path: Path) -> None:
    path = tmp_path / "a.live.jsonl"
    events = [
        final(0, 0.0, "a b c d", speaker="SPEAKER_00"),
        speakers(2.0, [(0.0, 2.0, None, "SPEAKER_00")], 0.0),
        final(1, 2.0, "e f"),
        speakers(3.0, [(1.0, 2.0, "SPEAKER_00", "SPEAKER_01"), (2.0, 2.5, None, "SPEAKER_01")], 3.0),
    ]
    written(path, events)
    found = read_journal(path)
    told = {word.text: word.speaker for word in found.transcript.words}
    first, second = "SPEAKER_00", "SPEAKER_01"
    # the last word lies behind all turns, by less than what makes it nobody's
    assert told == {"a": first, "b": first, "c": second, "d": second, "e": second, "f": second}
    assert found.transcript.diarization is not None and found.speakers == 2
    assert found.transcript.diarization.turns == (Turn(0.0, 1.0, first), Turn(1.0, 2.5, second))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12), st.sampled_from([None, "A", "B"])), max_size=12))
def test_turns_are_what_was_painted_last(tmp_path_factory: pytest.TempPathFactory, strokes: list) -> None:
    """Against an array with a place for every second."""
    path = tmp_path_factory.mktemp("strokes") / "a.live.jsonl"
    expected: list[str | None] = [None] * 12
    changes = []
    for start, end, speaker in strokes:
        expected[start:end] = [speaker] * len(expected[start:end])
        changes.append((float(start), float(end), None, speaker))
    written(path, [speakers(0.0, changes, 0.0)])
    diarization = read_journal(path).transcript.diarization
    found: list[str | None] = [None] * 12
    for turn in diarization.turns if diarization is not None else ():
        for second in range(int(turn.start), int(turn.end)):
            assert found[second] is None
            found[second] = turn.speaker
    assert found == expected


# --- what is torn ----------------------------------------------------------------------------------------------------


def test_a_journal_that_breaks_off_anywhere_has_all_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.live.jsonl"
    events = [final(k, float(k), f"wörd{k}") for k in range(4)]
    written(path, events)
    content = path.read_bytes()
    for size in range(len(content) + 1):
        path.write_bytes(content[:size])
        whole = max(0, content[:size].count(b"\n") - 1)
        assert texts(path) == [f"wörd{k}" for k in range(whole)]


def test_a_session_goes_on_behind_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "a.live.jsonl"
    written(path, [final(0, 0.0, "one two"), final(1, 1.0, "three")])
    content = path.read_bytes()
    path.write_bytes(content[:-7])
    continued = written(path, [final(0, 0.5, "four"), speakers(1.0, [(0.5, 1.0, None, "SPEAKER_00")], 1.0)])
    assert (continued.offset, continued.chunks) == (1.0, 1)
    found = read_journal(path)
    assert [(segment.start, segment.text) for segment in found.transcript.segments] == [(0.0, "one two"), (1.5, "four")]
    assert (found.chunks, found.sessions, found.seconds) == (2, 2, 2.0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("words\n", "line 1 is none of a journal"),
        ('{"type": "final"}\n', "no header comes before it"),
        ('{"type": "header", "format_version": 2, "offset": 0}\n', "update mlx_speech"),
        ('{"type": "header", "format_version": 1, "offset": 0}\n{"type": "final", "at": 1, "segments": 3}\n', "line 2"),
        ("[]\n", "expected a JSON object"),
    ],
)
def test_what_is_no_journal(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "a.live.jsonl"
    path.write_text(content)
    with pytest.raises(CorruptFile, match=message):
        read_journal(path)
    with pytest.raises(CorruptFile, match=message):
        Journal(path)
    assert path.read_text() == content
    with pytest.raises(SourceNotFound):
        read_journal(tmp_path / "nothing")


# --- the disk --------------------------------------------------------------------------------------------------------


def test_the_disk_is_told_at_most_every_two_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    time = [0.0]
    synced: list[float] = []
    monkeypatch.setattr(os, "fsync", lambda _: synced.append(time[0]))
    journal = Journal(tmp_path / "a.live.jsonl", clock=lambda: time[0])
    journal.begin({})
    for k in range(100):
        time[0] = k / 10
        if k < 50:
            journal.add(final(k, 0.0, "a"))
        journal.sync()
    assert synced == [2.0, 4.0, 6.0]  # and not where nothing is new
    journal.add(final(100, 0.0, "a"))
    time[0] = 10.0
    journal.close()
    assert synced[-1] == 10.0


def test_a_record_is_one_write(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a.live.jsonl")
    journal.begin({})
    before = journal.path.stat().st_size
    for k in range(3):  # each is there before anybody closes the file
        journal.add(final(k, 0.0, "a"))
        assert texts(journal.path) == ["a"] * (k + 1) and journal.path.stat().st_size > before
    journal.remove()
    assert not journal.path.exists()


def test_one_session_at_a_time_and_no_empty_files(tmp_path: Path) -> None:
    path = tmp_path / "a.live.jsonl"
    journal = Journal(path)
    with pytest.raises(OutputError, match="another session writes it"):
        Journal(path)
    journal.close()
    assert not path.exists()  # nothing was in it
    with pytest.raises(OutputError, match="choose another folder"):
        Journal(tmp_path / "nowhere" / "a.live.jsonl")


def test_a_journal_that_says_nothing_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "a.live.jsonl"
    written(path, [])
    assert not path.exists()
    for event in (final(0, 0.0, "a"), Gap(2.0, 1.0, 9.0, "sleep"), speakers(0.0, [], 0.0)):
        written(path, [event])
        assert read_journal(path).says_something
        written(path, [])  # what was there stays
        assert read_journal(path).sessions == 2
        path.unlink()


def test_a_journal_is_removed_while_it_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another session that opens it meanwhile is told so, or makes a file of its own, which stays."""
    path = tmp_path / "a.live.jsonl"
    journal = Journal(path)
    journal.begin({})
    journal.add(final(0, 0.0, "a"))
    unlink = Path.unlink

    def unlink_watched(file: Path, missing_ok: bool = False) -> None:
        with pytest.raises(OutputError, match="another session writes it"):
            Journal(path)
        unlink(file, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink_watched)
    journal.remove()
    monkeypatch.undo()
    assert not path.exists()
    first = Journal(path)
    first.begin({})
    flock = fcntl.flock

    def flock_late(file: BinaryIO, kind: int) -> None:
        monkeypatch.undo()
        first.remove()  # between opening and locking
        flock(file, kind)

    monkeypatch.setattr(fcntl, "flock", flock_late)
    second = Journal(path)
    second.begin({})
    second.add(final(0, 0.0, "b"))
    assert texts(path) == ["b"]
    second.remove()


# --- sessions that go on ---------------------------------------------------------------------------------------------


def test_everything_moves_behind_what_was_there() -> None:
    before = Transcript(
        (Segment(0, 1, "before", speaker="SPEAKER_00"),), "en", diarization=Diarization((Turn(0, 1, "SPEAKER_00"),))
    )
    continued = Continued(10.0, 3, 2, before)
    assert continued.event(Speech(1.0, 0.5)) == Speech(11.0, 10.5)
    assert continued.event(Silence(1.0, 0.5, 0.75)) == Silence(11.0, 10.5, 10.75)
    assert continued.event(Gap(1.0, 0.5, 0.75, "x")) == Gap(11.0, 10.5, 10.75, "x")
    assert continued.event(Lag(1.0, 4.0, None)) == Lag(11.0, 4.0, None)
    assert continued.event(final(1, 1.0, "a b", speaker="SPEAKER_01")) == final(4, 11.0, "a b", speaker="SPEAKER_03")
    assert continued.event(partial(1, "a b", 1, at=2.0)) == partial(4, "a b", 1, at=12.0)
    changes = [(0.0, 1.0, None, "SPEAKER_00"), (1.0, 2.0, "SPEAKER_00", "Ann")]
    moved = [(10.0, 11.0, None, "SPEAKER_02"), (11.0, 12.0, "SPEAKER_02", "Ann")]
    assert continued.event(speakers(2.0, changes, 2.0)) == speakers(12.0, moved, 12.0)
    char = Char(0.5, 0.6, "a", 1.0)
    segment = Segment(0.5, 1.0, "a", (Word(0.5, 1.0, "a", chars=(char,), speaker="SPEAKER_00"),), speaker="SPEAKER_00")
    diarization = Diarization(
        (Turn(0, 1, "SPEAKER_00"),),
        (Turn(0, 1, "SPEAKER_00"),),
        {"SPEAKER_00": (1.0,)},
        "m",
        {"SPEAKER_00": Match("Ann", 0.3, True)},
    )
    own = Transcript((segment,), None, 0.5, 5.0, diarization, silences=(Region(2.0, 3.0),))
    whole = continued.event(Ended(5.0, own))
    assert isinstance(whole, Ended) and whole.at == 15.0
    assert (
        whole.transcript.text == "before\na" and whole.transcript.duration == 15.0 and whole.transcript.language == "en"
    )
    word = whole.transcript.words[0]
    assert (word.start, word.speaker, word.chars[0].start) == (10.5, "SPEAKER_02", 10.5)
    found = whole.transcript.diarization
    assert found is not None and found.turns == (Turn(0, 1, "SPEAKER_00"), Turn(10, 11, "SPEAKER_02"))
    assert found.embeddings == {"SPEAKER_02": (1.0,)} and set(found.matches) == {"SPEAKER_02"}
    assert whole.transcript.silences == (Region(12.0, 13.0),)


def test_a_first_session_is_as_it_is() -> None:
    event = Ended(5.0, Transcript())
    assert Continued().event(event) is event and Continued().is_first


def test_voices_of_later_sessions_have_labels_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "a.live.jsonl"
    for _ in range(3):
        told = speakers(1.0, [(0.0, 0.5, None, "SPEAKER_00"), (0.5, 1.0, None, "Ann")], 1.0)
        written(path, [final(0, 0.0, "a b"), told])
    found = read_journal(path)
    assert [word.speaker for word in found.transcript.words] == [
        "SPEAKER_00",
        "Ann",
        "SPEAKER_01",
        "Ann",
        "SPEAKER_02",
        "Ann",
    ]
    assert found.speakers == 3 and found.seconds == 3.0 and found.sessions == 3


def test_sound_that_comes_again_goes_on_behind_the_last_final(tmp_path: Path) -> None:
    path = tmp_path / "a.live.jsonl"
    turns = [(0.0, 1.5, None, "SPEAKER_00"), (1.5, 4.0, None, "SPEAKER_01")]
    written(path, [final(0, 0.0, "a b c d", at=5.0), speakers(6.0, turns, 6.0)])
    assert read_journal(path).final_until == 2.0 and read_journal(path).seconds == 6.0
    journal = Journal(path)
    continued = journal.begin_again({})
    assert (continued.offset, continued.chunks, continued.speakers) == (2.0, 1, 2)
    # who speaks behind it is told again
    expected = (Turn(0.0, 1.5, "SPEAKER_00"), Turn(1.5, 2.0, "SPEAKER_01"))
    assert continued.before.diarization is not None and continued.before.diarization.turns == expected
    journal.add(continued.event(speakers(1.0, [(0.5, 1.0, None, "SPEAKER_00")], 1.0)))
    journal.close()
    diarization = read_journal(path).transcript.diarization
    assert diarization is not None and diarization.turns == (*expected, Turn(2.5, 3.0, "SPEAKER_02"))


def test_more_may_have_been_heard_than_became_final(tmp_path: Path) -> None:
    path = tmp_path / "a.live.jsonl"
    written(path, [final(0, 0.0, "a")])
    journal = Journal(path)
    assert journal.begin({}, offset=7.5).offset == 7.5
    journal.close()
    assert read_journal(path).seconds == 7.5


# --- a process that is killed ----------------------------------------------------------------------------------------


def test_a_killed_process_loses_no_final_and_the_next_one_goes_on(tmp_path: Path) -> None:
    journal, sound = tmp_path / "a.live.jsonl", tmp_path / "a.wav"
    environment = {**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"}
    command = [sys.executable, str(TESTS / "live_journal_process.py"), str(journal), str(sound)]
    said: list[tuple[int, str]] = []
    lengths: list[float] = []
    for enough in (40, 25):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        with process.stdout:
            for _ in range(enough):
                _, chunk, text = process.stdout.readline().split()
                said.append((int(chunk), text))
            process.kill()
            rest = process.stdout.read().split("\n")[:-1]
        process.wait(timeout=30)
        said += [(int(line.split()[1]), line.split()[2]) for line in rest]
        heard = load_audio(sound)
        lengths.append(heard.size / 16000)
        assert heard.size > 0 and (heard[:1600] == 0.25).all()
    found = read_journal(journal)
    kept = [(place, segment.text) for place, segment in enumerate(found.transcript.segments)]
    first = next(place for place, (_, text) in enumerate(said) if place and text == "word0")
    # what it said is there; it may have been killed between writing and saying
    assert [text for _, text in kept if text == "word0"] == ["word0"] * 2
    begin = next(place for place, (_, text) in enumerate(kept) if place and text == "word0")
    assert begin - first in (0, 1) and len(kept) - begin - (len(said) - first) in (0, 1)
    assert [text for _, text in said[:first]] == [f"word{k}" for k in range(first)]
    assert [chunk for chunk, _ in said[first:]] == list(range(begin, begin + len(said) - first))
    # times go on where the sound did, and speakers are others
    segment = found.transcript.segments[begin]
    assert segment.start == pytest.approx(lengths[0], abs=1e-6) and segment.speaker == "SPEAKER_01"
    assert found.transcript.segments[begin - 1].speaker == "SPEAKER_00"
    assert found.transcript.segments[begin - 1].end <= lengths[0] + 1e-6 and lengths[1] > lengths[0]


# --- the sound -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [16000, 48000, 44100, 8000])
def test_saved_sound_is_what_was_heard(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "a.wav"
    moments = np.arange(3 * rate) / rate
    sine = (0.5 * np.sin(2 * np.pi * 440 * moments)).astype(np.float32)
    saved = SavedSound(path)
    place, numbers = 0, random.Random(rate)
    while place < sine.size:
        size = numbers.randint(0, rate // 2)
        saved.add(Block(np.stack([sine[place : place + size]] * 2), rate))
        place += size
        if rate == 16000:  # it is there at once
            assert load_audio(path).size == min(place, sine.size) or not place
    saved.close()
    heard = load_audio(path)
    assert heard.size == pytest.approx(48000, abs=2)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(heard.size) / 16000)
    assert np.abs(heard - expected)[100:-100].max() < 0.01
    assert int.from_bytes(path.read_bytes()[40:44], "little") == 2 * heard.size == path.stat().st_size - 44


def test_saved_sound_has_silence_where_sound_is_missing_and_takes_other_rates(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    saved = SavedSound(path)
    saved.add(Block(np.full(16000, 0.5, np.float32)))
    saved.add(Block(np.zeros(0, np.float32), 16000, 3.0))
    saved.add(Block(np.full(4000, 0.25, np.float32), 8000, 4.0))
    assert int.from_bytes(path.read_bytes()[40:44], "little") == 0xFFFFFFFF
    saved.close()
    saved.close()
    heard = load_audio(path)
    assert heard.size == pytest.approx(4.5 * 16000, abs=2)
    assert (heard[:16000] == 0.5).all() and not heard[16000:64000].any()
    assert heard[66000:70000] == pytest.approx(0.25, abs=0.01)


def test_saved_sound_is_cut_where_it_comes_again(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    saved = SavedSound(path)
    saved.add(Block(np.full(1600, 0.5, np.float32)))
    saved.close()
    saved = SavedSound(path, goes_on=True)
    saved.cut(0.2)
    assert saved.seconds == 0.1
    saved.cut(0.05)
    saved.add(Block(np.full(800, 0.25, np.float32)))
    saved.close()
    assert load_audio(path).tolist() == [0.5] * 800 + [0.25] * 800


def test_saved_sound_goes_on_and_overwrites_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    saved = SavedSound(path, goes_on=True)  # there was none
    saved.add(Block(np.full(1600, 0.5, np.float32)))
    with path.open("ab") as file:
        file.write(b"\1")  # half a sample
    saved = SavedSound(path, goes_on=True)
    assert saved.seconds == 0.1
    saved.fill(0.2)
    saved.add(Block(np.full(1600, 0.25, np.float32)))
    saved.close()
    assert load_audio(path).tolist() == [0.5] * 1600 + [0.0] * 1600 + [0.25] * 1600
    with pytest.raises(OutputError, match="is there already"):
        SavedSound(path)
    other = tmp_path / "b.wav"
    other.write_bytes(b"x" * 100)
    with pytest.raises(OutputError, match="was not saved by a live session"):
        SavedSound(other, goes_on=True)
    assert other.read_bytes() == b"x" * 100
    with pytest.raises(OutputError, match="cannot be written"):
        SavedSound(tmp_path / "nowhere" / "a.wav")
