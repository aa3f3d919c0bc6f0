"""Requests survive an engine, an encoder or a Router that dies or hangs, if the pool has another."""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest

from tests.helpers.ask import chat, image, random_png, text
from tests.helpers.launching import engine_of, is_running, replicas
from tests.helpers.recorder import calls_between
from tests.helpers.stories import Told, story_of
from tests.helpers.waiting import until
from tests.serve.replicated.conftest import NUM_ENCODERS, NUM_ROUTERS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.helpers.launching import Launched

RATE_PER_S = 20
NUM_BEFORE, NUM_AFTER = 40, 80
"""Requests that are sent before and after the death."""
NOTICED_S = 1
"""HAProxy notices within this time that a Router is gone."""
AVOIDED_S = 4
"""So long before it is given up, a decoder that does not answer gets no calls any more."""
STUCK_NOTICED_S = 15
"""A replica that answers nothing is gone within this time."""
NUM_STREAMED, NUM_EVENTS_BEFORE = 120, 20
"""The tokens of a stream, and the events of one after which its decoder is killed."""
CONTINUED = re.compile(r'prism_continuations_total{.*outcome="continued"')
SENT_BEFORE_S = 0.5
"""A call that was sent before the first failure was known may arrive so much later, on a machine that is busy."""


async def statuses_around_a_death(
    client: httpx.AsyncClient, victim: psutil.Process, body: Callable[[int], dict[str, Any]], rate_per_s: float
) -> list[int]:
    """Sends requests at a steady rate, kills a process between two of them, and returns the statuses of all."""
    loop, start_s, answers = asyncio.get_running_loop(), asyncio.get_running_loop().time(), []
    for number in range(NUM_BEFORE + NUM_AFTER):
        if number == NUM_BEFORE:
            victim.kill()
        answers.append(asyncio.ensure_future(client.post("/v1/chat/completions", json=body(number))))
        await asyncio.sleep(max(0.0, start_s + (number + 1) / rate_per_s - loop.time()))
    return [answer.status_code for answer in await asyncio.gather(*answers)]


async def test_an_engine_that_dies_fails_no_request(
    launched: Launched, client: httpx.AsyncClient, records: Path
) -> None:
    """While requests come at 20/s, one of two engines is killed. Every request is answered, and no Router sends the
    dead engine another request after the first failure that it saw. Routers learn of a failure each for itself."""
    await is_running(client, "Decoder", 2)
    victim, _ = replicas(launched.root, "Decoder", at_least=2)
    start_s = time.monotonic()
    statuses = await statuses_around_a_death(
        client, engine_of(victim), lambda number: chat([text(f"{number} is it?")], max_tokens=2), RATE_PER_S
    )
    assert statuses == [200] * (NUM_BEFORE + NUM_AFTER)
    calls = calls_between(records, start_s, time.monotonic())
    failures = [call for call in calls if call.function == "Attempts.can_retry"]
    known_s: dict[int, float] = {}  # when each Router saw its first failure
    for call in failures:
        known_s.setdefault(call.pid, call.at_s)
    assert known_s
    served = [call.at_s for call in calls if call.function == "Decoder.generate" and call.pid == victim.pid]
    assert served
    assert not [at_s for at_s in served if at_s > max(known_s.values()) + SENT_BEFORE_S]
    # Between the two first failures, only the Router that does not know yet sends, and it sees each of these fail.
    after_first = [at_s for at_s in served if at_s > min(known_s.values()) + SENT_BEFORE_S]
    seen_by_others = [call for call in failures if call.pid != failures[0].pid]
    assert len(after_first) <= len(seen_by_others)


@pytest.mark.parametrize("whole_process", [False, True], ids=["engine", "process"])
async def test_streams_survive_their_decoder(
    launched: Launched, client: httpx.AsyncClient, *, whole_process: bool
) -> None:
    """While streams run on two decoders, the engine or the whole process of one is killed. Every stream tells its
    client what it tells without a death, and the metrics count the continuations."""
    await is_running(client, "Decoder", 2)
    square = image(random_png(56, 56, 31_000 + whole_process))
    schema = {"type": "object", "properties": {"word": {"enum": ["left", "right"]}}, "required": ["word"]}
    kinds: list[dict[str, Any]] = [
        chat([text("Count to a thousand.")]),
        chat([square, text("What is it?")]),
        chat([text("Which way?")], structured_outputs={"json": schema}),
        chat([text("Which number?")], temperature=1.0, seed=5),
    ]
    usage = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": NUM_STREAMED, "ignore_eos": True}
    bodies = [{**body, **usage} for body in kinds for _ in range(2)]
    undisturbed = [told(await streamed(client, body)) for body in bodies]
    victim, _ = replicas(launched.root, "Decoder", at_least=2)
    killed = victim if whole_process else engine_of(victim)
    begun = asyncio.Event()
    streams = [asyncio.ensure_future(streamed(client, body, begun)) for body in bodies]
    await begun.wait()
    killed.kill()
    stories = [told(await stream) for stream in streams]
    assert stories == undisturbed
    metrics = (await client.get("/metrics")).text
    assert sum(float(line.split()[-1]) for line in metrics.splitlines() if CONTINUED.match(line))


