"""Knative's policy as a baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.scaling.baselines.knative import KnativePolicy, KnativeScaling
from tests.helpers.call_readings import calls_reading

if TYPE_CHECKING:
    from collections.abc import Mapping

POOL = "encoder"


def targets(
    calls: Mapping[float, float], settings: KnativeScaling, until_s: float, num_replicas: int = 1
) -> dict[float, int]:
    """Returns the target at each tick of a pool whose replicas start at once, if the calls change at these times."""
    policy, found, num_calls, now_s = KnativePolicy({POOL: settings}), {}, 0.0, 0.0
    while now_s <= until_s:
        num_calls = calls.get(now_s, num_calls)
        num_replicas = policy.decide({POOL: calls_reading(num_replicas, num_calls, now_s)}, now_s)[POOL].target
        found[now_s] = num_replicas
        now_s += 2
    return found


def test_a_jump_causes_panic_and_a_small_rise_does_not() -> None:
    """Ten times the calls are met as soon as the panic window has them. A rise from 8 to 15 calls counts when 18 of the
    30 samples of the stable window have it, because their mean is then above 12."""
    jump = targets({0.0: 4.0, 100.0: 40.0}, KnativeScaling(4.0), 200.0)
    assert {jump[at_s] for at_s in jump if at_s < 100} == {1}
    assert jump[104.0] == 10
    slow = targets({0.0: 8.0, 100.0: 15.0}, KnativeScaling(4.0), 200.0)
    assert [slow[at_s] for at_s in (98.0, 100.0, 132.0, 134.0, 160.0)] == [2, 3, 3, 4, 4]


def test_a_pool_in_panic_does_not_shrink() -> None:
    """The calls are gone after 10 s, but the target stays until a stable window after the last panic has passed. It
    then halves at most from one tick to the next."""
    found = targets({0.0: 4.0, 100.0: 80.0, 110.0: 4.0}, KnativeScaling(4.0), 400.0)
    assert found[108.0] == 20
    last = max(at_s for at_s in found if found[at_s] == 20)
    assert 160 <= last <= 180
    assert [found[last + later] for later in (2, 4, 6, 8)] == [10, 5, 2, 1]


def test_a_pool_with_several_replicas_starts_in_panic() -> None:
    """A new policy knows no calls, so it keeps the replicas for a stable window."""
    found = targets({}, KnativeScaling(4.0, stable_s=100.0, panic_s=10.0), 200.0, num_replicas=8)
    assert {found[at_s] for at_s in found if at_s <= 100} == {8}
    assert [found[at_s] for at_s in (102.0, 104.0, 106.0)] == [4, 2, 1]


def test_a_delay_keeps_the_highest_wish() -> None:
    """With a delay of 60 s a fall of the calls counts 60 s later."""
    calls = {0.0: 40.0, 200.0: 4.0}
    now = targets(calls, KnativeScaling(4.0), 500.0)
    later = targets(calls, KnativeScaling(4.0, down_delay_s=60.0), 500.0)
    first = min(at_s for at_s in now if at_s > 200 and now[at_s] < 10)
    assert min(at_s for at_s in later if at_s > 200 and later[at_s] < 10) == first + 60


def test_bounds_hold_and_other_pools_keep_their_sizes() -> None:
    """The target stays within the bounds. A pool without settings keeps its size."""
    policy = KnativePolicy({POOL: KnativeScaling(1.0)})
    readings = {POOL: calls_reading(1, 100, 0.0), "router": calls_reading(3, 100, 0.0)}
    decided = policy.decide(readings, 0.0)
    assert (decided[POOL].target, decided[POOL].reason, decided["router"].target) == (20, "bounds", 3)
