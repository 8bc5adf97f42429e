"""The folder of an archive's results.

    OUT/NAME.srt …                        what was asked for, in the recordings' own folders
    OUT/corpus-00000.parquet, .jsonl      the corpus, if it was asked for
    OUT/failures.jsonl                    what has no result, and why
    OUT/.archive/journal.jsonl            what is done
    OUT/.archive/transcripts/NAME.json    every result without loss: all other files are made of these

A transcript's file is what `Transcript.to_dict` gives, and beside it, under "recording", what it is of.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_speech import writers
from mlx_speech.archive.disk import unwritable
from mlx_speech.archive.items import Entry, Failed, Heard, Item
from mlx_speech.errors import CorruptFile
from mlx_speech.json_objects import JsonObject
from mlx_speech.transcript import Transcript
from mlx_speech.whole_files import write_whole

OWN = ".archive"


@dataclass(frozen=True)
class Result:
    """A recording of an archive, and what was heard in it. name : of its results, without ending"""

    name: str
    entry: Entry
    transcript: Transcript


class Folder:
    """Where results are written. out : the folder, which `make` makes"""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.journal = out / OWN / "journal.jsonl"
        self._transcripts = out / OWN / "transcripts"
        self._workshop = out / OWN / "unfinished"

    def make(self) -> None:
        """Make it, if it is not there. Raises `OutputError`."""
        try:
            self._transcripts.mkdir(parents=True, exist_ok=True)
            self._workshop.mkdir(exist_ok=True)
        except OSError as error:
            raise unwritable(self.out, error) from error

    def clear(self) -> None:
        """Remove what a run that was killed left unfinished; call it when no other run can be there."""
        shutil.rmtree(self._workshop, ignore_errors=True)
        self.make()

    def path(self, name: str, kind: str) -> Path:
        """Where a result is. kind : "" is the transcript that all others are made of"""
        if kind == "":
            return self._transcripts / f"{name}.json"
        return self.out / f"{name}.{kind}"

    def write(self, name: str, texts: Mapping[str, str]) -> int:
        """Write a result in its formats, the transcript last; returns that one's size. Raises `OutputError`."""
        size = 0
        for kind in sorted(texts, reverse=True):
            data = texts[kind].encode("utf-8", "replace")
            self.write_file(self.path(name, kind), data)
            size = len(data)
        return size

    def write_file(self, path: Path, data: bytes) -> None:
        """Write a file in the folder, whole or not at all. Raises `OutputError`."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, data, workshop=self._workshop)
        except OSError as error:
            raise unwritable(path, error) from error

    def unfinished(self, name: str) -> Path:
        """Where a large file is written, before it is moved to its place."""
        return self._workshop / name

    def size(self, name: str) -> int | None:
        """Bytes of a transcript's file; None where it is not there."""
        try:
            return self.path(name, "").stat().st_size
        except OSError:
            return None

    def read(self, name: str) -> Result:
        """A result. Raises `CorruptFile`, `OSError`."""
        path = self.path(name, "")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            entry = _read_entry(JsonObject(content).entry("recording"))
            return Result(name, entry, Transcript.from_dict(content))
        except (ValueError, CorruptFile) as error:
            raise CorruptFile(f"{path}: is no transcript of an archive ({error}): is it damaged?") from error

    def write_failures(self, failures: Iterable[tuple[Item, Failed]]) -> Path | None:
        """The list of what failed, a line each; without any there is no such file. Raises `OutputError`."""
        path = self.out / "failures.jsonl"
        lines: list[str] = []
        for item, failed in failures:
            entry = item.entry
            line = {"audio_filepath": entry.source, "offset": entry.offset, "duration": entry.duration}
            line.update(kind=failed.kind, reason=failed.reason, name=failed.name)
            lines.append(json.dumps({name: value for name, value in line.items() if value is not None}))
        if not lines:
            path.unlink(missing_ok=True)
            return None
        self.write_file(path, "".join(f"{line}\n" for line in lines).encode())
        return path


def heard(item: Item, transcript: Transcript, formats: Iterable[str], layout: Mapping[str, Any]) -> Heard:
    """A recording's result, in its formats."""
    entry = item.entry
    content = transcript.to_dict()
    content["recording"] = {
        "name": item.name,
        "source": entry.source,
        "offset": entry.offset,
        "duration": entry.duration,
        "language": entry.language,
        "reference": entry.reference,
        "fields": entry.fields,
    }
    texts = {"": json.dumps(content), **formatted(item.name, transcript, formats, layout)}
    return Heard(item.name, texts, transcript.duration)


def formatted(name: str, transcript: Transcript, formats: Iterable[str], layout: Mapping[str, Any]) -> dict[str, str]:
    """A transcript in formats of `writers.FORMATS`, by their names."""
    return {kind: writers.FORMATS[kind](transcript, uri=name.rpartition("/")[2], **layout) for kind in formats}


def _read_entry(source: JsonObject) -> Entry:
    fields = source.entry("fields")
    values: dict[str, Any] = {}
    for name in fields.names():
        values[name] = fields.value(name)
    return Entry(
        source=source.text("source"),
        offset=source.number("offset") if source.has("offset") else None,
        duration=source.number("duration") if source.has("duration") else None,
        language=source.optional_text("language"),
        reference=source.text("reference", ""),
        fields=values,
    )
