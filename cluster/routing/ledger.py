"""What one process knows of a pool: the work that each replica has to do, and what its cache should hold."""

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
"""Names that are remembered for one replica, in about 10 MB."""


class Held:
    """What one replica's cache should hold, by name: what was not used for longest goes first, as it does there."""

    def __init__(self) -> None:
        self.capacity = math.inf
        self.weight = 0.0
        self._names: Final[OrderedDict[Hashable, float]] = OrderedDict()

    def __contains__(self, name: Hashable) -> bool:
        return name in self._names

    def use(self, name: Hashable, weight: float) -> None:
        """It is used now, and held from now on. The weights of all that is held come to ``capacity`` at the most."""
        self.weight += weight - self._names.pop(name, 0.0)
        self._names[name] = weight
        while self.weight > self.capacity or len(self._names) > MAX_HELD:
            self.weight -= self._names.popitem(last=False)[1]


@dataclass(slots=True)
class Task:
    """Work that this process gave to a replica; ``num_calls`` share it. From ``settles_at_s`` on it weighs ``settled``."""

    weight: float
    settled: float
    settles_at_s: float = math.inf
    num_calls: int = 0


class Work:
    """What one replica has to do: what this process sent there and has not seen end, and what others sent.

    The others' is what the replica reports beyond the most that this process had there since the report before: a
    report is old when it comes, and of our own calls we know better.
    """

    def __init__(self) -> None:
        self._tasks: Final[dict[Hashable, Task]] = {}
        self._others = 0.0
        self._peak = 0.0

    def __contains__(self, name: Hashable) -> bool:
        return name in self._tasks

    def begin(self, name: Hashable, task: Task, now_s: float) -> None:
        """A call is sent. Calls of one name share one task."""
        self._tasks.setdefault(name, task).num_calls += 1
        self._peak = max(self._peak, self._own(now_s))

    def end(self, name: Hashable) -> None:
        """A call of this name is over."""
        task = self._tasks[name]
        task.num_calls -= 1
        if not task.num_calls:
            del self._tasks[name]

    def report(self, total: float, now_s: float) -> None:
        """The replica says how much it has to do, for this process and all others."""
        own = self._own(now_s)
        self._others = max(0.0, total - max(self._peak, own))
        self._peak = own

    def total(self, now_s: float) -> float:
        """All of it, in the unit of the weights."""
        return self._others + self._own(now_s)

    def _own(self, now_s: float) -> float:
        return sum(task.weight if now_s < task.settles_at_s else task.settled for task in self._tasks.values())


@dataclass(slots=True)
class ReplicaState:
    """What is known of one replica."""

    work: Work = field(default_factory=Work)
    held: Held = field(default_factory=Held)
    kv_use: float = 0.0


class Routes(ABC, Generic[Item]):
    """One process's view of a pool. Every call is ``sent`` and ``ended``."""

    def __init__(self) -> None:
        self._states: Final[dict[Replica, ReplicaState]] = {}
        self._calls: Final[dict[CallId, tuple[Replica, Hashable]]] = {}

    @abstractmethod
    def rank(self, item: Item, replicas: Collection[Replica], now_s: float) -> list[Replica]:
        """The replicas, the best one for this item first."""

    def sent(self, call: CallId, item: Item, replica: Replica, now_s: float, *, is_sure: bool = True) -> None:
        """A call goes to a replica, which will hold what it needs if that is sure. Said again, it goes to this one
        instead."""
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
        """A replica says what it has to do, for all who send to it."""

    def describe(self, replica: Replica, *, max_held: float) -> None:
        """How much a replica can hold: patches whose embeddings an encoder keeps, tokens in a decoder's KV cache."""
        self._state(replica).held.capacity = max_held

    def ended(self, call: CallId) -> None:
        """The call is over, or went nowhere. One that is not known is none of ours."""
        replica, name = self._calls.pop(call, ("", None))
        if replica in self._states and name in (work := self._states[replica].work):
            work.end(name)

    def retain(self, replicas: Collection[Replica]) -> None:
        """Forgets the replicas that are gone."""
        for replica in self._states.keys() - set(replicas):
            del self._states[replica]

    def _state(self, replica: Replica) -> ReplicaState:
        if (state := self._states.get(replica)) is None:
            state = self._states[replica] = ReplicaState()
        return state

    @abstractmethod
    def _task(self, call: CallId, item: Item, state: ReplicaState, now_s: float) -> tuple[Hashable, Task]:
        """The name of the work that a call is for a replica, and what it weighs."""

    @abstractmethod
    def _hold(self, item: Item, held: Held) -> None:
        """Notes what a replica holds once it has worked on this."""
