"""The arrivals of a load without a schedule file."""

from __future__ import annotations

import argparse
import itertools
from collections import Counter

import pytest

from loadtest.workload import Workload, read_mix


def test_the_same_seed_gives_the_same_arrivals() -> None:
    """Two readers of one workload get equal arrivals in the order of time. Another seed gives other new pictures."""
    first, again, other = ([*itertools.islice(Workload(10.0, seed=seed).arrivals(), 200)] for seed in (1, 1, 2))
    assert first == again
    assert first == sorted(first, key=lambda arrival: arrival.at_s)
    new = [{one.pictures for one in arrivals if one.client == "new"} for arrivals in (first, other)]
    assert len(new[0]) > 20
    assert not new[0] & new[1]


def test_arrivals_keep_the_rate_and_the_mix() -> None:
    """Over 4,000 arrivals the rate and the shares of the kinds are within a tenth of what was asked for."""
    arrivals = [
        *itertools.islice(Workload(8.0, num_pictures=3, weights=read_mix("text=2,new=1,seen=1")).arrivals(), 4000)
    ]
    assert len(arrivals) / arrivals[-1].at_s == pytest.approx(8.0, rel=0.1)
    counts = Counter(arrival.client for arrival in arrivals)
    assert counts["text"] == pytest.approx(2000, rel=0.1)
    assert counts["new"] == pytest.approx(1000, rel=0.1)
    assert len({arrival.pictures for arrival in arrivals if arrival.client == "seen"}) == 3


@pytest.mark.parametrize("mix", ["", "text", "text=-1", "text=0", "words=1", "text=1,,new=1"])
def test_a_wrong_mix_is_refused(mix: str) -> None:
    """A part without a kind or a weight is refused, and so is a mix of nothing."""
    with pytest.raises(argparse.ArgumentTypeError):
        read_mix(mix)
