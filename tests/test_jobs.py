"""The jobs on disk: what is promised is kept, whatever ends the process; owners take turns and do not see each other's;
what is deleted is gone."""

from __future__ import annotations

import errno
import json
import os
import random
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from scripted_jobs import (
    KEEP,
    KILLS,
    Clock,
    put,
    segments_of,
    sounds,
    transcript_of,
)

from mlx_speech import Transcript
from mlx_speech.errors import CorruptFile, OutputError
from mlx_speech.options import Options
from mlx_speech.request import Heard
from mlx_speech.server.errors import ApiError
from mlx_speech.server.fields import KnownSpeaker
from mlx_speech.server.jobs import journal
from mlx_speech.server.jobs.database import Database
from mlx_speech.server.jobs.records import ID, Job, new_id
from mlx_speech.server.jobs.store import FILE_NAME, KEEP_KEYS, MAX_ATTEMPTS, Store
from mlx_speech.transcript import Chunk, Region, Segment, Word

JUNK = 2000  # bytes that are overwritten in a database


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    opened = Store(tmp_path / "data", keep=KEEP, clock=clock)
    yield opened
    opened.close()


# --- the store --------------------------------------------------------------------------------------------------------


def test_a_job_is_kept_as_it_was_given(store: Store, tmp_path: Path) -> None:
    options = {"language": "de", "temperature": (0.0, 0.2), "vad_options": {"threshold": 0.1}, "diarize": True}
    values: dict[str, Any] = {"filename": "a\0b\u202e\nc.wav" + "x" * 200, "options": options, "audio_seconds": 1 / 3}
    job = put(store, tmp_path, b"sound", "me", **values)
    assert ID.fullmatch(job.id) and job == store.get(job.id, "me")
    assert job.options == {**options, "temperature": [0.0, 0.2]} and job.audio_seconds == 1 / 3
    assert job.filename == "abc.wav" + "x" * 93 and not (tmp_path / "upload").exists()
    assert store.sound(job.id).read_bytes() == b"sound"
    Options.of(**job.options)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "data").rglob("*")}
    assert all(mode == (0o700 if path.is_dir() else 0o600) for path, mode in modes.items()), modes
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700


def test_a_result_comes_back_exactly(store: Store, tmp_path: Path) -> None:
    exact = transcript_of(bytes(range(256)))
    strange = Transcript(segments_of(b"\x01"), "en", 0.1 + 0.2, 5e-324, models={"a": "\ud800 \u2028 \x00 😀"})
    for transcript in (exact, strange, Transcript()):
        job = put(store, tmp_path)
        assert store.take() is not None and store.finish(job.id, transcript)
        job, content = store.result(job.id, "")
        assert Transcript.from_dict(json.loads(content)) == transcript and job.status == "succeeded"


def test_owners_take_turns(store: Store, tmp_path: Path) -> None:
    """However many recordings somebody sends, another one's first waits for one of them at most."""
    jobs = [put(store, tmp_path, owner=owner) for owner in "aaaabbcb"]
    foretold = sorted(jobs, key=lambda job: store.get(job.id, job.owner).position or 0)
    taken = [store.take() for _ in jobs]
    assert "".join(job.owner for job in taken if job is not None) == "abcababa"
    assert [job.id for job in taken if job is not None] == [job.id for job in foretold]
    assert store.take() is None
    late = put(store, tmp_path, owner="a")
    assert put(store, tmp_path, owner="d").position == len(jobs)  # those under way are before it, and nobody else
    assert store.get(late.id, "a").position == len(jobs) + 1


def test_nobody_sees_the_jobs_of_others(store: Store, tmp_path: Path) -> None:
    job = put(store, tmp_path, owner="me")
    store.take()
    store.finish(job.id, Transcript())
    attempts: list[Callable[[str], object]] = [
        lambda owner: store.get(job.id, owner),
        lambda owner: store.result(job.id, owner),
        lambda owner: store.correct(job.id, owner, Transcript()),
        lambda owner: store.uncorrect(job.id, owner),
        lambda owner: store.jobs_of(owner, 5, job.id),
        lambda owner: store.delete(job.id, owner),
    ]
    for attempt in attempts:
        for stranger in ("", "you", "ME"):
            with pytest.raises(ApiError) as caught:
                attempt(stranger)
            assert caught.value.status == 404
        attempt("me")
    assert store.jobs_of("you", 5) == ([], False)


