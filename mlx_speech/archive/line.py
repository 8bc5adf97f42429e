"""The line of what is still to be transcribed: the longest first, short ones several at once.

Tasks shrink as the end comes near, so that no machine is left alone with a long one: a task has at most a share of what
is left (guided self-scheduling, Polychronopoulos and Kuck 1987). Files of a task have one language, since they share
Whisper's batches with one set of options.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mlx_speech.archive.items import Item

SHARE = 4  # a task has at most a machine's quarter of what is left


@dataclass(frozen=True)
class Task:
    """What a process gets at once.

    alone : nothing else may be under way there, since one of the files may end the process
    """

    items: tuple[Item, ...]
    alone: bool = False


class Line:
    """What waits. lengths : seconds of each item, in the order of `items`

    task_seconds, task_files : of sound and of files in a task, at most; a single longer file is a task
    """

    def __init__(
        self, items: Sequence[Item], lengths: Sequence[float], *, task_seconds: float = 600.0, task_files: int = 64
    ) -> None:
        self._task_seconds = task_seconds
        self._task_files = task_files
        self._lengths = {item.name: length for item, length in zip(items, lengths, strict=True)}
        self._languages: dict[str | None, list[Item]] = {}  # the longest last
        for item in sorted(items, key=lambda item: self._lengths[item.name]):
            self._languages.setdefault(item.entry.language, []).append(item)
        self._suspects: list[Item] = []
        self._later: list[tuple[float, int, Item]] = []  # a heap: when, and the order of coming
        self._comers = 0
        self.seconds = sum(lengths)

    def __len__(self) -> int:
        waiting = sum(len(items) for items in self._languages.values())
        return waiting + len(self._suspects) + len(self._later)

    def take(self, now: float, processes: int, *, idle: bool) -> Task | None:
        """The next task for a process; None where there is none for it, now.

        processes : how many there are to share what is left
        idle : whether nothing is under way in the process that asks
        """
        while self._later and self._later[0][0] <= now:
            self._put(heapq.heappop(self._later)[2])
        if self._suspects and idle:
            return self._taken(Task((self._suspects.pop(0),), alone=True))
        waiting = [items for items in self._languages.values() if items]
        if not waiting:
            return None
        longest = max(waiting, key=lambda items: self._lengths[items[-1].name])
        room = min(self._task_seconds, self.seconds / (SHARE * max(processes, 1)))
        items = [longest.pop()]
        room -= self._lengths[items[0].name]
        while longest and len(items) < self._task_files and self._lengths[longest[-1].name] <= room:
            items.append(longest.pop())
            room -= self._lengths[items[-1].name]
        return self._taken(Task(tuple(items)))

    def give_back(self, items: Iterable[Item], *, suspects: bool = False, when: float = 0.0) -> None:
        """Items that have to be transcribed again.

        suspects : one of them may have ended its process, so that each comes alone
        when : not before this time
        """
        for item in items:
            self.seconds += self._lengths[item.name]
            if suspects:
                self._suspects.append(item)
            elif when > 0:
                self._comers += 1
                heapq.heappush(self._later, (when, self._comers, item))
            else:
                self._put(item)

    def _put(self, item: Item) -> None:
        """Among the others, by length."""
        items = self._languages.setdefault(item.entry.language, [])
        length = self._lengths[item.name]
        low, high = 0, len(items)
        while low < high:
            middle = (low + high) // 2
            if self._lengths[items[middle].name] < length:
                low = middle + 1
            else:
                high = middle
        items.insert(low, item)

    def _taken(self, task: Task) -> Task:
        self.seconds -= sum(self._lengths[item.name] for item in task.items)
        return task
