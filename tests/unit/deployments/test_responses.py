"""Responses that are sent by their request's deadline, whatever the client does."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from cluster.stream import Answer
from deployments.responses import SEND_GRACE_S
from tests.helpers.http_surface import logged, post, served

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from cluster.access_log import AccessRecord
    from cluster.admission.slots import Admission
    from cluster.deadline import Deadline

CHAT = "/v1/chat/completions"
PIECE = f"data: {'x' * 2**16}\n\n"
NUM_CLIENTS = 8
TIMEOUT_S = 1.0
LATE_S = 1.5
"""Slots are free so much later at most, on a machine that is busy."""


async def endless(_: str, raw: bytes, __: Any, deadline: Deadline, ___: AccessRecord) -> Answer:
    """Serves a stream of pieces without an end, or a whole answer that no buffer between processes can hold."""

    async def pieces() -> AsyncGenerator[str]:
        while True:
            yield PIECE
            await asyncio.sleep(0)

    async def nothing() -> AsyncGenerator[str]:
        return
        yield

    if b"whole" in raw:
        return Answer("x" * 2**23, nothing(), False, False, deadline)
    return Answer(PIECE, pieces(), True, False, deadline)


def silent_client(port: int, kind: str) -> socket.socket:
    """Sends a request and reads nothing."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port))
    client.sendall(post(CHAT, {"kind": kind}))
    return client


async def number_reaches(admission: Admission, number: int) -> None:
    """Returns once so many requests hold a slot."""
    async with asyncio.timeout(10):
        while admission.num_requests != number:  # noqa: ASYNC110 - nothing else tells
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("kind", ["stream", "whole"])
async def test_clients_that_never_read_lose_their_slots_at_the_deadline(kind: str) -> None:
    """Every slot of clients that do not read is free soon after the deadline, and the log says why."""
    with logged() as records:
        async with served(endless, timeout_s=TIMEOUT_S, max_requests=NUM_CLIENTS) as (port, admission):
            started_s = time.monotonic()
            with ExitStack() as clients:
                for _ in range(NUM_CLIENTS):
                    clients.enter_context(silent_client(port, kind))
                await number_reaches(admission, NUM_CLIENTS)
                await number_reaches(admission, 0)
                took_s = time.monotonic() - started_s
    assert TIMEOUT_S <= took_s <= TIMEOUT_S + SEND_GRACE_S + LATE_S
    lines = [record for record in records if record["message"] == "failed"]
    assert [(line["status"], line["code"], line["cause"]) for line in lines] == [
        (504, "deadline_exceeded", "the client does not read")
    ] * NUM_CLIENTS


async def test_a_router_that_stalled_over_a_deadline_still_sends_the_last_piece() -> None:
    """If the event loop does not run around the deadline, a client that reads gets what was made, such as the error
    event."""

    async def stalled(_: str, __: bytes, ___: Any, deadline: Deadline, ____: AccessRecord) -> Answer:
        async def pieces() -> AsyncGenerator[str]:
            time.sleep(deadline.timeout_s + 2 * SEND_GRACE_S)  # noqa: ASYNC251 - the stall
            await asyncio.sleep(0.01)  # in which timers of the time before fire
            yield "data: the last\n\n"

        return Answer("data: the first\n\n", pieces(), True, False, deadline)

    async with served(stalled, timeout_s=0.1) as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(post(CHAT, {}))
        assert b"the last" in await asyncio.wait_for(reader.readuntil(b"the last"), 10)
        writer.close()
