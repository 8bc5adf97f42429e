"""The database of known voices: what is put in comes out, what is removed is gone, and a bad file is said to be one."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_speech.errors import CorruptFile, MLXSpeechError, OptionError, OutputError, SourceNotFound
from mlx_speech.stages.voiceprints import Voiceprint
from mlx_speech.transcript import Diarization, Segment, Transcript, Turn
from mlx_speech.voices import Enrolment, SpeakerStore, exchange, learn, name_speakers
from mlx_speech.voices.naming import Namer

ROOT = Path(__file__).parent.parent
MODEL = "family:0123456789abcdef"
NOBODY = 65534  # the user who may write nothing


def voice(seed: int, model: str = MODEL, seconds: float = 5.0) -> Voiceprint:
    vector = np.random.default_rng(seed).normal(size=32)
    return Voiceprint(tuple(vector.tolist()), seconds, model)


def bytes_beside(path: Path) -> bytes:
    """All that the database's files hold: itself, -wal and -shm."""
    return b"".join(file.read_bytes() for file in sorted(path.parent.glob(f"*{path.name}*")))


@pytest.fixture
def store(tmp_path: Path) -> SpeakerStore:
    return SpeakerStore(tmp_path / "folder" / "voices.sqlite")


# --- what is put in ---------------------------------------------------------------------------------------------------


def test_what_is_put_in_comes_out(store: SpeakerStore) -> None:
    assert store.speakers() == store.enrolments() == []
    assert store.add("Zoë", voice(1), audio=b"\x01\x02")
    assert store.add("Ann", voice(2, seconds=1.5)) and store.add("Ann", voice(3, seconds=2.5))
    ann, other, zoe = sorted(store.enrolments(), key=lambda enrolment: (enrolment.name, enrolment.seconds))
    assert (ann.name, other.name, zoe.name) == ("Ann", "Ann", "Zoë")
    assert ann.vector.tobytes() == np.array(voice(2).vector, "<f4").tobytes()
    assert (ann.seconds, other.seconds, ann.model, ann.audio, zoe.audio) == (1.5, 2.5, MODEL, None, b"\x01\x02")
    assert abs((date.today() - ann.day).days) <= 1
    first, second = store.speakers()
    assert (first.name, first.seconds, first.enrolments, first.models) == ("Ann", 4.0, 2, (MODEL,))
    assert (second.name, second.with_audio) == ("Zoë", 1)
    assert SpeakerStore(store.path).enrolments() == store.enrolments()


