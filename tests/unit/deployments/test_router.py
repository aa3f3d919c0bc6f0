"""A Router over HTTP, with a function in place of its decoders."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from prometheus_client import REGISTRY

from cluster.admission.stages import StageGates
from cluster.config import DecoderConfig, PrismConfig
from cluster.errors import PoolUnavailable
from cluster.messages import Begun, Call, FirstPiece, Picture, Piece, Replay
from deployments.gates import ENCODER_PATCHES
from tests.helpers.ask import chat, image, random_png, text
from tests.helpers.http_surface import here, logged
from tests.helpers.local_router import routed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping

    from deployments.router import Router

CHAT = "/v1/chat/completions"
MIB = 2**20
NUM_ASKED = 12
PICTURE_BYTES = 9 * MIB // 8
HELD_BYTES = 32 * MIB
"""An eighth of the sizes at which a dozen requests once filled a Router."""


def about(*seeds: int, **options: Any) -> Mapping[str, Any]:
    """Returns a request about large pictures."""
    pictures = [image(random_png(56, 56, seed).ljust(PICTURE_BYTES, b"\0")) for seed in seeds]
    return chat([*pictures, text("What is it?")], **options)


class Decoders:
    """Decoders that begin at once and answer when they are told to."""

    def __init__(self) -> None:
        self.calls: list[tuple[Call, tuple[Picture, ...]]] = []
        self.may_begin = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.num_failing = 0

    async def generate(self, call: Call, *pictures: Picture) -> AsyncGenerator[Begun | FirstPiece | Piece]:
        """See ``Decoder.generate``."""
        self.calls.append((call, pictures))
        await self.may_begin.wait()
        if pictures:
            yield Begun()
        await self.may_answer.wait()
        if self.num_failing:
            self.num_failing -= 1
            raise PoolUnavailable("The engine died.", pool="decoder")
        yield FirstPiece("{}", {})


@asynccontextmanager
async def asked_by(decoders: Decoders, num_decoders: int = 1) -> AsyncIterator[tuple[httpx.AsyncClient, Router]]:
    """Runs a Router in front of the decoders. Yields a client of it, and the Router."""
    async with (
        routed(decoders.generate, num_decoders=num_decoders, max_body_bytes=4 * MIB, max_held_bytes=HELD_BYTES) as (
            port,
            router,
        ),
        httpx.AsyncClient(base_url=here(port), timeout=60) as client,
    ):
        yield client, router


async def reaches(number: int, decoders: Decoders) -> None:
    """Waits until the decoders have got so many calls."""
    while len(decoders.calls) < number:  # noqa: ASYNC110 - nothing else tells
        await asyncio.sleep(0)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_generation_keeps_nobody_from_sending_pictures(stream: bool) -> None:
    """While as many answers are made as once filled the Router with their pictures, a further request with pictures
    is served, however the answers are sent."""
    decoders = Decoders()
    decoders.may_begin.set()
    async with asked_by(decoders) as (client, router):
        waiting = []
        for number in range(NUM_ASKED):
            waiting.append(asyncio.ensure_future(client.post(CHAT, json=about(number, stream=stream))))
            await reaches(number + 1, decoders)
        last = asyncio.ensure_future(client.post(CHAT, json=about(99, 98)))
        await reaches(NUM_ASKED + 1, decoders)
        assert router.admission.num_bytes <= HELD_BYTES
        decoders.may_answer.set()
        answers = [one.status_code for one in await asyncio.gather(*waiting, last)]
    assert answers == [200] * (NUM_ASKED + 1)
    assert (router.admission.num_bytes, router.admission.evictable.num_bytes) == (0, 0)


async def test_pictures_that_wait_for_a_decoder_are_not_evicted() -> None:
    """Requests whose decoder has not begun keep their bytes, and the one that does not fit is refused."""
    decoders = Decoders()
    async with asked_by(decoders) as (client, _):
        asked = [asyncio.ensure_future(client.post(CHAT, json=about(number))) for number in range(40)]
        refused: set[int] = set()
        while not refused:
            done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            refused = {one.result().status_code for one in done}
        decoders.may_begin.set()
        decoders.may_answer.set()
        statuses = {one.status_code for one in await asyncio.gather(*asked)}
    assert (refused, statuses) == ({429}, {200, 429})
    assert all(len(picture.data) == PICTURE_BYTES for _, pictures in decoders.calls for picture in pictures)


async def test_the_body_itself_is_gone_while_the_answer_is_made() -> None:
    """What is counted while a whole answer is made is its text and its pictures, without the base64 of its body."""
    decoders = Decoders()
    body = json.dumps(about(1)).encode()
    async with asked_by(decoders) as (client, router):
        asked = asyncio.ensure_future(client.post(CHAT, content=body))
        await reaches(1, decoders)
        num_text_bytes = router.admission.num_bytes - PICTURE_BYTES
        assert 0 < num_text_bytes < 1000
        decoders.may_begin.set()
        decoders.may_answer.set()
        assert (await asked).status_code == 200


async def test_an_error_after_the_beginning_is_still_a_status() -> None:
    """A decoder that fails after it has begun, and before its first text, makes an error with a proper status."""
    decoders = Decoders()
    decoders.may_begin.set()
    decoders.may_answer.set()
    decoders.num_failing = 1
    async with asked_by(decoders) as (client, router):
        for stream in (False, True):
            decoders.num_failing = 1
            answer = await client.post(CHAT, json=about(1, stream=stream))
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "stage_unavailable")
        assert (router.admission.num_requests, router.admission.num_bytes) == (0, 0)


async def test_a_second_try_asks_for_evicted_pictures_by_their_digest() -> None:
    """If a decoder fails after it has begun, the next one gets the pictures whose bytes are still here, and of the
    others all but the bytes."""
    decoders = Decoders()
    decoders.may_begin.set()
    decoders.num_failing = 1
    async with asked_by(decoders, num_decoders=2) as (client, router):
        asked = asyncio.ensure_future(client.post(CHAT, json=about(1, 2)))
        while not router.admission.evictable.num_bytes:  # noqa: ASYNC110 - nothing else tells
            await asyncio.sleep(0)
        filling = router.admission.enter()
        filling.hold(HELD_BYTES - router.admission.num_bytes + 1)
        decoders.may_answer.set()
        assert (await asked).status_code == 200
    [(_, sent), (_, again)] = decoders.calls
    assert [len(picture.data) for picture in again] == [0, PICTURE_BYTES]
    assert [picture.digest for picture in again] == [picture.digest for picture in sent]


async def test_what_the_decoders_have_no_room_for_waits_in_the_router() -> None:
    """The Router sends its decoders as many answers as they make at a time. The others wait and are all answered, and
    the metrics and the scaling policy see them."""
    decoders = Decoders()
    config = PrismConfig(decoder=DecoderConfig(max_num_seqs=3))
    async with (
        routed(decoders.generate, config=config) as (port, router),
        httpx.AsyncClient(base_url=here(port), timeout=60) as client,
    ):
        asked = [asyncio.ensure_future(client.post(CHAT, json=chat([text(f"{number}")]))) for number in range(8)]
        while router.gates.stages.decoder.num_waiting < 5:  # noqa: ASYNC110 - nothing else tells
            await asyncio.sleep(0)
        assert len(decoders.calls) == 3
        assert router.record_autoscaling_stats()["held_decoder"] == 5
        router.gates.stages.observe()
        assert REGISTRY.get_sample_value("prism_waiting_requests", {"stage": "decoder"}) == 5
        tokenized = asyncio.ensure_future(client.post("/tokenize", json={"prompt": "?"}))
        await reaches(4, decoders)
        decoders.may_begin.set()
        decoders.may_answer.set()
        assert {one.status_code for one in await asyncio.gather(*asked, tokenized)} == {200}
        assert router.gates.stages.decoder.num_waiting == 0


async def test_without_a_running_decoder_nothing_waits_in_the_router() -> None:
    """Calls to an empty pool go to Serve, which starts a replica for them."""
    decoders = Decoders()
    config = PrismConfig(decoder=DecoderConfig(max_num_seqs=1))
    async with (
        routed(decoders.generate, config=config, num_decoders=0) as (port, _),
        httpx.AsyncClient(base_url=here(port), timeout=60) as client,
    ):
        asked = [asyncio.ensure_future(client.post(CHAT, json=chat([text(f"{number}")]))) for number in range(5)]
        await reaches(5, decoders)
        decoders.may_begin.set()
        decoders.may_answer.set()
        assert {one.status_code for one in await asyncio.gather(*asked)} == {200}


async def test_pictures_that_wait_do_not_delay_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """While more pictures are sent than the encoders have room for, a text goes to a decoder at once."""
    monkeypatch.setattr("deployments.gates.ENCODER_PATCHES", 200)
    decoders = Decoders()
    async with (
        routed(decoders.generate, num_decoders=2) as (port, router),
        httpx.AsyncClient(base_url=here(port), timeout=60) as client,
    ):
        pages = [chat([image(random_png(230, 150, number)), text("?")]) for number in range(5)]
        asked = [asyncio.ensure_future(client.post(CHAT, json=page)) for page in pages]
        while router.gates.stages.encoder.num_waiting < 3:  # noqa: ASYNC110 - nothing else tells
            await asyncio.sleep(0)
        assert len(decoders.calls) == 2
        asked.append(asyncio.ensure_future(client.post(CHAT, json=chat([text("?")]))))
        await reaches(3, decoders)
        assert [len(pictures) for _, pictures in decoders.calls] == [1, 1, 0]
        decoders.may_begin.set()  # the embeddings are made, so the next pictures may come
        await reaches(6, decoders)
        decoders.may_answer.set()
        assert {one.status_code for one in await asyncio.gather(*asked)} == {200}


async def test_a_request_that_waits_ends_at_its_deadline() -> None:
    """A request that gets no room by its deadline is 504, and takes no room after it."""
    decoders = Decoders()
    config = PrismConfig(decoder=DecoderConfig(max_num_seqs=1))
    async with (
        routed(decoders.generate, config=config) as (port, router),
        httpx.AsyncClient(base_url=here(port), timeout=60) as client,
    ):
        first = asyncio.ensure_future(client.post(CHAT, json=chat([text("1")])))
        await reaches(1, decoders)
        late = await client.post(CHAT, json={**chat([text("2")]), "prism": {"timeout_s": 0.05}})
        assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
        decoders.may_begin.set()
        decoders.may_answer.set()
        assert (await first).status_code == 200
        assert router.gates.stages.decoder.try_enter("", 1, 1) is not None


class Clock:
    """A clock that the test moves."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