def told(sent: str) -> tuple[dict[int, Told], Any, bool]:
    """What a stream told, without its name and its time stamp."""
    story = story_of(sent)
    assert len(story.names) == 1
    return story.told, story.usage, story.is_whole


async def streamed(client: httpx.AsyncClient, body: dict[str, Any], begun: asyncio.Event | None = None) -> str:
    """The text of a stream. Sets ``begun`` after a few events."""
    sent = ""
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        async for part in answer.aiter_text():
            sent += part
            if begun and sent.count("data:") > NUM_EVENTS_BEFORE:
                begun.set()
    return sent


async def test_an_encoder_that_dies_fails_no_request(launched: Launched, client: httpx.AsyncClient) -> None:
    """While requests come at 10/s, one of the encoders is killed. Every request is answered, whether its picture is new
    or one that the dead encoder may have kept."""
    victim, *_ = replicas(launched.root, "VisionEncoder", at_least=NUM_ENCODERS)

    def body(number: int) -> dict[str, Any]:
        is_new = number < NUM_BEFORE or number % 2
        picture = random_png(56, 56, 9000 + (number if is_new else number % NUM_BEFORE))
        return chat([image(picture), text(f"{number} What is it?")], max_tokens=2)

    statuses = await statuses_around_a_death(client, victim, body, RATE_PER_S / 2)
    assert statuses == [200] * (NUM_BEFORE + NUM_AFTER)


async def test_a_router_that_dies_loses_few_requests(launched: Launched, client: httpx.AsyncClient) -> None:
    """While requests come at 20/s, one of two Routers is killed. What was in flight then, or is sent before HAProxy has
    noticed, may be lost. Every later request is answered."""
    await is_running(client, "Router", NUM_ROUTERS)
    victim, _ = replicas(launched.root, "Router", at_least=NUM_ROUTERS)
    answers: list[asyncio.Future[httpx.Response]] = []
    for number in range(NUM_BEFORE + NUM_AFTER):
        if number == NUM_BEFORE:
            victim.kill()
        body = chat([text(f"{number} is it?")], max_tokens=2)
        answers.append(asyncio.ensure_future(client.post("/v1/chat/completions", json=body)))
        await asyncio.sleep(1 / RATE_PER_S)
    done = await asyncio.gather(*answers, return_exceptions=True)
    lost = [sent for sent, one in enumerate(done) if not (isinstance(one, httpx.Response) and one.is_success)]
    assert max(lost, default=0) < NUM_BEFORE + RATE_PER_S * NOTICED_S, [done[sent] for sent in lost]


async def test_what_hangs_is_replaced_and_loses_no_request(
    launched: Launched, client: httpx.AsyncClient, records: Path
) -> None:
    """While requests come, the engine of one decoder and the whole process of one encoder are stopped, so they answer
    nothing and do not end. Both are gone in time, the decoder gets no calls for some time before, and every request is
    answered."""
    await is_running(client, "Decoder", 2)
    await is_running(client, "VisionEncoder", NUM_ENCODERS)
    decoder, _ = replicas(launched.root, "Decoder", at_least=2)
    engine, encoder = engine_of(decoder), replicas(launched.root, "VisionEncoder", at_least=NUM_ENCODERS)[0]
    answers: list[asyncio.Future[httpx.Response]] = []

    def ask() -> None:
        number = len(answers)
        parts = [image(random_png(56, 56, 20_000 + number))] if number % 2 else []
        body = chat([*parts, text(f"{number} What is it?")], max_tokens=2)
        answers.append(asyncio.ensure_future(client.post("/v1/chat/completions", json=body)))

    async def are_gone() -> bool:
        ask()
        return not any(has_not_ended(process) for process in (decoder, engine, encoder))

    start_s = time.monotonic()
    for process in (engine, encoder):
        process.suspend()
    await until(are_gone, STUCK_NOTICED_S, "what hangs is not ended")
    gone_s = time.monotonic()
    for _ in range(NUM_AFTER):
        ask()
    assert [answer.status_code for answer in await asyncio.gather(*answers)] == [200] * len(answers)
    calls = calls_between(records, start_s, gone_s)
    served = [call.at_s for call in calls if call.function == "Decoder.generate" and call.pid == decoder.pid]
    assert served
    assert max(served) < gone_s - AVOIDED_S


def has_not_ended(process: psutil.Process) -> bool:
    """Returns True if a process exists and is no zombie."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