def test_a_retry_is_the_first_job(store: Store, tmp_path: Path, clock: Clock) -> None:
    first = put(store, tmp_path, b"ab", "me", idempotency_key="k", sha256="1")
    again = put(store, tmp_path, b"ab", "me", idempotency_key="k", sha256="1")
    assert again.id == first.id and (tmp_path / "upload").exists() and sounds(tmp_path / "data") == {first.id}
    for other in ({"sha256": "2"}, {"sha256": "1", "options": {"language": "de"}}, {"sha256": "1", "model": "other"}):
        with pytest.raises(ApiError) as caught:
            put(store, tmp_path, b"ab", "me", idempotency_key="k", **other)
        assert (caught.value.status, caught.value.code) == (409, "idempotency_conflict")
    assert put(store, tmp_path, b"ab", "you", idempotency_key="k", sha256="2").id != first.id
    clock.now += KEEP_KEYS - 1
    assert put(store, tmp_path, b"ab", "me", idempotency_key="k", sha256="1").id == first.id
    clock.now += 1
    later = put(store, tmp_path, b"ab", "me", idempotency_key="k", sha256="2")
    assert later.id != first.id
    store.delete(later.id, "me")  # the key goes with its job
    assert put(store, tmp_path, b"ab", "me", idempotency_key="k", sha256="3").id not in (first.id, later.id)


def test_what_is_deleted_leaves_no_traces(store: Store, tmp_path: Path) -> None:
    secret = "correct horse battery staple"
    job = put(store, tmp_path, secret.encode(), filename=f"{secret}.wav")
    store.take()
    store.advance(job.id, "transcribe", 0.5, 3.0, [json.dumps({"text": secret})])
    store.finish(job.id, Transcript(models={"whisper": secret}))
    store.correct(job.id, "", Transcript(models={"whisper": secret * 2000}))
    files = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert any(secret.encode() in path.read_bytes() for path in files)
    store.delete(job.id, "")
    files = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert files and not any(secret.encode() in path.read_bytes() for path in files)


ADA = KnownSpeaker("Ada", b"the voice of a countess")
BOB = KnownSpeaker('B\0b, \ud800 "😀', bytes(range(256)) * 100)


def finish(store: Store, job: Job) -> None:
    assert store.take() is not None and store.finish(job.id, Transcript())


def fail(store: Store, job: Job) -> None:
    assert store.take() is not None and store.fail(job.id, {"message": "no"})


def delete(store: Store, job: Job) -> None:
    store.delete(job.id, "")


def lose_sound(store: Store, job: Job) -> None:
    store.sound(job.id).unlink()


@pytest.mark.parametrize("end", [finish, fail, delete, lose_sound])
def test_voices_are_kept_until_the_end_of_their_job(tmp_path: Path, end: Callable[[Store, Job], None]) -> None:
    """Over a start of the server, and without traces; their names stay with the job."""
    data = tmp_path / "data"
    store = Store(data, keep=KEEP)
    job = put(store, tmp_path, known_speakers=(BOB, ADA))
    other = put(store, tmp_path, known_speakers=(ADA,))
    store.delete(other.id, "")
    store.close()
    store = Store(data, keep=KEEP)
    assert store.known_speakers(job.id) == (BOB, ADA)
    assert store.get(job.id, "").known_names == (BOB.name, ADA.name)
    end(store, job)
    store.close()
    store = Store(data, keep=KEEP)
    assert store.known_speakers(job.id) == ()
    if end is not delete:
        assert store.get(job.id, "").known_names == (BOB.name, ADA.name)
    for path in data.rglob("*"):
        assert path.is_dir() or not any(one.sound[:20] in path.read_bytes() for one in (ADA, BOB))
    store.close()


