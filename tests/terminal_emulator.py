"""A terminal in memory: wraps, scrolls, erases, and breaks its lines anew when it gets another width.

It knows what the live screen writes and refuses everything else. A line of text stays one, however many rows it takes,
as in tmux, iTerm or GNOME's terminal; `reflow=False` is a terminal as xterm, which cuts rows off instead.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field

SEQUENCE = re.compile(r"\x1b\[(\??)([\d;]*)([A-Za-z])")
EMPTY = ("", "")


@dataclass
class Row:
    cells: list[tuple[str, str]] = field(default_factory=list)  # letter and style; "" behind a wide one
    wrapped: bool = False  # whether the line goes on in the next row

    @property
    def text(self) -> str:
        return "".join(letter for letter, _ in self.cells)


class Terminal:
    """columns, rows : of the window. What has scrolled away is kept."""

    def __init__(self, columns: int, rows: int, *, reflow: bool = True) -> None:
        self.columns = columns
        self.height = rows
        self.reflow = reflow
        self.rows = [Row()]
        self.row = 0  # of the cursor, counted from the first row that ever was
        self.column = 0
        self.style = ""
        self.cursor_shown = True
        self.saved = (0, 0)
        self.wraps = True

    @property
    def top(self) -> int:
        """The first row in the window."""
        return max(0, len(self.rows) - self.height)

    def write(self, text: str) -> int:
        place = 0
        while place < len(text):
            if text.startswith("\x1b7", place):
                self.saved = (self.row, self.column)
                place += 2
                continue
            if text.startswith("\x1b8", place):
                self.row, self.column = self.saved
                place += 2
                continue
            if text[place] == "\x1b":
                match = SEQUENCE.match(text, place)
                assert match, f"an escape that it does not know: {text[place : place + 8]!r}"
                self._obey(match[1], match[2], match[3])
                place = match.end()
                continue
            self._put(text[place])
            place += 1
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        """Lines of text, without the rows they take, and without empty ones at the end."""
        found = [""]
        for row in self.rows:
            found[-1] += row.text
            if not row.wrapped:
                found.append("")
        while found and not found[-1].strip():
            found.pop()
        return [line.rstrip() for line in found]

    def styled(self) -> list[tuple[str, str]]:
        """All letters with their style."""
        return [cell for row in self.rows for cell in row.cells if cell[0]]

    def resize(self, columns: int, rows: int) -> None:
        if self.reflow:
            self._reflow(columns)
        else:
            for row in self.rows:
                del row.cells[columns:]
        self.columns = columns
        self.column = min(self.column, columns - 1)
        self.row = max(self.row, self.top)
        # what lies below the cursor makes room first, and then rows scroll away at the top
        below = len(self.rows) - 1 - self.row
        excess = len(self.rows) - self.top - rows
        for _ in range(min(below, excess)):
            self.rows.pop()
        self.height = rows
        self.row = max(self.row, self.top)

    def _reflow(self, columns: int) -> None:
        logical: list[list[tuple[str, str]]] = [[]]
        offset = 0
        line = 0
        for number, row in enumerate(self.rows):
            if number == self.row:
                line, offset = len(logical) - 1, len(logical[-1]) + self.column
            logical[-1] += row.cells
            if not row.wrapped and number + 1 < len(self.rows):
                logical.append([])
        self.rows = []
        for number, cells in enumerate(logical):
            begin = len(self.rows)
            self.rows.append(Row())
            for place, cell in enumerate(cells):
                wide = place + 1 < len(cells) and cells[place + 1] == EMPTY
                if len(self.rows[-1].cells) + 1 + wide > columns and cell != EMPTY:
                    self.rows[-1].wrapped = True
                    self.rows.append(Row())
                if number == line and place == offset:
                    self.row, self.column = len(self.rows) - 1, len(self.rows[-1].cells)
                self.rows[-1].cells.append(cell)
            if number == line and offset >= len(cells):
                self.row, self.column = len(self.rows) - 1, min(len(self.rows[-1].cells), columns - 1)
                if not cells:
                    self.row = begin
        while len(self.rows) > self.row + 1 and not self.rows[-1].cells:
            self.rows.pop()

    def _put(self, letter: str) -> None:
        if letter == "\r":
            self.column = 0
        elif letter == "\n":  # the terminal's driver makes "\r\n" of it
            self._next_row()
        else:
            assert unicodedata.category(letter) not in ("Cc", "Cs"), repr(letter)
            self._letter(letter)

    def _letter(self, letter: str) -> None:
        zero = unicodedata.category(letter) in ("Mn", "Me", "Cf") or 0x1160 <= ord(letter) < 0x1200
        width = 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        if zero:
            row = self.rows[self.row]
            place = min(self.column, len(row.cells)) - 1
            while place > 0 and row.cells[place] == EMPTY:
                place -= 1
            if place >= 0:
                row.cells[place] = (row.cells[place][0] + letter, row.cells[place][1])
            return
        if not self.wraps:  # what has no room overwrites the last letter
            self.column = max(0, min(self.column, self.columns - width))
        elif self.column + width > self.columns and self.column:
            self.rows[self.row].wrapped = True
            self._next_row()
        row = self.rows[self.row]
        while len(row.cells) < self.column:
            row.cells.append((" ", ""))
        cells = [(letter, self.style), *[EMPTY] * (width - 1)]
        row.cells[self.column : self.column + width] = cells
        self.column += width

    def _next_row(self) -> None:
        self.row += 1
        self.column = 0
        if self.row == len(self.rows):
            self.rows.append(Row())

    def _obey(self, private: str, numbers: str, letter: str) -> None:
        if private:
            assert numbers in ("7", "25") and letter in "lh"
            if numbers == "25":
                self.cursor_shown = letter == "h"
            else:
                self.wraps = letter == "h"
        elif letter == "m":
            self.style = "" if numbers in ("", "0") else numbers
        elif letter == "A":
            assert not self.row - int(numbers or 1) < self.top, "the cursor would leave the window"
            self.row -= int(numbers or 1)
        elif letter == "B":
            bottom = self.top + self.height - 1  # there it stays
            assert not numbers
            if self.row < bottom:
                self.row += 1
            if self.row == len(self.rows):
                self.rows.append(Row())
        elif letter in "JK":
            assert not numbers
            assert letter == "K" or self.height == 1 or self.row > self.top or self.column, "tmux would keep it"
            if letter == "J":
                del self.rows[self.row + 1 :]
            del self.rows[self.row].cells[self.column :]
            self.rows[self.row].wrapped = False
        else:
            raise AssertionError(f"a sequence that it does not know: {letter}")
