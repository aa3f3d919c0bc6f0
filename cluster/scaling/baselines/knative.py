"""Knative's policy (KPA), for each pool on its own: calls per replica over a stable window and a panic window.

A pool wants its mean number of calls in the stable window divided by ``target``, rounded up. If the mean over the panic
window asks for ``panic_threshold`` times the running replicas or more, the pool panics. It then takes the larger of
both wishes and never shrinks. The panic ends when a stable window has passed without such a wish. A pool that has
several replicas at the beginning starts in panic, so that it keeps them until a stable window is known.

Source: Knative Serving, ``pkg/autoscaler/scaling/autoscaler.go``; its default windows are 60 and 6 s, its threshold 2,
    and its scale-down rate 2. Knative aims at 70 % of its target; here the target is the number that is aimed at. Its
    scale-down delay is 0 by default; AIBrix uses the same policy with a stable window of 180 s.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cluster.scaling.baselines.per_pool import PerPoolPolicy, bounded
from cluster.scaling.baselines.recent_mean import RecentMean
from cluster.scaling.policy import Decision

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cluster.scaling.simulation.sizing import CallsReading


@dataclass(frozen=True, slots=True)
class KnativeScaling:
    """The settings of one pool.

    Args:
        target: The calls that one replica should have.
        stable_s: The seconds of the stable window.
        panic_s: The seconds of the panic window.
        panic_threshold: The pool panics if the panic window asks for so many times the running replicas.
        max_down_rate: In one decision a pool shrinks at most to its running replicas divided by this number.
        down_delay_s: The pool shrinks to the highest wish of so many seconds.
    """

    target: float
    stable_s: float = 60.0
    panic_s: float = 6.0
    panic_threshold: float = 2.0
    max_down_rate: float = 2.0
    down_delay_s: float = 0.0


@dataclass(slots=True)
class _KnativePool:
    """The settings of a pool, its calls, the last moment of panic, the highest wish of the panic, and recent wishes."""

    settings: KnativeScaling
    calls: RecentMean = field(init=False)
    panic_s: float | None = None
    most: int = 0
    wishes: deque[tuple[float, int]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.calls = RecentMean(max(self.settings.stable_s, self.settings.panic_s))


class KnativePolicy(PerPoolPolicy[_KnativePool]):
    """Knative's policy. Pools without settings keep their sizes.

    Args:
        settings: The settings of the pools, by their names.
    """

    def __init__(self, settings: Mapping[str, KnativeScaling]) -> None:
        super().__init__({name: _KnativePool(one) for name, one in settings.items()})

    def _decide(self, pool: _KnativePool, reading: CallsReading, now_s: float) -> Decision:
        settings, num_ready = pool.settings, max(1, len(reading.running))
        if not pool.wishes and num_ready > 1:
            pool.panic_s, pool.most = now_s, num_ready
        pool.calls.note(reading.counted_s, reading.num_ongoing + reading.num_queued)
        for_stable = math.ceil(pool.calls.over(settings.stable_s) / settings.target)
        for_panic = math.ceil(pool.calls.over(settings.panic_s) / settings.target)
        if for_panic / num_ready >= settings.panic_threshold:
            pool.panic_s = now_s
        elif pool.panic_s is not None and pool.panic_s + settings.stable_s < now_s:
            pool.panic_s, pool.most = None, 0
        wanted = max(for_stable, math.floor(num_ready / settings.max_down_rate))
        if pool.panic_s is not None:
            wanted = pool.most = max(wanted, for_panic, pool.most)
        while pool.wishes and pool.wishes[0][0] < now_s - settings.down_delay_s:
            pool.wishes.popleft()
        pool.wishes.append((now_s, wanted))
        wanted = max(one for _, one in pool.wishes)
        target = bounded(wanted, reading)
        return Decision(target, wanted, "demand" if target == wanted else "bounds")
