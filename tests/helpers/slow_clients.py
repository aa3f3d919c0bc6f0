"""Measures what slow clients do to a good one: ``python -m tests.helpers.slow_clients``.

The slow clients are 64 that never read, 64 that read one byte a second and 64 that send one byte a second. A good
client asks all the time. They talk to the Router's HTTP surface on a real server, without HAProxy, whose buffers would
take all of an answer that a small engine can make. So every answer for a slow reader is blocked. The command prints how
the requests ended and the good client's times, and exits with 1 if one of its checks does not hold. It takes 45 s.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
import time
from collections import Counter
from itertools import count
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

import httpx

from cluster.stream import Answer
from tests.helpers.http_surface import logged, post, served
from tests.helpers.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Coroutine

    from cluster.access_log import AccessRecord
    from cluster.deadline import Deadline

CHAT = "/v1/chat/completions"
PIECE = f"data: {'x' * 2**16}\n\n"
NUM_EACH = 64
NUM_ALONE = 100
ANSWER_S = 0.03
"""The time that a good client's answer takes to make."""
DEADLINE_S = 30.0
SPARE_S = 1.0
"""A slot must be free so long after the deadline of its request."""
PERIOD_S = 1.0


async def serve(_: str, raw: bytes, __: Any, deadline: Deadline, ___: AccessRecord) -> Answer:
    """Serves a short answer, or a stream without an end to a slow reader."""

    async def pieces() -> AsyncGenerator[str]:
        while b"slow" in raw:
            yield PIECE
            await asyncio.sleep(0.01)

    await asyncio.sleep(ANSWER_S)
    return Answer(PIECE, pieces(), b"slow" in raw, False, deadline)


async def connected(port: int) -> socket.socket:
    """A connection with a small receive buffer."""
    client = socket.socket()
    client.setblocking(False)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", port))
    return client


async def slow_reader(port: int, *, reads: bool) -> None:
    """Asks for a stream, and reads one byte a second of it, or none."""
    loop, client = asyncio.get_running_loop(), await connected(port)
    with contextlib.closing(client), contextlib.suppress(ConnectionError):
        await loop.sock_sendall(client, post(CHAT, {"client": "slow"}))
        while not reads or await loop.sock_recv(client, 1):  # noqa: ASYNC110 -- a pace, no wait for an event
            await asyncio.sleep(PERIOD_S)


async def slow_sender(port: int) -> None:
    """Sends the headers of a request and then one byte a second, until the connection is closed."""
    loop, client = asyncio.get_running_loop(), await connected(port)
    head, _, body = post(CHAT, {"client": "good", "text": "x" * 100}).partition(b"\r\n\r\n")
    with contextlib.closing(client), contextlib.suppress(ConnectionError):
        await loop.sock_sendall(client, head + b"\r\n\r\n")
        for byte in body:
            await asyncio.sleep(PERIOD_S)
            await loop.sock_sendall(client, bytes([byte]))


async def good_times_s(port: int) -> AsyncIterator[float]:
    """Asks for a short answer again and again, and yields the seconds that each one took."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        for _ in count():
            started_s = time.monotonic()
            (await client.post(CHAT, json={"client": "good"})).raise_for_status()
            yield time.monotonic() - started_s
            await asyncio.sleep(0.1)


async def measured() -> bool:
    """Runs all clients and prints the result. Returns True if every check holds."""
    alone: list[float] = []
    during: list[float] = []
    with logged() as records:
        async with served(serve, timeout_s=DEADLINE_S, max_requests=4 * NUM_EACH) as (port, admission):
            async for took_s in good_times_s(port):
                alone.append(took_s)
                if len(alone) == NUM_ALONE:
                    break

            async def ask() -> None:
                async for took_s in good_times_s(port):
                    during.append(took_s)  # noqa: PERF401 -- kept when the task is cancelled

            slow: list[Coroutine[Any, Any, None]] = []
            for _ in range(NUM_EACH):
                slow += slow_reader(port, reads=False), slow_reader(port, reads=True), slow_sender(port)
            tasks = [asyncio.create_task(each) for each in (ask(), *slow)]

            async def all_free() -> bool:
                return admission.num_requests <= 1  # the good client's

            await asyncio.sleep(DEADLINE_S)
            await until(all_free, DEADLINE_S, "slots are kept")
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    return told(alone, during, [record for record in records if record["message"] == "failed"])


def told(alone: list[float], during: list[float], failed: list[dict[str, Any]]) -> bool:
    """Prints the result, and returns True if every check holds."""
    ends = Counter((record["code"], record.get("cause", "")) for record in failed)
    longest_s = max(record["total_ms"] for record in failed) / 1000
    for (code, cause), number in ends.items():
        say(f"{number} x {code} {cause}")
    say(f"the longest request took {longest_s:.1f} s, with a deadline of {DEADLINE_S:g} s")
    for name, times in ("alone", alone), ("with the slow ones", during):
        p95 = quantiles(times, n=20)[-1]
        say(f"good client, {name}: n {len(times)}, p50 {median(times):.3f} s, p95 {p95:.3f} s, max {max(times):.3f} s")
    checks = {
        "every send to a slow reader was blocked": ends["deadline_exceeded", "the client does not read"]
        == 2 * NUM_EACH,
        "every slow sender got 408": ends["body_too_slow", ""] == NUM_EACH,
        f"every slot is free {SPARE_S:g} s after its deadline": longest_s < DEADLINE_S + SPARE_S,
        "the good client takes at most twice as long": median(during) <= 2 * median(alone),
    }
    for what, holds in checks.items():
        say(f"{'holds' if holds else 'DOES NOT HOLD'}: {what}")
    return all(checks.values())


def say(line: str) -> None:
    """Prints one line."""
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    logging.getLogger("ray.serve").propagate = False  # a line for each request
    logging.getLogger("uvicorn.error").disabled = True  # a line for each response that was given up
    sys.exit(not asyncio.run(measured()))
