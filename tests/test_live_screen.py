"""The live screen in a terminal: whatever happens, it shows all finals and under them the present block."""

from __future__ import annotations

import io
import os
import random
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import absent
from scripted_live import final, partial, speakers
from terminal_emulator import Terminal

from mlx_speech.cli.live_screen import LiveScreen, harmless, is_live, rows_of, width_of
from mlx_speech.live.events import Ended, Final, Gap, Lag, Partial
from mlx_speech.transcript import Transcript, Word

TESTS = Path(__file__).parent
WORDS = ("so", "loud", "horses", "日本語の", "はい", "caf\u00e9", "e\u0301te\u0301", "한국어", "🙂", "شكرا", "x" * 30)


class Clock:
    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


def screen_on(terminal: Terminal, clock: Clock, with_speakers: bool = False) -> LiveScreen:
    return LiveScreen(
        terminal,  # pyright: ignore[reportArgumentType]
        live=True,
        with_speakers=with_speakers,
        size=lambda: (terminal.columns, terminal.height),
        clock=clock,
    )


def block_of(text: str, columns: int, rows: int) -> list[str]:
    """Rows of what fits into a window without its last row, from the end."""
    starts = rows_of(text, columns)
    lines = [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]
    if len(lines) < rows:
        return lines
    lines = lines[len(lines) - max(1, rows - 1) :]
    place = 1
    while place < len(lines[0]) and width_of(lines[0][place]) == 0:
        place += 1
    return [f"…{lines[0][place:]}", *lines[1:]]


@pytest.mark.parametrize("seed", range(40))
def test_the_screen_has_all_finals_and_the_present_block(seed: int) -> None:
    numbers = random.Random(seed)
    clock = Clock()
    terminal = Terminal(numbers.randint(8, 60), numbers.randint(3, 12), reflow=seed % 4 != 0)
    screen = screen_on(terminal, clock)
    finals: list[str] = []
    text = ""
    for chunk in range(60):
        clock.time += numbers.choice((0.0, 0.03, 0.2))
        action = numbers.random()
        if action < 0.25:
            words = " ".join(numbers.choices(WORDS, k=numbers.randint(1, 12)))
            screen.show(final(chunk, 2.0, words))
            finals.append(f"[00:02.0] {words}")
            text = ""
        elif action < 0.75:
            count = numbers.randint(1, 40)
            text = " ".join(numbers.choices(WORDS, k=count))
            screen.show(partial(chunk, text, numbers.randint(0, count)))
        elif action < 0.9:
            # a terminal that does not break lines anew loses what does not fit any more, finals too
            columns = numbers.randint(8, 60) if terminal.reflow else terminal.columns
            # where a narrower window makes the block higher than itself, its beginning scrolls away for good
            rows = block_of(text, terminal.columns, terminal.height)
            if sum(len(rows_of(row, columns)) for row in rows) <= terminal.height:
                terminal.resize(columns, numbers.randint(3, 14))
            screen.tick()
        else:
            with screen.above():
                terminal.write("a warning\n")
            finals.append("a warning")
        clock.time += 0.11
        screen.tick()
        expected = finals + (block_of(text, terminal.columns, terminal.height) if text else [])
        assert terminal.lines() == [line.rstrip() for line in expected], (seed, chunk)
        assert not terminal.cursor_shown
    screen.close()
    assert terminal.lines() == [line.rstrip() for line in finals] and terminal.cursor_shown
    assert terminal.column == 0 and terminal.style == ""


def test_a_window_of_less_height_shows_the_end_of_the_block() -> None:
    clock = Clock()
    terminal = Terminal(10, 8)
    screen = screen_on(terminal, clock)
    screen.show(partial(0, "0123456789" * 6 + "abc", 0))
    terminal.resize(10, 4)
    clock.time = 1.0
    screen.tick()
    assert terminal.lines() == ["…123456789", "0123456789", "abc"]


def test_firm_words_are_plain_and_others_grey() -> None:
    terminal = Terminal(80, 10)
    screen = screen_on(terminal, Clock())
    screen.show(partial(0, "firm words and others", 2))
    letters = "".join(letter for letter, style in terminal.styled() if style == "")
    grey = "".join(letter for letter, style in terminal.styled() if style == "90")
    assert (letters, grey) == ("firm words", " and others")