def test_voices_leave_no_traces_while_the_server_goes_on(store: Store, tmp_path: Path, clock: Clock) -> None:
    """Not even in the log. Expiring takes the names, too."""

    def traces() -> bool:
        files = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
        return any(ADA.sound in path.read_bytes() for path in files)

    for end in (finish, fail, delete):
        job = put(store, tmp_path, known_speakers=(ADA,))
        assert traces()
        end(store, job)
        assert not traces()
    clock.now += KEEP
    assert len(store.expire()) == 2
    with store._database.reading() as connection:
        assert connection.execute("SELECT count(*) FROM voices").fetchone() == (0,)


def test_another_voice_is_another_order(store: Store, tmp_path: Path) -> None:
    values: dict[str, Any] = {"idempotency_key": "k", "sha256": "1"}
    first = put(store, tmp_path, known_speakers=(ADA, BOB), **values)
    assert put(store, tmp_path, known_speakers=(ADA, BOB), **values).id == first.id
    assert len(store.known_speakers(first.id)) == 2
    for speakers in ((), (ADA,), (BOB, ADA), (ADA, KnownSpeaker(BOB.name, b"x")), (ADA, KnownSpeaker("x", BOB.sound))):
        with pytest.raises(ApiError) as caught:
            put(store, tmp_path, known_speakers=speakers, **values)
        assert caught.value.code == "idempotency_conflict"


@pytest.mark.parametrize(("version", "lacking"), [(1, ("voices", "chunks")), (2, ("chunks",))])
def test_a_database_of_before_takes_what_it_lacks(tmp_path: Path, version: int, lacking: tuple[str, ...]) -> None:
    store = Store(tmp_path / "data", keep=KEEP)
    job = put(store, tmp_path)
    with store._database.transaction() as connection:
        for table in lacking:
            connection.execute(f"DROP TABLE {table}")
        connection.execute(f"PRAGMA user_version = {version}")
    store.close()
    for _ in range(2):
        store = Store(tmp_path / "data", keep=KEEP)
        assert store.get(job.id, "").known_names == ()
        later = put(store, tmp_path, known_speakers=(ADA,))
        assert store.known_speakers(later.id) == (ADA,)
        assert store.chunks(job.id, "") == []
        store.close()


@pytest.mark.parametrize("end", ["finish", "fail", "delete"])
def test_chunks_are_kept_until_the_end_of_their_job(tmp_path: Path, end: str) -> None:
    store = Store(tmp_path / "data", keep=KEEP)
    job, other = put(store, tmp_path), put(store, tmp_path, owner="b")
    store.take()
    store.take()
    secret = "what somebody has said"
    assert store.advance(job.id, "transcribe", 0.5, None, (), ["one", secret], "us")
    assert store.advance(job.id, "transcribe", 0.5, None, (), ["two"], "others")
    assert store.advance(other.id, "transcribe", 0.5, None, (), ["three"], "us")
    assert store.give_back(job.id)
    store.close()
    store = Store(tmp_path / "data", keep=KEEP)
    assert store.chunks(job.id, "us") == ["one", secret] and store.chunks(job.id, "others") == ["two"]
    while store.take() is not None:
        pass
    if end == "finish":
        assert store.finish(job.id, transcript_of(b"a"))
    elif end == "fail":
        assert store.fail(job.id, {"message": "no"})
    else:
        store.delete(job.id, "")
    assert not store.advance(job.id, "transcribe", 0.5, None, (), ["late"], "us")
    assert store.chunks(job.id, "us") == store.chunks(job.id, "others") == []
    assert store.chunks(other.id, "us") == ["three"]
    store.close()
    for path in (tmp_path / "data").iterdir():
        assert path.is_dir() or secret.encode() not in path.read_bytes()


def test_a_chunk_comes_back_exactly() -> None:
    word = Word(0.1, 1 / 3, "ünd", 0.2, aligned=False)
    segment = Segment(0.1, 1.7, "ünd", (word,), None, "de", (3, 4), 0.2, -1e-300, 1.5, 0.9, True, (-0.5, -1 / 3))
    chunk = Chunk(0.1, 28.3, (Region(0.1, 2.0), Region(3.0, 28.3)))
    for heard in (Heard((segment,), 7, chunk, (Region(3.0, 4.0),)), Heard((), 0, Chunk(0.0, 0.1))):
        assert journal.from_json(journal.to_json(heard)) == heard


