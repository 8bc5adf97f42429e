"""Names of results: no two alike, the same in every run, and in folders as the recordings are."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from mlx_speech.archive.items import Entry
from mlx_speech.archive.storage import is_remote
from mlx_speech.writers.stems import folded, shortened

LONGEST = 200  # bytes of a part of a name: file systems take 255, and an ending and a piece's times follow
_UNSAFE = re.compile(r'[\x00-\x1f:*?"<>|\\]+')  # what some file system does not take


def key_of(entry: Entry) -> str:
    """What tells an entry from all others of its archive."""
    if entry.offset is None:
        return entry.source
    return f"{entry.source}#{_piece(entry)}"


def names_of(entries: Sequence[Entry], known: Mapping[str, str]) -> dict[str, str]:
    """The name of each entry, by its key.

    known : names that were given before, by key; who has one keeps it

    A name is the path behind what all have in common, without its ending: with the ending where that makes a
    difference ("meeting-mp3"), else with some digits of its SHA-256.
    """
    names = {key: known[key] for entry in entries if (key := key_of(entry)) in known}
    taken = {folded(name) for name in known.values()}
    left = [entry for entry in entries if key_of(entry) not in names]
    depth = _common(_parts(entry.source) for entry in entries)
    plain = {key_of(entry): _name(entry, depth, with_suffix=False) for entry in left}
    counts: dict[str, int] = {}
    for name in plain.values():
        counts[folded(name)] = counts.get(folded(name), 0) + 1
    for entry in left:
        key = key_of(entry)
        name = plain[key]
        if counts[folded(name)] > 1 or folded(name) in taken:
            name = _name(entry, depth, with_suffix=True)
        if folded(name) in taken:
            name = f"{name}-{hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"
        names[key] = name
        taken.add(folded(name))
    return names


def _name(entry: Entry, depth: int, *, with_suffix: bool) -> str:
    """depth : how many parts of the path are common to all, and left out"""
    *folders, last = _parts(entry.source)[depth:]
    path = PurePosixPath(last)
    stem = path.stem
    if with_suffix and path.suffix:
        stem = f"{stem}-{path.suffix[1:]}"
    stem = shortened(stem, LONGEST)
    if entry.offset is not None:
        stem = f"{stem}-{_piece(entry)}"
    return "/".join([*(shortened(folder, LONGEST) for folder in folders), stem])


def _piece(entry: Entry) -> str:
    """The times of a piece, in seconds."""
    start = entry.offset or 0.0
    end = "end" if entry.duration is None else f"{start + entry.duration:.3f}"
    return f"{start:.3f}-{end}"


def _parts(source: str) -> list[str]:
    """Folders and file of a path or an address, in letters that every file system takes."""
    if is_remote(source) and source.startswith("http"):
        source = source.partition("?")[0]
    parts: list[str] = []
    for part in source.replace("::", "/").split("/"):
        safe = _UNSAFE.sub("_", part).strip()
        if safe.startswith("."):  # hidden files, and the folder of the archive's own
            safe = f"_{safe[1:]}"
        if safe not in ("", "_"):
            parts.append(safe)
    return parts or ["audio"]


def _common(paths: Iterable[list[str]]) -> int:
    """How many folders all paths begin with."""
    shared: list[str] | None = None
    for path in paths:
        folders = path[:-1]
        if shared is None:
            shared = folders
        length = 0
        while length < min(len(shared), len(folders)) and shared[length] == folders[length]:
            length += 1
        shared = shared[:length]
    return len(shared or [])
