"""The end of a request, told from what a server really sends."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from loadtest.chaos import asking
from loadtest.chaos.asking import ChaosAnswer, Ending, ask, connections, read_stream, read_whole
from loadtest.chaos.mix import make_requests

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

WHOLE = {
    "choices": [{"message": {"content": "Yes."}, "finish_reason": "stop"}],
    "usage": {"completion_tokens": 2},
}
ERROR = {"error": {"message": "Gone.", "code": "stage_unavailable"}}


def sse(*events: dict[str, Any] | str) -> bytes:
    """Returns a stream of these events."""
    return "".join(f"data: {each if isinstance(each, str) else json.dumps(each)}\n\n" for each in events).encode()


def delta(text: str, reason: str | None = None) -> dict[str, Any]:
    """Returns a chunk of a chat."""
    return {"choices": [{"delta": {"content": text}, "finish_reason": reason}]}


USAGE = {"choices": [], "usage": {"completion_tokens": 2}}


@pytest.mark.parametrize(
    ("body", "ending"),
    [
        (
            sse(delta("Ye"), delta("s.", "stop"), USAGE, "[DONE]"),
            Ending("answer", answer=ChaosAnswer("Yes.", "stop", 2)),
        ),
        (sse(delta("Ye"), ERROR, "[DONE]"), Ending("typed", "stage_unavailable")),
        (sse(delta("Ye")), Ending("malformed", "a stream that ended without [DONE]")),
        (b"", Ending("malformed", "a stream without an event")),
        (sse("[DONE]"), Ending("malformed", "200 with an empty answer", ChaosAnswer("", "", 0))),
        (b"<html>", Ending("malformed", "a stream with something that is no event")),
    ],
    ids=["whole", "typed error", "no end", "nothing", "only an end", "no stream"],
)
def test_a_stream_ends_in_one_of_these_ways(body: bytes, ending: Ending) -> None:
    """A stream is an answer only if it has text, a reason to finish and its last event."""
    assert read_stream(body) == ending


@pytest.mark.parametrize(
    ("body", "kind"), [(json.dumps(WHOLE).encode(), "answer"), (b"", "malformed"), (b"{}", "malformed")]
)
def test_a_200_is_no_answer_yet(body: bytes, kind: str) -> None:
    """A 200 whose body is empty or has no answer is malformed."""
    assert read_whole(body).kind == kind


def response(status: int, body: bytes, length: int | None = None) -> bytes:
    """Returns an HTTP response, which may claim to be longer than it is."""
    head = f"HTTP/1.1 {status} X\r\ncontent-length: {len(body) if length is None else length}\r\n\r\n"
    return head.encode() + body


async def asked(answer: Callable[[asyncio.StreamWriter], Awaitable[None]]) -> Ending:
    """Sends a request to a server that answers in some way, and returns how it ended."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await answer(writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    [request] = make_requests(1, seed=0, model="m", timeout_s=0.2)
    host, port = server.sockets[0].getsockname()
    async with server, aiohttp.ClientSession(connector=connections()) as client:
        return await ask(client, f"http://{host}:{port}", request)


@pytest.mark.parametrize(
    ("sent", "ending"),
    [
        (response(200, json.dumps(WHOLE).encode()), Ending("answer", answer=ChaosAnswer("Yes.", "stop", 2))),
        (response(503, json.dumps(ERROR).encode()), Ending("typed", "503 stage_unavailable")),
        (response(500, b"Internal Server Error"), Ending("malformed", "500 without a typed error")),
        (response(500, b'{"error": "no"}'), Ending("malformed", "500 without a typed error")),
        (response(200, b"{", length=90), Ending("cut", "ClientPayloadError")),
        (b"", Ending("cut", "ServerDisconnectedError")),
    ],
    ids=["answer", "typed", "bare", "other JSON", "half", "nothing"],
)
async def test_a_response_ends_in_one_of_these_ways(sent: bytes, ending: Ending) -> None:
    """An error without a code is not typed, and a connection that is closed early is cut."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        await writer.drain()

    assert await asked(answer) == ending


async def test_a_server_that_never_answers_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that has not ended a while after its own deadline hangs."""
    monkeypatch.setattr(asking, "CLIENT_MARGIN_S", 0.1)
    left = asyncio.Event()

    async def answer(_: asyncio.StreamWriter) -> None:
        await left.wait()

    assert (await asked(answer)).kind == "hung"
    left.set()
