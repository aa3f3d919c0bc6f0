"""The actions of a simulated cluster at regular times: reports to the request routers, and decisions about sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cluster.scaling.simulation.outcomes import PoolTick

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cluster.messages import Replica
    from cluster.scaling.policy import Decision, JointPolicy
    from cluster.scaling.rates import Offered, Served
    from cluster.scaling.simulation.engine import DecoderReplica
    from cluster.scaling.simulation.servers import RouterReplica
    from cluster.scaling.simulation.simulated import SimulatedCluster
    from cluster.scaling.simulation.speeds import Speeds

TICK_S: Final = 1.0
"""The time between two decisions of the policy."""
METRIC_AGE_S: Final = 1.0
"""The age of the counters that the policy sees. Serve samples every second and sends the samples every second."""


class Ticks:
    """The actions at regular times.

    ``noted`` has the pools over time.

    Args:
        cluster: The cluster.
        policy: The policy, or None for fixed sizes.
        speeds: The speeds and limits of the replicas.
    """

    def __init__(self, cluster: SimulatedCluster, policy: JointPolicy | None, speeds: Speeds) -> None:
        self._cluster: Final = cluster
        self._policy: Final = policy
        self._speeds: Final = speeds
        self._reports: dict[Replica, dict[str, float]] = {}
        self._counters: dict[str, dict[Replica, tuple[Offered, Served]]] = {}
        self.noted: Final[list[PoolTick]] = []

    def start(self) -> None:
        """Begins all of them."""
        report_period_s = self._speeds.report_period_s
        self._repeat(report_period_s, report_period_s, self._report)
        self._repeat(TICK_S, TICK_S, self._decide)
        self._repeat(TICK_S - METRIC_AGE_S, TICK_S, self._read_counters)
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
        for pool in self._cluster.pools:
            self._counters[pool.name] = {name: one.counters() for name, one in pool.running.items()}

    def _decide(self) -> None:
        """Asks the policy, with counters that were read ``METRIC_AGE_S`` ago, and resizes the pools."""
        decided: dict[str, Decision] = {}
        if self._policy is not None:
            readings = {pool.name: pool.reading(self._counters[pool.name]) for pool in self._cluster.pools}
            decided = self._policy.decide(readings, self._cluster.clock.now_s)
            for pool in self._cluster.pools:
                pool.resize(decided[pool.name].target)
        self._note(decided)

    def _note(self, decided: Mapping[str, Decision]) -> None:
        for pool in self._cluster.pools:
            reason = decided[pool.name].reason if decided else None
            sizes = (len(pool.running), pool.num_starting, len(pool.draining), pool.target)
            self.noted.append(PoolTick(self._cluster.clock.now_s, pool.name, *sizes, reason))
