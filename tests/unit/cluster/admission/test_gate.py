"""A gate in front of a stage."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

import pytest

from cluster.admission.gate import ACTIVE_S, LATEST_WEIGHT, SLOW_CLIENT_S, Gate, Pass

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def let_in(gate: Gate, number: int, tenant: str = "a") -> list[Pass]:
    """Lets requests in, for which there is room."""
    passes = [gate.try_enter(tenant, 1, 1) for _ in range(number)]
    return [one for one in passes if one is not None]


async def queued(gate: Gate, tenant: str, number: int = 1, cost: float = 1.0) -> list[asyncio.Task[Pass]]:
    """Lets requests wait."""
    tasks = [asyncio.create_task(gate.enter(tenant, 1, cost)) for _ in range(number)]
    await asyncio.sleep(0)
    return tasks


async def test_a_request_that_finds_room_never_yields() -> None:
    """As long as there is room, a pass comes without giving way to any other task, and nobody is remembered."""
    gate = Gate(lambda: 3)
    passes = let_in(gate, 5)
    assert (len(passes), gate.num_waiting, gate.oldest_wait_s, gate.wait_s("a")) == (3, 0, 0.0, 0.0)
    for one in passes:
        one.leave()
        one.leave()
    assert len(let_in(gate, 5)) == 3


async def test_tenants_take_turns() -> None:
    """When room becomes free, a tenant with one request comes before the rest of one with many."""
    gate = Gate(lambda: 1)
    [inside] = let_in(gate, 1)
    many, few = await queued(gate, "many", 20), await queued(gate, "few")
    assert (gate.num_waiting, gate.num_waiting_of("many")) == (21, 20)
    order = []

    async def note(waiting: asyncio.Task[Pass], tenant: str) -> None:
        one = await waiting
        order.append(tenant)
        one.leave()

    inside.leave()
    await asyncio.gather(*(note(one, "many") for one in many), note(few[0], "few"))
    assert order.index("few") <= 1
    assert gate.num_waiting == 0


async def test_a_client_that_leaves_the_queue_takes_nothing() -> None:
    """A request that is cancelled while it waits, or just as it is let in, keeps no room."""
    gate = Gate(lambda: 1)
    [inside] = let_in(gate, 1)
    first, second, third = await queued(gate, "a", 3)
    first.cancel()
    await asyncio.sleep(0)
    inside.leave()  # lets the second in, which is cancelled before it knows
    second.cancel()
    (await third).leave()
    assert (gate.num_waiting, len(let_in(gate, 2))) == (0, 1)
    with pytest.raises(asyncio.CancelledError):
        await second


async def test_room_that_grows_is_used_without_a_word() -> None:
    """While requests wait, the gate looks for room by itself: a pool may grow, or lose its last replica."""
    room = 1.0
    gate = Gate(lambda: room)
    let_in(gate, 1)
    waiting = await queued(gate, "a", 2)
    room = math.inf
    async with asyncio.timeout(5):
        await asyncio.gather(*waiting)


async def test_a_client_that_does_not_read_holds_no_room() -> None:
    """An answer whose client has not taken a piece for a second no longer counts, so that others come in."""
    clock = Clock()
    gate = Gate(lambda: 1, clock=clock)

    async def pieces() -> AsyncGenerator[str]:
        yield "1"
        yield "2"

    [inside] = let_in(gate, 1)
    reading = inside.watched(pieces())
    assert await anext(reading) == "1"
    [waiting] = await queued(gate, "a")
    clock.now_s += SLOW_CLIENT_S + 0.1
    async with asyncio.timeout(5):
        later = await waiting
    assert [piece async for piece in reading] == ["2"]
    later.leave()
    assert len(let_in(gate, 2)) == 1


async def test_the_pass_comes_back_with_the_last_piece() -> None:
    """The stage is done when it has made all pieces; the client may take them later."""
    gate = Gate(lambda: 1)

    async def pieces() -> AsyncGenerator[str]:
        yield "1"

    [inside] = let_in(gate, 1)
    assert [piece async for piece in inside.watched(pieces())] == ["1"]
    assert len(let_in(gate, 1)) == 1


async def test_the_rate_is_that_of_a_full_stage() -> None:
    """With room for four that each stay two seconds, two are done per second, also while fewer are inside. Requests
    that fail tell nothing."""
    clock = Clock()
    gate = Gate(lambda: 4, clock=clock)
    assert gate.rate() is None
    passes = let_in(gate, 4)
    assert gate.rate() == 4  # a guess: they stay for a second
    clock.now_s += 1
    assert gate.rate() == 2  # they stay for longer
    passes[0].leave()
    passes += let_in(gate, 1)
    clock.now_s += 1
    passes[1].leave(is_done=True)
    passes += let_in(gate, 1)
    assert gate.rate() == 2
    for one in passes[2:5]:
        one.leave()
    assert gate.rate() == 2  # with one inside, four would still fit


async def test_a_wait_is_that_of_the_tenants_own_backlog() -> None:
    """A tenant's backlog is served at its share of the rate; a tenant without one waits for nothing that is queued."""
    clock = Clock()
    gate = Gate(lambda: 4, clock=clock)
    passes = let_in(gate, 4)
    clock.now_s += 2
    passes[0].leave(is_done=True)
    let_in(gate, 1)
    waiting = await queued(gate, "many", 20) + await queued(gate, "few", 1)
    assert (gate.wait_s("many"), gate.wait_s("few"), gate.wait_s("new")) == (20.0, 1.0, 0.0)
    assert (gate.share("many"), gate.share("new")) == (1 / 2, 1 / 3)
    assert gate.takes_s("many", 3) == 3.0
    clock.now_s += 5
    assert gate.oldest_wait_s == 5
    for one in waiting:
        one.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert gate.oldest_wait_s == 0


