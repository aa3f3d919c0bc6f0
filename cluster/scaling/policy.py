"""Decides how many replicas each pool should have, for all pools together.

In: counters of all pools, from time to time. Out: a target and a reason for each pool. The policy reads no clock and
sends nothing, so the live cluster and a simulation can use the same one.

How it decides, for one pool:

- **Work.** The demand, in work per second, over the velocity of one busy replica is the load: the number of replicas
  that would be busy all the time. The pool wants the load and a reserve of ``RESERVE`` times its square root, because
  a larger pool needs less reserve in proportion. It wants more if work waits: the work that will still wait when a new
  replica has started is to be done within the time of a start, or within ``wait_budget_s`` if that is longer. It also
  wants more if the room of its replicas, such as KV caches, is nearly full.
- **Up, at once.** A pool that wants more gets it in one step. While the replicas that it wants for its demand increase
  from one decision to the next, it waits for up to ``RISING_S``, unless it is empty. Work that waits counts only in the
  pool where it waits longest, since the pools behind it wait for that one. Replicas that are starting count as if they
  worked, and while they start only a larger demand raises the target again. If they do not start in time, there is no
  room for them, and the policy stops asking.
- **Down, slowly.** The target follows the highest wish of a whole window, and only when it lies below the dead band.
  No start is cancelled before it has taken a whole window. Pools whose replicas are costly to stop give up one at a
  time.
- **No data, no change.** If counters of a running replica or of a source are missing, old or impossible, the target
  stays, within its bounds.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Literal

from cluster.scaling.rates import MAX_FIGURE, Demand, Offered, Served, Velocity, is_sound

if TYPE_CHECKING:
    from collections.abc import Mapping

Reason = Literal[
    "bounds",
    "no data",
    "unknown speed",
    "demand",
    "backlog",
    "room",
    "rising",
    "starting",
    "capacity",
    "window",
    "pause",
    "enough",
]
"""Why a pool has its target: see ``Decision``."""

RESERVE: Final = 0.7
"""The reserve of a pool is this multiple of the square root of its load."""
MAX_FULLNESS: Final = 0.8
"""The share of the pool's room, such as KV caches, that may be used."""
DEAD_BAND: Final = 0.1
"""A wish that is lower than the target by less than this share changes nothing."""
MIN_WINDOW_S: Final = 300.0
LEADS_PER_WINDOW: Final = 3.0
"""The window for going down, in seconds and in lead times; the longer one counts."""
MAX_AGE_S: Final = 10.0
"""Counters older than this count as missing."""
PATIENCE: Final = 2.0
"""Lead times after which a start that has not succeeded counts as one for which there is no room."""
RISING_S: Final = 1.0
"""A pool waits up to this long while the replicas that it wants for its demand still increase. Without the wait it
would grow in several steps."""
MAX_LEAD_S: Final = 1200.0
"""The longest lead time that is learnt. A replica that takes longer has waited for room."""
MAX_WISH: Final = 100_000
"""The most replicas that a pool may want, whatever its counters say."""
MAX_GAP_S: Final = 30.0
"""After a longer time without counters, the window for going down starts again."""


@dataclass(frozen=True, slots=True)
class PoolTraits:
    """The facts about a pool that are given to the policy at its creation.

    Args:
        lead_s: The first estimate of the seconds that a start takes. Each start that is seen moves the estimate half
            the way.
        wait_budget_s: How long work may wait in this pool, in seconds: its share of the time to the first token. Work
            that waits is to be done in this time, or in the time that a start takes if that is longer.
        is_costly_to_stop: Whether replicas go one at a time, because each takes a cache with it.
        min_window_s: The pool shrinks to the highest wish of at least so many seconds. The slow mean of the demand is
            over at most as many.
        min_pause_s: The least time between two changes of the target, in seconds.
        is_entry: Whether every request stays in this pool while the other pools work on it. The pool is then full when
            any other is short, so a lack of room counts only if none is.
    """

    lead_s: float
    wait_budget_s: float
    is_costly_to_stop: bool = False
    min_window_s: float = MIN_WINDOW_S
    min_pause_s: float = 0.0
    is_entry: bool = False


