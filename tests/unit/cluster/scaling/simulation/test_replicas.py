"""Simulated pools: queueing, starting, draining and the count of their seconds."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from cluster.scaling.simulation.events import EventClock
from cluster.scaling.simulation.replicas import PoolSize, ReplicaPool
from cluster.scaling.simulation.servers import OneThread


def pool(clock: EventClock, num_replicas: int, *, max_ongoing: float = 1) -> ReplicaPool[OneThread]:
    """Returns a pool whose replicas start in 10 s."""
    size = PoolSize(num_replicas, 0, 10)
    return ReplicaPool("pool", clock, size, lambda name: OneThread(name, clock), start_s=10, max_ongoing=max_ongoing)


def erlang_wait_s(load: float, num_servers: int) -> float:
    """Returns the mean wait of an M/M/c queue whose service takes one second on average."""
    offered = load * num_servers
    terms = [offered**n / math.factorial(n) for n in range(num_servers)]
    last = offered**num_servers / math.factorial(num_servers) / (1 - load)
    return last / (sum(terms) + last) / (num_servers * (1 - load))


@pytest.mark.parametrize(("load", "num_servers"), [(0.7, 2), (0.8, 4)])
def test_waits_are_those_of_an_m_m_c_queue(load: float, num_servers: int) -> None:
    """With one call per replica, the mean wait is within 8 % of the Erlang C formula."""
    clock, draw, waits_s = EventClock(), random.Random(2), list[float]()
    servers = pool(clock, num_servers)

    def arrive(service_s: float) -> None:
        arrived_s = clock.now_s

        def begin(replica: OneThread) -> None:
            waits_s.append(clock.now_s - arrived_s)
            replica.work(1, service_s, lambda _: None, lambda: servers.release(replica))

        servers.call(lambda free: free[0], begin)

    for at_s in itertools.accumulate(draw.expovariate(load * num_servers) for _ in range(60_000)):
        clock.at(at_s, lambda: arrive(draw.expovariate(1)))
    clock.run()
    assert sum(waits_s) / len(waits_s) == pytest.approx(erlang_wait_s(load, num_servers), rel=0.08)


def test_the_first_starts_may_take_times_of_their_own() -> None:
    """With 3 s and 12 s for the first two starts, the third one takes the 10 s of the pool."""
    clock = EventClock()
    servers = ReplicaPool(
        "pool",
        clock,
        PoolSize(1, 0, 10),
        lambda name: OneThread(name, clock),
        start_s=10,
        max_ongoing=1,
        first_starts_s=(3, 12),
    )
    servers.resize(4)
    counts = []
    for until_s in (2.9, 3.1, 10.1, 12.1):
        clock.run(until_s=until_s)
        counts.append(len(servers.running))
    assert counts == [1, 2, 3, 4]


def test_calls_wait_for_a_replica_with_room_in_their_order() -> None:
    """Only as many calls run as the replicas accept. The others follow in the order of arrival."""
    clock, begun = EventClock(), list[tuple[int, OneThread]]()
    servers = pool(clock, 1, max_ongoing=2)
    for number in range(4):
        servers.call(lambda free: free[0], lambda replica, number=number: begun.append((number, replica)))  # type: ignore[misc]
    assert ([number for number, _ in begun], servers.num_queued) == ([0, 1], 2)
    servers.release(begun[0][1])
    assert ([number for number, _ in begun], servers.num_queued) == ([0, 1, 2], 1)


def test_a_replica_serves_after_its_start_and_costs_from_the_decision() -> None:
    """A replica that is asked for at 5 s serves at 15 s, and by 20 s it has cost 15 s."""
    clock = EventClock()
    servers = pool(clock, 1)
    clock.at(5.0, lambda: servers.resize(2))
    clock.run(until_s=14.9)
    assert (len(servers.running), servers.num_starting) == (1, 1)
    clock.at(20.0, lambda: None)
    clock.run()
    assert (len(servers.running), servers.num_starting) == (2, 0)
    assert servers.replica_s(20.0) == 20 + 15


def test_starting_replicas_go_first_and_then_the_newest() -> None:
    """Of two running and one starting replicas, the starting one is cancelled first, then the second one goes."""
    clock = EventClock()
    servers = pool(clock, 2)
    servers.resize(3)
    servers.resize(2)
    assert (list(servers.running), servers.num_starting) == (["pool 1", "pool 2"], 0)
    servers.resize(1)
    assert list(servers.running) == ["pool 1"]
    clock.run()
    assert len(servers.running) == 1  # the cancelled start has no effect


def test_a_replica_drains_until_its_calls_have_ended() -> None:
    """A removed replica gets no new calls, finishes its own, and costs until then."""
    clock, begun = EventClock(), list[OneThread]()
    servers = pool(clock, 1)
    servers.call(lambda free: free[0], begun.append)
    servers.resize(0)
    servers.call(lambda free: free[0], begun.append)
    assert (len(begun), list(servers.draining), servers.num_queued) == (1, ["pool 1"], 1)
    clock.at(7.0, lambda: servers.release(begun[0]))
    clock.run()
    assert (len(begun), servers.draining) == (1, {})
    assert servers.replica_s(100.0) == 7.0


def test_a_call_waits_for_the_first_replica_of_an_empty_pool() -> None:
    """A call to a pool without replicas is served when the first one has started."""
    clock, begun_s = EventClock(), list[float]()
    servers = pool(clock, 0)
    servers.call(lambda free: free[0], lambda _: begun_s.append(clock.now_s))
    assert servers.reading(servers.snapshot()).num_queued == 1
    servers.resize(1)
    clock.run()
    assert begun_s == [10.0]


def test_a_reading_has_the_counters_of_running_replicas_only() -> None:
    """Counters of a replica that is gone by now are left out, and bounds default to the fixed size."""
    clock = EventClock()
    servers = pool(clock, 2)
    then = servers.snapshot()
    servers.resize(1)
    reading = servers.reading(then)
    assert reading.running == reading.sources == reading.offered.keys() == reading.served.keys() == {"pool 1"}
    assert (reading.target, reading.min_replicas, reading.max_replicas) == (1, 0, 10)
    fixed: ReplicaPool[OneThread] = ReplicaPool(
        "fixed", clock, PoolSize(3), lambda name: OneThread(name, clock), start_s=1, max_ongoing=1
    )
    reading = fixed.reading(fixed.snapshot())
    assert (reading.min_replicas, reading.max_replicas) == (3, 3)
