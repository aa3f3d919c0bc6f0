"""The client of the bench against a small server whose times are known."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from loadtest.bench.load import Client
from loadtest.bench.requests import Request, body

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
FIRST_S, GAP_S = 0.05, 0.02


async def answer(request: web.Request) -> web.StreamResponse:
    """Streams as many letters as a request asks for, with known gaps. A request may name a fault of the answer."""
    body = await request.json()
    num_tokens = body["max_tokens"]
    trouble = body["messages"][0]["content"]
    if trouble == "refuse":
        return web.json_response({"error": {"code": "overloaded"}}, status=429)
    stream = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await stream.prepare(request)

    async def say(event: Any) -> None:
        await stream.write(b"data: " + (event if isinstance(event, bytes) else json.dumps(event).encode()) + b"\n\n")

    await say({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
    for number in range(num_tokens - (trouble == "short")):
        await asyncio.sleep(GAP_S if number else FIRST_S)
        await say({"choices": [{"delta": {"content": "a"}}]})
    if trouble == "error":
        await say({"error": {"code": "gone"}})
    if trouble != "cut":
        await say({"choices": [], "usage": {"completion_tokens": num_tokens}})
        await say(b"[DONE]")
    return stream


@pytest.fixture
async def url() -> AsyncIterator[str]:
    """The URL of a server that runs ``answer``."""
    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


def ask(text: str = "hello", at_s: float = 0.0) -> Request:
    """Returns a request to ``answer``."""
    return Request("text", body(text, [], 4, [1]), 4, at_s)


async def test_the_client_sees_the_servers_times(url: str) -> None:
    """TTFT is at least the server's delay, the last text comes no sooner than possible, and the times add up."""
    async with Client(url) as client:
        samples = await client.closed_loop([[ask() for _ in range(6)]], users_per_queue=2)
    assert [each.failure for each in samples] == [""] * 6
    assert all(each.ttft_s >= FIRST_S and len(each.gaps_s) == 3 for each in samples)
    assert all(each.ttft_s + sum(each.gaps_s) >= FIRST_S + 3 * GAP_S for each in samples)
    assert all(each.ttft_s + sum(each.gaps_s) <= each.total_s for each in samples)
    assert all(each.itl_s == pytest.approx(sum(each.gaps_s) / 3) for each in samples)


async def test_an_open_loop_counts_from_when_a_request_was_due(url: str) -> None:
    """Requests are sent at their scheduled times, even if earlier ones still run, and each latency counts from the
    scheduled time."""
    async with Client(url) as client:
        samples = await client.open_loop([ask(at_s=at_s) for at_s in (0.0, 0.01, 0.02)])
    assert [each.start_s for each in samples] == [0.0, 0.01, 0.02]
    assert samples[2].texts_s[0] < samples[0].done_s
    assert all(each.ttft_s >= FIRST_S for each in samples)


async def test_an_answer_that_is_not_whole_is_a_failure(url: str) -> None:
    """A refusal, too few letters, an error event and a missing end are failures, each with its cause."""
    async with Client(url) as client:
        samples = await client.closed_loop([[ask("refuse"), ask("short"), ask("error"), ask("cut")]], users_per_queue=1)
    refused, short_of, error, cut = (each.failure for each in samples)
    assert refused.startswith("429")
    assert short_of == "4 tokens with 3 letters instead of 4"
    assert "gone" in error
    assert cut == "no [DONE]"
