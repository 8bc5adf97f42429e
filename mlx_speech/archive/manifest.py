"""The recordings of an archive: of a manifest (NeMo's jsonl, csv, tsv), a folder, a pattern, a file, a list of these.

A line of a manifest has `audio_filepath` (or `audio`, `path`, `file`), and may have `offset` and `duration` in seconds,
`lang`, and `text`. With an `offset`, from there on so much as `duration` says is a recording of its own; without one it
is the whole file, and `duration` only says how long that is. Paths are relative to the manifest.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from numbers import Real
from pathlib import Path, PurePosixPath
from typing import Any

from mlx_speech.archive.items import Entry
from mlx_speech.archive.naming import key_of
from mlx_speech.archive.storage import Storage, is_pattern, is_remote, local
from mlx_speech.errors import CorruptFile, Notice, OptionError, SourceError, brief
from mlx_speech.json_objects import to_plain
from mlx_speech.languages import to_language_code

Source = str | os.PathLike[str] | Mapping[str, Any]

SOUND_SUFFIXES = frozenset(
    ".wav .flac .mp3 .m4a .m4b .aac .ogg .oga .opus .wma .aif .aiff .caf .amr .au .mka .ac3 "
    ".mp4 .mkv .mov .webm .avi .m4v .mpg .mpeg .ts .wmv .3gp .flv".split()
)
MANIFEST_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
PATH_NAMES = ("audio_filepath", "audio", "path", "file")  # NeMo's name of the column first
LANGUAGE_NAMES = ("lang", "language")
LONGEST_FIELD = 1 << 24  # characters of a field of a table
TAKEN = {*PATH_NAMES, *LANGUAGE_NAMES, "offset", "duration", "text"}


def read_manifest(manifest: Source | Iterable[Source], storage: Storage) -> list[Entry]:
    """Its recordings, each once, in its order.

    manifest : a file of lines, a folder, a pattern, a recording, or a list of these and of lines as mappings
    Raises `SourceError`, `CorruptFile` for a line that says no recording, `OptionError` where there is none at all.
    """
    sources = [manifest] if isinstance(manifest, (str, os.PathLike, Mapping)) else list(manifest)
    entries: list[Entry] = []
    for source in sources:
        if isinstance(source, Mapping):
            entries.append(_entry(source, "", "the manifest"))
        else:
            entries += _entries_of(os.fspath(source), storage)
    unique: dict[str, Entry] = {}
    for entry in entries:
        unique.setdefault(key_of(entry), entry)
    if not unique:
        raise OptionError(f"no recording in {brief(manifest)}: give sound files, or a manifest of them")
    return list(unique.values())


def _entries_of(source: str, storage: Storage) -> list[Entry]:
    """What a path or an address stands for."""
    if is_pattern(source):
        found = storage.matching(source)
        if not found:
            raise SourceError(f"{source}: nothing matches it: is the pattern right?")
        return _sounds(found, source)
    if PurePosixPath(source.lower()).suffix in MANIFEST_SUFFIXES:
        return _lines_of(source, storage)
    if storage.is_folder(source):
        return _sounds(storage.files_in(source), source)
    return [Entry(_absolute(source, ""))]


def _sounds(files: list[str], place: str) -> list[Entry]:
    """The recordings among files; a notice says how many there are beside them."""
    sounds = [file for file in files if PurePosixPath(file.lower()).suffix in SOUND_SUFFIXES]
    others = len(files) - len(sounds)
    if others:
        said = f"{place}: left out, since their names are not of sound: {others} of {len(files)} files"
        warnings.warn(said, Notice, stacklevel=2)
    return [Entry(_absolute(file, "")) for file in sounds]


def _lines_of(source: str, storage: Storage) -> list[Entry]:
    """The entries of a manifest."""
    text = storage.read_text(source)
    folder = source.rpartition("/")[0] if is_remote(source) else str(Path(local(source)).absolute().parent)
    entries: list[Entry] = []
    for place, line in _objects(source, text):
        try:
            entries.append(_entry(line, folder, place))
        except (CorruptFile, OptionError) as error:
            raise CorruptFile(f"{source}: {error}") from error
    return entries


def _objects(source: str, text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The lines of a manifest as objects, each with its place for messages."""
    suffix = PurePosixPath(source.lower()).suffix
    if suffix in (".csv", ".tsv"):
        yield from _rows(source, text, in_tabs=suffix == ".tsv")
        return
    for number, line in enumerate(text.split("\n"), start=1):  # in JSON other ends of lines stand for themselves
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except ValueError as error:
            advice = "a manifest has an object of JSON a line"
            raise CorruptFile(f"{source}: line {number} is no JSON ({error}): {advice}") from error
        yield f"line {number}", content


def _rows(source: str, text: str, *, in_tabs: bool) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The lines of a table by the names in its first, each with its place for messages.

    in_tabs : tabs between fields, and a line is a row; else commas, and quotation marks may hold lines together
    """
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_FIELD))
    # by itself, a line of tabs cannot hold those behind it with a quotation mark that is not closed
    pieces = [[line] for line in text.split("\n")] if in_tabs else [io.StringIO(text)]
    names: list[str] | None = None
    lines_before = 0
    for piece in pieces:
        rows = csv.reader(piece, delimiter="\t" if in_tabs else ",")
        try:
            for row in rows:
                if row and names is None:
                    names = row
                elif row and names is not None:
                    given = {name: value for name, value in zip(names, row, strict=False) if value}
                    yield f"line {lines_before + rows.line_num}", given
        except csv.Error as error:
            place = f"line {lines_before + rows.line_num}"
            raise CorruptFile(f"{source}: {place} is none of a table ({error}): is it damaged?") from error
        lines_before += rows.line_num


def _entry(line: object, folder: str, place: str) -> Entry:
    """A line as an entry. folder : that paths are relative to. Raises `CorruptFile`, `OptionError` for its language."""
    if not isinstance(line, Mapping):
        raise CorruptFile(f"{place} is {brief(line)}: expected an object")
    path = next((line[name] for name in PATH_NAMES if line.get(name)), None)
    if not isinstance(path, (str, os.PathLike)):
        raise CorruptFile(f"{place} has no audio_filepath: every line needs one")
    language = next((line[name] for name in LANGUAGE_NAMES if line.get(name)), None)
    text = line.get("text")
    return Entry(
        source=_absolute(os.fspath(path), folder),
        offset=_seconds(line, "offset", place),
        duration=_seconds(line, "duration", place),
        language=to_language_code(language) if isinstance(language, str) else None,
        reference=text if isinstance(text, str) else "",
        fields={str(name): _plain(value, name, place) for name, value in line.items() if name not in TAKEN},
    )


def _plain(value: object, name: object, place: str) -> Any:
    try:
        return to_plain(value)
    except TypeError as error:
        raise CorruptFile(f"{place}: {name} is {brief(value)}: give what JSON has") from error


def _seconds(line: Mapping[str, Any], name: str, place: str) -> float | None:
    value = line.get(name)
    if value is None:
        return None
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            value = None
    if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value) or value < 0:
        raise CorruptFile(f"{place}: {name} is {brief(line[name])}: give seconds")
    return float(value)


def _absolute(source: str, folder: str) -> str:
    """A path or address that does not depend on where the command is called."""
    if is_remote(source):
        return source
    path = local(source)
    if is_remote(folder):
        return path if path.startswith("/") else f"{folder}/{path}"
    return os.path.abspath(Path(folder, path).expanduser() if path.startswith("~") else Path(folder, path))  # noqa: PTH100
