"""The policy inside Serve's own machinery, which wraps it, scales its answer and bounds it."""

from __future__ import annotations

import json
import logging
import math
from typing import TYPE_CHECKING, Any

import pytest
from ray.serve._private.common import DeploymentID, ReplicaID, TimeStampedValue
from ray.serve.autoscaling_policy import _apply_app_level_autoscaling_config
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from cluster.scaling.readings import HELD, ScalingSettings
from cluster.scaling.work import OfferedWork
from deployments.local.entries import MEASURED
from deployments.ray_serve import autoscaling
from deployments.ray_serve.autoscaling import PERIOD_S, JointScaling, before_serve
from deployments.ray_serve.decisions import can_start

if TYPE_CHECKING:
    from collections.abc import Mapping

ROUTER, ENCODER = DeploymentID("Router", "prism"), DeploymentID("VisionEncoder", "prism")
NOW_S = 1e9
ACT = ScalingSettings(acts=True, ttft_slo_s=1, window_s=20)


def config_of(**options: Any) -> AutoscalingConfig:
    """Returns the ``autoscaling_config`` of a pool with Prism's policy."""
    with pytest.warns(DeprecationWarning, match="metrics_interval_s"):
        return AutoscalingConfig(**{"min_replicas": 0, "max_replicas": 50, **MEASURED, **options})


def context_of(
    deployment: DeploymentID,
    stats: Mapping[str, Mapping[str, float]],
    *,
    target: int,
    at_s: float,
    config: AutoscalingConfig,
    num_queued: float = 0.0,
) -> AutoscalingContext:
    """Returns Serve's context of a pool whose replicas report these figures."""
    replicas = {name: ReplicaID(name, deployment) for name in stats}
    raw: dict[str, dict[ReplicaID, Any]] = {}
    for name, figures in stats.items():
        for figure, value in figures.items():
            raw.setdefault(figure, {})[replicas[name]] = [TimeStampedValue(at_s, value)]
    return AutoscalingContext(
        deployment_id=deployment,
        deployment_name=deployment.name,
        app_name=deployment.app_name,
        current_num_replicas=len(stats),
        target_num_replicas=target,
        running_replicas=list(replicas.values()),
        total_num_requests=num_queued,
        total_queued_requests=num_queued,
        aggregated_metrics={},
        raw_metrics=raw,
        capacity_adjusted_min_replicas=config.min_replicas,
        capacity_adjusted_max_replicas=config.max_replicas,
        policy_state={},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=at_s,
        config=config,
    )


class Cluster:
    """A Router and encoders that get ``rate`` patches per second and encode 100 in a busy second."""

    def __init__(self, settings: ScalingSettings, num_encoders: int = 1, **config: Any) -> None:
        self.settings, self.config, self.target = settings, config_of(**config), num_encoders
        self.rate = 50.0
        self.num_held = 0
        self._offered = {f"e{number}": OfferedWork() for number in range(num_encoders)}
        self._done = 0.0
        self._now_s = NOW_S
        self._policy = _apply_app_level_autoscaling_config(JointScaling(start_s={"VisionEncoder": 5}))

    def add_encoder(self) -> None:
        """Lets one more encoder run."""
        self._offered[f"e{len(self._offered)}"] = OfferedWork()

    def tick(self, after_s: float = PERIOD_S) -> dict[DeploymentID, int]:
        """Lets a time pass and returns what Serve makes of the policy's answer."""
        self._now_s += after_s
        self._done += self.rate * PERIOD_S
        stats = {}
        for name, offered in self._offered.items():
            offered.arrived(self.rate * PERIOD_S / len(self._offered))
            done = self._done / len(self._offered)
            stats[name] = offered.stats(done, done / 100)
        held = {HELD["VisionEncoder"]: float(self.num_held)}
        routers = {"r": OfferedWork().stats(0, 0) | self.settings.stats() | held}
        answer, _ = self._policy(
            {
                ROUTER: context_of(ROUTER, routers, target=1, at_s=self._now_s, config=self.config),
                ENCODER: context_of(ENCODER, stats, target=self.target, at_s=self._now_s, config=self.config),
            }
        )
        self.target = answer.get(ENCODER, self.target)
        return answer


