"""Jobs in one SQLite file, their sound beside it. What was answered to a client survives a kill of the process.

A job is put down before its sound is moved here, and is queued only afterwards: whatever happens between the two leaves
no job without a sound and no sound without a job. Each change is one transaction, on disk when the call returns.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlx_speech.errors import CorruptFile
from mlx_speech.server.errors import ApiError
from mlx_speech.server.forms import disk_full
from mlx_speech.server.jobs.job import Job, new_id
from mlx_speech.transcript import Transcript

VERSION = 1
FILE_NAME = "jobs.sqlite3"
SOUND_FOLDER = "jobs"
ATTEMPTS = 3  # after so many deaths of the process, the job is thought to be their cause
SECONDS_TO_WAIT = 10.0  # for another process's lock

_SCHEMA = """
CREATE TABLE job (
    id TEXT PRIMARY KEY,
    number INTEGER NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    filename TEXT NOT NULL,
    media_type TEXT NOT NULL,
    model TEXT NOT NULL,
    options TEXT NOT NULL,
    response_format TEXT NOT NULL,
    status TEXT NOT NULL,
    stage TEXT NOT NULL DEFAULT '',
    progress REAL NOT NULL DEFAULT 0,
    audio_seconds REAL NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    created_at REAL NOT NULL,
    expires_at REAL NOT NULL,
    error TEXT,
    result TEXT,
    corrected TEXT,
    revision INTEGER NOT NULL DEFAULT 0,
    idempotency_key TEXT,
    digest TEXT
) STRICT;
CREATE UNIQUE INDEX job_by_key ON job (owner, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE TABLE event (
    job TEXT NOT NULL REFERENCES job (id) ON DELETE CASCADE,
    number INTEGER NOT NULL,
    name TEXT NOT NULL,
    data TEXT NOT NULL,
    PRIMARY KEY (job, number)
) STRICT, WITHOUT ROWID;
"""
_COLUMNS = (
    "id, owner, filename, media_type, model, options, response_format, status, stage, progress, audio_seconds, "
    "attempts, created_at, expires_at, error, corrected IS NOT NULL AS corrected, revision"
)


class JobStore:
    """The jobs of a server. Any thread may call it.

    folder : of the server's data
    keep : seconds that a job is kept
    clock : gives the seconds since 1970

    Raises `CorruptFile` for a file that is damaged or of another version.
    """

    def __init__(self, folder: Path, keep: float, clock: Callable[[], float] = time.time) -> None:
        self._keep = keep
        self._clock = clock
        self._lock = threading.RLock()
        self._path = folder / FILE_NAME
        self._sounds = folder / SOUND_FOLDER
        self._sounds.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._database = self._open()
        self._recover()

    def close(self) -> None:
        """Nothing can be asked afterwards."""
        with self._lock:
            self._database.close()

    # --- what clients do ---------------------------------------------------------------------------------------------

    def add(
        self,
        sound: Path,
        *,
        filename: str,
        media_type: str,
        model: str,
        options: Mapping[str, Any],
        response_format: str,
        owner: str,
        idempotency_key: str | None = None,
        digest: str | None = None,
    ) -> Job:
        """Take over a recording, which is moved from its place, as a new job.

        idempotency_key : the same one again, of the same owner, gives the job that there is, and leaves the sound
        digest : of what was sent; another one with the same key is an error

        Raises `ApiError` 409 for that, and 507 where the disk is full.
        """
        with self._lock:
            known = self._of_key(owner, idempotency_key, digest)
            if known is not None:
                return known
            identity = new_id()
            now = self._clock()
            values = {
                "id": identity,
                "owner": owner,
                "filename": filename,
                "media_type": media_type,
                "model": model,
                "options": json.dumps(dict(options), allow_nan=False),
                "response_format": response_format,
                "status": "arriving",
                "created_at": now,
                "expires_at": now + self._keep,
                "idempotency_key": idempotency_key,
                "digest": digest,
            }
            names = ", ".join(values)
            places = ", ".join(f":{name}" for name in values)
            with self._transaction() as database:
                database.execute(
                    f"INSERT INTO job (number, {names}) "
                    f"VALUES ((SELECT coalesce(max(number), 0) + 1 FROM job), {places})",
                    values,
                )
            try:
                sound.replace(self.sound_of(identity))
            except OSError as error:
                self._drop(identity)
                raise disk_full() from error
            self._set(identity, status="queued")
            return self.job(identity)

    def job(self, identity: str, owner: str | None = None) -> Job:
        """One job. owner : whose it has to be. Raises `ApiError` 404."""
        with self._lock:
            row = self._database.execute(f"SELECT {_COLUMNS} FROM job WHERE id = ?", (identity,)).fetchone()
        if row is None or row["status"] == "arriving" or (owner is not None and row["owner"] != owner):
            raise ApiError(404, "not_found", "there is no such job: it may be over its time, or deleted")
        return _job(row)

    def jobs(self, owner: str, limit: int, after: str | None = None) -> tuple[list[Job], bool]:
        """An owner's newest jobs, and whether there are more. after : the last one of the page before"""
        query = f"SELECT {_COLUMNS} FROM job WHERE owner = :owner AND status != 'arriving'"
        if after is not None:
            query += " AND number < (SELECT number FROM job WHERE id = :after)"
        query += " ORDER BY number DESC LIMIT :limit"
        values = {"owner": owner, "after": after, "limit": limit + 1}
        with self._lock:
            rows = self._database.execute(query, values).fetchall()
        return [_job(row) for row in rows[:limit]], len(rows) > limit

    def position(self, identity: str) -> int | None:
        """How many jobs come before one that is queued; None for others."""
        query = (
            "SELECT (SELECT count(*) FROM job AS other WHERE other.status IN ('queued', 'running') "
            "AND other.number < job.number) FROM job WHERE id = ? AND status = 'queued'"
        )
        with self._lock:
            row = self._database.execute(query, (identity,)).fetchone()
        return None if row is None else int(row[0])

    def result(self, identity: str, first: bool = False) -> Transcript:
        """The transcript of a job that has succeeded: as corrected, or the first one. Raises `ApiError` 409."""
        with self._lock:
            row = self._database.execute(
                "SELECT status, result, corrected FROM job WHERE id = ?", (identity,)
            ).fetchone()
        if row is None or row["result"] is None:
            status = "gone" if row is None else row["status"]
            code = "job_running" if status in ("queued", "running") else f"job_{status}"
            message = f"the job has no result: it is {status}"
            raise ApiError(409, code, message, headers={"x-should-retry": "false"})
        text = row["result"] if first or row["corrected"] is None else row["corrected"]
        return Transcript.from_dict(json.loads(text))

    def correct(self, identity: str, transcript: Transcript | None, revision: int | None = None) -> Job:
        """Keep a corrected transcript beside the first one, or, with None, only the first.

        revision : the one that was corrected, if the caller knows. Raises `ApiError` 409 and, where somebody else has
        corrected it meanwhile, 412.
        """
        with self._lock:
            self.result(identity, first=True)
            job = self.job(identity)
            if revision is not None and revision != job.revision:
                message = "it was changed meanwhile: fetch it again, and put your changes there"
                raise ApiError(412, "revision_conflict", message)
            text = None if transcript is None else _exact(transcript)
            self._set(identity, corrected=text, revision=job.revision + 1)
            return self.job(identity)

    def delete(self, identity: str) -> None:
        """All that there is of a job."""
        with self._lock:
            self._drop(identity)
            self.sound_of(identity).unlink(missing_ok=True)

    def sound_of(self, identity: str) -> Path:
        """Where a job's recording is."""
        return self._sounds / identity

    def events(self, identity: str, after: int = 0) -> list[tuple[int, str, dict[str, Any]]]:
        """What has happened to a job behind event number `after`: number, name, data."""
        query = "SELECT number, name, data FROM event WHERE job = ? AND number > ? ORDER BY number"
        with self._lock:
            rows = self._database.execute(query, (identity, after)).fetchall()
        return [(row["number"], row["name"], json.loads(row["data"])) for row in rows]

    # --- what the runner does ----------------------------------------------------------------------------------------

    def queued(self) -> list[Job]:
        """Jobs that wait, in the order of their coming."""
        with self._lock:
            query = f"SELECT {_COLUMNS} FROM job WHERE status = 'queued' ORDER BY number"
            return [_job(row) for row in self._database.execute(query).fetchall()]

    def start(self, identity: str) -> Job:
        """A job is under way, with a journal that begins anew."""
        with self._lock:
            job = self.job(identity)
            with self._transaction() as database:
                database.execute("DELETE FROM event WHERE job = ?", (identity,))
                database.execute(
                    "UPDATE job SET status = 'running', stage = 'audio', progress = 0, attempts = ? WHERE id = ?",
                    (job.attempts + 1, identity),
                )
            return self.job(identity)

    def put_back(self, identity: str) -> None:
        """A job that was under way waits again: the server stops, and it is not the job's fault."""
        with self._lock, self._transaction() as database:
            database.execute(
                "UPDATE job SET status = 'queued', attempts = attempts - 1 WHERE id = ? AND status = 'running'",
                (identity,),
            )

    def tell(self, identity: str, name: str, data: Mapping[str, Any], **changes: Any) -> None:
        """Something has happened to a job: an event, and columns that change with it. A job that is gone hears
        nothing."""
        with self._lock, self._transaction() as database:
            if database.execute("SELECT 1 FROM job WHERE id = ?", (identity,)).fetchone() is None:
                return
            database.execute(
                "INSERT INTO event VALUES (:job, (SELECT coalesce(max(number), 0) + 1 FROM event WHERE job = :job), "
                ":name, :data)",
                {"job": identity, "name": name, "data": json.dumps(dict(data), allow_nan=False)},
            )
            _update(database, identity, changes)

    def succeed(self, identity: str, transcript: Transcript) -> None:
        """A job is done."""
        self.tell(
            identity,
            "done",
            {"audio_seconds": transcript.duration},
            status="succeeded",
            stage="",
            progress=1.0,
            audio_seconds=transcript.duration,
            result=_exact(transcript),
            revision=1,
        )

    def fail(self, identity: str, error: ApiError) -> None:
        """A job has failed."""
        body = error.body()
        self.tell(identity, "failed", body, status="failed", stage="", error=json.dumps(body["error"]))

    def cancel(self, identity: str) -> None:
        """A job that has not ended is cancelled."""
        with self._lock:
            if not self.job(identity).ended:
                self.tell(identity, "cancelled", {}, status="cancelled", stage="")

    def expired(self) -> list[str]:
        """Jobs whose time is over."""
        with self._lock:
            rows = self._database.execute("SELECT id FROM job WHERE expires_at <= ?", (self._clock(),)).fetchall()
        return [row["id"] for row in rows]

    # --- inside ------------------------------------------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        try:
            database = sqlite3.connect(
                self._path, timeout=SECONDS_TO_WAIT, isolation_level=None, check_same_thread=False
            )
            database.row_factory = sqlite3.Row
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            database.execute("PRAGMA foreign_keys = ON")
            database.execute("PRAGMA secure_delete = ON")
            if database.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
                raise sqlite3.DatabaseError("its check fails")
            version = database.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                database.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
            elif version != VERSION:
                raise CorruptFile(f"{self._path}: is of version {version}: update mlx_speech, or move it away")
        except sqlite3.DatabaseError as error:
            raise CorruptFile(f"{self._path}: is damaged ({error}): move it away to begin anew") from error
        self._path.chmod(0o600)
        return database

    def _recover(self) -> None:
        """After a kill: what was under way is queued again, and halves of jobs are cleared away."""
        with self._lock:
            for row in self._database.execute("SELECT id, status, attempts FROM job").fetchall():
                identity = row["id"]
                if row["status"] == "arriving":
                    self.delete(identity)
                elif row["status"] in ("queued", "running") and not self.sound_of(identity).is_file():
                    self.fail(identity, ApiError(500, "sound_lost", "the job's recording is gone: send it again"))
                elif row["status"] == "running" and row["attempts"] >= ATTEMPTS:
                    message = f"the server ended {ATTEMPTS} times while it heard this recording"
                    self.fail(identity, ApiError(500, "internal_error", message))
                elif row["status"] == "running":
                    self._set(identity, status="queued")
            known = {row["id"] for row in self._database.execute("SELECT id FROM job").fetchall()}
            for sound in self._sounds.iterdir():
                if sound.name not in known:
                    sound.unlink()

    def _of_key(self, owner: str, key: str | None, digest: str | None) -> Job | None:
        """The job that came with this key before. Raises `ApiError` 409 where that was another one."""
        if key is None:
            return None
        query = "SELECT id, digest FROM job WHERE owner = ? AND idempotency_key = ?"
        row = self._database.execute(query, (owner, key)).fetchone()
        if row is None:
            return None
        if row["digest"] != digest:
            message = "this Idempotency-Key came with another request before: take a new one"
            raise ApiError(409, "idempotency_conflict", message, headers={"x-should-retry": "false"})
        return self.job(row["id"])

    def _set(self, identity: str, **changes: Any) -> None:
        with self._transaction() as database:
            _update(database, identity, changes)

    def _drop(self, identity: str) -> None:
        with self._transaction() as database:
            database.execute("DELETE FROM job WHERE id = ?", (identity,))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing. Raises `ApiError` 507 where the disk is full."""
        try:
            with self._database:  # commits, or rolls back
                self._database.execute("BEGIN IMMEDIATE")
                yield self._database
        except sqlite3.OperationalError as error:
            raise disk_full() from error


def _update(database: sqlite3.Connection, identity: str, changes: Mapping[str, Any]) -> None:
    if changes:
        assignments = ", ".join(f"{name} = :{name}" for name in changes)
        database.execute(f"UPDATE job SET {assignments} WHERE id = :id", {**changes, "id": identity})


def _job(row: sqlite3.Row) -> Job:
    values = dict(row)
    values["options"] = json.loads(values["options"])
    values["error"] = None if values["error"] is None else json.loads(values["error"])
    values["corrected"] = bool(values["corrected"])
    return Job(**values)


def _exact(transcript: Transcript) -> str:
    return json.dumps(transcript.to_dict(), ensure_ascii=False)
