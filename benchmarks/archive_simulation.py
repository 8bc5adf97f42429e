"""An archive on machines that are not here: events of reading, transcribing, writing, failing, on paper.

    python -m benchmarks.archive_simulation         # the scenarios of archive_plan.md

The line of what waits is the archive's own (`mlx_speech.archive.line`): the order and the sizes of tasks are those of
a real run. Everything else is a model: a link that all read through, processes that hear at a rate, machines that fail
and come back, and a driver that takes in one result after the other. `tests/test_archive_cluster.py` compares what it
predicts with a real cluster whose processes sleep.
"""

from __future__ import annotations

import argparse
import heapq
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mlx_speech.archive.fleet import TASKS_AHEAD
from mlx_speech.archive.items import Entry, Item
from mlx_speech.archive.line import Line

HOUR = 3600.0
DAY = 24 * HOUR


@dataclass(frozen=True)
class Machines:
    """What transcribes.

    count : machines; processes : on each
    rate : seconds of sound that a process hears a second; file_seconds : that a file costs beyond its sound
    lanes : tasks that a process hears at full speed at once: 1 where they share what computes
    start_seconds : until a process can hear
    mean_life : seconds that a machine lasts, on average, before it fails; None: it does not; repair_seconds : until it
        is back
    """

    count: int
    rate: float
    processes: int = 1
    file_seconds: float = 0.0
    lanes: int = 1
    start_seconds: float = 0.0
    mean_life: float | None = None
    repair_seconds: float = 0.0


@dataclass(frozen=True)
class Surroundings:
    """What all machines share.

    bandwidth : bytes a second of the link that all read through, or None for one without end
    bytes_per_second : of sound, as it is stored
    driver_seconds : that the driver spends on a file
    """

    bandwidth: float | None = None
    bytes_per_second: float = 18_000.0
    driver_seconds: float = 0.0


@dataclass
class Outcome:
    """What came of it.

    seconds : until the last result is written
    transcribing, reading, driving : how busy processes, the link and the driver were, of `seconds`, 0..1
    backlog : results that waited for the driver at once, at most
    failures : of machines; repeated : seconds of sound that were heard twice
    begun : places of files in the order in which they were begun
    """

    seconds: float = 0.0
    transcribing: float = 0.0
    reading: float = 0.0
    driving: float = 0.0
    backlog: int = 0
    failures: int = 0
    repeated: float = 0.0
    begun: list[int] = field(default_factory=list)


@dataclass(eq=False)
class _Lane:
    """Where a process hears one file after the other.

    generation : another one once its machine has failed
    ended : tasks whose last result the driver has not come to
    """

    machine: int
    generation: int = 0
    up: bool = False
    tasks: deque[deque[Item]] = field(default_factory=deque)
    hearing: Item | None = None
    ended: int = 0

    @property
    def load(self) -> int:
        """Tasks that the driver takes for under way."""
        return len(self.tasks) + self.ended


class Simulation:
    """Files, by their seconds of sound, on machines. seed : of chance"""

    def __init__(
        self,
        lengths: Sequence[float],
        machines: Machines,
        surroundings: Surroundings | None = None,
        *,
        task_seconds: float = 600.0,
        task_files: int = 64,
        seed: int = 0,
    ) -> None:
        self._lengths = lengths
        self._machines = machines
        self._shared = surroundings or Surroundings()
        items = [Item(str(k), Entry("")) for k in range(len(lengths))]
        self._line = Line(items, lengths, task_seconds=task_seconds, task_files=task_files)
        self._chance = random.Random(seed)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._now = 0.0
        self._link_free = 0.0
        self._driver_free = 0.0
        self._link_busy = self._driver_busy = self._heard = 0.0
        self._waiting_results: deque[float] = deque()
        self._left = len(lengths)
        self._outcome = Outcome()
        lanes = machines.processes * machines.lanes
        self._ahead = 1 if machines.lanes > 1 else TASKS_AHEAD
        self._lanes = [[_Lane(number) for _ in range(lanes)] for number in range(machines.count)]

    def run(self) -> Outcome:
        """To the end."""
        for number in range(self._machines.count):
            self._after(self._machines.start_seconds, lambda number=number: self._up(number))
        while self._left and self._events:
            self._now, _, action = heapq.heappop(self._events)
            action()
        outcome = self._outcome
        outcome.seconds = max(self._now, self._driver_free)
        processes = self._machines.count * self._machines.processes * self._machines.lanes
        outcome.transcribing = self._heard / (outcome.seconds * processes)
        outcome.reading = self._link_busy / outcome.seconds
        outcome.driving = self._driver_busy / outcome.seconds
        return outcome

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (self._now + seconds, self._count, action))

    # --- machines ----------------------------------------------------------------------------------------------------

    def _up(self, number: int) -> None:
        for lane in self._lanes[number]:
            lane.up = True
        if self._machines.mean_life is not None:
            life = self._chance.expovariate(1 / self._machines.mean_life)
            self._after(life, lambda: self._down(number))
        self._fill()

    def _down(self, number: int) -> None:
        self._outcome.failures += 1
        for lane in self._lanes[number]:
            lane.up = False
            lane.generation += 1
            lost = [item for task in lane.tasks for item in task]
            if lane.hearing is not None:
                lost.append(lane.hearing)
                self._outcome.repeated += self._seconds(lane.hearing)
            lane.hearing = None
            lane.ended = 0
            lane.tasks.clear()
            self._line.give_back(lost)
        back = self._machines.repair_seconds + self._machines.start_seconds
        self._after(back, lambda: self._up(number))
        self._fill()

    # --- files -------------------------------------------------------------------------------------------------------

    def _seconds(self, item: Item) -> float:
        return self._lengths[int(item.name)]

    def _fill(self) -> None:
        """Tasks for lanes that have room, those first that have least."""
        able = [lane for machine in self._lanes for lane in machine if lane.up and lane.load < self._ahead]
        processes = self._machines.count * self._machines.processes
        for lane in sorted(able, key=lambda lane: lane.load):
            while lane.load < self._ahead:
                task = self._line.take(self._now, processes, idle=not lane.tasks)
                if task is None:
                    return
                lane.tasks.append(deque(task.items))
                self._next(lane)

    def _next(self, lane: _Lane) -> None:
        """The next file of a lane that hears none: it is read, and then heard."""
        if lane.hearing is not None or not lane.tasks:
            return
        item = lane.tasks[0].popleft()
        lane.hearing = item
        self._outcome.begun.append(int(item.name))
        ready = self._now
        if self._shared.bandwidth is not None:
            seconds = self._seconds(item) * self._shared.bytes_per_second / self._shared.bandwidth
            self._link_free = max(self._link_free, self._now) + seconds
            self._link_busy += seconds
            ready = self._link_free
        hearing = self._seconds(item) / self._machines.rate + self._machines.file_seconds
        generation = lane.generation
        self._after(ready - self._now + hearing, lambda: self._done(lane, item, hearing, generation))

    def _done(self, lane: _Lane, item: Item, seconds: float, generation: int) -> None:
        if generation != lane.generation:
            return  # the machine has failed meanwhile
        self._heard += seconds
        self._driver_free = max(self._driver_free, self._now) + self._shared.driver_seconds
        self._driver_busy += self._shared.driver_seconds
        self._waiting_results.append(self._driver_free)
        while self._waiting_results and self._waiting_results[0] <= self._now:
            self._waiting_results.popleft()
        self._outcome.backlog = max(self._outcome.backlog, len(self._waiting_results))
        self._left -= 1
        lane.hearing = None
        if not lane.tasks[0]:
            lane.tasks.popleft()
            lane.ended += 1
            self._after(self._driver_free - self._now, lambda: self._ended(lane, generation))
        self._next(lane)

    def _ended(self, lane: _Lane, generation: int) -> None:
        """The driver has come to the last result of a task, and hands out another one."""
        if generation == lane.generation:
            lane.ended -= 1
            self._fill()


