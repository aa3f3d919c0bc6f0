"""The work of a replica and the contents of its cache, as a caller knows them."""

from __future__ import annotations

import random
from collections import OrderedDict

import pytest

from cluster.routing.ledger import Held, Task, Work


def test_what_is_held_is_what_a_cache_of_that_size_holds() -> None:
    """Over random uses, the ledger holds the same names as a plain list of uses that is cut to the capacity."""
    draw, oracle = random.Random(0), OrderedDict[int, int]()
    held = Held()
    held.capacity = 500
    sizes = [draw.choice([20, 50, 100, 600]) for _ in range(40)]
    for _ in range(3_000):
        name = min(draw.randrange(40), draw.randrange(40))
        held.use(name, sizes[name])
        oracle[name] = sizes[name]
        oracle.move_to_end(name)
        while sum(oracle.values()) > 500:
            oracle.popitem(last=False)
        assert held.weight == sum(oracle.values())
        assert [name in held for name in range(40)] == [name in oracle for name in range(40)]


@pytest.mark.parametrize("seed", range(20))
def test_of_ones_own_calls_none_is_lost_or_counted_twice(seed: int) -> None:
    """With one caller, the counted work equals that of a plain list of calls, however late the reports arrive."""
    draw, work = random.Random(seed), Work()
    running: list[tuple[str, int]] = []
    totals = [0.0]
    weights = {name: draw.randint(1, 100) for name in "abcdefgh"}
    for step in range(500):
        if running and draw.random() < 0.5:
            name, _ = running.pop(draw.randrange(len(running)))
            work.end(name)
        else:
            name = draw.choice("abcdefgh")
            running.append((name, weights[name]))
            work.begin(name, Task(weights[name], weights[name]), step)
        totals.append(float(sum(dict(running).values())))
        if step % 10 == 9:
            work.report(draw.choice(totals[-10:]), step)
        assert work.total(step) == totals[-1]


def test_others_work_is_learnt_from_reports() -> None:
    """Reported work that exceeds this caller's own is counted as other callers' work until the next report."""
    work = Work()
    work.begin("mine", Task(100, 100), 0)
    work.report(350, 1)
    assert work.total(1) == 350
    work.end("mine")
    assert work.total(1) == 250
    work.report(40, 2)
    assert work.total(2) == 0
    work.report(40, 3)
    assert work.total(3) == 40
