"""A queue that is fair between tenants by cost."""

from __future__ import annotations

import random
from collections import Counter

from cluster.admission.fair_queue import MIN_PRUNED, FairQueue


def popped(queue: FairQueue[str], number: int) -> list[str]:
    """Takes so many items."""
    return [queue.pop() for _ in range(number)]


def test_a_small_tenant_does_not_wait_for_a_large_one() -> None:
    """The first item of a tenant comes next, however many of another wait already."""
    queue: FairQueue[str] = FairQueue()
    for number in range(1000):
        queue.push(f"large {number}", "large", 5)
    popped(queue, 10)
    queue.push("small", "small", 5)
    assert popped(queue, 2) == ["small", "large 10"]


def test_tenants_get_equal_cost() -> None:
    """Tenants that always have something queued get the same cost over time, whatever the sizes of their items."""
    queue: FairQueue[tuple[str, float]] = FairQueue()
    costs = {"few large": 10.0, "many small": 1.0, "some": 3.0}
    for tenant, cost in costs.items():
        for _ in range(400):
            queue.push((tenant, cost), tenant, cost)
    served: Counter[str] = Counter()
    while sum(served.values()) < 900:
        tenant, cost = queue.pop()
        served[tenant] += int(cost)
    assert max(served.values()) - min(served.values()) <= max(costs.values())


def test_what_was_served_at_once_is_paid_for() -> None:
    """A tenant whose requests found room has no advantage once requests wait, and none is punished for its past."""
    queue: FairQueue[str] = FairQueue()
    for _ in range(50):
        queue.charge("busy", 10)
    queue.push("busy", "busy", 10)
    queue.push("new", "new", 10)
    queue.push("busy again", "busy", 10)
    assert popped(queue, 3) == ["new", "busy", "busy again"]


def test_a_priority_comes_before_fairness() -> None:
    """Items of a higher priority come first; of the same priority, the fair order holds."""
    queue: FairQueue[str] = FairQueue()
    queue.push("a1", "a", 1)
    queue.push("b1", "b", 1, priority=1)
    queue.push("b2", "b", 1, priority=1)
    assert popped(queue, 3) == ["b1", "b2", "a1"]


def test_removed_items_never_come() -> None:
    """Over random events, exactly the items that were not removed come out, and the length is theirs."""
    draw, queue = random.Random(0), FairQueue[int]()
    waiting: dict[int, int] = {}
    for number in range(5000):
        match draw.randrange(3):
            case 0:
                waiting[number] = queue.push(number, f"{draw.randrange(200)}", draw.random(), draw.randrange(2))
            case 1 if waiting:
                queue.remove(waiting.pop(draw.choice([*waiting])))
            case 2 if waiting:
                assert queue.first() in waiting
                del waiting[queue.pop()]
        assert len(queue) == len(waiting)


def test_tenants_that_owe_nothing_are_forgotten() -> None:
    """The memory does not grow with the tenants that ever came."""
    queue: FairQueue[str] = FairQueue()
    for number in range(100 * MIN_PRUNED):
        queue.charge(f"{number}", 1)
        queue.charge("always", 2)
    assert len(queue._finish_tags) <= 4 * MIN_PRUNED


def test_who_left_owes_nothing() -> None:
    """Items that were removed leave their tenant no debt, so its next one does not wait behind many of another."""
    queue: FairQueue[str] = FairQueue()
    queue.push("b0", "b", 10)
    removed = [queue.push("gone", "a", 1000) for _ in range(20)]
    for number in removed:
        queue.remove(number)
    for number in range(200):
        queue.push(f"b{number + 1}", "b", 10)
    queue.push("a", "a", 10)
    assert popped(queue, 2) == ["b0", "a"]


def test_a_removal_never_pays_for_what_was_served() -> None:
    """A tenant owes for what it got, also if it removes all that it has queued."""
    queue: FairQueue[str] = FairQueue()
    for _ in range(50):
        queue.charge("a", 10)
    queue.remove(queue.push("gone", "a", 10**6))
    queue.push("a", "a", 10)
    queue.push("b", "b", 10)
    assert popped(queue, 2) == ["b", "a"]


def test_removed_items_take_no_memory() -> None:
    """Items that were removed behind one that waits are forgotten."""
    queue: FairQueue[int] = FairQueue()
    queue.push(0, "a", 1)
    for number in range(1000):
        queue.remove(queue.push(number, "a", 1))
    assert len(queue._heap) <= 2
