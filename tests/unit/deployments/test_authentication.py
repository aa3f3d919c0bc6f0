"""API keys over HTTP: who gets in, what each answer tells, and what nobody can read."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import yaml
from prometheus_client import REGISTRY, generate_latest

from cluster.access.control import AccessControl
from cluster.access.keys import hash_of
from cluster.stream import Answer
from tests.helpers.http_surface import here, logged, served

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator
    from pathlib import Path

    from cluster.access_log import AccessRecord
    from cluster.deadline import Deadline

CHAT = "/v1/chat/completions"
KEYS = {name: f"prism-key-of-{name}" for name in ("user", "slow", "stranger", "operator")}
ENTRIES: dict[str, dict[str, Any]] = {
    "user": {"requests_per_minute": 100, "picture_tokens_per_minute": 50, "priority": 7},
    "slow": {"max_concurrent": 1, "requests_per_minute": 3},
    "stranger": {"models": []},
    "operator": {"operator": True},
}


async def rest_of(*pieces: str) -> AsyncGenerator[str]:
    """Yields pieces of an answer."""
    for piece in pieces:
        yield piece


class Pools:
    """Serves each request at once, or waits if its body says so. It notes the records of requests."""

    def __init__(self) -> None:
        self.records: list[AccessRecord] = []
        self.go_on = asyncio.Event()

    async def serve(self, _: str, raw: bytes, __: Any, deadline: Deadline, record: AccessRecord) -> Answer:
        """See ``Router.serve``."""
        self.records.append(record)
        if record.caller is not None and raw.startswith(b"picture"):
            record.caller.spend_picture_tokens(int(raw.removeprefix(b"picture ")))
        if raw == b"wait":
            await self.go_on.wait()
        if raw == b"stream":
            return Answer("data: 1\n\n", rest_of("data: 2\n\n"), True, False, deadline)
        return Answer("{}", rest_of(), False, False, deadline)


@pytest.fixture
async def pools() -> Pools:
    """Returns the pools behind the HTTP surface."""
    return Pools()


@pytest.fixture
async def client(pools: Pools, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Returns a client of an HTTP surface that knows ``KEYS``."""
    path = tmp_path / "keys.yaml"
    entries = [{"tenant": name, "sha256": hash_of(KEYS[name].encode()), **more} for name, more in ENTRIES.items()]
    path.write_text(yaml.safe_dump(entries))
    access = AccessControl(clock=lambda: 0.0)
    await access.follow(str(path))
    opened = served(pools.serve, timeout_s=5.0, access=access)
    async with opened as (port, admission), httpx.AsyncClient(base_url=here(port)) as client:
        yield client
        assert admission.num_requests == 0


def as_(name: str) -> dict[str, str]:
    """Returns the headers of a request with a key."""
    return {"authorization": f"Bearer {KEYS[name]}"}


def error_of(response: httpx.Response) -> tuple[int, str]:
    """Returns the status and the code of an error."""
    return response.status_code, response.json()["error"]["code"]


@pytest.mark.parametrize(
    "path", [CHAT, "/v1/completions", "/tokenize", "/v1/models", "/status", "/metrics", "/nothing"]
)
async def test_without_a_key_nothing_answers(client: httpx.AsyncClient, pools: Pools, path: str) -> None:
    """A request without a key gets 401 in OpenAI's shape, whatever it asks for, and leaves its line."""
    with logged() as records:
        response = await client.request("POST" if path in (CHAT, "/tokenize") else "GET", path)
    assert error_of(response) == (401, "invalid_api_key")
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert response.headers["www-authenticate"].startswith("Bearer")
    assert "retry-after" not in response.headers
    assert [(record["status"], record["code"]) for record in records] == [(401, "invalid_api_key")]
    assert pools.records == []