def chain(**rates: float) -> float:
    """The rate of stages one behind the other. rates : seconds of sound a second, of each"""
    return 1 / sum(1 / rate for rate in rates.values())


# --- scenarios -------------------------------------------------------------------------------------------------------

ARCHIVE_HOURS = 100_000.0
START_SECONDS = 30.0
SCALE = 20  # a scenario has so much less sound, and all but its files is shorter: the whole is so many times as long
SHORT_SCALE = 200  # where files are short, and many
DRIVER_SECONDS = 0.0012  # that a result costs the driver, as measured (archive.md)
LINK = 1.25e9  # bytes a second: 10 Gbit/s
# rates of stages: low, middle, high; archive_plan.md says where they are from
MAC = {
    "low": chain(asr=20, align=150, diarize=100, vad=500),
    "middle": chain(asr=40, align=300, diarize=300, vad=1000),
    "high": chain(asr=80, align=600, diarize=650, vad=1400),
}
GPU = {
    "low": chain(asr=100, align=500, diarize=116, vad=1000),
    "middle": chain(asr=200, align=1000, diarize=300, vad=2000),
    "high": chain(asr=400, align=2000, diarize=800, vad=4000),
}


def lengths_of(mean: float, seconds: float, seed: int = 1) -> list[float]:
    """Lengths of recordings with a mean, exponentially spread, up to ten times it; seconds : of all together"""
    chance = random.Random(seed)
    lengths: list[float] = []
    left = seconds
    while left > 0:
        lengths.append(min(chance.expovariate(1 / mean) + 0.05 * mean, 10 * mean, max(left, 0.1)))
        left -= lengths[-1]
    return lengths


def scaled(count: int, rate: float, scale: float) -> Machines:
    """Machines of a scenario: each fails every two weeks, and is back after an hour."""
    return Machines(
        count,
        rate,
        start_seconds=START_SECONDS / scale,
        mean_life=14 * DAY / scale,
        repair_seconds=HOUR / scale,
    )


def scenario(name: str, machines: Machines, mean: float, scale: float, link: float = LINK) -> str:
    """A row of the table."""
    lengths = lengths_of(mean, ARCHIVE_HOURS * HOUR / scale)
    outcome = Simulation(lengths, machines, Surroundings(bandwidth=link, driver_seconds=DRIVER_SECONDS)).run()
    hours = outcome.seconds * scale / HOUR
    busy = [f"{100 * part:.0f} %" for part in (outcome.transcribing, outcome.reading, outcome.driving)]
    repeated = 100 * outcome.repeated / sum(lengths)
    cells = [name, f"{machines.rate:.0f} ×", f"{hours:.0f} h", *busy, str(outcome.backlog), f"{repeated:.2f} %"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    print("| machines, mean length | rate of each | all of it | transcribing | reading | driver | waiting | repeated |")
    print("|---|---|---|---|---|---|---|---|")
    for rates, count, kind in ((MAC, 8, "8 Mac Studios"), (GPU, 64, "64 GPUs")):
        for case, rate in rates.items():
            print(scenario(f"{kind}, 30 min, {case}", scaled(count, rate, SCALE), 1800.0, SCALE))
    for case, rate in GPU.items():
        print(scenario(f"64 GPUs, 10 s, {case}", scaled(64, rate, SHORT_SCALE), 10.0, SHORT_SCALE))
    print(scenario("64 GPUs, 30 min, high, 1 Gbit/s", scaled(64, GPU["high"], SCALE), 1800.0, SCALE, LINK / 10))


if __name__ == "__main__":
    main()
