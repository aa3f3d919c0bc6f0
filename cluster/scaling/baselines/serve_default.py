"""Ray Serve's default policy, ``replica_queue_length_autoscaling_policy``, for each pool on its own.

A pool wants its number of calls divided by ``target_ongoing_requests``, rounded up. Its calls are those that its
replicas work on and those that wait for a replica with room, as a mean over ``look_back_period_s``. Calls are nested,
so a call that waits for an encoder is also a call of its decoder. A wish counts only after it has been on the same side
of the target for a whole delay. Then the last wish of the delay is taken.

Source: Ray 2.60, ``ray/serve/autoscaling_policy.py`` and ``ray/serve/_private/autoscaling_state.py``. Both scaling
    factors are 1, as by default. ``test_serve_default.py`` compares this module with Ray's own functions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cluster.scaling.baselines.per_pool import PerPoolPolicy, bounded
from cluster.scaling.baselines.recent_mean import RecentMean
from cluster.scaling.policy import Decision

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cluster.scaling.simulation.sizing import CallsReading

EPSILON_S: Final = 1e-6
"""A delay ends this much earlier, as in Ray, because differences of times are not exact."""


@dataclass(frozen=True, slots=True)
class ServeAutoscaling:
    """The settings of one pool, with the names and default values of Serve's ``AutoscalingConfig``.

    Args:
        target_ongoing_requests: The calls that one replica should have.
        look_back_period_s: The calls are a mean over so many seconds.
        upscale_delay_s: A pool grows after it has wanted more for so long.
        downscale_delay_s: A pool shrinks after it has wanted fewer for so long.
    """

    target_ongoing_requests: float = 2.0
    look_back_period_s: float = 30.0
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0


@dataclass(slots=True)
class _ServePool:
    """The settings of a pool, its calls, and since when it has wanted more (1) or fewer replicas (-1)."""

    settings: ServeAutoscaling
    calls: RecentMean = field(init=False)
    side: int = 0
    since_s: float = 0.0

    def __post_init__(self) -> None:
        self.calls = RecentMean(self.settings.look_back_period_s)


class ServeDefaultPolicy(PerPoolPolicy[_ServePool]):
    """Serve's default policy. Pools without settings keep their sizes.

    Args:
        settings: The settings of the pools, by their names.
    """

    def __init__(self, settings: Mapping[str, ServeAutoscaling]) -> None:
        super().__init__({name: _ServePool(one) for name, one in settings.items()})

    def _decide(self, pool: _ServePool, reading: CallsReading, now_s: float) -> Decision:
        pool.calls.note(reading.counted_s, reading.num_ongoing + reading.num_queued)
        num_calls, num_running = pool.calls.over(pool.settings.look_back_period_s), len(reading.running)
        if not num_running:
            # Delays do not apply to a pool without replicas. Its target becomes 1, or stays if it is higher.
            wanted = max(1, reading.target) if num_calls > 0 else reading.target
            return Decision(bounded(wanted, reading), wanted, "demand")
        wanted = math.ceil(num_running * (num_calls / (pool.settings.target_ongoing_requests * num_running)))
        side = (wanted > reading.target) - (wanted < reading.target)
        if side != pool.side:
            pool.side, pool.since_s = side, now_s
        if not side:
            return Decision(bounded(reading.target, reading), wanted, "enough")
        if side < 0 and reading.target > 1:
            wanted = max(1, wanted)  # zero is reached from one only
        delay_s = pool.settings.upscale_delay_s if side > 0 else pool.settings.downscale_delay_s
        if now_s - pool.since_s + EPSILON_S < delay_s:
            return Decision(bounded(reading.target, reading), wanted, "rising" if side > 0 else "window")
        pool.side = 0
        return Decision(bounded(wanted, reading), wanted, "demand")