async def test_a_router_that_starts_lets_nobody_in(pools: Pools) -> None:
    """Before the settings have come, a request gets 503 and may be sent again, except for paths that need no key."""
    access = AccessControl()
    async with served(pools.serve, timeout_s=5.0, access=access) as (port, _), httpx.AsyncClient() as client:
        for path in (CHAT, "/status", "/metrics"):
            refused = await client.post(here(port) + path, content="x", headers=as_("user"))
            assert error_of(refused) == (503, "stage_unavailable")
            assert "retry-after" in refused.headers
        assert pools.records == []
        assert (await client.get(here(port) + "/version")).status_code == 200
        await access.follow(None)
        assert (await client.post(here(port) + CHAT, content="x")).status_code == 200


async def test_versions_need_no_key(client: httpx.AsyncClient) -> None:
    """What says nothing about users needs no key."""
    assert (await client.get("/version")).status_code == 200


async def test_the_key_comes_before_the_body(client: httpx.AsyncClient) -> None:
    """A client without a key is refused although none of its body has come."""
    url = client.base_url
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: prism\r\nContent-Length: 1000000\r\n\r\n".encode())
    async with asyncio.timeout(5):
        head = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    assert b" 401 " in head.splitlines()[0]


@pytest.mark.parametrize("body", ["whole", "stream"])
async def test_a_key_names_the_tenant_and_its_limits(client: httpx.AsyncClient, pools: Pools, body: str) -> None:
    """An answer to a key has the headers of its limits, and its line in the log has the tenant."""
    before = REGISTRY.get_sample_value("prism_tenant_requests_total", {"tenant": "user", "code": "ok"}) or 0
    with logged() as records:
        response = await client.post(CHAT, content=body, headers=as_("user"))
    assert response.status_code == 200
    assert response.headers["x-ratelimit-limit-requests"] == "100"
    assert response.headers["x-ratelimit-remaining-requests"] == "99"
    assert response.headers["x-ratelimit-reset-requests"] == "0.6s"
    assert response.headers["x-ratelimit-remaining-picture-tokens"] == "50"
    assert [record["tenant"] for record in records] == ["user"]
    assert (pools.records[0].tenant, pools.records[0].priority) == ("user", 7)
    after = REGISTRY.get_sample_value("prism_tenant_requests_total", {"tenant": "user", "code": "ok"})
    assert after == before + 1


async def test_too_many_requests_are_429_with_a_time(client: httpx.AsyncClient) -> None:
    """A key that has used up its requests gets 429 and the time to wait. Others are served."""
    for _ in range(3):
        assert (await client.post(CHAT, content="x", headers=as_("slow"))).status_code == 200
    with logged() as records:
        response = await client.post(CHAT, content="x", headers=as_("slow"))
    assert error_of(response) == (429, "rate_limit_exceeded")
    assert response.headers["retry-after"] == "20"
    assert response.headers["x-ratelimit-remaining-requests"] == "0"
    assert [(record["code"], record["tenant"]) for record in records] == [("rate_limit_exceeded", "slow")]
    assert (await client.post(CHAT, content="x", headers=as_("user"))).status_code == 200


async def test_picture_tokens_are_limited(client: httpx.AsyncClient) -> None:
    """Pictures of more tokens than are left get 429. A text is served."""
    assert (await client.post(CHAT, content="picture 40", headers=as_("user"))).status_code == 200
    refused = await client.post(CHAT, content="picture 20", headers=as_("user"))
    assert error_of(refused) == (429, "rate_limit_exceeded")
    assert refused.headers["retry-after"] == "12"
    assert refused.headers["x-ratelimit-remaining-picture-tokens"] == "10"
    assert (await client.post(CHAT, content="text", headers=as_("user"))).status_code == 200


async def test_a_request_that_runs_counts_until_its_end(client: httpx.AsyncClient, pools: Pools) -> None:
    """A second request at the same time is refused if the key allows one. After the end the next one is served."""
    first = asyncio.ensure_future(client.post(CHAT, content="wait", headers=as_("slow")))
    while not pools.records:  # noqa: ASYNC110
        await asyncio.sleep(0)
    second = await client.post(CHAT, content="x", headers=as_("slow"))
    assert error_of(second) == (429, "rate_limit_exceeded")
    assert second.headers["retry-after"] == "1"
    pools.go_on.set()
    assert (await first).status_code == 200
    assert (await client.post(CHAT, content="x", headers=as_("slow"))).status_code == 200


