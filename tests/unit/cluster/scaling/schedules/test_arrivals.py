"""Random times of arrivals: their number, their rate over time, and how bursty they are."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from typing import TYPE_CHECKING

import pytest

from cluster.scaling.schedules.arrivals import Span, gamma_gap, times, weibull_gap

if TYPE_CHECKING:
    from cluster.scaling.schedules.arrivals import Gap

NUM_STREAMS = 2000


@pytest.mark.parametrize("span", [Span(10, 2, 2), Span(10, 0, 4), Span(7, 5, 1), Span(3, 4, 0)])
def test_a_time_and_its_expected_arrivals_belong_together(span: Span) -> None:
    """The time at which so many arrivals are expected is the one up to which the rate adds up to that number."""
    for part in range(11):
        num_expected = span.num_expected * part / 10
        at_s = span.time_of(num_expected)
        rate_per_s = span.rate_per_s + (span.last_rate_per_s - span.rate_per_s) * at_s / span.duration_s
        assert at_s * (span.rate_per_s + rate_per_s) / 2 == pytest.approx(num_expected)
    assert span.time_of(span.num_expected) == pytest.approx(span.duration_s)


def test_arrivals_follow_the_rate() -> None:
    """The number of arrivals in each part of a load is as expected, within five standard deviations, and no arrival is
    out of order or outside."""
    spans = [Span(100, 5, 5), Span(50, 5, 45), Span(100, 0, 0), Span(50, 20, 20)]
    found = list(times(((span, gamma_gap(1)) for span in spans), random.Random(1)))
    assert found == sorted(found)
    ends_s = [0, 100, 150, 250, 300]
    for span, (first_s, last_s) in zip(spans, itertools.pairwise(ends_s), strict=True):
        num_found = sum(first_s <= at_s < last_s for at_s in found)
        assert abs(num_found - span.num_expected) <= 5 * math.sqrt(span.num_expected)
    assert found[-1] <= 300


@pytest.mark.parametrize(
    ("gap", "cv"), [(gamma_gap(0.3), 0.3), (gamma_gap(1), 1), (gamma_gap(2.5), 2.5), (weibull_gap(1), 1)]
)
def test_gaps_vary_as_asked(gap: Gap, cv: float) -> None:
    """Gaps have the mean 1 and the coefficient of variation that was asked for."""
    draw = random.Random(2)
    gaps = [gap(draw) for _ in range(40_000)]
    assert statistics.mean(gaps) == pytest.approx(1, rel=0.05)
    assert statistics.stdev(gaps) / statistics.mean(gaps) == pytest.approx(cv, rel=0.05)


def test_a_seed_gives_the_same_times() -> None:
    """The same seed gives the same times, and another seed gives others."""
    one, again, other = (list(times([(Span(50, 3, 9), gamma_gap(1.5))], random.Random(seed))) for seed in (1, 1, 2))
    assert one == again != other


@pytest.mark.parametrize("cv", [0.3, 1, 3])
@pytest.mark.parametrize("num_expected", [0.1, 1, 10])
def test_rare_arrivals_are_as_many_as_expected(num_expected: float, cv: float) -> None:
    """Also a client that sends hardly anything sends as much as expected, on average."""
    draw = random.Random(4)
    counts = [
        len(list(times([(Span(10, num_expected / 10, num_expected / 10), gamma_gap(cv))], draw)))
        for _ in range(NUM_STREAMS)
    ]
    assert statistics.mean(counts) == pytest.approx(
        num_expected, abs=5 * statistics.stdev(counts) / math.sqrt(NUM_STREAMS)
    )


def test_several_starts_do_not_all_begin_with_an_arrival() -> None:
    """The first arrival falls anywhere into its gap, so many clients that start together do not arrive together."""
    firsts = [next(times([(Span(100, 1, 1), gamma_gap(0.01))], random.Random(seed))) for seed in range(400)]
    assert statistics.mean(firsts) == pytest.approx(0.5, abs=0.08)
    assert min(firsts) < 0.05
