"""A simulated pool: it starts, drains and counts replicas, and gives each call to one with room, as Ray Serve does."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from cluster.scaling.simulation.servers import SimReplica
from cluster.scaling.simulation.sizing import CallsReading, PoolSnapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cluster.messages import Replica
    from cluster.scaling.simulation.events import EventClock

One = TypeVar("One", bound=SimReplica)


@dataclass(frozen=True, slots=True)
class PoolSize:
    """The size of a pool.

    Args:
        num_replicas: The replicas that run at the beginning.
        min_replicas: The fewest replicas. None: ``num_replicas``.
        max_replicas: The most replicas. None: ``num_replicas``.
        num_gpus: The GPUs of one replica.
    """

    num_replicas: int
    min_replicas: int | None = None
    max_replicas: int | None = None
    num_gpus: int = 0


@dataclass(slots=True)
class _Life:
    """The time from the decision to start a replica until it is gone, and its busy seconds at that time."""

    replica: SimReplica
    asked_s: float
    gone_s: float | None = None


class ReplicaPool(Generic[One]):
    """The replicas of one pool.

    Args:
        name: The name of the pool, such as ``encoder``.
        clock: The clock of the simulation.
        size: Its size and bounds.
        make: Makes a replica with a name.
        start_s: Seconds from the decision to start a replica until it serves.
        max_ongoing: The most calls of one replica at the same time. Further calls wait here, in their order.
        first_starts_s: The same as ``start_s`` for the first replicas that are started, one after the other.
    """

    def __init__(
        self,
        name: str,
        clock: EventClock,
        size: PoolSize,
        make: Callable[[Replica], One],
        *,
        start_s: float,
        max_ongoing: float,
        first_starts_s: Sequence[float] = (),
    ) -> None:
        self.name: Final = name
        self.size: Final = size
        self.target = size.num_replicas
        self.running: Final[dict[Replica, One]] = {}
        self.draining: Final[dict[Replica, One]] = {}
        self._clock: Final = clock
        self._make: Final = make
        self._start_s: Final = start_s
        self._first_starts_s: Final = deque(first_starts_s)
        self._max_ongoing: Final = max_ongoing
        self._starting: Final[dict[Replica, One]] = {}
        self._lives: Final[dict[Replica, _Life]] = {}
        self._waiting: Final[deque[tuple[Callable[[Sequence[One]], One], Callable[[One], None]]]] = deque()
        self._num_placed = 0
        for _ in range(size.num_replicas):
            self._add(self.running)

    @property
    def num_starting(self) -> int:
        return len(self._starting)

    @property
    def num_queued(self) -> int:
        """The calls that wait for a replica with room."""
        return len(self._waiting)

    def _add(self, where: dict[Replica, One]) -> Replica:
        name = f"{self.name} {len(self._lives) + 1}"
        where[name] = self._make(name)
        self._lives[name] = _Life(where[name], self._clock.now_s)
        return name

    def resize(self, target: int) -> None:
        """Starts or removes replicas. Those that are starting go first, then the newest."""
        self.target = target
        for _ in range(target - len(self.running) - len(self._starting)):
            start_s = self._first_starts_s.popleft() if self._first_starts_s else self._start_s
            self._clock.after(start_s, partial(self._started, self._add(self._starting)))
        while len(self.running) + len(self._starting) > target:
            if self._starting:
                self._lives[self._starting.popitem()[0]].gone_s = self._clock.now_s
            else:
                name, replica = self.running.popitem()
                self.draining[name] = replica
                self._drained(replica)

    def _started(self, name: Replica) -> None:
        if (replica := self._starting.pop(name, None)) is not None:
            self.running[name] = replica
            self._place()

    def _drained(self, replica: One) -> None:
        if replica.name in self.draining and not replica.num_ongoing:
            del self.draining[replica.name]
            self._lives[replica.name].gone_s = self._clock.now_s

    def call(self, choose: Callable[[Sequence[One]], One], begin: Callable[[One], None]) -> None:
        """Gives a call to a replica with room, now or when there is one.

        Args:
            choose: Chooses one of the replicas that have room.
            begin: Starts the call on the chosen replica. ``release`` ends it.
        """
        self._waiting.append((choose, begin))
        self._place()

    def _place(self) -> None:
        while self._waiting and (free := [one for one in self.running.values() if one.num_ongoing < self._max_ongoing]):
            choose, begin = self._waiting.popleft()
            self.move(choose(free), begin)

    def move(self, replica: One, begin: Callable[[One], None]) -> None:
        """Gives a call to a certain replica, even if that has no room."""
        replica.num_ongoing += 1
        self._num_placed += 1
        begin(replica)

    def release(self, replica: One) -> None:
        """Ends a call."""
        replica.num_ongoing -= 1
        self._drained(replica)
        if self._waiting:
            self._place()

    def snapshot(self) -> PoolSnapshot:
        """The counters as they are now."""
        counters = {name: one.counters() for name, one in self.running.items()}
        num_ongoing = sum(one.num_ongoing for one in self.running.values())
        return PoolSnapshot(self._clock.now_s, counters, self.num_queued, num_ongoing)

    def reading(self, then: PoolSnapshot) -> CallsReading:
        """The pool as a policy sees it: its replicas as they are now, and its counters as they were then."""
        known = {name: both for name, both in then.counters.items() if name in self.running}
        num_calls = self._num_placed or 1
        per_call = sum(life.replica.offered for life in self._lives.values()) / num_calls
        least, most = self.size.min_replicas, self.size.max_replicas
        return CallsReading(
            running=frozenset(self.running),
            target=self.target,
            min_replicas=self.size.num_replicas if least is None else least,
            max_replicas=self.size.num_replicas if most is None else most,
            sources=frozenset(self.running),
            offered={name: offered for name, (offered, _) in known.items()},
            served={name: served for name, (_, served) in known.items()},
            num_queued=then.num_queued,
            queued_work=then.num_queued * per_call,
            num_ongoing=then.num_ongoing,
            counted_s=then.at_s,
        )

    def replica_s(self, until_s: float) -> float:
        """The seconds of all replicas up to a time. Starting and draining count."""
        ends_s = ((life.asked_s, until_s if life.gone_s is None else life.gone_s) for life in self._lives.values())
        return sum(max(0.0, min(gone_s, until_s) - asked_s) for asked_s, gone_s in ends_s)

    def busy_s(self) -> float:
        """The busy seconds of all replicas that there were."""
        return sum(life.replica.busy_s for life in self._lives.values())
