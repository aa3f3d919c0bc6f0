"""The application file changes while requests come: what restarts, and that no request fails.

The name puts these tests last, because the final one replaces every replica of the cluster that the others share.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from deployments.ray_serve.session import deploy
from loadtest.servers import sized
from tests.helpers.ask import SAMPLES, chat, image, random_png, text
from tests.helpers.launching import is_running
from tests.helpers.samples import counted
from tests.helpers.servers import with_changes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    import httpx

    from tests.helpers.ask import Part

RATE_PER_S = 4
NAMES = {"router": "Router", "preprocessor": "Preprocessor", "encoder": "VisionEncoder", "decoder": "Decoder"}

Changes = dict[str, dict[str, Any]]

IN_FLIGHT: dict[str, Changes] = {
    "nothing": {},
    "max_ongoing_requests": {"Decoder": {"max_ongoing_requests": 32}, "VisionEncoder": {"max_ongoing_requests": 32}},
    "cache and batch size": {"VisionEncoder": {"user_config": {"cache_bytes": 0, "batch_patches": 512}}},
    "admission": {"Router": {"user_config": {"max_in_flight": 128}}},
    "health checks": {"VisionEncoder": {"health_check_timeout_s": 20}},
    "bounds": {"Decoder": {"autoscaling_config": {"max_replicas": 3}}},
    "mode and SLO": {
        "Router": {"user_config": {"scaling": "act", "ttft_slo_s": 60}},
        # These tests compare replicas, and the policy might start some.
        **{name: sized(1) for name in ("Preprocessor", "VisionEncoder", "Decoder")},
    },
}
"""Changes that restart nothing."""


async def replicas(client: httpx.AsyncClient) -> dict[str, set[str]]:
    """Returns the names of all replicas that report metrics, by pool."""
    names = {pool: set(await counted(client, "process_start_time_seconds", pool)) for pool in NAMES}
    assert all(names.values())
    return names


async def apply(changes: Changes) -> None:
    """Deploys the embedded default with changes to the running cluster and waits until Serve is done."""
    await asyncio.to_thread(deploy, with_changes(changes).for_one_machine())


@asynccontextmanager
async def requests_go_on(client: httpx.AsyncClient) -> AsyncIterator[None]:
    """Sends requests at a steady rate inside the block: text, a picture seen before, and a new one. At the end it
    checks that all of them were answered."""
    answers: list[asyncio.Future[httpx.Response]] = []

    def body(number: int) -> Mapping[str, Any]:
        kinds: tuple[list[Part], ...] = (
            [],
            [image((SAMPLES / "shape.png").read_bytes())],
            [image(random_png(56, 56, 70_000 + number))],
        )
        return chat([*kinds[number % 3], text(f"{number} What is it?")], max_tokens=4, stream=number % 2 == 0)

    async def send() -> None:
        while True:
            answers.append(
                asyncio.ensure_future(client.post("/v1/chat/completions", json=body(len(answers)), timeout=100))
            )
            await asyncio.sleep(1 / RATE_PER_S)

    sending = asyncio.create_task(send())
    try:
        yield
        await asyncio.sleep(1)
    finally:
        sending.cancel()
        done = await asyncio.gather(*answers)
    assert [(one.status_code, one.text) for one in done if one.status_code != 200 or '"error"' in one.text] == []


@pytest.mark.parametrize("change", IN_FLIGHT)
async def test_a_change_in_flight_restarts_nothing(prism: httpx.AsyncClient, change: str) -> None:
    """A change of limits, bounds, cache or batch size takes effect without a new replica and without a lost request."""
    before = await replicas(prism)
    async with requests_go_on(prism):
        await apply(IN_FLIGHT[change])
        if change == "cache and batch size":
            assert sum((await counted(prism, "prism_embedding_cache_bytes", "encoder")).values()) == 0
    assert await replicas(prism) == before


async def test_all_pools_grow_and_shrink(prism: httpx.AsyncClient) -> None:
    """All pools go from one replica to two and back while requests come. None fails, and no replica restarts."""
    before = await replicas(prism)
    async with requests_go_on(prism):
        await apply({name: sized(2) for name in NAMES.values()})
        larger = await replicas(prism)
        await apply({name: sized(1) for name in NAMES.values()})
        for name in NAMES.values():
            await is_running(prism, name, 1)
    after = await replicas(prism)
    for pool in NAMES:
        assert (len(before[pool]), len(larger[pool]), len(after[pool])) == (1, 2, 1)
        assert before[pool] < larger[pool]
        assert after[pool] < larger[pool]


async def test_a_change_of_args_replaces_every_replica(prism: httpx.AsyncClient) -> None:
    """A change of ``args`` replaces all replicas of all pools. The replacements come first, so no request fails."""
    before = await replicas(prism)
    async with requests_go_on(prism):
        await apply({"router": {"request_timeout_s": 599}})
        for name in NAMES.values():
            await is_running(prism, name, 1)
    after = await replicas(prism)
    assert all(before[pool].isdisjoint(after[pool]) for pool in NAMES)
