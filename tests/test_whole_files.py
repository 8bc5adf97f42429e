"""Files are there whole or not at all, whatever ends the writing."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

from mlx_speech.whole_files import write_whole


@pytest.mark.parametrize("private", [False, True])
def test_an_interruption_leaves_no_unfinished_file(private: bool, tmp_path: Path) -> None:
    """Wherever in the code it comes."""
    path = tmp_path / "talk.txt"
    for lines in itertools.count():
        path.unlink(missing_ok=True)
        with interrupted_behind(lines, write_whole.__code__) as reached:
            write_whole(path, b"all of it", private=private)
        assert [found.name for found in tmp_path.iterdir()] in ([], [path.name])
        if not reached:
            break
        assert not path.exists() or path.read_bytes() == b"all of it"
    assert path.read_bytes() == b"all of it" and lines > 4
    assert not private or path.stat().st_mode & 0o077 == 0


@contextlib.contextmanager
def interrupted_behind(lines: int, code: CodeType) -> Iterator[list[bool]]:
    """Ctrl-C comes before another line than the first so many of a function; tells whether it came."""
    reached: list[bool] = []
    left = lines

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if frame.f_code is not code or reached:
            return None
        if event == "line":
            if left == 0:
                reached.append(True)
                raise KeyboardInterrupt
            left -= 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield reached
    except KeyboardInterrupt:
        assert reached
    finally:
        sys.settrace(before)
