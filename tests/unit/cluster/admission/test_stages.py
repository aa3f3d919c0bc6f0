"""The gates of one Router under ten times the load that its decoders carry, on a clock of the test's own."""

from __future__ import annotations

import asyncio
import heapq
import math
import random
from collections import Counter
from dataclasses import dataclass, field
from itertools import count

import pytest

from cluster.admission.cost import RequestCost
from cluster.admission.slots import Admission
from cluster.admission.stages import StageGates
from cluster.errors import Overloaded

NUM_SEQUENCES, ANSWER_S = 15, 1.0
RATE_PER_S = NUM_SEQUENCES / ANSWER_S
MAX_WAIT_S, TIMEOUT_S = 5.0, 60.0
MAX_IN_FLIGHT = 256


@dataclass
class Sent:
    """A request, and what became of it."""

    tenant: str
    body: bytes
    cost: float
    arrived_s: float
    began_s: float | None = None
    ended_s: float | None = None
    told_s: list[float] = field(default_factory=list)


class Simulation:
    """A Router's admission in front of decoders that take a second for an answer of mean cost.

    Args:
        comes_back: Whether a refused client comes back.
        patience_s: A refused client comes back when it was told to, or after this time if that is earlier.
    """

    def __init__(self, *, comes_back: bool = True, patience_s: float = math.inf) -> None:
        self.now_s = 0.0
        self.sent: list[Sent] = []
        self._comes_back = comes_back
        self._patience_s = patience_s
        self._draw = random.Random(0)
        self._events: list[tuple[float, int, Sent | asyncio.Event]] = []
        self._count = count()
        self._admission = Admission(MAX_IN_FLIGHT, 2**30)
        self.gates = StageGates(lambda: 10**9, lambda: NUM_SEQUENCES, clock=lambda: self.now_s)
        self._admission.retry_after_s = self.gates.retry_after_s

    def load(self, tenant: str, rate_per_s: float, until_s: float) -> None:
        """Plans the arrivals of a tenant at random times."""
        at_s = 0.0
        while (at_s := at_s + self._draw.expovariate(rate_per_s)) < until_s:
            one = Sent(tenant, f"{tenant} {at_s}".encode(), self._draw.uniform(50, 150), at_s)
            self.sent.append(one)
            self._at(at_s, one)

    async def run(self) -> None:
        """Runs until every request has been answered, or has been refused and does not come back."""
        tasks = set()
        while self._events:
            self.now_s, _, due = heapq.heappop(self._events)
            if isinstance(due, asyncio.Event):
                due.set()
            else:
                tasks.add(asyncio.create_task(self._serve(due)))
            for _ in range(4):
                await asyncio.sleep(0)
        await asyncio.gather(*tasks)

    def done_by(self, begin_s: float, end_s: float) -> list[Sent]:
        """The requests that were answered in this time."""
        return [one for one in self.sent if one.ended_s is not None and begin_s <= one.ended_s < end_s]

    async def _serve(self, one: Sent) -> None:
        try:
            slot = self._admission.enter(one.tenant)
        except Overloaded as refused:
            self._refuse(one, refused)
            return
        cost = RequestCost(1, 0, one.cost)
        try:
            self.gates.judge(
                one.tenant,
                cost,
                one.body,
                max_wait_s=MAX_WAIT_S,
                left_s=TIMEOUT_S,
                num_free_slots=self._admission.num_free,
            )
        except Overloaded as refused:
            self._refuse(one, refused)
        else:
            _, answer, _ = await self.gates.enter(slot, one.tenant, cost)
            one.began_s = self.now_s
            ended = asyncio.Event()
            self._at(self.now_s + ANSWER_S * one.cost / 100, ended)
            await ended.wait()
            one.ended_s = self.now_s
            answer.leave(is_done=True)
        slot.leave()

    def _refuse(self, one: Sent, refused: Overloaded) -> None:
        one.told_s.append(self.now_s + refused.retry_after_s)
        if self._comes_back:
            self._at(min(one.told_s[-1], self.now_s + self._patience_s), one)

    def _at(self, at_s: float, due: Sent | asyncio.Event) -> None:
        heapq.heappush(self._events, (at_s, next(self._count), due))


