"""Sizes that are known beforehand, played back in the simulator."""

from __future__ import annotations

from dataclasses import replace

from cluster.scaling.baselines.played import PlayedPolicy
from cluster.scaling.simulation.simulate import simulate
from cluster.scaling.simulation.ticks import TICK_S
from tests.helpers.simulated import ROUND, every, heading, sizes


def test_replicas_run_when_the_plan_has_them() -> None:
    """Encoders start 20 s before they are wanted, so at the start of each step as many run as are planned."""
    plan = [1, 1, 3, 3, 2, 1, 1, 2, 2, 2]
    bounds = {name: replace(size, min_replicas=1, max_replicas=9) for name, size in sizes().items()}
    policy = PlayedPolicy({"encoder": plan}, 30.0, {"encoder": ROUND.encoder.start_s})
    result = simulate(heading(300.0), every(1.0, 300, pictures=True), ROUND, bounds, policy=policy)
    encoders = {tick.at_s: tick for tick in result.ticks if tick.pool == "encoder"}
    assert [encoders[30.0 * step + 4].num_running for step in range(len(plan))] == plan
    assert {tick.target for tick in result.ticks if tick.pool == "decoder"} == {1}
    replica_s = sum(tick.num_running + tick.num_starting + tick.num_draining for tick in encoders.values()) * TICK_S
    planned_s = 30 * sum(plan) + 20 * 3  # three starts
    assert abs(replica_s - planned_s) <= 15