@pytest.fixture(autouse=True)
def stored(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The decisions that were published last."""
    found: dict[str, Any] = {}

    def put(_: bytes, value: bytes, *, overwrite: bool) -> None:
        assert overwrite
        found.clear()
        found.update(json.loads(value))

    monkeypatch.setattr("ray.experimental.internal_kv._internal_kv_put", put)
    return found


def serve_makes(contexts: Mapping[DeploymentID, AutoscalingContext], answer: float) -> int:
    """Returns the target that Serve makes of an answer."""
    decided, _ = _apply_app_level_autoscaling_config(lambda _: ({ENCODER: answer}, {}))(dict(contexts))
    return decided[ENCODER]


def after(cluster: Cluster, num_ticks: int) -> dict[DeploymentID, int]:
    """Returns what Serve makes of the last answer after so many periods."""
    return [cluster.tick() for _ in range(num_ticks)][-1]


def test_a_spike_raises_the_pool_that_is_short(stored: dict[str, Any]) -> None:
    """With ten times the patches the target rises to what they need and a reserve, and the decision is published."""
    cluster = Cluster(ACT)
    assert after(cluster, 30)[ENCODER] == 1
    cluster.rate = 500
    assert after(cluster, 3)[ENCODER] == math.ceil(5 + 0.7 * math.sqrt(5)) == 7
    assert (stored["VisionEncoder"]["target"], stored["VisionEncoder"]["acts"]) == (7, True)


def test_what_waits_in_the_routers_raises_the_pool() -> None:
    """Requests that the Routers hold back because the pool is full count as work that waits for it."""
    cluster = Cluster(ACT)
    assert after(cluster, 30)[ENCODER] == 1
    cluster.num_held = 20
    assert after(cluster, 10)[ENCODER] > 1


def test_advice_changes_nothing(stored: dict[str, Any]) -> None:
    """In the mode ``advise`` the answer names no pool, so Serve keeps all targets, and the decision is published."""
    cluster = Cluster(ScalingSettings(acts=False, ttft_slo_s=1, window_s=20))
    after(cluster, 30)
    cluster.rate = 500
    assert after(cluster, 3) == {}
    assert (stored["VisionEncoder"]["target"], stored["VisionEncoder"]["acts"]) == (7, False)


@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 4), (4, 1), (8, 2), (16, 16)])
def test_serve_makes_the_target_from_the_answer(up: int, down: int) -> None:
    """Whatever powers of two the factors are, Serve comes to exactly the target that was decided."""
    config = config_of(upscaling_factor=up, downscaling_factor=down)
    for running in range(1, 30):
        for target in range(40):
            context = context_of(ENCODER, {f"e{n}": {} for n in range(running)}, target=running, at_s=0, config=config)
            answer = before_serve(target, context)
            decided = serve_makes({ENCODER: context}, answer)
            # Serve goes down to zero from one replica only.
            assert decided == (target if target or running == 1 else 1), (running, target)


@pytest.mark.parametrize("acts", [True, False])
def test_a_pool_at_zero_starts_when_calls_wait(acts: bool) -> None:
    """A pool without replicas gets one as soon as a call waits for it, also where decisions are only shown."""
    config = config_of()
    policy = _apply_app_level_autoscaling_config(JointScaling())
    settings = ScalingSettings(acts=acts, ttft_slo_s=1, window_s=20)
    routers = {"r": OfferedWork().stats(0, 0) | settings.stats()}
    for num_queued, target in ((0, 0), (2, 1)):
        contexts = {
            ROUTER: context_of(ROUTER, routers, target=1, at_s=NOW_S + num_queued, config=config),
            ENCODER: context_of(ENCODER, {}, target=0, at_s=NOW_S + num_queued, config=config, num_queued=num_queued),
        }
        assert policy(contexts)[0][ENCODER] == target


@pytest.mark.parametrize(
    ("decision", "expected"),
    [
        (None, False),
        ({"min_replicas": 0, "reason": "demand"}, True),
        ({"min_replicas": 1, "reason": "demand"}, False),
    ],
)
def test_a_pool_that_may_be_empty_can_start(decision: dict[str, Any] | None, expected: bool) -> None:
    """A pool without replicas can start if the last decision allows it to be empty."""
    assert can_start(decision) == expected


def test_it_decides_once_per_period() -> None:
    """Between two decisions, Serve gets the last answer again."""
    cluster = Cluster(ACT)
    after(cluster, 30)
    cluster.rate = 50_000
    assert [cluster.tick(0.3)[ENCODER] for _ in range(3)] == [1, 1, 1]
    assert after(cluster, 4)[ENCODER] == 50


def test_the_target_stays_while_replicas_come_up() -> None:
    """Between two decisions replicas may start. With a factor, Serve still comes to the target that was decided."""
    cluster = Cluster(ACT, upscaling_factor=4)
    after(cluster, 30)
    cluster.rate = 900
    decided = after(cluster, 4)[ENCODER]
    assert decided > 5
    for _ in range(3):
        cluster.add_encoder()
        assert cluster.tick(0.1)[ENCODER] == decided


def test_decisions_apply_even_if_they_cannot_be_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the key-value store fails, the decision is carried out all the same."""
    cluster = Cluster(ACT)
    after(cluster, 30)

    def broken(*_: Any) -> None:
        raise ConnectionError

    monkeypatch.setattr(autoscaling, "publish", broken)
    cluster.rate = 500
    assert after(cluster, 4)[ENCODER] == 7


def test_an_exception_changes_nothing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A defect of the policy does not reach Serve. All pools keep their sizes, and the log has the traceback."""
    cluster = Cluster(ACT)
    after(cluster, 5)

    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(autoscaling, "settings_in", broken)
    logging.getLogger("ray.serve").addHandler(caplog.handler)
    try:
        assert after(cluster, 1) == {}
    finally:
        logging.getLogger("ray.serve").removeHandler(caplog.handler)
    assert "ZeroDivisionError" in caplog.text


def test_without_the_routers_word_nothing_acts() -> None:
    """As long as no Router has reported the settings, the policy decides but does not act."""
    cluster = Cluster(ACT)
    cluster.settings = ScalingSettings(acts=True, ttft_slo_s=math.nan, window_s=20)
    assert after(cluster, 5) == {}
