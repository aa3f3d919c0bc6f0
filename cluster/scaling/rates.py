"""Computes from a pool's counters how much work arrives per second, and how fast one replica does it.

All figures come from counters that only grow, read from time to time. A counter that went back belongs to a process
that has restarted. The demand then counts its whole new value; the velocity leaves that pair of readings out. A figure
that is no finite number, or is negative, counts as missing.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

MIN_FAST_S: Final = 10.0
MAX_FAST_S: Final = 60.0
SLOW_S: Final = 180.0
"""The demand is at least the larger of its means over a fast time and a slow time. The fast mean sees a spike
soon, and the slow mean bridges a pause."""
FAST_SHARE: Final = 0.2
"""The fast time as a share of the time that a replica takes to start. A burst that is over long before a replica has
started is no reason to start one. Simulated (an hour of ServeGen, decoders that start in 300 s, 2026-11-29): price of
the GPUs, with 10 s and with 60 s → 40.85, 28.19."""
JUMP: Final = 2.0
"""Growth by this factor within the fast time is taken for a jump."""
LATEST_SHARES: Final = (0.15, 0.3)
"""The height of a jump is the largest of three means: the fast mean, and the means over these two shares of the fast
time. The shorter share shows the height sooner. Measured (simulated, 120 loads of ``tests.helpers.closed_loop``,
2026-11-30): with the longer one alone → with both: raised within 5 s 105 → 111, TTFT p95 13.4 s → 12.8 s."""
CLEAR_GROWTH: Final = 1.35
"""Growth by this factor within the fast time is taken for a trend."""
MAX_TREND: Final = 1.25
"""A trend is continued by this factor at most."""
VELOCITY_MEMORY_S: Final = 10.0
"""After this many busy seconds, new measurements make up 63 % of the average."""

MAX_FIGURE: Final = 1e18
"""No counter can be larger. A larger one is a defect and would not add up."""


@dataclass(frozen=True, slots=True)
class Offered:
    """The work for a pool that one process has seen arrive since it started. ``at_s`` is the time of the reading."""

    at_s: float
    work: float


@dataclass(frozen=True, slots=True)
class Served:
    """The counters of one replica of a pool since its start.

    Args:
        at_s: The time of the reading.
        work: The work that is done, in the pool's unit: patches, tokens, pixels or requests.
        busy_s: The seconds in which the replica itself worked. Time spent waiting for another pool is not included.
        waiting: The work that has come here and is not finished.
        fullness: The share of the replica's room that is used, from 0 to 1, such as a decoder's KV cache.
    """

    at_s: float
    work: float
    busy_s: float
    waiting: float = 0.0
    fullness: float = 0.0


def is_sound(reading: Offered | Served, now_s: float, max_age_s: float) -> bool:
    """Whether every figure of a reading is a possible number, and the reading is recent."""
    figures = (
        (reading.work,)
        if isinstance(reading, Offered)
        else (reading.work, reading.busy_s, reading.waiting, reading.fullness)
    )
    return (
        all(0 <= figure <= MAX_FIGURE for figure in figures)  # also refuses NaN
        and math.isfinite(reading.at_s)
        and now_s - max_age_s <= reading.at_s <= now_s + max_age_s
    )


def fast_time_s(lead_s: float) -> float:
    """The seconds of the fast mean of a pool whose replicas take so many seconds to start."""
    return min(max(FAST_SHARE * lead_s, MIN_FAST_S), MAX_FAST_S)


class Demand:
    """The rate at which work arrives, over all processes that count it."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}
        self._total = 0.0
        self._history: Final[deque[tuple[float, float]]] = deque()

    def note(self, offered: Mapping[str, Offered], now_s: float, *, queued: float = 0.0) -> None:
        """Takes new readings.

        Args:
            offered: What each process has counted, by its name.
            now_s: The time.
            queued: The work that waits before these processes and that they have not counted yet. It counts once, when
                it begins to wait. Otherwise a queue that flows into a new replica would look like new demand.
        """
        for name, reading in offered.items():
            before = self._last.get(name)
            if before is not None:
                self._total += reading.work - before if reading.work >= before else reading.work
            self._last[name] = reading.work
        for name in self._last.keys() - offered.keys():
            del self._last[name]
        self._history.append((now_s, self._total + queued))
        while len(self._history) > 2 and self._history[1][0] <= now_s - SLOW_S:
            self._history.popleft()

    def per_s(self, lead_s: float, slow_s: float = SLOW_S) -> float:
        """The demand in work per second: the larger of a fast mean and a slow mean.

        Args:
            lead_s: The seconds that a replica takes to start.
            slow_s: The seconds of the slow mean, at most ``SLOW_S``.
        """
        now_s, fast_s = self._now_s, fast_time_s(lead_s)
        return max(self._mean(now_s - fast_s, now_s), self._mean(now_s - max(fast_s, min(slow_s, SLOW_S)), now_s))

    def ahead_per_s(self, lead_s: float) -> float:
        """The demand as it will be when a replica that starts now works, if the demand clearly grows; 0 otherwise.

        A jump is taken to stay at the height of the last seconds. Other growth is continued for the time of a start,
        at most a little beyond the demand of the last seconds. Work that comes after a pause is no growth: one long
        prompt would look like a jump.
        """
        now_s, fast_s = self._now_s, fast_time_s(lead_s)
        fast, before = self._mean(now_s - fast_s, now_s), self._mean(now_s - 2 * fast_s, now_s - fast_s)
        if not self._history or now_s - self._history[0][0] < 2 * fast_s or not 0 < before <= fast / CLEAR_GROWTH:
            return 0.0
        if fast >= JUMP * before:
            return max(fast, *(self._mean(now_s - share * fast_s, now_s) for share in LATEST_SHARES))
        latest = max(fast, self._mean(now_s - fast_s / 2, now_s))
        return min(MAX_TREND * latest, fast + (fast - before) / fast_s * lead_s)

    @property
    def _now_s(self) -> float:
        return self._history[-1][0] if self._history else 0.0

    def _mean(self, first_s: float, last_s: float) -> float:
        """Work per second between two times.

        Time before the first reading does not count. If that leaves less than ``MIN_FAST_S``, the work is divided by
        ``MIN_FAST_S``, or by the whole span if that is shorter. Otherwise a few requests in the first second would look
        like a high demand.
        """
        if not self._history or last_s <= first_s:
            return 0.0
        length_s = max(last_s - max(first_s, self._history[0][0]), min(last_s - first_s, MIN_FAST_S))
        return max(0.0, self._at(last_s) - self._at(first_s)) / length_s

    def _at(self, time_s: float) -> float:
        """The total at a time, between readings on a straight line."""
        before = self._history[0]
        if time_s <= before[0]:
            return before[1]
        for start, end in itertools.pairwise(self._history):
            if time_s <= end[0]:
                return start[1] + (end[1] - start[1]) * (time_s - start[0]) / (end[0] - start[0])
        return self._history[-1][1]


class Velocity:
    """The work that one busy replica does per second, learnt from all replicas of a pool.

    Work is divided by busy time and not by time, so the velocity is right at a low load as well.
    """

    def __init__(self) -> None:
        self._last: dict[str, Served] = {}
        self._work = 0.0
        self._busy_s = 0.0

    def note(self, served: Mapping[str, Served]) -> None:
        """Takes new readings, by the name of the replica."""
        for name, reading in served.items():
            before = self._last.get(name)
            if before is not None and reading.work >= before.work and reading.busy_s > before.busy_s:
                busy_s = reading.busy_s - before.busy_s
                kept = math.exp(-busy_s / VELOCITY_MEMORY_S)
                self._work = kept * self._work + reading.work - before.work
                self._busy_s = kept * self._busy_s + busy_s
            self._last[name] = reading
        for name in self._last.keys() - served.keys():
            del self._last[name]

    @property
    def per_busy_s(self) -> float | None:
        """Work per busy second; None as long as no work has been seen."""
        return self._work / self._busy_s if self._work > 0 and self._busy_s > 0 else None