async def test_a_refused_client_is_let_in_at_the_time_that_it_was_told() -> None:
    """Once a request would wait longer than ``max_wait_s``, new ones are refused before their pictures are looked at.
    A client that sends its request again after its ``Retry-After`` is let in, while a new one is still refused."""
    decoders, clock = Decoders(), Clock()
    config = PrismConfig(decoder=DecoderConfig(max_num_seqs=1))
    bodies = [chat([text(f"{number}")], max_tokens=100) for number in range(9)]
    async with (
        routed(decoders.generate, config=config, max_wait_s=2) as (port, router),
        httpx.AsyncClient(base_url=here(port), timeout=60) as client,
    ):
        router.gates.stages = StageGates(router.gates.encoder_patches, router.gates.decoder_sequences, clock=clock)
        measured = asyncio.ensure_future(client.post(CHAT, json=bodies[0]))
        await reaches(1, decoders)
        clock.now_s += 3  # an answer takes three seconds
        decoders.may_begin.set()
        decoders.may_answer.set()
        assert (await measured).status_code == 200
        decoders.may_answer.clear()
        asked = [asyncio.ensure_future(client.post(CHAT, json=bodies[1]))]
        await reaches(2, decoders)
        asked.append(asyncio.ensure_future(client.post(CHAT, json=bodies[2])))
        while not router.gates.stages.decoder.num_waiting:  # noqa: ASYNC110 - nothing else tells
            await asyncio.sleep(0)
        broken = chat([image(b"no picture"), text("?")], max_tokens=100)
        refused = [await client.post(CHAT, json=body) for body in (bodies[3], broken, bodies[3])]
        assert [one.status_code for one in refused] == [429] * 3
        assert [one.json()["error"]["code"] for one in refused] == ["overloaded"] * 3
        told_s = [int(one.headers["retry-after"]) for one in refused]
        assert told_s[0] == told_s[2] == 7  # 3 s for the one that waits, and 3 s for itself at nine tenths of the rate
        assert told_s[1] > told_s[0]
        clock.now_s += told_s[0]
        asked.append(asyncio.ensure_future(client.post(CHAT, json=bodies[3])))
        assert (await client.post(CHAT, json=bodies[4])).status_code == 429
        decoders.may_answer.set()
        assert {one.status_code for one in await asyncio.gather(*asked)} == {200}


