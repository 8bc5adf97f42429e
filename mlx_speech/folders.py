"""Where files are written: the user's paths, the cache of models, and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import glob
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mlx_speech.checkpoint import is_converted
from mlx_speech.errors import CorruptFile, OptionError, OutputError, brief

HOST = re.sub(r"[^A-Za-z0-9]", "", platform.node())[:32]
MAX_PID_DIGITS = 9
REPLACED = ".old"  # behind the name of a stage: what it takes the place of


def expand(path: str | os.PathLike[str]) -> Path:
    """`path` with its ~ expanded. Raises `OptionError` where there is no such user, or where the user has no home."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise OptionError(f"{path}: there is no such home folder: write it without ~") from error


def inside(folder: Path, entry: str, file: Path) -> Path:
    """`entry`, a relative path that `file` names, inside `folder`.

    Raises `CorruptFile` where it points elsewhere, in the spelling of any system.
    """
    pure = PurePosixPath(entry.replace("\\", "/"))
    if not entry or pure.is_absolute() or ".." in pure.parts or ":" in entry or "\0" in entry:
        raise CorruptFile(f"{file}: refers to {brief(entry)}, outside its own folder: refused")
    return folder / pure


def cache_folder() -> Path:
    """Where converted originals are kept. Raises `OptionError` where the user has no home folder to keep them in."""
    mac = "Library/Caches"
    return _user_folder("MLX_SPEECH_CACHE", "XDG_CACHE_HOME", mac, other=".cache", kept="converted models")


def data_folder() -> Path:
    """Where what the user has made is kept, such as known voices. Raises `OptionError` where the user has no home."""
    mac = "Library/Application Support"
    return _user_folder("MLX_SPEECH_DATA", "XDG_DATA_HOME", mac, other=".local/share", kept="known voices")


def _user_folder(own: str, xdg: str, mac: str, *, other: str, kept: str) -> Path:
    """A folder of the user's: where a variable of the environment says, or at its place in the home folder.

    own, xdg : the variables: this package's, and everybody's, of which macOS knows nothing
    mac, other : the place in the home folder, on macOS and elsewhere
    kept : what is kept there, for the message
    """
    if os.environ.get(own):
        return expand(os.environ[own])
    if sys.platform != "darwin" and os.environ.get(xdg):
        return Path(os.environ[xdg]) / "mlx_speech"
    try:
        home = Path.home()
    except RuntimeError as error:
        advice = f"set HOME, or {own} to a folder that can be written"
        raise OptionError(f"no home folder to keep {kept} in: {advice}") from error
    place = mac if sys.platform == "darwin" else other
    return home / place / "mlx_speech"


@contextlib.contextmanager
def staged(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """A new folder beside `target` that becomes `target` when the block ends well, and vanishes when it does not.

    Raises `OutputError` where `target` exists and is not to be overwritten, or is no converted model, or where the
    place cannot be written.
    """
    check_target(target, overwrite)
    new_parents = [folder for folder in target.parents if not folder.exists()]  # innermost first
    stage: Path | None = None
    replaced: Path | None = None  # what was at `target`, moved aside
    try:
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            _sweep(target)
            stage = Path(tempfile.mkdtemp(prefix=f"{_prefix(target)}{os.getpid()}-", dir=target.parent))
            yield stage
            stage.chmod(0o755)
            check_target(target, overwrite)
            if target.exists():
                replaced = target.rename(stage.with_name(f"{stage.name}{REPLACED}"))
            stage.rename(target)
    finally:
        if replaced is not None and not target.exists():
            replaced.rename(target)
        for leftover in (stage, replaced):
            if leftover is not None:
                shutil.rmtree(leftover, ignore_errors=True)
        if not target.exists():
            for folder in new_parents:
                with contextlib.suppress(OSError):  # not made after all, or another process has put something in
                    folder.rmdir()


@contextlib.contextmanager
def writing(target: Path, advice: str = "choose another mlx_path or make room") -> Iterator[None]:
    """Raises `OutputError` for what the system says inside."""
    try:
        yield
    except OSError as error:
        if isinstance(error, OutputError) or not error.strerror:
            raise
        raise OutputError(f"{target}: cannot be written ({error.strerror}): {advice}") from error


def check_target(target: Path, overwrite: bool) -> None:
    """Raises `OutputError` where `target` must not be replaced."""
    with writing(target):  # a name that is too long, a folder that may not be looked into
        if not target.exists() and not target.is_symlink():
            return
    if not overwrite:
        raise OutputError(f"{target}: exists already: choose another mlx_path, or pass overwrite=True")
    if target.is_symlink() or not target.is_dir() or not is_converted(target):
        raise OutputError(f"{target}: is not a converted model, so it is not overwritten: choose another mlx_path")


def _prefix(target: Path) -> str:
    """What the names of this host's stages beside `target` begin with; the number of their process follows."""
    return f".{target.name}.partial-{HOST}-"  # another host's processes cannot be asked


def _sweep(target: Path) -> None:
    """Clear away what processes that were killed left beside `target`; a model they had moved aside comes back."""
    for leftover in target.parent.glob(f"{glob.escape(_prefix(target))}*"):
        pid = leftover.name.removeprefix(_prefix(target)).split("-")[0]
        if not pid.isdecimal() or len(pid) > MAX_PID_DIGITS or _alive(int(pid)):
            continue
        if leftover.suffix == REPLACED and not target.exists():
            leftover.rename(target)
        else:
            shutil.rmtree(leftover, ignore_errors=True)


def _alive(pid: int) -> bool:
    """Whether there is a process of that number on this host."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)  # another user's
    return True
