"""The measurement of a server's load: its clients, and what it says of them."""

from __future__ import annotations

import threading

import pytest

from benchmarks.server import COLUMNS, LENGTH, Load, closed_loop, row


def test_so_many_ask_at_once_and_each_again_when_it_is_answered() -> None:
    """All clients meet, three times; then the time is over, and the ones under way are answered."""
    clients, rounds = 4, 3
    meeting = threading.Barrier(clients)
    lock = threading.Lock()
    asked: list[int] = []
    at_once, most = 0, 0

    def ask(number: int) -> None:
        nonlocal at_once, most
        with lock:
            asked.append(number)
            at_once += 1
            most = max(most, at_once)
        meeting.wait(60)
        with lock:
            at_once -= 1
            if len(asked) >= clients * rounds:
                over.set()
        meeting.wait(60)

    over = threading.Event()
    done = closed_loop(ask, clients, over.is_set)
    assert done == len(asked) == clients * rounds and most == clients and at_once == 0
    assert sorted(asked) == list(range(clients * rounds))


def test_a_failure_is_raised() -> None:
    def ask(number: int) -> None:
        if number == 5:
            raise ValueError("five")

    with pytest.raises(ValueError, match="five"):
        closed_loop(ask, 1, lambda: False)


def test_a_line_of_the_table() -> None:
    found = Load(2, seconds=10.0, waits=[4.0, 1.0, 2.0, 3.0], failures=["no"], memory=[100.0, 110.0, 120.0, 130.0])
    assert found.speed == 4 * LENGTH / 10
    cells = [cell.strip() for cell in row(found, batch=8.0, loop=5.0).strip("|").split("|")]
    assert cells == ["2", "4", "1", "4.0", "0.50", "0.80", "2.50 s", "3.00 s", "100 → 130"]
    assert len(cells) == len(COLUMNS)
