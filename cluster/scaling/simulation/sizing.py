"""The interface between the simulator and a policy that decides how many replicas there are.

``JointPolicy`` and the policies of ``cluster.scaling.baselines`` implement it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from cluster.scaling.policy import PoolReading

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cluster.messages import Replica
    from cluster.scaling.policy import Decision
    from cluster.scaling.rates import Offered, Served


@dataclass(frozen=True, slots=True)
class CallsReading(PoolReading):
    """A pool's reading with its calls, which policies other than the joint one look at.

    Args:
        num_ongoing: The calls that running replicas have accepted and not answered. A call that waits for another pool
            is one of them.
        counted_s: The time at which these calls, and those that wait for a replica with room, were counted.
    """

    num_ongoing: float = 0.0
    counted_s: float = 0.0


class SizingPolicy(Protocol):
    """Decides how many replicas each pool should have."""

    def decide(self, readings: Mapping[str, CallsReading], now_s: float) -> Mapping[str, Decision]:
        """Decides for every pool, by name. The arguments are those of ``JointPolicy.decide``."""


@dataclass(frozen=True, slots=True)
class PoolSnapshot:
    """The counters of a pool at one time.

    Args:
        at_s: The time.
        counters: The counters of each running replica, by its name.
        num_queued: The calls that wait for a replica with room.
        num_ongoing: The calls that running replicas have accepted and not answered.
    """

    at_s: float
    counters: Mapping[Replica, tuple[Offered, Served]]
    num_queued: int
    num_ongoing: int
