"""Where results go: their formats, their names, and files that are written whole or not at all."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlx_speech import writers
from mlx_speech.cli.screen import Say
from mlx_speech.errors import CorruptFile, OptionError, OutputError, SourceError, SourceNotFound
from mlx_speech.transcript import Transcript
from mlx_speech.whole_files import write_whole
from mlx_speech.writers.cues import Layout
from mlx_speech.writers.stems import shortened

FORMATS = tuple(writers.FORMATS)
ONLY_BY_NAME = ("ctm", "aud", "html")  # not among those of "all"
NAME_MAX = 255  # bytes of a file's name, where the file system does not say


def add_output_dir(group: Any, files: str) -> None:
    """The flag for the folder of results. files : what is written there"""
    group.add_argument("-o", "--output-dir", default=".", help=f"where {files} are written (default: here)")


def add_outputs(group: Any) -> None:
    """The flags for the folder and the formats of transcripts."""
    add_output_dir(group, "files")
    add_formats(group)


def add_formats(group: Any) -> None:
    """The flags for the formats of transcripts."""
    usual = "all, which leaves out ctm, aud and html, and rttm where there are no speakers"
    formats = f"list of {','.join(FORMATS)} (default: {usual})"
    group.add_argument("-f", "--output-format", default="all", help=formats)
    add_embedding(group)


def add_embedding(group: Any) -> None:
    """The flag for pages that hold the sound."""
    help = "the html holds the sound, 22 MB an hour, and not only the recording's place"
    group.add_argument("--embed-audio", action="store_true", default=False, help=help)


def check_layout(layout: Mapping[str, Any]) -> None:
    """Raises `OptionError`, before anything runs. layout : fields of `Layout`, as the user gave them"""
    Layout(**layout)
    if layout.get("max_line_count") and not layout.get("max_line_width"):
        raise OptionError("--max-line-count needs --max-line-width: give both")


def formats_of(text: str, diarized: bool, advice: str = "add --diarize", more: Collection[str] = ()) -> list[str]:
    """The formats of `--output-format`, each once.

    advice : for those who want speakers that are not there
    more : formats that can be asked for beside the usual

    Raises `OptionError`.
    """
    kinds: list[str] = []
    for word in text.split(","):
        kind = word.strip().lower()
        if kind == "all":
            kinds += [usual for usual in FORMATS if usual not in ONLY_BY_NAME and (usual != "rttm" or diarized)]
        else:
            kinds.append(kind)
    for kind in kinds:
        if kind not in FORMATS and kind not in more:
            known = ", ".join([*FORMATS, *more])
            raise OptionError(f"--output-format {text}: {kind!r} is not one of {known}, all")
        if kind == "rttm" and not diarized:
            raise OptionError(f"--output-format rttm holds speakers: {advice}")
    return list(dict.fromkeys(kinds))


def expanded(folder: str) -> Path:
    """A folder, its ~ expanded. Raises `OptionError` where there is no such user."""
    from mlx_speech.folders import expand  # it imports MLX

    return expand(folder)


def make_writable(folder: Path) -> None:
    """Make the folder if it is missing. That it cannot be written is found out before hours of work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror}): choose another --output-dir") from error


def check_paths(files: Mapping[str, Iterable[Path]], kind: str = "the recording") -> None:
    """Raises `OutputError` for results, of each source, that will not be possible to write. kind : what a source is"""
    for source, paths in files.items():
        for path in paths:
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise _unwritable(path, error.strerror) from error
            if stat.S_ISDIR(status.st_mode):
                raise _unwritable(path, "it is a folder")
            if _is_file(path, source):
                raise OutputError(f"{path}: is {kind} itself: choose another --output-dir")


def _unwritable(path: Path, reason: str | None) -> OutputError:
    return OutputError(f"{path}: cannot be written ({reason}): choose another --output-dir")


def _is_file(path: Path, source: str) -> bool:
    """Whether a result that is there already is the recording; one that cannot be looked at is found out later."""
    try:
        return path.samefile(source)
    except OSError:
        return False


def stems_of(audio: list[str], folder: Path, formats: Iterable[str], say: Say) -> dict[str, str]:
    """The names of results without extension, by recording: none is longer than the file system takes.

    Of a longer one as much is left as fits, and a part of its SHA-256 that tells it from others; the user hears of it.
    """
    room = _longest_name(folder) - max(len(f".{kind}") for kind in formats)
    stems = dict(zip(audio, writers.unique_stems(audio), strict=True))
    for source, stem in stems.items():
        short = shortened(stem, room)
        if short != stem:
            stems[source] = short
            say(f"{source}: the name is too long for results, which are called {short}")
    return stems


def _longest_name(folder: Path) -> int:
    """Bytes that a name may have in a folder, which need not be there yet."""
    for place in (folder, *folder.parents):
        try:
            return os.pathconf(place, "PC_NAME_MAX")
        except (OSError, ValueError):  # it is not there; or the system has no such word
            continue
    return NAME_MAX


def listed(stem: Path, formats: Sequence[str]) -> str:
    """The files of a result, in a line for the user."""
    endings = f"{{{','.join(formats)}}}" if len(formats) > 1 else formats[0]
    return f"mlx_speech: {stem}.{endings}"


def read_transcript(source: str) -> Transcript:
    """The transcript in a JSON file; "-" is standard input. Raises `SourceError` in one line."""
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise SourceNotFound(f"{source}: there is no such file: is the path right?") from error
    except OSError as error:
        raise SourceError(f"{source}: cannot be read ({error.strerror}): give a JSON file") from error
    except UnicodeDecodeError as error:
        raise CorruptFile(f"{source}: is no text in UTF-8: give a JSON file") from error
    try:
        return writers.read_json(text)
    except CorruptFile as error:
        raise CorruptFile(f"{source}: {error}") from error


def write_all(
    transcript: Transcript,
    files: Mapping[str, Path],
    uri: str,
    layout: Mapping[str, Any],
    page: Mapping[str, Any] | None = None,
) -> None:
    """Write a transcript into `files`, by format. Raises `OutputError`.

    uri : names the recording
    page : what `to_html` takes beside the layout, as `cli.sound.page_keywords` gives it
    """
    for kind, path in files.items():
        keywords = dict(layout)
        if kind == "html" and page is not None:
            keywords.update(page)
        write(path, writers.FORMATS[kind](transcript, uri=uri, **keywords))


def write(path: Path, text: str, *, private: bool = False) -> None:
    """Write a file, whole or not at all. private : only the user may read it. Raises `OutputError`."""
    try:
        write_whole(path, text.encode("utf-8"), private=private)
    except OSError as error:
        raise _unwritable(path, error.strerror) from error