@dataclass(frozen=True, slots=True)
class PoolReading:
    """One pool as it is now.

    Args:
        running: The names of its running replicas.
        target: The number of replicas that it should have, by the last decision.
        min_replicas: The fewest replicas that it may have.
        max_replicas: The most replicas that it may have.
        sources: The names of the running processes that count the work which arrives for this pool.
        offered: The counts of these processes, by their names.
        served: The counters of each replica, by its name.
        num_queued: The calls that wait for a replica with room. They wake a pool that has no replica.
        queued_work: The work of these calls.
    """

    running: frozenset[str]
    target: int
    min_replicas: int
    max_replicas: int
    sources: frozenset[str]
    offered: Mapping[str, Offered]
    served: Mapping[str, Served]
    num_queued: float = 0.0
    queued_work: float = 0.0


@dataclass(frozen=True, slots=True)
class Decision:
    """The number of replicas that a pool should have, and why.

    Args:
        target: The number of replicas.
        wanted: The replicas that the pool would like to have now; None for ``no data`` and ``unknown speed``.
        reason: ``demand``, ``backlog`` or ``room``: what the pool wants them for, if the target changes or is met.
            ``rising``: the wish still grows, and soon the pool will get what it needs. ``starting``: more are on their
            way. ``capacity``: they do not start, so there is no room. ``window``: fewer would do now, but not all
            through the window. ``pause``: a costly replica has just gone, or the last change was less than
            ``min_pause_s`` ago. ``enough``: the wish lies within the dead band. ``bounds``: the wish or the last target
            lies outside the bounds. ``no data``, ``unknown speed``: nothing is known, so nothing changes but what the
            bounds demand.
    """

    target: int
    wanted: int | None
    reason: Reason


@dataclass(frozen=True, slots=True)
class Counts:
    """Whether waiting work and a lack of room ask for replicas of a pool now."""

    backlog: bool
    room: bool


@dataclass(slots=True)
class _Pool:
    """The traits of a pool, and everything that the policy has learnt about it."""

    traits: PoolTraits
    lead_s: float
    demand: Demand = field(default_factory=Demand)
    velocity: Velocity = field(default_factory=Velocity)
    wishes: deque[tuple[float, int]] = field(default_factory=deque)
    starting_since_s: float | None = None
    last_target: int | None = None
    last_running: frozenset[str] = frozenset()
    raised_s: float = 0.0
    last_down_s: float = -math.inf
    last_change_s: float = -math.inf
    wants_more_since_s: float | None = None
    last_wanted: int = 0
    known_since_s: float = math.inf
    last_known_s: float = -math.inf

    @property
    def window_s(self) -> float:
        return max(self.traits.min_window_s, LEADS_PER_WINDOW * self.lead_s)


