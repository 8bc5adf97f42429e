"""What a terminal shows of a live session: finals, which scroll, and under them one block of what is being said.

Behind every drawing the cursor goes back to where the block begins: so it is found again whatever happened to the size
of the window, and whether the terminal breaks lines anew or not. Drawing is erasing from there on and writing. The rows
of the block are broken here and the terminal is told not to wrap meanwhile: how far the way back is may not depend on
whether this process has heard of the window's size already.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

from mlx_speech.live.events import Ended, Final, Gap, Lag, LiveEvent, Partial, Speakers
from mlx_speech.transcript import Segment
from mlx_speech.writers.text import screen_clock

DRAW_SECONDS = 0.1  # between two drawings of the block
CAUGHT_UP = 1.0  # seconds of sound that wait, below which a session is not behind
# From the beginning of a row to the end of the screen, row by row: tmux takes the erasing of a whole screen in one for
# text that has scrolled away, and keeps it. The cursor is saved meanwhile, since in the last row it cannot go down.
ERASE = "\x1b7\x1b[K\x1b[B\x1b[J\x1b8"
UP = "\x1b[{}A"
WRAP = "\x1b[?7h"
NO_WRAP = "\x1b[?7l"
HIDE_CURSOR = "\x1b[?25l"
SHOW_CURSOR = "\x1b[?25h"
GREY = "\x1b[90m"
PLAIN = "\x1b[0m"
COLOURS = tuple(f"\x1b[{number}m" for number in (36, 33, 35, 32, 34, 31))  # of speakers, in the order of their names
PROVISIONAL = "…"
REPLACEMENT = "\ufffd"
JOINERS = "\u200c\u200d"  # Persian and the scripts of India are not written rightly without them
# the vowels and final consonants of Hangul that are written into the letter before them
HANGUL_PARTS = range(0x1160, 0x1200)

Size = Callable[[], tuple[int, int]]  # columns, rows


@dataclass(frozen=True)
class Piece:
    """Text in one colour. style : what begins it; "" is plain"""

    text: str
    style: str = ""


def harmless(text: str) -> str:
    """Text in which nothing tells the terminal what to do, or turns the order of what follows around."""
    letters: list[str] = []
    for letter in text:
        category = unicodedata.category(letter)
        if letter.isspace():
            letters.append(" ")
        elif category in ("Cc", "Cs") or (category == "Cf" and letter not in JOINERS):
            letters.append(REPLACEMENT)
        else:
            letters.append(letter)
    return "".join(letters)


def width_of(letter: str) -> int:
    """The columns that a letter takes: 2 for a wide one, 0 for a mark on the one before, or 1."""
    if unicodedata.category(letter) in ("Mn", "Me", "Cf") or ord(letter) in HANGUL_PARTS:
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def rows_of(text: str, columns: int) -> list[int]:
    """Where in a text each row begins, as a terminal of so many columns wraps it."""
    starts = [0]
    column = 0
    for place, letter in enumerate(text):
        width = width_of(letter)
        if column + width > columns and column:
            starts.append(place)
            column = 0
        column += width
    return starts


def is_live(stream: TextIO, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a block can be drawn: on a terminal that knows colours and where the user wants them."""
    if environment.get("NO_COLOR") or environment.get("TERM", "dumb") == "dumb":
        return False
    return stream.isatty()


def terminal_size() -> tuple[int, int]:
    """Columns and rows of the terminal."""
    size = shutil.get_terminal_size()
    return size.columns, size.lines


