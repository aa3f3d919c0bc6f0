"""Requests survive the death of an engine or an encoder, if the pool has another."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from tests.helpers.ask import chat, image, random_png, text
from tests.helpers.launching import engine_of, is_running, replicas
from tests.helpers.recorder import calls_between

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import httpx
    import psutil

    from tests.helpers.launching import Launched

RATE_PER_S = 20
NUM_BEFORE, NUM_AFTER = 40, 80
"""Requests that are sent before and after the death."""
SENT_BEFORE_S = 0.1
"""A call that was sent before the first failure was known may arrive so much later."""


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


async def test_an_encoder_that_dies_fails_no_request(launched: Launched, client: httpx.AsyncClient) -> None:
    """While requests come at 10/s, one of two encoders is killed. Every request is answered, whether its picture is new
    or one that the dead encoder may have kept."""
    victim, _ = replicas(launched.root, "VisionEncoder", at_least=2)

    def body(number: int) -> dict[str, Any]:
        is_new = number < NUM_BEFORE or number % 2
        picture = random_png(56, 56, 9000 + (number if is_new else number % NUM_BEFORE))
        return chat([image(picture), text(f"{number} What is it?")], max_tokens=2)

    statuses = await statuses_around_a_death(client, victim, body, RATE_PER_S / 2)
    assert statuses == [200] * (NUM_BEFORE + NUM_AFTER)


async def test_an_engine_that_dies_fails_no_request(
    launched: Launched, client: httpx.AsyncClient, records: Path
) -> None:
    """While requests come at 20/s, one of two engines is killed. Every request is answered, and the dead engine gets
    none after the first one that it failed."""
    await is_running(client, "Decoder", 2)
    victim, _ = replicas(launched.root, "Decoder", at_least=2)
    start_s = time.monotonic()
    statuses = await statuses_around_a_death(
        client, engine_of(victim), lambda number: chat([text(f"{number} is it?")], max_tokens=2), RATE_PER_S
    )
    assert statuses == [200] * (NUM_BEFORE + NUM_AFTER)
    calls = calls_between(records, start_s, time.monotonic())
    retried_s = [call.at_s for call in calls if call.function == "Attempts.can_retry"]
    assert retried_s
    served = [call for call in calls if call.function == "Decoder.generate"]
    assert not [call for call in served if call.pid == victim.pid and call.at_s > retried_s[0] + SENT_BEFORE_S]
    assert [call for call in served if call.pid == victim.pid]
