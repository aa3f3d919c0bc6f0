"""The figures of replicas as the policy reads them."""

from __future__ import annotations

import math

import pytest

from cluster.config import RouterUserConfig
from cluster.scaling.readings import (
    ACTS,
    HELD,
    TTFT_SLO_S,
    WINDOW_S,
    ScalingSettings,
    num_held,
    reading_of,
    settings_in,
)
from cluster.scaling.work import NUM_CALLS, OFFERED, OfferedWork

NOW_S = 1000.0
ALL = frozenset({"a", "b"})


def figures(**stats: dict[str, float]) -> dict[str, dict[str, tuple[float, float]]]:
    """Returns the figures of some replicas, as Serve collects them: by the name of the figure, then of the replica."""
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for replica, values in stats.items():
        for name, value in values.items():
            found.setdefault(name, {})[replica] = (NOW_S, value)
    return found


def work(*sizes: float, done: float = 0.0) -> dict[str, float]:
    """Returns the figures of a replica to which calls of these sizes have come."""
    offered = OfferedWork()
    for size in sizes:
        offered.arrived(size)
    return offered.stats(done, busy_s=done / 10, waiting=sum(sizes) - done, fullness=0.5)


def test_a_reading_holds_what_each_replica_has_reported() -> None:
    """The figures of a replica arrive in the reading as the replica gave them."""
    reading = reading_of(
        figures(a=work(3, 5, done=2), b=work()), ALL, target=2, min_replicas=1, max_replicas=4, num_queued=0
    )
    assert reading.running == reading.sources == ALL
    assert (reading.offered["a"].work, reading.offered["b"].work) == (8, 0)
    served = reading.served["a"]
    assert (served.at_s, served.work, served.busy_s, served.waiting, served.fullness) == (NOW_S, 2, 0.2, 6, 0.5)


def test_a_replica_with_a_missing_figure_has_no_data() -> None:
    """If one figure of a replica is missing, the reading has nothing of it, so the policy changes nothing."""
    found = figures(a=work(1), b=work(1))
    del found[OFFERED]["b"]
    reading = reading_of(found, ALL, target=2, min_replicas=1, max_replicas=4, num_queued=0)
    assert reading.offered.keys() == reading.served.keys() == {"a"}


def test_replicas_that_are_gone_do_not_count() -> None:
    """Figures of replicas that no longer run are left out."""
    reading = reading_of(
        figures(a=work(1), gone=work(9)), frozenset({"a"}), target=1, min_replicas=1, max_replicas=4, num_queued=0
    )
    assert reading.offered.keys() == {"a"}


@pytest.mark.parametrize(("num_calls", "queued_work"), [(4.0, 6.0), (0.0, 0.0), (math.nan, 0.0), (-1.0, 0.0)])
def test_calls_outside_count_with_the_mean_work_of_a_call(num_calls: float, queued_work: float) -> None:
    """Three queued calls count with the mean work of the calls so far, and with none if that is unknown."""
    found = figures(a=work(1, 3, 2, 2))
    found[NUM_CALLS]["a"] = (NOW_S, num_calls)
    reading = reading_of(found, frozenset({"a"}), target=1, min_replicas=1, max_replicas=4, num_queued=3)
    assert (reading.num_queued, reading.queued_work) == (3, queued_work)


def test_settings_come_back_as_the_router_has_them() -> None:
    """The settings of a Router's ``user_config`` survive their way through numbers."""
    router = RouterUserConfig(scaling="act", ttft_slo_s=3.5, scale_down_window_s=60)
    assert settings_in(figures(r=ScalingSettings.of(router).stats()), NOW_S) == ScalingSettings(True, 3.5, 60)


def test_routers_that_differ_are_read_with_care() -> None:
    """While a change reaches the Routers, nothing acts before all say so, and the shortest times count."""
    one, other = ScalingSettings(True, 1, 300), ScalingSettings(False, 2, 20)
    assert settings_in(figures(a=one.stats(), b=other.stats()), NOW_S) == ScalingSettings(False, 1, 20)


@pytest.mark.parametrize(
    "broken", [{}, {ACTS: math.nan, TTFT_SLO_S: 1, WINDOW_S: 1}, {ACTS: 1, TTFT_SLO_S: -1, WINDOW_S: 1}, {ACTS: 1.0}]
)
def test_no_settings_are_read_from_impossible_figures(broken: dict[str, float]) -> None:
    """Settings that are missing, negative or no numbers count as not reported."""
    assert settings_in(figures(r=broken), NOW_S) is None


def test_old_settings_are_not_read() -> None:
    """Settings that no Router has reported for long count as not reported."""
    assert settings_in(figures(r=ScalingSettings().stats()), NOW_S + 60) is None


def test_a_shorter_time_to_first_token_leaves_less_time_to_wait() -> None:
    """Each pool's wait budget is a share of the time to the first token, and a known start replaces the default."""
    traits = ScalingSettings(ttft_slo_s=1).traits({"Decoder": 80})
    assert sum(one.wait_budget_s for one in traits.values()) == pytest.approx(1)
    assert (traits["Decoder"].lead_s, traits["Decoder"].is_costly_to_stop) == (80, True)
    assert traits["VisionEncoder"].lead_s == 30


def test_requests_that_running_routers_hold_back_count() -> None:
    """Requests that wait in the Routers for a pool are added up. Old reports and Routers that are gone do not count."""
    reports = figures(a={HELD["Decoder"]: 3}, b={HELD["Decoder"]: 4}, gone={HELD["Decoder"]: 50})
    running = frozenset("ab")
    assert num_held(reports, "Decoder", running, NOW_S) == 7
    assert num_held(reports, "Decoder", running, NOW_S + 60) == 0
    assert num_held(reports, "VisionEncoder", running, NOW_S) == num_held(reports, "Router", running, NOW_S) == 0
