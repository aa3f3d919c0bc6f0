"""Shared memory for embeddings: requests get room or wait, and give back what they had."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pytest

from cluster.concurrency import all_or_first_error
from cluster.decode.transport.store import BLOCK_BYTES, SegmentStore
from cluster.errors import InternalError, TooManyPictures
from cluster.messages import Embedding

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

NUM_BLOCKS, NUM_FILES = 8, 4


@dataclass(eq=False)
class Part:
    """A segment that knows whether it is open."""

    digest: str
    is_open: bool = True

    def close(self) -> None:
        """Closes the segment. A second call is an error."""
        assert self.is_open, "closed twice"
        self.is_open = False


@dataclass
class Made:
    """Makes segments for a store and keeps a list of them."""

    parts: list[Part] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)

    def __call__(self, embedding: Embedding) -> Part:
        if embedding.digest in self.broken:
            raise InternalError(f"{embedding.digest} is broken.")
        self.parts.append(Part(embedding.digest))
        return self.parts[-1]

    @property
    def open_blocks(self) -> int:
        """The number of blocks of all open segments."""
        return sum(BLOCKS[part.digest] for part in self.parts if part.is_open)


BLOCKS = {"a": 1, "b": 1, "c": 2, "d": 2, "e": 3, "f": 3, "g": 5, "h": 8}


def embeddings(digests: str) -> dict[str, Embedding]:
    """Returns one embedding for each letter. The letter decides its size in blocks."""
    return {
        digest: Embedding(digest, np.zeros((BLOCKS[digest], BLOCK_BYTES - 1), np.uint8), "float32", (1, 2, 2))
        for digest in digests
    }


def sizes(digests: str) -> dict[str, int]:
    """Returns the bytes of these embeddings."""
    return {digest: embedding.rows.nbytes for digest, embedding in embeddings(digests).items()}


class Holder:
    """A request that holds segments until it is told to end. It pulls its embeddings at once, or when it is allowed
    to."""

    def __init__(self, store: SegmentStore, digests: str, may_pull: asyncio.Event | None = None) -> None:
        self.digests = digests
        self.segments: Mapping[str, Part] | None = None
        self.has_room = False
        self.pulled: list[str] = []
        self._may_pull = may_pull
        self._end = asyncio.Event()
        self.task = asyncio.ensure_future(self._run(store))

    async def _run(self, store: SegmentStore) -> None:
        async with store.reserved(sizes(self.digests)) as room:
            self.has_room = True
            found = await all_or_first_error(room.segment(digest, self._pull) for digest in self.digests)
            segments = {digest: segment for digest, (segment, _) in zip(self.digests, found, strict=True)}
            self.segments = segments  # type: ignore[assignment]
            await self._end.wait()
            assert all(part.is_open for part in segments.values())  # type: ignore[attr-defined]

    async def _pull(self, digest: str) -> Embedding:
        self.pulled.append(digest)
        if self._may_pull is not None:
            await self._may_pull.wait()
        return embeddings(digest)[digest]

    @property
    def has_begun(self) -> bool:
        """True if the request holds its segments."""
        return self.segments is not None

    async def end(self) -> None:
        """Ends the request. Segments that no other request uses become the most recently used ones."""
        self._end.set()
        await self.task

    async def cancel(self) -> None:
        """Cancels the request, whether it waits or runs."""
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task


async def settled() -> None:
    """Returns once the threads have made all requested segments and every waiting task has run."""
    loop = asyncio.get_running_loop()
    for _ in range(3):
        await asyncio.gather(*(loop.run_in_executor(None, int) for _ in range(8)))
        for _ in range(5):
            await asyncio.sleep(0)


def fits(digests: Iterable[str]) -> bool:
    """Returns True if segments for these embeddings may exist at the same time."""
    return sum(BLOCKS[digest] for digest in digests) <= NUM_BLOCKS and len({*digests}) <= NUM_FILES


class Oracle:
    """The store in its simplest form: it uses lists and computes every sum again each time."""

    def __init__(self) -> None:
        self.holding: list[str] = []
        self.waiting: list[str] = []
        self.kept: list[str] = []
        """Digests that are there, the longest unused first."""

    @property
    def in_use(self) -> set[str]:
        """The digests that running requests hold."""
        return {digest for digests in self.holding for digest in digests}

    def come(self, digests: str) -> None:
        """A request arrives. One without pictures begins at once, and any other joins the queue."""
        if not digests:
            self.holding.append(digests)
        else:
            self.waiting.append(digests)

    def admit(self) -> Iterator[str]:
        """Lets waiting requests begin in order, until one does not fit."""
        while self.waiting:
            needed = self.in_use | set(self.waiting[0])
            if not fits(needed):
                return
            digests = self.waiting.pop(0)
            for digest in [digest for digest in self.kept if digest not in needed]:
                if not fits({*self.kept, *digests}):
                    self.kept.remove(digest)
            self.kept.extend(digest for digest in digests if digest not in self.kept)
            self.holding.append(digests)
            yield digests

    def end(self, digests: str) -> None:
        """A request ends. Segments that no other request uses become the most recently used ones."""
        self.holding.remove(digests)
        freed = [digest for digest in digests if digest not in self.in_use]
        self.kept = [digest for digest in self.kept if digest not in freed] + freed


@pytest.mark.parametrize("seed", range(25))
async def test_random_schedules_go_as_the_oracle_says(seed: int) -> None:
    """Over random schedules, requests begin in the oracle's order, and the kept segments are the oracle's."""
    draw, made, oracle = random.Random(seed), Made(), Oracle()
    store = SegmentStore(NUM_BLOCKS * BLOCK_BYTES, NUM_FILES, made)  # type: ignore[arg-type]
    holders: list[Holder] = []
    for _ in range(60):
        begun = [holder for holder in holders if holder.has_begun]
        waiting = [holder for holder in holders if not holder.has_begun]
        match draw.choice(["come", "come", "end", "end", "leave"]):
            case "come":
                digests = "".join(draw.sample("abcdefgh", draw.randint(0, 3)))
                if sum(BLOCKS[digest] for digest in digests) > NUM_BLOCKS:
                    continue
                holders.append(Holder(store, digests))
                oracle.come(digests)
            case "end" if begun:
                holder = draw.choice(begun)
                oracle.end(holder.digests)
                await holder.end()
                holders.remove(holder)
            case "leave" if waiting:
                holder = draw.choice(waiting)
                oracle.waiting.pop(waiting.index(holder))
                await holder.cancel()
                holders.remove(holder)
        list(oracle.admit())
        await settled()
        assert sorted(holder.digests for holder in holders if holder.has_begun) == sorted(oracle.holding)
        assert [holder.digests for holder in holders if not holder.has_begun] == oracle.waiting
        assert store.num_waiting == len(oracle.waiting)
        assert sorted(part.digest for part in made.parts if part.is_open) == sorted(oracle.kept)
        assert store.num_bytes == made.open_blocks * BLOCK_BYTES <= NUM_BLOCKS * BLOCK_BYTES
    for holder in holders:
        await holder.cancel()
    store.close()
    await settled()
    assert made.open_blocks == 0


async def test_what_is_asked_for_together_is_made_once() -> None:
    """Requests that want one embedding at the same time share its segment. The segment is kept for the next request."""
    made = Made()
    store = SegmentStore(NUM_BLOCKS * BLOCK_BYTES, NUM_FILES, made)  # type: ignore[arg-type]
    holders = [Holder(store, "ab") for _ in range(5)]
    await settled()
    for holder in holders:
        await holder.end()
    late = Holder(store, "b")
    await settled()
    assert late.has_begun
    assert sorted(part.digest for part in made.parts) == ["a", "b"]
    await late.end()
    store.close()


async def test_what_can_never_fit_is_refused_at_once() -> None:
    """A request whose embeddings can never fit is refused at once, with the figures, and delays no other request."""
    store = SegmentStore(NUM_BLOCKS * BLOCK_BYTES, NUM_FILES, Made())  # type: ignore[arg-type]
    with pytest.raises(TooManyPictures) as refused:
        await Holder(store, "ga" + "ef").task
    assert refused.value.figures == {"asked_bytes": 12 * BLOCK_BYTES, "limit_bytes": NUM_BLOCKS * BLOCK_BYTES}
    assert store.num_bytes == 0


async def test_a_segment_that_cannot_be_made_fails_its_requests_alone() -> None:
    """The error of a segment reaches all requests that want it. The segment takes no room, and the next request
    tries again."""
    made = Made(broken={"c"})
    store = SegmentStore(NUM_BLOCKS * BLOCK_BYTES, NUM_FILES, made)  # type: ignore[arg-type]
    other, *broken = Holder(store, "a"), Holder(store, "ac"), Holder(store, "c")
    await settled()
    for holder in broken:
        with pytest.raises(InternalError, match="c is broken"):
            await holder.task
    assert other.has_begun
    assert store.num_bytes == BLOCK_BYTES
    made.broken.clear()
    again = Holder(store, "c")
    await settled()
    assert again.has_begun
    await again.end()
    await other.end()
    store.close()
    await settled()
    assert made.open_blocks == 0


async def test_a_request_that_leaves_while_its_segment_is_made_lets_go_of_it() -> None:
    """A segment whose request leaves early is finished and kept, and then removed when another request needs the
    room."""
    made = Made()
    store = SegmentStore(NUM_BLOCKS * BLOCK_BYTES, NUM_FILES, made)  # type: ignore[arg-type]
    leaving = Holder(store, "h")
    await asyncio.sleep(0)
    await leaving.cancel()
    next_one = Holder(store, "g")
    await settled()
    assert next_one.has_begun
    assert [part.digest for part in made.parts if part.is_open] == ["g"]
    await next_one.end()
    store.close()


async def test_what_is_forgotten_is_made_anew_and_closed_with_its_last_request() -> None:
    """A forgotten segment stays open for its users. The next request for it gets a new one."""
    made = Made()
    store = SegmentStore(NUM_BLOCKS * BLOCK_BYTES, NUM_FILES, made)  # type: ignore[arg-type]
    early, idle = Holder(store, "a"), Holder(store, "b")
    await settled()
    await idle.end()
    store.forget(["a", "b", "c"])
    late = Holder(store, "a")
    await settled()
    assert late.segments is not None
    assert early.segments is not None
    assert late.segments["a"] is not early.segments["a"]
    assert [part.digest for part in made.parts if part.is_open] == ["a", "a"]
    await early.end()
    assert [part.is_open for part in made.parts if part.digest == "a"] == [False, True]
    store.close()
    assert late.segments["a"].is_open
    await late.end()
    assert made.open_blocks == 0
    assert store.num_bytes == 0


async def test_room_is_taken_before_anything_is_pulled() -> None:
    """A request that must wait for room pulls nothing, and the room of a request counts before its embedding comes."""
    store, may_pull = SegmentStore(NUM_BLOCKS * BLOCK_BYTES, NUM_FILES, Made()), asyncio.Event()  # type: ignore[arg-type]
    first, second = Holder(store, "g", may_pull), Holder(store, "g" + "d", may_pull)
    third = Holder(store, "e" + "f", may_pull)
    await settled()
    assert store.num_bytes == 7 * BLOCK_BYTES
    assert (first.has_room, second.has_room, third.has_room) == (True, True, False)
    assert (first.pulled, second.pulled, third.pulled) == (["g"], ["g", "d"], [])
    may_pull.set()
    await settled()
    assert third.pulled == []
    await first.end()
    await second.end()
    await settled()
    assert third.pulled == ["e", "f"]
    await third.end()
    store.close()
    assert store.num_bytes == 0


async def test_room_of_requests_that_leave_before_their_embeddings_come_is_free_again() -> None:
    """Empty room is given back with its last request, and not kept for reuse."""
    made, never = Made(), asyncio.Event()
    store = SegmentStore(NUM_BLOCKS * BLOCK_BYTES, NUM_FILES, made)  # type: ignore[arg-type]
    leaving, staying = Holder(store, "h", never), Holder(store, "h", never)
    await settled()
    await leaving.cancel()
    assert store.num_bytes == NUM_BLOCKS * BLOCK_BYTES
    assert store.lacks("h")
    await staying.cancel()
    assert store.num_bytes == 0
    last = Holder(store, "h")
    await settled()
    assert not store.lacks("h")
    await last.end()
    store.close()
    await settled()
    assert made.open_blocks == 0


async def test_an_embedding_of_another_size_than_reserved_is_refused() -> None:
    """An embedding that takes more room than its picture's size implies is a defect, and nothing of it is kept."""
    made = Made()
    store = SegmentStore(NUM_BLOCKS * BLOCK_BYTES, NUM_FILES, made)  # type: ignore[arg-type]

    async def larger(_: str) -> Embedding:
        return embeddings("c")["c"]

    async with store.reserved(sizes("a")) as room:
        assert room.empty == ["a"]
        with pytest.raises(InternalError, match="not what its picture's size implies"):
            await room.segment("a", larger)
    assert (store.num_bytes, made.parts) == (0, [])


async def test_the_first_embedding_that_comes_fills_the_room_for_all() -> None:
    """Requests that pull one picture separately share one segment, and a request that failed to pull it spoils
    nothing."""
    made, may_pull = Made(), asyncio.Event()
    store = SegmentStore(NUM_BLOCKS * BLOCK_BYTES, NUM_FILES, made)  # type: ignore[arg-type]
    holders = [Holder(store, "a", may_pull) for _ in range(3)]
    await settled()

    async def fail(_: str) -> Embedding:
        raise InternalError("The encoder failed.")

    async with store.reserved(sizes("a")) as room:
        with pytest.raises(InternalError, match="The encoder failed"):
            await room.segment("a", fail)
    may_pull.set()
    await settled()
    assert [holder.pulled for holder in holders] == [["a"]] * 3
    assert [part.digest for part in made.parts] == ["a"]
    for holder in holders:
        await holder.end()
    store.close()