async def test_some_room_is_kept_for_small_tenants() -> None:
    """While another tenant is active, a large one leaves a sixteenth of the room to it. Alone, it uses all."""
    clock = Clock()
    gate = Gate(lambda: 32, clock=clock)
    passes = let_in(gate, 50, "large")
    assert len(passes) == 32
    assert gate.try_enter("small", 1, 1) is None
    for one in passes[:10]:
        one.leave()
    assert (len(let_in(gate, 50, "large")), len(let_in(gate, 50, "small"))) == (8, 2)
    for one in passes[10:20]:
        one.leave()
    clock.now_s += ACTIVE_S + 1
    assert len(let_in(gate, 50, "large")) == 10


async def test_a_wait_counts_what_goes_first() -> None:
    """A new request waits for all requests of a higher priority, and not for those of its own priority or a lower one
    that are of other tenants."""
    clock = Clock()
    gate = Gate(lambda: 1, clock=clock)
    [inside] = let_in(gate, 1)
    urgent = [asyncio.create_task(gate.enter("urgent", 1, 10, priority=1)) for _ in range(3)]
    await asyncio.sleep(0)
    assert (gate.wait_s("new"), gate.wait_s("new", 1), gate.wait_s("new", 2)) == (30.0, 0.0, 0.0)
    for one in urgent:
        one.cancel()
    await asyncio.gather(*urgent, return_exceptions=True)
    waiting = await queued(gate, "other", 3)
    assert gate.wait_s("new") == 0.0
    for one in waiting:
        one.cancel()
    inside.leave()


@pytest.mark.parametrize(("pause_s", "is_usual", "counted_s"), [(0.5, True, 3), (381, True, 0), (0.5, False, 0)])
async def test_a_slow_reader_does_not_make_the_stage_slow(pause_s: float, is_usual: bool, counted_s: float) -> None:
    """An answer whose client did not read for more than a second, or that went on elsewhere, leaves the rate as it is.
    One whose client reads a little late counts."""
    clock = Clock()
    gate = Gate(lambda: 1, clock=clock)

    async def pieces() -> AsyncGenerator[str]:
        clock.now_s += 1
        yield "1"
        clock.now_s += 1
        yield "2"

    [usual] = let_in(gate, 1)
    clock.now_s += 2
    usual.leave(is_done=True)
    [inside] = let_in(gate, 1)
    async for _ in inside.watched(pieces(), lambda: is_usual):
        clock.now_s += pause_s
    let_in(gate, 1)
    stay_s = 2 + LATEST_WEIGHT * (counted_s - 2) if counted_s else 2
    assert gate.rate() == pytest.approx(1 / stay_s)
