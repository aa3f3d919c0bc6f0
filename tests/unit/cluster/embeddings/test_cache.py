"""The cache of embeddings, and one run per picture at a time."""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from contextvars import ContextVar
from time import perf_counter

import numpy as np
import pytest

from cluster.embeddings.cache import EmbeddingCache
from cluster.errors import InvalidPicture, PictureLost, PrismError
from cluster.messages import Embedding, Picture
from tests.helpers.waiting import settled

ROW = 100


class Encoder:
    """Makes embeddings when a test allows it, and counts its runs."""

    def __init__(self) -> None:
        self.runs: list[str] = []
        self.ended: list[str] = []
        self.may_go_on = asyncio.Event()

    async def encode(self, digest: str, num_bytes: int = ROW) -> Embedding:
        self.runs.append(digest)
        try:
            await self.may_go_on.wait()
        finally:
            self.ended.append(digest)
        if digest == "broken":
            raise InvalidPicture("It does not decode.", param="messages")
        return Embedding(digest, np.zeros((1, num_bytes), np.uint8), "float32", (1, 2, 2))


def asking(
    cache: EmbeddingCache, encoder: Encoder, digest: str, times: int = 1
) -> list[asyncio.Task[tuple[Embedding, str]]]:
    """Starts ``times`` callers that ask for the same picture, and gives their tasks."""
    return [asyncio.create_task(cache.get_or_join(digest, lambda: encoder.encode(digest))) for _ in range(times)]


async def test_those_who_ask_together_share_one_run() -> None:
    """32 callers that ask for one new picture at the same time cause one run and get the same embedding. A later
    caller causes none."""
    cache, encoder = EmbeddingCache(10 * ROW), Encoder()
    asked = asking(cache, encoder, "a", 32)
    await asyncio.sleep(0)
    encoder.may_go_on.set()
    embeddings, outcomes = zip(*await asyncio.gather(*asked), strict=True)
    assert {id(embedding) for embedding in embeddings} == {id(embeddings[0])}
    assert outcomes == ("miss", *["joined"] * 31)
    kept, outcome = await cache.get_or_join("a", lambda: encoder.encode("a"))
    assert (kept is embeddings[0], outcome) == (True, "hit")
    assert encoder.runs == ["a"]


async def test_a_failure_is_everybodys_and_is_not_kept() -> None:
    """All waiting callers get the error of a failed run. A later caller causes another run."""
    cache, encoder = EmbeddingCache(10 * ROW), Encoder()
    encoder.may_go_on.set()
    failed = await asyncio.gather(*asking(cache, encoder, "broken", 3), return_exceptions=True)
    assert all(isinstance(error, InvalidPicture) for error in failed)
    await asyncio.gather(*asking(cache, encoder, "broken"), return_exceptions=True)
    assert encoder.runs == ["broken", "broken"]


async def test_each_caller_has_its_own_time_and_its_own_field() -> None:
    """A caller that joins a run is told its own waiting time, and an error names its own field."""
    cache, encoder = EmbeddingCache(10 * ROW), Encoder()

    def ask(digest: str, param: str) -> asyncio.Task[Embedding]:
        picture = Picture(digest, b"", 56, 56, param)
        return asyncio.create_task(cache.embedding_for(picture, lambda picture: encoder.encode(picture.digest)))

    first, broken = ask("a", "first"), [ask("broken", str(number)) for number in range(3)]
    await settled()
    came_s, late = perf_counter(), ask("a", "late")
    await asyncio.sleep(0)
    encoder.may_go_on.set()
    assert (await first).spent == {}  # as the one who made it has it
    [(stage, spent_s)] = (await late).spent.items()
    assert stage == "join"
    assert 0 < spent_s < perf_counter() - came_s
    assert [*(await ask("a", "later")).spent] == ["cache_hit"]
    errors = await asyncio.gather(*broken, return_exceptions=True)
    assert [error.param for error in errors if isinstance(error, PrismError)] == ["0", "1", "2"]


async def test_a_picture_without_its_bytes_fails_nobody_else() -> None:
    """Callers with a picture's bytes get its embedding from one run of their own, if the run that they joined had no
    bytes. Those without bytes get the error."""
    cache, encoder = EmbeddingCache(0), Encoder()

    async def make(picture: Picture) -> Embedding:
        if not picture.data:
            await encoder.may_go_on.wait()
            raise PictureLost("No encoder holds its picture.")
        return await encoder.encode(picture.digest)

    pictures = [Picture("a", data, 56, 56, "messages") for data in (b"", b"png", b"", b"png", b"png")]
    asked = [asyncio.create_task(cache.embedding_for(picture, make)) for picture in pictures]
    await settled()
    encoder.may_go_on.set()
    got = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(one) for one in got] == [PictureLost, Embedding, PictureLost, Embedding, Embedding]
    assert encoder.runs == ["a"]


