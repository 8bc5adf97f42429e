"""Jobs on disk: a database, and beside it the sound of each, in a folder that nobody else may read.

A job that is in the database is done once or goes on, whatever ends the process; its sound lies there before its row
does, and goes behind it. What a crash leaves between the two is put in order when the folder is opened again.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from mlx_speech.errors import OutputError
from mlx_speech.folders import writing
from mlx_speech.server.errors import NEVER_AGAIN, ApiError
from mlx_speech.server.fields import KnownSpeaker
from mlx_speech.server.forms import shown
from mlx_speech.server.idempotency import KEEP_KEYS, conflict
from mlx_speech.server.jobs.database import Database, serving
from mlx_speech.server.jobs.records import Job, JobEvent, Order, Status, Version, new_id
from mlx_speech.transcript import Transcript

FILE_NAME = "jobs.sqlite3"
SOUND_FOLDER = "audio"
MAX_ATTEMPTS = 3  # a job that ended the process so often is not begun again
COLUMNS = """
    id, owner, filename, model, options, response_format, status, stage, progress, audio_seconds, created_at,
    expires_at, started_at, ended_at, attempts, error, revision,
    EXISTS (SELECT * FROM results WHERE job = jobs.number AND version = 'corrected'),
    (SELECT place FROM line WHERE line.number = jobs.number)
        + (SELECT count(*) FROM jobs AS others WHERE others.status = 'running'),
    (SELECT '[' || group_concat(name, ',') || ']' FROM (SELECT name FROM voices WHERE job = jobs.number ORDER BY place))
