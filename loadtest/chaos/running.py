"""One run of chaos: first the answers of the undisturbed cluster, then the load and the kills at the same time."""

from __future__ import annotations

import asyncio
import math
import random
import signal
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import aiohttp

from loadtest.chaos.asking import ask, connections
from loadtest.chaos.judging import ChaosRecord

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from loadtest.chaos.asking import ChaosAnswer, Ending
    from loadtest.chaos.killing import Kill, Killer
    from loadtest.chaos.mix import ChaosRequest

CALM_WORKERS: Final = 2
"""How many requests of the undisturbed run are under way at a time."""
RETRY_PAUSE_S: Final = 1.0
"""The pause before each plain retry of a request whose connection was cut, and after a typed error. That is the
``Retry-After`` of an error that a retry helps against."""
SALTED_SHARE: Final = 0.5
"""The share of requests that find nothing in any cache, so that every pool works all the time."""
WAY_BACK_S: Final = 60.0
"""A retry that is cut again, or that gets 503, is repeated for so long. HAProxy takes that time to start again, at
most."""


@dataclass
class ChaosRun:
    """The facts of one run, before any verdict.

    Args:
        expected: The undisturbed answers by the requests' numbers.
        records: Every request of the load.
        kills: Every kill.
        began_s: When the load began, in seconds of ``time.monotonic``.
        was_replaced: True if a replica was replaced although nothing was killed.
    """

    expected: dict[int, ChaosAnswer]
    records: list[ChaosRecord]
    kills: list[Kill]
    began_s: float
    was_replaced: bool = False


async def undisturbed(url: str, requests: Sequence[ChaosRequest]) -> dict[int, ChaosAnswer]:
    """The answer to each request from a cluster that nobody disturbs.

    Raises:
        ExceptionGroup: A request was not answered. It holds a ``RuntimeError``.
    """
    waiting, answers = iter(requests), {}

    async def work(client: aiohttp.ClientSession) -> None:
        for request in waiting:
            ending = await ask(client, url, request)
            if ending.answer is None or ending.kind != "answer":
                raise RuntimeError(f"request {request.index} failed without any kill: {ending.kind} {ending.cause}")
            answers[request.index] = ending.answer

    async with aiohttp.ClientSession(connector=connections(), timeout=NO_LIMIT) as client, asyncio.TaskGroup() as group:
        for _ in range(CALM_WORKERS):
            group.create_task(work(client))
    return answers


NO_LIMIT: Final = aiohttp.ClientTimeout(total=None)


class ClosedLoop:
    """Workers that each send one request after another, until they are told to stop.

    Args:
        url: The address of the cluster.
        requests: The requests, which are drawn at random, each as often as the others.
        seed: The seed of the draw.
    """

    def __init__(self, url: str, requests: Sequence[ChaosRequest], seed: int) -> None:
        self._url: Final = url
        self._requests: Final = requests
        self._draw: Final = random.Random(f"load {seed}")
        self._left: list[ChaosRequest] = []
        self._is_ending = False
        self.records: Final[list[ChaosRecord]] = []

    async def run(self, num_workers: int) -> None:
        """Sends requests until ``stop`` is called, and returns when the last one has ended."""
        async with (
            aiohttp.ClientSession(connector=connections(), timeout=NO_LIMIT) as client,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(num_workers):
                group.create_task(self._work(client))

    def stop(self) -> None:
        """Lets each worker end after the request that it has sent."""
        self._is_ending = True

    async def _work(self, client: aiohttp.ClientSession) -> None:
        while not self._is_ending:
            self._left = self._left or self._draw.sample(self._requests, len(self._requests))
            request = self._left.pop()
            if self._draw.random() < SALTED_SHARE:
                request = request.salted(f"{self._draw.random()}")
            started_s = time.monotonic()
            ending = await ask(client, self._url, request)
            ended_s, retried = time.monotonic(), None
            if ending.kind == "cut":
                retried = await self._retry(client, request)
            back_s = time.monotonic() if retried else 0.0
            self.records.append(ChaosRecord(request.index, request.kind, started_s, ended_s, ending, retried, back_s))
            if ending.kind == "typed":
                await asyncio.sleep(RETRY_PAUSE_S)

    async def _retry(self, client: aiohttp.ClientSession, request: ChaosRequest) -> Ending:
        deadline_s = time.monotonic() + WAY_BACK_S
        while True:
            await asyncio.sleep(RETRY_PAUSE_S)
            ending = await ask(client, self._url, request)
            can_retry = ending.kind == "cut" or (ending.kind == "typed" and ending.cause.startswith("503 "))
            if not can_retry or time.monotonic() > deadline_s:
                return ending


async def chaos(
    killer: Killer,
    url: str,
    requests: Sequence[ChaosRequest],
    kinds: Sequence[str],
    *,
    num_workers: int,
    seed: int,
    seconds: float = 0.0,
    limit_s: float = math.inf,
    overlap: bool = False,
) -> ChaosRun:
    """Runs the undisturbed requests, then the load with its kills.

    Args:
        killer: Kills the processes.
        url: The address of the cluster.
        requests: The requests of the mix.
        kinds: The kinds of the kills, in order.
        num_workers: How many requests are under way at a time.
        seed: The seed of the load.
        seconds: How long the load runs at least. Without kills, replicas must be the same at its end.
        overlap: A kill waits for its own pool only, not for the whole cluster.
        limit_s: No kill comes so many seconds after the beginning of the load.

    Raises:
        RuntimeError: Not all replicas run at the beginning.
        ExceptionGroup: An undisturbed request fails, or a part of the cluster is not there.
    """
    await killer.look()
    expected = await undisturbed(url, requests)
    before = await killer.replica_pids()
    say(f"{len(expected)} undisturbed answers; the load begins")
    load, began_s = ClosedLoop(url, requests, seed), time.monotonic()
    async with asyncio.TaskGroup() as group:
        group.create_task(load.run(num_workers))
        try:
            await _until_sigterm(killer.run(kinds, say, until_s=began_s + limit_s, overlap=overlap))
            await _until_sigterm(asyncio.sleep(began_s + seconds - time.monotonic()))
        finally:
            load.stop()
    was_replaced = not kinds and await killer.replica_pids() != before
    return ChaosRun(expected, load.records, killer.kills, began_s, was_replaced)


async def _until_sigterm(work: Coroutine[Any, Any, None]) -> None:
    """Awaits something, or less of it if this process gets SIGTERM, so that the verdict is not lost."""
    task = asyncio.ensure_future(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await asyncio.wait({task})
    if not task.cancelled():
        task.result()


def say(text: str) -> None:
    """Prints a line at once."""
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stdout.flush()