def test_the_file_is_the_users_alone_and_keeps_a_log(store: SpeakerStore) -> None:
    store.add("Ann", voice(1))
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    assert [path.name for path in store.path.parent.iterdir()] == ["voices.sqlite"]
    with closing(sqlite3.connect(store.path)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_voice_is_enrolled_once_and_for_one_name(store: SpeakerStore) -> None:
    assert store.add("Ann", voice(1))
    assert not store.add(" Ann ", voice(1))
    with pytest.raises(OptionError, match="this voice of 'Bob' is known as 'Ann': rename or remove 'Ann' first"):
        store.add("Bob", voice(1))
    with pytest.raises(OptionError, match="has 2 numbers, and others of family:0123456789abcdef 32"):
        store.add("Bob", Voiceprint((1.0, 2.0), 3.0, MODEL))
    assert [speaker.name for speaker in store.speakers()] == ["Ann"]


def test_all_or_none(store: SpeakerStore) -> None:
    store.add("Ann", voice(1))
    many = [Enrolment.of("Bob", voice(2)), Enrolment.of("Carl", voice(1))]
    with pytest.raises(OptionError):
        store.add_all(many)
    assert [speaker.name for speaker in store.speakers()] == ["Ann"]


@pytest.mark.parametrize("name", ["", "  ", "SPEAKER_07", "two\nlines", "x" * 101, "tab\tbed"])
def test_names_that_cannot_be(store: SpeakerStore, name: str) -> None:
    with pytest.raises(OptionError) as raised:
        store.add(name, voice(1))
    assert "\n" not in str(raised.value) and not store.exists


def test_one_name_however_it_is_composed(store: SpeakerStore) -> None:
    store.add("Zoe\u0308", voice(1))
    store.add("Zoë", voice(2))
    assert [speaker.enrolments for speaker in store.speakers()] == [2]


@pytest.mark.parametrize("vector", [(), (0.0, 0.0), (float("nan"), 1.0), (1e300, 1.0)])
def test_vectors_that_have_no_direction(store: SpeakerStore, vector: tuple[float, ...]) -> None:
    with pytest.raises(OptionError, match="vector of 'Ann'"):
        store.add("Ann", Voiceprint(vector, 1.0, MODEL))


# --- what is taken out ------------------------------------------------------------------------------------------------


def traces(name: str, seed: int, sound: bytes) -> list[bytes]:
    """What would tell of somebody: the name, the vector, a part of it, and pieces of the sound, which fills pages."""
    vector = np.array(voice(seed).vector, "<f4").tobytes()
    return [name.encode(), vector, vector[:16], *(sound[start : start + 32] for start in range(0, len(sound), 5000))]


@pytest.mark.parametrize("action", ["remove", "rename"])
def test_nothing_is_left_of_who_is_removed(store: SpeakerStore, action: str) -> None:
    sound = np.random.default_rng(9).bytes(20_000)
    store.add_all(Enrolment.of(f"somebody {number}", voice(number)) for number in range(30))
    told = traces("Methuselah Zyx", 99, sound)
    with closing(sqlite3.connect(store.path)) as other:  # it keeps the log from being deleted
        assert other.execute("SELECT count(*) FROM speakers").fetchone() == (30,)
        store.add("Methuselah Zyx", voice(99), audio=sound)
        assert all(trace in bytes_beside(store.path) for trace in told)
        if action == "remove":
            store.remove(["Methuselah Zyx"])
        else:
            store.rename("Methuselah Zyx", "Ann")
            told = told[:1]
        assert store.path.with_name("voices.sqlite-wal").exists()
        assert not [trace for trace in told if trace in bytes_beside(store.path)]
    assert not [trace for trace in told if trace in bytes_beside(store.path)]
    assert len(SpeakerStore(store.path).speakers()) == (30 if action == "remove" else 31)


def test_who_is_being_read_goes_when_the_reader_goes(store: SpeakerStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlx_speech.voices.store.READING_PATIENCE", 0.05)
    store.add("Methuselah Zyx", voice(99))
    store.add("Ann", voice(1))
    with closing(sqlite3.connect(store.path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM speakers").fetchone() == (2,)
        with pytest.warns(UserWarning, match="another process is reading it"):
            store.remove(["Methuselah Zyx"])
        assert [speaker.name for speaker in store.speakers()] == ["Ann"]
        reader.execute("COMMIT")
    assert not [trace for trace in traces("Methuselah Zyx", 99, b"x" * 99)[:3] if trace in bytes_beside(store.path)]


def test_one_who_is_not_known_keeps_the_others(store: SpeakerStore) -> None:
    store.add("Ann", voice(1))
    with pytest.raises(OptionError, match="nobody is known as 'Bob': choose from Ann"):
        store.remove(["Ann", "Bob"])
    assert [speaker.name for speaker in store.speakers()] == ["Ann"]


def test_another_name(store: SpeakerStore) -> None:
    store.add("Ann", voice(1))
    store.add("Bob", voice(2))
    store.rename("Ann", "Anna")
    with pytest.raises(OptionError, match="'Bob' is known already: pass merge=True"):
        store.rename("Anna", "Bob")
    assert [speaker.name for speaker in store.speakers()] == ["Anna", "Bob"]
    store.rename("Anna", "Bob", merge=True)
    assert [(speaker.name, speaker.enrolments) for speaker in store.speakers()] == [("Bob", 2)]
    with pytest.raises(OptionError, match="nobody is known as 'Anna'"):
        store.rename("Anna", "Carl")


# --- files ------------------------------------------------------------------------------------------------------------


def spoilt(path: Path, kind: str) -> None:
    """Make a file what no database of speakers is."""
    if kind == "text":
        path.write_text("no database, but long enough to be one. " * 100, encoding="utf-8")
    elif kind == "nothing":
        path.write_bytes(b"")
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "page":
        content = bytearray(path.read_bytes())
        content[8192:12288] = b"\xff" * 4096
        path.write_bytes(content)
    elif kind == "other":
        path.unlink()
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE speakers (name TEXT)")
    elif kind == "later":
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA user_version = 2")


@pytest.mark.parametrize(
    "kind, said",
    [
        ("text", "is no database of speakers"),
        ("nothing", "is no database of speakers"),
        ("other", "is no database of speakers"),
        ("cut", "is damaged"),
        ("page", "is damaged"),
        ("later", "is of version 2, not 1: update mlx_speech"),
    ],
)
def test_a_bad_file_is_said_to_be_one(store: SpeakerStore, kind: str, said: str) -> None:
    store.add_all(Enrolment.of(f"somebody {number}", voice(number)) for number in range(30))
    spoilt(store.path, kind)
    before = store.path.read_bytes()
    with pytest.raises(CorruptFile) as raised:
        SpeakerStore(store.path)
    assert said in str(raised.value) and "\n" not in str(raised.value) and str(store.path) in str(raised.value)
    assert store.path.read_bytes() == before


@pytest.mark.parametrize("column, value", [("vector", b"abc"), ("day", "yesterday"), ("vector", b"\0" * 128)])
def test_rows_that_cannot_be(store: SpeakerStore, column: str, value: Any) -> None:
    store.add("Ann", voice(1))
    with closing(sqlite3.connect(store.path, isolation_level=None)) as connection:
        connection.execute(f"UPDATE enrolments SET {column} = ?", (value,))
    with pytest.raises(CorruptFile, match="is damaged"):
        store.enrolments()
    if column == "day":
        with pytest.raises(CorruptFile, match="is damaged"):
            store.speakers()
    if value == b"abc":
        with pytest.raises(CorruptFile, match="is damaged"):
            store.voices(MODEL)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file" / "voices.sqlite", tmp_path / ("x" * 300)):
        with pytest.raises(MLXSpeechError) as raised:
            SpeakerStore(path).add("Ann", voice(1))
        assert "\n" not in str(raised.value)
    with pytest.raises(MLXSpeechError, match="cannot be used"):
        SpeakerStore(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"file"}


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without the right to write everywhere, where the tests run with it."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_file_that_may_only_be_read(store: SpeakerStore) -> None:
    store.add("Ann", voice(1))
    folder = Path(tempfile.mkdtemp())  # outside those that are the tests' user's alone
    try:
        path = shutil.copy(store.path, folder / "voices.sqlite")
        path.chmod(0o444)
        folder.chmod(0o555)
        with as_nobody():
            protected = SpeakerStore(path)
            assert [speaker.name for speaker in protected.speakers()] == ["Ann"]
            assert protected.voices(MODEL).names == ("Ann",)
            for change in (lambda: protected.add("Bob", voice(2)), lambda: protected.remove(["Ann"])):
                with pytest.raises(OutputError, match="is it a file that you may write"):
                    change()
        assert [file.name for file in folder.iterdir()] == ["voices.sqlite"]
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


ADDING = """
import sys
from mlx_speech.stages.voiceprints import Voiceprint
from mlx_speech.voices import SpeakerStore
path, name = sys.argv[1:]
for number in range(25):
    vector = (float(len(name)), float(number), 1.0)
    SpeakerStore(path).add(f"{name} {number % 5}", Voiceprint(vector, 1.0, "family:0"))
"""


def test_two_processes_at_once(store: SpeakerStore) -> None:
    command = [sys.executable, "-c", ADDING, str(store.path)]
    processes = [subprocess.Popen([*command, name], cwd=ROOT, stderr=subprocess.PIPE) for name in ("one", "other")]
    for process in processes:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said.decode()
    assert [speaker.enrolments for speaker in store.speakers()] == [5] * 10


# --- what a database is for -------------------------------------------------------------------------------------------


def heard(*speakers: Voiceprint, model: str | None = MODEL) -> Diarization:
    turns = tuple(Turn(4.0 * k, 4.0 * k + 3, f"SPEAKER_{k:02d}") for k in range(len(speakers)))
    vectors = {turn.speaker: print_of.vector for turn, print_of in zip(turns, speakers, strict=True)}
    return Diarization(turns, turns, vectors, model)


def test_known_voices_get_their_names(store: SpeakerStore) -> None:
    store.add("Ann", voice(1))
    store.add("Bob", voice(2))
    found = name_speakers(heard(voice(3), voice(2)), store)
    assert [turn.speaker for turn in found.turns] == ["SPEAKER_00", "Bob"] == [turn.speaker for turn in found.exclusive]
    assert found.embeddings.keys() == {"SPEAKER_00", "Bob"} and found.embedding_model == MODEL
    assert found.matches.keys() == {"Bob"}
    assert found.matches["Bob"].score == pytest.approx(1.0) and not found.matches["Bob"].doubtful


def test_who_is_in_doubt_keeps_the_label(store: SpeakerStore) -> None:
    ann = np.array(voice(1).vector) / np.linalg.norm(voice(1).vector)
    other = np.array(voice(2).vector)
    other -= other @ ann * ann
    half = 0.5 * ann + np.sqrt(0.75) * other / np.linalg.norm(other)
    store.add("Ann", voice(1))
    found = name_speakers(heard(Voiceprint(tuple(half.tolist()), 3.0, MODEL)), store)
    assert [turn.speaker for turn in found.turns] == ["SPEAKER_00"]
    assert found.matches["SPEAKER_00"].name == "Ann" and found.matches["SPEAKER_00"].doubtful
    assert found.matches["SPEAKER_00"].score == pytest.approx(0.5, abs=1e-6)


def test_vectors_of_another_model_are_never_compared(store: SpeakerStore) -> None:
    store.add("Ann", voice(1))
    other = "family:fedcba9876543210"
    store.add("Bob", voice(1, model=other))
    found = name_speakers(heard(voice(1), model=other), store)
    assert [turn.speaker for turn in found.turns] == ["Bob"]
    assert store.voices("another:0").names == () and store.of_other_models("another:0") == ["Ann", "Bob"]
    namer = Namer(store)
    with pytest.warns(
        UserWarning, match="Ann, Bob: enrolled with another embedding model.* enrols them again"
    ) as warned:
        for _ in range(3):
            unnamed = namer.name(heard(voice(1), model="another:0"))
    assert len(warned) == 1 and "\n" not in str(warned[0].message)
    assert unnamed == heard(voice(1), model="another:0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert name_speakers(heard(voice(1), model=None), store) == heard(voice(1), model=None)
        assert Namer(None).name(heard(voice(1))) == heard(voice(1))
    with pytest.warns(UserWarning, match="nobody gets a name"):  # turns by sound tracks have no vectors
        assert namer.name(Diarization(heard(voice(1)).turns)) == Diarization(heard(voice(1)).turns)


def test_vectors_of_one_model_that_differ_in_length(store: SpeakerStore) -> None:
    store.add("Ann", Voiceprint((1.0, 2.0), 3.0, MODEL))
    with pytest.raises(CorruptFile, match="the vector of SPEAKER_00 has 32 numbers, and known voices 2"):
        name_speakers(heard(voice(1)), store)


def test_a_database_has_to_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_SPEECH_DATA", str(tmp_path))
    with pytest.raises(SourceNotFound, match=r"speakers\.sqlite: there is no such database"):
        Namer(True)
    SpeakerStore().add("Ann", voice(1))
    assert (tmp_path / "speakers.sqlite").is_file()
    assert Namer(True).name(heard(voice(1))).turns[0].speaker == "Ann"
    assert Namer(tmp_path / "speakers.sqlite").name(heard(voice(1))).turns[0].speaker == "Ann"
    assert Namer(False).name(heard(voice(1))).turns[0].speaker == "SPEAKER_00"
    wrong: Any = 3
    with pytest.raises(OptionError, match="speakers is 3: give a SpeakerStore, its path, or True"):
        Namer(wrong)


@pytest.mark.parametrize("kind", ["cut", "text", "gone"])
def test_no_transcript_is_lost_with_the_database(store: SpeakerStore, kind: str) -> None:
    store.add("Ann", voice(1))
    namer = Namer(store)
    if kind == "gone":
        store.path.unlink()
    else:
        spoilt(store.path, kind)
    with pytest.warns(UserWarning, match="nobody gets a name: "):
        assert namer.name(heard(voice(1))) == heard(voice(1))


# --- learning ---------------------------------------------------------------------------------------------------------


def corrected(diarization: Diarization, **names: str) -> Transcript:
    segments = tuple(Segment(turn.start, turn.end, "text", speaker=turn.speaker) for turn in diarization.turns)
    return Transcript(segments, diarization=diarization).rename(names)


def test_a_correction_teaches(store: SpeakerStore) -> None:
    transcript = corrected(heard(voice(1), voice(2), voice(3)), SPEAKER_00="Ann", SPEAKER_02="Carl")
    learnt = learn(transcript)
    assert [(enrolment.name, enrolment.seconds, enrolment.model) for enrolment in learnt] == [
        ("Ann", 3.0, MODEL),
        ("Carl", 3.0, MODEL),
    ]
    assert store.add_all(learnt) == 2 and store.add_all(learn(transcript)) == 0
    found = name_speakers(heard(voice(3), voice(2), voice(1)), store)
    assert [turn.speaker for turn in found.turns] == ["Carl", "SPEAKER_01", "Ann"]


def test_what_cannot_be_learnt() -> None:
    plain = corrected(heard(voice(1)))
    named = corrected(heard(voice(1)), SPEAKER_00="Ann")
    assert named.diarization is not None
    short = (Turn(0.0, 0.5, "Ann"),)
    segments = (Segment(0.0, 1.0, "x", speaker="Ann"),)
    cases = {
        "has no vectors of speakers": Transcript(named.segments),
        "does not say which model made its vectors": corrected(heard(voice(1), model=None), SPEAKER_00="Ann"),
        "all speakers are still called SPEAKER_00": plain,
        "'Ann' speaks, and has no vector: put the name in place of the label (SPEAKER_00)": replace(
            plain, segments=segments
        ),
        "nobody with a name speaks for a second": replace(
            named, diarization=replace(named.diarization, turns=short, exclusive=short)
        ),
    }
    for said, transcript in cases.items():
        with pytest.raises(OptionError) as raised:
            learn(transcript)
        assert said in str(raised.value) and "\n" not in str(raised.value)


# --- elsewhere --------------------------------------------------------------------------------------------------------


def test_export_and_import_keep_every_bit(store: SpeakerStore, tmp_path: Path) -> None:
    for number in range(5):
        store.add(f"somebody {number % 3}", voice(number, seconds=1 / 3 + number))
    store.add("Zoë", voice(9, model="another:0"))
    text = exchange.to_json(store.enrolments())
    read = exchange.from_dict(json.loads(text))
    assert read == store.enrolments()
    other = SpeakerStore(tmp_path / "other.sqlite")
    other.add("Zoë", voice(9, model="another:0"))
    assert other.add_all(read) == 5  # one was there
    assert other.enrolments() == store.enrolments() and other.add_all(read) == 0
    assert "audio" not in text


@pytest.mark.parametrize(
    "change, said",
    [
        ({"format": "something"}, "is no export of speakers"),
        ({"format_version": 2}, "format_version is 2"),
        ({"speakers": 3}, "speakers is 3"),
        ({"name": "SPEAKER_00"}, "SPEAKER_00 is what a speaker without a name is called"),
        ({"name": 3}, "name is 3"),
        ({"vector": []}, "vector of 'Ann'"),
        ({"vector": [0, 0]}, "has no direction"),
        ({"vector": [1e39, 0]}, "has no direction"),
        ({"vector": "x"}, "vector is 'x'"),
        ({"seconds": 0}, "seconds is 0"),
        ({"model": ""}, "says no embedding model"),
        ({"day": "yesterday"}, "day is 'yesterday'"),
    ],
)
def test_an_import_is_looked_at_closely(change: dict[str, Any], said: str) -> None:
    entry = {"model": MODEL, "seconds": 2.0, "day": "2026-01-31", "vector": [1.0, 2.0]}
    entry.update({key: value for key, value in change.items() if key in entry})
    speaker = {"name": change.get("name", "Ann"), "enrolments": [entry]}
    document = {"format": exchange.FORMAT, "format_version": 1, "speakers": [speaker]}
    document.update({key: value for key, value in change.items() if key in document})
    with pytest.raises(CorruptFile) as raised:
        exchange.from_dict(document)
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_an_import_has_vectors_of_one_length_for_a_model() -> None:
    entries = [{"model": MODEL, "seconds": 2.0, "day": "2026-01-31", "vector": [1.0] * size} for size in (2, 3)]
    speaker = {"name": "Ann", "enrolments": entries}
    with pytest.raises(CorruptFile, match="differ in length"):
        exchange.from_dict({"format": exchange.FORMAT, "format_version": 1, "speakers": [speaker]})
