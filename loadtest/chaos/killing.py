"""The seeded schedule of kills, and the wait until the cluster is whole again after each."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import aiohttp
import psutil

from loadtest.chaos.processes import POOLS, is_alive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from loadtest.chaos.processes import ClusterProcesses

KillSignal = Literal["kill", "stop"]
SIGNALS: Final[Mapping[str, signal.Signals]] = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
KINDS: Final = tuple(
    f"{part}:{name}"
    for part in ("router", "preprocessor", "encoder", "decoder", "engine", "child", "template", "haproxy", "controller")
    for name in SIGNALS
)
"""The ways to die that every cluster has."""
MORE_KINDS: Final = ("worker:kill", "worker:stop", "raylet:kill")
"""Further ones, for clusters with tensor-parallel workers or with several nodes."""
POOL_OF: Final = {
    **POOLS,
    "engine": POOLS["decoder"],
    "worker": POOLS["decoder"],
    "child": POOLS["preprocessor"],
    "template": POOLS["preprocessor"],
    "haproxy": "haproxy",
    "controller": "controller",
    "raylet": "raylet",
}
"""The pool that each part belongs to. HAProxy, the controller and a node are pools of their own."""
RESUMED: Final = ("haproxy", "controller")
"""These go on after ``RESUME_S``. Nobody replaces a controller that hangs, and Serve replaces a HAProxy that hangs only
after three failed checks."""
RESUME_S: Final = 10.0
PAUSE_S: Final = (0.5, 3.0)
"""The shortest and the longest time between a cluster that is whole and the next kill."""
POLL_S: Final = 0.5
WHOLE_TIMEOUT_S: Final = 180.0


@dataclass(slots=True)
class Kill:
    """One kill. Times are in seconds of ``time.monotonic``.

    Args:
        part: The part of the cluster, as in ``ClusterProcesses.of``.
        name: ``kill`` for SIGKILL, ``stop`` for SIGSTOP.
        at_s: When the signal was sent.
        gone_s: When the process had ended. It stays None if the process was resumed.
        whole_s: When its pool or the cluster was whole again, or None if it is not yet.
        is_given_up: That took too long.
    """

    part: str
    name: str
    at_s: float
    gone_s: float | None = None
    whole_s: float | None = None
    is_given_up: bool = False


def plan_kills(seed: int, kinds: Sequence[str], num: int) -> Iterator[str]:
    """Yields so many kinds of kills, in rounds: each round has every kind once, in another order."""
    draw = random.Random(seed)
    left: list[str] = []
    for _ in range(num):
        left = left or draw.sample(kinds, len(kinds))
        yield left.pop()


class Killer:
    """Kills one process after another, each when the cluster is whole again.

    Args:
        url: The address of the cluster.
        processes: Its processes.
        seed: The seed of the choice among several processes and of the pauses.
    """

    def __init__(self, url: str, processes: ClusterProcesses, seed: int) -> None:
        self._url: Final = url
        self._processes: Final = processes
        self._draw: Final = random.Random(f"killer {seed}")
        self._num_expected: dict[str, int] = {}
        self._broken: Final[set[str]] = set()
        self._mended: Final = asyncio.Event()
        self._is_given_up = False
        self.kills: Final[list[Kill]] = []

    async def look(self) -> None:
        """Notes how many replicas each pool has. This many make the cluster whole later.

        Raises:
            RuntimeError: Not all replicas run in time, or the processes of the cluster are not below the root.
        """
        deadline_s = time.monotonic() + WHOLE_TIMEOUT_S
        while time.monotonic() < deadline_s:
            self._num_expected = await asyncio.to_thread(self._processes.num_replicas)
            if await self.is_whole():
                return
            await asyncio.sleep(POLL_S)
        raise RuntimeError(f"{self._num_expected} are the processes, and {await self._num_running()} replicas run")

    async def replica_pids(self) -> set[int]:
        """The ids of all replicas' processes."""
        found = [await asyncio.to_thread(self._processes.of, pool) for pool in POOLS]
        return {process.pid for processes in found for process in processes}

    async def run(
        self, kinds: Sequence[str], say: Callable[[str], object], *, until_s: float, overlap: bool = False
    ) -> None:
        """Carries out all kills. A cluster that does not recover ends the run.

        Args:
            kinds: The kinds, in order.
            say: Takes a line about each.
            until_s: No kill comes after this time of ``time.monotonic``.
            overlap: A kill waits for its own pool only. Otherwise it waits for the whole cluster.
        """
        async with asyncio.TaskGroup() as group:
            for kind in kinds:
                await asyncio.sleep(self._draw.uniform(*PAUSE_S))
                pool = POOL_OF[kind.partition(":")[0]]
                while self._broken and (not overlap or pool in self._broken):
                    self._mended.clear()
                    await self._mended.wait()
                if time.monotonic() > until_s or self._is_given_up:
                    return
                self._broken.add(pool)
                group.create_task(self._carry_out(kind, say, pool if overlap and pool != "raylet" else None))

    async def _carry_out(self, kind: str, say: Callable[[str], object], pool: str | None) -> None:
        kill = await self.strike(kind, pool)
        if kill.whole_s is None:
            kill.is_given_up = self._is_given_up = True
            say(f"{kind}: not whole after {WHOLE_TIMEOUT_S:g} s")
        else:
            say(f"{kind}: whole after {kill.whole_s - kill.at_s:.1f} s")
        self._broken.discard(POOL_OF[kill.part])
        self._mended.set()

    async def strike(self, kind: str, pool: str | None = None) -> Kill:
        """Kills or stops one process of a kind, and waits until it is gone and the pool, or the cluster, is whole.

        Raises:
            RuntimeError: There is no such process.
        """
        part, _, name = kind.partition(":")
        victim, has_to_go = await asyncio.to_thread(self._victim, part)
        victim.send_signal(SIGNALS[name])
        if kind == "template:stop":
            for child in victim.children():  # otherwise nobody needs the template
                child.kill()
        kill = Kill(part, name, time.monotonic())
        self.kills.append(kill)
        while time.monotonic() < kill.at_s + WHOLE_TIMEOUT_S:
            if kill.gone_s is None and not any(is_alive(process) for process in has_to_go):
                kill.gone_s = time.monotonic()
            is_resumed = self._resume(kill, victim)
            if (kill.gone_s is not None or is_resumed) and await self.is_whole(pool):
                kill.whole_s = time.monotonic()
                break
            await asyncio.sleep(POLL_S)
        return kill

    def _victim(self, part: str) -> tuple[psutil.Process, list[psutil.Process]]:
        """One process of a part, and the processes that have to end because of it."""
        deadline_s = time.monotonic() + WHOLE_TIMEOUT_S
        while not (found := self._processes.of(part)):  # a template starts with the first picture
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"the cluster has no {part}")
            time.sleep(POLL_S)
        victim = found[-1] if part == "haproxy" else self._draw.choice(found)
        if part == "raylet":  # everything on its node ends with it
            return victim, [victim, *victim.children(recursive=True)]
        owner = self._processes.owner(victim)
        return victim, [victim] if part in ("child", "template") or owner is None else [victim, owner]

    def _resume(self, kill: Kill, victim: psutil.Process) -> bool:
        """Lets a stopped process go on if nobody replaces it. Returns True if it goes on."""
        if kill.name != "stop" or kill.part not in RESUMED or time.monotonic() < kill.at_s + RESUME_S:
            return False
        with suppress(psutil.NoSuchProcess):
            victim.resume()
        return True

    async def is_whole(self, pool: str | None = None) -> bool:
        """Returns True if a pool, or every pool, has as many processes and running replicas as at the beginning."""
        there, running = await asyncio.to_thread(self._processes.num_replicas), await self._num_running()
        names = [pool] if pool in self._num_expected else [] if pool else [*self._num_expected]
        wanted = {name: self._num_expected[name] for name in names}
        return bool(running) and all(there[name] == running.get(name) == num for name, num in wanted.items())

    async def _num_running(self) -> dict[str, int]:
        """The running replicas of each pool, by ``/status``; empty if it does not answer or a replica is no replica."""
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=8)) as client,
                client.get(f"{self._url}/status") as response,
            ):
                pools = (await response.json())["pools"]
            return {name: int(pool["replicas"]["RUNNING"]) for name, pool in pools.items()}
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, LookupError, TypeError):
            return {}
