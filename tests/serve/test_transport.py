"""The shared way in for embeddings, on a real engine, with the inline way as its oracle."""

from __future__ import annotations

import asyncio
import json
import os
import random
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest

from cluster.checkpoint import Checkpoint
from cluster.decode.answer import generate
from cluster.decode.transport.store import BLOCK_BYTES
from cluster.embeddings.cache import EmbeddingCache
from cluster.errors import EmbeddingLost, InvalidRequest, TooManyPictures
from cluster.messages import Begun, Call, Embedding, Picture, picture_part
from deployments.decoder import Decoder
from tests.helpers.ask import chat
from tests.helpers.engines import config, started
from tests.helpers.waiting import settled, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cluster.decode.engine import Engine
    from cluster.decode.transport.handoff import Grids, Handoff, Pull, Reservation, Transport
    from deployments.ray_serve.retries import Attempts

# vLLM's engine runs in this process, and its chat layer reads fields that it calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

NUM_BLOCKS = 64
NUM_TOKENS = 12
LOGPROB_TOLERANCE = 1e-5
ROOMS = {"first": 830, "second": 840}
"""Requests with three pictures of a quarter of the room each: no two of them fit."""
SEVERAL = {"n": 3, "temperature": 1.0, "top_k": 1}
"""More than one answer, all of them the likeliest: vLLM does not take ``n`` with temperature 0."""


@pytest.fixture(scope="module")
async def inline() -> AsyncIterator[Engine]:
    """The oracle of these tests: an engine that gets embeddings inside its requests."""
    async with started(transport="inline") as engine:
        yield engine


@pytest.fixture(scope="module")
async def shared(inline: Engine) -> AsyncIterator[Engine]:
    """An engine that gets embeddings through shared memory, with room for a few only. It starts after the oracle, so
    that the oracle's processes inherit nothing of it."""
    del inline
    async with started(shared_bytes=NUM_BLOCKS * BLOCK_BYTES) as engine:
        yield engine
    assert segments_open(psutil.Process()) == set()


def segments_open(*processes: psutil.Process) -> set[str]:
    """Returns the segments of this process that the given processes have open. Those of other clusters are left out."""
    links = [link for process in processes for link in Path(f"/proc/{process.pid}/fd").glob("*")]
    return {target for link in links if (target := os.path.realpath(link)).startswith(f"/memfd:prism-{os.getpid()}-")}


