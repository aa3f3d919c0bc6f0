"""A policy that decides for each pool on its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from cluster.scaling.policy import Decision

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cluster.scaling.simulation.sizing import CallsReading

Known = TypeVar("Known")


class PerPoolPolicy(ABC, Generic[Known]):
    """Decides for each pool on its own. Other pools than the known ones keep their sizes.

    Args:
        pools: What is known about the pools, by their names.
    """

    def __init__(self, pools: Mapping[str, Known]) -> None:
        self._pools: Final = pools

    def decide(self, readings: Mapping[str, CallsReading], now_s: float) -> dict[str, Decision]:
        """Decides for every pool that has a reading."""
        return {
            name: self._decide(self._pools[name], reading, now_s)
            if name in self._pools
            else Decision(reading.target, None, "enough")
            for name, reading in readings.items()
        }

    @abstractmethod
    def _decide(self, pool: Known, reading: CallsReading, now_s: float) -> Decision:
        """Decides for one pool."""


def bounded(num_replicas: int, reading: CallsReading) -> int:
    """The number of replicas, within the bounds of the pool."""
    return max(reading.min_replicas, min(reading.max_replicas, num_replicas))
