"""Sizes that are known beforehand, as a policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cluster.scaling.policy import Decision

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cluster.scaling.policy import PoolReading


class PlayedPolicy:
    """Gives each pool the sizes of a plan. A plan says how many replicas run in each step, so each replica starts
    before that step.

    Args:
        plans: The replicas that should run in each step, by the name of the pool. Pools without a plan keep their
            sizes. After the end of a plan its last size stays.
        step_s: The seconds of one step.
        starts_s: The seconds that a replica takes to start, by the name of the pool.
        early_s: Replicas start this much earlier than the plan requires, because decisions are made at regular times.
    """

    def __init__(
        self, plans: Mapping[str, Sequence[int]], step_s: float, starts_s: Mapping[str, float], early_s: float = 2.0
    ) -> None:
        self._plans: Final = plans
        self._step_s: Final = step_s
        self._starts_s: Final = starts_s
        self._early_s: Final = early_s

    def decide(self, readings: Mapping[str, PoolReading], now_s: float) -> dict[str, Decision]:
        """Gives every pool the most replicas that it should have from now until a start that begins now has ended."""
        return {name: self._decide(name, reading, now_s) for name, reading in readings.items()}

    def _decide(self, name: str, reading: PoolReading, now_s: float) -> Decision:
        if (plan := self._plans.get(name)) is None:
            return Decision(reading.target, None, "enough")
        first = min(len(plan) - 1, int(now_s // self._step_s))
        last = int((now_s + self._starts_s[name] + self._early_s) // self._step_s)
        target = max(plan[first : last + 1])
        return Decision(target, target, "demand")
