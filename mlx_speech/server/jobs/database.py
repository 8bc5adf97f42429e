"""The database of jobs: one SQLite file, which one server uses at a time.

A row a job, its results, its journals of events and of chunks, the voices that came with it, and the clients' keys of
orders. A file beside it (-wal) is the write-ahead log. All changes are transactions that are on the disk when they end
(synchronous = FULL), and what is deleted is overwritten (secure_delete).
Sources: sqlite.org, "Write-Ahead Logging", "PRAGMA locking_mode", "PRAGMA secure_delete", "PRAGMA integrity_check".
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlx_speech.errors import CorruptFile, OutputError
from mlx_speech.server.errors import NEVER_AGAIN, ApiError, shutting_down

log = logging.getLogger("mlx_speech.server")

APPLICATION_ID = 0x6D6C786A  # "mlxj": tells the file from other programs' databases
SCHEMA_VERSION = 3
PATIENCE = 0.5  # seconds to wait for another server that is just ending
FULL = (errno.ENOSPC, errno.EDQUOT)
VOICES = """
CREATE TABLE voices (
    job INTEGER NOT NULL REFERENCES jobs (number) ON DELETE CASCADE,
    place INTEGER NOT NULL,  -- among the known speakers of the job, from 0
    name TEXT NOT NULL,  -- JSON
    sound BLOB,  -- a recording as it was sent; NULL once the job has ended: the name alone is needed then
    UNIQUE (job, place)
);
"""
CHUNKS = """
CREATE TABLE chunks (  -- of jobs that have not ended, as they were recognised
    job INTEGER NOT NULL REFERENCES jobs (number) ON DELETE CASCADE,
    maker TEXT NOT NULL,  -- what has recognised it
    content TEXT NOT NULL  -- JSON
);
CREATE INDEX chunks_of_job ON chunks (job);
"""
SCHEMA = f"""
BEGIN IMMEDIATE;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
{VOICES}
{CHUNKS}
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,  -- in the order in which they came
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    filename TEXT NOT NULL,
    model TEXT NOT NULL,
    options TEXT NOT NULL,  -- JSON
    response_format TEXT NOT NULL,
    status TEXT NOT NULL DEFAULT 'queued' CHECK (status IN ('queued', 'running', 'succeeded', 'failed')),
    stage TEXT,
    progress REAL NOT NULL DEFAULT 0 CHECK (progress BETWEEN 0 AND 1),
    audio_seconds REAL,
    created_at REAL NOT NULL,
    expires_at REAL NOT NULL,
    started_at REAL,
    ended_at REAL,
    attempts INTEGER NOT NULL DEFAULT 0,
    turn INTEGER NOT NULL DEFAULT 0,  -- counts the jobs that were begun; 0 before
    error TEXT,  -- JSON
    revision INTEGER NOT NULL DEFAULT 0,
    last_event INTEGER NOT NULL DEFAULT 0,
    progress_event INTEGER NOT NULL DEFAULT 0  -- the number of the event that told of the progress as it is
);
CREATE INDEX jobs_of_owner ON jobs (owner, turn);
CREATE INDEX jobs_by_status ON jobs (status);
CREATE TABLE results (
    job INTEGER NOT NULL REFERENCES jobs (number) ON DELETE CASCADE,
    version TEXT NOT NULL CHECK (version IN ('first', 'corrected')),
    transcript TEXT NOT NULL,  -- JSON of Transcript.to_dict
    UNIQUE (job, version)
);
CREATE TABLE events (
    job INTEGER NOT NULL REFERENCES jobs (number) ON DELETE CASCADE,
    sequence INTEGER NOT NULL,
    name TEXT NOT NULL,
    data TEXT NOT NULL,  -- JSON
    PRIMARY KEY (job, sequence)
) WITHOUT ROWID;
CREATE TABLE orders (
    owner TEXT NOT NULL,
    key BLOB NOT NULL,  -- SHA-256 of an Idempotency-Key
    fingerprint BLOB NOT NULL,  -- of what came with it
    job INTEGER NOT NULL REFERENCES jobs (number) ON DELETE CASCADE,
    expires_at REAL NOT NULL,
    PRIMARY KEY (owner, key)
) WITHOUT ROWID;
CREATE INDEX orders_of_job ON orders (job);
-- The jobs that wait, in the order in which they will be begun: the owners take turns, the one first whose last turn is
-- longest ago. place : from 0
CREATE VIEW line AS
SELECT number, row_number() OVER (ORDER BY round, last_turn, first_number) - 1 AS place
FROM (
    SELECT
        number,
        row_number() OVER (PARTITION BY owner ORDER BY number) AS round,
        min(number) OVER (PARTITION BY owner) AS first_number,
        (SELECT max(turn) FROM jobs AS others WHERE others.owner = jobs.owner) AS last_turn
    FROM jobs
    WHERE status = 'queued'
);
COMMIT;
"""
ADDED = (VOICES, CHUNKS)  # by version 2, by version 3


class Database:
    """The file, open. Any thread may use it; they take turns.

    path : made where it is not there, for its user alone

    Raises `CorruptFile` for what is damaged, or something else, or of another version; `OutputError` for what cannot
    be opened, or is in another server's hands.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._is_open = True
        with self._opening():
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._connection = sqlite3.connect(path, PATIENCE, isolation_level=None, check_same_thread=False)
            try:
                self._prepare()
            except (sqlite3.Error, CorruptFile):
                self._connection.close()
                raise

    def close(self) -> None:
        """Let go of the file; its log is written into it."""
        with self._lock:
            self._is_open = False
            self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All that happens inside, on the disk at the end; or nothing, where something is raised.

        Raises `ApiError` 503 once it is closed, 507 where the disk is full, and 500 where the file fails otherwise.
        """
        with self._lock, serving(self.path):
            self._check_open()
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._commit()
            finally:
                if self._connection.in_transaction:  # SQLite itself may have undone it
                    self._connection.execute("ROLLBACK")

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The file as it is at one moment. Raises as `transaction`."""
        with self._lock, serving(self.path):
            self._check_open()
            yield self._connection

    def clear_traces(self) -> None:
        """Empty the log, in which what was deleted still stands. Raises as `transaction`."""
        with self.reading() as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    def _check_open(self) -> None:
        if not self._is_open:
            raise shutting_down()

    def _commit(self) -> None:
        self._connection.execute("COMMIT")

    def _prepare(self) -> None:
        execute = self._connection.execute
        execute("PRAGMA locking_mode = EXCLUSIVE")  # a second server would do the jobs once more
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = FULL")
        execute("PRAGMA foreign_keys = ON")
        execute("PRAGMA secure_delete = ON")
        application, version, tables = execute(
            "SELECT application_id, user_version, (SELECT count(*) FROM sqlite_master) "
            "FROM pragma_application_id, pragma_user_version"
        ).fetchone()
        if (application, version, tables) == (0, 0, 0):  # an empty file
            self._connection.executescript(SCHEMA)
            return
        if application != APPLICATION_ID:
            raise self._foreign()
        if not 1 <= version <= SCHEMA_VERSION:
            raise CorruptFile(f"{self.path}: is of version {version}, not {SCHEMA_VERSION}: update mlx_speech")
        (outcome,) = execute("PRAGMA integrity_check(1)").fetchone()
        if outcome != "ok":
            raise self._damaged(outcome)
        if version < SCHEMA_VERSION:
            lacking = "".join(ADDED[version - 1 :])
            self._connection.executescript(
                f"BEGIN IMMEDIATE; PRAGMA user_version = {SCHEMA_VERSION}; {lacking} COMMIT;"
            )
        execute("BEGIN IMMEDIATE")  # nobody else opens the file from here on
        execute("COMMIT")

    @contextmanager
    def _opening(self) -> Iterator[None]:
        """What is raised inside, as an error for whoever starts the server."""
        advice = "is it in a folder that you may write, with room on the disk?"
        try:
            yield
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                problem = "another server uses it"
                raise OutputError(f"{self.path}: {problem}: stop that one, or give another data_dir") from error
            raise OutputError(f"{self.path}: cannot be used ({error}): {advice}") from error
        except sqlite3.DatabaseError as error:
            if "not a database" in str(error):
                raise self._foreign() from error
            raise self._damaged(str(error)) from error
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be used ({error.strerror}): {advice}") from error

    def _foreign(self) -> CorruptFile:
        return CorruptFile(f"{self.path}: is no database of jobs: give another data_dir, or move it away")

    def _damaged(self, reason: str) -> CorruptFile:
        line = " ".join(reason.split())
        advice = "bring back a copy, or move it away, and its jobs are lost"
        return CorruptFile(f"{self.path}: is damaged ({line}): {advice}")


@contextmanager
def serving(path: Path) -> Iterator[None]:
    """What SQLite and the system raise inside, as an answer that tells no paths; the log has more.

    Raises `ApiError` 507 where the disk is full, else 500.
    """
    try:
        yield
    except sqlite3.Error as error:
        raise _answer(path, error, is_full="full" in str(error)) from error
    except OSError as error:
        raise _answer(path, error, is_full=error.errno in FULL) from error


def _answer(path: Path, error: Exception, is_full: bool) -> ApiError:
    log.error("%s: %s", path, error)
    if is_full:
        message = "there is no room on the server's disk: try again later"
        return ApiError(507, "disk_full", message, headers=dict(NEVER_AGAIN))
    message = "the server's jobs cannot be read or written now; its log has more"
    return ApiError(500, "internal_error", message, headers=dict(NEVER_AGAIN))
