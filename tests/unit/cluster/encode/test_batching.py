"""Which pictures share a run of the vision tower, and how long it waits for more."""

from __future__ import annotations

import random
from itertools import product
from typing import TYPE_CHECKING

import pytest

from cluster.encode.batching import MAX_WAIT_S, Waiting, due_s, take, wait_s

if TYPE_CHECKING:
    from collections.abc import Sequence

PATCH_S = 1 / 40_000
"""About what the demo's tower takes on a core."""


@pytest.mark.parametrize("seed", range(60))
def test_a_batch_is_the_first_that_fits(seed: int) -> None:
    """Of all subsets within the budget that hold the oldest picture, the batch is the one that prefers pictures with
    earlier due times."""
    rng = random.Random(seed)
    waiting = draw(rng, rng.randint(1, 9))
    budget = rng.choice([100, 400, 1500])
    in_order = sorted(range(len(waiting)), key=lambda index: due_s(waiting[index], PATCH_S))

    def fits(chosen: Sequence[bool]) -> bool:
        sizes = [waiting[index].num_patches for index, is_chosen in zip(in_order, chosen, strict=True) if is_chosen]
        return chosen[0] and (len(sizes) == 1 or sum(sizes) <= budget)

    best = max(filter(fits, product([False, True], repeat=len(waiting))))
    expected = [index for index, is_chosen in zip(in_order, best, strict=True) if is_chosen]
    assert take(waiting, budget_patches=budget, patch_s=PATCH_S) == expected


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("mix", ["mostly small", "mostly large"])
def test_no_size_starves_another(seed: int, mix: str) -> None:
    """Between a picture's arrival and its own run, every run contains a picture that was due earlier. The simulated
    tower is offered 1.5 times its capacity, so its queue always grows."""
    rng, budget = random.Random(seed), 2000
    clock_s, arrivals = 0.0, []
    for _ in range(300):
        large = rng.random() < (0.05 if mix == "mostly small" else 0.95)
        arrivals.append(Waiting(rng.randint(1500, 3000) if large else rng.randint(16, 200), clock_s))
        clock_s += arrivals[-1].num_patches * PATCH_S / 1.5 * rng.expovariate(1)
    started_s: dict[Waiting, float] = {}
    clock_s, coming, waiting = 0.0, arrivals[::-1], list[Waiting]()
    while coming or waiting:
        clock_s = clock_s if waiting else max(clock_s, coming[-1].arrived_s)
        while coming and coming[-1].arrived_s <= clock_s:
            waiting.append(coming.pop())
        batch = [waiting[index] for index in take(waiting, budget_patches=budget, patch_s=PATCH_S)]
        started_s |= dict.fromkeys(batch, clock_s)
        waiting = [picture for picture in waiting if picture not in started_s]
        clock_s += sum(picture.num_patches for picture in batch) * PATCH_S
    assert len(started_s) == len(arrivals)
    for picture, start_s in started_s.items():
        watched = {began_s for began_s in started_s.values() if picture.arrived_s <= began_s < start_s}
        before = (other for other in arrivals if due_s(other, PATCH_S) < due_s(picture, PATCH_S))
        assert watched <= {started_s[other] for other in before}


@pytest.mark.parametrize("seed", range(60))
def test_the_wait_ends_at_the_first_tick_that_has_a_reason(seed: int) -> None:
    """A free tower starts when no picture is on its way, when half a batch is there, or when the oldest picture has
    waited for the limit."""
    rng = random.Random(seed)
    waiting, num_coming, now_s = draw(rng, rng.randint(1, 4)), rng.randint(0, 2), 0.010
    tick_s = 1e-5
    ticks = (tick * tick_s for tick in range(10_000))
    reasons = (
        tick_s
        for tick_s in ticks
        if num_coming == 0
        or sum(picture.num_patches for picture in waiting) >= 200
        or any(now_s + tick_s - picture.arrived_s >= MAX_WAIT_S for picture in waiting)
    )
    waited_s = wait_s(waiting, now_s=now_s, num_coming=num_coming, budget_patches=400)
    assert waited_s == pytest.approx(next(reasons), abs=2 * tick_s)


def draw(rng: random.Random, count: int) -> list[Waiting]:
    """Returns pictures of many sizes that arrived within ten milliseconds."""
    return [Waiting(rng.choice([16, 64, 192, 300, 1024]), rng.uniform(0, 0.01)) for _ in range(count)]