def test_speakers_have_colours_and_are_provisional_for_a_while() -> None:
    clock = Clock()
    terminal = Terminal(80, 10)
    screen = screen_on(terminal, clock, with_speakers=True)
    screen.show(final(0, 0.0, "who is it"))
    screen.show(speakers(4.0, [(0.0, 4.0, None, "SPEAKER_00"), (4.0, 5.0, None, "SPEAKER_01")], 4.0))
    screen.show(final(1, 2.0, "me", speaker="SPEAKER_00"))
    screen.show(final(2, 4.0, "and me", speaker="SPEAKER_01"))
    screen.show(partial(3, "what", 0))
    clock.time = 1.0
    screen.tick()
    assert terminal.lines() == [
        "[00:00.0] … who is it",
        "[00:02.0] SPEAKER_00: me",
        "[00:04.0] SPEAKER_01…: and me",
        "… what",
    ]
    styles = {style for letter, style in terminal.styled() if letter == "S"}
    assert len(styles) == 2 and "" not in styles


def test_it_is_drawn_at_most_ten_times_a_second() -> None:
    clock = Clock()
    terminal = Terminal(40, 10)
    screen = screen_on(terminal, clock)
    drawn: list[float] = []
    write = terminal.write

    def counted(text: str) -> int:
        drawn.append(clock.time)
        return write(text)

    terminal.write = counted  # pyright: ignore[reportAttributeAccessIssue]
    for k in range(300):
        clock.time = k / 100
        screen.show(partial(0, f"word {k}", 1))
    assert 27 <= len(drawn) <= 31
    assert all(later - earlier >= 0.0999 for earlier, later in pairwise(drawn))
    clock.time = 3.5
    screen.tick()
    screen.tick()
    assert terminal.lines() == ["word 299"] and len(drawn) <= 32


def test_gaps_and_delays_are_notes_and_the_end_takes_the_block_away() -> None:
    terminal = Terminal(60, 10)
    screen = screen_on(terminal, Clock())
    screen.show(partial(0, "word", 0))
    screen.show(Gap(9.0, 2.0, 9.0, "the microphone is gone\x1b[2J"))
    screen.show(Lag(9.0, 12.3, None))
    screen.show(Lag(9.0, 12.3, 2.0))
    screen.show(Lag(9.0, 0.4, 0.5))
    screen.show(Ended(9.0, Transcript()))
    assert terminal.lines() == [
        "[00:02.0 to 00:09.0: no sound: the microphone is gone\ufffd[2J]",
        "[12 s behind: no words before they are final]",
        "[12 s behind: words every 2 s]",
        "[caught up]",
    ]


@pytest.mark.parametrize(
    "evil", ["\x1b[2J", "\x07", "\x9b2J", "\u202e", "\u2066", "\u200f", "\r", "\n", "\ud800", "\u2028", "\x00"]
)
def test_letters_that_would_do_something_do_nothing(evil: str) -> None:
    assert all(letter.isprintable() or letter in "\u200c\u200d" for letter in harmless(f"a{evil}b"))
    assert harmless(f"a{evil}b").startswith("a") and harmless(f"a{evil}b").endswith("b")
    terminal = Terminal(40, 5)
    screen = screen_on(terminal, Clock(), with_speakers=True)
    text = f"a{evil}b"
    words = (Word(0, 0, text, speaker=f"S{evil}"),)
    screen.show(Partial(0.0, 0, words, 0, text, ""))
    screen.show(final(0, 0.0, f"x{evil}y", speaker=f"S{evil}"))
    assert len(terminal.lines()) == 1


def test_letters_that_scripts_need_are_kept() -> None:
    for text in ("می\u200cخواهم", "क्\u200dष", "日本語", "e\u0301"):
        assert harmless(text) == text


def test_widths() -> None:
    assert [width_of(letter) for letter in "a日e\u0301\u200cｶ🙂\u1161"] == [1, 2, 1, 0, 0, 1, 2, 0]
    assert rows_of("", 5) == [0] and rows_of("abcde", 5) == [0] and rows_of("abcdef", 5) == [0, 5]
    assert rows_of("abcd日", 5) == [0, 4] and rows_of("日日", 1) == [0, 1] and rows_of("abcde\u0301f", 5) == [0, 6]


