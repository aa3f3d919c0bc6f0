"""The state of every pool, as Serve's controller knows it."""

from __future__ import annotations

from typing import Any

from ray import serve


def read_pool_states() -> dict[str, Any]:
    """Asks Serve's controller for the states of all pools. The call blocks for a few milliseconds.

    Returns:
        For each pool its ``status``, its ``replicas`` (a number for each state) and Serve's ``message``.
    """
    status = serve.status()
    return {
        name: {
            "status": str(deployment.status.value),
            "replicas": dict(deployment.replica_states),
            "message": deployment.message,
        }
        for application in status.applications.values()
        for name, deployment in application.deployments.items()
    }
