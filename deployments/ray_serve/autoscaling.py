"""The autoscaling policy of an application: Serve asks it how many replicas each pool should have.

``cluster.scaling.policy`` decides. This module reads Serve's contexts, and it allows for what Serve does to an answer:

- Serve calls the policy in its controller, several times per second. It decides every ``PERIOD_S`` and gives the same
  answer in between.
- An exception would stop Serve's work on all applications, so the policy catches all of them and changes nothing.
- Serve keeps the target of a pool that the answer leaves out.
- Serve may multiply the growth of a pool by its ``upscaling_factor``, so the answer is divided by it before.
"""

from __future__ import annotations

import logging
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from cluster.scaling.policy import JointPolicy
from cluster.scaling.readings import ScalingSettings, num_held, reading_of, settings_in
from deployments.ray_serve.decisions import publish

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ray.serve.config import AutoscalingContext

    from cluster.scaling.policy import Decision, PoolReading
    from cluster.scaling.readings import Figures

DeploymentKey = Any
"""Serve's name of a deployment with that of its application."""

log: Final = logging.getLogger("ray.serve")

PERIOD_S: Final = 1.0
"""The time between two decisions."""
ROUTER: Final = "Router"


class JointScaling:
    """Serve's application-level policy for the pools that have an ``autoscaling_config``.

    Args:
        start_s: The seconds that a replica takes to start, by the name of its deployment, where they are known. The
            policy measures them later.
    """

    def __init__(self, start_s: Mapping[str, float] | None = None) -> None:
        self._start_s = start_s or {}
        self._policy = JointPolicy(ScalingSettings().traits(self._start_s))
        self._targets: dict[DeploymentKey, int] = {}
        self._decided_s = -math.inf
        self._shown: dict[str, Decision] = {}

    def __call__(
        self, contexts: Mapping[DeploymentKey, AutoscalingContext]
    ) -> tuple[dict[DeploymentKey, float], dict[DeploymentKey, dict[str, Any]]]:
        """Serve calls this each time that its control loop runs.

        Returns:
            For each pool whose size may change, the number from which Serve makes its target. The second part is always
            empty.
        """
        try:
            now_s = max(context.current_time or 0.0 for context in contexts.values())  # the clock of the figures
            if not 0 <= now_s - self._decided_s < PERIOD_S:
                self._decided_s = now_s
                self._targets = self._decide(contexts, now_s)
            return {
                name: before_serve(target, contexts[name]) for name, target in self._targets.items() if name in contexts
            }, {}
        except Exception:
            self._targets = {}
            log.exception("the scaling policy failed; all pools keep their sizes")
            return {}, {}

    def _decide(self, contexts: Mapping[DeploymentKey, AutoscalingContext], now_s: float) -> dict[DeploymentKey, int]:
        by_name = {deployment.name: (deployment, context) for deployment, context in contexts.items()}
        router = by_name[ROUTER][1] if ROUTER in by_name else None
        told = figures_of(router) if router else {}
        routers = names_of(router) if router else frozenset()
        settings = settings_in(told, now_s)
        if settings is not None:
            self._policy.set_traits(settings.traits(self._start_s))
        readings = {name: read(context, num_held(told, name, routers, now_s)) for name, (_, context) in by_name.items()}
        decisions = self._policy.decide(readings, now_s)
        acts = settings is not None and settings.acts
        self._show(decisions, acts=acts)
        shown = {
            name: {
                **asdict(decision),
                "min_replicas": readings[name].min_replicas,
                "start_s": round(self._policy.lead_s(name), 1),
                "acts": acts,
                "at_s": now_s,
            }
            for name, decision in decisions.items()
        }
        try:
            publish(shown)
        except Exception:
            log.exception("the decisions about the sizes of pools cannot be shown; they apply all the same")
        return {
            by_name[name][0]: decision.target
            for name, decision in decisions.items()
            # A pool without replicas is woken in any case: calls wait for it.
            if decision.reason != "no data" and (acts or not readings[name].target)
        }

    def _show(self, decisions: Mapping[str, Decision], *, acts: bool) -> None:
        """Logs each target and each reason that differs from the one before."""
        for name, decision in decisions.items():
            before = self._shown.get(name)
            if before is None or (decision.target, decision.reason) != (before.target, before.reason):
                log.info(
                    "scaling: %s",
                    name,
                    extra={
                        "target": decision.target,
                        "wanted": decision.wanted,
                        "reason": decision.reason,
                        "acts": acts,
                    },
                )
        self._shown = dict(decisions)


def figures_of(context: AutoscalingContext) -> Figures:
    """The newest value of each figure that the replicas of a pool have reported."""
    return {
        name: {
            replica.unique_id: (series[-1].timestamp, series[-1].value)
            for replica, series in by_replica.items()
            if series
        }
        for name, by_replica in (context.raw_metrics or {}).items()
    }


def names_of(context: AutoscalingContext) -> frozenset[str]:
    """The names of a pool's running replicas."""
    return frozenset(replica.unique_id for replica in context.running_replicas)


def read(context: AutoscalingContext, num_held: float = 0.0) -> PoolReading:
    """The reading of one pool.

    Args:
        context: What Serve knows of the pool.
        num_held: The requests that wait for it in the Routers.
    """
    return reading_of(
        figures_of(context),
        names_of(context),
        target=context.target_num_replicas,
        min_replicas=context.capacity_adjusted_min_replicas,
        max_replicas=context.capacity_adjusted_max_replicas,
        num_queued=(context.total_queued_requests or 0.0) + num_held,
    )


def before_serve(target: int, context: AutoscalingContext) -> float:
    """The answer from which Serve makes a target.

    Serve multiplies the difference between the answer and the running replicas by a factor of the pool's
    ``autoscaling_config``. The result is exact if the factor is a power of two.
    """
    running = context.current_num_replicas
    config = context.config
    if config is None or not running:
        return target
    factor = config.get_upscaling_factor() if target > running else config.get_downscaling_factor()
    return float(running + (target - running) / factor)
