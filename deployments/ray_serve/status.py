"""The state of every pool, as Serve's controller knows it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final, cast

import ray
from ray import serve

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ray.serve.schema import ServeStatus

_lock: Final = threading.Lock()


def serve_status() -> ServeStatus:
    """Asks Serve's controller for the states of all applications. The call blocks for a few milliseconds.

    Use it in place of ``serve.status``. That function fails in one of two threads which call it at the same time, if a
    pool has an ``autoscaling_config``: both pickle the policy with one global registry.
    """
    with _lock:
        return serve.status()


def read_pool_states(needs: Mapping[str, Mapping[str, float]] | None = None) -> dict[str, Any]:
    """Asks Serve's controller for the states of all pools. The call blocks for a few milliseconds.

    Args:
        needs: The CPUs and GPUs of one replica, by the names of the deployments. If replicas are starting that no node
            can hold, the message says so.

    Returns:
        For each pool its ``status``, its ``replicas`` (a number for each state) and Serve's ``message``.
    """
    status = serve_status()
    states: dict[str, dict[str, Any]] = {
        name: {
            "status": str(deployment.status.value),
            "replicas": cast("dict[str, int]", dict(deployment.replica_states)),
            "message": deployment.message,
        }
        for application in status.applications.values()
        for name, deployment in application.deployments.items()
    }
    for name, need in (needs or {}).items():
        if name in states and states[name]["replicas"].get("STARTING"):
            states[name]["message"] = no_node_holds(need, _nodes()) or states[name]["message"]
    return states


def no_node_holds(need: Mapping[str, float], nodes: Sequence[Mapping[str, Any]]) -> str:
    """Returns a sentence if no single node has what one replica needs; otherwise an empty text.

    Args:
        need: The resources of one replica, by their names, such as ``GPU``.
        nodes: The nodes as ``ray.nodes`` gives them.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    if any(all(resources.get(name, 0) >= amount for name, amount in need.items()) for resources in alive):
        return ""
    for name, amount in need.items():
        most = max((resources.get(name, 0) for resources in alive), default=0)
        if amount > most:
            return f"Each replica needs {amount:g} {name}s on one node, and the largest node has {most:g}."
    together = " and ".join(f"{amount:g} {name}s" for name, amount in need.items() if amount)
    return f"Each replica needs {together} on one node, and no node has all of it."


def _nodes() -> list[dict[str, Any]]:
    return list(ray.nodes())  # type: ignore[no-untyped-call]
