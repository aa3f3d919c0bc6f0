"""Looking names up: c-ares against a name server on loopback, and look-ups that are shared, bounded and remembered."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from cluster.errors import PictureUnavailable
from cluster.media import names
from cluster.media.names import MAX_REMEMBERED, NameResolver, SystemNames
from tests.helpers.name_server import SERVFAIL, name_server
from tests.helpers.sites import Names

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from tests.helpers.name_server import NameServer

PUBLIC, PUBLIC_V6 = "93.184.216.34", "2606:4700::1111"
AGAIN, UNKNOWN = socket.gaierror(socket.EAI_AGAIN, "again"), socket.gaierror(socket.EAI_NONAME, "unknown")
Asking = tuple["NameServer", SystemNames]


@pytest.fixture
async def asking() -> AsyncIterator[Asking]:
    """A name server on loopback, and c-ares that asks it, with a search domain as in a pod."""
    async with name_server() as server:
        system = SystemNames(nameservers=[f"127.0.0.1:{server.port}"], domains=["pod.example"], ndots=2)
        yield server, system
        await system.close()


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the event loop's clock on by seconds."""
    loop = asyncio.get_running_loop()
    real, ahead = loop.time, [0.0]
    monkeypatch.setattr(loop, "time", lambda: real() + ahead[0])

    def move(seconds: float) -> None:
        ahead[0] += seconds

    return move


async def test_names_have_addresses_of_both_kinds(asking: Asking) -> None:
    """IPv4 and IPv6 addresses of a name are found, and a name without any is unknown."""
    server, system = asking
    server.names |= {"both.two.example": [PUBLIC, PUBLIC_V6], "none.two.example": []}
    resolver = NameResolver(system)
    assert set(await resolver.addresses("both.two.example")) == {PUBLIC, PUBLIC_V6}
    assert await resolver.addresses("none.two.example") == []
    assert await resolver.addresses("nowhere.two.example") == []


async def test_search_domains_and_the_hosts_file_count(asking: Asking) -> None:
    """A short name is found in a search domain, and ``localhost`` without the name server."""
    server, system = asking
    server.names["store.pod.example"] = ["10.0.0.7"]
    assert await NameResolver(system).addresses("store") == ["10.0.0.7"]
    server.asked.clear()
    assert set(await NameResolver(system).addresses("localhost")) <= {"127.0.0.1", "::1"}
    assert server.asked == []


async def test_a_name_server_that_fails_is_worth_a_retry(asking: Asking) -> None:
    """A failure of the name server is no statement about the name."""
    server, system = asking
    server.names |= {"bad.two.example": SERVFAIL, "bad.two.example.pod.example": SERVFAIL}
    with pytest.raises(PictureUnavailable):
        await NameResolver(system).addresses("bad.two.example")


async def test_thousands_of_open_questions_hold_up_nobody(asking: Asking) -> None:
    """While the name server leaves 2,000 questions open, the next one is answered, and no thread was added for
    them."""
    server, system = asking
    slow = [f"slow{n}.two.example" for n in range(2000)]
    server.names |= {**dict.fromkeys(slow), "quick.two.example": [PUBLIC]}
    resolver = NameResolver(system)
    assert await resolver.addresses("quick.two.example") == [PUBLIC]
    num_threads = threading.active_count()
    tasks = [asyncio.ensure_future(resolver.addresses(name)) for name in slow]
    while not server.asked[-1].startswith("slow"):  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert await NameResolver(system).addresses("quick.two.example") == [PUBLIC]
    assert threading.active_count() == num_threads
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


@pytest.mark.parametrize(
    "host",
    [
        *("0177.0.0.1", "127.1", "2130706433", "0x7f000001", "0x7f.0.0.1", "0", "0x", "127.0.0.1.", "1.2.3.4.5"),
        *("a.1", "a.0x1", "a.1.", "fe80::1%lo", f"{PUBLIC_V6}%1", "::1::", "1:2"),
    ],
)
async def test_an_unusual_spelling_of_an_address_is_no_address(host: str) -> None:
    """A host that only some libraries read as an address has none, and is not looked up."""
    asked = Names([[PUBLIC]])
    assert await NameResolver(asked).addresses(host) == []
    assert asked.asked == []