@pytest.mark.parametrize("comes_back", [False, True])
async def test_ten_times_the_load_costs_no_goodput(comes_back: bool) -> None:
    """A minute of ten times the load: the decoders do as much as they can, whether or not refused clients come back,
    and nobody who is let in waits for long."""
    simulation = Simulation(comes_back=comes_back)
    simulation.load("a", 10 * RATE_PER_S, until_s=60)
    await simulation.run()
    assert len(simulation.done_by(5, 60)) >= 0.9 * RATE_PER_S * 55
    waits_s = [one.began_s - (one.told_s or [one.arrived_s])[-1] for one in simulation.sent if one.began_s is not None]
    assert max(waits_s) < TIMEOUT_S / 2


async def test_a_retry_after_the_time_told_succeeds() -> None:
    """Of the clients that were refused and come back when they were told to, nearly all are let in at once. They come
    back no faster than they can be served."""
    simulation = Simulation()
    simulation.load("a", 10 * RATE_PER_S, until_s=60)
    await simulation.run()
    refused = [one for one in simulation.sent if one.told_s]
    told = Counter(len(one.told_s) for one in refused)
    assert len(refused) > 0.8 * len(simulation.sent)
    assert told[1] / len(refused) >= 0.97, told
    assert all(one.ended_s is not None for one in refused)


async def test_a_client_that_comes_early_gains_and_loses_nothing() -> None:
    """Clients that come back every five seconds are told the same time again and again, and are let in at that time."""
    simulation = Simulation(patience_s=5)
    simulation.load("a", 10 * RATE_PER_S, until_s=5)
    await simulation.run()
    impatient = [one for one in simulation.sent if len(one.told_s) > 2]
    assert len(impatient) > 300
    assert all(max(one.told_s) - min(one.told_s) <= 1 for one in impatient)  # the header has whole seconds
    assert all(one.began_s is not None and one.began_s < one.told_s[-1] + 2 * MAX_WAIT_S for one in impatient)


async def test_a_small_tenant_hardly_notices() -> None:
    """While a tenant sends ten times what the decoders carry, another one with a hundredth of that is never refused,
    and waits for little more than the next answer to end."""
    simulation = Simulation()
    simulation.load("large", 10 * RATE_PER_S, until_s=60)
    simulation.load("small", RATE_PER_S / 10, until_s=60)
    await simulation.run()
    small = [one for one in simulation.sent if one.tenant == "small"]
    assert not any(one.told_s for one in small)
    waits_s = sorted(one.began_s - one.arrived_s for one in small if one.began_s is not None)
    assert len(waits_s) == len(small) > 50
    assert waits_s[int(0.99 * len(waits_s))] < 0.5


async def test_a_stall_of_the_decoders_is_not_the_encoders() -> None:
    """The time that pictures wait for room at the decoders says nothing of the encoders, neither while it lasts nor
    when it is over."""
    simulation = Simulation()
    gates, admission, cost = simulation.gates, Admission(8, 100), RequestCost(NUM_SEQUENCES, 1000, 100)
    _, first, _ = await gates.enter(admission.enter(), "a", RequestCost(NUM_SEQUENCES, 0, 100))
    waiting = asyncio.create_task(gates.enter(admission.enter(), "a", cost))
    await asyncio.sleep(0)
    simulation.now_s += 50
    assert gates.encoder.takes_s("a", 10**9) == 1.0  # nothing is known yet, so it is the guess of a second
    first.leave()
    pictures, _, _ = await waiting
    assert pictures is not None
    simulation.now_s += 0.25
    pictures.leave(is_done=True)
    assert gates.encoder.try_enter("a", 1000, 1000) is not None
    assert gates.encoder.takes_s("a", 10**9) == 0.25


async def test_refusals_before_the_body_book_nothing() -> None:
    """However many requests are refused before they are read, the time that the next one is told stays the same."""
    simulation = Simulation(comes_back=False)
    simulation.load("", RATE_PER_S / 2, until_s=30)
    await simulation.run()
    gates, cost = simulation.gates, RequestCost(1, 0, 100)
    passes = [gates.decoder.try_enter("", 1, 100) for _ in range(NUM_SEQUENCES)]
    waiting = [asyncio.create_task(gates.enter(Admission(1, 1).enter(), "", cost)) for _ in range(2 * NUM_SEQUENCES)]
    await asyncio.sleep(0)
    assert {gates.retry_after_s("") for _ in range(10_000)} == {3}  # two rounds of a second are ahead
    with pytest.raises(Overloaded) as refused:
        gates.judge("", cost, b"body", max_wait_s=1, left_s=TIMEOUT_S, num_free_slots=100)
    assert refused.value.retry_after_s == 3
    for one in waiting:
        one.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    for inside in passes:
        assert inside is not None
        inside.leave()
    assert gates.retry_after_s("") == 1
