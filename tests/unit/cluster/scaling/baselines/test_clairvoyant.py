"""The cheapest sizes for known work, compared with all possible sizes."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from cluster.scaling.baselines.clairvoyant import SizeCosts, cheapest, loads, needs
from tests.helpers.simulated import PATCHES, ROUND, TOKENS, arrival


def cost(plan: tuple[int, ...], needed: list[int], step_s: float, costs: SizeCosts) -> float:
    """Returns the cost of a plan; infinity if it cannot be carried out."""
    total = 0.0
    for size, need in zip(plan, needed, strict=True):
        missing = max(0, need - size)
        total += step_s * size + (step_s * missing * costs.shortage_price if missing else 0.0)
    for step, (before, after) in enumerate(itertools.pairwise(plan), 1):
        if after > before and step * step_s < costs.start_s:
            return math.inf
        total += max(0, after - before) * costs.start_s + max(0, before - after) * costs.drain_s
    return total


@pytest.mark.parametrize("seed", range(30))
def test_no_other_sizes_are_cheaper(seed: int) -> None:
    """The plan costs as much as the cheapest of all plans of six steps."""
    draw = random.Random(seed)
    needed = [draw.randint(1, 4) for _ in range(6)]
    costs = SizeCosts(draw.choice((5.0, 15.0, 40.0)), draw.choice((0.0, 7.0)), draw.choice((math.inf, 1.5, 4.0)))
    found = cheapest(needed, 10.0, costs)
    best = min(cost(plan, needed, 10.0, costs) for plan in itertools.product(range(1, max(needed) + 1), repeat=6))
    assert cost(tuple(found), needed, 10.0, costs) == pytest.approx(best)


def test_a_replica_is_kept_through_a_pause_that_is_shorter_than_a_start() -> None:
    """A pause of 30 s is bridged if a start takes 40 s. It is not bridged if a start takes 20 s."""
    needed = [2, 1, 1, 1, 2]
    assert cheapest(needed, 10.0, SizeCosts(40.0)) == [2, 2, 2, 2, 2]
    assert cheapest(needed, 10.0, SizeCosts(20.0)) == [2, 1, 1, 1, 2]


def test_a_short_burst_is_not_worth_a_start_if_shortage_has_a_price() -> None:
    """A burst of one step costs a start of 20 s, and its shortage costs 30 s."""
    needed = [1, 1, 1, 2, 1]
    assert cheapest(needed, 10.0, SizeCosts(20.0, shortage_price=4.0)) == needed
    assert cheapest(needed, 10.0, SizeCosts(20.0, shortage_price=2.9)) == [1, 1, 1, 1, 1]


def test_work_counts_in_the_step_in_which_it_arrives() -> None:
    """A text of 500 tokens keeps a decoder busy for half a second, and a picture keeps an encoder busy for 0.4 s."""
    arrivals = [arrival(1.0, text_tokens=500), arrival(12.0, "a", "b", text_tokens=100)]
    found = loads(arrivals, ROUND, 20.0, 10.0)
    assert found["decoder"] == [pytest.approx(0.05), pytest.approx((100 + 2 * TOKENS) / 1000 / 10)]
    assert found["encoder"] == [0.0, pytest.approx(2 * PATCHES * 0.001 / 10)]


def test_the_reserve_grows_with_the_square_root_of_the_load() -> None:
    """A load of 4 with a reserve of 0.5 needs 5 replicas, at least one is needed, and no more than there can be."""
    assert needs([4.0, 0.0, 100.0], 0.5, 20) == [5, 1, 20]
