"""Requests that fail, and clients that do not do their part: what stays of them in the Router's log, and what not."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from typing import TYPE_CHECKING, Any

import httpx

from tests.helpers.ask import chat, image, random_png, text
from tests.helpers.http_surface import post
from tests.helpers.waiting import until
from tests.serve.default.bad_input import kinds
from tests.serve.default.bad_input.kind import CHAT

if TYPE_CHECKING:
    from deployments.local.launch import Cluster
    from tests.serve.default.bad_input.kind import Bad

CONCURRENCY = 6
NUM_SILENT = 16
SILENT_S = 8
LATE_S = 2.0
"""Requests have ended so long after their deadline at most, on a machine whose cores the engine uses. Half a second is
the time in which an error event may be sent."""
ENDLESS = {"max_tokens": 3500, "ignore_eos": True}


def router_lines(cluster: Cluster) -> dict[str, dict[str, Any]]:
    """Returns the lines of ended requests in the Router's log, by the request's id."""
    [log] = (cluster.logs / "serve").glob("replica_*_Router_*.log")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return {line["request_id"]: line for line in lines if line["message"] in ("answered", "failed", "client gone")}


async def refused(client: httpx.AsyncClient, wanted: list[Bad]) -> dict[str, httpx.Response]:
    """Sends kinds of bad input, a few at the same time, and returns the responses by the ids in their errors."""
    waiting, found = iter(wanted), {}

    async def send() -> None:
        for bad in waiting:
            response = await client.request(bad.method, bad.path, content=bad.content)
            found[response.json()["error"]["request_id"]] = response

    await asyncio.gather(*(send() for _ in range(CONCURRENCY)))
    return found


async def test_every_refusal_is_found_in_the_log_by_the_id_in_its_body(
    cluster: Cluster, prism: httpx.AsyncClient
) -> None:
    """Each of hundreds of refusals has a line with its id, status and code. It quotes nothing of the request."""
    wanted = [bad for bad in kinds() if isinstance(bad.body, dict)]
    responses = await refused(prism, wanted)
    assert len(responses) == len(wanted)
    lines = router_lines(cluster)
    for name, response in responses.items():
        assert response.headers["x-request-id"] == name
        line, error = lines[name], response.json()["error"]
        assert (line["message"], line["status"], line["code"]) == ("failed", response.status_code, error["code"])
        assert error["message"] not in json.dumps(line)


def id_of(name: str) -> str:
    """Returns the request id of a body."""
    return f"of-a-{name.replace(' ', '-')}"


async def test_a_line_names_the_replica_that_failed_and_the_cause(cluster: Cluster, prism: httpx.AsyncClient) -> None:
    """A broken picture is the preprocessor's to refuse, a wrong field the decoder's. A deadline says what was waited
    for."""
    broken = chat([image(random_png(90, 90, seed=41)[:-60])])
    bodies = {
        "broken picture": broken,
        "wrong field": chat([text("Go on.")], temperature="hot"),
        "deadline": chat([text("Go on.")], **ENDLESS, prism={"timeout_s": 0.3}),
        "stream's deadline": chat([text("Go on.")], **ENDLESS, prism={"timeout_s": 0.3}, stream=True),
    }
    for name, body in bodies.items():
        await prism.post(CHAT, json=body, headers={"x-request-id": id_of(name)})
    lines = {name: router_lines(cluster)[id_of(name)] for name in bodies}
    assert lines["broken picture"]["failed_replica"].startswith("preprocessor/")
    assert lines["broken picture"]["pictures"] == 1
    assert lines["wrong field"]["failed_replica"] == f"decoder/{lines['wrong field']['decoders'][0]}"
    for name in ("deadline", "stream's deadline"):
        assert (lines[name]["status"], lines[name]["code"]) == (504, "deadline_exceeded")
        assert lines[name]["cause"] == "waiting for the decoder"
        assert lines[name]["decoders"] == lines["wrong field"]["decoders"]
        assert re.fullmatch("[0-9a-f]{32}", lines[name]["call_id"])
        assert 290 < lines[name]["total_ms"] < 300 + LATE_S * 1000


def silent_client(url: httpx.URL, number: int) -> socket.socket:
    """Sends a request for a long stream with large pieces, and reads nothing of it."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect((url.host, url.port))
    body = chat([text(f"{number} Go on.")], **ENDLESS, stream=True, logprobs=True, top_logprobs=20, n=4, temperature=1)
    client.sendall(post(CHAT, {**body, "prism": {"timeout_s": SILENT_S}}, x_request_id=f"silent-{number}"))
    return client


async def in_flight(client: httpx.AsyncClient) -> int:
    """Returns the number of requests that hold a slot of the Router."""
    text = (await client.get("/metrics")).text
    return int(float(re.findall(r'^prism_requests_in_flight\{pool="router".*\} (.*)$', text, re.MULTILINE)[0]))


async def test_clients_that_never_read_have_ended_by_their_deadline(cluster: Cluster, prism: httpx.AsyncClient) -> None:
    """Clients that read nothing of their streams lose their slots by the deadline. A client that reads is answered at
    the same time."""
    started_s = time.monotonic()
    clients = [silent_client(httpx.URL(cluster.url), number) for number in range(NUM_SILENT)]
    try:
        assert (await prism.post(CHAT, json=chat([text("Hello.")]))).status_code == httpx.codes.OK

        async def all_ended() -> bool:
            return await in_flight(prism) == 0

        await until(all_ended, SILENT_S + 30, "slots are kept")
        took_s = time.monotonic() - started_s
    finally:
        for client in clients:
            client.close()
    lines = router_lines(cluster)
    ends = [lines[f"silent-{number}"] for number in range(NUM_SILENT)]
    assert {end["code"] for end in ends} == {"deadline_exceeded"}
    assert max(end["total_ms"] for end in ends) < (SILENT_S + LATE_S) * 1000
    assert took_s < SILENT_S + 2 * LATE_S
