"""The line of what is still to be transcribed: the longest first, short ones several at once.

Tasks shrink as the end comes near, so that no machine is left alone with a long one: a task has at most a share of what
is left (guided self-scheduling, Polychronopoulos and Kuck 1987). Files of a task have one language, since they share
Whisper's batches with one set of options. Pieces of one file stand together, in the order of their offsets: a process
fetches and decodes the file once for those that it gets.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
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


Run = tuple[Item, ...]  # a file, or pieces of one file by their offsets


class Line:
    """What waits. lengths : seconds of each item, in the order of `items`

    suspects : of the items, those that may end their process
    task_seconds, task_files : of sound and of files in a task, at most; a single longer file is a task
    """

    def __init__(
        self,
        items: Sequence[Item],
        lengths: Sequence[float],
        *,
        suspects: Iterable[Item] = (),
        task_seconds: float = 600.0,
        task_files: int = 64,
    ) -> None:
        self._task_seconds = task_seconds
        self._task_files = task_files
        self._lengths = {item.name: length for item, length in zip(items, lengths, strict=True)}
        self._languages: dict[str | None, list[Run]] = {}  # the longest last
        self._suspects = list(suspects)
        names = {item.name for item in self._suspects}
        others = [item for item in items if item.name not in names]
        for run in sorted(self._runs(others), key=self._seconds):
            self._languages.setdefault(run[0].entry.language, []).append(run)
        self._count = len(others)  # in `_languages`
        self._later: list[tuple[float, int, Run]] = []  # a heap: when, and the order of coming
        self._comers = 0
        self.seconds = sum(lengths)

    def __len__(self) -> int:
        return self._count + len(self._suspects) + sum(len(run) for _, _, run in self._later)

    def take(self, now: float, processes: int, *, idle: bool) -> Task | None:
        """The next task for a process; None where there is none for it, now.

        processes : how many there are to share what is left
        idle : whether nothing is under way in the process that asks
        """
        due: list[Item] = []
        while self._later and self._later[0][0] <= now:
            due += heapq.heappop(self._later)[2]
        for run in self._runs(due):
            self._put(run)
        if self._suspects and idle:
            return self._taken(Task((self._suspects.pop(0),), alone=True))
        waiting = [runs for runs in self._languages.values() if runs]
        if not waiting:
            return None
        longest = max(waiting, key=lambda runs: self._seconds(runs[-1]))
        room = min(self._task_seconds, self.seconds / (SHARE * max(processes, 1)))
        items = self._beginning(self._pop(longest), room)
        room -= self._seconds(items)
        while longest and self._fits(longest[-1], room, self._task_files - len(items)):
            run = self._pop(longest)
            items += run
            room -= self._seconds(run)
        return self._taken(Task(items))

    def give_back(self, items: Iterable[Item], *, suspects: bool = False, when: float = 0.0) -> None:
        """Items that have to be transcribed again.

        suspects : one of them may have ended its process, so that each comes alone
        when : not before this time
        """
        for run in self._runs(list(items)):
            self.seconds += self._seconds(run)
            if suspects:
                self._suspects += run
            elif when > 0:
                self._comers += 1
                heapq.heappush(self._later, (when, self._comers, run))
            else:
                self._put(run)

    def _runs(self, items: Sequence[Item]) -> Iterator[Run]:
        """Files, and pieces that stand together: several runs of a file where a task cannot have all of it.

        A piece without a duration stands alone: nobody knows how long it is.
        """
        files: dict[tuple[str | None, str], list[Item]] = {}
        for item in items:
            if item.entry.offset is None or item.entry.duration is None:
                yield (item,)
            else:
                files.setdefault((item.entry.language, item.entry.source), []).append(item)
        for pieces in files.values():
            rest = tuple(sorted(pieces, key=lambda item: item.entry.offset or 0.0))
            while rest:
                count = self._fitting(rest, self._task_seconds)
                yield rest[:count]
                rest = rest[count:]

    def _beginning(self, run: Run, room: float) -> Run:
        """So much of a run as there is room for, at least its first; the others go back among what waits."""
        count = self._fitting(run, room)
        if run[count:]:
            self._put(run[count:])
        return run[:count]

    def _fitting(self, run: Run, room: float) -> int:
        """How many of a run, from its first on, a task may have that has room for so many seconds; at least one."""
        count = 1
        while count < len(run) and self._fits(run[: count + 1], room, self._task_files):
            count += 1
        return count

    def _fits(self, run: Run, seconds: float, files: int) -> bool:
        return len(run) <= files and self._seconds(run) <= seconds

    def _seconds(self, run: Run) -> float:
        return sum(self._lengths[item.name] for item in run)

    def _put(self, run: Run) -> None:
        """Among the others of its language, by length."""
        runs = self._languages.setdefault(run[0].entry.language, [])
        runs.insert(bisect_left(runs, self._seconds(run), key=self._seconds), run)
        self._count += len(run)

    def _pop(self, runs: list[Run]) -> Run:
        """The longest of a language."""
        run = runs.pop()
        self._count -= len(run)
        return run

    def _taken(self, task: Task) -> Task:
        self.seconds -= self._seconds(task.items)
        return task
