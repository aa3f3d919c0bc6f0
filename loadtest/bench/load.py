"""Sends requests and times their answers, in one process that is the same for every system.

All times are on one clock that starts with the load. A closed loop times an answer from the moment its request is sent.
An open loop times it from the moment its request *should* have been sent, so that a late client or server cannot hide
its delay. ``loadtest.client`` defines TTFT and gaps. An answer counts only if it is whole: it must have as many tokens
as the request asked for, and each token must be one letter.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import aiohttp

from loadtest.probe import HEADERS, Failed, events, read_event
from loadtest.workload import PATH

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from loadtest.bench.requests import Request

READ_TIMEOUT_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Sample:
    """The times of one answer, in seconds since the load began.

    Args:
        kind: The kind of its request.
        num_tokens: How many tokens the request asked for.
        start_s: When its request was sent, or in an open loop should have been sent.
        texts_s: When each event with text came.
        done_s: When the answer ended.
        failure: Why the answer does not count; empty if it does.
    """

    kind: str
    num_tokens: int
    start_s: float
    texts_s: tuple[float, ...]
    done_s: float
    failure: str = ""

    @property
    def ttft_s(self) -> float:
        """The time from the request to the first text."""
        return self.texts_s[0] - self.start_s

    @property
    def total_s(self) -> float:
        """The time from the request to the end of the answer."""
        return self.done_s - self.start_s

    @property
    def gaps_s(self) -> list[float]:
        """The times between successive events with text."""
        return [later - earlier for earlier, later in pairwise(self.texts_s)]

    @property
    def itl_s(self) -> float:
        """The mean time per token after the first."""
        return (self.texts_s[-1] - self.texts_s[0]) / max(1, self.num_tokens - 1)


class Client:
    """Sends load to one system; use it as an async context manager."""

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
        """Lets users work through queues of requests; each user waits for an answer before sending the next request.

        Args:
            queues: Requests in order; the users of a queue share it.
            users_per_queue: How many users each queue has.

        Returns:
            One sample per request, user by user.
        """
        self._began_s = time.perf_counter()
        samples: list[Sample] = []

        async def chat_on(requests: Iterator[Request]) -> None:
            samples.extend([await self._ask(request, self._now_s()) for request in requests])

        shared = [iter(queue) for queue in queues]
        await asyncio.gather(*(chat_on(requests) for requests in shared for _ in range(users_per_queue)))
        return samples

    async def open_loop(self, requests: Sequence[Request]) -> list[Sample]:
        """Sends each request at its time, whether or not earlier ones have been answered.

        Returns:
            One sample per request, in the order of the requests.
        """
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
            failure = f"{error} {error.detail}".strip()
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
                text, num_tokens = read_event(last)
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