def embedding(engine: Engine, seed: int, side: int = 8) -> Embedding:
    """Returns random numbers as the embedding of a picture of ``side`` × ``side`` patches."""
    shape = engine.embedding_shape
    numbers = np.random.default_rng(seed).normal(size=(side * side // shape.merge_size**2, shape.hidden_size))
    rows = numbers.astype(np.float32).view(np.uint8)
    return Embedding(f"{seed:03d}{side:03d}".rjust(64, "0"), rows, shape.dtype, (1, side, side))


def asked(name: str, pictures: list[Embedding], **options: Any) -> Call:
    """Returns a chat call with text and pictures."""
    content = [{"type": "text", "text": name}, *(picture_part(picture.digest) for picture in pictures)]
    body = chat(content, max_tokens=NUM_TOKENS, ignore_eos=True, logprobs=True, return_token_ids=True, **options)
    return Call("chat", name, body)


async def said(engine: Engine, name: str, pictures: list[Embedding], **options: Any) -> list[str]:
    """Runs a request on an engine and returns all pieces of its answer."""
    by_digest = {picture.digest: picture for picture in pictures}

    async def pull(digest: str) -> Embedding:
        return by_digest[digest]

    grids = {picture.digest: picture.grid for picture in pictures}
    answer = generate(engine, asked(name, pictures, **options), grids, pull)
    return [piece.text async for piece in answer if not isinstance(piece, Begun)]


async def tokens(
    engine: Engine, name: str, pictures: list[Embedding], **options: Any
) -> list[tuple[list[int], list[float]]]:
    """Runs a request and returns the tokens of each choice with their log-probabilities."""
    [answer] = await said(engine, name, pictures, **options)
    return [
        (choice["token_ids"], [token["logprob"] for token in choice["logprobs"]["content"]])
        for choice in json.loads(answer)["choices"]
    ]


def mixed(engine: Engine) -> list[list[Embedding]]:
    """Returns the pictures of many requests: small and large, one or several, new and repeated, and one twice in the
    same request."""
    draw = random.Random(0)
    one = [[embedding(engine, seed, draw.choice([2, 4, 8, 16, 32]))] for seed in range(40)]
    several = [
        [embedding(engine, draw.randint(0, 50), draw.choice([2, 8, 20])) for _ in range(draw.randint(2, 4))]
        for _ in range(20)
    ]
    return [*one, *several, *one[:10]]


async def test_both_ways_in_give_the_same_tokens(shared: Engine, inline: Engine) -> None:
    """The shared transport gives the same tokens as the inline one, also for more embeddings than fit at the same
    time."""
    requests = mixed(shared)
    assert sum(picture.rows.nbytes for pictures in requests for picture in pictures) > NUM_BLOCKS * BLOCK_BYTES
    gate = asyncio.Semaphore(24)

    async def both(number: int) -> tuple[Any, Any]:
        async with gate:
            name, options = f"number {number}", SEVERAL if number % 7 == 0 else {}
            first, second = await asyncio.gather(
                *(tokens(engine, name, requests[number], **options) for engine in (shared, inline))
            )
            return first, second

    for ours, theirs in await asyncio.gather(*(both(number) for number in range(len(requests)))):
        assert [choice for choice, _ in ours] == [choice for choice, _ in theirs]
        for (_, one), (_, other) in zip(ours, theirs, strict=True):
            assert np.allclose(one, other, atol=LOGPROB_TOLERANCE)


async def test_clients_that_leave_take_nothing_with_them(shared: Engine) -> None:
    """Requests that are cancelled at random moments, with a store that is too small for all, do not disturb the
    others."""
    draw, alone = random.Random(1), embedding(shared, 900, 16)
    [expected] = await tokens(shared, "alone", [alone])

    async def leave_early(number: int) -> None:
        pictures = [embedding(shared, 1000 + 10 * number + index, 56) for index in range(3)]
        task = asyncio.ensure_future(said(shared, f"leaves {number}", pictures, stream=True))
        await asyncio.wait([task], timeout=draw.random() * 0.3)
        task.cancel()
        await asyncio.wait([task])

    leaving = [asyncio.ensure_future(leave_early(number)) for number in range(60)]
    for number in range(10):
        [answer] = await tokens(shared, "alone", [alone], cache_salt=str(number))
        assert answer[0] == expected[0]
    await asyncio.gather(*leaving)
    assert not shared.is_dead
    await tokens(shared, "last", [])
    await tokens(shared, "last", [])
    # What the engine has open still is what this process keeps for reuse.
    kept, family = segments_open(psutil.Process()), psutil.Process().children(recursive=True)
    assert segments_open(*family) <= kept
    assert len(kept) <= NUM_BLOCKS


class Losing:
    """A transport that closes a request's segments right after it has handed them to the engine, as a crash of their
    owner would."""

    def __init__(self, transport: Transport, victim: str, num_losses: int = 1) -> None:
        self._transport = transport
        self._victim = victim
        self._num_losses = num_losses

    @asynccontextmanager
    async def reserved(self, request_id: str, grids: Grids) -> AsyncIterator[Reservation]:
        async with self._transport.reserved(request_id, grids) as room:
            is_lost = request_id == self._victim and self._num_losses > 0
            self._num_losses -= is_lost
            yield LosingRoom(room) if is_lost else room

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class LosingRoom:
    """The room of a request whose segments are lost."""

    def __init__(self, room: Reservation) -> None:
        self._room = room

    @property
    def empty(self) -> list[str]:
        return self._room.empty

    async def filled(self, pull: Pull) -> Handoff:
        handoff = await self._room.filled(pull)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for _, descriptor, _ in handoff.fields["ec_transfer_params"].values():
            os.dup2(nothing, descriptor, inheritable=False)
        os.close(nothing)
        return handoff


@pytest.mark.parametrize("options", [{}, {"stream": True}, SEVERAL], ids=str)
async def test_a_lost_embedding_fails_its_request_alone(
    shared: Engine, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """A segment that is gone when the engine opens it fails its request with a typed error. The same request, sent
    again, is answered."""
    seed = 700 + len(str(options))
    lost, others = embedding(shared, seed), [embedding(shared, seed + 100 + index) for index in range(6)]
    with monkeypatch.context() as patch:
        patch.setattr(shared, "transport", Losing(shared.transport, "victim"))
        running = [asyncio.ensure_future(said(shared, f"other {index}", [other])) for index, other in enumerate(others)]
        with pytest.raises(EmbeddingLost):
            await asyncio.wait_for(said(shared, "victim", [lost], **options), 30)
        assert [len(pieces) for pieces in await asyncio.gather(*running)] == [1] * len(others)
    assert not shared.is_dead
    assert await said(shared, "victim", [lost], **options)


async def test_more_pictures_than_can_ever_fit_are_refused(shared: Engine) -> None:
    """A request whose embeddings fit the context and exceed the bound is refused with the figures, and no other request
    waits for it."""
    pictures = [embedding(shared, 400 + number, 2) for number in range(NUM_BLOCKS + 1)]
    with pytest.raises(TooManyPictures):
        await said(shared, "too many", pictures)


async def test_a_bound_below_the_largest_picture_is_refused_at_the_start() -> None:
    """A decoder whose shared memory cannot hold the largest picture refuses to start."""
    with pytest.raises(ValueError, match=r"decoder\.shared_bytes must be at least"):
        async with started(shared_bytes=1):
            pass


class Encoders:
    """Takes the place of the encoder pool and counts the embeddings that are pulled from it."""

    def __init__(self, *embeddings: Embedding) -> None:
        self._embeddings = {embedding.digest: embedding for embedding in embeddings}
        self.pulled: list[str] = []
        self.may_answer: asyncio.Event | None = None

    def for_size(self, num_bytes: int) -> Encoders:
        del num_bytes
        return self

    def remote(self, picture: Picture, *, attempts: Attempts) -> asyncio.Future[Embedding]:
        del attempts
        self.pulled.append(picture.digest)

        async def answer() -> Embedding:
            if self.may_answer is not None:
                await self.may_answer.wait()
            return self._embeddings[picture.digest]

        return asyncio.ensure_future(answer())


async def test_a_probe_of_health_leaves_no_trace(shared: Engine) -> None:
    """A probe is a step of the engine. Neither while it runs nor later does it change what the policy, the request
    routers and ``prism_engine_requests`` are told."""
    await said(shared, "before", [])
    before, stepped_s = (shared.work(), shared.stats(), shared.num_requests), shared.stepped_s
    probing, most = asyncio.create_task(shared.probe()), 0
    while not probing.done():
        await settled()
        most = max(most, shared._llm.get_num_unfinished_requests())
        assert (shared.work(), shared.stats(), shared.num_requests) == before
    await probing
    assert most == 1
    assert shared.stepped_s > stepped_s
    assert (shared.work(), shared.stats(), shared.num_requests) == before


class OnEngine(Decoder):
    """A decoder replica on an engine that runs already and is not stopped with the replica."""

    def __init__(self, engine: Engine, encoders: Any) -> None:
        self._engine, self._encode, self._settings = engine, encoders, Checkpoint(config().model).processor
        self._pulls = EmbeddingCache(0)

    def __del__(self) -> None:
        del self._engine


@pytest.mark.parametrize("num_losses", [0, 1, 2])
async def test_what_was_lost_is_pulled_again(shared: Engine, monkeypatch: pytest.MonkeyPatch, num_losses: int) -> None:
    """An embedding is pulled once and kept. If it is lost it is pulled a second time, and a second loss is a typed
    error."""
    made = embedding(shared, 800 + num_losses)
    encoders, picture = Encoders(made), Picture(made.digest, b"", 112, 112, "messages")
    replica, call = OnEngine(shared, encoders), asked("victim", [made])

    async def answer() -> list[Any]:
        return [piece async for piece in replica.generate(call, picture) if not isinstance(piece, Begun)]

    with monkeypatch.context() as patch:
        patch.setattr(shared, "transport", Losing(shared.transport, "victim", num_losses))
        if num_losses == 2:
            with pytest.raises(EmbeddingLost):
                await answer()
            return
        assert len(await answer()) == 1
    assert len(encoders.pulled) == 1 + num_losses
    assert len(await answer()) == 1
    assert len(encoders.pulled) == 1 + num_losses


async def test_requests_that_want_one_picture_pull_it_once(shared: Engine) -> None:
    """Of three concurrent requests for a picture one calls the encoders. Whichever of them leaves, the others are
    answered."""
    made = embedding(shared, 810)
    encoders, picture = Encoders(made), Picture(made.digest, b"", 112, 112, "messages")
    encoders.may_answer = asyncio.Event()
    replica = OnEngine(shared, encoders)

    async def answer(name: str) -> list[Any]:
        pieces = replica.generate(asked(name, [made]), picture)
        return [piece async for piece in pieces if not isinstance(piece, Begun)]

    asking = [asyncio.create_task(answer(name)) for name in ("first", "second", "third")]
    await settled()
    asking[0].cancel()
    await settled()
    encoders.may_answer.set()
    left, *answers = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(left, asyncio.CancelledError)
    assert [isinstance(pieces, list) and len(pieces) for pieces in answers] == [1, 1]
    assert encoders.pulled == [made.digest]


@pytest.mark.parametrize("way", ["shared", "inline"])
async def test_a_request_that_is_refused_pulls_nothing(way: str, shared: Engine, inline: Engine) -> None:
    """On both ways, a request that vLLM refuses is refused before its picture is asked for. The first good one asks."""
    engine, made = {"shared": shared, "inline": inline}[way], embedding(shared, 890)
    picture, pulled = Picture(made.digest, b"", 112, 112, "messages"), Encoders(made)
    replica = OnEngine(engine, pulled)
    wrong: list[dict[str, Any]] = [{"temperature": "hot"}, {"logit_bias": {"999999": 1}}, {"max_tokens": 10**6}]
    for options in (*wrong, *({**one, "stream": True} for one in wrong)):
        call = Call("chat", "refused", chat([picture_part(made.digest)], **options))
        with pytest.raises(InvalidRequest):
            [piece async for piece in replica.generate(call, picture)]
    assert (pulled.pulled, engine.num_requests) == ([], 0)
    assert [piece async for piece in replica.generate(asked("right", [made]), picture)]
    assert pulled.pulled == [made.digest]


async def test_room_is_reserved_before_anything_is_pulled(shared: Engine) -> None:
    """A request whose embeddings do not fit next to those of a running one pulls none of them until that one has ended,
    even if its own embeddings never come. A request without pictures is answered at once."""
    pictures = {name: [embedding(shared, seed + index, 64) for index in range(3)] for name, seed in ROOMS.items()}
    pulled: list[str] = []
    may_come = asyncio.Event()

    async def answer(name: str) -> None:
        by_digest = {picture.digest: picture for picture in pictures[name]}

        async def pull(digest: str) -> Embedding:
            pulled.append(name)
            await may_come.wait()
            return by_digest[digest]

        grids = {picture.digest: picture.grid for picture in pictures[name]}
        async for _ in generate(shared, asked(name, pictures[name]), grids, pull):
            pass

    async def waits(num_waiting: int, num_pulled: int) -> None:
        async def is_so() -> bool:
            return (shared.transport.num_waiting, len(pulled)) == (num_waiting, num_pulled)

        await until(is_so, 60, f"{shared.transport.num_waiting} requests wait, {pulled} were pulled")

    first = asyncio.create_task(answer("first"))
    await waits(0, 3)
    second = asyncio.create_task(answer("second"))
    await waits(1, 3)
    assert await said(shared, "text", [])
    first.cancel()
    await waits(0, 6)
    assert pulled == ["first"] * 3 + ["second"] * 3
    may_come.set()
    await second


async def test_a_request_whose_embedding_goes_while_it_waits_is_judged_then(shared: Engine) -> None:
    """A bad request about a picture that is in shared memory waits behind another one, which takes the picture's room.
    The bad request is refused all the same before the picture is pulled again."""
    transport, grid, pulled = shared.transport, (1, 64, 64), list[str]()
    kept = [embedding(shared, 850 + index, 64) for index in range(4)]  # they take all the room
    for picture in kept:
        await said(shared, "keeps", [picture])

    async def pull(digest: str) -> Embedding:
        pulled.append(digest)
        raise AssertionError

    async def ask() -> None:
        call = Call("chat", "bad", chat([picture_part(kept[0].digest)], logit_bias={"999999": 1}))
        async for _ in generate(shared, call, {kept[0].digest: grid}, pull):
            pass

    async def waits(num_waiting: int) -> None:
        async def is_so() -> bool:
            return transport.num_waiting == num_waiting

        await until(is_so, 60, f"{transport.num_waiting} requests wait")

    async def hold(name: str, seeds: range, begun: asyncio.Event, end: asyncio.Event) -> None:
        async with transport.reserved(name, {embedding(shared, seed, 64).digest: grid for seed in seeds}):
            begun.set()
            await end.wait()

    events = [asyncio.Event() for _ in range(4)]
    first = asyncio.create_task(hold("first", range(853, 854), *events[:2]))
    await events[0].wait()
    second = asyncio.create_task(hold("second", range(870, 874), *events[2:]))
    await waits(1)
    assert not transport.lacks([kept[0].digest])
    bad = asyncio.create_task(ask())
    await waits(2)
    events[1].set()  # the second takes all room
    await events[2].wait()
    assert transport.lacks([kept[0].digest])
    events[3].set()
    with pytest.raises(InvalidRequest):
        await bad
    await asyncio.gather(first, second)
    assert pulled == []