async def test_the_encoders_are_judged_by_how_long_pictures_take() -> None:
    """Once pictures have been encoded, their time tells how fast the encoders are, also while decoders stall."""
    decoders, clock = Decoders(), Clock()
    async with (
        routed(decoders.generate) as (port, router),
        httpx.AsyncClient(base_url=here(port), timeout=60) as client,
    ):
        router.gates.stages = StageGates(router.gates.encoder_patches, router.gates.decoder_sequences, clock=clock)
        encoder = router.gates.stages.encoder
        asked = [asyncio.ensure_future(client.post(CHAT, json=about(1)))]
        await reaches(1, decoders)
        clock.now_s += 0.5  # so long do pictures take
        decoders.may_begin.set()
        decoders.may_answer.set()
        assert (await asked[0]).status_code == 200
        decoders.may_begin.clear()
        asked.append(asyncio.ensure_future(client.post(CHAT, json=about(2))))
        await reaches(2, decoders)
        rate = encoder.rate()
        assert rate == ENCODER_PATCHES / 0.5
        clock.now_s += 100
        assert encoder.rate() == rate
        decoders.may_begin.set()
        await asyncio.gather(*asked)


class MortalDecoders:
    """Decoders that spell a word, one piece for each letter. The first ones die after so many pieces."""

    def __init__(self, *num_pieces: int) -> None:
        self._num_pieces = list(num_pieces)
        self.calls: list[Call] = []

    async def generate(self, call: Call, *_: Picture) -> AsyncGenerator[FirstPiece | Piece]:
        """See ``Decoder.generate``."""
        self.calls.append(call)
        dies_after = self._num_pieces.pop(0) if self._num_pieces else None
        for number, letter in enumerate("abcdef"[call.replay.num_events if call.replay else 0 :]):
            if number == dies_after:
                raise PoolUnavailable("Gone.", pool="decoder")
            yield Piece(letter, 1, letter.encode()) if number else FirstPiece(letter, {}, 1, letter.encode(), 5)


