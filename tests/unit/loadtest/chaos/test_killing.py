"""The schedule of kills, and when the next one comes."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections import Counter
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import psutil
import pytest

from loadtest.chaos import killing
from loadtest.chaos.killing import KINDS, Killer, plan_kills
from loadtest.chaos.processes import POOLS, ClusterProcesses
from tests.helpers.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

PATIENCE_S = 60.0
PLAYED = "".join(
    f"while true; do (exec -a ray::ServeReplica:prism:{name} sleep 60); done &\n" for name in POOLS.values()
)
"""Four replicas that do nothing. Each starts again as soon as it is killed."""


def test_each_round_has_every_kind_once() -> None:
    """After any number of whole rounds each kind has come equally often, and the seed decides the order."""
    planned = list(plan_kills(3, KINDS, 5 * len(KINDS)))
    assert Counter(planned) == dict.fromkeys(KINDS, 5)
    assert planned == list(plan_kills(3, KINDS, 5 * len(KINDS)))
    assert planned != list(plan_kills(4, KINDS, 5 * len(KINDS)))


@pytest.fixture
def root() -> Iterator[psutil.Process]:
    """The shell that plays the replicas. It reads its program from a pipe, so that no title but theirs names a pool."""
    with subprocess.Popen(["bash"], stdin=subprocess.PIPE) as shell:
        assert shell.stdin is not None
        shell.stdin.write(f"{PLAYED}wait\n".encode())
        shell.stdin.close()
        yield (found := psutil.Process(shell.pid))
        for process in [found, *found.children(), *found.children(recursive=True)]:  # loops before what they start
            with suppress(psutil.NoSuchProcess):
                process.kill()


@asynccontextmanager
async def killer_of(root: psutil.Process, running: dict[str, int]) -> AsyncIterator[Killer]:
    """Yields a killer of played replicas, whose ``/status`` counts as many running ones as ``running`` says."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = json.dumps({"pools": {name: {"replicas": {"RUNNING": num}} for name, num in running.items()}}).encode()
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with server:
        killer = Killer(f"http://{host}:{port}", ClusterProcesses(root), seed=1)
        await killer.look()
        yield killer


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a killer wait for moments only."""
    monkeypatch.setattr(killing, "PAUSE_S", (0.0, 0.01))
    monkeypatch.setattr(killing, "POLL_S", 0.02)


async def test_the_next_kill_comes_when_the_cluster_is_whole(root: psutil.Process) -> None:
    """A pool that runs one replica less than before holds the next kill back until it runs all."""
    running = dict.fromkeys(POOLS.values(), 1)
    said: list[str] = []
    async with killer_of(root, running) as killer:
        running["Decoder"] = 0
        task = asyncio.create_task(killer.run(["router:kill", "encoder:kill"], said.append, until_s=1e9))

        async def is_gone() -> bool:
            return bool(killer.kills) and killer.kills[0].gone_s is not None

        await until(is_gone, PATIENCE_S, "nothing is killed")
        assert killer.kills[0].whole_s is None
        running["Decoder"] = 1
        await task
    first, second = killer.kills
    assert first.whole_s is not None
    assert first.whole_s <= second.at_s
    assert [line.split(" whole")[0] for line in said] == ["router:kill:", "encoder:kill:"]


async def test_kills_of_several_pools_may_overlap(root: psutil.Process) -> None:
    """With ``overlap`` another pool is hit while the first one is not whole, and the same pool is not."""
    running = dict.fromkeys(POOLS.values(), 1)
    async with killer_of(root, running) as killer:
        running["Decoder"] = 0
        kinds = ["decoder:kill", "router:kill", "decoder:kill"]
        task = asyncio.create_task(killer.run(kinds, lambda _: None, until_s=1e9, overlap=True))

        async def is_second_whole() -> bool:
            return len(killer.kills) > 1 and killer.kills[1].whole_s is not None

        await until(is_second_whole, PATIENCE_S, "the second kill waits for the first pool")
        assert [kill.part for kill in killer.kills] == ["decoder", "router"]
        assert killer.kills[0].whole_s is None
        running["Decoder"] = 1
        await task
    assert [kill.part for kill in killer.kills] == ["decoder", "router", "decoder"]


async def test_a_cluster_that_does_not_recover_ends_the_kills(
    root: psutil.Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a pool does not come back in time, nothing else is killed."""
    running = dict.fromkeys(POOLS.values(), 1)
    async with killer_of(root, running) as killer:
        monkeypatch.setattr(killing, "WHOLE_TIMEOUT_S", 0.5)
        running["Decoder"] = 0
        await killer.run(["decoder:kill", "router:kill"], lambda _: None, until_s=1e9)
    assert [(kill.part, kill.whole_s, kill.is_given_up) for kill in killer.kills] == [("decoder", None, True)]
