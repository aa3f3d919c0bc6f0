"""One run per picture in a pool of encoders, whatever its callers believe."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pytest

from cluster.embeddings.cache import EmbeddingCache
from cluster.embeddings.single_flight import SingleFlight
from cluster.messages import Elsewhere, Embedding, Picture
from cluster.routing.pictures import home, rendezvous
from tests.helpers.waiting import settled

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cluster.messages import Digest, Replica

ROW = 100


class Pool:
    """Encoders that ask each other for claims. Every message and every run takes as long as ``pause`` waits."""

    def __init__(self, *names: Replica, pause: Callable[[], Awaitable[None]], capacity: int = 1000) -> None:
        self.runs: Counter[Digest] = Counter()
        self.num_questions = 0
        self.gone: set[Replica] = set()
        self._pause = pause
        self.members = {
            name: SingleFlight(name, EmbeddingCache(capacity * ROW), ask=self._asking(name), is_there=self._is_there)
            for name in names
        }

    def _is_there(self, name: Replica) -> bool:
        return name not in self.gone

    def _asking(self, asker: Replica) -> Callable[[Replica, Picture], Awaitable[Embedding | Elsewhere | None]]:
        async def ask(peer: Replica, picture: Picture) -> Embedding | Elsewhere | None:
            self.num_questions += 1
            await self._pause()
            answer = None if peer in self.gone else self.members[peer].claim(picture.digest, asker)
            await self._pause()
            return answer

        return ask

    async def _make(self, picture: Picture) -> Embedding:
        self.runs[picture.digest] += 1
        await self._pause()
        return Embedding(picture.digest, np.zeros((1, ROW), np.uint8), "float32", (1, 2, 2))

    async def encode(self, digest: Digest, at: Replica) -> Replica:
        """Asks the pool for a picture as a decoder does, and returns the replica that answered."""
        picture = Picture(digest, b"", 56, 56, "")
        where = home(digest, self.members)
        await self._pause()
        answer = await self.members[at].embedding_for(
            picture, self._make, home=None if where == at else where, is_sent_on=False
        )
        if isinstance(answer, Elsewhere):
            at = answer.replica
            await self._pause()
            answer = await self.members[at].embedding_for(picture, self._make, home=None, is_sent_on=True)
        assert isinstance(answer, Embedding)
        assert answer.digest == digest
        return at


async def at_once() -> None:
    """A pause that ends at once, without a turn of the event loop."""


def pauses(draw: random.Random) -> Callable[[], Awaitable[None]]:
    """Returns a pause that sometimes returns at once and sometimes waits for many turns of the event loop."""

    async def a_while() -> None:
        for _ in range(draw.choice([0, 0, 1, 1, 2, 5, 20])):
            await asyncio.sleep(0)

    return a_while


@pytest.mark.parametrize("seed", range(100))
async def test_wherever_calls_go_there_is_one_run(seed: int) -> None:
    """Random calls for ten pictures, sent to random replicas with random delays, cause one run per picture."""
    draw = random.Random(seed)

    a_while = pauses(draw)
    pool = Pool(*"abcd"[: draw.randint(2, 4)], pause=a_while)
    digests = [str(number) for number in range(10)]

    async def call() -> None:
        for _ in range(draw.randint(0, 60)):
            await asyncio.sleep(0)
        await pool.encode(draw.choice(digests), draw.choice([*pool.members]))

    async with asyncio.timeout(10):
        await asyncio.gather(*(call() for _ in range(200)))
    assert set(pool.runs.values()) == {1}


async def test_who_is_sent_to_the_home_causes_no_question() -> None:
    """A home replica that no other replica has asked sends no message, and a replica returns what it has cached at
    once."""
    pool = Pool("a", "b", pause=at_once)
    for digest in map(str, range(20)):
        for _ in range(2):
            await pool.encode(digest, home(digest, pool.members))
    assert pool.num_questions == 0


async def test_what_the_home_has_it_lends() -> None:
    """A replica that gets a picture which is cached at its home takes the embedding from there and keeps it. It does
    not ask again."""
    pool = Pool("a", "b", pause=at_once)
    first, other = rendezvous("0", ["a", "b"])
    await pool.encode("0", first)
    assert [await pool.encode("0", other) for _ in range(3)] == [other] * 3
    assert (pool.runs["0"], pool.num_questions) == (1, 1)


async def test_a_home_borrows_what_was_made_elsewhere() -> None:
    """After a call that skipped a picture's home, the next call to the home takes the embedding from the replica
    that made it."""
    pool = Pool("a", "b", pause=at_once)
    first, other = rendezvous("0", ["a", "b"])
    await pool.encode("0", other)
    assert [await pool.encode("0", first) for _ in range(3)] == [first] * 3
    assert (pool.runs["0"], pool.num_questions) == (1, 2)


async def test_a_home_that_is_gone_keeps_nobody_from_work() -> None:
    """A picture is encoded even if its home cannot be asked, or if the replica that claimed it is gone."""
    pool = Pool("a", "b", pause=at_once)
    first, other = rendezvous("0", ["a", "b"])
    pool.gone.add(first)
    assert await pool.encode("0", other) == other
    pool.gone = {other}
    assert await pool.encode("0", first) == first
    assert pool.runs["0"] == 2


async def test_what_a_replica_claimed_that_is_gone_is_claimed_anew() -> None:
    """A home never sends a caller to a replica that is gone. It sends the caller to the replica that claimed the
    picture next."""
    pool = Pool(*"abc", pause=at_once)
    first, second, third = rendezvous("0", [*"abc"])
    await pool.encode("0", second)
    pool.gone.add(second)
    assert await pool.encode("0", third) == third
    assert await pool.encode("0", first) == first
    assert pool.runs["0"] == 2


@pytest.mark.parametrize("seed", range(100))
async def test_whatever_happens_every_call_ends(seed: int) -> None:
    """Every call that is not cancelled gets its answer while callers leave, claims fail, replicas disappear and
    embeddings are evicted."""
    draw = random.Random(seed)

    a_while = pauses(draw)
    pool = Pool(*"abcd", pause=a_while, capacity=2)
    calls = [
        asyncio.ensure_future(pool.encode(str(draw.randrange(5)), draw.choice([*pool.members]))) for _ in range(100)
    ]
    for call in draw.sample(calls, 30):
        await a_while()
        call.cancel()
        pool.gone = set(draw.sample([*pool.members], draw.randrange(3)))
    async with asyncio.timeout(10):
        ended = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(answer, str) for answer in ended) >= 70
    assert all(isinstance(answer, str | asyncio.CancelledError) for answer in ended)
    assert all(not member._asking for member in pool.members.values())


async def test_what_was_evicted_is_made_again_where_it_is_asked_for() -> None:
    """A claim whose embedding was evicted stops no replica from encoding the picture again, least of all the home."""
    pool = Pool("a", "b", pause=at_once, capacity=1)
    first, other = rendezvous("0", ["a", "b"])
    evicting = next(digest for digest in map(str, range(1, 100)) if home(digest, ["a", "b"]) == other)
    await pool.encode("0", other)
    await pool.encode(evicting, other)
    assert await pool.encode("0", first) == first
    assert pool.runs["0"] == 2
    assert await pool.encode("0", other) == other
    assert pool.runs["0"] == 2


async def test_a_run_that_fails_fails_all_and_is_not_remembered() -> None:
    """Callers of two replicas get the error of their shared run. A later call causes another run."""
    pool, may_end = Pool("a", "b", pause=at_once), asyncio.Event()

    async def fail(picture: Picture) -> Embedding:
        pool.runs[picture.digest] += 1
        await may_end.wait()
        raise ValueError(picture.digest)

    pool._make = fail  # type: ignore[method-assign]
    calls = [asyncio.ensure_future(pool.encode("0", at)) for at in "abab"]
    await settled()
    may_end.set()
    failed = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(error) for error in failed] == [ValueError] * 4
    assert pool.runs["0"] == 1
    with pytest.raises(ValueError, match="0"):
        await pool.encode("0", "a")