@pytest.mark.parametrize("host", [PUBLIC, PUBLIC_V6, "127.0.0.1", "::ffff:7f00:1"])
async def test_an_address_stands_for_itself(host: str) -> None:
    """An address in its usual form is not looked up."""
    asked = Names([[]])
    found = await NameResolver(asked).addresses(host)
    assert [socket.getaddrinfo(one, None)[0][4][0] for one in found] == [socket.getaddrinfo(host, None)[0][4][0]]
    assert asked.asked == []


class Held:
    """A look-up that answers once it is told to. It records the names, and how many were cancelled."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer = asyncio.Event()
        self.num_cancelled = 0

    async def __call__(self, host: str) -> list[str]:
        self.asked.append(host)
        try:
            await self.answer.wait()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        return [PUBLIC]


async def started(*coroutines: Coroutine[Any, Any, list[str]]) -> list[asyncio.Task[list[str]]]:
    """Starts coroutines, and returns their tasks once each of them waits."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    for _ in range(5):
        await asyncio.sleep(0)
    return tasks


async def test_requests_for_one_name_share_a_look_up() -> None:
    """Concurrent requests for a name ask once, and all but those that left get the answer."""
    held = Held()
    resolver = NameResolver(held)
    tasks = await started(*(resolver.addresses("one.example") for _ in range(16)))
    tasks[0].cancel()
    await asyncio.wait(tasks[:1])
    held.answer.set()
    assert await asyncio.gather(*tasks[1:]) == 15 * [[PUBLIC]]
    assert held.asked == ["one.example"]
    assert await resolver.addresses("one.example") == [PUBLIC]
    assert held.asked == 2 * ["one.example"]


async def test_a_look_up_ends_with_the_last_request_that_waits() -> None:
    """When nobody waits for a look-up any more it is cancelled, and the next request begins another one."""
    held = Held()
    resolver = NameResolver(held)
    tasks = await started(resolver.addresses("one.example"), resolver.addresses("one.example"))
    for task in tasks:
        task.cancel()
    late = asyncio.create_task(resolver.addresses("one.example"))
    await asyncio.wait(tasks)
    held.answer.set()
    assert await late == [PUBLIC]
    assert (held.num_cancelled, len(held.asked)) == (1, 2)


async def test_a_look_up_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that stays silent makes an error that a retry can help, and the look-up is cancelled."""
    monkeypatch.setattr(names, "LOOKUP_TIMEOUT_S", 0.01)
    held = Held()
    with pytest.raises(PictureUnavailable):
        await NameResolver(held).addresses("one.example")
    assert held.num_cancelled == 1


async def test_failures_are_remembered_for_a_moment(clock: Callable[[float], None]) -> None:
    """A failed look-up is repeated after one second, and an unknown name is asked for again after five."""
    asked = Names([AGAIN, UNKNOWN, [PUBLIC]])
    resolver = NameResolver(asked)
    for _ in range(3):
        with pytest.raises(PictureUnavailable):
            await resolver.addresses("one.example")
    assert len(asked.asked) == 1
    clock(1.1)
    assert [await resolver.addresses("one.example") for _ in range(3)] == [[], [], []]
    clock(1.1)
    assert await resolver.addresses("one.example") == []
    assert len(asked.asked) == 2
    clock(5.1)
    assert await resolver.addresses("one.example") == [PUBLIC]


async def test_few_failures_are_remembered() -> None:
    """The memory of failures is bounded: the oldest is forgotten."""
    asked = Names([UNKNOWN])
    resolver = NameResolver(asked)
    for n in range(MAX_REMEMBERED + 1):
        await resolver.addresses(f"n{n}.example")
    asked.asked.clear()
    await resolver.addresses(f"n{MAX_REMEMBERED}.example")
    assert asked.asked == []
    await resolver.addresses("n0.example")
    assert asked.asked == ["n0.example"]