"""


class Store:
    """The jobs of a server.

    folder : its data_dir, made where it is not there; uploads have to be on the same disk
    keep : seconds that a job is kept once it has ended
    clock : seconds since 1970

    Raises `CorruptFile` for a damaged database, `OutputError` where the folder cannot be used, or another server uses
    it. Every method may be called from any thread, and may wait for the disk; all raise `ApiError` 507 where it is
    full, and 500 where it fails otherwise: nothing has changed then, but that a job to be deleted may lack its sound.
    """

    def __init__(self, folder: Path, *, keep: float, clock: Callable[[], float] = time.time) -> None:
        self._keep = keep
        self._clock = clock
        self._sounds = folder / SOUND_FOLDER
        with writing(folder, "give a data_dir that can be written"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._sounds.mkdir(mode=0o700, exist_ok=True)
        self._database = Database(folder / FILE_NAME)
        try:
            self._recover()
        except ApiError as error:
            self._database.close()
            advice = "make room, or give another data_dir"
            raise OutputError(f"{folder}: cannot be used ({error.message}): {advice}") from error

    def close(self) -> None:
        """Let go of the files."""
        self._database.close()

    def sound(self, job_id: str) -> Path:
        """Where the sound of a job lies, if it is there."""
        return self._sounds / job_id

    # --- coming and going ---------------------------------------------------------------------------------------------

    def add(self, sound: Path, order: Order) -> Job:
        """Take a job in, and its sound, which is moved away; or, for a known key, the job that came with it at first,
        and the sound stays.

        Raises `ApiError` 409 where the key came with something else. Whatever is raised, the sound is where it was.
        """
        job_id = new_id()
        target = self.sound(job_id)
        with serving(sound):
            sound.chmod(0o600)
            _synchronise(sound)
        with ExitStack() as undo:
            with self._database.transaction() as connection:
                earlier = self._earlier(connection, order)
                if earlier is not None:
                    return earlier
                number = self._insert(connection, job_id, order)
                job = _job(connection, number)
                sound.replace(target)  # before the row counts: without its sound it would be lost
                undo.callback(target.replace, sound)
                _synchronise(self._sounds)
            undo.pop_all()
        return job

    def delete(self, job_id: str, owner: str) -> Job:
        """Forget a job, its sound and its results; returns it as it was.

        Raises `ApiError` 404 where the owner has no such job. Where a crash leaves its sound behind, that goes when the
        folder is opened again.
        """
        job = self.get(job_id, owner)
        self._forget([job_id])
        return job

    def expire(self) -> list[str]:
        """Forget the jobs that ended long enough ago, and old keys; returns the ids."""
        now = self._clock()
        query = "SELECT id FROM jobs WHERE status IN ('succeeded', 'failed') AND expires_at <= ?"
        with self._database.reading() as connection:
            ids = [job_id for (job_id,) in connection.execute(query, (now,))]
        if ids:
            self._forget(ids)
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM orders WHERE expires_at <= ?", (now,))
        return ids

    # --- reading ------------------------------------------------------------------------------------------------------

    def get(self, job_id: str, owner: str) -> Job:
        """A job. Raises `ApiError` 404 where the owner has no such job."""
        with self._database.reading() as connection:
            return _job(connection, self._number(connection, job_id, owner))

    def jobs_of(self, owner: str, limit: int, after: str | None = None) -> tuple[list[Job], bool]:
        """The jobs of an owner, newest first, and whether there are more.

        after : the id of the job before them
        Raises `ApiError` 404 where the owner has no such job.
        """
        with self._database.reading() as connection:
            query = f"SELECT {COLUMNS} FROM jobs WHERE owner = ?"
            values: list[str | int] = [owner]
            if after is not None:
                query += " AND number < ?"
                values.append(self._number(connection, after, owner))
            rows = connection.execute(f"{query} ORDER BY number DESC LIMIT ?", [*values, limit + 1]).fetchall()
        jobs = [_read_job(row) for row in rows[:limit]]
        return jobs, len(rows) > limit

    def counts(self) -> dict[str, int]:
        """How many jobs there are of each status."""
        counts = dict.fromkeys(get_args(Status), 0)
        with self._database.reading() as connection:
            for status, count in connection.execute("SELECT status, count(*) FROM jobs GROUP BY status"):
                counts[status] = count
        return counts

    def backlog(self) -> tuple[int, float]:
        """How many jobs have not ended, and seconds of their sound, as far as it is known."""
        query = "SELECT count(*), total(audio_seconds) FROM jobs WHERE status IN ('queued', 'running')"
        with self._database.reading() as connection:
            return connection.execute(query).fetchone()

    def events(self, job_id: str, after: int) -> tuple[Job | None, list[JobEvent]]:
        """A job, None where it is gone, and what happened to it behind the event of this number; of its progress only
        the last."""
        with self._database.reading() as connection:
            query = "SELECT number, progress_event FROM jobs WHERE id = ?"
            row = connection.execute(query, (job_id,)).fetchone()
            if row is None:
                return None, []
            number, progress_event = row
            job = _job(connection, number)
            query = "SELECT sequence, name, data FROM events WHERE job = ? AND sequence > ?"
            events = [JobEvent(*row) for row in connection.execute(query, (number, after))]
        if progress_event > after and not job.has_ended:
            data = json.dumps({"stage": job.stage, "progress": round(job.progress, 4)})
            events.append(JobEvent(progress_event, "progress", data))
        return job, sorted(events, key=lambda event: event.sequence)

    def last_event(self, job_id: str) -> int:
        """The number of what happened last; 0 where nothing has."""
        with self._database.reading() as connection:
            row = connection.execute("SELECT last_event FROM jobs WHERE id = ?", (job_id,)).fetchone()
        return row[0] if row is not None else 0

    def segments(self, job_id: str) -> list[str]:
        """What was told of the segments of a job, as JSON."""
        query = "SELECT data FROM events JOIN jobs ON number = job WHERE id = ? AND name = 'segment' ORDER BY sequence"
        with self._database.reading() as connection:
            return [data for (data,) in connection.execute(query, (job_id,))]

    def chunks(self, job_id: str, maker: str) -> list[str]:
        """The chunks of a job that this maker has recognised, as of `journal`; none where it has ended, or is gone."""
        query = "SELECT content FROM chunks JOIN jobs ON number = job WHERE id = ? AND maker = ?"
        with self._database.reading() as connection:
            return [content for (content,) in connection.execute(query, (job_id, maker))]

    def known_speakers(self, job_id: str) -> tuple[KnownSpeaker, ...]:
        """The voices that came with a job; none where it has ended, or is gone."""
        query = "SELECT name, sound FROM voices JOIN jobs ON number = job WHERE id = ? AND sound NOTNULL ORDER BY place"
        with self._database.reading() as connection:
            return tuple(KnownSpeaker(json.loads(name), sound) for name, sound in connection.execute(query, (job_id,)))

    def result(self, job_id: str, owner: str, version: Version | None = None) -> tuple[Job, str]:
        """A job and its transcript, JSON of `Transcript.to_dict`.

        version : by default the corrected one, where there is one
        Raises `ApiError` 404 where the owner has no such job or version, 409 where the job has no result.
        """
        with self._database.reading() as connection:
            job = self._succeeded(connection, job_id, owner)
            if version == "corrected" and not job.corrected:
                raise ApiError(404, "not_found", "nobody has corrected it: ask for the first version", "version")
            wanted = version or ("corrected" if job.corrected else "first")
            query = "SELECT transcript FROM results JOIN jobs ON number = job WHERE id = ? AND version = ?"
            (transcript,) = connection.execute(query, (job_id, wanted)).fetchone()
        return job, transcript

    # --- doing them ---------------------------------------------------------------------------------------------------

    def take(self) -> Job | None:
        """The next job, which counts as running from here on; None where none waits."""
        with self._database.transaction() as connection:
            row = connection.execute("SELECT number FROM line WHERE place = 0").fetchone()
            if row is None:
                return None
            connection.execute(
                "UPDATE jobs SET status = 'running', stage = 'audio', started_at = ?, attempts = attempts + 1, "
                "turn = (SELECT max(turn) FROM jobs) + 1 WHERE number = ?",
                (self._clock(), row[0]),
            )
            return _job(connection, row[0])

    def advance(
        self,
        job_id: str,
        stage: str,
        progress: float,
        audio_seconds: float | None,
        segments: Iterable[str] = (),
        chunks: Iterable[str] = (),
        maker: str = "",
    ) -> bool:
        """Note how far a running job is, and what was heard; whether it is still there.

        progress : 0..1; segments : data of events, as JSON; chunks : as of `journal`, recognised by the maker
        """
        with self._database.transaction() as connection:
            number = _running(connection, job_id)
            if number is None:
                return False
            for data in segments:
                _tell(connection, number, "segment", data)
            for content in chunks:
                _insert(connection, "chunks", {"job": number, "maker": maker, "content": content})
            connection.execute(
                "UPDATE jobs SET stage = ?, progress = ?, audio_seconds = coalesce(?, audio_seconds), "
                "last_event = last_event + 1, progress_event = last_event + 1 WHERE number = ?",
                (stage, progress, audio_seconds, number),
            )
            return True

    def finish(self, job_id: str, transcript: Transcript) -> bool:
        """A running job has come to its end; whether it was still there."""
        content = to_json(transcript)
        with self._database.transaction() as connection:
            number = _running(connection, job_id)
            if number is None:
                return False
            query = "INSERT INTO results (job, version, transcript) VALUES (?, 'first', ?)"
            connection.execute(query, (number, content))
            query = "UPDATE jobs SET status = 'succeeded', progress = 1, audio_seconds = ?, revision = 1"
            connection.execute(f"{query} WHERE number = ?", (transcript.duration, number))
            self._end(connection, number, "done", {"id": job_id, "status": "succeeded"})
        self._clear_traces()
        return True

    def fail(self, job_id: str, error: Mapping[str, Any]) -> bool:
        """A running job has failed; whether it was still there. error : as in an answer"""
        with self._database.transaction() as connection:
            number = _running(connection, job_id)
            if number is not None:
                self._fail(connection, number, error)
        self._clear_traces()
        return number is not None

    def give_back(self, job_id: str) -> bool:
        """A running job waits again, as if it had not been begun; whether it was still there."""
        with self._database.transaction() as connection:
            number = _running(connection, job_id)
            if number is not None:
                _queue(connection, number)
                connection.execute("UPDATE jobs SET attempts = attempts - 1 WHERE number = ?", (number,))
            return number is not None

    # --- correcting them ----------------------------------------------------------------------------------------------

    def correct(self, job_id: str, owner: str, transcript: Transcript, revisions: Collection[str] | None = None) -> Job:
        """Keep a corrected version of a result beside the first, instead of any earlier one.

        revisions : those that it may be a correction of; by default any
        Raises as `result`, and `ApiError` 412 where the result is of another revision.
        """
        content = to_json(transcript)
        with self._database.transaction() as connection:
            number = self._to_correct(connection, job_id, owner, revisions)
            query = "INSERT OR REPLACE INTO results (job, version, transcript) VALUES (?, 'corrected', ?)"
            connection.execute(query, (number, content))
            connection.execute("UPDATE jobs SET revision = revision + 1 WHERE number = ?", (number,))
            return _job(connection, number)

    def uncorrect(self, job_id: str, owner: str, revisions: Collection[str] | None = None) -> Job:
        """Drop the corrected version, if there is one. Raises as `correct`."""
        with self._database.transaction() as connection:
            number = self._to_correct(connection, job_id, owner, revisions)
            query = "DELETE FROM results WHERE job = ? AND version = 'corrected'"
            if connection.execute(query, (number,)).rowcount > 0:
                connection.execute("UPDATE jobs SET revision = revision + 1 WHERE number = ?", (number,))
            job = _job(connection, number)
        self._clear_traces()
        return job

    # --- parts of these -----------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Put in order what a process has left that did not end well."""
        there = {path.name for path in self._sounds.iterdir()}
        with self._database.transaction() as connection:
            rows = connection.execute("SELECT number, id, status, attempts FROM jobs").fetchall()
            for number, job_id, status, attempts in rows:
                if status not in ("queued", "running"):
                    continue
                if job_id not in there:
                    self._fail(connection, number, sound_missing().body()["error"])
                elif status == "running" and attempts >= MAX_ATTEMPTS:
                    problem = f"the server ended {attempts} times while this was transcribed, and does not try again"
                    error = ApiError(500, "job_crashed", f"{problem}: is the recording sound?")
                    self._fail(connection, number, error.body()["error"])
                elif status == "running":
                    _queue(connection, number)
        known = {job_id for _, job_id, _, _ in rows}
        self._unlink(there - known)
        self._clear_traces()

    def _earlier(self, connection: sqlite3.Connection, order: Order) -> Job | None:
        """The job that came with the same key. Raises `ApiError` 409 where it was another one."""
        if order.idempotency_key is None:
            return None
        query = "SELECT job, fingerprint FROM orders WHERE owner = ? AND key = ? AND expires_at > ?"
        row = connection.execute(query, (order.owner, _digest(order.idempotency_key), self._clock())).fetchone()
        if row is None:
            return None
        number, fingerprint = row
        if fingerprint != order.fingerprint:
            raise conflict()
        return _job(connection, number)

    def _insert(self, connection: sqlite3.Connection, job_id: str, order: Order) -> int:
        """The row of a job, and of its key; returns the job's number."""
        now = self._clock()
        row = {
            "id": job_id,
            "owner": order.owner,
            "filename": shown(order.filename),
            "model": order.model,
            "options": order.options_json,
            "response_format": order.response_format,
            "audio_seconds": order.audio_seconds,
            "created_at": now,
            "expires_at": now + self._keep,
        }
        number = _insert(connection, "jobs", row)
        for place, speaker in enumerate(order.known_speakers):
            row = {"job": number, "place": place, "name": json.dumps(speaker.name), "sound": speaker.sound}
            _insert(connection, "voices", row)
        if order.idempotency_key is not None:
            key = _digest(order.idempotency_key)
            connection.execute("DELETE FROM orders WHERE owner = ? AND key = ?", (order.owner, key))  # one of old
            row = {
                "owner": order.owner,
                "key": key,
                "fingerprint": order.fingerprint,
                "job": number,
                "expires_at": now + KEEP_KEYS,
            }
            _insert(connection, "orders", row)
        return number

    def _number(self, connection: sqlite3.Connection, job_id: str, owner: str) -> int:
        row = connection.execute("SELECT number FROM jobs WHERE id = ? AND owner = ?", (job_id, owner)).fetchone()
        if row is None:
            raise no_such_job()
        return row[0]

    def _succeeded(self, connection: sqlite3.Connection, job_id: str, owner: str) -> Job:
        """A job that has a result. Raises `ApiError` 404, 409."""
        job = _job(connection, self._number(connection, job_id, owner))
        if job.status == "failed" and job.error is not None:
            raise ApiError(409, "job_failed", f"it has failed: {job.error['message']}", headers=dict(NEVER_AGAIN))
        if job.status != "succeeded":
            message = f"it is {job.status}: ask for the result when it has ended"
            raise ApiError(409, "job_running", message, headers=dict(NEVER_AGAIN))
        return job

    def _to_correct(
        self, connection: sqlite3.Connection, job_id: str, owner: str, revisions: Collection[str] | None
    ) -> int:
        """The number of a job with a result of one of these revisions. Raises `ApiError` 404, 409, 412."""
        job = self._succeeded(connection, job_id, owner)
        if revisions is not None and str(job.revision) not in revisions:
            message = "the result was changed since: load it again, and correct that"
            raise ApiError(412, "revision_conflict", message, "If-Match", {"ETag": job.etag})
        return self._number(connection, job_id, owner)

    def _end(self, connection: sqlite3.Connection, number: int, event: str, data: Mapping[str, Any]) -> None:
        """Note the time, tell the end, and forget voices and chunks, which are not needed any more."""
        now = self._clock()
        query = "UPDATE jobs SET stage = NULL, ended_at = ?, expires_at = ? WHERE number = ?"
        connection.execute(query, (now, now + self._keep, number))
        connection.execute("UPDATE voices SET sound = NULL WHERE job = ?", (number,))
        connection.execute("DELETE FROM chunks WHERE job = ?", (number,))
        _tell(connection, number, event, json.dumps(data))

    def _fail(self, connection: sqlite3.Connection, number: int, error: Any) -> None:
        query = "UPDATE jobs SET status = 'failed', error = ? WHERE number = ?"
        connection.execute(query, (json.dumps(error), number))
        self._end(connection, number, "failed", error)

    def _forget(self, ids: Collection[str]) -> None:
        """Delete rows, sound, and what the log still has of them. A full disk is no obstacle: it is what makes room."""
        try:
            self._delete_rows(ids)
        except ApiError as error:
            if error.status != 507:
                raise
            self._unlink(ids)
            self._delete_rows(ids)
        self._unlink(ids)
        self._clear_traces()

    def _delete_rows(self, ids: Iterable[str]) -> None:
        with self._database.transaction() as connection:
            connection.executemany("DELETE FROM jobs WHERE id = ?", [(job_id,) for job_id in ids])

    def _clear_traces(self) -> None:
        with suppress(ApiError):  # the log has it; what is deleted is deleted, and its traces go the next time
            self._database.clear_traces()

    def _unlink(self, names: Iterable[str]) -> None:
        for name in names:
            path = self._sounds / name
            with serving(path):
                path.unlink(missing_ok=True)


