"""The corpus of an archive, as it grows: results that are not in a shard yet, and the shards.

A shard is written when enough results are there for it, and what is left at the end of a run makes the last. The
journal says which results are in which: each is in one. A shard with a result that is transcribed again is deleted, and
the others in it are in a later one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from mlx_speech.archive.corpus import CorpusFormat, shard_name, write_shard
from mlx_speech.archive.disk import unwritable
from mlx_speech.archive.journal import Journal
from mlx_speech.archive.results import Folder, Result


class Shards:
    """The shards of an archive. formats : of each, none where no corpus is wanted; files : in a shard"""

    def __init__(self, folder: Folder, journal: Journal, formats: Sequence[CorpusFormat], files: int) -> None:
        self._folder = folder
        self._journal = journal
        self._formats = formats
        self._files = files
        history = journal.history
        done = {result.name for result in history.done.values() if folder.size(result.name) == result.size}
        for number, names in list(history.shards.items()):
            if not done.issuperset(names):
                self._delete(number)
        sharded = {name for names in history.shards.values() for name in names}
        self._waiting = dict.fromkeys(name for name in sorted(done) if name not in sharded)

    def add(self, name: str) -> None:
        """A result is there."""
        self._waiting[name] = None

    def forget(self, names: Collection[str]) -> None:
        """These results will be replaced."""
        gone = set(names)
        for number, held in list(self._journal.history.shards.items()):
            if not gone.isdisjoint(held):
                self._delete(number)
                self._waiting.update(dict.fromkeys(held))
        for name in gone:
            self._waiting.pop(name, None)

    def advance(self) -> None:
        """Write a shard, if enough results are there. Raises `OutputError`."""
        while self._formats and len(self._waiting) >= self._files:
            self._write_next()

    def finish(self) -> None:
        """Write what is left, and formats of earlier shards that are missing. Raises `OutputError`."""
        if not self._formats:
            return
        self.advance()
        if self._waiting:
            self._write_next()
        for number, names in self._journal.history.shards.items():
            self._write(number, names, missing_only=True)

    def _write_next(self) -> None:
        names = list(self._waiting)[: self._files]
        number = self._journal.history.next_shard
        self._write(number, names)
        self._journal.shard(number, names)
        for name in names:
            del self._waiting[name]

    def _write(self, number: int, names: Sequence[str], *, missing_only: bool = False) -> None:
        for kind in self._formats:
            name = shard_name(number, kind)
            target = self._folder.out / name
            if missing_only and target.is_file():
                continue
            unfinished = self._folder.unfinished(name)
            try:
                write_shard(unfinished, kind, self._results(names))
                unfinished.replace(target)
            except OSError as error:
                raise unwritable(target, error) from error

    def _results(self, names: Sequence[str]) -> Iterator[Result]:
        for name in names:
            yield self._folder.read(name)

    def _delete(self, number: int) -> None:
        for kind in ("jsonl", "parquet"):
            (self._folder.out / shard_name(number, kind)).unlink(missing_ok=True)
        self._journal.unshard(number)
