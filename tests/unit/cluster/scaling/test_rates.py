"""What counters say: demand and velocity, also with resets and processes that come and go."""

from __future__ import annotations

import math

import pytest

from cluster.scaling.rates import Demand, Offered, Served, Velocity, is_sound


def demand(*totals: tuple[float, dict[str, float]]) -> Demand:
    """Returns a demand that has seen these totals of each Router, at these times."""
    seen = Demand()
    for now_s, works in totals:
        seen.note({name: Offered(now_s, work) for name, work in works.items()}, now_s)
    return seen


def test_demand_adds_up_over_routers() -> None:
    """The demand is the sum of what all Routers see per second."""
    seen = demand(*((at_s, {"a": 3.0 * at_s, "b": 2.0 * at_s}) for at_s in range(0, 31, 2)))
    assert seen.per_s(lead_s=0) == pytest.approx(5)


def test_demand_sees_a_spike_soon_and_forgets_it_slowly() -> None:
    """Ten seconds after a jump the demand is the new one. After its end it falls to the mean of three minutes."""
    totals, total = [], 0.0
    for at_s in range(0, 400, 2):
        totals.append((at_s, {"a": total}))
        total += 2 * (50 if 200 <= at_s < 260 else 5)
    assert demand(*totals[:100]).per_s(0) == pytest.approx(5)
    assert demand(*totals[:106]).per_s(0) == pytest.approx(50)
    assert demand(*totals[:140]).per_s(0) == pytest.approx((60 * 50 + 120 * 5) / 180, rel=0.02)


def test_demand_goes_on_with_its_trend() -> None:
    """A demand that grows by 1 per second each second is expected to go on for the lead time, up to a quarter more than
    that of the last seconds. Slow growth, which may be noise, is not continued."""
    seen = demand(*((at_s, {"a": at_s**2 / 2}) for at_s in range(41)))
    assert seen.ahead_per_s(lead_s=5) == pytest.approx(35 + 5)
    assert seen.ahead_per_s(lead_s=50) == pytest.approx(1.25 * 37.5)
    slow = demand(*((at_s, {"a": 100 * at_s + at_s**2 / 2}) for at_s in range(41)))
    assert slow.ahead_per_s(lead_s=50) == 0
    assert slow.per_s(lead_s=50) == pytest.approx(135)


def test_a_slow_start_looks_at_a_longer_time() -> None:
    """A burst that is over long before a replica could start counts little: the mean is over a fifth of the start."""
    burst = demand(*((at_s, {"a": 1000.0 * max(0, min(at_s - 90, 10))}) for at_s in range(101)))
    assert burst.per_s(lead_s=30, slow_s=10) == pytest.approx(1000)
    assert burst.per_s(lead_s=300, slow_s=10) == pytest.approx(10_000 / 60)


def test_work_after_a_pause_is_no_growth() -> None:
    """A single long prompt after a pause is not taken for the beginning of a high demand."""
    seen = demand(*((at_s, {"a": 30_000.0 * (at_s >= 99)}) for at_s in range(101)))
    assert seen.ahead_per_s(lead_s=30) == 0


def test_a_queue_that_flows_in_is_no_new_demand() -> None:
    """Work counts when it begins to wait outside, and not again when a replica takes it."""
    seen = Demand()
    for at_s in range(101):
        arrived, queued = (5.0 * at_s, 5.0 * at_s) if at_s < 95 else (10.0 * at_s, 0.0)
        seen.note({"a": Offered(at_s, arrived)}, at_s, queued=queued)
    assert seen.per_s(lead_s=0, slow_s=10) == pytest.approx(10)


def test_a_router_that_restarts_takes_nothing_away() -> None:
    """A counter that went back counts from its new value. A Router that ends or comes adds and takes nothing."""
    seen = demand((0, {"a": 100.0}), (10, {"a": 150.0}), (20, {"a": 30.0, "b": 9000.0}), (30, {"b": 9010.0}))
    assert seen.per_s(0) == pytest.approx((50 + 30 + 10) / 30)


def test_velocity_is_right_at_a_low_load() -> None:
    """The velocity is the work per busy second, whatever the share of the time that a replica is busy."""
    velocity = Velocity()
    assert velocity.per_busy_s is None
    for at_s in range(0, 100, 2):
        velocity.note({"a": Served(at_s, 4.0 * at_s, 0.01 * at_s), "b": Served(at_s, 40.0 * at_s, 0.1 * at_s)})
    assert velocity.per_busy_s == pytest.approx(400)


def test_the_first_second_is_no_high_demand() -> None:
    """Three requests in the first second count as 0.3 per second, because a mean is over ten seconds at least."""
    demand = Demand()
    demand.note({"a": Offered(0, 0)}, 0)
    demand.note({"a": Offered(1, 3)}, 1)
    assert demand.per_s(5) == pytest.approx(0.3)


def test_a_jump_is_seen_within_seconds() -> None:
    """Three seconds after a jump, the demand ahead is as high as the jump."""
    demand, total = Demand(), 0.0
    for at_s in range(34):
        total += 10 if at_s < 30 else 100
        demand.note({"a": Offered(at_s, total)}, at_s)
        if at_s == 29:
            assert demand.per_s(30) == pytest.approx(10)
            assert demand.ahead_per_s(30) == 0
    assert demand.ahead_per_s(30) == pytest.approx(100)


def test_a_short_memory_forgets_sooner() -> None:
    """The slow mean takes in as many seconds as it is told."""
    demand, total = Demand(), 0.0
    for at_s in range(100):
        total += 100 if at_s < 50 else 10
        demand.note({"a": Offered(at_s, total)}, at_s)
    assert demand.per_s(5, slow_s=20) == pytest.approx(10)
    assert demand.per_s(5) > 30


def test_velocity_follows_a_change() -> None:
    """When replicas become half as fast, the velocity has followed after a few minutes of work."""
    velocity, work, busy_s = Velocity(), 0.0, 0.0
    for at_s in range(600):
        velocity.note({"a": Served(at_s, work, busy_s)})
        work, busy_s = work + (10 if at_s < 300 else 5), busy_s + 1
    assert velocity.per_busy_s == pytest.approx(5, rel=0.02)


def test_velocity_survives_a_restart() -> None:
    """A pair of readings whose counters went back is left out, and later ones count again."""
    velocity = Velocity()
    for at_s, work, busy_s in ((0, 100.0, 10.0), (2, 120.0, 12.0), (4, 1.0, 0.1), (6, 21.0, 2.1)):
        velocity.note({"a": Served(at_s, work, busy_s)})
    assert velocity.per_busy_s == pytest.approx(10)


@pytest.mark.parametrize(
    ("reading", "sound"),
    [
        (Served(100, 1, 1), True),
        (Offered(100, 0), True),
        (Served(109, 1, 1), True),
        (Served(80, 1, 1), False),
        (Served(120, 1, 1), False),
        (Served(math.nan, 1, 1), False),
        (Served(100, math.nan, 1), False),
        (Served(100, 1, -1), False),
        (Served(100, 1, 1, math.inf), False),
        (Served(100, 1, 1, 0, -0.1), False),
        (Offered(100, -1), False),
        (Offered(100, 1e300), False),
    ],
)
def test_impossible_and_old_readings_are_told_apart(reading: Offered | Served, sound: bool) -> None:
    """A reading counts only if it is recent, and all of its figures are possible."""
    assert is_sound(reading, now_s=100, max_age_s=10) == sound
