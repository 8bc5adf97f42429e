"""Files where they lie: on a disk, or wherever fsspec reaches (`s3://`, `gs://`, `https://` …)."""

from __future__ import annotations

import glob
import os
import re
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mlx_speech.errors import MissingDependency, OptionError, SourceError, SourceNotFound, install

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*(::|://)", re.IGNORECASE)
_WILD = re.compile(r"[*?\[]")
_PIECES = 1 << 20  # bytes that are copied at once
ASKED_SINGLY = 20  # files of a remote folder; of more than these the folder is listed


@dataclass(frozen=True)
class State:
    """A file as it is now. size : bytes, None where nobody says; stamp : as of `Item`"""

    size: int | None = None
    stamp: str = ""


def is_remote(source: str) -> bool:
    """Whether it is an address for fsspec, and no path."""
    return _ADDRESS.match(source) is not None and not source.lower().startswith("file://")


def is_pattern(source: str) -> bool:
    """Whether it stands for all files that match it: * ? [ ] occur in it, and no file has that very name."""
    if is_remote(source):
        return _WILD.search(source.partition("?")[0] if source.startswith("http") else source) is not None
    return _WILD.search(source) is not None and not Path(source).exists()


def local(source: str) -> str:
    """A path without `file://`."""
    return source[len("file://") :] if source.lower().startswith("file://") else source


class Storage:
    """Reads files by path or address.

    options : keywords of fsspec's file system for addresses, such as `endpoint_url` or `anon` of `s3://`
    """

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        self._options = dict(options or {})

    def read_text(self, source: str) -> str:
        """A text file in UTF-8, with or without a byte order mark. Raises `SourceError`."""
        try:
            if not is_remote(source):
                return Path(local(source)).read_text(encoding="utf-8-sig")
            system, path = self._system(source)
            return system.cat_file(path).decode("utf-8-sig")
        except FileNotFoundError as error:
            raise SourceNotFound(f"{source}: there is no such file: is the path right?") from error
        except OSError as error:
            raise SourceError(f"{source}: cannot be read ({error}): is it there, and may you read it?") from error
        except UnicodeDecodeError as error:
            raise SourceError(f"{source}: is no text in UTF-8: give a manifest") from error

    def is_folder(self, source: str) -> bool:
        """Whether files are in it. Raises `SourceError`."""
        if not is_remote(source):
            return Path(local(source)).is_dir()
        if source.startswith("http"):
            return False  # a server lists nothing that could be relied on
        system, path = self._system(source)
        with _reading(source):
            return system.isdir(path)

    def files_in(self, folder: str) -> list[str]:
        """All files in a folder, and in folders in it, by name. Raises `SourceError`."""
        if not is_remote(folder):
            found: list[str] = []
            for place, _, names in os.walk(local(folder)):
                found += [str(Path(place, name)) for name in names]
            return sorted(found)
        system, path = self._system(folder)
        with _reading(folder):
            return sorted(system.unstrip_protocol(file) for file in system.find(path))

    def matching(self, pattern: str) -> list[str]:
        """All files that match a pattern, by name; ** stands for folders in folders. Raises `SourceError`."""
        if not is_remote(pattern):
            found = glob.glob(local(pattern), recursive=True)  # noqa: PTH207  (the pattern may begin at the root)
            return sorted(path for path in found if Path(path).is_file())
        system, path = self._system(pattern)
        with _reading(pattern):
            return sorted(system.unstrip_protocol(file) for file in system.glob(path))

    def states(self, sources: Iterable[str]) -> dict[str, State]:
        """How files are now; empty states for those that are not there, and of web servers, which are not asked.

        Raises `MissingDependency`, `OptionError`.
        """
        states: dict[str, State] = {}
        folders: dict[str, list[str]] = defaultdict(list)
        protocols: set[str] = set()
        for source in dict.fromkeys(sources):
            states[source] = State()
            if not is_remote(source):
                states[source] = _state_of_path(local(source))
                continue
            protocol = source.partition(":")[0]
            if protocol not in protocols:
                with suppress(OSError):
                    self._system(source)  # raises what every file of this kind would
                protocols.add(protocol)
            if "::" in source:  # a file inside another one has no folder that could be listed
                states.update(self._remote_states(source, [source]))
            elif not source.startswith("http"):
                folders[source.rpartition("/")[0]].append(source)
        for folder, files in folders.items():
            states.update(self._remote_states(folder, files))
        return states

    @contextmanager
    def fetched(self, source: str) -> Iterator[str]:
        """A path to read a file by: its own, or that of a copy, which is deleted at the end of the block.

        Raises what fsspec raises, mostly `OSError`.
        """
        if not is_remote(source):
            yield local(source)
            return
        # some formats are told by the ending
        suffix = PurePosixPath(source.partition("::")[0].partition("?")[0]).suffix[:16]
        with tempfile.NamedTemporaryFile(prefix="mlx_speech-", suffix=suffix) as copy:
            system, path = self._system(source)
            with system.open(path, "rb") as remote:
                shutil.copyfileobj(remote, copy, _PIECES)
            copy.flush()
            yield copy.name

    def _system(self, source: str) -> tuple[Any, str]:
        """fsspec's file system of an address, and the path in it. Raises `MissingDependency`, `OptionError`."""
        advice = f"{install('ray')}; and what fsspec asks for (s3fs, gcsfs, aiohttp)"
        try:
            import fsspec

            return fsspec.core.url_to_fs(source, **self._options)
        except ImportError as error:
            raise MissingDependency(f"{source}: cannot be opened ({error}): {advice}") from error
        except ValueError as error:  # a protocol that there is not
            raise OptionError(f"{source}: cannot be opened ({error}): give a path, s3://, gs:// or https://") from error

    def _remote_states(self, folder: str, files: list[str]) -> dict[str, State]:
        """Of files of a remote folder; empty where it cannot be looked into."""
        states: dict[str, State] = {}
        try:
            system, path = self._system(folder)
            if len(files) > ASKED_SINGLY:
                known = {entry["name"]: entry for entry in system.ls(path, detail=True)}
            else:
                known = {}
                for file in files:
                    _, place = self._system(file)
                    known[place] = _info(system, place)
        except OSError:
            return {}
        for file in files:
            _, place = self._system(file)
            if known.get(place):
                states[file] = _state_of_info(known[place])
        return states


def _info(system: Any, path: str) -> Mapping[str, Any]:
    try:
        return system.info(path)
    except FileNotFoundError:
        return {}


def _state_of_info(info: Mapping[str, Any]) -> State:
    """Of what fsspec says of a file; its time stands under another name in every file system."""
    size = info.get("size")
    times = [info.get(name) for name in ("ETag", "etag", "LastModified", "updated", "mtime", "last_modified")]
    said = next((str(value) for value in times if value is not None), "")
    return State(size, f"{size}-{said}")


def _state_of_path(path: str) -> State:
    try:
        status = Path(path).stat()
    except (OSError, ValueError):  # it is found out when it is heard
        return State()
    return State(status.st_size, f"{status.st_size}-{status.st_mtime_ns}")


@contextmanager
def _reading(source: str) -> Iterator[None]:
    """Raises `SourceError` for what a file system says inside."""
    try:
        yield
    except OSError as error:
        raise SourceError(f"{source}: cannot be read ({error}): is it there, and may you read it?") from error
