"""Sends requests and times their streams: one process, the same for every system.

Times are on one clock that starts with the load. A closed loop counts an answer from when its request is sent; an open
loop from when it *should* have been sent, so that a client or server that falls behind cannot hide it. TTFT and gaps
are as in ``loadtest.client``. An answer counts only if it is whole: as many tokens, each with its letter, as were asked
for.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import aiohttp

from loadtest.probe import HEADERS, Failed, events
from loadtest.workload import PATH

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from loadtest.bench.requests import Request

READ_TIMEOUT_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer, in seconds since the load began.

    Args:
        start_s: When its request was, or should have been, sent.
        texts_s: When each event with text came.
        failure: Why it does not count; empty where it does.
    """

    kind: str
    num_tokens: int
    start_s: float
    texts_s: tuple[float, ...]
    done_s: float
    failure: str = ""

    @property
    def ttft_s(self) -> float:
        """To the first text."""
        return self.texts_s[0] - self.start_s

    @property
    def total_s(self) -> float:
        """To the end."""
        return self.done_s - self.start_s

    @property
    def gaps_s(self) -> list[float]:
        """Between successive events with text."""
        return [later - earlier for earlier, later in pairwise(self.texts_s)]

    @property
    def tpot_s(self) -> float:
        """Per token after the first."""
        return (self.texts_s[-1] - self.texts_s[0]) / max(1, self.num_tokens - 1)


class Client:
    """Talks to one system. Use as an async context manager."""

    def __init__(self, url: str) -> None:
        self._url = url + PATH
        self._began_s = 0.0

    async def __aenter__(self) -> Client:
        timeout = aiohttp.ClientTimeout(total=None, sock_read=READ_TIMEOUT_S)
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout, headers=HEADERS)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def closed_loop(self, queues: Sequence[Sequence[Request]], users_per_queue: int) -> list[Sample]:
        """Users who each wait for an answer before they send the next request of their queue."""
        self._began_s = time.perf_counter()
        samples: list[Sample] = []

        async def chat_on(requests: Iterator[Request]) -> None:
            samples.extend([await self._ask(request, self._now_s()) for request in requests])

        shared = [iter(queue) for queue in queues]
        await asyncio.gather(*(chat_on(requests) for requests in shared for _ in range(users_per_queue)))
        return samples

    async def open_loop(self, requests: Sequence[Request]) -> list[Sample]:
        """Each request at its time, whatever became of those before it."""
        self._began_s = time.perf_counter()

        async def ask_later(request: Request) -> Sample:
            await asyncio.sleep(request.at_s - self._now_s())
            return await self._ask(request, request.at_s)

        return await asyncio.gather(*map(ask_later, requests))

    def _now_s(self) -> float:
        return time.perf_counter() - self._began_s

    async def _ask(self, request: Request, start_s: float) -> Sample:
        texts_s: list[float] = []
        try:
            await self._read(request, texts_s)
            failure = ""
        except Failed as error:
            failure = str(error)
        except (aiohttp.ClientError, TimeoutError) as error:
            failure = f"connection: {type(error).__name__}"
        return Sample(request.kind, request.num_tokens, start_s, tuple(texts_s), self._now_s(), failure)

    async def _read(self, request: Request, texts_s: list[float]) -> None:
        counted: dict[str, int] = defaultdict(int)
        headers = {"x-session-id": request.session} if request.session else None
        last = ""
        async with self._session.post(self._url, data=request.body, headers=headers) as response:
            if response.status != 200:
                raise Failed(f"{response.status}: {(await response.read())[:200].decode(errors='replace')}")
            async for at_s, last in events(response):
                if last == "[DONE]":
                    continue
                text, num_tokens = _look_at(last)
                counted["letters"] += len(text)
                counted["tokens"] = num_tokens or counted["tokens"]
                if text:
                    texts_s.append(at_s - self._began_s)
        if last != "[DONE]":
            raise Failed("no [DONE]")
        if counted["letters"] != request.num_tokens or counted["tokens"] != request.num_tokens:
            raise Failed(
                f"{counted['tokens']} tokens with {counted['letters']} letters instead of {request.num_tokens}"
            )


def _look_at(data: str) -> tuple[str, int]:
    """An event's text, and how many tokens its usage counts: 0 where it has none."""
    try:
        event = json.loads(data)
        if event.get("error"):
            raise Failed(f"error event: {event['error']}")
        text = "".join(choice["delta"].get("content") or "" for choice in event["choices"])
        return text, (event.get("usage") or {}).get("completion_tokens", 0)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise Failed("malformed event") from error
