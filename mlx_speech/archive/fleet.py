"""The processes that transcribe, on all machines of a Ray cluster: one for each accelerator, or each machine's CPU.

What a process dies of is judged by the one that takes its place: where that comes up, the machine is sound, and one of
the files that were under way was the cause; where it does not, the machine is gone, and no file is to blame. Where it
neither comes up nor ends, the files are heard elsewhere, as if one of them were the cause.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from mlx_speech.archive.items import Failed, Item, Outcome
from mlx_speech.archive.line import Task
from mlx_speech.archive.worker import Setup, Worker
from mlx_speech.errors import ClusterError, MissingDependency, Notice, OptionError, install

TASKS_AHEAD = 2  # under way in a process at once, so that Whisper's batches do not run dry between two
LOOK_SECONDS = 2.0  # between two looks at which machines there are
START_SECONDS = 300.0  # after which nobody waits for a process to be ready
MAX_STARTS = 4  # of processes that end, one behind the other, and have given nothing: then their place is given up
MAX_REASON = 300  # characters of what Ray says


@dataclass(frozen=True)
class Given:
    """A process has given an outcome."""

    item: Item
    outcome: Outcome


@dataclass(frozen=True)
class Lost:
    """Items that were under way when their process ended. guilty : one of them may be the cause"""

    items: tuple[Item, ...]
    guilty: bool


Event = Given | Lost


@dataclass(frozen=True)
class Place:
    """Where a process may be.

    node : the machine; number : of several there
    cores : that it computes with; accelerated : whether an accelerator is its own
    """

    node: str
    number: int
    cores: int
    accelerated: bool

    @property
    def resources(self) -> dict[str, float]:
        """What Ray is asked for."""
        return {"num_gpus": 1.0} if self.accelerated else {"num_cpus": float(self.cores)}

    @property
    def wanted(self) -> str:
        """The same in words."""
        return "a GPU" if self.accelerated else f"{self.cores} of the CPU's cores"


@dataclass(eq=False)
class Process:
    """A process, on its machine.

    starting : what says that it is ready, until it does
    under_way : what gives the outcomes of a task → the items that have none yet
    suspects : what was under way when the one before it ended
    starts : how many processes in a row have ended at this place, and given nothing
    begun : when it was started
    told : whether somebody was told that it takes long
    """

    place: Place
    actor: Any
    starting: Any
    under_way: dict[Any, dict[str, Item]] = field(default_factory=dict)
    suspects: list[Item] = field(default_factory=list)
    starts: int = 1
    alone: bool = False
    begun: float = field(default_factory=time.monotonic)
    told: bool = False

    @property
    def has_room(self) -> bool:
        """Whether it can take another task."""
        return self.starting is None and not self.alone and len(self.under_way) < TASKS_AHEAD

    @property
    def idle(self) -> bool:
        """Whether nothing is under way in it."""
        return not self.under_way


class Fleet:
    """All processes.

    setup : of each; processes : on a machine without accelerator, with `setup.cores` each
    address : of Ray: "auto" is the cluster that there is, or else this machine alone

    Raises `MissingDependency`, `ClusterError` where there is no cluster at the address, `OptionError`.
    """

    def __init__(self, setup: Setup, address: str, *, processes: int = 1) -> None:
        self._ray = _ray()
        self._setup = setup
        self._per_machine = processes
        self._processes: dict[Place, Process] = {}
        self._given_up: dict[Place, str] = {}
        self._lost: list[Lost] = []
        self._looked = -LOOK_SECONDS
        self._ours = not self._ray.is_initialized()
        if self._ours:
            self._connect(address)

    @property
    def processes(self) -> list[Process]:
        """Those that are there, or are starting."""
        return list(self._processes.values())

    @property
    def ready(self) -> int:
        """How many can transcribe."""
        return sum(process.starting is None for process in self._processes.values())

    @property
    def busy(self) -> bool:
        """Whether anything is under way, or not judged yet."""
        return bool(self._lost) or any(process.under_way or process.suspects for process in self._processes.values())

    def look(self) -> None:
        """Start processes on machines that have come, and forget those of machines that are gone.

        Raises `ClusterError` where none is left.
        """
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        places = self._places()
        for place in places:
            if place not in self._processes and place not in self._given_up:
                self._start(place)
        for place in [place for place in self._processes if place not in places]:
            self._gone(self._processes.pop(place))
        for process in self._processes.values():
            if process.starting is not None and now - process.begun > START_SECONDS:
                self._starts_long(process)
        self.check()

    def check(self) -> None:
        """Raises `ClusterError` where no process is left that could go on."""
        if self._processes:
            return
        reasons = sorted(set(self._given_up.values()))
        why = f" ({'; '.join(reasons)})" if reasons else ""
        raise ClusterError(f"no machine is left to transcribe{why}: the same command goes on where this one stopped")

    def give(self, process: Process, task: Task) -> None:
        """Have a process transcribe a task."""
        method = process.actor.transcribe.options(num_returns="streaming")
        process.under_way[method.remote(list(task.items))] = {item.name: item for item in task.items}
        process.alone = task.alone

    def events(self, seconds: float) -> Iterator[Event]:
        """What has happened, after a wait of at most so many seconds."""
        if self._lost:
            seconds = 0.0
        waiting: dict[Any, Process] = {}
        for process in self._processes.values():
            if process.starting is not None:
                waiting[process.starting] = process
            for outcomes in process.under_way:
                waiting[outcomes] = process
        if waiting:
            refs = list(waiting)
            if self._ray.wait(refs, num_returns=1, timeout=seconds, fetch_local=False)[0]:
                ready, _ = self._ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)
                for ref in ready:
                    yield from self._news(waiting[ref], ref)
        else:
            time.sleep(seconds)
        lost = self._lost
        self._lost = []
        yield from lost

    def close(self) -> None:
        """End all processes."""
        for process in self._processes.values():
            self._ray.kill(process.actor)
        self._processes.clear()
        if self._ours:
            self._ray.shutdown()

    # --- the cluster -------------------------------------------------------------------------------------------------

    def _connect(self, address: str) -> None:
        quiet = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
        if address.startswith("ray://"):
            raise OptionError(f"{address}: is of Ray's client: run this on a machine of the cluster, with auto")
        try:
            if address != "auto":
                self._ray.init(address=address, **quiet)
                return
            try:
                self._ray.init(address="auto", **quiet)
            except ConnectionError:
                warnings.warn("no Ray cluster is running here: this machine is alone", Notice, stacklevel=4)
                self._ray.init(address="local", include_dashboard=False, **quiet)
        except (ConnectionError, RuntimeError, ValueError, self._ray.exceptions.RayError) as error:
            advice = "is `ray start --head` running there?"
            raise ClusterError(f"{address}: no Ray cluster ({' '.join(str(error).split())}): {advice}") from error

    def _places(self) -> list[Place]:
        """One for each accelerator of each machine, or so many as were asked for of its CPU."""
        places: list[Place] = []
        for node in self._ray.nodes():
            if node["Alive"]:
                places += self._places_of(node["NodeID"], node["Resources"])
        return places

    def _places_of(self, node: str, resources: Mapping[str, float]) -> list[Place]:
        cores = int(resources.get("CPU", 0))
        accelerators = int(resources.get("GPU", 0))
        if accelerators:
            each = self._setup.cores or max(cores // accelerators, 1)
            return [Place(node, number, each, True) for number in range(accelerators)]
        if cores < 1:
            return []  # a machine that is to do nothing, as a head often is
        each = self._setup.cores or max(cores // self._per_machine, 1)
        count = min(self._per_machine, cores // each)
        return [Place(node, number, each, False) for number in range(count)]

    def _start(self, place: Place, starts: int = 1, suspects: list[Item] | None = None) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        there = NodeAffinitySchedulingStrategy(place.node, soft=False)
        options = {"scheduling_strategy": there, "max_concurrency": TASKS_AHEAD, "max_restarts": 0}
        remote = self._ray.remote(Worker).options(**options, **place.resources)
        actor = remote.remote(replace(self._setup, cores=place.cores))
        self._processes[place] = Process(place, actor, actor.prepare.remote(), suspects=suspects or [], starts=starts)

    # --- what they say -----------------------------------------------------------------------------------------------

    def _news(self, process: Process, ref: Any) -> Iterator[Event]:
        if process.place not in self._processes or self._processes[process.place] is not process:
            return  # it ended a moment ago
        try:
            if ref is process.starting:
                yield from self._started(process, self._ray.get(ref))
                return
            outcome = self._ray.get(next(ref))
        except StopIteration:
            yield from self._task_ended(process, ref)
            return
        except self._ray.exceptions.RayTaskError as error:
            if ref is process.starting:
                self._give_up(process, _reason(error))
            else:
                yield from self._task_failed(process, ref, error)
            return
        except self._ray.exceptions.RayError as error:
            self._died(process, error)
            return
        process.starts = 0
        item = process.under_way[ref].pop(outcome.name)
        yield Given(item, outcome)

    def _started(self, process: Process, problem: Failed | None) -> Iterator[Event]:
        """It is ready, or cannot be; either way it is known whose fault the end of the one before it was."""
        process.starting = None
        if process.suspects:
            yield Lost(tuple(process.suspects), guilty=True)
            process.suspects = []
        if problem is not None:
            self._give_up(process, problem.reason)

    def _task_ended(self, process: Process, outcomes: Any) -> Iterator[Event]:
        items = process.under_way.pop(outcomes)
        process.alone = False
        if items:  # it has promised an outcome for each
            yield Lost(tuple(items.values()), guilty=False)

    def _task_failed(self, process: Process, outcomes: Any, error: Exception) -> Iterator[Event]:
        """What should not happen: the worker itself has raised something."""
        for item in process.under_way.pop(outcomes).values():
            yield Given(item, Failed(item.name, "error", _reason(error)))
        process.alone = False

    def _died(self, process: Process, error: Exception) -> None:
        """A process has ended; another one takes its place, and shows whether its machine is still there."""
        suspects = [*process.suspects]
        for items in process.under_way.values():
            suspects += items.values()
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(process.actor)  # where it is out of reach only
        del self._processes[process.place]
        if process.starts >= MAX_STARTS:
            self._lost.append(Lost(tuple(suspects), guilty=False))
            self._given_up[process.place] = f"its processes end by themselves: {_reason(error)}"
            return
        self._start(process.place, process.starts + 1, suspects)

    def _gone(self, process: Process) -> None:
        """A machine is gone, and nothing that was under way there is to blame."""
        items = [*process.suspects]
        for under_way in process.under_way.values():
            items += under_way.values()
        if items:
            self._lost.append(Lost(tuple(items), guilty=False))

    def _starts_long(self, process: Process) -> None:
        """Nobody waits for it any more; it may still come."""
        if process.suspects:
            self._lost.append(Lost(tuple(process.suspects), guilty=True))
            process.suspects = []
        if not process.told:
            process.told = True
            wanted = process.place.wanted
            why = f"{wanted} may not be free on its machine, or its models take long to load"
            warnings.warn(f"a process is not ready after {START_SECONDS:g} s: {why}", Notice, stacklevel=4)

    def _give_up(self, process: Process, reason: str) -> None:
        del self._processes[process.place]
        self._given_up[process.place] = reason
        self._ray.kill(process.actor)
        warnings.warn(f"a machine cannot transcribe: {reason}", Notice, stacklevel=6)


def _reason(error: Exception) -> str:
    """The last of what Ray says, in a line: what comes before is where it was."""
    return " ".join(str(error).split())[-MAX_REASON:]


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise MissingDependency(f"no Ray ({error}): {install('ray')}") from error
    return ray
