"""The database of known voices: one SQLite file, which several processes may use at once.

A row a name, and a row an enrolment of it. The file keeps a write-ahead log beside it (-wal, -shm) while somebody uses
it. What is removed is overwritten (secure_delete), and the file and its log are written anew without it (VACUUM).
Sources: sqlite.org, "Write-Ahead Logging", "VACUUM", "PRAGMA secure_delete", "PRAGMA integrity_check".
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np

from mlx_speech.errors import CorruptFile, OptionError, OutputError, SourceError, SourceNotFound, brief, shorten
from mlx_speech.folders import data_folder, expand
from mlx_speech.stages.voiceprints import Voiceprint
from mlx_speech.voices.enrolments import Enrolment, checked_name
from mlx_speech.voices.matching import Voices

FILE_NAME = "speakers.sqlite"
APPLICATION_ID = 0x6D6C7873  # "mlxs": tells the file from other programs' databases
SCHEMA_VERSION = 1
PATIENCE = 10.0  # seconds to wait for another process
READING_PATIENCE = 2.0  # seconds that the log is waited for when traces are cleared away
SCHEMA = f"""
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
CREATE TABLE speakers (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
);
CREATE TABLE enrolments (
    id INTEGER PRIMARY KEY,
    speaker INTEGER NOT NULL REFERENCES speakers (id) ON DELETE CASCADE,
    model TEXT NOT NULL,
    digest BLOB NOT NULL,  -- SHA-256 of the vector, for the index
    vector BLOB NOT NULL,  -- float32, little-endian
    seconds REAL NOT NULL CHECK (seconds > 0),
    day TEXT NOT NULL,  -- ISO 8601
    audio BLOB,  -- 16-bit samples at 16 kHz, little-endian
    UNIQUE (model, digest)  -- no voice twice, nor under two names
);
CREATE INDEX enrolments_of_speaker ON enrolments (speaker);
"""
COLUMNS = "speakers.name, vector, seconds, model, day, audio"
JOINED = "enrolments JOIN speakers ON speakers.id = enrolments.speaker"


@dataclass(frozen=True)
class KnownSpeaker:
    """A name and what is known of its voice.

    seconds : of speech, of all enrolments together
    enrolments : how many there are
    models : the embedding models that they were made with
    last : the day of the last one
    with_audio : how many keep their sound
    """

    name: str
    seconds: float
    enrolments: int
    models: tuple[str, ...]
    last: date
    with_audio: int


class SpeakerStore:
    """Known voices in a file.

    path : by default speakers.sqlite in the user's data folder (`folders.data_folder`); made by the first enrolment

    A file that is there is checked at once. Raises `CorruptFile` where it is damaged or something else, `SourceError`
    where it cannot be read. Every method opens the file for itself, so that any thread may call it.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = data_folder() / FILE_NAME if path is None else expand(path)
        if self.exists:
            self._check()

    @property
    def exists(self) -> bool:
        """Whether the file is there. Raises `SourceError` where that cannot be told."""
        try:
            return self.path.exists()
        except OSError as error:  # a name that is too long, a folder that may not be looked into
            raise SourceError(f"{self.path}: cannot be read ({error.strerror}): choose another file") from error

    # --- reading ------------------------------------------------------------------------------------------------------

    def speakers(self) -> list[KnownSpeaker]:
        """Everybody, by name. Kept sound is not read."""
        if not self.exists:
            return []
        columns = "name, sum(seconds), count(*), group_concat(DISTINCT model), max(day), count(audio)"
        with self._reading() as connection:
            rows = connection.execute(f"SELECT {columns} FROM {JOINED} GROUP BY name ORDER BY name").fetchall()
        speakers: list[KnownSpeaker] = []
        for name, seconds, enrolments, models, day, with_audio in rows:
            try:
                last = date.fromisoformat(day)
            except ValueError as error:
                raise self._damaged(str(error)) from error
            names = tuple(sorted(models.split(",")))
            speakers.append(KnownSpeaker(name, seconds, enrolments, names, last, with_audio))
        return speakers

    def enrolments(self) -> list[Enrolment]:
        """All that is stored, by name, model and vector, in which order it ever came."""
        if not self.exists:
            return []
        with self._reading() as connection:
            rows = connection.execute(f"SELECT {COLUMNS} FROM {JOINED} ORDER BY name, model, vector").fetchall()
        return [self._enrolment(row) for row in rows]

    def voices(self, model: str) -> Voices:
        """The voices as an embedding model has heard them; those of other models are not among them.

        model : its identity (`BaseModel.identity`)
        Raises `SourceNotFound` where there is no file, `CorruptFile` where what it holds cannot be.
        """
        self.check_exists()
        # the table as it lies: by the index of models every row would be looked up by itself
        joined = JOINED.replace("enrolments JOIN", "enrolments NOT INDEXED JOIN")
        query = f"SELECT speakers.name, vector, seconds FROM {joined} WHERE model = ?"
        with self._reading() as connection:
            rows = connection.execute(query, (model,)).fetchall()
        names = [name for name, _, _ in rows]
        seconds = [seconds for _, _, seconds in rows]
        sizes = {len(vector) for _, vector, _ in rows}
        if len(sizes) > 1 or any(size == 0 or size % 4 for size in sizes):
            raise self._damaged(f"vectors of {model} of {sorted(sizes)} bytes")
        size = max(sizes, default=4) // 4
        vectors = np.frombuffer(b"".join(vector for _, vector, _ in rows), dtype="<f4").reshape(-1, size)
        return Voices.of(names, vectors, seconds, model)

    def of_other_models(self, model: str) -> list[str]:
        """Names that this embedding model has never heard: they have to be enrolled again to be recognised with it."""
        query = f"SELECT name FROM {JOINED} GROUP BY name HAVING max(model = ?) = 0 ORDER BY name"
        self.check_exists()
        with self._reading() as connection:
            return [name for (name,) in connection.execute(query, (model,))]

    def check_exists(self) -> None:
        """Raises `SourceNotFound` where there is no file yet."""
        if not self.exists:
            advice = "enrol somebody with mlx_speech speakers add, or give the path of a file that is there"
            raise SourceNotFound(f"{self.path}: there is no such database of speakers: {advice}")

    # --- writing ------------------------------------------------------------------------------------------------------

    def add(self, name: str, voiceprint: Voiceprint, *, audio: bytes | None = None) -> bool:
        """Enrol a voice; False where this very one is enrolled already.

        audio : the sound that it was made of, to keep: 16-bit little-endian samples at 16 kHz
        Raises `OptionError` for a name that cannot be, and for a voice that is enrolled under another one;
        `OutputError` where the file cannot be written.
        """
        return self.add_all([Enrolment.of(name, voiceprint, audio=audio)]) == 1

    def add_all(self, enrolments: Iterable[Enrolment]) -> int:
        """Enrol many, all or none; returns how many of them were new. Raises as `add`."""
        given = list(enrolments)
        if not given:
            return 0
        if not self.exists:
            self._create()
        with self._writing() as connection:
            return sum(self._insert(connection, enrolment) for enrolment in given)

    def remove(self, names: Iterable[str]) -> None:
        """Forget people: names, vectors and sound are gone from the file and from its log.

        Raises `OptionError`, and forgets nobody, where one of them is not known. Warns where another process is reading
        the file: what it looks at goes when it closes the file.
        """
        wanted = [checked_name(name) for name in names]
        self.check_exists()
        with self._writing() as connection:
            speakers = [self._id_of(connection, name) for name in wanted]
            for speaker in speakers:
                connection.execute("DELETE FROM speakers WHERE id = ?", (speaker,))
        self._clear_traces()

    def rename(self, old: str, new: str, *, merge: bool = False) -> None:
        """Call somebody by another name.

        merge : where the new name is known, too, both are one person from now on
        Raises `OptionError` where the old name is not known, or the new one is and they are not to be merged.
        """
        old = checked_name(old)
        new = checked_name(new)
        self.check_exists()
        with self._writing() as connection:
            speaker = self._id_of(connection, old)
            found = connection.execute("SELECT id FROM speakers WHERE name = ?", (new,)).fetchone()
            if old == new:
                return
            if found is None:
                connection.execute("UPDATE speakers SET name = ? WHERE id = ?", (new, speaker))
            elif merge:
                connection.execute("UPDATE enrolments SET speaker = ? WHERE speaker = ?", (found[0], speaker))
                connection.execute("DELETE FROM speakers WHERE id = ?", (speaker,))
            else:
                raise OptionError(f"{brief(new)} is known already: pass merge=True if both are one, or another name")
        self._clear_traces()

    # --- the file -----------------------------------------------------------------------------------------------------

    def _create(self) -> None:
        """Make the file, for the user alone. It appears whole: of two processes that make it, one is the first."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=f".{self.path.name}-", dir=self.path.parent)
            os.close(handle)
            stage = Path(name)
            try:
                with self._explained(), closing(sqlite3.connect(stage, isolation_level=None)) as connection:
                    connection.execute("PRAGMA journal_mode = WAL")
                    connection.executescript(SCHEMA)
                with suppress(FileExistsError):  # another process was the first
                    os.link(stage, self.path)
            finally:
                for suffix in ("", "-wal", "-shm"):
                    stage.with_name(stage.name + suffix).unlink(missing_ok=True)
        except OSError as error:
            if isinstance(error, OutputError):
                raise
            raise OutputError(f"{self.path}: cannot be written ({error.strerror}): choose another file") from error

    def _check(self) -> None:
        """Raises `CorruptFile` for what is no database of speakers, damaged, or of a later version."""
        with self._reading() as connection:
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if application != APPLICATION_ID:
                raise CorruptFile(f"{self.path}: is no database of speakers: choose another file")
            if version != SCHEMA_VERSION:
                raise CorruptFile(f"{self.path}: is of version {version}, not {SCHEMA_VERSION}: update mlx_speech")
            (outcome,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
            if outcome != "ok":
                raise self._damaged(outcome)

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._explained(), closing(self._connect()) as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all that happens inside, or nothing; what is not committed is undone with the connection."""
        with self._explained(), closing(self._connect()) as connection:
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA secure_delete = ON")
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")

    def _connect(self) -> sqlite3.Connection:
        """A connection to the file that is there; where nobody may write beside it, one for reading only."""
        address = self.path.absolute().as_uri()
        connection = sqlite3.connect(f"{address}?mode=rw", uri=True, timeout=PATIENCE, isolation_level=None)
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.OperationalError as error:
            connection.close()
            log = self.path.with_name(f"{self.path.name}-wal")
            if not _is_write_protected(error) or log.exists():
                raise
            return sqlite3.connect(f"{address}?immutable=1", uri=True, isolation_level=None)
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _clear_traces(self) -> None:
        """Write the file anew without what was removed from it, and empty its log."""
        with self._explained(), closing(self._connect()) as connection:
            connection.execute(f"PRAGMA busy_timeout = {round(1000 * READING_PATIENCE)}")
            connection.execute("VACUUM")
            busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            reason = "another process is reading it, and traces of what was removed go when it ends"
            warnings.warn(f"{self.path}: {reason}", stacklevel=3)

    def _insert(self, connection: sqlite3.Connection, enrolment: Enrolment) -> bool:
        """Whether it was new. Raises `OptionError` where the voice is another name's."""
        vector = enrolment.vector.tobytes()
        digest = hashlib.sha256(vector).digest()
        query = f"SELECT speakers.name FROM {JOINED} WHERE model = ? AND digest = ?"
        holder = connection.execute(query, (enrolment.model, digest)).fetchone()
        if holder is not None:
            if holder[0] == enrolment.name:
                return False
            advice = f"rename or remove {brief(holder[0])} first"
            raise OptionError(f"this voice of {brief(enrolment.name)} is known as {brief(holder[0])}: {advice}")
        query = "SELECT length(vector) / 4 FROM enrolments WHERE model = ? LIMIT 1"
        stored = connection.execute(query, (enrolment.model,)).fetchone()
        if stored is not None and stored[0] != enrolment.vector.size:
            sizes = f"{enrolment.vector.size} numbers, and others of {enrolment.model} {stored[0]}"
            raise OptionError(f"the vector of {brief(enrolment.name)} has {sizes}: enrol again with one model")
        connection.execute("INSERT OR IGNORE INTO speakers (name) VALUES (?)", (enrolment.name,))
        row = (
            self._id_of(connection, enrolment.name),
            enrolment.model,
            digest,
            vector,
            enrolment.seconds,
            enrolment.day.isoformat(),
            enrolment.audio,
        )
        columns = "speaker, model, digest, vector, seconds, day, audio"
        connection.execute(f"INSERT INTO enrolments ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        return True

    def _id_of(self, connection: sqlite3.Connection, name: str) -> int:
        """Of a name. Raises `OptionError` where it is not known."""
        found = connection.execute("SELECT id FROM speakers WHERE name = ?", (name,)).fetchone()
        if found is None:
            names = [known for (known,) in connection.execute("SELECT name FROM speakers ORDER BY name")]
            raise OptionError(f"nobody is known as {brief(name)}: choose from {shorten(names) or 'nobody at all'}")
        return found[0]

    def _enrolment(self, row: tuple[str, bytes, float, str, str, bytes | None]) -> Enrolment:
        """Raises `CorruptFile` for a row that cannot be."""
        name, vector, seconds, model, day, audio = row
        try:
            return Enrolment(name, np.frombuffer(vector, dtype="<f4"), seconds, model, date.fromisoformat(day), audio)
        except (OptionError, TypeError, ValueError) as error:
            raise self._damaged(str(error)) from error

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """What SQLite raises inside, as one of this package's errors."""
        try:
            yield
        except sqlite3.OperationalError as error:
            if "locked" in str(error) or "busy" in str(error):
                problem = "another process has been writing to it for long: try again"
                raise OutputError(f"{self.path}: {problem}") from error
            advice = "is it a file that you may write, with room on the disk?"
            raise OutputError(f"{self.path}: cannot be used ({error}): {advice}") from error
        except sqlite3.DatabaseError as error:
            if "not a database" in str(error):
                raise CorruptFile(f"{self.path}: is no database of speakers: choose another file") from error
            raise self._damaged(str(error)) from error

    def _damaged(self, reason: str) -> CorruptFile:
        line = " ".join(reason.split())
        return CorruptFile(f"{self.path}: is damaged ({line}): bring back a copy, or enrol into a new file")


def _is_write_protected(error: sqlite3.OperationalError) -> bool:
    """Whether SQLite has found no place for its log."""
    return "unable to open" in str(error) or "readonly" in str(error)
