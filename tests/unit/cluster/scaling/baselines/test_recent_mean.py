"""The mean of a figure over the last seconds."""

from __future__ import annotations

from cluster.scaling.baselines.recent_mean import RecentMean


def test_a_mean_is_over_the_last_seconds() -> None:
    """Older samples do not count, and the window ends at the newest sample."""
    mean = RecentMean(10.0)
    assert mean.over(10.0) == 0
    for at_s in range(0, 20, 2):
        mean.note(float(at_s), float(at_s))
    assert mean.over(6.0) == (14 + 16 + 18) / 3
    assert mean.over(10.0) == (10 + 12 + 14 + 16 + 18) / 5


def test_a_sample_that_is_seen_twice_counts_once() -> None:
    """Old counters that are read again change nothing."""
    mean = RecentMean(10.0)
    for at_s, value in ((0.0, 4.0), (2.0, 8.0), (2.0, 8.0), (1.0, 100.0)):
        mean.note(at_s, value)
    assert mean.over(10.0) == 6