def to_json(transcript: Transcript) -> str:
    """A transcript as it is kept: `Transcript.from_dict(json.loads(…))` gives an equal one."""
    return json.dumps(transcript.to_dict())


def no_such_job() -> ApiError:
    """Also of other owners' jobs: nobody learns that they are there."""
    return ApiError(404, "not_found", "there is no such job: it was deleted, or has expired, or never was")


def sound_missing() -> ApiError:
    """Of a job whose sound somebody has deleted."""
    return ApiError(404, "sound_missing", "the recording is gone from the server's disk: send it again")


def _job(connection: sqlite3.Connection, number: int) -> Job:
    return _read_job(connection.execute(f"SELECT {COLUMNS} FROM jobs WHERE number = ?", (number,)).fetchone())


def _read_job(row: tuple[Any, ...]) -> Job:
    """row : of `COLUMNS`, which are the fields of `Job`"""
    names = [field.name for field in fields(Job)]
    values = dict(zip(names, row, strict=True))
    values["options"] = json.loads(values["options"])
    values["corrected"] = bool(values["corrected"])
    values["known_names"] = tuple(json.loads(values["known_names"] or "[]"))
    if values["error"] is not None:
        values["error"] = json.loads(values["error"])
    return Job(**values)


def _insert(connection: sqlite3.Connection, table: str, row: Mapping[str, Any]) -> int:
    """A new row; returns its number."""
    places = ", ".join(f":{name}" for name in row)
    cursor = connection.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({places})", row)
    return cursor.lastrowid or 0


def _running(connection: sqlite3.Connection, job_id: str) -> int | None:
    """The number of a running job; None where it is gone, or ended."""
    row = connection.execute("SELECT number FROM jobs WHERE id = ? AND status = 'running'", (job_id,)).fetchone()
    return None if row is None else row[0]


def _queue(connection: sqlite3.Connection, number: int) -> None:
    """A job that was begun waits again."""
    query = "UPDATE jobs SET status = 'queued', stage = NULL, progress = 0 WHERE number = ?"
    connection.execute(query, (number,))


def _tell(connection: sqlite3.Connection, number: int, name: str, data: str) -> None:
    """Write an event into the journal. data : as JSON"""
    connection.execute("UPDATE jobs SET last_event = last_event + 1 WHERE number = ?", (number,))
    query = "INSERT INTO events (job, sequence, name, data) SELECT number, last_event, ?, ? FROM jobs WHERE number = ?"
    connection.execute(query, (name, data, number))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def _synchronise(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