def test_a_job_that_ends_the_process_again_and_again_is_given_up(tmp_path: Path) -> None:
    store = Store(tmp_path, keep=KEEP)
    job = put(store, tmp_path)
    for attempt in range(1, MAX_ATTEMPTS + 1):
        taken = store.take()
        assert taken is not None and taken.attempts == attempt
        store.close()  # it stays running on the disk, as when the process is killed
        store = Store(tmp_path, keep=KEEP)
    job = store.get(job.id, "")
    assert job.status == "failed" and job.error is not None
    assert job.error["code"] == "job_crashed" and "3 times" in job.error["message"]
    assert store.take() is None
    store.close()


def test_a_job_that_is_given_back_was_not_tried(store: Store, tmp_path: Path) -> None:
    job = put(store, tmp_path)
    for _ in range(2 * MAX_ATTEMPTS):
        taken = store.take()
        assert taken is not None and taken.attempts == 1
        assert store.give_back(job.id)
    assert store.get(job.id, "").attempts == 0


def test_sound_and_rows_without_each_other(tmp_path: Path) -> None:
    store = Store(tmp_path, keep=KEEP)
    jobs = [put(store, tmp_path) for _ in range(3)]
    store.take()
    store.finish(jobs[0].id, Transcript())
    store.close()
    for job in jobs[:2]:
        store.sound(job.id).unlink()
    store.sound(new_id()).write_bytes(b"nobody's")
    store = Store(tmp_path, keep=KEEP)
    found = [store.get(job.id, "") for job in jobs]
    assert [job.status for job in found] == ["succeeded", "failed", "queued"]
    assert found[1].error is not None and found[1].error["code"] == "sound_missing"
    assert sounds(tmp_path) == {jobs[2].id}
    store.close()


def test_only_one_server_uses_a_folder(store: Store, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="another server uses it: stop that one, or give another data_dir"):
        Store(tmp_path / "data", keep=KEEP)
    put(store, tmp_path)


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="give a data_dir that can be written"):
        Store(tmp_path / "file", keep=KEEP)


# --- damage -----------------------------------------------------------------------------------------------------------


def test_a_damaged_database_is_one_clear_line(tmp_path: Path) -> None:
    """Bytes are overwritten anywhere: it is opened as it was, or refused in one line that says what to do."""
    store = Store(tmp_path, keep=KEEP)
    for _ in range(40):
        put(store, tmp_path, options={"initial_prompt": "x" * 900})
    store.close()
    path = tmp_path / FILE_NAME
    whole = path.read_bytes()
    chance = random.Random(3)
    refused = 0
    for _ in range(30):
        damaged = bytearray(whole)
        start = chance.randrange(len(whole) - JUNK)
        damaged[start : start + JUNK] = chance.randbytes(JUNK)
        path.write_bytes(damaged)
        try:
            Store(tmp_path, keep=KEEP).close()
        except CorruptFile as error:
            refused += 1
            assert "\n" not in str(error) and "move it away" in str(error) and str(path) in str(error)
    assert refused >= 15  # the others hit text, whose bytes nothing counts


