"""The Router's HTTP surface: what every request leaves behind, however it ends."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from prometheus_client import REGISTRY

from cluster.errors import InvalidField, PoolUnavailable, PrismError
from cluster.stream import Answer
from tests.helpers.http_surface import here, logged, post, served

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from cluster.access_log import AccessRecord
    from cluster.deadline import Deadline

CHAT = "/v1/chat/completions"


async def rest_of(*pieces: str | Exception) -> AsyncGenerator[str]:
    """Yields pieces of an answer. A piece that is an exception is raised."""
    for piece in pieces:
        if isinstance(piece, Exception):
            raise piece
        yield piece


class Pools:
    """Serves each request in the way that its body names."""

    async def serve(self, _: str, raw: bytes, __: Any, deadline: Deadline, record: AccessRecord) -> Answer:
        """See ``Router.serve``."""
        how = raw.decode()
        record.call_id, record.num_pictures, record.decoders = "7f", 2, ["prism#Decoder#1"]
        gone = PoolUnavailable("The decoder went away.", pool="decoder")
        gone.replica, gone.cause = "prism#Decoder#1", "ActorDiedError"
        match how:
            case "refused":
                raise InvalidField("The temperature is no number.", param="temperature")
            case "gone":
                raise gone
            case "defect":
                raise ZeroDivisionError("a private word")
            case "broken stream":
                return Answer("data: 1\n\n", rest_of(gone), True, False, deadline)
            case "broken badly":
                return Answer("data: 1\n\n", rest_of(ZeroDivisionError()), True, False, deadline)
        return Answer("{}", rest_of(), False, False, deadline)


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    """Returns a client of an HTTP surface in front of ``Pools``, with room for eight requests."""
    async with served(Pools().serve, timeout_s=1.0) as (port, _), httpx.AsyncClient(base_url=here(port)) as client:
        yield client


def count(endpoint: str, status: int, code: str) -> float:
    """Returns the number of requests that were counted with a status and an error code."""
    labels = {"endpoint": endpoint, "status": str(status), "code": code}
    return REGISTRY.get_sample_value("prism_requests_total", labels) or 0.0


@pytest.mark.parametrize(
    ("how", "status", "code", "message"),
    [
        ("right", 200, "ok", "answered"),
        ("refused", 400, "invalid_value", "failed"),
        ("gone", 503, "stage_unavailable", "failed"),
        ("defect", 500, "internal_error", "failed"),
        ("broken stream", 503, "stage_unavailable", "failed"),
        ("broken badly", 500, "internal_error", "failed"),
    ],
)
async def test_a_request_leaves_one_line_and_one_count(
    client: httpx.AsyncClient, how: str, status: int, code: str, message: str
) -> None:
    """Every end of a request, before or after its first piece, is one line in the log and one count."""
    before = count("chat", status, code)
    with logged() as records:
        response = await client.post(CHAT, content=how, headers={"x-request-id": "the-id"})
    assert count("chat", status, code) == before + 1
    [line] = [record for record in records if record["message"] in ("answered", "failed", "client gone")]
    assert (line["message"], line["endpoint"], line["status"], line["code"]) == (message, "chat", status, code)
    assert (line["call_id"], line["pictures"], line["decoders"]) == ("7f", 2, ["prism#Decoder#1"])
    assert line["total_ms"] > 0
    assert code in response.text or status == 200
    assert "private" not in response.text


async def test_a_failure_names_its_replica_and_cause_in_the_log_alone(client: httpx.AsyncClient) -> None:
    """The line of a failure has the replica that failed and the cause. The error body has the request's id to find it
    by."""
    with logged() as records:
        response = await client.post(CHAT, content="gone", headers={"x-request-id": "the-id"})
    [line] = [record for record in records if record["message"] == "failed"]
    assert (line["failed_replica"], line["cause"]) == ("prism#Decoder#1", "ActorDiedError")
    assert response.json()["error"]["request_id"] == "the-id"
    assert not re.search("ActorDied|#", response.text)


async def test_the_error_event_of_a_stream_has_the_id(client: httpx.AsyncClient) -> None:
    """The error event of a stream that broke names the request."""
    response = await client.post(CHAT, content="broken stream", headers={"x-request-id": "the-id"})
    assert '"request_id": "the-id"' in response.text
    assert response.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [("POST", "/v1/nothing", 404, "route_not_found"), ("PUT", CHAT, 405, "method_not_allowed")],
)
async def test_what_is_not_served_is_counted_and_logged_too(
    client: httpx.AsyncClient, method: str, path: str, status: int, code: str
) -> None:
    """A request to a path or with a method that is not served counts under the endpoint ``other``."""
    before = count("other", status, code)
    with logged() as records:
        response = await client.request(method, path, headers={"x-request-id": "the-id"})
    assert (response.status_code, response.json()["error"]["request_id"]) == (status, "the-id")
    assert count("other", status, code) == before + 1
    assert [record["code"] for record in records if record["message"] == "failed"] == [code]


@pytest.mark.parametrize("header", ["x-request-disconnect-disabled", "x-request-timeout-seconds"])
async def test_headers_that_serve_reads_are_refused(client: httpx.AsyncClient, header: str) -> None:
    """A header that would change what Serve does with the request is refused by its name."""
    response = await client.post(CHAT, content="right", headers={header: "5"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, header)


async def test_a_refusal_for_lack_of_room_has_its_line() -> None:
    """A request that finds no free slot is logged and counted, and keeps nothing."""
    free = asyncio.Event()

    async def waits(_: str, __: bytes, ___: Any, deadline: Deadline, ____: AccessRecord) -> Answer:
        await free.wait()
        return Answer("{}", rest_of(), False, False, deadline)

    served_once = served(waits, timeout_s=5.0, max_requests=1)
    async with served_once as (port, admission), httpx.AsyncClient(base_url=here(port)) as client:
        first = asyncio.ensure_future(client.post(CHAT, content="x"))
        while not admission.num_requests:  # noqa: ASYNC110 - nothing else tells that it has a slot
            await asyncio.sleep(0)
        with logged() as records:
            second = await client.post(CHAT, content="x")
        free.set()
        assert (await first).status_code == 200
    assert (second.status_code, second.headers["retry-after"]) == (429, "1")
    assert [(record["status"], record["code"]) for record in records] == [(429, "overloaded")]
    assert admission.num_requests == 0


async def test_a_body_that_does_not_come_is_the_clients_408() -> None:
    """A client that stops in its body gets 408 at the request's time, and its slot is free."""

    async def never(*_: Any) -> Answer:
        raise PrismError("nobody calls this")

    async with served(never, timeout_s=0.1) as (port, admission):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(post(CHAT, {"model": "prism"})[:-1])
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        writer.close()
        assert " 408 " in head.splitlines()[0]
        assert "retry-after: 1" in head
        assert admission.num_requests == admission.num_bytes == 0
