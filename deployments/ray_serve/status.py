"""The state of every pool, as Serve's controller knows it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

from ray import serve

if TYPE_CHECKING:
    from ray.serve.schema import ServeStatus

_lock: Final = threading.Lock()


def serve_status() -> ServeStatus:
    """Asks Serve's controller for the states of all applications. The call blocks for a few milliseconds.

    Use it in place of ``serve.status``. That function fails in one of two threads which call it at the same time, if a
    pool has an ``autoscaling_config``: both pickle the policy with one global registry.
    """
    with _lock:
        return serve.status()


def read_pool_states() -> dict[str, Any]:
    """Asks Serve's controller for the states of all pools. The call blocks for a few milliseconds.

    Returns:
        For each pool its ``status``, its ``replicas`` (a number for each state) and Serve's ``message``.
    """
    status = serve_status()
    return {
        name: {
            "status": str(deployment.status.value),
            "replicas": dict(deployment.replica_states),
            "message": deployment.message,
        }
        for application in status.applications.values()
        for name, deployment in application.deployments.items()
    }