class JointPolicy:
    """The policy for all pools of one application.

    A new policy knows nothing of the time before, so no pool shrinks before its window has passed.

    Args:
        traits: The pools by their names.
    """

    def __init__(self, traits: Mapping[str, PoolTraits]) -> None:
        self._pools: Final = {name: _Pool(traits=one, lead_s=one.lead_s) for name, one in traits.items()}
        self._now_s = -math.inf

    def set_traits(self, traits: Mapping[str, PoolTraits]) -> None:
        """Replaces the traits of pools, by their names. What the policy has learnt stays, the lead times included."""
        for name, one in traits.items():
            self._pools[name].traits = one

    def lead_s(self, pool: str) -> float:
        """The seconds that a replica of a pool takes to start, as far as the policy knows."""
        return self._pools[pool].lead_s

    def decide(self, readings: Mapping[str, PoolReading], now_s: float) -> dict[str, Decision]:
        """Decides for every pool that has a reading.

        Args:
            readings: The pools as they are now, by name.
            now_s: The time in seconds, on the clock of the readings. If it is a little earlier than that of the last
                call, or no finite number, the time of the last call is taken. If it is much earlier, the clock was set
                back, and all windows begin again.
        """
        if self._now_s - MAX_AGE_S > now_s > -math.inf:
            self._set_back(now_s)
        now_s = self._now_s = max(now_s, self._now_s) if math.isfinite(now_s) else self._now_s
        known = {name: reading for name, reading in readings.items() if name in self._pools}
        backlogs_s = {name: self._take(self._pools[name], reading, now_s) for name, reading in known.items()}
        longest = max(
            (name for name, wait_s in backlogs_s.items() if wait_s), key=lambda n: backlogs_s[n] or 0, default=""
        )
        decisions: dict[str, Decision] = {}
        is_short = False
        for name in sorted(known, key=lambda name: self._pools[name].traits.is_entry):  # the others come first
            reading, pool = known[name], self._pools[name]
            counts = Counts(backlog=name == longest, room=not (pool.traits.is_entry and is_short))
            decisions[name] = decision = self._decide(pool, reading, backlogs_s[name], now_s, counts)
            is_short = is_short or (decision.wanted or 0) > len(reading.running)
        return decisions

    def _set_back(self, now_s: float) -> None:
        self._now_s = now_s
        for pool in self._pools.values():
            pool.demand, pool.starting_since_s, pool.wants_more_since_s = Demand(), None, None
            pool.wishes.clear()
            pool.last_down_s = pool.last_change_s = pool.last_known_s = -math.inf

    def _take(self, pool: _Pool, reading: PoolReading, now_s: float) -> float | None:
        """Notes a pool's counters.

        Returns:
            The seconds in which the running replicas would finish the waiting work; 0 if there are none or their
            velocity is unknown, None if counters are missing.
        """
        self._note_size(pool, reading, now_s)
        offered = {name: one for name, one in reading.offered.items() if is_sound(one, now_s, MAX_AGE_S)}
        served = {name: one for name, one in reading.served.items() if is_sound(one, now_s, MAX_AGE_S)}
        pool.velocity.note(served)
        has_sources = bool(reading.sources) or not reading.running
        if not has_sources or not reading.sources <= offered.keys() or not reading.running <= served.keys():
            return None
        if not 0 <= reading.queued_work <= MAX_FIGURE:  # also refuses NaN
            return None
        if now_s - pool.last_known_s > MAX_GAP_S:
            pool.known_since_s = now_s
            pool.wishes.clear()
        pool.last_known_s = now_s
        pool.demand.note(offered, now_s, queued=reading.queued_work)
        velocity = pool.velocity.per_busy_s
        waiting = reading.queued_work + sum(served[name].waiting for name in reading.running)
        return waiting / (velocity * len(reading.running)) if velocity and reading.running else 0.0

    def _note_size(self, pool: _Pool, reading: PoolReading, now_s: float) -> None:
        """Notes changes of the target, and learns how long a start takes: from the last moment at which the target rose
        until it is reached."""
        if pool.last_target is not None and reading.target != pool.last_target:
            pool.last_change_s = now_s
            pool.last_down_s = now_s if reading.target < pool.last_target else pool.last_down_s
        if len(reading.running) < reading.target:
            if pool.starting_since_s is None:
                pool.starting_since_s = pool.raised_s = now_s
            elif reading.target > (pool.last_target or 0):
                pool.raised_s = now_s
            if reading.running - pool.last_running:
                pool.starting_since_s = now_s  # one has started, so there is room
        elif pool.starting_since_s is not None:
            took_s = min(now_s - pool.raised_s, PATIENCE * pool.lead_s)
            pool.lead_s = min(MAX_LEAD_S, (pool.lead_s + took_s) / 2)
            pool.starting_since_s = None
        pool.last_target, pool.last_running = reading.target, reading.running

    def _decide(
        self, pool: _Pool, reading: PoolReading, backlog_s: float | None, now_s: float, counts: Counts
    ) -> Decision:
        high = max(reading.min_replicas, reading.max_replicas, 0)
        low = max(0, min(reading.min_replicas, high))
        held = min(max(reading.target, low), high)
        if backlog_s is None:
            return Decision(held, None, "no data")
        wish = self._wish(pool, reading, held, backlog_s, counts)
        if wish is None:
            return Decision(held, None, "unknown speed")
        # Work that waits keeps replicas from going. It asks for no further ones while some start: they will take it on.
        wanted, reason = wish
        pool.wishes.append((now_s, min(max(wanted, low), high)))
        if pool.starting_since_s is not None:
            wanted, reason = self._wish(pool, reading, held, backlog_s, replace(counts, backlog=False)) or wish
        within = min(max(wanted, low), high)
        while pool.wishes[0][0] < now_s - pool.window_s:
            pool.wishes.popleft()
        if held != reading.target:
            return Decision(held, wanted, "bounds")
        if within != held and now_s - pool.last_change_s < pool.traits.min_pause_s:
            return Decision(held, wanted, "pause")
        if within <= held:
            pool.wants_more_since_s = None
        if within > held:
            decision = self._up(pool, held, within, wanted, reason, now_s)
        else:
            decision = self._down(pool, reading, held, within, wanted, reason, now_s)
        return decision

    def _wish(
        self, pool: _Pool, reading: PoolReading, held: int, backlog_s: float, counts: Counts
    ) -> tuple[int, Reason] | None:
        """The replicas that a pool wants, and what for; None if its velocity is not known yet."""
        window_s, velocity = pool.traits.min_window_s, pool.velocity.per_busy_s
        demand = pool.demand.per_s(pool.lead_s, window_s)
        if not reading.running and reading.num_queued > 0:
            return max(1, held), "demand"
        if velocity is None:
            is_idle = not demand and not reading.queued_work and not any(s.waiting for s in reading.served.values())
            if reading.running and not is_idle:
                return None
            return (1 if demand else 0), "demand"
        load = demand / velocity
        ahead = pool.demand.ahead_per_s(pool.lead_s) / velocity
        if ahead > max(load, held):  # a smaller rise within seconds may be noise
            load = ahead
        wanted, reason = _whole(load + RESERVE * math.sqrt(load)), "demand"
        # A new replica helps only after its start. The work that still waits at that moment is to be done within
        # another lead time, or within the wait budget if that is longer.
        num_running = len(reading.running)
        replica_s = num_running * backlog_s + (load - num_running) * pool.lead_s
        for_backlog = _whole(load + replica_s / max(pool.traits.wait_budget_s, pool.lead_s))
        if counts.backlog and for_backlog > wanted:
            wanted, reason = for_backlog, "backlog"
        in_use = sum(min(1.0, reading.served[name].fullness) for name in reading.running)
        if counts.room and (for_room := _whole(in_use / MAX_FULLNESS)) > wanted:
            wanted, reason = for_room, "room"
        return wanted, reason  # type: ignore[return-value]

    def _up(self, pool: _Pool, held: int, within: int, wanted: int, reason: Reason, now_s: float) -> Decision:
        if pool.wants_more_since_s is None:
            pool.wants_more_since_s, pool.last_wanted = now_s, held
        is_growing, pool.last_wanted = wanted > pool.last_wanted, wanted
        if held and reason == "demand" and is_growing and now_s - pool.wants_more_since_s < RISING_S:
            return Decision(held, wanted, "rising")
        if (since_s := pool.starting_since_s) is not None:
            if now_s - since_s > PATIENCE * pool.lead_s:
                return Decision(held, wanted, "capacity")
            if within <= held * (1 + DEAD_BAND):
                return Decision(held, wanted, "starting")
        return Decision(within, wanted, reason if within == wanted else "bounds")

    def _down(
        self, pool: _Pool, reading: PoolReading, held: int, within: int, wanted: int, reason: Reason, now_s: float
    ) -> Decision:
        highest = max(wish for _, wish in pool.wishes)
        if (since_s := pool.starting_since_s) is not None and (now_s - since_s < pool.window_s or highest >= held):
            return Decision(held, wanted, "capacity" if now_s - since_s > PATIENCE * pool.lead_s else "starting")
        if within == held:
            return Decision(held, wanted, reason if within == wanted else "bounds")
        if now_s - pool.known_since_s < pool.window_s or highest >= held:
            return Decision(held, wanted, "window")
        if highest > held * (1 - DEAD_BAND) and highest > reading.min_replicas:
            return Decision(held, wanted, "enough")
        if pool.traits.is_costly_to_stop:
            if now_s - pool.last_down_s < pool.lead_s:
                return Decision(held, wanted, "pause")
            highest = held - 1
        pool.starting_since_s = None
        return Decision(highest, wanted, reason)


def _whole(num_replicas: float) -> int:
    """The next whole number of replicas, within bounds."""
    return math.ceil(min(num_replicas, MAX_WISH))
