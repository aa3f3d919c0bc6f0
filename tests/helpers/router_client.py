"""A client of little cost for the measurement of the Router, a process of its own.

It reads one step as JSON from each line of its input, keeps so many requests in flight, and writes ``begin``, ``end``
and what it saw. A client for HTTP in general would cost more CPU per token than the Router does.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import random
import re
import statistics
import struct
import sys
import time
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final, Literal

import uvloop

from loadtest.priority import go_first
from tests.helpers.ask import chat, text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PictureKind = Literal["seen", "new", "refused"]
EVENT: Final = b"data: "
EVENT_CHARS: Final = 230
SIDE_PIXELS: Final = 84
WARM_UP_S: Final = 1.0


@dataclass(frozen=True)
class Step:
    """One step of a load: what is asked for, and how many requests are in flight."""

    name: str
    num_in_flight: int
    num_tokens: int = 1
    piece_tokens: int = 1
    piece_s: float = 0.02
    """Seconds between two pieces of a stream."""
    stream: bool = False
    picture: PictureKind | None = None
    picture_bytes: int = 0
    window_s: float = 5.0


@dataclass
class Seen:
    """The figures of the window of one step, as the client counts them."""

    num_requests: int = 0
    num_tokens: int = 0
    took_s: float = 0.0
    ttft_ms: tuple[float, float] = (0.0, 0.0)
    gap_ms: tuple[float, float] = (0.0, 0.0)
    """p50 and p99."""
    statuses: dict[str, int] = field(default_factory=dict)
    num_cut: int = 0
    """Answers whose number of events was wrong, and connections that broke."""


@dataclass
class Record(Seen):
    """The same figures while the window lasts, and every single time."""

    ttfts_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)

    def summary(self) -> Seen:
        """The same without the single times."""
        times = {"ttft_ms": percentiles_ms(self.ttfts_s), "gap_ms": percentiles_ms(self.gaps_s)}
        known = {one.name: getattr(self, one.name) for one in fields(Seen)}
        return Seen(**{**known, **times})


def percentiles_ms(values_s: list[float]) -> tuple[float, float]:
    """p50 and p99 of seconds, in milliseconds. Both are 0 if there are fewer than two values."""
    if len(values_s) < 2:
        return 0.0, 0.0
    cuts = statistics.quantiles(values_s, n=100, method="inclusive")
    return 1000 * cuts[49], 1000 * cuts[98]


def picture_urls(kind: PictureKind, num_bytes: int) -> Callable[[], bytes]:
    """Gives the data: URLs of pictures of a size in bytes: always the same one, or always a new one.

    Only the header is that of a PNG, because no paced stage reads more. The header of a ``refused`` one is broken.
    """
    shape = struct.pack(">II", SIDE_PIXELS, SIDE_PIXELS)
    header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + shape + b"\x08\x02\0\0\0\0\0\0\0"
    header = b"\0" * len(header) if kind == "refused" else header
    filler = base64.b64encode(random.Random(num_bytes).randbytes(num_bytes // 3 * 3))
    numbers = itertools.count() if kind == "new" else itertools.repeat(0)
    salt = os.urandom(4)

    def url() -> bytes:
        number = salt + struct.pack(">Q", next(numbers))
        return b"data:image/png;base64," + base64.b64encode(header + number) + filler

    return url


def request_of(step: Step, host: str) -> Callable[[], Sequence[bytes]]:
    """Gives the bytes of one HTTP request after the other."""
    pace = {
        "step_s": step.piece_s,
        "piece_tokens": step.piece_tokens,
        "event_chars": EVENT_CHARS,
        "token_s": 0,
    }
    content = [text("How many ducks are there?")]
    if step.picture:
        content.insert(0, {"type": "image_url", "image_url": {"url": "URL"}})
    body = json.dumps(chat(content, max_tokens=step.num_tokens, stream=step.stream, pace=pace)).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: "
    if not step.picture:
        whole = f"{head}{len(body)}\r\n\r\n".encode() + body
        return lambda: (whole,)
    urls = picture_urls(step.picture, step.picture_bytes)
    before, after = body.split(b"URL")

    def parts() -> Sequence[bytes]:
        url = urls()
        size = len(before) + len(url) + len(after)
        return f"{head}{size}\r\n\r\n".encode() + before, url, after

    return parts


class Connection(asyncio.Protocol):
    """A connection that sends a request, reads its answer, and sends the next one."""

    def __init__(self, step: Step, requests: Callable[[], Sequence[bytes]], seen: Record) -> None:
        self._step, self._requests, self.seen = step, requests, seen
        self._transport: Any = None
        self._head, self._tail = b"", b""
        self._num_left: int | None = None
        self._num_events = 0
        self._sent_s = self._last_s = 0.0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._head, self._tail, self._num_left, self._num_events = b"", b"", None, 0
        self._sent_s, self._last_s = time.perf_counter(), 0.0
        self._transport.writelines(self._requests())

    def data_received(self, data: bytes) -> None:
        now_s = time.perf_counter()
        if b"\r\n\r\n" not in self._head:
            self._head += data
            if b"\r\n\r\n" not in self._head:
                return
            self._head, data = self._head.split(b"\r\n\r\n", 1)
            self._head += b"\r\n\r\n"
            if found := re.search(rb"(?i)content-length: (\d+)", self._head):
                self._num_left = int(found[1])
        self._read(data, now_s)

    def _read(self, data: bytes, now_s: float) -> None:
        searched = self._tail + data
        num_events = searched.count(EVENT)
        self._tail = searched[-len(EVENT) + 1 :]
        if num_events:
            self.seen.num_tokens += num_events
            self._num_events += num_events
            gaps_s = self.seen.gaps_s if self._last_s else self.seen.ttfts_s
            gaps_s.append(now_s - (self._last_s or self._sent_s))
            self._last_s = now_s
        if self._num_left is not None:
            self._num_left -= len(data)
        if self._num_left == 0 or (
            self._num_left is None and self._tail.endswith(b"\r\n") and searched.endswith(b"0\r\n\r\n")
        ):
            self._ended()

    def _ended(self) -> None:
        seen, status = self.seen, self._head[9:12].decode()
        seen.num_requests += 1
        seen.statuses[status] = seen.statuses.get(status, 0) + 1
        if status == "200":
            seen.num_tokens -= 1  # the event [DONE] is no token
            seen.num_cut += self._num_events != self._step.num_tokens + 1
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        self.seen.num_cut += exc is not None or not self._transport.is_closing()


async def run_step(step: Step, host: str) -> Seen:
    """Runs one step: starts its connections during the warm-up, and then looks for the length of the window."""
    requests = request_of(step, host)
    address, port = host.split(":")
    loop = asyncio.get_running_loop()
    connections: list[Connection] = []
    transports: list[asyncio.Transport] = []
    for _ in range(step.num_in_flight):
        transport, one = await loop.create_connection(lambda: Connection(step, requests, Record()), address, int(port))
        transports.append(transport)
        connections.append(one)
        await asyncio.sleep(WARM_UP_S / step.num_in_flight)
    await asyncio.sleep(WARM_UP_S)
    seen, began_s = Record(), time.perf_counter()
    for one in connections:
        one.seen = seen
    print("begin", flush=True)  # noqa: T201
    await asyncio.sleep(step.window_s)
    for one in connections:
        one.seen = Record()
    seen.took_s = time.perf_counter() - began_s
    print("end", flush=True)  # noqa: T201
    for transport in transports:
        transport.abort()
    return seen.summary()


def main() -> None:
    """Runs the steps that come in, one after the other."""
    go_first()
    for line in sys.stdin:
        step = Step(**json.loads(line))
        print(json.dumps(asdict(uvloop.run(run_step(step, sys.argv[1])))), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