async def spelt(decoders: MortalDecoders, *, stream: bool) -> httpx.Response:
    """Sends a chat through a Router in front of the decoders and returns its answer."""
    async with (
        routed(decoders.generate, num_decoders=3) as (port, _),
        httpx.AsyncClient(base_url=here(port), timeout=60) as client,
    ):
        return await client.post(CHAT, json=chat([text("Spell.")], stream=stream))


async def test_a_stream_outlives_two_decoders() -> None:
    """A stream whose decoders die goes on at the next ones under one name, and its log line counts that."""
    decoders = MortalDecoders(2, 1)
    with logged() as records:
        answer = await spelt(decoders, stream=True)
    assert answer.text == "abcdef"
    assert [call.replay for call in decoders.calls] == [None, Replay(5, 2, 0, b"ab"), Replay(5, 3, 0, b"abc")]
    assert len({call.request_id for call in decoders.calls}) == 1
    [line] = [record for record in records if record["message"] == "answered"]
    assert (line["decoders"], line["continuations"]) == (["local#1", "local#2", "local#3"], 2)


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize"])
async def test_what_is_no_stream_does_not_go_on(path: str) -> None:
    """An answer that cannot be streamed fails with its decoder, also if its body asks for a stream."""
    decoders = MortalDecoders(2)
    async with (
        routed(decoders.generate, num_decoders=3) as (port, _),
        httpx.AsyncClient(base_url=here(port), timeout=60) as client,
    ):
        answer = await client.post(path, json={"prompt": "Spell.", "tokens": [1], "stream": True})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "stage_unavailable")
    assert len(decoders.calls) == 1


@pytest.mark.parametrize("num_pieces", [2, 0])
async def test_an_answer_whose_decoder_died_does_not_tell_how_fast_decoders_are(num_pieces: int) -> None:
    """The time of an answer counts only if one decoder has made it."""
    decoders = MortalDecoders(num_pieces)
    body = chat([text("Spell.")], stream=True)
    async with (
        routed(decoders.generate, num_decoders=3) as (port, router),
        httpx.AsyncClient(base_url=here(port), timeout=60) as client,
    ):
        gate = router.gates.stages.decoder
        gate.try_enter("", 1, 1)
        assert (await client.post(CHAT, json=body)).text == "abcdef"
        assert gate.takes_s("") == 0
        assert (await client.post(CHAT, json=body)).text == "abcdef"
        assert gate.takes_s("") > 0


async def test_a_decoder_that_fails_before_its_first_piece_is_replaced() -> None:
    """A call that got nothing is sent again whole."""
    decoders = MortalDecoders(0)
    assert (await spelt(decoders, stream=True)).text == "abcdef"
    assert [call.replay for call in decoders.calls] == [None, None]


async def test_an_answer_that_is_not_streamed_never_goes_on() -> None:
    """If the decoder dies behind the first part of a whole answer, the client gets a status."""
    decoders = MortalDecoders(3)
    assert (await spelt(decoders, stream=False)).status_code == PoolUnavailable.status
    assert len(decoders.calls) == 1
