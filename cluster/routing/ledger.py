"""The knowledge that one process has of a pool: the work of each replica, and the contents of its cache.

Choosing a replica sends no message. The process counts the calls that it sends itself, and each replica reports all its
work from time to time.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Mapping

    from cluster.messages import Replica

CallId = str
Item = TypeVar("Item")

MAX_HELD: Final = 65_536
"""The most names that are remembered for one replica. They take about 10 MB."""


class Held:
    """An estimate of the contents of one replica's cache, as names with weights.

    When ``capacity`` is exceeded, the least recently used names are forgotten first, as in the cache itself. ``weight``
    is the sum of all weights.
    """

    def __init__(self) -> None:
        self.capacity = math.inf
        self.weight = 0.0
        self._names: Final[OrderedDict[Hashable, float]] = OrderedDict()

    def __contains__(self, name: Hashable) -> bool:
        return name in self._names

    def use(self, name: Hashable, weight: float) -> None:
        """Notes that the replica uses a name now and keeps it; older names are forgotten if there are too many."""
        self.weight += weight - self._names.pop(name, 0.0)
        self._names[name] = weight
        while self.weight > self.capacity or len(self._names) > MAX_HELD:
            self.weight -= self._names.popitem(last=False)[1]


@dataclass(slots=True)
class Task:
    """Work that this process gave to a replica, as it counts for the choice of replicas.

    It weighs ``weight`` until the time ``settles_at_s``, when a report of the replica must include it, and ``settled``
    from then on. ``num_calls`` is the number of calls that share it now.
    """

    weight: float
    settled: float
    settles_at_s: float = math.inf
    num_calls: int = 0


class Work:
    """The work that one replica has to do: this process's own calls that have not ended, and the calls of others.

    The work of others is computed from the replica's reports: it is the reported work minus our own. A report is
    already old when it arrives, and our own work may have changed since. So the highest value that our own work had
    since the previous report is subtracted. That way our own calls are not taken for those of others.
    """

    def __init__(self) -> None:
        self._tasks: Final[dict[Hashable, Task]] = {}
        self._others = 0.0
        self._peak = 0.0

    def __contains__(self, name: Hashable) -> bool:
        return name in self._tasks

    def begin(self, name: Hashable, task: Task, now_s: float) -> None:
        """Notes that a call was sent. If there is a task of this name already, the call shares it."""
        self._tasks.setdefault(name, task).num_calls += 1
        self._peak = max(self._peak, self._own(now_s))

    def end(self, name: Hashable) -> None:
        """Notes that one call of this name has ended. The task ends with its last call."""
        task = self._tasks[name]
        task.num_calls -= 1
        if not task.num_calls:
            del self._tasks[name]

    def report(self, total: float, now_s: float) -> None:
        """Notes the replica's report of all its work, which this process and all others sent."""
        own = self._own(now_s)
        self._others = max(0.0, total - max(self._peak, own))
        self._peak = own

    def total(self, now_s: float) -> float:
        """The work of this replica, our own and that of others, in the unit of the weights."""
        return self._others + self._own(now_s)

    def _own(self, now_s: float) -> float:
        return sum(task.weight if now_s < task.settles_at_s else task.settled for task in self._tasks.values())


@dataclass(slots=True)
class ReplicaState:
    """One replica as this process knows it. ``kv_use`` is the used share of a decoder's KV cache, from 0 to 1."""

    work: Work = field(default_factory=Work)
    held: Held = field(default_factory=Held)
    kv_use: float = 0.0


class Routes(ABC, Generic[Item]):
    """One process's view of a pool, and the base class of both kinds of routing.

    The caller says ``sent`` and later ``ended`` for every call. Times are seconds on any clock that never goes back.
    """

    def __init__(self) -> None:
        self._states: Final[dict[Replica, ReplicaState]] = {}
        self._calls: Final[dict[CallId, tuple[Replica, Hashable]]] = {}

    @abstractmethod
    def rank(self, item: Item, replicas: Collection[Replica], now_s: float) -> list[Replica]:
        """The replicas, the best one for this item first. All of them are in the result."""

    def sent(self, call: CallId, item: Item, replica: Replica, now_s: float, *, is_sure: bool = True) -> None:
        """Notes that a call goes to a replica. If the call was noted for another replica before, it moves to this one.

        Args:
            call: A name of the call that no other call has.
            item: The picture or conversation of the call.
            replica: The replica.
            now_s: The time of sending.
            is_sure: Whether the replica has accepted the call. Only then is the item noted as cached there.
        """
        state = self._state(replica)
        if self._calls.get(call, ("", None))[0] != replica:
            self.ended(call)
            name, task = self._task(call, item, state, now_s)
            self._calls[call] = (replica, name)
            state.work.begin(name, task, now_s)
        if is_sure:
            self._hold(item, state.held)

    @abstractmethod
    def report(self, replica: Replica, stats: Mapping[str, float], now_s: float) -> None:
        """Notes a replica's own report of its work, which comes from all processes that send to it."""

    def describe(self, replica: Replica, *, max_held: float) -> None:
        """Sets the size of a replica's cache: an encoder's in patches, a decoder's in tokens of its KV cache."""
        self._state(replica).held.capacity = max_held

    def ended(self, call: CallId) -> None:
        """Notes that a call has ended, or was never sent. A call that is not known here is ignored."""
        replica, name = self._calls.pop(call, ("", None))
        if replica in self._states and name in (work := self._states[replica].work):
            work.end(name)

    def retain(self, replicas: Collection[Replica]) -> None:
        """Forgets every replica that is not among these."""
        for replica in self._states.keys() - set(replicas):
            del self._states[replica]

    def _state(self, replica: Replica) -> ReplicaState:
        if (state := self._states.get(replica)) is None:
            state = self._states[replica] = ReplicaState()
        return state

    @abstractmethod
    def _task(self, call: CallId, item: Item, state: ReplicaState, now_s: float) -> tuple[Hashable, Task]:
        """The work of a call for a replica: a task, and the task's name. Calls with the same name share one task."""

    @abstractmethod
    def _hold(self, item: Item, held: Held) -> None:
        """Notes everything that a replica has in its cache after it has worked on this item."""