@pytest.mark.parametrize(
    "content, said",
    [
        (b"not a database at all, but long enough to be one" * 100, "is no database of jobs"),
        (b"SQLite format 3\0" + b"\xff" * 4096, "is no database of jobs"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(CorruptFile, match=said):
        Store(tmp_path, keep=KEEP)
    assert (tmp_path / FILE_NAME).read_bytes() == content


def test_other_databases_are_refused(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE letters (text)")
    connection.close()
    with pytest.raises(CorruptFile, match="is no database of jobs"):
        Store(tmp_path, keep=KEEP)
    path.unlink()
    Store(tmp_path, keep=KEEP).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 4")
    connection.close()
    with pytest.raises(CorruptFile, match="is of version 4, not 3: update mlx_speech"):
        Store(tmp_path, keep=KEEP)


def test_a_full_disk_leaves_nothing_half(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite's own bound on its pages makes its disk full; the system's error is raised where files are moved."""
    data = tmp_path / "data"
    done = put(store, tmp_path, b"done")
    store.take()
    store.finish(done.id, transcript_of(b"done"))
    connection = store._database._connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    large = {"initial_prompt": "x" * 100_000}
    attempts: list[Callable[[], object]] = [
        lambda: put(store, tmp_path, b"new", options=large),
        lambda: store.correct(done.id, "", transcript_of(bytes(1000))),
    ]
    for attempt in attempts:
        with pytest.raises(ApiError) as caught:
            attempt()
        assert (caught.value.status, caught.value.code) == (507, "disk_full")
        assert str(tmp_path) not in caught.value.message
    connection.execute("PRAGMA max_page_count = 100000")

    def no_room(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(*((os, "fsync") if name == "fsync" else (Path, "replace")), no_room)
            with pytest.raises(ApiError) as caught:
                put(store, tmp_path, b"new")
        assert caught.value.status == 507
    assert (tmp_path / "upload").read_bytes() == b"new" and sounds(data) == {done.id}
    jobs, _ = store.jobs_of("", 10)
    assert [(job.id, job.revision, job.corrected) for job in jobs] == [(done.id, 1, False)]
    assert put(store, tmp_path, b"new").status == "queued"


@pytest.mark.parametrize("way", ["delete", "expire"])
def test_a_full_disk_is_emptied(
    store: Store, tmp_path: Path, clock: Clock, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no room to write that a job is gone, its sound goes first."""
    job = put(store, tmp_path)
    store.take()
    store.finish(job.id, Transcript())
    clock.now += KEEP
    commit = Database._commit

    def full_of_sound(self: Database) -> None:
        if store.sound(job.id).exists():
            raise sqlite3.OperationalError("database or disk is full")
        commit(self)

    monkeypatch.setattr(Database, "_commit", full_of_sound)
    if way == "delete":
        store.delete(job.id, "")
    else:
        assert store.expire() == [job.id]
    assert store.jobs_of("", 9) == ([], False) and not sounds(tmp_path / "data")


def test_a_commit_that_fails_brings_the_sound_back(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(type(store._database), "_commit", fails)
        with pytest.raises(ApiError) as caught:
            put(store, tmp_path, b"new")
    assert caught.value.status == 500 and "x-should-retry" in caught.value.headers
    assert (tmp_path / "upload").read_bytes() == b"new" and not sounds(tmp_path / "data")
    assert store.jobs_of("", 10) == ([], False) and put(store, tmp_path).position == 0


# --- anything in any order --------------------------------------------------------------------------------------------


class Jobs(RuleBasedStateMachine):
    """The store beside a plain list of what it should hold."""

    folder: Path

    @initialize()
    def begin(self) -> None:
        self.clock = Clock()
        self.place = self.folder / new_id()
        self.place.mkdir()
        self.store = Store(self.place, keep=KEEP, clock=self.clock)
        self.jobs: list[dict[str, Any]] = []
        self.turns: dict[str, int] = {}
        self.count = 0

    def some(self, number: int, *statuses: str) -> dict[str, Any] | None:
        chosen = [job for job in self.jobs if not statuses or job["status"] in statuses]
        return chosen[number % len(chosen)] if chosen else None

    def line(self) -> list[dict[str, Any]]:
        """By taking them in thought, one behind the other."""
        waiting = [job for job in self.jobs if job["status"] == "queued"]
        turns = {owner: max([job["turn"] for job in self.jobs if job["owner"] == owner] or [0]) for owner in "ab"}
        line = []
        while waiting:
            following = min(waiting, key=lambda job: (turns[job["owner"]], self.jobs.index(job)))
            turns[following["owner"]] = self.count + len(line) + 1
            waiting.remove(following)
            line.append(following)
        return line

    @rule(owner=st.sampled_from("ab"))
    def add(self, owner: str) -> None:
        job = put(self.store, self.place, owner=owner)
        model = {"id": job.id, "owner": owner, "status": "queued", "turn": 0, "attempts": 0, "told": []}
        self.jobs.append({**model, "expires": None, "revision": 0, "results": {}})

    @rule()
    def take(self) -> None:
        line = self.line()
        job = self.store.take()
        if not line:
            assert job is None
            return
        assert job is not None and job.id == line[0]["id"]
        self.count += 1
        line[0].update(status="running", attempts=line[0]["attempts"] + 1, turn=self.count)

    @rule(number=st.integers(0, 9), progress=st.floats(0, 1), texts=st.lists(st.text(max_size=3), max_size=3))
    def advance(self, number: int, progress: float, texts: list[str]) -> None:
        job = self.some(number)
        if job is None:
            return
        data = [json.dumps({"text": text}) for text in texts]
        assert self.store.advance(job["id"], "vad", progress, None, data) == (job["status"] == "running")
        if job["status"] == "running":
            job["told"] += [("segment", text) for text in data]

    @rule(number=st.integers(0, 9), sound=st.binary(max_size=2))
    def finish(self, number: int, sound: bytes) -> None:
        job = self.some(number)
        if job is None:
            return
        assert self.store.finish(job["id"], transcript_of(sound)) == (job["status"] == "running")
        if job["status"] == "running":
            job["told"].append(("done", json.dumps({"id": job["id"], "status": "succeeded"})))
            job.update(status="succeeded", expires=self.clock.now + KEEP, revision=1)
            job["results"]["first"] = transcript_of(sound)

    @rule(number=st.integers(0, 9))
    def fail(self, number: int) -> None:
        job = self.some(number)
        if job is None:
            return
        assert self.store.fail(job["id"], {"message": "no"}) == (job["status"] == "running")
        if job["status"] == "running":
            job["told"].append(("failed", '{"message": "no"}'))
            job.update(status="failed", expires=self.clock.now + KEEP)

    @rule(number=st.integers(0, 9))
    def give_back(self, number: int) -> None:
        job = self.some(number)
        if job is None:
            return
        assert self.store.give_back(job["id"]) == (job["status"] == "running")
        if job["status"] == "running":
            job.update(status="queued", attempts=job["attempts"] - 1)

    @rule(number=st.integers(0, 9), sound=st.none() | st.binary(max_size=2), revision=st.none() | st.integers(0, 3))
    def correct(self, number: int, sound: bytes | None, revision: int | None) -> None:
        """sound : of the correction; none takes it back"""
        job = self.some(number)
        if job is None:
            return
        revisions = None if revision is None else {str(revision)}
        expected = 200
        if job["status"] != "succeeded":
            expected = 409
        elif revision not in (None, job["revision"]):
            expected = 412
        try:
            if sound is None:
                self.store.uncorrect(job["id"], job["owner"], revisions)
            else:
                self.store.correct(job["id"], job["owner"], transcript_of(sound), revisions)
        except ApiError as error:
            assert error.status == expected
            return
        assert expected == 200
        if sound is not None:
            job["results"]["corrected"] = transcript_of(sound)
            job["revision"] += 1
        elif job["results"].pop("corrected", None) is not None:
            job["revision"] += 1

    @rule(number=st.integers(0, 9))
    def delete(self, number: int) -> None:
        job = self.some(number)
        if job is not None:
            self.store.delete(job["id"], job["owner"])
            self.jobs.remove(job)

    @rule(seconds=st.sampled_from([1.0, KEEP / 2, KEEP]))
    def expire(self, seconds: float) -> None:
        self.clock.now += seconds
        gone = [job for job in self.jobs if job["expires"] is not None and job["expires"] <= self.clock.now]
        assert sorted(self.store.expire()) == sorted(job["id"] for job in gone)
        self.jobs = [job for job in self.jobs if job not in gone]

    @precondition(lambda self: self.jobs)
    @rule()
    def restart(self) -> None:
        """As if the process had been killed."""
        self.store.close()
        self.store = Store(self.place, keep=KEEP, clock=self.clock)
        for job in self.jobs:
            if job["status"] == "running" and job["attempts"] < MAX_ATTEMPTS:
                job["status"] = "queued"
            elif job["status"] == "running":
                job.update(status="failed", expires=self.clock.now + KEEP)
                job["told"].append(("failed", None))

    @invariant()
    def agree(self) -> None:
        if not hasattr(self, "store"):
            return
        assert sounds(self.place) == {job["id"] for job in self.jobs}
        under_way = sum(job["status"] == "running" for job in self.jobs)
        places = {job["id"]: under_way + place for place, job in enumerate(self.line())}
        for owner in "ab":
            listed, has_more = self.store.jobs_of(owner, 100)
            mine = [job for job in self.jobs if job["owner"] == owner]
            assert [job.id for job in listed] == [job["id"] for job in reversed(mine)] and not has_more
            for job, model in zip(reversed(listed), mine, strict=True):
                assert job.position == places.get(job.id)
                for name in ("status", "attempts", "revision"):
                    assert getattr(job, name) == model[name], name
                assert job.corrected == ("corrected" in model["results"])
                self.check_events(model)
                for version, transcript in model["results"].items():
                    _, content = self.store.result(job.id, owner, version)
                    assert Transcript.from_dict(json.loads(content)) == transcript

    def check_events(self, model: dict[str, Any]) -> None:
        _, events = self.store.events(model["id"], 0)
        kept = [event for event in events if event.name != "progress"]
        assert [event.name for event in kept] == [name for name, _ in model["told"]]
        for event, (_, data) in zip(kept, model["told"], strict=True):
            assert data is None or event.data == data
        numbers = [event.sequence for event in events]
        assert numbers == sorted(set(numbers))
        for number in numbers[:2]:
            assert self.store.events(model["id"], number)[1] == [event for event in events if event.sequence > number]

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()


def test_anything_in_any_order(tmp_path: Path) -> None:
    class Here(Jobs):
        folder = tmp_path

    checks = [HealthCheck.too_slow]
    bounds = settings(
        max_examples=15,
        stateful_step_count=40,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=checks,
    )
    run_state_machine_as_test(Here, settings=bounds)


# --- kill -9 ----------------------------------------------------------------------------------------------------------


def test_a_server_that_is_killed_keeps_its_promises(tmp_path: Path) -> None:
    """At every step that reaches the disk, and at any moment between."""
    script = Path(__file__).with_name("scripted_jobs.py")
    root = str(script.parent.parent)
    command = [sys.executable, str(script), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": root}
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert finished.returncode == 0, finished.stderr
    steps = int(finished.stdout)
    folders = sorted(path for path in tmp_path.iterdir() if path.is_dir() and path.name.startswith(("step", "kill")))
    assert steps > 25 and len(folders) == steps + KILLS
    for folder in folders:
        check_promises(folder)


def check_promises(folder: Path) -> None:
    """What was answered is so, and what was not is not half so."""
    promised: dict[str, dict[str, bytes]] = {"added": {}, "corrected": {}, "deleted": {}}
    if (folder / "promises").exists():
        for line in (folder / "promises").read_text().splitlines():
            what, job_id, sound = line.split()
            promised[what][job_id] = bytes.fromhex(sound)
    store = Store(folder, keep=KEEP)
    jobs, _ = store.jobs_of("", 100)
    there = {job.id for job in jobs}
    assert sounds(folder) == there
    kept = promised["added"].keys() - promised["deleted"].keys()
    deleting = len(promised["corrected"]) and not promised["deleted"]  # it may have been under way
    assert len(kept - there) <= bool(deleting) and not there & promised["deleted"].keys()
    assert len(there - kept) <= 1  # one whose answer did not get out
    for job in jobs:
        assert job.status == "succeeded", folder
        sound = store.sound(job.id).read_bytes()
        _, events = store.events(job.id, 0)
        segments = [event.data for event in events if event.name == "segment"]
        assert len(segments) == len(set(segments)) == len(sound)
        assert [event.name for event in events if event.name != "segment"] == ["done"]
        _, content = store.result(job.id, "", "first")
        assert Transcript.from_dict(json.loads(content)) == transcript_of(sound)
        if job.id in promised["corrected"]:
            _, content = store.result(job.id, "", "corrected")
            assert Transcript.from_dict(json.loads(content)) == transcript_of(promised["corrected"][job.id])
    store.close()
