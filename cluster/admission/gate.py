"""A gate in front of a stage: it bounds the work inside, and lets the rest wait in the Router in fair order.

In: the size and the cost of a request. Out: a ``Pass``, at once or when there is room.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, defaultdict
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

from cluster.admission.fair_queue import FairQueue

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

LOOK_PERIOD_S: Final = 0.5
"""While requests wait, the gate looks so often for room that nobody has told it of."""
SLOW_CLIENT_S: Final = 1.0
"""A request whose client has not taken a piece for so long no longer counts: its stage does not wait for the client."""
RESERVED_SHARE: Final = 1 / 16
"""While several tenants are active, so much of the room is kept free for those that use less than half of their part of
it. So requests of a small tenant go in at once, while a large one waits."""
ACTIVE_S: Final = 60.0
"""A tenant is active for so long after a request."""
LATEST_WEIGHT: Final = 0.05
"""The weight of the latest request in the mean of the times that requests stay inside."""


class Pass:
    """The right of one request to be inside a stage. Giving it back a second time has no effect."""

    __slots__ = ("_clock", "_gate", "cost", "entered_s", "paused_s", "size", "tenant")

    def __init__(self, gate: Gate, tenant: str, size: float, cost: float, clock: Callable[[], float]) -> None:
        self._gate: Gate | None = gate
        self.tenant: Final = tenant
        self._clock: Final = clock
        self.size: Final = size
        self.cost: Final = cost
        self.entered_s = clock()
        """The time since which the stage works for the request; infinite while it is held back."""
        self.paused_s = math.inf
        """The time since which a piece of the answer waits for the client; infinite if none does."""

    def hold_back(self) -> None:
        """Says that the stage gets the request later, because the request waits for something else."""
        self.entered_s = math.inf

    def begin(self) -> None:
        """Says that the stage gets the request now. Only the time from now on tells how fast the stage is."""
        self.entered_s = self._clock()

    def leave(self, *, is_done: bool = False) -> None:
        """Gives the pass back.

        Args:
            is_done: True if the stage has done all of its work. Only then its time tells how fast the stage is.
        """
        gate, self._gate = self._gate, None
        if gate is not None:
            gate.left(self, is_done=is_done)

    async def watched(
        self, pieces: AsyncGenerator[str], is_usual: Callable[[], bool] = lambda: True
    ) -> AsyncGenerator[str]:
        """Yields the pieces of an answer. It gives the pass back at the end, after an error, and when it is closed.

        Args:
            pieces: The pieces.
            is_usual: Asked at the end. If it is False, the time of the answer does not tell how fast the stage is. A
                slow client has the same effect.
        """
        is_done = is_slow = False
        try:
            async with aclosing(pieces):
                async for piece in pieces:
                    self.paused_s = self._clock()
                    yield piece
                    is_slow = is_slow or self._clock() - self.paused_s > SLOW_CLIENT_S
                    self.paused_s = math.inf
            is_done = not is_slow and is_usual()
        finally:
            self.leave(is_done=is_done)


class _Waiter:
    __slots__ = ("cost", "passed", "priority", "since_s", "size", "tenant")

    def __init__(self, tenant: str, size: float, cost: float, priority: int, since_s: float) -> None:
        self.tenant: Final = tenant
        self.size: Final = size
        self.cost: Final = cost
        self.priority: Final = priority
        self.since_s: Final = since_s
        self.passed: Final[asyncio.Future[Pass]] = asyncio.get_running_loop().create_future()


class Gate:
    """Lets requests into a stage while it is not full. The last one may be larger than the room that is left.

    Args:
        room: The size inside at which the stage is full. It is asked each time, because pools grow and shrink.
        clock: A monotonic clock in seconds.
    """

    def __init__(self, room: Callable[[], float], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._room: Final = room
        self._clock: Final = clock
        self._inside: Final[dict[Pass, None]] = {}
        self._size_inside = self._cost_inside = 0.0
        self._sizes: Final[defaultdict[str, float]] = defaultdict(float)
        self._newest: Final[list[tuple[str, float]]] = []
        self._queue: Final[FairQueue[_Waiter]] = FairQueue()
        self._waiting: Final[dict[_Waiter, None]] = {}
        self._waiting_cost: Final[defaultdict[str, float]] = defaultdict(float)
        self._cost_by_priority: Final[defaultdict[int, float]] = defaultdict(float)
        self._num_waiting: Final[Counter[str]] = Counter()
        self._done_cost = self._done_cost_s = 0.0
        self._look: asyncio.TimerHandle | None = None

    @property
    def num_waiting(self) -> int:
        """The requests that wait."""
        return len(self._waiting)

    @property
    def oldest_wait_s(self) -> float:
        """The seconds that the request has waited which waits for the longest time; 0 if none waits."""
        return self._clock() - next(iter(self._waiting)).since_s if self._waiting else 0.0

    def num_waiting_of(self, tenant: str) -> int:
        """The requests of one tenant that wait."""
        return self._num_waiting[tenant]

    def try_enter(self, tenant: str, size: float, cost: float) -> Pass | None:
        """A pass at once, or None if there is no room or others wait."""
        self._note(tenant)
        if self._waiting or not self._has_room(tenant):
            return None
        self._queue.charge(tenant, cost)
        return self._let_in(tenant, size, cost)

    async def enter(self, tenant: str, size: float, cost: float, priority: int = 0) -> Pass:
        """Waits for a pass, in fair order.

        Args:
            tenant: The tenant that pays.
            size: The room that the request takes inside.
            cost: What it costs, in the unit in which the tenants are treated alike.
            priority: See ``FairQueue.push``.
        """
        self._note(tenant)
        waiter = _Waiter(tenant, size, cost, priority, self._clock())
        number = self._queue.push(waiter, tenant, cost, priority)
        self._waiting[waiter] = None
        self._waiting_cost[tenant] += cost
        self._cost_by_priority[priority] += cost
        self._num_waiting[tenant] += 1
        self.look()
        try:
            return await waiter.passed
        except asyncio.CancelledError:
            if waiter in self._waiting:
                self._queue.remove(number)
                self._forget(waiter)
                self.look()
            elif waiter.passed.done() and not waiter.passed.cancelled():
                waiter.passed.result().leave()
            raise

    def left(self, one: Pass, *, is_done: bool) -> None:
        """Called by a pass that is given back."""
        del self._inside[one]
        self._size_inside -= one.size
        self._sizes[one.tenant] -= one.size
        if not self._sizes[one.tenant]:
            del self._sizes[one.tenant]
        self._cost_inside -= one.cost
        if is_done:
            cost_s = one.cost * (self._clock() - one.entered_s)
            weight = LATEST_WEIGHT if self._done_cost else 1.0
            self._done_cost += weight * (one.cost - self._done_cost)
            self._done_cost_s += weight * (cost_s - self._done_cost_s)
        self.look()

    def look(self) -> None:
        """Lets those in for whom there is room. It must be called when the room may have grown."""
        while self._waiting and self._has_room(self._queue.first().tenant):
            waiter = self._queue.pop()
            self._forget(waiter)
            if not waiter.passed.done():
                waiter.passed.set_result(self._let_in(waiter.tenant, waiter.size, waiter.cost))
        if self._waiting and self._look is None:
            self._look = asyncio.get_running_loop().call_later(LOOK_PERIOD_S, self._look_again)

    def rate(self) -> float | None:
        """The cost that the stage gets done per second when it is full. None if nothing is inside.

        By Little's law, it is the cost inside, divided by the time that a unit of cost stays inside. If the stage is
        not full, the cost inside counts as many times as it would fit. Until the first request has ended, requests are
        taken to stay for twice the time that the oldest has been inside, and for a second at least.
        """
        if not self._inside:
            return None
        if self._done_cost_s:
            stay_s = self._done_cost_s / self._done_cost
        else:
            stay_s = max(1.0, 2 * (self._clock() - min(one.entered_s for one in self._inside)))
        return self._cost_inside * max(1.0, self._room() / self._size_inside) / stay_s

    def share(self, tenant: str) -> float:
        """The share of the stage that a tenant gets while the others that wait go on waiting."""
        return 1 / (len(self._num_waiting) + (tenant not in self._num_waiting))

    def wait_s(self, tenant: str, priority: int = 0) -> float:
        """The seconds that a new request of a tenant would wait, as far as that can be told: the time in which all
        requests of a higher priority are let in, and then those of the tenant that wait already."""
        if not self._waiting and self._has_room(tenant):
            return 0.0
        if not (rate := self.rate()):
            return 0.0
        higher = sum(cost for other, cost in self._cost_by_priority.items() if other > priority)
        return (higher + self._waiting_cost.get(tenant, 0.0) / self.share(tenant)) / rate

    def takes_s(self, tenant: str, cost: float | None = None) -> float:
        """The seconds that the stage takes for a request at the tenant's share of its rate; 0 if nothing is inside.

        Args:
            tenant: The tenant.
            cost: What the request costs; None for the usual.
        """
        rate = self.rate()
        return (self._done_cost if cost is None else cost) / (rate * self.share(tenant)) if rate else 0.0

    def _has_room(self, tenant: str) -> bool:
        if not self._inside:
            return True
        room = self._room()
        is_large = self._sizes.get(tenant, 0.0) >= room / (2 * len(self._sizes))
        if is_large and self._has_others(tenant):
            room -= RESERVED_SHARE * room
        return self._size_inside < room

    def _has_others(self, tenant: str) -> bool:
        """Returns True if another tenant is active."""
        return any(name != tenant and self._clock() - at_s < ACTIVE_S for name, at_s in self._newest)

    def _note(self, tenant: str) -> None:
        """Remembers the two tenants that were here last; one of them is another one than any given tenant."""
        self._newest[:] = [(tenant, self._clock()), *(one for one in self._newest if one[0] != tenant)][:2]

    def _let_in(self, tenant: str, size: float, cost: float) -> Pass:
        one = Pass(self, tenant, size, cost, self._clock)
        self._inside[one] = None
        self._size_inside += size
        self._sizes[tenant] += size
        self._cost_inside += cost
        return one

    def _forget(self, waiter: _Waiter) -> None:
        del self._waiting[waiter]
        self._waiting_cost[waiter.tenant] -= waiter.cost
        self._cost_by_priority[waiter.priority] -= waiter.cost
        self._num_waiting[waiter.tenant] -= 1
        if not self._num_waiting[waiter.tenant]:
            del self._num_waiting[waiter.tenant], self._waiting_cost[waiter.tenant]
        if not self._waiting:
            self._cost_by_priority.clear()  # with what rounding has left

    def _look_again(self) -> None:
        self._look = None
        now_s = self._clock()
        for one in [one for one in self._inside if now_s - one.paused_s > SLOW_CLIENT_S]:
            one.leave()
        self.look()