def test_without_a_terminal_there_are_finals_only() -> None:
    stream = io.StringIO()
    screen = LiveScreen(stream, live=False, with_speakers=True)
    screen.show(partial(0, "no", 0))
    screen.show(final(0, 0.0, "one\ntwo", speaker="SPEAKER_00"))
    screen.show(Final(3.0, 1, 0.0, 3.0, ()))
    screen.show(Gap(9.0, 2.0, 9.0, "gone"))
    screen.tick()
    with screen.above():
        pass
    screen.close()
    assert stream.getvalue() == "[00:00.0] SPEAKER_00…: one two\n"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"TERM": "xterm"}, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False),
        ({"TERM": "xterm", "NO_COLOR": ""}, True),
        ({"TERM": "dumb"}, False),
        ({}, False),
    ],
)
def test_where_a_block_is_drawn(environment: dict[str, str], expected: bool) -> None:
    assert is_live(Terminal(10, 10), environment) is expected  # pyright: ignore[reportArgumentType]
    assert not is_live(io.StringIO(), environment)


# --- tmux ------------------------------------------------------------------------------------------------------------

SHOW = """
import queue
import sys
import threading
from mlx_speech.cli.live_screen import LiveScreen
from scripted_live import final, partial

lines = queue.SimpleQueue()
threading.Thread(target=lambda: [lines.put(line) for line in sys.stdin], daemon=True).start()
screen = LiveScreen(sys.stdout, live=True)
while True:
    screen.tick()
    try:
        line = lines.get(timeout=0.01)
    except queue.Empty:
        continue
    kind, _, text = line.rstrip("\\n").partition(" ")
    if kind == "final":
        screen.show(final(0, 0.0, text))
    elif kind == "partial":
        screen.show(partial(0, text, 1))
    else:
        break
screen.close()
print("over", flush=True)
threading.Event().wait()
"""


def stripped(lines: list[str]) -> list[str]:
    return [line.rstrip() for line in lines]


def seen(look: Callable[[], list[str]], expected: list[str]) -> None:
    """Wait until tmux shows it."""
    end = time.monotonic() + 30
    while look() != expected:
        assert time.monotonic() < end, f"{look()} is not {expected}"
        time.sleep(0.02)


OF_TERMINALS = ("TMUX", "NO_COLOR", "COLUMNS", "LINES")  # variables that say what a terminal is, or is not


def test_in_a_real_terminal(tmp_path: Path) -> None:
    if shutil.which("tmux") is None:
        absent("tmux is not here: apt-get install tmux")
    socket, pipe, script = tmp_path / "tmux", tmp_path / "events", tmp_path / "show.py"
    script.write_text(SHOW, encoding="utf-8")
    os.mkfifo(pipe)
    paths = f"{TESTS}{os.pathsep}{TESTS.parent}"
    shown = f"PYTHONPATH={shlex.quote(paths)} {shlex.quote(sys.executable)} {shlex.quote(str(script))}"

    def tmux(*words: str) -> str:
        environment = {name: value for name, value in os.environ.items() if name not in OF_TERMINALS}
        environment |= {"LC_ALL": "C.UTF-8", "PYTHONUTF8": "1"}
        command = ["tmux", "-u", "-S", str(socket), "-f", "/dev/null", *words]
        done = subprocess.run(command, capture_output=True, env=environment, timeout=30, check=True)
        return done.stdout.decode()

    def look() -> list[str]:
        joined = tmux("capture-pane", "-p", "-J", "-S", "-50")
        return stripped(joined.rstrip().split("\n"))

    tmux("new-session", "-d", "-x", "40", "-y", "8", f"{shown} < {shlex.quote(str(pipe))}")
    try:
        with pipe.open("w", encoding="utf-8", buffering=1) as events:
            events.write("partial loud horses\n")
            seen(look, ["loud horses"])
            events.write("partial loud horses 日本語の are moved after February and then some more\n")
            seen(look, ["loud horses 日本語の are moved after Feb", "ruary and then some more"])
            assert "\x1b[90m" in tmux("capture-pane", "-p", "-e")
            first = "[00:00.0] loud horses are moved after February and then"
            events.write(f"final {first[10:]}\n")
            seen(look, [first])
            for k in range(12):
                events.write(f"final line {k}\n")
            finals = [first, *(f"[00:00.0] line {k}" for k in range(12))]
            seen(look, finals)
            long = "a b c d e f g h i j k l m n o p q r s t u v w x y z"
            # in the last rows of the window: with empty rows below it, tmux would scroll the block away
            for columns in (40, 26, 17, 60):
                tmux("resize-window", "-x", str(columns), "-y", "8")
                events.write(f"partial {long} {columns}\n")
                seen(look, [*finals, *stripped(block_of(f"{long} {columns}", columns, 8))])
            events.write("partial word\n")
            seen(look, [*finals, "word"])
            events.write("close\n")
            seen(look, [*finals, "over"])
    finally:
        subprocess.run(["tmux", "-S", str(socket), "kill-server"], capture_output=True, timeout=30, check=False)
