"""Serve's default policy as a baseline, compared with Ray's own functions."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

import pytest
from ray.serve import autoscaling_policy
from ray.serve._private.common import DeploymentID
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from cluster.scaling.baselines.serve_default import ServeAutoscaling, ServeDefaultPolicy
from tests.helpers.call_readings import calls_reading

if TYPE_CHECKING:
    from collections.abc import Mapping

POOL = "decoder"
DEPLOYMENT = DeploymentID("Decoder", "prism")


class RaysOwn:
    """Ray's default policy with everything that Serve wraps around it, and a mean over one sample."""

    def __init__(self, config: AutoscalingConfig) -> None:
        self.config = config
        self.state: dict[str, Any] = {}
        self.wrapped = autoscaling_policy._apply_autoscaling_config(
            autoscaling_policy.replica_queue_length_autoscaling_policy
        )

    def target(self, num_running: int, target: int, num_calls: float) -> int:
        context = AutoscalingContext(
            deployment_id=DEPLOYMENT,
            deployment_name=DEPLOYMENT.name,
            app_name=DEPLOYMENT.app_name,
            current_num_replicas=num_running,
            target_num_replicas=target,
            running_replicas=[],
            total_num_requests=num_calls,
            total_queued_requests=0.0,
            aggregated_metrics={},
            raw_metrics={},
            capacity_adjusted_min_replicas=self.config.min_replicas,
            capacity_adjusted_max_replicas=self.config.max_replicas,
            policy_state=self.state,
            last_scale_up_time=None,
            last_scale_down_time=None,
            current_time=None,
            config=self.config,
        )
        wanted, self.state = self.wrapped(context)
        return max(self.config.min_replicas, min(self.config.max_replicas, wanted))


@pytest.mark.parametrize("seed", range(20))
def test_delays_and_sizes_are_those_of_ray(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With random calls, bounds, delays and replicas that start late, each target is the one that Ray's functions
    give at the same time."""
    draw = random.Random(seed)
    settings = ServeAutoscaling(
        target_ongoing_requests=draw.choice((0.7, 2.0, 3.0)),
        look_back_period_s=1.0,
        upscale_delay_s=draw.choice((0.0, 6.0, 30.0)),
        downscale_delay_s=draw.choice((0.0, 20.0, 60.0)),
    )
    least = draw.choice((0, 1, 2))
    theirs = RaysOwn(
        AutoscalingConfig(
            min_replicas=least,
            max_replicas=9,
            target_ongoing_requests=settings.target_ongoing_requests,
            upscale_delay_s=settings.upscale_delay_s,
            downscale_delay_s=settings.downscale_delay_s,
        )
    )
    ours = ServeDefaultPolicy({POOL: settings})
    target, num_running, num_calls = 2, 2, 4.0
    changes = 0
    for number in range(600):
        now_s = 1e6 + 2.0 * number
        if draw.random() < 0.05:
            num_calls = draw.choice((0.0, draw.uniform(0, 4), draw.uniform(0, 30)))
        monkeypatch.setattr(time, "time", lambda now_s=now_s: now_s)
        reading = calls_reading(num_running, num_calls, now_s, target=target, bounds=(least, 9))
        decided = ours.decide({POOL: reading}, now_s)[POOL]
        assert decided.target == theirs.target(num_running, target, num_calls)
        changes += decided.target != target
        target = decided.target
        if draw.random() < 0.1 or num_running > target:
            num_running = target
    assert changes > 2


def targets(calls: Mapping[float, float], settings: ServeAutoscaling, until_s: float) -> dict[float, int]:
    """Returns the target at each tick of a pool whose replicas start at once, if the calls change at these times."""
    policy, found, target, num_calls, now_s = ServeDefaultPolicy({POOL: settings}), {}, 1, 0.0, 0.0
    while now_s <= until_s:
        num_calls = calls.get(now_s, num_calls)
        target = policy.decide({POOL: calls_reading(target, num_calls, now_s)}, now_s)[POOL].target
        found[now_s] = target
        now_s += 2
    return found


def test_a_step_of_calls_counts_after_the_mean_and_the_delay() -> None:
    """Four times the calls raise the wish at once, and the target when the delay of 30 s has passed. The mean over 30 s
    has then reached its height. The fall counts after the delay of 100 s, in one step."""
    found = targets(
        {0.0: 2.0, 100.0: 8.0, 400.0: 2.0}, ServeAutoscaling(look_back_period_s=30.0, downscale_delay_s=100.0), 700.0
    )
    assert {found[at_s] for at_s in found if at_s < 130} == {1}
    assert found[130.0] == 4
    assert {found[at_s] for at_s in found if 130 <= at_s < 500} == {4}
    assert found[700.0] == 1
    assert set(found.values()) == {1, 4}


def test_one_moment_at_the_target_restarts_the_delay() -> None:
    """A pool that wants its target again for a moment every 50 s never shrinks with a delay of 60 s."""
    calls = {0.0: 8.0, 100.0: 2.0, 150.0: 8.0, 152.0: 2.0, 200.0: 8.0, 202.0: 2.0, 250.0: 8.0, 252.0: 2.0}
    settings = ServeAutoscaling(look_back_period_s=1.0, upscale_delay_s=0.0, downscale_delay_s=60.0)
    found = targets(calls, settings, 300.0)
    assert {found[at_s] for at_s in found if 2 <= at_s <= 310} == {4}


def test_calls_that_wait_outside_count_and_other_pools_keep_their_sizes() -> None:
    """Calls in the queue are calls of the pool. A pool without settings keeps its size."""
    policy = ServeDefaultPolicy({POOL: ServeAutoscaling(upscale_delay_s=0.0)})
    readings = {POOL: calls_reading(1, 2, 0.0, num_queued=4), "router": calls_reading(3, 100, 0.0)}
    decided = policy.decide(readings, 0.0)
    assert (decided[POOL].target, decided["router"].target) == (3, 3)
