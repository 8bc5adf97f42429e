"""The journal of an archive: what is done, what has failed, and which files have ended their process.

A record is a line of JSON, appended by the one process that runs the archive and forced onto the disk twice a second.
A line that breaks off at the end was being written when the process was killed, and counts as not there.

What a record says of a file holds for the file as it was: with another stamp it is transcribed again.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

from mlx_speech.archive.disk import ADVICE, unwritable
from mlx_speech.archive.items import Failed, Heard, Item
from mlx_speech.archive.naming import key_of
from mlx_speech.errors import CorruptFile, OutputError, brief
from mlx_speech.version import __version__

if TYPE_CHECKING:
    from typing_extensions import Self

FORMAT_VERSION = 1
SYNC_SECONDS = 0.5  # between two times that the disk is told to keep what was written


@dataclass(frozen=True)
class Done:
    """A recording that has its result.

    size : of the transcript's file, in bytes; seconds : of sound
    formats : in which it is written, beside the transcript
    """

    name: str
    stamp: str
    size: int
    seconds: float
    formats: tuple[str, ...]


@dataclass
class History:
    """What a journal says. All by the key of an entry, but shards by their number.

    settings : those that its results were made with; None of a journal that has no result
    names : of results
    deaths : of processes that a file was under way in, alone or with others
    shards : names of the results in each shard of the corpus
    """

    settings: Mapping[str, Any] | None = None
    names: dict[str, str] = field(default_factory=dict)
    done: dict[str, Done] = field(default_factory=dict)
    failed: dict[str, tuple[str, Failed]] = field(default_factory=dict)  # stamp, and why
    deaths: dict[str, int] = field(default_factory=dict)
    shards: dict[int, tuple[str, ...]] = field(default_factory=dict)
    next_shard: int = 0

    def add(self, record: Mapping[str, Any]) -> None:
        """A record, behind those before it. Raises `KeyError`, `TypeError` or `ValueError` for one that is none."""
        match record["type"]:
            case "run":
                if record["format_version"] != FORMAT_VERSION:
                    raise ValueError(f"format_version {record['format_version']}: update mlx_speech to read it")
                self.settings = record["settings"]
                if record["again"]:
                    self.done.clear()
                    self.failed.clear()
                    self.deaths.clear()
            case "done":
                key = record["key"]
                self.names[key] = record["name"]
                formats = tuple(record.get("formats", ()))
                self.done[key] = Done(record["name"], record["stamp"], record["size"], record["seconds"], formats)
                self.failed.pop(key, None)
                self.deaths.pop(key, None)
            case "formats":
                key = record["key"]
                self.done[key] = replace(self.done[key], formats=tuple(record["formats"]))
            case "failed":
                key = record["key"]
                self.names[key] = record["name"]
                self.failed[key] = (record["stamp"], Failed(record["name"], record["kind"], record["reason"]))
            case "death":
                self.deaths[record["key"]] = self.deaths.get(record["key"], 0) + 1
            case "shard":
                self.shards[record["number"]] = tuple(record["names"])
                self.next_shard = record["number"] + 1
            case "unshard":
                del self.shards[record["number"]]
            case kind:
                raise ValueError(f"a record of type {brief(kind)}")


class Journal:
    """An open journal, which no other process can have at the same time.

    path : of the file, which is made where it is missing
    Raises `OutputError` where it cannot be written, `CorruptFile` where it is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = _locked(path)
        self._synced = time.monotonic()
        self._unsynced = False
        try:
            self.history = _read(path)
            os.ftruncate(self._file.fileno(), _whole_lines(path))
        except (CorruptFile, OSError):
            self._file.close()
            raise

    def begin(self, settings: Mapping[str, Any], *, again: bool) -> None:
        """A run begins. again : what was done before does not count"""
        record = {
            "type": "run",
            "format_version": FORMAT_VERSION,
            "version": __version__,
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "settings": settings,
            "again": again,
        }
        self._add(record)

    def done(self, item: Item, heard: Heard, size: int) -> None:
        """A result is written. size : of the transcript's file, in bytes"""
        formats = sorted(kind for kind in heard.texts if kind)
        self._add({"type": "done", **_of(item), "size": size, "seconds": round(heard.seconds, 3), "formats": formats})

    def formats(self, item: Item, formats: Iterable[str]) -> None:
        """A result is written in these formats by now."""
        self._add({"type": "formats", "key": key_of(item.entry), "formats": sorted(formats)})

    def failed(self, item: Item, failed: Failed) -> None:
        """A recording has no result, and is not tried again by this run."""
        self._add({"type": "failed", **_of(item), "kind": failed.kind, "reason": failed.reason})

    def death(self, item: Item) -> None:
        """A process ended while the recording was under way in it."""
        self._add({"type": "death", "key": key_of(item.entry)})

    def shard(self, number: int, names: list[str]) -> None:
        """A shard of the corpus is written."""
        self._add({"type": "shard", "number": number, "names": names})

    def unshard(self, number: int) -> None:
        """A shard is deleted."""
        self._add({"type": "unshard", "number": number})

    def sync(self, *, now: bool = False) -> None:
        """Have the disk keep what was written, where that is due, or `now`. Raises `OutputError`."""
        if not self._unsynced or not (now or time.monotonic() - self._synced >= SYNC_SECONDS):
            return
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise unwritable(self.path, error) from error
        self._unsynced = False
        self._synced = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.sync(now=True)
        finally:
            self._file.close()

    def _add(self, record: Mapping[str, Any]) -> None:
        line = json.dumps(record).encode() + b"\n"
        try:
            written = self._file.write(line)
        except OSError as error:
            raise unwritable(self.path, error) from error
        if written != len(line):
            raise OutputError(f"{self.path}: cannot be written (the disk is full): {ADVICE}")
        self.history.add(record)
        self._unsynced = True
        self.sync()


def read_journal(path: Path) -> History:
    """What the journal of an archive says, also while it is written. Raises `CorruptFile`, `OSError`."""
    return _read(path)


def _of(item: Item) -> dict[str, Any]:
    return {"name": item.name, "key": key_of(item.entry), "stamp": item.stamp}


def _read(path: Path) -> History:
    history = History()
    for number, line in enumerate(_lines(path), start=1):
        try:
            history.add(json.loads(line))
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptFile(f"{path}: line {number} is none of a journal ({error}): is it damaged?") from error
    return history


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line


def _whole_lines(path: Path) -> int:
    """Bytes of a file up to its last end of line."""
    return sum(len(line) for line in _lines(path))


def _locked(path: Path) -> BinaryIO:
    """The file, opened to append to and this process's alone. Raises `OutputError`."""
    try:
        file = path.open("ab", buffering=0)
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise OutputError(f"{path.parent}: another run writes there: wait for it, or choose another folder") from error
    except OSError as error:
        file.close()
        raise unwritable(path, error) from error
    return file
