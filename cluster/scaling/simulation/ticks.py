"""The actions of a simulated cluster at regular times: reports to the request routers, and decisions about sizes."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from cluster.scaling.simulation.outcomes import PoolTick

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cluster.messages import Replica
    from cluster.scaling.policy import Decision
    from cluster.scaling.simulation.engine import DecoderReplica
    from cluster.scaling.simulation.servers import RouterReplica
    from cluster.scaling.simulation.simulated import SimulatedCluster
    from cluster.scaling.simulation.sizing import PoolSnapshot, SizingPolicy
    from cluster.scaling.simulation.speeds import Speeds

TICK_S: Final = 1.0
"""The time between two decisions of the policy."""
METRIC_AGE_S: Final = 1.0
"""The age of the counters that the policy sees, by default. Serve samples every second and sends the samples every
second."""


class Ticks:
    """The actions at regular times.

    ``noted`` has the pools over time.

    Args:
        cluster: The cluster.
        policy: The policy, or None for fixed sizes.
        speeds: The speeds and limits of the replicas.
        metric_age_s: The age of the counters that the policy sees, in seconds. Their ``at_s`` is the time at which they
            were read.
    """

    def __init__(
        self,
        cluster: SimulatedCluster,
        policy: SizingPolicy | None,
        speeds: Speeds,
        metric_age_s: float = METRIC_AGE_S,
    ) -> None:
        self._cluster: Final = cluster
        self._policy: Final = policy
        self._speeds: Final = speeds
        self._reports: dict[Replica, dict[str, float]] = {}
        self._metric_age_s: Final = metric_age_s
        self._snapshots: Final[deque[dict[str, PoolSnapshot]]] = deque()
        """The counters of all pools at the times of the last snapshots, the oldest first."""
        self.noted: Final[list[PoolTick]] = []

    def start(self) -> None:
        """Begins all of them."""
        report_period_s = self._speeds.report_period_s
        self._repeat(report_period_s, report_period_s, self._report)
        self._repeat(TICK_S, TICK_S, self._decide)
        if self._policy is not None:
            self._repeat(-self._metric_age_s % TICK_S, TICK_S, self._read_counters)
        self._note({})

    def _repeat(self, at_s: float, period_s: float, action: Callable[[], None]) -> None:
        def act() -> None:
            action()
            self._repeat(at_s + period_s, period_s, action)

        self._cluster.clock.at(at_s, act)

    def _report(self) -> None:
        """Tells request routers the state of the replicas that they choose from, where it has changed."""
        cluster = self._cluster
        encoders = {name: {"patches": float(one.num_open_patches)} for name, one in cluster.encoders.running.items()}
        decoders = {name: one.stats() for name, one in cluster.decoders.running.items()}
        for decoder in (*cluster.decoders.running.values(), *cluster.decoders.draining.values()):
            self._tell(decoder, encoders, self._speeds.encoder.cache_patches)
        for router in (*cluster.routers.running.values(), *cluster.routers.draining.values()):
            self._tell(router, decoders, self._speeds.decoder.kv_tokens)
        self._reports = {**encoders, **decoders}

    def _tell(
        self,
        caller: RouterReplica | DecoderReplica,
        reports: Mapping[Replica, dict[str, float]],
        max_held: float,
    ) -> None:
        caller.routes.retain(reports)
        if len(reports) < 2:  # there is nothing to choose
            return
        for name, stats in reports.items():
            if stats != self._reports.get(name):
                caller.routes.describe(name, max_held=max_held)
                caller.routes.report(name, stats, self._cluster.clock.now_s)

    def _read_counters(self) -> None:
        self._snapshots.append({pool.name: pool.snapshot() for pool in self._cluster.pools})

    def _decide(self) -> None:
        """Asks the policy, with counters that were read ``metric_age_s`` ago, and resizes the pools.

        The policy is not asked until the first counters are that old.
        """
        decided: Mapping[str, Decision] = {}
        if self._policy is not None and (then := self._counters()):
            readings = {pool.name: pool.reading(then[pool.name]) for pool in self._cluster.pools}
            decided = self._policy.decide(readings, self._cluster.clock.now_s)
            for pool in self._cluster.pools:
                pool.resize(decided[pool.name].target)
        self._note(decided)

    def _counters(self) -> dict[str, PoolSnapshot] | None:
        """The newest counters that are at least ``metric_age_s`` old."""
        latest_s = self._cluster.clock.now_s - self._metric_age_s
        while len(self._snapshots) > 1 and _read_s(self._snapshots[1]) <= latest_s:
            self._snapshots.popleft()
        first = self._snapshots[0] if self._snapshots else None
        return first if first and _read_s(first) <= latest_s else None

    def _note(self, decided: Mapping[str, Decision]) -> None:
        for pool in self._cluster.pools:
            reason = decided[pool.name].reason if decided else None
            sizes = (len(pool.running), pool.num_starting, len(pool.draining), pool.target)
            self.noted.append(PoolTick(self._cluster.clock.now_s, pool.name, *sizes, reason))


def _read_s(snapshot: Mapping[str, PoolSnapshot]) -> float:
    return next(iter(snapshot.values())).at_s
