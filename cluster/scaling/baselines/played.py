"""Sizes that are known beforehand, as a policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cluster.scaling.baselines.per_pool import PerPoolPolicy
from cluster.scaling.policy import Decision

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cluster.scaling.simulation.sizing import CallsReading


class PlayedPolicy(PerPoolPolicy[tuple["Sequence[int]", float]]):
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
        super().__init__({name: (plan, starts_s[name]) for name, plan in plans.items()})
        self._step_s: Final = step_s
        self._early_s: Final = early_s

    def _decide(self, pool: tuple[Sequence[int], float], _: CallsReading, now_s: float) -> Decision:
        """Gives the most replicas that the pool should have from now until a start that begins now has ended."""
        plan, start_s = pool
        first = min(len(plan) - 1, int(now_s // self._step_s))
        last = int((now_s + start_s + self._early_s) // self._step_s)
        target = max(plan[first : last + 1])
        return Decision(target, target, "demand")
