"""The regular actions of a simulated cluster: what the policy is told, and what request routers are told."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from cluster.scaling.policy import Decision
from cluster.scaling.simulation.engine import EngineSequence
from cluster.scaling.simulation.prompts import PromptMaker
from cluster.scaling.simulation.request_path import RequestPath
from cluster.scaling.simulation.servers import RouterReplica
from cluster.scaling.simulation.simulated import SimulatedCluster
from cluster.scaling.simulation.ticks import METRIC_AGE_S, TICK_S, Ticks
from tests.helpers.simulated import ROUND, arrival, every, sizes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cluster.scaling.simulation.sizing import CallsReading, SizingPolicy


class Scripted:
    """A policy that wants ``wanted`` encoders, and notes everything that it is told."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.told: list[tuple[float, Mapping[str, CallsReading]]] = []

    def decide(self, readings: Mapping[str, CallsReading], now_s: float) -> dict[str, Decision]:
        self.told.append((now_s, readings))
        return {
            name: Decision(self.wanted if name == "encoder" else reading.target, None, "demand")
            for name, reading in readings.items()
        }


def run(policy: SizingPolicy, until_s: float, metric_age_s: float = METRIC_AGE_S) -> tuple[SimulatedCluster, Ticks]:
    """Runs a cluster with two decoders on a picture every 0.8 s."""
    bounds = {name: replace(size, min_replicas=0, max_replicas=9) for name, size in sizes(decoder=2).items()}
    cluster = SimulatedCluster(ROUND, bounds, random.Random(0))
    RequestPath(cluster, every(0.8, 60, pictures=True), ROUND).start()
    ticks = Ticks(cluster, policy, ROUND, metric_age_s)
    ticks.start()
    cluster.clock.run(until_s=until_s)
    return cluster, ticks


def test_the_policy_is_told_old_counters_every_second() -> None:
    """Decisions are made every second, with counters that are one second old."""
    policy = Scripted(1)
    run(policy, 10.0)
    assert [now_s for now_s, _ in policy.told] == [*range(1, 11)]
    ages_s = {now_s - one.at_s for now_s, told in policy.told for pool in told.values() for one in pool.served.values()}
    assert ages_s == {METRIC_AGE_S}
    last = policy.told[-1][1]["router"]
    assert sum(one.work for one in last.offered.values()) == 12  # those at 0, 0.8, … 8.8 s


def test_decisions_are_carried_out() -> None:
    """A pool that should have three replicas starts two, and serves with three after a start. It is noted why."""
    cluster, ticks = run(Scripted(3), 30.0)
    assert len(cluster.encoders.running) == 3
    encoders = {tick.at_s: tick for tick in ticks.noted if tick.pool == "encoder"}
    assert (encoders[0.0].num_running, encoders[0.0].num_starting, encoders[0.0].reason) == (1, 0, None)
    assert (encoders[TICK_S].num_running, encoders[TICK_S].num_starting, encoders[TICK_S].reason) == (1, 2, "demand")
    assert (encoders[24.0].num_running, encoders[24.0].num_starting) == (3, 0)


def test_a_new_replica_has_no_counters_at_first() -> None:
    """A replica that has just started is running, but its counters come a moment later, as with Serve."""
    policy = Scripted(2)
    run(policy, 30.0)
    told = {now_s: readings["encoder"] for now_s, readings in policy.told}
    assert told[21.0].running == {"encoder 1", "encoder 2"}
    assert told[21.0].served.keys() == {"encoder 1"}
    assert told[22.0].served.keys() == {"encoder 1", "encoder 2"}


def test_request_routers_get_reports() -> None:
    """A Router that has sent nothing itself learns from a report that a decoder has much to do."""
    cluster, _ = run(Scripted(1), 10.5)
    router, prompt = RouterReplica("new", cluster.clock, ROUND.router, 1.0), PromptMaker(ROUND.processor)
    cluster.routers.draining["new"] = router
    busy, idle = cluster.decoders.running.values()
    long = prompt.prompt(arrival(0.0, text_tokens=50_000))
    busy.add(EngineSequence(long, 1, lambda _: None, lambda: None, lambda: None), ())
    cluster.clock.run(until_s=11.5)
    short = prompt.prompt(arrival(0.0)).conversation
    assert router.routes.cost(short, busy.name, 11.5) > 40_000
    assert router.routes.cost(short, idle.name, 11.5) < 1000


@pytest.mark.parametrize(("age_s", "first_s"), [(3.0, 3.0), (5.0, 5.0), (25.0, 25.0)])
def test_the_age_of_the_counters_can_be_chosen(age_s: float, first_s: float) -> None:
    """The policy is asked when the first counters are old enough, and sees all counters with their true times."""
    policy = Scripted(1)
    run(policy, 40.0, metric_age_s=age_s)
    assert policy.told[0][0] == first_s
    for now_s, told in policy.told:
        router = told["router"]
        assert {one.at_s for one in router.served.values()} == {now_s - age_s}
        assert router.counted_s == now_s - age_s
        arrivals_s = [number * 0.8 for number in range(60)]
        before, until = (
            sum(at_s < now_s - age_s for at_s in arrivals_s),
            sum(at_s <= now_s - age_s for at_s in arrivals_s),
        )
        assert before <= sum(one.work for one in router.offered.values()) <= until


def test_calls_are_counted_with_the_counters() -> None:
    """A decoder that serves one call at a time has one ongoing call, and the others wait outside of it."""
    speeds = ROUND.model_copy(update={"decoder": ROUND.decoder.model_copy(update={"max_ongoing_requests": 1})})
    policy = Scripted(1)
    cluster = SimulatedCluster(speeds, sizes(), random.Random(0))
    RequestPath(cluster, [arrival(0.5, text_tokens=5000) for _ in range(4)], speeds).start()
    Ticks(cluster, policy, speeds).start()
    cluster.clock.run(until_s=2.0)
    told = policy.told[-1][1]
    assert (told["decoder"].num_ongoing, told["decoder"].num_queued) == (1, 3)
    assert (told["router"].num_ongoing, told["encoder"].num_ongoing) == (4, 0)