class LiveScreen:
    """Shows the events of a session. It may be used from any thread.

    stream : the terminal, or where lines go
    live : whether there is a block; without one there are finals only, a line each, without colours
    with_speakers : whether they are asked for, so that who has none yet is shown as provisional
    size, clock : of the terminal, and seconds; others stand in for them in tests
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        live: bool,
        with_speakers: bool = False,
        size: Size = terminal_size,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._live = live
        self._with_speakers = with_speakers
        self._size = size
        self._clock = clock
        self._lock = threading.RLock()
        self._pieces: tuple[Piece, ...] = ()  # of the block
        self._names: list[str] = []  # of speakers, in the order of their colours
        self._told_until = 0.0  # seconds before which speakers are not provisional
        self._drawn: tuple[tuple[Piece, ...], tuple[int, int]] | None = None  # and the size it was drawn for
        self._drawn_at: float | None = None
        self._closed = False
        if live:
            self._write(HIDE_CURSOR)

    def show(self, event: LiveEvent) -> None:
        """Show what has happened: what is final at once, the block when it is time."""
        with self._lock:
            match event:
                case Final():
                    self._pieces = ()
                    lines = [self._final(segment) for segment in event.segments]
                    self._scroll("".join(lines))
                case Partial():
                    self._pieces = self._partial(event)
                case Speakers():
                    self._told_until = event.until
                    for name in event.names:
                        self._colour(name)
                case Gap():
                    stretch = f"{screen_clock(event.start)} to {screen_clock(event.end)}"
                    self._note(f"[{stretch}: no sound: {harmless(event.reason)}]")
                case Lag():
                    self._note(_lag(event))
                case Ended():
                    self._pieces = ()
                    self._erase()
            self.tick()

    def tick(self) -> None:
        """Draw the block if it is another one, or the window has another size, and it is time."""
        with self._lock:
            if not self._live or self._closed:
                return
            now = self._clock()
            is_due = self._drawn_at is None or now - self._drawn_at >= DRAW_SECONDS
            if is_due and self._drawn != (self._pieces, self._size()):
                self._draw()
                self._drawn_at = now

    @contextmanager
    def above(self) -> Iterator[None]:
        """Room for lines that somebody else writes to the terminal: the block is away meanwhile."""
        with self._lock:
            self._erase()
            yield
            self.tick()

    def close(self) -> None:
        """Take the block away, and leave the terminal as it was."""
        with self._lock:
            if self._live and not self._closed:
                self._erase()
                self._write(PLAIN + SHOW_CURSOR)
            self._closed = True

    # --- what is written ---------------------------------------------------------------------------------------------

    def _final(self, segment: Segment) -> str:
        """A line, with its end."""
        is_provisional = segment.speaker is None or segment.end > self._told_until
        prefix = self._prefix(segment.speaker, is_provisional)
        pieces = [Piece(f"[{screen_clock(segment.start)}] "), *prefix, Piece(harmless(segment.text))]
        return f"{self._text(pieces)}\n"

    def _partial(self, event: Partial) -> tuple[Piece, ...]:
        firm = harmless(event.firm_text)
        rest = harmless(event.text)[len(firm) :]
        prefix = self._prefix(event.words[0].speaker if event.words else None, True)
        return (*prefix, Piece(firm), Piece(rest, GREY))

    def _prefix(self, speaker: str | None, is_provisional: bool) -> list[Piece]:
        if not self._with_speakers:
            return []
        if speaker is None:
            return [Piece(f"{PROVISIONAL} ", GREY)]
        mark = PROVISIONAL if is_provisional else ""
        return [Piece(f"{harmless(speaker)}{mark}: ", self._colour(speaker))]

    def _colour(self, name: str) -> str:
        if name not in self._names:
            self._names.append(name)
        return COLOURS[self._names.index(name) % len(COLOURS)]

    def _text(self, pieces: Sequence[Piece]) -> str:
        """Pieces as the stream takes them; without colours where it has none."""
        parts: list[str] = []
        for piece in pieces:
            if piece.style and piece.text and self._live:
                parts.append(f"{piece.style}{piece.text}{PLAIN}")
            else:
                parts.append(piece.text)
        return "".join(parts)

    def _note(self, text: str) -> None:
        if self._live:
            self._scroll(f"{self._text([Piece(text, GREY)])}\n")

    def _scroll(self, lines: str) -> None:
        """Write lines where the block is; it is drawn under them when it is time."""
        if lines:
            self._erase()
            self._write(lines)

    def _draw(self) -> None:
        """The block anew; the cursor is where it begins, before and behind."""
        size = self._size()
        columns, rows = max(1, size[0]), max(1, size[1])
        lines = _last_rows(_rows(self._pieces, columns), max(1, rows - 1))
        back = "\r"
        if len(lines) > 1:
            back += UP.format(len(lines) - 1)
        text = "\r\n".join(self._text(line) for line in lines)
        self._write(f"{ERASE}{NO_WRAP}{text}{back}{WRAP}")
        self._drawn = (self._pieces, size)

    def _erase(self) -> None:
        if self._live and self._drawn is not None:
            self._write(ERASE)
            self._drawn = None

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def _rows(pieces: Sequence[Piece], columns: int) -> list[list[Piece]]:
    """Pieces broken into rows of so many columns."""
    text = "".join(piece.text for piece in pieces)
    starts = rows_of(text, columns)
    rows: list[list[Piece]] = []
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        row: list[Piece] = []
        place = 0  # of the piece in the text
        for piece in pieces:
            part = piece.text[max(0, start - place) : max(0, end - place)]
            if part:
                row.append(Piece(part, piece.style))
            place += len(piece.text)
        rows.append(row)
    return rows


def _last_rows(rows: list[list[Piece]], count: int) -> list[list[Piece]]:
    """At most so many of the last rows; where others are left out, the first letter gives way to "…"."""
    if len(rows) <= count:
        return rows
    first = rows[-count]
    letters = first[0].text
    cut = 1
    while cut < len(letters) and width_of(letters[cut]) == 0:  # marks on the letter
        cut += 1
    marked = [Piece(PROVISIONAL, GREY), Piece(letters[cut:], first[0].style), *first[1:]]
    return [marked, *rows[len(rows) - count + 1 :]]


def _lag(event: Lag) -> str:
    if event.behind < CAUGHT_UP:
        return "[caught up]"
    words = "no words before they are final" if event.step is None else f"words every {event.step:g} s"
    return f"[{event.behind:.0f} s behind: {words}]"
