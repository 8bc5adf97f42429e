"""Work of several owners, in turns, so that a short queue does not wait behind a long one."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Raw = TypeVar("Raw")
Ready = TypeVar("Ready")


@dataclass
class _Queue(Generic[Raw, Ready]):
    """What an owner waits for, in this order; what comes `first` is raw, as the rest."""

    ready: deque[Ready] = field(default_factory=deque)
    first: deque[Raw] = field(default_factory=deque)
    rest: deque[Raw] = field(default_factory=deque)

    def __len__(self) -> int:
        return len(self.ready) + len(self.first) + len(self.rest)


class Turns(Generic[Raw, Ready]):
    """Queues of several owners. What waits is raw, until it is made ready for its turn.

    An owner whose item is taken goes behind the others.
    """

    def __init__(self) -> None:
        self._queues: dict[Hashable, _Queue[Raw, Ready]] = {}  # in the order of turns; none is empty

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    @property
    def owners(self) -> list[Hashable]:
        """Who has something waiting, in the order of their turns."""
        return list(self._queues)

    def ready(self, owner: Hashable) -> int:
        """How many items of an owner are ready."""
        queue = self._queues.get(owner)
        return 0 if queue is None else len(queue.ready)

    def add(self, owner: Hashable, item: Raw) -> None:
        """Behind all others of the owner."""
        self._queue(owner).rest.append(item)

    def add_first(self, owner: Hashable, item: Raw) -> None:
        """Before those of the owner that came by `add` and are not ready."""
        self._queue(owner).first.append(item)

    def add_ready(self, owner: Hashable, item: Ready) -> None:
        """Behind those of the owner that are ready."""
        self._queue(owner).ready.append(item)

    def take_ready(self, owner: Hashable) -> Ready:
        """The owner's next item that is ready; its turn is over."""
        item = self._queues[owner].ready.popleft()
        self._put_behind(owner)
        return item

    def take_raw(self, owners: Sequence[Hashable], count: int) -> list[Raw]:
        """At most `count` raw items, of one of these owners after the other; no turn is over."""
        items: list[Raw] = []
        queues = [self._queues[owner] for owner in owners]
        while len(items) < count and any(queue.first or queue.rest for queue in queues):
            for queue in queues:
                if len(items) < count and queue.first:
                    items.append(queue.first.popleft())
                elif len(items) < count and queue.rest:
                    items.append(queue.rest.popleft())
        return items

    def drop(self, owner: Hashable) -> None:
        """Forget what the owner waits for."""
        self._queues.pop(owner, None)

    def _queue(self, owner: Hashable) -> _Queue[Raw, Ready]:
        if owner not in self._queues:
            self._queues[owner] = _Queue()
        return self._queues[owner]

    def _put_behind(self, owner: Hashable) -> None:
        queue = self._queues.pop(owner)
        if len(queue):
            self._queues[owner] = queue