async def test_a_key_may_use_its_models_only(client: httpx.AsyncClient, pools: Pools) -> None:
    """A key without the served model sees no model, and gets 403 for it."""
    assert (await client.get("/v1/models", headers=as_("stranger"))).json()["data"] == []
    assert len((await client.get("/v1/models", headers=as_("user"))).json()["data"]) == 1
    model = "/v1/models/prism-demo"
    assert error_of(await client.get(model, headers=as_("stranger"))) == (403, "model_not_allowed")
    assert error_of(await client.post(CHAT, content="x", headers=as_("stranger"))) == (403, "model_not_allowed")
    assert pools.records == []


@pytest.mark.parametrize("path", ["/status", "/metrics", "/metrics?replica=cluster", "/metrics/targets"])
async def test_operators_paths_need_an_operators_key(client: httpx.AsyncClient, path: str) -> None:
    """A user's key is not enough for what operators read, and headers of proxies do not help."""
    forged = {
        "x-forwarded-for": "127.0.0.1",
        "x-real-ip": "127.0.0.1",
        "forwarded": "for=127.0.0.1",
        "host": "localhost",
    }
    refused = await client.get(path, headers=as_("user") | forged)
    assert error_of(refused) == (403, "operators_only")
    assert "pool" not in refused.text


@pytest.mark.parametrize("path", ["/status", "/metrics", "/metrics?replica=cluster", "/metrics/targets"])
async def test_without_keys_operators_paths_need_loopback(pools: Pools, path: str) -> None:
    """A server without keys that others can reach answers no operator, although this client is on loopback."""
    access = AccessControl.without_keys()
    access.listens_on("0.0.0.0")
    async with served(pools.serve, timeout_s=5.0, access=access) as (port, _), httpx.AsyncClient() as client:
        refused = await client.get(here(port) + path, headers={"x-forwarded-for": "127.0.0.1"})
        assert error_of(refused) == (403, "operators_only")
        assert "keys_file" in refused.json()["error"]["message"]
        assert (await client.post(here(port) + CHAT, content="x")).status_code == 200


async def test_a_key_is_nowhere_to_be_found(client: httpx.AsyncClient) -> None:
    """Neither the log, nor the metrics, nor an answer has a key, be it valid, wrong or in the wrong place."""
    secret, found = "prism-secret", []
    headers: list[dict[str, str]] = [
        as_("user"),
        {"authorization": f"Bearer {secret}"},
        {"authorization": f"Basic {secret}"},
        {"authorization": secret},
        {"authorization": f"Bearer {secret} {secret}"},
    ]
    with logged() as records:
        for one in headers:
            for path in (CHAT, "/nothing", "/metrics"):
                response = await client.post(path, content="x", headers=one)
                found.append(response.text + str(response.headers))
            found.append((await client.get(f"/status?api_key={secret}", headers=one)).text)
    found += [json.dumps(record, default=str) for record in records] + [generate_latest().decode()]
    assert len(found) > 20
    assert not [text for text in found if secret in text or KEYS["user"] in text]


async def test_a_tenant_leaves_a_slot_to_others(client: httpx.AsyncClient, pools: Pools) -> None:
    """A tenant without a limit of its own cannot hold all slots. Its next request is refused, another tenant's is
    not."""
    waiting = [asyncio.ensure_future(client.post(CHAT, content="wait", headers=as_("user"))) for _ in range(7)]
    while len(pools.records) < 7:  # noqa: ASYNC110 - nothing else tells
        await asyncio.sleep(0)
    refused = await client.post(CHAT, content="whole", headers=as_("user"))
    assert error_of(refused) == (429, "overloaded")
    assert (await client.post(CHAT, content="whole", headers=as_("slow"))).status_code == 200
    pools.go_on.set()
    assert {one.status_code for one in await asyncio.gather(*waiting)} == {200}