async def test_a_run_outlives_whoever_asked_first_and_ends_with_the_last() -> None:
    """A run goes on when its first caller leaves. It is cancelled when all callers have left."""
    cache, encoder = EmbeddingCache(10 * ROW), Encoder()
    first, second = asking(cache, encoder, "a", 2)
    last, other = asking(cache, encoder, "b", 2)
    await settled()
    first.cancel()
    last.cancel()
    other.cancel()
    await asyncio.wait({first, last, other})
    await settled()
    assert encoder.ended == ["b"]
    encoder.may_go_on.set()
    assert (await second)[0].digest == "a"
    assert (await cache.get_or_join("b", lambda: encoder.encode("b")))[0].digest == "b"
    assert encoder.runs == ["a", "b", "b"]


async def test_a_picture_asked_for_again_while_its_run_is_being_ended_gets_a_run_of_its_own() -> None:
    """A caller that comes while an abandoned run is being cancelled gets a new run."""
    cache, encoder = EmbeddingCache(10 * ROW), Encoder()
    [left] = asking(cache, encoder, "a")
    await settled()
    left.cancel()
    await asyncio.wait({left})
    encoder.may_go_on.set()
    assert (await cache.get_or_join("a", lambda: encoder.encode("a")))[0].digest == "a"


async def test_a_run_belongs_to_no_request() -> None:
    """A run does not see the context of the request that started it, so it is not cancelled with that request."""
    request: ContextVar[str] = ContextVar("request", default="none")
    seen: list[str] = []

    async def encode() -> Embedding:
        seen.append(request.get())
        return Embedding("a", np.zeros((1, ROW), np.uint8), "float32", (1, 2, 2))

    request.set("the first")
    await EmbeddingCache(0).get_or_join("a", encode)
    assert seen == ["none"]


async def test_what_was_not_used_for_longest_goes_first() -> None:
    """Over random lookups the cache keeps what a plain list of uses predicts, within its limit in bytes."""
    draw, encoder, limit = random.Random(0), Encoder(), 700
    encoder.may_go_on.set()
    cache, oracle = EmbeddingCache(limit), OrderedDict[str, int]()
    sizes = {str(number): draw.choice([50, 100, 200, 800]) for number in range(30)}
    for _ in range(3000):
        digest = str(min(draw.randrange(30), draw.randrange(30)))
        runs = len(encoder.runs)
        await cache.get_or_join(digest, lambda digest=digest: encoder.encode(digest, sizes[digest]))  # type: ignore[misc]
        assert (len(encoder.runs) == runs) is (digest in oracle)
        if sizes[digest] <= limit:
            oracle[digest] = sizes[digest]
            oracle.move_to_end(digest)
        while sum(oracle.values()) > limit:
            oracle.popitem(last=False)
        assert cache.num_bytes == sum(oracle.values())


@pytest.mark.parametrize("limit", [0, ROW - 1])
async def test_what_does_not_fit_is_made_again(limit: int) -> None:
    """An embedding larger than the cache is not kept, so the next request makes it again."""
    cache, encoder = EmbeddingCache(limit), Encoder()
    encoder.may_go_on.set()
    for _ in range(2):
        await cache.get_or_join("a", lambda: encoder.encode("a"))
    assert encoder.runs == ["a", "a"]
    assert cache.num_bytes == 0


async def test_a_smaller_cache_drops_the_oldest_at_once() -> None:
    """When a cache is made smaller, its least recently used embeddings go at once. A larger one keeps more again."""
    cache, encoder = EmbeddingCache(3 * ROW), Encoder()
    encoder.may_go_on.set()
    for digest in "abc":
        await cache.get_or_join(digest, lambda digest=digest: encoder.encode(digest))  # type: ignore[misc]
    cache.find("a")
    cache.resize(2 * ROW)
    assert ["b" in cache, "c" in cache, "a" in cache] == [False, True, True]
    assert cache.num_bytes == 2 * ROW
    cache.resize(0)
    assert cache.num_bytes == 0
    cache.resize(ROW)
    await cache.get_or_join("d", lambda: encoder.encode("d"))
    assert "d" in cache
