"""Results of simulations: quantiles, goals and the pool that makes requests late."""

from __future__ import annotations

import math

import pytest

from cluster.scaling.simulation.outcomes import LatencyGoal, RequestOutcome, SimulationResult, quantile

GOAL = LatencyGoal(ttft_s=1.0, itl_s=0.05)


def result(*requests: RequestOutcome) -> SimulationResult:
    """Returns the result of a simulation with these requests."""
    return SimulationResult(10.0, requests, [], {}, {"encoder": 0.2, "decoder": 0.6}, 0)


def test_itl_is_the_mean_time_between_tokens() -> None:
    """Eleven tokens of which ten follow the first within a second are 0.1 s apart. One token has no gap."""
    assert RequestOutcome(0.0, 11, "answered", 0.5, 1.5).itl_s == pytest.approx(0.1)
    assert RequestOutcome(0.0, 1, "answered", 0.5, 0.5).itl_s == 0
    assert RequestOutcome(0.0, 1).itl_s is None


@pytest.mark.parametrize(
    ("ttft_s", "latency_s", "is_met"),
    [(1.0, 1.5, True), (1.01, 1.5, False), (0.5, 1.01, False), (None, None, False)],
)
def test_a_goal_bounds_both_times(ttft_s: float | None, latency_s: float | None, is_met: bool) -> None:
    """A request meets a goal if its first token and its mean gap are within it. One without an answer does not."""
    assert GOAL.is_met_by(RequestOutcome(0.0, 11, "answered", ttft_s, latency_s)) is is_met


def test_attainment_counts_all_requests() -> None:
    """A request that was refused counts as one that missed the goal."""
    met, refused = RequestOutcome(0.0, 2, "answered", 0.5, 0.52), RequestOutcome(0.0, 2, "overloaded")
    assert result(met, met, met, refused).attainment(GOAL) == 0.75
    assert result().attainment(GOAL) == 1


def test_quantiles_are_values_that_occurred() -> None:
    """The median of four is the second one. Requests without an answer count as infinite."""
    assert [quantile([4, 1, 3, 2], share) for share in (0.0, 0.5, 0.51, 1.0)] == [1, 2, 3, 4]
    assert quantile([], 0.5) == 0
    both = result(RequestOutcome(0.0, 2, "answered", 0.5, 0.52), RequestOutcome(0.0, 2))
    assert (both.ttft_s(0.5), both.ttft_s(0.95)) == (0.5, math.inf)
    assert both.itl_s(0.5) == pytest.approx(0.02)
    assert both.itl_s(0.95) == math.inf


def test_the_binding_pool_is_the_one_in_which_late_requests_waited() -> None:
    """The waits of requests that met the goal do not count. If all met it, the busiest pool binds."""
    late = RequestOutcome(0.0, 1, "answered", 3.0, 3.0, {"encoder": 2.0, "decoder": 0.5})
    fine = RequestOutcome(0.0, 1, "answered", 0.9, 0.9, {"decoder": 9.0})
    assert result(late, fine).binding_pool(GOAL) == "encoder"
    assert result(fine).binding_pool(GOAL) == "decoder"
