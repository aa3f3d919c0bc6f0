"""The results of a simulation: the end of each request, the sizes of the pools over time, and GPU-hours."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from cluster.scaling.policy import Reason

Ending = Literal["answered", "overloaded", "too long", "unfinished"]
"""``answered``; refused as ``overloaded`` by a full Router, or as ``too long`` for the KV cache; ``unfinished`` when
the simulation stopped."""


@dataclass(slots=True)
class RequestOutcome:
    """One request and its times.

    Args:
        at_s: The time of its arrival.
        output_tokens: The tokens of its answer.
        ending: Its end.
        ttft_s: Seconds from its arrival to its first token, or None if there was none.
        latency_s: Seconds from its arrival to its last token, or None if there was none.
        waits_s: Seconds that it waited in each pool before its first token. Of several pictures the one that was ready
            last counts.
    """

    at_s: float
    output_tokens: int
    ending: Ending = "unfinished"
    ttft_s: float | None = None
    latency_s: float | None = None
    waits_s: dict[str, float] = field(default_factory=dict)

    @property
    def itl_s(self) -> float | None:
        """The mean seconds between two tokens of the answer; 0 for a single token, None without an answer."""
        if self.ttft_s is None or self.latency_s is None:
            return None
        return (self.latency_s - self.ttft_s) / max(1, self.output_tokens - 1)


@dataclass(frozen=True, slots=True)
class LatencyGoal:
    """The service level that is wanted: a share of all requests within both times.

    Args:
        ttft_s: The longest time to the first token.
        itl_s: The longest mean time between two tokens of an answer.
        share: The share of the requests that must meet both, from 0 to 1.
    """

    ttft_s: float
    itl_s: float
    share: float = 0.95

    def is_met_by(self, outcome: RequestOutcome) -> bool:
        """Whether a request was answered within both times."""
        ttft_s, itl_s = outcome.ttft_s, outcome.itl_s
        return ttft_s is not None and itl_s is not None and ttft_s <= self.ttft_s and itl_s <= self.itl_s


@dataclass(frozen=True, slots=True)
class PoolTick:
    """One pool at one time.

    Args:
        at_s: The time.
        pool: The name of the pool.
        num_running: Replicas that serve.
        num_starting: Replicas that start.
        num_draining: Replicas that finish their calls and take no new ones.
        target: The replicas that the pool should have.
        reason: The reason of the policy, or None for fixed sizes.
    """

    at_s: float
    pool: str
    num_running: int
    num_starting: int
    num_draining: int
    target: int
    reason: Reason | None


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """All results of a simulation.

    Args:
        duration_s: The length of the schedule. GPU-hours and busy shares are counted up to then.
        requests: One outcome for each arrival, in the order of the schedule.
        ticks: The pools over time.
        gpu_hours: The GPU-hours of each pool. Replicas that start or drain count.
        busy_shares: The busy seconds of each pool over the seconds of its replicas.
        num_pictures_made: The pictures that encoders encoded. A picture that was kept or shared does not count.
    """

    duration_s: float
    requests: Sequence[RequestOutcome]
    ticks: Sequence[PoolTick]
    gpu_hours: Mapping[str, float]
    busy_shares: Mapping[str, float]
    num_pictures_made: int

    @property
    def endings(self) -> Counter[Ending]:
        """How many requests ended in each way."""
        return Counter(request.ending for request in self.requests)

    def attainment(self, goal: LatencyGoal) -> float:
        """The share of all requests that met a goal. A schedule without requests meets every goal."""
        met = sum(goal.is_met_by(request) for request in self.requests)
        return met / len(self.requests) if self.requests else 1.0

    def ttft_s(self, share: float) -> float:
        """The time to the first token that a share of all requests did not exceed. Requests without one count as
        infinite."""
        return quantile((math.inf if one.ttft_s is None else one.ttft_s for one in self.requests), share)

    def itl_s(self, share: float) -> float:
        """The mean time between tokens that a share of all requests did not exceed, as ``ttft_s``."""
        return quantile((math.inf if one.itl_s is None else one.itl_s for one in self.requests), share)

    def binding_pool(self, goal: LatencyGoal) -> str:
        """The pool that makes requests late: requests that missed the goal waited longest there, added up.

        If all requests met the goal, it is the busiest pool.
        """
        missed = [request.waits_s for request in self.requests if not goal.is_met_by(request)]
        waits_s = {pool: sum(waits.get(pool, 0.0) for waits in missed) for pool in self.busy_shares}
        measure = waits_s if any(waits_s.values()) else self.busy_shares
        return max(measure, key=lambda pool: measure[pool])


def quantile(values: Iterable[float], share: float) -> float:
    """The smallest value that at least a share of all values do not exceed; 0 if there are none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0
