"""Carries the scaling policy's last decisions from Serve's controller to the Routers, through Ray's key-value store."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from ray.experimental import internal_kv

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cluster.scaling.policy import Decision

KEY: Final = b"prism-scaling"


def publish(decisions: Mapping[str, Decision], min_replicas: Mapping[str, int], *, acts: bool, at_s: float) -> None:
    """Stores the decisions of all pools.

    Args:
        decisions: The decisions by the names of the deployments.
        min_replicas: The fewest replicas that a pool may have, by the names of the deployments.
        acts: Whether they are carried out.
        at_s: The time of the decisions, in seconds since the epoch.
    """
    pools = {
        name: {**asdict(decision), "min_replicas": min_replicas[name], "acts": acts, "at_s": at_s}
        for name, decision in decisions.items()
    }
    internal_kv._internal_kv_put(KEY, json.dumps(pools).encode(), overwrite=True)


def read_decisions() -> dict[str, dict[str, Any]]:
    """Reads what ``publish`` has stored; empty if it has never been called. The call blocks for a millisecond or two.

    Returns:
        ``target``, ``wanted``, ``reason``, ``min_replicas``, ``acts`` and ``at_s``, by the name of the deployment.
    """
    stored = internal_kv._internal_kv_get(KEY)
    return dict(json.loads(stored)) if stored else {}


def can_start(decision: Mapping[str, Any] | None) -> bool:
    """Returns True if a pool may have no replica, and nothing says that there is no room for one."""
    return bool(decision and not decision["min_replicas"] and decision["reason"] != "capacity")
