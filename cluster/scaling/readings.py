"""Turns the figures that replicas report into what the policy reads.

In: for each name of a figure, the newest value of each replica with its time. Out: a ``PoolReading`` for a pool, and
the ``ScalingSettings`` that the Routers report.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from cluster.scaling.policy import MAX_AGE_S, PoolReading, PoolTraits
from cluster.scaling.rates import Offered, Served, is_sound
from cluster.scaling.work import BUSY_S, FULLNESS, NUM_CALLS, OFFERED, WAITING, WORK

if TYPE_CHECKING:
    from cluster.config import RouterUserConfig

Sample: TypeAlias = tuple[float, float]
"""The time of a figure in seconds, and its value."""
Figures: TypeAlias = Mapping[str, Mapping[str, Sample]]
"""The newest sample of each replica, by the name of the figure and the name of the replica."""

ACTS: Final = "acts"
TTFT_SLO_S: Final = "ttft_slo_s"
WINDOW_S: Final = "window_s"
"""The names of the settings that a Router reports as numbers."""

HELD: Final = {"Preprocessor": "held_preprocessor", "VisionEncoder": "held_encoder", "Decoder": "held_decoder"}
"""The names of the figures in which a Router reports the requests that it holds back because a pool is full, by the
name of the pool's deployment."""

SHARES: Final = {"Router": 0.1, "Preprocessor": 0.15, "VisionEncoder": 0.25, "Decoder": 0.5}
"""Each pool's share of the time to the first token, by the name of its deployment. Work may wait so long."""
LEADS_S: Final = {"Router": 30.0, "Preprocessor": 30.0, "VisionEncoder": 30.0, "Decoder": 300.0}
"""The seconds that a replica takes to start, until the policy has seen a start."""
ROUTER_PAUSE_S: Final = 300.0
"""The least time between two changes of the number of Routers. After each change, HAProxy keeps its old processes for
the streams that they carry, for minutes."""


@dataclass(frozen=True, slots=True)
class ScalingSettings:
    """The settings of the policy. The Routers get them in their ``user_config`` and report them.

    Args:
        acts: Whether decisions are carried out. If not, they are only shown.
        ttft_slo_s: The time to the first token that is aimed at, in seconds.
        window_s: A pool shrinks to the highest wish of at least so many seconds.
    """

    acts: bool = False
    ttft_slo_s: float = 2.0
    window_s: float = 300.0

    @classmethod
    def of(cls, router: RouterUserConfig) -> ScalingSettings:
        """The settings in a Router's ``user_config``."""
        return cls(router.scaling == "act", router.ttft_slo_s, router.scale_down_window_s)

    def stats(self) -> dict[str, float]:
        """The settings as numbers, by their names."""
        return {ACTS: float(self.acts), TTFT_SLO_S: float(self.ttft_slo_s), WINDOW_S: float(self.window_s)}

    def traits(self, leads_s: Mapping[str, float]) -> dict[str, PoolTraits]:
        """The traits of all pools under these settings, by the names of their deployments.

        Args:
            leads_s: The seconds that a replica takes to start, by the names of deployments. Others have ``LEADS_S``.
        """
        return {
            name: PoolTraits(
                lead_s=leads_s.get(name, LEADS_S[name]),
                wait_budget_s=share * self.ttft_slo_s,
                is_costly_to_stop=name == "Decoder",
                min_window_s=self.window_s,
                min_pause_s=ROUTER_PAUSE_S if name == "Router" else 0.0,
                is_entry=name == "Router",
            )
            for name, share in SHARES.items()
        }


def settings_in(figures: Figures, now_s: float) -> ScalingSettings | None:
    """Reads the settings that the Routers report; None if no Router has reported any in the last ``MAX_AGE_S``.

    While a change reaches one Router after the other, decisions are carried out only if all reports say so, and the
    shortest times count. Routers that have not reported are left out.
    """
    found = [
        (acts, slo[1], window[1])
        for replica, (at_s, acts) in figures.get(ACTS, {}).items()
        if (slo := figures.get(TTFT_SLO_S, {}).get(replica)) and (window := figures.get(WINDOW_S, {}).get(replica))
        if is_sound(Served(at_s, work=acts, busy_s=slo[1], waiting=window[1]), now_s, MAX_AGE_S)
    ]
    if not found:
        return None
    acts, slos_s, windows_s = zip(*found, strict=True)
    return ScalingSettings(all(acts), min(slos_s), min(windows_s))


def num_held(router_figures: Figures, pool: str, running: frozenset[str], now_s: float) -> float:
    """The requests that the running Routers hold back because a pool is full.

    Args:
        router_figures: What the Routers report.
        pool: The name of the pool's deployment.
        running: The names of the running Routers.
        now_s: The time in seconds, on the clock of the figures.
    """
    held = router_figures.get(HELD.get(pool, ""), {})
    return sum(
        (num_requests if is_sound(Offered(at_s, num_requests), now_s, MAX_AGE_S) else 0.0)
        for replica, (at_s, num_requests) in held.items()
        if replica in running
    )


def reading_of(
    figures: Figures, running: frozenset[str], *, target: int, min_replicas: int, max_replicas: int, num_queued: float
) -> PoolReading:
    """Makes the reading of one pool.

    Args:
        figures: What its replicas report. A replica for which a figure is missing counts as one without data.
        running: The names of its running replicas.
        target: The number of replicas that it should have, by the last decision.
        min_replicas: The fewest replicas that it may have.
        max_replicas: The most replicas that it may have.
        num_queued: The calls that wait outside of the replicas, because none has room.
    """
    offered: dict[str, Offered] = {}
    served: dict[str, Served] = {}
    num_calls = 0.0
    for replica in running:
        samples = {
            name: figures.get(name, {}).get(replica) for name in (OFFERED, NUM_CALLS, WORK, BUSY_S, WAITING, FULLNESS)
        }
        known = {name: sample for name, sample in samples.items() if sample is not None}
        if len(known) < len(samples):
            continue
        at_s = min(at_s for at_s, _ in known.values())
        value = {name: one for name, (_, one) in known.items()}
        offered[replica] = Offered(at_s, value[OFFERED])
        served[replica] = Served(at_s, value[WORK], value[BUSY_S], value[WAITING], value[FULLNESS])
        num_calls += value[NUM_CALLS]
    per_call = sum(one.work for one in offered.values()) / num_calls if num_calls > 0 else 0.0
    return PoolReading(
        running=running,
        target=target,
        min_replicas=min_replicas,
        max_replicas=max_replicas,
        sources=running,
        offered=offered,
        served=served,
        num_queued=num_queued,
        queued_work=num_queued * per_call,
    )
